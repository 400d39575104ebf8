"""Leaving from a thread: what a process does last where its main thread can act no more."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from typing import NoReturn

STATUS = 2
"""Exit status, that of every error with one line."""
_PATIENCE_S = 10.0
"""Seconds for all that is done last, since the output may be a pipe that nobody reads."""

_LAST: list[Callable[[str], object]] = []
_LEAVING = threading.Lock()


@contextlib.contextmanager
def last_act(act: Callable[[str], object], is_slow: bool = False) -> Generator[None]:
    """During a block, call ``act`` with the line about the reason where the process leaves.

    Acts of inner blocks come first, slow ones after all others.
    """
    _LAST.insert(0 if is_slow else len(_LAST), act)
    try:
        yield
    finally:
        _LAST.remove(act)


def leave(line: str) -> NoReturn:
    """End this process, whatever its other threads do, with status 2.

    Of several threads that leave the first one does; the others wait for the end.

    Args:
        line: The reason, which the last acts show.
    """
    with _LEAVING:
        limit = threading.Timer(_PATIENCE_S, os._exit, [STATUS])
        limit.daemon = True
        limit.start()
        acts = _LAST[::-1] or [lambda line: print(f"raffect: {line}", file=sys.stderr)]
        for act in [*acts, lambda _: sys.stdout.flush(), lambda _: sys.stderr.flush()]:
            with contextlib.suppress(Exception):
                act(line)
        os._exit(STATUS)
