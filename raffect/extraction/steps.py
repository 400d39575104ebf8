"""The three steps of a shard in Ray Data: read and decode (CPU), encode (GPU actor), commit (CPU).

A shard is one row of the dataset, and one block. Between the steps it is an Arrow table of one row
whose large column is a view of the pixels, so that handing it over copies it once, into Ray's
object store.

Nothing here imports torch at module level, since it would take 600 MB in each reading task.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from raffect.bank.format import Bank
from raffect.bank.pictures import PictureDigest
from raffect.config import EncoderConfig
from raffect.datasets.corruptions import Corruption
from raffect.datasets.frames import BadFrame, decode, find_killers, read_contents, shrink
from raffect.errors import RaffectError
from raffect.extraction.board import Reporter
from raffect.extraction.notes import EncodeNotes, ReadNotes, ShardStats, as_notes, read_notes
from raffect.extraction.pile import Pile, split_pixels
from raffect.imports import quick_imports
from raffect.storage.atomic import write_atomic
from raffect.storage.cells import as_cell, read_cell, table_from_bytes, table_to_bytes
from raffect.storage.paths import explain

if TYPE_CHECKING:
    from raffect.encoders.tower import Encoder

_REJECTS = pa.map_(pa.int32(), pa.string())
_PIECE_S = 2.0
"""Seconds of encoding between two reports of an encoder."""

LoadEncoder = Callable[[EncoderConfig, str, int], "Encoder"]
"""Builds the encoder in its actor from its configuration, a device and, on a CPU, its threads."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The encoder's input, which a reading task must know to hand over no more pixels than needed.

    Attributes:
        size: Side of the square image in pixels.
        interpolation: Name of the interpolation of a resize.
        resize_mode: As of `raffect.encoders.preprocess.Preprocess`.
        resize_to: Likewise.
        corruption: Damage of every frame, on the pixels that are handed over; None for a bank of
            the frames as they are.
    """

    size: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    resize_to: int = 0
    corruption: Corruption | None = None


def to_item(shard: int, rows: pa.Table) -> dict[str, Any]:
    """A dataset row: the number of a shard and its rows of the manifest."""
    return {"shard": shard, "rows": table_to_bytes(rows)}


def read_shard(table: pa.Table, bank: str, geometry: Geometry) -> pa.Table:
    """Read and decode the frames of a shard.

    The attempt is noted in the bank before the first frame is read. If there is a note already, an
    earlier attempt ended without a commit, maybe because a frame killed its decoder; then every
    frame is tried in a child process first.

    Args:
        table: One row, ``shard`` and ``rows``.
        bank: Folder of the bank.
        geometry: The encoder's input.

    Returns:
        One row: ``shard``, ``rows``, ``shapes`` (int32 pairs), ``pixels`` (uint8, frame after
        frame), ``rejects`` (row -> reason), ``read`` (`ReadNotes`), and ``failure``, which stops
        the run.
    """
    # Frames, or a failure
    start, start_cpu = time.perf_counter(), time.process_time()
    failure = None
    try:
        pile, rejects, read_s, pictures = _read_and_decode(table, bank, geometry)
    except Exception as error:
        pile, rejects, read_s, pictures = Pile(0), {}, 0.0, None
        failure = _describe(error, bank)
    # The row for the next step
    elapsed, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    notes = ReadNotes(
        read_s=read_s,
        decode_s=max(0.0, elapsed - read_s),
        read_cpu_s=cpu_s,
        pictures=pictures,
    )
    return pa.table(
        {
            "shard": table["shard"],
            "rows": table["rows"],
            "shapes": [np.array(pile.shapes, np.int32).tobytes()],
            "pixels": as_cell(pile.pixels),
            "rejects": pa.array([list(rejects.items())], _REJECTS),
            "read": as_notes(notes),
            "failure": pa.array([failure], pa.string()),
        }
    )


def _read_and_decode(
    table: pa.Table, bank: str, geometry: Geometry
) -> tuple[Pile, dict[int, str], float, str]:
    """Decoded frames, row -> reason of the others, seconds of reading, digest of the pictures."""
    # Contents of the frames, without those that killed their decoder
    rows, start = _rows(table), time.perf_counter()
    note = Bank(bank).attempt_path(table["shard"][0].as_py())
    rejects = find_killers(rows) if note.exists() else {}
    write_atomic(note, b"")
    safe = [row for row in range(len(rows)) if row not in rejects]
    rows = rows.take(safe) if rejects else rows
    contents = read_contents(rows)
    read_s = time.perf_counter() - start
    # Decoded frames, and the digest of their pictures
    pile, bad = decode_frames(contents, geometry, _keys(rows) if geometry.corruption else ())
    pictures = PictureDigest()
    for place, content in enumerate(contents):
        if place not in bad and not isinstance(content, BadFrame):
            pictures.add(content)
    rejects |= {safe[place]: reason for place, reason in bad.items()}
    return pile, rejects, read_s, pictures.hexdigest()


def decode_frames(
    contents: Sequence[bytes | BadFrame],
    geometry: Geometry,
    keys: Sequence[tuple[str, int]] = (),
) -> tuple[Pile, dict[int, str]]:
    """Frames no larger than the encoder needs them, and place -> reason of the others.

    Args:
        contents: Encoded pictures, or why there is none.
        geometry: What becomes of each.
        keys: Video and frame number of each, which a corruption draws from.
    """
    pile, bad = Pile(len(contents)), {}
    resample = Image.Resampling[geometry.interpolation.upper()]
    by_shortest = geometry.resize_mode == "shortest"
    side = geometry.resize_to or geometry.size
    for place, content in enumerate(contents):
        try:
            if isinstance(content, BadFrame):
                raise content
            frame = decode(content, pile.room)
            frame = shrink(frame, side, resample, by_shortest, geometry.size)
            if geometry.corruption is not None:
                frame = geometry.corruption.apply(frame, *keys[place])
            pile.add(frame)
        except BadFrame as error:
            bad[place] = str(error)
    return pile, bad


class EncodeShard:
    """The actor: loads the encoder once, checks that the bank is its own, and encodes shards."""

    def __init__(
        self,
        config: EncoderConfig,
        bank: str,
        device: str,
        threads: int,
        load: LoadEncoder,
        reporter: Reporter | None = None,
    ) -> None:
        # An error that is raised here would reach the driver after retries, as the text of a dead
        # actor. So it is kept, and returned as data.
        self.failure: str | None = None
        self.name, self.threads = uuid.uuid4().hex, threads if device == "cpu" else None
        self.reporter = reporter or Reporter()
        self.reporter.loading()
        try:
            with quick_imports():  # this is a worker, not a user's own process
                self.encoder = load(config, device, threads)
            # Before the probe, which cuts the batch size if memory runs out
            self.asked_batch_size = self.encoder.batch_size
            Bank(bank).claim(self.encoder.identity, self.threads)
            self.bare_frames_per_s = self._frames_per_s = self.encoder.probe()
        except Exception as error:
            self.failure = _describe(error, bank)
        self.reporter.ready()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encode the frames that `read_shard` returned.

        Returns:
            One row: ``shard, rows, rejects, read`` as they were, ``features`` (float16, frame
            after frame), ``encode`` (`EncodeNotes`) and ``failure``.
        """
        # Features, or the first failure
        start, notes, features = time.time(), None, np.empty((0, 0), np.float16)
        failure = self.failure or table["failure"][0].as_py()
        if failure is None:
            features, failure = self._encode(table)
        # The row for the next step
        if failure is None:
            notes = EncodeNotes(
                encode_start=start,
                encode_end=max(start, time.time()),
                encoder=self.name,
                batch_size=self.encoder.batch_size,
                asked_batch_size=self.asked_batch_size,
                bare_frames_per_s=self.bare_frames_per_s,
                identity=self.encoder.identity,
                threads=self.threads,
            )
        kept = {name: table[name] for name in ("shard", "rows", "rejects", "read")}
        answer = {"features": as_cell(features), "encode": as_notes(notes)}
        return pa.table(kept | answer | {"failure": pa.array([failure], pa.string())})

    def _encode(self, table: pa.Table) -> tuple[np.ndarray, str | None]:
        """Features of a shard, and what is wrong with them; None if nothing is."""
        shapes = np.frombuffer(table["shapes"][0].as_py(), np.int32).reshape(-1, 2)
        frames = split_pixels(shapes, read_cell(table["pixels"]))
        try:
            features = self._encode_pieces(table["shard"][0].as_py(), frames)
        except RaffectError as error:
            return np.empty((0, 0), np.float16), str(error)
        if np.isfinite(features).all():
            return features, None
        what = f"the encoder gave NaN or infinity in {self.encoder.identity.precision}"
        remedy = "use --encoder.precision float32 and a new --bank, or other weights"
        return features, f"{what}; {remedy}"

    def _encode_pieces(self, shard: int, frames: list[np.ndarray]) -> np.ndarray:
        """Features of frames, encoded in pieces of whole batches with a report after each.

        Batches and vectors are those of one piece. A fast device has one piece a shard, because it
        would wait at the end of each.
        """
        parts, done = [], 0
        while done < len(frames) or not parts:
            batch = self.encoder.batch_size
            size = batch * max(1, int(self._frames_per_s * _PIECE_S / batch))
            start = time.perf_counter()
            parts.append(self.encoder.encode(frames[done : done + size]))
            done += len(parts[-1])
            # Another piece, of a size that follows from the last one's rate
            if done < len(frames):
                self._frames_per_s = size / max(time.perf_counter() - start, 1e-9)
                self.reporter.encoded(shard, done)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def commit_shard(table: pa.Table, bank: str) -> pa.Table:
    """Write a shard into the bank.

    Returns:
        One row, and nothing else reaches the driver: ``stats`` (`ShardStats`), or ``failure``,
        which stops the run.
    """
    failure, stats = table["failure"][0].as_py(), None
    if failure is None:
        try:
            stats = _commit(table, bank)
        except Exception as error:
            failure = _describe(error, bank)
    return pa.table({"stats": as_notes(stats), "failure": pa.array([failure], pa.string())})


def _commit(table: pa.Table, bank: str) -> ShardStats:
    start, start_cpu = time.perf_counter(), time.process_time()
    # What the steps before made
    read = read_notes(ReadNotes, table["read"][0].as_py(), bank)
    encode = read_notes(EncodeNotes, table["encode"][0].as_py(), bank)
    identity = encode.identity
    features = read_cell(table["features"]).view(np.float16).reshape(-1, identity.dim)
    rejects = dict(table["rejects"][0].as_py())
    # The shard
    shard = table["shard"][0].as_py()
    facts = (read.pictures, encode.threads)
    record = Bank(bank).commit(shard, _rows(table), features, rejects, identity, *facts)
    return ShardStats(
        shard=record.shard,
        rows=record.rows,
        rejects=record.rejects,
        size_bytes=record.size_bytes,
        read=read,
        encode=encode,
        commit_s=time.perf_counter() - start,
        commit_cpu_s=time.process_time() - start_cpu,
    )


def _describe(error: Exception, bank: str) -> str:
    """The line about an error for the user; an error of raffect itself is raised again."""
    if isinstance(error, RaffectError):
        return str(error)
    if (line := explain(error)) is not None:
        return f"{bank}: {line}"
    if not isinstance(error, OSError):
        raise error
    remedy = "make room or fix the folder, then run the same command again"
    return f"{bank}: cannot write ({error.strerror or error}); {remedy}"


def _rows(table: pa.Table) -> pa.Table:
    """The shard's rows of the manifest."""
    return table_from_bytes(table["rows"][0].as_py())


def _keys(rows: pa.Table) -> list[tuple[str, int]]:
    """Video and frame number of rows of the manifest."""
    return list(zip(rows["video"].to_pylist(), rows["frame"].to_pylist(), strict=True))
