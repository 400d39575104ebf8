"""Where the extraction pipeline bends: many encoders, and plans of many shards.

    uv run python benchmarks/scale.py --actors 1 4 16 64 --shards 1000 10000 100000 1000000
    uv run python benchmarks/scale.py --quick

Everything is the real pipeline (plan, read, hand-off, commit, driver) but the encoder: a stand-in that waits as a busy
GPU does, on GPUs that exist only in Ray's books. Every point is a process of its own, so that its memory is its own.

1. encoders, fed: each takes ``--frames-per-s``, so slow that the cores of this machine are not what limits it; frames/s
   against so many times one encoder.
2. encoders, driver: shards of one frame and an encoder that takes no time: shards/s through the driver, and the driver's own CPU.
3. plans: time and memory of the driver in each step before the first frame, with one row a shard.
4. run: the first shards of such a plan, then stopped: time to the first commit, and what every further shard leaves in the driver.
5. waves: the driver's memory at the end of each wave of shards, and the wait for the first shard of the next.
6. rows: bytes of the driver's memory a row, with shards of 2048 rows.

The manifest names a few pictures over and over. Other load on the machine falsifies wall times: it is measured, and stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from processes import machine_cpu_s, tree_cpu_s
from stand_in import load_stand_in, make_manifest

from raffect.bank.format import Bank, Commit
from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.manifest import read_manifest
from raffect.extraction import extract as stage
from raffect.extraction.steps import Geometry
from raffect.progress import Progress
from raffect.provenance import describe_run
from raffect.storage.keys import Vocabulary, positions

CORES = os.cpu_count() or 1


# What this machine says of itself


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process now and at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1e3 for name in ("VmRSS", "VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# Running the pipeline


class Enough(Exception):
    """As many shards as were asked for are committed."""


class Watch(Progress):
    """The driver's progress, which notes time, memory and CPU at each shard, and stops the run after ``most``."""

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

    os.environ.update(
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_BACKEND_LOG_LEVEL="fatal",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    ray.init(
        address="local",
        num_cpus=max(4, CORES),
        num_gpus=num_gpus,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )


def drive(
    folder: Path,
    manifest: Path,
    shard_rows: int,
    actors: int,
    s_per_frame: float,
    most: int,
    warm: int,
) -> dict:
    """`extract` until ``most`` shards are committed; times count from the call, Ray being up."""
    import ray

    calls = []
    real = ray.data.from_items

    def timed(items, **options):
        begin = time.perf_counter()
        dataset = real(items, **options)
        calls.append((begin, time.perf_counter(), len(items)))
        return dataset

    ray.data.from_items = timed
    stage.Progress, Watch.most, Watch.warm = Watch, most, warm
    config = ExtractConfig(
        manifest=manifest,
        bank=folder / "bank",
        encoder=EncoderConfig(model="stand-in"),
        shard_rows=shard_rows,
        num_actors=actors,
    )
    start = time.perf_counter()
    with suppress(Enough):
        stage.extract(
            config,
            load=partial(load_stand_in, s_per_frame=s_per_frame),
            geometry=Geometry(size=224),
        )
    wall, memory, cpu = np.array(Watch.marks).T
    steady = wall[-1] - wall[warm - 1]
    (own, machine), (own_end, machine_end) = Watch.edges
    return {
        "blocks": calls[0][2],
        "before_items_s": calls[0][0] - start,
        "from_items_s": calls[0][1] - calls[0][0],
        "first_s": wall[0] - start,
        "shards": len(wall),
        "shards_per_s": (len(wall) - warm) / steady,
        "driver_ms": (cpu[-1] - cpu[warm - 1]) / (len(wall) - warm) * 1e3,
        "grown_kb": (memory[-1] - memory[warm - 1]) / (len(wall) - warm) * 1e3,
        "memory_mb": memory[-1],
        "own": (own_end - own) / steady / CORES,
        "others": (machine_end - machine - own_end + own) / steady / CORES,
    }


def point_fed(folder: Path, actors: int, frames_per_s: float, shard_rows: int, rounds: int) -> dict:
    shards = actors * (rounds + 2)
    start_ray(actors)
    manifest = make_manifest(folder, shards * shard_rows)
    # The first round holds the start, and the last one actors that have run out of shards.
    out = drive(
        folder, manifest, shard_rows, actors, 1 / frames_per_s, actors * (rounds + 1), actors
    )
    return out | {"frames_per_s": out["shards_per_s"] * shard_rows, "actors": actors}


def point_driver(folder: Path, actors: int, shards: int) -> dict:
    start_ray(actors)
    return drive(
        folder, make_manifest(folder, shards + 200), 1, actors, 0.0, shards, shards // 5
    ) | {"actors": actors}


def point_run(folder: Path, shards: int, most: int) -> dict:
    start_ray(1)
    return drive(
        folder,
        make_manifest(folder, shards),
        1,
        1,
        0.0,
        min(most, shards - 1),
        min(most, shards - 1) // 5,
    )


def point_waves(folder: Path, waves: int, wave: int) -> dict:
    start_ray(1)
    stage.SHARDS_PER_WAVE = wave
    drive(folder, make_manifest(folder, waves * wave + 1), 1, 1, 0.0, waves * wave, wave)
    wall, memory, _ = zip(*Watch.marks, strict=True)
    ends = range(wave - 1, waves * wave, wave)
    return {
        "memory_mb": [memory[k] for k in ends],
        "wait_s": [0.0, *(wall[k + 1] - wall[k] for k in ends[:-1])],
        "wave_s": [wall[k] - wall[k - wave + 1] for k in ends],
    }


# Steps of the driver before the first frame


@contextmanager
def step(out: dict, name: str) -> Iterator[None]:
    """Seconds of CPU, which other load does not change, and megabytes: kept afterwards and at the peak, both above what was there before."""
    forget_peak()
    before, start = memory_mb()[0], time.process_time()
    yield
    cpu_s = time.process_time() - start
    now, peak = memory_mb()
    out[name] = (cpu_s, now - before, peak - before)


def write_commits(bank: Bank, num_shards: int) -> None:
    """What `Bank.commit` leaves behind, without its fsync and with one byte for a shard."""
    for folder in (bank.shard_path(0).parent, bank.commit_path(0).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        bank.shard_path(shard).write_bytes(b".")
        name = bank.shard_path(shard).relative_to(bank.path).as_posix()
        record = Commit(shard=shard, rows=1, rejects=0, files={name: (1, f"{shard:064x}")})
        bank.commit_path(shard).write_text(json.dumps(record.__dict__, indent=1) + "\n")


def point_plan(folder: Path, rows: int, shard_rows: int, commits: bool) -> dict:
    path, bank, out = make_manifest(folder, rows), Bank(folder / "bank"), {}
    with step(out, "read_manifest"):
        manifest = read_manifest(path)
    with step(out, "extend_plan"):
        plan = bank.extend_plan(manifest, shard_rows)
    again = Bank(bank.path)
    with step(out, "plan"):
        plan = again.plan
    with step(out, "unplanned"):
        again.unplanned(manifest)
    with step(out, "_choose_shards"):
        todo = stage._choose_shards(again, plan, None)
    with step(out, "items"):
        items = list(build_items(plan, todo, manifest))
    out["shards"], out["rows"], out["blocks"] = plan.num_shards, rows, len(items)
    del items
    if commits:
        write_commits(again, plan.num_shards)
        with step(out, "read_commits"):
            again.read_commits()
        out["total"] = memory_mb()
    return out


def build_items(plan, todo: list[int], manifest: pa.Table) -> Iterator[dict]:
    """What the datasets begin with; kept whole, so that a wave is ``SHARDS_PER_WAVE / shards`` of it."""
    vocabulary = Vocabulary(sorted(manifest["video"].unique().to_pylist()))
    return stage.iter_items(
        plan, todo, manifest, positions(vocabulary.keys(plan.table), vocabulary.keys(manifest))
    )


# Points as processes


def run_point(name: str, timeout_s: float, **options) -> dict | None:
    """One point in a process and a folder of its own; None where it took too long."""
    folder = Path(tempfile.mkdtemp(prefix="raffect-scale-"))
    command = [
        sys.executable,
        __file__,
        "--point",
        json.dumps({"name": name, "folder": str(folder)} | options),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=timeout_s)
        answers = [
            line for line in out.splitlines() if line.startswith("{")
        ]  # Ray's C++ may log behind it
        return json.loads(answers[-1]) if process.returncode == 0 and answers else None
    except subprocess.TimeoutExpired:
        process.kill()  # Ray's processes follow the one that started them
        process.communicate()
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def work(options: dict) -> None:
    """The child's side of `run_point`."""
    points: dict[str, Callable[..., dict]] = {
        "fed": point_fed,
        "driver": point_driver,
        "plan": point_plan,
        "run": point_run,
        "waves": point_waves,
    }
    out = points[options.pop("name")](Path(options.pop("folder")), **options)
    print(json.dumps(out), flush=True)


def row(*cells) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*names: str) -> None:
    print()
    row(*names)
    row(*["---"] * len(names))


def show_actors(args: argparse.Namespace) -> None:
    head(
        "encoders",
        "frames/s",
        "of linear",
        "cores: ours, others",
        "tiny shards/s",
        "driver CPU ms a shard",
        "cores: ours, others ",
    )
    for actors in args.actors:
        fed = run_point(
            "fed",
            args.timeout_s,
            actors=actors,
            frames_per_s=args.frames_per_s,
            shard_rows=args.shard_rows,
            rounds=args.rounds,
        )
        tiny = run_point("driver", args.timeout_s, actors=actors, shards=args.tiny)
        cells = (
            [
                f"{fed['frames_per_s']:,.0f}",
                f"{fed['frames_per_s'] / args.frames_per_s / actors:.2f}",
                f"{fed['own']:.0%}, {fed['others']:.0%}",
            ]
            if fed
            else ["-"] * 3
        )
        cells += (
            [
                f"{tiny['shards_per_s']:.0f}",
                f"{tiny['driver_ms']:.1f}",
                f"{tiny['own']:.0%}, {tiny['others']:.0%}",
            ]
            if tiny
            else ["-"] * 3
        )
        row(actors, *cells)


STEPS = (
    "read_manifest",
    "extend_plan",
    "plan",
    "unplanned",
    "_choose_shards",
    "items",
    "read_commits",
)


def show_plans(args: argparse.Namespace) -> None:
    print("\nCPU microseconds a shard (peak MB above what was there before)")
    head("shards", *STEPS)
    for shards in args.shards:
        if out := run_point("plan", args.timeout_s, rows=shards, shard_rows=1, commits=True):
            row(
                f"{shards:,}",
                *(f"{out[name][0] / shards * 1e6:,.1f} ({out[name][2]:,.0f})" for name in STEPS),
            )
    head(
        "shards",
        "blocks",
        "s before from_items",
        "s in from_items",
        "s to the first commit",
        "driver MB",
        "kB more a shard",
        "driver CPU ms a shard",
        "shards/s",
        "cores: ours, others",
    )
    for shards in args.shards:
        out = run_point("run", args.timeout_s, shards=shards, most=args.most)
        if out is None:
            row(f"{shards:,}", f"none within {args.timeout_s:.0f} s", *["-"] * 8)
            continue
        row(
            f"{shards:,}",
            f"{out['blocks']:,}",
            f"{out['before_items_s']:.1f}",
            f"{out['from_items_s']:.1f}",
            f"{out['first_s']:.1f}",
            f"{out['memory_mb']:,.0f}",
            f"{out['grown_kb']:.1f}",
            f"{out['driver_ms']:.1f}",
            f"{out['shards_per_s']:.0f}",
            f"{out['own']:.0%}, {out['others']:.0%}",
        )


def show_waves(args: argparse.Namespace) -> None:
    if out := run_point("waves", args.timeout_s, waves=args.waves, wave=args.most):
        head(
            f"wave of {args.most:,} shards",
            "driver MB at its end",
            "s it took",
            "s since the last shard of the one before",
        )
        for k, (memory, took, wait) in enumerate(
            zip(out["memory_mb"], out["wave_s"], out["wait_s"], strict=True)
        ):
            row(k + 1, f"{memory:,.0f}", f"{took:.0f}", f"{wait:.1f}")


def show_rows(args: argparse.Namespace) -> None:
    if out := run_point("plan", args.timeout_s, rows=args.rows, shard_rows=2048, commits=False):
        print(
            f"\n{args.rows:,} rows in shards of 2048: CPU nanoseconds, bytes kept and bytes at the peak a row"
        )
        head(*STEPS[:-1])
        row(
            *(
                " ".join(
                    f"{value / args.rows * scale:,.0f}"
                    for value, scale in zip(out[name], (1e9, 1e6, 1e6), strict=True)
                )
                for name in STEPS[:-1]
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--frames-per-s", type=float, default=25.0, help="rate of one stand-in")
    parser.add_argument(
        "--shard-rows", type=int, default=128, help="frames a shard where encoders are fed"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="shards an encoder takes while it is measured"
    )
    parser.add_argument(
        "--tiny", type=int, default=1000, help="shards of one frame through the driver"
    )
    parser.add_argument(
        "--most", type=int, default=1000, help="shards of a plan that are run, and of a wave"
    )
    parser.add_argument(
        "--waves", type=int, default=5, help="waves of --most shards; 0 leaves them out"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=10_000_000,
        help="rows of the manifest of the last table; 0 leaves it out",
    )
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one point")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        return work(json.loads(args.point))
    if args.quick:
        args.actors, args.shards, args.rounds, args.tiny, args.most, args.waves, args.rows = (
            [1, 4],
            [1000],
            2,
            100,
            100,
            2,
            100_000,
        )
    if args.actors:
        show_actors(args)
    if args.shards:
        show_plans(args)
    if args.waves:
        show_waves(args)
    if args.rows:
        show_rows(args)
    print(
        "\n"
        + json.dumps(
            describe_run()["versions"]
            | describe_run()["machine"]
            | {"git_commit": describe_run()["git_commit"]}
        )
    )


if __name__ == "__main__":
    main()
