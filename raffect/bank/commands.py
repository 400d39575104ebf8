"""`raffect bank info | rejects | verify`: look at a bank, and check it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raffect.bank.format import Bank
from raffect.bank.inspect import BankFacts, describe_bank
from raffect.bank.pictures import PictureCheck, check_pictures
from raffect.bank.rejects import RejectList, list_rejects, write_rejects
from raffect.bank.verify import Verification, verify, withdraw, withdraw_unreadable
from raffect.config import BankInfoConfig, BankRejectsConfig, BankVerifyConfig
from raffect.datasets.manifest import read_manifest
from raffect.progress import Progress

_NOTHING: dict[str, Any] = dict.fromkeys(("planned", "rows", "rejects", "missing"), 0)
_NOTHING |= {"damaged": {}, "damaged_rows": 0, "problems": (), "leftovers": ()}
_SHOWN = 20
"""Damaged shards that a report names one by one."""


def info(config: BankInfoConfig) -> BankFacts:
    """What a bank holds.

    Raises:
        RaffectError: If it is not a bank, or its plan or identity is damaged.
    """
    return describe_bank(Bank(config.bank))


def rejects(config: BankRejectsConfig) -> RejectList:
    """List the frames of a bank that could not be read, and write them to ``config.out`` if set.

    Raises:
        RaffectError: If it is not a bank, one of its files is damaged or gone, or there is no such
            manifest.
    """
    manifest = read_manifest(config.manifest) if config.manifest else None
    found = list_rejects(Bank(config.bank), manifest)
    return write_rejects(found, config.out) if config.out else found


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Verification):
    """What `verify` found, and what was done about it.

    Attributes:
        repaired: Damaged shards that were withdrawn; None if there was nothing to repair.
        retried: Shards with rejects that were withdrawn; None if that was not asked for.
        pictures: The comparison with a manifest's pictures; None if that was not asked for.
        unreadable: What was wrong with ``bank.json`` and the plan, of which the damaged files were
            withdrawn; then nothing else was verified.
        fill_command: The command that makes again what is withdrawn or missing.
    """

    repaired: tuple[int, ...] | None = None
    retried: tuple[int, ...] | None = None
    pictures: PictureCheck | None = None
    unreadable: tuple[str, ...] = ()
    fill_command: str = "raffect extract"

    @property
    def ok(self) -> bool:
        """Whether the bank is sound and complete, was compared with all pictures that this was
        asked of, and nothing was withdrawn."""
        is_compared = self.pictures is None or not self.pictures.unreadable
        return self.complete and is_compared and not self.retried and not self.unreadable

    def lines(self) -> list[str]:
        """The same as lines of text."""
        if self.unreadable:
            remedy = "run `raffect extract` again, which makes them anew and keeps the shards"
            return [f"withdrawn: {what}" for what in self.unreadable] + [f"next: {remedy}"]
        # What is wrong
        shown = list(self.damaged.items())[:_SHOWN]
        out = [f"damaged: shard {shard:06d} {what}" for shard, what in shown]
        if len(self.damaged) > _SHOWN:
            out.append(f"damaged: and {len(self.damaged) - _SHOWN} more shards")
        out += [f"problem: {what}" for what in self.problems]
        if self.leftovers:
            files = f"{len(self.leftovers)} unfinished file(s) of killed runs"
            out.append(f"leftovers: {files}, harmless; --repair deletes them")
        if self.pictures is not None:
            out.append(self.pictures.line())
        # The sum that has to hold
        out.append(
            f"rows {self.rows:,} + rejects {self.rejects:,} + not extracted {self.missing:,} "
            f"+ damaged {self.damaged_rows:,} = planned {self.planned:,}"
        )
        # What was done about it
        if self.repaired is not None:
            what = f"{len(self.repaired)} shard(s) withdrawn"
            out.append(f"repaired: {what}; run `{self.fill_command}` to make them again")
        return out + self._closing_lines()

    def _closing_lines(self) -> list[str]:
        """What was withdrawn, and the conclusion or the next command."""
        if self.retried:
            what = f"{len(self.retried)} shard(s) with rejects"
            remedy = f"run `{self.fill_command}` to read their frames again"
            return [f"withdrawn: {what}; {remedy}"]
        out = ["withdrawn: nothing, no frame was rejected"] if self.retried is not None else []
        if self.complete:
            rejects = f", {self.rejects:,} of them as rejects without a feature"
            found = "every byte is as committed, every planned frame is there once"
            out.append(f"sound and complete: {found}{rejects if self.rejects else ''}")
        elif self.sound:
            out.append(f"sound but not complete; run `{self.fill_command}` again")
        elif not self.damaged:
            out.append("not right, see above; no shard is damaged and --repair cannot help")
        elif self.repaired is None:
            commands = f"`raffect bank verify --repair`, then `{self.fill_command}`"
            out.append(f"damaged; {commands}, repairs shards")
        return out


def check(config: BankVerifyConfig) -> VerifyReport:
    """Verify a bank and, if the options ask for it, withdraw shards that are to be encoded again.

    Raises:
        RaffectError: If it is not a bank, or its plan or identity is damaged.
    """
    bank = Bank(config.bank).require()
    if config.repair and (lines := withdraw_unreadable(bank)):
        return VerifyReport(**_NOTHING, unreadable=tuple(lines))
    # Verification, which changes nothing
    manifest = read_manifest(config.manifest) if config.manifest else None
    pictures = None
    if config.pictures and manifest is not None:
        with Progress("pictures", len(bank.plan.table)) as progress:
            pictures = check_pictures(bank, manifest, config.sample, progress.advance)
    with Progress("verify", len(bank.plan.table), "rows") as progress:
        changed = pictures.changed if pictures else ()
        found = verify(bank, manifest, progress.advance, changed)
    # Withdrawals that were asked for
    repaired = retried = None
    if config.repair and (found.damaged or found.leftovers):
        repaired = tuple(withdraw(bank, found.damaged))
        for path in found.leftovers:
            path.unlink(missing_ok=True)
    if config.retry_rejects:
        rejected = [shard for shard, commit in bank.read_commits().items() if commit.rejects]
        retried = tuple(withdraw(bank, rejected))
    return VerifyReport(
        **vars(found),
        repaired=repaired,
        retried=retried,
        pictures=pictures,
        fill_command=bank.fill_command,
    )
