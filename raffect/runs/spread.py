"""Scores of several heads together: mean, spread over seeds, interval over videos.

Each is named for how its epoch was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from raffect.metrics.intervals import Headline, Interval, score_interval
from raffect.metrics.scores import Chance, Score, Snapshot
from raffect.metrics.task_kinds import Kind
from raffect.recipe import PLAIN_ERM, Recipe
from raffect.runs.folder import RunFolder
from raffect.runs.records import HeadRecord
from raffect.storage.records import Record

# Words that go with a score wherever it is printed

NAMES: dict[Snapshot, str] = {"last": "val-last", "best": "val-best", "cv": "val-cv"}
"""What a snapshot's score on the validation split is called."""

CHOICE: dict[Snapshot, str] = {
    "last": "last epoch, nothing was chosen on validation: the headline",
    "best": "epoch chosen on the validation split itself: optimistic, as the paper probably did",
    "cv": "epoch cross-validated on folds of the training split",
}
"""How the epoch behind a score was chosen."""


LEAVE_OUT = "loss.leave_out"
"""The setting that names a class which a head never sees."""


class HasRecipe(Protocol):
    """Anything that has one recipe."""

    @property
    def recipe(self) -> Recipe:
        """Its settings."""
        ...


T = TypeVar("T", bound=HasRecipe)


@dataclass(frozen=True, kw_only=True)
class Spread(Record):
    """Headline score of heads that differ in their seed alone.

    Attributes:
        mean: Over heads.
        sd: Standard deviation over heads (n - 1); None for one head.
        interval_95: Of the mean over other videos (or groups), see `raffect.metrics.intervals`;
            None without their statistics or with one video.
        heads: How many.
        epochs: Epoch of each.
        group_name: What the interval is over: videos, subjects or pictures.
        over: What heads differ in: ``seeds``, or ``heads without one class each``.
    """

    mean: float
    sd: float | None
    interval_95: Interval | None
    heads: int
    epochs: tuple[int, ...]
    group_name: str = "videos"
    over: str = "seeds"

    def text(self) -> str:
        """``.412 ± .005 over 5 seeds, [.380, .440] over videos``."""
        over_seeds = f" ± {short(self.sd)} over {self.heads} {self.over}"
        mean = short(self.mean) + (" (one seed)" if self.sd is None else over_seeds)
        if self.interval_95 is None:
            return mean
        low, high = self.interval_95
        return f"{mean}, [{short(low)}, {short(high)}] over {self.group_name}"


def spread_of(
    scores: Sequence[float],
    epochs: Sequence[int],
    statistics: Sequence[np.ndarray | None],
    kind: Kind,
    group_name: str,
    over: str = "seeds",
) -> Spread:
    """Mean and spread of the headline scores of heads that differ in their seed alone.

    Args:
        scores: One a head.
        epochs: Likewise.
        statistics: By group behind each score, shape (groups, A, B); without all of them there is
            no interval.
        kind: Of the task.
        group_name: What the groups are called.
        over: What heads differ in.
    """
    # An interval over some of the heads would not be that of their mean.
    counts = [found for found in statistics if found is not None]
    whole = len(counts) == len(scores)
    return Spread(
        mean=float(np.mean(scores)),
        sd=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        interval_95=score_interval(np.array(counts), kind) if whole else None,
        heads=len(scores),
        epochs=tuple(epochs),
        group_name=group_name,
        over=over,
    )


def spread(folder: RunFolder, records: Sequence[HeadRecord], snapshot: Snapshot) -> Spread | None:
    """Mean and spread of a snapshot's score over heads of a run; None if no head has it."""
    having = [record for record in records if snapshot in record.scores]
    if not having:
        return None
    scores = [record.scores[snapshot] for record in having]
    statistics = [folder.statistics_of(record, snapshot) for record in having]
    first, several = having[0], len({record.recipe.loss.leave_out for record in having}) > 1
    return spread_of(
        [score.headline for score in scores],
        [score.epoch for score in scores],
        statistics,
        first.kind,
        first.group_name,
        "heads without one class each" if several else "seeds",
    )


def mean_score(heads: Sequence[HeadRecord], snapshot: Snapshot) -> float:
    """Mean headline score of a snapshot that every head has; no interval, so at no cost."""
    return float(np.mean([record.scores[snapshot].headline for record in heads]))


def mean_and_sd(scores: Sequence[float]) -> str:
    """``.412 ± .005``, or ``.412`` of one seed."""
    sd = f" ± {short(float(np.std(scores, ddof=1)))}" if len(scores) > 1 else ""
    return f"{short(float(np.mean(scores)))}{sd}"


def group_by_settings(items: Sequence[T]) -> list[list[T]]:
    """Groups of items that differ in their seed alone, in the order of their settings."""
    groups: dict[tuple, list[T]] = {}
    for item in items:
        groups.setdefault(settings_key(item), []).append(item)
    return [groups[key] for key in sorted(groups, key=_order)]


def settings_key(item: HasRecipe) -> tuple[tuple[str, Any], ...]:
    """Settings by name without the seed: equal for items of one group."""
    return tuple((name, value) for name, value in item.recipe.settings.items() if name != "seed")


def _order(key: tuple) -> list[tuple[str, Any]]:
    """A key to sort settings by: values of one name may be of two types, which do not compare."""
    return [(str(type(value)), value) for _, value in key]


def settings_text(settings: Mapping[str, Any]) -> str:
    """``alpha 0.3 rho 0.05``."""
    parts = [(name.rpartition(".")[2], value_text(value)) for name, value in settings.items()]
    return " ".join(f"{name} {text}" for name, text in parts)


def value_text(value: Any) -> str:
    """A setting's value without needless digits."""
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def varying(groups: Sequence[Sequence[HasRecipe]]) -> list[str]:
    """Names of the settings, but for the seed, in which groups of one setting each differ.

    Where trained heads are compared with texts, and features stand beside them, a setting that
    follows from the run that trained them is left out: the run names it.
    """
    settings = [group[0].recipe.settings for group in groups]
    runs = {found["text.head"] for found in settings}
    found = []
    for name in settings[0]:
        pairs = {(one["text.head"], str(one[name])) for one in settings}
        differs = len({value for _, value in pairs}) > 1
        if name != "seed" and differs and (name == "text.head" or len(pairs) > len(runs)):
            found.append(name)
    return found


def finished(records: Sequence[HeadRecord]) -> list[HeadRecord]:
    """Heads trained to the end on the whole training split.

    Heads of folds are left out, and those that diverged or were stopped early.
    """
    return [record for record in records if record.fold is None and record.status == "done"]


def chance_text(chance: Chance) -> str:
    """``.125 (guesses by the class shares), .069 (always Other)``: the chance level first."""
    majority = f"{short(chance.majority)} ({chance.answer})"
    if chance.prior is None:
        return majority
    return f"{short(chance.prior)} (guesses by the class shares), {majority}"


def is_erm(recipe: Recipe) -> bool:
    """Whether a recipe is plain empirical risk minimisation.

    That is without CVaR, SAM, class weights and logit adjustment, and trained at all.
    """
    settings = recipe.settings
    return not recipe.text.prompts and all(
        settings[name] == value for name, value in PLAIN_ERM.items()
    )


def unseen_classes(items: Sequence[HasRecipe]) -> str:
    """Names of the classes that no score of some heads counts, since they leave them out.

    Heads that are compared with texts are judged on all classes.
    """
    own = [item.recipe.loss.leave_out for item in items if not item.recipe.text.prompts]
    return ", ".join(filter(None, dict.fromkeys(own)))


def absent_lines(score: Score, means: Mapping[str, float], kind: Kind, split: str) -> list[str]:
    """A line that names outputs which the split lacks, with the scores over the others.

    Args:
        score: Of any head on the split.
        means: Headline scores by name.
        kind: Of the task.
        split: Its name.

    Returns:
        Nothing if the split has them all.
    """
    if not score.absent:
        return []
    names = f"absent from {split}: {', '.join(score.absent)}"
    if not kind.counts_absent:
        return [f"{names}; left out of {kind.title}"]
    present = len(score.outputs) - len(score.absent)
    others = ", ".join(f"{name} {short(score.over_present(mean))}" for name, mean in means.items())
    return [
        f"{names}; counts 0 in {kind.title}; over the {present} {kind.parts} that occur: {others}"
    ]


def how_chosen(snapshot: Snapshot, stopped: bool) -> str:
    """How the epoch, and under a scheduler the head, behind a score was chosen."""
    if stopped and snapshot == "last":
        return "heads that ASHA kept by their score on the validation split: optimistic"
    return CHOICE[snapshot]


def short(value: float | None) -> str:
    """``0.4123`` -> ``.412``, as the field writes scores."""
    if value is None:
        return "-"
    # A score of 1 keeps its digit before the point.
    return f"{value:.3f}".replace("0.", ".", 1) if value < 1 else f"{value:.3f}"


def headline_text(found: Headline) -> str:
    """``.412 ± .005 [.380, .440]``: spread over seeds and interval as far as there are any."""
    ends = ", ".join(map(short, found.interval_95 or ()))
    sd = f" ± {short(found.sd)}" if found.sd is not None else ""
    return f"{short(found.score)}{sd}" + (f" [{ends}]" if ends else "")


def output_lines(score: Score, kind: Kind, heads: int = 1) -> list[str]:
    """A line for each class, label or value, of ``heads`` heads that saw the same frames."""
    width = max(len(name) for name in score.outputs)
    lines = [f"{'':{width}} " + " ".join(f"{title:>9}" for title, _ in kind.columns)]
    for name, part in score.outputs.items():
        *values, frames = (part[key] for _, key in kind.columns)
        cells = " ".join(f"{short(value):>9}" for value in values)
        lines.append(f"{name:{width}} {cells} {int(frames) // heads:>9,}")
    return lines


def signed(value: float) -> str:
    """``0.0123`` -> ``+.012``."""
    return f"{value:+.3f}".replace("0.", ".", 1)
