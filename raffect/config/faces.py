"""Settings of `raffect faces`: from people's own pictures and videos to crops of faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from raffect.config.common import require_local
from raffect.errors import require


@dataclass(frozen=True, kw_only=True)
class FacesConfig:
    """Find faces in pictures and videos, follow them, and cut them out for `raffect extract`.

    Run it again after any stop: it works on what is missing.

    Example: `raffect faces holiday.mp4 photos --out faces`

    Or: `raffect faces interviews/*.mov --out faces --boxes openface.csv`
    """

    inputs: Positional[tuple[Path, ...]]
    """Pictures, videos, folders of both at any depth, or patterns such as clips/*.mp4. A name that
    begins with - needs ./ in front."""
    out: Path
    """Folder for manifest.parquet, packed frames, faces.parquet, inputs.csv, problems.csv and
    faces.png. One that holds inputs already gets further ones."""
    detector: Literal["auto", "boxes", "yunet", "haar", "none"] = "auto"
    """auto is boxes with --boxes, yunet with --detector-model, else haar. none takes each whole
    picture as one face."""
    boxes: Path | None = None
    """CSV or Parquet file with the boxes that another tool found, with the columns of OpenFace,
    py-feat or MTCNN tables, or input, frame, x, y, w, h and perhaps score; or a folder with a
    file an input (clip.csv for clip.mp4)."""
    detector_model: Path | None = None
    """ONNX file of YuNet (face_detection_yunet_*.onnx of OpenCV's model zoo)."""
    every: int = 5
    """Detect in each n-th frame of a video, and follow faces in between."""
    detect_side: int = 640
    """Longer side in pixels to which larger pictures are shrunk before detection."""
    min_face: int = 40
    """Side in pixels of the smallest face to look for, in the picture as it is."""
    min_score: float = 0.5
    """Faces with a lower score are kept and marked low_conf."""
    margin: float = 0.13
    """Border around a box on each side, as a share of its longer side. By default crops show what
    the training crops show: a distance between the eyes of 0.31 of the picture."""
    smooth: int = 2
    """Boxes before and after each detection whose mean with it becomes its box; 0 leaves them."""
    segment_frames: int = 750
    """Videos are split at key frames after about this many frames, to be worked on side by side."""
    address: str | None = None
    """Ray cluster: auto (the one this machine belongs to) or an address; it must see inputs and
    --out under the same paths. Without it Ray starts on this machine alone."""
    cpus_per_task: float = 1.0
    """CPUs a task takes, each with one segment or some pictures."""

    def __post_init__(self) -> None:
        require(bool(self.inputs), "INPUT: expected a picture, video, folder or pattern or more")
        require_local(self, "inputs", "out", "boxes", "detector_model")
        _require_detector(self)
        counts = {"every": (1, 1000), "detect_side": (64, 8192), "min_face": (8, 4096)}
        counts |= {"smooth": (0, 50), "segment_frames": (1, 1_000_000)}
        for name, (least, most) in counts.items():
            value, flag = getattr(self, name), name.replace("_", "-")
            require(least <= value <= most, f"--{flag} {value}: expected {least} to {most}")
        ranges = {"min_score": (0, 1), "margin": (-0.4, 2)}
        for name, (low, high) in ranges.items():
            value, flag = getattr(self, name), name.replace("_", "-")
            is_inside = math.isfinite(value) and low <= value <= high
            require(is_inside, f"--{flag} {value}: expected {low} to {high}")
        cpus = self.cpus_per_task
        require(0 < cpus <= 64, f"--cpus-per-task {cpus}: expected more than 0, at most 64")


def _require_detector(config: FacesConfig) -> None:
    """Refuse a detector without its file, and a file without its detector."""
    needs = {
        "boxes": ("--boxes", config.boxes),
        "yunet": ("--detector-model", config.detector_model),
    }
    for name, (flag, file) in needs.items():
        if config.detector == name:
            require(file is not None, f"--detector {name}: expected a file in {flag}")
        elif config.detector != "auto":
            require(file is None, f"{flag} {file}: --detector {config.detector} reads no such file")
    both = config.boxes is not None and config.detector_model is not None
    require(not both, "--boxes and --detector-model: expected one of them")
