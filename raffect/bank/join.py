"""Join banks: several vectors of each frame, of other encoders or views, become one.

    bank A ─┐
    bank B ─┼─ the plan of A, shard by shard, frames found by video and frame ─ bank A+B
    bank C ─┘

The result is a bank like any other, with all of a bank's promises. It has the frames of the first
part. A frame that another part lacks, or that any part could not read, is a reject whose reason
names the part. Frames that a part plans and has not extracted leave their shard open.

At the end of each join the bank is a function of its parts: a shard whose sources have changed
since, because a part has grown or was repaired, is withdrawn and written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.features import read_shard_features
from raffect.bank.format import Bank
from raffect.bank.import_released import BY_FRAME
from raffect.bank.join_report import JoinReport, PartReport
from raffect.bank.joined import join_identities, name_of
from raffect.bank.locate import locate
from raffect.bank.plan import list_generations
from raffect.bank.records import Commit, How, Identity
from raffect.bank.running import note_of_run
from raffect.bank.verify import withdraw
from raffect.errors import require
from raffect.progress import Progress
from raffect.storage.keys import Vocabulary, absent, is_ascending, positions
from raffect.storage.paths import is_remote

_REJECTED, _WAITING, _LACKING = -1, -2, -3
"""Instead of the shard of a frame: it could not be read, is not extracted yet, is not planned."""


def join_banks(parts: Sequence[Path], path: Path, how: How = "concatenate") -> JoinReport:
    """Join banks into one, or bring a joined one up to date.

    Args:
        parts: Banks of different encoders or views, in order; the first one's frames are planned.
        path: The joined bank. Frames that are in it already and whose parts are as they were are
            kept, so a run that was killed goes on, and one of finished banks writes nothing.
        how: ``concatenate``: exactly the float16 numbers of the parts, one behind another.
            ``average``: their mean, computed in float32 and stored as float16. Vectors are
            averaged as the encoders gave them, not normalised: views of one encoder have about the
            same length, and where all views agree the mean is the encoder's own vector.

    Raises:
        RaffectError: If a part is missing or damaged, two parts are of one encoder and view, no
            frame is in all of them, the bank lies in a part or was joined of others, or another run
            writes into it.
    """
    banks = [Bank(part.absolute()).require() for part in parts]
    _require_outside(path, banks)
    identity = join_identities([bank.require_identity() for bank in banks], how)
    joined, vocabulary = Bank(path.absolute()), Vocabulary()
    sources = [_open_source(bank, vocabulary) for bank in banks]
    _require_common(sources)

    # Nothing is written, not even a note, where all is up to date
    known = joined.read_identity()
    if known is not None:
        known.require_equal(identity, joined.path)
    is_planned = _is_planned(joined, sources[0], vocabulary)
    written = replaced = 0
    if known is None or not is_planned or _Join(joined, sources, vocabulary).has_work:
        with note_of_run(joined.path, join=None):
            joined.claim(identity)
            if not is_planned:
                _plan(joined, banks[0])
            written, replaced = _Join(joined, sources, vocabulary).run(identity)
    return _Join(joined, sources, vocabulary).report(identity, written, replaced)


def _require_outside(path: Path, parts: Sequence[Bank]) -> None:
    """Refuse to write into a part, or below it.

    Raises:
        RaffectError: Names the part.
    """
    if is_remote(path):
        return
    place = path.resolve()
    for part in parts:
        own = part.path if is_remote(part.path) else part.path.resolve()
        require(
            own != place and own not in place.parents,
            f"--bank {path}: is in {part.path}, which is joined; name a folder outside all --banks",
        )


@dataclass
class _Source:
    """Where the vectors of a part are.

    Attributes:
        bank: The part.
        identity: Its identity.
        commits: Its committed shards.
        keys: Keys of all frames that it plans, int64, ascending, shape (F,).
        shard: Shard of each, or why it has no vector, shape (F,).
        row: Its row in the shard, -1 without a vector, shape (F,).
        reasons: Key of each frame that it could not read -> why.
        cached: Vectors of the shards that were read last, of which the next frames may need some.
    """

    bank: Bank
    identity: Identity
    commits: Mapping[int, Commit]
    keys: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    reasons: Mapping[int, str]
    cached: dict[int, np.ndarray] = field(default_factory=dict)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard, or why there is no vector, and row of some frames, each of shape (N,)."""
        places = positions(keys, self.keys)
        is_known = places >= 0
        shard = np.where(is_known, self.shard[places], _LACKING)
        return shard, np.where(is_known, self.row[places], -1)

    def read(self, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Vectors of some rows, float16, shape (N, dim); shards that they need stay in memory."""
        out, dim = np.empty((len(shard), self.identity.dim), np.float16), self.identity.dim
        needed = np.unique(shard).tolist()
        self.cached = {
            number: self.cached[number]
            if number in self.cached
            else read_shard_features(self.bank, self.commits[number], dim)
            for number in needed
        }
        for number in needed:
            is_of = shard == number
            out[is_of] = self.cached[number][row[is_of]]
        return out

    def why_not(self, key: int, code: int) -> str:
        """Why a frame has no vector: `_REJECTED` with the part's own reason, or `_LACKING`."""
        if code == _LACKING:
            return "lacks the frame"
        return f"could not read it: {self.reasons[key]}"


def _open_source(bank: Bank, vocabulary: Vocabulary) -> _Source:
    """Find every frame of a part; features are not read.

    Raises:
        RaffectError: If plan, records and rejects do not fit each other.
    """
    commits = bank.read_commits()
    found, table = locate(bank, vocabulary, commits), bank.read_rejects(commits.values())
    keys = np.concatenate([found.keys, found.rejected, found.not_extracted])
    lacking = ((found.rejected, _REJECTED), (found.not_extracted, _WAITING))
    codes = [np.full(len(of_kind), code, np.int32) for of_kind, code in lacking]
    shard = np.concatenate([found.shard, *codes])
    row = np.concatenate([found.row, np.full(len(keys) - len(found.keys), -1, np.int32)])
    if not is_ascending(keys):  # as a bank of one generation without rejects is
        order = np.argsort(keys, kind="stable")
        keys, shard, row = keys[order], shard[order], row[order]
    reasons = zip(vocabulary.keys(table).tolist(), table["reason"].to_pylist(), strict=True)
    return _Source(
        bank=bank,
        identity=bank.require_identity(),
        commits=commits,
        keys=keys,
        shard=shard,
        row=row,
        reasons=dict(reasons),
    )


def _require_common(sources: Sequence[_Source]) -> None:
    """Refuse parts that have no frame in common.

    Raises:
        RaffectError: Names their folders.
    """
    common = sources[0].keys
    for source in sources[1:]:
        common = common[positions(common, source.keys) >= 0]
    folders = " and ".join(str(source.bank.path) for source in sources)
    require(
        len(common) > 0,
        f"{folders}: no frame (video and number) is in all of them; join banks of the same data",
    )


# The plan


def _is_planned(joined: Bank, first: _Source, vocabulary: Vocabulary) -> bool:
    """Whether a joined bank plans every frame of its first part.

    Raises:
        RaffectError: If it plans others.
    """
    plan = joined.plan_of(list_generations(joined.path / "plan"))
    planned = vocabulary.keys(plan.table)
    gone = int(absent(planned, first.keys).sum())
    require(
        gone == 0,
        f"{joined.path} holds {gone:,} frames that {first.bank.path} lacks, so it was joined of "
        "another bank; delete it and join again, or join into a new --bank",
    )
    return len(planned) == len(first.keys)


def _plan(joined: Bank, first: Bank) -> None:
    """Plan the frames of the first part that are not planned yet, in shards of as many rows."""
    video = first.plan.table["video"].cast(pa.string())
    frames = pa.table({"video": video, "frame": first.plan.table["frame"]}).sort_by(BY_FRAME)
    is_new = not list_generations(joined.path / "plan")
    joined.extend_plan(frames, first.plan.shard_rows if is_new else None)


# Shards


class _Join:
    """What a joined bank should hold, beside what it holds."""

    def __init__(self, joined: Bank, sources: Sequence[_Source], vocabulary: Vocabulary) -> None:
        self.bank, self.sources = joined, sources
        self.keys = vocabulary.keys(joined.plan.table)
        self.places = [source.find(self.keys) for source in sources]
        self.commits = joined.read_commits()

        # Shards that can be written, those that are older than their parts, and those neither
        self.todo: dict[int, str] = {}
        self.outdated: list[int] = []
        for shard in range(joined.plan.num_shards):
            rows, record = self.rows_of(shard), self.commits.get(shard)
            is_open = any((codes[rows] == _WAITING).any() for codes, _ in self.places)
            digest = "" if is_open else self._digest(rows)
            if record is not None and record.sources == digest:
                continue
            if record is not None:
                self.outdated.append(shard)
            if not is_open:
                self.todo[shard] = digest

    @property
    def has_work(self) -> bool:
        """Whether something is to be written or withdrawn."""
        return bool(self.todo or self.outdated)

    def rows_of(self, shard: int) -> slice:
        """Rows of the plan that are in a shard."""
        start, stop = self.bank.plan.offsets[shard : shard + 2].tolist()
        return slice(start, stop)

    def _digest(self, rows: slice) -> str:
        """SHA-256 of where the vectors of some frames come from: shards by content, and rows."""
        digest = hashlib.sha256()
        for source, (codes, row) in zip(self.sources, self.places, strict=True):
            used, index = np.unique(codes[rows], return_inverse=True)
            names = [source.commits[k].sha256 if k >= 0 else k for k in used.tolist()]
            rejected = self.keys[rows][codes[rows] == _REJECTED].tolist()
            reasons = [source.reasons[key] for key in rejected]
            digest.update(json.dumps([names, reasons]).encode())
            digest.update(index.astype("<i4").tobytes() + row[rows].astype("<i4").tobytes())
        return digest.hexdigest()

    def run(self, identity: Identity) -> tuple[int, int]:
        """Withdraw what is older than its parts, and write what can be written.

        Returns:
            Frames that were written, and how many of them were there before.
        """
        withdraw(self.bank, self.outdated)
        lengths = np.diff(self.bank.plan.offsets)
        with Progress("join", int(lengths[list(self.todo)].sum())) as progress:
            for shard, digest in self.todo.items():
                self._write(shard, digest, identity)
                progress.advance(int(lengths[shard]))
        replaced = [shard for shard in self.outdated if shard in self.todo]
        return int(lengths[list(self.todo)].sum()), int(lengths[replaced].sum())

    def _write(self, shard: int, digest: str, identity: Identity) -> None:
        """Commit a shard of which every frame is read, or will never be."""
        assert identity.joined is not None
        rows = self.rows_of(shard)
        codes = np.stack([codes[rows] for codes, _ in self.places])
        is_good = (codes >= 0).all(axis=0)
        parts = [
            source.read(found[rows][is_good], row[rows][is_good])
            for source, (found, row) in zip(self.sources, self.places, strict=True)
        ]
        rejects = {
            int(k): self._reason(int(self.keys[rows][k]), codes[:, k])
            for k in np.flatnonzero(~is_good)
        }
        features = combine(parts, identity.joined.how)
        keys = self.bank.plan.rows(shard)
        self.bank.commit(shard, keys, features, rejects, identity, sources=digest)

    def _reason(self, key: int, codes: np.ndarray) -> str:
        """Why a frame is a reject: what each part without its vector says."""
        return "; ".join(
            f"part {number} ({name_of(source.identity)}) {source.why_not(key, code)}"
            for number, (source, code) in enumerate(zip(self.sources, codes, strict=True), 1)
            if code < 0
        )

    def report(self, identity: Identity, written: int, replaced: int) -> JoinReport:
        """Counts of what is there now."""
        assert identity.joined is not None
        parts = []
        for source, (codes, _) in zip(self.sources, self.places, strict=True):
            counts = {code: int((codes == code).sum()) for code in (_LACKING, _REJECTED, _WAITING)}
            parts.append(
                PartReport(
                    bank=source.bank.path,
                    name=name_of(source.identity),
                    dim=source.identity.dim,
                    lacking=counts[_LACKING],
                    rejected=counts[_REJECTED],
                    waiting=counts[_WAITING],
                    others=int(absent(source.keys, self.sources[0].keys).sum()),
                )
            )
        return JoinReport(
            bank=self.bank.path,
            how=identity.joined.how,
            identity=identity,
            parts=tuple(parts),
            planned=len(self.keys),
            rows=sum(commit.rows for commit in self.commits.values()),
            rejects=sum(commit.rejects for commit in self.commits.values()),
            written=written,
            replaced=replaced,
            size_bytes=sum(commit.size_bytes for commit in self.commits.values()),
        )


def combine(parts: Sequence[np.ndarray], how: How) -> np.ndarray:
    """One vector a frame from several, each float16 of shape (N, dim of its part).

    Returns:
        float16, shape (N, sum of dims) of a concatenation and (N, dim) of a mean.
    """
    if how == "concatenate":
        return np.concatenate(parts, axis=1)
    return np.stack(parts).mean(axis=0, dtype=np.float32).astype(np.float16)
