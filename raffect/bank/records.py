"""The JSON files of a bank: ``bank.json``, its encoder, and ``commits/*.json``, its shards.

The bank's digest covers the bytes of records and of format 1, so those keep theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len, MinLen

from raffect.errors import RaffectError
from raffect.storage.commits import content_name
from raffect.storage.records import Count, OtherFormat, Record, parse_object

FORMAT = 2
"""Version of the bank's format that this program writes; it reads 1 as well."""
MOST_DIM = 65_536
"""Greatest length of a feature."""
MOST_SHARDS = 1 << 31
"""Most shards of a bank."""
MOST_THREADS = 1024
"""Most CPU threads of an encoder."""

Text = Annotated[str, MinLen(1)]
Sha256 = Annotated[str, Len(64, 64)]


Precision = Literal["float16", "bfloat16", "float32"]
"""The arithmetic of an encoder."""
How = Literal["concatenate", "average"]
"""How vectors of several banks become one."""


@dataclass(frozen=True, kw_only=True)
class Joined(Record):
    """What a joined bank is made of.

    Attributes:
        how: Whether the vectors of a frame are put one behind another, or averaged.
        parts: The encoders, in order; a part may be joined itself.
    """

    how: How
    parts: Annotated[tuple[Identity, ...], MinLen(2)]


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
        arithmetic: Version of the tower's sums; 1 in banks of format 1.
        joined: The encoders of a joined bank (`raffect.bank.joined`), of whose compared fields
            ``weights_sha256`` is then a digest; None for a single encoder.
    """

    __pydantic_config__ = MappingProxyType({**Record.__pydantic_config__, "allow_inf_nan": False})

    model: Text
    weights_sha256: Text
    weights: str
    preprocess: Mapping[str, int | float | str | list[float]]
    precision: Precision
    dim: Annotated[int, Ge(1), Le(MOST_DIM)]
    normalised: Literal[False] = False
    caveat: str = ""
    arithmetic: Annotated[int, Ge(1)] = 1
    joined: Joined | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without ``joined`` where there is no such thing, as before."""
        return _without_joined(super().to_json())

    @property
    def compared(self) -> dict[str, Any]:
        """The fields that decide a vector."""
        return {name: getattr(self, name) for name in _COMPARED}

    @property
    def encoders(self) -> tuple[Identity, ...]:
        """The single encoders in order: those of the parts of a joined bank, or this one."""
        if self.joined is None:
            return (self,)
        return tuple(one for part in self.joined.parts for one in part.encoders)

    def differences(self, other: Identity) -> list[str]:
        """One line per compared field that differs from ``other``, of joined ones by part."""
        if lines := self._differences_of_parts(other):
            return lines
        out = []
        for name in _COMPARED:
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                # A fingerprint is easier to recognise beside the name of its weights.
                if name == "weights_sha256":
                    ours = f"{ours[:12]} ({self.weights})"
                    theirs = f"{theirs[:12]} ({other.weights})"
                elif name == "preprocess" and ours and theirs:
                    ours, theirs = _that_differ(ours, theirs), _that_differ(theirs, ours)
                out.append(f"{name}: {ours} against {theirs}")
        return out

    def _differences_of_parts(self, other: Identity) -> list[str]:
        """Differences by part; empty unless both are joined in the same way of as many parts."""
        ours, theirs = self.joined, other.joined
        if ours is None or theirs is None or ours.how != theirs.how:
            return []
        if len(ours.parts) != len(theirs.parts):
            return []
        return [
            f"part {number} {line}"
            for number, (one, two) in enumerate(zip(ours.parts, theirs.parts, strict=True), 1)
            for line in one.differences(two)
        ]

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

    def to_first_bytes(self) -> bytes:
        """``bank.json`` as raffect of November 2026 wrote it, on which a bank's digest rests.

        Runs that were trained on a bank of format 1 know it by those bytes.
        """
        fields = self.to_json()
        arithmetic, caveat = fields.pop("arithmetic"), fields.pop("caveat")
        fields["stamp"] = _FIRST_CAVEAT if caveat == _CAVEAT else caveat
        if arithmetic > 1:
            fields["arithmetic"] = arithmetic
        return (json.dumps({"format": 1, "identity": fields}, indent=1) + "\n").encode()


def _without_joined(identity: dict[str, Any]) -> dict[str, Any]:
    """The fields of an identity, without ``joined`` for a single encoder."""
    if identity["joined"] is None:
        del identity["joined"]
    return identity


_CAVEAT, _FIRST_CAVEAT = "embedded encoder, not CLIP", "embedded encoder, drawn faces"


def _that_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of our settings that they have otherwise or not at all."""
    return {k: v for k, v in ours.items() if k not in theirs or theirs[k] != v}


_COMPARED = ("model", "weights_sha256", "preprocess", "precision", "arithmetic", "dim")


@dataclass(frozen=True, kw_only=True)
class BankFile(Record):
    """The content of ``bank.json``.

    Attributes:
        format: Of the bank; a bank of format 1 becomes one of format 2 when it is continued.
        identity: Which encoder made the features.
        threads: CPU threads of each encoder, which decide the last bits of a vector; None if no
            encoder has run on a CPU yet, or only in format 1, which did not record it.
        digest: SHA-256 of the other fields; None in format 1.
    """

    format: Literal[1, 2] = FORMAT
    identity: Identity
    threads: Annotated[int, Ge(1), Le(MOST_THREADS)] | None = None
    digest: Sha256 | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the digest of what they are now."""
        content = super().to_json()
        del content["digest"]
        _without_joined(content["identity"])
        text = json.dumps(content, sort_keys=True)
        return content | {"digest": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True, kw_only=True)
class Commit(Record):
    """What a finished shard is.

    Attributes:
        shard: Its number in the plan, from 0.
        rows: Frames that have a feature.
        rejects: Frames that could not be read.
        files: Path of each file relative to the bank -> (size in bytes, SHA-256).
        pictures: Digest of the pictures that became features (`raffect.bank.pictures`); None in
            format 1 and where features were imported.
        sources: In a joined bank, digest of where its vectors come from (`raffect.bank.join`).
    """

    shard: Annotated[int, Ge(0), Le(MOST_SHARDS)]
    rows: Count
    rejects: Count
    files: Mapping[str, tuple[Count, Sha256]]
    pictures: Sha256 | None = None
    sources: Sha256 | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without ``pictures`` and ``sources`` where there is no digest."""
        content = super().to_json()
        for name in ("pictures", "sources"):
            if content[name] is None:
                del content[name]
        return content

    @property
    def features_file(self) -> str:
        """Path of its features relative to the bank."""
        return next(name for name in self.files if name.startswith("shards/"))

    @property
    def rejects_file(self) -> str | None:
        """Path of its rejects relative to the bank; None if every frame could be read."""
        return next((name for name in self.files if name.startswith("rejects/")), None)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file with its features."""
        return self.files[self.features_file][1]

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(size for size, _ in self.files.values())


def file_name(folder: str, shard: int, sha256: str) -> str:
    """Path of a shard's file relative to its bank.

    Args:
        folder: ``shards`` or ``rejects``.
        shard: Its number in the plan.
        sha256: SHA-256 of the file.
    """
    return content_name(folder, f"{shard:06d}", sha256)


def is_file_of(name: str, shard: int) -> bool:
    """Whether a file in ``shards/`` or ``rejects/`` has the name of one of a shard's."""
    return name.endswith(".parquet") and name.startswith((f"{shard:06d}.", f"{shard:06d}-"))


def parse_bank_file(content: bytes, file: Path) -> BankFile:
    """What is in the bytes of ``bank.json``.

    Raises:
        RaffectError: If they are damaged, or of another format.
    """
    remedy = "restore it from a backup or extract into a new bank"
    try:
        found = parse_object(content, file, remedy)
        found = found | {"identity": translate_first_identity(found.get("identity"))}
        read = BankFile.from_json(found, file, remedy)
        if read.format > 1 and read.digest != read.to_json()["digest"]:
            what = "damaged, not what was written (SHA-256 differs)"
            raise RaffectError(f"{file}: {what}; {remedy}")
    except OtherFormat:
        raise
    except RaffectError as error:
        withdrawal = "or let `raffect bank verify --repair` withdraw it"
        raise RaffectError(f"{error}, {withdrawal}") from error
    return read


def translate_first_identity(identity: Any) -> Any:
    """An identity with today's names; raffect of November 2026 called the caveat ``stamp``.

    Its caveat of the embedded encoder spoke of images too, which no encoder knows.
    """
    if not isinstance(identity, dict):
        return identity
    new = {("caveat" if name == "stamp" else name): value for name, value in identity.items()}
    if new.get("caveat") == _FIRST_CAVEAT:
        new["caveat"] = _CAVEAT
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
    folders = ["shards", "rejects"] if record.rejects else ["shards"]
    is_sound = name == f"{record.shard:06d}.json" and len(record.files) == len(folders)
    return record if is_sound and all(_names_one(record, folder) for folder in folders) else None


def _names_one(record: Commit, folder: str) -> bool:
    """Whether a record names a file of its shard in a folder, as format 2 or format 1 does."""
    first = f"{folder}/{record.shard:06d}.parquet"
    return any(
        name in (first, file_name(folder, record.shard, sha256))
        for name, (_, sha256) in record.files.items()
    )
