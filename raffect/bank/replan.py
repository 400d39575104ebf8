"""Plan again what was withdrawn from a plan, and keep the shards that fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raffect.bank.plan import KEYS, Plan
from raffect.bank.records import Commit
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary
from raffect.storage.paths import Damaged, parse_parquet
from raffect.storage.tables import conform

if TYPE_CHECKING:
    from raffect.bank.format import Bank


def mark_of(file: Path) -> Path:
    """The mark that a file of the plan was withdrawn; only then it is planned again."""
    return file.with_suffix(".withdrawn")


def stale_marks(files: Mapping[int, Path]) -> list[Path]:
    """Marks beside files of a plan that are there, which a killed run may have left."""
    folders = {file.parent for file in files.values()}
    there = {mark.name: mark for folder in folders for mark in folder.glob("*.withdrawn")}
    names = [mark_of(file).name for file in files.values()]
    return [there[name] for name in names if name in there]


def forget_marks(files: Mapping[int, Path]) -> None:
    """Delete the marks of files that are there and sound, so that a later loss is not made up."""
    for mark in stale_marks(files):
        mark.unlink(missing_ok=True)


def withdraw_misfits(bank: Bank, file: Path, plan: Plan, shards: Iterable[int]) -> None:
    """Delete the records of shards that hold other frames than a plan says.

    Args:
        bank: The bank.
        file: The file that is about to be planned again.
        plan: The plan with that file.
        shards: Committed shards from the first one of that file on.

    Raises:
        RaffectError: If the file was not withdrawn but is missing.
    """
    if not mark_of(file).exists():
        raise RaffectError(
            f"{bank.path}: plan/{file.name} is missing although shards are committed; "
            "restore it from a backup, or extract into a new --bank"
        )
    commits = bank.read_commits()
    for shard in shards:
        record = commits.get(shard)
        if record is None or shard >= plan.num_shards or not _fits(bank, record, plan):
            bank.commit_path(shard).unlink(missing_ok=True)


def _fits(bank: Bank, record: Commit, plan: Plan) -> bool:
    """Whether a shard holds the frames of a plan, in its order."""
    try:
        content = bank.read_committed(record.features_file, record.sha256)
        kept = conform(parse_parquet(content, KEYS.names), KEYS)
        rejects = bank.read_rejects([record])
    except (Damaged, RaffectError):
        return False
    vocabulary = Vocabulary()
    planned = vocabulary.keys(plan.rows(record.shard))
    rejected = np.isin(planned, vocabulary.keys(rejects))
    is_all = int(rejected.sum()) == record.rejects
    return is_all and np.array_equal(planned[~rejected], vocabulary.keys(kept))
