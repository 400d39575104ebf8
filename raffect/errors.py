"""The one kind of error that is written for users."""

from __future__ import annotations


class RaffectError(Exception):
    """Bad or missing input: one line that names it, what was expected and how to fix it.

    The command line prints the line and exits with status 2; it shows a traceback only under
    ``--debug``.
    """


def require(ok: bool, message: str) -> None:
    """Raise `RaffectError` with ``message`` unless ``ok``."""
    if not ok:
        raise RaffectError(message)
