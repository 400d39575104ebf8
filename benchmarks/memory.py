"""Peak memory of every process of an extraction and of training, at two sizes.

    python benchmarks/memory.py [--extract 60000 240000] [--train 217000 866708]

Two sizes show what grows with the number of frames and what does not. Extraction is the real
pipeline with a stand-in encoder (no torch in its actor; a real one adds what `import torch` and the
weights take). Training is `raffect train` with heads as wide as the feature, one epoch. PSS shares
out pages that several processes map, so a sum over processes counts them once.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from argparse import SUPPRESS
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from made import AFF_WILD2, make_bank
from processes import Sampler, pss_mb, tree
from stand_in import DIM, load_stand_in, make_manifest
from tools import flags, new_parser, print_header, print_machine, print_row, scratch

from raffect.config import EncoderConfig, ExtractConfig
from raffect.extraction.steps import Geometry

ROLES = {
    "read": r"ray::.*read_shard",
    "encode": r"ray::.*EncodeShard",
    "commit": r"ray::.*commit_shard",
    "idle or between tasks": "ray::",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}
ALL = "all together"

Watched = tuple[dict[str, float], float]
"""Peak MB by role, and seconds."""


class MemoryWatch(Sampler):
    """Peaks of the proportional set size of a process and all below it, by role.

    ``all together`` is the peak of their sum.
    """

    def __init__(self, root: int, every_s: float = 0.5) -> None:
        super().__init__(every_s)
        self.root, self.peak = root, defaultdict[str, float](float)

    def look(self) -> None:
        sizes: dict[str, list[float]] = defaultdict(list)
        for pid, (title, _) in tree(self.root).items():
            sizes[self.role_of(pid, title)].append(pss_mb(pid))
        for role, values in sizes.items():
            self.peak[role] = max(self.peak[role], *values)
        self.peak[ALL] = max(self.peak[ALL], sum(map(sum, sizes.values())))

    def role_of(self, pid: int, title: str) -> str:
        """What a process does, by its title."""
        if pid == self.root:
            return "driver"
        found = (role for role, pattern in ROLES.items() if re.search(pattern, title))
        return next(found, "others")


def watch_child(*arguments: str) -> Watched:
    """Peak MB by role of a child and all below it, and its seconds."""
    start, command = time.perf_counter(), [sys.executable, *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command, text=True, **quiet)
    with MemoryWatch(child.pid) as watch:
        _, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {errors[-1000:]}")
    return watch.peak, time.perf_counter() - start


def run_extract(folder: Path, frames: int) -> None:
    """The child of an extraction."""
    from raffect.extraction.extract import extract

    manifest, encoder = make_manifest(folder, frames), EncoderConfig(model="stand-in")
    config = ExtractConfig(manifest=manifest, bank=folder / "bank", encoder=encoder)
    extract(config, load=partial(load_stand_in, s_per_frame=0.0), geometry=Geometry(size=224))


def watch_extract(folder: Path, frames: int) -> Watched:
    """An extraction of so many frames, as a child."""
    own = folder / f"extract{frames}"
    own.mkdir()
    return watch_child(__file__, "--point", json.dumps({"folder": str(own), "frames": frames}))


def watch_train(folder: Path, frames: int) -> Watched:
    """One epoch of `raffect train` on so many frames of both splits, as a child."""
    own, train = folder / f"train{frames}", frames * AFF_WILD2[0] // sum(AFF_WILD2)
    bank, labels = make_bank(own, train, frames - train)
    data = flags(task="expr", bank=bank, labels=labels, out=folder / f"run{frames}")
    settings = flags(epochs=1, batch_size=512)
    found = watch_child("-m", "raffect.cli", "train", "paper", *data, *settings)
    shutil.rmtree(own)
    return found


def show(title: str, sizes: Sequence[int], found: Sequence[Watched]) -> None:
    """A table with a column a size; the driver first, the sum last."""
    print(f"\n{title}: peak MB of the largest process of its kind\n")
    print_header("process", *(f"{size:,} frames" for size in sizes))
    roles = {role for peak, _ in found for role in peak}
    for role in sorted(roles, key=lambda role: (role == ALL, role != "driver", role)):
        print_row(role, *(f"{peak.get(role, 0):,.0f}" for peak, _ in found))
    print_row("seconds", *(f"{seconds:,.0f}" for _, seconds in found))


def main() -> None:
    parser = new_parser(__doc__)
    extract, train = [60_000, 240_000], [sum(AFF_WILD2) // 4, sum(AFF_WILD2)]
    of_extract, of_train = "frames of the manifest", "frames of the bank, both splits"
    parser.add_argument("--extract", type=int, nargs="*", default=extract, help=of_extract)
    parser.add_argument("--train", type=int, nargs="*", default=train, help=of_train)
    parser.add_argument("--point", help=SUPPRESS)
    args = parser.parse_args()
    if args.point:
        job = json.loads(args.point)
        return run_extract(Path(job["folder"]), job["frames"])
    with scratch("memory") as folder:
        if args.extract:
            found = [watch_extract(folder, size) for size in args.extract]
            show("extract", args.extract, found)
        if args.train:
            show("train", args.train, [watch_train(folder, size) for size in args.train])
            features = [f"{size * DIM * 2 / 1e6:,.0f}" for size in args.train]
            print_row("features of both splits", *features)
        print_machine()


if __name__ == "__main__":
    main()
