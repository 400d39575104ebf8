"""Extraction: a manifest becomes a bank, on one machine or a Ray cluster.

plan -> from_items(shards) -> read (CPU tasks) -> encode (actors) -> commit (CPU tasks)
-> statistics to the driver. A run that was stopped goes on where it was when it is started again.
The driver imports no torch; it reads what it must know of the encoder from configuration files.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Plan
from raffect.bank.pictures import require_same_pictures
from raffect.bank.running import note_of_run
from raffect.config import ExtractConfig
from raffect.datasets.manifest_paths import Manifest, take_frames
from raffect.encoders.weights import (
    resolve,
)
from raffect.errors import RaffectError
from raffect.extraction.asked_encoder import (
    check_embedded,
    check_finished,
    check_model,
    load_clip,
    read_geometry,
)
from raffect.extraction.board import Reporter, ShardProgress, watch_encoders
from raffect.extraction.notes import ShardStats, read_notes
from raffect.extraction.placement import Placement, choose_threads, place_encoders
from raffect.extraction.steps import (
    EncodeShard,
    Geometry,
    LoadEncoder,
    commit_shard,
    read_shard,
    to_item,
)
from raffect.extraction.summary import ExtractSummary, Tally, summarise
from raffect.progress import Progress, stage
from raffect.provenance import describe_run
from raffect.ray_session.memory import GOES_ON, watch_memory
from raffect.ray_session.session import configure_data, explain_stop, ray_session
from raffect.storage.atomic import PREFIX, require_writable, write_atomic
from raffect.storage.keys import Vocabulary, encode_video, positions, without_others

SHARDS_PER_WAVE = 16_384
"""Most shards of one dataset: 33 million frames.

Each shard costs the driver 1 ms and 5 kB before the first one is read, and some more until the last
one is done. A new wave costs loading the encoders again.
"""


def extract(
    config: ExtractConfig, load: LoadEncoder = load_clip, geometry: Geometry | None = None
) -> ExtractSummary:
    """Encode the frames of a manifest that the bank lacks.

    Args:
        config: See `ExtractConfig`.
        load: Builds the encoder in its actor; benchmarks use a stand-in.
        geometry: Input of the stand-in; by default that of ``config.encoder``.

    Returns:
        What was done. A finished bank is left as it is, and no encoder is loaded for it.

    Raises:
        RaffectError: If there is no manifest, the bank is another encoder's, or weights are
            missing.
    """
    # Everything that can be checked without an encoder is checked before anything is written.
    with stage(f"reading {config.manifest}"):
        listed = Manifest(config.manifest)
    manifest, bank = listed.frames, Bank(config.bank.absolute())
    check_embedded(config, manifest)
    if not bank.exists and _is_taken(bank.path):
        what = "exists and is not a bank"
        raise RaffectError(f"--bank {config.bank}: {what}; name a new or an empty folder")
    if is_finished(bank, manifest):
        return _finish(config, bank, load)
    if geometry is None:
        geometry = read_geometry(resolve(config.encoder))
        check_model(config, bank)
    # The run
    threads = choose_threads(config, bank)
    require_writable(bank.path)
    with note_of_run(bank.path, config.join):
        # A run that is refused leaves the plan and the records as they are.
        with stage("comparing pictures with the bank's"):
            known = _compare_pictures(bank, listed)
        with stage(f"planning {config.bank}"):
            plan = bank.extend_plan(manifest, config.shard_rows)
            if not known:  # which shard holds what is known only now if the plan was withdrawn
                _compare_pictures(bank, listed)
            done = bank.read_commits()
            todo = choose_shards(plan, done, config.limit)
        if not todo:
            return _finish(config, bank, load)  # a plan that was withdrawn is there again
        with ray_session(config.address):
            placement = _place(config, len(todo), threads)
            with open_progress(plan, done, todo) as progress:
                arguments = (config, bank, todo, listed, load, geometry, placement, progress)
                tally, wall_s = _run_pipeline(*arguments)
    # Its summary
    _check_shared(bank, tally)
    gpus = placement.actors * placement.gpus_per_actor
    summary = summarise(bank, tally, wall_s, placement.actors, gpus)
    _record(config, bank, summary)
    return summary


def _compare_pictures(bank: Bank, manifest: Manifest) -> int:
    """Refuse other pictures than the bank's; a note if those that were drawn cannot be read.

    Returns:
        Number of planned shards whose pictures are known.
    """
    found = require_same_pictures(bank, manifest)
    for shard in found.unreadable:
        what = f"pictures of shard {shard:06d} cannot be read any more, so they are not compared"
        remedy = "its features are kept; if a disk is not mounted, stop this run"
        print(f"note: {what} ({remedy})", file=sys.stderr)
    return found.known


def _is_taken(path: Path) -> bool:
    """Whether there is a file, or a folder with more than a run leaves that is killed at once."""
    if not path.is_dir():
        return path.exists()
    names = (child.name for child in path.iterdir())
    return any(name != "running" and not name.startswith(PREFIX) for name in names)


def is_finished(bank: Bank, manifest: pa.Table) -> bool:
    """Whether every frame of a manifest is planned, and every planned shard committed."""
    if not bank.exists or len(bank.unplanned(manifest)):
        return False
    return not choose_shards(bank.plan, bank.read_commits(), None)


def _check_shared(bank: Bank, tally: Tally) -> None:
    """Check that the workers' commits are in the bank.

    Workers on other machines write to the same path, which must be the same folder there.
    """
    if unseen := tally.shards - bank.read_commits().keys():
        what = f"{len(unseen)} shards that workers committed are not there"
        remedy = "put --bank on storage that every machine sees under the same path"
        raise RaffectError(f"{bank.path}: {what}; {remedy}")


def _finish(config: ExtractConfig, bank: Bank, load: LoadEncoder) -> ExtractSummary:
    """The summary of a bank to which nothing is to be added, if it is of the encoder asked for."""
    if load is load_clip:
        check_finished(config, bank)
    return summarise(bank)


def choose_shards(plan: Plan, done: Collection[int], limit: int | None) -> list[int]:
    """Shards that are not committed, in order; with a limit the first that hold so many frames."""
    todo = [shard for shard in range(plan.num_shards) if shard not in done]
    if limit is not None:
        lengths = np.diff(plan.offsets)[todo]
        todo = todo[: int(np.searchsorted(np.cumsum(lengths), limit)) + 1]
    return todo


def _place(config: ExtractConfig, num_shards: int, threads: int | None) -> Placement:
    """Where encoders run; a note if that is on CPUs where GPUs were probably meant."""
    placement = place_encoders(config, num_shards, threads)
    is_default = config.device == "auto" and config.gpus_per_actor is None
    if is_default and placement.may_grow and placement.device == "cpu":
        what = "Ray sees no GPU: encoding on CPUs, a new bank in float32"
        remedy = "--device cuda refuses that; cluster/with_gpus.py waits for GPUs"
        print(f"note: {what} ({remedy})", file=sys.stderr)
    return placement


def _run_pipeline(
    config: ExtractConfig,
    bank: Bank,
    todo: list[int],
    manifest: Manifest,
    load: LoadEncoder,
    geometry: Geometry,
    placement: Placement,
    progress: Progress,
) -> tuple[Tally, float]:
    """Encode and commit some shards; what was done, of which the driver keeps sums, and seconds."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    start, tally, shards = time.perf_counter(), Tally(), ShardProgress(progress)
    try:
        with watch_encoders(shards) as reporter:
            arguments = (config, bank, todo, manifest, load, geometry, placement, reporter)
            for row in _iter_stats(*arguments):
                if row["failure"] is not None:
                    raise RaffectError(row["failure"])
                stats = read_notes(ShardStats, row["stats"], str(bank.path))
                tally.add(stats)
                shards.finish(stats)
    # Ray raises an OSError if it loses this machine's node.
    except (ExecutionTimeoutError, RayError, OSError) as error:
        raise RaffectError(f"{explain_stop(error, placement.device)}; {GOES_ON}") from error
    return tally, time.perf_counter() - start


def open_progress(plan: Plan, done: Collection[int], todo: list[int]) -> Progress:
    """A progress line that counts the frames of committed shards as those of earlier runs."""
    frames = np.diff(plan.offsets)
    earlier = int(frames[list(done)].sum())
    return Progress("extract", earlier + int(frames[todo].sum()), earlier=earlier)


def _iter_stats(
    config: ExtractConfig,
    bank: Bank,
    todo: list[int],
    manifest: Manifest,
    load: LoadEncoder,
    geometry: Geometry,
    placement: Placement,
    reporter: Reporter,
) -> Iterator[dict]:
    """Yield what `commit_shard` reported of each shard, wave after wave."""
    for items in iter_waves(bank.plan, todo, manifest):
        dataset = _build_dataset(config, bank, items, load, geometry, placement, reporter)
        del items  # Ray's store has them
        yield from watch_memory(dataset.iter_rows())


def iter_waves(plan: Plan, todo: list[int], manifest: Manifest) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one dataset after the other; see `iter_items`."""
    frames = manifest.frames
    vocabulary = Vocabulary(sorted(frames["video"].unique().to_pylist()))
    where = positions(vocabulary.keys(plan.table), vocabulary.keys(frames))
    for start in range(0, len(todo), SHARDS_PER_WAVE):
        yield list(iter_items(plan, todo[start : start + SHARDS_PER_WAVE], manifest, where))


def _build_dataset(
    config: ExtractConfig,
    bank: Bank,
    items: list[dict[str, Any]],
    load: LoadEncoder,
    geometry: Geometry,
    placement: Placement,
    reporter: Reporter,
):
    """The dataset whose rows are what `commit_shard` reported; reading it does the work."""
    import ray

    configure_data(placement.device)
    shards = ray.data.from_items(items, override_num_blocks=len(items))
    folder = str(bank.path)
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # Reading
    read = partial(read_shard, bank=folder, geometry=geometry)
    read_shards = shards.map_batches(read, num_cpus=config.cpus_per_read, **one_shard)
    # Encoding. With 0 CPUs Ray does not fuse readers into the actor, where they would take turns.
    fewest = 1 if placement.may_grow else placement.actors
    arguments: dict[str, Any] = {"config": config.encoder, "bank": folder, "load": load}
    arguments |= {"device": placement.device, "threads": placement.threads, "reporter": reporter}
    encoded = read_shards.map_batches(
        EncodeShard,
        fn_constructor_kwargs=arguments,
        num_cpus=0,
        num_gpus=placement.gpus_per_actor or None,
        compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=placement.actors),
        **one_shard,
    )
    # Committing
    return encoded.map_batches(partial(commit_shard, bank=folder), num_cpus=0.5, **one_shard)


def iter_items(
    plan: Plan, todo: list[int], manifest: Manifest | pa.Table, where: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield a dataset row for each shard.

    Args:
        plan: The bank's plan.
        todo: Shards to yield.
        manifest: The manifest.
        where: Row of the manifest for each row of the plan.
    """
    for shard in todo:
        # Rows of the manifest: one slice of it, unless a later generation fills gaps
        rows = take_frames(manifest, where[plan.offsets[shard] : plan.offsets[shard + 1]])
        # Dictionaries hold the names of this shard alone, since each row is sent to a worker.
        columns = {}
        for name in ("video", "frame", "root", "path"):
            if name in ("video", "root"):
                columns[name] = without_others(encode_video(rows[name]))
            else:
                columns[name] = rows[name].combine_chunks()
        yield to_item(shard, pa.table(columns))


def _record(config: ExtractConfig, bank: Bank, summary: ExtractSummary) -> None:
    """Write the run's summary into the bank."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.json"
    content = {"run": describe_run().to_json(), "config": asdict(config)}
    content["summary"] = summary.to_json()
    text = json.dumps(content, indent=1, default=str) + "\n"
    write_atomic(bank.path / "runs" / name, text.encode())
