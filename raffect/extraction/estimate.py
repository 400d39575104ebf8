"""`raffect extract --dry-run`: probe readers and encoder to estimate how long a run would take."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import DEFAULT_SHARD_ROWS, Bank, Identity
from raffect.config import ExtractConfig
from raffect.datasets.frames import PACKED_SUFFIX, BadFrame, read_frames
from raffect.datasets.manifest import read_manifest
from raffect.extraction.extract import check_embedded, choose_shards
from raffect.progress import format_bytes, format_seconds

_SAMPLE = 64
"""Frames that are read for a probe."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What extract would do and how long it would take on this machine, from a probe.

    Attributes:
        frames: Frames that it would encode.
        listed: Frames of the manifest.
        shard_rows: Frames of a shard.
        bank: Folder of the bank.
        model: Model name of the encoder.
        weights: Its weights, as they were asked for.
        precision: Its arithmetic on this machine.
        dim: Length of a feature.
        device: Device on which it was probed.
        caveat: What every result would have to say; empty for pretrained weights.
        reader_frames_per_s: Rate of one reading task.
        encoder_frames_per_s: Rate of all encoders of this machine.
        sampled: Frames that were read for the probe.
        unreadable: Frames among them that could not be read.
        notes: Further lines for people.
    """

    frames: int
    listed: int
    shard_rows: int
    bank: Path
    model: str
    weights: str
    precision: str
    dim: int
    device: str
    caveat: str
    reader_frames_per_s: float
    encoder_frames_per_s: float
    sampled: int
    unreadable: int
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Approximate size of the new shards."""
        return self.frames * (2 * self.dim + 6)

    @property
    def encode_s(self) -> float:
        """Approximate seconds of encoding on this machine."""
        return self.frames / self.encoder_frames_per_s

    def lines(self) -> list[str]:
        """A block for people."""
        # What would be done
        frames = f"{self.frames:,} of {self.listed:,} frames in shards of {self.shard_rows}"
        encoder = f"{self.model}, {self.weights}, {self.precision}, {self.dim}-d, on {self.device}"
        caveat = f" [{self.caveat}]" if self.caveat else ""
        # How long it would take
        unreadable = f"{self.unreadable} of {self.sampled} sample frames unreadable"
        reader = f"one reader {self.reader_frames_per_s:,.0f} frames/s ({unreadable})"
        time_s = f"{format_seconds(self.encode_s)} of encoding on this machine's device"
        if self.encode_s > 3600:
            time_s += f", {format_seconds(self.encode_s / 2)} on two like it"
        return [
            f"would encode {frames} into {self.bank}",
            f"encoder: {encoder}{caveat}",
            f"size: about {format_bytes(self.size_bytes)}",
            f"probe: {reader}, encoder {self.encoder_frames_per_s:,.0f} frames/s",
            f"time: about {time_s}",
            *self.notes,
            "nothing was written",
        ]


def estimate(config: ExtractConfig) -> Estimate:
    """What `extract` would do and how long it would take on this machine; writes nothing.

    Args:
        config: The configuration of the run.

    Raises:
        RaffectError: If there is no manifest, the bank is another encoder's, or weights are
            missing.
    """
    from raffect.encoders.tower import load_encoder

    # What is left to do
    manifest = read_manifest(config.manifest)
    check_embedded(config, manifest)
    bank = Bank(config.bank.absolute())
    frames = _count_frames(bank, manifest)
    # A probe of reader and encoder
    sample, reader_frames_per_s, unreadable = _probe_reader(manifest)
    on_cpu = config.device == "cpu" or config.gpus_per_actor == 0
    encoder = load_encoder(config.encoder, "cpu" if on_cpu else None)
    notes = _compare(config, bank, encoder.identity)
    actors = config.num_actors if encoder.device.type == "cuda" else 1
    identity = encoder.identity
    return Estimate(
        frames=min(frames, config.limit or frames),
        listed=len(manifest),
        shard_rows=bank.plan.shard_rows if bank.exists else config.shard_rows or DEFAULT_SHARD_ROWS,
        bank=bank.path,
        model=identity.model,
        weights=identity.weights,
        precision=identity.precision,
        dim=identity.dim,
        device=str(encoder.device),
        caveat=identity.caveat,
        reader_frames_per_s=reader_frames_per_s,
        encoder_frames_per_s=encoder.probe() * max(1, actors),
        sampled=sample,
        unreadable=unreadable,
        notes=notes,
    )


def _count_frames(bank: Bank, manifest: pa.Table) -> int:
    """Frames that are not in the bank: not planned yet, or planned in shards without a commit."""
    if not bank.exists:
        return len(manifest)
    planned = np.diff(bank.plan.offsets)[choose_shards(bank, bank.plan, None)].sum()
    return len(bank.unplanned(manifest)) + int(planned)


def _probe_reader(manifest: pa.Table) -> tuple[int, float, int]:
    """Number of frames read, their rate in frames/s, and how many could not be read."""
    # Packed frames are read a row group at a time, as in the run; loose frames are picked evenly.
    if manifest["root"][0].as_py().endswith(PACKED_SUFFIX):
        picked = manifest.slice(0, DEFAULT_SHARD_ROWS)
    else:
        picked = manifest.take(np.unique(np.linspace(0, len(manifest) - 1, _SAMPLE).astype(int)))
    start = time.perf_counter()
    bad = sum(isinstance(frame, BadFrame) for frame in read_frames(picked))
    return len(picked), len(picked) / (time.perf_counter() - start), bad


def _compare(config: ExtractConfig, bank: Bank, ours: Identity) -> tuple[str, ...]:
    """A note if the bank would refuse a run on a device like this one.

    Raises:
        RaffectError: If the bank is another encoder's.
    """
    found = bank.read_identity() if bank.exists else None
    if found is None:
        return ()
    # With `auto` the precision follows the device, and the run may be on another one than this.
    is_auto = config.encoder.precision == "auto"
    wanted = replace(ours, precision=found.precision) if is_auto else ours
    found.require_equal(wanted, bank.path)
    if found.precision == ours.precision:
        return ()
    what = f"extract on a device like this one would be {ours.precision} and refused"
    remedy = f"unless you add --encoder.precision {found.precision}"
    return (f"note: the bank is {found.precision}; {what}, {remedy}",)
