"""What heads were trained and evaluated on: facts of bank, labels and splits.

Every result carries them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from raffect.bank.format import Identity
from raffect.datasets.targets import TargetFacts
from raffect.datasets.tasks import Task
from raffect.errors import as_one_line
from raffect.storage.records import Count, Record

DRAWN_CAVEAT = "drawn faces"
"""Caveat of images that raffect drew."""

_BETWEEN = "; "
_MISSING_SHARE = 0.05
"""Share of a split's labelled frames without an image above which a line warns of it."""


def join_caveats(encoder: str, synthetic: bool, captions: str = "") -> str:
    """What results must say.

    Args:
        encoder: The caveat of the encoder; empty for pretrained weights.
        synthetic: Whether raffect drew every image.
        captions: Name of a table of captions that no data set has; empty without.
    """
    images = DRAWN_CAVEAT if synthetic else ""
    texts = f"captions of {as_one_line(captions)}, not checked" if captions else ""
    return _BETWEEN.join(part for part in (encoder, images, texts) if part)


def size_text(number: int, samples: str, groups: int, group_name: str, other: str = "") -> str:
    """``8,000 frames of 60 videos``; ``300 clips`` where each is its own group.

    Args:
        number: Of frames or clips.
        samples: ``frames`` or ``clips``.
        groups: What they belong to.
        group_name: What these are called.
        other: A word before the groups, such as ``other``.
    """
    name = f"{other} {group_name}".strip()
    if samples == group_name:
        return f"{number:,} {name}"
    return f"{number:,} {samples} of {groups:,} {name}"


@dataclass(frozen=True, kw_only=True)
class SplitFacts(Record):
    """Frames of one split.

    Attributes:
        frames: Labelled frames that have a feature.
        groups: Videos, subjects or pictures that they belong to.
        no_image: Labelled frames of which the manifest lists no image.
        rejected: Labelled frames whose image could not be read.
        not_extracted: Labelled frames that are planned and not in the bank, which is incomplete.
    """

    frames: Count
    groups: Count
    no_image: Count = 0
    rejected: Count = 0
    not_extracted: Count = 0


@dataclass(frozen=True, kw_only=True)
class DataFacts(Record):
    """What heads were trained and evaluated on; every result carries it.

    Attributes:
        task: The task.
        bank: Path of the bank.
        labels: Path of the label table; empty where it is not known.
        bank_digest: `raffect.bank.format.Bank.digest`, which identifies the bank's content.
        labels_sha256: SHA-256 of the label table.
        encoders: What made the features: one identity, which carries those of all parts of a joined
            bank (`raffect.bank.joined`).
        edition: Edition of the labels.
        synthetic: Whether raffect drew every image.
        caveat: What every table and figure must say, of the encoder, the images and the captions,
            as `join_caveats` makes it; may be empty.
        published: Published scores of others that ours may be compared with, by name.
        splits: Frames of each split, by the split's name.
        incomplete: What an incomplete bank lacks, as text; empty for a complete one.
        group_name: What intervals and folds keep together: videos, subjects or pictures.
        of_clips: Whether labels are of clips; their frames are then clips.
        targets: Which vectors a contrastive task has; None for other kinds.
    """

    task: Task
    bank: str
    labels: str
    bank_digest: str
    labels_sha256: str
    encoders: Annotated[tuple[Identity, ...], Len(1, 1)]
    edition: str = ""
    synthetic: bool = False
    caveat: str = ""
    published: dict[str, float] = field(default_factory=dict)
    splits: dict[str, SplitFacts]
    incomplete: str = ""
    group_name: str = "videos"
    of_clips: bool = False
    targets: TargetFacts | None = None

    @property
    def caveats(self) -> tuple[str, ...]:
        """Those of the encoder, the images and the captions, as far as there are any."""
        return tuple(part for part in self.caveat.split(_BETWEEN) if part)

    @property
    def trained_caveats(self) -> tuple[str, ...]:
        """What scores of heads that were trained on these data say, wherever they are used."""
        if not self.incomplete:
            return self.caveats
        return (*self.caveats, f"trained on an incomplete bank, which lacked {self.incomplete}")

    @property
    def incomplete_mark(self) -> str:
        """What follows every score of an incomplete bank; empty for a complete one."""
        return f" [INCOMPLETE BANK, it lacks {self.incomplete}]" if self.incomplete else ""

    @property
    def samples(self) -> str:
        """What is labelled: ``frames`` or ``clips``."""
        return "clips" if self.of_clips else "frames"

    def size_of(self, split: str, other: str = "") -> str:
        """`size_text` of a split, by its name."""
        part = self.splits[split]
        return size_text(part.frames, self.samples, part.groups, self.group_name, other)

    def missing_lines(self) -> list[str]:
        """A line for each split of which many labelled frames lack an image that can be read."""
        lines = []
        for name, split in self.splits.items():
            # Frames that are not extracted yet are in `incomplete` instead.
            missing = split.no_image + split.rejected
            labelled = split.frames + missing
            if missing > _MISSING_SHARE * labelled:
                of = f"{labelled:,} labelled {self.samples}"
                what = f"{missing:,} of {of} have no image that can be read"
                scores = "scores are of the others (`raffect bank info`)"
                lines.append(f"{self.task.name.upper()} {name}: {what}; {scores}")
        return lines
