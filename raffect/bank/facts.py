"""What heads were trained and judged on: facts of bank, labels and splits that stand in every result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from raffect.bank.format import Identity
from raffect.datasets.tasks import Task
from raffect.storage.records import Record

Count = Annotated[int, Ge(0)]
_MISSING_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class SplitFacts(Record):
    """Frames of one split.

    Attributes:
        frames: Labelled frames that have a feature.
        groups: Videos, subjects or pictures they are of.
        no_image: Labelled frames of which the manifest lists no image.
        rejected: Those whose image could not be read.
        not_extracted: Those that are planned and not in the bank: it is incomplete.
    """

    frames: Count
    groups: Count
    no_image: Count = 0
    rejected: Count = 0
    not_extracted: Count = 0


@dataclass(frozen=True, kw_only=True)
class DataFacts(Record):
    """What heads were trained and judged on; stands in every result.

    Attributes:
        task: The task.
        bank: Path of the bank.
        labels: Path of the label table.
        bank_digest: Names the bank's content.
        labels_sha256: Of the label table.
        encoders: Which encoders made the features; one, until banks can be concatenated.
        edition: Of the labels.
        synthetic: Whether raffect drew every image.
        caveat: What every table and picture has to say; may be empty.
        published: Scores of others that may stand beside ours, by name.
        splits: By name.
        incomplete: What an incomplete bank lacks, for people; empty for a complete one.
        group_name: What intervals and folds keep together: videos, subjects or pictures.
    """

    task: Task
    bank: str
    labels: str
    bank_digest: str
    labels_sha256: str
    encoders: tuple[Identity, ...]
    edition: str = ""
    synthetic: bool = False
    caveat: str = ""
    published: dict[str, float] = field(default_factory=dict)
    splits: dict[str, SplitFacts]
    incomplete: str = ""
    group_name: str = "videos"

    @property
    def incomplete_mark(self) -> str:
        """What follows every score of an incomplete bank; empty for a complete one."""
        return f" [INCOMPLETE BANK, it lacks {self.incomplete}]" if self.incomplete else ""

    def missing_lines(self) -> list[str]:
        """A line for each split of which many labelled frames have no image, or one that cannot be read."""
        lines = []
        for name, split in self.splits.items():
            missing = split.no_image + split.rejected
            labelled = split.frames + missing
            if missing > _MISSING_SHARE * labelled:
                what = f"{missing:,} of {labelled:,} labelled frames have no image that can be read"
                scores = "scores are of the others (`raffect bank info`)"
                lines.append(f"{self.task.name.upper()} {name}: {what}; {scores}")
        return lines
