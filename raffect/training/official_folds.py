"""`raffect train --folds official`: heads for each official fold of a data set, judged on it.

Column ``fold`` of the label table names the fold whose test list has a clip; 0 is none. Fold k is a
run of its own, in ``fold-k``, on a label table whose ``validation`` rows are fold k and whose
``train`` rows are all others. So a row is judged once, by heads that never saw it.

The score is that of the last epoch: no epoch is chosen on a test list. Papers give UAR and WAR as
means over the folds; those of all folds' answers pooled stand beside them.

Shape letters: S seeds, K folds, G groups of all folds, A and B as in `raffect.metrics.task_kinds`.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raffect.config import TrainConfig
from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.metrics.class_kinds import Uar, War
from raffect.metrics.intervals import Interval, plain_interval, score_interval
from raffect.metrics.scores import Chance, mean_chance
from raffect.metrics.task_kinds import Kind, Multiclass, kind_of
from raffect.runs.conclusions import TrainResult
from raffect.runs.data import open_dataset
from raffect.runs.folder import RunFolder
from raffect.runs.metrics_file import table
from raffect.runs.spread import chance_text, short
from raffect.storage.atomic import write_atomic
from raffect.storage.paths import locate
from raffect.storage.records import Record
from raffect.storage.tables import read_metadata, read_table, write_csv, write_table
from raffect.training.train import train

_COLUMN = "fold"
_PREDICTORS = {"uar": "always one class", "accuracy": "always the most frequent class"}
"""Which predictor that never looks at a face is best at a score; others name it themselves."""
_TITLES = {"uar": "UAR", "accuracy": "WAR", "macro_f1": "macro F1", "ccc": "CCC", "pcc": "PCC"}


@dataclass(frozen=True, kw_only=True)
class FoldScores(Record):
    """Scores of a data set's official folds; the content of ``official_folds.json``.

    Attributes:
        task: The task.
        folds: Numbers of the folds.
        seeds: Seeds of the heads.
        by_fold: Score -> value of each fold, the mean over seeds.
        mean: Score -> mean over folds and seeds.
        sd: Score -> standard deviation over folds of the seeds' means.
        pooled: Score of all folds' answers together, the mean over seeds.
        interval_95: Of the pooled headline score, over clips or other groups of all folds.
        intervals: Score -> the same of each pooled score that has one: UAR, WAR and the headline.
            Empty in files older than this field, as are the next two.
        chances: Score -> the best of predictors that never look at a face, the mean over folds:
            one class in as many as occur (UAR), the share of the most frequent class (WAR).
        by_seed: Score -> the mean over folds of each seed.
        chance: Of predictors that never look at a face, the mean over folds, for the headline.
        caveat: What must stand beside them.
    """

    task: Task
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    by_fold: dict[str, tuple[float, ...]]
    mean: dict[str, float]
    sd: dict[str, float]
    pooled: dict[str, float]
    interval_95: Interval | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    chances: dict[str, float] = field(default_factory=dict)
    by_seed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    chance: Chance
    caveat: str = ""


@dataclass(frozen=True, kw_only=True)
class OfficialFoldsResult:
    """What `raffect train --folds official` found.

    Attributes:
        folder: Holds ``official_folds.json``, ``official_folds.csv`` and a run folder a fold.
        scores: Scores by fold, their mean, and pooled.
        runs: The run of each fold.
    """

    folder: Path
    scores: FoldScores
    runs: tuple[TrainResult, ...] = field(repr=False)

    def to_pandas(self) -> Any:
        """A row a fold and seed, and rows of mean, pooled and chance; a pandas DataFrame."""
        return table(_rows(self.scores))

    def lines(self) -> list[str]:
        """The result as lines of text."""
        # A line a score
        found, facts = self.scores, self.runs[0].data
        name, kind = facts.task.name.upper(), kind_of(facts.task)
        lines = [line for run in self.runs for line in run.data.missing_lines()]
        for key, mean in found.mean.items():
            folds = ", ".join(map(short, found.by_fold[key]))
            pooled = short(found.pooled[key])
            if ends := found.intervals.get(key):
                pooled += f" [{', '.join(map(short, ends))}]"
            over = f"{short(mean)} over {len(found.folds)} folds (sd {short(found.sd[key])})"
            if key in found.chances:
                by = _PREDICTORS.get(key, found.chance.name)
                over += f", chance {short(found.chances[key])} ({by})"
            lines.append(f"{name} {_TITLES.get(key, key)} {over}, pooled {pooled}; folds {folds}")
            if len(found.seeds) > 1:
                seeds = [
                    f"{seed} {short(score)}"
                    for seed, score in zip(found.seeds, found.by_seed[key], strict=True)
                ]
                lines.append(f"  seeds {', '.join(seeds)}")

        # Chance, caveat, and what comes next
        chance = chance_text(found.chance)
        lines.append(f"{name} chance {kind.title} over {len(found.folds)} folds: {chance}")
        lines += [f"caveat: {found.caveat}"] if found.caveat else []
        lines.append(f"wrote {self.folder}: official_folds.json, official_folds.csv, a run a fold")
        runs = shlex.join(str(run.folder) for run in self.runs)
        return [*lines, f"next: raffect report --runs {runs}"]


def train_on_official_folds(config: TrainConfig) -> OfficialFoldsResult:
    """Train and judge on every official fold; finished heads are not trained again.

    Raises:
        RaffectError: If the label table has no official folds, or a fold cannot be trained or has a
            head that diverged.
    """
    # Folds of the label table
    incomplete = config.allow_incomplete
    dataset = open_dataset(
        config.bank, config.labels, config.task, ["train"], allow_incomplete=incomplete
    )
    require(
        dataset.targets is None,
        "--folds official: trains on labels; captions have the splits of their own table",
    )
    file = locate(dataset.facts.labels)
    labels = read_table(file, ("video", "split"), "label table", "raffect prepare")
    require(
        _COLUMN in labels.column_names,
        f"--folds official: {file} has no official folds; those of DFEW and MAFW have, if all "
        "their lists are there. Take a number of folds with --select cv instead",
    )
    numbers = labels[_COLUMN].to_pylist()
    require(
        all(isinstance(number, int) and number >= 0 for number in numbers),
        f"{file}: column {_COLUMN!r} has cells that are not the number of a fold, or 0 for none; "
        "make it again with `raffect prepare`",
    )
    folds = sorted(set(numbers) - {0})
    require(len(folds) >= 2, f"--folds official: {file} has fewer than two folds")

    # A run a fold
    runs, judged = [], []
    for fold in folds:
        folder = config.out / f"fold-{fold}"
        own = config.out / "labels" / f"fold-{fold}" / f"{dataset.task.name}.parquet"
        _write_fold(labels, fold, own)
        settings = {"labels": own, "out": folder, "folds": 5, "task": dataset.task.name}
        found = train(dataclasses.replace(config, **settings))
        assert isinstance(found, TrainResult)
        runs.append(found)
        judged.append(read_judged(found, fold))
    scores = score_folds(runs, folds, judged)
    write_atomic(config.out / "official_folds.json", scores.to_bytes())
    write_csv(config.out / "official_folds.csv", _rows(scores))
    return OfficialFoldsResult(folder=config.out, scores=scores, runs=tuple(runs))


def _write_fold(labels: pa.Table, fold: int, file: Path) -> None:
    """A label table whose validation split is one fold."""
    is_held_out = labels[_COLUMN].to_numpy() == fold
    split = pa.array(np.where(is_held_out, "validation", "train")).dictionary_encode()
    place = labels.column_names.index("split")
    metadata = read_metadata(labels) | {_COLUMN: json.dumps(fold)}
    write_table(labels.set_column(place, "split", split), file, metadata)


class Judged(NamedTuple):
    """Statistics of one fold's heads after their last epoch.

    Attributes:
        groups: Names of the fold's groups.
        heads: Of each seed, shape (groups, A, B).
    """

    groups: Sequence[str]
    heads: list[np.ndarray]


def read_judged(run: TrainResult, fold: int) -> Judged:
    """What the heads of a fold answered.

    Raises:
        RaffectError: If one of them diverged.
    """
    folder = RunFolder(run.folder)
    found = [folder.statistics_of(record, "last") for record in run.records]
    heads = [statistics for statistics in found if statistics is not None]
    require(
        len(heads) == len(run.records),
        f"{run.folder}: a head of fold {fold} diverged; try a smaller optim.lr or sam.rho",
    )
    statistics = folder.read_statistics(run.records[0])
    assert statistics is not None  # its head has some
    return Judged(statistics.groups, heads)


def pool_groups(judged: Sequence[Judged]) -> np.ndarray:
    """Statistics of all folds, shape (S, G, A, B): a group in several folds is one group."""
    number: dict[str, int] = {}
    for name in (name for fold in judged for name in fold.groups):
        number.setdefault(name, len(number))
    first = judged[0].heads[0]
    pooled = np.zeros((len(judged[0].heads), len(number), *first.shape[1:]), first.dtype)
    for fold in judged:
        places = [number[name] for name in fold.groups]
        for seed, head in enumerate(fold.heads):
            pooled[seed, places] += head
    return pooled


def score_folds(
    runs: Sequence[TrainResult], folds: Sequence[int], judged: Sequence[Judged]
) -> FoldScores:
    """Scores of every fold, their mean, and those of all folds together.

    Args:
        runs: The run of each fold, with the same seeds.
        folds: Their numbers.
        judged: Of `read_judged`, a fold each.
    """
    task, kind = runs[0].data.task, kind_of(runs[0].data.task)
    # A score a seed and fold, and the folds together
    seeds = tuple(record.recipe.seed for record in runs[0].records)
    each = [[kind.score(head.sum(0), task).metrics for head in fold.heads] for fold in judged]
    pooled_SGAB = pool_groups(judged)
    pooled = [kind.score(head.sum(0), task).metrics for head in pooled_SGAB]
    keys = [key for key in ("uar", "accuracy", *each[0][0]) if key in each[0][0]]
    values = {
        key: tuple(float(np.mean([head[key] for head in heads])) for heads in each)
        for key in dict.fromkeys(keys)
    }
    intervals = {
        key: plain_interval(score_interval(pooled_SGAB, measure))
        for key, measure in _measures(kind).items()
    }
    # What a predictor scores that never looks, which depends on the labels alone
    chance = mean_chance([run.chance for run in runs])
    chances = {kind.key: chance.level}
    if isinstance(kind, Multiclass):
        true = [fold.heads[0].sum((0, -1)) for fold in judged]
        chances["uar"] = float(np.mean([1 / (counts > 0).sum() for counts in true]))
        chances["accuracy"] = float(np.mean([counts.max() / counts.sum() for counts in true]))
    return FoldScores(
        task=task,
        folds=tuple(folds),
        seeds=seeds,
        by_fold=values,
        mean={key: float(np.mean(found)) for key, found in values.items()},
        sd={key: float(np.std(found, ddof=1)) for key, found in values.items()},
        pooled={key: float(np.mean([head[key] for head in pooled])) for key in values},
        interval_95=intervals[kind.key],
        intervals={key: ends for key, ends in intervals.items() if ends is not None},
        chances=chances,
        by_seed={
            key: tuple(
                float(np.mean([heads[seed][key] for heads in each])) for seed in range(len(seeds))
            )
            for key in values
        },
        chance=chance,
        caveat=runs[0].data.caveat,
    )


def _measures(kind: Kind) -> dict[str, Kind]:
    """Scores that have an interval: the headline, and of classes UAR and WAR."""
    if isinstance(kind, Multiclass):
        return {"uar": Uar(), "accuracy": War(), kind.key: kind}
    return {kind.key: kind}


def _rows(scores: FoldScores) -> list[dict[str, Any]]:
    """A row a fold and a seed, and those of their mean, of all together, and of chance."""
    rows: list[dict[str, Any]] = [
        {"fold": str(fold)} | {key: found[k] for key, found in scores.by_fold.items()}
        for k, fold in enumerate(scores.folds)
    ]
    rows += [{"fold": "mean"} | scores.mean, {"fold": "pooled"} | scores.pooled]
    for k, end in enumerate(("low", "high")):
        ends = {key: interval[k] for key, interval in scores.intervals.items()}
        rows.append({"fold": f"pooled {end}"} | {key: ends.get(key) for key in scores.mean})
    rows.append({"fold": "chance"} | {key: scores.chances.get(key) for key in scores.mean})
    return rows + [
        {"fold": f"mean of seed {seed}"} | {key: found[k] for key, found in scores.by_seed.items()}
        for k, seed in enumerate(scores.seeds)
    ]
