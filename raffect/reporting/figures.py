"""The report's pictures, each drawn from rows that are written beside it as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from raffect.metrics.kinds import Kind
from raffect.storage.atomic import atomic_path
from raffect.storage.tables import write_csv

mpl.rcParams["text.parse_math"] = (
    False  # names and caveats come from run folders and are text, dollar signs too
)

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
PAPER_ALPHA = 0.3


def draw_alpha(rows: Rows, lines: dict[str, float], title: str, kind: Kind, stem: Path) -> None:
    """Figure 2: the headline score against alpha, a dot a head, mean and standard deviation over seeds.

    Args:
        rows: ``alpha, seed, <headline score>, score`` of each head; ``score`` names how its epoch was chosen.
        lines: Horizontal lines by name: ERM, chance.
        title: Above the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    figure, axes = _new(7.2, 4.2)
    for (name, color, shade), score in zip(
        (("val-last", ACCENT, 0.16), ("val-best", MUTED, 0.0)),
        ("val-last", "val-best"),
        strict=True,
    ):
        part = [row for row in rows if row["score"] == score]
        alphas = sorted({row["alpha"] for row in part})
        values = [[row[kind.key] for row in part if row["alpha"] == alpha] for alpha in alphas]
        mean, sd = (
            np.array([np.mean(v) for v in values]),
            np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]),
        )
        label = (
            f"{name}, mean over {min(map(len, values))}-{max(map(len, values))} seeds"
            if min(map(len, values)) != max(map(len, values))
            else f"{name}, mean over {len(values[0])} seeds"
        )
        axes.plot(
            alphas,
            mean,
            color=color,
            marker="o",
            markersize=4,
            linestyle="-" if shade else "--",
            label=label + (", band ± 1 sd" if shade else " (epoch chosen on validation)"),
        )
        if shade:
            axes.fill_between(alphas, mean - sd, mean + sd, color=color, alpha=shade, linewidth=0)
            axes.scatter(
                [row["alpha"] for row in part],
                [row[kind.key] for row in part],
                s=9,
                color=color,
                alpha=0.45,
                linewidths=0,
            )
    low, high = axes.get_ylim()
    for (name, value), (color, style) in zip(
        lines.items(), ((SECOND, "-."), (INK, ":")), strict=False
    ):
        if value > low - 0.5 * (high - low):
            axes.axhline(
                value, color=color, linestyle=style, linewidth=1.2, label=f"{name} {value:.3f}"
            )
        else:  # a line far below would flatten the rest
            axes.plot([], [], color=color, linestyle=style, label=f"{name} {value:.3f}, far below")
    if min(row["alpha"] for row in rows) <= PAPER_ALPHA <= max(row["alpha"] for row in rows):
        axes.axvline(PAPER_ALPHA, color=GRID, linewidth=6, zorder=0)
        axes.annotate(
            "paper's alpha",
            (PAPER_ALPHA, axes.get_ylim()[0]),
            xytext=(5, 3),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
    axes.set(
        xlabel="alpha (1 is the plain mean; smaller looks at the worst frames only)",
        ylabel=f"{kind.title}, validation",
        title=title,
    )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, rows, stem)


def draw_outputs(rows: Rows, title: str, kind: Kind, stem: Path) -> None:
    """Bars of the first score of each class, label or value; ``name, <score>, sd, frames`` a row."""
    figure, axes = _new(7.2, 3.4)
    (label, key), *_ = kind.columns
    names = [row["name"] for row in rows]
    axes.bar(
        names,
        [row[key] for row in rows],
        yerr=[row["sd"] or 0 for row in rows],
        color=ACCENT,
        width=0.65,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )
    for k, row in enumerate(rows):
        axes.annotate(
            f"{row[key]:.2f}",
            (k, max(row[key], 0) + (row["sd"] or 0)),
            ha="center",
            va="bottom",
            fontsize=8,
        )
    axes.set(
        ylabel=label,
        title=title,
        ylim=(min(0, *(row[key] - (row["sd"] or 0) for row in rows)) * 1.08, 1.08),
    )
    axes.set_xticks(
        range(len(names)), [f"{row['name']}\n{row['frames']:,}" for row in rows], fontsize=8
    )
    axes.grid(axis="x", visible=False)
    _save(figure, rows, stem)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], title: str, stem: Path) -> None:
    """Confusion matrix, each row in shares of its true class, the counts in the CSV."""
    figure, axes = _new(6.0, 5.2)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            axes.annotate(
                f"{share[i, j]:.2f}",
                (j, i),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[i, j] > 0.55 else INK,
            )
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(
        range(len(names)),
        [f"{name} ({int(total):,})" for name, total in zip(names, matrix.sum(1), strict=True)],
        fontsize=8,
    )
    axes.set(xlabel="predicted", ylabel="true (frames, over all seeds)", title=title)
    axes.grid(visible=False)
    _save(
        figure,
        [
            {"true": name, **dict(zip(names, map(int, row), strict=True))}
            for name, row in zip(names, matrix, strict=True)
        ],
        stem,
    )


def draw_curves(rows: Rows, title: str, kind: Kind, stem: Path) -> None:
    """Learning curves, mean over seeds: ``label, epoch, train_loss, val_<headline score>`` a row."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.6))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    shown = (
        labels
        if len(labels) <= _MOST_CURVES
        else [labels[k] for k in np.linspace(0, len(labels) - 1, _MOST_CURVES).round().astype(int)]
    )
    for k, label in enumerate(shown):
        part = [row for row in rows if row["label"] == label]
        for axes, name in ((left, "train_loss"), (right, f"val_{kind.key}")):
            axes.plot(
                [row["epoch"] for row in part],
                [row[name] for row in part],
                color=_PALETTE(k / max(len(shown) - 1, 1) * 0.9),
                linewidth=1.3,
                label=label,
            )
    left.set(xlabel="epoch", ylabel="training loss (each one's own CVaR)", title=title)
    right.set(xlabel="epoch", ylabel=f"{kind.title}, validation")
    right.legend(
        fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        title=f"{len(shown)} of {len(labels)}" if len(shown) < len(labels) else None,
    )
    figure.tight_layout()
    _save(figure, rows, stem)


def draw_scores(rows: Rows, title: str, kind: Kind, stem: Path) -> None:
    """Scores of several settings, where alpha is not the axis: ``label, <headline score>, sd`` a row."""
    figure, axes = _new(7.2, 0.8 + 0.34 * len(rows))
    positions = np.arange(len(rows))[::-1]
    axes.errorbar(
        [row[kind.key] for row in rows],
        positions,
        xerr=[row["sd"] or 0 for row in rows],
        fmt="o",
        color=ACCENT,
        ecolor=MUTED,
        capsize=3,
    )
    axes.set_yticks(positions, [row["label"] for row in rows], fontsize=8)
    axes.set(xlabel=f"{kind.title}, validation, last epoch; bars ± 1 sd over seeds", title=title)
    _save(figure, rows, stem)


def _new(width: float, height: float) -> tuple[Figure, Any]:
    plt.style.use(_STYLE)
    return plt.subplots(figsize=(width, height))


def _save(figure: Figure, rows: Rows, stem: Path) -> None:
    write_csv(stem.with_name(f"{stem.name}.csv"), rows)
    with atomic_path(stem.with_name(f"{stem.name}.png")) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)
