"""`raffect report`: the results of runs, as report.md and one self-contained report.html.

Every picture has a CSV with its numbers beside it.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raffect.bank.facts import DRAWN_CAVEAT
from raffect.progress import format_seconds
from raffect.reporting import figures
from raffect.reporting.page import as_code, as_text, to_html
from raffect.reporting.run import Run, read_run
from raffect.runs.records import HeadRecord
from raffect.runs.spread import CHOICE, NAMES, Spread, how_chosen, short, value_text
from raffect.storage.atomic import write_atomic

_ALPHAS_WITHOUT_AN_AXIS = 2
_DRAWN_MEANS = ": these scores say nothing about photographs of people."


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """Where a report lies.

    Attributes:
        html: The page, with its pictures inside.
        markdown: The same as text.
        pictures: PNG files, each with a CSV of its numbers beside it.
    """

    html: Path
    markdown: Path
    pictures: tuple[Path, ...]

    def lines(self) -> list[str]:
        """For people."""
        others = "report.md, and plots/ with a CSV beside every picture"
        return [f"wrote {self.html} (open it in a browser), {others}"]


def report(paths: Sequence[Path], out: Path | None = None) -> ReportResult:
    """Write the report.

    Args:
        paths: Run folders.
        out: Folder for it; by default the first run's.

    Raises:
        RaffectError: If a folder holds no finished head.
    """
    # All runs together
    runs = [read_run(path) for path in paths]
    out = (out or paths[0]).absolute()
    lines = ["# raffect report", "", *_caveat_lines(runs), "## Table I", "", *table_one(runs), ""]
    lines += [f"{as_text(line)}\n" for run in runs for line in run.data.missing_lines()]

    # A section for each run
    pictures: dict[str, bytes] = {}
    stems = name_pictures([run.folder.path.name for run in runs])
    for run, stem in zip(runs, stems, strict=True):
        lines += _Section(run, out / "plots", stem, pictures).lines()
    lines += ["## What was run", "", *_provenance(runs)]

    # The files
    text = "\n".join(lines) + "\n"
    write_atomic(out / "report.md", text.encode())
    write_atomic(out / "report.html", to_html(text, pictures).encode())
    return ReportResult(
        html=out / "report.html",
        markdown=out / "report.md",
        pictures=tuple(out / address for address in pictures),
    )


def table_one(runs: Sequence[Run]) -> list[str]:
    """Scores of each run's headline settings beside the chance level.

    Published scores are added where the data are Aff-Wild2 itself.
    """
    title = " / ".join(dict.fromkeys(run.kind.title for run in runs))
    groups = " / ".join(dict.fromkeys(as_text(run.data.group_name) for run in runs))
    lines = [
        f"| task | method | epoch chosen | {title} | ± sd (seeds) | 95 % over {groups} |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        lines += _table_one_rows(run)
    return [
        *lines,
        "",
        f"95 % over {groups}: of the mean over seeds, when the {groups} of the validation split "
        "are drawn again with replacement (1,000 draws); it says how far others might have "
        "scored.",
    ]


def _table_one_rows(run: Run) -> list[str]:
    task, records, mark = as_text(run.title), run.headline, as_text(run.data.incomplete_mark)
    lines = []

    # The headline's heads, then plain ERM
    method = as_text(describe(records[0], run))
    for name, label in NAMES.items():
        if found := run.spread(records, name):
            epoch = f"{label}: {how_chosen(name, run.has_stopped).split(':')[0]}"
            lines.append(f"| {task} | raffect, {method}{mark} | {epoch} | {_cells(found)} |")
    if (erm := run.erm()) and erm[0].id != records[0].id and (found := run.spread(erm, "last")):
        lines.append(f"| {task} | raffect, ERM{mark} | {NAMES['last']} | {_cells(found)} |")

    # The chance level, then published scores
    chance = records[0].chance
    others = [(f"chance (majority): {as_text(chance.answer)}", "-", chance.majority)]
    if chance.prior is not None:
        others.append(("chance (prior): guesses by the class shares", "-", chance.prior))
    others += [(as_text(name), "unstated", value) for name, value in run.data.published.items()]
    lines += [f"| {task} | {name} | {epoch} | {short(x)} | - | - |" for name, epoch, x in others]
    return lines


def describe(record: HeadRecord, run: Run) -> str:
    """A head's values of the settings in which a run's groups differ, or of alpha and rho."""
    names = run.varying or ["loss.alpha", "sam.rho"]
    values = [(name.rpartition(".")[2], value_text(record.settings[name])) for name in names]
    return ", ".join(f"{name} {value}" for name, value in values)


def name_pictures(names: Sequence[str]) -> list[str]:
    """A file name for each run's pictures; all are numbered where two would be equal."""
    plain = [re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) for name in names]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{number}-{stem}" for number, stem in enumerate(plain, start=1)]


@dataclass(frozen=True)
class _Section:
    """Figures and tables of one run.

    Attributes:
        run: The run.
        plots: Folder of pictures.
        stem: How the names of its pictures begin.
        pictures: Those of the report by address; added to.
    """

    run: Run
    plots: Path
    stem: str
    pictures: dict[str, bytes]

    def lines(self) -> list[str]:
        """Markdown."""
        title = f"## {as_text(self.run.title)}: {as_text(self.run.folder.path.name)}"
        return [title, "", *self._settings(), *self._outputs(), *self._confusion(), *self._curves()]

    def _path(self, what: str) -> Path:
        return self.plots / f"{self.stem}-{what}"

    def _show(self, what: str, text: str) -> list[str]:
        """Lines that show the picture of `_path`, which was just drawn."""
        address = f"plots/{self.stem}-{what}.png"
        self.pictures[address] = (self.plots / f"{self.stem}-{what}.png").read_bytes()
        return [f"![{text}]({address})", "", f"Numbers: `plots/{self.stem}-{what}.csv`", ""]

    def _settings(self) -> list[str]:
        """Figure 2 where alpha is an axis, else scores by settings; empty for one setting."""
        run = self.run

        # Alpha is an axis if there are more values than ERM's and one other
        alphas = {group[0].recipe.loss.alpha for group in run.groups}
        if len(alphas) > _ALPHAS_WITHOUT_AN_AXIS:
            rows, references = _alpha_rows(run)
            title = f"{run.title} {run.kind.title} against alpha{run.mark}"
            figures.draw_alpha(rows, references, title, run.kind, self._path("alpha"))
            shown = self._show("alpha", f"{run.kind.title} against alpha")
            return ["### Figure 2", "", *shown, *_settings_table(run)]

        # Other axes
        if len(run.groups) > 1:
            title = f"{run.title} by settings{run.mark}"
            figures.draw_scores(_score_rows(run), title, run.kind, self._path("settings"))
            return [*self._show("settings", f"{run.kind.title} by settings"), *_settings_table(run)]
        return []

    def _about(self) -> str:
        records = self.run.headline
        return f"{describe(records[0], self.run)}, last epoch, {len(records)} seed(s)"

    def _outputs(self) -> list[str]:
        """Scores of each class, label or value."""
        run, kind, about = self.run, self.run.kind, self._about()
        main, rows = kind.columns[0][0], _output_rows(run)
        title = f"{run.title} {main} by {kind.part}: {about}{run.mark}"
        figures.draw_outputs(rows, title, kind, self._path(kind.parts))
        return [
            f"### {kind.parts.capitalize()}",
            "",
            f"{as_text(about)}; mean over seeds, bars ± 1 sd, frames below the names.",
            "",
            *self._show(kind.parts, f"{main} by {kind.part}"),
            *_output_table(rows, run),
        ]

    def _confusion(self) -> list[str]:
        """The confusion matrix of classes; empty for other kinds of tasks."""
        run, about = self.run, self._about()
        found = [record.scores["last"].confusion for record in run.headline]
        matrices = [np.array(matrix) for matrix in found if matrix is not None]
        if not matrices:
            return []
        total, names, path = np.sum(matrices, 0), run.task.outputs, self._path("confusion")
        title = f"{run.title} confusion, shares of each true class: {about}{run.mark}"
        figures.draw_confusion(total, names, title, path)
        text = f"{as_text(about)}; counts added over seeds, each row in shares of its true class."
        return ["### Confusion", "", text, "", *self._show("confusion", "confusion matrix")]

    def _curves(self) -> list[str]:
        run = self.run
        title = f"{run.title} learning curves{run.mark}"
        figures.draw_curves(_curve_rows(run), title, run.kind, self._path("curves"))
        return ["### Learning curves", "", *self._show("curves", "learning curves")]


def _alpha_rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and horizontal lines of Figure 2.

    A row is a head and one of its scores; all heads have the headline's other settings.
    """
    # Heads that differ in alpha and seed alone
    reference, key = run.headline[0].settings, run.kind.key
    others = [name for name in reference if name not in ("seed", "loss.alpha")]
    alike = [
        record
        for group in run.groups
        for record in group
        if all(record.settings[name] == reference[name] for name in others)
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
    lines = {}
    if (erm := run.erm()) and (found := run.spread(erm, "last")):
        lines["ERM (no SAM), val-last"] = found.mean
    chance = alike[0].chance
    return rows, lines | {f"chance ({chance.name})": chance.level}


def _settings_table(run: Run) -> list[str]:
    """A row a setting, then what the columns mean."""
    titles = ["settings", "val-last", "± sd (seeds)", f"95 % over {as_text(run.data.group_name)}"]
    titles += ["val-best", "val-cv"] if run.has_folds else ["val-best"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for group in run.groups:
        last, best, cv = (run.spread(group, name) for name in ("last", "best", "cv"))
        assert last is not None  # every finished head has both
        assert best is not None
        setting = as_text(describe(group[0], run)) + as_text(run.data.incomplete_mark)
        cells = [setting, _cells(last), short(best.mean)]
        cells += [short(cv.mean if cv else None)] if run.has_folds else []
        lines.append(f"| {' | '.join(cells)} |")
    meaning = (
        f"val-last: {how_chosen('last', run.has_stopped)}. val-best: {CHOICE['best']}. "
        "Comparing settings on the validation split is optimistic as well."
    )
    return [*lines, "", meaning, ""]


def _output_rows(run: Run) -> list[dict[str, Any]]:
    """A row a class, label or value: each score's mean over seeds, the first one's sd, frames."""
    outputs = [record.scores["last"].outputs for record in run.headline]
    *scores, (_, frames) = run.kind.columns
    rows = []
    for name in outputs[0]:
        values = {key: [part[name][key] for part in outputs] for _, key in scores}
        first = values[scores[0][1]]
        sd = float(np.std(first, ddof=1)) if len(outputs) > 1 else None
        means = {key: float(np.mean(found)) for key, found in values.items()}
        rows.append({"name": name, **means, "sd": sd, "frames": outputs[0][name][frames]})
    return rows


def _output_table(rows: list[dict[str, Any]], run: Run) -> list[str]:
    """The same rows as a table."""
    (first, key), *others, _ = run.kind.columns
    titles = [run.kind.part, first, "± sd", *(title for title, _ in others), "frames"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        scores = [short(row[name]) for name in (key, "sd", *(other for _, other in others))]
        cells = [as_text(run.task.describe(row["name"])), *scores, f"{row['frames']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _curve_rows(run: Run) -> list[dict[str, Any]]:
    """A row a setting and epoch: training loss and validation score, mean over seeds."""
    rows, score_name = [], run.kind.curve_key
    for group in run.groups:
        label = describe(group[0], run)
        losses = np.mean([record.curve.train_loss for record in group], 0)
        scores = np.mean([record.curve.validation for record in group], 0)
        for k, (loss, score) in enumerate(zip(losses.tolist(), scores.tolist(), strict=True)):
            rows.append({"label": label, "epoch": k + 1, "train_loss": loss, score_name: score})
    return rows


def _score_rows(run: Run) -> list[dict[str, Any]]:
    """A row a setting: mean and standard deviation of its score at the last epoch."""
    found = [(group, run.spread(group, "last")) for group in run.groups]
    return [
        {"label": describe(group[0], run), run.kind.key: value.mean, "sd": value.sd}
        for group, value in found
        if value
    ]


def _cells(found: Spread) -> str:
    """Mean, spread over seeds and interval over videos as three cells of a table."""
    sd = f"± {short(found.sd)} ({found.heads})" if found.sd is not None else "one seed"
    low, high = found.interval_95 or (None, None)
    interval = f"[{short(low)}, {short(high)}]" if found.interval_95 else "-"
    return f"{short(found.mean)} | {sd} | {interval}"


def _caveat_lines(runs: Sequence[Run]) -> list[str]:
    """What no score below may be taken for, in quotation blocks."""
    caveats = list(dict.fromkeys(caveat for run in runs for caveat in run.data.caveats))
    means = _DRAWN_MEANS if DRAWN_CAVEAT in caveats else ""
    lines = [f"> **{as_text('; '.join(caveats))}**{means}", ""] if caveats else []
    marks = sorted({mark for run in runs if (mark := run.data.incomplete_mark.strip())})
    return [*lines, *(line for mark in marks for line in (f"> **{as_text(mark)}**", ""))]


def _provenance(runs: Sequence[Run]) -> list[str]:
    """The command of each run, and facts about it."""
    lines = []
    for run in runs:
        command = as_code(shlex.join(["raffect", *run.record.run.command[1:]]))
        name, where = as_text(run.folder.path.name), as_code(run.record.run.folder)
        lines.append(f"- **{name}**: {command} in {where}")
        lines += [f"  - {as_text(line)}" for line in _facts(run)]
    return lines


def _facts(run: Run) -> list[str]:
    """Heads, data, encoder and versions of a run, a line each."""
    # Heads; those of one batch share its wall time
    trained = [record.trained_by for record in run.records]
    batches = {(part.wall_s, part.batch_of_heads) for part in trained}
    seconds = format_seconds(sum(wall_s for wall_s, _ in batches))
    counts = Counter(record.status for record in run.records)
    statuses = ("done", "diverged", "stopped", "running")
    by_status = ", ".join(f"{counts[name]} {name}" for name in statuses if counts[name])

    # Data and encoder
    data = run.data
    splits = [
        f"{name} {split.frames:,} frames of {split.groups} {data.group_name}"
        for name, split in data.splits.items()
    ]
    encoders = [
        f"{encoder.model}, weights {encoder.weights} ({encoder.weights_sha256[:12]})"
        for encoder in data.encoders
    ]

    # Versions; a run that went on may have been trained by several commits
    made, versions = run.record.run, run.record.run.versions
    commits = sorted({str(part.git_commit or "unknown")[:20] for part in trained})
    return [
        f"{len(trained)} heads ({by_status}), {seconds} of training, batches added up, "
        f"on {trained[0].device}",
        f"{', '.join(splits)}; edition {data.edition!r}",
        f"encoder {' and '.join(encoders)}, bank {data.bank_digest[:12]}, "
        f"labels {data.labels_sha256[:12]}",
        f"raffect {versions['raffect']}, commit {', '.join(commits)}, "
        f"torch {versions['torch']}, Python {versions['python']}, {made.time}",
    ]
