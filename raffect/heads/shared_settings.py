"""Which settings heads of one batch share, so that they can train side by side."""

from __future__ import annotations

from collections.abc import Sequence

from raffect.recipe import Recipe, flatten

SHARED_SETTINGS = (
    "task",
    "epochs",
    "batch_size",
    "head.kind",
    "head.width",
    "head.depth",
    "head.layers",
    "head.attention_heads",
    "head.window",
    "head.stride",
    "head.pool",
    "head.snippets",
    "head.tokens",
    "head.descriptors",
    "head.normalise",
    "loss.name",
    "loss.tail_over",
    "sam.perturbation",
    "optim.name",
)
"""Settings that all heads of a batch share; every other one may differ between them."""


def require_shared_settings(recipes: Sequence[Recipe]) -> None:
    """Raise unless recipes can train side by side.

    Raises:
        ValueError: If they differ in one of `SHARED_SETTINGS`.
    """
    for name in SHARED_SETTINGS:
        if len(found := {flatten(recipe)[name] for recipe in recipes}) > 1:
            raise ValueError(f"heads of one batch differ in {name}: {sorted(found, key=str)}")
