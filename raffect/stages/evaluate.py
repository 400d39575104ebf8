"""`raffect evaluate`: judge trained heads on a bank, any split, with spread and interval, beside the trivial predictor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raffect.config import EvaluateConfig
from raffect.data import affwild2
from raffect.data.atomic import write_atomic
from raffect.data.bank import Bank
from raffect.data.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.intervals import bootstrap_videos
from raffect.metrics.kinds import kind_of
from raffect.model.checkpoint import load_batch, read_config, require_encoder
from raffect.model.fit import count
from raffect.model.kinds import loss_kind
from raffect.recipe import DEFAULTS
from raffect.stages.dataset import Dataset, incomplete_mark, missing_lines, open_dataset, pick_device, read_rows
from raffect.stages.provenance import describe_run
from raffect.stages.runs import video_rows, write_csv
from raffect.stages.scores import group_by_settings, settings_text, short, spread, trivial_text, varying


def evaluate(config: EvaluateConfig) -> list[str]:
    """Judge every head of a run, or one head.

    Returns:
        The scores, for people.

    Raises:
        RaffectError: If there is no head, or it does not go with the bank.
    """
    if config.out is not None and (config.out / "env.json").exists():
        raise RaffectError(f"--out {config.out}: is a run folder, whose own metrics.json would be overwritten; name another one")
    folders = find_heads(config.run, config.epoch)
    configs = [read_config(folder) for folder in folders]
    left_out = [folder for folder, about in zip(folders, configs, strict=True) if about["status"] != "done"] if len(folders) > 1 else []
    kept = [(folder, about) for folder, about in zip(folders, configs, strict=True) if folder not in left_out]
    if not kept:
        raise RaffectError(f"{config.run}: every head diverged; train again with a smaller optim.lr or sam.rho")
    folders, configs = [folder for folder, _ in kept], [about for _, about in kept]
    tasks = list(dict.fromkeys(affwild2.read_task(about["task"], str(folder)) for folder, about in kept))
    if len(tasks) > 1:
        raise RaffectError(f"{config.run}: heads of {' and '.join(task.name for task in tasks)}; give the folder of one head, RUN/weights/<member>/{config.epoch}")
    identity = Bank(config.bank).require().read_identity()
    if identity is None:
        raise RaffectError(f"{config.bank}: nothing extracted yet; run `raffect extract` on it")
    for folder, about in zip(folders, configs, strict=True):
        require_encoder(about, identity, folder, config.bank)
    dataset = open_dataset(config.bank, config.labels, tasks[0].name, [config.split], allow_incomplete=config.allow_incomplete)
    if (tasks[0].kind, tasks[0].outputs) != (dataset.task.kind, dataset.task.outputs):
        raise RaffectError(
            f"{config.labels}: its task {dataset.task.name} has other outputs than the heads of {config.run} ({_outputs(dataset.task)} against {_outputs(tasks[0])})"
        )
    index, device = dataset.splits[config.split], pick_device(config.device)
    try:
        rows = read_rows(index, dataset.task, device)
        counts = np.concatenate([count(loss_kind(dataset.task), load_batch(folder, device)[0], rows) for folder in folders])
    except torch.OutOfMemoryError as error:
        raise RaffectError(f"out of GPU memory with {len(index):,} frames; free the device, or use --device cpu") from error
    if config.out is not None:
        _write(config.out, config, dataset, folders, configs, counts)
    kept_diverged = [f"note: {folder} diverged; its last sound epoch is judged" for folder, about in kept if about["status"] != "done"]
    return [*(f"left out: {folder}, which diverged" for folder in left_out), *kept_diverged, *_lines(config, dataset, configs, counts)]


def find_heads(path: Path, snapshot: str) -> list[Path]:
    """Folders of the heads of a run, or the one head that ``path`` is.

    Raises:
        RaffectError: If there is none.
    """
    if (path / "head.safetensors").exists() or (path / "config.json").exists():
        return [path]
    found = sorted(path.glob(f"weights/*/{snapshot}"))
    if not found:
        hint = "; `chosen` is there after --select folds only" if snapshot == "chosen" else ""
        raise RaffectError(f"{path}: no head in weights/*/{snapshot}; expected the --out of `raffect train` or `raffect tune` (with --save-heads){hint}")
    return found


def _outputs(task: Task) -> str:
    names = ", ".join(task.outputs[:4]) + (" ..." if len(task.outputs) > 4 else "")
    return f"{task.kind}: {names}"


def _lines(config: EvaluateConfig, dataset: Dataset, configs: Sequence[dict[str, Any]], counts: np.ndarray) -> list[str]:
    task, kind, index = dataset.task, kind_of(dataset.task), dataset.splits[config.split]
    constant = kind.chance(counts[0].sum(0), task)
    lines = [
        *missing_lines(dataset.facts),
        f"{task.name.upper()} {config.split}: {len(index):,} frames of {len(index.groups)} {dataset.facts['groups']}; snapshot {configs[0]['snapshot']} of {len(configs)} head(s)",
    ]
    records = [
        {
            "task": task.to_json(),
            "recipe": DEFAULTS | about["recipe"],
            "scores": {config.split: {kind.key: score, "epoch": about["epoch"]}},
            "videos": {config.split: part},
            "groups": dataset.facts["groups"],
        }
        for about, part, score in zip(configs, counts, kind.headline(counts.sum(1)), strict=True)
    ]
    groups = group_by_settings(records)
    shown = varying(groups) or ["loss.alpha", "sam.rho"]
    for group in groups:
        found = spread(group, config.split)
        lines += [f"{settings_text({name: group[0]['recipe'][name] for name in shown})}: {kind.title} {found.text()}{incomplete_mark(dataset.facts)}"] if found else []
    lines.append(f"trivial: {trivial_text(constant, kind)}")
    if config.split == "train":
        lines.append("these frames were trained on: this is no measure of how well a head does")
    elif configs[0]["snapshot"] == "best":
        lines.append("epoch chosen on the validation split of the training run: optimistic there")
    if len(groups) == 1:
        lines += _class_lines(counts, task)
    lines += sorted({f"trained on an incomplete bank, which lacked {what}" for about in configs if (what := about["data"].get("incomplete"))})
    stamps = sorted({about["stamp"] for about in configs if about["stamp"]} | ({dataset.facts["stamp"]} - {""}))
    lines += [f"stamp: {stamp}" for stamp in stamps]
    return [*lines, *([f"wrote {config.out}: metrics.json, per_video.csv"] if config.out else [])]


def _class_lines(counts: np.ndarray, task: Task) -> list[str]:
    """A line a class, label or value, over all heads together."""
    kind = kind_of(task)
    width = max(len(name) for name in task.outputs)
    titles = [title for title, _ in kind.columns]
    lines = [f"{'':{width}} " + " ".join(f"{title:>9}" for title in titles)]
    for name, part in kind.score(counts.sum((0, 1)), task)[kind.parts].items():
        *scores, frames = (part[key] for _, key in kind.columns)
        lines.append(f"{name:{width}} " + " ".join(f"{short(value):>9}" for value in scores) + f" {frames // len(counts):>9,}")
    return lines


def _write(out: Path, config: EvaluateConfig, dataset: Dataset, folders: Sequence[Path], configs: Sequence[dict[str, Any]], counts: np.ndarray) -> None:
    task, kind, index = dataset.task, kind_of(dataset.task), dataset.splits[config.split]
    heads = [
        {"folder": str(folder), "member": about["member"], "recipe": about["recipe"], **kind.score(part.sum(0), task), "interval_95": bootstrap_videos(part, kind, seed=0)}
        for folder, about, part in zip(folders, configs, counts, strict=True)
    ]
    content = {
        "run": describe_run(),
        "data": dataset.facts,
        "split": config.split,
        "snapshot": configs[0]["snapshot"],
        "trivial": kind.chance(counts[0].sum(0), task),
        "heads": heads,
    }
    write_atomic(out / "metrics.json", (json.dumps(content, indent=1) + "\n").encode())
    rows = [{"member": about["member"], **row} for about, part in zip(configs, counts, strict=True) for row in video_rows(kind, part, index.groups)]
    write_csv(out / "per_video.csv", rows)
