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
    paths: Sequence[Path], out: Path | None = None, *, has_gallery: bool = False
) -> ReportResult:
    """Write the report.

    Args:
        paths: Run folders.
        out: Folder for it; by default the first run's.
        has_gallery: Whether ``gallery.html`` was just written there, so that the report links it.

    Raises:
        RaffectError: If a folder holds no finished head.
    """
    # All runs together, then a section for each
    runs = read_runs(paths)
    out = (out or paths[0]).absolute()
    terms = Terms()
    explained = terms.explain(terms_of_opening(runs))
    opening = [*opening_lines(runs), "In these sentences:", "", *explained]
    body = ["## Results", "", *results_table(runs), *terms.explain(terms_of_results(runs))]
    stems = name_pictures([run.folder.path.name for run in runs])
    plots = out / "plots"
    sections = [Section(run, runs, plots, stem) for run, stem in zip(runs, stems, strict=True)]
    body += [line for section in sections for line in section.lines()]
    body += ["## What was run", "", *origin_lines(runs)]
    if has_gallery:
        hardest = f"Frames with the highest loss, with their pictures: {as_link(_GALLERY)}."
        body += ["## Hardest frames", "", hardest, ""]

    # The files
    lines = [
        *_title_lines(runs),
        *_caveat_lines(runs),
        *opening,
        "Contents:",
        "",
        *contents_of(body),
        *body,
    ]
    text = "\n".join(lines) + "\n"
    pictures = {address: png for part in sections for address, png in part.pictures.items()}
    files = [address for part in sections for address in part.files]
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


def _caveat_lines(runs: Sequence[Run]) -> list[str]:
    """What no score below may be taken for, in quotation blocks."""
    caveats = list(dict.fromkeys(caveat for run in runs for caveat in run.data.caveats))
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
