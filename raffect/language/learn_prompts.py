"""`raffect learn-prompts`: learn tokens of prompts on a bank, with both towers frozen.

A run folder like that of training, and in it

words.csv             the words nearest to each learnt token
against.json          scores beside those of the best hand-written prompts
hand-written/         the run folder of `raffect zeroshot` for these

Shape letters: G classes or labels (and a face without labels), S descriptors, M tokens, W width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from raffect.bank.format import Bank
from raffect.config import LearnPromptsConfig, ZeroshotConfig
from raffect.datasets.tasks import Task
from raffect.encoders.text import TextEncoder, open_text_encoder
from raffect.encoders.text_tower import LearntPrompts, TextTower, open_text_tower
from raffect.errors import require
from raffect.heads.prompts import PromptSpec
from raffect.language.learnt_result import (
    LearnPromptsResult,
    compare,
    find_words,
    write_result,
)
from raffect.language.prompt_sets import prompts_for, shipped_for
from raffect.language.zeroshot.zeroshot import zeroshot
from raffect.metrics.task_kinds import kind_of
from raffect.progress import stage
from raffect.runs.conclusions import TrainResult
from raffect.runs.data import Dataset, pick_device
from raffect.training.run_batch import open_data
from raffect.training.train import train_on

HAND_WRITTEN = "hand-written"
"""Folder of the hand-written prompts' run, in that of the learnt ones."""


def learn_prompts(config: LearnPromptsConfig) -> LearnPromptsResult:
    """Learn prompts, judge them, and compare them with hand-written ones.

    Raises:
        RaffectError: If a prompt is too long, the weights are not those of the bank or have another
            text tower than CLIP's, or the data or settings do not allow it.
    """
    # Data and texts, which are checked before anything is written
    with stage(f"reading {config.labels} and {config.bank}"):
        dataset = open_data(config, [config.head])
    task = dataset.task
    require(
        task.kind in ("multiclass", "multilabel"),
        f"{config.labels}: task {task.name} has no classes and no labels, which prompts describe",
    )
    _check_hand_written(config, dataset)
    identity = Bank(config.bank).require_identity()
    encoder = open_text_encoder(identity, config.bank, config.weights)
    tower = open_text_tower(encoder, pick_device(config.device))
    spec = build_spec(config, task, encoder, tower)

    # Learnt prompts as any heads, then hand-written ones on the same frames
    config = replace(config, task=task.name, stream="never")
    trained = train_on(config, dataset, spec)
    assert isinstance(trained, TrainResult)  # its configuration leaves no class out
    written = zeroshot(_zeroshot_config(config)) if config.prompts else None
    compared = () if written is None else compare(trained, written)
    return write_result(
        LearnPromptsResult(
            trained=trained,
            hand_written=written,
            compared=compared,
            words=find_words(trained, spec, tower),
            notes=describe_unused(config, task),
        )
    )


def build_spec(
    config: LearnPromptsConfig, task: Task, encoder: TextEncoder, tower: TextTower
) -> PromptSpec:
    """What the heads of a configuration are.

    Raises:
        RaffectError: If a prompt set lacks a class, or a prompt has more tokens than there are to
            learn or than the tower reads.
    """
    # Which words tokens start from, and which stand behind them
    groups, descriptors = group_names(task), config.head.descriptors
    begins = [texts[:descriptors] for texts in _texts(config.start, task)]
    starts = [[tower.read(text) for text in texts] for texts in begins]
    longest = max((len(read) for row in starts for read in row), default=0)
    tokens = config.head.tokens or longest
    require(
        longest <= tokens,
        f"--start {config.start}: a prompt of {longest} tokens, and --head.tokens {tokens}; "
        f"expected {longest} or more, or 0 (as many as its prompts have)",
    )
    behind = _texts(config.class_names, task) if config.class_names else [[""]] * len(groups)
    behind = [texts or [name.lower()] for texts, name in zip(behind, groups, strict=True)]

    # How many tokens each prompt learns: all of them, or as many as its words have
    learnt = [
        [len(row[s]) if s < len(row) else tokens for s in range(descriptors)] for row in starts
    ]
    words = [[texts[s % len(texts)] for s in range(descriptors)] for texts in behind]
    content = json.dumps([begins, learnt, words])
    return PromptSpec(
        dim=tower.dim,
        outputs=len(task.outputs),
        has_rest=task.kind == "multilabel",
        descriptors=descriptors,
        tokens=tokens,
        width=tower.width,
        scale=encoder.identity.scale,
        text_sha256=encoder.identity.text_sha256,
        prompts_sha256=hashlib.sha256(content.encode()).hexdigest(),
        read=LearntPrompts(tower, learnt, words),
        start=_place(starts, (len(groups), descriptors, tokens, tower.width)),
    )


def describe_unused(config: LearnPromptsConfig, task: Task) -> tuple[str, ...]:
    """A line for each prompt set with more prompts of a class than it has descriptors."""
    notes, descriptors = [], config.head.descriptors
    for flag, name in (("start", config.start), ("class-names", config.class_names)):
        counts = [len(texts) for texts in _texts(name, task)]
        if unused := sum(max(0, count - descriptors) for count in counts):
            notes.append(
                f"--{flag} {name}: {unused} of its {sum(counts)} prompts were not used, beyond "
                f"--head.descriptors {descriptors} of a {kind_of(task).part}; {max(counts)} use all"
            )
    return tuple(notes)


def group_names(task: Task) -> list[str]:
    """Names of what has descriptors of its own: classes, or labels and a face without them."""
    return [*task.outputs, *(["rest"] if task.kind == "multilabel" else [])]


def _texts(name: str, task: Task) -> list[list[str]]:
    """Prompts of a set for each group; none for a class that it does not describe."""
    if not name:
        return [[] for _ in group_names(task)]
    found = prompts_for(name, task)
    texts = [[text for part in parts or () for text in part] for parts in found.outputs.values()]
    return [*texts, list(found.rest)] if task.kind == "multilabel" else texts


def _place(starts: Sequence[Sequence[Tensor]], shape: tuple[int, int, int, int]) -> Tensor:
    """Where learnt tokens start, (G, S, M, W): NaN where they are drawn, 0 where none is used."""
    out = torch.full(shape, math.nan)
    for g, row in enumerate(starts):
        for s, read in enumerate(row):
            out[g, s] = 0
            out[g, s, : len(read)] = read
    return out


def _check_hand_written(config: LearnPromptsConfig, dataset: Dataset) -> None:
    """Refuse prompt sets that cannot be compared, before anything is written."""
    for name in config.prompts:
        if name == "all":
            shipped_for(dataset.task)
        else:
            prompts_for(name, dataset.task)
    if config.prompts:
        dataset.fold_of_frames(config.num_folds)


def _zeroshot_config(config: LearnPromptsConfig) -> ZeroshotConfig:
    return ZeroshotConfig(
        bank=config.bank,
        labels=config.labels,
        out=config.out / HAND_WRITTEN,
        prompts=config.prompts,
        task=config.task,
        folds=config.num_folds,
        weights=config.weights,
        device=config.device,
        allow_incomplete=config.allow_incomplete,
    )
