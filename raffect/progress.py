"""Progress of long work: one live line on a terminal, a plain line every half minute in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any

PLAIN_EVERY_S = 30.0
"""Seconds between two lines of a log."""
RATE_OVER_S = 60.0
"""Seconds of recent work whose mean is the rate."""


class Progress:
    """Counts towards a total and shows the rate and the time that is left.

    Example:
        with Progress("extract", total=1000, unit="frames") as progress:
            progress.advance(10)
    """

    def __init__(self, label: str, total: int, unit: str = "frames") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._start = time.monotonic()
        self._last_line = self._start
        self._recent: deque[tuple[float, int]] = deque([(self._start, 0)])
        self._bar = None
        self._note = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = _new_bar()
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
        # The rate, over the last minute
        self.done += count
        now = time.monotonic()
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and self._recent[0][0] < now - RATE_OVER_S:
            self._recent.popleft()
        # The live line, or now and then a plain one
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{self._rate():,.0f} {self.unit}/s")
        elif time.monotonic() - self._last_line >= PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            print(self._plain_line(), file=sys.stderr, flush=True)

    def _plain_line(self) -> str:
        count = f"{self.done:,} of {self.total:,} {self.unit}"
        left = format_seconds((self.total - self.done) / max(self._rate(), 1e-9))
        note = f"; {self._note}" if self._note else ""
        return f"{self.label}: {count}, {self._rate():,.0f}/s, about {left} to go{note}"

    def note(self, text: str) -> None:
        """Show ``text`` beside the count from now on."""
        self._note = text
        if self._bar is not None:
            self._bar.update(self._task, note=text)

    def _rate(self) -> float:
        (start, before), (now, done) = self._recent[0], self._recent[-1]
        return (done - before) / max(now - start, 1e-9)


def _new_bar() -> Any:
    """The live line; rich is imported only where there is a terminal."""
    from rich import progress as bar
    from rich.console import Console
    from rich.table import Column

    cut_off = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    count = (bar.TextColumn("{task.description}"), bar.BarColumn(), bar.MofNCompleteColumn())
    rate = bar.TextColumn("{task.fields[rate]}")
    times = (bar.TimeElapsedColumn(), bar.TextColumn("ETA"), bar.TimeRemainingColumn())
    note = bar.TextColumn("{task.fields[note]}", table_column=cut_off)
    return bar.Progress(*count, rate, *times, note, console=Console(stderr=True), transient=True)


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
