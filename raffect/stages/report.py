"""`raffect report`: what runs found, as report.md and one self-contained report.html, with every picture's numbers beside it."""

from __future__ import annotations

import base64
import html
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raffect.data import affwild2
from raffect.data.atomic import write_atomic
from raffect.data.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.kinds import Kind, kind_of
from raffect.stages.dataset import incomplete_mark, missing_lines
from raffect.stages.progress import format_seconds
from raffect.stages.runs import RunFolder
from raffect.stages.scores import CHOICE, NAMES, STOPPED, Record, Spread, finished, group_by_settings, how_chosen, is_erm, select_on_folds, short, spread, varying

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:60rem;margin:2rem auto;padding:0 1rem}h1,h2{line-height:1.2}h2{margin-top:2.4rem;border-bottom:1px solid #d9dee4}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}th,td{padding:.3rem .7rem;border-bottom:1px solid #e4e8ed;text-align:left}th{background:#f4f6f8}
img{max-width:100%}blockquote{margin:1rem 0;padding:.6rem 1rem;background:#fff4d6;border-left:4px solid #e0a800}code{background:#f4f6f8;padding:0 .2rem}"""


@dataclass(frozen=True)
class Run:
    """A run folder as read.

    Attributes:
        folder: The folder.
        env: Versions, machine and facts of the data.
        records: All heads.
        groups: Heads trained to the end, together by settings.
    """

    folder: RunFolder
    env: dict[str, Any]
    records: Sequence[Record]
    groups: list[list[Record]] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """What its heads predict."""
        return affwild2.read_task(self.env["data"]["task"], f"{self.folder.path}/env.json")

    @property
    def kind(self) -> Kind:
        """How they are scored."""
        return kind_of(self.task)

    @property
    def interval_over(self) -> str:
        """What its intervals draw: videos, subjects or pictures."""
        return as_text(self.env["data"].get("groups", "videos"))

    @property
    def title(self) -> str:
        """How tables and pictures call the task."""
        return self.task.name.upper()

    @property
    def stamp(self) -> str:
        """What every table of it must say."""
        return self.env["data"]["stamp"]

    @property
    def mark(self) -> str:
        """What every picture of it must say, as lines below a title."""
        return "".join(f"\n{line}" for line in (f"[{self.stamp}]" if self.stamp else "", incomplete_mark(self.env["data"]).strip()) if line)


def report(paths: Sequence[Path], out: Path | None) -> list[str]:
    """Write the report.

    Args:
        paths: Run folders.
        out: Folder for it; by default the first run's.

    Returns:
        Where it is.

    Raises:
        RaffectError: If a folder holds no finished head.
    """
    runs = [read_run(path) for path in paths]
    out = (out or paths[0]).absolute()
    lines = ["# raffect report", "", *_stamp_lines(runs), "## Table I", "", *table_one(runs), ""]
    lines += [f"{as_text(line)}\n" for run in runs for line in missing_lines(run.env["data"])]
    pictures: dict[str, bytes] = {}
    for run, stem in zip(runs, _stems([run.folder.path.name for run in runs]), strict=True):
        lines += _run_section(run, out / "plots", stem, pictures)
    lines += ["## What was run", "", *_provenance(runs)]
    text = "\n".join(lines) + "\n"
    write_atomic(out / "report.md", text.encode())
    write_atomic(out / "report.html", to_html(text, pictures).encode())
    return [f"wrote {out / 'report.html'} (open it in a browser), report.md, and plots/ with a CSV beside every picture"]


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RaffectError: If it is none, or nothing in it is finished.
    """
    folder = RunFolder(path.absolute())
    env, records = folder.read_env(), folder.read_records()
    done = finished(records)
    if not done:
        raise RaffectError(f"{path}: no head is finished; run the same `raffect train` or `raffect tune` again")
    return Run(folder, env, records, group_by_settings(done))


def table_one(runs: Sequence[Run]) -> list[str]:
    """Scores of each run's headline settings beside the trivial predictor, and published ones where the data are Aff-Wild2 itself."""
    title, groups = (" / ".join(dict.fromkeys(names)) for names in ([run.kind.title for run in runs], [run.interval_over for run in runs]))
    lines = [f"| task | method | epoch chosen | {title} | ± sd (seeds) | 95 % over {groups} |", "|---|---|---|---|---|---|"]
    for run in runs:
        task, records = as_text(run.title), headline(run)
        mark = as_text(incomplete_mark(run.env["data"]))
        for name, label in NAMES.items():
            if found := spread(records, name):
                lines.append(f"| {task} | raffect, {as_text(describe(records[0], run))}{mark} | {label}: {how_chosen(name, _has_stopped(run)).split(':')[0]} | {_cells(found)} |")
        if (erm := _erm(run)) and erm[0]["id"] != records[0]["id"]:
            found = spread(erm, "last")
            assert found is not None  # every finished head has one
            lines.append(f"| {task} | raffect, ERM{mark} | {NAMES['last']} | {_cells(found)} |")
        trivial = records[0]["trivial"]
        lines.append(f"| {task} | trivial: {as_text(trivial['answer'])} | - | {short(trivial[run.kind.key])} | - | - |")
        if "guess" in trivial:
            lines.append(f"| {task} | trivial: guesses by the class shares | - | {short(trivial['guess'])} | - | - |")
        lines += [f"| {task} | {as_text(name)} | unstated | {short(value)} | - | - |" for name, value in run.env["data"].get("published", {}).items()]
    return [
        *lines,
        "",
        f"95 % over {groups}: of the mean over seeds, when the {groups} of the validation split are drawn again with replacement (1,000 draws); it says how far others might have scored.",
    ]


def headline(run: Run) -> list[Record]:
    """The settings a run stands for: what folds chose, else the paper's alpha where it is among them, else the first."""
    if (chosen := select_on_folds(run.groups, run.records)) is not None:
        return list(chosen)
    at_paper = [group for group in run.groups if group[0]["recipe"]["loss.alpha"] == 0.3 and group[0]["recipe"]["sam.rho"] > 0]
    return (at_paper or run.groups)[0]


def describe(record: Record, run: Run) -> str:
    """Settings in which a run's groups differ, or alpha and rho."""
    recipe = record["recipe"]
    return ", ".join(f"{name.rpartition('.')[2]} {_plain(recipe[name])}" for name in (varying(run.groups) or ["loss.alpha", "sam.rho"]))


def as_text(value: object) -> str:
    """Any text as Markdown that shows just that text: what comes from a run folder must not become a picture, a link or a cell of its own."""
    return re.sub(r"([\\`*_{}\[\]<>|~&])", r"\\\1", " ".join(str(value).split()))


def as_code(value: object) -> str:
    """Any text as a code span, fenced by more backticks than it holds in a row."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def to_html(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """One page with pictures inside.

    Args:
        markdown: The report.
        pictures: PNG files that were drawn for it, by the address it gives them; no other picture is shown.
    """
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])

    def show(tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
        address, text = tokens[index].attrs["src"], html.escape(tokens[index].content)
        if address not in pictures:
            return text
        return f'<img src="data:image/png;base64,{base64.b64encode(pictures[address]).decode()}" alt="{text}">'

    renderer.add_render_rule("image", lambda _, *token: show(*token))
    body = renderer.render(markdown)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>raffect report</title><style>{_STYLE}</style><body>\n{body}</body></html>\n'


def _stems(names: Sequence[str]) -> list[str]:
    """A file name for each run's pictures, numbered where two would be one."""
    plain = [re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{number}-{stem}" for number, stem in enumerate(plain, start=1)]


def _run_section(run: Run, plots: Path, stem: str, pictures: dict[str, bytes]) -> list[str]:
    """Figures and tables of one run, its pictures named after ``stem`` and added to ``pictures``."""
    from raffect.stages import figures

    def show(what: str, text: str) -> list[str]:
        return _picture(plots, f"{stem}-{what}", text, pictures)

    task, kind, mark = run.title, run.kind, run.mark
    lines = [f"## {as_text(task)}: {as_text(run.folder.path.name)}", ""]
    if len({group[0]["recipe"]["loss.alpha"] for group in run.groups}) > 2:  # an axis, not just ERM beside one alpha
        rows, references = _alpha_rows(run)
        figures.draw_alpha(rows, references, f"{task} {kind.title} against alpha{mark}", kind, plots / f"{stem}-alpha")
        lines += ["### Figure 2", "", *show("alpha", f"{kind.title} against alpha"), *_alpha_table(run)]
    elif len(run.groups) > 1:
        figures.draw_scores(_score_rows(run), f"{task} by settings{mark}", kind, plots / f"{stem}-settings")
        lines += [*show("settings", f"{kind.title} by settings"), *_alpha_table(run)]
    records = headline(run)
    about = f"{describe(records[0], run)}, last epoch, {len(records)} seed(s)"
    main, rows = kind.columns[0][0], _part_rows(run, records)
    figures.draw_parts(rows, f"{task} {main} by {kind.part}: {about}{mark}", kind, plots / f"{stem}-{kind.parts}")
    lines += [
        f"### {kind.parts.capitalize()}",
        "",
        f"{as_text(about)}; mean over seeds, bars ± 1 sd, frames below the names.",
        "",
        *show(kind.parts, f"{main} by {kind.part}"),
    ]
    lines += _part_table(rows, run)
    if "confusion" in records[0]["scores"]["last"]:
        matrix = np.sum([record["scores"]["last"]["confusion"] for record in records], 0)
        figures.draw_confusion(matrix, run.task.outputs, f"{task} confusion, shares of each truth: {about}{mark}", plots / f"{stem}-confusion")
        lines += ["### Confusion", "", f"{as_text(about)}; counts added over seeds, each row in shares of its truth.", "", *show("confusion", "confusion matrix")]
    figures.draw_curves(_curve_rows(run), f"{task} learning curves{mark}", kind, plots / f"{stem}-curves")
    return [*lines, "### Learning curves", "", *show("curves", "learning curves")]


def _alpha_rows(run: Run) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row a head and score of those with the headline's other settings; and the lines to draw across."""
    reference, key = headline(run)[0]["recipe"], run.kind.key
    alike = [r for group in run.groups for r in group if all(r["recipe"][name] == reference[name] for name in reference if name not in ("seed", "loss.alpha"))]
    rows = [
        {"alpha": r["recipe"]["loss.alpha"], "seed": r["recipe"]["seed"], "score": label, key: r["scores"][name][key], "epoch": r["scores"][name]["epoch"]}
        for name, label in (("last", NAMES["last"]), ("best", NAMES["best"]))
        for r in alike
    ]
    lines = {}
    if (erm := _erm(run)) and (found := spread(erm, "last")):
        lines["ERM (no SAM), val-last"] = found.mean
    trivial = alike[0]["trivial"]  # of EXPR the guesses, which no constant answer reaches
    name, value = ("guesses by the class shares", trivial["guess"]) if "guess" in trivial else (trivial["answer"], trivial[key])
    return rows, lines | {f"trivial ({name})": value}


def _alpha_table(run: Run) -> list[str]:
    lines = [
        f"| settings | val-last | ± sd (seeds) | 95 % over {run.interval_over} | val-best |" + (" val-folds |" if _has_folds(run) else ""),
        "|---|---|---|---|---|" + ("---|" if _has_folds(run) else ""),
    ]
    for group in run.groups:
        last, best, chosen = (spread(group, name) for name in ("last", "best", "chosen"))
        assert last is not None
        assert best is not None
        cells = [
            as_text(describe(group[0], run)) + as_text(incomplete_mark(run.env["data"])),
            _cells(last),
            short(best.mean),
            *([short(chosen.mean if chosen else None)] if _has_folds(run) else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "val-last: " + how_chosen("last", _has_stopped(run)) + ". val-best: " + CHOICE["best"] + ". Comparing settings on the validation split is optimistic as well.",
        "",
    ]


def _part_rows(run: Run, records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row a class, label or value: mean of each score over seeds, spread of the first one, and frames."""
    parts = [record["scores"]["last"][run.kind.parts] for record in records]
    *scores, (_, frames) = run.kind.columns
    rows = []
    for name in parts[0]:
        values = {key: [part[name][key] for part in parts] for _, key in scores}
        spread_of_first = float(np.std(values[scores[0][1]], ddof=1)) if len(parts) > 1 else None
        rows.append({"name": name, **{key: float(np.mean(found)) for key, found in values.items()}, "sd": spread_of_first, "frames": parts[0][name][frames]})
    return rows


def _part_table(rows: list[dict[str, Any]], run: Run) -> list[str]:
    (first, key), *others, _ = run.kind.columns
    lines = [f"| {run.kind.part} | {first} | ± sd |" + "".join(f" {title} |" for title, _ in others) + " frames |", "|---" * (len(others) + 4) + "|"]
    for row in rows:
        cells = [as_text(run.task.describe(row["name"])), short(row[key]), short(row["sd"]), *(short(row[name]) for _, name in others), f"{row['frames']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _curve_rows(run: Run) -> list[dict[str, Any]]:
    rows = []
    for group in run.groups:
        for k in range(len(group[0]["history"]["lr"])):
            row = {"label": describe(group[0], run), "epoch": k + 1}
            rows.append(row | {name: float(np.mean([record["history"][name][k] for record in group])) for name in ("train_loss", f"val_{run.kind.key}")})
    return rows


def _score_rows(run: Run) -> list[dict[str, Any]]:
    found = [(group, spread(group, "last")) for group in run.groups]
    return [{"label": describe(group[0], run), run.kind.key: value.mean, "sd": value.sd} for group, value in found if value]


def _erm(run: Run) -> list[Record] | None:
    return next((group for group in run.groups if is_erm(group[0])), None)


def _has_stopped(run: Run) -> bool:
    return any(record["status"] == STOPPED for record in run.records)


def _has_folds(run: Run) -> bool:
    return any(record["fold"] is not None for record in run.records)


def _cells(found: Spread) -> str:
    """Mean, spread over seeds and interval over videos as three cells of a table."""
    sd = f"± {short(found.sd)} ({found.heads})" if found.sd is not None else "one seed"
    interval = f"[{short(found.interval[0])}, {short(found.interval[1])}]" if found.interval else "-"
    return f"{short(found.mean)} | {sd} | {interval}"


def _picture(plots: Path, name: str, text: str, pictures: dict[str, bytes]) -> list[str]:
    """Lines that show a picture that was just drawn."""
    address = f"plots/{name}.png"
    pictures[address] = (plots / f"{name}.png").read_bytes()
    return [f"![{text}]({address})", "", f"Numbers: `plots/{name}.csv`", ""]


def _stamp_lines(runs: Sequence[Run]) -> list[str]:
    stamps = sorted({run.stamp for run in runs if run.stamp})
    lines = [f"> **{as_text('; '.join(stamps))}**: these scores say nothing about photographs of people.", ""] if stamps else []
    marks = sorted({mark for run in runs if (mark := incomplete_mark(run.env["data"]).strip())})
    return [*lines, *(line for mark in marks for line in (f"> **{as_text(mark)}**", ""))]


def _provenance(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        env, data = run.env["run"], run.env["data"]
        wall = sum({(record["wall_s"], record["pack_size"]): record["wall_s"] for record in run.records}.values())
        commits = sorted({str(record.get("git_commit") or "unknown")[:20] for record in run.records})
        counts = {status: sum(record["status"] == status for record in run.records) for status in ("done", "diverged", "stopped", "running")}
        lines += [
            f"- **{as_text(run.folder.path.name)}**: {as_code(shlex.join(['raffect', *env['command'][1:]]))} in {as_code(env.get('folder', '?'))}",
            *(
                f"  - {as_text(line)}"
                for line in (
                    f"{len(run.records)} heads ({', '.join(f'{count} {status}' for status, count in counts.items() if count)}), {format_seconds(wall)} of training, packs added up, on {run.records[0].get('device', '?')}",
                    f"train {data['train']['frames']:,} frames of {data['train']['videos']} {run.interval_over}, validation {data['validation']['frames']:,} of {data['validation']['videos']}; edition {data['edition']!r}",
                    f"encoder {data['encoder']['model']}, weights {data['encoder']['weights']} ({data['encoder']['weights_sha256'][:12]}), bank {data['bank_digest'][:12]}, labels {data['labels_sha256'][:12]}",
                    f"raffect {env['versions']['raffect']}, commit {', '.join(commits)}, torch {env['versions']['torch']}, Python {env['versions']['python']}, {env['time']}",
                )
            ),
        ]
    return lines


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
