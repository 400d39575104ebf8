"""What a command prints."""

from __future__ import annotations


def error_line(printed: str) -> str:
    """The one error that a command printed, which is its last line.

    Before it may stand what takes long on a slow machine, such as ``loading torch ...``.
    """
    (line,) = (line for line in printed.splitlines() if line.startswith("raffect "))
    assert printed.endswith(f"{line}\n")
    assert "Traceback" not in printed
    return line
