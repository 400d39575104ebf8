"""`raffect train`: one recipe, one seed or several side by side, in this process or on workers of Ray Train."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import uuid
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

from raffect.config import LearnConfig, TrainConfig
from raffect.data.atomic import write_atomic
from raffect.data.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.kinds import kind_of
from raffect.model.fit import score_name
from raffect.model.kinds import loss_kind
from raffect.model.snapshots import History
from raffect.model.workers import Workers
from raffect.recipe import Recipe, plain, require, with_settings
from raffect.stages.dataset import Dataset, check_trainable, open_dataset, targets_of
from raffect.stages.members import KeepEpochs, for_elsewhere, plan_packs, run_pack, split_rows
from raffect.stages.progress import Progress
from raffect.stages.runs import Member, RunFolder
from raffect.stages.runtime import cluster_gpus, last_line, ray_session, ray_storage
from raffect.stages.scores import choose_epoch
from raffect.stages.stream import decide_stream
from raffect.stages.verdict import conclude_run

_FAILURE, _PROGRESS = "failure.txt", "progress.json"
_MAX_FAILURES = 3


def train(config: TrainConfig) -> list[str]:
    """Train, judge and record; heads that are finished already are not trained again.

    Returns:
        The scores, for people.

    Raises:
        RaffectError: If the data or settings do not allow it.
    """
    dataset = open_dataset(config.bank, config.labels, config.task, allow_incomplete=config.allow_incomplete)
    config = dataclasses.replace(
        config, task=dataset.task.name, stream=RunFolder(config.out).recorded_stream(config.stream) or decide_stream(config.stream, dataset.splits["train"], config.device)
    )
    recipes = [with_settings(plain(config), {"seed": config.seed + k}) for k in range(config.num_seeds)]
    check_before(config, dataset)
    folder = RunFolder.create(config, dataset)
    keep: dict[str, int] = {}
    if config.select == "folds":
        members = fold_members(recipes, config.folds)
        _train_members(config, dataset, folder, members, None, "folds")
        epoch, _ = choose_epoch([record for member in members if (record := folder.read_record(member.id))])
        require(epoch > 0, "--select folds: no head was trained to the end on any fold; try a smaller optim.lr or sam.rho")
        keep = {Member(recipe).id: epoch for recipe in recipes}
    members = [Member(recipe) for recipe in recipes]
    _train_members(config, dataset, folder, members, keep, "train")
    return conclude_run(config, dataset, folder, [record for member in members if (record := folder.read_record(member.id))])


def check_before(config: LearnConfig, dataset: Dataset) -> None:
    """Refuse what cannot be trained before anything is written or started.

    Raises:
        RaffectError: If there are too few rows, classes or videos, or the task does not have the loss.
    """
    if config.select == "folds":
        dataset.fold_of_frames(config.folds)
    loss_kind(dataset.task).require_loss(config.loss)
    check_trainable(targets_of(dataset.splits["train"], dataset.task), dataset.task, config.batch_size, f"the training split of {dataset.facts['labels']}")


def fold_members(recipes: Sequence[Recipe], folds: int) -> list[Member]:
    """Every recipe on every fold."""
    return [Member(recipe, fold, folds) for fold in range(folds) for recipe in recipes]


def _train_members(config: TrainConfig, dataset: Dataset, folder: RunFolder, members: list[Member], keep: KeepEpochs | None, label: str) -> None:
    packs = plan_packs(folder, members, len(members), config.stream == "always", keep)
    steps = [count_steps(dataset, pack) for pack in packs]
    if not packs:
        return
    with Progress(label, sum(steps), "head-steps") as progress:
        for pack, total in zip(packs, steps, strict=True):
            if config.num_workers > 1:
                _train_on_workers(config, folder, pack, keep, label, progress, total)
            else:
                with _one_line() if config.stream == "always" else contextlib.nullcontext():
                    run_pack(
                        config,
                        dataset,
                        folder,
                        pack,
                        keep,
                        threads=config.threads,
                        on_step=partial(progress.advance, len(pack)),
                        on_epoch=lambda history: progress.note(epoch_note(history, dataset.task)),
                    )


@contextlib.contextmanager
def _one_line() -> Generator[None]:
    """Failures of Ray's readers as one line; on workers and in trials Ray starts again first."""
    try:
        yield
    except Exception as error:
        from ray.exceptions import RayError  # not before `ray_session` has set what Ray reads when it is imported

        if not isinstance(error, RayError):
            raise
        raise RaffectError(f"reading through Ray Data failed: {last_line(error)}; what is saved is kept, the same command goes on from there") from error


def count_steps(dataset: Dataset, pack: Sequence[Member]) -> int:
    """Head-steps of a pack from the start."""
    train, _ = split_rows(dataset, pack[0])
    return len(train) // pack[0].recipe.batch_size * pack[0].recipe.epochs * len(pack)


def epoch_note(history: History, task: Task) -> str:
    """``epoch 3 loss 1.234 val macro F1 .412`` for the progress line: means over members."""
    losses, scores = ([v for v in history[-1][name] if v is not None] for name in ("train_loss", score_name(task)))
    if not scores:
        return f"epoch {len(history)}: no head is left"
    return f"epoch {len(history)} loss {sum(losses) / max(len(losses), 1):.3f} val {kind_of(task).title} {sum(scores) / len(scores):.3f}"


def _train_on_workers(config: TrainConfig, folder: RunFolder, members: list[Member], keep: KeepEpochs | None, label: str, progress: Progress, steps: int) -> None:
    """The same pack on several processes of Ray Train, which share every batch."""
    with ray_session(config.address):
        import ray
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

        gpus, cpus = cluster_gpus() if config.device != "cpu" else 0, ray.cluster_resources().get("CPU", 0)
        require(config.device != "cuda" or gpus > 0, "--device cuda: Ray sees no GPU; start Ray where the GPUs are, or use --device cpu")
        what, there = ("GPU", gpus) if gpus else ("CPU", cpus)
        require(
            config.num_workers <= there, f"--num-workers {config.num_workers}: each takes a {what}, and Ray sees {there:g}; use fewer workers{' or --device cpu' if gpus else ''}"
        )
        require(
            config.stream != "always" or gpus > 0 or config.num_workers < cpus,
            f"--num-workers {config.num_workers} --stream always: workers take all {cpus:g} CPUs and leave none to read with; use fewer",
        )
        settings = for_elsewhere(config, folder, "cuda" if gpus else "cpu")
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"config": settings, "members": members, "keep": dict(keep or {})},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=bool(gpus)),
            run_config=RunConfig(name=f"{label}-{uuid.uuid4().hex[:8]}", **ray_storage(folder.path / "ray"), failure_config=FailureConfig(max_failures=_MAX_FAILURES)),
        )
        _take(folder, _FAILURE)  # of a driver that was killed before it could read it
        try:
            with _follow(folder, progress, steps // config.epochs):
                trainer.fit()
        except Exception as error:
            why = _take(folder, _FAILURE) or f"Ray Train gave up (it starts workers again {_MAX_FAILURES} times, its controller never): {last_line(error)}"
            raise RaffectError(f"{why}; what is saved is kept, the same command goes on from there") from error
    if failure := _take(folder, _FAILURE):
        raise RaffectError(failure)


def run_worker(job: dict[str, Any]) -> None:
    """One process of Ray Train: trains its part of every batch; the first one saves, and all go on from that after a failure."""
    import ray.train

    config, members, folder, workers = job["config"], job["members"], RunFolder(job["config"].out), Workers.current()
    if (folder.path / "state" / _FAILURE).exists():  # a worker has said why not; do not try again
        return

    def on_epoch(history: History) -> None:
        if workers.rank == 0:
            write_atomic(folder.path / "state" / _PROGRESS, json.dumps([len(history), epoch_note(history, dataset.task)]).encode())
        ray.train.report({"epoch": len(history), "wall_s": history[-1]["wall_s"]})

    try:
        dataset = open_dataset(config.bank, config.labels, config.task, allow_incomplete=config.allow_incomplete)
        threads = config.threads or max(1, (os.cpu_count() or 1) // workers.size)
        run_pack(config, dataset, folder, members, job["keep"] or None, workers=workers, threads=threads, save_every_s=0.0, on_epoch=on_epoch)
    except RaffectError as error:
        write_atomic(folder.path / "state" / _FAILURE, str(error).encode())
        raise  # or the others would wait for this one


@contextlib.contextmanager
def _follow(folder: RunFolder, progress: Progress, steps_an_epoch: int) -> Generator[None]:
    """Move the progress line by what the first worker writes, since workers print nothing here."""
    _take(folder, _PROGRESS)
    done = threading.Event()

    def watch() -> None:
        epoch = 0
        while not done.wait(0.5):
            with contextlib.suppress(Exception):  # it only draws progress
                seen, note = json.loads((folder.path / "state" / _PROGRESS).read_text())
                if seen > epoch:
                    progress.advance((seen - epoch) * steps_an_epoch)
                    progress.note(note)
                    epoch = seen

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
