"""What `raffect robust` finds: scores of several runs on damaged copies of the same frames.

Shape letters: H heads, G groups (videos), A and B as in `raffect.metrics.kind`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raffect.bank.facts import DataFacts
from raffect.metrics.intervals import (
    contrast_interval,
    difference_interval,
    plain_interval,
    score_interval,
)
from raffect.metrics.scores import Chance, Snapshot
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.metrics.worst import WorstCases, find_worst
from raffect.provenance import Provenance
from raffect.runs.against_erm import Difference
from raffect.runs.metrics_file import table
from raffect.runs.spread import Spread, chance_text, how_chosen, short
from raffect.runs.worst import TAIL_NAME, worst_text
from raffect.storage.records import Record

CLEAN, MEAN = "clean", "mean"
Copy = tuple[str, int]
"""A corruption and its strength; ``("clean", 0)`` for the frames as they are."""
CLEAN_COPY: Copy = (CLEAN, 0)
_NAME_WIDTH = 14
"""Characters of a run's name in the table, so that it fits a phone."""


@dataclass(frozen=True, kw_only=True)
class RobustRun(Record):
    """A run that was judged.

    Attributes:
        name: Its folder's name, or its path where two have one name.
        path: Its folder.
        heads: SHA-256 of the weights of each of its heads.
        erm: Whether it is plain empirical risk minimisation.
        against: Name of the plain ERM that it is compared with; empty without.
    """

    name: str
    path: str
    heads: tuple[str, ...]
    erm: bool
    against: str = ""


@dataclass(frozen=True, kw_only=True)
class RobustPoint(Record):
    """Scores of a run's heads on one copy of the frames, or their mean over several.

    Attributes:
        run: Name of the run.
        corruption: Its name; ``clean`` for the frames as they are, ``mean`` over corruptions.
        strength: 0 for clean, 1 to 5; None for the mean over strengths as well.
        score: Headline score: mean over heads, spread over seeds, interval over videos.
        worst: Worst output and worst videos; of means the mean over copies, each with its own
            worst, without a spread over seeds.
        change: Difference to the same heads on the frames as they are, paired by video; None for
            these.
        against_erm: Difference to plain ERM on the same copies, paired by video; None without.
        change_against_erm: How much less is lost than by plain ERM: the difference of both
            changes, paired by video. Above 0 the damage costs these heads less, which heads that
            start lower do by themselves: all of them end at chance.
    """

    run: str
    corruption: str
    strength: int | None
    score: Spread
    worst: WorstCases
    change: Difference | None = None
    against_erm: Difference | None = None
    change_against_erm: Difference | None = None

    def row(self) -> dict[str, Any]:
        """One row of robust.csv; a mean over strengths has an empty one."""
        row: dict[str, Any] = {"run": self.run, "corruption": self.corruption}
        row["strength"] = self.strength
        row |= {"heads": self.score.heads, "mean": self.score.mean, "sd": self.score.sd}
        row |= _ends("", self.score.interval_95)
        row |= {"worst_output": self.worst.output, "worst_videos": self.worst.tail}
        row |= _ends("worst_videos.", self.worst.tail_interval_95)
        for name in ("change", "against_erm", "change_against_erm"):
            found: Difference | None = getattr(self, name)
            row[name] = found.mean if found else None
            row |= _ends(f"{name}.", found.interval_95 if found else None)
        return row


@dataclass(frozen=True, kw_only=True)
class Robustness(Record):
    """The results of `raffect robust`: its ``robust.json``.

    Attributes:
        format: Of this file.
        fingerprint: Of all that decides the scores: an equal one has nothing to do.
        run: Versions, commit, command and machine.
        data: Labels, and the bank of the frames as they are.
        split: Whose frames.
        snapshot: Which one of each head.
        seed: Of the corruptions.
        corruptions: Their names.
        strengths: Ascending.
        chance: Scores of predictors that look at nothing, the same for all copies.
        worst_by_chance: Worst output and worst videos of the predictor of the chance level.
        runs: In the order in which they were given.
        points: Of each run and copy, and means over copies.
        notes: Which heads were left out or chosen, and why.
        caveats: What the scores must not be taken for.
    """

    format: Literal[1] = 1
    fingerprint: str
    run: Provenance
    data: DataFacts
    split: str
    snapshot: Snapshot
    seed: int
    corruptions: tuple[str, ...]
    strengths: tuple[int, ...]
    chance: Chance
    worst_by_chance: WorstCases
    runs: tuple[RobustRun, ...]
    points: tuple[RobustPoint, ...]
    notes: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RobustResult:
    """Robustness, and where it was written.

    Attributes:
        robustness: All scores.
        out: The folder.
        is_old: Whether an earlier run of the same command had found them all.
    """

    robustness: Robustness
    out: Path
    is_old: bool = False

    @property
    def points(self) -> tuple[RobustPoint, ...]:
        """Of each run and copy, and means over copies."""
        return self.robustness.points

    def to_pandas(self) -> Any:
        """One row a run and copy; a pandas DataFrame."""
        return table([point.row() for point in self.points])

    def lines(self) -> list[str]:
        """The result as lines of text: a table that a phone shows whole, then sentences."""
        found, data = self.robustness, self.robustness.data
        kind = kind_of(data.task)
        lines = [
            *found.notes,
            *data.missing_lines(),
            f"{data.task.name.upper()} {found.split}: {data.size_of(found.split)}, "
            f"and {len(found.corruptions) * len(found.strengths)} damaged "
            f"copies of each ({', '.join(found.corruptions)})",
            f"{kind.title} by strength, mean over corruptions; {how_chosen(found.snapshot, False)}",
            *self._table_lines(),
            f"chance: {chance_text(found.chance)}",
            f"  {worst_text(found.worst_by_chance, kind, data.group_name)}",
        ]

        # Over all copies: against plain ERM, and the worst
        whole = f"{TAIL_NAME} of {data.group_name}"
        lines.append("over all damaged copies, 95 % intervals over " + data.group_name + ":")
        for run in found.runs:
            lines += [f"  {text}" for text in self._whole_lines(run, whole)]
        if not any(run.erm for run in found.runs):
            lines.append("no run is plain ERM, so nothing is compared; add one to --run")
        lines += [f"caveat: {caveat}" for caveat in found.caveats]
        written = f"{self.out}: robust.json, robust.csv, robust.png"
        old = f"nothing to do: an earlier run wrote {written}"
        return [*lines, old if self.is_old else f"wrote {written}"]

    def _table_lines(self) -> list[str]:
        """A row a run: the score without damage, and the mean over corruptions by strength."""
        found = self.robustness
        copies = [CLEAN_COPY, *((MEAN, strength) for strength in found.strengths)]
        names = ["clean", *map(str, found.strengths)]
        width = min(_NAME_WIDTH, max(len(run.name) for run in found.runs))
        lines = [f"{'':{width}} " + " ".join(f"{name:>5}" for name in names)]
        for run in found.runs:
            means = [short(self._point(run.name, *copy).score.mean) for copy in copies]
            cells = " ".join(f"{mean:>5}" for mean in means)
            lines.append(f"{run.name[-width:]:{width}} {cells}{found.data.incomplete_mark}")
        return lines

    def _whole_lines(self, run: RobustRun, whole: str) -> Iterator[str]:
        """What is found of a run over all copies."""
        clean, point = self._point(run.name, CLEAN, 0), self._point(run.name, MEAN, None)
        assert point.change is not None  # every damaged copy has one
        yield f"{run.name}: {point.score.text()}; {point.change.text()} against clean"
        if point.against_erm is not None and point.change_against_erm is not None:
            yield f"  {point.against_erm.text()} against {run.against} on the same copies"
            yield f"  {point.change_against_erm.text()} less lost than {run.against}"
            if point.change_against_erm.mean > 0 > point.against_erm.mean:
                yield "  (it starts lower and has less to lose: this is not robustness)"
        kind = kind_of(self.robustness.data.task)
        worst = [
            f"worst {kind.part} {short(clean.worst.output)} clean, "
            f"{short(point.worst.output)} damaged"
        ]
        if clean.worst.tail is not None:
            worst.append(f"{whole} {short(clean.worst.tail)}, {short(point.worst.tail)}")
        yield f"  {'; '.join(worst)}"

    def _point(self, run: str, corruption: str, strength: int | None) -> RobustPoint:
        key = (run, corruption, strength)
        return next(p for p in self.points if (p.run, p.corruption, p.strength) == key)


@dataclass(frozen=True)
class Scoring:
    """Statistics of all heads on all copies, from which every score is computed.

    Attributes:
        kind: Of the task.
        outputs: Names of its outputs.
        group_name: What groups are called.
        by_group: Whether each group is one video, see `raffect.metrics.worst.find_worst`.
        runs: The runs.
        rows: Heads of each run among those of ``copies``.
        epochs: Epoch of each head.
        copies: Statistics of each copy, shape (H, G, A, B): the same groups in the same order.
    """

    kind: Kind
    outputs: Sequence[str]
    group_name: str
    by_group: bool
    runs: Sequence[RobustRun]
    rows: Sequence[slice]
    epochs: Sequence[int]
    copies: Mapping[Copy, np.ndarray]

    def points(self) -> Iterator[RobustPoint]:
        """Scores of each run on each copy, then means over copies."""
        damaged = [copy for copy in self.copies if copy != CLEAN_COPY]
        cells: dict[tuple[str, int | None], list[Copy]] = {CLEAN_COPY: [CLEAN_COPY]}
        cells |= {copy: [copy] for copy in damaged}
        for strength in sorted({strength for _, strength in damaged}):
            cells[MEAN, strength] = [copy for copy in damaged if copy[1] == strength]
        cells[MEAN, None] = damaged
        for run in range(len(self.runs)):
            for (name, strength), copies in cells.items():
                yield self._point(run, name, strength, copies)

    def _point(
        self, run: int, name: str, strength: int | None, copies: Sequence[Copy]
    ) -> RobustPoint:
        """Scores of one run, as the mean over some copies."""
        # Each head has a mean over copies, which has a spread over heads
        found = self._of(run, copies)
        scores = self.kind.headline(found.sum(1)).reshape(len(copies), -1).mean(0)
        worst = find_worst(found, self.kind, self.outputs, by_group=self.by_group)
        if len(copies) > 1:
            worst = replace(worst, heads=len(scores), output_sd=None, tail_sd=None)
        point = RobustPoint(
            run=self.runs[run].name,
            corruption=name,
            strength=strength,
            score=Spread(
                mean=float(scores.mean()),
                sd=float(scores.std(ddof=1)) if len(scores) > 1 else None,
                interval_95=plain_interval(score_interval(found, self.kind)),
                heads=len(scores),
                epochs=tuple(self.epochs[self.rows[run]]),
                group_name=self.group_name,
            ),
            worst=worst,
        )

        # What is lost, and what plain ERM scores and loses on the same copies
        clean, is_clean = self._of(run, [CLEAN_COPY]), list(copies) == [CLEAN_COPY]
        if not is_clean:
            point = replace(
                point, change=Difference.of(*difference_interval(found, clean, self.kind))
            )
        if not self.runs[run].against:
            return point
        erm = [other.name for other in self.runs].index(self.runs[run].against)
        theirs, theirs_clean = self._of(erm, copies), self._of(erm, [CLEAN_COPY])
        against = Difference.of(*difference_interval(found, theirs, self.kind))
        if is_clean:
            return replace(point, against_erm=against)
        parts = [(1.0, found), (-1.0, clean), (-1.0, theirs), (1.0, theirs_clean)]
        both = Difference.of(*contrast_interval(parts, self.kind))
        return replace(point, against_erm=against, change_against_erm=both)

    def _of(self, run: int, copies: Sequence[Copy]) -> np.ndarray:
        """Statistics of a run's heads on some copies, copy after copy: (copies * heads, G, A, B).

        A mean over these is the mean over heads and copies.
        """
        return np.concatenate([self.copies[copy][self.rows[run]] for copy in copies])


def _ends(prefix: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}
