"""Settings of training and sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from raffect.config.common import MayChange
from raffect.errors import require
from raffect.recipe import (
    NAMES,
    Recipe,
    TextConfig,
    find_recipe,
    read_recipe,
    with_settings,
)


@dataclass(frozen=True, kw_only=True)
class LearnConfig(Recipe):
    """What training and sweeps have in common: a recipe, the data, and where and how to run."""

    bank: MayChange[Path]
    """Bank of `raffect extract`. Several, as --bank A B, are joined: one behind another, or with
    --how average their mean."""
    labels: MayChange[Path]
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    out: MayChange[Path]
    """Run folder, or s3://bucket/folder; the same command goes on in it after a stop."""
    select: Literal["last", "cv"] = "last"
    """last: the last epoch is the headline. cv: the epoch (and, in a sweep, the settings) are
    cross-validated on folds of the training split."""
    folds: int | Literal["official"] = 5
    """Folds of whole videos for --select cv. official: train and judge on each official fold of the
    data set, as its papers do."""
    save_predictions: MayChange[bool] = True
    """With --select cv, keep what heads of folds predict for their fold, which `raffect
    postprocess` needs: per head 16 bytes a training frame for 8 classes, about 9 MB for EXPR."""
    device: MayChange[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where to train; auto is CUDA where there is one."""
    threads: MayChange[int] = 0
    """CPU threads of one process; 0 is all cores for a run, and --cpus-per-trial for a trial. The
    last bits of results depend on it."""
    compile: bool = False
    """Compile the training step with torch.compile: 10 to 30 seconds at the start. On CUDA it then
    saves half of the time of one head and a quarter of that of fifty. One process only."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Read features through Ray Data while training; auto does so if they do not fit the device."""
    allow_incomplete: MayChange[bool] = False
    """Train on a bank that lacks planned frames (not extracted yet, or damaged). Every score is
    then marked as such."""
    address: MayChange[str | None] = None
    """Ray cluster: auto (the one this machine belongs to) or an address. Without it this machine
    works alone."""

    @property
    def num_folds(self) -> int:
        """Folds of --select cv."""
        assert self.folds != "official", "official folds are runs of their own"
        return self.folds

    @classmethod
    def from_recipe(
        cls, recipe: str, settings: Mapping[str, Any] | None = None, **fields: Any
    ) -> Self:
        """A configuration whose head is decided by a recipe.

        Args:
            recipe: Name of a recipe that ships with raffect, such as ``paper``, or a TOML file,
                which may be the config.toml of a run.
            settings: By dotted name, such as ``{"loss.alpha": 0.5}``; they override the recipe.
            fields: All others: ``bank``, ``labels``, ``out`` ...

        Raises:
            RaffectError: If there is no such recipe or setting, or a value is out of range.
        """
        # Of a run's config.toml the recipe alone: data and folder are those of ``fields``
        known = [*NAMES, *(item.name for item in dataclasses.fields(cls))]
        found = read_recipe(find_recipe(recipe), known)
        values = {name: value for name, value in found.items() if name in NAMES}
        values |= dict(settings or {})
        return cls(**vars(with_settings(_default_recipe(cls), values)) | fields)

    @classmethod
    def _learns_prompts(cls) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.folds == "official" or 2 <= self.folds <= 100,
            f"--folds {self.folds}: expected 2 to 100, or official",
        )
        require(
            self.folds != "official" or self.select == "last",
            "--folds official: does not go with --select cv; its test lists choose nothing",
        )
        require(
            self.text == TextConfig(),
            "--text.*: heads that are trained have no prompts; leave it out, or use "
            "`raffect zeroshot`",
        )
        require(
            (self.head.kind == "prompts") == self._learns_prompts(),
            f"head.kind {self.head.kind}: heads of kind prompts are trained by "
            "`raffect learn-prompts`, which trains no others",
        )
        require(
            0 <= self.threads <= 1024,
            f"--threads {self.threads}: expected 0 (choose for me) to 1024",
        )


def _default_recipe(kind: type[LearnConfig]) -> Recipe:
    """The recipe that a command has without any setting."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Recipe):
        own = kind.__dataclass_fields__[item.name]
        is_made = own.default_factory is not dataclasses.MISSING
        values[item.name] = own.default_factory() if is_made else own.default
    return Recipe(**values)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearnConfig):
    """Train heads on a bank: `raffect train RECIPE --task expr ...`. A recipe is paper, released,
    erm, weighted, va, temporal, emoclip, emoclip-released, expclip or a TOML file, and flags
    override it.

    Example: `raffect train paper --task expr --bank bank --labels data --out runs/expr --num-seeds
    5`

    Or: `raffect train erm --task au --bank bank --labels data --out runs/au --optim.lr 3e-4`
    """

    num_seeds: MayChange[int] = 1
    """Heads to train side by side, with seeds from --seed on; the spread of scores is printed."""
    leave_out: MayChange[tuple[str, ...]] = ()
    """Classes, or each: for every one of them heads that never see it are trained side by side, as
    a sweep over loss.leave_out; `raffect zeroshot --head` then judges them on it."""
    num_workers: MayChange[int] = 1
    """Processes of Ray Train that share each batch. The result does not depend on their number; 1
    needs no Ray."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.num_seeds <= 1000, f"--num-seeds {self.num_seeds}: expected 1 to 1000")
        require(
            not (self.leave_out and self.loss.leave_out),
            f"--leave-out: goes with all classes; take loss.leave-out {self.loss.leave_out} out",
        )
        require(all(self.leave_out), "--leave-out '': expected names of classes, or each")
        require(
            self.folds != "official" or not self.leave_out,
            "--folds official: does not go with --leave-out; leave one of them out",
        )
        require(self.num_workers >= 1, f"--num-workers {self.num_workers}: expected 1 or more")
        require(
            not self.compile or self.num_workers == 1,
            "--compile: does not go with --num-workers; leave one of them out",
        )
        require(
            self.batch_size % self.num_workers == 0,
            f"--num-workers {self.num_workers}: does not divide --batch-size {self.batch_size}; "
            "each worker takes an equal part",
        )


@dataclass(frozen=True, kw_only=True)
class TuneConfig(LearnConfig):
    """Train every combination of settings (`raffect tune RECIPE --task expr ...`), in batches of
    heads on Ray Tune. The default is the paper's Figure 2.

    Example: `raffect tune paper --task expr --bank bank --labels data --out runs/figure2`

    Or: `raffect tune paper --task au --bank bank --labels data --out runs/rho --space
    sam.rho=0.01,0.05,0.1 seed=0:2`
    """

    space: MayChange[tuple[str, ...]] = ("loss.alpha=0.1:1:0.1", "seed=0:4")
    """Axes: NAME=V1,V2,..., NAME=FROM:TO:STEP (NAME=FROM:TO for whole numbers), or, with --samples,
    NAME=uniform(A,B) or NAME=loguniform(A,B)."""
    samples: MayChange[int] = 0
    """Number of random draws from the axes that are distributions."""
    baseline: MayChange[bool] = True
    """Also train plain ERM (alpha 1, rho 0, no class weights or logit adjustment) with every seed,
    for comparison."""
    heads_per_trial: MayChange[int | Literal["auto"]] = "auto"
    """Heads that one trial trains side by side; with 1 each head is a trial of its own."""
    gpus_per_trial: MayChange[float | None] = None
    """GPUs a trial takes: 1 or a fraction; default 1 where there are GPUs, else 0."""
    cpus_per_trial: MayChange[int] = 1
    """CPUs a trial takes."""
    scheduler: MayChange[Literal["none", "asha"]] = "none"
    """asha stops poor heads early (Li et al. 2020); needs --heads-per-trial 1."""
    save_heads: MayChange[bool] = True
    """Keep the weights of every head."""
    track: MayChange[tuple[Literal["tensorboard", "mlflow", "wandb"], ...]] = ("tensorboard",)
    """Where curves go besides the run folder; mlflow and wandb need `uv pip install -e
    '.[mlflow]'` or '.[wandb]'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = self.heads_per_trial
        require(self.folds != "official", "--folds official: is for `raffect train`")
        require(
            heads == "auto" or 1 <= heads <= 10_000,
            f"--heads-per-trial {heads}: expected auto, or 1 or more",
        )
        gpus = self.gpus_per_trial
        require(gpus is None or 0 <= gpus <= 1, f"--gpus-per-trial {gpus}: expected 0 to 1")
        require(
            self.cpus_per_trial >= 1, f"--cpus-per-trial {self.cpus_per_trial}: expected 1 or more"
        )
        require(self.samples >= 0, f"--samples {self.samples}: expected 0 or more")
        require(
            self.scheduler == "none" or heads == 1,
            "--scheduler asha: a batch's heads cannot be stopped one by one; "
            "add --heads-per-trial 1",
        )
        require(
            self.scheduler == "none" or self.select == "last",
            "--scheduler asha: does not go with --select cv, which needs every epoch of every head",
        )
