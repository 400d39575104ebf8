"""What an extraction did: counts of the bank, rates of the run, seconds a frame by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raffect.data.bank import Bank
from raffect.stages.progress import format_bytes, format_seconds


@dataclass
class Summary:
    """What one run of extract did. Rates are of this run, counts of the bank after it.

    Attributes:
        planned: Frames in the bank's plan.
        rows: Frames with a feature.
        rejects: Frames that could not be read.
        encoded: Frames this run encoded.
        wall_s: From the start of Ray to the last commit.
        steady_frames_per_s: From the first shard's encoding to the last commit.
        bare_frames_per_s: Bare encoders of this run on tensors that are ready, summed.
        seconds_per_frame: Wall seconds a frame and worker by stage.
        busy_share: Share of the steady time that an encoder was encoding.
        reasons: Why frames of the bank were rejected, with counts.
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
    batch_sizes: list[int] = field(default_factory=list)
    encoders: int = 0
    gpus: float = 0.0
    bytes_written: int = 0
    seconds_per_frame: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    stamp: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def reject_share(self) -> float:
        """Rejected frames over frames looked at."""
        return self.rejects / max(1, self.rows + self.rejects)

    def lines(self) -> list[str]:
        """A block for people."""
        out = [f"bank: {self.rows:,} features + {self.rejects:,} rejects of {self.planned:,} frames, {self.shards_done:,} of {self.shards_planned:,} shards"]
        if self.encoded:
            per = " ".join(f"{stage} {seconds * 1e6:,.0f}" for stage, seconds in self.seconds_per_frame.items())
            share = f"ratio {self.steady_frames_per_s / max(self.bare_frames_per_s, 1e-9):.2f}" if self.gpus else "probed while readers shared its CPU"
            out += [
                f"this run: {self.encoded:,} frames in {format_seconds(self.wall_s)}, {format_bytes(self.bytes_written)} written, {self.encoders} encoder(s)"
                + (f", {self.gpus * self.wall_s / 3600:.3f} GPU-hours" if self.gpus else ""),
                f"rate: {self.steady_frames_per_s:,.0f} frames/s steady, {self.encoded / self.wall_s:,.0f} with start-up; bare encoder {self.bare_frames_per_s:,.0f} ({share}), busy {self.busy_share:.0%}",
                f"microseconds a frame: {per}",
            ]
        out += [f"rejected: {count:,} x {reason}" for reason, count in sorted(self.reasons.items(), key=lambda item: -item[1])[:8]]
        if self.rejects:
            out.append("note: rejects are not read again; after mending the files run `raffect bank verify --retry-rejects`, then extract")
        out += [f"note: {note}" for note in self.notes]
        if self.stamp:
            out.append(f"stamp: {self.stamp}")
        return out


class Tally:
    """Sums over the shards of a run, so that the driver keeps no row of each.

    Attributes:
        shards: Those that were committed.
    """

    def __init__(self) -> None:
        self.shards: set[int] = set()
        self.rows = self.rejects = self.bytes = 0
        self.first_s, self.last_s = float("inf"), 0.0
        self.seconds = dict.fromkeys(("read", "decode", "encode", "commit", "feed_cpu"), 0.0)
        self.bare_by_encoder: dict[str, float] = {}
        self.batch_sizes: set[int] = set()
        self.was_cut = False

    def add(self, notes: Mapping[str, Any]) -> None:
        """Count what `commit_shard` reported of a shard."""
        self.shards.add(notes["shard"])
        self.rows += notes["rows"]
        self.rejects += notes["rejects"]
        self.bytes += notes["bytes"]
        self.first_s, self.last_s = min(self.first_s, notes["encode_start"]), max(self.last_s, notes["encode_end"])
        for stage in ("read", "decode", "commit"):
            self.seconds[stage] += notes[f"{stage}_s"]
        self.seconds["encode"] += notes["encode_end"] - notes["encode_start"]
        self.seconds["feed_cpu"] += notes["read_cpu_s"] + notes["commit_cpu_s"]
        self.bare_by_encoder[notes["encoder"]] = notes["bare_frames_per_s"]
        self.batch_sizes.add(notes["batch_size"])
        self.was_cut |= notes["batch_size"] < notes["asked_batch_size"]


def summarise(bank: Bank, tally: Tally | None = None, wall_s: float = 0.0, encoders: int = 0, gpus: float = 0.0) -> Summary:
    """Sum up a run.

    Args:
        bank: The bank after it.
        tally: Of the run; None if there was nothing to do.
        wall_s: Seconds of the run.
        encoders: Actors that encoded.
        gpus: GPUs they held.
    """
    commits = bank.read_commits()
    plan = Bank(bank.path).plan  # read now: another run may have extended it since ours began
    identity = bank.read_identity()
    summary = Summary(
        planned=len(plan.table), rows=sum(commit.rows for commit in commits.values()), rejects=sum(commit.rejects for commit in commits.values()),
        shards_done=len(commits), shards_planned=plan.num_shards, wall_s=wall_s, encoders=encoders, gpus=gpus, stamp=identity.stamp if identity else "",
    )  # fmt: skip
    reasons = bank.read_rejects(commits.values())["reason"].value_counts()
    summary.reasons = {item["values"].as_py(): item["counts"].as_py() for item in reasons}
    if tally is None:
        summary.notes.append("nothing to do: every planned frame is in the bank, as a feature or a reject")
        return summary
    summary.encoded, summary.bytes_written = tally.rows, tally.bytes
    frames, span_s = max(1, tally.rows + tally.rejects), max(tally.last_s - tally.first_s, 1e-9)
    encoder_s = span_s * max(1, encoders)
    summary.steady_frames_per_s = tally.rows / span_s
    summary.bare_frames_per_s = encoders * float(np.mean(list(tally.bare_by_encoder.values())))  # each wave, and each death, has encoders of its own
    summary.busy_share = tally.seconds["encode"] / encoder_s
    summary.batch_sizes = sorted(tally.batch_sizes)
    if tally.was_cut:
        summary.notes.append(f"the device ran out of memory; batches were cut to {summary.batch_sizes[0]}, which changes the last bits of a vector")
    seconds = tally.seconds | {"wait": max(0.0, encoder_s - tally.seconds["encode"])}
    summary.seconds_per_frame = {stage: seconds[stage] / frames for stage in ("read", "decode", "wait", "encode", "commit", "feed_cpu")}
    return summary
