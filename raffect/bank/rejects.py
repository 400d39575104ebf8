"""`raffect bank rejects`: the frames of a bank that could not be read, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank
from raffect.bank.inspect import describe_bank
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, positions
from raffect.storage.tables import table_of, write_csv

_SHOWN = 20
"""Rejects, and reasons, that a report names one by one."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A frame that could not be read.

    Attributes:
        video: Its video.
        frame: Its 1-based number.
        reason: Why it could not be read.
        path: Its file, where a manifest lists it; empty otherwise.
    """

    video: str
    frame: int
    reason: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.path or f'{self.video}/{self.frame:05d}'}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class RejectList:
    """The frames of a bank that could not be read.

    Attributes:
        bank: The bank.
        planned: Frames in its plan.
        missing: Planned frames that are not extracted yet; rejects may be among them.
        rejects: Its rejects, in the order of the plan.
        out: CSV file with all of them; None if it was not written.
    """

    bank: Path
    planned: int
    missing: int
    rejects: tuple[Reject, ...]
    out: Path | None = None

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> number of frames, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())

    def lines(self) -> list[str]:
        """The same as lines of text."""
        # How many, and why
        missing = f", {self.missing:,} of which are not extracted yet" if self.missing else ""
        lines = [f"rejects: {len(self.rejects):,} of {self.planned:,} planned frames{missing}"]
        reasons = list(self.reasons.items())
        lines += [f"rejected: {count:,} x {reason}" for reason, count in reasons[:_SHOWN]]
        if len(reasons) > _SHOWN:
            lines.append(f"rejected: and {len(reasons) - _SHOWN:,} other reasons")

        # Which ones
        lines += [f"  {reject}" for reject in self.rejects[:_SHOWN]]
        if len(self.rejects) > _SHOWN:
            others = f"{len(self.rejects) - _SHOWN:,} others"
            lines.append(f"  and {others}{'' if self.out else '; --out FILE.csv has all'}")
        if self.rejects and not any(reject.path for reject in self.rejects):
            lines.append("paths: add --manifest DATA, the folder that `raffect prepare` wrote")
        return [*lines, *([f"wrote {self.out}: video, frame, reason, path"] if self.out else [])]

    def to_pandas(self) -> Any:
        """A data frame, a row a reject, with the fields of `Reject`."""
        return table_of(self.rejects, Reject).to_pandas()


def list_rejects(bank: Bank, manifest: pa.Table | None = None) -> RejectList:
    """List the frames of a bank that could not be read.

    Args:
        bank: The bank.
        manifest: Lists the files of its frames.

    Raises:
        RaffectError: If it is not a bank, or one of its files is damaged or gone.
    """
    # A shard without its files would silently have no rejects.
    facts = describe_bank(bank)
    if facts.broken:
        raise RaffectError(
            f"{bank.path}: {facts.broken} committed shard(s) lack a file or have another size, so "
            f"their rejects are not known; run `{bank.repair_command}`, then `raffect extract` "
            "again"
        )
    table = bank.read_rejects(bank.read_commits().values())
    paths = [""] * len(table) if manifest is None else _find_paths(table, manifest)
    return RejectList(
        bank=bank.path,
        planned=facts.planned,
        missing=facts.missing,
        rejects=tuple(
            Reject(**row, path=path) for row, path in zip(table.to_pylist(), paths, strict=True)
        ),
    )


def write_rejects(found: RejectList, out: Path) -> RejectList:
    """Write a list of rejects as a CSV file with a row each; returns it with the file's name."""
    columns = [field.name for field in dataclasses.fields(Reject)]
    write_csv(out, [vars(reject) for reject in found.rejects], columns)
    return dataclasses.replace(found, out=out)


def _find_paths(rejects: pa.Table, manifest: pa.Table) -> list[str]:
    """The file of each reject; empty for those that the manifest lacks."""
    vocabulary = Vocabulary()
    keys, listed = vocabulary.keys(rejects), vocabulary.keys(manifest)
    order = np.argsort(listed)
    places = positions(keys, listed[order])
    rows = manifest.take(pa.array(order[places[places >= 0]]))
    files = iter(zip(rows["root"].to_pylist(), rows["path"].to_pylist(), strict=True))
    return ["/".join(next(files)) if place >= 0 else "" for place in places.tolist()]
