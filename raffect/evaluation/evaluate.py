"""`raffect evaluate`: score trained heads on a bank, on any split.

Scores have a spread over seeds and an interval, and stand beside the chance level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from raffect.bank.facts import DataFacts
from raffect.bank.format import Bank
from raffect.config import EvaluateConfig
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.evaluation.pick import find_heads
from raffect.heads.checkpoint import HeadCard, load_batch, read_card, require_encoder
from raffect.heads.fit import count
from raffect.heads.loss_kinds import loss_kind
from raffect.metrics.intervals import score_interval
from raffect.metrics.scores import Chance, JudgedScore, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import Provenance, describe_run
from raffect.recipe import Recipe
from raffect.runs.against_erm import Baselines, difference_of
from raffect.runs.data import Dataset, open_dataset, pick_device, read_rows
from raffect.runs.metrics_file import SettingScores, table
from raffect.runs.spread import (
    absent_lines,
    chance_text,
    group_by_settings,
    is_erm,
    settings_text,
    short,
    spread_of,
    varying,
)
from raffect.runs.tables import group_rows
from raffect.storage.atomic import require_writable, write_atomic
from raffect.storage.records import Record
from raffect.storage.tables import write_csv

_SHOWN_OUTPUTS = 4


@dataclass(frozen=True, kw_only=True)
class EvaluatedHead(Record):
    """One head with its score.

    Attributes:
        folder: Its folder.
        id: Its name in its run.
        recipe: Its settings.
        incomplete: What was missing in the bank that it was trained on; empty if nothing.
        score: On the frames of the evaluation.
    """

    folder: str
    id: str
    recipe: Recipe
    incomplete: str = ""
    score: JudgedScore


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """The results of `raffect evaluate`: its ``metrics.json``.

    Attributes:
        format: Of this file.
        run: Versions, commit, command and machine.
        data: What the heads were scored on.
        split: Its split.
        snapshot: Which one of each head.
        chance: Scores of predictors that never look at a face.
        heads: One by one.
        settings: Together by settings, with spread over seeds.
        caveats: Of heads and data: what the scores must not be taken for.
    """

    format: Literal[2] = 2
    run: Provenance
    data: DataFacts
    split: str
    snapshot: Snapshot
    chance: Chance
    heads: tuple[EvaluatedHead, ...]
    settings: tuple[SettingScores, ...]
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """An evaluation, and the statistics that it was computed from.

    Attributes:
        evaluation: All scores.
        statistics: Of each head and group, shape (heads, groups, A, B).
        notes: What was done with heads that diverged.
        out: Folder that it was written to; None if it was not written.
    """

    evaluation: Evaluation
    statistics: np.ndarray
    notes: tuple[str, ...] = ()
    out: Path | None = None

    @property
    def heads(self) -> tuple[EvaluatedHead, ...]:
        """The heads, one by one."""
        return self.evaluation.heads

    @property
    def settings(self) -> tuple[SettingScores, ...]:
        """The heads together by settings."""
        return self.evaluation.settings

    def to_pandas(self) -> Any:
        """One row a head: its settings and scores; a pandas DataFrame."""
        return table(
            [
                {"id": head.id, "folder": head.folder, "epoch": head.score.epoch}
                | head.recipe.settings
                | head.score.metrics
                | dict(zip(("low", "high"), head.score.interval_95 or (None, None), strict=True))
                for head in self.heads
            ]
        )

    def lines(self) -> list[str]:
        """The result as lines of text."""
        found, facts = self.evaluation, self.evaluation.data
        split, kind = facts.splits[found.split], kind_of(facts.task)
        frames = f"{split.frames:,} frames of {split.groups} {facts.group_name}"
        lines = [
            *self.notes,
            *facts.missing_lines(),
            f"{facts.task.name.upper()} {found.split}: {frames}; "
            f"snapshot {found.snapshot} of {len(found.heads)} head(s)",
        ]

        # Scores, and what they must not be taken for
        for setting in found.settings:
            name, score = settings_text(setting.settings), setting.scores[found.snapshot].text()
            lines.append(f"{name}: {kind.title} {score}{setting.difference}{facts.incomplete_mark}")
        lines.append(f"chance: {chance_text(found.chance)}")
        means = {
            settings_text(setting.settings): setting.scores[found.snapshot].mean
            for setting in found.settings
        }
        lines += absent_lines(found.heads[0].score, means, kind, found.split)
        if found.split == "train":
            lines.append("these frames were trained on: this is no measure of how well a head does")
        elif found.snapshot == "best":
            trained = "the validation split of the training run"
            lines.append(f"epoch chosen on {trained}: optimistic there")

        # Scores of each output, for one setting alone, and remaining caveats
        if len(found.settings) == 1:
            lines += _output_lines(self.statistics, facts.task)
        lacking = sorted({head.incomplete for head in found.heads if head.incomplete})
        lines += [f"trained on an incomplete bank, which lacked {what}" for what in lacking]
        lines += [f"caveat: {caveat}" for caveat in found.caveats]
        return [*lines, *([f"wrote {self.out}: metrics.json, per_group.csv"] if self.out else [])]


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Score every head of a run, or one head.

    Raises:
        RaffectError: If there is no head, or it does not go with the bank.
    """
    if config.out is not None and (config.out / "env.json").exists():
        raise RaffectError(
            f"--out {config.out}: is a run folder, whose own metrics.json would be overwritten; "
            "name another one"
        )
    folders, cards, notes = _pick_heads(config)
    dataset = _open(config, folders, cards)
    if config.out is not None:
        require_writable(config.out)
    statistics = _count(config, dataset, folders)
    evaluation = _describe(config, dataset, folders, cards, statistics)
    result = EvaluateResult(
        evaluation=evaluation, statistics=statistics, notes=tuple(notes), out=config.out
    )
    if config.out is not None:
        _write(config.out, result, dataset.splits[config.split].groups)
    return result


def _pick_heads(config: EvaluateConfig) -> tuple[list[Path], list[HeadCard], list[str]]:
    """Folders and cards of the heads to score, without those that diverged, and notes on these.

    A head that was given alone is scored even if it diverged, at its last sound epoch.

    Raises:
        RaffectError: If no head is left.
    """
    found = find_heads(config.run, config.epoch)
    folders, cards, notes = [], [], []
    for folder in found:
        card = read_card(folder)
        if card.status != "done" and len(found) > 1:
            notes.append(f"left out: {folder}, which diverged")
            continue
        if card.status != "done":
            notes.append(f"note: {folder} diverged; its last sound epoch is judged")
        folders.append(folder)
        cards.append(card)
    if not folders:
        raise RaffectError(
            f"{config.run}: every head diverged; train again with a smaller optim.lr or sam.rho"
        )
    return folders, cards, notes


def _open(config: EvaluateConfig, folders: Sequence[Path], cards: Sequence[HeadCard]) -> Dataset:
    """The frames to score the heads on.

    Raises:
        RaffectError: If the heads are of several tasks, of another one than the labels, or of
            another encoder than the bank.
    """
    # One task
    tasks = list(dict.fromkeys(card.data.task for card in cards))
    if len(tasks) > 1:
        names = " and ".join(task.name for task in tasks)
        raise RaffectError(
            f"{config.run}: heads of {names}; give the folder of one head, "
            f"RUN/weights/<head>/{config.epoch}"
        )

    # One encoder
    identity = Bank(config.bank).require().read_identity()
    if identity is None:
        raise RaffectError(f"{config.bank}: nothing extracted yet; run `raffect extract` on it")
    for folder, card in zip(folders, cards, strict=True):
        require_encoder(card, identity, folder, config.bank)

    # Labels of that task
    dataset = open_dataset(
        config.bank,
        config.labels,
        tasks[0].name,
        [config.split],
        allow_incomplete=config.allow_incomplete,
    )
    ours, theirs = dataset.task, tasks[0]
    if (ours.kind, ours.outputs) != (theirs.kind, theirs.outputs):
        raise RaffectError(
            f"{config.labels}: its task {ours.name} has other outputs than the heads of "
            f"{config.run} ({_outputs(ours)} against {_outputs(theirs)})"
        )
    return dataset


def _outputs(task: Task) -> str:
    """The kind of a task and its first outputs, for an error message."""
    names = ", ".join(task.outputs[:_SHOWN_OUTPUTS])
    more = " ..." if len(task.outputs) > _SHOWN_OUTPUTS else ""
    return f"{task.kind}: {names}{more}"


def _count(config: EvaluateConfig, dataset: Dataset, folders: Sequence[Path]) -> np.ndarray:
    """Statistics of each head and group, shape (heads, groups, A, B)."""
    index, device = dataset.splits[config.split], pick_device(config.device)
    loss = loss_kind(dataset.task)
    try:
        rows = read_rows(index, dataset.task, device)
        return np.concatenate(
            [count(loss, load_batch(folder, device)[0], rows) for folder in folders]
        )
    except torch.OutOfMemoryError as error:
        raise RaffectError(
            f"out of GPU memory with {len(index):,} frames; free the device, or use --device cpu"
        ) from error


def _describe(
    config: EvaluateConfig,
    dataset: Dataset,
    folders: Sequence[Path],
    cards: Sequence[HeadCard],
    statistics: np.ndarray,
) -> Evaluation:
    """Scores of each head and of each setting."""
    # Each head, with an interval over its videos or other groups
    task, kind = dataset.task, kind_of(dataset.task)
    heads = tuple(
        EvaluatedHead(
            folder=str(folder),
            id=card.id,
            recipe=card.recipe,
            incomplete=card.data.incomplete,
            score=JudgedScore(
                **vars(kind.score(found.sum(0), task)),
                epoch=card.epoch,
                interval_95=score_interval(found, kind),
            ),
        )
        for folder, card, found in zip(folders, cards, statistics, strict=True)
    )

    # All heads together
    known = (dataset.facts, *(card.data for card in cards))
    caveats = dict.fromkeys(caveat for facts in known for caveat in facts.caveats)
    return Evaluation(
        run=describe_run(),
        data=dataset.facts,
        split=config.split,
        snapshot=cards[0].snapshot,
        chance=kind.chance(statistics[0].sum(0), task),
        heads=heads,
        settings=_by_settings(heads, statistics, cards[0].snapshot, dataset),
        caveats=tuple(caveats),
    )


def _by_settings(
    heads: Sequence[EvaluatedHead], statistics: np.ndarray, snapshot: Snapshot, dataset: Dataset
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
            )
        )
    return tuple(settings)


def _output_lines(statistics: np.ndarray, task: Task) -> list[str]:
    """A line for each class, label or value, over all heads together."""
    kind = kind_of(task)
    width = max(len(name) for name in task.outputs)
    lines = [f"{'':{width}} " + " ".join(f"{title:>9}" for title, _ in kind.columns)]
    for name, part in kind.score(statistics.sum((0, 1)), task).outputs.items():
        *scores, frames = (part[key] for _, key in kind.columns)
        cells = " ".join(f"{short(value):>9}" for value in scores)
        lines.append(f"{name:{width}} {cells} {int(frames) // len(statistics):>9,}")
    return lines


def _write(out: Path, result: EvaluateResult, groups: Sequence[str]) -> None:
    """metrics.json and per_group.csv."""
    write_atomic(out / "metrics.json", result.evaluation.to_bytes())
    kind = kind_of(result.evaluation.data.task)
    rows = [
        {"id": head.id, **row}
        for head, found in zip(result.heads, result.statistics, strict=True)
        for row in group_rows(kind, found, groups)
    ]
    write_csv(out / "per_group.csv", rows)
