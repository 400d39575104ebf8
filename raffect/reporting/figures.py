"""The report's pictures, each drawn from rows that are written beside it as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raffect.metrics.task_kinds import Kind
from raffect.reporting.run import PAPER_ALPHA
from raffect.storage.atomic import atomic_path
from raffect.storage.tables import write_csv

# Names and caveats come from run folders and are text, dollar signs too.
mpl.rcParams["text.parse_math"] = False

Rows = list[dict[str, Any]]

INK, GRID, ACCENT, SECOND, MUTED = "#1f2933", "#d9dee4", "#1f6feb", "#d1495b", "#8a94a0"
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.dpi": 120,
    "savefig.bbox": "tight",
    "legend.frameon": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}
_PALETTE = plt.get_cmap("viridis")
_MOST_CURVES = 12
_BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
"""Where a legend stands that must not cover the curves."""


def draw_alpha(rows: Rows, lines: dict[str, float], title: str, kind: Kind, stem: Path) -> None:
    """Figure 2: the headline score against alpha, a dot a head, mean and sd over seeds.

    Args:
        rows: ``alpha, seed, <headline score>, score`` of each head; ``score`` names how its epoch
            was chosen.
        lines: Horizontal lines by name: ERM, chance.
        title: Above the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(7.2, 4.2)
    _draw_last_epochs(axes, [row for row in rows if row["score"] == "val-last"], kind)
    _draw_best_epochs(axes, [row for row in rows if row["score"] == "val-best"], kind)
    _draw_references(axes, lines)
    if min(row["alpha"] for row in rows) <= PAPER_ALPHA <= max(row["alpha"] for row in rows):
        _mark_papers_alpha(axes)
    axes.set(
        xlabel="alpha (1: mean over all frames; smaller: mean of the worst frames only)",
        ylabel=f"{kind.title}, validation",
        title=title,
    )
    axes.legend(fontsize=8, **_BESIDE)
    _save(figure, rows, stem)


def _draw_last_epochs(axes: Axes, rows: Rows, kind: Kind) -> None:
    """Mean with a band of one standard deviation, and a dot for each head."""
    alphas, mean, sd, seeds = _over_seeds(rows, kind)
    label = f"val-last, mean over {seeds} seeds, band ± 1 sd"
    axes.plot(alphas, mean, color=ACCENT, marker="o", markersize=4, label=label)
    axes.fill_between(alphas, mean - sd, mean + sd, color=ACCENT, alpha=0.16, linewidth=0)
    x, y = [row["alpha"] for row in rows], [row[kind.key] for row in rows]
    axes.scatter(x, y, s=9, color=ACCENT, alpha=0.45, linewidths=0)


def _draw_best_epochs(axes: Axes, rows: Rows, kind: Kind) -> None:
    """The mean alone, dashed: these scores are optimistic."""
    alphas, mean, _, seeds = _over_seeds(rows, kind)
    label = f"val-best, mean over {seeds} seeds\n(epoch chosen on validation)"
    axes.plot(alphas, mean, "--", color=MUTED, marker="o", markersize=4, label=label)


def _over_seeds(rows: Rows, kind: Kind) -> tuple[list[float], np.ndarray, np.ndarray, str]:
    """Each alpha, mean and standard deviation (n - 1) of its heads, and the number of seeds."""
    alphas = sorted({row["alpha"] for row in rows})
    values = [[row[kind.key] for row in rows if row["alpha"] == alpha] for alpha in alphas]
    mean = np.array([np.mean(found) for found in values])
    sd = np.array([np.std(found, ddof=1) if len(found) > 1 else 0.0 for found in values])
    fewest, most = min(map(len, values)), max(map(len, values))
    return alphas, mean, sd, f"{fewest}-{most}" if fewest != most else f"{most}"


def _draw_references(axes: Axes, lines: dict[str, float]) -> None:
    """Horizontal lines; one far below the curves would flatten them and is in the legend alone."""
    low, high = axes.get_ylim()
    styles = ((SECOND, "-."), (INK, ":"))
    for (name, value), (color, style) in zip(lines.items(), styles, strict=False):
        label = f"{name} {value:.3f}"
        if value > low - 0.5 * (high - low):
            axes.axhline(value, color=color, linestyle=style, linewidth=1.2, label=label)
        else:
            axes.plot([], [], color=color, linestyle=style, label=f"{label}, far below")


def _mark_papers_alpha(axes: Axes) -> None:
    axes.axvline(PAPER_ALPHA, color=GRID, linewidth=6, zorder=0)
    axes.annotate(
        "paper's alpha",
        (PAPER_ALPHA, axes.get_ylim()[0]),
        xytext=(5, 3),
        textcoords="offset points",
        fontsize=8,
        color=MUTED,
    )


def draw_outputs(rows: Rows, title: str, kind: Kind, stem: Path) -> None:
    """The first score of each class, label or value: ``name, <score>, sd, frames`` a row."""
    figure, axes = _new(7.2, 3.4)
    (label, key), *_ = kind.columns
    places = range(len(rows))
    values, sds = [row[key] for row in rows], [row["sd"] or 0 for row in rows]

    # Bars with their values above them
    spread: dict[str, Any] = {"ecolor": INK, "elinewidth": 1, "capsize": 2}
    axes.bar(places, values, yerr=sds, color=ACCENT, width=0.65, error_kw=spread)
    for place, value, sd in zip(places, values, sds, strict=True):
        above = (place, max(value, 0) + sd)
        axes.annotate(f"{value:.2f}", above, ha="center", va="bottom", fontsize=8)

    # Room for negative values and for the numbers, and frames below the names
    lowest = min(0, *(value - sd for value, sd in zip(values, sds, strict=True)))
    axes.set(title=title, ylim=(lowest * 1.08, 1.08))
    axes.set(xlabel=f"{kind.part}, and its frames", ylabel=f"{label}, validation")
    axes.set_xticks(places, [f"{row['name']}\n{row['frames']:,}" for row in rows], fontsize=8)
    axes.grid(axis="x", visible=False)
    _save(figure, rows, stem)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], title: str, stem: Path) -> None:
    """Confusion matrix, each row in shares of its true class, the counts in the CSV.

    Args:
        matrix: Frames, shape (C, C), rows true, columns predicted.
        names: Of the classes.
        title: Above the picture.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(6.0, 5.2)
    totals = matrix.sum(1)
    share = matrix / np.maximum(totals, 1)[:, None]

    # Cells, with light text on dark ones
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*share.shape):
        value = share[row, column]
        color = "white" if value > 0.55 else INK
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
        axes.annotate(f"{value:.2f}", (column, row), **text)

    # Names, with the frames of each true class
    true = [f"{name} ({int(total):,})" for name, total in zip(names, totals, strict=True)]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), true, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true (frames, over all seeds)", title=title)
    axes.grid(visible=False)
    counts = [dict(zip(names, map(int, row), strict=True)) for row in matrix]
    rows = [{"true": name, **row} for name, row in zip(names, counts, strict=True)]
    _save(figure, rows, stem)


def draw_curves(rows: Rows, title: str, kind: Kind, stem: Path) -> None:
    """Learning curves, mean over seeds: ``label, epoch, train_loss, val_<score>`` a row."""
    plt.style.use(_STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.6))

    # Of many settings, some at equal distances
    labels = list(dict.fromkeys(row["label"] for row in rows))
    places = np.linspace(0, len(labels) - 1, min(len(labels), _MOST_CURVES)).round().astype(int)
    shown = [labels[place] for place in places]

    # Loss on the left, score on the right, a color for each setting
    for k, label in enumerate(shown):
        part = [row for row in rows if row["label"] == label]
        epochs = [row["epoch"] for row in part]
        color = _PALETTE(k / max(len(shown) - 1, 1) * 0.9)
        for axes, name in ((left, "train_loss"), (right, kind.curve_key)):
            values = [row[name] for row in part]
            axes.plot(epochs, values, color=color, linewidth=1.3, label=label)

    left.set(xlabel="epoch", ylabel="training loss (CVaR at each alpha)", title=title)
    right.set(xlabel="epoch", ylabel=f"{kind.title}, validation")
    how_many = f"{len(shown)} of {len(labels)}" if len(shown) < len(labels) else None
    right.legend(fontsize=7, title=how_many, **_BESIDE)
    figure.tight_layout()
    _save(figure, rows, stem)


def draw_scores(rows: Rows, title: str, kind: Kind, stem: Path) -> None:
    """Scores of several settings that differ in more than alpha: ``label, <score>, sd`` a row."""
    figure, axes = _new(7.2, 0.8 + 0.34 * len(rows))
    places = np.arange(len(rows))[::-1]
    values, sds = [row[kind.key] for row in rows], [row["sd"] or 0 for row in rows]
    style: dict[str, Any] = {"fmt": "o", "color": ACCENT, "ecolor": MUTED, "capsize": 3}
    axes.errorbar(values, places, xerr=sds, **style)
    axes.set_yticks(places, [row["label"] for row in rows], fontsize=8)
    axes.set(xlabel=f"{kind.title}, validation, last epoch; bars ± 1 sd over seeds", title=title)
    _save(figure, rows, stem)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    plt.style.use(_STYLE)
    return plt.subplots(figsize=(width, height))


def _save(figure: Figure, rows: Rows, stem: Path) -> None:
    """Write a picture, and its numbers beside it."""
    write_csv(stem.with_name(f"{stem.name}.csv"), rows)
    with atomic_path(stem.with_name(f"{stem.name}.png")) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)
