"""`raffect bank info | verify`: look at a bank, and prove it."""

from __future__ import annotations

from dataclasses import dataclass

from raffect.bank.format import Bank
from raffect.bank.inspect import BankFacts, describe_bank
from raffect.bank.verify import Verification, verify, withdraw
from raffect.config import BankInfoConfig, BankVerifyConfig
from raffect.datasets.manifest import read_manifest
from raffect.progress import Progress

_SHOWN = 20


def info(config: BankInfoConfig) -> BankFacts:
    """What a bank holds.

    Raises:
        RaffectError: If it is not a bank, or its plan or identity is damaged.
    """
    return describe_bank(Bank(config.bank))


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Verification):
    """What `verify` found, and what was done about it.

    Attributes:
        repaired: Damaged shards that were withdrawn; None where nothing was to be repaired.
        retried: Shards with rejects that were withdrawn; None where that was not asked for.
    """

    repaired: tuple[int, ...] | None = None
    retried: tuple[int, ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether the bank is sound and complete, and nothing of it was withdrawn."""
        return self.complete and not self.retried

    def lines(self) -> list[str]:
        """A block for people."""
        out = [
            f"damaged: shard {shard:06d} {what}"
            for shard, what in list(self.damaged.items())[:_SHOWN]
        ]
        if len(self.damaged) > _SHOWN:
            out.append(f"damaged: and {len(self.damaged) - _SHOWN} more shards")
        out += [f"problem: {what}" for what in self.problems]
        if self.leftovers:
            files = f"{len(self.leftovers)} unfinished file(s) of killed runs"
            out.append(f"leftovers: {files}, harmless; --repair deletes them")
        out.append(
            f"rows {self.rows:,} + rejects {self.rejects:,} + not extracted {self.missing:,} + damaged {self.damaged_rows:,} = planned {self.planned:,}"
        )
        if self.repaired is not None:
            count = len(self.repaired)
            out.append(
                f"repaired: {count} shard(s) withdrawn; run `raffect extract` to encode them again"
            )
        return out + self._closing_lines()

    def _closing_lines(self) -> list[str]:
        if self.retried:
            count = len(self.retried)
            return [
                f"withdrawn: {count} shard(s) with rejects; run `raffect extract` to read their frames again"
            ]
        out = ["withdrawn: nothing, no frame was rejected"] if self.retried is not None else []
        if self.complete:
            rejects = (
                f", {self.rejects:,} of them as rejects without a feature" if self.rejects else ""
            )
            found = "every byte is as committed, every planned frame is there once"
            out.append(f"sound and complete: {found}{rejects}")
        elif self.sound:
            out.append("sound but not complete; run `raffect extract` again")
        elif not self.damaged:
            out.append("not right, see above; no shard is damaged and --repair cannot help")
        elif self.repaired is None:
            out.append(
                "damaged; `raffect bank verify --repair`, then `raffect extract`, repairs shards"
            )
        return out


def check(config: BankVerifyConfig) -> VerifyReport:
    """Verify a bank, and withdraw what is to be encoded again where that is asked for.

    Raises:
        RaffectError: If it is not a bank, or its plan or identity is damaged.
    """
    bank = Bank(config.bank).require()
    manifest = read_manifest(config.manifest) if config.manifest else None
    with Progress("verify", len(bank.plan.table), "rows") as progress:
        found = verify(bank, manifest, progress.advance)
    repaired = retried = None
    if config.repair and (found.damaged or found.leftovers):
        repaired = tuple(withdraw(bank, found.damaged))
        for path in found.leftovers:
            path.unlink(missing_ok=True)
    if config.retry_rejects:
        rejected = [shard for shard, commit in bank.read_commits().items() if commit.rejects]
        retried = tuple(withdraw(bank, rejected))
    return VerifyReport(**vars(found), repaired=repaired, retried=retried)
