"""`raffect robust`: heads of several runs on damaged copies of the frames of a split.

    manifest + labels -> frames of the split -> a bank a copy -> heads of all runs -> scores

Every copy is a bank of its own (robust_copies.py).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from raffect.bank.groups import are_blocks
from raffect.bank.records import Identity
from raffect.bank.running import note_of_run
from raffect.config import RobustConfig
from raffect.datasets.corruptions import VERSION, Corruption
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.evaluation.evaluate import count_heads, open_labels
from raffect.evaluation.robustness import (
    CLEAN_COPY,
    Copy,
    Robustness,
    RobustResult,
    RobustRun,
    Scoring,
)
from raffect.extraction.as_identity import require_loadable
from raffect.extraction.corrupted import without_mark
from raffect.heads.contrastive import require_answers
from raffect.metrics.task_kinds import kind_of
from raffect.metrics.worst import find_worst
from raffect.pipelines.known import digest_inputs, read_known
from raffect.pipelines.robust_copies import (
    bank_path,
    extract_copies,
    list_copies,
    require_encoders,
    write_frames,
)
from raffect.progress import Progress, stage
from raffect.provenance import describe_run
from raffect.reporting.robustness import draw_robustness
from raffect.runs.against_erm import Baselines
from raffect.runs.data import Dataset, find_labels, pick_device
from raffect.runs.pick import PickedHead, pick_heads
from raffect.runs.spread import is_erm
from raffect.storage.atomic import require_writable, write_atomic

_FILES = ("robust.json", "robust.csv", "robust.png")


def robust(config: RobustConfig) -> RobustResult:
    """Judge heads on damaged copies of frames, and write scores and figure.

    Raises:
        RaffectError: If heads are of several tasks or encoders, vectors to compare with, or of
            another encoder than the weights; or if frames cannot be read or a bank is of other
            copies.
    """
    # Heads, and what decides their scores
    runs, heads, notes = _pick(config)
    everything = [head for of_run in heads for head in of_run]
    task = _require_alike(everything)
    labels = find_labels(config.labels, task.name)
    identity = _choose_encoder(everything, config.weights)
    fingerprint = _fingerprint(config, labels, everything)
    if (known := read_known(Robustness, config.out, _FILES, fingerprint)) is not None:
        return RobustResult(robustness=known, out=config.out, is_old=True)

    # A bank a copy
    copies = list_copies(config)
    require_writable(config.out)
    with note_of_run(config.out):
        frames = write_frames(config, labels, everything)
        extract_copies(config, identity, frames, copies, everything)

        # Their statistics, and scores
        opened, statistics = _judge(config, labels, copies, everything)
        found = _describe(config, runs, heads, opened, statistics)
        found = replace(found, fingerprint=fingerprint, notes=tuple(notes))
        _write(config.out, found)
        if not config.keep_banks:
            shutil.rmtree(config.out / "banks")
    return RobustResult(robustness=found, out=config.out)


# Heads


def _pick(
    config: RobustConfig,
) -> tuple[list[RobustRun], list[list[PickedHead]], list[str]]:
    """The runs with a name each, heads of their main setting, and notes on the choice."""
    paths, notes, heads = list(dict.fromkeys(config.run)), [], []
    for path in paths:
        found, of_run = pick_heads([path], config.epoch)
        heads.append(found)
        notes += of_run
    names = [path.name for path in paths]
    names = [str(path) if names.count(path.name) > 1 else path.name for path in paths]
    baselines = Baselines(heads)
    name_of = {id(found): name for found, name in zip(heads, names, strict=True)}
    runs = [
        RobustRun(
            name=name,
            path=str(path),
            heads=tuple(head.card.sha256 for head in found),
            erm=is_erm(found[0].recipe),
            against=name_of.get(id(baselines.beside(found)), ""),
        )
        for path, name, found in zip(paths, names, heads, strict=True)
    ]
    return runs, heads, notes


def _require_alike(heads: Sequence[PickedHead]) -> Task:
    """The task of all heads.

    Raises:
        RaffectError: Names two heads of different tasks, or a task without answers.
    """
    task = heads[0].card.data.task
    for head in heads:
        other = head.card.data.task
        if (other.name, other.kind, other.outputs) != (task.name, task.kind, task.outputs):
            raise RaffectError(
                f"--run: {heads[0].folder} is of task {task.name} and {head.folder} of "
                f"{other.name}, or of other {kind_of(task).parts}; judge each task alone"
            )
    require_answers(task)
    return task


def _choose_encoder(heads: Sequence[PickedHead], weights: str) -> Identity:
    """What the features are that all heads were trained on: of one encoder, or joined of several.

    Raises:
        RaffectError: If heads differ in them, they cannot be computed from pictures, or they are of
            damaged copies.
    """
    first = heads[0]
    (identity,) = first.card.data.encoders
    for head in heads:
        require(
            not identity.differences(head.card.data.encoders[0]),
            f"--run: {first.folder} and {head.folder} were trained on features of different "
            "encoders; judge each alone",
        )
    require(
        without_mark(identity) == identity,
        f"{first.folder}: was trained on damaged frames ({identity.caveat}); expected heads that "
        "were trained on frames as they are",
    )
    require_loadable(identity, weights, first.folder)
    return identity


# Scores


def _judge(
    config: RobustConfig,
    labels: Path,
    copies: dict[Copy, Corruption],
    heads: Sequence[PickedHead],
) -> tuple[Dataset, dict[Copy, np.ndarray]]:
    """The frames as they are, and statistics of every head on every copy.

    Raises:
        RaffectError: If copies lack different frames.
    """
    device, found = pick_device(config.device), {}
    with Progress("robust", len(copies), "copies") as progress:
        for copy, corruption in copies.items():
            bank = bank_path(config, copy)
            with stage(f"judging {bank.name}"):
                require_encoders(config, copy, corruption, heads)
                dataset = open_labels(bank, labels, config.split, heads[0].run, heads)
                found[copy] = count_heads(dataset, config.split, heads, device)
            index = dataset.splits[config.split]
            if copy == CLEAN_COPY:
                clean, names = dataset, list(index.groups)
            same = list(index.groups) == names and len(index) == len(clean.splits[config.split])
            require(
                same,
                f"{bank}: has other frames than {bank_path(config, CLEAN_COPY)}, since some could "
                "be read only once; delete both and run the same command again",
            )
            progress.advance(1)
    return clean, found


def _describe(
    config: RobustConfig,
    runs: Sequence[RobustRun],
    heads: Sequence[Sequence[PickedHead]],
    dataset: Dataset,
    statistics: dict[Copy, np.ndarray],
) -> Robustness:
    """All scores."""
    kind, task, ends = kind_of(dataset.task), dataset.task, np.cumsum([0, *map(len, heads)])
    cards = [head.card for of_run in heads for head in of_run]
    scoring = Scoring(
        kind=kind,
        outputs=task.outputs,
        group_name=dataset.facts.group_name,
        by_group=not are_blocks(dataset.splits[config.split].groups),
        runs=runs,
        rows=[slice(int(a), int(b)) for a, b in itertools.pairwise(ends)],
        epochs=[card.epoch for card in cards],
        copies=statistics,
    )
    clean = statistics[CLEAN_COPY]
    by_chance = kind.statistics_by_chance(clean[0])[None]
    caveats = [*dataset.facts.caveats]
    caveats += [caveat for card in cards for caveat in card.data.trained_caveats]
    return Robustness(
        fingerprint="",
        run=describe_run(),
        data=dataset.facts,
        split=config.split,
        snapshot=config.epoch,
        seed=config.seed,
        corruptions=tuple(dict.fromkeys(config.corruptions)),
        strengths=tuple(sorted(set(config.strengths))),
        chance=kind.chance(clean[0].sum(0), task),
        worst_by_chance=find_worst(by_chance, kind, task.outputs, by_group=scoring.by_group),
        runs=tuple(runs),
        points=tuple(scoring.points()),
        caveats=tuple(dict.fromkeys(caveats)),
    )


def _write(out: Path, found: Robustness) -> None:
    """Write figure and table, then the record, which says that all is there."""
    rows = [point.row() for point in found.points]
    task, kind = found.data.task, kind_of(found.data.task)
    title = "; ".join([f"{task.name.upper()}, {found.split}", *found.caveats])
    chance = (found.chance.name, found.chance.level)
    draw_robustness(rows, chance, title, kind, out / "robust")
    write_atomic(out / "robust.json", found.to_bytes())


def _fingerprint(config: RobustConfig, labels: Path, heads: Sequence[PickedHead]) -> str:
    """SHA-256 of all that decides scores, as far as files say it."""
    of_labels, of_manifest = digest_inputs(labels, config.manifest)
    names = ("corruptions", "strengths", "split", "epoch", "weights", "seed")
    settings = [getattr(config, name) for name in names]
    parts = [
        VERSION,
        [of_manifest, of_labels],
        settings,
        [(str(h.run), h.card.sha256) for h in heads],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
