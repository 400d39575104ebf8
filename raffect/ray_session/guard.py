"""A small process that ends what is left of a run's own Ray once the run itself has ended.

Where a run is killed, or leaves since its Ray is dead, Ray's agents live on for a minute and its
workers for seconds. The guard waits for the end of a pipe that the run alone holds open. It finds
Ray's processes by their logs, which lie in folders of sessions that Ray names by the run's process
id. So it may begin before Ray does; Linux only.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

_END_S = 10.0
"""Seconds in which processes that were sent SIGKILL are gone."""


class Guard:
    """The guard of the Ray that this process starts, itself a process beside it.

    Args:
        folder: Ray's temporary folder, in which sessions lie.
    """

    def __init__(self, folder: Path) -> None:
        # Without site packages it starts at once and takes 10 MB. Ctrl-C is not for it.
        command = [sys.executable, "-I", "-S", __file__, str(folder), str(os.getpid())]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
        )

    def release(self) -> None:
        """Have what is left of Ray ended, and wait for it."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_END_S)


def end_sessions(folder: str, run: int) -> None:
    """End all processes of a run's Ray.

    Args:
        folder: Ray's temporary folder.
        run: Process id of the run, which is not ended itself.
    """
    limit = time.monotonic() + _END_S
    while (found := processes_of(folder, run)) and time.monotonic() < limit:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(folder: str, run: int) -> set[int]:
    """Processes of this user that write a file of a session of a run, but for the run itself."""
    session = re.compile(rf"{re.escape(folder)}/session_[^/]*_{run}/")
    pids = (int(process.name) for process in Path("/proc").glob("[0-9]*"))
    return {pid for pid in pids if pid != run and _writes(pid, session)}


def _writes(pid: int, session: re.Pattern[str]) -> bool:
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            is_of_session = session.match(os.readlink(file))
            if is_of_session and file.lstat().st_mode & stat.S_IWUSR:
                return True
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_sessions(sys.argv[1], int(sys.argv[2]))
