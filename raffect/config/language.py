"""Settings of the commands that work with texts or few labels on a bank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raffect.errors import require


@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig:
    """Recognise classes or labels by texts alone: every prompt set becomes a head of a run folder,
    which evaluate and report take like any other. Nothing is trained.

    Example: `raffect zeroshot --task expr --bank bank --labels data --prompts all --out
    runs/zeroshot`

    Or: `raffect zeroshot --task au --bank bank --labels data --prompts facs mine.toml --out
    runs/zeroshot-au`
    """

    bank: Path
    """Bank of `raffect extract`, of a CLIP model."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote; a table with
    video, start and end instead of frame is judged clip by clip."""
    out: Path
    """Run folder, a new one."""
    prompts: tuple[str, ...] = ("all",)
    """Prompt sets: TOML files, names of those that ship with raffect, or all of these that have the
    classes (docs/language.md)."""
    task: str = ""
    """Name of the label table, such as expr or au; needed where --labels holds several."""
    ensemble: tuple[Literal["vectors", "logits"], ...] = ("vectors",)
    """How prompts of a class go together: the mean of their vectors, divided by its norm as in
    open_clip, or the mean of their logits; both are compared if both are given."""
    other: Literal["never", "threshold"] = "never"
    """When a class without prompts (Other) is predicted: never, or below a threshold on the largest
    similarity, which is chosen on the training split."""
    against: Literal["rest", "mean"] = "rest"
    """What a label such as AU12 is compared with: texts of a face at rest, or the mean of the texts
    of all other labels."""
    select: Literal["cv", "none"] = "cv"
    """cv: the prompt set is chosen on held-out folds of the training split. none: needs no training
    split, and chooses nothing."""
    folds: int = 5
    """Folds of whole videos for --select cv."""
    weights: str = ""
    """File or tag of the encoder's weights; by default as the bank names them. They must be those
    that made the bank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compare features with texts."""
    allow_incomplete: bool = False
    """Judge on a bank that lacks planned frames. Every score is then marked as such."""

    def __post_init__(self) -> None:
        require(bool(self.prompts), "--prompts: expected all, or one prompt set or more")
        require(bool(self.ensemble), "--ensemble: expected vectors, logits or both")
        require(2 <= self.folds <= 100, f"--folds {self.folds}: expected 2 to 100")
        require(
            self.other == "never" or self.select == "cv",
            "--other threshold: is chosen on the training split; leave --select none out",
        )
