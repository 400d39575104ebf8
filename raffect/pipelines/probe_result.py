"""What `raffect probe` found: scores by method and number of labels, as a record and as lines."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raffect.bank.facts import DataFacts
from raffect.metrics.scores import Chance
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import Provenance
from raffect.runs.metrics_file import table
from raffect.runs.spread import Spread, chance_text, short
from raffect.storage.records import Record

Method = Literal["zero-shot", "prototype", "text prototype", "logistic", "ridge"]


@dataclass(frozen=True, kw_only=True)
class ProbePoint(Record):
    """Scores of one method with one number of labels, over all draws.

    Attributes:
        method: What was learnt.
        shots: Frames a class (for numbers: frames), each of another group; 0 for zero-shot, None
            for all training frames.
        score: Headline score: mean over draws, their spread, interval over groups.
        metrics: Means over draws of all scores of the task.
        settings: Chosen regularisation of each draw; empty for methods without.
    """

    method: Method
    shots: int | None
    score: Spread
    metrics: dict[str, float]
    settings: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """``k = 4``, ``all frames``."""
        return "all frames" if self.shots is None else f"k = {self.shots}"

    def row(self) -> dict[str, Any]:
        """One row of points.csv."""
        low, high = self.score.interval_95 or (None, None)
        row: dict[str, Any] = {"method": self.method, "frames": self.name, "shots": self.shots}
        row["draws"] = self.score.heads
        row |= {"mean": self.score.mean, "sd": self.score.sd, "low": low, "high": high}
        return row | self.metrics


@dataclass(frozen=True, kw_only=True)
class Probe(Record):
    """The results of `raffect probe`: its ``probe.json``.

    Attributes:
        format: Of this file.
        run: Versions, commit, command and machine.
        data: What was learnt from and judged on.
        prompts: Prompt set; empty without.
        text_shots: As how many frames a text counts.
        chance: Scores of predictors that look at nothing.
        points: Scores by method and number of labels.
    """

    format: Literal[1] = 1
    run: Provenance
    data: DataFacts
    prompts: str = ""
    text_shots: float = 0.0
    chance: Chance
    points: tuple[ProbePoint, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A probe, and where it was written.

    Attributes:
        probe: All scores.
        out: The folder.
    """

    probe: Probe
    out: Path

    @property
    def points(self) -> tuple[ProbePoint, ...]:
        """Scores by method and number of labels."""
        return self.probe.points

    def to_pandas(self) -> Any:
        """One row a method and number of labels; a pandas DataFrame."""
        return table([point.row() for point in self.points])

    def lines(self) -> list[str]:
        """The result as lines of text."""
        data = self.probe.data
        kind = kind_of(data.task)
        shots = f"k training {data.samples} a {kind.part}"
        lines = [
            *data.missing_lines(),
            f"{data.task.name.upper()} probes, validation: {data.size_of('validation')}; {shots}, "
            f"each of another one of the {data.group_name}",
        ]
        width = max(len(point.method) for point in self.points)
        for point in self.points:
            others = [
                f"{name} {short(value)}"
                for name, value in point.metrics.items()
                if name in ("uar", "accuracy", "pcc", "rmse")
            ]
            score = f"{kind.title} {point.score.text()}".replace("seeds", "draws")
            score = score.replace("one seed", "one draw")
            extra = f"  ({', '.join(others)})" if others else ""
            name = f"{point.method:{width}} {point.name:10}"
            lines.append(f"{name} {score}{extra}{data.incomplete_mark}")
        lines.append(f"chance: {chance_text(self.probe.chance)}")
        lines += [f"caveat: {caveat}" for caveat in data.caveats]
        out = shlex.quote(str(self.out))
        return [*lines, f"wrote {out}: probe.json, points.csv, few-shot.png and .csv"]
