"""What made a result: versions, commit, machine.

Every summary records it, so that a run can be repeated.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath

from raffect.storage.records import Record

_DATA_PACKAGES = ("pyarrow", "numpy", "scikit-learn", "pillow", "simplejpeg")
PACKAGES = ("raffect", "torch", "open_clip_torch", "ray", *_DATA_PACKAGES)
"""Packages whose versions are recorded."""


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """Where a run took place: operating system and number of cores."""

    system: str
    cores: int | None


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """What made a result.

    Attributes:
        time: When this was recorded, ISO 8601 in UTC.
        command: Words of the command line.
        folder: Working folder in which the command was given.
        versions: Versions of packages and of Python.
        git_commit: Commit of raffect, see `git_commit`.
        machine: Where the run took place.
    """

    time: str
    command: tuple[str, ...]
    folder: str = "?"
    versions: dict[str, str]
    git_commit: str | None
    machine: Machine

    def command_line(self, command: str) -> str:
        """What to type to run it again, quoted for a shell.

        Args:
            command: Of raffect that ran, such as ``train``: the words of a job, ``jobs/train.py
                RECIPE ...``, lack it.
        """
        program, *words = self.command or ("raffect",)
        path = PurePath(program)
        if path.parts[-2:] == ("jobs", f"{command}.py"):
            return shlex.join(["raffect", command, *words])
        # `python -m raffect` has a module in place of the program
        if path.stem == "raffect" or path.parent.name == "raffect":
            return shlex.join(["raffect", *words])
        return shlex.join(["python", *self.command])


def describe_run() -> Provenance:
    """Time, versions, commit, command and machine of this process."""
    return Provenance(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(_as_utf8(word) for word in sys.argv),
        folder=_as_utf8(_working_folder()),
        versions=versions() | {"python": platform.python_version()},
        git_commit=git_commit(),
        machine=Machine(system=platform.platform(), cores=os.cpu_count()),
    )


def _as_utf8(text: str) -> str:
    """A text as JSON can hold it: names of files need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # Ray deletes a job's uploaded folder with the node that held it
        return "deleted meanwhile"


def versions() -> dict[str, str]:
    """Installed versions by package; "missing" for one that is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout that raffect runs from; None outside a checkout.

    ``+changes`` follows it if tracked files were edited.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    # Untracked files do not count as changes.
    try:
        commit = _run_git(root, "rev-parse", "HEAD").strip()
        changes = _run_git(root, "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def _run_git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
