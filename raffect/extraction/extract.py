"""Extraction: a manifest becomes a bank, on one machine or a Ray cluster, and any stop is only a pause.

plan -> from_items(shards) -> read (CPU tasks) -> encode (actors) -> commit (CPU tasks) -> statistics to the driver.
The driver imports no torch; what it knows of the encoder it reads from configuration files.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Plan
from raffect.config import EMBEDDED_MODEL, ExtractConfig, count_cores
from raffect.datasets.manifest import is_synthetic_manifest, read_manifest
from raffect.encoders.weights import EMBEDDED_CAVEAT, Source, read_model_config, resolve
from raffect.errors import RaffectError
from raffect.extraction.notes import ShardStats, read_notes
from raffect.extraction.steps import (
    EncodeShard,
    Geometry,
    LoadEncoder,
    commit_shard,
    read_shard,
    to_item,
)
from raffect.extraction.summary import ExtractSummary, Tally, summarise
from raffect.progress import Progress
from raffect.provenance import describe_run
from raffect.ray_session import cluster_gpus, configure_data, explain_stop, ray_session
from raffect.storage.atomic import write_atomic
from raffect.storage.keys import Vocabulary, encode_video, positions

SHARDS_PER_WAVE = 16_384
"""Shards of one dataset, 33 million frames. Each costs the driver 1 ms and 5 kB before the first one moves and some more until
the last one is done, whatever comes after it; a new wave costs loading the encoders again."""


def load_clip(config, device, threads):
    """The encoder that actors load unless told otherwise; a function of its own so that the driver needs no torch."""
    import torch

    from raffect.encoders.tower import load_encoder

    if device == "cpu":  # Ray gives an actor one thread
        torch.set_num_threads(threads)
    return load_encoder(config, device)


def extract(
    config: ExtractConfig, load: LoadEncoder = load_clip, geometry: Geometry | None = None
) -> ExtractSummary:
    """Encode what the bank lacks of a manifest.

    Args:
        config: See `ExtractConfig`.
        load: Builds the encoder in its actor; benchmarks put a stand-in here.
        geometry: The stand-in's input; by default that of ``config.encoder``.

    Returns:
        What was done. A finished bank is left alone without loading an encoder.

    Raises:
        RaffectError: If there is no manifest, the bank is another encoder's, or weights are missing.
    """
    manifest = read_manifest(config.manifest)
    bank = Bank(config.bank.absolute())
    check_embedded(config, manifest)
    if (
        not bank.exists
        and bank.path.exists()
        and (not bank.path.is_dir() or any(bank.path.iterdir()))
    ):
        raise RaffectError(
            f"--bank {config.bank}: exists and is not a bank; name a new or an empty folder"
        )
    # Nothing is written before everything that can be checked without an encoder was checked.
    if _is_finished(bank, manifest):
        if load is load_clip:
            _check_finished(config, bank)
        return summarise(bank)
    if geometry is None:
        geometry = _read_geometry(resolve(config.encoder))
        _check_model(config, bank)
    plan = bank.extend_plan(manifest, config.shard_rows)
    todo = choose_shards(bank, plan, config.limit)
    with ray_session(config.address):
        tally, wall_s, placement = _run_pipeline(config, bank, todo, manifest, load, geometry)
    _check_shared(bank, tally)
    summary = summarise(
        bank, tally, wall_s, placement.actors, placement.actors * placement.gpus_per_actor
    )
    _record(config, bank, summary)
    return summary


def _is_finished(bank: Bank, manifest: pa.Table) -> bool:
    return (
        bank.exists
        and not len(bank.unplanned(manifest))
        and not choose_shards(bank, bank.plan, None)
    )


def _check_shared(bank: Bank, tally: Tally) -> None:
    """Workers on other machines write to a path of this name there; it must be the same folder."""
    if unseen := tally.shards - bank.read_commits().keys():
        raise RaffectError(
            f"{bank.path}: {len(unseen)} shards that workers committed are not there; put --bank on storage that every machine sees under the same path"
        )


def check_embedded(config: ExtractConfig, manifest: pa.Table) -> None:
    """Refuse photographs for the embedded encoder, unless a user insists.

    Raises:
        RaffectError: If the manifest lists images that raffect did not draw.
    """
    if (
        config.encoder.model == EMBEDDED_MODEL
        and not config.encoder.weights.startswith("random")
        and not is_synthetic_manifest(manifest)
        and not config.allow_embedded
    ):
        raise RaffectError(
            f"{config.manifest} lists images that raffect did not draw, and the embedded encoder has never seen a photograph; "
            f"choose a real encoder (`raffect models list`), or pass --allow-embedded to try it all the same (results are labelled {EMBEDDED_CAVEAT!r})"
        )


def _check_model(config: ExtractConfig, bank: Bank) -> None:
    """What can be told of another encoder before one is loaded; the actors compare the tensors themselves."""
    identity = bank.read_identity()
    if identity is None:
        return
    precision = (
        identity.precision if config.encoder.precision == "auto" else config.encoder.precision
    )
    identity.require_equal(
        replace(identity, model=config.encoder.model, precision=precision), bank.path
    )


def _check_finished(config: ExtractConfig, bank: Bank) -> None:
    """A finished bank is compared by name alone; weights of another name, or of a path, which says nothing, are loaded and compared by their tensors."""
    _check_model(config, bank)
    identity = bank.read_identity()
    if identity is not None and identity.weights != config.encoder.weights:
        bank.claim(
            replace(
                load_clip(config.encoder, "cpu", count_cores()).identity,
                precision=identity.precision,
            )
        )


def _read_geometry(source: Source) -> Geometry:
    size = read_model_config(source.model)["vision_cfg"].get("image_size", 224)
    side = size if isinstance(size, int) else size[0]
    return Geometry(
        size=side,
        interpolation=source.preprocess.get("interpolation", "bicubic"),
        resize_mode=source.preprocess.get("resize_mode", "shortest"),
    )


def choose_shards(bank: Bank, plan: Plan, limit: int | None) -> list[int]:
    """Shards that are not committed, in order; with a limit the first ones that hold so many frames."""
    done = bank.read_commits()
    todo = [shard for shard in range(plan.num_shards) if shard not in done]
    if limit is not None:
        lengths = np.diff(plan.offsets)[todo]
        todo = todo[: int(np.searchsorted(np.cumsum(lengths), limit)) + 1]
    return todo


@dataclass(frozen=True)
class Placement:
    """Where encoders run.

    Attributes:
        actors: How many at a time.
        gpus_per_actor: GPUs each holds.
        device: ``cuda`` or ``cpu``.
        threads: CPU threads of each.
        may_grow: Whether to begin with those there is room for, and add others as a cluster grows.
    """

    actors: int
    gpus_per_actor: float
    device: str
    threads: int
    may_grow: bool


def place_encoders(config: ExtractConfig, num_shards: int) -> Placement:
    """Share the cluster's GPUs, or the CPU, out to encoders.

    Raises:
        RaffectError: If more is asked for than there is.
    """
    gpus = cluster_gpus()
    share = (
        config.gpus_per_actor
        if config.gpus_per_actor is not None
        else (1.0 if gpus and config.device != "cpu" else 0.0)
    )
    on_cluster = bool(config.address or os.environ.get("RAY_ADDRESS"))
    if config.device == "cuda" and not share:
        raise RaffectError(
            "--device cuda: Ray sees no GPU; start Ray where the GPUs are, or use --device cpu"
        )
    if share > gpus:
        raise RaffectError(
            f"--gpus-per-actor {share:g}: Ray sees {gpus:g} GPUs; use --gpus-per-actor 0 for the CPU, or start Ray where the GPUs are"
        )
    if config.num_actors * share > gpus and not on_cluster:  # a cluster may grow
        raise RaffectError(
            f"--num-actors {config.num_actors} with --gpus-per-actor {share:g}: Ray sees {gpus:g} GPUs; ask for fewer actors or a smaller share"
        )
    actors = config.num_actors or (max(1, int(gpus / share)) if share else 1)
    # Not of the encoders that the last few shards need: on a CPU the number of threads changes the last bits of a vector.
    threads = max(1, count_cores() // actors)
    return Placement(
        min(actors, num_shards),
        share,
        "cuda" if share and config.device != "cpu" else "cpu",
        threads,
        on_cluster,
    )


def _run_pipeline(
    config: ExtractConfig,
    bank: Bank,
    todo: list[int],
    manifest: pa.Table,
    load: LoadEncoder,
    geometry: Geometry,
) -> tuple[Tally, float, Placement]:
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    placement = place_encoders(config, len(todo))
    if (
        placement.may_grow
        and placement.device == "cpu"
        and config.device == "auto"
        and config.gpus_per_actor is None
    ):
        print(
            "note: Ray sees no GPU: encoding on CPUs, a new bank in float32 (--device cuda refuses that; cluster/with_gpus.py waits for GPUs)",
            file=sys.stderr,
        )
    start, tally = time.perf_counter(), Tally()
    with Progress("extract", int(np.diff(bank.plan.offsets)[todo].sum())) as progress:
        try:
            for row in _iter_stats(config, bank, todo, manifest, load, geometry, placement):
                if row["failure"] is not None:
                    raise RaffectError(row["failure"])
                stats = read_notes(ShardStats, row["stats"], str(bank.path))
                tally.add(stats)
                progress.advance(stats.rows + stats.rejects)
        except (
            ExecutionTimeoutError,
            RayError,
            OSError,
        ) as error:  # an OSError is Ray's too: it lost this machine's node
            raise RaffectError(
                f"{explain_stop(error, placement.device)}; what is committed is kept, the same command goes on from there"
            ) from error
    return tally, time.perf_counter() - start, placement


def _iter_stats(
    config: ExtractConfig,
    bank: Bank,
    todo: list[int],
    manifest: pa.Table,
    load: LoadEncoder,
    geometry: Geometry,
    placement: Placement,
) -> Iterator[dict]:
    """What was committed, shard after shard and wave after wave."""
    vocabulary = Vocabulary(sorted(manifest["video"].unique().to_pylist()))
    where = positions(vocabulary.keys(bank.plan.table), vocabulary.keys(manifest))
    for start in range(0, len(todo), SHARDS_PER_WAVE):
        items = list(iter_items(bank.plan, todo[start : start + SHARDS_PER_WAVE], manifest, where))
        yield from _build_dataset(config, bank, items, load, geometry, placement).iter_rows()


def _build_dataset(
    config: ExtractConfig,
    bank: Bank,
    items: list[dict[str, Any]],
    load: LoadEncoder,
    geometry: Geometry,
    placement: Placement,
):
    import ray

    configure_data(placement.device)
    folder = str(bank.path)
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            partial(read_shard, bank=folder, geometry=geometry),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=config.cpus_per_read,
        )
        .map_batches(
            EncodeShard,
            fn_constructor_kwargs={
                "config": config.encoder,
                "bank": folder,
                "device": placement.device,
                "threads": placement.threads,
                "load": load,
            },
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,  # also keeps Ray from fusing readers into the actor, where they would take turns
            num_gpus=placement.gpus_per_actor or None,
            compute=ray.data.ActorPoolStrategy(
                min_size=1 if placement.may_grow else placement.actors, max_size=placement.actors
            ),
        )
        .map_batches(
            partial(commit_shard, bank=folder), batch_size=1, batch_format="pyarrow", num_cpus=0.5
        )
    )


def iter_items(
    plan: Plan, todo: list[int], manifest: pa.Table, where: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A dataset row a shard; ``where`` says in which row of the manifest each row of the plan stands."""
    for shard in todo:
        places = where[plan.offsets[shard] : plan.offsets[shard + 1]]
        together = places[-1] - places[0] + 1 == len(
            places
        )  # all but where a later generation fills gaps; `take` is slow on many chunks
        rows = (
            manifest.slice(places[0], len(places)) if together else manifest.take(places)
        ).replace_schema_metadata(None)
        columns = {
            name: encode_video(rows[name]).cast(pa.string()).dictionary_encode()
            for name in ("video", "root")
        }
        yield to_item(
            shard,
            pa.table(
                {
                    "video": columns["video"],
                    "frame": rows["frame"].combine_chunks(),
                    "root": columns["root"],
                    "path": rows["path"].combine_chunks(),
                }
            ),
        )


def _record(config: ExtractConfig, bank: Bank, summary: ExtractSummary) -> None:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.json"
    content = {
        "run": describe_run().to_json(),
        "config": asdict(config),
        "summary": summary.to_json(),
    }
    write_atomic(
        bank.path / "runs" / name, (json.dumps(content, indent=1, default=str) + "\n").encode()
    )
