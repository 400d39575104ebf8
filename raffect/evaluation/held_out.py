"""Predictions for frames that heads were not trained on, as decision rules are chosen on them.

They are those of heads of folds for their held-out fold, as training kept them, or predictions for
the validation split. Frames of several runs are joined on video and frame.

Shape letters: H heads, N frames, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from raffect.config import PostprocessConfig
from raffect.errors import RaffectError, require
from raffect.evaluation.inputs import judge_each
from raffect.heads.checkpoint import HeadCard, read_card, require_encoder
from raffect.heads.contrastive import require_answers
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.predicting import predict
from raffect.predictions.choose import WINDOWS
from raffect.predictions.held_out import HeldOut
from raffect.predictions.smoothing import timeline
from raffect.progress import stage
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.data import open_dataset, pick_device, targets_of
from raffect.runs.fold_predictions import FoldPredictions
from raffect.runs.folder import RunFolder
from raffect.runs.main_setting import choose_main_setting
from raffect.runs.pick import find_heads
from raffect.runs.records import HeadRecord, PlannedHead, RunRecord
from raffect.runs.spread import finished, group_by_settings
from raffect.runs.windows import read_windows
from raffect.storage.keys import Vocabulary

_PARTS = 5
"""Parts of the validation split for cross-fitting."""


@dataclass(frozen=True)
class Candidate:
    """A head to choose from.

    Attributes:
        record: Its record in its run.
        card: What its weights are.
        folder: Of its weights.
        is_main: Whether it has its run's main setting.
    """

    record: HeadRecord
    card: HeadCard
    folder: Path
    is_main: bool


@dataclass(frozen=True)
class CandidateRun:
    """A run with its heads to choose from.

    Attributes:
        folder: The run.
        record: Its data.
        records: All of its heads, those of folds among them.
        heads: Those to choose from.
    """

    folder: RunFolder
    record: RunRecord
    records: Sequence[HeadRecord]
    heads: Sequence[Candidate]


def find_candidates(config: PostprocessConfig) -> list[CandidateRun]:
    """The heads of each run that rules are chosen for.

    Raises:
        RaffectError: If a run has none, has no weights of them, or runs are of several tasks.
    """
    # A run that is named twice counts once
    paths = dict.fromkeys(path.absolute() for path in config.run)
    first, *others = runs = [_find_in_run(path, config) for path in paths]
    task = first.record.data.task
    require_answers(task)
    for run in others:
        other = run.record.data.task
        require(
            (other.kind, other.outputs) == (task.kind, task.outputs),
            f"--run {run.folder.path}: heads of {other.name}, and those of {first.folder.path} of "
            f"{task.name}; rules are chosen for one task at a time",
        )
    return runs


def _find_in_run(path: Path, config: PostprocessConfig) -> CandidateRun:
    # Heads by setting, and the setting that stands for the run
    folder = RunFolder(path)
    run, records = folder.read_run(), folder.read_records()
    groups = group_by_settings(finished(records))
    require(bool(groups), f"{path}: no head is finished; run the same command again")
    selected = select_by_cv(folder, groups, records)
    main = {head.id for head in choose_main_setting(folder, groups, selected).heads}

    # Their weights
    weights = {found.parent.name: found for found in find_heads(folder.path, config.epoch)}
    heads = []
    for record in (record for group in groups for record in group):
        if record.id not in main and config.heads == "main":
            continue
        if record.id not in weights:
            require(
                record.id not in main,
                f"{path}: no weights of head {record.id} at its epoch {config.epoch}",
            )
            continue
        found = weights[record.id]
        heads.append(Candidate(record, read_card(found), found, record.id in main))
    return CandidateRun(folder, run, records, heads)


@dataclass(frozen=True)
class Collected:
    """Predictions of some heads, sorted by frame.

    Attributes:
        key: ``video << 32 | frame`` by the numbers of one vocabulary, ascending, shape (N,).
        target: See `raffect.metrics.task_kinds.Kind.targets`, N rows.
        group: Number of each frame's video, subject or picture, shape (N,).
        part: Number of each frame's fold, shape (N,).
        scores: Probabilities or values, shape (H, N, C).
    """

    key: np.ndarray
    target: np.ndarray
    group: np.ndarray
    part: np.ndarray
    scores: np.ndarray

    def take(self, rows: np.ndarray) -> Collected:
        """Some of the frames."""
        return Collected(
            self.key[rows],
            self.target[rows],
            self.group[rows],
            self.part[rows],
            self.scores[:, rows],
        )


def collect(runs: Sequence[CandidateRun], config: PostprocessConfig) -> HeldOut:
    """Predictions of all heads for the frames that all of them have.

    Raises:
        RaffectError: If predictions of folds were not kept, the bank does not go with the heads, or
            runs have no frame, or not the same labels, in common.
    """
    vocabulary = Vocabulary()
    if config.on == "folds":
        found = [_collect_folds(run, vocabulary) for run in runs]
    else:
        found = [_collect_validation(run, config, vocabulary) for run in runs]
    joined = _join(found, [run.folder.path for run in runs])

    # Groups as they are after the join
    groups, group = np.unique(joined.group, return_inverse=True)
    parts, part = np.unique(joined.part, return_inverse=True)
    require(
        len(parts) > 1,
        f"{config.run[0]}: all frames belong to one of its {runs[0].record.data.group_name}; "
        "rules need two or more to be judged",
    )
    return HeldOut(
        task=runs[0].record.data.task,
        scores=joined.scores,
        target=joined.target,
        moment=timeline(joined.key >> 32, joined.key & 0xFFFFFFFF, max(WINDOWS)),
        group=group,
        num_groups=len(groups),
        part=part,
        num_parts=len(parts),
        of_clips=runs[0].record.data.of_clips,
    )


def _join(found: Sequence[Collected], paths: Sequence[Path]) -> Collected:
    """Heads of several runs on the frames that all have, with the folds of the first one."""
    if len(found) == 1:
        return found[0]
    for one, path in zip(found, paths, strict=True):
        require(
            len(np.unique(one.key)) == len(one.key),
            f"--run {path}: has clips that begin at one frame, which cannot be told apart; name "
            "runs one by one",
        )
    common = reduce(np.intersect1d, (one.key for one in found))
    require(len(common) > 0, f"{paths[0]} and {paths[1]}: no frame in common; name runs one by one")
    first, *others = (one.take(np.searchsorted(one.key, common)) for one in found)
    for other, path in zip(others, paths[1:], strict=True):
        is_float = first.target.dtype.kind == "f"
        require(
            np.array_equal(first.target, other.target, equal_nan=is_float),
            f"--run {path}: has other labels of the same frames than {paths[0]}; "
            "train both on the same label table",
        )
    return replace(first, scores=np.concatenate([first.scores, *(one.scores for one in others)]))


def _collect_folds(run: CandidateRun, vocabulary: Vocabulary) -> Collected:
    """What heads of folds predict for their fold, fold by fold."""
    folds = [_folds_of(run, head) for head in run.heads]
    parts = [
        _collect_fold(run, [of_head[fold] for of_head in folds], vocabulary)
        for fold in range(len(folds[0]))
    ]
    whole = Collected(
        key=np.concatenate([part.key for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        group=np.concatenate([part.group for part in parts]),
        part=np.concatenate([part.part for part in parts]),
        scores=np.concatenate([part.scores for part in parts], axis=1),
    )
    return whole.take(np.argsort(whole.key, kind="stable"))


def _folds_of(run: CandidateRun, head: Candidate) -> list[HeadRecord]:
    """The heads of folds that have a head's settings, in order.

    Raises:
        RaffectError: If one is missing, diverged, or has no predictions.
    """
    path, recipe = run.folder.path, head.record.recipe
    by_id = {record.id: record for record in run.records}
    num_folds = max((record.num_folds for record in run.records), default=0)
    instead = "choose on the validation split (--on validation: optimistic there)"
    require(
        run.record.command != "zeroshot",
        f"{path}: raffect zeroshot trains nothing and keeps no predictions of folds; {instead}",
    )
    require(
        num_folds > 0,
        f"{path}: has no heads of folds; train into a new --out with --select cv, or {instead}",
    )
    found = [by_id.get(PlannedHead(recipe, fold, num_folds).id) for fold in range(num_folds)]
    sound = [record for record in found if record is not None and record.status == "done"]
    require(
        len(sound) == num_folds,
        f"{path}: only {len(sound)} of {num_folds} folds of seed {recipe.seed} were trained to the "
        f"end; run the same command again, or {instead}",
    )
    require(
        all(record.predictions is not None for record in sound),
        f"{path}: its heads of folds kept no predictions (--no-save-predictions, or an earlier "
        f"version of raffect); train into a new --out, or {instead}",
    )
    return sound


def _collect_fold(
    run: CandidateRun, records: Sequence[HeadRecord], vocabulary: Vocabulary
) -> Collected:
    """What heads of one fold predict for it; those of one batch have one file."""
    by_file: dict[str, list[HeadRecord]] = {}
    for record in records:
        assert record.predictions is not None
        by_file.setdefault(record.predictions.name, []).append(record)
    files = [run.folder.read_predictions(alike) for alike in by_file.values()]
    keys = [_keys(one, vocabulary) for one in files]
    require(
        all(np.array_equal(key, keys[0]) for key in keys),
        f"{run.folder.path}: heads of fold {records[0].id} have predictions of other frames; "
        "delete predictions/ and the records of folds, and run the same command again",
    )
    scores: Mapping[str, np.ndarray] = {
        name: values for one in files for name, values in one.heads.items()
    }
    first = files[0]
    numbers = np.array([vocabulary.number(f"group {name}") for name in first.groups])
    return Collected(
        key=keys[0],
        target=first.target,
        group=numbers[first.group],
        part=np.full(len(keys[0]), records[0].fold),
        scores=np.array([scores[record.id] for record in records]),
    )


def _keys(found: FoldPredictions, vocabulary: Vocabulary) -> np.ndarray:
    return _key_of(found.video, found.videos, found.frame, vocabulary)


def _key_of(
    video: np.ndarray, videos: Sequence[str], frame: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    numbers = np.array([vocabulary.number(name) for name in videos], np.int64)
    return (numbers[video] << 32) | frame.astype(np.int64)


def _collect_validation(
    run: CandidateRun, config: PostprocessConfig, vocabulary: Vocabulary
) -> Collected:
    """What heads predict for the validation split."""
    # Frames, of the encoder that the heads know
    data = run.record.data
    bank, labels = config.bank or Path(data.bank), config.labels or Path(data.labels)
    with stage(f"reading {labels} and {bank}"):
        dataset = open_dataset(
            bank,
            labels,
            data.task.name,
            ["validation"],
            allow_incomplete=config.allow_incomplete,
            around=read_windows(head.card.recipe.head for head in run.heads),
        )
    require(
        (dataset.task.kind, dataset.task.outputs) == (data.task.kind, data.task.outputs),
        f"{labels}: its task {dataset.task.name} has other outputs than {run.folder.path}",
    )
    (encoder,) = dataset.facts.encoders
    for head in run.heads:
        require_encoder(head.card, encoder, head.folder, bank)

    # Predictions, head by head
    index, device = dataset.splits["validation"], pick_device(config.device)
    kind = loss_kind(dataset.task)
    scores = judge_each(
        dataset, "validation", run.heads, device, lambda head, rows, _: predict(kind, head, rows)
    )
    numbers = np.array([vocabulary.number(f"group {name}") for name in index.groups])
    found = Collected(
        key=_key_of(index.video, index.videos, index.frame, vocabulary),
        target=targets_of(index, dataset.task),
        group=numbers[index.group],
        part=_deal(index.group),
        scores=np.concatenate(scores),
    )
    return found.take(np.argsort(found.key, kind="stable"))


def _deal(group: np.ndarray) -> np.ndarray:
    """A part for each frame: whole groups, as many frames a part as they allow."""
    from sklearn.model_selection import GroupKFold

    parts, out = min(_PARTS, len(np.unique(group))), np.zeros(len(group), np.int64)
    if parts > 1:
        for number, (_, held_out) in enumerate(GroupKFold(parts).split(out, None, group)):
            out[held_out] = number
    return out


def require_chosen_on(found: HeldOut, runs: Sequence[CandidateRun]) -> None:
    """Refuse predictions that nothing can be chosen on.

    Raises:
        RaffectError: If they have one class, label or value alone.
    """
    why = found.kind.why_untrainable(found.task, found.target)
    if why:
        raise RaffectError(f"{runs[0].folder.path}: its held-out frames have {why}")
