"""Prove that a bank is what it promises: rows in shards + rows in rejects = rows in the plan, and every byte as committed."""

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
"""Age in seconds from which an unfinished file counts as left over."""


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
        problems: What is wrong beside single shards.
        leftovers: Unfinished files that nobody has written to for an hour, and notes of attempts that
            were committed after all; harmless.
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
        """Whether everything there is right; a bank may be sound and not finished."""
        return not self.damaged and not self.problems

    @property
    def complete(self) -> bool:
        """Whether it is sound and every planned row is in a shard or in the rejects."""
        return self.sound and self.rows + self.rejects == self.planned


def verify(
    bank: Bank, manifest: pa.Table | None = None, progress: Callable[[int], None] = lambda n: None
) -> Verification:
    """Read every byte of a bank and check it against its plan, its commits and maybe a manifest.

    Args:
        bank: A bank.
        manifest: The manifest it should cover.
        progress: Called with the rows of each shard done.

    Returns:
        What was found; nothing is changed.
    """
    plan, identity = bank.plan, bank.read_identity()
    # Names before contents: a record that is written meanwhile is not taken for damaged.
    names = list_sizes(bank.path / "commits")
    commits = bank.read_commits()
    shards = _check_shards(bank, plan, commits, names, identity, progress)
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
    """What is known of single shards so far."""

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
    """Look at every planned shard; ``names`` are those of the files in ``commits/``."""
    out = _Shards()
    for shard in range(plan.num_shards):
        keys = plan.rows(shard)
        record = commits.get(shard)
        if record and identity:
            try:
                what = _check_shard(bank, record, keys, identity)
            except OSError as error:  # a disk or network that fails says nothing about the bytes
                where, why = error.filename or bank.path, error.strerror
                out.problems.append(
                    f"shard {shard:06d}: {where} cannot be read ({why}); look after the disk, nothing is withdrawn"
                )
                continue
            if what:
                out.damaged[shard] = what
            else:
                out.sound.append(shard)
        elif record:
            continue  # without an identity nothing can be known of it
        elif bank.commit_path(shard).name in names:
            out.damaged[shard] = (
                "a file is missing, has another size than committed, or the commit record is unreadable"
            )
        else:
            out.missing += len(keys)
        progress(len(keys))
    return out


def _find_leftovers(bank: Bank, commits: Iterable[int]) -> list[Path]:
    """Unfinished files of killed runs, and notes of attempts that were committed after all."""
    folders = ("shards", "rejects", "commits", "plan", "attempts", "runs", ".")
    unfinished = (path for folder in folders for path in (bank.path / folder).glob(f"{PREFIX}*"))
    notes = list_sizes(bank.path / "attempts")
    attempts = (bank.attempt_path(shard) for shard in commits)
    return [
        *sorted(path for path in unfinished if _is_quiet(path)),
        *(path for path in attempts if path.name in notes),
    ]


def withdraw(bank: Bank, shards: Iterable[int]) -> list[int]:
    """Delete shards, record first, so that the next extract encodes them again.

    Returns:
        The shards withdrawn.
    """
    shards = sorted(shards)
    for shard in shards:
        for path in (bank.commit_path(shard), bank.shard_path(shard), bank.rejects_path(shard)):
            path.unlink(missing_ok=True)
    return shards


def _is_quiet(path: Path) -> bool:
    """Whether nobody has written to a file for long: a younger one may be a running extract's own."""
    try:
        return time.time() - path.stat().st_mtime > QUIET_S
    except FileNotFoundError:  # finished meanwhile
        return False


def _check_shard(bank: Bank, record: Commit, keys: pa.Table, identity: Identity) -> str | None:
    """What is wrong with a committed shard, if anything."""
    contents = {}
    for name, (_, sha256) in record.files.items():
        try:
            contents[name] = bank.read_committed(name, sha256)
        except Damaged as error:
            return f"{name}: {error}"
    try:
        shard = parse_parquet(contents[shard_name(record.shard)])
        rejects = (
            parse_rejects(contents[rejects_name(record.shard)], record)
            if record.rejects
            else REJECTS.empty_table()
        )
    except Damaged as error:
        return f"cannot be read as Parquet ({error})"
    if shard.schema.remove_metadata() != shard_schema(identity.dim):
        return f"has the columns {', '.join(map(str, shard.schema.remove_metadata()))}, expected {', '.join(map(str, shard_schema(identity.dim)))}"
    if shard.schema.metadata.get(b"weights_sha256", b"").decode() != identity.weights_sha256:
        return "comes from another encoder than the bank"
    if len(shard) != record.rows:
        return f"has {len(shard)} rows, its commit record says {record.rows}"
    vocabulary = Vocabulary()
    planned, kept, rejected = (
        vocabulary.keys(keys),
        vocabulary.keys(shard),
        vocabulary.keys(rejects),
    )
    if not np.array_equal(planned[~np.isin(planned, rejected)], kept) or len(kept) + len(
        rejected
    ) != len(planned):
        return f"rows are not those of the plan: {len(kept)} kept + {len(rejected)} rejected of {len(planned)}"
    return None


def _compare_manifest(plan: Plan, manifest: pa.Table) -> list[str]:
    vocabulary = Vocabulary()
    planned, wanted = vocabulary.keys(plan.table), vocabulary.keys(manifest)
    out = []
    if count := int(absent(wanted, planned).sum()):
        out.append(f"{count} frames of the manifest are not planned; run `raffect extract` with it")
    if count := int(absent(planned, wanted).sum()):
        out.append(f"{count} planned frames are not in the manifest")
    return out
