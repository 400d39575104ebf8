"""Multilayer perceptrons side by side, with a forward and a backward pass written out.

A hidden block is Linear -> BatchNorm -> ReLU -> Dropout (Lin et al. 2024, section II-B); then comes
one Linear. With no block at all a head is a linear probe. Each layer of all heads is a view into
the matrix of rows, so that a layer is one batched product. Nothing here waits for the host.

Shape letters: P heads, B samples of this worker's part of the batch, D feature, W hidden width,
C outputs, N weights of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raffect.heads.head import EPS, MOMENTUM, MlpSpec, linear_name, norm_name
from raffect.heads.head_batch import Buffers, HeadBatch, Moved, normalise
from raffect.heads.low_rank import Lift, Lifts, linear, linear_backward, squared_norm

Views = dict[str, Tensor]
"""Tensors of every head by name, each of shape (P, ...)."""


@dataclass(frozen=True)
class _Block:
    """What the backward pass needs of a block's forward pass.

    Attributes:
        inputs: Of its Linear.
        linear: What that gave.
        normal: The same with mean 0 and variance 1.
        rstd: One over its standard deviation.
        hidden: What the block gave.
        noise: Dropout's factors; None without dropout.
    """

    inputs: Tensor
    linear: Tensor
    normal: Tensor
    rstd: Tensor
    hidden: Tensor
    noise: Tensor | None


@dataclass(frozen=True)
class _Point(Moved):
    """Weights as views, and steps from them that are not written out."""

    views: Views
    lifts: Lifts | None = None


class MlpBatch(HeadBatch):
    """P multilayer perceptrons; see `raffect.heads.head_batch.HeadBatch`."""

    fusible = ("forward", "_through_norm", "_move")
    spec: MlpSpec
    _point: _Point
    _blocks: list[_Block]
    _top: Tensor

    @cached_property
    def _here(self) -> _Point:
        return _Point(self.spec.views(self.rows))

    @cached_property
    def _gradient_views(self) -> Views:
        return self.spec.views(self.gradient)

    def initial_buffers(self) -> Buffers:
        """Means of 0, variances of 1."""
        buffers = super().initial_buffers()
        for name, buffer in buffers.items():
            if name.endswith("running_var"):
                buffer.fill_(1)
        return buffers

    def forward(
        self,
        rows: Tensor | Moved,
        batch: Tensor,
        noise: Tensor | None,
        *,
        update_buffers: bool,
    ) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.forward`; BatchNorm's batch is the global one."""
        self._point, self._blocks = self._point_at(rows), []
        views, lifts = self._point.views, self._point.lifts
        hidden = normalise(batch, self.spec.normalise)
        width, count = self.spec.width, batch.shape[1] * self.workers.size
        for block in range(self.spec.depth):
            # The inputs of BatchNorm, moved to mean 0 and scaled to variance 1.
            inputs, outputs = hidden, linear(views, linear_name(block), hidden, lifts)
            mean = self.workers.sum_(outputs.sum(1)) / count
            z = outputs - mean[:, None]
            var = self.workers.sum_(z.square().sum(1)) / count
            if update_buffers:
                self.buffers[f"{norm_name(block)}.running_mean"].lerp_(mean, MOMENTUM)
                self.buffers[f"{norm_name(block)}.running_var"].lerp_(
                    var * (count / (count - 1)),
                    MOMENTUM,
                )
            rstd = (var + EPS).rsqrt()
            normal = z.mul_(rstd[:, None])
            # BatchNorm's own scale and offset, then ReLU and dropout.
            gain, offset = (views[f"{norm_name(block)}.{kind}"] for kind in ("weight", "bias"))
            hidden = torch.addcmul(offset[:, None], normal, gain[:, None]).relu_()
            own = None if noise is None else noise[:, :, block * width : (block + 1) * width]
            if own is not None:
                hidden *= own
            self._blocks.append(_Block(inputs, outputs, normal, rstd, hidden, own))
        self._top = hidden
        return linear(views, linear_name(self.spec.depth), hidden, lifts)

    def backward(self, d_outputs: Tensor) -> None:
        """See `raffect.heads.head_batch.HeadBatch.backward`.

        The gradient of a bias that BatchNorm follows is 0; the rounding noise that autograd leaves
        there would become full steps in Adam, which divides by its size.
        """
        for name, inputs, delta in self._propagate(d_outputs):
            torch.bmm(delta.mT, inputs, out=self._gradient_views[f"{name}.weight"])
        self.workers.sum_(self.gradient)

    def climb(self, d_outputs: Tensor, rho_P: Tensor) -> Moved | None:
        """See `raffect.heads.head_batch.HeadBatch.climb`.

        Moved vectors are written out, matrices are not.

        None for a batch so large that a matrix is cheaper than its factors.
        """
        if d_outputs.shape[1] * self.workers.size > (self.spec.width or self.spec.dim):
            return None
        # Gradients of Linears as two factors, with the samples of every worker.
        factors = {}
        for name, inputs, delta in self._propagate(d_outputs):
            factors[name] = self.workers.gather(inputs), self.workers.gather(delta)
        # Gradients of vectors, which `_propagate` has written.
        vectors = {}
        for name, shape in self.spec.weights.items():
            if len(shape) == 1:
                vectors[name] = self.workers.sum_(self._gradient_views[name].contiguous())
        moved, deltas = self._move(factors, vectors, rho_P)
        # The second pass sees the same samples, so the first block's Linear gives the same there.
        kept = {linear_name(0): self._blocks[0].linear} if self._blocks else {}
        lifts = {
            name: Lift(factors[name][0], delta, kept.get(name)) for name, delta in deltas.items()
        }
        return _Point(dict(self._point.views) | moved, lifts)

    def _move(
        self,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        vectors: Mapping[str, Tensor],
        rho_P: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Vectors after SAM's step, and the second factors of Linears times its length."""
        # The length of the step, from the norm of the whole gradient.
        squares = [gradient.square().sum(1) for gradient in vectors.values()]
        squares += [squared_norm(inputs, delta) for inputs, delta in factors.values()]
        scale_P = rho_P / (sum(squares[1:], squares[0]).clamp(min=0).sqrt() + 1e-12)
        views = self._point.views
        moved = {
            name: torch.addcmul(views[name], gradient, scale_P[:, None])
            for name, gradient in vectors.items()
        }
        return moved, {name: d * scale_P[:, None, None] for name, (_, d) in factors.items()}

    def predict(self, rows: Tensor, buffers: Buffers, batch: Tensor) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.predict`."""
        return self.predictor(rows, buffers)(batch)

    def predictor(self, rows: Tensor, buffers: Buffers) -> Callable[[Tensor], Tensor]:
        """See `raffect.heads.head_batch.HeadBatch.predictor`; BatchNorm is fused once for all."""
        layers = fuse_norms(self.spec, rows, buffers)

        def predict(batch: Tensor) -> Tensor:
            hidden = normalise(batch, self.spec.normalise).expand(len(rows), *batch.shape)
            for weight, bias in layers[:-1]:
                hidden = torch.baddbmm(bias, hidden, weight.mT).relu_()
            weight, bias = layers[-1]
            return torch.baddbmm(bias, hidden, weight.mT)

        return predict

    def _point_at(self, rows: Tensor | Moved) -> _Point:
        if isinstance(rows, _Point):
            return rows
        assert isinstance(rows, Tensor)
        return self._here if rows is self.rows else _Point(self.spec.views(rows))

    def _propagate(self, d_outputs: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Go back through the last `forward`.

        Yields name, inputs and output gradient of each Linear; gradients of vectors are written.
        """
        # The last Linear.
        views, lifts, grads = self._point.views, self._point.lifts, self._gradient_views
        last = linear_name(self.spec.depth)
        torch.sum(d_outputs, 1, out=grads[f"{last}.bias"])
        yield last, self._top, d_outputs
        # The hidden blocks, from the last to the first.
        name, delta = last, d_outputs
        for block in reversed(range(self.spec.depth)):
            delta = linear_backward(views, name, delta, lifts)
            name, norm, kept = linear_name(block), norm_name(block), self._blocks[block]
            by_offset, by_gain = grads[f"{norm}.bias"], grads[f"{norm}.weight"]
            delta = self._through_norm(delta, kept, views[f"{norm}.weight"], by_offset, by_gain)
            yield name, kept.inputs, delta

    def _through_norm(
        self, delta: Tensor, kept: _Block, gain: Tensor, by_offset: Tensor, by_gain: Tensor
    ) -> Tensor:
        """From the gradient by a block's outputs to that by its Linear's, in place.

        Writes the gradients by BatchNorm's vectors.
        """
        # Back through dropout and ReLU, which let through what is above 0.
        if kept.noise is not None:
            delta *= kept.noise
        torch.ops.aten.threshold_backward.grad_input(delta, kept.hidden, 0, grad_input=delta)
        torch.sum(delta, 1, out=by_offset)
        torch.sum(delta * kept.normal, 1, out=by_gain)
        sums = torch.stack([by_offset, by_gain])
        # Back through the batch's mean and variance, which the inputs decide.
        mean_delta, mean_product = self.workers.sum_(sums) / (delta.shape[1] * self.workers.size)
        delta -= mean_delta[:, None]
        delta.addcmul_(kept.normal, mean_product[:, None], value=-1)
        delta *= (kept.rstd * gain)[:, None]
        return delta


def fuse_norms(spec: MlpSpec, rows: Tensor, buffers: Buffers) -> list[tuple[Tensor, Tensor]]:
    """Layers in use: each BatchNorm fused into the Linear before it.

    Returns:
        Weight (P, out, in) and bias (P, 1, out) of each layer.
    """
    views, layers = spec.views(rows), []
    for block in range(spec.depth):
        weight, bias = views[f"{linear_name(block)}.weight"], views[f"{linear_name(block)}.bias"]
        gain, offset = views[f"{norm_name(block)}.weight"], views[f"{norm_name(block)}.bias"]
        mean, var = (buffers[f"{norm_name(block)}.running_{kind}"] for kind in ("mean", "var"))
        scale = gain * (var + EPS).rsqrt()
        layers.append((weight * scale[:, :, None], (offset + (bias - mean) * scale)[:, None]))
    last = linear_name(spec.depth)
    return [*layers, (views[f"{last}.weight"], views[f"{last}.bias"][:, None])]
