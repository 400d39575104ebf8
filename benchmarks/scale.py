"""Where the extraction pipeline stops scaling: many encoders, and plans of many shards.

    uv run python benchmarks/scale.py --actors 1 4 16 64 --shards 1000 10000 100000 1000000
    uv run python benchmarks/scale.py --quick

Everything is the real pipeline (plan, read, hand-off, commit, driver) but the encoder: a stand-in
that waits as a busy GPU does, on GPUs that exist only in Ray's books. Every point is a process of
its own, so that its memory is its own.

1. encoders, fed: each takes ``--frames-per-s``, so slow that the cores of this machine are not what
   limits it; frames/s against so many times one encoder.
2. encoders, driver: shards of one frame and an encoder that takes no time: shards/s through the
   driver, and the driver's own CPU.
3. plans: time and memory of the driver in each step before the first frame, with one row a shard.
4. run: the first shards of such a plan, then stopped: time to the first commit, and what every
   further shard leaves in the driver.
5. waves: the driver's memory at the end of each wave of shards, and the wait for the first shard of
   the next.
6. rows: bytes of the driver's memory a row, with shards of 2048 rows.

The manifest names a few pictures over and over. Other load on the machine falsifies wall times: it
is measured, and stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from processes import machine_cpu_s, tree_cpu_s
from stand_in import load_stand_in, make_manifest
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.bank.format import Bank, Commit, Plan
from raffect.bank.records import file_name
from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.manifest import read_manifest
from raffect.extraction import extract as stage
from raffect.extraction.steps import Geometry
from raffect.progress import Progress
from raffect.storage.keys import Vocabulary, positions

CORES = os.cpu_count() or 1
STEPS = (
    *("read_manifest", "extend_plan", "plan", "unplanned", "choose_shards", "items"),
    "read_commits",
)

# This process's own memory


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process now and at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) / 1e3 for name in ("VmRSS", "VmHWM"))
    return now, peak


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# Running the pipeline


class Enough(Exception):
    """As many shards as were asked for are committed."""


class Watch(Progress):
    """The driver's progress, which stops the run after ``most`` shards.

    Attributes:
        most: Shards of the run.
        warm: Shards before the steady part.
        marks: Time, memory and CPU seconds of the driver at each shard.
        edges: CPU seconds of our processes and of the machine, at both ends of the steady part.
    """

    most, warm = 1 << 62, 1
    marks: ClassVar[list[tuple[float, float, float]]] = []
    edges: ClassVar[list[tuple[float, float]]] = []

    def advance(self, count: int) -> None:
        self.marks.append((time.perf_counter(), memory_mb()[0], time.process_time()))
        # All of /proc is read for this one, so it is done at the edges of the steady part only.
        if len(self.marks) in (self.warm, self.most):
            self.edges.append((tree_cpu_s(), machine_cpu_s()))
        if len(self.marks) >= self.most:
            raise Enough


def start_ray(num_gpus: int) -> None:
    import ray

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=max(4, CORES), num_gpus=num_gpus, **quiet)


def note_datasets() -> list[tuple[float, float, int]]:
    """Have Ray Data note when each dataset was begun and made, and of how many rows."""
    import ray

    calls, real = [], ray.data.from_items

    def timed(items, **options):
        begin = time.perf_counter()
        dataset = real(items, **options)
        calls.append((begin, time.perf_counter(), len(items)))
        return dataset

    ray.data.from_items = timed
    return calls


def drive(
    folder: Path,
    manifest: Path,
    shard_rows: int,
    actors: int,
    s_per_frame: float,
    most: int,
    warm: int,
) -> dict[str, Any]:
    """`extract` until ``most`` shards are committed; times count from the call, Ray being up."""
    # The run
    calls = note_datasets()
    stage.Progress, Watch.most, Watch.warm = Watch, most, warm
    encoder, load = EncoderConfig(model="stand-in"), partial(load_stand_in, s_per_frame=s_per_frame)
    settings = {"shard_rows": shard_rows, "num_actors": actors}
    config = ExtractConfig(manifest=manifest, bank=folder / "bank", encoder=encoder, **settings)
    start = time.perf_counter()
    with suppress(Enough):
        stage.extract(config, load=load, geometry=Geometry(size=224))

    # Its steady part
    wall, memory, cpu = np.array(Watch.marks).T
    steady, shards = wall[-1] - wall[warm - 1], len(wall) - warm
    (own, machine), (own_end, machine_end) = Watch.edges
    begun, made, blocks = calls[0]
    return {
        "blocks": blocks,
        "before_items_s": begun - start,
        "from_items_s": made - begun,
        "first_s": wall[0] - start,
        "shards": len(wall),
        "shards_per_s": shards / steady,
        "driver_ms": (cpu[-1] - cpu[warm - 1]) / shards * 1e3,
        "grown_kb": (memory[-1] - memory[warm - 1]) / shards * 1e3,
        "memory_mb": memory[-1],
        "own": (own_end - own) / steady / CORES,
        "others": (machine_end - machine - own_end + own) / steady / CORES,
    }


def point_fed(
    folder: Path, actors: int, frames_per_s: float, shard_rows: int, rounds: int
) -> dict[str, Any]:
    """Encoders that are the bottleneck."""
    start_ray(actors)
    manifest = make_manifest(folder, actors * (rounds + 2) * shard_rows)
    # The first round holds the start, and the last one actors that have run out of shards.
    most, s_per_frame = actors * (rounds + 1), 1 / frames_per_s
    out = drive(folder, manifest, shard_rows, actors, s_per_frame, most, warm=actors)
    return out | {"frames_per_s": out["shards_per_s"] * shard_rows, "actors": actors}


def point_driver(folder: Path, actors: int, shards: int) -> dict[str, Any]:
    """Shards of one frame, which only the driver slows down."""
    start_ray(actors)
    manifest = make_manifest(folder, shards + 200)
    out = drive(folder, manifest, 1, actors, 0.0, shards, warm=shards // 5)
    return out | {"actors": actors}


def point_run(folder: Path, shards: int, most: int) -> dict[str, Any]:
    """The first shards of a plan."""
    start_ray(1)
    most = min(most, shards - 1)
    return drive(folder, make_manifest(folder, shards), 1, 1, 0.0, most, warm=most // 5)


def point_waves(folder: Path, waves: int, wave: int) -> dict[str, Any]:
    """Several waves of shards, one after the other."""
    start_ray(1)
    stage.SHARDS_PER_WAVE = wave
    shards = waves * wave
    drive(folder, make_manifest(folder, shards + 1), 1, 1, 0.0, shards, warm=wave)
    wall, memory, _ = zip(*Watch.marks, strict=True)
    ends = range(wave - 1, shards, wave)
    return {
        "memory_mb": [memory[k] for k in ends],
        "wait_s": [0.0, *(wall[k + 1] - wall[k] for k in ends[:-1])],
        "wave_s": [wall[k] - wall[k - wave + 1] for k in ends],
    }


# Steps of the driver before the first frame


@contextmanager
def step(out: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds of CPU, which other load does not change, and megabytes.

    Megabytes are those kept afterwards and those at the peak, both above what was there before.
    """
    forget_peak()
    before, start = memory_mb()[0], time.process_time()
    yield
    cpu_s = time.process_time() - start
    now, peak = memory_mb()
    out[name] = (cpu_s, now - before, peak - before)


def write_commits(bank: Bank, num_shards: int) -> None:
    """What `Bank.commit` leaves behind, without its fsync and with one byte for a shard."""
    for folder in (bank.path / "shards", bank.commit_path(0).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        name = file_name("shards", shard, f"{shard:064x}")
        (bank.path / name).write_bytes(b".")
        record = Commit(shard=shard, rows=1, rejects=0, files={name: (1, f"{shard:064x}")})
        bank.commit_path(shard).write_bytes(record.to_bytes())


def point_plan(folder: Path, rows: int, shard_rows: int, commits: bool) -> dict[str, Any]:
    """Every step that the driver takes with a plan."""
    path, bank, out = make_manifest(folder, rows), Bank(folder / "bank"), {}

    # A new plan
    with step(out, "read_manifest"):
        manifest = read_manifest(path)
    with step(out, "extend_plan"):
        bank.extend_plan(manifest, shard_rows)

    # The same one, read again
    again = Bank(bank.path)
    with step(out, "plan"):
        plan = again.plan
    with step(out, "unplanned"):
        again.unplanned(manifest)
    with step(out, "choose_shards"):
        todo = stage.choose_shards(plan, again.read_commits(), None)
    with step(out, "items"):
        items = list(build_items(plan, todo, manifest))
    out["shards"], out["rows"], out["blocks"] = plan.num_shards, rows, len(items)
    del items

    # Its commit records
    if commits:
        write_commits(again, plan.num_shards)
        with step(out, "read_commits"):
            again.read_commits()
        out["total"] = memory_mb()
    return out


def build_items(plan: Plan, todo: list[int], manifest: pa.Table) -> Iterator[dict[str, Any]]:
    """What the datasets begin with.

    Kept whole here, while a run holds ``SHARDS_PER_WAVE / shards`` of it at a time.
    """
    vocabulary = Vocabulary(sorted(manifest["video"].unique().to_pylist()))
    where = positions(vocabulary.keys(plan.table), vocabulary.keys(manifest))
    return stage.iter_items(plan, todo, manifest, where)


# Points as processes


def run_point(name: str, timeout_s: float, **options: Any) -> dict[str, Any] | None:
    """One point in a process and a folder of its own; None where it took too long."""
    with scratch("scale") as folder:
        job = {"name": name, "folder": str(folder)} | options
        command = [sys.executable, __file__, "--point", json.dumps(job)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()  # Ray's processes follow the one that started them
            process.communicate()
            return None
        # Ray's C++ may log behind the answer.
        answers = [line for line in out.splitlines() if line.startswith("{")]
        return json.loads(answers[-1]) if process.returncode == 0 and answers else None


def work(options: dict[str, Any]) -> None:
    """The child's side of `run_point`."""
    points: dict[str, Callable[..., dict[str, Any]]] = {
        "fed": point_fed,
        "driver": point_driver,
        "plan": point_plan,
        "run": point_run,
        "waves": point_waves,
    }
    out = points[options.pop("name")](Path(options.pop("folder")), **options)
    print(json.dumps(out), flush=True)


# Tables


def print_table(*names: str) -> None:
    print()
    print_header(*names)


def load_of(out: dict[str, Any]) -> str:
    """Share of the cores that the point used, and that others used meanwhile."""
    return f"{out['own']:.0%}, {out['others']:.0%}"


def show_actors(args: argparse.Namespace) -> None:
    """Tables 1 and 2."""
    fed_columns = "frames/s", "of linear", "cores: ours, others"
    driver_columns = "tiny shards/s", "driver CPU ms a shard", "cores: ours, others "
    print_table("encoders", *fed_columns, *driver_columns)
    feed = {"frames_per_s": args.frames_per_s, "shard_rows": args.shard_rows, "rounds": args.rounds}
    for actors in args.actors:
        fed = run_point("fed", args.timeout_s, actors=actors, **feed)
        tiny = run_point("driver", args.timeout_s, actors=actors, shards=args.tiny)
        cells = ["-"] * 6
        if fed:
            linear = fed["frames_per_s"] / args.frames_per_s / actors
            cells[:3] = [f"{fed['frames_per_s']:,.0f}", f"{linear:.2f}", load_of(fed)]
        if tiny:
            rates = f"{tiny['shards_per_s']:.0f}", f"{tiny['driver_ms']:.1f}"
            cells[3:] = [*rates, load_of(tiny)]
        print_row(actors, *cells)


def show_plans(args: argparse.Namespace) -> None:
    """Table 3."""
    print("\nCPU microseconds a shard (peak MB above what was there before)")
    print_table("shards", *STEPS)
    for shards in args.shards:
        if out := run_point("plan", args.timeout_s, rows=shards, shard_rows=1, commits=True):
            cells = [f"{out[name][0] / shards * 1e6:,.1f} ({out[name][2]:,.0f})" for name in STEPS]
            print_row(f"{shards:,}", *cells)


def show_runs(args: argparse.Namespace) -> None:
    """Table 4."""
    before = "s before from_items", "s in from_items", "s to the first commit"
    after = "kB more a shard", "driver CPU ms a shard", "shards/s", "cores: ours, others"
    print_table("shards", "blocks", *before, "driver MB", *after)
    for shards in args.shards:
        out = run_point("run", args.timeout_s, shards=shards, most=args.most)
        if out is None:
            print_row(f"{shards:,}", f"none within {args.timeout_s:.0f} s", *["-"] * 8)
            continue
        seconds = [f"{out[name]:.1f}" for name in ("before_items_s", "from_items_s", "first_s")]
        costs = [f"{out[name]:.1f}" for name in ("grown_kb", "driver_ms")]
        rate = f"{out['shards_per_s']:.0f}"
        cells = [f"{out['blocks']:,}", *seconds, f"{out['memory_mb']:,.0f}", *costs, rate]
        print_row(f"{shards:,}", *cells, load_of(out))


def show_waves(args: argparse.Namespace) -> None:
    """Table 5."""
    if out := run_point("waves", args.timeout_s, waves=args.waves, wave=args.most):
        title, since = f"wave of {args.most:,} shards", "s since the last shard of the one before"
        print_table(title, "driver MB at its end", "s it took", since)
        waves = zip(out["memory_mb"], out["wave_s"], out["wait_s"], strict=True)
        for k, (memory, took, waited) in enumerate(waves):
            print_row(k + 1, f"{memory:,.0f}", f"{took:.0f}", f"{waited:.1f}")


def show_rows(args: argparse.Namespace) -> None:
    """Table 6."""
    if out := run_point("plan", args.timeout_s, rows=args.rows, shard_rows=2048, commits=False):
        figures = "CPU nanoseconds, bytes kept and bytes at the peak a row"
        print(f"\n{args.rows:,} rows in shards of 2048: {figures}")
        steps, scales = STEPS[:-1], (1e9, 1e6, 1e6)
        print_table(*steps)
        cells = []
        for name in steps:
            scaled = zip(out[name], scales, strict=True)
            cells.append(" ".join(f"{value / args.rows * scale:,.0f}" for value, scale in scaled))
        print_row(*cells)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    many_shards = [1000, 10_000, 100_000, 1_000_000]
    fed = "frames a shard where encoders are fed"
    rounds = "shards an encoder takes while it is measured"
    tiny = "shards of one frame through the driver"
    most = "shards of a plan that are run, and of a wave"
    waves = "waves of --most shards; 0 leaves them out"
    rows = "rows of the manifest of the last table; 0 leaves it out"
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--shards", type=int, nargs="*", default=many_shards)
    parser.add_argument("--frames-per-s", type=float, default=25.0, help="rate of one stand-in")
    parser.add_argument("--shard-rows", type=int, default=128, help=fed)
    parser.add_argument("--rounds", type=int, default=5, help=rounds)
    parser.add_argument("--tiny", type=int, default=1000, help=tiny)
    parser.add_argument("--most", type=int, default=1000, help=most)
    parser.add_argument("--waves", type=int, default=5, help=waves)
    parser.add_argument("--rows", type=int, default=10_000_000, help=rows)
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one point")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.actors, args.shards, args.rounds, args.tiny = [1, 4], [1000], 2, 100
        args.most, args.waves, args.rows = 100, 2, 100_000
    return args


def main() -> None:
    args = parse()
    if args.point:
        return work(json.loads(args.point))
    if args.actors:
        show_actors(args)
    if args.shards:
        show_plans(args)
        show_runs(args)
    if args.waves:
        show_waves(args)
    if args.rows:
        show_rows(args)
    print_machine()


if __name__ == "__main__":
    main()
