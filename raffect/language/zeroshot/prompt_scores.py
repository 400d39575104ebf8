"""Scores of prompt sets over the outputs that have prompts, of features and of trained heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from raffect.bank.windows import Window
from raffect.datasets.tasks import Task
from raffect.language.zeroshot.judging import Judged
from raffect.metrics.class_kinds import Uar, War
from raffect.metrics.intervals import Headline
from raffect.metrics.recalls import only
from raffect.metrics.task_kinds import Kind, Multiclass, kind_of
from raffect.runs.against_erm import Difference, difference_of
from raffect.runs.records import HeadRecord
from raffect.runs.spread import group_by_settings, headline_text
from raffect.runs.windows import window_of
from raffect.storage.records import Record

TITLES = {kind.key: kind.title for kind in (Multiclass, Uar, War)}
"""Scores by their names in files, as text."""


@dataclass(frozen=True, kw_only=True)
class PromptScores(Record):
    """Scores of one prompt set on the validation split, over the outputs that it describes.

    Attributes:
        prompts: Name of the set.
        ensemble: How its prompts go together.
        head: Id of its head in the run folder; of several seeds the first.
        trained: Run that trained the heads which it is compared through; empty for features.
        leave_out: Class that these heads never saw; empty for none.
        window: Features of a sample.
        stride: Frames between them.
        heads: How many seeds; scores are their means.
        macro_f1: Mean F1 over the outputs, present or not.
        uar: Mean recall of the classes that occur; None for labels.
        war: Accuracy; None for labels.
        over_all: Macro F1 over all outputs of the task, as evaluate and report have it.
        held_out: Macro F1 over all outputs on the folds of the training split together; None
            without.
        is_chosen: Whether `held_out` is the highest of the same heads, or of features.
        gains: How much higher macro_f1, uar and war are than those of the same features without a
            head, against the same texts; empty for features themselves.
        unknown: Words of its prompts that the weights never saw.
    """

    prompts: str
    ensemble: str
    head: str
    trained: str = ""
    leave_out: str = ""
    window: int = 1
    stride: int = 1
    heads: int = 1
    macro_f1: Headline
    uar: Headline | None
    war: Headline | None
    over_all: float
    held_out: float | None
    is_chosen: bool
    gains: dict[str, Difference] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def text(self) -> str:
        """``macro F1 .412 [.380, .440]  UAR ...``."""
        found = {title: getattr(self, name) for name, title in TITLES.items()}
        return "  ".join(f"{title} {headline_text(one)}" for title, one in found.items() if one)

    def gains_text(self) -> str:
        """``macro F1 +.012 [-.003, +.027]  UAR ...``."""
        return "  ".join(f"{TITLES[name]} {gain.text()}" for name, gain in self.gains.items())

    def row(self) -> dict[str, Any]:
        """One row of zeroshot.csv."""
        row: dict[str, Any] = {
            "prompts": self.prompts,
            "ensemble": self.ensemble,
            "trained": self.trained,
            "leave_out": self.leave_out,
            "window": self.window,
            "chosen_on_folds": self.is_chosen,
            "held_out_macro_f1": self.held_out,
            "macro_f1_over_all": self.over_all,
        }
        for name in TITLES:
            found, gain = getattr(self, name), self.gains.get(name)
            low, high = (found.interval_95 if found else None) or (None, None)
            row |= {name: found and found.score, f"{name}.low": low, f"{name}.high": high}
            row[f"{name}.sd"] = found and found.sd
            low, high = (gain.interval_95 if gain else None) or (None, None)
            row |= {f"{name}.gain": gain and gain.mean}
            row |= {f"{name}.gain.low": low, f"{name}.gain.high": high}
        return row | {"head": self.head}


class Settings(NamedTuple):
    """In what scores differ, but for the seed."""

    prompts: str
    ensemble: str
    trained: str
    leave_out: str
    window: Window

    @classmethod
    def of(cls, record: HeadRecord) -> Settings:
        """Those of a head."""
        text, left_out = record.recipe.text, record.recipe.loss.leave_out
        return cls(text.prompts, text.ensemble, text.head, left_out, window_of(record.recipe.head))

    @property
    def plain(self) -> Settings:
        """Those of the same features against the same texts without a head."""
        return self._replace(trained="", leave_out="")


Parts = Mapping[Settings, np.ndarray]
"""Statistics of the described outputs of all heads of each setting, (heads, groups, A, B)."""


def score_prompts(
    judged: Judged,
    task: Task,
    described: Sequence[str],
    unknown: Mapping[str, Sequence[str]],
) -> tuple[list[PromptScores], dict[str, np.ndarray]]:
    """Scores of every setting.

    Args:
        judged: All heads.
        task: Theirs.
        described: Outputs that are judged: those with prompts, or under a rule for Other all.
        unknown: Words that the weights never saw, by prompt set.

    Returns:
        The scores in the order of the heads, and by `PromptScores.head` the statistics of the
        described outputs of all its heads, shape (heads, groups, A, B).
    """
    kind = kind_of(task)
    kinds = [kind, Uar(), War()] if isinstance(kind, Multiclass) else [kind]
    groups = {Settings.of(heads[0]): heads for heads in group_by_settings(judged.records)}
    parts = _describe_parts(groups, judged, task, described)
    held_out = {one: _held_out(heads, judged, kind) for one, heads in groups.items()}
    chosen = _choose(held_out) if judged.on_folds else set()
    scores = []
    for settings in dict.fromkeys(map(Settings.of, judged.records)):
        heads, found = groups[settings], _one(parts[settings])
        scored = {one.key: Headline.of(found, one) for one in kinds}
        scores.append(
            PromptScores(
                prompts=settings.prompts,
                ensemble=settings.ensemble,
                head=heads[0].id,
                trained=settings.trained,
                leave_out=settings.leave_out,
                window=settings.window.length,
                stride=settings.window.stride,
                heads=len(heads),
                macro_f1=scored["macro_f1"],
                uar=scored.get("uar"),
                war=scored.get("war"),
                over_all=float(np.mean([head.scores["last"].headline for head in heads])),
                held_out=held_out[settings],
                is_chosen=settings in chosen,
                gains=_gains(settings, parts, kinds),
                unknown=tuple(unknown.get(settings.prompts, ())),
            )
        )
    return scores, {groups[settings][0].id: found for settings, found in parts.items()}


def _describe_parts(
    groups: Mapping[Settings, Sequence[HeadRecord]],
    judged: Judged,
    task: Task,
    described: Sequence[str],
) -> Parts:
    """Statistics of the described classes alone; labels all have some prompts."""
    kept = [k for k, name in enumerate(task.outputs) if name in described]
    parts = {}
    for settings, heads in groups.items():
        found = np.stack([judged.statistics[record.id] for record in heads])
        parts[settings] = only(found, kept) if task.kind == "multiclass" else found
    return parts


def _gains(settings: Settings, parts: Parts, kinds: Sequence[Kind]) -> dict[str, Difference]:
    """How much higher each score is than that of the same features without a head."""
    if not settings.trained:
        return {}
    through, plain = list(parts[settings]), list(parts[settings.plain])
    pairs = {kind.key: difference_of(through, plain, kind) for kind in kinds}
    return {name: gain for name, gain in pairs.items() if gain is not None}


def _one(statistics: np.ndarray) -> np.ndarray:
    """Statistics of one head without the axis of heads: it has no spread over seeds."""
    return statistics[0] if len(statistics) == 1 else statistics


def _held_out(heads: Sequence[HeadRecord], judged: Judged, kind: Kind) -> float | None:
    """Headline score on all folds together, mean over seeds."""
    found = [judged.on_folds[head.id] for head in heads if head.id in judged.on_folds]
    return float(np.mean([kind.headline(one) for one in found])) if found else None


def _choose(held_out: Mapping[Settings, float | None]) -> set[Settings]:
    """Of each run's heads, and of features, the setting with the highest score on folds.

    Of equals the first by name, as `raffect.runs.cross_validation.select_by_cv` has it.
    """
    best: dict[tuple, Settings] = {}
    for settings in sorted(held_out):
        beside = settings[2:]
        score, other = held_out[settings], best.get(beside)
        if other is None or (score or 0) > (held_out[other] or 0):
            best[beside] = settings
    return set(best.values())
