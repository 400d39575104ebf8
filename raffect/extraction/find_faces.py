"""`raffect faces`: pictures and videos become crops of faces, on one machine or a Ray cluster.

    inputs ─ scan (packets) ─ cut at key frames ─ parts (detect, follow, crop) ─ join (tracks)
                                                  blocks of pictures ──────────┘
             ─ manifest, faces.parquet, inputs.csv, faces.png

Each of the three steps is a dataset of units that are committed one by one (`raffect.faces.work`),
so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffect.bank.running import note_of_run
from raffect.config import FacesConfig
from raffect.datasets.problems import Ignored, Problem, problem_lines, write_problems
from raffect.extraction.face_units import run_units
from raffect.faces.detectors import choose_detector, digest_file, require_detector
from raffect.faces.inputs import add_inputs, kind_of, list_inputs
from raffect.faces.plan import FacePlan, finished_units, require_own, sweep
from raffect.faces.records import FaceSettings, Input, InputFacts, read_settings
from raffect.faces.results import write_results
from raffect.faces.table import STATUSES, read_faces
from raffect.faces.video import require_av
from raffect.progress import Progress, format_seconds, stage
from raffect.ray_session.session import ray_session
from raffect.storage.atomic import require_writable, write_if_absent


@dataclass(frozen=True, kw_only=True)
class FacesResult:
    """What was found.

    Attributes:
        manifest: The manifest of the crops, for `raffect extract`; None if no face was found.
        faces: ``faces.parquet`` (`raffect.faces.table.SCHEMA`).
        inputs_file: ``inputs.csv``, a row an input.
        problems_file: ``problems.csv``.
        sheet: ``faces.png``, a sample of the crops; None if no face was found.
        detector: ``boxes``, ``yunet``, ``haar`` or ``none``.
        reason: Why this detector.
        margin: Border around a box that the crops have, as a share of its side.
        inputs: What became of each input.
        counts: Rows of ``faces.parquet`` by status.
        crops: Crops in the manifest.
        problems: What was wrong with inputs.
        ignored: Files of folders that are neither pictures nor videos.
        done: Units of work that this run did; 0 if it found everything done.
        seconds: What this run took.
    """

    manifest: Path | None
    faces: Path
    inputs_file: Path
    problems_file: Path
    sheet: Path | None
    detector: str
    reason: str
    margin: float
    inputs: tuple[InputFacts, ...]
    counts: Mapping[str, int]
    crops: int
    problems: tuple[Problem, ...]
    ignored: Ignored
    done: int
    seconds: float

    def lines(self) -> list[str]:
        """The result as lines of text."""
        kinds = [one.kind for one in self.inputs]
        lines = [
            f"detector: {self.detector} ({self.reason}); crops have a margin of {self.margin:g}",
            f"inputs: {kinds.count('picture'):,} pictures, {kinds.count('video'):,} videos",
            *self.ignored.lines("inputs"),
        ]
        # What was found
        faces = sum(one.faces for one in self.inputs)
        counts = ", ".join(f"{self.counts.get(status, 0):,} {status}" for status in STATUSES)
        lines.append(f"faces: {faces:,} in {self.crops:,} crops; rows by status: {counts}")
        if self.problems:
            count = f"{len(self.problems):,}"
            lines.append(f"problems: {count}, all in {self.problems_file}; the first of each kind:")
            lines += problem_lines(self.problems)
        # What was written, and the next command
        what = "nothing to do" if not self.done else f"done in {format_seconds(self.seconds)}"
        lines.append(f"{what}; wrote {self.faces} and {self.inputs_file}")
        if self.manifest is None:
            return [*lines, "no face was found, so there is nothing to extract"]
        manifest = shlex.quote(str(self.manifest))
        lines.append(f"look at a sample of the crops: {self.sheet}")
        return [*lines, f"next: raffect extract --manifest {manifest} --bank BANK"]

    def to_pandas(self) -> Any:
        """``faces.parquet`` as a data frame."""
        return read_faces(self.faces).to_pandas()


def find_faces(config: FacesConfig) -> FacesResult:
    """Find the faces of pictures and videos, follow them, and cut them out.

    Returns:
        Where the crops and the table of faces are. What a finished run left is used again.

    Raises:
        RaffectError: If no input is found, a package or file of the detector is missing, or
            ``--out`` was made with other settings or holds files of something else.
    """
    # Everything that can be checked is checked before anything is written.
    start, folder = time.perf_counter(), config.out.absolute()
    with stage("listing inputs"):
        listing = list_inputs(config.inputs, folder)
    settings, why = require_usable(config, listing.files)
    if (known := read_settings(folder / "settings.json")) is not None:
        known.require_equal(settings, folder)
    require_own(folder)
    # The run
    require_writable(folder)
    with note_of_run(folder):
        write_if_absent(folder / "settings.json", settings.to_bytes())
        inputs = add_inputs(folder, listing.files)
        done = _do_all(folder, inputs, settings, config)
        # Its results
        sweep(folder)
        with stage("writing tables"):
            units = finished_units(folder, inputs)
            written = write_results(folder, units)
        facts = tuple(fact for unit in units for fact in unit.inputs)
        problems = (*listing.problems, *map(_as_problem, filter(_has_problem, facts)))
        write_problems(problems, folder / "problems.csv")
    return FacesResult(
        manifest=written.manifest,
        faces=written.faces,
        inputs_file=written.inputs,
        problems_file=folder / "problems.csv",
        sheet=written.sheet,
        detector=settings.detector,
        reason=why,
        margin=settings.margin,
        inputs=facts,
        counts=written.counts,
        crops=written.crops,
        problems=problems,
        ignored=listing.ignored,
        done=done,
        seconds=time.perf_counter() - start,
    )


def require_usable(config: FacesConfig, files: Sequence[Path]) -> tuple[FaceSettings, str]:
    """The settings that a configuration means for some inputs, and why it has this detector.

    Raises:
        RaffectError: If a package or the detector's file is missing, or boxes do not go with the
            inputs.
    """
    settings, why = choose_settings(config)
    if lacking := require_detector(settings, files):
        why = f"{why}; {lacking}"
    if any(kind_of(file) == "video" for file in files):
        require_av()
    return settings, why


def choose_settings(config: FacesConfig) -> tuple[FaceSettings, str]:
    """The settings that a configuration means, and why it has this detector.

    Raises:
        RaffectError: If the detector's file cannot be read.
    """
    detector, why = choose_detector(config)
    file = config.boxes or config.detector_model
    # Boxes may be of any frame, and a whole picture needs no looking for.
    every = config.every if detector in ("haar", "yunet") else 1
    settings = FaceSettings(
        detector=detector,
        detector_file=str(file.absolute()) if file else "",
        detector_sha256=digest_file(file) if file else "",
        every=every,
        detect_side=config.detect_side,
        min_face=config.min_face,
        min_score=config.min_score,
        margin=0.0 if detector == "none" else config.margin,
        smooth=config.smooth,
        segment_frames=config.segment_frames,
    )
    return settings, why


def _do_all(
    folder: Path, inputs: Sequence[Input], settings: FaceSettings, config: FacesConfig
) -> int:
    """Do every unit of work that is not finished; how many that were."""
    plan = FacePlan(folder, inputs, settings)
    plan.withdraw_stale()
    if plan.is_done():
        return 0
    with ray_session(config.address):
        done = 0
        # Frames of videos
        scans = plan.scans()
        with Progress("scan", len(scans), "videos") as progress:
            for _ in run_units(scans, folder, config):
                progress.advance(1)
        # Faces
        parts, earlier = plan.parts()
        sizes = {task.unit: task.size for task in parts}
        total = earlier + sum(sizes.values())
        with Progress("faces", total, "frames", earlier=earlier) as progress:
            progress.advance(0)
            for unit in run_units(parts, folder, config):
                progress.advance(sizes[unit.unit])
        # Tracks
        joins = plan.joins()
        with Progress("tracks", len(joins), "videos") as progress:
            for _ in run_units(joins, folder, config):
                progress.advance(1)
        done = len(scans) + len(parts) + len(joins)
    return done


def _has_problem(fact: InputFacts) -> bool:
    return bool(fact.problem)


def _as_problem(fact: InputFacts) -> Problem:
    """A line of ``problems.csv``; damaged inputs are of one kind, wherever they stop."""
    kind = "damaged" if fact.status == "damaged" else ""
    return Problem(fact.input, 0, f"{fact.status}: {fact.problem}", kind)
