"""What a run or a sweep found, for programs: ``metrics.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raffect.bank.facts import DataFacts
from raffect.metrics.scores import SNAPSHOTS, Chance, JudgedScore, Snapshot, Status
from raffect.metrics.worst import WorstCases
from raffect.provenance import Provenance
from raffect.runs.against_erm import Difference
from raffect.runs.spread import Spread, settings_text, short
from raffect.storage.records import Record

Setting = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class SettingScores(Record):
    """Scores of heads of one setting.

    Attributes:
        settings: What tells them from others, by dotted name.
        scores: By snapshot; ``last`` and ``best`` for heads of a run, one of them for heads that
            were evaluated.
        erm: Whether they are plain empirical risk minimisation.
        against_erm: Difference of val-last, or of the evaluated score, to plain ERM; None without
            such heads.
        chosen_by: How this setting was chosen from others; empty where it was not.
        worst: Worst output and worst videos behind the evaluated score; None for heads of a run,
            whose report has them.
    """

    settings: dict[str, Setting]
    scores: dict[Snapshot, Spread]
    erm: bool = False
    against_erm: Difference | None = None
    chosen_by: str = ""
    worst: WorstCases | None = None

    @property
    def difference(self) -> str:
        """``, +.012 [-.003, +.027] against ERM``; empty without it."""
        return f", {self.against_erm.text()} against ERM" if self.against_erm else ""

    def text(self) -> str:
        """One line of a sweep's table."""
        # The optimistic score has its spread over seeds, but no interval: it is not the headline.
        best = self.scores["best"]
        mark = " (ERM)" if self.erm else ""
        best_sd = f" ± {short(best.sd)}" if best.sd is not None else ""
        parts = [
            f"{settings_text(self.settings)}{mark}",
            f"val-last {self.scores['last'].text()}{self.difference}",
            f"val-best {short(best.mean)}{best_sd}",
        ]
        if "cv" in self.scores:
            parts.append(f"val-cv {self.scores['cv'].text()}")
        return "  ".join(parts)

    def row(self) -> dict[str, Any]:
        """One row of a table: settings, each snapshot's mean, sd and interval, number of heads."""
        row: dict[str, Any] = {**self.settings, "erm": self.erm}
        for name in SNAPSHOTS:
            found = self.scores.get(name)
            low, high = (found.interval_95 if found else None) or (None, None)
            row |= {name: found.mean if found else None, f"{name}.sd": found.sd if found else None}
            row |= {f"{name}.low": low, f"{name}.high": high}
        found = self.against_erm
        low, high = (found.interval_95 if found else None) or (None, None)
        row["against_erm"] = found.mean if found else None
        row |= {"against_erm.low": low, "against_erm.high": high}
        return row | {"heads": next(iter(self.scores.values())).heads}


@dataclass(frozen=True, kw_only=True)
class HeadScores(Record):
    """Scores of one head, with its seed and status."""

    seed: int
    status: Status
    scores: dict[Snapshot, JudgedScore] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Metrics(Record):
    """All that a run found.

    Attributes:
        format: Of the run folder.
        run: Versions, commit, command and machine.
        data: What it was trained and judged on.
        chance: Scores of predictors that do not look at the frames.
        settings: Scores of each setting; one for a run.
        best: The setting with the highest val-last of a sweep: optimistic.
        cross_validated: The setting that cross-validation chose, without the validation split.
        main: The setting that stands for a sweep, by the rules of `raffect.runs.main_setting`.
        left_out: Heads that are in no mean, by status.
        heads: Scores of each head, by id.
    """

    format: Literal[2] = 2
    run: Provenance
    data: DataFacts
    chance: Chance
    settings: tuple[SettingScores, ...]
    best: SettingScores | None = None
    cross_validated: SettingScores | None = None
    main: SettingScores | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    heads: dict[str, HeadScores] = field(default_factory=dict)

    @property
    def headline(self) -> SettingScores:
        """The setting that stands for the run; files older than `main` have the others."""
        return self.main or self.cross_validated or self.best or self.settings[0]


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows as a pandas DataFrame, through pyarrow."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows)).to_pandas()
