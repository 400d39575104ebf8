"""Several banks for one command: ``--bank A B`` stands for the bank that joins them.

This is the one place that knows of it: the words become ``--bank A+B`` before a command reads them,
and the joined bank, which lies beside the first part, is made or brought up to date before the
command runs. So every stage works on one bank, and none joins by itself.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from raffect.errors import RaffectError, require

if TYPE_CHECKING:
    from raffect.bank.join_report import JoinReport
    from raffect.bank.records import How

READ_BANKS = (
    *("train", "tune", "postprocess", "probe", "evaluate", "predict"),
    *("captions", "zeroshot", "import-emoclip", "learn-prompts"),
)
"""Commands that read a bank, and so may be given several."""
_FLAG, _HOW = "--bank", "--how"
_KNOWN = ("concatenate", "average")
_DIGITS = 6


@dataclass(frozen=True)
class SeveralBanks:
    """Banks that a command is to read together.

    Attributes:
        parts: Their folders, in order.
        how: ``concatenate`` or ``average``.
        path: The bank that joins them.
    """

    parts: tuple[Path, ...]
    how: How
    path: Path

    def join(self) -> JoinReport:
        """Make the joined bank, or bring it up to date.

        Raises:
            RaffectError: As `raffect.bank.join.join_banks`, or without the right to write there.
        """
        from raffect.bank.join import join_banks

        try:
            return join_banks(self.parts, self.path, self.how)
        except PermissionError as error:
            words = ["--banks", *map(str, self.parts), "--how", self.how, "--bank"]
            raise RaffectError(
                f"{self.path}: no right to write there, beside the first of several banks; make "
                f"it elsewhere, `raffect bank join {shlex.join(words)} BANK`, and name that one"
            ) from error


def name_joined_bank(command: str, words: list[str]) -> tuple[list[str], SeveralBanks | None]:
    """Replace several banks among the words of a command by the one that joins them.

    They are those of ``--bank A B`` or ``--bank A --bank B``; ``--how average`` behind them is as
    of `raffect bank join`. Nothing is read or written, but a file in place of a bank is seen.

    Returns:
        The words, and what is to be joined; None for one bank at most.

    Raises:
        RaffectError: If a file is among the banks, or ``--how`` is something else.
    """
    values, others = split_values(words, _FLAG)
    if command not in READ_BANKS or len(values) < 2:
        return words, None
    files = [value for value in values[1:] if os.path.isfile(value)]
    require(
        not files,
        f"{_FLAG} {' '.join(values)}: {' and '.join(files)} is no bank but a file; give several "
        f"banks, or leave {_FLAG} out: `raffect predict {shlex.join(files)} --head ...` predicts "
        "pictures and videos",
    )
    how, others = split_values(others, _HOW)
    require(
        len(how) <= 1 and set(how) <= set(_KNOWN),
        f"{_HOW} {' '.join(how)}: expected {' or '.join(_KNOWN)}, for several banks",
    )
    chosen = cast("How", how[0] if how else _KNOWN[0])
    parts = tuple(_place(value) for value in values)
    path = joined_path(parts, chosen)
    return [*others, _FLAG, str(path)], SeveralBanks(parts, chosen, path)


def split_values(words: list[str], flag: str) -> tuple[list[str], list[str]]:
    """Values of a flag that may be there several times, and all other words."""
    values: list[str] = []
    others: list[str] = []
    is_value = False  # behind `--bank A`; in `--bank=A` one word has all
    for word in words:
        if word.startswith("-"):
            is_value = word == flag
            if word.startswith(f"{flag}="):
                values.append(word.removeprefix(f"{flag}="))
            elif not is_value:
                others.append(word)
        else:
            (values if is_value else others).append(word)
    return values, others


def _place(text: str) -> Path:
    from raffect.storage.paths import is_remote, locate

    path = locate(text)
    return path if is_remote(path) else Path(os.path.abspath(path))


def joined_path(parts: tuple[Path, ...], how: How) -> Path:
    """Where the bank that joins some is kept: beside the first, by the names of all.

    Such as ``clip+dino``, and ``plain+flip-average``. Parts of other folders may have equal names,
    so those add digits of a digest of all paths.
    """
    name = "+".join(part.name for part in parts)
    if how == "average":
        name += "-average"
    if any(part.parent != parts[0].parent for part in parts):
        text = "\n".join(map(str, parts))
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"
    return parts[0].parent / name
