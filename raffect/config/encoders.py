"""Settings of encoders, and of the commands about their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from raffect.errors import require

EMBEDDED_MODEL = "raffect-faces"
TIMM_PREFIX = "timm:"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which frozen image tower makes the features."""

    model: str = "ViT-L-14-quickgelu"
    """Name of an open_clip model (`raffect models list`), of one of timm's image towers
    (timm:vit_base_patch14_dinov2.lvd142m), or raffect-faces, the small encoder that ships with
    raffect."""
    weights: str = "openai"
    """Tag (openai, laion2b_s32b_b82k ...), local file (.safetensors, .pt, .bin), random:SEED, or
    embedded, which raffect-faces has without being asked. A timm model's tag is in its name."""
    precision: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Arithmetic; auto is float16 on CUDA and float32 on a CPU. bfloat16 is several times faster
    on CPUs with AMX and less exact; on a CPU without AVX-512 it is slower. Features are stored
    as float16 in any case."""
    batch_size: int = 0
    """Pictures per encoder step; 0 is 256 on CUDA and 8 on a CPU. The last batch is filled up to
    this size."""
    compile: bool = False
    """Compile the tower with torch.compile: slower to start and faster on CUDA; the last bits of
    the features change."""
    image_size: int = 0
    """Side of the encoder's input in pixels, of timm models: a multiple of the patch size. 0 is the
    model's own, but for DINOv2 224. It decides the features, so a bank has one size."""
    view: str = ""
    """What the encoder sees: all of its input, mirrored (flip), or the centre of it
    (crop:0.8: 80 % of each side). Each view is a bank of its own, with the same keys."""

    def __post_init__(self) -> None:
        require(
            bool(self.model),
            "--encoder.model: empty, expected an open_clip model name; see `raffect models list`",
        )
        require(
            bool(self.weights),
            "--encoder.weights: empty, expected a tag, a file, random:SEED or embedded",
        )
        require(
            0 <= self.batch_size <= 65536,
            f"--encoder.batch-size {self.batch_size}: expected 0 (choose for me) to 65536",
        )
        require(
            self.image_size == 0 or 16 <= self.image_size <= 4096,
            f"--encoder.image-size {self.image_size}: expected 0 (the model's own) or 16 to 4096",
        )
        if self.view not in ("", "flip"):
            object.__setattr__(self, "view", f"crop:{_crop_share(self.view):g}")
        # The default is a tag of other models; the embedded encoder's own weights are its only tag
        if self.model == EMBEDDED_MODEL and self.weights == EncoderConfig.weights:
            object.__setattr__(self, "weights", "embedded")
        # A timm model is named with its tag
        tag = self.model.partition(".")[2] if self.model.startswith(TIMM_PREFIX) else ""
        if tag and self.weights == EncoderConfig.weights:
            object.__setattr__(self, "weights", tag)


def _crop_share(view: str) -> float:
    """The share of each side that ``crop:SHARE`` keeps."""
    match = re.fullmatch(r"crop:(0?\.[0-9]{1,4})", view)
    share = float(match[1]) if match else 0.0
    require(
        0.1 <= share < 1,
        f"--encoder.view {view}: expected flip, or crop: and a share of 0.1 to 1, e.g. crop:0.8",
    )
    return share


@dataclass(frozen=True, kw_only=True)
class ModelsListConfig:
    """List encoders: open_clip models, their weight tags, and which weights are on this machine.

    Example: `raffect models list --pattern ViT-L-14`
    """

    pattern: str = ""
    """Only models whose name contains this text."""
    present: bool = False
    """Only weights that are on this machine."""


@dataclass(frozen=True, kw_only=True)
class ModelsPathConfig:
    """Print the file that holds an encoder's weights, or where to put it.

    Example: `raffect models path --encoder.model ViT-B-32 --encoder.weights laion2b_s34b_b79k`
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, kw_only=True)
class ModelsPullConfig:
    """Download an encoder's weights; raffect never downloads anything otherwise.

    Example: `raffect models pull --encoder.model ViT-B-32-quickgelu`
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True, kw_only=True)
class ModelsVerifyConfig:
    """Load an encoder's weights, check that all are there and finite, print their fingerprint.

    Example: `raffect models verify --encoder.model raffect-faces`
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
