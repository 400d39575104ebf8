"""How fast a bank was made, from the summaries that its extractions left in it."""

from __future__ import annotations

from dataclasses import dataclass

from raffect.bank.format import Bank
from raffect.extraction.summary import ExtractSummary
from raffect.provenance import Machine, Provenance
from raffect.storage.records import Record, parse_object


@dataclass(frozen=True, kw_only=True)
class Rate(Record):
    """Frames/s of the extractions that made a bank.

    Attributes:
        frames_per_s: Of all encoders together, from the first shard's encoding to the last one's.
        frames: Frames that were encoded then; those of a run that was killed left no rate.
        encoders: Encoders side by side.
        gpus: GPUs that they held together; 0 for the CPU.
        machine: Where the run was started.
    """

    frames_per_s: float
    frames: int
    encoders: int
    gpus: float
    machine: Machine

    def where(self) -> str:
        """``1 encoder on the CPU (Linux-6.1, 2 cores)``."""
        device = f"{self.gpus:g} GPU(s)" if self.gpus else "the CPU"
        machine = f"{self.machine.system}, {self.machine.cores} cores"
        return f"{self.encoders} encoder(s) on {device} ({machine})"


def read_rate(bank: Bank) -> tuple[Rate | None, str]:
    """The rate at which a bank was made.

    Runs that went on after a stop count together: all of their frames over all of their time.

    Returns:
        The rate, or None and why there is none.

    Raises:
        RaffectError: If a summary is damaged.
    """
    found: list[Rate] = []
    for file in sorted((bank.path / "runs").glob("*.json")):
        content = parse_object(file.read_bytes(), file, "delete it")
        summary = ExtractSummary.from_json(content.get("summary", {}), file, "delete it")
        run = Provenance.from_json(content.get("run", {}), file, "delete it")
        if summary.encoded and summary.steady_frames_per_s > 0:
            found.append(
                Rate(
                    frames_per_s=summary.steady_frames_per_s,
                    frames=summary.encoded,
                    encoders=summary.encoders,
                    gpus=summary.gpus,
                    machine=run.machine,
                )
            )
    if not found:
        return None, "its extraction left no rate, since it was stopped before its end"
    if len({rate.where() for rate in found}) > 1:
        return None, "it was made in parts, on different machines or numbers of encoders"
    frames = sum(rate.frames for rate in found)
    seconds = sum(rate.frames / rate.frames_per_s for rate in found)
    last = found[-1]
    return (
        Rate(
            frames_per_s=frames / seconds,
            frames=frames,
            encoders=last.encoders,
            gpus=last.gpus,
            machine=last.machine,
        ),
        "",
    )
