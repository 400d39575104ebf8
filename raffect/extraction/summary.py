"""What an extraction did: counts of the bank, rates of the run, seconds a frame by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from raffect.bank.format import Bank
from raffect.extraction.notes import ShardStats
from raffect.progress import format_bytes, format_seconds
from raffect.storage.records import Record

_SHOWN_REASONS = 8
"""Reasons of rejects that a report lists."""


@dataclass(frozen=True, kw_only=True)
class ExtractSummary(Record):
    """What one run of extract did. Counts are those of the bank after it, rates those of the run.

    Attributes:
        planned: Frames in the bank's plan.
        rows: Frames with a feature.
        rejects: Frames that could not be read.
        encoded: Frames that this run encoded; 0 for a finished bank.
        shards_done: Shards that are committed.
        shards_planned: Shards of the plan.
        wall_s: Seconds from the start of Ray to the last commit.
        steady_frames_per_s: Rate from the first shard's encoding to the last one's.
        bare_frames_per_s: Rate of this run's encoders on tensors that are ready, summed.
        busy_share: Share of the steady time in which an encoder was encoding, 0-1.
        batch_sizes: Frames of an encoder's step, ascending; several sizes if memory ran out.
        encoders: Actors that encoded.
        gpus: GPUs that they held together.
        bytes_written: Size of new features and rejects in bytes.
        seconds_per_frame: Wall seconds of a worker per frame by step: read, decode, wait (of an
            encoder for frames), encode, commit; and feed_cpu, CPU seconds of all but encoding.
        reasons: Reason of a reject -> number of such frames in the bank.
        caveat: What every result based on this bank must say; empty for pretrained weights.
        notes: Further lines of text.
    """

    planned: int
    rows: int = 0
    rejects: int = 0
    encoded: int = 0
    shards_done: int = 0
    shards_planned: int = 0
    wall_s: float = 0.0
    steady_frames_per_s: float = 0.0
    bare_frames_per_s: float = 0.0
    busy_share: float = 0.0
    batch_sizes: tuple[int, ...] = ()
    encoders: int = 0
    gpus: float = 0.0
    bytes_written: int = 0
    seconds_per_frame: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    caveat: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reject_share(self) -> float:
        """Rejected frames over all frames that a run tried to read, 0-1."""
        return self.rejects / max(1, self.rows + self.rejects)

    def lines(self) -> list[str]:
        """The same as lines of text."""
        # Counts and rates
        counts = f"{self.rows:,} features + {self.rejects:,} rejects of {self.planned:,} frames"
        out = [f"bank: {counts}, {self.shards_done:,} of {self.shards_planned:,} shards"]
        if self.encoded:
            out += self._rate_lines()
        # Rejects, the most frequent reasons first
        reasons = sorted(self.reasons.items(), key=lambda item: -item[1])[:_SHOWN_REASONS]
        out += [f"rejected: {count:,} x {reason}" for reason, count in reasons]
        if self.rejects:
            remedy = (
                "after fixing the files run `raffect bank verify --retry-rejects`, then extract"
            )
            out.append(f"note: rejects are not read again; {remedy}")
        out += [f"note: {note}" for note in self.notes]
        return out + ([f"caveat: {self.caveat}"] if self.caveat else [])

    def _rate_lines(self) -> list[str]:
        # The run as a whole
        work = f"{self.encoded:,} frames in {format_seconds(self.wall_s)}"
        written = f"{format_bytes(self.bytes_written)} written"
        hours = f", {self.gpus * self.wall_s / 3600:.3f} GPU-hours" if self.gpus else ""
        # Its rates. On a CPU readers slow the bare encoder down, so a ratio would mean nothing.
        share = "probed while readers shared its CPU"
        if self.gpus:
            share = f"ratio {self.steady_frames_per_s / max(self.bare_frames_per_s, 1e-9):.2f}"
        with_start = f"{self.encoded / self.wall_s:,.0f} with start-up"
        bare = f"bare encoder {self.bare_frames_per_s:,.0f} ({share})"
        # Its steps
        steps = [f"{step} {s * 1e6:,.0f}" for step, s in self.seconds_per_frame.items()]
        return [
            f"this run: {work}, {written}, {self.encoders} encoder(s){hours}",
            f"rate: {self.steady_frames_per_s:,.0f} frames/s steady, {with_start}; "
            f"{bare}, busy {self.busy_share:.0%}",
            f"microseconds a frame: {' '.join(steps)}",
        ]


class Tally:
    """Sums over the shards of a run, so that the driver need not keep a row of each shard.

    Attributes:
        shards: Shards that were committed.
    """

    def __init__(self) -> None:
        self.shards: set[int] = set()
        self.rows = self.rejects = self.size_bytes = 0
        self.first_s, self.last_s = float("inf"), 0.0
        self.seconds = dict.fromkeys(("read", "decode", "encode", "commit", "feed_cpu"), 0.0)
        self.bare_by_encoder: dict[str, float] = {}
        self.batch_sizes: set[int] = set()
        self.was_cut = False

    def add(self, stats: ShardStats) -> None:
        """Count what `commit_shard` reported of a shard."""
        read, encode = stats.read, stats.encode
        # Counts
        self.shards.add(stats.shard)
        self.rows += stats.rows
        self.rejects += stats.rejects
        self.size_bytes += stats.size_bytes
        # Times
        self.first_s = min(self.first_s, encode.encode_start)
        self.last_s = max(self.last_s, encode.encode_end)
        self.seconds["read"] += read.read_s
        self.seconds["decode"] += read.decode_s
        self.seconds["encode"] += encode.encode_end - encode.encode_start
        self.seconds["commit"] += stats.commit_s
        self.seconds["feed_cpu"] += read.read_cpu_s + stats.commit_cpu_s
        # Encoders
        self.bare_by_encoder[encode.encoder] = encode.bare_frames_per_s
        self.batch_sizes.add(encode.batch_size)
        self.was_cut |= encode.batch_size < encode.asked_batch_size


def summarise(
    bank: Bank,
    tally: Tally | None = None,
    wall_s: float = 0.0,
    encoders: int = 0,
    gpus: float = 0.0,
) -> ExtractSummary:
    """Sum up a run.

    Args:
        bank: The bank after it.
        tally: Sums of the run; None if there was nothing to do.
        wall_s: Seconds of the run.
        encoders: Actors that encoded.
        gpus: GPUs that they held together.
    """
    # The bank as it is now; another run may have extended its plan since this run began.
    commits, plan = bank.read_commits(), Bank(bank.path).plan
    identity = bank.read_identity()
    reasons = bank.read_rejects(commits.values())["reason"].value_counts()
    # With the rates of the run, if there was one
    note = "nothing to do: every planned frame is in the bank, as a feature or a reject"
    return ExtractSummary(
        planned=len(plan.table),
        rows=sum(commit.rows for commit in commits.values()),
        rejects=sum(commit.rejects for commit in commits.values()),
        shards_done=len(commits),
        shards_planned=plan.num_shards,
        wall_s=wall_s,
        encoders=encoders,
        gpus=gpus,
        reasons={item["values"].as_py(): item["counts"].as_py() for item in reasons},
        caveat=identity.caveat if identity else "",
        **({"notes": (note,)} if tally is None else _rates(tally, encoders)),
    )


def _rates(tally: Tally, encoders: int) -> dict:
    """The fields of a summary that tell of the run alone."""
    # Seconds; an encoder that does not encode waits for frames.
    frames = max(1, tally.rows + tally.rejects)
    span_s = max(tally.last_s - tally.first_s, 1e-9)
    encoder_s = span_s * max(1, encoders)
    seconds = tally.seconds | {"wait": max(0.0, encoder_s - tally.seconds["encode"])}
    steps = ("read", "decode", "wait", "encode", "commit", "feed_cpu")
    # Batch sizes
    sizes = tuple(sorted(tally.batch_sizes))
    cut = f"batches were cut to {sizes[0]}, which changes the last bits of a vector"
    return {
        "encoded": tally.rows,
        "bytes_written": tally.size_bytes,
        "steady_frames_per_s": tally.rows / span_s,
        # Mean times number: each wave of shards, and each actor that died, had its own encoders.
        "bare_frames_per_s": encoders * float(np.mean(list(tally.bare_by_encoder.values()))),
        "busy_share": tally.seconds["encode"] / encoder_s,
        "batch_sizes": sizes,
        "seconds_per_frame": {step: seconds[step] / frames for step in steps},
        "notes": (f"the device ran out of memory; {cut}",) if tally.was_cut else (),
    }
