"""`raffect evaluate --classes common`: heads of one data set on labels of another one.

They are judged on the outputs that both have, by name. A head answers one of these alone, so every
frame gets one of the common classes; frames of other classes are left out, and counted.

Shape letters: N samples, K common outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from raffect.datasets.class_map import match_outputs
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.storage.records import Count, Record

if TYPE_CHECKING:  # reports read the record, and need no torch
    from raffect.runs.data import Dataset

_KINDS = ("multiclass", "multilabel")
_NO_CLASS = -1


@dataclass(frozen=True, kw_only=True)
class CommonOutputs(Record):
    """On which outputs heads were judged, where theirs are not those of the labels.

    Attributes:
        outputs: Those that both have, as the heads call them.
        not_in_labels: Outputs of the heads that the labels lack: never predicted here.
        not_in_heads: Outputs of the labels that the heads lack.
        left_out: Labelled samples with no label among the common outputs.
        left_out_of: Of classes: how many of them each class has.
    """

    outputs: tuple[str, ...]
    not_in_labels: tuple[str, ...]
    not_in_heads: tuple[str, ...]
    left_out: Count
    left_out_of: dict[str, Count]

    @property
    def is_part(self) -> bool:
        """Whether either side has other outputs as well."""
        return bool(self.not_in_labels or self.not_in_heads)

    def caveat(self, parts: str) -> str:
        """What scores over a part of the outputs must say; empty for all of them.

        Args:
            parts: Word for outputs: ``classes`` or ``labels``.
        """
        if not self.is_part:
            return ""
        return f"judged on the {len(self.outputs)} {parts} that heads and labels both have"

    def lines(self, parts: str, samples: str) -> list[str]:
        """What is judged and what is not.

        Args:
            parts: Word for outputs: ``classes`` or ``labels``.
            samples: Word for samples: ``frames`` or ``clips``.
        """
        lines = [f"common {parts}, by name: {', '.join(self.outputs)}"]
        if self.not_in_labels:
            names = ", ".join(self.not_in_labels)
            lines.append(f"  never predicted, since the labels lack them: {names}")
        if self.not_in_heads:
            lines.append(f"  unknown to the heads: {', '.join(self.not_in_heads)}")
        if self.left_out:
            each = ", ".join(f"{name} {count:,}" for name, count in self.left_out_of.items())
            of = f" ({each})" if each else ""
            lines.append(f"  left out: {self.left_out:,} {samples} of these alone{of}")
        return lines


class Restricted(NamedTuple):
    """What heads are judged on.

    Attributes:
        dataset: Samples that have a label among the common outputs, which are its task's.
        columns: Number of each common output among those of the heads.
        common: What was matched.
    """

    dataset: Dataset
    columns: tuple[int, ...]
    common: CommonOutputs


def restrict(dataset: Dataset, split: str, theirs: Task, where: str) -> Restricted:
    """The samples and outputs on which heads of another task can be judged.

    Args:
        dataset: Of the labels.
        split: Its split.
        theirs: The task of the heads.
        where: The heads and the labels, for errors.

    Raises:
        RaffectError: If the tasks are of different kinds, have fewer than two classes or no label
            in common, or no sample of a common one.
    """
    # Number of each output of the heads among those of the labels, and the other way
    ours, index = dataset.task, dataset.splits[split]
    require(
        ours.kind == theirs.kind and ours.kind in _KINDS,
        f"--classes common: {where}: heads are {theirs.kind} and labels {ours.kind}; expected "
        f"both {' or both '.join(_KINDS)}",
    )
    number, in_heads = match_outputs(theirs, ours), match_outputs(ours, theirs)
    columns = np.flatnonzero(number >= 0)
    outputs, has_classes = _names(theirs.outputs, number >= 0), ours.kind == "multiclass"
    if len(columns) < 1 + has_classes:
        both = f"{', '.join(theirs.outputs)} and {', '.join(ours.outputs)}"
        raise RaffectError(f"--classes common: {where}: too few in common: {both}")

    # Samples with one of them
    y, keep = _restrict(index.y, number[columns], ours)
    require(
        bool(keep.any()),
        f"--classes common: {where}: no labelled frame of {split} is of {', '.join(outputs)}",
    )
    kept = replace(index.select(keep), y=y[keep])
    facts = dataset.facts
    sizes = replace(facts.splits[split], frames=len(kept), groups=len(kept.groups))
    meanings = np.array(theirs.descriptions, object)
    task = replace(
        theirs,
        outputs=outputs,
        columns=ours.columns if has_classes else _names(ours.columns, number[columns]),
        unlabelled=_NO_CLASS if has_classes else ours.unlabelled,
        descriptions=tuple(meanings[columns]) if len(meanings) else (),
        limits=None,
    )
    facts = replace(facts, task=task, published={}, splits=facts.splits | {split: sizes})
    return Restricted(
        replace(dataset, task=task, splits={split: kept}, facts=facts),
        tuple(columns.tolist()),
        CommonOutputs(
            outputs=outputs,
            not_in_labels=_names(theirs.outputs, number < 0),
            not_in_heads=_names(ours.outputs, in_heads < 0),
            left_out=int((~keep).sum()),
            left_out_of=_count_classes(index.y[~keep, 0], ours.outputs) if has_classes else {},
        ),
    )


def _restrict(y: np.ndarray, number: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Labels in terms of the common outputs, and which samples have one, shape (N,).

    Numbers of classes have shape (N, 1), labels (N, K).

    Args:
        y: Labels as the table has them, shape (N, columns).
        number: Number of each common output among those of the labels, shape (K,).
        task: Of the labels.
    """
    if task.kind == "multilabel":
        found = y[:, number]
        return found, np.asarray(task.is_labelled(found).any(axis=1))
    of_class = np.full(len(task.outputs), _NO_CLASS, np.int16)
    of_class[number] = np.arange(len(number))
    found = of_class[y.astype(int)]
    return found, found[:, 0] != _NO_CLASS


def _names(names: Sequence[str], which: np.ndarray) -> tuple[str, ...]:
    """Some of the names, by a mask or by numbers."""
    return tuple(np.array(names, object)[which])


def _count_classes(classes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Samples of each class that has some."""
    counts = np.bincount(classes.astype(int), minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}
