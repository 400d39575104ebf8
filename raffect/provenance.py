"""What made a result: versions, commit, machine. Goes into every summary, so that a run can be repeated."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from raffect.storage.records import Record

PACKAGES = (
    "raffect",
    "torch",
    "open_clip_torch",
    "ray",
    "pyarrow",
    "numpy",
    "scikit-learn",
    "pillow",
    "simplejpeg",
)


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """Where it ran: operating system and number of cores."""

    system: str
    cores: int | None


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """What made a result.

    Attributes:
        time: When it began, ISO 8601 in UTC.
        command: Words of the command line.
        folder: Where it was given.
        versions: Of packages and Python.
        git_commit: Of raffect, see `git_commit`.
        machine: Where it ran.
    """

    time: str
    command: tuple[str, ...]
    folder: str = "?"
    versions: dict[str, str]
    git_commit: str | None
    machine: Machine


def describe_run() -> Provenance:
    """Time, versions, commit, command and machine of this process."""
    return Provenance(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv),
        folder=_working_folder(),
        versions=versions() | {"python": platform.python_version()},
        git_commit=git_commit(),
        machine=Machine(system=platform.platform(), cores=os.cpu_count()),
    )


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # Ray deletes a job's uploaded folder with the node that held it
        return "deleted meanwhile"


def versions() -> dict[str, str]:
    """Installed versions by package; "missing" where one is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout raffect runs from, with ``+changes`` where it was edited; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if dirty else "")
