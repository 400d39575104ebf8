"""Every setting of every command, on one page.

tyro turns these classes into flags; the text below a field is its help. All are frozen and checked
on construction, so that a wrong value is one line at the start and not an error hours later.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from raffect.errors import RaffectError, require
from raffect.recipe import NAMES, Recipe, find_recipe, read_recipe, with_settings

EMBEDDED_MODEL = "raffect-faces"

T = TypeVar("T")
_MAY_CHANGE = "may change"
MayChange = Annotated[T, _MAY_CHANGE]
"""A setting of a run that may change when the run goes on: it does not decide what a head is."""


def count_cores() -> int:
    """CPU cores that this process may use: those that Slurm, taskset or a container leave it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def may_change(kind: type) -> set[str]:
    """Names of the settings of a configuration that are marked as `MayChange`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name for name in marks if _MAY_CHANGE in marks[name]}


def require_types(kind: type, settings: Mapping[str, Any], where: Path) -> None:
    """Refuse values of a file that are of another type than a configuration's.

    Args:
        kind: The configuration.
        settings: Values by dotted name; `raffect.recipe.read_recipe` has checked those of a recipe.
        where: The file, for errors.

    Raises:
        RaffectError: Names the first one.
    """
    if not (others := settings.keys() - set(NAMES)):
        return
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = typing.get_type_hints(kind)
    for name in sorted(others):
        value = settings[name]
        parts = value if isinstance(value, list) else ()
        flag = next((part for part in parts if str(part).startswith("-")), None)
        require(flag is None, f"{where}: {name} {str(flag)[:40]!r}: expected no - in front")
        try:
            adapter = TypeAdapter(hints[name], config=ConfigDict(strict=True))
            adapter.validate_json(json.dumps(value, default=str))
        except (ValidationError, ValueError) as error:
            faults = error.errors() if isinstance(error, ValidationError) else [{"msg": str(error)}]
            what = f"{name} {str(value)[:40]!r}: {faults[0]['msg'].lower()}"
            raise RaffectError(f"{where}: {what}; see `raffect train --help`") from error


def _require_local(config: object, *names: str) -> None:
    """Refuse paths in an object store, which are not instances of `Path`.

    Raises:
        RaffectError: If one of the settings ``names`` holds such a path.
    """
    for name in names:
        value = getattr(config, name)
        for path in value if isinstance(value, tuple) else (value,):
            require(
                path is None or isinstance(path, Path),
                f"--{name} {path}: expected a folder or file of this machine, not an object store",
            )


# Encoders


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which frozen image tower makes the features."""

    model: str = "ViT-L-14-quickgelu"
    """Name of an open_clip model (`raffect models list`), or raffect-faces, the small encoder that
    ships with raffect."""
    weights: str = "openai"
    """Tag (openai, laion2b_s32b_b82k ...), local file (.safetensors, .pt, .bin), random:SEED, or
    embedded, which raffect-faces has without being asked."""
    precision: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Arithmetic; auto is float16 on CUDA and float32 on a CPU. bfloat16 is several times faster
    on CPUs with AMX and less exact. Features are stored as float16 in any case."""
    batch_size: int = 0
    """Pictures per encoder step; 0 is 256 on CUDA and 8 on a CPU. The last batch is filled up to
    this size."""
    compile: bool = False
    """Compile the tower with torch.compile: slower to start and faster on CUDA; the last bits of
    the features change."""

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
        # The default is a tag of other models; the embedded encoder's own weights are its only tag
        if self.model == EMBEDDED_MODEL and self.weights == EncoderConfig.weights:
            object.__setattr__(self, "weights", "embedded")


# Data sets: pictures, manifests, label tables


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Draw a data set in Aff-Wild2's exact layout from action units.

    Example: `raffect synth --out faces --size tiny --sheet faces.png`
    """

    out: Path
    """Folder to make; holds cropped_aligned/ and 8th_ABAW_Annotations/ afterwards."""
    size: Literal["tiny", "small", "medium"] = "small"
    """400, 4,000 or 40,000 frames."""
    frames: int | None = None
    """Any other number of frames; overrides --size."""
    seed: int = 0
    """Everything drawn follows from it."""
    sheet: Path | None = None
    """Also save a contact sheet (PNG): subjects by expressions."""

    def __post_init__(self) -> None:
        require(
            self.frames is None or self.frames >= 200,
            f"--frames {self.frames}: expected 200 or more",
        )
        require(self.seed >= 0, f"--seed {self.seed}: expected 0 or more")
        _require_local(self, "out", "sheet")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn image folders and labels into a manifest and label tables, and list what is missing.

    Example: `raffect prepare --images cropped_aligned --annotations "6th ABAW Annotations" --out
    data`

    Or: `raffect prepare --dataset folder --images faces --task moods --out data`
    """

    images: tuple[Path, ...]
    """Image folders, e.g. cropped_aligned cropped_aligned_new_50_vids; where several have a frame,
    the first one is used."""
    out: Path
    """Folder, or s3://bucket/folder, for manifest.parquet, labels/*.parquet and problems.csv."""
    dataset: Literal["affwild2", "table", "folder"] = "affwild2"
    """affwild2: one folder per video, ABAW annotations. table: a CSV or Parquet file with path, or
    video and frame, and label columns. folder: pictures of any name, in one folder per class or
    without labels."""
    annotations: Path | None = None
    """affwild2: folder of one ABAW edition. table: the CSV or Parquet file."""
    task: str = "labels"
    """table and folder: name of the task, and so of its label table."""
    kind: Literal["auto", "multiclass", "multilabel", "regression"] = "auto"
    """table: what the labels are. auto is multiclass for one column of names or whole numbers,
    multilabel for columns of 0 and 1, and regression for columns of decimals."""
    columns: tuple[str, ...] = ()
    """table: label columns; all but path, video, frame, split and subject by default."""
    classes: tuple[str, ...] = ()
    """table and folder: names of the classes in the order of their numbers. By default they are
    sorted by name, or keep the numbers that the table has."""
    with_labels: bool = True
    """table and folder: read labels; --no-with-labels lists the pictures alone."""
    validation_share: float = 0.2
    """table and folder: share of subjects, videos or pictures that is held out for validation where
    the data have no split."""

    def __post_init__(self) -> None:
        require(bool(self.images), "--images: expected one folder or more")
        require(
            self.dataset != "affwild2" or self.annotations is not None,
            "--annotations: expected the folder of one ABAW edition, "
            "such as '6th ABAW Annotations'",
        )
        require(
            self.dataset != "table" or self.annotations is not None,
            "--annotations: expected the CSV or Parquet file with the labels",
        )
        require(
            bool(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", self.task)),
            f"--task {self.task}: expected a short name of lower-case letters, digits, - and _; "
            "it names a file",
        )
        require(
            len(set(self.classes)) == len(self.classes) != 1,
            f"--classes {' '.join(self.classes)}: expected two different names or more",
        )
        require(
            0 < self.validation_share < 1,
            f"--validation-share {self.validation_share}: expected more than 0, less than 1",
        )
        _require_local(self, "images", "annotations")


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Pack loose frames into Parquet, one row group per shard: far fewer files to open on network
    storage.

    Example: `raffect pack --manifest data/manifest.parquet --out packed`
    """

    manifest: Path
    """manifest.parquet of `raffect prepare`, or the folder that prepare wrote."""
    out: Path
    """Folder, or s3://bucket/folder, for frames-*.parquet and a manifest.parquet that points into
    them."""
    shard_rows: int = 2048
    """Frames per row group; if equal to the bank's --shard-rows, each shard is one read."""
    groups_per_file: int = 64
    """Row groups per file."""

    def __post_init__(self) -> None:
        require(
            1 <= self.shard_rows <= 65536, f"--shard-rows {self.shard_rows}: expected 1 to 65536"
        )
        require(
            self.groups_per_file >= 1,
            f"--groups-per-file {self.groups_per_file}: expected 1 or more",
        )


# Banks of features


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Encode every frame of a manifest into a bank. Run it again after any stop: it encodes only
    what is missing.

    Example: `raffect extract --manifest data/manifest.parquet --bank bank`
    """

    manifest: Path
    """manifest.parquet of `raffect prepare` or `raffect pack`, or the folder that holds it."""
    bank: Path
    """Folder of the bank, or s3://bucket/folder; made, continued or extended."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    address: str | None = None
    """Ray cluster: auto (the one this machine belongs to) or an address. Without it Ray starts on
    this machine alone."""
    num_actors: int = 0
    """Encoders side by side; 0 is one per GPU, or one in all without a GPU."""
    gpus_per_actor: float | None = None
    """GPUs an encoder takes: 1, a fraction, or 0 for the CPU; default 1 where there are GPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to encode; auto is CUDA for an encoder that has a GPU. cpu with --gpus-per-actor is for
    trying out a cluster of logical GPUs."""
    threads: int | None = None
    """CPU threads of an encoder in a new bank, by default the cores of the smallest node over the
    encoders on it; an existing bank keeps its own number. On a CPU the last bits of features depend
    on it."""
    cpus_per_read: float = 1.0
    """CPUs a reading task takes; fewer CPUs mean more readers."""
    shard_rows: int | None = None
    """Frames per shard in a new bank, 2048 by default; an existing bank keeps its own number."""
    limit: int | None = None
    """Encode about this many frames in this run (whole shards), then stop."""
    max_reject_share: float = 0.01
    """Exit with status 3 when more than this share of the bank's frames could not be read."""
    dry_run: bool = False
    """Time the encoder, and print what would be done and how long it would take; write nothing."""
    allow_embedded: bool = False
    """Let the embedded encoder, which only knows drawn faces, encode other images."""
    join: bool = False
    """Write into a bank beside another run of extract: of a shard that both encode the first one
    counts."""

    def __post_init__(self) -> None:
        require(
            self.num_actors >= 0,
            f"--num-actors {self.num_actors}: expected 0 (choose for me) or more",
        )
        gpus = self.gpus_per_actor
        require(
            gpus is None or 0 <= gpus <= 1 or (gpus > 1 and float(gpus).is_integer()),
            f"--gpus-per-actor {gpus}: expected a fraction up to 1 or a whole number",
        )
        require(
            self.device != "cuda" or gpus != 0,
            "--device cuda: an encoder without a GPU; leave --gpus-per-actor 0 out, "
            "or use --device cpu",
        )
        require(
            self.threads is None or 1 <= self.threads <= 1024,
            f"--threads {self.threads}: expected 1 to 1024",
        )
        require(
            0 < self.cpus_per_read <= 64,
            f"--cpus-per-read {self.cpus_per_read}: expected more than 0, at most 64",
        )
        require(
            self.shard_rows is None or 1 <= self.shard_rows <= 65536,
            f"--shard-rows {self.shard_rows}: expected 1 to 65536",
        )
        require(self.limit is None or self.limit >= 1, f"--limit {self.limit}: expected 1 or more")
        require(
            0 <= self.max_reject_share <= 1,
            f"--max-reject-share {self.max_reject_share}: expected 0 to 1",
        )


@dataclass(frozen=True, kw_only=True)
class BankInfoConfig:
    """Show what a bank holds.

    Example: `raffect bank info --bank bank`
    """

    bank: Path
    """Folder of the bank."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class BankRejectsConfig:
    """List the frames of a bank that could not be read, with reasons.

    Example: `raffect bank rejects --bank bank --manifest data --out rejects.csv`
    """

    bank: Path
    """Folder of the bank."""
    manifest: Path | None = None
    """Also show the file of each frame, from this manifest.parquet or the folder that holds it."""
    out: Path | None = None
    """Also write all of them to this CSV file: video, frame, reason, path."""


@dataclass(frozen=True, kw_only=True)
class BankVerifyConfig:
    """Read every byte of a bank and prove that it is whole: rows + rejects = plan, and the SHA-256
    of every file.

    Example: `raffect bank verify --bank bank --manifest data/manifest.parquet`
    """

    bank: Path
    """Folder of the bank."""
    manifest: Path | None = None
    """Also check that the bank covers this manifest.parquet, or the one in this folder."""
    repair: bool = False
    """Withdraw damaged shards, so that the next extract encodes them again, and delete unfinished
    files older than an hour and what else killed runs left."""
    retry_rejects: bool = False
    """Withdraw shards that have rejects, so that the next extract reads their frames again (after
    fixing the files)."""
    pictures: bool = False
    """Also read the pictures of --manifest again, and compare them with those that each shard was
    made from."""
    sample: int | None = None
    """With --pictures: only so many shards, drawn at random."""

    def __post_init__(self) -> None:
        require(
            not self.pictures or self.manifest is not None,
            "--pictures: --manifest says where the pictures are",
        )
        require(
            self.sample is None or (self.pictures and self.sample >= 1),
            f"--sample {self.sample}: expected 1 or more, with --pictures",
        )


@dataclass(frozen=True, kw_only=True)
class BankExportConfig:
    """Write a bank's features for other tools.

    Example: `raffect bank export --bank bank --out features`
    """

    bank: Path
    """Folder of the bank."""
    out: Path
    """Folder to make."""
    format: Literal["npy", "list"] = "npy"
    """npy: features.npy + keys.parquet; list: Parquet files with a float16 list column."""

    def __post_init__(self) -> None:
        _require_local(self, "out")


@dataclass(frozen=True, kw_only=True)
class BankImportConfig:
    """Bring *_clip.h5 features and the list file of the paper's released code into a bank. Needs
    HDF5: `pip install raffect[h5]`.

    Example: `raffect bank import --features train_clip.h5 --list train.txt --task expr --bank bank
    --out data`
    """

    features: Path
    """HDF5 file with one dataset: train_features, val_features or test_features, float16 of shape
    (N, 768)."""
    list: Path
    """Text file in the same order: data/cropped_aligned/<video>/00001.jpg, a tab, the label."""
    task: str
    """Task of the labels: expr or au."""
    bank: Path
    """Bank to make or extend; train and val features may go into one bank."""
    out: Path
    """Folder for labels/<task>.parquet."""

    def __post_init__(self) -> None:
        _require_local(self, "features", "list")


# Weights of encoders


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


# Training


@dataclass(frozen=True, kw_only=True)
class LearnConfig(Recipe):
    """What training and sweeps have in common: a recipe, the data, and where and how to run."""

    bank: MayChange[Path]
    """Bank of `raffect extract`."""
    labels: MayChange[Path]
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    out: MayChange[Path]
    """Run folder, or s3://bucket/folder; the same command goes on in it after a stop."""
    select: Literal["last", "cv"] = "last"
    """last: the last epoch is the headline. cv: the epoch (and, in a sweep, the settings) are
    cross-validated on folds of the training split."""
    folds: int = 5
    """Folds of whole videos for --select cv."""
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
        return cls(**vars(with_settings(Recipe(), values)) | fields)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.folds <= 100, f"--folds {self.folds}: expected 2 to 100")
        require(
            0 <= self.threads <= 1024,
            f"--threads {self.threads}: expected 0 (choose for me) to 1024",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearnConfig):
    """Train heads on a bank: `raffect train RECIPE --task expr ...`. A recipe is paper, released,
    erm, weighted or a TOML file, and flags override it.

    Example: `raffect train paper --task expr --bank bank --labels data --out runs/expr --num-seeds
    5`

    Or: `raffect train erm --task au --bank bank --labels data --out runs/au --optim.lr 3e-4`
    """

    num_seeds: MayChange[int] = 1
    """Heads to train side by side, with seeds from --seed on; the spread of scores is printed."""
    num_workers: MayChange[int] = 1
    """Processes of Ray Train that share each batch. The result does not depend on their number; 1
    needs no Ray."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.num_seeds <= 1000, f"--num-seeds {self.num_seeds}: expected 1 to 1000")
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
    """Where curves go besides the run folder; mlflow and wandb need `pip install raffect[mlflow]`
    or raffect[wandb]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = self.heads_per_trial
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


# Results


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score trained heads on a bank.

    Example: `raffect evaluate --run runs/expr --bank bank --labels data`
    """

    run: Path
    """Run folder of train or tune, or the folder of one head."""
    bank: Path
    """Bank made by the encoder that the heads were trained on."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    split: Literal["train", "validation", "test"] = "validation"
    """Frames to score on; test where the labels have such a split, as those of a table, a folder or
    `raffect bank import` may."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head: last epoch, best on validation, or the cross-validated epoch."""
    allow_incomplete: bool = False
    """Score on a bank that lacks planned frames (not extracted yet, or damaged). Every score is
    then marked as such."""
    out: Path | None = None
    """Also write metrics.json and per_group.csv to this folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw tables and figures of one run or several: report.md, and report.html for a browser.

    Example: `raffect report --runs runs/figure2 runs/expr --out report`
    """

    runs: tuple[Path, ...]
    """Run folders of train and tune."""
    out: Path | None = None
    """Folder for the report; by default that of the first run."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "--runs: expected one run folder or more")


# This machine


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check this machine: versions, GPU, Ray, disk, weights, data; output for a bug report.

    Example: `raffect doctor --data data --bank bank`
    """

    data: Path | None = None
    """Folder of `raffect prepare` to look at."""
    bank: Path | None = None
    """Bank to look at."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    start_ray: bool = True
    """Also start and stop a local Ray."""


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
        _require_local(self, "out")
