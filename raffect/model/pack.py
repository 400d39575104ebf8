"""P heads side by side: stacked weights, batched products, a forward and a backward pass written out.

All weights of a member lie in one row of one matrix, so that SAM and Adam are a few passes over memory, and each layer is a
view into it. Nothing here waits for the host.

Shape letters: P members, B frames of this worker's part of the batch, D feature, W hidden width, C outputs, N weights of a member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raffect.model.random import weights_generator
from raffect.model.workers import Workers

MOMENTUM = 0.1
"""Of BatchNorm's running statistics, as in torch."""
EPS = 1e-5
"""BatchNorm's guard against a variance of 0, as in torch."""

Views = dict[str, Tensor]
"""Tensors of every member by name, as views into rows of shape (P, N)."""


@dataclass(frozen=True)
class Layout:
    """Shape of a head: ``depth`` blocks of ``width`` units on ``dim`` inputs, then ``outputs`` logits."""

    dim: int
    width: int
    depth: int
    outputs: int

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the weights, as in the state of a `raffect.model.head.Head`, in the order of a member's row."""
        out: list[tuple[str, tuple[int, ...]]] = []
        for block in range(self.depth):
            inputs = self.dim if block == 0 else self.width
            out += [(f"layers.{4 * block}.weight", (self.width, inputs)), (f"layers.{4 * block}.bias", (self.width,))]
            out += [(f"layers.{4 * block + 1}.weight", (self.width,)), (f"layers.{4 * block + 1}.bias", (self.width,))]
        last = 4 * self.depth
        return [*out, (f"layers.{last}.weight", (self.outputs, self.width)), (f"layers.{last}.bias", (self.outputs,))]

    @property
    def num_weights(self) -> int:
        """Length of a member's row."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    def views(self, rows: Tensor) -> Views:
        """Each tensor of every member as a view into ``rows`` of shape (P, N)."""
        out, start = {}, 0
        for name, shape in self.tensors:
            size = math.prod(shape)
            out[name] = rows[:, start : start + size].view(len(rows), *shape)
            start += size
        return out


@dataclass
class _Block:
    """What the backward pass needs of a block's forward pass."""

    inputs: Tensor
    normal: Tensor
    rstd: Tensor
    open: Tensor


class Pack:
    """Weights, gradients and running statistics of P heads.

    Args:
        layout: Their shape.
        seeds: Of their initial weights.
        inits: ``"he"`` or ``"torch"`` of each.
        device: Where they live.
        dtype: float32; float64 for tests.
        workers: Who trains them together.
    """

    def __init__(self, layout: Layout, seeds: Sequence[int], inits: Sequence[str], device: torch.device, dtype: torch.dtype = torch.float32, workers: Workers | None = None) -> None:
        self.layout, self.workers = layout, workers or Workers()
        rows = torch.stack([_init_row(layout, seed, init) for seed, init in zip(seeds, inits, strict=True)])
        self.weights = rows.to(device, dtype)
        self.gradient = torch.zeros_like(self.weights)
        self.perturbed = torch.zeros_like(self.weights)
        self.running_mean = torch.zeros(len(rows), layout.depth, layout.width, device=device, dtype=dtype)
        self.running_var = torch.ones_like(self.running_mean)
        self.at_weights, self.at_perturbed, self.at_gradient = (layout.views(rows) for rows in (self.weights, self.perturbed, self.gradient))
        self._blocks: list[_Block] = []
        self._top = self.weights

    def __len__(self) -> int:
        return len(self.weights)

    def forward(self, views: Views, x_PBD: Tensor, scale_PBK: Tensor | None, update_running: bool) -> Tensor:
        """Logits in training mode: statistics of the global batch, dropout.

        Args:
            views: ``self.at_weights`` or ``self.at_perturbed``.
            x_PBD: Features.
            scale_PBK: Dropout's factors, 0 or 1 / (1 - rate), of all blocks, K = depth * W; None is no dropout.
            update_running: Whether running statistics move.

        Returns:
            Shape (P, B, C); what `backward` needs is kept until then.
        """
        hidden, self._blocks = x_PBD, []
        width, count = self.layout.width, x_PBD.shape[1] * self.workers.size
        for block in range(self.layout.depth):
            weight, bias, gain, offset = (views[f"layers.{4 * block + part}.{kind}"] for part in (0, 1) for kind in ("weight", "bias"))
            z = torch.baddbmm(bias[:, None], hidden, weight.mT)
            mean = self.workers.sum_(z.sum(1)) / count
            z -= mean[:, None]
            var = self.workers.sum_(z.square().sum(1)) / count
            if update_running:
                self.running_mean[:, block].lerp_(mean, MOMENTUM)
                self.running_var[:, block].lerp_(var * (count / (count - 1)), MOMENTUM)
            rstd = (var + EPS).rsqrt()
            normal = z.mul_(rstd[:, None])
            out = torch.addcmul(offset[:, None], normal, gain[:, None])
            is_open = (out > 0).to(out.dtype)
            if scale_PBK is not None:
                is_open *= scale_PBK[:, :, block * width : (block + 1) * width]
            self._blocks.append(_Block(hidden, normal, rstd, is_open))
            hidden = out.mul_(is_open)
        self._top = hidden
        last = 4 * self.layout.depth
        return torch.baddbmm(views[f"layers.{last}.bias"][:, None], hidden, views[f"layers.{last}.weight"].mT)

    def backward(self, views: Views, d_logits_PBC: Tensor) -> None:
        """Gradient of the last `forward` with these views, into ``self.gradient``, summed over workers.

        The gradient of a bias that BatchNorm follows is 0; the rounding noise that autograd leaves there would become full steps
        in Adam, which divides by its size.
        """
        grads, count = self.at_gradient, d_logits_PBC.shape[1] * self.workers.size
        last = f"layers.{4 * self.layout.depth}"
        torch.bmm(d_logits_PBC.mT, self._top, out=grads[f"{last}.weight"])
        torch.sum(d_logits_PBC, 1, out=grads[f"{last}.bias"])
        delta = torch.bmm(d_logits_PBC, views[f"{last}.weight"])
        for block in reversed(range(self.layout.depth)):
            linear, norm, kept = f"layers.{4 * block}", f"layers.{4 * block + 1}", self._blocks[block]
            delta *= kept.open
            sums = torch.stack([delta.sum(1), (delta * kept.normal).sum(1)])
            grads[f"{norm}.bias"].copy_(sums[0])
            grads[f"{norm}.weight"].copy_(sums[1])
            mean_delta, mean_product = self.workers.sum_(sums) / count
            delta -= mean_delta[:, None]
            delta.addcmul_(kept.normal, mean_product[:, None], value=-1)
            delta *= (kept.rstd * views[f"{norm}.weight"])[:, None]
            torch.bmm(delta.mT, kept.inputs, out=grads[f"{linear}.weight"])
            if block:
                delta = torch.bmm(delta, views[f"{linear}.weight"])
        self.workers.sum_(self.gradient)


def fold(layout: Layout, weights: Tensor, running_mean: Tensor, running_var: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Layers in evaluation mode: each BatchNorm's running statistics folded into the Linear before it.

    Args:
        layout: Shape of the heads.
        weights: Rows of members, shape (P, N).
        running_mean: Shape (P, depth, W).
        running_var: Likewise.

    Returns:
        Weight (P, out, in) and bias (P, 1, out) of each layer.
    """
    views, layers = layout.views(weights), []
    for block in range(layout.depth):
        weight, bias, gain, offset = (views[f"layers.{4 * block + part}.{kind}"] for part in (0, 1) for kind in ("weight", "bias"))
        scale = gain * (running_var[:, block] + EPS).rsqrt()
        layers.append((weight * scale[:, :, None], (offset + (bias - running_mean[:, block]) * scale)[:, None]))
    last = 4 * layout.depth
    return [*layers, (views[f"layers.{last}.weight"], views[f"layers.{last}.bias"][:, None])]


def predict(layers: list[tuple[Tensor, Tensor]], x_BD: Tensor) -> Tensor:
    """Logits of every member in evaluation mode.

    Args:
        layers: Of `fold`.
        x_BD: Features, of the layers' type.

    Returns:
        Shape (P, B, C).
    """
    hidden = x_BD.expand(len(layers[0][0]), *x_BD.shape)
    for weight, bias in layers[:-1]:
        hidden = torch.baddbmm(bias, hidden, weight.mT).relu_()
    weight, bias = layers[-1]
    return torch.baddbmm(bias, hidden, weight.mT)


def _init_row(layout: Layout, seed: int, init: str) -> Tensor:
    """Initial weights of one member: BatchNorm as the identity, Linear by ``init``; float32, so that devices agree."""
    generator = weights_generator(seed)
    row = torch.zeros(layout.num_weights)
    for name, view in layout.views(row[None]).items():
        index, _, kind = name.removeprefix("layers.").partition(".")
        if int(index) % 4 == 1:
            view.fill_(1.0 if kind == "weight" else 0.0)
        else:
            inputs = layout.dim if index == "0" else layout.width
            bound = {"he": math.sqrt(6 / inputs) if kind == "weight" else 0.0, "torch": 1 / math.sqrt(inputs)}[init]
            view.copy_((torch.rand(view.shape, generator=generator) * 2 - 1) * bound)
    return row
