"""Results that an earlier run of the same command found, known by a fingerprint of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from raffect.datasets.manifest import find_manifest
from raffect.errors import require
from raffect.storage.paths import sha256_of
from raffect.storage.records import Record

R = TypeVar("R", bound=Record)


def digest_inputs(labels: Path, manifest: Path | None) -> list[str]:
    """SHA-256 of the label table, and of the manifest if there is one.

    Raises:
        RaffectError: If one of them is missing.
    """
    require(labels.is_file(), f"{labels}: no such label table; make one with `raffect prepare`")
    files = [labels]
    if manifest is not None:
        file = find_manifest(manifest)
        require(file.is_file(), f"{file}: no such manifest; make one with `raffect prepare`")
        files.append(file)
    return [sha256_of(file) for file in files]


def read_known(kind: type[R], out: Path, files: Sequence[str], fingerprint: str) -> R | None:
    """What an earlier run wrote; None without one of its files, or if its inputs were others.

    Args:
        kind: Of the record, which has a ``fingerprint``.
        out: The folder.
        files: All that a finished run leaves there, the record first.
        fingerprint: Of this run.

    Raises:
        RaffectError: If the record is damaged.
    """
    if not all((out / name).is_file() for name in files):
        return None
    file, remedy = out / files[0], "delete it and run the same command again"
    found = kind.from_json(file.read_bytes(), file, remedy)
    return found if vars(found)["fingerprint"] == fingerprint else None
