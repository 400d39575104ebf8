"""The videos (or subjects) that cost a run the most, from its statistics by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raffect.reporting.page import as_text
from raffect.reporting.results import table_of
from raffect.reporting.run import Run
from raffect.runs.spread import short, signed

_SHOWN = 10

Row = dict[str, Any]


def group_rows(run: Run) -> list[Row]:
    """A row a group of the validation split, the most costly first.

    Columns: ``group``, ``frames``, ``<score>_of_it`` over what occurs in it, ``<score>_without``:
    the score of the whole split when the group is left out, ``change`` to that. All are means over
    the heads of the main setting, at the last epoch.

    Returns:
        Empty where heads leave out different classes, statistics of a head are missing, there is
        one group alone, or each frame is a group by itself.
    """
    # Statistics of all heads, shape (heads, groups, A, B)
    heads = run.main.heads
    found = [run.folder.statistics_of(record, "last") for record in heads]
    names = run.folder.read_statistics(heads[0])
    known = [counts for counts in found if counts is not None]
    alike = len({head.recipe.loss.leave_out for head in heads}) == 1
    if names is None or not alike or len(known) < len(heads):
        return []
    statistics, kind = np.stack(known), run.kind
    frames = kind.count_frames(statistics[0])
    if len(frames) < 2 or frames.max() <= 1:
        return []

    # Statistics add up, so those of the split without a group are a difference
    total = statistics.sum(1)
    whole = kind.headline(total).mean()
    without = kind.headline(total[:, None] - statistics).mean(0)
    rows = [
        {
            "group": name,
            "frames": int(frames[k]),
            f"{kind.key}_of_it": _score_alone(statistics[:, k], run),
            f"{kind.key}_without": float(without[k]),
            "change": float(without[k] - whole),
        }
        for k, name in enumerate(names.groups)
        if frames[k]
    ]
    return sorted(rows, key=lambda row: (-row["change"], row["group"]))


def _score_alone(statistics: np.ndarray, run: Run) -> float | None:
    """Mean score over the classes, labels or values that occur in one group; None if none does.

    Args:
        statistics: Of the group, shape (heads, A, B).
        run: Whose heads they are of.
    """
    occurs = run.kind.occurs(statistics[0])
    return float(run.kind.output_scores(statistics)[:, occurs].mean()) if occurs.any() else None


def groups_table(run: Run, rows: Sequence[Row]) -> list[str]:
    """The most costly groups, and what the columns mean."""
    kind, name = run.kind, as_text(run.data.group_name)
    titles = [name.removesuffix("s"), "frames", f"its own {kind.title}", "score without it"]
    shown = [
        [
            as_text(row["group"]),
            f"{row['frames']:,}",
            short(row[f"{kind.key}_of_it"]),
            f"{short(row[f'{kind.key}_without'])} ({signed(row['change'])})",
        ]
        for row in rows[:_SHOWN]
    ]
    how_many = f"{len(shown)} of {len(rows)}" if len(shown) < len(rows) else f"All {len(rows)}"
    meaning = (
        f"{how_many} {name}, those first whose absence would raise the run's {kind.title} the most "
        f"(in brackets: by how much). A {titles[0]}'s own {kind.title} is over the {kind.parts} "
        "that occur in it."
    )
    return [meaning, "", *table_of(titles, shown)]
