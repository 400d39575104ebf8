"""Settings of the command that hands trained heads on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raffect.config.common import require_local
from raffect.errors import require


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write heads as a folder that other tools read: one file, a record of it and a model card. The
    file is run by the runtime it is for, and compared with what raffect predicts.

    Example: `raffect export --run runs/expr --format onnx --out expr-onnx
    --data-licence "Aff-Wild2's agreement, research only"`
    """

    run: tuple[Path, ...]
    """Run folders of train or tune, or folders of one head each; several for several tasks in one
    file. Heads of one task are averaged; of a sweep those of its main setting."""
    out: Path
    """Folder to write; it must be new or empty."""
    format: Literal["safetensors", "onnx", "pt2"]
    """safetensors: folded weights, which a few lines of numpy read. onnx and pt2 (torch.export): a
    graph. Needs `uv pip install -e '.[export]'` for onnx."""
    data_licence: str = ""
    """Licence of the data that the heads were trained on; a model card must state it."""
    input: Literal["features", "pixels"] = "features"
    """What the file reads: features of the encoder, or uint8 pictures of faces, for which the
    encoder goes into the file too (onnx and pt2)."""
    size: int = 0
    """Side of the pictures in pixels, for pixels: enlarging them is then part of the file. 0 is the
    encoder's own side, which needs no resize."""
    licence: str = "other"
    """Licence of the exported heads by the Hub's name, such as apache-2.0; other refers to that of
    the data."""
    weights_licence: str = ""
    """Licence of the encoder's weights, which a file for pixels holds."""
    weights: str = ""
    """Weights of the encoder, for pixels: a tag or a file; by default those that the heads name."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head: last epoch, best on validation, or the cross-validated epoch."""
    postprocess: str = "auto"
    """Decision rules of `raffect postprocess`: auto takes decision_rules.json of a run where its
    heads are those that are exported; none; or a file of rules for its task."""
    images: Path | None = None
    """Folder of pictures to compare on, for pixels; by default they are drawn at random."""
    num_checked: int = 0
    """Samples to compare on; 0 is 10,000 features or 64 pictures."""

    def __post_init__(self) -> None:
        if isinstance(self.run, Path):
            object.__setattr__(self, "run", (self.run,))
        require(bool(self.run), "--run: expected one run folder, or folder of a head, or more")
        require_local(self, "run", "out", "images")
        require(
            bool(self.data_licence.strip()),
            "--data-licence: not stated; a model card says under which licence the data of its "
            'heads are, such as --data-licence "Aff-Wild2\'s agreement, research only"',
        )
        for name in ("data_licence", "weights_licence"):
            require(
                getattr(self, name).isprintable(),
                f"--{name.replace('_', '-')}: has line ends or signs that are not shown; expected "
                "one line",
            )
        require(
            re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.licence) is not None,
            f"--licence {self.licence}: not the Hub's name of a licence, which has small letters, "
            "digits, dots and hyphens; expected such as apache-2.0, or other",
        )
        for_pixels = {"size": 0, "weights": "", "images": None}
        for name, default in for_pixels.items():
            require(
                self.input == "pixels" or getattr(self, name) == default,
                f"--{name}: is for pictures; leave it out, or add --input pixels",
            )
        require(
            self.input == "features" or self.format != "safetensors",
            "--format safetensors: holds weights of heads alone; expected onnx or pt2 with "
            "--input pixels",
        )
        require(
            self.size == 0 or 8 <= self.size <= 4096,
            f"--size {self.size}: expected 0 (the encoder's own) or 8 to 4096",
        )
        require(
            0 <= self.num_checked <= 1_000_000,
            f"--num-checked {self.num_checked}: expected 0 (choose for me) to 1,000,000",
        )
