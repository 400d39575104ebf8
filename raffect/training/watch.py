"""What the driver of a sweep sees of its trials while they run: a progress line."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator, Mapping
from typing import Any

from raffect.progress import Progress
from raffect.runs.records import PlannedHead

_WATCHED: dict[str, tuple[Progress, list[list[PlannedHead]], set[int]]] = {}
"""By the name of a sweep's callback: progress line, batches, numbers of those that have ended."""


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
    _WATCHED[name] = (progress, batches, set())
    try:
        yield Watch(name)
    finally:
        del _WATCHED[name]


def move_progress(name: str, finished: int, batch: int, result: Mapping[str, Any]) -> None:
    """Count an epoch of a batch of heads on the progress line of that name."""
    if name in _WATCHED:
        # A trial reports steps of each head, the line counts those of all heads.
        progress, batches, _ = _WATCHED[name]
        progress.advance(result.get("steps", 0) * len(batches[batch]))
        done = f"{finished} of {len(batches)} batches done"
        progress.note(f"{done}; batch {batch + 1} {result.get('note', 'done')}")


def note_end(name: str, batch: int) -> None:
    """Note that a batch's trial has ended."""
    if name in _WATCHED:
        _WATCHED[name][2].add(batch)


def ended_batches(name: str) -> list[list[PlannedHead]]:
    """Batches whose trials have ended by themselves or by their scheduler.

    Tune alone does not tell: at SIGUSR1 it leaves the other trials as if they had ended too.
    """
    _, batches, ended = _WATCHED[name]
    return [batches[number] for number in sorted(ended)]
