"""`raffect train`: one recipe, with one seed or several side by side.

Heads are trained in this process or on workers of Ray Train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from raffect.config import TrainConfig, count_cores
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.heads.fit import score_name
from raffect.heads.head_batch import HeadSpec
from raffect.heads.snapshots import History
from raffect.heads.workers import Workers
from raffect.metrics.task_kinds import kind_of
from raffect.progress import Progress, stage
from raffect.ray_session.session import cluster_gpus, last_line, ray_session, ray_storage
from raffect.recipe import expand, plain
from raffect.runs.conclusions import SweepResult, TrainResult, conclude_run, conclude_sweep
from raffect.runs.cross_validation import choose_epochs, heads_of_folds, keep_folds
from raffect.runs.data import Dataset
from raffect.runs.folder import RunFolder, find_records
from raffect.runs.records import PlannedHead
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record
from raffect.training.batch_job import BatchJob, CvEpochs
from raffect.training.checks import check_before, find_left_out
from raffect.training.run_batch import (
    for_elsewhere,
    open_data,
    partition,
    plan_batches,
    run_batch,
)
from raffect.training.stream import decide_stream

_FAILURE, _PROGRESS = "failure.txt", "progress.json"
"""Files of the state folder: why workers stopped, and how far they are."""
_GOES_ON = "what is saved is kept, the same command goes on from there"
_MAX_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class EpochNote(Record):
    """What the first worker reports to the driver.

    Attributes:
        epoch: Epochs done.
        earlier: Those among them that earlier attempts have done.
        text: A line about the last one.
    """

    epoch: int
    earlier: int
    text: str


def train(config: TrainConfig) -> TrainResult | SweepResult:
    """Train, judge and record; heads that are finished already are not trained again.

    Returns:
        Scores of the one setting, or with ``--leave-out`` of the heads without each class.

    Raises:
        RaffectError: If the data or settings do not allow it.
    """
    require(
        config.folds != "official",
        "--folds official: a run for each fold, which raffect.train_on_official_folds trains",
    )
    with stage(f"reading {config.labels} and {config.bank}"):
        dataset = open_data(config, [config.head])
    return train_on(config, dataset)


def train_on(
    config: TrainConfig, dataset: Dataset, spec: HeadSpec | None = None
) -> TrainResult | SweepResult:
    """`train` on data that are open.

    Args:
        config: Settings.
        dataset: Of `raffect.training.run_batch.open_data`.
        spec: What the heads are, where their recipes alone do not decide it; in this process alone.
    """
    # Whether rows are streamed, which is decided once for a run
    stream = RunFolder(config.out).recorded_stream(config.stream)
    index = dataset.rows("train", config.head)
    stream = stream or decide_stream(
        config.stream, index, config.device, num_workers=config.num_workers
    )
    config = dataclasses.replace(config, task=dataset.task.name, stream=stream)

    # One recipe a class that is left out and seed, checked before anything is written
    left_out = find_left_out(config.leave_out, dataset) or [config.loss.leave_out]
    seeds = range(config.seed, config.seed + config.num_seeds)
    axes = {"loss.leave_out": left_out, "seed": seeds}
    recipes = expand(plain(config), axes)
    for loss in dict.fromkeys(recipe.loss for recipe in recipes):
        check_before(dataclasses.replace(config, leave_out=(), loss=loss), dataset, spec)
    folder = RunFolder.create(config, dataset.facts, dataset.fingerprint)
    if spec is not None:
        folder.keep_spec(spec.to_json())

    # The epoch, cross-validated on folds
    cv_epochs: dict[str, int] = {}
    if config.select == "cv":
        keep_folds(folder, dataset.fold_of_frames(config.num_folds))
        folds = heads_of_folds(recipes, config.num_folds)
        _train_heads(config, dataset, folder, folds, None, "folds", spec)
        cv_epochs = choose_epochs(folder, recipes, config.num_folds)
        require(
            all(epoch > 0 for epoch in cv_epochs.values()),
            "--select cv: no head was trained to the end on any fold; "
            "try a smaller optim.lr or sam.rho",
        )

    # The heads themselves
    heads = [PlannedHead(recipe) for recipe in recipes]
    _train_heads(config, dataset, folder, heads, cv_epochs, "train", spec)
    records = find_records(folder, [head.id for head in heads])
    if config.leave_out:
        axis = ["loss.leave_out"]
        return conclude_sweep(folder, dataset.facts, records, axis, saved_heads=True)
    return conclude_run(folder, dataset.facts, records)


def _train_heads(
    config: TrainConfig,
    dataset: Dataset,
    folder: RunFolder,
    heads: list[PlannedHead],
    cv_epochs: CvEpochs | None,
    label: str,
    spec: HeadSpec | None,
) -> None:
    """Train the heads that have no record yet, batch by batch."""
    batches = plan_batches(folder, heads, len(heads), config.stream == "always", cv_epochs)
    steps = [count_steps(dataset, batch) for batch in batches]
    if not batches:
        return
    earlier = count_finished_steps(dataset, heads, batches)
    with Progress(label, earlier + sum(steps), "head-steps", earlier) as progress:
        for batch, total in zip(batches, steps, strict=True):
            job = BatchJob(
                config=config,
                heads=tuple(batch),
                cv_epochs=cv_epochs or {},
                threads=config.threads,
                spec=spec,
            )
            if config.num_workers > 1:
                _train_on_workers(job, folder, label, progress, total)
                continue
            progress.begin_stage("reading features")
            with _one_line() if config.stream == "always" else contextlib.nullcontext():
                run_batch(
                    job,
                    dataset,
                    on_step=partial(progress.advance, len(batch)),
                    on_epoch=lambda history: progress.note(epoch_note(history, dataset.task)),
                    on_resume=partial(_add_earlier, progress, len(batch)),
                )


def _add_earlier(progress: Progress, num_heads: int, history: History) -> None:
    """Count what an earlier attempt at a batch of heads has done."""
    progress.add_earlier(num_heads * sum(entry["steps"] for entry in history))


@contextlib.contextmanager
def _one_line() -> Generator[None]:
    """Failures of Ray's readers as one line; on workers and in trials Ray starts again first."""
    try:
        yield
    except Exception as error:
        # Imported late: `ray_session` sets variables that Ray reads when it is imported.
        from ray.exceptions import RayError

        if not isinstance(error, RayError):
            raise
        failure = f"reading through Ray Data failed: {last_line(error)}"
        raise RaffectError(f"{failure}; {_GOES_ON}") from error


def count_steps(dataset: Dataset, batch: Sequence[PlannedHead]) -> int:
    """Head-steps of a batch of heads from the start."""
    head, recipe = batch[0], batch[0].recipe
    if head.fold is None:
        rows = len(dataset.splits["train"])
    else:
        rows = int((dataset.fold_of_frames(head.num_folds) != head.fold).sum())
    return rows // recipe.batch_size * recipe.epochs * len(batch)


def count_finished_steps(
    dataset: Dataset, heads: Sequence[PlannedHead], batches: Sequence[Sequence[PlannedHead]]
) -> int:
    """Head-steps of the heads that are in no batch, because earlier runs have finished them."""
    left = {head.id for batch in batches for head in batch}
    finished = [head for head in heads if head.id not in left]
    return sum(count_steps(dataset, group) for group in partition(finished, len(heads)))


def epoch_note(history: History, task: Task) -> str:
    """``epoch 3 loss 1.234 val macro F1 .412`` for the progress line: means over heads."""
    entry = history[-1]
    losses = [value for value in entry["train_loss"] if value is not None]
    scores = [value for value in entry[score_name(task)] if value is not None]
    if not scores:
        return f"epoch {len(history)}: no head is left"
    loss, score = sum(losses) / max(len(losses), 1), sum(scores) / len(scores)
    return f"epoch {len(history)} loss {loss:.3f} val {kind_of(task).title} {score:.3f}"


def _train_on_workers(
    job: BatchJob, folder: RunFolder, label: str, progress: Progress, steps: int
) -> None:
    """Train a batch of heads on processes of Ray Train, which share every batch of frames."""
    config = job.config
    assert isinstance(config, TrainConfig)
    with ray_session(config.address):
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

        # The trainer: every process has the same job, and its part of each batch of frames
        on_gpus = _place_workers(config)
        settings = for_elsewhere(config, folder, "cuda" if on_gpus else "cpu")
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": dataclasses.replace(job, config=settings, save_every_s=0.0)},
            torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=on_gpus),
            run_config=RunConfig(
                name=f"{label}-{uuid.uuid4().hex[:8]}",
                **ray_storage(folder.path / "ray"),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )

        # Training; a failure that a killed driver did not read is deleted first
        _take(folder, _FAILURE)
        try:
            progress.begin_stage("starting workers, which load torch and read features")
            with _follow(folder, progress, steps // config.epochs):
                trainer.fit()
        except Exception as error:
            starts = f"it starts workers again {_MAX_FAILURES} times, its controller never"
            why = _take(folder, _FAILURE) or f"Ray Train gave up ({starts}): {last_line(error)}"
            raise RaffectError(f"{why}; {_GOES_ON}") from error
    if failure := _take(folder, _FAILURE):
        raise RaffectError(failure)


def _place_workers(config: TrainConfig) -> bool:
    """Whether workers have a GPU each.

    Raises:
        RaffectError: If there are fewer GPUs, or CPUs, than workers.
    """
    import ray

    # What Ray has
    gpus = cluster_gpus() if config.device != "cpu" else 0
    cpus = ray.cluster_resources().get("CPU", 0)
    require(
        config.device != "cuda" or gpus > 0,
        "--device cuda: Ray sees no GPU; start Ray where the GPUs are, or use --device cpu",
    )

    # What each worker takes, and on CPUs what is left for Ray Data's readers
    workers = f"--num-workers {config.num_workers}"
    what, there = ("GPU", gpus) if gpus else ("CPU", cpus)
    remedy = "use fewer workers or --device cpu" if gpus else "use fewer workers"
    require(
        config.num_workers <= there,
        f"{workers}: each takes a {what}, and Ray sees {there:g}; {remedy}",
    )
    require(
        config.stream != "always" or gpus > 0 or config.num_workers < cpus,
        f"{workers} --stream always: workers take all {cpus:g} CPUs and leave none "
        "to read with; use fewer",
    )
    return bool(gpus)


def run_worker(settings: dict[str, BatchJob]) -> None:
    """One process of Ray Train: trains its part of every batch of frames.

    The first process saves the state, and all go on from it after a failure.
    """
    import ray.train

    job, workers = settings["job"], Workers.current()
    config, folder = job.config, RunFolder(job.config.out)
    # A worker has written why this cannot work; another attempt would not help.
    if (folder.path / "state" / _FAILURE).exists():
        return

    earlier: History = []

    def on_epoch(history: History) -> None:
        if workers.rank == 0:
            text = epoch_note(history, dataset.task)
            note = EpochNote(epoch=len(history), earlier=len(earlier), text=text)
            write_atomic(folder.path / "state" / _PROGRESS, note.to_bytes())
        ray.train.report({"epoch": len(history), "wall_s": history[-1]["wall_s"]})

    try:
        dataset = open_data(config, [head.recipe.head for head in job.heads])
        threads = config.threads or max(1, count_cores() // workers.size)
        job = dataclasses.replace(job, threads=threads)
        run_batch(job, dataset, workers=workers, on_epoch=on_epoch, on_resume=earlier.extend)
    except RaffectError as error:
        write_atomic(folder.path / "state" / _FAILURE, str(error).encode())
        raise  # else the other workers would wait for this one


@contextlib.contextmanager
def _follow(folder: RunFolder, progress: Progress, steps_an_epoch: int) -> Generator[None]:
    """Move the progress line by what the first worker writes, since workers print nothing here."""
    _take(folder, _PROGRESS)
    done = threading.Event()

    def watch() -> None:
        epoch = None
        while not done.wait(0.5):
            # Whatever fails here, only the progress line suffers.
            with contextlib.suppress(Exception):
                file = folder.path / "state" / _PROGRESS
                note = EpochNote.from_json(file.read_bytes(), file, "")
                if epoch is None:
                    progress.add_earlier(note.earlier * steps_an_epoch)
                    epoch = note.earlier
                if note.epoch > epoch:
                    progress.advance((note.epoch - epoch) * steps_an_epoch)
                    progress.note(note.text)
                    epoch = note.epoch

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _take(folder, _PROGRESS)


def _take(folder: RunFolder, name: str) -> str | None:
    """Read and delete a file of the state folder."""
    path = folder.path / "state" / name
    if not path.exists():
        return None
    text = path.read_text()
    path.unlink()
    return text
