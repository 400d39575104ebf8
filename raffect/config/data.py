"""Settings of the commands that make data: pictures, manifests, label tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raffect.config.common import require_local
from raffect.errors import require


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Draw a data set in the exact layout of Aff-Wild2, or of another one, from action units.

    Example: `raffect synth --out faces --size tiny --sheet faces.png`

    Or: `raffect synth --layout dfew --out faces --size tiny`
    """

    out: Path
    """Folder to make; holds cropped_aligned/ and 8th_ABAW_Annotations/ afterwards, or the folders
    of another --layout."""
    layout: str = "affwild2"
    """Whose layout: affwild2, or another data set's name for `raffect prepare --dataset`; any other
    word lists them all."""
    size: Literal["tiny", "small", "medium"] = "small"
    """400, 4,000 or 40,000 frames."""
    frames: int | None = None
    """Any other number of frames; overrides --size."""
    seed: int = 0
    """Everything drawn follows from it."""
    sheet: Path | None = None
    """Also save a contact sheet (PNG): subjects by expressions."""
    video: Path | None = None
    """Also draw a video of one subject (MP4) to try `raffect predict` on, and a table of the boxes
    of its face (VIDEO.boxes.csv). Needs `uv pip install -e '.[video]'`."""

    def __post_init__(self) -> None:
        require(
            self.frames is None or self.frames >= 200,
            f"--frames {self.frames}: expected 200 or more",
        )
        require(self.seed >= 0, f"--seed {self.seed}: expected 0 or more")
        require_local(self, "out", "sheet", "video")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn image folders and labels into a manifest and label tables, and list what is missing.

    Example: `raffect prepare --images cropped_aligned --annotations "6th ABAW Annotations" --out
    data`

    Or: `raffect prepare --dataset dfew --root DFEW --out data`

    Or: `raffect prepare --dataset folder --images faces --task moods --out data`
    """

    images: tuple[Path, ...] = ()
    """Image folders, e.g. cropped_aligned cropped_aligned_new_50_vids; where several have a frame,
    the first one is used. With --root: where its pictures are, if not below it."""
    out: Path
    """Folder, or s3://bucket/folder, for manifest.parquet, labels/*.parquet and problems.csv."""
    dataset: str = "affwild2"
    """affwild2: one folder per video, ABAW annotations. table: a CSV or Parquet file with path, or
    video and frame, and label columns. folder: pictures of any name, in one folder per class or
    without labels. auto: whichever known data set --root is. The name of one, such as dfew: as it
    comes, below --root; any other word lists them all."""
    root: Path | None = None
    """Folder of a data set as it comes; lists and pictures are found below it by their names."""
    annotations: Path | None = None
    """affwild2: folder of one ABAW edition. table: the CSV or Parquet file. With --root: where its
    lists are, if not below it."""
    map: Path | None = None
    """Label table of another data set: labels get its classes, matched by name, so that heads
    trained there can be judged here. Samples of other classes are unlabelled."""
    first_class: int | None = None
    """dfew: the number of its first class, 0 or 1, where its lists do not show it."""
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
        by_flags = self.dataset in ("affwild2", "table", "folder") and self.root is None
        require(
            not by_flags or bool(self.images),
            "--images: expected one folder or more, or --root with the folder of a data set",
        )
        require(
            self.dataset != "affwild2" or self.root is not None or self.annotations is not None,
            "--annotations: expected the folder of one ABAW edition, "
            "such as '6th ABAW Annotations'",
        )
        require(
            self.root is None or self.dataset not in ("table", "folder"),
            f"--root: --dataset {self.dataset} takes --images",
        )
        require(
            self.dataset != "auto" or self.root is not None,
            "--dataset auto: expected --root, the folder of a data set",
        )
        require(
            self.first_class in (None, 0, 1), f"--first-class {self.first_class}: expected 0 or 1"
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
        require_local(self, "images", "root", "annotations", "map")


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
