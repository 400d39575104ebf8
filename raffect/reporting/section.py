"""The part of a report on one run: pictures and tables of its settings and its main setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raffect.predictions.gains import read_gains
from raffect.reporting import figures
from raffect.reporting.opening import enumerate_words, plural
from raffect.reporting.page import as_link, as_text
from raffect.reporting.results import settings_rows, settings_table, table_of
from raffect.reporting.rules import curve_rows, rules_lines
from raffect.reporting.run import MOST_SETTINGS, Run
from raffect.reporting.unseen import unseen_lines, unseen_rows
from raffect.reporting.videos import group_rows, groups_table
from raffect.reporting.worst import worst_lines, worst_rows
from raffect.runs.leave_one_out import read_leave_one_out
from raffect.runs.spread import NAMES, mean_score, short
from raffect.storage.tables import write_csv

_ALPHAS_WITHOUT_AN_AXIS = 2
_OPTIMISTIC = (
    "A setting chosen by these scores is as optimistic as val-best: they are of the validation "
    "split itself."
)

_NOT_COMPARED = (
    "Each row is of the classes that its heads have seen, so rows do not compare with each other. "
    "Recall of the unseen classes: `raffect zeroshot --head RUN`."
)


@dataclass(frozen=True)
class Section:
    """Figures and tables of one run.

    Attributes:
        run: The run.
        runs: All of the report.
        plots: Folder of pictures and tables.
        stem: How their names begin.
        pictures: Pictures that were drawn, by address.
        files: Addresses of the CSV files that were written.
    """

    run: Run
    runs: Sequence[Run]
    plots: Path
    stem: str
    pictures: dict[str, bytes] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Markdown; pictures and files are written meanwhile."""
        run = self.run
        seeds = enumerate_words(
            [str(seed) for seed in sorted({record.recipe.seed for record in run.main.heads})]
        )
        heads = f"{plural(len(run.main.heads), 'head')}, {_seeds_word(run)} {seeds}"
        about = f"{as_text(run.describe(run.main.heads))}: {run.main.why}"
        after = " after their last epoch (val-last)" if run.is_trained else ""
        unseen = self._unseen()
        main = "Without a head" if unseen else "Main setting"
        return [
            f"## {as_text(run.title)}: {as_text(run.name)}",
            "",
            *unseen,
            f"{main}: **{about}** ({heads}). "
            f"Unless a table or picture names other settings, it is of these heads{after}, mean "
            "over seeds.",
            "",
            *self._settings(),
            *self._outputs(),
            *self._confusion(),
            *self._worst(),
            *self._groups(),
            *self._curves(),
            *self._rules(),
        ]

    def _path(self, what: str, suffix: str = "") -> Path:
        return self.plots / f"{self.stem}-{what}{suffix}"

    def _link(self, what: str, text: str = "Numbers") -> list[str]:
        """A line with a link to a CSV that was just written."""
        self.files.append(f"plots/{self.stem}-{what}.csv")
        return [f"{text}: {as_link(self.files[-1])}", ""]

    def _show(self, what: str, text: str) -> list[str]:
        """Lines that show the picture of `_path`, which was just drawn."""
        address = f"plots/{self.stem}-{what}.png"
        self.pictures[address] = self._path(what, ".png").read_bytes()
        return [f"![{text}]({address})", "", *self._link(what)]

    def _settings(self) -> list[str]:
        """Figure 2 where alpha is an axis, else scores by settings; empty for one setting."""
        run = self.run
        if len(run.groups) == 1:
            return []

        # Alpha is an axis if there are more values than ERM's and one other
        rows, references = _alpha_rows(run)
        alphas = {row["alpha"] for row in rows}
        alphas |= {run.erm[0].recipe.loss.alpha} if run.erm else set()
        if len(alphas) > _ALPHAS_WITHOUT_AN_AXIS:
            title = f"{run.title} {run.kind.title} against alpha{run.mark}"
            figures.draw_alpha(rows, references, title, run.kind, self._path("alpha"))
            shown = self._show("alpha", f"{run.kind.title} against alpha")
            lines = ["### Settings (the paper's Figure 2)", "", *shown]
        else:
            title = f"{run.title} by settings{run.mark}"
            chance = run.main.heads[0].chance.level
            path = self._path("by-setting")
            figures.draw_scores(_score_rows(run), chance, title, run.kind, path)
            shown = self._show("by-setting", f"{run.kind.title} by setting")
            lines = ["### Settings", "", *shown]

        # All of them as a table, or of very many the best
        write_csv(self._path("settings", ".csv"), settings_rows(run))
        left_out = len(run.groups) - len(run.shown_groups)
        few = f"The {MOST_SETTINGS} settings with the highest val-last of {len(run.groups):,}. "
        meaning = (few if left_out else "") + _OPTIMISTIC
        if run.main.rule == "classes":
            meaning = _NOT_COMPARED
        link = self._link("settings", "All settings")
        return [*lines, *settings_table(run), meaning, "", *link]

    def _unseen(self) -> list[str]:
        """Recall of classes by heads that never saw them; empty without such heads."""
        lines: list[str] = []
        tables = read_leave_one_out(self.run.folder.path)
        for number, found in enumerate(tables, start=1):
            what = "unseen" if len(tables) == 1 else f"unseen-{number}"
            title = f"{self.run.title}, leave one class out: {found.run}{self.run.mark}"
            figures.draw_unseen(unseen_rows(found), found.chance, title, self._path(what))
            shown = self._show(what, "recall of classes by heads that never saw them")
            lines += [*shown, *unseen_lines(found)]
        return ["### Leave one class out", "", *lines] if lines else []

    def _about(self) -> str:
        heads = self.run.main.heads
        seeds = len({record.recipe.seed for record in heads})
        epoch = "last epoch, " if self.run.is_trained else ""
        return f"{self.run.describe(heads)}, {epoch}{plural(seeds, 'seed')}"

    def _outputs(self) -> list[str]:
        """Scores of each class, label or value."""
        run, kind = self.run, self.run.kind
        main, rows = kind.columns[0][0], _output_rows(run)
        title = f"{run.title} {main} by {kind.part}: {self._about()}{run.mark}"
        figures.draw_outputs(rows, title, kind, self._path(kind.parts))
        return [
            f"### {kind.parts.capitalize()}",
            "",
            *self._show(kind.parts, f"{main} by {kind.part}"),
            *_output_table(rows, run),
        ]

    def _confusion(self) -> list[str]:
        """The confusion matrix of classes; empty for other kinds of tasks."""
        run = self.run
        found = [record.scores["last"].confusion for record in run.main.heads]
        matrices = [np.array(matrix) for matrix in found if matrix is not None]
        if not matrices:
            return []
        names, path = run.task.outputs, self._path("confusion")
        title = f"{run.title} confusion: {self._about()}{run.mark}"
        figures.draw_confusion(np.array(matrices), names, title, path)
        text = (
            "Each row is one true class, and each cell the share of its frames that were predicted "
            "as the column's class; the CSV counts frames, added over seeds."
        )
        return ["### Confusion", "", text, "", *self._show("confusion", "confusion matrix")]

    def _worst(self) -> list[str]:
        """Worst output and worst videos; empty without statistics."""
        if not (rows := worst_rows(self.run, self.runs)):
            return []
        write_csv(self._path("worst", ".csv"), rows)
        lines = worst_lines(self.run, self.runs)
        return ["### Worst cases", "", *lines, *self._link("worst")]

    def _groups(self) -> list[str]:
        """The videos that cost the most; empty without their statistics."""
        if not (rows := group_rows(self.run)):
            return []
        write_csv(self._path("groups", ".csv"), rows)
        name = as_text(self.run.data.group_name)
        link = self._link("groups", f"All {name}")
        return [f"### {name.capitalize()}", "", *groups_table(self.run, rows), *link]

    def _curves(self) -> list[str]:
        """Learning curves; empty for heads that were never trained."""
        run = self.run
        if run.record.command == "zeroshot":
            return []
        title = f"{run.title} learning curves, mean over seeds{run.mark}"
        rows, how_many = _curve_rows(run)
        figures.draw_curves(rows, title, how_many, run.kind, self._path("curves"))
        return ["### Learning curves", "", *self._show("curves", "learning curves")]

    def _rules(self) -> list[str]:
        """Decision rules, before and after; empty without them."""
        run = self.run
        if (found := read_gains(run.folder.path)) is None:
            return []
        lines = ["### Decision rules", "", *rules_lines(found)]
        if not found.curve:
            return lines
        chosen = set(found.rules.windows)
        title = f"{run.title} against the window, {found.where}{run.mark}"
        path = self._path("window")
        figures.draw_window(curve_rows(found), chosen, title, run.kind, path)
        return [*lines, *self._show("window", f"{run.kind.title} against the window")]


def _seeds_word(run: Run) -> str:
    return "seeds" if len({record.recipe.seed for record in run.main.heads}) > 1 else "seed"


def _alpha_rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and horizontal lines of Figure 2.

    A row is a head and one of its scores; all heads have the main setting's other values.
    """
    # Heads that differ in alpha and seed alone
    reference, key = run.main.heads[0].settings, run.kind.key
    others = [name for name in reference if name not in ("seed", "loss.alpha")]
    alike = [
        record
        for heads in run.groups
        if all(heads[0].settings[name] == reference[name] for name in others)
        for record in heads
    ]
    rows = [
        {
            "alpha": record.recipe.loss.alpha,
            "seed": record.recipe.seed,
            "score": NAMES[name],
            key: record.scores[name].headline,
            "epoch": record.scores[name].epoch,
        }
        for name in ("last", "best")
        for record in alike
    ]

    # ERM and the chance level
    lines = {"plain ERM (val-last)": mean_score(run.erm, "last")} if run.erm else {}
    chance = alike[0].chance
    return rows, lines | {f"chance ({chance.name})": chance.level}


def _score_rows(run: Run) -> list[dict[str, Any]]:
    """A row a setting: mean, sd over seeds and interval of its score at the last epoch."""
    found = [(heads, run.spread(heads, "last")) for heads in run.shown_groups]
    return [
        {"label": run.describe(heads), run.kind.key: value.mean, "sd": value.sd}
        | dict(zip(("low", "high"), value.interval_95 or (None, None), strict=True))
        for heads, value in found
        if value
    ]


def _output_rows(run: Run) -> list[dict[str, Any]]:
    """A row a class, label or value: each score's mean over seeds, the first one's sd, frames."""
    outputs = [record.scores["last"].outputs for record in run.main.heads]
    *scores, (_, frames) = run.kind.columns
    rows = []
    for name in outputs[0]:
        # By the heads that have seen the class, where some leave it out
        own = [part[name] for part in outputs if part[name][frames]] or [outputs[0][name]]
        values = {key: [part[key] for part in own] for _, key in scores}
        first = values[scores[0][1]]
        sd = float(np.std(first, ddof=1)) if len(own) > 1 else None
        means = {key: float(np.mean(found)) for key, found in values.items()}
        rows.append({"name": name, **means, "sd": sd, "frames": own[0][frames]})
    return rows


def _output_table(rows: Sequence[dict[str, Any]], run: Run) -> list[str]:
    """The same rows as a table; one without a frame has no scores."""
    (first, key), *others, _ = run.kind.columns
    titles = [run.kind.part, first, "± sd", *(title for title, _ in others), "frames"]
    cells = []
    for row in rows:
        keys = (key, "sd", *(other for _, other in others))
        scores = [short(row[name]) if row["frames"] else "-" for name in keys]
        frames = f"{row['frames']:,}" if row["frames"] else "none"
        cells.append([as_text(run.task.describe(row["name"])), *scores, frames])
    return table_of(titles, cells)


def _curve_rows(run: Run) -> tuple[list[dict[str, Any]], str]:
    """A row a setting and epoch, and what they are if not all settings: mean over seeds."""
    # Of many settings, some at equal distances
    count = min(len(run.shown_groups), figures.MOST_CURVES)
    places = np.linspace(0, len(run.shown_groups) - 1, count).round().astype(int)
    rows, score_name = [], run.kind.curve_key
    for heads in (run.shown_groups[place] for place in places):
        label = run.describe(heads)
        losses = np.mean([record.curve.train_loss for record in heads], 0)
        scores = np.mean([record.curve.validation for record in heads], 0)
        for k, (loss, score) in enumerate(zip(losses.tolist(), scores.tolist(), strict=True)):
            rows.append({"label": label, "epoch": k + 1, "train_loss": loss, score_name: score})
    return rows, f"{count} of {len(run.groups)} settings" if count < len(run.groups) else ""
