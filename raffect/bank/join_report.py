"""What a joined bank is made of: counts, as `raffect bank join` reports them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raffect.bank.joined import describe_join
from raffect.bank.records import How, Identity
from raffect.progress import format_bytes


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What a part gave to a joined bank.

    Attributes:
        bank: Its folder.
        name: Its encoder and view.
        dim: Numbers of a vector.
        lacking: Frames of the joined bank's plan that it does not plan.
        rejected: Those that it could not read.
        waiting: Those that it has not extracted yet, or whose shard is damaged.
        others: Frames that it has and the first part does not plan; they are left out.
    """

    bank: Path
    name: str
    dim: int
    lacking: int
    rejected: int
    waiting: int
    others: int


@dataclass(frozen=True, kw_only=True)
class JoinReport:
    """A joined bank.

    Attributes:
        bank: Its folder.
        how: ``concatenate`` or ``average``.
        identity: Its identity, which names those of the parts.
        parts: What each part gave, in order.
        planned: Frames in its plan, which is that of the first part.
        rows: Frames with a vector.
        rejects: Frames that a part lacks or could not read.
        written: Rows and rejects that this run wrote; 0 if all was up to date.
        replaced: Those among them that were there before, from parts that have changed since.
        size_bytes: Size of its features and rejects.
    """

    bank: Path
    how: How
    identity: Identity
    parts: tuple[PartReport, ...]
    planned: int
    rows: int
    rejects: int
    written: int
    replaced: int
    size_bytes: int

    @property
    def waiting(self) -> int:
        """Planned frames that are in no shard yet: parts must be extracted first."""
        return self.planned - self.rows - self.rejects

    def short_line(self) -> str:
        """Where it lies and how large it is, in one line."""
        done = "up to date" if not self.written else f"{self.written:,} frames written"
        size = format_bytes(self.size_bytes)
        frames = f"{self.rows:,} of {self.planned:,} frames have all parts"
        return f"joined bank {self.bank}: {frames}, {self.identity.dim:,} numbers, {size}, {done}"

    def lines(self) -> list[str]:
        """The report as lines of text."""
        # What it is
        dims = " + " if self.how == "concatenate" else ", "
        numbers = dims.join(f"{part.dim:,}" for part in self.parts)
        what = f"{len(self.parts)} banks {describe_join(self.how)}, of {numbers} numbers a frame"
        lines = [self.short_line(), f"parts: {what}"]

        # What each part gave
        for number, part in enumerate(self.parts, 1):
            counts = {
                "not planned": part.lacking,
                "unreadable": part.rejected,
                "not extracted yet, or damaged": part.waiting,
            }
            found = [f", {count:,} {text}" for text, count in counts.items() if count]
            if part.others:
                found.append(f"; {part.others:,} that part 1 does not plan are left out")
            has = self.planned - part.lacking - part.rejected - part.waiting
            frames = f"{has:,} of {self.planned:,} frames{''.join(found)}"
            lines.append(f"part {number}: {part.bank} ({part.name}), {frames}")

        # How complete it is
        rejects = f"{self.rejects:,} rejects, which a part lacks or could not read"
        lines.append(f"rows: {self.rows:,} vectors + {rejects}, of {self.planned:,} planned frames")
        if self.replaced:
            lines.append(f"replaced: {self.replaced:,} frames, whose parts have changed since")
        if self.waiting:
            shards = "frames share a shard with frames that a part has not extracted"
            lines.append(f"waiting: {self.waiting:,} {shards}; extract those, and join again")
        caveat = self.identity.caveat
        return [*lines, *([f"caveat: {caveat}"] if caveat else [])]
