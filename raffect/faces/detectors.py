"""Detectors: a picture becomes boxes, scores, and the eyes where a detector finds them.

All of them have one method, ``detect(rgb, frame)``. Weights are the user's own file (YuNet), or
come with OpenCV (Haar cascades). OpenCV is imported when a detector is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raffect.config import FacesConfig
from raffect.errors import RaffectError, how_to_add
from raffect.faces.boxes import file_name, find_all, read_boxes
from raffect.faces.records import DetectorName, FaceSettings
from raffect.faces.tracks import FIELDS
from raffect.storage.paths import printable

_CASCADE = "haarcascade_frontalface_alt2.xml"
_NEIGHBOURS = 5
_HALF_SCORE = 10
"""Overlapping hits of the cascade at which the score of a face is one half."""
_LEAST_YUNET = 0.3
_SMALLEST = 20
"""Smallest face in pixels that a cascade knows."""


class Detector(Protocol):
    """What finds faces."""

    def detect(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """Faces in a picture.

        Args:
            rgb: The picture, uint8 (height, width, 3), upright.
            frame: Its number, from 1.

        Returns:
            float64 (faces, `raffect.faces.tracks.FIELDS`), in pixels of ``rgb``.
        """
        ...


def choose_detector(config: FacesConfig) -> tuple[DetectorName, str]:
    """The detector that a configuration means, and why it is that one.

    Files go by their names: pages that are handed on state the reason, and folders are private.
    """
    if config.detector != "auto":
        return config.detector, f"--detector {config.detector}"
    if config.boxes is not None:
        return "boxes", f"boxes of {config.boxes.absolute().name}"
    if config.detector_model is not None:
        return "yunet", f"--detector-model {config.detector_model.name}"
    return "haar", "neither --boxes nor --detector-model; the one whose weights come with OpenCV"


def require_detector(settings: FaceSettings, inputs: Sequence[Path] = ()) -> str:
    """Load a detector, to see that its packages and its file are there.

    Args:
        settings: Of the run.
        inputs: What faces are looked for in.

    Returns:
        How many inputs a table of boxes does not name; empty if there is no such input or table.

    Raises:
        RaffectError: If they are not, the boxes are of none of the inputs, or of which input boxes
            are is not clear.
    """
    if settings.detector != "boxes":
        load_detector(settings, Path())
        return ""
    file = Path(settings.detector_file)
    lacking = find_all(file, inputs)
    if not lacking:
        return ""
    first = printable(lacking[0])
    if file.is_dir():
        first += f", whose file would be {printable(file_name(lacking[0]))}"
    return f"no row for {len(lacking):,} of {len(inputs):,} inputs, the first is {first}"


def load_detector(settings: FaceSettings, path: Path) -> Detector:
    """The detector for an input.

    Args:
        settings: Of the run.
        path: The input, by which a table of boxes is searched.

    Raises:
        RaffectError: If a package or the detector's file is missing.
    """
    match settings.detector:
        case "boxes":
            return read_boxes(Path(settings.detector_file)).of(path)
        case "yunet":
            model = Path(settings.detector_file)
            return _load_yunet(model, settings.detect_side, settings.min_face)
        case "haar":
            return _load_haar(settings.detect_side, settings.min_face)
        case _:
            return WholePicture()


class WholePicture:
    """Takes the whole picture as one face."""

    def detect(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """One box, the picture itself."""
        return as_rows(np.array([[0, 0, rgb.shape[1], rgb.shape[0]]]), np.ones(1))


class Haar:
    """OpenCV's cascade for frontal faces.

    The score is hits / (hits + 10), where hits are the windows that overlap in a face; a false box
    has few of them. It is not a probability.
    """

    def __init__(self, side: int, min_face: int) -> None:
        cv2 = _import_cv2()
        self._side, self._min_face = side, min_face
        self._cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, _CASCADE))

    def detect(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """Boxes, which are square."""
        cv2 = _import_cv2()
        small, scale = shrink(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), self._side)
        least = max(_SMALLEST, round(self._min_face * scale))
        boxes, hits = self._cascade.detectMultiScale2(
            small, scaleFactor=1.1, minNeighbors=_NEIGHBOURS, minSize=(least, least)
        )
        hits = np.asarray(hits, float).reshape(-1)
        return as_rows(np.reshape(boxes, (-1, 4)) / scale, hits / (hits + _HALF_SCORE))


class YuNet:
    """OpenCV's ``FaceDetectorYN`` with a model file of the user."""

    def __init__(self, model: Path, side: int, min_face: int) -> None:
        cv2 = _import_cv2()
        self._side, self._min_face = side, min_face
        try:
            self._net: Any = cv2.FaceDetectorYN.create(
                str(model), "", (320, 320), score_threshold=_LEAST_YUNET
            )
        except cv2.error as error:
            what = str(error).splitlines()[0][-120:]
            raise RaffectError(
                f"--detector-model {model}: not a YuNet model that OpenCV reads ({what}); "
                "expected face_detection_yunet_*.onnx of its model zoo"
            ) from error

    def detect(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """Boxes and eyes."""
        cv2 = _import_cv2()
        small, scale = shrink(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), self._side)
        self._net.setInputSize(small.shape[1::-1])
        _, faces = self._net.detect(small)
        found = np.empty((0, 15)) if faces is None else np.asarray(faces, float)
        # Box, eyes, nose and the corners of the mouth; a person's right eye is on the left.
        found[:, :14] /= scale
        found = found[found[:, 2:4].max(1) >= self._min_face]
        return as_rows(found[:, :4], found[:, 14], found[:, 4:8])


@lru_cache(1)
def _load_haar(side: int, min_face: int) -> Haar:
    return Haar(side, min_face)


@lru_cache(1)
def _load_yunet(model: Path, side: int, min_face: int) -> YuNet:
    return YuNet(model, side, min_face)


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise RaffectError(
            f"detectors need OpenCV ({error}); on every machine {how_to_add('faces')}, "
            "or bring --boxes of another tool"
        ) from error
    # Threads would share the CPU that a task takes, and change the order of boxes.
    cv2.setNumThreads(1)
    return cv2


def shrink(picture: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """A picture whose longer side is at most ``side`` pixels, and its scale."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1.0:
        return picture, scale
    cv2 = _import_cv2()
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, shape, interpolation=cv2.INTER_AREA), scale


def as_rows(boxes: np.ndarray, scores: np.ndarray, eyes: np.ndarray | None = None) -> np.ndarray:
    """Detections in the columns of `FIELDS`, in an order that depends on them alone.

    Args:
        boxes: x, y, w, h, shape (faces, 4).
        scores: Shape (faces,).
        eyes: x, y of the eye on the left and of that on the right, shape (faces, 4).
    """
    rows = np.full((len(boxes), len(FIELDS)), np.nan)
    rows[:, :4], rows[:, 4] = boxes, np.clip(scores, 0, 1)
    if eyes is not None:
        rows[:, 5:] = eyes
    return rows[np.lexsort(rows[:, 3::-1].T)]


def digest_file(path: Path) -> str:
    """SHA-256 of a detector's file, or over the names and contents of a folder of tables."""
    digest = hashlib.sha256()
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    for file in files:
        try:
            digest.update(file.name.encode(errors="replace") + b"\0" + file.read_bytes())
        except OSError as error:
            raise RaffectError(f"{file}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
