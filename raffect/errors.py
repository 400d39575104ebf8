"""The one kind of error that is written for users."""

from __future__ import annotations

from collections.abc import Iterable


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


def how_to_add(extra: str) -> str:
    """How the packages of an extra are installed beside raffect, to stand in a message."""
    return f"`uv pip install -e '.[{extra}]'` in raffect's clone"


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """`` (did you mean paper?)``, to stand after what says that a name is not known.

    Args:
        name: The wrong one.
        known: The right ones.
        most: How many near ones are named.
        cutoff: How alike they must be, from 0 to 1.

    Returns:
        Nothing if no name is near.
    """
    import difflib  # only once something is wrong

    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f" (did you mean {', '.join(near)}?)" if near else ""
