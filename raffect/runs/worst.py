"""Worst cases of heads, as text."""

from __future__ import annotations

from raffect.metrics.task_kinds import Kind
from raffect.metrics.worst import TAIL, WorstCases
from raffect.runs.spread import short

TAIL_NAME = f"worst {TAIL:.0%}".replace("%", " %")
"""``worst 30 %``."""


def worst_text(found: WorstCases, kind: Kind, group_name: str) -> str:
    """``worst class F1 .102 ± .010 (Fear 2, Anger 1); worst 30 % of 24 videos .251 [.2, .3]``."""
    return f"{output_text(found, kind)}; {tail_text(found, group_name)}"


def output_text(found: WorstCases, kind: Kind) -> str:
    """``worst class F1 .102 ± .010 (Fear 2, Anger 1)``."""
    start = f"worst {kind.part} {kind.columns[0][0]}"
    if found.output is None:
        return f"{start} - (none occurs)"
    return f"{start} {short(found.output)}{_spread(found.output_sd)} ({which_text(found)})"


def which_text(found: WorstCases) -> str:
    """``Fear``, or of heads that differ in it ``Fear 2, Anger 1``."""
    if len(found.outputs) == 1:
        return next(iter(found.outputs))
    return ", ".join(f"{name} {count}" for name, count in found.outputs.items())


def tail_text(found: WorstCases, group_name: str) -> str:
    """``worst 30 % of 24 videos .251 ± .008, [.180, .330]``."""
    if found.tail is None:
        return f"{TAIL_NAME} of {group_name} - (fewer than two have a score of their own)"
    low, high = found.tail_interval_95 or (None, None)
    ends = f", [{short(low)}, {short(high)}]" if found.tail_interval_95 else ""
    score = f"{short(found.tail)}{_spread(found.tail_sd)}{ends}"
    return f"{TAIL_NAME} of {found.groups} {group_name} {score}"


def _spread(sd: float | None) -> str:
    return "" if sd is None else f" ± {short(sd)}"
