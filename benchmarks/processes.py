"""This machine's processes, from /proc: who is below whom, what each is called, what it used."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int | None = None) -> dict[int, tuple[str, float]]:
    """Title and CPU seconds so far, ended children included, of a process (this one by default) and each below it."""
    root, parents, found = root or os.getpid(), {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        found[int(folder.name)] = title, sum(map(int, fields[11:15])) / _TICKS

    def is_below(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {pid: value for pid, value in found.items() if is_below(pid)}


def tree_cpu_s(root: int | None = None) -> float:
    """CPU seconds so far of a process and all below it."""
    return sum(seconds for _, seconds in tree(root).values())


def pss_mb(pid: int) -> float:
    """Proportional set size: pages that several processes map are shared out among them; 0 for one that has ended."""
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0.0
    return int(found[1]) / 1e3 if found else 0.0
