"""The worst cases of a run's main setting, beside those of plain ERM and of chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raffect.metrics.worst import WorstCases
from raffect.reporting.page import as_text
from raffect.reporting.results import difference_cell, table_of, worst_cells, worst_columns
from raffect.reporting.run import Run
from raffect.runs.spread import short
from raffect.runs.worst import TAIL_NAME

Row = dict[str, Any]


def worst_rows(run: Run) -> list[Row]:
    """A row for the main setting, for plain ERM if that is another one, and for chance.

    Returns:
        Empty without the statistics of the heads.
    """
    return [
        {"name": name, run.kind.key: score} | worst_columns(found, run)
        for name, score, found in _entries(run)
    ]


def worst_lines(run: Run) -> list[str]:
    """The same as a table, and what its columns are; for `worst_rows` that are not empty."""
    # The table; the difference is that of the main setting alone
    kind, name = run.kind, as_text(run.data.group_name)
    titles = ["", kind.title, f"worst {kind.part}", f"{TAIL_NAME} of {name}", f"95 % over {name}"]
    cells = []
    for title, score, found in _entries(run):
        ends = found.tail_interval_95
        interval = f"[{short(ends[0])}, {short(ends[1])}]" if ends else "-"
        cells.append([as_text(title), short(score), *worst_cells(found), interval])
    lines = table_of(titles, cells)
    if (difference := run.tail_against_erm) is not None:
        lines += [
            f"On their {TAIL_NAME} of {name}, each setting's own, the main setting differs from "
            f"plain ERM by {difference_cell(difference)}, paired by {name.removesuffix('s')}.",
            "",
        ]
    return lines


def _entries(run: Run) -> Sequence[tuple[str, float, WorstCases]]:
    """Name, headline score and worst cases of each row."""
    main, entries = run.main.heads, []
    named = [("main setting", main)]
    if run.erm and run.erm is not main:
        named.append(("plain ERM", run.erm))
    for name, heads in named:
        spread, found = run.spread(heads, "last"), run.worst(heads, "last")
        if spread is not None and found is not None:
            entries.append((name, spread.mean, found))
    if run.worst_by_chance is not None:
        chance = main[0].chance
        entries.append((f"chance: {chance.name}", chance.level, run.worst_by_chance))
    return entries
