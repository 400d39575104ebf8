"""`raffect faces`: pictures and videos become crops of faces, on one machine or a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffect.config import FacesConfig
from raffect.faces.table import read_faces


@dataclass(frozen=True, kw_only=True)
class InputFacts:
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
    kind: str
    frames: int
    faces: int
    seconds: float
    width: int
    height: int
    status: str
    problem: str


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
        inputs: What became of each input.
        counts: Rows of ``faces.parquet`` by status.
        crops: Crops in the manifest.
        seconds: What this run took.
    """

    manifest: Path | None
    faces: Path
    inputs_file: Path
    problems_file: Path
    sheet: Path | None
    detector: str
    reason: str
    inputs: tuple[InputFacts, ...]
    counts: Mapping[str, int]
    crops: int
    seconds: float

    def lines(self) -> list[str]:
        """The result as lines of text."""
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """``faces.parquet`` as a data frame."""
        return read_faces(self.faces).to_pandas()


def find_faces(config: FacesConfig) -> FacesResult:
    """Find the faces of pictures and videos, follow them, and cut them out.

    Returns:
        Where the crops and the table of faces are. What a finished run left is used again.

    Raises:
        RaffectError: If no input is found, a package or file of the detector is missing, or
            ``--out`` was made with other settings.
    """
    raise NotImplementedError
