"""The picture of the README's first screen, and the one of drawn faces; see `pictures.py`.

Letters are large: on a phone, 360 pixels wide, they are still those of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from raffect.bank.facts import DRAWN_CAVEAT
from raffect.datasets.affwild2.tasks import EXPR, EXPRESSIONS
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.datasets.synthetic.course import contact_sheet
from raffect.datasets.synthetic.faces import SIZE
from raffect.predictions.table import read_predictions
from raffect.reporting.colors import color_of
from raffect.reporting.figures import ACCENT, INK, MUTED, SECOND, STYLE
from raffect.reporting.page import DOTS_PER_INCH
from raffect.runs.metrics_file import Metrics
from raffect.runs.spread import short

WIDTH = 6.2
"""Inches of a picture that is 360 pixels wide on a phone: 11 points are then 9 pixels."""
LETTERS = 11


def draw_expressions() -> Image.Image:
    """A drawn face of each expression, another subject in each."""
    sheet = contact_sheet(0, len(EXPRESSIONS))
    faces = [
        sheet[k * SIZE : (k + 1) * SIZE, k * SIZE : (k + 1) * SIZE] for k in range(len(EXPRESSIONS))
    ]
    plt.style.use(STYLE)
    figure = plt.figure(figsize=(WIDTH, 3.8), layout="constrained")
    figure.suptitle(
        f"{DRAWN_CAVEAT.capitalize()}, one of each expression", x=0.01, ha="left", fontsize=LETTERS
    )
    for axes, face, name in zip(figure.subplots(2, 4).flat, faces, EXPRESSIONS, strict=True):
        _draw_face(axes, face, name)
    return _image_of(figure)


def draw_first_screen(demo: Path) -> Image.Image:
    """Drawn faces with predicted expressions, and macro F1 against alpha.

    Args:
        demo: The folder of `raffect demo`.
    """
    plt.style.use(STYLE)
    figure = plt.figure(figsize=(WIDTH, 4.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05), wspace=0.03)
    _draw_predicted(left, demo)
    file = demo / "expr-alpha" / "metrics.json"
    _draw_sweep(right, Metrics.from_json(file.read_bytes(), file, "run the demo again"))
    return _image_of(figure)


def _draw_predicted(figure: Figure, demo: Path) -> None:
    """A validation frame of each expression, drawn by lot, with what the heads predict."""
    # Frames of the validation split with label and prediction, in random order
    labels = read_labels(demo / "data" / "labels" / "expr.parquet")
    labels = labels.filter(pc.equal(labels["split"].cast("string"), "validation"))
    manifest, predicted = read_manifest(demo / "data"), read_predictions(demo / "bank.parquet")
    keys = ["video", "frame"]
    rows = (
        predicted.to_pandas()[[*keys, EXPR.name]]
        .merge(labels.to_pandas()[[*keys, "expression"]], on=keys)
        .merge(manifest.to_pandas()[[*keys, "root", "path"]], on=keys)
        .sample(frac=1, random_state=0)
    )

    # The first of each expression, of a video that is not shown yet where there is one
    figure.suptitle("Predicted on drawn faces", fontsize=LETTERS + 1, fontweight="bold")
    cells, videos = list(figure.subplots(3, 3).flat), set()
    for number, axes in enumerate(cells[: len(EXPRESSIONS)]):
        found = rows[rows["expression"] == number]
        others = found[~found["video"].isin(videos)]
        row = (found if others.empty else others).iloc[0]
        videos.add(row["video"])
        face = np.asarray(Image.open(Path(row["root"]) / row["path"]))
        _draw_face(axes, face, row[EXPR.name], EXPRESSIONS[number])
    cells[-1].set_axis_off()
    text = "red: wrong,\nthe label\nin brackets"
    cells[-1].text(0.0, 0.5, text, va="center", fontsize=LETTERS - 1, color=SECOND)


def _draw_face(axes: Axes, face: np.ndarray, name: str, true: str = "") -> None:
    axes.imshow(face)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    wrong = bool(true) and name != true
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=3, color=color_of(EXPRESSIONS.index(name)))
    label = f"{name}\n({true})" if wrong else name
    axes.set_xlabel(label, fontsize=LETTERS - 1, color=SECOND if wrong else INK, labelpad=2)


def _draw_sweep(figure: Figure, metrics: Metrics) -> None:
    """Mean over seeds and interval over videos at each alpha, beside ERM and chance."""
    figure.suptitle("Macro F1 against alpha", fontsize=LETTERS + 1, fontweight="bold")
    axes = figure.subplots()
    swept = sorted(
        (setting for setting in metrics.settings if not setting.erm),
        key=lambda setting: setting.settings["loss.alpha"],
    )
    scores = [setting.scores["last"] for setting in swept]
    alphas = [float(setting.settings["loss.alpha"]) for setting in swept]
    means = np.array([score.mean for score in scores])
    intervals = np.array([score.interval_95 for score in scores])
    bars = np.abs(intervals.T - means)
    style = {"color": ACCENT, "ecolor": MUTED, "capsize": 3, "elinewidth": 1}
    axes.errorbar(alphas, means, yerr=bars, fmt="o-", markersize=5, **style)
    (erm,) = [setting.scores["last"].mean for setting in metrics.settings if setting.erm]
    levels = ((erm, "plain ERM", SECOND, "-."), (metrics.chance.level, "chance", INK, ":"))
    for level, name, color, line in levels:
        label = f"{name} {short(level)}"
        axes.axhline(level, color=color, linestyle=line, linewidth=1.3, label=label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.13), fontsize=LETTERS - 1)
    axes.set_ylim(0, 1)
    _label(axes, [f"mean of {scores[0].heads} seeds; bars: 95 % over videos", metrics.data.caveat])


def _label(axes: Axes, lines: Sequence[str]) -> None:
    axes.tick_params(labelsize=LETTERS - 1)
    axes.set_xlabel("\n".join(["alpha: share of worst frames", *lines]), fontsize=LETTERS - 1)


def _image_of(figure: Figure) -> Image.Image:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    return Image.open(file).convert("RGB")
