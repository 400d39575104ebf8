"""This machine's processes, from /proc: their parents, titles, CPU time and memory."""

from __future__ import annotations

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int | None = None) -> dict[int, tuple[str, float]]:
    """Title and CPU seconds so far of a process (this one by default) and each below it."""
    # All processes of the machine
    root, parents, found = root or os.getpid(), {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        title = words.decode(errors="replace").strip()
        found[int(folder.name)] = title, sum(map(int, fields[11:13])) / _TICKS

    # Those below the root
    def is_below(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {pid: value for pid, value in found.items() if is_below(pid)}


def tree_cpu_s(root: int | None = None) -> float:
    """CPU seconds so far of a process and all below it that live.

    Summed here, because Ray's raylet does not count its children's.
    """
    return sum(seconds for _, seconds in tree(root).values())


class Sampler(threading.Thread, ABC):
    """Looks at this machine's processes while a block runs, and once more at its end."""

    def __init__(self, every_s: float) -> None:
        super().__init__(daemon=True)
        self.every_s, self._done = every_s, threading.Event()

    @abstractmethod
    def look(self) -> None:
        """Note what a subclass measures, as it is now."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
        self.look()

    def run(self) -> None:
        while not self._done.wait(self.every_s):
            self.look()


class CpuWatch(Sampler):
    """CPU seconds of this process and each below it while a block runs.

    Processes that end within the block are included, this watch's own looks (8 ms each beside 160
    processes) are not.

    Attributes:
        used: By process id: title and seconds.
    """

    def __init__(self, every_s: float = 0.2) -> None:
        super().__init__(every_s)
        self.used: dict[int, tuple[str, float]] = {}
        self._looking_s = 0.0
        self._before = {pid: seconds for pid, (_, seconds) in tree().items()}

    def look(self) -> None:
        start = time.thread_time()
        for pid, (title, seconds) in tree().items():
            own = self._looking_s if pid == os.getpid() else 0.0
            self.used[pid] = title, seconds - self._before.get(pid, 0.0) - own
        self._looking_s += time.thread_time() - start


def machine_cpu_s() -> float:
    """CPU seconds of everything on this machine since it started, ended processes included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / _TICKS


def pss_mb(pid: int) -> float:
    """Proportional set size, in which processes share out the pages that they map together.

    0 for a process that has ended.
    """
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0.0
    return int(found[1]) / 1e3 if found else 0.0
