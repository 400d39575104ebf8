"""Leaving from a thread: what a process does last where its main thread can act no more."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from typing import Literal, NoReturn

STATUS = 2
"""Exit status, that of every error with one line."""
_PATIENCE_S = 10.0
"""Seconds for all that is done last, since the output may be a pipe that nobody reads."""

_STAGES = ("before", "line", "after")
_LAST: list[tuple[str, Callable[[str], object]]] = []
_LEAVING = threading.Lock()

Stage = Literal["before", "line", "after"]


@contextlib.contextmanager
def last_act(act: Callable[[str], object], stage: Stage = "line") -> Generator[None]:
    """During a block, call ``act`` with the line about the reason where the process leaves.

    Args:
        act: Those of inner blocks come first.
        stage: ``line`` for one that shows the line; others come ``before`` it or ``after`` it.
    """
    _LAST.append(entry := (stage, act))
    try:
        yield
    finally:
        _LAST.remove(entry)


def leave(line: str) -> NoReturn:
    """End this process, whatever its other threads do, with status 2.

    Of several threads that leave the first one does; the others wait for the end.

    Args:
        line: The reason, which the last acts show; without one of them it is printed.
    """
    with _LEAVING:
        limit = threading.Timer(_PATIENCE_S, os._exit, [STATUS])
        limit.daemon = True
        limit.start()
        last = _LAST[::-1]
        if not any(stage == "line" for stage, _ in last):
            last.append(("line", lambda line: print(f"raffect: {line}", file=sys.stderr)))
        for stage in _STAGES:
            for act in [act for when, act in last if when == stage]:
                with contextlib.suppress(Exception):
                    act(line)
            if stage == "line":
                _end_output()
        os._exit(STATUS)


def _end_output() -> None:
    """Write out what was printed, and nothing after it: Ray explains its death as well."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
