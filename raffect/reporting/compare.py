"""The figure of `raffect compare`: score against frames/s, and what else an encoder costs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from raffect.metrics.scores import Chance
from raffect.metrics.task_kinds import Kind
from raffect.reporting.figures import INK, MUTED, PALETTE, STYLE, Rows, save_figure

_WIDTH = 4.6
"""Inches: on a phone the letters then have nearly the size of its own text."""
_MARKERS = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds"}
_LETTERS = 74
"""Characters of a line below the picture."""


def draw_comparison(rows: Rows, chance: Chance, title: str, kind: Kind, stem: Path) -> None:
    """Score with its interval against frames/s, then GFLOP a frame and size of each bank.

    Encoders are letters, which the lines below the picture explain together with their caveats.

    Args:
        rows: ``letter, encoder, recipe, mean, low, high, frames_per_s, gflop, bank_bytes, caveat``
            of each recipe and bank.
        chance: Scores of predictors that look at nothing.
        title: Last of the lines below the picture.
        kind: Of the task.
        stem: Path without suffix of the PNG and the CSV.
    """
    # What is known of a bank alone stands in each of its rows
    banks = list({row["letter"]: row for row in rows}.values())
    plt.style.use(STYLE)
    height = 0.24 * len(banks)
    figure = plt.figure(figsize=(_WIDTH, 3.9 + height))
    grid = figure.add_gridspec(2, 2, height_ratios=(3.0, 0.3 + height), hspace=0.42, wspace=0.12)

    # Score against frames/s
    axes = figure.add_subplot(grid[0, :])
    _draw_scores(axes, rows, banks)
    level: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 1.2}
    axes.axhline(chance.level, label=f"chance {chance.level:.3f} ({chance.name})", **level)
    axes.set(ylabel=f"{kind.title}, validation")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), fontsize=8, handlelength=1.5)

    # Other costs, and words
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    _draw_bars(left, banks, [row["gflop"] for row in banks], "GFLOP a frame")
    _draw_bars(right, banks, [row["bank_bytes"] / 1e6 for row in banks], "bank, MB")
    right.set_yticklabels([])
    figure.text(0.0, 0.02, _explain(rows, banks, title), fontsize=8, va="top", linespacing=1.4)
    save_figure(figure, rows, stem)


def _draw_scores(axes: Axes, rows: Rows, banks: Rows) -> None:
    """A point a bank and recipe; where the rate is not known they stand at the left, hollow."""
    # Places on the logarithmic axis; each point without a rate has one left of all others
    rates = {row["letter"]: row["frames_per_s"] for row in banks}
    known = [rate for rate in rates.values() if rate]
    unknown = [letter for letter, rate in rates.items() if not rate]
    left = min(known, default=1.0) / 1.8
    places = {letter: rate or left / 1.3 ** unknown.index(letter) for letter, rate in rates.items()}
    colors = {letter: PALETTE(k / len(rates) * 0.8) for k, letter in enumerate(rates)}

    # Points with their intervals; several recipes stand side by side
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for row in rows:
        number, color = recipes.index(row["recipe"]), colors[row["letter"]]
        x, y = places[row["letter"]] * 1.06**number, row["mean"]
        low, high = (y, y) if row["low"] is None else (row["low"], row["high"])
        axes.errorbar(
            [x],
            [y],
            yerr=[[max(y - low, 0.0)], [max(high - y, 0.0)]],  # below 0 by rounding of the logit
            fmt=list(_MARKERS)[number % len(_MARKERS)],
            color=color,
            markerfacecolor=color if rates[row["letter"]] else "white",
            capsize=3,
            markersize=6,
        )
        axes.annotate(
            row["letter"],
            (x, y),
            xytext=(6, 4),
            textcoords="offset points",
            color=color,
            fontweight="bold",
        )

    # Few numbers of frames/s, so that they can be read, and a word where they are not known
    ticks = _round_numbers(min(known), max(known)) if known else []
    labels = [f"{tick:,g}" for tick in ticks]
    if unknown:
        ticks = [float(np.exp(np.mean(np.log([places[letter] for letter in unknown])))), *ticks]
        labels = ["blank", *labels]
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels)
    axes.minorticks_off()
    axes.margins(x=0.16)
    axes.set(xlabel="frames/s")


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... around a range, or powers of 10 of a wide one."""
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    every = [step * 10.0**power for power in powers for step in steps]
    return [number for number in every if low / 1.5 <= number <= high * 1.5] or [low]


def _draw_bars(axes: Axes, banks: Rows, values: Sequence[float | None], name: str) -> None:
    """A bar a bank with its number; none where it is not known."""
    places = np.arange(len(banks))[::-1]
    lengths = [value or 0.0 for value in values]
    most = max(lengths) or 1.0
    axes.barh(places, lengths, color=MUTED, height=0.6)
    for place, value, length in zip(places, values, lengths, strict=True):
        text = "not known" if value is None else f"{value:,.3g}"
        at = (length + 0.03 * most, place)
        axes.annotate(text, at, va="center", fontsize=8, color=INK)
    axes.set_yticks(places, [row["letter"] for row in banks], fontweight="bold")
    axes.set(xlim=(0, 1.45 * most), xlabel=name)
    axes.set_xticks([])
    axes.grid(visible=False)


def _explain(rows: Rows, banks: Rows, title: str) -> str:
    """What letters and signs stand for."""
    lines = []
    for row in banks:
        caveat = f" [{row['caveat']}]" if row["caveat"] else ""
        text = f"{row['letter']}  {row['encoder']}{caveat}"
        lines += textwrap.wrap(text, _LETTERS, subsequent_indent="    ")
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    signs = [name for name, _ in zip(_MARKERS.values(), recipes, strict=False)]
    if len(recipes) > 1:
        recipes = [f"{recipes[k]} {signs[k % len(signs)]}" for k in range(len(recipes))]
    return "\n".join([*lines, *textwrap.wrap(f"{title}; {', '.join(recipes)}", _LETTERS)])
