"""The figure of `raffect robust`: a panel a corruption, score against strength, a line a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from raffect.metrics.task_kinds import Kind
from raffect.reporting.figures import (
    ACCENT,
    BELOW,
    INK,
    MUTED,
    PALETTE,
    SECOND,
    STYLE,
    Rows,
    save_figure,
)

_COLUMNS = 2
"""Of panels: on a phone their letters are still read."""


def draw_robustness(
    rows: Rows, chance: tuple[str, float], title: str, kind: Kind, stem: Path
) -> None:
    """Small multiples with one score axis; bands are 95 % intervals over groups.

    Args:
        rows: ``run, corruption, strength, mean, low, high`` of each run and copy; strength 0 is
            ``clean`` and starts every line. The mean over corruptions is the last panel.
        chance: What scores the chance level, and the level.
        title: Above the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    # A panel each
    shown = [row for row in rows if row["strength"] is not None]
    names = [name for name in dict.fromkeys(row["corruption"] for row in shown) if name != "clean"]
    plt.style.use(STYLE)
    columns = min(_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(0.6 + 2.5 * columns, 0.6 + 2.2 * lines),
        sharey=True,
        squeeze=False,
    )
    runs = list(dict.fromkeys(row["run"] for row in shown))
    fixed = [MUTED, ACCENT, SECOND]
    colors = fixed + [PALETTE(k / max(len(runs), 1) * 0.8) for k in range(len(runs))]

    # A line a run, from the frames without damage on
    for name, axes in zip(names, panels.flat, strict=False):
        for run, color in zip(runs, colors, strict=False):
            points = [
                row for row in shown if row["run"] == run and row["corruption"] in ("clean", name)
            ]
            points.sort(key=lambda row: row["strength"])
            x, mean = [row["strength"] for row in points], [row["mean"] for row in points]
            axes.plot(x, mean, color=color, marker="o", markersize=3, linewidth=1.3, label=run)
            ends = np.array([(row["low"], row["high"]) for row in points], float)
            axes.fill_between(x, *ends.T, color=color, alpha=0.1, linewidth=0)
        answer, level = chance
        label = f"chance {level:.3f} ({answer})"
        axes.axhline(level, color=INK, linestyle="--", linewidth=1, label=label)
        axes.set(title="mean over corruptions" if name == "mean" else name)
        axes.set_xticks(sorted({row["strength"] for row in shown}))
    for axes in list(panels.flat)[len(names) :]:
        axes.set_visible(False)

    # Words once, not in every panel
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.supxlabel("strength (0: frames without damage); bands: 95 % interval", fontsize=9)
    figure.supylabel(kind.title, fontsize=9)
    figure.tight_layout()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, bbox_to_anchor=(0.02, 0.0), **BELOW)
    save_figure(figure, rows, stem)
