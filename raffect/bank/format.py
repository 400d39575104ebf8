"""The bank: a folder of Parquet feature shards, each of which is written whole or not at all.

    bank.json               identity: encoder, weights, preprocess and precision of every feature
    plan/0000.parquet       the rows of each shard; new frames append a file (a generation),
                            and no file is ever rewritten
    shards/000000.parquet   video, frame, feature (dim little-endian float16, fixed-size binary)
    rejects/000000.parquet  video, frame, reason; absent if every frame could be read
    commits/000000.json     a finished shard: its rows and the SHA-256 of its files; written last
    attempts/000000         note of a shard that was begun and is not committed yet
    runs/*.json             a summary of each extraction

A shard counts once its commit record exists and its files have the recorded sizes. The plan alone
decides the names and rows of a shard, so a retry, or a second writer, writes the same files. See
docs/bank.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.records import (
    FORMAT,
    BankFile,
    Commit,
    Identity,
    parse_commit,
    parse_identity,
    rejects_name,
    shard_name,
)
from raffect.errors import RaffectError
from raffect.storage.atomic import PREFIX, write_atomic, write_if_absent
from raffect.storage.keys import Vocabulary, absent, digest_keys, encode_video
from raffect.storage.paths import (
    Damaged,
    list_sizes,
    locate,
    parse_parquet,
    read_buffer,
    read_files,
    read_parquet,
)
from raffect.storage.tables import read_metadata

_COMMIT = re.compile(r"[0-9]{6,}\.json")
DEFAULT_SHARD_ROWS = 2048
"""Rows of a shard, unless a user chooses another number."""
REJECTS = pa.schema([("video", pa.string()), ("frame", pa.int32()), ("reason", pa.string())])
"""Schema of a rejects file."""


@dataclass(frozen=True)
class Plan:
    """Rows in order and where each shard begins.

    Attributes:
        table: ``video`` (dictionary), ``frame`` (int32), sorted within a generation.
        offsets: int64, shape (num_shards + 1,); shard k has rows ``offsets[k]:offsets[k + 1]``.
        shard_rows: Most rows that a shard has.
        generations: Number of files that it was read from.
    """

    table: pa.Table
    offsets: np.ndarray
    shard_rows: int
    generations: int

    @property
    def num_shards(self) -> int:
        """Number of shards over all generations."""
        return len(self.offsets) - 1

    def rows(self, shard: int) -> pa.Table:
        """Keys of one shard."""
        return self.table.slice(self.offsets[shard], self.offsets[shard + 1] - self.offsets[shard])


class Bank:
    """A bank in a folder or an object store; making this object reads and creates no file."""

    def __init__(self, path: str | Path) -> None:
        self.path = locate(path)

    @property
    def exists(self) -> bool:
        """Whether the folder is a bank, finished or not."""
        return (self.path / "plan").is_dir() or (self.path / "bank.json").exists()

    def require(self) -> Bank:
        """This bank, if it is one.

        Raises:
            RaffectError: If the folder is not a bank.
        """
        if not self.exists:
            command = f"raffect extract --manifest M --bank {shlex.quote(str(self.path))}"
            raise RaffectError(f"{self.path}: no bank there; make one with `{command}`")
        return self

    # Identity

    def read_identity(self) -> Identity | None:
        """The identity, or None if no encoder has claimed the bank yet.

        Raises:
            RaffectError: If ``bank.json`` is damaged or of another format.
        """
        file = self.path / "bank.json"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        return parse_identity(content, file)

    def claim(self, identity: Identity) -> None:
        """Make ``identity`` the bank's, or check that it already is.

        Raises:
            RaffectError: If another encoder made this bank; the message names every difference.
        """
        self._require_unless_empty("bank.json")
        if write_if_absent(self.path / "bank.json", BankFile(identity=identity).to_bytes()):
            return
        found = self.read_identity()
        if found is None:
            raise RaffectError(
                f"{self.path}/bank.json: was there a moment ago and cannot be read; "
                "look after the storage, then run the same command again"
            )
        found.require_equal(identity, self.path)

    # Plan

    @cached_property
    def plan(self) -> Plan:
        """The plan over all generations."""
        files = self._plan_files()
        if not files:
            self._require_unless_empty("plan/0000.parquet")
        # Every generation, cut into shards of its own
        tables, lengths, shard_rows = [], [], DEFAULT_SHARD_ROWS
        for number, file in enumerate(files):
            table, shard_rows = _read_generation(file, number)
            full, rest = divmod(len(table), shard_rows)
            lengths += [shard_rows] * full + [rest] * bool(rest)
            tables.append(table.replace_schema_metadata(None))
        # All of them as one table
        if tables:
            table = pa.concat_tables(tables).unify_dictionaries()
        else:
            no_video, no_frame = pa.array([], pa.string()), pa.array([], pa.int32())
            table = _key_table(pa.table({"video": no_video, "frame": no_frame}))
        return Plan(
            table=table.combine_chunks(),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            shard_rows=shard_rows,
            generations=len(tables),
        )

    def extend_plan(self, manifest: pa.Table, shard_rows: int | None = None) -> Plan:
        """Plan every frame of a manifest that is not planned yet, as a new generation.

        Args:
            manifest: ``video, frame, ...``, sorted.
            shard_rows: Rows of a shard; if None, those of the bank, or 2048 in a new bank.

        Raises:
            RaffectError: If the manifest lacks frames that the bank holds, or ``shard_rows``
                differs from the bank's.
        """
        while True:
            # What is left to plan
            plan = self.plan
            if len(plan.table) and shard_rows not in (None, plan.shard_rows):
                raise RaffectError(
                    f"--shard-rows {shard_rows}: {self.path} has shards of {plan.shard_rows} rows; "
                    "leave the option out or use a new --bank"
                )
            new = self.unplanned(manifest)
            if not len(new):
                return plan
            # The file of a new generation
            rows = plan.shard_rows if len(plan.table) else shard_rows or DEFAULT_SHARD_ROWS
            about = {"shard_rows": str(rows), "manifest_digest": digest_keys(manifest)}
            sink = pa.BufferOutputStream()
            new = _key_table(new).replace_schema_metadata(about)
            pq.write_table(new, sink, compression="zstd")
            # If two runs extend the plan at once, one of them writes this file. The other one reads
            # the plan again and looks at what is left.
            file = self.path / "plan" / f"{plan.generations:04d}.parquet"
            write_if_absent(file, sink.getvalue().to_pybytes())
            self.__dict__.pop("plan", None)

    def unplanned(self, manifest: pa.Table) -> pa.Table:
        """Rows of a manifest that are not planned yet.

        Raises:
            RaffectError: If the manifest lacks frames that are planned.
        """
        plan, vocabulary = self.plan, Vocabulary()
        planned, wanted = vocabulary.keys(plan.table), vocabulary.keys(manifest)
        if len(gone := planned[absent(planned, wanted)]):
            video, frame = vocabulary.names[gone[0] >> 32], gone[0] & 0xFFFFFFFF
            raise RaffectError(
                f"{self.path} holds {len(gone)} frames that the manifest lacks, e.g. "
                f"{video}/{frame:05d}; prepare the manifest from all image roots, or use a new "
                "--bank"
            )
        return manifest.filter(pa.array(absent(wanted, planned))) if len(planned) else manifest

    def _plan_files(self) -> list[Path]:
        files = (self.path / "plan").glob("*.parquet")
        return sorted(file for file in files if not file.name.startswith(PREFIX))

    # Shards

    def shard_path(self, shard: int) -> Path:
        """The file with its features."""
        return self.path / shard_name(shard)

    def rejects_path(self, shard: int) -> Path:
        """The file with its frames that could not be read; absent if every frame could."""
        return self.path / rejects_name(shard)

    def commit_path(self, shard: int) -> Path:
        """Its commit record, written last."""
        return self.path / "commits" / f"{shard:06d}.json"

    def attempt_path(self, shard: int) -> Path:
        """The note that a run has begun this shard."""
        return self.path / "attempts" / f"{shard:06d}"

    def commit(
        self,
        shard: int,
        keys: pa.Table,
        features: np.ndarray,
        rejects: Mapping[int, str],
        identity: Identity,
    ) -> Commit:
        """Write a shard, its rejects and then its commit record; each appears whole or not at all.

        Args:
            shard: Its number in the plan.
            keys: ``video, frame`` of all its planned rows.
            features: float16, shape (rows that were read, dim), in the order of ``keys`` without
                the rejects.
            rejects: Row of ``keys`` -> reason.
            identity: The encoder that made the features; its digest goes into the file.

        Returns:
            The commit record, a pure function of the arguments.
        """
        good = np.setdiff1d(np.arange(len(keys)), list(rejects))
        if features.shape != (len(good), identity.dim) or features.dtype != np.float16:
            raise ValueError(
                f"shard {shard}: features {features.dtype}{features.shape}, "
                f"expected float16{(len(good), identity.dim)}"
            )
        # Features
        keys, files = _key_table(keys), {}
        path = self.shard_path(shard)
        files[shard_name(shard)] = _write_shard(path, keys.take(good), features, identity)
        # Rejects, or none where an earlier attempt may have left some
        if rejects:
            rows = sorted(rejects)
            reasons = pa.array([rejects[row] for row in rows], pa.string())
            table = keys.take(rows).append_column("reason", reasons)
            files[rejects_name(shard)] = _write_parquet(self.rejects_path(shard), table)
        else:
            self.rejects_path(shard).unlink(missing_ok=True)
        # The record, which makes the shard count
        record = Commit(shard=shard, rows=len(good), rejects=len(rejects), files=files)
        write_atomic(self.commit_path(shard), record.to_bytes())
        self.attempt_path(shard).unlink(missing_ok=True)
        return record

    def read_commits(self) -> dict[int, Commit]:
        """Finished shards: their record is readable and their files have the recorded sizes."""
        # Records first: a shard that is committed meanwhile must not look like one without files.
        names = [name for name in list_sizes(self.path / "commits") if _COMMIT.fullmatch(name)]
        sizes = {}
        for folder in ("shards", "rejects"):
            for name, size in list_sizes(self.path / folder).items():
                sizes[f"{folder}/{name}"] = size
        # Records whose files have the recorded sizes
        found = {}
        for name, content in read_files(self.path / "commits", names):
            record = parse_commit(name, content)
            if record is None:
                continue
            if all(sizes.get(file) == size for file, (size, _) in record.files.items()):
                found[record.shard] = record
        return dict(sorted(found.items()))

    def read_committed(self, name: str, sha256: str) -> pa.Buffer:
        """Bytes of a shard's file, checked to be those that were committed.

        Args:
            name: Path of the file as in the commit record.
            sha256: SHA-256 of the file as in the commit record.

        Raises:
            Damaged: If it is missing or holds other bytes.
        """
        try:
            content = read_buffer(self.path / name)
        except FileNotFoundError as error:
            raise Damaged("missing") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Damaged("not the file that was committed (SHA-256 differs)")
        return content

    def read_rejects(self, commits: Iterable[Commit]) -> pa.Table:
        """``video, frame, reason`` of every frame of some shards that could not be read.

        Raises:
            RaffectError: If a file is not as committed.
        """
        tables = [REJECTS.empty_table()]
        for commit in commits:
            if not commit.rejects:
                continue
            name = rejects_name(commit.shard)
            try:
                content = self.read_committed(name, commit.files[name][1])
                tables.append(parse_rejects(content, commit))
            except Damaged as error:
                raise self.damaged(name, error) from error
        return pa.concat_tables(tables)

    def damaged(self, name: str, why: Damaged) -> RaffectError:
        """The error for a file that is not as committed, with what to do."""
        remedy = f"run `raffect bank verify --bank {shlex.quote(str(self.path))} --repair`"
        return RaffectError(f"{self.path / name}: {why}; {remedy}, then `raffect extract` again")

    def digest(self, commits: Mapping[int, Commit] | None = None) -> str:
        """SHA-256 over the identity and every commit record, which are read now unless given.

        Equal banks, and only equal banks, have equal digests.
        """
        digest = hashlib.sha256((self.path / "bank.json").read_bytes())
        for record in (self.read_commits() if commits is None else commits).values():
            digest.update(json.dumps(record.to_json(), sort_keys=True).encode())
        return digest.hexdigest()

    def _require_unless_empty(self, name: str) -> None:
        """Refuse to create a file anew if it is missing from a bank with committed shards."""
        if not (self.path / name).exists() and any((self.path / "commits").glob("*.json")):
            raise RaffectError(
                f"{self.path}: {name} is missing although shards are committed; "
                "restore it from a backup, or extract into a new --bank"
            )


def _read_generation(file: Path, number: int) -> tuple[pa.Table, int]:
    """Keys of one file of a plan, and the rows of its shards."""
    try:
        if file.stem != f"{number:04d}":
            raise ValueError(f"generation {number:04d} is missing")
        table = read_parquet(file, ["video", "frame"])
        return table, int(read_metadata(table)["shard_rows"])
    except (Damaged, pa.ArrowException, KeyError, ValueError) as error:
        remedy = "restore it from a backup or extract into a new bank"
        raise RaffectError(f"{file}: damaged plan ({str(error)[:100]}); {remedy}") from error


def parse_rejects(content: pa.Buffer, commit: Commit) -> pa.Table:
    """The table in a shard's rejects file.

    Raises:
        Damaged: If it has other columns, or another number of rows than was committed.
    """
    try:
        table = parse_parquet(content, REJECTS.names).cast(REJECTS)
    except pa.ArrowException as error:
        raise Damaged(str(error).splitlines()[0][:120]) from error
    if len(table) != commit.rejects:
        raise Damaged(f"{len(table)} rows, its commit record says {commit.rejects}")
    return table


def shard_schema(dim: int) -> pa.Schema:
    """Schema of a shard file without its metadata."""
    video = pa.field("video", pa.dictionary(pa.int32(), pa.string()))
    feature = pa.field("feature", pa.binary(2 * dim), nullable=False)
    return pa.schema([video, pa.field("frame", pa.int32()), feature])


def _key_table(table: pa.Table) -> pa.Table:
    """The columns ``video``, as a dictionary of the names that occur, and ``frame``.

    Equal keys become equal bytes, whatever table they came from.
    """
    video = encode_video(table["video"]).cast(pa.string()).dictionary_encode()
    return pa.table({"video": video, "frame": table["frame"].cast(pa.int32()).combine_chunks()})


def _write_shard(
    path: Path, keys: pa.Table, features: np.ndarray, identity: Identity
) -> tuple[int, str]:
    """Write a shard's features; size in bytes and SHA-256 of the file."""
    keys, schema = _key_table(keys), shard_schema(identity.dim)
    raw = np.ascontiguousarray(features, "<f2")
    buffers = [None, pa.py_buffer(raw)]
    feature = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * identity.dim), len(raw), buffers)
    table = pa.Table.from_arrays([keys["video"], keys["frame"], feature], schema=schema)
    about = {"raffect": f"shard/{FORMAT}", "weights_sha256": identity.weights_sha256}
    return _write_parquet(path, table.replace_schema_metadata(about))


def _write_parquet(path: Path, table: pa.Table) -> tuple[int, str]:
    """Write a table; size in bytes and SHA-256 of the file."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="none",
        use_dictionary=["video"],
        write_statistics=["video", "frame"],
        row_group_size=1 << 20,
        data_page_size=1 << 26,
    )
    content = sink.getvalue().to_pybytes()
    write_atomic(path, content)
    return len(content), hashlib.sha256(content).hexdigest()
