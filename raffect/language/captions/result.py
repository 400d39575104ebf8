"""What `raffect captions` made, and what it left out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Ge

from raffect.datasets.labels import is_of_clips
from raffect.errors import as_one_line
from raffect.language.captions.captioned import LeftOut
from raffect.language.leaks import LeakGuard, bases_of, is_split
from raffect.storage.records import Record

_SHOWN = 8
"""Words that a line shows."""
_LONGEST = 160
"""Characters of a caption that a line shows."""


@dataclass(frozen=True, kw_only=True)
class CaptionFacts(Record):
    """How a label table of captions came about; it is in the table's metadata.

    Attributes:
        source: ``table``, ``labels``, ``classes`` or ``teacher``.
        file: Name of the table or bank that captions are from.
        prompts: Prompt sets; empty without.
        templates: Their sentences; empty without.
        clips: What a caption is of: rows of the table, or runs or stretches of frames.
        clip_frames: Frames of a stretch; 0 without.
        seed: Of all that was drawn.
        split: How rows were dealt to training and validation; empty where the source says so.
        truncated: Captions that were cut.
        left_out: Rows that are not in the table, by reason.
        guard: What the leak guard did.
    """

    source: str
    file: str
    prompts: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    clips: str = "rows"
    clip_frames: Annotated[int, Ge(0)] = 0
    seed: Annotated[int, Ge(0)] = 0
    split: str = ""
    truncated: Annotated[int, Ge(0)] = 0
    left_out: tuple[LeftOut, ...] = ()
    guard: LeakGuard = field(default_factory=LeakGuard)


@dataclass(frozen=True, kw_only=True)
class CaptionsResult:
    """A label table of captions, and the vectors beside it.

    Attributes:
        out: The label table.
        targets: Its vectors.
        table: Its rows.
        captions: Text of each target, in the order of their numbers; empty for a teacher.
        splits: Rows and videos of each split.
        num_targets: Vectors.
        dim: Length of a vector.
        waiting: Rows of which no frame is extracted yet.
        facts: How all of it came about.
        unknown: Words of captions that the weights never saw.
        caveat: What every result must say; empty for pretrained weights and photographs.
        bank: The bank.
    """

    out: Path
    targets: Path
    table: pa.Table
    captions: Sequence[str]
    splits: Mapping[str, tuple[int, int]]
    num_targets: int
    dim: int
    waiting: int
    facts: CaptionFacts
    unknown: Sequence[str]
    caveat: str
    bank: Path

    @property
    def unit(self) -> str:
        """What a row is: ``frames`` or ``clips``."""
        return "clips" if is_of_clips(self.table) else "frames"

    @property
    def in_both(self) -> int:
        """Videos that train and are judged on, by whichever of their people."""
        is_train = is_split(self.table, "train")
        train, others = (self.table.filter(pa.array(rows)) for rows in (is_train, ~is_train))
        return len(bases_of(train) & bases_of(others))

    def to_pandas(self) -> Any:
        """One row a frame or clip, with its caption where there are texts; a pandas DataFrame."""
        table = self.table
        if self.captions:
            column = pa.array(self.captions, pa.string()).take(table["target"].combine_chunks())
            table = table.append_column("caption", column)
        return table.to_pandas()

    def lines(self) -> list[str]:
        """The result as lines of text."""
        facts, unit = self.facts, self.unit
        what = {"teacher": f"vectors of the teacher {facts.file}", "classes": "classes"}
        targets = f"{self.num_targets:,} different {what.get(facts.source, 'captions')}"
        lines = [
            f"{self.out.stem}: {len(self.table):,} {unit} with {targets}, {self.dim} numbers each"
        ]
        sizes = [
            f"{name} {rows:,} {unit} of {videos:,} videos"
            for name, (rows, videos) in self.splits.items()
        ]
        lines.append("; ".join(sizes) + (f" ({facts.split})" if facts.split else ""))

        # What is not as given
        lines += [f"left out: {part.text()}" for part in facts.left_out]
        lines.append(facts.guard.line())
        if facts.truncated:
            lines.append(f"cut: {facts.truncated:,} captions had more tokens than the model reads")
        if self.waiting:
            todo = "run `raffect extract` again before you train"
            lines.append(f"waiting: {self.waiting:,} {unit} are not extracted yet, {todo}")
        if self.unknown:
            words = ", ".join(self.unknown[:_SHOWN]) + " ..." * (len(self.unknown) > _SHOWN)
            lines.append(f"the encoder has never seen words of these captions: {words}")
        if count := self.in_both:
            what = f"{count:,} videos are in train and in a split that is judged"
            lines.append(f"caveat: {what}, so scores are optimistic")
        if self.caveat:
            lines.append(f"caveat: {self.caveat}")
        return [*lines, *self._closing()]

    def _closing(self) -> list[str]:
        """The first captions, what was written, what comes next."""
        bank = shlex.quote(str(self.bank))
        out = shlex.quote(str(self.out))
        texts = " (with the texts of the captions)" if self.captions else ""
        first = [f"caption {k}: {_cut(text)}" for k, text in enumerate(self.captions[:3])]
        recipe = "expclip" if self.facts.source == "teacher" else "emoclip"
        return [
            *first,
            f"wrote {self.out} and {self.targets}{texts}",
            f"next: raffect train {recipe} --bank {bank} --labels {out} --out RUN",
        ]


def _cut(text: str) -> str:
    text = as_one_line(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
