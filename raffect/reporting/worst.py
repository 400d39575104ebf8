"""The worst cases of a run's main setting, beside those of plain ERM and of chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raffect.metrics.worst import WorstCases
from raffect.reporting.page import as_text
from raffect.reporting.results import difference_cell, table_of, worst_cells, worst_columns
from raffect.reporting.run import Run, find_erm
from raffect.runs.spread import short
from raffect.runs.worst import TAIL_NAME

Row = dict[str, Any]


def worst_rows(run: Run, runs: Sequence[Run]) -> list[Row]:
    """A row for the main setting, for the plain ERM beside it, and for chance.

    Args:
        run: Whose main setting.
        runs: All of the report, one of which may have the plain ERM.

    Returns:
        Empty without the statistics of the heads.
    """
    return [
        {"name": name, run.kind.key: score} | worst_columns(found, run)
        for name, score, found in _entries(run, runs)
    ]


def worst_lines(run: Run, runs: Sequence[Run]) -> list[str]:
    """The same as a table, and the difference to plain ERM; empty as `worst_rows`."""
    # The table
    entries, kind, name = _entries(run, runs), run.kind, as_text(run.data.group_name)
    if not entries:
        return []
    titles = ["", kind.title, f"worst {kind.part}", f"{TAIL_NAME} of {name}", f"95 % over {name}"]
    rows = []
    for title, score, found in entries:
        ends = found.tail_interval_95
        interval = f"[{short(ends[0])}, {short(ends[1])}]" if ends else "-"
        rows.append([as_text(title), short(score), *worst_cells(found), interval])
    lines = table_of(titles, rows)

    # The difference, where plain ERM is another setting
    erm = find_erm(run, runs)
    if erm is None or erm[1] is run.main.heads:
        return lines
    if (difference := run.tail_difference(*erm)) is None:
        return lines
    text = (
        f"On the {TAIL_NAME} of {name} where each does worst, the main setting differs from plain "
        f"ERM by {difference_cell(difference)} (95 % interval, paired by {name.removesuffix('s')})."
    )
    return [*lines, text, ""]


def _entries(run: Run, runs: Sequence[Run]) -> list[tuple[str, float, WorstCases]]:
    """Name, headline score and worst cases of each row."""
    # Heads
    main, erm = run.main.heads, find_erm(run, runs)
    named = [("main setting", run, main)]
    if erm is not None and erm[1] is not main:
        whose, heads = erm
        named.append(
            ("plain ERM" + (f" of {whose.name}" if whose is not run else ""), whose, heads)
        )
    entries = []
    for name, whose, heads in named:
        spread, found = whose.spread(heads, "last"), whose.worst(heads, "last")
        if spread is None or found is None:
            return []
        entries.append((name, spread.mean, found))

    # Chance
    if run.worst_by_chance is not None:
        chance = main[0].chance
        entries.append((f"chance: {chance.name}", chance.level, run.worst_by_chance))
    return entries
