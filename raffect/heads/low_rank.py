"""Batched Linears, and steps along their gradients that are never written out.

The gradient of a Linear for B samples is a product of two thin factors, ``delta.mT @ inputs``, and
so has rank B. For B below its width, its norm and its product with anything cost a fraction of the
passes over memory that the matrix itself would.

Shape letters: P heads, B samples of the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Lifts = Mapping[str, "Lift"]
"""Steps along the gradients of Linears, by name."""


@dataclass(frozen=True)
class Lift:
    """A step along the gradient of a Linear, kept as its two factors.

    Attributes:
        inputs: What the Linear was given in the first pass, shape (P, B, in).
        delta: The gradient by its outputs, times the length of the step, shape (P, B, out).
        outputs: What it gave for those inputs where the step begins, shape (P, B, out); None where
            that is not kept.
    """

    inputs: Tensor
    delta: Tensor
    outputs: Tensor | None = None

    def add_to_outputs(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add what the step does to the Linear's outputs for other inputs."""
        outputs.baddbmm_(torch.bmm(inputs, self.inputs.mT), self.delta)

    def add_to_gradient(self, by_inputs: Tensor, by_outputs: Tensor) -> None:
        """Add what the step does to the gradient by the Linear's inputs."""
        by_inputs.baddbmm_(torch.bmm(by_outputs, self.delta.mT), self.inputs)


def linear(views: Mapping[str, Tensor], name: str, inputs: Tensor, lifts: Lifts | None) -> Tensor:
    """Outputs (P, B, out) of a Linear for inputs (P, B, in).

    Args:
        views: Weight (P, out, in) and bias (P, out) by ``name.weight`` and ``name.bias``.
        name: Of the Linear.
        inputs: Not changed.
        lifts: Steps to take from those weights; None for none.
    """
    weight, bias = views[f"{name}.weight"], views[f"{name}.bias"]
    lift = None if lifts is None else lifts[name]
    # The same product again, where the first layer is given the same samples
    if lift is not None and lift.outputs is not None and lift.inputs is inputs:
        outputs = lift.outputs.clone()
    else:
        outputs = torch.baddbmm(bias[:, None], inputs, weight.mT)
    if lift is not None:
        lift.add_to_outputs(outputs, inputs)
    return outputs


def linear_backward(
    views: Mapping[str, Tensor],
    name: str,
    by_outputs: Tensor,
    lifts: Lifts | None,
) -> Tensor:
    """Gradient (P, B, in) by the inputs of `linear` from the one by its outputs."""
    by_inputs = torch.bmm(by_outputs, views[f"{name}.weight"])
    if lifts is not None:
        lifts[name].add_to_gradient(by_inputs, by_outputs)
    return by_inputs


def squared_norm(inputs: Tensor, delta: Tensor) -> Tensor:
    """Squared norm (P,) of ``delta.mT @ inputs``: the sum of ``(h @ h.mT) * (d @ d.mT)``."""
    return (torch.bmm(inputs, inputs.mT) * torch.bmm(delta, delta.mT)).sum(1).sum(1)
