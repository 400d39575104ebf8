"""The kinds of heads: which spec a recipe asks for, and which one a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raffect.errors import RaffectError, require
from raffect.heads.head import MlpSpec
from raffect.heads.head_batch import HeadSpec
from raffect.heads.prompts import PromptSpec
from raffect.recipe import HeadConfig

HEAD_KINDS: dict[str, type[HeadSpec]] = {"mlp": MlpSpec, "prompts": PromptSpec}


def head_spec(config: HeadConfig, dim: int, outputs: int, *, compares: bool = False) -> HeadSpec:
    """What a recipe's heads are.

    Args:
        config: The recipe's part.
        dim: Length of a feature.
        outputs: How many numbers a head predicts for a sample.
        compares: Whether these are a vector to compare with targets; see
            `raffect.heads.head_batch.EmbeddingSpec`.

    Raises:
        RaffectError: If heads of that kind cannot do it.
    """
    require(
        config.kind != "prompts",
        "head.kind prompts: a text tower is needed; use `raffect learn-prompts`",
    )
    return MlpSpec.from_config(config, dim, outputs)


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
