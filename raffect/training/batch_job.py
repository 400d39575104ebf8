"""A batch of heads as a job: what is trained side by side, with everything that decides how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raffect.config import LearnConfig
from raffect.heads.head_batch import HeadSpec
from raffect.runs.records import PlannedHead

CvEpochs = Mapping[str, int]
"""Epoch that a head's ``cv`` snapshot keeps, by head; 0 where no fold was trained to the end."""


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """A batch of heads to train, with everything that decides how.

    Attributes:
        config: Data, run folder, device and threads; the recipe in it is not used.
        heads: Those of the batch, which have the same
            `raffect.heads.shared_settings.SHARED_SETTINGS` and the same fold.
        cv_epochs: Epochs that cross-validation chose.
        threads: Of this process; 0 is all cores.
        spec: What the heads are, where their recipes alone do not decide it; else None.
        save_heads: Whether weights are kept.
        save_every_s: Seconds between saves of the state.
    """

    config: LearnConfig
    heads: tuple[PlannedHead, ...]
    cv_epochs: CvEpochs = field(default_factory=dict)
    threads: int = 0
    spec: HeadSpec | None = None
    save_heads: bool = True
    save_every_s: float = 30.0

    @property
    def ids(self) -> list[str]:
        """Names of the heads."""
        return [head.id for head in self.heads]
