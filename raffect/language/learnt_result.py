"""What `raffect learn-prompts` found: scores beside hand-written prompts, and words near tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raffect.datasets.tasks import Task
from raffect.encoders.text_tower import TextTower
from raffect.heads.checkpoint import load_batch
from raffect.heads.prompts import PromptSpec
from raffect.language.zeroshot.result import ZeroshotResult
from raffect.metrics.class_kinds import F1Of
from raffect.metrics.intervals import (
    Headline,
    Interval,
    difference_interval,
    plain_interval,
    score_interval,
)
from raffect.metrics.recalls import only
from raffect.metrics.scores import Chance, Snapshot
from raffect.metrics.task_kinds import Multiclass, kind_of
from raffect.runs.conclusions import TrainResult
from raffect.runs.folder import RunFolder
from raffect.runs.metrics_file import table
from raffect.runs.records import HeadRecord
from raffect.runs.spread import chance_text, finished, headline_text, short, signed
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record
from raffect.storage.tables import write_csv

_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """Learnt prompts beside the hand-written ones that folds of the training split chose.

    Attributes:
        outputs: Classes or labels that are judged; frames of other classes are left out.
        snapshot: Epoch of the learnt prompts: ``cv`` with --select cv, else ``last``.
        learnt: Mean score over seeds.
        hand_written: Score of the chosen set.
        prompts: Its name.
        num_sets: Of how many it was chosen.
        difference: How much higher learnt prompts score.
        interval_95: Of the difference, paired by video; None where nothing is known of others.
        chance: Scores of predictors that look at nothing.
    """

    outputs: tuple[str, ...]
    snapshot: Snapshot
    learnt: Headline
    hand_written: Headline
    prompts: str
    num_sets: int
    difference: float
    interval_95: Interval | None
    chance: Chance

    def line(self, task: Task) -> str:
        """The comparison as a line of text."""
        kind = kind_of(task)
        ends = ", ".join(map(signed, self.interval_95 or ()))
        by = f"{signed(self.difference)} [{ends}]" if ends else signed(self.difference)
        others = ", ".join(name for name in task.outputs if name not in self.outputs)
        without = f", frames of {others} left out; predicted, it is a miss" if others else ""
        return (
            f"{len(self.outputs)} {kind.parts}{without}: {kind.title} "
            f"learnt {headline_text(self.learnt)}, "
            f"hand-written {headline_text(self.hand_written)} ({self.prompts}, chosen of "
            f"{self.num_sets} on folds), difference {by}, chance {chance_text(self.chance)}"
        )


@dataclass(frozen=True, kw_only=True)
class NearWords(Record):
    """Words of the vocabulary whose token's vector is most like a learnt one.

    Attributes:
        head: Id of the head.
        seed: Of the head.
        epoch: Of its tokens, 1-based: that of its score.
        output: Class or label; ``rest`` for a face without labels.
        descriptor: 1-based.
        token: 1-based.
        words: The nearest first.
        cosines: Of their vectors with the learnt one.
    """

    head: str
    seed: int
    epoch: int
    output: str
    descriptor: int
    token: int
    words: tuple[str, ...]
    cosines: tuple[float, ...]

    def row(self) -> dict[str, Any]:
        """One row of words.csv."""
        names = ("head", "seed", "epoch", "output", "descriptor", "token")
        row: dict[str, Any] = {name: getattr(self, name) for name in names}
        for k, (word, cosine) in enumerate(zip(self.words, self.cosines, strict=True), start=1):
            row |= {f"word{k}": word, f"cosine{k}": cosine}
        return row


@dataclass(frozen=True, kw_only=True)
class LearnPromptsResult:
    """Learnt prompts of one setting and several seeds.

    Attributes:
        trained: Heads and scores as `raffect.train` finds them.
        hand_written: What `raffect.zeroshot` found; None where nothing was compared.
        compared: Both on the same frames: over all outputs, and where the hand-written prompts
            leave a class out also without it.
        words: Of every token of every head.
        notes: Which prompts of the sets that were named were not used.
    """

    trained: TrainResult
    hand_written: ZeroshotResult | None
    compared: tuple[Compared, ...]
    words: tuple[NearWords, ...]
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.trained.folder

    def to_pandas(self) -> Any:
        """One row a learnt token, with the words nearest to it; a pandas DataFrame."""
        return table([found.row() for found in self.words])

    def lines(self) -> list[str]:
        """The result as lines of text."""
        *lines, following = [*self.notes, *self.trained.lines()]
        lines += [found.line(self.trained.data.task) for found in self.compared]
        nearest = [found.cosines[0] for found in self.words]
        lines += [
            f"wrote {self.folder / 'words.csv'}: the words nearest to each learnt token; "
            f"mean cosine {short(float(np.mean(nearest)))}; learnt tokens are seldom readable"
        ]
        return [*lines, following]


def compare(trained: TrainResult, written: ZeroshotResult) -> tuple[Compared, ...]:
    """Learnt prompts beside the chosen hand-written ones, paired by video."""
    # Statistics of both on the validation split
    folder, task = RunFolder(trained.folder), trained.data.task
    records, kind, chosen = finished(trained.records), kind_of(task), written.chosen
    assert chosen is not None  # it is chosen on folds
    snapshot = _snapshot_of(records)
    found = [folder.statistics_of(record, snapshot) for record in records]
    learnt = np.array([counts for counts in found if counts is not None])
    other = RunFolder(written.folder)
    record = other.read_record(chosen.head)
    assert record is not None
    by_hand = other.statistics_of(record, "last")
    assert by_hand is not None

    # Over all outputs, and over those that the hand-written prompts describe
    judged = [list(range(len(task.outputs)))]
    if isinstance(kind, Multiclass) and len(written.described) < len(task.outputs):
        judged.append([k for k, name in enumerate(task.outputs) if name in written.described])
    return tuple(
        _compare_over(kept, learnt, by_hand, task, snapshot, chosen.prompts, len(written.scores))
        for kept in judged
    )


def _compare_over(
    kept: Sequence[int],
    learnt: np.ndarray,
    by_hand: np.ndarray,
    task: Task,
    snapshot: Snapshot,
    prompts: str,
    num_sets: int,
) -> Compared:
    """`Compared` over some outputs, from statistics (heads, groups, A, B) and (groups, A, B)."""
    kind, part = kind_of(task), replace(task, outputs=tuple(task.outputs[k] for k in kept))
    # What guesses look at: hand-written prompts never predict a class that they leave out
    guessed = by_hand.sum(0)
    if len(kept) < len(task.outputs):
        kind, guessed = F1Of(kept), only(guessed, kept)
    difference, interval = difference_interval(learnt, by_hand, kind)
    score = float(np.mean(kind.headline(learnt.sum(1))))
    return Compared(
        outputs=part.outputs,
        snapshot=snapshot,
        learnt=Headline(score=score, interval_95=plain_interval(score_interval(learnt, kind))),
        hand_written=Headline.of(by_hand, kind),
        prompts=prompts,
        num_sets=num_sets,
        difference=float(difference),
        interval_95=plain_interval(interval),
        chance=kind_of(part).chance(guessed, part),
    )


def _snapshot_of(records: Sequence[HeadRecord]) -> Snapshot:
    """The epoch of learnt prompts that scores and words are of: ``cv`` with --select cv."""
    return "cv" if "cv" in records[0].scores else "last"


def find_words(trained: TrainResult, spec: PromptSpec, tower: TextTower) -> tuple[NearWords, ...]:
    """Words nearest to each learnt token of each head, as it was at the epoch that is scored."""
    task, found = trained.data.task, []
    records = finished(trained.records)
    snapshot = _snapshot_of(records)
    names = [*task.outputs, *(["rest"] if spec.has_rest else [])]
    places = [(g, s, m) for g, s, m, _ in np.ndindex(*spec.weights["tokens"][:3], 1)]
    for record in records:
        path = RunFolder(trained.folder).weights_path(record.id, snapshot)
        heads, _ = load_batch(path, torch.device("cpu"))
        tokens = spec.views(heads.rows)["tokens"][0]
        near = tower.nearest(tokens.flatten(0, 2), _NEAREST)
        for (g, s, m), words in zip(places, near, strict=True):
            # A prompt that starts from few words has tokens that it does not use.
            if not tokens[g, s, m].any():
                continue
            found.append(
                NearWords(
                    head=record.id,
                    seed=record.recipe.seed,
                    epoch=record.scores[snapshot].epoch,
                    output=names[g],
                    descriptor=s + 1,
                    token=m + 1,
                    words=tuple(word for word, _ in words),
                    cosines=tuple(cosine for _, cosine in words),
                )
            )
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Against(Record):
    """against.json: the comparisons, in full."""

    compared: tuple[Compared, ...]


def write_result(result: LearnPromptsResult) -> LearnPromptsResult:
    """Write words.csv and against.json beside the run's other files; returns the result."""
    write_csv(result.folder / "words.csv", [found.row() for found in result.words])
    write_atomic(result.folder / "against.json", _Against(compared=result.compared).to_bytes())
    return result
