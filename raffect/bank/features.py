"""Features of a task and split as one contiguous array, joined with their labels on (video, frame).

The plan and the rejects tell which row of which shard holds a frame. So only the feature columns of
the shards in use are read, each once, by threads that write straight into the array.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.bank.format import Bank
from raffect.bank.groups import drop_unused, read_groups
from raffect.bank.locate import Location, locate
from raffect.bank.records import Commit
from raffect.bank.shard_file import parse_features
from raffect.config import count_cores
from raffect.datasets.labels import read_values, select_split
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, is_ascending, positions
from raffect.storage.paths import Damaged


@dataclass(frozen=True)
class Missing:
    """Numbers of labelled frames without a feature, by reason.

    Attributes:
        no_image: Not in the bank's plan: the manifest lists no image of them.
        rejected: Their image could not be read.
        not_extracted: Planned, but their shard is not committed yet, or is damaged or gone: the
            bank is incomplete.
    """

    no_image: int = 0
    rejected: int = 0
    not_extracted: int = 0

    @property
    def total(self) -> int:
        """All labelled frames without a feature."""
        return self.no_image + self.rejected + self.not_extracted


@dataclass(frozen=True)
class Features:
    """N frames that have a feature and a label, in the order of the bank.

    Attributes:
        x: float16, shape (N, dim), C-contiguous; a `numpy.memmap` if that was asked for.
        y: Labels, shape (N, columns of the task).
        video: Number of each frame's video in ``videos``, int32, shape (N,).
        frame: 1-based frame numbers, int32, shape (N,).
        videos: Names of videos.
        missing: Labelled frames without a feature, and why.
    """

    x: np.ndarray
    y: np.ndarray
    video: np.ndarray
    frame: np.ndarray
    videos: list[str]
    missing: Missing


@dataclass(frozen=True)
class FeatureIndex:
    """Where the features of N labelled frames are stored, in the order of the bank.

    Attributes:
        bank: The bank.
        dim: Length of a feature.
        shard: Shard of each frame, ascending, shape (N,).
        row: Row of each frame in its shard, shape (N,).
        commits: Record of each shard in use.
        y: Labels, shape (N, columns of the task).
        video: Number of each frame's video in ``videos``, int32, shape (N,).
        frame: 1-based frame numbers, int32, shape (N,).
        videos: Names of videos.
        group: Number of each frame's group in ``groups``, int32, shape (N,); intervals and folds
            keep a group together.
        groups: Names of groups: videos, or those in the label table's column ``group``; at most
            `MOST_GROUPS`.
        missing: Labelled frames without a feature, and why.
    """

    bank: Bank
    dim: int
    shard: np.ndarray
    row: np.ndarray
    commits: Mapping[int, Commit]
    y: np.ndarray
    video: np.ndarray
    frame: np.ndarray
    videos: list[str]
    group: np.ndarray
    groups: list[str]
    missing: Missing

    def __len__(self) -> int:
        return len(self.shard)

    def select(self, keep: np.ndarray) -> FeatureIndex:
        """Only some frames, with their videos and groups; ``keep`` is a mask of shape (N,)."""
        return replace(self, shard=self.shard[keep], row=self.row[keep], **self.describe_kept(keep))

    def describe_kept(self, keep: np.ndarray) -> dict[str, Any]:
        """The fields of some samples that do not say where they are stored."""
        video, videos = drop_unused(self.video[keep], self.videos)
        group, groups = drop_unused(self.group[keep], self.groups)
        return {
            "y": self.y[keep],
            "video": video,
            "videos": videos,
            "group": group,
            "groups": groups,
            "frame": self.frame[keep],
        }

    def name_of(self, feature: int) -> str:
        """Which frame a feature that `read` gives is of, for an error."""
        return f"{self.videos[self.video[feature]]} frame {self.frame[feature]}"

    def read(self, memmap: Path | None = None, threads: int | None = None) -> np.ndarray:
        """All features, float16, shape (N, dim); arguments as of `read_features`."""
        return gather(self, memmap, threads or count_cores())


def find_features(
    bank: Bank,
    labels: pa.Table,
    task: Task,
    split: str,
    *,
    videos: Collection[str] | None = None,
    limit: int | None = None,
    commits: Mapping[int, Commit] | None = None,
) -> FeatureIndex:
    """Find the features of a task and split without reading them.

    Arguments and errors are those of `read_features`. ``commits``, the result of
    `Bank.read_commits`, lets several calls see the same shards while an extract adds others.
    """
    # Keys of labelled and of extracted frames
    identity = bank.require_identity()
    labels, values = select_labelled(labels, task, split, videos)
    vocabulary = Vocabulary()
    commits = bank.read_commits() if commits is None else commits
    location = locate(bank, vocabulary, commits)
    label_keys = vocabulary.keys(labels)
    # Their join
    rows, picked, is_missing = _join(location.keys, label_keys, limit)
    if not len(rows):
        raise RaffectError(
            f"{bank.path}: no frame of {task.name} {split} has both a label and a feature "
            f"({len(label_keys)} are labelled); check --labels, the video filter and "
            "`raffect bank info`"
        )
    keys = label_keys[picked]
    if (doubled := keys[1:][np.diff(rows) == 0]).size:
        first = f"{vocabulary.names[doubled[0] >> 32]} frame {doubled[0] & 0xFFFFFFFF}"
        raise RaffectError(
            f"{task.name} labels name {doubled.size} frame(s) of {split} twice, "
            f"first {first}; run `raffect prepare` again"
        )
    shard = location.shard[rows]
    groups = labels.select([name for name in labels.column_names if name == "group"])
    return FeatureIndex(
        bank=bank,
        dim=identity.dim,
        shard=shard,
        row=location.row[rows],
        commits={number: commits[number] for number in np.unique(shard).tolist()},
        y=values[picked],
        **describe_samples(keys, groups.take(pa.array(picked)), vocabulary),
        missing=_count_missing(label_keys[is_missing], location),
    )


def describe_samples(keys: np.ndarray, labels: pa.Table, vocabulary: Vocabulary) -> dict[str, Any]:
    """Video, frame and group of each sample, as fields of `FeatureIndex`.

    Args:
        keys: Key of each sample, shape (N,).
        labels: Its row of the label table, of which only ``group`` is read.
        vocabulary: Of the keys.
    """
    # Videos and groups, renumbered to those that occur
    video, names = drop_unused((keys >> 32).astype(np.int32), vocabulary.names)
    group, groups = read_groups(labels, video, names)
    frame = (keys & 0xFFFFFFFF).astype(np.int32)
    return {"video": video, "videos": names, "frame": frame, "group": group, "groups": groups}


def _join(
    keys: np.ndarray, label_keys: np.ndarray, limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join labels with frames.

    Args:
        keys: Keys of frames in the order of the bank.
        label_keys: Keys of labels in any order.
        limit: At most so many pairs, the first ones in the order of the bank.

    Returns:
        Indices into ``keys``, ascending, and for each the index into ``label_keys``; and which
        labels have no frame.
    """
    # A bank of one generation is in order, and so are labels that `raffect prepare` wrote.
    order = None if is_ascending(keys) else np.argsort(keys, kind="stable")
    rows = positions(label_keys, keys if order is None else keys[order])
    is_missing = rows < 0
    picked = np.flatnonzero(~is_missing)
    rows = rows[picked] if order is None else order[rows[picked]]
    if not is_ascending(rows):
        by_row = np.argsort(rows, kind="stable")
        rows, picked = rows[by_row], picked[by_row]
    return rows[:limit], picked[:limit], is_missing


def select_labelled(
    labels: pa.Table, task: Task, split: str, videos: Collection[str] | None
) -> tuple[pa.Table, np.ndarray]:
    """Rows of a split, of some videos or of all, that have a label; and their values."""
    labels = select_split(labels, split)
    if videos is not None:
        wanted = pa.array(sorted(videos), pa.string())
        labels = labels.filter(pc.field("video").cast(pa.string()).isin(wanted))
    values = read_values(labels, task)
    known = task.is_labelled(values).any(axis=1)
    return labels.filter(pa.array(known)), values[known]


def read_features(
    bank: Bank,
    labels: pa.Table,
    task: Task,
    split: str,
    *,
    videos: Collection[str] | None = None,
    limit: int | None = None,
    memmap: Path | None = None,
    threads: int | None = None,
) -> Features:
    """Read all features of a task and split.

    Args:
        bank: A bank, finished or not.
        labels: Label table of the task.
        task: The task.
        split: ``"train"`` or ``"validation"``.
        videos: Only frames of these videos.
        limit: At most so many frames, the first ones in the order of the bank.
        memmap: Write the array to this ``.npy`` file and map it, for banks larger than memory.
        threads: Number of reading threads; all cores by default.

    Raises:
        RaffectError: If no frame remains, or a shard is damaged.
    """
    index = find_features(bank, labels, task, split, videos=videos, limit=limit)
    return Features(
        index.read(memmap, threads), index.y, index.video, index.frame, index.videos, index.missing
    )


def _count_missing(keys: np.ndarray, location: Location) -> Missing:
    rejected = int(np.isin(keys, location.rejected).sum())
    not_extracted = int(np.isin(keys, location.not_extracted).sum())
    return Missing(len(keys) - rejected - not_extracted, rejected, not_extracted)


def gather(index: FeatureIndex, memmap: Path | None, threads: int) -> np.ndarray:
    """Read all rows of an index; in their order, each shard fills one slice of the result.

    Returns:
        float16, shape (rows, dim).
    """
    # The result, in memory or in a file
    shape = (len(index.shard), index.dim)
    if memmap is None:
        out = np.empty(shape, np.float16)
    else:
        memmap.parent.mkdir(parents=True, exist_ok=True)
        out = np.lib.format.open_memmap(memmap, mode="w+", dtype=np.float16, shape=shape)
        _reserve(memmap)
    # One job a shard
    shards, starts = np.unique(index.shard, return_index=True)
    stops = np.append(starts[1:], len(index.shard))

    def fill(job: tuple[int, int, int]) -> None:
        shard, start, stop = job
        read_rows(index.bank, index.commits[shard], index.row[start:stop], out[start:stop])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, zip(shards.tolist(), starts.tolist(), stops.tolist(), strict=True)))
    return out


def _reserve(file: Path) -> None:
    """Take the space that a new file's size claims: a write to mapped pages without it is a crash.

    Raises:
        OSError: If the disk is too small; it names the file.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from error


def read_rows(bank: Bank, commit: Commit, rows: np.ndarray, out: np.ndarray) -> None:
    """Read some rows of a shard, in ascending order, into ``out`` of shape (rows, dim).

    Raises:
        RaffectError: If the shard is not as committed.
    """
    stored = read_shard_features(bank, commit, out.shape[1])
    # A slice is copied faster than single rows.
    if (np.diff(rows) == 1).all():
        out[:] = stored[rows[0] : rows[-1] + 1]
    else:
        np.take(stored, rows, axis=0, out=out)


def read_shard_features(bank: Bank, commit: Commit, dim: int) -> np.ndarray:
    """Features of one shard, from the bytes whose hash was compared with the committed one.

    Returns:
        float16, shape (rows, dim).

    Raises:
        RaffectError: If the file is not as committed.
    """
    try:
        features = parse_features(bank.read_committed(commit.features_file, commit.sha256), dim)
    except Damaged as error:
        raise bank.damaged(commit.features_file, error) from error
    if len(features) != commit.rows:
        why = Damaged(f"{len(features)} rows, its commit record says {commit.rows}")
        raise bank.damaged(commit.features_file, why)
    return features
