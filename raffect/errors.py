"""The one kind of error that a user is meant to read."""

from __future__ import annotations


class RaffectError(Exception):
    """Bad input or a missing thing: one line that names it, says what was expected and how to fix it.

    The command line prints it without a traceback (with one under ``--debug``) and exits with status 2.
    """


def require(ok: bool, message: str) -> None:
    """Raise `RaffectError` with ``message`` unless ``ok``."""
    if not ok:
        raise RaffectError(message)
