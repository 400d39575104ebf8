"""What was run: the command of each run, and facts of its heads, data and versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raffect.bank.facts import DataFacts
from raffect.datasets.targets import TargetFacts
from raffect.progress import format_seconds
from raffect.reporting.page import as_code, as_text
from raffect.reporting.run import Run


def origin_lines(runs: Sequence[Run]) -> list[str]:
    """The command of each run, and facts about it."""
    lines = []
    for run in runs:
        made = run.record.run
        command, where = as_code(made.command_line(run.record.command)), as_code(made.folder)
        lines.append(f"- **{as_text(run.name)}**: {command} in {where}")
        lines += [f"  - {as_text(line)}" for line in _facts(run)]
    return lines


def _facts(run: Run) -> list[str]:
    """Heads, data, encoder and versions of a run, a line each."""
    # Heads; those of one batch share its wall time
    trained = [record.trained_by for record in run.records]
    batches = {(part.wall_s, part.batch_of_heads) for part in trained}
    seconds = format_seconds(sum(wall_s for wall_s, _ in batches))
    counts = Counter(record.status for record in run.records)
    statuses = ("done", "diverged", "stopped", "running")
    by_status = ", ".join(f"{counts[name]} {name}" for name in statuses if counts[name])

    # Data and encoder
    data = run.data
    splits = [f"{name} {data.size_of(name)}" for name in data.splits]
    encoders = [
        f"{encoder.model}, weights {encoder.weights} ({encoder.weights_sha256[:12]})"
        for joined in data.encoders
        for encoder in joined.encoders
    ]

    # Versions; a run that went on may have been trained by several commits
    made = run.record.run
    versions = {name: made.versions.get(name, "?") for name in ("raffect", "torch", "python")}
    commits = sorted({str(part.git_commit or "unknown")[:20] for part in trained})
    return [
        f"{len(trained)} heads ({by_status}), {seconds} of training, batches added up, "
        f"on {trained[0].device}",
        f"{', '.join(splits)}; edition {data.edition!r}",
        f"encoder {_how_joined(data)}{' and '.join(encoders)}, bank {data.bank_digest[:12]}, "
        f"labels {data.labels_sha256[:12]}{_targets_text(data.targets)}",
        f"raffect {versions['raffect']}, commit {', '.join(commits)}, "
        f"torch {versions['torch']}, Python {versions['python']}, {made.time}",
    ]


def _how_joined(data: DataFacts) -> str:
    """``mean(A, B), that is `` of a joined bank, which names its parts; empty for others."""
    (identity,) = data.encoders
    return f"{identity.model}, that is " if identity.joined else ""


def _targets_text(targets: TargetFacts | None) -> str:
    """Which vectors a contrastive task has; empty for other kinds."""
    if targets is None:
        return ""
    size = f"{targets.count:,} targets of {targets.dim:,} numbers"
    return f", {size} ({targets.sha256[:12]})"
