"""One batch of heads: train it, judge it, record it.

This is what a run, a worker of Ray Train and a trial of Ray Tune do.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch

from raffect.bank.features import FeatureIndex
from raffect.config import LearnConfig, count_cores
from raffect.errors import RaffectError, require
from raffect.heads.fit import FitJob, fit
from raffect.heads.head_batch import HeadSpec
from raffect.heads.head_kinds import head_spec
from raffect.heads.learner import AnySamples
from raffect.heads.shared_settings import SHARED_SETTINGS
from raffect.heads.snapshots import History
from raffect.heads.workers import Workers
from raffect.ray_session.session import ray_session
from raffect.recipe import HeadConfig, Recipe
from raffect.runs.data import Dataset, check_trainable, open_dataset, pick_device, targets_of
from raffect.runs.folder import RunFolder
from raffect.runs.read_samples import read_mapped_rows, read_rows, read_shared_rows
from raffect.runs.records import PlannedHead, is_finished
from raffect.runs.windows import read_windows
from raffect.training.batch_job import BatchJob, CvEpochs
from raffect.training.recording import describe_training, record_batch
from raffect.training.stream import RayStream, are_short, can_share

C = TypeVar("C", bound=LearnConfig)


def plan_batches(
    folder: RunFolder,
    heads: Sequence[PlannedHead],
    size: int,
    one_seed: bool,
    cv_epochs: CvEpochs | None = None,
) -> list[list[PlannedHead]]:
    """Batches that are still to be trained.

    First those under way, with the heads they began with; then new ones of the other heads that
    have no record.

    Args:
        folder: The run.
        heads: All heads of the run.
        size: Most heads of a new batch.
        one_seed: Whether heads of a batch must share their seed, as a stream needs it.
        cv_epochs: Epochs that cross-validation chose; a head that kept another one is trained
            again.
    """
    cv = cv_epochs or {}
    todo = {
        head.id: head
        for head in heads
        if not is_finished(folder.read_record(head.id), cv.get(head.id))
    }

    # Batches under way; two may share a head, if a run of fewer seeds came in between
    under_way = []
    for noted in sorted(folder.batches_under_way(), key=len, reverse=True):
        if all(name in todo for name in noted):
            if noted == {name: cv.get(name, 0) for name in noted}:
                under_way.append([todo.pop(name) for name in noted])
            else:
                # Cross-validation has chosen another epoch since, which that batch may not have.
                folder.drop_state(noted)
        elif all(name in todo or is_finished(folder.read_record(name)) for name in noted):
            # It was killed between writing its records and deleting its state.
            folder.drop_state(noted)
    return under_way + partition(list(todo.values()), size, one_seed)


def partition(
    heads: Sequence[PlannedHead], size: int, one_seed: bool = False
) -> list[list[PlannedHead]]:
    """Share heads out over batches of at most ``size``.

    Heads of a batch can be trained side by side on the same frames. Heads with SAM and heads
    without it could be, but then all of them would take both of its passes.
    """
    # Heads that can be trained together, at no other cost than apart; those that learn an order
    # beside have more weights
    alike: dict[tuple, list[PlannedHead]] = {}
    for head in heads:
        settings = head.recipe.settings
        shared = (settings[name] for name in SHARED_SETTINGS)
        seed = settings["seed"] if one_seed else None
        uses = settings["sam.rho"] > 0, settings["loss.order"] > 0
        key = (*shared, *uses, head.fold, head.num_folds, seed)
        alike.setdefault(key, []).append(head)

    # As few batches as will do, of nearly equal size
    batches = []
    for group in alike.values():
        parts = np.array_split(np.arange(len(group)), -(-len(group) // size))
        batches += [[group[k] for k in part] for part in parts]
    return batches


def run_batch(
    job: BatchJob,
    dataset: Dataset,
    *,
    workers: Workers | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[History], None] = lambda history: None,
    on_resume: Callable[[History], None] = lambda history: None,
) -> None:
    """Train heads side by side, judge them, and record them in the run folder.

    Safe to run again at any time.

    Args:
        job: The batch.
        dataset: Of its configuration.
        workers: Who trains together; only the first one writes.
        on_step: Called after each step.
        on_epoch: Called after each epoch with the history so far.
        on_resume: Called before the first epoch with the history of earlier attempts, if any.

    Raises:
        RaffectError: If the rows cannot be trained on or are not those the run began with, or if
            the GPU is too small.
    """
    workers, device, config = workers or Workers(), pick_device(job.config.device), job.config
    torch.set_num_threads(job.threads or count_cores())
    folder, facts = RunFolder(config.out.absolute()), dataset.facts
    require(
        dataset.fingerprint == folder.read_run().fingerprint,
        f"{facts.bank} or {facts.labels} has changed since {folder.path} began; name a new --out",
    )
    if workers.rank == 0:
        folder.note_batch({name: job.cv_epochs.get(name, 0) for name in job.ids})

    # Training, which goes on from the saved state if there is one
    streams = config.stream == "always"
    with _say_what_is_too_large(len(job.heads)):
        with ray_session(config.address) if streams else contextlib.nullcontext():
            fit_job, validation = _plan_fit(job, dataset, folder, device, workers, streams)
            fitted = fit(fit_job, on_step=on_step, on_epoch=on_epoch, on_resume=on_resume)

        # Records, and then the state is not needed any more
        if workers.rank == 0:
            trained_by = describe_training(job, fitted, device, workers, streams)
            record_batch(job, dataset, folder, fitted, fit_job, validation, trained_by)
            folder.drop_state(job.ids)


@contextlib.contextmanager
def _say_what_is_too_large(num_heads: int) -> Generator[None]:
    """A GPU without memory left as one line that names what to make smaller."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RaffectError(
            f"out of GPU memory with {num_heads} heads; take fewer at a time "
            "(--num-seeds, --heads-per-trial), a smaller --head.width or --head.window, or "
            "--stream always"
        ) from error


def _plan_fit(
    job: BatchJob,
    dataset: Dataset,
    folder: RunFolder,
    device: torch.device,
    workers: Workers,
    streams: bool,
) -> tuple[FitJob, FeatureIndex]:
    """What the training loop needs, and which frames it judges on."""
    # Rows, and where they are read from
    task, recipe = dataset.task, job.heads[0].recipe
    train, validation = split_rows(dataset, job.heads[0], recipe.head)
    targets = targets_of(train, task)
    check_trainable(
        targets, task, recipe.batch_size, f"the training split of {dataset.facts.labels}"
    )
    rows: AnySamples
    is_short = not streams and are_short((train, validation), device.type, workers)
    if streams:
        rows = RayStream(train, task, recipe.batch_size, recipe.seed)
    elif is_short and can_share(train):
        rows = read_shared_rows(train, task, device, workers)
    else:
        rows = read_rows(train, task, device)

    # The loop's settings; the state is saved under the names of the heads
    fit_job = FitJob(
        recipes=[head.recipe for head in job.heads],
        spec=job.spec or spec_of(dataset, recipe),
        prior=dataset.loss_kind(device).count_prior(targets),
        train=rows,
        validation=(read_mapped_rows if is_short else read_rows)(validation, task, device),
        device=device,
        workers=workers,
        cv_epochs=[job.cv_epochs.get(name, 0) for name in job.ids] if job.cv_epochs else None,
        state_path=folder.state_path(job.ids),
        fingerprint=dataset.fingerprint,
        save_every_s=job.save_every_s,
        keep_statistics=job.heads[0].fold is not None,
        compile=job.config.compile,
    )
    return fit_job, validation


def spec_of(dataset: Dataset, recipe: Recipe) -> HeadSpec:
    """What heads of a recipe are on some data.

    Raises:
        RaffectError: If heads of that kind cannot do what the task asks for.
    """
    dim = next(iter(dataset.splits.values())).dim
    return head_spec(
        recipe.head,
        dim,
        dataset.num_outputs,
        compares=dataset.targets is not None,
        order=recipe.loss.order > 0,
    )


def for_elsewhere(config: C, folder: RunFolder, device: str) -> C:
    """The configuration for processes in another working folder, on the device Ray gives them."""
    paths = {"bank": config.bank.absolute(), "labels": config.labels.absolute(), "out": folder.path}
    return dataclasses.replace(config, **paths, device=device)


def split_rows(
    dataset: Dataset, head: PlannedHead, config: HeadConfig
) -> tuple[FeatureIndex, FeatureIndex]:
    """Samples to train on and to judge on, as heads of ``config`` read them."""
    train = dataset.rows("train", config)
    if head.fold is None:
        return train, dataset.rows("validation", config)
    fold = dataset.fold_of_frames(head.num_folds)
    return train.select(fold != head.fold), train.select(fold == head.fold)


def open_data(config: LearnConfig, heads: Iterable[HeadConfig]) -> Dataset:
    """The data of a configuration for some heads; see `raffect.runs.data.open_dataset`."""
    return open_dataset(
        config.bank,
        config.labels,
        config.task,
        allow_incomplete=config.allow_incomplete,
        around=read_windows(heads),
    )
