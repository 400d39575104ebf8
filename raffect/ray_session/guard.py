"""A small process that ends what is left of a run's own Ray once the run itself has ended.

Where a run is killed, or leaves since its Ray is dead, Ray's agents live on for a minute and its
workers for seconds. The guard waits for the end of a pipe that the run alone holds open. It finds
Ray's processes by their logs, which lie in the session's folder; Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

_END_S = 10.0
"""Seconds in which processes that were sent SIGKILL are gone."""


class Guard:
    """The guard of a session of Ray, started beside this process.

    Args:
        session: Folder of the session.
    """

    def __init__(self, session: Path) -> None:
        # Without site packages it starts at once and takes 10 MB. Ctrl-C is not for it.
        command = [sys.executable, "-I", "-S", __file__, str(session), str(os.getpid())]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
        )

    def release(self) -> None:
        """Have what is left of the session ended, and wait for it."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_END_S)


def end_session(session: str, run: int) -> None:
    """End all processes that write below a folder, but for the run itself."""
    limit = time.monotonic() + _END_S
    while (found := set(processes_of(session)) - {run}) and time.monotonic() < limit:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(session: str) -> list[int]:
    """Processes of this user that write a file below a folder."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _writes(folder, session)]


def _writes(process: Path, session: str) -> bool:
    with contextlib.suppress(OSError):
        for file in (process / "fd").iterdir():
            is_below = os.readlink(file).startswith(f"{session}/")
            if is_below and file.lstat().st_mode & stat.S_IWUSR:
                return True
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_session(sys.argv[1], int(sys.argv[2]))
