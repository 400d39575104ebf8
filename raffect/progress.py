"""What a user sees while work takes long: one live line on a terminal, plain lines in a log.

`stage` names what is going on before anything can be counted, such as loading torch; `Progress`
counts. On a terminal both are one line that is replaced in place. A log gets a line when a stage
begins and when it ends, and the count every half minute.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

from raffect.leaving import last_act

PLAIN_EVERY_S = 30.0
"""Seconds between two lines of a log."""
FIRST_PLAIN_S = 5.0
"""Seconds from the start of counting to the first of them."""
RATE_OVER_S = 60.0
"""Seconds of recent work whose mean is the rate."""
STEADY_S = 2.0
"""Seconds of counting before there is a rate, and with it a time that is left."""
QUIET_S = 0.5
"""Seconds after which a stage is worth a line: shorter ones pass without a word."""


@contextlib.contextmanager
def stage(text: str, at_once: bool = False) -> Generator[None]:
    """Show what is going on during a block, in the progress line that is open if there is one.

    Args:
        text: What is being done, such as ``starting Ray``.
        at_once: Whether a log gets the line before the block begins, however short it may be.
    """
    open_line = Progress.current
    with Progress("", 0) if open_line is None else contextlib.nullcontext(open_line) as progress:
        progress.begin_stage(text, at_once)
        try:
            yield
        finally:
            progress.end_stage()


@dataclass
class _Stage:
    """A stage that has begun.

    Attributes:
        text: What is being done.
        start: When it began, by the monotonic clock.
        over: Set when it ends.
        is_shown: Whether a log has a line about it.
    """

    text: str
    start: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    is_shown: bool = False

    @property
    def elapsed(self) -> str:
        return format_seconds(time.monotonic() - self.start)


class Progress:
    """Counts towards a total and shows the rate and the time that is left.

    The rate is that of this run, from the first count on: what earlier runs have done, and the time
    that starting takes, are not in it. Until it is measured, no time that is left is shown.

    Example:
        with Progress("extract", total=1000, unit="frames") as progress:
            progress.advance(10)

    Args:
        label: What the line begins with.
        total: Units of the whole work, those of earlier runs included.
        unit: What is counted.
        earlier: Units that earlier runs have done.
    """

    current: Progress | None = None
    """The line that is open in this process."""

    def __init__(self, label: str, total: int, unit: str = "frames", earlier: int = 0) -> None:
        self.label, self.total, self.unit, self.earlier = label, total, unit, earlier
        self.counted = self.under_way = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._due = float("inf")
        self._stage: _Stage | None = None
        self._bar: Any = None
        self._open = contextlib.ExitStack()
        self._note = ""
        # Threads follow actors and announce stages.
        self._lock = threading.RLock()

    @property
    def done(self) -> int:
        """Units that are done, by this run and by earlier ones."""
        return self.earlier + self.counted + self.under_way

    def __enter__(self) -> Progress:
        self._outer, Progress.current = Progress.current, self
        if sys.stderr.isatty():
            self._bar = _new_bar(self)
            self._task = self._bar.add_task(self.label, total=self.total or None)
            self._bar.start()
            self._open.enter_context(last_act(lambda _: self._bar.stop(), "before"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        Progress.current = self._outer
        self.end_stage()
        if self._bar is not None:
            self._open.close()
            self._bar.stop()
            self._bar.console.file.close()

    # Counting

    def advance(self, count: int, under_way: int = 0) -> None:
        """Count ``count`` more, which ends a stage, or 0 to start the clock of the rate.

        Args:
            count: Units that are done for good.
            under_way: Units of pieces of work that are not finished; replaces that of the last
                call.
        """
        with self._lock:
            now = time.monotonic()
            if not self._recent:
                self._due = now + FIRST_PLAIN_S
            if count:
                self.end_stage()
            # The rate, over the last minute
            self.counted += count
            self.under_way = under_way
            self._recent.append((now, self.counted + under_way))
            while len(self._recent) > 2 and self._recent[0][0] < now - RATE_OVER_S:
                self._recent.popleft()
            # The live line, or now and then a plain one
            if self._bar is not None:
                self._bar.update(self._task, completed=self.done)
            elif now >= self._due:
                self._due = now + PLAIN_EVERY_S
                self._print(self.text())

    def add_earlier(self, count: int) -> None:
        """Count units of the total that turn out to have been done by earlier runs."""
        with self._lock:
            self.earlier += count
            if self._bar is not None:
                self._bar.update(self._task, completed=self.done)

    def note(self, text: str) -> None:
        """Show ``text`` beside the count from now on."""
        self._note = text

    def text(self) -> str:
        """What the line shows now: the stage, or count, rate and the time that is left."""
        with self._lock:
            if self._stage is not None:
                return f"{self._stage.text} ... {self._stage.elapsed}"
            if not self.total:
                return ""
            # The count, with the rate once there is one
            parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
            if self.earlier:
                parts[0] += f" ({self.earlier:,} by earlier runs)"
            if rate := self.rate():
                left = format_seconds(max(0, self.total - self.done) / rate)
                parts += [f"{_format_rate(rate)}/s", f"about {left} to go"]
            return ", ".join(parts) + (f"; {self._note}" if self._note else "")

    def rate(self) -> float | None:
        """Units a second of the last minute; None until enough was counted to know."""
        if not self._recent:
            return None
        (start, before), (now, done) = self._recent[0], self._recent[-1]
        return (
            (done - before) / (now - start) if now - start >= STEADY_S and done > before else None
        )

    # Stages

    def begin_stage(self, text: str, at_once: bool = False) -> None:
        """Show ``text`` instead of the count, until `end_stage` or another stage.

        Args:
            text: What is being done.
            at_once: Whether a log gets the line now, and not only if the stage lasts.
        """
        self.end_stage()
        begun = self._stage = _Stage(text)
        if self._bar is None:
            if at_once:
                self._show(begun)
            threading.Thread(target=self._announce, args=(begun,), daemon=True).start()

    def end_stage(self) -> None:
        """Show the count again; a log gets the time that the stage took."""
        with self._lock:
            if self._stage is not None:
                self._stage.over.set()
                if self._stage.is_shown:
                    self._print(f"{self._stage.text}: {self._stage.elapsed}")
            self._stage = None

    def _announce(self, stage: _Stage) -> None:
        """Write into a log that a stage has begun, and ever more rarely that it still lasts."""
        pause = PLAIN_EVERY_S if stage.is_shown else QUIET_S
        while not stage.over.wait(pause):
            with self._lock:
                if not stage.over.is_set():
                    self._show(stage)
            pause = max(PLAIN_EVERY_S, time.monotonic() - stage.start)

    def _show(self, stage: _Stage) -> None:
        self._print(f"{stage.text} ...{f' {stage.elapsed}' if stage.is_shown else ''}")
        stage.is_shown = True

    def _print(self, text: str) -> None:
        print(f"{self.label}: {text}" if self.label else text, file=sys.stderr, flush=True)


def _new_bar(progress: Progress) -> Any:
    """The live line; rich is imported only where there is a terminal."""
    from rich import progress as bar
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    class State(bar.ProgressColumn):
        """What a log would say; rich asks for it ten times a second."""

        def render(self, task: bar.Task) -> Text:
            return Text(progress.text())

    state = State(table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    label = bar.TextColumn("{task.description}")
    moving = (label, bar.BarColumn(20)) if progress.total else (bar.SpinnerColumn(),)
    console = Console(file=_own_stderr(), force_terminal=True)
    return bar.Progress(*moving, state, console=console, transient=True, expand=True)


def _own_stderr() -> TextIO:
    """Standard error under a number of its own, since Ray's start turns number 2 off."""
    return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")


def _format_rate(rate: float) -> str:
    """``312.4`` -> ``312``; small ones with two digits."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


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
