"""Scores of several heads together: mean, spread over seeds, interval over videos, each named for how its epoch was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raffect.data import affwild2
from raffect.data.tasks import Task
from raffect.metrics.intervals import bootstrap_videos
from raffect.metrics.kinds import Kind, kind_of
from raffect.stages.space import PLAIN_ERM

Record = Mapping[str, Any]

RUNNING, STOPPED = "running", "stopped"
"""Status of a head that a scheduler may still stop, and of one that it has stopped; the others are "done" and "diverged"."""

NAMES = {"last": "val-last", "best": "val-best", "chosen": "val-folds"}
"""What a snapshot's score on the validation split is called."""

CHOICE = {
    "last": "last epoch, nothing was chosen on validation: the headline",
    "best": "epoch chosen on the validation split itself: optimistic, as the paper probably did",
    "chosen": "epoch chosen on folds of the training split",
}
"""How the epoch behind a score was chosen."""


@dataclass(frozen=True)
class Spread:
    """Headline score of heads that differ in their seed alone.

    Attributes:
        mean: Over heads.
        sd: Standard deviation over heads (n - 1); None for one head.
        interval: 95 % interval of the mean when validation videos (or other groups) are drawn again.
        heads: How many.
        epochs: Epoch of each.
        groups: What the interval draws: videos, subjects or pictures.
    """

    mean: float
    sd: float | None
    interval: tuple[float, float] | None
    heads: int
    epochs: tuple[int, ...]
    groups: str = "videos"

    def text(self) -> str:
        """``.412 ± .005 over 5 seeds, [.380, .440] over videos``."""
        over_seeds = f" ± {short(self.sd)} over {self.heads} seeds" if self.sd is not None else " (one seed)"
        return f"{short(self.mean)}{over_seeds}" + (f", [{short(self.interval[0])}, {short(self.interval[1])}] over {self.groups}" if self.interval else "")


def spread(records: Sequence[Record], name: str) -> Spread | None:
    """Mean and spread of a score over records; None where none has it."""
    having = [record for record in records if name in record["scores"]]
    if not having:
        return None
    kind = kind_of_record(having[0])
    values = [record["scores"][name][kind.key] for record in having]
    counts = [record["videos"][name] for record in having if name in record["videos"]]
    interval = bootstrap_videos(np.array(counts), kind, seed=0) if len(counts) == len(having) else None
    return Spread(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        interval,
        len(values),
        tuple(r["scores"][name]["epoch"] for r in having),
        having[0].get("groups", "videos"),
    )


def task_of(record: Record) -> Task:
    """The task of a head's record; one of before November 2026 has its name alone."""
    return affwild2.read_task(record.get("task", record["recipe"]["task"]), f"record of head {record.get('id', '?')}")


def kind_of_record(record: Record) -> Kind:
    """The kind of a head's task."""
    return kind_of(task_of(record))


def group_by_settings(records: Sequence[Record]) -> list[list[Record]]:
    """Records that differ in their seed alone, together, in the order of their settings."""
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        key = tuple((name, value) for name, value in record["recipe"].items() if name != "seed")
        groups.setdefault(key, []).append(record)
    return [groups[key] for key in sorted(groups, key=lambda key: [(str(type(value)), value) for _, value in key])]


def settings_text(settings: Mapping[str, Any]) -> str:
    """``alpha 0.3 rho 0.05``."""
    return " ".join(f"{name.rpartition('.')[2]} {value:g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}" for name, value in settings.items())


def varying(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Names of the settings, but for the seed, in which groups of one setting each differ."""
    recipes = [group[0]["recipe"] for group in groups]
    return [name for name in recipes[0] if name != "seed" and len({str(recipe[name]) for recipe in recipes}) > 1]


def finished(records: Sequence[Record]) -> list[Record]:
    """Heads trained to the end on the whole training split; neither folds, nor what diverged or was stopped early."""
    return [record for record in records if record["fold"] is None and record["status"] == "done"]


def score_lines(records: Sequence[Record], stamp: str, mark: str = "") -> list[str]:
    """Scores of heads of one setting, for people; ``mark`` follows each."""
    task, title, trivial = task_of(records[0]).name.upper(), kind_of_record(records[0]).title, records[0]["trivial"]
    lines = []
    for name, label in NAMES.items():
        if found := spread(records, name):
            epochs = sorted(set(found.epochs))
            lines.append(f"{task} {label:9} {title} {found.text()}; {CHOICE[name]} (epoch {', '.join(map(str, epochs[:6]))}{' ...' if len(epochs) > 6 else ''}){mark}")
    lines.append(f"{task} trivial   {title} {trivial_text(trivial, kind_of_record(records[0]))}")
    return lines + ([f"stamp: {stamp}"] if stamp else [])


def trivial_text(trivial: Mapping[str, Any], kind: Kind) -> str:
    """``.069 (always Other); .125 guessed by the class shares``."""
    guess = f"; {short(trivial['guess'])} guessed by the class shares" if "guess" in trivial else ""
    return f"{short(trivial[kind.key])} ({trivial['answer']}){guess}"


def is_erm(record: Record) -> bool:
    """Whether a head is plain empirical risk minimisation, without CVaR, SAM, class weights or logit adjustment."""
    return all(record["recipe"][name] == value for name, value in PLAIN_ERM.items())


def how_chosen(name: str, stopped: bool) -> str:
    """How the epoch, and under a scheduler the head, behind a score was chosen."""
    return "heads that ASHA kept by their score on the validation split: optimistic" if stopped and name == "last" else CHOICE[name]


def short(value: float | None) -> str:
    """``0.4123`` -> ``.412``, as the field writes scores."""
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1) if value < 1 else f"{value:.3f}"


def choose_epoch(records: Sequence[Record]) -> tuple[int, float]:
    """Epoch with the highest headline score on held-out folds, mean over folds and seeds; the first of equals.

    Args:
        records: All folds of heads of one setting; one that diverged counts as the worst there is in every epoch.

    Returns:
        The 1-based epoch and its mean score; 0 and 0 where no fold was trained to the end.
    """
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return 0, 0.0
    kind = kind_of_record(done[0])
    curves = np.full((len(records), max(len(record["history"]["lr"]) for record in records)), kind.lowest)
    for row, record in zip(curves, records, strict=True):
        if record["status"] == "done":
            row[:] = record["history"][f"val_{kind.key}"]
    mean = curves.mean(0)
    return int(mean.argmax()) + 1, float(mean.max())


def select_on_folds(groups: Sequence[Sequence[Record]], records: Sequence[Record]) -> Sequence[Record] | None:
    """The group whose settings score highest on held-out folds, at their own best epoch; None without folds.

    Args:
        groups: Of `group_by_settings`.
        records: All records, those of folds among them.
    """
    folds = [record for record in records if record["fold"] is not None]

    def held_out(group: Sequence[Record]) -> float:
        recipes = [record["recipe"] for record in group]
        epoch, score = choose_epoch([record for record in folds if record["recipe"] in recipes])
        return score if epoch else -math.inf

    return max(groups, key=held_out) if folds else None
