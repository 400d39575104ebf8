"""`raffect report`: the results of runs, as report.md and one self-contained report.html.

Every picture has a CSV with its numbers beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from raffect.bank.facts import DRAWN_CAVEAT
from raffect.reporting.cross_sets import Matrix, read_matrices
from raffect.reporting.matrix import draw_matrix, matrix_lines
from raffect.reporting.opening import enumerate_words, opening_lines, plural
from raffect.reporting.origins import origin_lines
from raffect.reporting.page import as_link, as_text, contents_of, to_html
from raffect.reporting.results import results_table
from raffect.reporting.run import Run, read_runs
from raffect.reporting.section import Section
from raffect.reporting.terms import Terms, terms_of_opening, terms_of_results
from raffect.storage.atomic import write_atomic

_GALLERY = "gallery.html"
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
        """The files as lines of text."""
        others = "report.md, and plots/ with a CSV beside every picture"
        return [f"wrote {self.html} (open it in a browser), {others}"]


def report(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    judged: Sequence[Path] = (),
    has_gallery: bool = False,
) -> ReportResult:
    """Write the report.

    Args:
        paths: Run folders.
        out: Folder for it; by default the first run's.
        judged: Folders of `raffect evaluate --out`, in which heads of these runs were judged on
            other data sets: a matrix of scores across data sets.
        has_gallery: Whether ``gallery.html`` was just written there, so that the report links it.

    Raises:
        RaffectError: If a folder holds no finished head, or no scores of heads of these runs.
    """
    # All runs together, then a section for each
    runs = read_runs(paths)
    matrices = read_matrices(judged, runs)
    out = (out or paths[0]).absolute()
    terms = Terms()
    explained = terms.explain(terms_of_opening(runs))
    opening = [*opening_lines(runs), "In these sentences:", "", *explained]
    body = ["## Results", "", *results_table(runs), *terms.explain(terms_of_results(runs))]
    stems = name_pictures([run.folder.path.name for run in runs])
    plots = out / "plots"
    pictures: dict[str, bytes] = {}
    body += _across_lines(matrices, plots, pictures)
    sections = [Section(run, runs, plots, stem) for run, stem in zip(runs, stems, strict=True)]
    body += [line for section in sections for line in section.lines()]
    body += ["## What was run", "", *origin_lines(runs)]
    if has_gallery:
        hardest = f"Frames with the highest loss, with their pictures: {as_link(_GALLERY)}."
        body += ["## Hardest frames", "", hardest, ""]

    # The files
    lines = [
        *_title_lines(runs),
        *_caveat_lines(runs, matrices),
        *opening,
        "Contents:",
        "",
        *contents_of(body),
        *body,
    ]
    text = "\n".join(lines) + "\n"
    files = [address.replace(".png", ".csv") for address in pictures]
    files += [address for part in sections for address in part.files]
    for part in sections:
        pictures |= part.pictures
    files += [_GALLERY] if has_gallery else []
    write_atomic(out / "report.md", text.encode())
    write_atomic(out / "report.html", to_html(text, pictures, files).encode())
    return ReportResult(
        html=out / "report.html",
        markdown=out / "report.md",
        pictures=tuple(out / address for address in pictures),
    )


def _title_lines(runs: Sequence[Run]) -> list[str]:
    """The title, and when and of what the report was made."""
    tasks = enumerate_words([as_text(title) for title in dict.fromkeys(run.title for run in runs)])
    now = f"{datetime.now(UTC):%-d %B %Y, %H:%M} UTC"
    names = enumerate_words([as_text(run.name) for run in runs])
    made = f"Written {now}, from {plural(len(runs), 'run')}: {names}."
    return [f"# raffect report: {tasks}", "", made, ""]


def _across_lines(matrices: Sequence[Matrix], plots: Path, pictures: dict[str, bytes]) -> list[str]:
    """A table and a picture of scores across data sets for each task; pictures are added."""
    lines = ["## Across data sets", ""] if matrices else []
    for matrix in matrices:
        run = matrix.runs[0]
        name = f"across-{'-'.join(name_pictures([run.task.name]))}"
        caveat = f"\n[{'; '.join(matrix.caveats)}]" if matrix.caveats else ""
        title = f"{run.title} {run.kind.title} across data sets{caveat}"
        draw_matrix(matrix, title, plots / name)
        address = f"plots/{name}.png"
        pictures[address] = (plots / f"{name}.png").read_bytes()
        lines += [f"![{as_text(run.title)} across data sets]({address})", ""]
        lines += [f"Numbers: {as_link(f'plots/{name}.csv')}", "", *matrix_lines(matrix)]
    return lines


def _caveat_lines(runs: Sequence[Run], matrices: Sequence[Matrix]) -> list[str]:
    """What no score below may be taken for, in quotation blocks."""
    found = [caveat for run in runs for caveat in run.data.caveats]
    found += [caveat for matrix in matrices for caveat in matrix.caveats]
    caveats = list(dict.fromkeys(found))
    means = _DRAWN_MEANS if DRAWN_CAVEAT in caveats else ""
    lines = [f"> **{as_text('; '.join(caveats))}**{means}", ""] if caveats else []
    marks = sorted({mark for run in runs if (mark := run.data.incomplete_mark.strip())})
    return [*lines, *(line for mark in marks for line in (f"> **{as_text(mark)}**", ""))]


def name_pictures(names: Sequence[str]) -> list[str]:
    """A file name for each run's pictures; all are numbered where two would be equal."""
    plain = [re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) for name in names]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{number}-{stem}" for number, stem in enumerate(plain, start=1)]
