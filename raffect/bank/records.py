"""The JSON files of a bank: ``bank.json``, its encoder, and ``commits/*.json``, its shards.

The bank's digest covers their bytes, so they are never changed once they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len, MinLen

from raffect.errors import RaffectError
from raffect.storage.records import Count, Record, parse_object

FORMAT = 1
"""Version of the bank's format that this program reads and writes."""
MOST_DIM = 65_536
"""Greatest length of a feature."""

Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Identity(Record):
    """Which encoder made the features. Banks with equal compared fields hold comparable features.

    Attributes:
        model: open_clip model name.
        weights_sha256: Fingerprint of the loaded image-tower tensors.
        weights: How they were asked for (tag, file name, ``random:0``); informative, not compared.
        preprocess: Image size, mean, std, interpolation and resize mode.
        precision: Arithmetic of the encoder; features are stored as float16 in any case.
        dim: Length of a feature, 1 to 65,536.
        normalised: Always false: features are stored raw and normalised when they are used.
        caveat: What every table based on the bank must say; empty for pretrained weights.
    """

    model: Text
    weights_sha256: Text
    weights: str
    preprocess: Mapping[str, int | float | str | list[float]]
    precision: Literal["float16", "bfloat16", "float32"]
    dim: Annotated[int, Ge(1), Le(MOST_DIM)]
    normalised: Literal[False] = False
    caveat: str = ""

    def differences(self, other: Identity) -> list[str]:
        """One line per compared field that differs from ``other``."""
        out = []
        for name in ("model", "weights_sha256", "preprocess", "precision", "dim"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                # A fingerprint is easier to recognise beside the name of its weights.
                if name == "weights_sha256":
                    ours = f"{ours[:12]} ({self.weights})"
                    theirs = f"{theirs[:12]} ({other.weights})"
                out.append(f"{name}: {ours} against {theirs}")
        return out

    def require_equal(self, other: Identity, bank: Path) -> None:
        """Raise unless ``other`` makes comparable features.

        Raises:
            RaffectError: If it does not; the message names every difference.
        """
        if differences := self.differences(other):
            raise RaffectError(
                f"{bank} was made by another encoder; bank against this run: "
                f"{'; '.join(differences)}; use the bank's encoder or a new --bank"
            )


@dataclass(frozen=True, kw_only=True)
class BankFile(Record):
    """The content of ``bank.json``."""

    format: Literal[1] = FORMAT
    identity: Identity


@dataclass(frozen=True, kw_only=True)
class Commit(Record):
    """What a finished shard is.

    Attributes:
        shard: Its number in the plan, from 0.
        rows: Frames that have a feature.
        rejects: Frames that could not be read.
        files: Path of each file relative to the bank -> (size in bytes, SHA-256).
    """

    shard: Count
    rows: Count
    rejects: Count
    files: Mapping[str, tuple[Count, Annotated[str, Len(64, 64)]]]

    @property
    def sha256(self) -> str:
        """SHA-256 of the file with its features."""
        return self.files[shard_name(self.shard)][1]

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(size for size, _ in self.files.values())


def shard_name(shard: int) -> str:
    """Path of a shard's features relative to its bank."""
    return f"shards/{shard:06d}.parquet"


def rejects_name(shard: int) -> str:
    """Path of a shard's rejects relative to its bank."""
    return f"rejects/{shard:06d}.parquet"


def parse_identity(content: bytes, file: Path) -> Identity:
    """The identity in the bytes of ``bank.json``.

    Raises:
        RaffectError: If they are damaged, or of another format.
    """
    remedy = "restore it from a backup or extract into a new bank"
    found = parse_object(content, file, remedy)
    found = found | {"identity": translate_first_identity(found.get("identity"))}
    return BankFile.from_json(found, file, remedy).identity


def translate_first_identity(identity: Any) -> Any:
    """An identity with today's names; raffect of November 2026 called the caveat ``stamp``.

    Its caveat of the embedded encoder spoke of images too, which no encoder knows.
    """
    if not isinstance(identity, dict):
        return identity
    new = {("caveat" if name == "stamp" else name): value for name, value in identity.items()}
    if new.get("caveat") == "embedded encoder, drawn faces":
        new["caveat"] = "embedded encoder, not CLIP"
    return new


def parse_commit(name: str, content: bytes) -> Commit | None:
    """The commit record in a file, or None if it is damaged; its shard is then encoded again.

    A record must name exactly the files that such a shard has, so that no file outside the bank is
    ever touched.
    """
    try:
        record = Commit.from_json(content, name, "extract again")
    except RaffectError:
        return None
    files = {shard_name(record.shard)}
    if record.rejects:
        files.add(rejects_name(record.shard))
    is_sound = name == f"{record.shard:06d}.json" and record.files.keys() == files
    return record if is_sound else None
