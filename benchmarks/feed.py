"""What feeding an encoder costs: CPU time a frame of every step, and the pipeline's rate over the bare encoder's.

    uv run python benchmarks/feed.py --frames 20000

1. steps: one process, no Ray: read, decode, hand-off (the Arrow cell), commit, against PIL decode + open_clip's transform.
2. pipeline with a trivial encoder: CPU seconds of *all* of Ray's processes below this one, divided by frames.
3. pipeline with an encoder that is the bottleneck (it sleeps like a GPU that is busy): its rate over its bare rate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.config import EncoderConfig, ExtractConfig, PrepareConfig
from raffect.data.bank import Bank, Identity
from raffect.data.frames import decode, read_contents
from raffect.data.manifest import read_manifest
from raffect.data.synthetic import EDITION, write_synthetic
from raffect.stages.extract import extract
from raffect.stages.prepare import prepare
from raffect.stages.provenance import describe_run
from raffect.stages.runtime import ray_session
from raffect.stages.shards import Geometry, commit_shard, read_shard, to_item

DIM = 768


class StandIn:
    """An encoder that takes ``s_per_frame`` of waiting, as a busy GPU does, and no CPU."""

    def __init__(self, s_per_frame: float) -> None:
        self.s_per_frame = s_per_frame
        self.batch_size = 256
        self.identity = Identity(model="stand-in", weights_sha256="0" * 64, weights="none", preprocess={}, precision="float16", dim=DIM, stamp="stand-in")

    def encode(self, frames):
        time.sleep(self.s_per_frame * len(frames))
        return np.zeros((len(frames), DIM), np.float16)

    def probe(self):
        start = time.perf_counter()
        time.sleep(self.s_per_frame * 1000)
        return 1000 / (time.perf_counter() - start)


def load_stand_in(config, device, threads, s_per_frame):
    return StandIn(s_per_frame)


def measure_steps(manifest: pa.Table, folder: Path) -> dict[str, float]:
    """Microseconds of CPU a frame, one process."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    rows = manifest.slice(0, 2048)
    out = {}

    def clock(name, function):
        times = []
        for _ in range(4):  # the first one touches fresh memory and loads code; a worker does neither for most of its shards
            start = time.process_time()
            result = function()
            times.append((time.process_time() - start) / len(rows) * 1e6)
        out[name] = min(times)
        return result

    contents = clock("read", lambda: read_contents(rows))
    clock("decode", lambda: [decode(content) for content in contents])
    item = to_item(0, rows.replace_schema_metadata(None))
    table = pa.table({key: [value] for key, value in item.items()})
    read = clock("read_shard (read + decode + cell)", lambda: read_fresh(table, folder))
    identity = StandIn(0).identity
    notes = json.loads(read["notes"][0].as_py()) | {"identity": identity.__dict__}
    features = np.random.default_rng(0).normal(size=(len(rows), DIM)).astype(np.float16)
    encoded = pa.table({"shard": [0], "rows": read["rows"], "features": pa.array([features.tobytes()], pa.large_binary()), "notes": [json.dumps(notes)]})
    clock("commit_shard", lambda: commit_shard(encoded, str(folder / "bank")))
    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    paths = [Path(root, path) for root, path in zip(rows["root"].to_pylist(), rows["path"].to_pylist(), strict=True)][:512]
    start = time.process_time()
    for path in paths:
        transform(Image.open(path))
    out["PIL decode + open_clip transform (what others do)"] = (time.process_time() - start) / len(paths) * 1e6
    return out


def read_fresh(table: pa.Table, folder: Path) -> pa.Table:
    """`read_shard` without the note of an earlier attempt."""
    shutil.rmtree(folder / "bank", ignore_errors=True)
    return read_shard(table, str(folder / "bank"), Geometry(size=224))


def tree_cpu_s() -> float:
    """CPU seconds so far of this process and all below it, ended children included."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def below(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return sum(value for pid, value in seconds.items() if below(pid))


def run_pipeline(manifest_path: Path, bank: Path, s_per_frame: float) -> tuple[dict, float]:
    start = tree_cpu_s()
    config = ExtractConfig(manifest=manifest_path, bank=bank, encoder=EncoderConfig(model="stand-in"))
    summary = extract(config, load=partial(load_stand_in, s_per_frame=s_per_frame), geometry=Geometry(size=224))
    return summary.__dict__, tree_cpu_s() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--slow-frames-per-s", type=float, default=1000.0, help="rate of the stand-in that is the bottleneck")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-feed-"))
    try:
        write_synthetic(folder / "faces", args.frames, 0)
        prepare(PrepareConfig(images=(folder / "faces" / "cropped_aligned",), annotations=folder / "faces" / EDITION, out=folder / "data"))
        path = folder / "data" / "manifest.parquet"
        manifest = read_manifest(path)
        print("CPU microseconds a frame, one process (112x112 JPEG, quality 90):")
        for name, value in measure_steps(manifest, folder).items():
            print(f"  {value:8.1f}  {name}")
        with ray_session(None):
            small = folder / "small.parquet"
            from raffect.data.manifest import write_manifest

            half = len(manifest) // 2
            write_manifest(manifest.slice(0, half), small, synthetic=True)
            run_pipeline(small, folder / "warm", 0.0)  # start-up of workers is not a cost of frames
            _, one = run_pipeline(small, folder / "half", 0.0)
            summary, two = run_pipeline(path, folder / "full", 0.0)
            # The difference of two sizes leaves out what every run pays once.
            per_frame = (two - one) / (len(manifest) - half) * 1e6
            print(
                f"pipeline, trivial encoder: {per_frame:.0f} CPU microseconds a frame over all processes; {summary['steady_frames_per_s']:,.0f} frames/s with an encoder that takes no time"
            )
            slow, _ = run_pipeline(path, folder / "slow", 1 / args.slow_frames_per_s)
            ratio = slow["steady_frames_per_s"] / slow["bare_frames_per_s"]
            print(
                f"pipeline, encoder as bottleneck: {slow['steady_frames_per_s']:,.0f} frames/s of {slow['bare_frames_per_s']:,.0f} bare, ratio {ratio:.3f}, busy {slow['busy_share']:.3f}"
            )
        print(f"rows: {sum(commit.rows for commit in Bank(folder / 'full').read_commits().values()):,} of {len(manifest):,}")
        print(json.dumps(describe_run()["versions"] | describe_run()["machine"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
