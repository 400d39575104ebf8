"""Decision rules for a table of predictions: those that it was made with, or others afterwards.

A table holds probabilities behind decisions: heads averaged, frames smoothed. Other rules can be
applied to it where they average the same heads alike, and where it has their windows, or none yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from raffect.errors import require
from raffect.predictions.rules import DecisionRules, plain_rules, read_rules
from raffect.predictions.smoothing import timeline


def choose_for_table(
    made_with: Sequence[DecisionRules], postprocess: str, table: Path
) -> tuple[list[DecisionRules], list[str]]:
    """The rules by which some tasks of a table are decided.

    Args:
        made_with: The rules of these tasks that the table was made with.
        postprocess: ``auto`` for these, ``none`` for plain ones, or a file of rules, which counts
            for its own task alone; others have ``auto``.
        table: The table, for errors.

    Returns:
        The rules, and a line each that says which these are.

    Raises:
        RaffectError: If a file of rules is missing, damaged or for another task, or the
            probabilities of the table are not those that the rules decide on.
    """
    named = read_rules(Path(postprocess)) if postprocess not in ("auto", "none") else None
    names = [one.task.name for one in made_with]
    require(
        named is None or named.task.name in names,
        f"--postprocess {postprocess}: rules for {named and named.task.name}, and the entry is of "
        f"{' and '.join(names)}; name rules for one of these, auto or none",
    )
    rules, notes = [], []
    for one in made_with:
        chosen, source = one, f"decision rules of {table}"
        if named is not None and named.task.name == one.task.name:
            chosen, source = named, f"decision rules of {postprocess}"
        elif postprocess == "none":
            equal = tuple(replace(head, weight=1.0) for head in one.heads)
            chosen = plain_rules(one.task, equal)
        _require_same_scores(chosen, one, f"--postprocess {postprocess}: {table}")
        rules.append(chosen)
        notes.append(f"{one.task.name.upper()}: {_describe(chosen, source)}")
    return rules, notes


def smooth_anew(
    scores: np.ndarray,
    key: np.ndarray,
    rules: Sequence[DecisionRules],
    had: Sequence[DecisionRules],
) -> np.ndarray:
    """Scores with the windows of rules that the table did not have.

    Args:
        scores: Of all tasks side by side, shape (N, C).
        key: ``video << 32 | frame``, ascending, shape (N,).
        rules: Of each task, in the order of the columns.
        had: Those that the table was made with.
    """
    parts, start = [], 0
    for one, before in zip(rules, had, strict=True):
        part = scores[:, start : start + len(one.task.outputs)]
        start += part.shape[1]
        if one.windows != before.windows:
            part = one.smooth(part, timeline(key >> 32, key & 0xFFFFFFFF, max(one.windows)))
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _require_same_scores(wanted: DecisionRules, had: DecisionRules, where: str) -> None:
    """Refuse rules for other probabilities than a table has."""
    again = "predict again with these rules"
    require(
        (wanted.task.kind, wanted.task.outputs) == (had.task.kind, had.task.outputs),
        f"{where} has other outputs of {had.task.name} than these rules; {again}",
    )
    shares, others = (dict(zip(_names(one), one.shares, strict=True)) for one in (wanted, had))
    is_same = shares.keys() == others.keys()
    require(
        is_same and all(math.isclose(share, others[name]) for name, share in shares.items()),
        f"{where} holds the mean of other heads, or with other weights, than these rules; {again}",
    )
    require(
        had.windows in (wanted.windows, (0,) * len(had.windows)),
        f"{where} holds means over windows already ({had.describe('windows')}); {again}",
    )


def _names(rules: DecisionRules) -> list[str]:
    return [head.sha256 for head in rules.heads]


def _describe(rules: DecisionRules, source: str) -> str:
    if rules.chosen_on == "nothing":
        return "no decision rules"
    return f"{source}, chosen on {rules.chosen_on}"
