"""What the driver of a sweep sees of its trials while they run: a progress line, and which of them have ended."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Generator, Mapping
from typing import Any

from raffect.stages.progress import Progress
from raffect.stages.runs import Member


@dataclasses.dataclass
class _Watched:
    progress: Progress
    packs: list[list[Member]]
    ended: set[int] = dataclasses.field(default_factory=set)


_WATCHED: dict[str, _Watched] = {}


@contextlib.contextmanager
def watched(progress: Progress, packs: list[list[Member]]) -> Generator[Any]:
    """A callback in the driver that moves the progress line, which it finds by name: Tune pickles callbacks, and a line cannot be."""
    from ray.tune import Callback

    class Watch(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            move_progress(self.name, sum(t.status == "TERMINATED" for t in trials), trial.config["pack"], result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            note_end(self.name, trial.config["pack"])
            move_progress(self.name, sum(t.status == "TERMINATED" for t in trials), trial.config["pack"], {})

    name = uuid.uuid4().hex
    _WATCHED[name] = _Watched(progress, packs)
    try:
        yield Watch(name)
    finally:
        del _WATCHED[name]


def move_progress(name: str, finished: int, pack: int, result: Mapping[str, Any]) -> None:
    """Count an epoch of a pack on the progress line of that name."""
    if name in _WATCHED:
        watched = _WATCHED[name]
        watched.progress.advance(result.get("steps", 0) * len(watched.packs[pack]))
        watched.progress.note(f"{finished} of {len(watched.packs)} packs done; pack {pack + 1} {result.get('note', 'done')}")


def note_end(name: str, pack: int) -> None:
    """Note that a pack's trial has come to an end, by itself or by its scheduler."""
    if name in _WATCHED:
        _WATCHED[name].ended.add(pack)


def ended_packs(name: str) -> list[int]:
    """Numbers of the packs whose trials have ended; not of those that were interrupted."""
    return sorted(_WATCHED[name].ended)
