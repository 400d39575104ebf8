"""Whose vectors a bank holds: the encoder that claims it, before a shard is committed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from raffect.bank.records import FORMAT, BankFile, Commit, Identity
from raffect.bank.shard_file import has_encoder, threads_of
from raffect.errors import RaffectError
from raffect.storage.atomic import write_atomic, write_if_absent
from raffect.storage.paths import Damaged, parse_parquet

if TYPE_CHECKING:
    from raffect.bank.format import Bank


def claim(bank: Bank, identity: Identity, threads: int | None = None) -> None:
    """Make ``identity`` a bank's, or check that it already is.

    A bank of format 1 becomes one of format 2, so that an older raffect refuses it instead of
    taking the new shards' records for damaged ones.

    Args:
        bank: The bank, which need not exist.
        identity: The encoder.
        threads: Its CPU threads; None if it runs on a GPU.

    Raises:
        RaffectError: If another encoder, or one with other threads, made this bank; the message
            names every difference.
    """
    file = bank.path / "bank.json"
    if not file.exists():
        known = _require_made_by(bank, identity)
        new = BankFile(identity=identity, threads=known or threads)
        write_if_absent(file, new.to_bytes())
    found = bank.read_file()
    if found is None:
        raise RaffectError(
            f"{file}: was there a moment ago and cannot be read; "
            "look after the storage, then run the same command again"
        )
    found.identity.require_equal(identity, bank.path)
    if threads and found.threads not in (None, threads):
        raise RaffectError(
            f"{bank.path}: its encoders have {found.threads} CPU threads, not {threads}, and "
            "vectors depend on that; run the same command again without --threads"
        )
    whole = replace(found, format=FORMAT, threads=found.threads or threads)
    if whole != found:
        write_atomic(file, whole.to_bytes())


def find_threads(bank: Bank) -> int | None:
    """CPU threads of each encoder; of a shard where ``bank.json`` is gone; None if not known.

    Raises:
        RaffectError: If ``bank.json`` is damaged or of another format.
    """
    if (found := bank.read_file()) is not None:
        return found.threads
    table = _read_sound(bank, bank.read_commits().values())
    return None if table is None else threads_of(table)


def _require_made_by(bank: Bank, identity: Identity) -> int | None:
    """Refuse to create ``bank.json`` anew for another encoder than that of a shard.

    Returns:
        CPU threads of that shard's encoder; None if it had none or there is no shard.

    Raises:
        RaffectError: If a shard is another encoder's, or does not say whose, as in format 1.
    """
    records = bank.read_commits().values()
    table = _read_sound(bank, records)
    if table is not None and has_encoder(table, identity):
        return threads_of(table)
    if records:
        raise RaffectError(
            f"{bank.path}: bank.json is missing although shards are committed, and those are "
            "another encoder's or do not say whose; restore it from a backup, or extract into "
            "a new --bank"
        )
    return None


def _read_sound(bank: Bank, records: Iterable[Commit]) -> pa.Table | None:
    """Frame numbers and metadata of the first shard whose file is as committed."""
    for record in records:
        with contextlib.suppress(Damaged):
            content = bank.read_committed(record.features_file, record.sha256)
            return parse_parquet(content, ["frame"])
    return None
