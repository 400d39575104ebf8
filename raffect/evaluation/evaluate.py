"""`raffect evaluate`: score trained heads on a bank, on any split.

Scores have a spread over seeds and an interval, and stand beside the chance level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from raffect.bank.format import Bank
from raffect.bank.groups import are_blocks
from raffect.config import EvaluateConfig
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.evaluation.choose_rules import require_rules
from raffect.evaluation.common_outputs import CommonOutputs, restrict
from raffect.evaluation.inputs import SavedHead, judge_each
from raffect.evaluation.judge_rules import judge_rules
from raffect.evaluation.results import EvaluatedHead, EvaluateResult, Evaluation, TaskResult
from raffect.evaluation.totals import sum_tasks
from raffect.heads.checkpoint import require_encoder
from raffect.heads.fit import count
from raffect.heads.head_batch import HeadBatch
from raffect.heads.samples import Samples
from raffect.metrics.intervals import judge
from raffect.metrics.scores import Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.metrics.worst import find_worst
from raffect.predictions.rules import RULES_FILE
from raffect.provenance import describe_run
from raffect.runs.against_erm import Baselines, difference_of
from raffect.runs.data import Dataset, fingerprint_of, open_dataset, pick_device
from raffect.runs.metrics_file import SettingScores
from raffect.runs.pick import PickedHead, sound_heads
from raffect.runs.spread import group_by_settings, is_erm, spread_of, varying
from raffect.runs.windows import describe_other_samples, read_windows
from raffect.storage.atomic import require_writable

_SHOWN_OUTPUTS = 4


class _Judged(NamedTuple):
    """What the heads of one run are judged on.

    Attributes:
        dataset: The frames.
        columns: Numbers of the outputs that are judged; None for all.
        common: How these were matched; None without ``--classes common``.
    """

    dataset: Dataset
    columns: tuple[int, ...] | None = None
    common: CommonOutputs | None = None


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Score every head of a run, or one head; and of several runs, each of a task of its own.

    Raises:
        RaffectError: If there is no head, or it does not go with the bank; or if two runs are of
            one task; or if a file of rules is missing or for another task.
    """
    # Heads, and the frames to score them on
    if config.out is not None and (config.out / "env.json").exists():
        raise RaffectError(
            f"--out {config.out}: is a run folder, whose own metrics.json would be overwritten; "
            "name another one"
        )
    notes: list[list[str]] = [[] for _ in config.run]
    picked = [
        sound_heads(run, config.epoch, of_run, "is judged")
        for run, of_run in zip(config.run, notes, strict=True)
    ]
    judged = [_open(config, run, heads) for run, heads in zip(config.run, picked, strict=True)]
    tasks = [one.dataset.task for one in judged]
    _require_different(config.run, tasks)
    require_rules(config.postprocess, tasks)
    if config.out is not None:
        require_writable(config.out)

    # Their scores
    scored = tuple(
        _evaluate_task(config, one, heads, of_run)
        for one, heads, of_run in zip(judged, picked, notes, strict=True)
    )
    total, why = sum_tasks(scored)
    result = EvaluateResult(tasks=scored, total=total, notes=why, out=config.out)
    if config.out is not None:
        result.write(config.out)
    return result


def _evaluate_task(
    config: EvaluateConfig, judged: _Judged, heads: Sequence[PickedHead], notes: Sequence[str]
) -> TaskResult:
    """Scores of the heads of one run."""
    dataset, device = judged.dataset, pick_device(config.device)
    statistics = count_heads(dataset, config.split, heads, device, judged.columns)
    evaluation = _describe(config, judged, heads, statistics)
    # Decision rules were chosen for all outputs of the heads
    if judged.common is None:
        found, more = judge_rules(dataset, config.split, heads, config.postprocess, device)
    else:
        file = heads[0].run / RULES_FILE
        is_left_out = config.postprocess == "auto" and file.is_file()
        found, more = None, (f"without decision rules: {file} is for all classes",) * is_left_out
    return TaskResult(
        evaluation=replace(evaluation, postprocessed=found),
        statistics=statistics,
        groups=dataset.splits[config.split].groups,
        notes=(*notes, *more),
    )


def _require_different(runs: Sequence[Path], tasks: Sequence[Task]) -> None:
    """Refuse two runs of one task.

    Raises:
        RaffectError: Names both.
    """
    first: dict[str, Path] = {}
    for run, task in zip(runs, tasks, strict=True):
        if task.name in first:
            raise RaffectError(
                f"--run {first[task.name]} {run}: both are of task {task.name}; evaluate "
                "them one by one, or compare them by `raffect report --runs`"
            )
        first[task.name] = run


def _open(config: EvaluateConfig, run: Path, heads: Sequence[PickedHead]) -> _Judged:
    """The frames to score a run's heads on.

    Raises:
        RaffectError: If the heads are of several tasks, of another one than the labels, or of
            another encoder than the bank.
    """
    # One task
    tasks = list(dict.fromkeys(head.card.data.task for head in heads))
    if len(tasks) > 1:
        names = " and ".join(task.name for task in tasks)
        raise RaffectError(
            f"{run}: heads of {names}; give the folder of one head, "
            f"RUN/weights/<head>/{config.epoch}"
        )

    # One encoder
    identity = Bank(config.bank).require_identity()
    for head in heads:
        require_encoder(head.card, identity, head.folder, config.bank)

    places = config.bank, config.labels, config.split
    if config.classes == "same":
        return _Judged(open_labels(*places, run, heads, config.allow_incomplete))
    dataset = _open_split(*places, heads, config.allow_incomplete)
    where = f"{run} on {config.labels}"
    return _Judged(*restrict(dataset, config.split, heads[0].card.data.task, where))


def open_labels(
    bank: Path,
    labels: Path,
    split: str,
    run: Path,
    heads: Sequence[PickedHead],
    allow_incomplete: bool = False,
) -> Dataset:
    """The frames of a split, with labels of the task of some heads.

    Args:
        bank: Bank that the heads can read.
        labels: A label table, or the folder that `raffect prepare` wrote.
        split: Which frames.
        run: The heads' run, for errors.
        heads: Of one task.
        allow_incomplete: Take a bank that lacks planned frames.

    Raises:
        RaffectError: If the labels are of another task, or frames are missing.
    """
    theirs = heads[0].card.data.task
    dataset = _open_split(bank, labels, split, heads, allow_incomplete)
    ours = dataset.task
    if (ours.kind, ours.outputs) != (theirs.kind, theirs.outputs):
        raise RaffectError(
            f"{labels}: its task {ours.name} has other outputs than the heads of "
            f"{run} ({_outputs(ours)} against {_outputs(theirs)}); judge heads on what both have, "
            "by name, with `raffect evaluate --classes common`"
        )
    for facts in (head.card.data.targets for head in heads):
        if facts is not None and facts.dim != dataset.num_outputs:
            raise RaffectError(
                f"{labels}: its targets are of {dataset.num_outputs} numbers, and the heads "
                f"of {run} give vectors of {facts.dim}; give targets of the same encoder"
            )
    return dataset


def _open_split(
    bank: Path, labels: Path, split: str, heads: Sequence[PickedHead], allow_incomplete: bool
) -> Dataset:
    """The frames of a split of the labels that have the name of the heads' task."""
    return open_dataset(
        bank,
        labels,
        heads[0].card.data.task.name,
        [split],
        allow_incomplete=allow_incomplete,
        around=read_windows(head.recipe.head for head in heads),
    )


def _outputs(task: Task) -> str:
    """The kind of a task and its first outputs, for an error message."""
    names = ", ".join(task.outputs[:_SHOWN_OUTPUTS])
    more = " ..." if len(task.outputs) > _SHOWN_OUTPUTS else ""
    return f"{task.kind}: {names}{more}"


def count_heads(
    dataset: Dataset,
    split: str,
    heads: Sequence[PickedHead],
    device: torch.device,
    columns: Sequence[int] | None = None,
) -> np.ndarray:
    """Statistics of each head and group of a split, shape (heads, groups, A, B).

    Args:
        dataset: The frames.
        split: Its split.
        heads: Of one task.
        device: Where to compute.
        columns: Numbers of the heads' outputs that are those of the dataset; all by default.
    """
    kind = dataset.loss_kind(device)

    def judge(batch: HeadBatch, samples: Samples, head: SavedHead) -> np.ndarray:
        # As in its own run; a classifier made of texts is judged on what its head never saw, too
        recipes = [] if dataset.targets is None else [head.card.recipe]
        return count(kind, batch, samples, left_out=kind.left_out(recipes), columns=columns)

    try:
        return np.concatenate(judge_each(dataset, split, heads, device, judge))
    except torch.OutOfMemoryError as error:
        size = len(dataset.splits[split])
        raise RaffectError(
            f"out of GPU memory with {size:,} frames; free the device, or use --device cpu"
        ) from error


def _describe(
    config: EvaluateConfig,
    judged: _Judged,
    heads: Sequence[PickedHead],
    statistics: np.ndarray,
) -> Evaluation:
    """Scores of each head and of each setting."""
    # Each head, with an interval over its videos or other groups
    dataset, common = judged.dataset, judged.common
    task, kind, cards = dataset.task, kind_of(dataset.task), [head.card for head in heads]
    evaluated = tuple(
        EvaluatedHead(
            folder=str(head.folder),
            id=head.card.id,
            recipe=head.recipe,
            incomplete=head.card.data.incomplete,
            trained_on=fingerprint_of(head.card.data),
            score=judge(found, task, kind, head.card.epoch),
        )
        for head, found in zip(heads, statistics, strict=True)
    )

    # All heads together, and what they are compared with
    by_group = not are_blocks(dataset.splits[config.split].groups)
    by_chance = kind.statistics_by_chance(statistics[0])[None]
    caveats = [*dataset.facts.caveats]
    caveats += [caveat for card in cards for caveat in card.data.trained_caveats]
    caveats += describe_other_samples(cards, dataset.facts.of_clips)
    caveats += [common.caveat(kind.parts)] if common and common.is_part else []
    return Evaluation(
        run=describe_run(),
        data=dataset.facts,
        split=config.split,
        snapshot=cards[0].snapshot,
        chance=kind.chance(statistics[0].sum(0), task),
        heads=evaluated,
        settings=_by_settings(evaluated, statistics, cards[0].snapshot, dataset, by_group),
        worst_by_chance=find_worst(by_chance, kind, task.outputs, by_group=by_group),
        common=common,
        caveats=tuple(dict.fromkeys(caveats)),
    )


def _by_settings(
    heads: Sequence[EvaluatedHead],
    statistics: np.ndarray,
    snapshot: Snapshot,
    dataset: Dataset,
    by_group: bool,
) -> tuple[SettingScores, ...]:
    """Scores of heads that differ in their seed alone, together."""
    # Groups, and the settings in which they differ
    kind, row_of = kind_of(dataset.task), {head.folder: row for row, head in enumerate(heads)}
    groups = group_by_settings(heads)
    names = varying(groups) or ["loss.alpha", "sam.rho"]

    def statistics_of(group: Sequence[EvaluatedHead]) -> list[np.ndarray]:
        return [statistics[row_of[head.folder]] for head in group]

    # Spread over seeds of each group, and its difference to plain ERM
    settings, baselines = [], Baselines(groups)
    for group in groups:
        counts, erm = statistics_of(group), baselines.beside(group)
        found = spread_of(
            [head.score.headline for head in group],
            [head.score.epoch for head in group],
            counts,
            kind,
            dataset.facts.group_name,
        )
        flat = group[0].recipe.settings
        settings.append(
            SettingScores(
                settings={name: flat[name] for name in names},
                scores={snapshot: found},
                erm=is_erm(group[0].recipe),
                against_erm=difference_of(counts, statistics_of(erm), kind) if erm else None,
                worst=find_worst(np.array(counts), kind, dataset.task.outputs, by_group=by_group),
            )
        )
    return tuple(settings)
