"""The report's part on scores across data sets: a table, a picture, and what they mean."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from raffect.metrics.task_kinds import Kind
from raffect.reporting.cross_sets import Cell, Matrix
from raffect.reporting.figures import INK, MUTED, STYLE, save_figure
from raffect.reporting.page import as_text
from raffect.reporting.results import table_of
from raffect.runs.spread import mean_and_sd, short

_DARK = 0.55
"""Share of the color scale above which text is white."""
_WRAP = 18
"""Characters of a line of a name."""


def matrix_lines(matrix: Matrix) -> list[str]:
    """The table, what it shows, and caveats of single cells."""
    kind = matrix.runs[0].kind
    titles = ["trained on", *(f"judged on {as_text(name)}" for name in matrix.columns.values())]
    rows = []
    for run in matrix.runs:
        cells = [matrix.cells.get((run.name, column)) for column in matrix.columns]
        rows.append([as_text(matrix.name_row(run)), *(_cell_text(cell, kind) for cell in cells)])
    meaning = (
        f"{kind.title} of each run's main setting after its last epoch, mean over seeds, with its "
        "95 % interval. In bold the run's own validation split. Elsewhere heads are judged on the "
        f"{kind.parts} that both data sets have, by name, and answer these alone: fewer "
        f"{kind.parts} are easier, so compare a score with its own chance before another cell."
    )
    return [*table_of(titles, rows), meaning, "", *_caveat_lines(matrix)]


def _cell_text(cell: Cell | None, kind: Kind) -> str:
    """``.412 ± .010 [.380, .440]; 7 classes, chance .143``; bold on the diagonal."""
    if cell is None:
        return "not judged"
    score = mean_and_sd([head.headline for head in cell.heads])
    score = f"**{score}**" if cell.is_own else score
    if cell.score.interval_95:
        score += f" [{', '.join(map(short, cell.score.interval_95))}]"
    left_out = f"; {cell.left_out:,} left out" if cell.left_out else ""
    return f"{score}; {len(cell.outputs)} {kind.parts}, chance {short(cell.chance.level)}{left_out}"


def _caveat_lines(matrix: Matrix) -> list[str]:
    """What single scores must not be taken for, beside the caveats of all."""
    lines = []
    for (run, column), cell in matrix.cells.items():
        own = [caveat for caveat in cell.caveats if caveat not in matrix.caveats]
        own += [cell.data.incomplete_mark.strip()] if cell.data.incomplete else []
        if own:
            where = f"{as_text(run)} on {as_text(matrix.columns[column])}"
            lines.append(f"- {where}: {as_text('; '.join(own))}")
    return [*lines, ""] if lines else []


def draw_matrix(matrix: Matrix, title: str, stem: Path) -> None:
    """Rows trained on, columns judged on; the color goes from chance (white) to 1 (dark).

    Args:
        matrix: The scores.
        title: Above the picture, with the caveats of all cells.
        stem: Path without suffix of the PNG and the CSV.
    """
    # How much of the way from chance to perfect each score is; cells differ in their classes
    columns = list(matrix.columns)
    shares = np.full((len(matrix.runs), len(columns)), np.nan)
    for row, run in enumerate(matrix.runs):
        for k, column in enumerate(columns):
            if (cell := matrix.cells.get((run.name, column))) is not None:
                level = cell.chance.level
                # Of a chance level of 1 nothing is left to gain
                shares[row, k] = max(cell.score.mean - level, 0) / max(1 - level, 1e-9)
    plt.style.use(STYLE)
    size = (1.4 + 1.4 * len(columns), 1.2 + 0.8 * len(matrix.runs))
    figure, axes = plt.subplots(figsize=size)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")

    # What each cell holds; its own split in a frame
    for row, run in enumerate(matrix.runs):
        for k, column in enumerate(columns):
            cell = matrix.cells.get((run.name, column))
            color = "white" if shares[row, k] > _DARK else INK
            _write_cell(axes, (k, row), cell, color)
            if cell is not None and cell.is_own:
                corner = (k - 0.48, row - 0.47)
                axes.add_patch(Rectangle(corner, 0.96, 0.94, fill=False, color=INK))

    # Names
    axes.set_xticks(range(len(columns)), [_wrap(name) for name in matrix.columns.values()])
    axes.set_yticks(range(len(matrix.runs)), [_wrap(matrix.name_row(run)) for run in matrix.runs])
    axes.tick_params(labelsize=8, length=0)
    shade = "color: from chance (white) to 1 (dark)"
    axes.set(xlabel=f"judged on; {shade}", ylabel="trained on", title=title)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    save_figure(figure, matrix.rows(), stem)


def _write_cell(axes: Axes, place: tuple[int, int], cell: Cell | None, color: str) -> None:
    """Score, interval, and how many outputs with their chance level, below each other."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "textcoords": "offset points"}
    if cell is None:
        axes.annotate("not judged", place, xytext=(0, 0), color=MUTED, fontsize=8, **style)
        return
    ends = cell.score.interval_95
    interval = f"[{', '.join(map(short, ends))}]" if ends else ""
    size = f"{len(cell.outputs)} {cell.run.kind.parts}, chance {short(cell.chance.level)}"
    for text, up, font in ((short(cell.score.mean), 11, 11), (interval, -2, 8), (size, -13, 7)):
        axes.annotate(text, place, xytext=(0, up), color=color, fontsize=font, **style)


def _wrap(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _WRAP))
