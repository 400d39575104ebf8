"""What an extraction did: counts of the bank, rates of the run, seconds a frame by stage."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def summarise(bank: Bank, stats: list[dict], wall_s: float = 0.0, encoders: int = 0, gpus: float = 0.0) -> Summary:
    """Sum up a run.

    Args:
        bank: The bank after it.
        stats: What `commit_shard` reported of each shard of the run; none if there was nothing to do.
        wall_s: Seconds of the run.
        encoders: Actors that encoded.
        gpus: GPUs they held.
    """
    plan = bank.plan
    commits = bank.read_commits()
    identity = bank.read_identity()
    summary = Summary(
        planned=len(plan.table), rows=sum(commit.rows for commit in commits.values()), rejects=sum(commit.rejects for commit in commits.values()),
        shards_done=len(commits), shards_planned=plan.num_shards, wall_s=wall_s, encoders=encoders, gpus=gpus, stamp=identity.stamp if identity else "",
    )  # fmt: skip
    reasons = bank.read_rejects([shard for shard, commit in commits.items() if commit.rejects])["reason"].value_counts()
    summary.reasons = {item["values"].as_py(): item["counts"].as_py() for item in reasons}
    if not stats:
        summary.notes.append("nothing to do: every planned frame is in the bank, as a feature or a reject")
        return summary
    summary.encoded = sum(row["rows"] for row in stats)
    summary.bytes_written = sum(row["bytes"] for row in stats)
    frames = max(1, summary.encoded + sum(row["rejects"] for row in stats))
    first, last = min(row["encode_start"] for row in stats), max(row["encode_end"] for row in stats)
    encode_s = sum(row["encode_end"] - row["encode_start"] for row in stats)
    summary.steady_frames_per_s = summary.encoded / max(last - first, 1e-9)
    by_encoder = {row["encoder"]: row["bare_frames_per_s"] for row in stats}
    summary.bare_frames_per_s = sum(by_encoder.values())
    summary.busy_share = encode_s / max((last - first) * len(by_encoder), 1e-9)
    summary.batch_sizes = sorted({row["batch_size"] for row in stats})
    if len(summary.batch_sizes) > 1:
        summary.notes.append(f"the device ran out of memory; batches were cut to {summary.batch_sizes[0]}, which changes the last bits of a vector")
    summary.seconds_per_frame = {
        "read": sum(row["read_s"] for row in stats) / frames,
        "decode": sum(row["decode_s"] for row in stats) / frames,
        "wait": max(0.0, (last - first) * len(by_encoder) - encode_s) / frames,
        "encode": encode_s / frames,
        "commit": sum(row["commit_s"] for row in stats) / frames,
        "feed_cpu": sum(row["read_cpu_s"] + row["commit_cpu_s"] for row in stats) / frames,
    }
    return summary
