"""What makes a head: every setting of a training run by its dotted name, and recipes as TOML.

The same dotted names are flags (``--loss.alpha 0.2``), keys of a recipe, axes of a sweep and
columns of its results. Every value is checked. The defaults are the paper's (Lin et al. 2024,
section III-A); what the paper does not state is as in its released code.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from raffect.errors import RaffectError, require
from raffect.storage.records import Record

RECIPES = Path(__file__).parent / "recipes"
R = TypeVar("R", bound="Recipe")
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


# All settings by dotted name

DEFAULTS = flatten(Recipe())
"""Every setting's default by dotted name."""
NAMES = tuple(DEFAULTS)
"""All dotted names."""
PLAIN_ERM: dict[str, Any] = {
    "loss.alpha": 1.0,
    "sam.rho": 0.0,
    "loss.weighting": "none",
    "loss.logit_adjustment": 0.0,
}
"""Empirical risk minimisation: the mean of the losses as they are, without CVaR, SAM, class weights
or logit adjustment."""

# The first run folders had other words. A recipe's digest, and so a head's name, is made of those.
_FIRST_NAMES = {
    "loss.tail_over": "loss.granularity",
    "sam.independent_dropout": "sam.redraw_dropout",
    "heads_per_trial": "members_per_trial",
}
"""Names of settings in the first run folders, by today's name."""
_FIRST_VALUES: dict[tuple[str, Any], str] = {
    ("loss.tail_over", "units"): "element",
    ("loss.tail_over", "frames"): "sample",
    ("select", "cv"): "folds",
}
"""Values of settings in the first run folders, by today's name and value."""
_LATER = (
    "loss.name",
    "loss.soft_targets",
    "loss.order",
    "loss.leave_out",
    "head.kind",
    "head.layers",
    "head.attention_heads",
    "head.window",
    "head.stride",
    "head.pool",
    "head.snippets",
    "head.tokens",
    "head.descriptors",
    "head.normalise",
    "optim.momentum",
    "text.prompts",
    "text.ensemble",
    "text.other",
    "text.against",
    "text.head",
)
"""Settings younger than the first run folders: at their default they leave the digest as it was."""


def with_settings(recipe: R, settings: Mapping[str, Any]) -> R:
    """A copy of a recipe with other values.

    Args:
        recipe: The recipe to start from.
        settings: Values by dotted name, of the type of the default (an int does for a float).

    Raises:
        RaffectError: If a name is unknown, a type wrong or a value out of range.
    """
    # Values by group; those of the recipe itself are in the group without a name
    nested: dict[str, dict[str, Any]] = {}
    flat = flatten(recipe)
    for name, value in settings.items():
        require(name in NAMES, unknown_name(name, NAMES))
        group, _, key = name.rpartition(".")
        nested.setdefault(group, {})[key] = _as_type_of(name, flat[name], value)
    top = nested.pop("", {})

    # Copies, of which each checks its own values
    groups = {
        group: dataclasses.replace(getattr(recipe, group), **values)
        for group, values in nested.items()
    }
    return dataclasses.replace(recipe, **top, **groups)


def plain(recipe: Recipe) -> Recipe:
    """The recipe alone of a configuration that extends one."""
    return Recipe(**{item.name: getattr(recipe, item.name) for item in dataclasses.fields(Recipe)})


def digest(recipe: Recipe) -> str:
    """Twelve hexadecimal digits that name a recipe: equal settings have equal digests."""
    first = {}
    for name, given in flatten(recipe).items():
        value = _as_type_of(name, DEFAULTS[name], given)  # 1 is 1.0
        if name not in _LATER or value != DEFAULTS[name]:
            first[_FIRST_NAMES.get(name, name)] = _FIRST_VALUES.get((name, value), value)
    return hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()[:12]


def in_todays_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the first run folders (November 2026) have them, by today's names and values."""
    names = {old: new for new, old in _FIRST_NAMES.items()}
    values = {(name, old): new for (name, new), old in _FIRST_VALUES.items()}

    def translate(name: str, value: Any) -> Any:
        if name == "space" and _are_texts(value):
            return [translate_axis(axis) for axis in value]
        return values.get((name, value), value) if isinstance(value, str) else value

    def translate_axis(axis: str) -> str:
        old, equals, text = axis.partition("=")
        name = names.get(old.strip(), old.strip())
        parts = [values.get((name, part.strip()), part) for part in text.split(",")]
        return f"{name}{equals}{','.join(parts)}"

    renamed = {names.get(name, name): value for name, value in settings.items()}
    return {name: translate(name, value) for name, value in renamed.items()}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def unknown_name(name: str, known: Sequence[str]) -> str:
    """The error message for a setting that does not exist."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown setting {_shorten(name)}; {hint}all are: {', '.join(known)}"


def find_recipe(name: str) -> Path:
    """File of a recipe.

    Args:
        name: Of a recipe that ships with raffect, or else the path of a TOML file.

    Raises:
        RaffectError: If there is no such recipe or file.
    """
    # A recipe that ships with raffect, or a file
    shipped = RECIPES / f"{name}.toml"
    if shipped.is_file():
        return shipped
    # Imported only now, because it loads pyarrow.
    from raffect.storage.paths import locate

    if (path := locate(name)).is_file():
        return path

    # Neither
    names = sorted(file.stem for file in RECIPES.glob("*.toml"))
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    expected = f"expected one of {', '.join(names)} or a TOML file"
    raise RaffectError(f"{name}: no such recipe{hint}; {expected}")


def read_recipe(path: Path, known: Sequence[str] = NAMES) -> dict[str, Any]:
    """Settings of a recipe by dotted name.

    Args:
        path: A TOML file; ``alpha`` in table ``[loss]`` is ``loss.alpha``.
        known: Names that it may set.

    Raises:
        RaffectError: If it is not TOML, a name is unknown or a value is of another type.
    """
    # The file's tables and keys, as dotted names
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise RaffectError(f"{path}: not a recipe, nested too deeply; {_REMEDY}") from error
    except ValueError as error:  # TOMLDecodeError is one, and a number of thousands of digits
        raise RaffectError(f"{path}: not a TOML file ({str(error)[:120]}); {_REMEDY}") from error
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    flat = in_todays_words(flat)

    # Checks; names that a configuration adds to a recipe are checked when it is made
    for name, value in flat.items():
        is_table = any(other.startswith(f"{name}.") for other in known)
        require(not is_table, f"{path}: {name} is a table; write [{name}] and its settings below")
        require(name in known, f"{path}: {unknown_name(name, known)}")
        require(
            name != "space" or _are_texts(value),
            f"{path}: space {_shorten(value)}: expected a list of texts such as seed=0:4",
        )
        if name in DEFAULTS:
            try:
                _as_type_of(name, DEFAULTS[name], value)
            except RaffectError as error:
                raise RaffectError(f"{path}: {error}") from error
    return flat


def expand(recipe: Recipe, space: Mapping[str, Sequence[Any]]) -> list[Recipe]:
    """All recipes of a grid, the last axis fastest."""
    return [
        with_settings(recipe, dict(zip(space, values, strict=True)))
        for values in itertools.product(*space.values())
    ]


# Types and choices of values


def _as_type_of(name: str, default: Any, value: Any) -> Any:
    """A value as the type of its default.

    Raises:
        RaffectError: If it is of another type, or not among the choices of the setting.
    """
    # A bool is an int to Python, but not to a recipe.
    is_sane = type(value) is not int or abs(value) < _LARGE
    if isinstance(default, float) and type(value) is int and is_sane:
        return float(value)
    expected, is_kind = _KINDS[type(default)], type(value) is type(default)
    require(is_kind and is_sane, f"{name} {_shorten(value)}: expected {expected}")
    choices = _CHOICES.get(name)
    require(
        choices is None or value in choices,
        f"{name} {_shorten(value)}: expected one of {', '.join(choices or ())}",
    )
    return value


def _shorten(value: Any) -> str:
    """A value for an error."""
    try:
        shown = repr(value)
    except ValueError:  # Python prints no whole number of thousands of digits
        shown = "of thousands of digits"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} ..."


def _choices(kind: type, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Values that settings may take, by dotted name, read from their ``Literal`` types."""
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= _choices(typing.cast(type, hint), f"{name}.")
        elif typing.get_origin(hint) is Literal:
            found[f"{prefix}{name}"] = typing.get_args(hint)
    return found


_LARGE = 10**300
"""Whole numbers from here on are taken for no number, before they are too large for a float."""
_SHOWN = 60
"""Most characters of a value that an error shows."""
_REMEDY = "write one like raffect/recipes/paper.toml, or restore it"
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_CHOICES = _choices(Recipe)
