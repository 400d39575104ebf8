"""What a run or a sweep found: tables and metrics.json in its folder, and lines for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raffect.config import LearnConfig, TrainConfig, TuneConfig
from raffect.data.atomic import write_atomic
from raffect.metrics.kinds import kind_of
from raffect.recipe import require
from raffect.stages.dataset import Dataset, incomplete_mark, missing_lines
from raffect.stages.provenance import describe_run
from raffect.stages.runs import SCORES, RunFolder
from raffect.stages.scores import STOPPED, Record, Spread, finished, group_by_settings, is_erm, score_lines, select_on_folds, settings_text, short, spread, trivial_text, varying
from raffect.stages.space import PLAIN_ERM, read_space


@dataclass(frozen=True)
class Row:
    """Heads of one setting.

    Attributes:
        settings: What tells them from others, by dotted name.
        scores: By snapshot; ``last`` is always there.
        erm: Whether they are plain ERM.
    """

    settings: Mapping[str, Any]
    scores: Mapping[str, Spread]
    erm: bool = False

    def text(self) -> str:
        """One line of a sweep's table."""
        best = self.scores["best"]
        val_best = f"val-best {short(best.mean)}" + (f" ± {short(best.sd)}" if best.sd is not None else "")
        parts = [f"{settings_text(self.settings)}{' (ERM)' if self.erm else ''}", f"val-last {self.scores['last'].text()}", val_best]
        return "  ".join([*parts, f"val-folds {short(self.scores['chosen'].mean)}"] if "chosen" in self.scores else parts)


def conclude_run(config: TrainConfig, dataset: Dataset, folder: RunFolder, records: Sequence[Record]) -> list[str]:
    """Write a run's tables and scores.

    Returns:
        The scores, for people.

    Raises:
        RaffectError: If no head was trained to the end.
    """
    folder.write_tables(folder.read_records())
    lines = [f"diverged: head {record['id']} (seed {record['recipe']['seed']}): {record['note']}" for record in records if record["status"] == "diverged"]
    sound = finished(records)
    require(bool(sound), f"no head finished; {'; '.join(lines)}")
    heads = {record["id"]: {"seed": record["recipe"]["seed"], "status": record["status"], "scores": record["scores"]} for record in records}
    _write_metrics(dataset, folder, {"trivial": sound[0]["trivial"], "scores": _as_json(_spreads(sound)), "heads": heads})
    wrote = f"wrote {folder.path}: weights/, metrics.json, members.csv, results.csv, per_video.csv"
    return [*lines, *missing_lines(dataset.facts), *score_lines(sound, dataset.facts["stamp"], incomplete_mark(dataset.facts)), wrote, _next(config)]


def conclude_sweep(config: TuneConfig, dataset: Dataset, folder: RunFolder, records: Sequence[Record]) -> list[str]:
    """Write a sweep's tables and scores; see `conclude_run`."""
    folder.write_tables(folder.read_records())
    sound = finished(records)
    require(bool(sound), f"no head finished: {records[0]['note']}")
    axes = [name for name in read_space(config.space) if name != "seed"] or ["loss.alpha"]
    groups = group_by_settings(sound)
    told = {"loss.alpha", "sam.rho", *varying(groups)}  # what tells plain ERM from the others
    names = [*axes, *(name for name in PLAIN_ERM if config.baseline and name in told and name not in axes)]
    rows = [Row(_settings(group, names), _spreads(group), is_erm(group[0])) for group in groups]
    best, trivial = max(rows, key=lambda row: row.scores["last"].mean), sound[0]["trivial"]
    kind, mark = kind_of(dataset.task), incomplete_mark(dataset.facts)
    facts, others = dataset.facts, {status: sum(record["status"] == status for record in records) for status in ("diverged", STOPPED)}
    lines = [
        *missing_lines(facts),
        f"{config.task.upper()}: {len(records)} heads on {facts['train']['frames']:,} frames, judged on {facts['validation']['frames']:,} frames of {facts['validation']['videos']} other {facts['groups']}"
        + "".join(f"; {count} {status} and left out, see members.csv" for status, count in others.items() if count),
        *(row.text() + mark for row in rows),
        *(["heads that ASHA stopped had poor scores on the validation split: means over the others are optimistic"] if others[STOPPED] else []),
        f"trivial  {trivial_text(trivial, kind)}",
        f"highest val-last: {settings_text(best.settings)}, of {len(rows)} settings compared on the validation split itself, so optimistic{mark}",
    ]
    metrics = {
        "trivial": trivial,
        "left_out": others,
        "best": {
            "settings": dict(best.settings),
            "scores": _as_json(best.scores),
            "chosen_by": f"highest val-last of {len(rows)} settings, compared on the validation split itself: optimistic",
        },
        "settings": [{"settings": dict(row.settings), "scores": _as_json(row.scores)} for row in rows],
    }
    selected = select_on_folds(groups, folder.read_records()) if config.select == "folds" else None
    if selected is not None and spread(selected, "chosen") is None:
        lines.append("chosen on folds:  nothing, no head was trained to the end on any fold")
    elif selected is not None:
        row = Row(_settings(selected, names), _spreads(selected))
        lines.append(
            f"chosen on folds:  {settings_text(row.settings)}, val-folds {kind.title} {row.scores['chosen'].text()}; neither settings nor epoch saw the validation split{mark}"
        )
        metrics["selected_on_folds"] = {"settings": dict(row.settings), "scores": _as_json(row.scores), "chosen_by": "folds of the training split"}
    _write_metrics(dataset, folder, metrics)
    lines += [f"stamp: {facts['stamp']}"] if facts["stamp"] else []
    wrote = f"wrote {folder.path}: members.csv, members.parquet, results.csv, metrics.json" + (", weights/" if config.save_heads else "")
    return [*lines, wrote, _next(config)]


def _settings(group: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    return {name: group[0]["recipe"][name] for name in names}


def _spreads(group: Sequence[Record]) -> dict[str, Spread]:
    return {name: value for name in SCORES if (value := spread(group, name))}


def _as_json(scores: Mapping[str, Spread]) -> dict[str, Any]:
    return {name: dataclasses.asdict(value) for name, value in scores.items()}


def _write_metrics(dataset: Dataset, folder: RunFolder, found: Mapping[str, Any]) -> None:
    write_atomic(folder.path / "metrics.json", (json.dumps({"run": describe_run(), "data": dataset.facts, **found}, indent=1) + "\n").encode())


def _next(config: LearnConfig) -> str:
    return f"next: raffect report --runs {config.out}"
