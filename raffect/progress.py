"""Progress of long work: one live line on a terminal, a plain line every half minute in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType

PLAIN_EVERY_S = 30.0
RATE_OVER_S = 60.0


class Progress:
    """Counts towards a total and says how fast and how long still.

    Example:
        with Progress("extract", total=1000, unit="frames") as progress:
            progress.advance(10)
    """

    def __init__(self, label: str, total: int, unit: str = "frames") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._start = time.monotonic()
        self._said = self._start
        self._recent: deque[tuple[float, int]] = deque([(self._start, 0)])
        self._bar = None
        self._note = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar
            from rich.table import Column

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn(
                    "{task.fields[note]}",
                    table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
                ),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.label, total=self.total, rate="", note="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count ``count`` more."""
        self.done += count
        now = time.monotonic()
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and self._recent[0][0] < now - RATE_OVER_S:
            self._recent.popleft()
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{self._rate():,.0f} {self.unit}/s")
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            left = (self.total - self.done) / max(self._rate(), 1e-9)
            print(
                f"{self.label}: {self.done:,} of {self.total:,} {self.unit}, {self._rate():,.0f}/s, about {format_seconds(left)} to go{self._note and f'; {self._note}'}",
                file=sys.stderr,
                flush=True,
            )

    def note(self, text: str) -> None:
        """Show ``text`` beside the count from now on."""
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, note=text)

    def _rate(self) -> float:
        (start, before), (now, done) = self._recent[0], self._recent[-1]
        return (done - before) / max(now - start, 1e-9)


def format_seconds(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``; days and hours for longer ones."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_bytes(size: float) -> str:
    """``4_300_000_000`` -> ``4.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
