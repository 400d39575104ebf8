"""Leave one class out: recall of each class by heads that never saw it, as a table."""

from __future__ import annotations

from typing import Any

from raffect.reporting.page import as_text
from raffect.reporting.results import difference_cell, table_of
from raffect.runs.leave_one_out import LeaveOneOut
from raffect.runs.spread import headline_text, short


def unseen_lines(found: LeaveOneOut) -> list[str]:
    """What was judged, and a row for each class, their mean and chance."""
    groups = as_text(found.group_name)
    about = (
        f"Each class is judged by heads of {as_text(found.run)} that were trained without it: the "
        f"share of its {found.unit} that are nearest to its own text among the texts of all "
        f"{found.candidates} classes. Beside it is the same without a head: the mean of the same "
        f"features and the same texts. Differences are paired by {groups.removesuffix('s')}."
    )
    if found.is_chosen:
        about += (
            " Prompt sets are chosen on folds of the training split by the recall of the other "
            "classes."
        )
    rows = []
    for one in (*found.classes, found.mean):
        name = f"**{one.name}**" if one is found.mean else as_text(one.name)
        recall = headline_text(one.trained) + one.why_no_interval(groups)
        scores = [recall, headline_text(one.plain), difference_cell(one.gain)]
        counts = [f"{one.samples:,}", f"{one.groups}" if one.groups else "-"]
        rows.append([name, *counts, as_text(one.prompts), *scores])
    rows.append(["chance", "", "", "", short(found.chance), short(found.chance), "-"])
    titles = [
        "class",
        found.unit,
        groups,
        "prompts",
        f"recall, 95 % over {groups}",
        "without a head",
    ]
    lines = [about, "", *table_of([*titles, "difference"], rows)]
    if found.skipped:
        names = ", ".join(map(as_text, found.skipped))
        lines += [f"Left out, without samples or texts: {names}.", ""]
    return lines


def unseen_rows(found: LeaveOneOut) -> list[dict[str, Any]]:
    """A row of the figure for each class and their mean."""
    return [one.row() for one in (*found.classes, found.mean)]
