"""What grows faster than its list, or stays in memory: frames, heads and videos.

    uv run python benchmarks/lists.py [--manifests 1000000 3162278 10000000] [--frames ...]
                                      [--tree ...] [--heads 100 316 1000] [--videos ...]

Every step that goes through all frames, heads or videos, at three sizes in a geometric row, each in
a process of its own: CPU seconds, and megabytes at the peak above what was there before. Of costs
``c + a n^b`` at such sizes ``(third - second) / (second - first)`` is ``(n3 / n2)^b``, whatever c
is: that b is the exponent. Bytes an item are what the peak grew by between the first size and the
last. Features are 8 numbers long, so that bytes are those of the lists and not of features.

Other load changes CPU seconds by some percent, and bytes not at all.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lists_frames
import lists_heads
from scale import forget_peak, memory_mb
from tools import new_parser, print_header, print_machine, print_row, scratch

LEAST_CPU_S = 0.2
"""Differences in CPU seconds below it are noise, of which no exponent is made."""

Step = Callable[..., Callable[[], Any]]
"""Prepares what a step needs in a folder, and gives what is measured."""

KINDS: Mapping[str, tuple[Callable[..., None], Mapping[str, Step]]] = {
    "manifests": (lists_frames.make_manifests, lists_frames.MANIFEST_STEPS),
    "frames": (lists_frames.make_frames, lists_frames.STEPS),
    "tree": (lists_frames.make_tree, lists_frames.TREE_STEPS),
    "heads": (lists_heads.make_heads, lists_heads.STEPS),
    "videos": (lists_heads.make_videos, lists_heads.STEPS),
}
"""By name of a list: what makes one of a size, and the steps that go through it, in order."""


def measure(kind: str, name: str, folder: Path) -> dict[str, float]:
    """CPU seconds of a step, and megabytes above those before: at the peak, and kept."""
    run = KINDS[kind][1][name](folder)
    gc.collect()
    forget_peak()
    before, start = memory_mb()[0], time.process_time()
    kept = run()
    cpu_s = time.process_time() - start
    peak = memory_mb()[1] - before
    gc.collect()
    found = {"cpu_s": cpu_s, "peak_mb": peak, "kept_mb": memory_mb()[0] - before}
    del kept
    return found


def run_child(*words: str, timeout_s: float) -> dict[str, float] | None:
    """This file with other arguments, in a process of its own; None if it failed or took long."""
    command = [sys.executable, __file__, *words]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(f"{' '.join(words)}: {done.stderr[-600:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes: Sequence[int], costs: Sequence[float], least: float) -> str:
    """b of ``c + a n^b`` through three points; ``-`` where differences are noise."""
    first, second = costs[1] - costs[0], costs[2] - costs[1]
    if min(first, second) <= 0 or second < least:
        return "-"
    return f"{math.log(second / first) / math.log(sizes[2] / sizes[1]):.2f}"


def show(
    kind: str, sizes: Sequence[int], wanted: Sequence[str], timeout_s: float, parent: Path | None
) -> None:
    """A table of all steps of a list."""
    steps = [name for name in KINDS[kind][1] if not wanted or name in wanted]
    found: dict[str, list[dict[str, float] | None]] = {name: [] for name in steps}
    for size in sizes:
        with scratch("lists", parent) as folder:
            KINDS[kind][0](folder, size)
            for name in steps:
                words = ("--point", kind, name, str(folder))
                found[name].append(run_child(*words, timeout_s=timeout_s))
                print(f"{kind}, {size:,}: {name} {found[name][-1]}", file=sys.stderr, flush=True)

    # A row a step
    print(f"\n{kind}: CPU s (peak MB)\n")
    of_costs = "exponent of CPU", "bytes an item at the peak", "kept"
    print_header("step", *(f"{size:,}" for size in sizes), *of_costs)
    for name, points in found.items():
        cells = [f"{p['cpu_s']:.1f} ({p['peak_mb']:,.0f})" if p else "-" for p in points]
        whole = [p for p in points if p]
        shown = ["-"] * 3
        if len(whole) == len(sizes) > 1:
            many = sizes[-1] - sizes[0]
            grown = [
                (whole[-1][key] - whole[0][key]) * 1e6 / many for key in ("peak_mb", "kept_mb")
            ]
            shown[1:] = [f"{value:,.0f}" for value in grown]
        if len(whole) == len(sizes) == 3:
            shown[0] = exponent(sizes, [p["cpu_s"] for p in whole], LEAST_CPU_S)
        print_row(name, *cells, *shown)


def main() -> None:
    parser = new_parser(__doc__)
    tenth = [1_000_000, 3_162_278, 10_000_000]
    hundredth, thousand = [size // 10 for size in tenth], [100, 316, 1000]
    defaults = {"manifests": tenth, "frames": tenth, "tree": hundredth}
    defaults |= {"heads": thousand, "videos": thousand}
    for kind, sizes in defaults.items():
        parser.add_argument(f"--{kind}", type=int, nargs="*", default=sizes)
    parser.add_argument("--steps", nargs="*", default=[], help="only these")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="of one point")
    parser.add_argument("--folder", type=Path, help="where data are written for the time being")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        kind, name, folder = args.point
        print(json.dumps(measure(kind, name, Path(folder))))
        return
    for kind in defaults:
        if sizes := getattr(args, kind):
            show(kind, sizes, args.steps, args.timeout_s, args.folder)
    print_machine()


if __name__ == "__main__":
    main()
