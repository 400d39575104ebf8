"""P heads side by side: stacked weights, batched products, a forward and a backward pass written out.

All weights of a member lie in one row of one matrix, so that SAM and Adam are a few passes over memory, and each layer is a
view into it. Nothing here waits for the host.

Shape letters: P members, B frames of this worker's part of the batch, D feature, W hidden width, C outputs, N weights of a member.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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

Lifts = Mapping[str, "Lift"]
"""Steps along the gradients of Linears, by name."""


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
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of everything that a head is saved as: its weights and BatchNorm's running statistics."""
        running = {f"layers.{4 * block + 1}.running_{kind}": (self.width,) for block in range(self.depth) for kind in ("mean", "var")}
        return dict(self.tensors) | running

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


@dataclass(frozen=True)
class Lift:
    """A step along the gradient of a Linear, ``delta.mT @ inputs``, kept as its two factors and never written out.

    Attributes:
        inputs: What the Linear saw in the first pass, over the global batch, shape (P, B, in).
        delta: The gradient by what it said, times the length of the step, shape (P, B, out).
    """

    inputs: Tensor
    delta: Tensor

    def add_to_outputs(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add what the step does to the Linear's outputs for other inputs."""
        outputs.baddbmm_(torch.bmm(inputs, self.inputs.mT), self.delta)

    def add_to_gradient(self, by_inputs: Tensor, by_outputs: Tensor) -> None:
        """Add what the step does to the gradient by the Linear's inputs."""
        by_inputs.baddbmm_(torch.bmm(by_outputs, self.delta.mT), self.inputs)


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

    def __init__(
        self, layout: Layout, seeds: Sequence[int], inits: Sequence[str], device: torch.device, dtype: torch.dtype = torch.float32, workers: Workers | None = None
    ) -> None:
        self.layout, self.workers = layout, workers or Workers()
        rows = torch.stack([_init_row(layout, seed, init) for seed, init in zip(seeds, inits, strict=True)])
        self.weights = rows.to(device, dtype)
        self.gradient = torch.zeros_like(self.weights)
        self.running_mean = torch.zeros(len(rows), layout.depth, layout.width, device=device, dtype=dtype)
        self.running_var = torch.ones_like(self.running_mean)
        self.at_weights, self.at_gradient = layout.views(self.weights), layout.views(self.gradient)
        self._blocks: list[_Block] = []
        self._top = self.weights

    def __len__(self) -> int:
        return len(self.weights)

    @cached_property
    def perturbed(self) -> Tensor:
        """Where weights that SAM moved as whole matrices are written, (P, N); most packs never need it."""
        return torch.empty_like(self.weights)

    @cached_property
    def at_perturbed(self) -> Views:
        """Views into `perturbed`."""
        return self.layout.views(self.perturbed)

    def forward(self, views: Views, x_PBD: Tensor, scale_PBK: Tensor | None, update_running: bool, lifts: Lifts | None = None) -> Tensor:
        """Logits in training mode: statistics of the global batch, dropout.

        Args:
            views: ``self.at_weights``, ``self.at_perturbed``, or what `climb` returns.
            x_PBD: Features.
            scale_PBK: Dropout's factors, 0 or 1 / (1 - rate), of all blocks, K = depth * W; None is no dropout.
            update_running: Whether running statistics move.
            lifts: Of `climb`.

        Returns:
            Shape (P, B, C); what `backward` needs is kept until then.
        """
        hidden, self._blocks = x_PBD, []
        width, count = self.layout.width, x_PBD.shape[1] * self.workers.size
        for block in range(self.layout.depth):
            gain, offset = (views[f"layers.{4 * block + 1}.{kind}"] for kind in ("weight", "bias"))
            z = _linear(views, f"layers.{4 * block}", hidden, lifts)
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
        return _linear(views, f"layers.{4 * self.layout.depth}", hidden, lifts)

    def backward(self, views: Views, d_logits_PBC: Tensor, lifts: Lifts | None = None) -> None:
        """Gradient of the last `forward`, which had these views and lifts, into ``self.gradient``, summed over workers.

        The gradient of a bias that BatchNorm follows is 0; the rounding noise that autograd leaves there would become full steps
        in Adam, which divides by its size.
        """
        for name, inputs, delta in self._propagate(views, d_logits_PBC, lifts):
            torch.bmm(delta.mT, inputs, out=self.at_gradient[f"{name}.weight"])
        self.workers.sum_(self.gradient)

    def climb(self, d_logits_PBC: Tensor, rho_P: Tensor) -> tuple[Views, Lifts]:
        """SAM's step rho * g / |g| from the last `forward` at the weights, without writing g or the moved matrices.

        A Linear's gradient has rank B: as a product of two thin factors it costs a fraction of the passes over memory that the
        matrix would, and its norm follows from them, |d.mT @ h|^2 = sum((h @ h.mT) * (d @ d.mT)). Moved vectors are written out.

        Args:
            d_logits_PBC: Derivative of the loss by the logits.
            rho_P: Radius of each member.

        Returns:
            Views and lifts for `forward` and `backward`.
        """
        factors = {name: (self.workers.gather(inputs), self.workers.gather(delta)) for name, inputs, delta in self._propagate(self.at_weights, d_logits_PBC, None)}
        vectors = {name: self.workers.sum_(self.at_gradient[name].contiguous()) for name, shape in self.layout.tensors if len(shape) == 1}
        moved, deltas = self._move(factors, vectors, rho_P)
        return self.at_weights | moved, {name: Lift(factors[name][0], delta) for name, delta in deltas.items()}

    def _move(self, factors: Mapping[str, tuple[Tensor, Tensor]], vectors: Views, rho_P: Tensor) -> tuple[Views, Views]:
        """Vectors after SAM's step, and the second factors of Linears times its length."""
        squares = [gradient.square().sum(1) for gradient in vectors.values()]
        squares += [(torch.bmm(h, h.mT) * torch.bmm(d, d.mT)).sum(1).sum(1) for h, d in factors.values()]
        scale_P = rho_P / (sum(squares[1:], squares[0]).clamp(min=0).sqrt() + 1e-12)
        moved = {name: torch.addcmul(self.at_weights[name], gradient, scale_P[:, None]) for name, gradient in vectors.items()}
        return moved, {name: d * scale_P[:, None, None] for name, (_, d) in factors.items()}

    def _propagate(self, views: Views, d_logits_PBC: Tensor, lifts: Lifts | None) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Go back through the last `forward`: name, inputs and output gradient of each Linear; gradients of vectors are written."""
        grads, last = self.at_gradient, f"layers.{4 * self.layout.depth}"
        torch.sum(d_logits_PBC, 1, out=grads[f"{last}.bias"])
        yield last, self._top, d_logits_PBC
        delta = _linear_backward(views, last, d_logits_PBC, lifts)
        for block in reversed(range(self.layout.depth)):
            linear, norm, kept = f"layers.{4 * block}", f"layers.{4 * block + 1}", self._blocks[block]
            delta = self._through_norm(delta, kept.open, kept.normal, kept.rstd, views[f"{norm}.weight"], grads[f"{norm}.bias"], grads[f"{norm}.weight"])
            yield linear, kept.inputs, delta
            if block:
                delta = _linear_backward(views, linear, delta, lifts)

    def _through_norm(self, delta: Tensor, is_open: Tensor, normal: Tensor, rstd: Tensor, gain: Tensor, by_offset: Tensor, by_gain: Tensor) -> Tensor:
        """From the gradient by a block's outputs to that by its Linear's, in place; writes those by BatchNorm's vectors."""
        delta *= is_open
        sums = torch.stack([delta.sum(1), (delta * normal).sum(1)])
        by_offset.copy_(sums[0])
        by_gain.copy_(sums[1])
        mean_delta, mean_product = self.workers.sum_(sums) / (delta.shape[1] * self.workers.size)
        delta -= mean_delta[:, None]
        delta.addcmul_(normal, mean_product[:, None], value=-1)
        delta *= (rstd * gain)[:, None]
        return delta


def _linear(views: Views, name: str, inputs: Tensor, lifts: Lifts | None) -> Tensor:
    outputs = torch.baddbmm(views[f"{name}.bias"][:, None], inputs, views[f"{name}.weight"].mT)
    if lifts is not None:
        lifts[name].add_to_outputs(outputs, inputs)
    return outputs


def _linear_backward(views: Views, name: str, by_outputs: Tensor, lifts: Lifts | None) -> Tensor:
    by_inputs = torch.bmm(by_outputs, views[f"{name}.weight"])
    if lifts is not None:
        lifts[name].add_to_gradient(by_inputs, by_outputs)
    return by_inputs


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
