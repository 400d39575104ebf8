"""Leave one class out: recall of a class by heads that were trained without it.

Every sample of the class is compared with texts of all classes, as EmoCLIP's authors did. The
prompt set of a class is chosen on folds of the training split by the recall of the other classes,
so that nothing has seen it.

Shape letters: C classes, G groups, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raffect.config import ZeroshotConfig
from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.language.prompt_sets import TaskPrompts, key
from raffect.language.zeroshot.judging import Judged
from raffect.language.zeroshot.trained import TrainedHeads
from raffect.metrics.class_kinds import RecallOf, Uar
from raffect.metrics.f1 import divide
from raffect.metrics.intervals import Headline
from raffect.metrics.task_kinds import Multiclass
from raffect.runs.against_erm import difference_of
from raffect.runs.data import Dataset
from raffect.runs.folder import RunFolder
from raffect.runs.leave_one_out import FILE, LeaveOneOut, LeaveOneOuts, UnseenClass
from raffect.runs.records import HeadRecord
from raffect.runs.windows import window_of
from raffect.storage.atomic import write_atomic
from raffect.storage.tables import write_csv

Texts = tuple[str, str]
"""A prompt set and how its prompts go together."""
ByClass = Mapping[int, Mapping[Texts, Sequence[HeadRecord]]]
"""Heads by the class that they never saw, and by the texts that they are compared with."""


def require_left_out(
    config: ZeroshotConfig, trained: TrainedHeads, task: Task, prompts: Sequence[TaskPrompts]
) -> None:
    """Refuse heads without a class that the task does not have, before anything is written.

    Raises:
        RaffectError: Names the class.
    """
    if not trained.leaves_out:
        return
    require(
        task.kind == "multiclass",
        f"--head: heads were trained without one class, and {task.name} has labels; judge them on "
        "a task of classes, or use heads that were trained on all",
    )
    require(
        config.other == "never",
        "--other threshold: is chosen by labels of every class, also of the one that a head never "
        "saw; leave it out",
    )
    known = {key(name) for name in task.outputs}
    for source in trained.sources:
        name = source.recipe.loss.leave_out
        require(
            key(name) in known,
            f"--head: a head of {source.name} was trained without {name}, which {task.name} does "
            f"not have; its classes are {', '.join(task.outputs)}",
        )


def judge_left_out(
    folder: RunFolder,
    judged: Judged,
    dataset: Dataset,
    described: Sequence[str],
    unit: str,
    caveats: Sequence[str] = (),
) -> tuple[LeaveOneOut, ...]:
    """Recall of every class that some heads never saw; written to the run folder as well.

    Args:
        folder: Of the heads.
        judged: All heads, features without a head among them.
        dataset: What they were judged on.
        described: Classes with texts.
        unit: ``frames`` or ``clips``.
        caveats: What the scores must not be taken for.
    """
    tables = []
    runs = dict.fromkeys(record.recipe.text.head for record in judged.records)
    for run in filter(None, runs):
        tables += _tables_of(run, judged, dataset, described, unit, caveats)
    write_atomic(folder.path / FILE, LeaveOneOuts(tables=tuple(tables)).to_bytes())
    rows = [
        {"run": found.run, **one.row()} for found in tables for one in (*found.classes, found.mean)
    ]
    write_csv(folder.path / "leave_one_out.csv", rows)
    return tuple(tables)


def _tables_of(
    run: str,
    judged: Judged,
    dataset: Dataset,
    described: Sequence[str],
    unit: str,
    caveats: Sequence[str],
) -> list[LeaveOneOut]:
    """One table with chosen prompt sets, or without folds one for each of them."""
    # Heads by the class that they never saw, if it has texts and samples
    task = dataset.task
    heads = _heads_by_class(run, judged, task)
    total = next(iter(judged.statistics.values())).sum((0, -1))
    kept = [k for k in sorted(heads) if task.outputs[k] in described and total[k] > 0]
    skipped = tuple(task.outputs[k] for k in sorted(heads) if k not in kept)
    require(
        bool(kept),
        f"--head {run}: no class that its heads never saw has texts and validation samples",
    )

    # Texts of each class: chosen by the others on folds, or all in turn
    numbers = [task.outputs.index(name) for name in described]
    every = list(heads[kept[0]])
    if judged.on_folds:
        choices = [{k: _choose(heads[k], judged.on_folds, k, numbers) for k in kept}]
    else:
        choices = [dict.fromkeys(kept, texts) for texts in every]
    several = len({ensemble for _, ensemble in every}) > 1
    tables = []
    for choice in choices:
        pairs = {k: _statistics(heads[k][choice[k]], judged) for k in kept}
        names = {k: f"{t[0]} ({t[1]})" if several else t[0] for k, t in choice.items()}
        found = [_describe(task.outputs[k], pairs[k], RecallOf(k), names[k], [k]) for k in kept]
        tables.append(
            LeaveOneOut(
                run=run,
                classes=tuple(found),
                mean=_describe("mean", _merge(pairs), Uar(), "", kept),
                candidates=len(described),
                is_chosen=bool(judged.on_folds) and len(every) > 1,
                unit=unit,
                group_name=dataset.facts.group_name,
                skipped=skipped,
                caveats=tuple(caveats),
            )
        )
    return tables


def _heads_by_class(run: str, judged: Judged, task: Task) -> ByClass:
    number = {key(name): k for k, name in enumerate(task.outputs)}
    found: dict[int, dict[Texts, list[HeadRecord]]] = {}
    for record in judged.records:
        text, left_out = record.recipe.text, record.recipe.loss.leave_out
        if text.head == run and left_out:
            by_texts = found.setdefault(number[key(left_out)], {})
            by_texts.setdefault((text.prompts, text.ensemble), []).append(record)
    return found


def _choose(
    by_texts: Mapping[Texts, Sequence[HeadRecord]],
    on_folds: Mapping[str, np.ndarray],
    unseen: int,
    described: Sequence[int],
) -> Texts:
    """Texts with the highest mean recall of the other classes on folds; the first of equals."""
    others = [k for k in described if k != unseen]

    def recall(texts: Texts) -> float:
        pooled = np.sum([on_folds[record.id] for record in by_texts[texts]], axis=0)
        rows = pooled[others]
        true = rows.sum(-1)
        return float(divide(pooled[others, others], true).sum() / max((true > 0).sum(), 1))

    return max(by_texts, key=recall)


Pair = tuple[np.ndarray, np.ndarray]
"""Statistics of heads, (H, G, C, C), and of features without a head, (1, G, C, C)."""


def _statistics(heads: Sequence[HeadRecord], judged: Judged) -> Pair:
    """Statistics of heads that differ in their seed, and of the features beside them."""
    first = heads[0].recipe
    plain = next(
        record.id
        for record in judged.records
        if not record.recipe.text.head
        and (record.recipe.text.prompts, record.recipe.text.ensemble)
        == (first.text.prompts, first.text.ensemble)
        and window_of(record.recipe.head) == window_of(first.head)
    )
    trained = np.stack([judged.statistics[record.id] for record in heads])
    return trained, judged.statistics[plain][None]


def _merge(pairs: Mapping[int, Pair]) -> Pair:
    """Confusion matrices of all classes, whose row k is of the heads that never saw class k.

    Of as many seeds each; where some diverged, the mean, since every head saw the same samples.
    """
    merged = []
    for side in (0, 1):
        found = {k: pair[side] for k, pair in pairs.items()}
        if len({len(heads) for heads in found.values()}) > 1:
            found = {k: heads.mean(0, keepdims=True) for k, heads in found.items()}
        one = np.zeros_like(next(iter(found.values())), float)
        for k, heads in found.items():
            one[:, :, k] = heads[:, :, k]
        merged.append(one)
    return merged[0], merged[1]


def _describe(
    name: str, pair: Pair, kind: Multiclass, prompts: str, classes: Sequence[int]
) -> UnseenClass:
    """Recalls and their difference, over the groups that have samples of the classes."""
    has_some = pair[1][0][:, classes].sum((1, 2)) > 0
    trained, plain = (side[:, has_some] for side in pair)
    gain = difference_of(list(trained), list(plain), kind)
    assert gain is not None  # no statistics are missing
    return UnseenClass(
        name=name,
        samples=int(plain[0][:, classes].sum()),
        groups=int(has_some.sum()),
        prompts=prompts,
        trained=Headline.of(trained, kind),
        plain=Headline.of(plain[0], kind),
        gain=gain,
    )
