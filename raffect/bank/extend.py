"""Extend a bank's plan by the frames of a manifest that are not planned yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from raffect.bank.plan import (
    DEFAULT_SHARD_ROWS,
    Plan,
    build_plan,
    first_missing,
    format_generation,
    key_table,
    list_generations,
    read_generation,
)
from raffect.bank.replan import forget_marks, withdraw_misfits
from raffect.errors import RaffectError
from raffect.storage.atomic import write_if_absent
from raffect.storage.keys import Vocabulary, absent

if TYPE_CHECKING:
    from raffect.bank.format import Bank


def extend_plan(bank: Bank, manifest: pa.Table, shard_rows: int | None = None) -> Plan:
    """Plan every frame of a manifest that is not planned yet, as a new generation.

    A generation that was damaged and withdrawn is planned again; shards that do not fit it then
    are withdrawn.

    Args:
        bank: The bank, whose plan is read again.
        manifest: ``video, frame, ...``, sorted.
        shard_rows: Rows of a shard; if None, those of the bank, or 2048 in a new bank.

    Raises:
        RaffectError: If the manifest lacks frames that the bank holds, ``shard_rows`` differs
            from the bank's, or a generation is missing that was not withdrawn.
    """
    while True:
        # What is left to plan. Records are listed before the plan's files: those of a generation
        # that another run adds meanwhile are none of ours.
        committed = bank.committed()
        files = list_generations(bank.path / "plan")
        number, plan = first_missing(files), bank.plan_of(files)
        forget_marks(files)
        if number == len(files):
            bank.plan = plan
        if len(plan.table) and shard_rows not in (None, plan.shard_rows):
            raise RaffectError(
                f"--shard-rows {shard_rows}: {bank.path} has shards of {plan.shard_rows} rows; "
                "leave the option out or use a new --bank"
            )
        new = unplanned_rows(bank.path, plan, manifest)
        if not len(new):
            return bank.plan
        # The file of a new generation. If two runs extend the plan at once, one of them writes it.
        # The other one reads the plan again and looks at what is left.
        rows = plan.shard_rows if len(plan.table) else shard_rows or _guess_shard_rows(bank)
        content = format_generation(new, rows, manifest)
        file = bank.path / "plan" / f"{number:04d}.parquet"
        known = bank.plan_of({k: files[k] for k in range(number)})
        if beyond := [shard for shard in committed if shard >= known.num_shards]:
            whole = _plan_with(files, number, (key_table(new), rows))
            withdraw_misfits(bank, file, whole, beyond)
        write_if_absent(file, content)
        forget_marks({number: file})


def unplanned_rows(bank: Path, plan: Plan, manifest: pa.Table) -> pa.Table:
    """Rows of a manifest that are not in a plan.

    Raises:
        RaffectError: If the manifest lacks frames that are; it names the bank's folder.
    """
    vocabulary = Vocabulary()
    planned, wanted = vocabulary.keys(plan.table), vocabulary.keys(manifest)
    if len(gone := planned[absent(planned, wanted)]):
        video, frame = vocabulary.names[gone[0] >> 32], gone[0] & 0xFFFFFFFF
        raise RaffectError(
            f"{bank} holds {len(gone)} frames that the manifest lacks, e.g. "
            f"{video}/{frame:05d}; prepare the manifest from all image roots, or use a new "
            "--bank"
        )
    return manifest.filter(pa.array(absent(wanted, planned))) if len(planned) else manifest


def _plan_with(files: Mapping[int, Path], number: int, new: tuple[pa.Table, int]) -> Plan:
    """The plan in some files and in one that is not written yet."""
    generations = {k: read_generation(found) for k, found in files.items()} | {number: new}
    return build_plan(generations[k] for k in sorted(generations))


def _guess_shard_rows(bank: Bank) -> int:
    """Rows of a shard where there is no plan: those of the longest shard, or of a new bank."""
    lengths = [record.rows + record.rejects for record in bank.read_commits().values()]
    return max(lengths, default=DEFAULT_SHARD_ROWS) or DEFAULT_SHARD_ROWS
