"""What makes a head: every setting of a training run, with its check and its default.

The defaults are the paper's (Lin et al. 2024, section III-A); what the paper does not state is as
in its released code.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from raffect.errors import require
from raffect.storage.records import Record

MOST_WIDTH, MOST_DEPTH, MOST_WINDOW, MOST_EPOCHS = 65_536, 32, 1024, 100_000
MOST_ATTENTION_HEADS = 256
"""Bounds of a recipe, and of what the file of a head may claim; such files can be hostile."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Record):
    """Which module a head is. An MLP has hidden blocks Linear -> BatchNorm -> ReLU -> Dropout, then
    one Linear; the others read windows or learn to compare with texts.
    """

    kind: Literal["mlp", "temporal", "emoclip-released", "projection", "pooled", "prompts"] = "mlp"
    """mlp: one feature in. temporal: a transformer over a window of features. emoclip-released: the
    temporal head of EmoCLIP's code. projection: one linear map of a feature, or of the mean of a
    window, as Exp-CLIP's. pooled: the mean of normalised features, which learns a scale alone.
    prompts: learnt tokens of prompts, by `raffect learn-prompts` alone."""
    width: int = 0
    """Units of a hidden block, or of a temporal head's layers; 0 is as many as the feature has (768
    for ViT-L/14)."""
    depth: int = 3
    """Hidden blocks of an MLP; 0 is a linear probe, which has neither BatchNorm nor dropout."""
    layers: int = 2
    """Layers of a temporal head."""
    attention_heads: int = 8
    """Attention heads of each of them."""
    window: int = 1
    """Features of a sample: 1 is a frame, or the mean of a clip; more are a window around a frame,
    or as many frames of a clip, evenly spread."""
    stride: int = 1
    """Frames from one feature of a window around a frame to the next."""
    pool: Literal["mean", "centre"] = "mean"
    """What a temporal head adds to: the mean of a window's normalised features, or the one in its
    centre."""
    snippets: int = 0
    """Parts of a window that a temporal head looks at one by one, then together (Liu et al. 2023);
    0 looks at all features at once."""
    tokens: int = 4
    """Learnt tokens of a prompt; 0 is as many as the prompts of --start have."""
    descriptors: int = 5
    """Learnt prompts of a class, of which the one most like an image counts."""
    dropout: float = 0.6
    """Share of hidden units that dropout drops; not stated in the paper, 0.6 in its code."""
    init: Literal["he", "torch"] = "he"
    """he: He-uniform weights and zero biases; torch: the defaults of torch.nn.Linear."""
    normalise: Literal["none", "l2"] = "none"
    """l2: divide each feature by its norm first, as CLIP compares them; none: leave it as it is."""

    def __post_init__(self) -> None:
        require(
            0 <= self.width <= MOST_WIDTH,
            f"head.width {self.width}: expected 0 (as the feature) to {MOST_WIDTH}",
        )
        require(
            0 <= self.depth <= MOST_DEPTH,
            f"head.depth {self.depth}: expected 0 (a linear probe) to {MOST_DEPTH}",
        )
        require(
            0 <= self.dropout < 1, f"head.dropout {self.dropout}: expected 0 or more, less than 1"
        )
        self._check_windows()

    def _check_windows(self) -> None:
        """Check what heads of windows and of prompts are made of."""
        for name, most in (
            ("layers", MOST_DEPTH),
            ("attention_heads", MOST_ATTENTION_HEADS),
            ("window", MOST_WINDOW),
            ("stride", MOST_WINDOW),
            ("descriptors", MOST_WINDOW),
        ):
            value = getattr(self, name)
            shown = f"head.{name.replace('_', '-')} {value}"
            require(1 <= value <= most, f"{shown}: expected 1 to {most}")
        require(
            0 <= self.tokens <= MOST_WINDOW,
            f"head.tokens {self.tokens}: expected 1 to {MOST_WINDOW}, or 0 with --start",
        )
        require(
            self.kind not in ("mlp", "prompts") or self.window == 1,
            f"head.window {self.window}: a head of kind {self.kind} reads one feature; "
            "expected 1, or head.kind temporal",
        )
        require(
            self.snippets == 0 or (self.kind == "temporal" and self.window % self.snippets == 0),
            f"head.snippets {self.snippets}: expected 0, or for head.kind temporal a divisor of "
            f"head.window ({self.window})",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig(Record):
    """Cross-entropy of classes, binary cross-entropy of labels or squared error of values, and CVaR
    of it: the mean of the worst share.
    """

    name: Literal["default", "ccc"] = "default"
    """default: the loss of the kind of task. ccc, for values only: 1 - CCC of the batch, the mean
    over the values; needs loss.alpha 1."""
    alpha: float = 0.3
    """CVaR's tail share of each batch, in (0, 1]: 1 is the plain mean; near 0 only the worst frame
    counts."""
    tail_over: Literal["units", "frames"] = "units"
    """For labels such as AU: the tail is taken over the (frame, unit) pairs of a batch, as in the
    released code, or over its frames."""
    weighting: Literal["none", "inverse", "effective"] = "none"
    """Class weights: none, inverse frequency, or effective number (Cui et al. 2019)."""
    beta: float = 0.9999
    """Beta of the effective number (1 - beta^n) / (1 - beta)."""
    soft_targets: float = 0.0
    """For captions: how far near-duplicates of a sample's caption count as its own, as the
    temperature of their cosines with it; 0 is off, and only equal captions do."""
    order: float = 0.0
    """Weight of a second loss: in which order the snippets of a window stand (Liu et al. 2023);
    needs head.snippets."""
    leave_out: str = ""
    """For captions of classes: class that training, the choice of an epoch and scores leave out;
    `raffect zeroshot --head` judges it. Empty for none."""
    logit_adjustment: float = 0.0
    """Add this many times the log prior to the logits in training (Menon et al. 2021); 0 is off, 1
    is that paper's value."""

    def __post_init__(self) -> None:
        require(
            0 < self.alpha <= 1,
            f"loss.alpha {self.alpha}: expected more than 0 and at most 1 (1 is the plain mean)",
        )
        require(
            self.name != "ccc" or self.alpha == 1,
            "loss.name ccc: a batch has one CCC and so no worst share; "
            f"expected loss.alpha 1, not {self.alpha:g}",
        )
        require(0 <= self.beta < 1, f"loss.beta {self.beta}: expected 0 or more, less than 1")
        require(
            math.isfinite(self.logit_adjustment),
            f"loss.logit-adjustment {self.logit_adjustment}: expected a finite number",
        )
        for name, value in (("soft-targets", self.soft_targets), ("order", self.order)):
            require(value >= 0 and math.isfinite(value), f"loss.{name} {value}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class SamConfig(Record):
    """Sharpness-aware minimisation: the gradient is taken where the loss nearby is highest."""

    rho: float = 0.05
    """Radius (the paper's gamma); 0 is the base optimiser."""
    perturbation: Literal["l2", "sign"] = "l2"
    """l2: rho * g / |g| (Foret et al. 2021, and the released code). sign: rho * sign(g), as eq. (2)
    is printed."""
    independent_dropout: bool = False
    """Draw another dropout mask for the second pass, as the released code does (the paper does not
    mention it)."""

    def __post_init__(self) -> None:
        require(
            self.rho >= 0 and math.isfinite(self.rho),
            f"sam.rho {self.rho}: expected 0 (off) or more",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Record):
    """Adam or SGD, and its rate."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """adam and sgd add weight decay to the gradient, adamw to the weights."""
    lr: float = 1e-3
    """Learning rate at the start."""
    momentum: float = 0.9
    """Of sgd; adam and adamw do not read it."""
    weight_decay: float = 0.0
    """Weight decay."""
    schedule: Literal["cosine", "released", "emoclip-released", "constant"] = "cosine"
    """cosine: down to min_lr at the end. released: T_max = epochs/4, so that the rate goes down and
    up again twice in 32 epochs. emoclip-released: a tenth after epochs 15, 35 and 50 each."""
    min_lr: float = 0.0
    """Lowest rate of the schedule."""

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), f"optim.lr {self.lr}: expected more than 0")
        require(
            0 <= self.min_lr <= self.lr,
            f"optim.min-lr {self.min_lr}: expected 0 to optim.lr ({self.lr})",
        )
        require(
            self.weight_decay >= 0 and math.isfinite(self.weight_decay),
            f"optim.weight-decay {self.weight_decay}: expected 0 or more",
        )
        require(
            0 <= self.momentum < 1,
            f"optim.momentum {self.momentum}: expected 0 or more, less than 1",
        )


@dataclass(frozen=True, kw_only=True)
class TextConfig(Record):
    """Texts that a zero-shot head is made of: `raffect zeroshot` sets these, training has none."""

    prompts: str = ""
    """Prompt set of a zero-shot head; empty for heads that are trained."""
    ensemble: Literal["vectors", "logits"] = "vectors"
    """How prompts of a class go together: the mean of their vectors, divided by its norm, or the
    mean of their logits."""
    other: Literal["never", "threshold"] = "never"
    """When a class without prompts (Other) is predicted: never, or below a threshold on the largest
    similarity, which is chosen on the training split."""
    against: Literal["rest", "mean"] = "rest"
    """What a label such as AU12 is compared with: texts of a face at rest, or the mean of the texts
    of all other labels."""
    head: str = ""
    """Run whose trained heads the texts are compared through; empty for features as they are."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """Everything that decides a head, apart from the data."""

    task: str = ""
    """Name of the label table, such as expr, au or va; needed where --labels holds several."""
    seed: int = 0
    """Initial weights, order of frames and dropout follow from it."""
    epochs: int = 32
    """Passes over the training split."""
    batch_size: int = 32
    """Frames per step, over all workers; an epoch's last incomplete batch is left out."""
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sam: SamConfig = field(default_factory=SamConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    text: TextConfig = field(default_factory=TextConfig)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by dotted name."""
        return flatten(self)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, f"seed {self.seed}: expected 0 to 2147483647")
        require(
            1 <= self.epochs <= MOST_EPOCHS, f"epochs {self.epochs}: expected 1 to {MOST_EPOCHS}"
        )
        require(
            self.batch_size >= 2,
            f"batch-size {self.batch_size}: expected 2 or more, "
            "since BatchNorm needs the spread within a batch",
        )
        require(
            self.loss.order == 0 or self.head.snippets > 1,
            f"loss.order {self.loss.order:g}: is about the order of snippets; expected 0, or "
            "head.snippets 2 or more",
        )


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Settings of a recipe by dotted name, in order, without what a subclass adds."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(Recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            flat |= {
                f"{item.name}.{inner.name}": getattr(value, inner.name)
                for inner in dataclasses.fields(value)
            }
        else:
            flat[item.name] = value
    return flat
