"""Tables of scores: all runs together, and the settings of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raffect.metrics.scores import SNAPSHOTS, Snapshot
from raffect.metrics.worst import WorstCases
from raffect.reporting.page import as_text
from raffect.reporting.run import Heads, Run, find_erm, main_against_erm
from raffect.runs.against_erm import Difference
from raffect.runs.main_setting import BRIEFLY
from raffect.runs.spread import NAMES, Spread, is_erm, mean_and_sd, short
from raffect.runs.worst import TAIL_NAME, which_text

AGAINST_ERM = "against plain ERM"
"""Column of differences."""


def table_of(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    cells = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return [cells[0], "|---" * len(titles) + "|", *cells[1:], ""]


def results_table(runs: Sequence[Run]) -> list[str]:
    """Scores of each run's main setting beside plain ERM, the chance level and published scores.

    Published scores are there where the data are Aff-Wild2 itself. Runs on equal data share the
    rows that do not depend on heads.
    """
    # Runs on equal data stand together
    by_data: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_data.setdefault((run.title, run.record.fingerprint), []).append(run)

    title = " / ".join(dict.fromkeys(run.kind.title for run in runs))
    groups = " / ".join(dict.fromkeys(as_text(run.data.group_name) for run in runs))
    parts = " / ".join(dict.fromkeys(run.kind.part for run in runs))
    titles = ["run", "task", "method", "epoch", title, "± sd (seeds)", f"95 % over {groups}"]
    titles += [AGAINST_ERM, f"worst {parts}", f"{TAIL_NAME} of {groups}"]
    rows = []
    for alike in by_data.values():
        rows += [row for run in alike for row in _rows_of_heads(run, runs)]
        others = [tuple(row) for run in alike for row in _rows_of_others(run)]
        rows += map(list, dict.fromkeys(others))
    return table_of(titles, rows)


def _rows_of_heads(run: Run, runs: Sequence[Run]) -> list[list[str]]:
    """The main setting by snapshot, then plain ERM."""
    main, mark = run.main, as_text(run.data.incomplete_mark)
    why = f" ({BRIEFLY[main.rule]})" if main.rule != "only" else ""
    start, rows = [as_text(run.name), as_text(run.title)], []
    # Heads made of texts have no epochs to choose from: all snapshots are one
    for name in SNAPSHOTS if run.is_trained else SNAPSHOTS[:1]:
        if found := run.spread(main.heads, name):
            method = f"{as_text(run.describe(main.heads))}{why}{mark}"
            cell = _erm_cell(run, runs) if name == "last" else "-"
            worst = worst_cells(run.worst(main.heads, name))
            epoch = NAMES[name] if run.is_trained else "no epochs"
            rows.append([*start, method, epoch, *cells_of(found), cell, *worst])
    if run.erm and run.erm is not main.heads and (found := run.spread(run.erm, "last")):
        worst = worst_cells(run.worst(run.erm, "last"))
        rows.append([*start, f"plain ERM{mark}", NAMES["last"], *cells_of(found), "-", *worst])
    return rows


def _erm_cell(run: Run, runs: Sequence[Run]) -> str:
    """Difference of a run's main setting to plain ERM."""
    found = find_erm(run, runs)
    of_run = found[0].name if found and found[0] is not run else ""
    return difference_cell(main_against_erm(run, runs), of_run)


def _rows_of_others(run: Run) -> list[list[str]]:
    """The chance level, then published scores."""
    # Worst cases of the predictor that scores the chance level
    chance, unknown = run.main.heads[0].chance, ["-", "-"]
    worst = worst_cells(run.worst_by_chance)
    majority = worst if chance.prior is None else unknown
    name = f"chance (majority): {as_text(chance.answer)}"
    others = [(name, "-", chance.majority, majority)]
    if chance.prior is not None:
        name = "chance (prior): guesses by the class shares"
        others.append((name, "-", chance.prior, worst))
    others += [
        (as_text(name), "unstated", value, unknown) for name, value in run.data.published.items()
    ]
    start = ["-", as_text(run.title)]
    return [
        [*start, name, epoch, short(score), *"---", *cells] for name, epoch, score, cells in others
    ]


def cells_of(found: Spread) -> list[str]:
    """Mean, spread over seeds and interval over videos as three cells of a table."""
    sd = (
        f"± {short(found.sd)} ({found.heads}{'' if found.over == 'seeds' else ' ' + found.over})"
        if found.sd is not None
        else "one seed"
    )
    low, high = found.interval_95 or (None, None)
    interval = f"[{short(low)}, {short(high)}]" if found.interval_95 else "-"
    return [short(found.mean), sd, interval]


def difference_cell(found: Difference | None, of_run: str = "") -> str:
    """``-.009 [-.047, +.029]``, with the run whose ERM it is if that is another one; or a dash."""
    return (found.text() + (f" (ERM of {as_text(of_run)})" if of_run else "")) if found else "-"


def worst_cells(found: WorstCases | None) -> list[str]:
    """Worst output, with its name, and worst videos as two cells: ``.102 (Fear)`` and ``.251``."""
    if found is None or found.output is None:
        return ["-", "-"]
    return [f"{short(found.output)} ({as_text(which_text(found))})", short(found.tail)]


def settings_table(run: Run) -> list[str]:
    """A row for each setting that is shown."""
    score = NAMES["last"] if run.is_trained else run.kind.title
    titles = ["setting", score, "± sd (seeds)", f"95 % over {as_text(run.data.group_name)}"]
    has_erm = any(is_erm(heads[0].recipe) for heads in run.groups)
    titles += [AGAINST_ERM] if has_erm else []
    titles += [f"worst {run.kind.part}", f"{TAIL_NAME} of {as_text(run.data.group_name)}"]
    more: list[Snapshot] = []
    if run.is_trained:
        more = ["best", "cv"] if run.has_folds else ["best"]
    titles += [NAMES[name] for name in more]
    rows = []
    for heads in run.shown_groups:
        marks = ["main setting"] if heads is run.main.heads else []
        marks += ["plain ERM"] if is_erm(heads[0].recipe) else []
        about = f" ({', '.join(marks)})" if marks else ""
        last = run.spread(heads, "last")
        assert last is not None  # every finished head has it
        setting = as_text(run.describe(heads)) + about + as_text(run.data.incomplete_mark)
        row = [setting, *cells_of(last)]
        row += [difference_cell(run.against_erm(heads))] if has_erm else []
        row += worst_cells(run.worst(heads, "last"))
        rows.append([*row, *(_score_cell(heads, name) for name in more)])
    return table_of(titles, rows)


def _score_cell(heads: Heads, snapshot: Snapshot) -> str:
    """``.412 ± .005``, or a dash where heads lack the snapshot."""
    found = [record.scores[snapshot].headline for record in heads if snapshot in record.scores]
    return mean_and_sd(found) if len(found) == len(heads) else "-"


def worst_columns(found: WorstCases | None, run: Run) -> dict[str, Any]:
    """Worst output and worst videos as columns of a CSV; all None without."""
    output, values = f"worst {run.kind.part}", {} if found is None else vars(found)
    low, high = values.get("tail_interval_95") or (None, None)
    return {
        output: values.get("output"),
        f"{output} sd": values.get("output_sd"),
        f"{output} is": which_text(found) if found is not None else None,
        TAIL_NAME: values.get("tail"),
        f"{TAIL_NAME} sd": values.get("tail_sd"),
        f"{TAIL_NAME} low": low,
        f"{TAIL_NAME} high": high,
        f"{TAIL_NAME} of": values.get("groups"),
    }


def settings_rows(run: Run) -> list[dict[str, Any]]:
    """A row for every setting: its values, mean and standard deviation of its scores, heads.

    Worst cases are those of the settings that are shown: of thousands they would take minutes.
    """
    rows, shown = [], {heads[0].id for heads in run.shown_groups}
    for heads in run.groups:
        row = {name: heads[0].settings[name] for name in run.shown_settings}
        for snapshot in SNAPSHOTS:
            found = [
                record.scores[snapshot].headline for record in heads if snapshot in record.scores
            ]
            row[NAMES[snapshot]] = float(np.mean(found)) if found else None
            row[f"{NAMES[snapshot]} sd"] = float(np.std(found, ddof=1)) if len(found) > 1 else None
        is_shown = heads[0].id in shown
        row |= worst_columns(run.worst(heads, "last") if is_shown else None, run)
        rows.append(row | {"heads": len(heads), "main setting": heads is run.main.heads})
    return rows
