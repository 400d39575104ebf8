"""Features of a task and split as one contiguous array, joined with their labels on (video, frame).

The plan and the rejects say which row of which shard holds a frame, so only feature columns of shards that matter are
read, each once, straight into place, by threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.bank.format import Bank, Commit, shard_name
from raffect.config import count_cores
from raffect.datasets.labels import read_values, select_split
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, encode_video, positions
from raffect.storage.paths import Damaged, parse_parquet

MOST_GROUPS = 1000
"""Groups that statistics are kept of; what a data set has more of (pictures, clips) is dealt into blocks."""


@dataclass(frozen=True)
class Missing:
    """Labelled frames without a feature, by why.

    Attributes:
        no_image: Not in the bank's plan: the manifest lists no image of them.
        rejected: Their image could not be read.
        not_extracted: Planned, but their shard is not committed yet, or is damaged or gone: the bank is incomplete.
    """

    no_image: int = 0
    rejected: int = 0
    not_extracted: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.no_image + self.rejected + self.not_extracted


@dataclass(frozen=True)
class Features:
    """N frames that have a feature and a label, in the order of the bank.

    Attributes:
        x: float16, shape (N, dim), C-contiguous; a `numpy.memmap` where asked for.
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
    """Where N labelled frames' features lie, in the order of the bank.

    Attributes:
        bank: The bank.
        dim: Length of a feature.
        shard: Shard of each frame, ascending, shape (N,).
        row: Its row there.
        sha256: What was committed for each shard that is used.
        y: Labels, shape (N, columns of the task).
        video: Number of each frame's video in ``videos``, int32, shape (N,).
        frame: 1-based frame numbers, int32, shape (N,).
        videos: Names of videos.
        group: Number of each frame's group in ``groups``, int32, shape (N,): what intervals and folds keep together.
        groups: Names of groups: videos, or what the label table's column ``group`` says; at most `MOST_GROUPS`.
        missing: Labelled frames without a feature, and why.
    """

    bank: Bank
    dim: int
    shard: np.ndarray
    row: np.ndarray
    sha256: Mapping[int, str]
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
        """Only some frames, and the videos and groups they belong to; ``keep`` is a mask of shape (N,)."""
        video, videos = _renumber(self.video[keep], self.videos)
        group, groups = _renumber(self.group[keep], self.groups)
        return replace(
            self,
            shard=self.shard[keep],
            row=self.row[keep],
            y=self.y[keep],
            video=video,
            videos=videos,
            group=group,
            groups=groups,
            frame=self.frame[keep],
        )

    def read(self, memmap: Path | None = None, threads: int | None = None) -> np.ndarray:
        """All features, each shard read once, straight into place: float16, shape (N, dim)."""
        return _gather(self, memmap, threads or count_cores())


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
    """Find the features of a task and split without reading them; arguments and errors as of `read_features`.

    ``commits``, of `Bank.read_commits`, make several calls see the same shards while an extract adds others.
    """
    identity = bank.require().read_identity()
    if identity is None:
        raise RaffectError(f"{bank.path}: nothing extracted yet; run `raffect extract` on it")
    labels = select_split(labels, split)
    if videos is not None:
        labels = labels.filter(
            pc.field("video").cast(pa.string()).isin(pa.array(sorted(videos), pa.string()))
        )
    values = read_values(labels, task)
    known = task.is_labelled(values).any(axis=1)
    labels, values = labels.filter(pa.array(known)), values[known]

    vocabulary = Vocabulary()
    commits = bank.read_commits() if commits is None else commits
    location = _locate(bank, vocabulary, commits)
    label_keys = vocabulary.keys(labels)
    order = np.argsort(location.keys, kind="stable")
    found = positions(label_keys, location.keys[order])
    rows = order[found[found >= 0]]
    picked = np.flatnonzero(found >= 0)
    by_row = np.argsort(rows, kind="stable")[:limit]
    rows, picked = rows[by_row], picked[by_row]
    if not len(rows):
        raise RaffectError(
            f"{bank.path}: no frame of {task.name} {split} has both a label and a feature ({len(label_keys)} are labelled); check --labels, the video filter and `raffect bank info`"
        )
    keys = label_keys[picked]
    if (doubled := np.flatnonzero(np.diff(rows) == 0)).size:
        key = int(keys[doubled[0]])
        raise RaffectError(
            f"{task.name} labels name {doubled.size} frame(s) of {split} twice, first {vocabulary.names[key >> 32]} frame {key & 0xFFFFFFFF}; run `raffect prepare` again"
        )
    numbers, video = np.unique(keys >> 32, return_inverse=True)
    names = [vocabulary.names[number] for number in numbers]
    frame = (keys & 0xFFFFFFFF).astype(np.int32)
    shard = location.shard[rows]
    sha256 = {number: commits[number].sha256 for number in np.unique(shard).tolist()}
    missing = _count_missing(label_keys[found < 0], location)
    video = video.astype(np.int32)
    group, groups = _read_groups(labels.take(pa.array(picked)), video, names)
    return FeatureIndex(
        bank,
        identity.dim,
        shard,
        location.row[rows],
        sha256,
        values[picked],
        video,
        frame,
        names,
        group,
        groups,
        missing,
    )


def _read_groups(
    labels: pa.Table, video: np.ndarray, videos: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Group of each row, and their names; more than `MOST_GROUPS` are dealt into so many blocks by hash."""
    if "group" in labels.column_names:
        column = encode_video(labels["group"])
        group, groups = _renumber(
            column.indices.to_numpy(zero_copy_only=False), column.dictionary.to_pylist()
        )
    else:
        group, groups = video, videos
    if len(groups) <= MOST_GROUPS:
        return group, groups
    block = np.array(
        [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % MOST_GROUPS for name in groups]
    )
    return _renumber(block[group], [f"block {number:03d}" for number in range(MOST_GROUPS)])


def _renumber(number: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers and names without those that do not occur."""
    kept, new = np.unique(number, return_inverse=True)
    return new.astype(np.int32), [names[k] for k in kept]


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
        threads: Readers; all cores by default.

    Raises:
        RaffectError: If no frame remains, or a shard is damaged.
    """
    index = find_features(bank, labels, task, split, videos=videos, limit=limit)
    return Features(
        index.read(memmap, threads), index.y, index.video, index.frame, index.videos, index.missing
    )


@dataclass(frozen=True)
class _Location:
    """Where every extracted frame is: its key, its shard and its row there, in the order of the bank; and which planned frames are not."""

    keys: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    rejected: np.ndarray
    not_extracted: np.ndarray


def _locate(bank: Bank, vocabulary: Vocabulary, commits: Mapping[int, Commit]) -> _Location:
    plan = bank.plan
    keys = vocabulary.keys(plan.table)
    lengths = np.diff(plan.offsets)
    shard = np.repeat(np.arange(plan.num_shards), lengths)
    is_committed = np.repeat(np.isin(np.arange(plan.num_shards), list(commits)), lengths)
    for number, record in commits.items():
        if number >= plan.num_shards or record.rows + record.rejects != lengths[number]:
            raise RaffectError(
                f"{bank.path}: shard {number:06d} does not fit the plan; run `raffect bank verify`"
            )
    is_rejected = np.isin(keys, vocabulary.keys(bank.read_rejects(commits.values())))
    keep = is_committed & ~is_rejected
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    row = kept_before[:-1] - kept_before[plan.offsets[shard]]
    return _Location(
        keys[keep], shard[keep], row[keep], keys[is_committed & is_rejected], keys[~is_committed]
    )


def _count_missing(keys: np.ndarray, location: _Location) -> Missing:
    rejected, not_extracted = (
        int(np.isin(keys, location.rejected).sum()),
        int(np.isin(keys, location.not_extracted).sum()),
    )
    return Missing(len(keys) - rejected - not_extracted, rejected, not_extracted)


def _gather(index: FeatureIndex, memmap: Path | None, threads: int) -> np.ndarray:
    """Feature rows in the order of the bank, so that each shard fills one run of the result."""
    shape = (len(index), index.dim)
    if memmap is None:
        out = np.empty(shape, np.float16)
    else:
        memmap.parent.mkdir(parents=True, exist_ok=True)
        out = np.lib.format.open_memmap(memmap, mode="w+", dtype=np.float16, shape=shape)
    shards, starts = np.unique(index.shard, return_index=True)
    stops = np.append(starts[1:], len(index))

    def fill(job: tuple[int, int, int]) -> None:
        shard, start, stop = job
        read_rows(index.bank, shard, index.sha256[shard], index.row[start:stop], out[start:stop])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, zip(shards.tolist(), starts.tolist(), stops.tolist(), strict=True)))
    return out


def read_rows(bank: Bank, shard: int, sha256: str, rows: np.ndarray, out: np.ndarray) -> None:
    """Some rows of a shard, which ascend, into ``out`` of shape (rows, dim).

    Raises:
        RaffectError: If the shard is not as committed.
    """
    stored = read_shard_features(bank, shard, sha256, out.shape[1])
    if rows[-1] >= len(stored):
        raise bank.damaged(shard_name(shard), Damaged(f"{len(stored)} rows, fewer than committed"))
    if (np.diff(rows) == 1).all():
        out[:] = stored[rows[0] : rows[-1] + 1]
    else:
        np.take(stored, rows, axis=0, out=out)


def read_shard_features(bank: Bank, shard: int, sha256: str, dim: int) -> np.ndarray:
    """Features of one shard: float16, shape (rows, dim), from the very bytes whose hash was compared with the committed one.

    Raises:
        RaffectError: If the file is not as committed.
    """
    name = shard_name(shard)
    try:
        column = parse_parquet(bank.read_committed(name, sha256), ["feature"])["feature"]
    except Damaged as error:
        raise bank.damaged(name, error) from error
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if array.type != pa.binary(2 * dim):
        raise bank.damaged(
            name, Damaged(f"features of type {array.type}, expected {2 * dim} bytes")
        )
    if not len(array):
        return np.empty((0, dim), np.float16)
    return np.frombuffer(
        array.buffers()[1], "<f2", count=len(array) * dim, offset=2 * dim * array.offset
    ).reshape(len(array), dim)
