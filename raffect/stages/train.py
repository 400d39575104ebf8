"""`raffect train`: one recipe, one seed or several side by side, in this process or on workers of Ray Train."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from raffect.config import TrainConfig
from raffect.data.atomic import write_atomic
from raffect.errors import RaffectError
from raffect.recipe import Recipe, plain, with_settings
from raffect.stages.dataset import Dataset, open_dataset
from raffect.stages.members import KeepEpochs, run_pack
from raffect.stages.progress import Progress
from raffect.stages.runs import Member, RunFolder
from raffect.stages.scores import choose_epoch
from raffect.stages.verdict import conclude_run

_MAX_FAILURES = 3


def train(config: TrainConfig) -> list[str]:
    """Train, judge and record; heads that are finished already are not trained again.

    Returns:
        The scores, for people.

    Raises:
        RaffectError: If the data or settings do not allow it.
    """
    dataset = open_dataset(config.bank, config.labels, config.task)
    folder = RunFolder.create(config, dataset)
    recipes = [with_settings(plain(config), {"seed": config.seed + k}) for k in range(config.num_seeds)]
    keep: dict[str, int] = {}
    if config.select == "folds":
        members = fold_members(recipes, config.folds)
        for fold in range(config.folds):
            _train_pack(config, dataset, folder, [member for member in members if member.fold == fold], None, f"fold {fold + 1} of {config.folds}")
        epoch, _ = choose_epoch([record for member in members if (record := folder.read_record(member))])
        keep = {Member(recipe).id: epoch for recipe in recipes}
    members = [Member(recipe) for recipe in recipes]
    _train_pack(config, dataset, folder, members, keep, "train")
    records = [record for member in members if (record := folder.read_record(member))]
    return conclude_run(config, dataset, folder, records)


def fold_members(recipes: Sequence[Recipe], folds: int) -> list[Member]:
    """Every recipe on every fold."""
    return [Member(recipe, fold, folds) for fold in range(folds) for recipe in recipes]


def _train_pack(config: TrainConfig, dataset: Dataset, folder: RunFolder, members: list[Member], keep: KeepEpochs | None, label: str) -> None:
    todo = [member for member in members if folder.read_record(member) is None]
    if not todo:
        return
    # A state belongs to the whole pack, so a pack of which some members are recorded (killed in between) is finished as it was.
    pack = members if folder.state_path(members).exists() else todo
    if config.num_workers > 1:
        _train_on_workers(config, folder, pack, keep, label)
        return
    steps = len(dataset.splits["train"]) // config.batch_size * config.epochs
    with Progress(label, steps * len(pack), "head-steps") as progress:
        run_pack(config, dataset, folder, pack, keep, threads=config.threads, on_step=lambda: progress.advance(len(pack)), on_epoch=lambda entry: progress.note(epoch_note(entry)))


def epoch_note(entry: dict[str, Any]) -> str:
    """``epoch 3 loss 1.234 F1 .412`` for the progress line: means over members."""
    losses, scores = ([v for v in entry[name] if v is not None] for name in ("train_loss", "val_macro_f1"))
    if not scores:
        return f"epoch {entry['epoch']}: no head is left"
    return f"epoch {entry['epoch']} loss {sum(losses) / max(len(losses), 1):.3f} val F1 {sum(scores) / len(scores):.3f}"


def _train_on_workers(config: TrainConfig, folder: RunFolder, members: list[Member], keep: KeepEpochs | None, label: str) -> None:
    """The same pack on several processes of Ray Train, which share every batch."""
    from raffect.stages.runtime import cluster_gpus, ray_session

    with ray_session(config.address):
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

        on_gpu = config.device != "cpu" and cluster_gpus() > 0
        if on_gpu and cluster_gpus() < config.num_workers and not config.address:
            raise RaffectError(f"--num-workers {config.num_workers}: Ray sees {cluster_gpus():g} GPUs, one a worker is needed; use --device cpu or fewer workers")
        settings = dataclasses.replace(config, bank=config.bank.absolute(), labels=config.labels.absolute(), out=folder.path, device="cuda" if on_gpu else "cpu")
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"config": settings, "members": members, "keep": dict(keep or {}), "label": label},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=on_gpu),
            run_config=RunConfig(name=f"{label.replace(' ', '-')}-{os.getpid()}", storage_path=str(folder.path / "ray"), failure_config=FailureConfig(max_failures=_MAX_FAILURES)),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise RaffectError(f"Ray Train gave up after {_MAX_FAILURES} restarts: {_reason(error)}; what is saved is kept, the same command goes on from there") from error
    if failure := read_failure(folder):
        raise RaffectError(failure)


def run_worker(job: dict[str, Any]) -> None:
    """One process of Ray Train: trains its part of every batch; the first one saves, and all go on from that after a failure."""
    import ray.train

    from raffect.model.workers import Workers

    config, members = job["config"], job["members"]
    folder = RunFolder(config.out)
    try:
        dataset = open_dataset(config.bank, config.labels, config.task)
        workers = Workers.current()
        threads = config.threads or max(1, (os.cpu_count() or 1) // workers.size)

        def on_epoch(entry: dict[str, Any]) -> None:
            ray.train.report({"epoch": entry["epoch"], "wall_s": entry["wall_s"], "note": epoch_note(entry)})

        run_pack(config, dataset, folder, members, job["keep"] or None, workers=workers, threads=threads, save_every_s=0.0, on_epoch=on_epoch)
    except RaffectError as error:  # trying again would not help, so it is no failure in Ray's sense
        write_atomic(folder.path / "state" / "failure.txt", str(error).encode())


def read_failure(folder: RunFolder) -> str | None:
    """Why workers stopped, once."""
    path = folder.path / "state" / "failure.txt"
    if not path.exists():
        return None
    text = path.read_text()
    path.unlink()
    return text


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
