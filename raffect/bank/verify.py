"""Check a bank: rows in shards + rows in rejects = rows in the plan, every byte as committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import (
    REJECTS,
    Bank,
    Commit,
    Identity,
    Plan,
    parse_rejects,
    rejects_name,
    shard_name,
    shard_schema,
)
from raffect.storage.atomic import PREFIX
from raffect.storage.keys import Vocabulary, absent
from raffect.storage.paths import Damaged, list_sizes, parse_parquet

QUIET_S = 3600.0
"""Age in seconds above which an unfinished file counts as left over."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found.

    Attributes:
        planned: Rows in the plan.
        rows: Rows in sound shards.
        rejects: Rows in sound rejects.
        missing: Rows of shards that are not extracted yet.
        damaged: Shard -> what is wrong with it.
        damaged_rows: Planned rows of damaged shards.
        problems: What is wrong apart from single shards.
        leftovers: Unfinished files that were not written to for an hour, and notes of attempts
            that were committed in the end; harmless.
    """

    planned: int
    rows: int
    rejects: int
    missing: int
    damaged: Mapping[int, str]
    damaged_rows: int
    problems: tuple[str, ...]
    leftovers: tuple[Path, ...]

    @property
    def sound(self) -> bool:
        """Whether all that the bank holds is right; a sound bank may be unfinished."""
        return not self.damaged and not self.problems

    @property
    def complete(self) -> bool:
        """Whether it is sound and every planned row is in a shard or in the rejects."""
        return self.sound and self.rows + self.rejects == self.planned


def verify(
    bank: Bank, manifest: pa.Table | None = None, progress: Callable[[int], None] = lambda n: None
) -> Verification:
    """Read every byte of a bank and check it against its plan, its commits and a manifest.

    Args:
        bank: A bank.
        manifest: The manifest that it should cover; not compared if None.
        progress: Called with the number of rows of each shard that is done.

    Returns:
        What was found; nothing is changed.
    """
    plan, identity = bank.plan, bank.read_identity()
    # Names before contents: a record that is written meanwhile is not taken for damaged.
    names = list_sizes(bank.path / "commits")
    commits = bank.read_commits()
    shards = _check_shards(bank, plan, commits, names, identity, progress)
    # What is wrong apart from single shards
    problems = _compare_manifest(plan, manifest) if manifest is not None else []
    if commits and identity is None:
        problems.append("bank.json is missing although shards are committed")
    problems += shards.problems
    problems += [
        f"{shard:06d}: committed but not planned" for shard in commits if shard >= plan.num_shards
    ]
    return Verification(
        planned=len(plan.table),
        rows=sum(commits[shard].rows for shard in shards.sound),
        rejects=sum(commits[shard].rejects for shard in shards.sound),
        missing=shards.missing,
        damaged=shards.damaged,
        damaged_rows=int(np.diff(plan.offsets)[list(shards.damaged)].sum()),
        problems=tuple(problems),
        leftovers=tuple(_find_leftovers(bank, commits)),
    )


@dataclass
class _Shards:
    """What was found about single shards so far; fields as of `Verification`."""

    sound: list[int] = field(default_factory=list)
    missing: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _check_shards(
    bank: Bank,
    plan: Plan,
    commits: Mapping[int, Commit],
    names: Collection[str],
    identity: Identity | None,
    progress: Callable[[int], None],
) -> _Shards:
    """Check every planned shard; ``names`` are the names of the files in ``commits/``."""
    out = _Shards()
    for shard in range(plan.num_shards):
        keys = plan.rows(shard)
        record = commits.get(shard)
        if record and identity:
            try:
                what = _check_shard(bank, record, keys, identity)
            except OSError as error:
                # The disk or the network failed, so the bytes may still be right.
                what = f"{error.filename or bank.path} cannot be read ({error.strerror})"
                remedy = "look after the disk, nothing is withdrawn"
                out.problems.append(f"shard {shard:06d}: {what}; {remedy}")
                continue
            if what:
                out.damaged[shard] = what
            else:
                out.sound.append(shard)
        elif record:
            continue  # without the bank's identity it cannot be checked
        elif bank.commit_path(shard).name in names:
            out.damaged[shard] = (
                "a file is missing, has another size than committed, "
                "or the commit record is unreadable"
            )
        else:
            out.missing += len(keys)
        progress(len(keys))
    return out


def _find_leftovers(bank: Bank, commits: Iterable[int]) -> list[Path]:
    """Unfinished files of killed runs, and notes of attempts that were committed in the end."""
    folders = ("shards", "rejects", "commits", "plan", "attempts", "runs", ".")
    unfinished = (path for folder in folders for path in (bank.path / folder).glob(f"{PREFIX}*"))
    notes = list_sizes(bank.path / "attempts")
    attempts = (bank.attempt_path(shard) for shard in commits)
    return [
        *sorted(path for path in unfinished if _is_quiet(path)),
        *(path for path in attempts if path.name in notes),
    ]


def withdraw(bank: Bank, shards: Iterable[int]) -> list[int]:
    """Delete shards, each record before its files, so that the next extract encodes them again.

    Returns:
        The shards that were withdrawn, ascending.
    """
    shards = sorted(shards)
    for shard in shards:
        for path in (bank.commit_path(shard), bank.shard_path(shard), bank.rejects_path(shard)):
            path.unlink(missing_ok=True)
    return shards


def _is_quiet(path: Path) -> bool:
    """Whether a file was not written to for long; a younger one may be of a running extract."""
    try:
        return time.time() - path.stat().st_mtime > QUIET_S
    except FileNotFoundError:  # finished meanwhile
        return False


def _check_shard(bank: Bank, record: Commit, keys: pa.Table, identity: Identity) -> str | None:
    """What is wrong with a committed shard; None if it is sound."""
    # The bytes of its files
    contents = {}
    for name, (_, sha256) in record.files.items():
        try:
            contents[name] = bank.read_committed(name, sha256)
        except Damaged as error:
            return f"{name}: {error}"
    # Their tables
    try:
        shard, rejects = parse_parquet(contents[shard_name(record.shard)]), REJECTS.empty_table()
        if record.rejects:
            rejects = parse_rejects(contents[rejects_name(record.shard)], record)
    except Damaged as error:
        return f"cannot be read as Parquet ({error})"
    return _compare_shard(shard, rejects, record, keys, identity)


def _compare_shard(
    shard: pa.Table, rejects: pa.Table, record: Commit, keys: pa.Table, identity: Identity
) -> str | None:
    """What is wrong with the tables of a committed shard; None if they are sound."""
    # Columns, encoder and number of rows
    columns, expected = shard.schema.remove_metadata(), shard_schema(identity.dim)
    if columns != expected:
        found, wanted = ", ".join(map(str, columns)), ", ".join(map(str, expected))
        return f"has the columns {found}, expected {wanted}"
    if shard.schema.metadata.get(b"weights_sha256", b"").decode() != identity.weights_sha256:
        return "comes from another encoder than the bank"
    if len(shard) != record.rows:
        return f"has {len(shard)} rows, its commit record says {record.rows}"
    # Keys: those of the plan without the rejects, in order
    vocabulary = Vocabulary()
    planned, kept = vocabulary.keys(keys), vocabulary.keys(shard)
    rejected = vocabulary.keys(rejects)
    is_in_order = np.array_equal(planned[~np.isin(planned, rejected)], kept)
    if not is_in_order or len(kept) + len(rejected) != len(planned):
        found = f"{len(kept)} kept + {len(rejected)} rejected of {len(planned)}"
        return f"rows are not those of the plan: {found}"
    return None


def _compare_manifest(plan: Plan, manifest: pa.Table) -> list[str]:
    """A line for frames that only the manifest has, and one for those that only the plan has."""
    vocabulary = Vocabulary()
    planned, wanted = vocabulary.keys(plan.table), vocabulary.keys(manifest)
    out = []
    if count := int(absent(wanted, planned).sum()):
        out.append(f"{count} frames of the manifest are not planned; run `raffect extract` with it")
    if count := int(absent(planned, wanted).sum()):
        out.append(f"{count} planned frames are not in the manifest")
    return out
