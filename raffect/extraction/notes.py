"""Reports of the three steps of a shard, as JSON in an Arrow cell beside pixels and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

import pyarrow as pa
from annotated_types import Ge

from raffect.bank.records import Count, Identity, Sha256
from raffect.storage.records import Record

Seconds = Annotated[float, Ge(0)]
Notes = TypeVar("Notes", bound=Record)


@dataclass(frozen=True, kw_only=True)
class ReadNotes(Record):
    """Report of reading and decoding.

    Attributes:
        read_s: Wall seconds of reading.
        decode_s: Wall seconds of decoding.
        read_cpu_s: CPU seconds of both together.
        pictures: Digest of the pictures that were decoded (`raffect.bank.pictures`); None if
            reading failed.
    """

    read_s: Seconds
    decode_s: Seconds
    read_cpu_s: Seconds
    pictures: Sha256 | None = None


@dataclass(frozen=True, kw_only=True)
class EncodeNotes(Record):
    """Report of encoding.

    Attributes:
        encode_start: When it began, in seconds since 1970.
        encode_end: When it ended, in seconds since 1970.
        encoder: Name of the actor.
        batch_size: Frames of a step of the encoder after this shard.
        asked_batch_size: Frames of a step that were asked for; larger if memory ran out.
        bare_frames_per_s: Rate of this encoder on tensors that are ready.
        identity: The encoder that made the features.
        threads: Its CPU threads; None on a GPU.
    """

    encode_start: Seconds
    encode_end: Seconds
    encoder: str
    batch_size: Annotated[int, Ge(1)]
    asked_batch_size: Annotated[int, Ge(1)]
    bare_frames_per_s: Seconds
    identity: Identity
    threads: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True, kw_only=True)
class ShardStats(Record):
    """Report of a shard that was committed; nothing else of it reaches the driver.

    Attributes:
        shard: Its number in the plan.
        rows: Frames with a feature.
        rejects: Frames that could not be read.
        size_bytes: Bytes written.
        read: Notes of the reading step.
        encode: Notes of the encoding step.
        commit_s: Wall seconds of writing.
        commit_cpu_s: CPU seconds of writing.
    """

    shard: Count
    rows: Count
    rejects: Count
    size_bytes: Count
    read: ReadNotes
    encode: EncodeNotes
    commit_s: Seconds
    commit_cpu_s: Seconds


def as_notes(notes: Record | None) -> pa.Array:
    """A column of one cell; null if the step failed."""
    return pa.array([None if notes is None else notes.to_bytes()], pa.binary())


def read_notes(kind: type[Notes], cell: bytes, bank: str) -> Notes:
    """The notes in a cell.

    Raises:
        RaffectError: If they are of another kind, as those of a worker with another version.
    """
    remedy = "install the same raffect on every machine, then run the same command again"
    return kind.from_json(cell, f"{bank}: notes between two steps", remedy)
