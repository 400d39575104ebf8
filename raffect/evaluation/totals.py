"""The score of ABAW's multi-task challenge: the sum of the scores of heads of its three tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raffect.bank.groups import are_blocks, block_of
from raffect.datasets.affwild2 import tasks as affwild2
from raffect.datasets.tasks import Task
from raffect.evaluation.results import SumOfTasks, TaskResult
from raffect.metrics.intervals import Summand, sum_interval
from raffect.metrics.task_kinds import kind_of


def sum_tasks(tasks: Sequence[TaskResult]) -> tuple[SumOfTasks | None, tuple[str, ...]]:
    """The sum of the headline scores of the three tasks of ABAW's multi-task challenge.

    Args:
        tasks: Scores of heads of different tasks.

    Returns:
        None if they are not these three; or if the heads of a task differ in more than their seed,
        which a note then says.
    """
    wanted = sorted(_signature(task) for task in affwild2.TASKS)
    if sorted(_signature(part.task) for part in tasks) != wanted:
        return None, ()
    many = [part.task.name for part in tasks if len(part.settings) > 1]
    if many:
        what = f"no sum of the three tasks: heads of {' and '.join(many)} have several settings"
        return None, (f"{what}; give the folder of one head, RUN/weights/<head>/last, instead",)

    # The sum, and its spread over seeds and over the videos of all tasks
    spreads = [next(iter(part.settings[0].scores.values())) for part in tasks]
    names = {part.evaluation.data.group_name for part in tasks}
    groups = _common_names([part.groups for part in tasks])
    mean, interval = sum_interval(
        [
            Summand(kind=kind_of(part.task), statistics=part.statistics, groups=own)
            for part, own in zip(tasks, groups, strict=True)
        ]
    )
    known = [found.sd for found in spreads if found.sd is not None]
    caveats = dict.fromkeys(caveat for part in tasks for caveat in part.evaluation.caveats)
    total = SumOfTasks(
        tasks={part.task.name: found.mean for part, found in zip(tasks, spreads, strict=True)},
        mean=mean,
        sd=math.hypot(*known) if len(known) == len(tasks) else None,
        interval_95=interval if len(names) == 1 else None,
        groups=len({name for own in groups for name in own}),
        group_name=" or ".join(sorted(names)),
        chance=float(np.sum([part.evaluation.chance.level for part in tasks])),
        caveats=tuple(caveats),
    )
    return total, ()


def _signature(task: Task) -> tuple:
    """What makes a task the same whatever its columns are called."""
    return task.name, task.kind, task.outputs


def _common_names(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names of the groups of each task, by which those of one video are known as one.

    If one task has so many videos that its statistics are of blocks, so are the others'.
    """
    blocked = [are_blocks(names) for names in groups]
    return [
        list(map(block_of, names)) if any(blocked) and not own else list(names)
        for names, own in zip(groups, blocked, strict=True)
    ]
