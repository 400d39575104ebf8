"""Damage drawn copies of every data set at random, and read each: refused, or right labels alone.

Run from the root: `python scripts/fuzz_data_sets.py --trees 1000`. With `--end-to-end` every set
also goes from its drawn copy to scores: `raffect prepare`, the embedded encoder, one epoch.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from raffect.datasets.synthetic.layouts import LAYOUTS
from tests.helpers.end_to_end import encode, go_through
from tests.helpers.layouts import fuzz

_FRAMES = 300
"""Frames of a drawn copy that goes all the way."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=1000, help="of each layout")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--end-to-end", action="store_true", help="also train on each")
    args = parser.parse_args()
    if args.end_to_end:
        for layout in args.layouts:
            train_on(layout)
    for layout in args.layouts if args.trees else ():
        start, refused, kept = time.perf_counter(), 0, 0
        for seed in range(args.first, args.first + args.trees):
            folder = Path(tempfile.mkdtemp())
            count = fuzz(layout, seed, folder)
            refused += count is None
            kept += count or 0
            shutil.rmtree(folder)
        seconds = time.perf_counter() - start
        found = f"{refused} refused, {kept:,} labels kept, {seconds:.0f} s"
        print(f"{layout}: {args.trees} trees, {found}", flush=True)


def train_on(layout: str) -> None:
    """Print the scores of a drawn copy after a short training."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = go_through(layout, Path(folder), _FRAMES, encode)
        seconds = time.perf_counter() - start
        print(f"{layout}, from its drawn copy to scores: {seconds:.0f} s")
        print("".join(f"  {line}\n" for line in found.lines() if folder not in line), flush=True)


if __name__ == "__main__":
    main()
