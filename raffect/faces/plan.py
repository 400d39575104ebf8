"""What is to be done: the units of work of a folder of faces that are not finished yet.

A unit counts as long as its input has the size and time that it had. A finished video or full block
of pictures that is gone stays finished; one that was replaced is worked on again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffect.errors import RaffectError
from raffect.faces.records import (
    FOLDERS,
    FaceSettings,
    Input,
    Unit,
    mark_source,
    open_commits,
    read_units,
)
from raffect.faces.video import cut_segments
from raffect.faces.work import Task, read_scan
from raffect.storage.atomic import PREFIX
from raffect.storage.paths import list_sizes

PICTURES_A_BLOCK = 32
"""Pictures of a unit of work."""

_RESULTS = ("manifest.parquet", "faces.parquet")
_FILE = re.compile(r"(scan|part|done)-[0-9-]+-[0-9a-f]{8}\.parquet", re.A)
_UNFINISHED = re.compile(rf"{re.escape(PREFIX)}.+-[0-9a-f]{{8}}", re.A | re.S)


@dataclass(frozen=True)
class Job:
    """A video, or a block of pictures.

    Attributes:
        number: Of the video, or of the block's first picture, among all inputs.
        inputs: They themselves.
        source: Digest of their sizes and times.
        is_gone: Whether a file is not there any more.
    """

    number: int
    inputs: tuple[Input, ...]
    source: str
    is_gone: bool

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return self.inputs[0].kind == "video"

    @property
    def done(self) -> str:
        """Name of the unit that finishes it."""
        return f"done-{self.number:06d}"

    @property
    def scan(self) -> str:
        """Name of the unit with a video's frames."""
        return f"scan-{self.number:06d}"

    def is_done(self, units: dict[str, Unit]) -> bool:
        """Whether a finished unit is of these very files.

        A video and a full block of pictures stay finished when a file is gone. A block to which
        pictures are added has another source, so all of them are read again.
        """
        record = units.get(self.done)
        if record is None or len(record.inputs) != len(self.inputs):
            return False
        return self.is_gone or record.source == self.source


def list_jobs(inputs: Sequence[Input]) -> list[Job]:
    """Videos and blocks of pictures, by number."""
    pictures = [number for number, one in enumerate(inputs) if one.kind == "picture"]
    blocks = [
        pictures[start : start + PICTURES_A_BLOCK]
        for start in range(0, len(pictures), PICTURES_A_BLOCK)
    ]
    videos = [[number] for number, one in enumerate(inputs) if one.kind == "video"]
    jobs = []
    for numbers in sorted(blocks + videos):
        chosen = tuple(inputs[number] for number in numbers)
        marks = [mark_source(one.path) for one in chosen]
        source = hashlib.sha256("\n".join(map(str, marks)).encode()).hexdigest()
        jobs.append(Job(numbers[0], chosen, source, None in marks))
    return jobs


class FacePlan:
    """The units of work that are left in a folder of faces.

    Args:
        folder: The folder.
        inputs: All its inputs.
        settings: Of the run.
    """

    def __init__(self, folder: Path, inputs: Sequence[Input], settings: FaceSettings) -> None:
        self._folder, self._settings = folder, settings
        self._jobs = list_jobs(inputs)

    def withdraw_stale(self) -> None:
        """Delete units of inputs that were replaced since."""
        units, commits = read_units(self._folder), open_commits(self._folder)
        by_number: dict[str, list[Unit]] = {}
        for unit in units.values():
            by_number.setdefault(unit.unit.split("-")[1], []).append(unit)
        for job in self._jobs:
            if job.is_done(units):
                continue
            for unit in by_number.get(f"{job.number:06d}", ()):
                if unit.unit == job.done or unit.source != job.source:
                    commits.withdraw(f"{unit.unit}.json")

    def is_done(self) -> bool:
        """Whether every input is finished."""
        units = read_units(self._folder)
        return all(job.is_done(units) for job in self._jobs)

    def scans(self) -> list[Task]:
        """Videos whose frames are not known yet."""
        units = read_units(self._folder)
        return [
            self._task(job, job.scan, "scan")
            for job in self._jobs
            if job.is_video and not job.is_done(units) and job.scan not in units
        ]

    def parts(self) -> tuple[list[Task], int]:
        """Segments of videos and blocks of pictures that are not cut out yet.

        Returns:
            The tasks, and how many frames and pictures were finished before.
        """
        units, tasks, earlier = read_units(self._folder), list[Task](), 0
        for job in self._jobs:
            if job.is_done(units):
                earlier += sum(fact.frames for fact in units[job.done].inputs)
                continue
            for task in self._segments(job, units) if job.is_video else [self._block(job)]:
                if task.unit in units:
                    earlier += task.size
                else:
                    tasks.append(task)
        return tasks, earlier

    def joins(self) -> list[Task]:
        """Videos all of whose segments are cut out."""
        units, tasks = read_units(self._folder), list[Task]()
        for job in self._jobs:
            if job.is_video and not job.is_done(units):
                parts = tuple(task.unit for task in self._segments(job, units))
                tasks.append(self._task(job, job.done, "join", scan=job.scan, parts=parts))
        return tasks

    def _block(self, job: Job) -> Task:
        return self._task(job, job.done, "pictures")

    def _segments(self, job: Job, units: dict[str, Unit]) -> list[Task]:
        """The segments of a video; none if it cannot be opened."""
        if (scan := read_scan(self._folder, _find(self._folder, units, job.scan))) is None:
            return []
        return [
            self._task(
                job,
                f"part-{job.number:06d}-{part:04d}",
                "part",
                scan=job.scan,
                first=first,
                stop=stop,
            )
            for part, (first, stop) in enumerate(cut_segments(scan, self._settings.segment_frames))
        ]

    def _task(self, job: Job, unit: str, kind: Any, **more: Any) -> Task:
        shared: dict[str, Any] = {"inputs": job.inputs, "source": job.source}
        return Task(unit=unit, kind=kind, settings=self._settings, **shared, **more)


def finished_units(folder: Path, inputs: Sequence[Input]) -> list[Unit]:
    """The unit that finished each video and each block of pictures, by number."""
    units = read_units(folder)
    return [_find(folder, units, job.done) for job in list_jobs(inputs)]


def _find(folder: Path, units: dict[str, Unit], name: str) -> Unit:
    """A unit that a task has just finished, maybe on another machine.

    Raises:
        RaffectError: If this machine does not see it.
    """
    if name not in units:
        why = "not there after its task has finished; on a cluster every machine must see --out"
        raise RaffectError(f"{folder}: {name}: {why} under this very path (shared storage)")
    return units[name]


def require_own(folder: Path) -> None:
    """Raise if a folder without settings of `raffect faces` holds what a run would replace.

    Raises:
        RaffectError: Names it.
    """
    if (folder / "settings.json").exists():
        return
    folders = [folder / name for name in (*FOLDERS, "commits", "inputs")]
    taken = [f"{one}/" for one in folders if one.is_dir() and any(one.iterdir())]
    taken += [str(folder / name) for name in _RESULTS if (folder / name).exists()]
    if taken:
        what = "is not of `raffect faces`, which would write into it"
        raise RaffectError(f"--out {folder}: {taken[0]} {what}; name a new folder")


def sweep(folder: Path) -> None:
    """Delete what a finished run does not need, and what a killed one left: crops show faces.

    Of our own files only records of finished inputs and what those name stay, and nothing
    unfinished. Files with other names are the user's.
    """
    units, commits = read_units(folder), open_commits(folder)
    for name in list(units):
        if not name.startswith("done-"):
            commits.withdraw(f"{name}.json")
            del units[name]
    named = {file for unit in units.values() for file in unit.files}
    for below in FOLDERS:
        found = [name for name in list_sizes(folder / below) if _FILE.fullmatch(name)]
        paths = (f"{below}/{name}" for name in found)
        commits.delete(path for path in paths if path not in named)
    for below in ("", "attempts", "commits", "inputs", "running", *FOLDERS):
        names = [name for name in list_sizes(folder / below) if _UNFINISHED.fullmatch(name)]
        commits.delete(f"{below}/{name}" if below else name for name in names)
