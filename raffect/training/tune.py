"""`raffect tune`: every head of a space of settings, trained on Ray Tune.

A space becomes heads, heads become batches, and Tune spreads batches over the machine or cluster.
What is finished is found by our own records, one a head, not by Tune's snapshot: the same command
after a killed driver trains only heads without a record, and batches that were under way go on from
their saved state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from raffect.config import TuneConfig, count_cores
from raffect.errors import RaffectError, require
from raffect.heads.fit import score_name
from raffect.progress import Progress, stage
from raffect.ray_session.session import cluster_gpus, last_line, ray_session, ray_storage
from raffect.recipe import Recipe, plain
from raffect.runs.conclusions import SweepResult, conclude_sweep
from raffect.runs.cross_validation import choose_epochs, heads_of_folds, keep_folds
from raffect.runs.data import Dataset
from raffect.runs.folder import RunFolder, find_records
from raffect.runs.records import STOPPED, PlannedHead, is_finished
from raffect.runs.windows import window_of
from raffect.storage.paths import is_remote
from raffect.training.batch_job import CvEpochs
from raffect.training.checks import check_before
from raffect.training.run_batch import (
    for_elsewhere,
    open_data,
    plan_batches,
)
from raffect.training.space import add_baseline, list_recipes, read_space
from raffect.training.stream import decide_stream
from raffect.training.trackers import build_trackers, require_trackers
from raffect.training.train import count_finished_steps, count_steps
from raffect.training.trial import SweepJob, mark_stopped, run_trial
from raffect.training.watch import ended_batches, watched

_HEADS_ON_CPU, _HEADS_ON_GPU = 8, 64
"""Most heads of a batch if ``--heads-per-trial`` is ``auto``."""
_MAX_FAILURES = 3
"""How often a trial begins again, from the batch's saved state, when its process or node dies.

An error that raffect itself raises does not count as a failure in Ray.
"""


def tune(config: TuneConfig) -> SweepResult:
    """Train, judge and record every head of a space.

    Raises:
        RaffectError: If the data or settings do not allow it, or a trial failed.
    """
    # Faults of the command, before anything is read
    require_trackers(config.track, is_remote(config.out))
    recipes = list_recipes(plain(config), config.space, config.samples)

    # Data, and whether they are streamed, which is decided once for a sweep
    with stage(f"reading {config.labels} and {config.bank}"):
        # Windows of one shape after the other, since those of the last one alone are kept
        kinds = sorted({recipe.head: None for recipe in recipes}, key=window_of)
        dataset = open_data(config, kinds)
    device = "cpu" if config.gpus_per_trial == 0 else config.device
    share = config.gpus_per_trial or 1.0
    stream = RunFolder(config.out).recorded_stream(config.stream)
    if stream is None:
        choices = {
            decide_stream(config.stream, dataset.rows("train", head), device, share)
            for head in kinds
        }
        stream = "always" if "always" in choices else "never"
    config = dataclasses.replace(config, task=dataset.task.name, stream=stream)

    # Recipes, each checked before anything is written
    recipes = list_recipes(plain(config), config.space, config.samples)
    recipes = add_baseline(recipes) if config.baseline else recipes
    differing = {(recipe.batch_size, recipe.loss, recipe.head): None for recipe in recipes}
    for batch_size, loss, head in sorted(differing, key=lambda settings: window_of(settings[-1])):
        changed = dataclasses.replace(config, batch_size=batch_size, loss=loss, head=head)
        check_before(changed, dataset)
    folder = RunFolder.create(config, dataset.facts, dataset.fingerprint)
    _require_weights(config, folder, recipes)

    # Epochs, cross-validated on folds, then the heads themselves
    cv_epochs = _cross_validate(config, dataset, folder, recipes) if config.select == "cv" else {}
    heads = [PlannedHead(recipe) for recipe in recipes]
    _change_scheduler(config, folder, heads)
    _sweep(config, dataset, folder, heads, cv_epochs, "tune")
    records = find_records(folder, [head.id for head in heads])
    axes = list(read_space(config.space))
    return conclude_sweep(folder, dataset.facts, records, axes, config.save_heads)


def _cross_validate(
    config: TuneConfig, dataset: Dataset, folder: RunFolder, recipes: Sequence[Recipe]
) -> dict[str, int]:
    """The epoch that cross-validation chooses for each setting, by head."""
    keep_folds(folder, dataset.fold_of_frames(config.num_folds))
    _sweep(config, dataset, folder, heads_of_folds(recipes, config.num_folds), None, "folds")
    return choose_epochs(folder, recipes, config.num_folds)


def _require_weights(config: TuneConfig, folder: RunFolder, recipes: Sequence[Recipe]) -> None:
    """Refuse to go on with weights where heads were finished without them."""
    records = find_records(folder, [PlannedHead(recipe).id for recipe in recipes])
    done = [record.id for record in records if record.status == "done"]
    cards = [folder.weights_path(head_id, "last") / "config.json" for head_id in done]
    bare = [card for card in cards if not card.exists()]
    require(
        not (config.save_heads and bare),
        f"--out {config.out}: {len(bare)} finished heads were trained with --no-save-heads; "
        "give it again, or name another --out to train them with weights",
    )


def _change_scheduler(config: TuneConfig, folder: RunFolder, heads: Sequence[PlannedHead]) -> None:
    """Make unfinished again what was begun under another scheduler.

    Without a scheduler these are heads that one has stopped. With one, which judges each head by
    itself, they are batches of several heads.
    """
    if config.scheduler == "none":
        for record in find_records(folder, [head.id for head in heads]):
            if record.status == STOPPED:
                folder.forget_record(record.id)
    else:
        for names in folder.batches_under_way():
            if len(names) > 1:
                folder.drop_state(names)


def _sweep(
    config: TuneConfig,
    dataset: Dataset,
    folder: RunFolder,
    heads: list[PlannedHead],
    cv_epochs: CvEpochs | None,
    label: str,
) -> None:
    """Train the heads that have no record, as batches on Ray Tune."""
    cv = cv_epochs or {}

    def is_open(head: PlannedHead) -> bool:
        return not is_finished(folder.read_record(head.id), cv.get(head.id))

    if not any(map(is_open, heads)):
        return

    # Batches for the places that Ray has
    with ray_session(config.address):
        slots, resources = _place_trials(config)
        size = _batch_size(config, len(heads), slots, on_gpu=bool(resources.get("gpu")))
        batches = plan_batches(folder, heads, size, config.stream == "always", cv)
        settings = for_elsewhere(config, folder, config.device if resources.get("gpu") else "cpu")
        sweep = SweepJob(settings, batches, dict(cv), list(read_space(config.space)), dataset.task)
        earlier = count_finished_steps(dataset, heads, batches)
        total = earlier + sum(count_steps(dataset, batch) for batch in batches)
        with Progress(label, total, "head-steps", earlier) as progress:
            progress.begin_stage("starting trials, which load torch and read features")
            failures = _run_trials(sweep, dataset, folder, resources, slots, progress)

    # Whether all were finished, by their records alone
    if left := [head for head in heads if is_open(head)]:
        why = next(iter(failures), f"see the trials' logs in {folder.path / 'ray'}")
        raise RaffectError(
            f"{len(left)} of {len(heads)} heads are not finished: {why}; finished ones are kept, "
            "the same command trains the others"
        )


def _place_trials(config: TuneConfig) -> tuple[int, dict[str, float]]:
    """Trials at a time, and what each takes."""
    import ray

    # GPUs, and the share of one that a trial takes
    gpus = cluster_gpus() if config.device != "cpu" or config.gpus_per_trial else 0.0
    share = config.gpus_per_trial if config.gpus_per_trial is not None else (1.0 if gpus else 0.0)
    require(
        config.device != "cuda" or share > 0,
        "--device cuda: Ray sees no GPU, or --gpus-per-trial is 0; "
        "start Ray where the GPUs are, or use --device cpu",
    )
    require(
        share <= gpus,
        f"--gpus-per-trial {share:g}: Ray sees {gpus:g} GPUs; "
        "use 0 for the CPU, or start Ray where the GPUs are",
    )

    # Cores of each machine, of which one is left to Ray Data where trials stream
    nodes = [count_cores()]
    if config.address or os.environ.get("RAY_ADDRESS"):
        nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    require(
        config.cpus_per_trial <= max(nodes),
        f"--cpus-per-trial {config.cpus_per_trial}: no machine has more than {max(nodes)} cores",
    )
    readers = 1 if config.stream == "always" and sum(nodes) > 1 else 0
    slots = max(1, (sum(nodes) - readers) // config.cpus_per_trial)
    if share:
        return min(int(gpus / share), slots), {"cpu": config.cpus_per_trial, "gpu": share}
    return slots, {"cpu": config.cpus_per_trial}


def _batch_size(config: TuneConfig, num_heads: int, slots: int, on_gpu: bool) -> int:
    """Heads of a trial: as many as keep every slot busy, within bounds."""
    if config.heads_per_trial != "auto":
        return config.heads_per_trial
    return max(1, min(-(-num_heads // slots), _HEADS_ON_GPU if on_gpu else _HEADS_ON_CPU))


def _run_trials(
    sweep: SweepJob,
    dataset: Dataset,
    folder: RunFolder,
    resources: dict[str, float],
    slots: int,
    progress: Progress,
) -> list[str]:
    """Run batches as trials; returns why some failed."""
    # Tune's own handler would end a sweep at Ctrl-C as if it were finished.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1")
    from ray import tune as ray_tune

    # Each death of a trial is a page of traceback; what matters of it is in our own line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    # One trial a batch
    config, batches = sweep.config, sweep.batches
    with watched(progress, batches) as watch:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(run_trial, sweep=sweep), resources),
            param_space={"batch": ray_tune.grid_search(list(range(len(batches))))},
            tune_config=ray_tune.TuneConfig(
                metric=score_name(dataset.task),
                mode="max",
                max_concurrent_trials=slots,
                reuse_actors=True,
                scheduler=_build_scheduler(config, batches),
            ),
            run_config=ray_tune.RunConfig(
                name=f"{progress.label}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
                **ray_storage(folder.path / "ray"),
                verbose=0,
                callbacks=[watch, *build_trackers(config, folder)],
                failure_config=ray_tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # Tune's banner
            results = tuner.fit()
        ended = ended_batches(watch.name)

    # Trials that died, and those in which raffect raised an error
    times = 1 + _MAX_FAILURES
    failures = [f"a trial died {times} times ({last_line(error)})" for error in results.errors]
    metrics = [result.metrics for result in results if result.metrics]
    failures += [found["failure"] for found in metrics if found.get("failure")]
    if config.scheduler == "asha" and not failures:
        mark_stopped(folder, ended)
    return failures


def _build_scheduler(config: TuneConfig, batches: list[list[PlannedHead]]) -> Any:
    if config.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    # ASHA ends every trial that reaches its limit, so the limit is that of the longest head.
    epochs = max(head.recipe.epochs for batch in batches for head in batch)
    return ASHAScheduler(
        time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 8), reduction_factor=3
    )
