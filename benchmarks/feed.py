"""What feeding an encoder costs: CPU time a frame of every step, and the pipeline's rate over the bare encoder's.

    uv run python benchmarks/feed.py --frames 20000

1. steps: one process, no Ray: read, decode, hand-off (the Arrow cell), commit, for loose files and packed Parquet, against PIL decode + open_clip's transform.
2. pipeline with a trivial encoder: CPU seconds of *all* of Ray's processes below this one, divided by frames, and which processes spend them.
3. pipeline with an encoder that is the bottleneck (it sleeps like a GPU that is busy): its rate over its bare rate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from processes import CpuWatch
from stand_in import DIM, IDENTITY, load_stand_in

from raffect.bank.format import Bank
from raffect.config import EncoderConfig, ExtractConfig, PackConfig, PrepareConfig
from raffect.datasets.frames import decode, read_contents
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from raffect.extraction.extract import extract
from raffect.extraction.notes import EncodeNotes, as_notes
from raffect.extraction.pack import pack
from raffect.extraction.steps import Geometry, commit_shard, read_shard, to_item
from raffect.provenance import describe_run
from raffect.ray_session import ray_session
from raffect.storage.keys import encode_video

T = TypeVar("T")
ROLES = {
    "encoder's actor": ("EncodeShard",),
    "workers that read, decode and commit": ("ray::",),
    "raylet, with the object store": ("raylet/raylet",),
    "Ray's control service": ("gcs_server",),
}


def clock_of(function: Callable[[], T], frames: int) -> tuple[float, T]:
    """Microseconds of CPU a frame, and the result."""
    times = []
    for _ in range(
        4
    ):  # the first one touches fresh memory and loads code; a worker does neither for most of its shards
        start = time.process_time()
        result = function()
        times.append((time.process_time() - start) / frames * 1e6)
    return min(times), result


def measure_steps(manifest: pa.Table, packed: pa.Table, folder: Path) -> dict[str, float]:
    """Microseconds of CPU a frame, one process."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    rows = manifest.slice(0, 2048)
    out = {}

    def clock(name, function):
        out[name], result = clock_of(function, len(rows))
        return result

    contents = clock("open and read, loose files", lambda: read_contents(rows))
    clock("open and read, packed Parquet", lambda: read_contents(packed.slice(0, 2048)))
    clock("decode", lambda: [decode(content) for content in contents])
    tables = [
        pa.table(
            {
                key: [value]
                for key, value in to_item(0, source.replace_schema_metadata(None)).items()
            }
        )
        for source in (rows, packed.slice(0, 2048))
    ]
    clock("read_shard, packed (read + decode + cell)", lambda: read_fresh(tables[1], folder))
    read = clock("read_shard, loose (read + decode + cell)", lambda: read_fresh(tables[0], folder))
    clock(
        "hand-off: copy into fresh memory, as into the object store",
        lambda: bytes(memoryview(read["pixels"].chunk(0).buffers()[2])),
    )
    notes = EncodeNotes(
        encode_start=0.0,
        encode_end=0.0,
        encoder="stand-in",
        batch_size=1,
        asked_batch_size=1,
        bare_frames_per_s=1.0,
        identity=IDENTITY,
    )
    features = np.random.default_rng(0).normal(size=(len(rows), DIM)).astype(np.float16)
    kept = {name: read[name] for name in ("shard", "rows", "rejects", "read", "failure")}
    encoded = pa.table(
        {
            **kept,
            "features": pa.array([features.tobytes()], pa.large_binary()),
            "encode": as_notes(notes),
        }
    )
    clock("commit_shard", lambda: commit_shard(encoded, str(folder / "bank")))
    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    paths = [
        Path(root, path)
        for root, path in zip(rows["root"].to_pylist(), rows["path"].to_pylist(), strict=True)
    ][:512]
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    out |= {
        "PIL decode + open_clip transform (what others do)": clock_of(
            lambda: [transform(Image.open(path)) for path in paths], len(paths)
        )[0]
    }
    return out


def read_fresh(table: pa.Table, folder: Path) -> pa.Table:
    """`read_shard` without the note of an earlier attempt."""
    shutil.rmtree(folder / "bank", ignore_errors=True)
    return read_shard(table, str(folder / "bank"), Geometry(size=224))


def by_role(used: dict[int, tuple[str, float]]) -> Counter[str]:
    """CPU seconds by what a process is; Ray's workers take turns at tasks, so they are one role."""
    seconds: Counter[str] = Counter()
    for pid, (title, value) in used.items():
        role = (
            "driver"
            if pid == os.getpid()
            else next(
                (role for role, words in ROLES.items() if any(word in title for word in words)),
                "Ray's other processes",
            )
        )
        seconds[role] += value
    return seconds


def repeat_manifest(manifest: pa.Table, times: int) -> pa.Table:
    """The same files under the names of so many more videos."""
    videos = encode_video(manifest["video"]).cast(pa.string())
    parts = [
        manifest.set_column(
            0, "video", pc.binary_join_element_wise(f"{k:03d}", videos, "-").dictionary_encode()
        )
        for k in range(times)
    ]
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def run_pipeline(manifest_path: Path, bank: Path, s_per_frame: float) -> tuple[dict, Counter[str]]:
    config = ExtractConfig(
        manifest=manifest_path, bank=bank, encoder=EncoderConfig(model="stand-in")
    )
    with CpuWatch() as watch:
        summary = extract(
            config,
            load=partial(load_stand_in, s_per_frame=s_per_frame),
            geometry=Geometry(size=224),
        )
    return summary.__dict__, by_role(watch.used)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument(
        "--times", type=int, default=8, help="how often the same files are read in the longest run"
    )
    parser.add_argument(
        "--slow-frames-per-s",
        type=float,
        default=1000.0,
        help="rate of the stand-in that is the bottleneck",
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-feed-"))
    try:
        write_synthetic(folder / "faces", args.frames, 0)
        prepare(
            PrepareConfig(
                images=(folder / "faces" / "cropped_aligned",),
                annotations=folder / "faces" / EDITION,
                out=folder / "data",
            )
        )
        path = folder / "data" / "manifest.parquet"
        manifest = read_manifest(path)
        pack(PackConfig(manifest=path, out=folder / "packed"))
        print("| one process, 112x112 JPEG, quality 90 | CPU microseconds a frame |\n|---|---|")
        for name, value in measure_steps(
            manifest, read_manifest(folder / "packed" / "manifest.parquet"), folder
        ).items():
            print(f"| {name} | {value:,.0f} |")
        with ray_session(None):
            paths = {
                times: folder / f"{times}.parquet" for times in (1, args.times // 2, args.times)
            }
            for times, file in paths.items():
                write_manifest(repeat_manifest(manifest, times), file, synthetic=True)
            run_pipeline(
                paths[1], folder / "warm", 0.0
            )  # start-up of workers is not a cost of frames
            part, one = run_pipeline(paths[args.times // 2], folder / "half", 0.0)
            whole, two = run_pipeline(paths[args.times], folder / "full", 0.0)
            # The difference of two sizes leaves out what every run pays once, and what readers queue while the encoder loads.
            frames = whole["encoded"] - part["encoded"]
            two.subtract(one)
            seconds = (
                whole["encoded"] / whole["steady_frames_per_s"]
                - part["encoded"] / part["steady_frames_per_s"]
            )
            print(
                f"\n| whole pipeline, trivial encoder, {frames / seconds:,.0f} frames/s over {frames:,} frames | CPU microseconds a frame |\n|---|---|"
            )
            for role, value in [*two.most_common(), ("together", two.total())]:
                print(f"| {role} | {value / frames * 1e6:,.0f} |")
            slow, _ = run_pipeline(path, folder / "slow", 1 / args.slow_frames_per_s)
            ratio = slow["steady_frames_per_s"] / slow["bare_frames_per_s"]
            print(
                f"\npipeline, encoder as bottleneck: {slow['steady_frames_per_s']:,.0f} frames/s of {slow['bare_frames_per_s']:,.0f} bare, ratio {ratio:.3f}, busy {slow['busy_share']:.3f}"
            )
        print(
            f"rows: {sum(commit.rows for commit in Bank(folder / 'full').read_commits().values()):,} of {len(manifest) * args.times:,}"
        )
        print(json.dumps(describe_run()["versions"] | describe_run()["machine"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
