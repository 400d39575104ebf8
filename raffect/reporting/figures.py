"""The report's pictures, each drawn from rows that are written beside it as CSV."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raffect.metrics.task_kinds import Kind
from raffect.reporting.page import DOTS_PER_INCH
from raffect.reporting.run import PAPER_ALPHA
from raffect.storage.atomic import atomic_path
from raffect.storage.tables import write_csv

# Names and caveats come from run folders and are text, dollar signs too.
mpl.rcParams["text.parse_math"] = False

Rows = list[dict[str, Any]]

INK, GRID, ACCENT, SECOND, MUTED = "#1f2933", "#d9dee4", "#1f6feb", "#d1495b", "#8a94a0"
STYLE: dict[str, Any] = {
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
    "savefig.dpi": DOTS_PER_INCH,
    "savefig.bbox": "tight",
    "legend.frameon": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}
PALETTE = plt.get_cmap("viridis")
_LIGHTEST = 0.8
"""Share of the palette that can be seen on white, and on black in a page's inverted colors."""
MOST_CURVES = 12
"""Settings whose learning curves can be distinguished."""
_LONG = 36
"""Characters of a label above which a legend has one column."""
_ABSENT: dict[str, Any] = {"facecolor": "none", "edgecolor": GRID, "hatch": "///", "linewidth": 0}
"""Where a class would be that no frame shows."""
BELOW: dict[str, Any] = {"loc": "upper left", "fontsize": 8}
"""A legend below the axes: it covers no curve, and the picture stays narrow."""


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
    figure, axes = _new(5.6, 4.0)  # on a phone its letters are still read
    _draw_last_epochs(axes, [row for row in rows if row["score"] == "val-last"], kind)
    _draw_best_epochs(axes, [row for row in rows if row["score"] == "val-best"], kind)
    _draw_references(axes, lines)
    if min(row["alpha"] for row in rows) <= PAPER_ALPHA <= max(row["alpha"] for row in rows):
        _mark_papers_alpha(axes)
    axes.set(
        xlabel="alpha\n(1: mean over all frames; smaller: mean of the worst frames only)",
        ylabel=f"{kind.title}, validation",
        title=title,
    )
    axes.legend(bbox_to_anchor=(-0.05, -0.22), **BELOW)
    save_figure(figure, rows, stem)


def _draw_last_epochs(axes: Axes, rows: Rows, kind: Kind) -> None:
    """Mean with a band of one standard deviation, and a dot for each head."""
    alphas, mean, sd, seeds = _over_seeds(rows, kind)
    label = f"val-last, mean over {seeds} seeds, band ± 1 sd (last epoch)"
    axes.plot(alphas, mean, color=ACCENT, marker="o", markersize=4, label=label)
    axes.fill_between(alphas, mean - sd, mean + sd, color=ACCENT, alpha=0.16, linewidth=0)
    x, y = [row["alpha"] for row in rows], [row[kind.key] for row in rows]
    axes.scatter(x, y, s=9, color=ACCENT, alpha=0.45, linewidths=0)


def _draw_best_epochs(axes: Axes, rows: Rows, kind: Kind) -> None:
    """The mean alone, dashed: these scores are optimistic."""
    alphas, mean, _, seeds = _over_seeds(rows, kind)
    label = f"val-best, mean over {seeds} seeds (epoch chosen on validation)"
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
    shown = [bool(row["frames"]) for row in rows]

    # Bars with their values above them; what no frame shows has none
    bars = [place for place in places if shown[place]]
    heights, errors = [values[k] for k in bars], [sds[k] for k in bars]
    spread: dict[str, Any] = {"ecolor": INK, "elinewidth": 1, "capsize": 2}
    axes.bar(
        bars,
        heights,
        yerr=errors if any(errors) else None,
        color=ACCENT,
        width=0.65,
        error_kw=spread,
    )
    for place, value, sd in zip(bars, heights, errors, strict=True):
        above = (place, max(value, 0) + sd)
        axes.annotate(f"{value:.2f}", above, ha="center", va="bottom", fontsize=8)
    for place in set(places) - set(bars):
        axes.axvspan(place - 0.4, place + 0.4, **_ABSENT)
        style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 8}
        axes.annotate("no frame", (place, 0.5), color=MUTED, **style)

    # Room for negative values and for the numbers, and frames below the names
    lowest = min(0, *(value - sd for value, sd in zip(values, sds, strict=True)))
    axes.set(title=title, ylim=(lowest * 1.08, 1.08))
    seeds = "; bars ± 1 sd over seeds" if any(sds) else ""
    axes.set(xlabel=f"{kind.part}, and its frames{seeds}", ylabel=f"{label}, validation")
    axes.set_xticks(places, [f"{row['name']}\n{row['frames']:,}" for row in rows], fontsize=8)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", visible=False)
    save_figure(figure, rows, stem)


def draw_confusion(matrices: np.ndarray, names: Sequence[str], title: str, stem: Path) -> None:
    """Confusion matrix, each row in shares of its true class, the counts in the CSV.

    Args:
        matrices: Frames, shape (heads, C, C), rows true, columns predicted.
        names: Of the classes.
        title: Above the picture.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(6.6, 5.4)
    matrix = matrices.sum(0)
    totals = matrix.sum(1)
    share = matrix / np.maximum(totals, 1)[:, None]

    # Cells, with light text on dark ones; a class that no frame shows has none
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*share.shape):
        value = share[row, column]
        color = "white" if value > 0.55 else INK
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
        if totals[row]:
            axes.annotate(f"{value:.2f}", (column, row), **text)
    for row in np.flatnonzero(totals == 0):
        axes.axhspan(row - 0.5, row + 0.5, **_ABSENT)

    # Names, with the frames of each true class; every head saw the same ones
    frames = [f"{total:,}" if total else "no frame" for total in totals // len(matrices)]
    true = [f"{name} ({count})" for name, count in zip(names, frames, strict=True)]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), true, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class (its frames)", title=title)
    axes.grid(visible=False)
    counts = [dict(zip(names, map(int, row), strict=True)) for row in matrix]
    rows = [{"true": name, **row} for name, row in zip(names, counts, strict=True)]
    save_figure(figure, rows, stem)


def draw_curves(rows: Rows, title: str, how_many: str, kind: Kind, stem: Path) -> None:
    """Learning curves, mean over seeds.

    Args:
        rows: ``label, epoch, train_loss, val_<score>`` of each setting and epoch.
        title: Above the picture.
        how_many: Which of the run's settings these are; empty for all.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    plt.style.use(STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.4))
    labels = list(dict.fromkeys(row["label"] for row in rows))

    # Loss on the left, score on the right, a color for each setting
    for k, label in enumerate(labels):
        part = [row for row in rows if row["label"] == label]
        epochs = [row["epoch"] for row in part]
        color = PALETTE(k / max(len(labels) - 1, 1) * _LIGHTEST)
        for axes, name in ((left, "train_loss"), (right, kind.curve_key)):
            values = [row[name] for row in part]
            axes.plot(epochs, values, color=color, linewidth=1.3, label=label)

    left.set(xlabel="epoch", ylabel="training loss (CVaR at each alpha)", title=title)
    right.set(xlabel="epoch", ylabel=f"{kind.title}, validation")
    figure.tight_layout()
    columns = 1 if max(map(len, labels)) > _LONG else 3
    left.legend(title=how_many or None, ncols=columns, bbox_to_anchor=(-0.1, -0.16), **BELOW)
    save_figure(figure, rows, stem)


def draw_scores(rows: Rows, chance: float, title: str, kind: Kind, stem: Path) -> None:
    """Scores of several settings that differ in more than alpha.

    Args:
        rows: ``label, <score>, sd, low, high`` of each. Where no setting has several seeds, bars
            are its interval.
        chance: Score of a predictor that never looks.
        title: Above the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(7.2, 0.8 + 0.34 * len(rows))
    places = np.arange(len(rows))[::-1]
    values = np.array([row[kind.key] for row in rows])
    by_seeds = any(row["sd"] is not None for row in rows)
    if by_seeds:
        bars, meaning = np.array([row["sd"] or 0 for row in rows]), "± 1 sd over seeds"
    else:
        ends = [
            (v, v) if r["low"] is None else (r["low"], r["high"])
            for v, r in zip(values, rows, strict=True)
        ]
        bars, meaning = np.abs(np.array(ends).T - values), "95 % interval"
    style: dict[str, Any] = {"fmt": "o", "color": ACCENT, "ecolor": MUTED, "capsize": 3}
    axes.errorbar(values, places, xerr=bars, **style)
    axes.axvline(chance, color=INK, linestyle=":", linewidth=1.2, label=f"chance {chance:.3f}")
    axes.set_yticks(places, [row["label"] for row in rows], fontsize=8)
    axes.set(xlabel=f"{kind.title}, validation; bars: {meaning}", title=title)
    axes.legend(bbox_to_anchor=(-0.05, _under(figure)), **BELOW)
    save_figure(figure, rows, stem)


def draw_unseen(rows: Rows, chance: float, title: str, stem: Path) -> None:
    """Recall of classes by heads that never saw them, and by features alone.

    Args:
        rows: ``class, recall, recall_without_head`` of each, with the ends of their intervals.
        chance: Recall of a guess.
        title: Above the picture.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(7.2, 1.2 + 0.42 * len(rows))
    places = np.arange(len(rows))[::-1]
    for name, label, color, shift in (
        ("recall", "heads that never saw the class", ACCENT, 0.12),
        ("recall_without_head", "without a head", MUTED, -0.12),
    ):
        values = [row[name] for row in rows]
        ends = [(row[f"{name}.low"], row[f"{name}.high"]) for row in rows]
        # No interval is drawn where there is none
        known = [
            (v, v) if low is None else (low, high)
            for (low, high), v in zip(ends, values, strict=True)
        ]
        bars = np.abs(np.array(known).T - np.array(values))
        style: dict[str, Any] = {"fmt": "o", "color": color, "capsize": 3, "markersize": 5}
        axes.errorbar(values, places + shift, xerr=bars, label=label, **style)
    axes.axvline(chance, color=INK, linestyle=":", linewidth=1.2, label=f"chance {chance:.3f}")
    names = [
        row["class"] + ("" if row["recall.low"] is not None else "\n(no interval)") for row in rows
    ]
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlabel="recall, validation; bars: 95 % interval", title=title, xlim=(-0.03, 1.03))
    axes.legend(ncols=3, bbox_to_anchor=(-0.05, _under(figure)), **BELOW)
    save_figure(figure, rows, stem)


def draw_window(rows: Rows, chosen: Collection[int], title: str, kind: Kind, stem: Path) -> None:
    """Score of the ensemble against the half-width of its window, evenly spaced.

    Args:
        rows: ``window, <score>`` of each point, in order.
        chosen: Half-widths that were chosen, which are marked.
        title: Above the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(7.2, 3.4)
    places, scores = range(len(rows)), [row[kind.key] for row in rows]
    axes.plot(places, scores, color=ACCENT, marker="o", markersize=4)
    marked = [place for place in places if rows[place]["window"] in chosen]
    label = "chosen" if any(chosen) else "chosen: no window"
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": SECOND, "linewidths": 2, "s": 90}
    axes.scatter(marked, [scores[place] for place in marked], label=label, zorder=3, **ring)

    # Numbers at the marked points and at the plain mean
    for place in {0, *marked}:
        at = (place, scores[place])
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{scores[place]:.3f}", at, xytext=(0, 9), **style)
    axes.set_xticks(places, [str(row["window"]) for row in rows])
    axes.margins(y=0.18)
    axes.set(xlabel="mean over ± so many frames", ylabel=kind.title, title=title)
    axes.legend(bbox_to_anchor=(-0.05, -0.2), **BELOW)
    save_figure(figure, rows, stem)


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    plt.style.use(STYLE)
    return plt.subplots(figsize=(width, height))


def _under(figure: Figure) -> float:
    """Where a legend begins below the label of the x axis, whatever the height of the picture."""
    return -0.62 / figure.get_size_inches()[1]


def save_figure(figure: Figure, rows: Rows, stem: Path) -> None:
    """Write a picture, and its numbers beside it."""
    write_csv(stem.with_name(f"{stem.name}.csv"), rows)
    with atomic_path(stem.with_name(f"{stem.name}.png")) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)
