"""Check a bank: rows in shards + rows in rejects = rows in the plan, every byte as committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Commit, Identity, Plan
from raffect.bank.plan import KEYS, list_generations, read_generation
from raffect.bank.records import is_file_of
from raffect.bank.replan import mark_of, stale_marks
from raffect.bank.running import DEAD_S
from raffect.bank.shard_file import (
    REJECTS,
    has_encoder,
    parse_rejects,
    shard_schema,
)
from raffect.errors import RaffectError
from raffect.storage.atomic import PREFIX, write_atomic
from raffect.storage.keys import Vocabulary, absent, first_not_above
from raffect.storage.paths import Damaged, list_sizes, parse_parquet
from raffect.storage.records import OtherFormat
from raffect.storage.tables import conform

QUIET_S = 3600.0
"""Age in seconds above which an unfinished file counts as left over."""
_DIGITS = 6
"""Fewest digits of a shard's number in names."""


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
        leftovers: Unfinished files, and files that no record names, which were not written to for
            an hour; notes of attempts that were committed in the end, and of runs that are dead;
            marks that a file of the plan was withdrawn, which is there again. Harmless.
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
    bank: Bank,
    manifest: pa.Table | None = None,
    progress: Callable[[int], None] = lambda n: None,
    changed: Collection[int] = (),
) -> Verification:
    """Read every byte of a bank and check it against its plan, its commits and a manifest.

    Args:
        bank: A bank.
        manifest: The manifest that it should cover; not compared if None.
        progress: Called with the number of rows of each shard that is done.
        changed: Shards that were made from other pictures than the manifest lists; they count as
            damaged.

    Returns:
        What was found; nothing is changed.
    """
    plan, identity = bank.plan, bank.read_identity()
    # Names before contents: a record that is written meanwhile is not taken for damaged.
    names = list_sizes(bank.path / "commits")
    commits = bank.read_commits()
    shards = _check_shards(bank, plan, commits, names, identity, progress, set(changed))
    # What is wrong apart from single shards
    problems = _compare_manifest(plan, manifest) if manifest is not None else []
    if commits and identity is None:
        problems.append("bank.json is missing although shards are committed")
    problems += shards.problems
    keys = Vocabulary().keys(plan.table)
    is_once = first_not_above(keys) is None  # so it is in a bank of one generation
    if doubled := 0 if is_once else len(keys) - len(np.unique(keys)):
        problems.append(f"{doubled} frames are planned twice")
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
        leftovers=tuple(_find_leftovers(bank, commits, names)),
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
    changed: Collection[int],
) -> _Shards:
    """Check every planned shard; ``names`` are the names of the files in ``commits/``."""
    out, vocabulary = _Shards(), Vocabulary()
    planned = vocabulary.keys(plan.table)
    for shard in range(plan.num_shards):
        keys = planned[plan.offsets[shard] : plan.offsets[shard + 1]]
        record = commits.get(shard)
        if record and identity:
            try:
                what = _check_shard(bank, record, keys, vocabulary, identity)
            except OSError as error:
                # The disk or the network failed, so the bytes may still be right.
                what = f"{error.filename or bank.path} cannot be read ({error.strerror})"
                remedy = "look after the disk, nothing is withdrawn"
                out.problems.append(f"shard {shard:06d}: {what}; {remedy}")
                continue
            if what is None and shard in changed:
                what = "was made from other pictures than the manifest lists"
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


def _find_leftovers(
    bank: Bank, commits: Mapping[int, Commit], names: Collection[str]
) -> list[Path]:
    """Files of killed runs: unfinished ones, those that no record names, and notes of attempts."""
    # Unfinished files
    folders = ("shards", "rejects", "commits", "plan", "attempts", "runs", "running", ".")
    found = [path for folder in folders for path in (bank.path / folder).glob(f"{PREFIX}*")]
    # Files that no record names; where a record is damaged it is not known which it named.
    known = {name for record in commits.values() for name in record.files}
    unread = {name.removesuffix(".json") for name in names}
    unread -= {f"{shard:06d}" for shard in commits}
    for folder in ("shards", "rejects"):
        for name in list_sizes(bank.path / folder):
            is_shards = name.endswith(".parquet") and not name.startswith(PREFIX)
            number = name.removesuffix(".parquet").partition("-")[0]
            if is_shards and f"{folder}/{name}" not in known and number not in unread:
                found.append(bank.path / folder / name)
    # Notes of attempts that were committed in the end, and of dead runs; marks of withdrawn plans
    notes = list_sizes(bank.path / "attempts")
    attempts = (bank.attempt_path(shard) for shard in commits)
    runs = sorted((bank.path / "running").glob("[!.]*.json"))
    return [
        *sorted(path for path in found if _is_quiet(path)),
        *(path for path in attempts if path.name in notes),
        *(path for path in runs if _is_quiet(path, DEAD_S)),
        *stale_marks(list_generations(bank.path / "plan")),
    ]


def withdraw(bank: Bank, shards: Iterable[int]) -> list[int]:
    """Delete shards, each record before its files, so that the next extract encodes them again.

    Returns:
        The shards that were withdrawn, ascending.
    """
    shards = sorted(shards)
    folders = [bank.path / folder for folder in ("shards", "rejects")] if shards else []
    files = {folder: list_sizes(folder) for folder in folders}
    by_number: dict[str, list[Path]] = {}
    for folder, names in files.items():
        for name in names:
            by_number.setdefault(name[:_DIGITS], []).append(folder / name)
    for shard in shards:
        bank.commit_path(shard).unlink(missing_ok=True)
        for path in by_number.get(f"{shard:06d}"[:_DIGITS], []):
            if is_file_of(path.name, shard):
                path.unlink(missing_ok=True)
    return shards


def withdraw_unreadable(bank: Bank) -> list[str]:
    """Delete ``bank.json`` and files of the plan that cannot be read, and keep all shards.

    The next extract makes them again: ``bank.json`` if shards say that they are of the same
    encoder, and the plan from its manifest; shards that do not fit it then are withdrawn.

    Returns:
        What was wrong with each, as one line that names it.

    Raises:
        RaffectError: If the bank is of another format, which is no damage.
    """
    lines = []
    for file in (bank.path / "bank.json", *list_generations(bank.path / "plan").values()):
        try:
            if file.name != "bank.json":
                read_generation(file)
            elif file.exists():
                bank.read_file()
        except OtherFormat:
            raise
        except RaffectError as error:
            lines.append(str(error).partition(";")[0])
            if file.name != "bank.json":
                write_atomic(mark_of(file), b"")
            file.unlink()
    return lines


def _is_quiet(path: Path, age_s: float | None = None) -> bool:
    """Whether a file was not written to for long; a younger one may be of a running extract."""
    try:
        return time.time() - path.stat().st_mtime > (QUIET_S if age_s is None else age_s)
    except FileNotFoundError:  # finished meanwhile
        return False


def _check_shard(
    bank: Bank, record: Commit, planned: np.ndarray, vocabulary: Vocabulary, identity: Identity
) -> str | None:
    """What is wrong with a committed shard; None if it is sound.

    Args:
        bank: The bank.
        record: The shard's record.
        planned: Keys of its planned frames.
        vocabulary: The vocabulary of these keys.
        identity: The bank's encoder.
    """
    # The bytes of its files
    contents = {}
    for name, (_, sha256) in record.files.items():
        try:
            contents[name] = bank.read_committed(name, sha256)
        except Damaged as error:
            return f"{name}: {error}"
    # Their tables
    content, rejects = contents[record.features_file], REJECTS.empty_table()
    try:
        table = parse_parquet(content)
        if what := _check_columns(table, record, identity):
            return what
        kept = conform(table, KEYS)
        if record.rejects_file is not None:
            rejects = parse_rejects(contents[record.rejects_file], record)
    except Damaged as error:
        return f"cannot be read as Parquet ({error})"
    # Keys: those of the plan without the rejects, in order
    kept_keys, rejected = vocabulary.keys(kept), vocabulary.keys(rejects)
    is_in_order = np.array_equal(planned[~np.isin(planned, rejected)], kept_keys)
    if not is_in_order or len(kept_keys) + len(rejected) != len(planned):
        found = f"{len(kept_keys)} kept + {len(rejected)} rejected of {len(planned)}"
        return f"rows are not those of the plan: {found}"
    return None


def _check_columns(table: pa.Table, record: Commit, identity: Identity) -> str | None:
    """What is wrong with the columns, the encoder or the number of rows of a shard's file."""
    columns, expected = table.schema.remove_metadata(), shard_schema(identity.dim)
    if columns != expected:
        found, wanted = ", ".join(map(str, columns)), ", ".join(map(str, expected))
        return f"has the columns {found}, expected {wanted}"
    if has_encoder(table, identity) is False:
        return "comes from another encoder than the bank"
    if len(table) != record.rows:
        return f"has {len(table)} rows, its commit record says {record.rows}"
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
