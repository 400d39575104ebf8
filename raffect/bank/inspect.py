"""What a bank holds: counts, and a table by video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Identity
from raffect.bank.records import Count
from raffect.progress import format_bytes
from raffect.storage.keys import Vocabulary
from raffect.storage.paths import list_sizes
from raffect.storage.records import Record


@dataclass(frozen=True, kw_only=True)
class ShardCounts(Record):
    """Shards of a bank: in the plan, committed, and most rows that one has."""

    planned: Count
    committed: Count
    rows: Count


@dataclass(frozen=True, kw_only=True)
class BankFacts(Record):
    """What a bank holds.

    Attributes:
        bank: Its folder.
        identity: Which encoder made its features; None if nothing was extracted yet.
        planned: Frames in its plan.
        rows: Frames with a feature.
        rejects: Frames that could not be read.
        shards: How many shards.
        videos: Videos in its plan.
        bytes: Size of its features and rejects in bytes.
        digest: SHA-256 over identity and commits; equal banks, and only equal banks, have equal
            digests.
        broken: Commit records that are unreadable, or whose files are missing or of another size.
        runs: Extractions that wrote to it.
    """

    bank: str
    identity: Identity | None
    planned: Count
    rows: Count
    rejects: Count
    shards: ShardCounts
    videos: Count
    bytes: Count
    digest: str | None
    broken: Count
    runs: Count

    @property
    def missing(self) -> int:
        """Planned frames that are neither a feature nor a reject."""
        return self.planned - self.rows - self.rejects

    @property
    def caveat(self) -> str:
        """What every result based on it must say; empty for pretrained weights."""
        return self.identity.caveat if self.identity else ""

    def lines(self) -> list[str]:
        """The same as lines of text."""
        # Counts
        shards, size = self.shards, format_bytes(self.bytes)
        planned = f"{self.planned:,} planned frames in {self.videos:,} videos"
        committed = f"{shards.committed:,} of {shards.planned:,} committed"
        out = [
            f"bank: {self.bank}",
            f"rows: {self.rows:,} features + {self.rejects:,} rejects of {planned}, {size}",
            f"shards: {committed}, up to {shards.rows:,} rows each; {self.runs} extract run(s)",
        ]
        # Faults, and the encoder
        if self.broken:
            what = f"{self.broken} committed shard(s) lack a file or have another size"
            out.append(f"broken: {what}; see `raffect bank verify`")
        return out + (self._encoder_lines(self.identity) if self.identity else [_NO_ENCODER])

    def _encoder_lines(self, identity: Identity) -> list[str]:
        lines = [line for single in identity.encoders for line in _single_lines(single)]
        if identity.joined:
            lines.insert(0, f"joined: {identity.model}, {identity.weights}, {identity.dim}-d, raw")
        caveat = [f"caveat: {identity.caveat}"] if identity.caveat else []
        return [*lines, f"digest: {self.digest}", *caveat]


def _single_lines(identity: Identity) -> list[str]:
    """What made vectors, if that is one encoder."""
    weights = f"weights {identity.weights} ({identity.weights_sha256[:12]})"
    preprocess = ", ".join(f"{name} {value}" for name, value in identity.preprocess.items())
    return [
        f"encoder: {identity.model}, {weights}, {identity.precision}, {identity.dim}-d, raw",
        f"preprocess: {preprocess}",
    ]


_NO_ENCODER = "encoder: none yet; nothing was extracted"


def describe_bank(bank: Bank) -> BankFacts:
    """Describe a bank from its plan and its commit records; features are not read.

    Raises:
        RaffectError: If it is not a bank, or its plan or identity is damaged.
    """
    records = list_sizes(bank.require().path / "commits")
    plan, commits, identity = bank.plan, bank.read_commits(), bank.read_identity()
    return BankFacts(
        bank=str(bank.path),
        identity=identity,
        planned=len(plan.table),
        rows=sum(commit.rows for commit in commits.values()),
        rejects=sum(commit.rejects for commit in commits.values()),
        shards=ShardCounts(planned=plan.num_shards, committed=len(commits), rows=plan.shard_rows),
        videos=len(plan.table["video"].unique()),
        bytes=sum(commit.size_bytes for commit in commits.values()),
        digest=bank.digest(commits) if identity else None,
        broken=len(records.keys() - {bank.commit_path(shard).name for shard in commits}),
        runs=len(list_sizes(bank.path / "runs")),
    )


def count_videos(bank: Bank) -> pa.Table:
    """Count a bank's frames by video.

    Returns:
        One row for each video, sorted by name: ``video``, and numbers of frames ``planned``,
        ``features``, ``rejects`` and ``missing``, int64; ``.to_pandas()`` makes it a data frame.

    Raises:
        RaffectError: If it is not a bank, or a rejects file is damaged.
    """
    # The video of each planned frame, and whether its shard is committed
    plan, commits = bank.require().plan, bank.read_commits()
    lengths = np.diff(plan.offsets)
    is_committed = np.repeat(np.isin(np.arange(plan.num_shards), list(commits)), lengths)
    vocabulary = Vocabulary()
    video = vocabulary.keys(plan.table) >> 32
    # Counts by video: a committed frame is a feature or a reject.
    rejected = vocabulary.keys(bank.read_rejects(commits.values())) >> 32
    most = len(vocabulary.names)
    planned = np.bincount(video, minlength=most)
    rejects = np.bincount(rejected, minlength=most)
    features = np.bincount(video[is_committed], minlength=most) - rejects
    columns = {
        "planned": planned,
        "features": features,
        "rejects": rejects,
        "missing": planned - features - rejects,
    }
    return pa.table({"video": pa.array(vocabulary.names, pa.string()), **columns}).sort_by("video")
