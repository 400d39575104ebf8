"""The vectors that a run compares with: read, checked against the bank, and put on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raffect.bank.joined import text_space
from raffect.bank.records import Identity
from raffect.datasets.labels import read_values
from raffect.datasets.targets import TargetFacts, read_targets, require_numbers
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads.retrieval import CandidateVectors
from raffect.metrics.retrieval import Candidates, Contrastive, find_candidates
from raffect.metrics.task_kinds import kind_of


@dataclass(frozen=True)
class TargetSet:
    """Vectors of the targets of a contrastive task.

    Attributes:
        vectors: float16, shape (V, E).
        facts: Where they are from.
        candidates: What each is compared with, by all rows of the label table.
    """

    vectors: np.ndarray
    facts: TargetFacts
    candidates: Candidates

    def to(self, device: torch.device) -> CandidateVectors:
        """The same on a device."""
        return CandidateVectors.of(self.vectors, self.candidates, device)


def open_targets(
    file: Path, table: pa.Table, task: Task, bank: Identity, bank_path: Path
) -> TargetSet | None:
    """Read the vectors of a label table.

    Args:
        file: The label table's.
        table: What it holds.
        task: Its task.
        bank: Identity of the bank.
        bank_path: For errors.

    Returns:
        None for a task of another kind.

    Raises:
        RaffectError: If they are missing or damaged, a row names no vector, or they are of the text
            tower of other weights than made the bank.
    """
    kind = kind_of(task)
    if not isinstance(kind, Contrastive):
        return None
    found = read_targets(file, table)
    require_numbers(table, task, len(found.vectors), file)
    theirs, ours = found.facts.image_sha256, (text_space(bank) or bank).weights_sha256
    if theirs not in ("", ours):
        raise RaffectError(
            f"{file}: vectors of texts by the weights {theirs[:12]}, and {bank_path} holds "
            f"features by {ours[:12]}, which cannot be compared; make the texts with the bank's "
            "own weights"
        )
    values = read_values(table, task)
    rows = kind.targets(task, values[task.is_labelled(values).all(1)])
    return TargetSet(found.vectors, found.facts, find_candidates(found.vectors, rows))
