"""Heads on disk that were never trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from raffect.bank.facts import DataFacts
from raffect.bank.records import Identity
from raffect.datasets.tasks import Task
from raffect.heads.checkpoint import HeadCard, load_head, save_head
from raffect.heads.head_kinds import head_spec
from raffect.metrics.scores import Chance, JudgedScore
from raffect.recipe import HeadConfig, Recipe
from tests.helpers.banks import IDENTITY


def make_head(
    folder: Path,
    task: Task,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    encoder: Identity = IDENTITY,
    **card: object,
) -> nn.Module:
    """Write a head with drawn weights, as training would; returns it as a module.

    Args:
        folder: ``RUN/weights/<id>/last``, or any other.
        task: What it predicts.
        recipe: Its settings; a narrow MLP by default.
        seed: Of its weights.
        encoder: Whose features it reads.
        card: Of its card, in place of the usual ones.
    """
    recipe = recipe or Recipe(task=task.name, seed=seed, head=HeadConfig(width=5, depth=2))
    spec = head_spec(recipe.head, encoder.dim, len(task.outputs))
    row = spec.initial_row(seed, recipe.head)
    generator = torch.Generator().manual_seed(seed)
    row += 0.3 * torch.randn(row.shape, generator=generator)
    batch = spec.build(row[None])
    for buffer in batch.buffers.values():
        buffer.add_(torch.rand(buffer.shape, generator=generator))
    data = DataFacts(
        task=task,
        bank="bank",
        labels="labels",
        bank_digest="b" * 64,
        labels_sha256="c" * 64,
        encoders=(encoder,),
        splits={},
    )
    score = JudgedScore(metrics={"f1": 0.5}, headline=0.5, outputs={}, epoch=1)
    usual = {"id": folder.parent.name, "status": "done", "snapshot": "last", "data": data}
    usual |= {"recipe": recipe, "validation": score, "chance": Chance(answer="x", majority=0.1)}
    save_head(folder, HeadCard(**usual | {"head": spec.to_json()} | card), batch.state(0))
    return load_head(folder)[0]
