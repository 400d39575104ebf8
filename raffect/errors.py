"""The one kind of error that is written for users."""

from __future__ import annotations


class RaffectError(Exception):
    """Bad or missing input: one line that names it, what was expected and how to fix it.

    The command line prints the line and exits with status 2; it shows a traceback only under
    ``--debug``. Line ends and other control characters, which names in a file may have, are shown
    as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(as_one_line(message))


def as_one_line(text: str) -> str:
    """A text with every character that a terminal does not just show as its escape."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def require(ok: bool, message: str) -> None:
    """Raise `RaffectError` with ``message`` unless ``ok``."""
    if not ok:
        raise RaffectError(message)
