"""`raffect predict`: what heads answer for every frame of a bank, labelled or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raffect.bank.format import Bank
from raffect.bank.in_order import FramesInOrder, frames_in_order
from raffect.config import PredictConfig
from raffect.errors import RaffectError, require
from raffect.evaluation.ensemble import Ensemble, load_ensembles
from raffect.evaluation.scan import predict_frames
from raffect.heads.checkpoint import require_encoder
from raffect.predictions.columns import as_table
from raffect.predictions.table import (
    PredictionFacts,
    PredictionWriter,
    read_predictions,
    write_predictions,
)
from raffect.progress import Progress
from raffect.provenance import describe_run
from raffect.runs.data import pick_device
from raffect.runs.pick import PickedHead, pick_heads
from raffect.runs.windows import describe_other_samples
from raffect.storage.keys import positions

_MOSTLY = 0.5
"""Share of frames with a neighbour below which windows are called mostly gaps."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """A table of predictions that was written.

    Attributes:
        out: The table.
        facts: Where its predictions come from.
        rows: Frames, one row each, sorted by video, then frame.
        videos: How many videos they belong to.
        statuses: Rows by status; see `raffect.predictions.columns.Status`.
        notes: Which heads and which decision rules were used, and why.
    """

    out: Path
    facts: PredictionFacts
    rows: int
    videos: int
    statuses: dict[str, int]
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame, a row a frame."""
        return read_predictions(self.out).to_pandas()

    def lines(self) -> list[str]:
        """The result as lines of text."""
        counts = ", ".join(f"{count:,} {status}" for status, count in self.statuses.items())
        lines = [
            *self.notes,
            f"{self.facts.model}: {self.rows:,} frames of {self.videos:,} videos ({counts})",
        ]
        if self.facts.incomplete:
            lines.append(f"INCOMPLETE BANK: it lacks {self.facts.incomplete}, which have no row")
        lines += [f"caveat: {caveat}" for caveat in self.facts.caveats]
        return [*lines, f"wrote {self.out}: a row a frame, sorted by video, then frame"]


def predict(config: PredictConfig) -> PredictResult:
    """Predict every frame of a bank, and write the table.

    Raises:
        RaffectError: If there is no head, a head is of another encoder than the bank, planned
            frames are not extracted, or a file is damaged.
    """
    assert config.bank is not None  # what predicts inputs makes one
    heads, notes = pick_heads(config.head, config.epoch)
    frames = open_frames(config.bank, heads, config.allow_incomplete)
    ensembles, chosen = load_ensembles(heads, pick_device(config.device), config.postprocess)
    result = write_table_of(frames, ensembles, config.out)
    return replace(result, notes=(*notes, *chosen))


def open_frames(bank: Path, heads: Sequence[PickedHead], allow_incomplete: bool) -> FramesInOrder:
    """The frames of a bank that heads can predict.

    Raises:
        RaffectError: If a head is of another encoder than the bank, it has no frame, or planned
            frames are not extracted and this is not allowed.
    """
    frames = frames_in_order(Bank(bank))
    for head in heads:
        require_encoder(head.card, frames.identity, head.folder, bank)
    incomplete = frames.describe_incomplete()
    require(
        allow_incomplete or not incomplete,
        f"{bank}: {incomplete} are planned and not there, not extracted yet or damaged; "
        f"finish `{frames.bank.fill_command}` (`{frames.bank.repair_command}` withdraws what is "
        "damaged), or add --allow-incomplete, and the table will lack them and say so",
    )
    require(len(frames) > 0, f"{bank}: has no frame; run `raffect extract` on it")
    return frames


def write_table_of(
    frames: FramesInOrder, ensembles: Sequence[Ensemble], out: Path
) -> PredictResult:
    """Predict the frames of a bank with heads that are loaded, and write the table."""
    facts = _describe(frames, ensembles, frames.describe_incomplete())
    statuses: Counter[str] = Counter()
    with write_predictions(out, facts) as writer:
        _write(writer, frames, ensembles, facts, statuses)
    return PredictResult(
        out=out,
        facts=facts,
        rows=len(frames),
        videos=len(set((frames.key >> 32).tolist())),
        statuses=dict(statuses.most_common()),
    )


def _write(
    writer: PredictionWriter,
    frames: FramesInOrder,
    ensembles: Sequence[Ensemble],
    facts: PredictionFacts,
    statuses: Counter[str],
) -> None:
    """Predict and write all frames, and count them by status."""
    try:
        with Progress("predict", len(frames)) as progress:
            progress.advance(0)
            for rows, predicted in predict_frames(frames, ensembles):
                writer.write(as_table(rows, predicted, facts.tasks, facts.model))
                for found in rows["status"].value_counts().to_pylist():
                    statuses[found["values"]] += found["counts"]
                progress.advance(len(rows))
    except torch.OutOfMemoryError as error:
        raise RaffectError(
            "out of GPU memory while predicting; free the device, or use --device cpu"
        ) from error


def _describe_gaps(frames: FramesInOrder, ensembles: Sequence[Ensemble]) -> list[str]:
    """A line for windows that are mostly gaps, as in a bank of every fifth frame."""
    key, found = frames.key[frames.shard >= 0], []
    windows = {window for one in ensembles for window in one.windows if window.length > 1}
    for stride in sorted({window.stride for window in windows}):
        share = (positions(key + stride, key) >= 0).mean() if len(key) else 1.0
        if share < _MOSTLY:
            found.append(
                f"a head reads frames that are {stride} apart, and {share:.0%} of the frames have "
                "the next such one: its windows are mostly gaps"
            )
    return found


def _describe(
    frames: FramesInOrder, ensembles: Sequence[Ensemble], incomplete: str
) -> PredictionFacts:
    """Where the predictions come from, and what they must not be taken for."""
    heads: list[PickedHead] = [head for one in ensembles for head in one.heads]
    caveats = [frames.identity.caveat] if frames.identity.caveat else []
    caveats += [caveat for head in heads for caveat in head.card.data.trained_caveats]
    caveats += describe_other_samples([head.card for head in heads], of_clips=False)
    caveats += _describe_gaps(frames, ensembles)
    return PredictionFacts(
        rules=tuple(one.rules for one in ensembles),
        bank=str(frames.bank.path.absolute()),
        bank_digest=frames.bank.digest(frames.commits),
        encoders=(frames.identity,),
        caveats=tuple(dict.fromkeys(caveats)),
        incomplete=incomplete,
        run=describe_run(),
    )
