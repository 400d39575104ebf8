"""Peak memory of every process of an extraction and of training, at two sizes: what grows with the number of frames, and what does not.

    python benchmarks/memory.py [--extract 60000 240000] [--train 217000 866708]

Extraction is the real pipeline with a stand-in encoder (no torch in its actor; a real one adds what `import torch` and the weights take). Training is
`raffect train` with heads as wide as the feature, one epoch. PSS shares out pages that several processes map, so a sum over processes counts them once.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

from made import AFF_WILD2, make_bank
from processes import Sampler, pss_mb, tree
from stand_in import load_stand_in, make_manifest

from raffect.config import EncoderConfig, ExtractConfig
from raffect.extraction.steps import Geometry
from raffect.provenance import describe_run

ROLES = {
    "read": r"ray::.*read_shard",
    "encode": r"ray::.*EncodeShard",
    "commit": r"ray::.*commit_shard",
    "idle or between tasks": "ray::",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}


class MemoryWatch(Sampler):
    """Peaks of the proportional set size of a process and all below it, by what they do; ``all together`` is the peak of their sum."""

    def __init__(self, root: int, every_s: float = 0.5) -> None:
        super().__init__(every_s)
        self.root, self.peak = root, defaultdict[str, float](float)

    def look(self) -> None:
        sizes: dict[str, list[float]] = defaultdict(list)
        for pid, (name, _) in tree(self.root).items():
            role = (
                "driver"
                if pid == self.root
                else next(
                    (role for role, pattern in ROLES.items() if re.search(pattern, name)), "others"
                )
            )
            sizes[role].append(pss_mb(pid))
        for role, values in sizes.items():
            self.peak[role] = max(self.peak[role], *values)
        self.peak["all together"] = max(self.peak["all together"], sum(map(sum, sizes.values())))


def watch_child(*arguments: str) -> tuple[dict[str, float], float]:
    """Peak MB by role of a child and all below it, and its seconds."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with MemoryWatch(child.pid) as watch:
        _, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {errors[-1000:]}")
    return watch.peak, time.perf_counter() - start


def run_extract(folder: Path, frames: int) -> None:
    """The child of an extraction."""
    from raffect.extraction.extract import extract

    config = ExtractConfig(
        manifest=make_manifest(folder, frames),
        bank=folder / "bank",
        encoder=EncoderConfig(model="stand-in"),
    )
    extract(config, load=partial(load_stand_in, s_per_frame=0.0), geometry=Geometry(size=224))


def show(title: str, sizes: list[int], peaks: list[tuple[dict[str, float], float]]) -> None:
    print(
        f"\n{title}: peak MB of the largest process of its kind\n\n| process | {' | '.join(f'{size:,} frames' for size in sizes)} |\n|---|{'---|' * len(sizes)}"
    )
    for role in sorted(
        {role for peak, _ in peaks for role in peak},
        key=lambda role: (role == "all together", role != "driver", role),
    ):
        print(f"| {role} | {' | '.join(f'{peak.get(role, 0):,.0f}' for peak, _ in peaks)} |")
    print(f"| seconds | {' | '.join(f'{seconds:,.0f}' for _, seconds in peaks)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--extract", type=int, nargs="*", default=[60_000, 240_000], help="frames of the manifest"
    )
    parser.add_argument(
        "--train",
        type=int,
        nargs="*",
        default=[sum(AFF_WILD2) // 4, sum(AFF_WILD2)],
        help="frames of the bank, both splits",
    )
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        job = json.loads(args.point)
        return run_extract(Path(job["folder"]), job["frames"])
    folder = Path(tempfile.mkdtemp(prefix="raffect-memory-"))
    try:
        extracts, trainings = [], []
        for size in args.extract:
            (folder / f"extract{size}").mkdir()
            extracts.append(
                watch_child(
                    __file__,
                    "--point",
                    json.dumps({"folder": str(folder / f"extract{size}"), "frames": size}),
                )
            )
        if extracts:
            show("extract", args.extract, extracts)
        for size in args.train:
            train = size * AFF_WILD2[0] // sum(AFF_WILD2)
            bank, labels = make_bank(folder / f"train{size}", train, size - train)
            settings = [
                "--task",
                "expr",
                "--bank",
                str(bank),
                "--labels",
                str(labels),
                "--out",
                str(folder / f"run{size}"),
                "--epochs",
                "1",
                "--batch-size",
                "512",
            ]
            trainings.append(watch_child("-m", "raffect.cli", "train", "paper", *settings))
            shutil.rmtree(folder / f"train{size}")
        if trainings:
            show("train", args.train, trainings)
            print(
                "| features of both splits | "
                + " | ".join(f"{size * 768 * 2 / 1e6:,.0f}" for size in args.train)
                + " |"
            )
        print(describe_run()["versions"], describe_run()["machine"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
