"""Which pictures a bank's features were made from: one digest a shard.

The digest is the SHA-256 over the encoded pictures that became features, in the order of the plan,
each behind its length in bytes (8 bytes, little-endian). It depends on their bytes alone, so
pictures may be moved, renamed or packed. Rejects are not in it: their files may be mended.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Commit, Plan
from raffect.config import count_cores
from raffect.datasets.frames import BadFrame, read_contents
from raffect.datasets.manifest_paths import Manifest, take_frames
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, is_ascending, positions


class PictureDigest:
    """Digest of pictures that are added one after another."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, content: bytes) -> None:
        """Add an encoded picture."""
        self._digest.update(len(content).to_bytes(8, "little"))
        self._digest.update(content)

    def hexdigest(self) -> str:
        """The digest of all pictures so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class PictureCheck:
    """What a comparison of a bank with pictures found.

    Attributes:
        compared: Shards whose pictures could all be read.
        known: Shards with a digest of their pictures.
        unknown: Shards without one: of format 1, or imported.
        changed: Shards that were made from other pictures.
        unreadable: Shards of which a picture is gone or cannot be read, which proves no change.
    """

    compared: int
    known: int
    unknown: int
    changed: tuple[int, ...]
    unreadable: tuple[int, ...] = ()

    def line(self) -> str:
        """The result as text."""
        counts = f"{self.compared:,} of {self.known:,} shards with a digest compared"
        line = f"pictures: {counts}, {len(self.changed):,} were made from other pictures"
        if self.unknown:
            line += f"; sound without one (format 1, or imported): {self.unknown:,}"
        if self.unreadable:
            line += f"; not compared, since a picture cannot be read: {len(self.unreadable):,}"
            line += f" (shard {self.unreadable[0]:06d} first; nothing is withdrawn for that)"
        return line


def check_pictures(
    bank: Bank,
    manifest: pa.Table | Manifest,
    sample: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> PictureCheck:
    """Read a manifest's pictures again and compare them with those that a bank was made from.

    Args:
        bank: A bank.
        manifest: A manifest of its frames; images may lie elsewhere than when they were encoded.
        sample: At most so many shards, drawn by the number of shards there are; all if None.
        progress: Called with the number of frames of each shard that is done.

    Raises:
        RaffectError: If an image root cannot be read, or the manifest lacks frames of the bank.
    """
    plan = bank.known_plan
    planned = range(plan.num_shards)  # `verify` names shards beyond it
    commits = {shard: one for shard, one in bank.read_commits().items() if shard in planned}
    known = [shard for shard, record in commits.items() if record.pictures]
    picked = known
    if sample is not None and sample < len(known):
        picked = sorted(random.Random(len(known)).sample(known, sample))
    changed, unreadable = [], []
    chosen = {shard: commits[shard] for shard in picked}
    for shard, digest in _digests(bank, plan, manifest, chosen):
        if digest is None:
            unreadable.append(shard)
        elif digest != commits[shard].pictures:
            changed.append(shard)
        progress(commits[shard].rows)
    return PictureCheck(
        compared=len(picked) - len(unreadable),
        known=len(known),
        unknown=len(commits) - len(known),
        changed=tuple(changed),
        unreadable=tuple(unreadable),
    )


def require_same_pictures(bank: Bank, manifest: pa.Table | Manifest) -> PictureCheck:
    """Refuse to continue a bank with other pictures, by those of one shard.

    Pictures that are gone stop nothing: their features are there, and others may be added.

    Returns:
        What was compared.

    Raises:
        RaffectError: If that shard was made from other pictures than the manifest lists now.
    """
    found = check_pictures(bank, manifest, sample=1)
    if found.changed:
        raise RaffectError(
            f"{bank.path}: shard {found.changed[0]:06d} was made from other pictures than the "
            "manifest lists now; bring those back or use a new --bank (`raffect bank verify "
            "--pictures` names all such shards, and --repair withdraws them)"
        )
    return found


def _digests(
    bank: Bank, plan: Plan, manifest: pa.Table | Manifest, commits: Mapping[int, Commit]
) -> Iterator[tuple[int, str | None]]:
    """Each shard, and the digest of the manifest's pictures for it; None if one is unreadable."""
    # Keys of the manifest, which are ascending unless it was made by hand
    frames = manifest.frames if isinstance(manifest, Manifest) else manifest
    vocabulary = Vocabulary()
    listed = vocabulary.keys(frames)
    order = None if is_ascending(listed) else np.argsort(listed, kind="stable")
    listed = listed if order is None else listed[order]
    rejected = np.sort(vocabulary.keys(bank.read_rejects(commits.values())))

    # Rows of the manifest that became features of each shard, without those that were rejected
    rows, lost = {}, 0
    for shard in commits:
        planned = vocabulary.keys(plan.rows(shard))
        found = positions(planned, listed)
        lost += int((found < 0).sum())
        found = found[positions(planned, rejected) < 0]
        rows[shard] = found if order is None else order[found]
    if lost:
        raise RaffectError(f"{bank.path} holds {lost} frames that the manifest lacks")

    def read(shard: int) -> tuple[int, str | None]:
        own = rows[shard]
        return shard, _digest(read_contents(take_frames(manifest, own)) if len(own) else ())

    with ThreadPoolExecutor(count_cores()) as pool:
        yield from pool.map(read, commits)


def _digest(contents: Iterable[bytes | BadFrame]) -> str | None:
    """The digest of pictures; None if one of them cannot be read any more."""
    digest = PictureDigest()
    for content in contents:
        if isinstance(content, BadFrame):
            return None
        digest.add(content)
    return digest.hexdigest()
