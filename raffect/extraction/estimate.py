"""`raffect extract --dry-run`: how long a run would take, by a probe of reader and encoder.

Both are timed in processes of Ray with the device, the threads and the priority of a run's, since
an encoder in this process may be several times as fast or as slow.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank, Identity
from raffect.bank.plan import DEFAULT_SHARD_ROWS
from raffect.config import ExtractConfig, count_cores
from raffect.datasets.frames import PACKED_SUFFIX
from raffect.datasets.manifest import read_manifest
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.extraction.asked_encoder import check_embedded, load_clip, read_geometry
from raffect.extraction.extract import choose_shards
from raffect.extraction.placement import Placement, choose_threads, place_encoders
from raffect.extraction.probe import SAMPLE, Probe, probe
from raffect.extraction.steps import Geometry, LoadEncoder
from raffect.progress import format_bytes, format_seconds, stage
from raffect.ray_session.session import explain_stop, ray_session


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What extract would do and how long it would take on this machine or cluster, from a probe.

    Attributes:
        frames: Frames that it would encode.
        listed: Frames of the manifest.
        shard_rows: Frames of a shard.
        bank: Folder of the bank.
        model: Model name of the encoder.
        weights: Its weights, as they were asked for.
        precision: Its arithmetic there.
        dim: Length of a feature.
        device: Device on which it was probed.
        caveat: What every result would have to say; empty for pretrained weights.
        encoders: Encoders side by side.
        threads: CPU threads of each.
        reader_frames_per_s: Rate of one reading task.
        encoder_frames_per_s: Rate of all encoders together, with nobody reading.
        frames_per_s: Rate of the run, whose readers and encoders may share cores.
        start_s: Seconds that Ray and an encoder took to start.
        sampled: Frames that were read for the probe.
        unreadable: Frames among them that could not be read.
        notes: Further lines.
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
    encoders: int
    threads: int
    reader_frames_per_s: float
    encoder_frames_per_s: float
    frames_per_s: float
    start_s: float
    sampled: int
    unreadable: int
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Approximate size of the new shards."""
        return self.frames * (2 * self.dim + 6)

    @property
    def encode_s(self) -> float:
        """Approximate seconds of the run after its start."""
        return self.frames / self.frames_per_s

    def lines(self) -> list[str]:
        """The estimate as lines of text."""
        # What would be done
        frames = f"{self.frames:,} of {self.listed:,} frames in shards of {self.shard_rows}"
        encoder = f"{self.model}, {self.weights}, {self.precision}, {self.dim}-d, on {self.device}"
        caveat = f" [{self.caveat}]" if self.caveat else ""
        # What was measured
        unreadable = f"{self.unreadable} of {self.sampled} sample frames unreadable"
        reader = f"one reader {self.reader_frames_per_s:,.0f} frames/s ({unreadable})"
        threads = f" of {self.threads} threads" if self.device == "cpu" else ""
        encoders = f"{self.encoders} encoder(s){threads} {self.encoder_frames_per_s:,.1f} frames/s"
        # How long it would take
        time_s = f"{format_seconds(self.encode_s)} at {self.frames_per_s:,.1f} frames/s"
        if self.encode_s > 3600:
            time_s += f" ({format_seconds(self.encode_s / 2)} with twice the devices)"
        return [
            f"would encode {frames} into {self.bank}",
            f"encoder: {encoder}{caveat}",
            f"size: about {format_bytes(self.size_bytes)}",
            f"probe: {reader}, {encoders}",
            f"time: about {time_s}, and {format_seconds(self.start_s)} to start",
            *self.notes,
            "nothing was written",
        ]


def estimate(config: ExtractConfig, load: LoadEncoder = load_clip) -> Estimate:
    """What `extract` would do and how long it would take where it would run; writes nothing.

    Args:
        config: The configuration of the run.
        load: Builds the encoder in its process; tests use a stand-in.

    Raises:
        RaffectError: If there is no manifest, the bank is another encoder's, or weights are
            missing.
    """
    # What is left to do
    with stage(f"reading {config.manifest}"):
        manifest = read_manifest(config.manifest)
    check_embedded(config, manifest)
    bank = Bank(config.bank.absolute())
    frames = min(left := _count_frames(bank, manifest), config.limit or left)
    shard_rows = bank.plan.shard_rows if bank.exists else config.shard_rows or DEFAULT_SHARD_ROWS
    geometry = read_geometry(resolve(config.encoder))
    # A probe where the run would encode
    start = time.perf_counter()
    with ray_session(config.address):
        shards, threads = max(1, -(-frames // shard_rows)), choose_threads(config, bank)
        placement = place_encoders(config, shards, threads)
        cores = _count_cluster_cores(config)
        with stage("loading torch and the encoder, and timing it"):
            probe = _run_probe(config, placement, _pick(manifest), geometry, load)
        start_s = time.perf_counter() - start - probe.spent_s
    identity = probe.identity
    notes = _compare(config, bank, identity)
    # Encoders on parts of one GPU share its rate.
    devices = max(1.0, placement.actors * min(1.0, placement.gpus_per_actor or 1.0))
    encoder_frames_per_s = probe.encoder_frames_per_s * devices
    return Estimate(
        frames=frames,
        listed=len(manifest),
        shard_rows=shard_rows,
        bank=bank.path,
        model=identity.model,
        weights=identity.weights,
        precision=identity.precision,
        dim=identity.dim,
        device=placement.device,
        caveat=identity.caveat,
        encoders=placement.actors,
        threads=placement.threads,
        reader_frames_per_s=1 / probe.read_s,
        encoder_frames_per_s=encoder_frames_per_s,
        frames_per_s=combine(config, placement, probe, encoder_frames_per_s, cores),
        start_s=start_s,
        sampled=probe.sampled,
        unreadable=probe.unreadable,
        notes=notes,
    )


def _count_frames(bank: Bank, manifest: pa.Table) -> int:
    """Frames that are not in the bank: not planned yet, or planned in shards without a commit."""
    if not bank.exists:
        return len(manifest)
    planned = np.diff(bank.plan.offsets)[choose_shards(bank.plan, bank.read_commits(), None)].sum()
    return len(bank.unplanned(manifest)) + int(planned)


def _pick(manifest: pa.Table) -> pa.Table:
    """Rows to read in a probe."""
    # Packed frames are read a row group at a time, as in the run; loose frames are picked evenly.
    if manifest["root"][0].as_py().endswith(PACKED_SUFFIX):
        return manifest.slice(0, DEFAULT_SHARD_ROWS)
    return manifest.take(np.unique(np.linspace(0, len(manifest) - 1, SAMPLE).astype(int)))


def _run_probe(
    config: ExtractConfig,
    placement: Placement,
    rows: pa.Table,
    geometry: Geometry,
    load: LoadEncoder,
) -> Probe:
    """Run `probe` in a process of Ray like that of the run's encoder.

    Raises:
        RaffectError: If the encoder cannot be loaded or the process died.
    """
    import ray
    from ray.exceptions import RayError

    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": placement.gpus_per_actor or None}
    remote = ray.remote(probe).options(**options, max_retries=0)
    where = (placement.device, placement.threads)
    try:
        answer = ray.get(remote.remote(rows, config.encoder, geometry, *where, load))
    except RayError as error:
        raise RaffectError(explain_stop(error, placement.device)) from error
    if isinstance(answer, str):
        raise RaffectError(answer)
    return answer


def _count_cluster_cores(config: ExtractConfig) -> float:
    """Cores that readers, and encoders on a CPU, have together."""
    import ray

    if config.address or os.environ.get("RAY_ADDRESS"):
        return float(ray.cluster_resources().get("CPU", 1))
    return count_cores()


def combine(
    config: ExtractConfig,
    placement: Placement,
    probe: Probe,
    encoder_frames_per_s: float,
    cores: float,
) -> float:
    """Frames/s of readers and encoders together.

    On a CPU they share the cores, and each frame takes the CPU seconds of both. Else the slower of
    the two decides, and readers may wait for storage.
    """
    if placement.device == "cpu":
        busy = placement.threads * placement.actors
        shared = cores / (busy / encoder_frames_per_s + probe.read_cpu_s)
        return min(encoder_frames_per_s, shared)
    readers = max(1.0, cores / config.cpus_per_read)
    return min(encoder_frames_per_s, readers / probe.read_s)


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
