"""The bank: a folder of Parquet feature shards, each of which is written whole or not at all.

    bank.json                        identity: encoder, weights, preprocess, precision; threads
    plan/0000.parquet                the rows of each shard; new frames append a file (a generation)
    shards/000000-1a2b3c4d.parquet   video, frame, feature (dim little-endian float16, fixed-size
                                     binary); the name has the beginning of its SHA-256
    rejects/000000-5e6f7a8b.parquet  video, frame, reason; absent if every frame could be read
    commits/000000.json              a finished shard: its rows, the names and SHA-256 of its files,
                                     the digest of its pictures; created last, and only once
    attempts/000000                  note of a shard that was begun and is not committed yet
    running/*.json                   note of a run that is writing (`raffect.bank.running`)
    runs/*.json                      a summary of each extraction

A shard counts once its commit record exists and its files have the recorded sizes. Writers with
other bytes write files with other names; the first record counts, and the others delete their own
files. See docs/bank.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.claim import claim, find_threads
from raffect.bank.extend import extend_plan, unplanned_rows
from raffect.bank.plan import (
    Plan,
    build_plan,
    first_missing,
    list_generations,
    read_generation,
)
from raffect.bank.records import BankFile, Commit, Identity, parse_bank_file, parse_commit
from raffect.bank.shard_file import REJECTS, format_rejects, format_shard, parse_rejects
from raffect.errors import RaffectError
from raffect.storage.commits import Commits
from raffect.storage.paths import Damaged, locate

_COMMIT = re.compile(r"[0-9]{6,10}\.json", re.A)


class Bank:
    """A bank in a folder or an object store; making this object reads and creates no file."""

    def __init__(self, path: str | Path) -> None:
        self.path = locate(path)
        self.records = Commits(self.path, _COMMIT, parse_commit)

    @property
    def exists(self) -> bool:
        """Whether the folder is a bank, finished or not."""
        is_begun = (self.path / "plan").is_dir() or (self.path / "bank.json").exists()
        return is_begun or (self.path / "commits").is_dir()  # both may have been withdrawn

    def require(self) -> Bank:
        """This bank, if it is one.

        Raises:
            RaffectError: If the folder is not a bank.
        """
        if not self.exists:
            command = f"raffect extract --manifest M --bank {shlex.quote(str(self.path))}"
            raise RaffectError(f"{self.path}: no bank there; make one with `{command}`")
        return self

    @property
    def repair_command(self) -> str:
        """The command that withdraws what is damaged, for errors."""
        return f"raffect bank verify --bank {shlex.quote(str(self.path))} --repair"

    @property
    def fill_command(self) -> str:
        """The command that makes again what was withdrawn, for errors."""
        with contextlib.suppress(RaffectError):
            identity = self.read_identity()
            if identity is not None and identity.joined is not None:
                return "raffect bank join"
        return "raffect extract"

    # Identity

    def read_file(self) -> BankFile | None:
        """What ``bank.json`` says, or None if no encoder has claimed the bank yet.

        Raises:
            RaffectError: If it is damaged or of another format.
        """
        file = self.path / "bank.json"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        return parse_bank_file(content, file)

    def read_identity(self) -> Identity | None:
        """The identity, or None if no encoder has claimed the bank yet.

        Raises:
            RaffectError: If ``bank.json`` is damaged or of another format.
        """
        found = self.read_file()
        return found.identity if found else None

    def require_identity(self) -> Identity:
        """The identity of a bank that holds something.

        Raises:
            RaffectError: If the folder is not a bank, ``bank.json`` is damaged, or nothing is
                extracted yet.
        """
        identity = self.require().read_identity()
        if identity is None:
            raise RaffectError(f"{self.path}: nothing extracted yet; run `raffect extract` on it")
        return identity

    def claim(self, identity: Identity, threads: int | None = None) -> None:
        """Make ``identity`` the bank's, or check that it already is, before shards are committed.

        See `raffect.bank.claim`, which says when it refuses.
        """
        claim(self, identity, threads)

    def read_threads(self) -> int | None:
        """CPU threads of each encoder; None if not known. See `raffect.bank.claim`."""
        return find_threads(self)

    # Plan

    @cached_property
    def plan(self) -> Plan:
        """The plan over all generations.

        Raises:
            RaffectError: If it is damaged, or a generation is missing.
        """
        files = list_generations(self.path / "plan")
        number = first_missing(files)
        if number < len(files) or (not files and any(self.committed())):
            raise RaffectError(
                f"{self.path}: damaged plan, plan/{number:04d}.parquet is missing; restore it from "
                "a backup, or if `raffect bank verify --repair` withdrew it, run `raffect extract`"
            )
        return build_plan(map(read_generation, files.values()))

    @property
    def known_plan(self) -> Plan:
        """The plan up to the first generation that is missing, which may have been withdrawn.

        Raises:
            RaffectError: If it is damaged.
        """
        files = list_generations(self.path / "plan")
        return self.plan_of({k: files[k] for k in range(first_missing(files))})

    def extend_plan(self, manifest: pa.Table, shard_rows: int | None = None) -> Plan:
        """Plan every frame of a manifest that is not planned yet, as a new generation.

        See `raffect.bank.extend`, which says what it does and when it refuses.
        """
        return extend_plan(self, manifest, shard_rows)

    def unplanned(self, manifest: pa.Table) -> pa.Table:
        """Rows of a manifest that are not planned yet.

        Raises:
            RaffectError: If the manifest lacks frames that are planned.
        """
        plan = self.plan_of(list_generations(self.path / "plan"))
        return unplanned_rows(self.path, plan, manifest)

    def plan_of(self, files: Mapping[int, Path]) -> Plan:
        """The plan in files of a plan that are there, by generation; some may be missing."""
        cached: Plan | None = self.__dict__.get("plan")
        if cached is not None and cached.generations == len(files) == first_missing(files):
            return cached
        return build_plan(map(read_generation, files.values()))

    def committed(self) -> list[int]:
        """Numbers of shards that have a record, sound or not."""
        return [int(name.removesuffix(".json")) for name in self.records.names()]

    # Shards

    def read_commit(self, shard: int) -> Commit | None:
        """The record of a shard; None if there is none or it is damaged.

        Its files may be missing or damaged.
        """
        return self.records.read(self.commit_path(shard).name)

    def shard_path(self, shard: int) -> Path:
        """The file with the features of a committed shard.

        Raises:
            RaffectError: If it has no sound record.
        """
        return self.path / self._require_commit(shard).features_file

    def rejects_path(self, shard: int) -> Path:
        """The file with the frames of a committed shard that could not be read.

        Raises:
            RaffectError: If it has no sound record, or every frame could be read.
        """
        if (name := self._require_commit(shard).rejects_file) is None:
            raise RaffectError(f"{self.path}: shard {shard:06d} has no rejects")
        return self.path / name

    def _require_commit(self, shard: int) -> Commit:
        if (record := self.read_commit(shard)) is None:
            raise RaffectError(f"{self.path}: shard {shard:06d} is not committed")
        return record

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
        pictures: str | None = None,
        threads: int | None = None,
        sources: str | None = None,
    ) -> Commit:
        """Write a shard, its rejects and then its commit record; each appears whole or not at all.

        If another writer has committed the shard meanwhile, its record counts and our files are
        deleted.

        Args:
            shard: Its number in the plan.
            keys: ``video, frame`` of all its planned rows.
            features: float16, shape (rows that were read, dim), in the order of ``keys`` without
                the rejects.
            rejects: Row of ``keys`` -> reason.
            identity: The encoder that made the features; it is named in the file.
            pictures: Digest of the pictures that became features; None if it is not known.
            threads: CPU threads of the encoder; None if it ran on a GPU, or it is not known.
            sources: In a joined bank, digest of where the vectors come from.

        Returns:
            The record that counts; if it is ours, a pure function of the arguments.
        """
        good = np.setdiff1d(np.arange(len(keys)), list(rejects))
        if features.shape != (len(good), identity.dim) or features.dtype != np.float16:
            raise ValueError(
                f"shard {shard}: features {features.dtype}{features.shape}, "
                f"expected float16{(len(good), identity.dim)}"
            )
        # Its files
        contents = {"shards": format_shard(keys.take(good), features, identity, threads)}
        if rejects:
            contents["rejects"] = format_rejects(keys, rejects)
        files = self.records.write(f"{shard:06d}", contents)
        # The record, which makes the shard count
        record = Commit(
            shard=shard,
            rows=len(good),
            rejects=len(rejects),
            files=files,
            pictures=pictures,
            sources=sources,
        )
        record = self.records.settle(self.commit_path(shard).name, record)
        self.attempt_path(shard).unlink(missing_ok=True)
        return record

    def read_commits(self) -> dict[int, Commit]:
        """Finished shards: their record is readable and their files have the recorded sizes."""
        found = {record.shard: record for record in self.records.read_all(("shards", "rejects"))}
        return dict(sorted(found.items()))

    def read_committed(self, name: str, sha256: str) -> pa.Buffer:
        """Bytes of a shard's file, checked to be those that were committed.

        Args:
            name: Path of the file as in the commit record.
            sha256: SHA-256 of the file as in the commit record.

        Raises:
            Damaged: If it is missing or holds other bytes.
        """
        return self.records.read_committed(name, sha256)

    def read_rejects(self, commits: Iterable[Commit]) -> pa.Table:
        """``video, frame, reason`` of every frame of some shards that could not be read.

        Raises:
            RaffectError: If a file is not as committed.
        """
        tables = [REJECTS.empty_table()]
        for commit in commits:
            if (name := commit.rejects_file) is None:
                continue
            try:
                content = self.read_committed(name, commit.files[name][1])
                tables.append(parse_rejects(content, commit))
            except Damaged as error:
                raise self.damaged(name, error) from error
        return pa.concat_tables(tables)

    def damaged(self, name: str, why: Damaged) -> RaffectError:
        """The error for a file that is not as committed, with what to do."""
        remedy = f"run `{self.repair_command}`, then `{self.fill_command}` again"
        return RaffectError(f"{self.path / name}: {why}; {remedy}")

    def digest(self, commits: Mapping[int, Commit] | None = None) -> str:
        """SHA-256 over the identity and every commit record, which are read now unless given.

        Equal features of equal encoders have equal digests, and others have others. Format and
        threads of ``bank.json`` are not in it: what they change in a vector, records show. Nor is
        it in which shards of its parts a joined bank found its vectors.
        """
        file = self.path / "bank.json"
        bank_json = file.read_bytes()
        found = parse_bank_file(bank_json, file)
        is_first = found.format == 1
        digest = hashlib.sha256(bank_json if is_first else found.identity.to_first_bytes())
        for record in (self.read_commits() if commits is None else commits).values():
            content = replace(record, sources=None).to_json()
            digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()
