"""`raffect zeroshot`: recognise classes by texts; every prompt set becomes a head in a run folder.

Prompt sets learn nothing, so their scores on held-out folds of the training split are those of the
whole split; they choose the set, and the validation split is not looked at for that.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from raffect.bank.clips import ClipIndex
from raffect.bank.features import FeatureIndex
from raffect.bank.format import Bank
from raffect.config import ZeroshotConfig
from raffect.datasets.tasks import Task
from raffect.encoders.text import TextEncoder, open_text_encoder
from raffect.errors import require
from raffect.heads.fit import count
from raffect.heads.head_batch import HeadBatch
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.samples import Samples
from raffect.language.classifiers import (
    Classifier,
    build_batch,
    build_classifier,
    choose_thresholds,
)
from raffect.language.prompt_sets import TaskPrompts, prompts_for, shipped_for
from raffect.language.zeroshot_folder import open_folder
from raffect.language.zeroshot_result import ZeroshotResult, describe_scores
from raffect.metrics.intervals import score_interval
from raffect.metrics.scores import JudgedScore, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.progress import Progress, stage
from raffect.provenance import git_commit, versions
from raffect.recipe import HeadConfig, LossConfig, Recipe, SamConfig, TextConfig
from raffect.runs.conclusions import conclude_sweep
from raffect.runs.data import Dataset, open_dataset, pick_device, read_rows, targets_of
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Statistics
from raffect.runs.records import Curve, HeadRecord, PlannedHead, TrainedBy
from raffect.runs.saved_heads import save_snapshot
from raffect.storage.tables import write_table

_EPOCH = 1
"""Heads that are never trained have one epoch."""


@dataclass(frozen=True)
class _Sweep:
    """What is to be judged: P heads, each of a prompt set.

    Attributes:
        config: The command's.
        dataset: The data.
        folder: Where results go.
        recipes: One a head.
        classifiers: Likewise; without a threshold yet.
        device: Where to compute.
    """

    config: ZeroshotConfig
    dataset: Dataset
    folder: RunFolder
    recipes: Sequence[Recipe]
    classifiers: Sequence[Classifier]
    device: torch.device


def zeroshot(config: ZeroshotConfig) -> ZeroshotResult:
    """Judge prompt sets on a bank.

    Raises:
        RaffectError: If a class has no prompt, a prompt is too long, the weights are not those of
            the bank, or the run folder holds something else.
    """
    # Data and texts, which are checked before anything is written
    cv = config.select == "cv"
    with stage(f"reading {config.labels} and {config.bank}"):
        wanted = ("train", "validation") if cv else ("validation",)
        dataset = open_dataset(
            config.bank,
            config.labels,
            config.task,
            wanted,
            allow_incomplete=config.allow_incomplete,
        )
    if cv:
        dataset.fold_of_frames(config.folds)
    prompts = _read_prompts(config, dataset.task)
    encoder = _open_encoder(config)
    recipes, classifiers = _build_heads(config, dataset.task, prompts, encoder)
    config = replace(config, task=dataset.task.name, prompts=tuple(f.name for f in prompts))
    folder = open_folder(config, dataset, {found.name: found.content for found in prompts})
    for found in prompts:
        _write_texts(folder, found, encoder)

    # Held-out folds first, then the validation split
    device = pick_device(config.device)
    sweep = _Sweep(config, dataset, folder, recipes, classifiers, device)
    with Progress("zeroshot", (len(wanted)) * len(recipes), "heads") as progress:
        train = _read(dataset, "train", device) if cv else None
        if train is not None:
            _judge_folds(sweep, train)
            progress.advance(len(recipes))
        statistics, records = _judge_validation(sweep, train)
        progress.advance(len(recipes))

    # Tables, and scores as the field has them
    axes = ["text.prompts", *(["text.ensemble"] if len(config.ensemble) > 1 else [])]
    found = conclude_sweep(folder, dataset.facts, records, axes, saved_heads=True)
    unknown = {one.name: encoder.unknown_words(one.prompts) for one in prompts}
    judged = prompts[0].described if config.other == "never" else list(dataset.task.outputs)
    unit = "clips" if isinstance(dataset.splits["validation"], ClipIndex) else "frames"
    return describe_scores(folder, found, statistics, judged, unknown, unit)


def _read_prompts(config: ZeroshotConfig, task: Task) -> list[TaskPrompts]:
    """The prompt sets of a configuration for a task."""
    require(
        task.kind in ("multiclass", "multilabel"),
        f"{config.labels}: task {task.name} has numbers, which no text names; expected classes or "
        "labels",
    )
    names = []
    for name in config.prompts:
        names += shipped_for(task) if name == "all" else [name]
    found = [prompts_for(name, task) for name in dict.fromkeys(names)]
    stems = [prompts.name for prompts in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    require(not twice, f"--prompts: two sets are called {', '.join(twice)}; rename a file")
    described = [prompts.described for prompts in found]
    require(
        all(names == described[0] for names in described),
        "--prompts: some sets describe Other and some do not, their scores cannot be compared; "
        "give them apart",
    )
    silent = len(task.outputs) - len(described[0])
    require(
        config.other == "never" or silent == 1,
        f"--other threshold: {silent} classes without prompts, expected one (Other)",
    )
    return found


def _open_encoder(config: ZeroshotConfig) -> TextEncoder:
    identity = Bank(config.bank).require_identity()
    return open_text_encoder(identity, config.bank, config.weights)


def _build_heads(
    config: ZeroshotConfig, task: Task, prompts: Sequence[TaskPrompts], encoder: TextEncoder
) -> tuple[list[Recipe], list[Classifier]]:
    """Recipe and classifier of each prompt set and ensemble."""
    # All prompts at once, in full batches
    encoder.encode([text for found in prompts for text in found.prompts])
    recipes, classifiers = [], []
    for found, ensemble in itertools.product(prompts, dict.fromkeys(config.ensemble)):
        text = TextConfig(
            prompts=found.name, ensemble=ensemble, other=config.other, against=config.against
        )
        recipe = Recipe(
            task=task.name,
            epochs=_EPOCH,
            head=HeadConfig(depth=0, dropout=0.0, normalise="l2"),
            loss=LossConfig(alpha=1.0),
            sam=SamConfig(rho=0.0),
            text=text,
        )
        recipes.append(recipe)
        classifiers.append(build_classifier(found, encoder, ensemble, config.against))
    return recipes, classifiers


def _write_texts(folder: RunFolder, prompts: TaskPrompts, encoder: TextEncoder) -> None:
    """Prompts with their vectors, and both fingerprints of the weights."""
    texts = prompts.prompts
    vectors = encoder.encode(texts)
    table = pa.table(
        {
            "prompt": pa.array(texts, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
    )
    metadata = {"raffect": "texts/1", "encoder": encoder.identity.to_bytes().decode()}
    write_table(table, folder.path / "prompts" / f"{prompts.name}.parquet", metadata)


@dataclass(frozen=True)
class _Rows:
    """Features of a split on the device, and where they are from."""

    index: FeatureIndex
    samples: Samples
    targets: np.ndarray

    def select(self, keep: np.ndarray) -> _Rows:
        """Some of them, with their own groups; ``keep`` is a mask of shape (N,)."""
        index, rows = self.index.select(keep), torch.from_numpy(keep).to(self.samples.x.device)
        group = torch.from_numpy(index.group.astype(np.int64)).to(rows.device)
        x, y = self.samples.x[rows], self.samples.y[rows]
        return _Rows(index, Samples(x, y, group, len(index.groups)), self.targets[keep])


def _read(dataset: Dataset, split: str, device: torch.device) -> _Rows:
    index, task = dataset.splits[split], dataset.task
    return _Rows(index, read_rows(index, task, device), targets_of(index, task))


def _finish(sweep: _Sweep, train: _Rows | None) -> HeadBatch:
    """The heads, with thresholds chosen on some training frames where these are asked for."""
    classifiers = list(sweep.classifiers)
    if sweep.config.other == "threshold":
        assert train is not None
        found = choose_thresholds(classifiers, train.samples.x, train.targets)
        pairs = zip(classifiers, found, strict=True)
        classifiers = [classifier.with_threshold(value) for classifier, value in pairs]
    return build_batch(classifiers, sweep.device)


def _judge_folds(sweep: _Sweep, train: _Rows) -> None:
    """Record every head on every held-out fold."""
    folds = sweep.config.folds
    fold_of = sweep.dataset.fold_of_frames(folds)
    for fold in range(folds):
        held_out = train.select(fold_of == fold)
        # Only thresholds are chosen on the other folds.
        others = train.select(fold_of != fold) if sweep.config.other == "threshold" else None
        heads = [PlannedHead(recipe, fold, folds) for recipe in sweep.recipes]
        _judge(sweep, heads, _finish(sweep, others), held_out)


def _judge_validation(
    sweep: _Sweep, train: _Rows | None
) -> tuple[Mapping[str, np.ndarray], list[HeadRecord]]:
    """Record every head on the validation split, with its weights; statistics by head."""
    heads = [PlannedHead(recipe) for recipe in sweep.recipes]
    rows = _read(sweep.dataset, "validation", sweep.device)
    return _judge(sweep, heads, _finish(sweep, train), rows)


def _judge(
    sweep: _Sweep, heads: Sequence[PlannedHead], batch: HeadBatch, rows: _Rows
) -> tuple[Mapping[str, np.ndarray], list[HeadRecord]]:
    """Statistics, weights and records of heads on some frames."""
    # All heads at once
    start, task = time.perf_counter(), sweep.dataset.task
    counts = count(loss_kind(task), batch, rows.samples)
    by_head = {head.id: found for head, found in zip(heads, counts, strict=True)}
    kept = {name: {_EPOCH: found} for name, found in by_head.items()}
    file = sweep.folder.write_statistics(Statistics(rows.index.groups, kept))
    trained_by = TrainedBy(
        device=str(sweep.device),
        threads=torch.get_num_threads(),
        batch_of_heads=len(heads),
        wall_s=time.perf_counter() - start,
        git_commit=git_commit(),
        versions=versions(),
    )

    # A record each, behind its weights
    records = []
    for p, (head, found) in enumerate(zip(heads, counts, strict=True)):
        record = _describe(sweep, head, found, trained_by)
        record = replace(record, statistics=file)
        if head.fold is None:
            for name in record.scores:
                save_snapshot(sweep.folder, record, sweep.dataset.facts, name, batch, p)
        sweep.folder.write_record(record)
        records.append(record)
    return by_head, records


def _describe(
    sweep: _Sweep, head: PlannedHead, statistics: np.ndarray, trained_by: TrainedBy
) -> HeadRecord:
    """The record of one head from its statistics by group."""
    task, facts = sweep.dataset.task, sweep.dataset.facts
    kind = kind_of(task)
    score = JudgedScore(
        **vars(kind.score(statistics.sum(0), task)),
        epoch=_EPOCH,
        interval_95=score_interval(statistics, kind),
    )
    cv = sweep.config.select == "cv" and head.fold is None
    names: tuple[Snapshot, ...] = ("last", "best", *(("cv",) if cv else ()))
    return HeadRecord(
        id=head.id,
        task=task,
        recipe=head.recipe,
        fold=head.fold,
        num_folds=head.num_folds,
        fingerprint=sweep.dataset.fingerprint,
        incomplete=facts.incomplete,
        group_name=facts.group_name,
        status="done",
        cv_epoch=_EPOCH if cv else None,
        trained_by=trained_by,
        curve=Curve(lr=(0.0,), train_loss=(None,), validation=(score.headline,)),
        scores=dict.fromkeys(names, score),
        chance=kind.chance(statistics.sum(0), task),
    )
