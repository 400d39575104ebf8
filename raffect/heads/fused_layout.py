"""Where the layers of an MLP lie in a head's row, and how many columns a kernel's program takes."""

from __future__ import annotations

from dataclasses import dataclass

from raffect.heads.mlp import MlpSpec, linear_name

_PROGRAMS = 132
"""Multiprocessors of an H100: with fewer programs narrower column blocks are faster."""


@dataclass(frozen=True)
class Layer:
    """One Linear, its BatchNorm if a block's, and where they lie in a row.

    Attributes:
        inputs: Of the Linear.
        outputs: Of the Linear.
        weight_at: Where its matrix starts; its vectors lie behind it.
        vector_at: Where its vectors start among all of a head's.
        count: Numbers in its vectors: bias, gain and offset, or the last bias alone.
    """

    inputs: int
    outputs: int
    weight_at: int
    vector_at: int
    count: int


def layers_of(spec: MlpSpec) -> list[Layer]:
    """The L + 1 Linears of a head, in order."""
    out, weight_at, vector_at = [], 0, 0
    for block in range(spec.depth + 1):
        outputs, inputs = spec.weights[f"{linear_name(block)}.weight"]
        count = 3 * outputs if block < spec.depth else outputs
        out.append(Layer(inputs, outputs, weight_at, vector_at, count))
        weight_at, vector_at = weight_at + outputs * inputs + count, vector_at + count
    return out


def column_block(num_heads: int, width: int) -> int:
    """Columns that one program computes: many where heads fill the card, few for one head."""
    for columns in (64, 32):
        if num_heads * -(-width // columns) >= _PROGRAMS:
            return columns
    return 16
