"""Scores across data sets: heads of each run on its own validation split and on other sets.

Those on other sets are read from folders that `raffect evaluate --out` wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raffect.bank.facts import DataFacts
from raffect.errors import RaffectError, require
from raffect.evaluation.results import Evaluation
from raffect.metrics.scores import Chance, Score
from raffect.reporting.run import Run, name_runs
from raffect.runs.spread import Spread, group_by_settings

_FILE = "metrics.json"
_FOLD = re.compile(r"fold-([0-9]+)", re.A)
_REMEDY = "judge again with `raffect evaluate --out`"

Column = tuple[str, str]
"""A label table, by its SHA-256, and a split."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Scores of one run's main setting on one data set.

    Attributes:
        run: The run.
        column: What was judged on.
        data: Facts of it.
        score: Headline score after the last epoch: mean, spread over seeds and interval.
        heads: All scores of each head.
        chance: The chance level on the same samples and outputs.
        outputs: Classes or labels that were judged.
        left_out: Samples without any of these; 0 where all outputs were judged.
        caveats: What the score must not be taken for.
    """

    run: Run
    column: Column
    data: DataFacts
    score: Spread
    heads: Sequence[Score]
    chance: Chance
    outputs: Sequence[str]
    left_out: int = 0
    caveats: Sequence[str] = ()

    @property
    def is_own(self) -> bool:
        """Whether it is the run's own validation split."""
        return self.column == own_column(self.run)


def own_column(run: Run) -> Column:
    """The validation split that a run was judged on itself."""
    return run.data.labels_sha256, "validation"


@dataclass(frozen=True)
class Matrix:
    """All scores of one task.

    Attributes:
        runs: Its rows: what heads were trained on.
        columns: What they were judged on, and its name: own data sets of the runs first.
        cells: By name of the run and column; not every one is there.
    """

    runs: Sequence[Run]
    columns: Mapping[Column, str]
    cells: Mapping[tuple[str, Column], Cell]

    def rows(self) -> list[dict[str, Any]]:
        """A row a cell, for a CSV."""
        return [
            _row(cell, self.columns)
            for run in self.runs
            for column in self.columns
            if (cell := self.cells.get((run.name, column))) is not None
        ]

    def name_row(self, run: Run) -> str:
        """``dfew (runs/erm)``: what a run was trained on, and the run."""
        return f"{self.columns[own_column(run)]} ({run.name})"

    @property
    def caveats(self) -> list[str]:
        """Caveats of encoders and images of all cells."""
        found = (caveat for cell in self.cells.values() for caveat in cell.data.caveats)
        return list(dict.fromkeys(found))


def _row(cell: Cell, names: Mapping[Column, str]) -> dict[str, Any]:
    split, key = cell.data.splits[cell.column[1]], cell.run.kind.key
    low, high = cell.score.interval_95 or (None, None)
    row: dict[str, Any] = {
        "run": cell.run.name,
        "trained_on": names[own_column(cell.run)],
        "judged_on": names[cell.column],
        "own": cell.is_own,
        key: cell.score.mean,
        "sd": cell.score.sd,
        "low": low,
        "high": high,
        "seeds": cell.score.heads,
        "outputs": len(cell.outputs),
        "chance": cell.chance.level,
        "chance_is": cell.chance.name,
        "frames": split.frames,
        "groups": split.groups,
        "left_out": cell.left_out,
    }
    means = {
        name: float(np.mean([head.metrics[name] for head in cell.heads]))
        for name in cell.heads[0].metrics
    }
    return means | row | {"names": ", ".join(cell.outputs)}


def read_matrices(folders: Sequence[Path], runs: Sequence[Run]) -> list[Matrix]:
    """The matrix of each task that was judged on other data sets.

    Args:
        folders: Of `raffect evaluate --out`.
        runs: All of the report.

    Raises:
        RaffectError: If a folder has no scores, or scores of heads of another run, of another
            snapshot than the last epoch, or of a cell that another folder has, too.
    """
    judged: dict[tuple[str, Column], tuple[Path, Cell]] = {}
    for file in (file for folder in folders for file in _find_files(folder)):
        cell = _read_cell(file, runs)
        first, _ = judged.setdefault((cell.run.name, cell.column), (file, cell))
        require(
            first == file and not cell.is_own,
            f"--judged {file.parent}: {cell.run.name} on {cell.data.labels}, {cell.column[1]}, is "
            f"{'its own score' if cell.is_own else f'in {first.parent}, too'}; leave it out",
        )
    found = {key: cell for key, (_, cell) in judged.items()}
    tasks = dict.fromkeys((cell.run.task.name, cell.run.task.kind) for cell in found.values())
    return [
        _matrix([run for run in runs if (run.task.name, run.task.kind) == task], found)
        for task in tasks
    ]


def _matrix(runs: Sequence[Run], judged: Mapping[tuple[str, Column], Cell]) -> Matrix:
    """Own scores of runs of one task, and those on other sets."""
    cells = {(run.name, own_column(run)): _own_cell(run) for run in runs}
    names = {run.name for run in runs}
    cells |= {key: cell for key, cell in judged.items() if key[0] in names}
    return Matrix(runs, _name_columns(cells.values()), cells)


def _name_columns(cells: Iterable[Cell]) -> dict[Column, str]:
    """A name for each data set: the folder of its labels; splits but validation, folds named."""
    facts = {cell.column: cell.data for cell in cells}
    labels = {sha: Path(data.labels) for (sha, _), data in facts.items()}
    places = {sha: _data_set_of(path) for sha, path in labels.items()}
    found = name_runs([folder for folder, _ in places.values()])
    names = {
        sha: f"{name}{fold}" for name, (sha, (_, fold)) in zip(found, places.items(), strict=True)
    }
    # Tables that were written to one place after each other
    known = list(names.values())
    names = {
        sha: f"{name} {sha[:6]}" if known.count(name) > 1 else name for sha, name in names.items()
    }
    return {
        (sha, split): names[sha] if split == "validation" else f"{names[sha]} ({split})"
        for sha, split in facts
    }


def _data_set_of(labels: Path) -> tuple[Path, str]:
    """The folder that names a label table's data set, and which official fold of it this is.

    Official folds are in ``OUT/labels/fold-k`` (`raffect.training.official_folds`).
    """
    folder = labels.parent
    if folder.parent.name == "labels" and (fold := _FOLD.fullmatch(folder.name)):
        return folder.parent.parent, f", official fold {fold[1]}"
    return (folder.parent if folder.name == "labels" else folder), ""


def _own_cell(run: Run) -> Cell:
    """The run's own validation split."""
    heads, score = run.main.heads, run.spread(run.main.heads, "last")
    assert score is not None  # every finished head has one
    return Cell(
        run=run,
        column=own_column(run),
        data=run.data,
        score=score,
        heads=[head.scores["last"] for head in heads],
        chance=heads[0].chance,
        outputs=run.task.outputs,
    )


def _find_files(folder: Path) -> list[Path]:
    """The scores in a folder: one file, or one a task."""
    require(
        not (folder / "env.json").exists(),
        f"--judged {folder}: is a run folder; expected a folder of `raffect evaluate --out`",
    )
    if (folder / _FILE).is_file():
        return [folder / _FILE]
    found = sorted(folder.glob(f"*/{_FILE}"))
    require(bool(found), f"--judged {folder}: no {_FILE} in it; {_REMEDY}")
    return found


def _read_cell(file: Path, runs: Sequence[Run]) -> Cell:
    """Scores of one run's main setting on another data set.

    Raises:
        RaffectError: If they are not of a run of the report, after the last epoch.
    """
    found = Evaluation.from_json(file.read_bytes(), file, _REMEDY)
    require(
        found.snapshot == "last",
        f"{file}: scores of {found.snapshot} snapshots; a report compares last epochs: evaluate "
        "with --epoch last",
    )
    # Heads are named by the data that they were trained on, and their settings
    groups = group_by_settings(found.heads)
    for run in runs:
        main = {record.id for record in run.main.heads}
        for heads, setting in zip(groups, found.settings, strict=True):
            data = {head.trained_on for head in heads}
            if data == {run.record.fingerprint} and {head.id for head in heads} <= main:
                common = found.common
                return Cell(
                    run=run,
                    column=(found.data.labels_sha256, found.split),
                    data=found.data,
                    score=setting.scores["last"],
                    heads=[head.score for head in heads],
                    chance=found.chance,
                    outputs=found.data.task.outputs,
                    left_out=common.left_out if common else 0,
                    caveats=found.caveats,
                )
    raise RaffectError(
        f"{file}: scores of {found.heads[0].folder}, which is not of the main setting of a run of "
        "this report; add its run to --runs, or judge that run again"
    )
