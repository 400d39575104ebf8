"""What feeding an encoder costs.

    uv run python benchmarks/feed.py --frames 20000

1. Steps, CPU time a frame: one process, no Ray: read, decode, hand-off (the Arrow cell), commit,
   for loose files and packed Parquet, against PIL decode + open_clip's transform.
2. Pipeline with a trivial encoder, for loose files and packed Parquet: CPU seconds of *all* of
   Ray's processes below this one, divided by frames, and which processes spend them.
3. Pipeline with an encoder that is the bottleneck (it sleeps like a GPU that is busy): its rate
   over its bare rate.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from made import draw_faces
from processes import CpuWatch
from stand_in import DIM, IDENTITY, load_stand_in
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.bank.format import Bank
from raffect.config import EncoderConfig, ExtractConfig, PackConfig
from raffect.datasets.frames import decode, read_contents
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.extraction.extract import extract
from raffect.extraction.notes import EncodeNotes, as_notes
from raffect.extraction.pack import pack
from raffect.extraction.steps import Geometry, commit_shard, read_shard, to_item
from raffect.extraction.summary import ExtractSummary
from raffect.ray_session.session import ray_session
from raffect.storage.keys import encode_video

T = TypeVar("T")
GEOMETRY = Geometry(size=224)
ROLES = {
    "encoder's actor": ("EncodeShard",),
    "workers that read, decode and commit": ("ray::",),
    "raylet, with the object store": ("raylet/raylet",),
    "Ray's control service": ("gcs_server",),
}
NOTES = EncodeNotes(
    encode_start=0.0,
    encode_end=0.0,
    encoder="stand-in",
    batch_size=1,
    asked_batch_size=1,
    bare_frames_per_s=1.0,
    identity=IDENTITY,
)

# 1. Steps in one process


def clock_of(function: Callable[[], T], frames: int) -> tuple[float, T]:
    """Microseconds of CPU a frame, and the result."""
    times = []
    # The first of four touches fresh memory and loads code, which a worker does for few shards.
    for _ in range(4):
        start = time.process_time()
        result = function()
        times.append((time.process_time() - start) / frames * 1e6)
    return min(times), result


def measure_steps(manifest: pa.Table, packed: pa.Table, folder: Path) -> dict[str, float]:
    """Microseconds of CPU a frame, one process."""
    loose, packed, out = manifest.slice(0, 2048), packed.slice(0, 2048), {}

    def clock(name: str, function: Callable[[], T]) -> T:
        out[name], result = clock_of(function, len(loose))
        return result

    # Parts of reading
    contents = clock("open and read, loose files", lambda: read_contents(loose))
    clock("open and read, packed Parquet", lambda: read_contents(packed))
    clock("decode", lambda: [decode(content) for content in contents])

    # Reading as a whole, and handing over what was read
    own, together = folder / "bank", "(read + decode + cell)"
    item, packed_item = as_item(loose), as_item(packed)
    clock(f"read_shard, packed {together}", lambda: read_fresh(packed_item, own))
    read = clock(f"read_shard, loose {together}", lambda: read_fresh(item, own))
    pixels = memoryview(read["pixels"].chunk(0).buffers()[2])
    clock("hand-off: copy into fresh memory, as into the object store", lambda: bytes(pixels))

    # Committing random features
    features = np.random.default_rng(0).normal(size=(len(loose), DIM)).astype(np.float16)
    kept = {name: read[name] for name in ("shard", "rows", "rejects", "read", "failure")}
    cell = pa.array([features.tobytes()], pa.large_binary())
    encoded = pa.table({**kept, "features": cell, "encode": as_notes(NOTES)})
    done = clock("commit_shard", lambda: commit_shard(encoded, str(own)))
    assert read["failure"][0].as_py() is None
    assert done["failure"][0].as_py() is None

    out["PIL decode + open_clip transform (what others do)"] = measure_others(loose.slice(0, 512))
    return out


def as_item(rows: pa.Table) -> pa.Table:
    """Manifest rows as the pipeline's first step takes them."""
    item = to_item(0, rows.replace_schema_metadata(None))
    return pa.table({name: [value] for name, value in item.items()})


def read_fresh(table: pa.Table, bank: Path) -> pa.Table:
    """`read_shard` without the note of an earlier attempt."""
    shutil.rmtree(bank, ignore_errors=True)
    return read_shard(table, str(bank), GEOMETRY)


def measure_others(rows: pa.Table) -> float:
    """Microseconds of CPU a frame of PIL and open_clip's transform."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    names = zip(rows["root"].to_pylist(), rows["path"].to_pylist(), strict=True)
    paths = [Path(root, path) for root, path in names]
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    return clock_of(lambda: [transform(Image.open(path)) for path in paths], len(paths))[0]


# 2. and 3. The pipeline


def by_role(used: dict[int, tuple[str, float]]) -> Counter[str]:
    """CPU seconds by role; Ray's workers take turns at tasks, so they are one role."""
    seconds: Counter[str] = Counter()
    for pid, (title, value) in used.items():
        seconds["driver" if pid == os.getpid() else role_of(title)] += value
    return seconds


def role_of(title: str) -> str:
    """What a process below this one is, by its title."""
    for role, words in ROLES.items():
        if any(word in title for word in words):
            return role
    return "Ray's other processes"


def repeat_manifest(manifest: pa.Table, times: int, folder: Path) -> tuple[pa.Table, pa.Table]:
    """The same files under the names of so many more videos; and their pictures packed."""
    videos, parts = encode_video(manifest["video"]).cast(pa.string()), []
    for k in range(times):
        renamed = pc.binary_join_element_wise(f"{k:03d}", videos, "-").dictionary_encode()
        parts.append(manifest.set_column(0, "video", renamed))
    loose = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    write_manifest(loose, folder / "repeated.parquet", synthetic=True)
    report = pack(PackConfig(manifest=folder / "repeated.parquet", out=folder / "packed"))
    return loose, read_manifest(report.manifest)


def run_pipeline(
    manifest: Path, bank: Path, s_per_frame: float
) -> tuple[ExtractSummary, Counter[str]]:
    """An extraction with a stand-in encoder: what it did, and CPU seconds by role."""
    config = ExtractConfig(manifest=manifest, bank=bank, encoder=EncoderConfig(model="stand-in"))
    load = partial(load_stand_in, s_per_frame=s_per_frame)
    with CpuWatch() as watch:
        summary = extract(config, load=load, geometry=GEOMETRY)
    return summary, by_role(watch.used)


def show_trivial(name: str, manifest: pa.Table, folder: Path, times: int) -> None:
    """CPU time a frame of the whole pipeline, by role, with an encoder that takes no time."""

    def run(size: str, rows: int) -> tuple[ExtractSummary, Counter[str]]:
        path = folder / f"{size}.parquet"
        write_manifest(manifest.slice(0, rows), path, synthetic=True)
        return run_pipeline(path, folder / size, 0.0)

    folder.mkdir()
    run("warm", len(manifest) // times)  # start-up of workers is not a cost of frames
    half, used_by_half = run("half", len(manifest) // 2)
    full, used = run("full", len(manifest))

    # The difference of two sizes leaves out what every run pays once, and what readers queue while
    # the encoder loads.
    frames = full.encoded - half.encoded
    used.subtract(used_by_half)
    seconds = full.encoded / full.steady_frames_per_s - half.encoded / half.steady_frames_per_s
    title = f"whole pipeline, {name}, trivial encoder, {frames / seconds:,.0f} frames/s"
    print()
    print_header(f"{title} over {frames:,} frames", "CPU microseconds a frame")
    for role, value in [*used.most_common(), ("together", used.total())]:
        print_row(role, f"{value / frames * 1e6:,.0f}")

    # Whether every frame is in the bank
    commits = Bank(folder / "full").read_commits().values()
    rows = sum(commit.rows for commit in commits)
    print(f"rows: {rows:,} of {len(manifest):,}")


def show_bottleneck(manifest: Path, bank: Path, frames_per_s: float) -> None:
    """The rate of the pipeline over that of an encoder which is its slowest part."""
    slow, _ = run_pipeline(manifest, bank, 1 / frames_per_s)
    steady, bare = slow.steady_frames_per_s, slow.bare_frames_per_s
    rate = f"{steady:,.0f} frames/s of {bare:,.0f} bare, ratio {steady / bare:.3f}"
    print(f"\npipeline, encoder as bottleneck: {rate}, busy {slow.busy_share:.3f}")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    longest = "how often the same files are read in the longest run"
    parser.add_argument("--times", type=int, default=8, help=longest)
    slow = "rate of the stand-in that is the bottleneck"
    parser.add_argument("--slow-frames-per-s", type=float, default=1000.0, help=slow)
    parts = ("steps", "pipeline", "bottleneck")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="1., 2. and 3.")
    args = parser.parse_args()
    with scratch("feed") as folder:
        # Drawn faces, loose and packed
        path = draw_faces(folder, args.frames)
        manifest = read_manifest(path)
        loose, packed = repeat_manifest(manifest, args.times, folder)

        # Tables
        if "steps" in args.parts:
            print_header("one process, 112x112 JPEG, quality 90", "CPU microseconds a frame")
            for name, value in measure_steps(loose, packed, folder).items():
                print_row(name, f"{value:,.0f}")
        if {"pipeline", "bottleneck"} & set(args.parts):
            with ray_session(None):
                if "pipeline" in args.parts:
                    show_trivial("loose files", loose, folder / "loose", args.times)
                    show_trivial("packed Parquet", packed, folder / "from-packed", args.times)
                if "bottleneck" in args.parts:
                    show_bottleneck(path, folder / "slow", args.slow_frames_per_s)
        print_machine()


if __name__ == "__main__":
    main()
