"""What the driver of a sweep sees of its trials while they run: a progress line."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raffect.progress import Progress
from raffect.runs.records import PlannedHead


@dataclass
class _Sweep:
    """A sweep that runs.

    Attributes:
        progress: Its line.
        batches: Heads of each trial.
        epochs: Last epoch that each trial has reported, by number of the batch.
        ended: Numbers of the batches whose trials have ended.
    """

    progress: Progress
    batches: list[list[PlannedHead]]
    epochs: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)


_WATCHED: dict[str, _Sweep] = {}
"""Sweeps by the name of their callback."""


@contextlib.contextmanager
def watched(progress: Progress, batches: list[list[PlannedHead]]) -> Generator[Any]:
    """A callback in the driver that moves the progress line.

    It finds the line by name, because Tune pickles callbacks and a progress line cannot be pickled.
    """
    from ray.tune import Callback

    class Watch(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            finished = sum(t.status == "TERMINATED" for t in trials)
            move_progress(self.name, finished, trial.config["batch"], result)

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            note_end(self.name, trial.config["batch"])
            finished = sum(t.status == "TERMINATED" for t in trials)
            move_progress(self.name, finished, trial.config["batch"], {})

    # Known by name for the duration of the block alone
    name = uuid.uuid4().hex
    _WATCHED[name] = _Sweep(progress, batches)
    try:
        yield Watch(name)
    finally:
        del _WATCHED[name]


def move_progress(name: str, finished: int, batch: int, result: Mapping[str, Any]) -> None:
    """Count an epoch of a batch of heads on the progress line of that name."""
    if (sweep := _WATCHED.get(name)) is None:
        return
    # A trial that goes on from a saved state begins behind an earlier run's epochs, or, if it died
    # in this run, repeats some.
    epoch, steps = result.get("epoch", 0), result.get("steps", 0) * len(sweep.batches[batch])
    if batch not in sweep.epochs and epoch:
        sweep.progress.add_earlier((epoch - 1) * steps)
        sweep.epochs[batch] = epoch - 1
    if (new := epoch - sweep.epochs.get(batch, 0)) > 0:
        sweep.progress.advance(new * steps)
        sweep.epochs[batch] = epoch
    done = f"{finished} of {len(sweep.batches)} batches done"
    sweep.progress.note(f"{done}; batch {batch + 1} {result.get('note', 'done')}")


def note_end(name: str, batch: int) -> None:
    """Note that a batch's trial has ended."""
    if name in _WATCHED:
        _WATCHED[name].ended.add(batch)


def ended_batches(name: str) -> list[list[PlannedHead]]:
    """Batches whose trials have ended by themselves or by their scheduler.

    Tune alone does not tell: at SIGUSR1 it leaves the other trials as if they had ended too.
    """
    sweep = _WATCHED[name]
    return [sweep.batches[number] for number in sorted(sweep.ended)]
