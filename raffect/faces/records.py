"""The JSON files in the folder of `raffect faces`: its settings, its inputs, its finished units."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from annotated_types import Ge, Len, MinLen

from raffect.errors import RaffectError
from raffect.storage.commits import Commits, content_name
from raffect.storage.records import Count, Record

Sha256 = Annotated[str, Len(64, 64)]
Kind = Literal["picture", "video"]
DetectorName = Literal["boxes", "yunet", "haar", "none"]
_REMEDY = "run `raffect faces` into a new --out"
FOLDERS = ("scans", "parts", "links", "frames", "tables")
"""Folders with the files of units."""
_RECORD = re.compile(r"[a-z]+-[0-9-]{6,24}\.json", re.A)


@dataclass(frozen=True, kw_only=True)
class FaceSettings(Record):
    """What decides the crops of an input; the same for all inputs of a folder.

    Attributes:
        format: Of the folder.
        detector: ``boxes``, ``yunet``, ``haar`` or ``none``.
        detector_file: Its file; informative, not compared.
        detector_sha256: SHA-256 of that file; empty if it has none.
        every: Detection in each n-th frame.
        detect_side: Longer side of pictures for detection.
        min_face: Smallest face in pixels.
        min_score: Least score of a face that is ``ok``.
        margin: Border around a box, as a share of its side.
        smooth: Steps before and after in the mean of a box.
        segment_frames: Frames of a segment.
    """

    format: Literal[1] = 1
    detector: DetectorName
    detector_file: str
    detector_sha256: str
    every: Annotated[int, Ge(1)]
    detect_side: Annotated[int, Ge(1)]
    min_face: Annotated[int, Ge(1)]
    min_score: float
    margin: float
    smooth: Count
    segment_frames: Annotated[int, Ge(1)]

    def require_equal(self, other: FaceSettings, folder: Path) -> None:
        """Raise unless ``other`` gives the same crops.

        Raises:
            RaffectError: Names every difference.
        """
        same = dataclasses.replace(other, detector_file=self.detector_file)
        differences = [
            f"{field.name.replace('_', '-')} {getattr(self, field.name)} against "
            f"{getattr(same, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(same, field.name)
        ]
        if differences:
            what = "; ".join(differences)
            raise RaffectError(
                f"{folder}: was made with other settings; there against now: {what}; "
                "use those or a new --out"
            )


@dataclass(frozen=True, kw_only=True)
class Input(Record):
    """A picture or a video.

    Attributes:
        name: Safe and unique name, with which the names of its tracks begin.
        kind: ``picture`` or ``video``.
        place: Its absolute path, percent-encoded, since names need not be UTF-8.
        given: The path as the user gave it, likewise.
    """

    name: Annotated[str, MinLen(1)]
    kind: Kind
    place: str
    given: str

    @property
    def path(self) -> Path:
        """Its absolute path."""
        return Path(os.fsdecode(unquote_to_bytes(self.place)))

    @property
    def shown(self) -> str:
        """The path as the user gave it, with bytes that are not UTF-8 as escapes."""
        return unquote_to_bytes(self.given).decode("utf-8", "backslashreplace")


def to_text(path: Path) -> str:
    """A path as text of a record, from which `Input` makes the path again."""
    return quote_from_bytes(os.fsencode(path))


@dataclass(frozen=True, kw_only=True)
class InputList(Record):
    """Inputs that a run added; lists follow one another and are never changed.

    Attributes:
        first: Number of the first one, from 0.
        inputs: They themselves.
    """

    first: Count
    inputs: tuple[Input, ...]


@dataclass(frozen=True, kw_only=True)
class InputFacts(Record):
    """What became of an input; a row of ``inputs.csv``.

    Attributes:
        input: Path as the user gave it; bytes that are not UTF-8 are shown as ``\\xff``.
        name: Safe and unique name, with which the names of its tracks begin.
        kind: ``picture`` or ``video``.
        frames: Frames in it; 1 for a picture, 0 if it cannot be opened.
        faces: Tracks found in it.
        seconds: From the first frame to the last one; 0 for a picture.
        width: Of the picture as it is displayed, in pixels; 0 if it cannot be opened.
        height: Of the picture as it is displayed, in pixels.
        status: ``ok``, ``no_face``, ``damaged`` (a part could be read) or ``unreadable``.
        problem: Why it is damaged or unreadable, and where it stopped; empty if it is neither.
    """

    input: str
    name: str
    kind: Kind
    frames: Count
    faces: Count
    seconds: float
    width: Count
    height: Count
    status: Literal["ok", "no_face", "damaged", "unreadable"]
    problem: str


@dataclass(frozen=True, kw_only=True)
class Unit(Record):
    """A finished unit of work.

    Attributes:
        unit: Its name: ``scan-``, ``part-`` or ``done-`` with the number of its input or of the
            first of its pictures, and that of its segment.
        source: Digest of the input's size and time, which tell whether it was replaced.
        files: Path of each file relative to the folder -> (size in bytes, SHA-256).
        inputs: What became of its inputs, once that is known.
        counts: Rows of its table by status, once they are known.
    """

    unit: str
    source: Sha256
    files: Mapping[str, tuple[Count, Sha256]]
    inputs: tuple[InputFacts, ...] = ()
    counts: Mapping[str, Count] = dataclasses.field(default_factory=dict)

    def file(self, folder: str) -> tuple[str, str] | None:
        """Path and SHA-256 of its file in a folder; None if it has none there."""
        for name, (_, sha256) in self.files.items():
            if name.startswith(f"{folder}/"):
                return name, sha256
        return None


def parse_unit(name: str, content: bytes) -> Unit | None:
    """The record in a file; None if it is damaged, and its unit is then worked on again.

    Its files must be those of such a unit, so that no file outside the folder is touched.
    """
    try:
        record = Unit.from_json(content, name, "run `raffect faces` again")
    except RaffectError:
        return None
    names = {
        content_name(folder, record.unit, sha256)
        for folder in FOLDERS
        for _, sha256 in record.files.values()
    }
    return record if name == f"{record.unit}.json" and names >= set(record.files) else None


def open_commits(folder: Path) -> Commits[Unit]:
    """The records of a folder of faces."""
    return Commits(folder, _RECORD, parse_unit)


def read_units(folder: Path) -> dict[str, Unit]:
    """Finished units by name."""
    return {record.unit: record for record in open_commits(folder).read_all(FOLDERS)}


def mark_source(path: Path) -> str | None:
    """Digest of a file's size and time, which change when it is replaced; None if it is gone."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return hashlib.sha256(f"{info.st_size} {info.st_mtime_ns}".encode()).hexdigest()


def read_settings(file: Path) -> FaceSettings | None:
    """The settings of a folder of faces; None if it has none.

    Raises:
        RaffectError: If they are damaged.
    """
    try:
        return FaceSettings.from_json(file.read_bytes(), file, _REMEDY)
    except FileNotFoundError:
        return None
