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
import threading
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

from made import AFF_WILD2, make_bank
from processes import pss_mb, tree
from scale import load_stand_in, make_manifest

from raffect.config import EncoderConfig, ExtractConfig
from raffect.stages.provenance import describe_run
from raffect.stages.shards import Geometry

ROLES = {
    "read": r"ray::.*read_shard",
    "encode": r"ray::.*EncodeShard",
    "commit": r"ray::.*commit_shard",
    "idle or between tasks": "ray::",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}


class Watch(threading.Thread):
    """Samples the proportional set size of a process and all below it, by what they do."""

    def __init__(self, root: int, every_s: float = 0.5) -> None:
        super().__init__(daemon=True)
        self.root, self.every_s = root, every_s
        self.peak: dict[str, float] = defaultdict(float)
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(self.every_s):
            found: dict[str, list[float]] = defaultdict(list)
            for pid, (name, _) in tree(self.root).items():
                role = "driver" if pid == self.root else next((role for role, pattern in ROLES.items() if re.search(pattern, name)), "others")
                found[role].append(pss_mb(pid))
            for role, values in found.items():
                self.peak[role] = max(self.peak[role], *values)
            self.peak["all together"] = max(self.peak["all together"], sum(map(sum, found.values())))


def watch_child(*arguments: str) -> tuple[dict[str, float], float]:
    """Peak MB by role of a child and all below it, and its seconds."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watch = Watch(child.pid)
    watch.start()
    _, errors = child.communicate()
    watch.done.set()
    watch.join()
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {errors[-1000:]}")
    return watch.peak, time.perf_counter() - start


def run_extract(folder: Path, frames: int) -> None:
    """The child of an extraction."""
    from raffect.stages.extract import extract

    config = ExtractConfig(manifest=make_manifest(folder, frames), bank=folder / "bank", encoder=EncoderConfig(model="stand-in"))
    extract(config, load=partial(load_stand_in, s_per_frame=0.0), geometry=Geometry(size=224))


def show(title: str, sizes: list[int], peaks: list[tuple[dict[str, float], float]]) -> None:
    print(f"\n{title}: peak MB of the largest process of its kind\n\n| process | {' | '.join(f'{size:,} frames' for size in sizes)} |\n|---|{'---|' * len(sizes)}")
    for role in sorted({role for peak, _ in peaks for role in peak}, key=lambda role: (role == "all together", role != "driver", role)):
        print(f"| {role} | {' | '.join(f'{peak.get(role, 0):,.0f}' for peak, _ in peaks)} |")
    print(f"| seconds | {' | '.join(f'{seconds:,.0f}' for _, seconds in peaks)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extract", type=int, nargs="*", default=[60_000, 240_000], help="frames of the manifest")
    parser.add_argument("--train", type=int, nargs="*", default=[sum(AFF_WILD2) // 4, sum(AFF_WILD2)], help="frames of the bank, both splits")
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
            extracts.append(watch_child(__file__, "--point", json.dumps({"folder": str(folder / f"extract{size}"), "frames": size})))
        if extracts:
            show("extract", args.extract, extracts)
        for size in args.train:
            train = size * AFF_WILD2[0] // sum(AFF_WILD2)
            bank, labels = make_bank(folder / f"train{size}", train, size - train)
            settings = ["--task", "expr", "--bank", str(bank), "--labels", str(labels), "--out", str(folder / f"run{size}"), "--epochs", "1", "--batch-size", "512"]
            trainings.append(watch_child("-m", "raffect.cli", "train", "paper", *settings))
            shutil.rmtree(folder / f"train{size}")
        if trainings:
            show("train", args.train, trainings)
            print("| features of both splits | " + " | ".join(f"{size * 768 * 2 / 1e6:,.0f}" for size in args.train) + " |")
        print(describe_run()["versions"], describe_run()["machine"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
