"""Settings of the commands that make, show, prove and share banks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raffect.config.common import require_local
from raffect.config.encoders import EncoderConfig
from raffect.errors import require


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
        require_local(self, "out")


@dataclass(frozen=True, kw_only=True)
class BankJoinConfig:
    """Join banks of the same frames into one: vectors of several encoders one behind another, or
    the mean of several views of one.

    Example: `raffect bank join --banks clip dino --bank clip+dino`

    Other commands join by themselves: `raffect train paper --bank clip dino ...`.
    """

    banks: tuple[Path, ...]
    """Two banks or more, of different encoders or views; frames are those of the first one."""
    bank: Path
    """Bank to make, or to bring up to date."""
    how: Literal["concatenate", "average"] = "concatenate"
    """concatenate: the numbers of all, as they are. average: their mean, of vectors of one length,
    such as --encoder.view flip and the plain view."""


@dataclass(frozen=True, kw_only=True)
class BankImportConfig:
    """Bring features of others into a bank: *_clip.h5 files with their list of the paper's released
    code (needs HDF5: `uv pip install -e '.[h5]'`), or any vectors as .npy.

    Example: `raffect bank import --features train_clip.h5 --list train.txt --task expr --bank bank
    --out data`

    Or: `raffect bank import --npy teacher.npy --keys keys.parquet --name teacher --bank bank2`
    """

    bank: Path
    """Bank to make or extend; train and val features may go into one bank."""
    features: Path | None = None
    """HDF5 file with one dataset: train_features, val_features or test_features, float16 of shape
    (N, 768)."""
    list: Path | None = None
    """Text file in the same order: data/cropped_aligned/<video>/00001.jpg, a tab, the label."""
    task: str = ""
    """Task of the labels: expr or au."""
    out: Path | None = None
    """Folder for labels/<task>.parquet."""
    npy: Path | None = None
    """Vectors of any model, such as a teacher's: an array of floats of shape (N, D), stored as
    float16."""
    keys: Path | None = None
    """Parquet file with video and frame of each row of --npy, as `raffect bank export` writes
    it."""
    name: str = ""
    """What made the vectors of --npy; a bank takes vectors of one name alone."""

    def __post_init__(self) -> None:
        released = (self.features, self.list, self.task or None, self.out)
        vectors = (self.npy, self.keys, self.name or None)
        is_released = None not in released and set(vectors) == {None}
        is_vectors = None not in vectors and set(released) == {None}
        require(
            is_released or is_vectors,
            "bank import: expected --features, --list, --task and --out; or --npy, --keys and "
            "--name",
        )
        require_local(self, "npy")
        require_local(self, "features", "list")
