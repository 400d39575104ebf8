"""Settings of `raffect compare`, and encoders as single words."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raffect.config.common import require_local
from raffect.config.encoders import TIMM_PREFIX, EncoderConfig
from raffect.errors import require

_OPTION = re.compile(r"@(?:(?P<size>[0-9]{1,4})|(?P<view>flip|crop:[0-9.]{1,8}))$", re.A)
MOST_ROWS = 26
"""Most encoders of a comparison, which are named by letters."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare encoders on your own data: a bank each, the same heads on all of them, and one table
    and figure of scores, paired differences and costs. Run it again after any stop: it works on
    what is missing.

    An encoder is one word, MODEL:WEIGHTS, with the values of --encoder.model and --encoder.weights:
    ViT-B-32-quickgelu:openai, ViT-L-14:/weights/file.safetensors, raffect-faces:embedded,
    timm:vit_base_patch14_dinov2.lvd142m (a timm model's tag is in its name), or any model with
    :random, which is random:0. Without :WEIGHTS they are those that --encoder.weights has by
    default. @336 behind it is the input's side in pixels, of timm models; @flip or @crop:0.8 a
    view.

    Example: `raffect compare --encoders ViT-B-32-quickgelu ViT-L-14-quickgelu --manifest data
    --labels data --task expr --out compare`

    Or, of banks that are there: `raffect compare --banks bank1 bank2 --labels data --out compare`
    """

    encoders: tuple[str, ...] = ()
    """Encoders to make banks with, in OUT/banks; a bank that is there is continued. Their weights
    must be on this machine (`raffect models pull`)."""
    manifest: Path | None = None
    """For --encoders: manifest.parquet of `raffect prepare` or `raffect pack`, or the folder that
    holds it. All of its frames are encoded, so that the banks serve for everything else too."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    out: Path
    """Folder for banks, runs, table and figure."""
    banks: tuple[Path, ...] = ()
    """Finished banks that are compared as well, whatever made them. Their frames/s stay blank,
    since they were not measured here."""
    join: bool = False
    """One more row: all banks concatenated, feature beside feature."""
    task: str = ""
    """Which task of the labels; may be left out if there is one."""
    recipe: tuple[str, ...] = ("erm",)
    """What heads are trained with on every bank: recipes as `raffect train` takes them. The default
    is plain ERM, which has nothing to choose: no tail of losses, no neighbourhood, no weights of
    classes. With several recipes encoders are compared within each."""
    epochs: int = 0
    """Epochs of every recipe; 0 is the recipe's own number."""
    seed: int = 0
    """First seed of the heads."""
    num_seeds: int = 5
    """Heads of each bank and recipe, side by side. Five show whether a difference is larger than
    the spread over seeds, and cost little beside encoding."""
    select: Literal["last", "cv"] = "last"
    """last: scores are of the last epoch, and nothing is chosen on validation. cv: the epoch is
    cross-validated on 5 folds of the training split, which takes six times the training."""
    against: str = "best"
    """What every other bank is compared with: best, the highest score; first, the first one; or the
    name of one as the table has it, such as an encoder's word. The best is chosen on the same
    videos, so it looks a little better than it is; the first or a named one is not."""
    allow_embedded: bool = False
    """Let the embedded encoder, which only knows drawn faces, encode other images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to encode and to train."""
    address: str | None = None
    """Ray cluster: auto or an address. Without it Ray starts on this machine alone."""

    def __post_init__(self) -> None:
        for name in ("encoders", "banks", "recipe"):
            if isinstance(value := getattr(self, name), str | Path):
                object.__setattr__(self, name, (value,))
        for word in self.encoders:
            read_encoder(word)
        require(
            bool(self.encoders or self.banks),
            "--encoders: expected one encoder or more, such as ViT-B-32-quickgelu:openai; or "
            "--banks with finished banks",
        )
        require(
            len(self.encoders) + len(self.banks) + self.join <= MOST_ROWS,
            f"--encoders and --banks: expected at most {MOST_ROWS} together",
        )
        require(
            not self.encoders or self.manifest is not None,
            "--manifest: expected manifest.parquet of `raffect prepare`, since --encoders make "
            "banks of its frames",
        )
        require(
            not self.join or len(self.encoders) + len(self.banks) > 1,
            "--join: expected two encoders or banks to put together",
        )
        require(bool(self.recipe), "--recipe: expected one or more, such as erm")
        require(self.epochs >= 0, f"--epochs {self.epochs}: expected 0 (the recipe's own) or more")
        require(self.seed >= 0, f"--seed {self.seed}: expected 0 or more")
        require(1 <= self.num_seeds <= 1000, f"--num-seeds {self.num_seeds}: expected 1 to 1000")
        require(bool(self.against), "--against: expected best, first or the name of an encoder")
        require_local(self, "out")


def read_encoder(word: str) -> EncoderConfig:
    """An encoder from one word, ``MODEL[:WEIGHTS][@SIZE][@VIEW]``.

    A model's name has no colon but that of ``timm:``, so whatever follows the next one is the
    weights, colons and all.

    Raises:
        RaffectError: If it has no model, or an option that is not known.
    """
    # Options, from the end, since a file of weights may have an @ in its name
    rest, options = word, {"size": "", "view": ""}
    while match := _OPTION.search(rest):
        (name, value), *_ = [(name, found) for name, found in match.groupdict().items() if found]
        require(not options[name], f"--encoders {word}: has two of @{options[name]} and @{value}")
        options[name], rest = value, rest[: match.start()]

    # Model and weights
    prefix = TIMM_PREFIX if rest.startswith(TIMM_PREFIX) else ""
    model, _, weights = rest.removeprefix(prefix).partition(":")
    require(
        bool(model) and "@" not in model,
        f"--encoders {word}: expected MODEL:WEIGHTS, and behind it @SIZE, @flip or @crop:SHARE, "
        "such as timm:vit_base_patch14_dinov2.lvd142m@336",
    )
    weights = "random:0" if weights == "random" else weights
    return EncoderConfig(
        model=prefix + model,
        weights=weights or EncoderConfig.weights,
        image_size=int(options["size"] or 0),
        view=options["view"],
    )


def name_encoder(config: EncoderConfig) -> str:
    """The word of an encoder, a file of weights without its folder."""
    tag = config.model.partition(".")[2] if config.model.startswith(TIMM_PREFIX) else ""
    weights = config.weights.rpartition(os.sep)[2]
    name = config.model if weights == tag else f"{config.model}:{weights}"
    size = f"@{config.image_size}" if config.image_size else ""
    return name + size + (f"@{config.view}" if config.view else "")
