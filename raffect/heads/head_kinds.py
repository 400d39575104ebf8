"""The kinds of heads: which spec a recipe asks for, and which one a file holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from raffect.errors import RaffectError
from raffect.heads.head import MlpSpec
from raffect.heads.head_batch import HeadSpec
from raffect.heads.projection import ProjectionSpec
from raffect.heads.released_emoclip import ReleasedEmoclipSpec
from raffect.heads.temporal import TemporalSpec
from raffect.recipe import HeadConfig

HEAD_KINDS: dict[str, type[HeadSpec]] = {
    spec.kind: spec for spec in (MlpSpec, TemporalSpec, ProjectionSpec, ReleasedEmoclipSpec)
}


def head_spec(
    config: HeadConfig,
    dim: int,
    outputs: int,
    *,
    compares: bool = False,
    order: bool = False,
) -> HeadSpec:
    """What a recipe's heads are.

    Args:
        config: The recipe's part.
        dim: Length of a feature.
        outputs: How many numbers a head predicts for a sample.
        compares: Whether these are a vector to compare with targets; see
            `raffect.heads.head_batch.EmbeddingSpec`.
        order: Whether it learns the order of snippets beside, as ``loss.order`` above 0 asks for;
            of a recipe with ``head.snippets``.

    Raises:
        RaffectError: If heads of that kind cannot do it.
    """
    spec = HEAD_KINDS[config.kind].from_config(config, dim, outputs, compares=compares)
    # A recipe asks for it only with snippets.
    return dataclasses.replace(spec, order=True) if order else spec


def read_spec(content: Any, where: Path) -> HeadSpec:
    """The spec that `raffect.heads.head_batch.HeadSpec.to_json` wrote.

    Args:
        content: Any JSON value: a file is not trusted.
        where: The file, for errors.

    Raises:
        RaffectError: If it is not a spec, or out of bounds.
    """
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in HEAD_KINDS:
        expected = " or ".join(HEAD_KINDS)
        found = f"{where}: not a head of a known kind ({str(kind)[:40]})"
        raise RaffectError(f"{found}; expected {expected}; train again, or update raffect")
    # Each kind checks its own values.
    values = {name: value for name, value in content.items() if name != "kind"}
    return HEAD_KINDS[kind].from_json(values, where)
