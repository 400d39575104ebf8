"""What `raffect compare` finds: scores of the same heads on several banks, and what each costs.

Shape letters: H heads, G groups (videos), A and B as in `raffect.metrics.kind`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raffect.bank.facts import DataFacts
from raffect.metrics.intervals import difference_interval
from raffect.metrics.scores import Chance, Snapshot
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.progress import format_bytes
from raffect.provenance import Provenance
from raffect.runs.against_erm import Difference
from raffect.runs.metrics_file import table
from raffect.runs.spread import NAMES, Spread, chance_text, how_chosen
from raffect.storage.records import Record

Origin = Literal["encoded", "given", "joined"]
"""Where a bank is from: this command made it, it was finished before, or it is all of the others
concatenated."""
FEW_GROUPS = 10
"""Videos, or other groups, below which a line warns of the intervals over them."""
_INDENT = "   "
_WIDTH = 88
"""Characters of a line of notes; a phone breaks it."""


@dataclass(frozen=True, kw_only=True)
class ComparedBank(Record):
    """A bank, and what its features cost.

    Attributes:
        letter: Names it in table and figure.
        name: The encoder's word, the folder of a bank that was there, or ``joined``.
        origin: Where it is from.
        path: Its folder.
        data: What heads were trained and judged on.
        dim: Length of a feature.
        frames_per_s: At which it was encoded by this command; of joined banks computed, as if one
            encoder followed the other. None where it was not measured.
        rate_note: How the rate was measured, or why there is none.
        flop: Floating-point operations a frame, a multiply-add as two; None where not known.
        size_bytes: Of its features on disk.
    """

    letter: str
    name: str
    origin: Origin
    path: str
    data: DataFacts
    dim: int
    frames_per_s: float | None
    rate_note: str
    flop: int | None
    size_bytes: int

    @property
    def mark(self) -> str:
        """What every score on it has to say: `` [random weights; drawn faces]``, or nothing."""
        return f" [{self.data.caveat}]" if self.data.caveat else ""


@dataclass(frozen=True, kw_only=True)
class ComparedScore(Record):
    """Scores of one recipe's heads on one bank.

    Attributes:
        letter: Of the bank.
        recipe: Name of the recipe.
        run: Folder of the run.
        score: Headline score: mean, spread over seeds, interval over videos.
        against: Letter of the bank that it is compared with, by the same recipe; its own for that
            bank itself.
        difference: How much higher it scores than that one, paired by video; None for that bank.
    """

    letter: str
    recipe: str
    run: str
    score: Spread
    against: str = ""
    difference: Difference | None = None

    def verdict(self) -> str:
        """Whether the difference can be distinguished from 0."""
        if self.difference is None:
            return ""
        if self.difference.interval_95 is None:
            return "no interval"
        low, high = self.difference.interval_95
        return "higher" if low > 0 else "lower" if high < 0 else "cannot be distinguished"


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """The results of `raffect compare`: its ``compare.json``.

    Attributes:
        format: Of this file.
        fingerprint: Of all that decides the results: an equal one has nothing to do.
        run: Versions, commit, command and machine.
        snapshot: Epoch of each head that is judged.
        seeds: Of the heads.
        epochs: By recipe.
        chosen: How the bank that the others are compared with was chosen.
        chance: Scores of predictors that look at nothing, the same for all banks.
        banks: In the order in which they were given, joined ones last.
        scores: Of each recipe and bank.
        notes: Which heads were left out, and why.
    """

    format: Literal[1] = 1
    fingerprint: str
    run: Provenance
    snapshot: Snapshot
    seeds: tuple[int, ...]
    epochs: dict[str, int]
    chosen: Literal["best", "first", "named"]
    chance: Chance
    banks: tuple[ComparedBank, ...]
    scores: tuple[ComparedScore, ...]
    notes: tuple[str, ...] = ()

    def bank(self, letter: str) -> ComparedBank:
        """The bank of a letter."""
        return next(bank for bank in self.banks if bank.letter == letter)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of compare.csv: one a recipe and bank."""
        return [self._row(found) for found in self.scores]

    def _row(self, found: ComparedScore) -> dict[str, Any]:
        bank, score, difference = self.bank(found.letter), found.score, found.difference
        row: dict[str, Any] = {"letter": bank.letter, "encoder": bank.name, "recipe": found.recipe}
        row |= {"score": NAMES[self.snapshot], "heads": score.heads}
        row |= {"mean": score.mean, "sd": score.sd}
        row |= _ends("", score.interval_95) | {"against": found.against}
        row["difference"] = difference.mean if difference else None
        row |= _ends("difference.", difference.interval_95 if difference else None)
        row |= {"frames_per_s": bank.frames_per_s, "dim": bank.dim}
        row |= {"gflop": bank.flop and bank.flop / 1e9, "bank_bytes": bank.size_bytes}
        return row | {"rate": bank.rate_note, "caveat": bank.data.caveat}


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """A comparison, and where it was written.

    Attributes:
        comparison: All of it.
        out: The folder.
        is_old: Whether an earlier run of the same command had found it all.
    """

    comparison: Comparison
    out: Path
    is_old: bool = False

    @property
    def banks(self) -> tuple[ComparedBank, ...]:
        """Encoders, and what they cost."""
        return self.comparison.banks

    @property
    def scores(self) -> tuple[ComparedScore, ...]:
        """Of each recipe and encoder."""
        return self.comparison.scores

    def to_pandas(self) -> Any:
        """One row a recipe and encoder; a pandas DataFrame."""
        return table(self.comparison.rows())

    def lines(self) -> list[str]:
        """The result as lines of text that a phone shows."""
        found, data = self.comparison, self.comparison.banks[0].data
        kind = kind_of(data.task)
        seeds = f"{len(found.seeds)} seed(s)"
        lines = [
            *found.notes,
            *data.missing_lines(),
            f"{data.task.name.upper()} validation: {data.size_of('validation')}; "
            f"heads of {seeds} on each bank, the same ones on all",
            f"{kind.title}: mean ± sd over seeds, 95 % interval over {data.group_name}; "
            f"{how_chosen(found.snapshot, False)}",
        ]
        for recipe, epochs in found.epochs.items():
            lines.append(f"{recipe}, {epochs} epoch(s):")
            lines += self._score_lines(recipe)
        lines.append(f"chance: {chance_text(found.chance)}")
        if (groups := data.splits["validation"].groups) < FEW_GROUPS:
            lines.append(
                f"{groups} {data.group_name} are few: an interval over fewer than {FEW_GROUPS} is "
                "itself uncertain, and so is what is higher or lower"
            )
        lines += self._cost_lines()
        written = f"{self.out}: compare.json, compare.csv, compare.png, banks/, runs/"
        old = f"nothing to do: an earlier run wrote {written}"
        return [*lines, old if self.is_old else f"wrote {written}"]

    def _score_lines(self, recipe: str) -> Iterator[str]:
        """Two or three lines a bank: what it is, its score, and its difference."""
        for found in self.scores:
            if found.recipe != recipe:
                continue
            bank = self.comparison.bank(found.letter)
            yield f"{bank.letter}  {bank.name}{bank.mark}"
            reference = ""
            if found.difference is None and len(self.banks) > 1:
                reference = {
                    "best": "; the highest, chosen on these videos",
                    "first": "; the others are compared with it",
                    "named": "; the others are compared with it",
                }[self.comparison.chosen]
            yield f"{_INDENT}{found.score.text()}{reference}"
            if found.difference is not None:
                text = f"{found.difference.text()} to {found.against}, paired"
                yield f"{_INDENT}{text}: {found.verdict()}"

    def _cost_lines(self) -> Iterator[str]:
        """The table of costs, then how each rate was measured, once for all that share it."""
        yield f"{'':1}  {'frames/s':>8} {'dim':>5} {'GFLOP':>7} {'bank':>9}"
        for bank in self.banks:
            rate = f"{bank.frames_per_s:,.1f}" if bank.frames_per_s else ""
            gflop = f"{bank.flop / 1e9:,.2f}" if bank.flop else ""
            size = format_bytes(bank.size_bytes)
            yield f"{bank.letter}  {rate:>8} {bank.dim:>5} {gflop:>7} {size:>9}"
        notes: dict[str, list[str]] = {}
        for bank in self.banks:
            notes.setdefault(bank.rate_note, []).append(bank.letter)
        for note, letters in notes.items():
            yield from textwrap.wrap(
                f"{', '.join(letters)}: {note}", _WIDTH, subsequent_indent=_INDENT
            )
        if unknown := [bank.letter for bank in self.banks if bank.flop is None]:
            yield f"{', '.join(unknown)}: GFLOP blank, since raffect does not have the encoder"


@dataclass(frozen=True)
class JudgedRun:
    """Heads of one recipe on one bank, before they are compared.

    Attributes:
        letter: Of the bank.
        recipe: Name of the recipe.
        path: Folder of the run.
        score: Its headline score.
        groups: Names of the groups, in the order of ``statistics``.
        statistics: Of each head, shape (H, G, A, B).
    """

    letter: str
    recipe: str
    path: Path
    score: Spread
    groups: Sequence[str]
    statistics: np.ndarray


def compare_runs(runs: Sequence[JudgedRun], against: str, kind: Kind) -> list[ComparedScore]:
    """Every run beside one of the same recipe.

    Args:
        runs: On the same frames.
        against: ``best``, ``first``, or a letter.
        kind: Of the task.
    """
    by_recipe: dict[str, list[JudgedRun]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    found = []
    for group in by_recipe.values():
        reference = _choose_reference(group, against)
        for run in group:
            score = ComparedScore(
                letter=run.letter,
                recipe=run.recipe,
                run=str(run.path),
                score=run.score,
                against=reference.letter,
            )
            if run is not reference:
                second = _in_order_of(run, reference)
                found_there = difference_interval(run.statistics, second, kind)
                score = replace(score, difference=Difference.of(*found_there))
            found.append(score)
    return found


def _choose_reference(runs: Sequence[JudgedRun], against: str) -> JudgedRun:
    if against == "first":
        return runs[0]
    if against == "best":
        return max(runs, key=lambda run: run.score.mean)
    return next(run for run in runs if run.letter == against)


def _in_order_of(run: JudgedRun, other: JudgedRun) -> np.ndarray:
    """Statistics of ``other`` with groups in the order of ``run``: it follows from the bank's."""
    place: Mapping[str, int] = {name: k for k, name in enumerate(other.groups)}
    assert place.keys() == set(run.groups), "runs are on the same frames"
    return other.statistics[:, [place[name] for name in run.groups]]


def _ends(prefix: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}
