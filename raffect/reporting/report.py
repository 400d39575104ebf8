"""`raffect report`: what runs found, as report.md and one self-contained report.html, with every picture's numbers beside it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raffect.progress import format_seconds
from raffect.reporting import figures
from raffect.reporting.page import as_code, as_text, to_html
from raffect.reporting.run import Run, read_run
from raffect.runs.records import HeadRecord
from raffect.runs.scores import CHOICE, NAMES, Spread, how_chosen, short, value_text
from raffect.storage.atomic import write_atomic

_MOST_ALPHAS_OF_A_PAIR = 2
_NO_CAVEAT = "these scores say nothing about photographs of people."


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
        return [
            f"wrote {self.html} (open it in a browser), report.md, and plots/ with a CSV beside every picture"
        ]


def report(paths: Sequence[Path], out: Path | None = None) -> ReportResult:
    """Write the report.

    Args:
        paths: Run folders.
        out: Folder for it; by default the first run's.

    Raises:
        RaffectError: If a folder holds no finished head.
    """
    runs = [read_run(path) for path in paths]
    out = (out or paths[0]).absolute()
    lines = ["# raffect report", "", *_caveat_lines(runs), "## Table I", "", *table_one(runs), ""]
    lines += [f"{as_text(line)}\n" for run in runs for line in run.data.missing_lines()]
    pictures: dict[str, bytes] = {}
    for run, stem in zip(runs, name_pictures([run.folder.path.name for run in runs]), strict=True):
        lines += _Section(run, out / "plots", stem, pictures).lines()
    lines += ["## What was run", "", *_provenance(runs)]
    text = "\n".join(lines) + "\n"
    write_atomic(out / "report.md", text.encode())
    write_atomic(out / "report.html", to_html(text, pictures).encode())
    return ReportResult(
        html=out / "report.html",
        markdown=out / "report.md",
        pictures=tuple(out / address for address in pictures),
    )


def table_one(runs: Sequence[Run]) -> list[str]:
    """Scores of each run's headline settings beside the chance level, and published ones where the data are Aff-Wild2 itself."""
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
        f"95 % over {groups}: of the mean over seeds, when the {groups} of the validation split are drawn again "
        "with replacement (1,000 draws); it says how far others might have scored.",
    ]


def _table_one_rows(run: Run) -> list[str]:
    task, records, mark = as_text(run.title), run.headline(), as_text(run.data.incomplete_mark)
    lines = []
    for name, label in NAMES.items():
        if found := run.spread(records, name):
            method, chosen = (
                as_text(describe(records[0], run)),
                how_chosen(name, run.has_stopped).split(":")[0],
            )
            lines.append(
                f"| {task} | raffect, {method}{mark} | {label}: {chosen} | {_cells(found)} |"
            )
    if (erm := run.erm()) and erm[0].id != records[0].id and (found := run.spread(erm, "last")):
        lines.append(f"| {task} | raffect, ERM{mark} | {NAMES['last']} | {_cells(found)} |")
    chance = records[0].chance
    lines.append(
        f"| {task} | chance: {as_text(chance.answer)} | - | {short(chance.majority)} | - | - |"
    )
    if chance.prior is not None:
        lines.append(
            f"| {task} | chance: guesses by the class shares | - | {short(chance.prior)} | - | - |"
        )
    return lines + [
        f"| {task} | {as_text(name)} | unstated | {short(value)} | - | - |"
        for name, value in run.data.published.items()
    ]


def describe(record: HeadRecord, run: Run) -> str:
    """Settings in which a run's groups differ, or alpha and rho."""
    names = run.varying or ["loss.alpha", "sam.rho"]
    return ", ".join(
        f"{name.rpartition('.')[2]} {value_text(record.settings[name])}" for name in names
    )


def name_pictures(names: Sequence[str]) -> list[str]:
    """A file name for each run's pictures, numbered where two would be one."""
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
        """Lines that show a picture that was just drawn."""
        address = f"plots/{self.stem}-{what}.png"
        self.pictures[address] = (self.plots / f"{self.stem}-{what}.png").read_bytes()
        return [f"![{text}]({address})", "", f"Numbers: `plots/{self.stem}-{what}.csv`", ""]

    def _settings(self) -> list[str]:
        """Figure 2 where alpha is an axis, else scores by settings; nothing for a run of one setting."""
        run = self.run
        alphas = {group[0].recipe.loss.alpha for group in run.groups}
        if len(alphas) > _MOST_ALPHAS_OF_A_PAIR:  # an axis, not just ERM beside one alpha
            rows, references = _alpha_rows(run)
            title = f"{run.title} {run.kind.title} against alpha{run.mark}"
            figures.draw_alpha(rows, references, title, run.kind, self._path("alpha"))
            shown = self._show("alpha", f"{run.kind.title} against alpha")
            return ["### Figure 2", "", *shown, *_settings_table(run)]
        if len(run.groups) > 1:
            figures.draw_scores(
                _score_rows(run),
                f"{run.title} by settings{run.mark}",
                run.kind,
                self._path("settings"),
            )
            return [*self._show("settings", f"{run.kind.title} by settings"), *_settings_table(run)]
        return []

    def _about(self) -> str:
        records = self.run.headline()
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
        """Of classes alone."""
        run, about = self.run, self._about()
        found = [record.scores["last"].confusion for record in run.headline()]
        matrices = [np.array(matrix) for matrix in found if matrix is not None]
        if not matrices:
            return []
        title = f"{run.title} confusion, shares of each true class: {about}{run.mark}"
        figures.draw_confusion(
            np.sum(matrices, 0), run.task.outputs, title, self._path("confusion")
        )
        text = f"{as_text(about)}; counts added over seeds, each row in shares of its true class."
        return ["### Confusion", "", text, "", *self._show("confusion", "confusion matrix")]

    def _curves(self) -> list[str]:
        run = self.run
        figures.draw_curves(
            _curve_rows(run),
            f"{run.title} learning curves{run.mark}",
            run.kind,
            self._path("curves"),
        )
        return ["### Learning curves", "", *self._show("curves", "learning curves")]


def _alpha_rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row a head and score of those with the headline's other settings; and the lines to draw across."""
    reference, key = run.headline()[0].settings, run.kind.key
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
    lines = {}
    if (erm := run.erm()) and (found := run.spread(erm, "last")):
        lines["ERM (no SAM), val-last"] = found.mean
    chance = alike[0].chance
    return rows, lines | {f"chance ({chance.name})": chance.level}


def _settings_table(run: Run) -> list[str]:
    """A row a setting, then what the columns mean."""
    with_cv = run.has_folds
    lines = [
        f"| settings | val-last | ± sd (seeds) | 95 % over {as_text(run.data.group_name)} | val-best |"
        + (" val-cv |" if with_cv else ""),
        "|---|---|---|---|---|" + ("---|" if with_cv else ""),
    ]
    for group in run.groups:
        last, best, cv = (run.spread(group, name) for name in ("last", "best", "cv"))
        assert last is not None  # every finished head has both
        assert best is not None
        setting = as_text(describe(group[0], run)) + as_text(run.data.incomplete_mark)
        cells = [setting, _cells(last), short(best.mean)]
        cells += [short(cv.mean if cv else None)] if with_cv else []
        lines.append(f"| {' | '.join(cells)} |")
    meaning = f"val-last: {how_chosen('last', run.has_stopped)}. val-best: {CHOICE['best']}."
    return [
        *lines,
        "",
        f"{meaning} Comparing settings on the validation split is optimistic as well.",
        "",
    ]


def _output_rows(run: Run) -> list[dict[str, Any]]:
    """A row a class, label or value: mean of each score over seeds, spread of the first one, and frames."""
    outputs = [record.scores["last"].outputs for record in run.headline()]
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
    (first, key), *others, _ = run.kind.columns
    titles = "".join(f" {title} |" for title, _ in others)
    lines = [
        f"| {run.kind.part} | {first} | ± sd |{titles} frames |",
        "|---" * (len(others) + 4) + "|",
    ]
    for row in rows:
        name = as_text(run.task.describe(row["name"]))
        cells = [
            name,
            short(row[key]),
            short(row["sd"]),
            *(short(row[other]) for _, other in others),
        ]
        lines.append(f"| {' | '.join(cells)} | {row['frames']:,} |")
    return [*lines, ""]


def _curve_rows(run: Run) -> list[dict[str, Any]]:
    rows = []
    for group in run.groups:
        label = describe(group[0], run)
        losses = np.mean([record.curve.train_loss for record in group], 0)
        scores = np.mean([record.curve.validation for record in group], 0)
        rows += [
            {
                "label": label,
                "epoch": k + 1,
                "train_loss": float(loss),
                f"val_{run.kind.key}": float(score),
            }
            for k, (loss, score) in enumerate(zip(losses, scores, strict=True))
        ]
    return rows


def _score_rows(run: Run) -> list[dict[str, Any]]:
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
    caveats = sorted({run.data.caveat for run in runs if run.data.caveat})
    lines = [f"> **{as_text('; '.join(caveats))}**: {_NO_CAVEAT}", ""] if caveats else []
    marks = sorted({mark for run in runs if (mark := run.data.incomplete_mark.strip())})
    return [*lines, *(line for mark in marks for line in (f"> **{as_text(mark)}**", ""))]


def _provenance(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        command = as_code(shlex.join(["raffect", *run.record.run.command[1:]]))
        name, where = as_text(run.folder.path.name), as_code(run.record.run.folder)
        lines += [
            f"- **{name}**: {command} in {where}",
            *(f"  - {as_text(line)}" for line in _facts(run)),
        ]
    return lines


def _facts(run: Run) -> list[str]:
    """Heads, data, encoder and versions of a run, a line each."""
    made, data = run.record.run, run.data
    batches = {
        (record.trained_by.wall_s, record.trained_by.batch_of_heads) for record in run.records
    }
    commits = sorted(
        {str(record.trained_by.git_commit or "unknown")[:20] for record in run.records}
    )
    counts = Counter(record.status for record in run.records)
    statuses = ", ".join(
        f"{counts[name]} {name}"
        for name in ("done", "diverged", "stopped", "running")
        if counts[name]
    )
    seconds = format_seconds(sum(wall_s for wall_s, _ in batches))
    splits = [
        f"{name} {split.frames:,} frames of {split.groups} {data.group_name}"
        for name, split in data.splits.items()
    ]
    encoders = [
        f"{encoder.model}, weights {encoder.weights} ({encoder.weights_sha256[:12]})"
        for encoder in data.encoders
    ]
    versions = made.versions
    return [
        f"{len(run.records)} heads ({statuses}), {seconds} of training, batches added up, "
        f"on {run.records[0].trained_by.device}",
        f"{', '.join(splits)}; edition {data.edition!r}",
        f"encoder {' and '.join(encoders)}, bank {data.bank_digest[:12]}, labels {data.labels_sha256[:12]}",
        f"raffect {versions['raffect']}, commit {', '.join(commits)}, torch {versions['torch']}, "
        f"Python {versions['python']}, {made.time}",
    ]
