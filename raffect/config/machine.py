"""Settings of the commands about this machine: doctor and demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raffect.config.common import require_local
from raffect.config.encoders import EncoderConfig
from raffect.errors import require


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check this machine: versions, GPU, Ray, disk, weights, data; output for a bug report.

    Example: `raffect doctor --data data --bank bank`

    Or, in two minutes on a GPU: `raffect doctor --gpu`
    """

    data: Path | None = None
    """Folder of `raffect prepare` to look at."""
    bank: Path | None = None
    """Bank to look at."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    start_ray: bool = True
    """Also start and stop a local Ray."""
    gpu: bool = False
    """Also check what only a GPU can show: its vectors and training steps against the CPU's, steps
    as a graph against single ones, nccl. With random weights where the encoder's are missing."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run every stage here in about two minutes, with drawn faces and a small encoder.

    Example: `raffect demo --out raffect-demo`
    """

    out: Path = Path("raffect-demo")
    """Folder for data, bank and results; a finished one is used again."""
    frames: int = 6000
    """Faces to draw."""
    seed: int = 0
    """Everything follows from it."""

    def __post_init__(self) -> None:
        require(self.frames >= 400, f"--frames {self.frames}: expected 400 or more")
        require_local(self, "out")
