"""The figure of `raffect probe`: a score against the number of labels."""

from __future__ import annotations

from pathlib import Path

from raffect.metrics.task_kinds import Kind
from raffect.reporting.figures import (
    ACCENT,
    BELOW,
    MUTED,
    PALETTE,
    Rows,
    _draw_references,
    _new,
    save_figure,
)


def draw_few_shot(rows: Rows, lines: dict[str, float], title: str, kind: Kind, stem: Path) -> None:
    """Mean over draws with a band of one standard deviation, a curve a method.

    Args:
        rows: ``method, shots, mean, sd``; shots are 0 for zero-shot and None for all frames.
        lines: Horizontal lines by name: chance.
        title: Above the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    # Numbers of labels at equal distances
    shots = sorted({row["shots"] for row in rows}, key=lambda k: (k is None, k))
    place = {number: k for k, number in enumerate(shots)}
    figure, axes = _new(7.2, 4.2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colors = [ACCENT, MUTED, PALETTE(0.65), PALETTE(0.1), PALETTE(0.4)]
    for method, color in zip(methods, colors, strict=False):
        found = [row for row in rows if row["method"] == method]
        x = [place[row["shots"]] for row in found]
        mean, sd = [row["mean"] for row in found], [row["sd"] or 0.0 for row in found]
        axes.plot(x, mean, color=color, marker="o", markersize=4, label=method)
        low = [one - other for one, other in zip(mean, sd, strict=True)]
        high = [one + other for one, other in zip(mean, sd, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
    _draw_references(axes, lines)
    axes.set_xticks(range(len(shots)), ["all" if k is None else str(k) for k in shots])
    axes.set(
        xlabel="training frames a class, each of another group (0: zero-shot)",
        ylabel=f"{kind.title}, validation; band ± 1 sd over draws",
        title=title,
    )
    axes.legend(ncols=2, bbox_to_anchor=(-0.05, -0.16), **BELOW)
    save_figure(figure, rows, stem)
