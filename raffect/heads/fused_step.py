"""The training step of a batch of MLPs on CUDA, launched as one Triton kernel a layer and pass.

It changes the same tensors as the learner's own step (rows, the optimiser's state, buffers, what is
counted), so that checkpoints do not know which of the two took a step. All else it writes lies in
memory that it makes once: nothing waits for the host, and a CUDA graph can hold the step.

Shape letters: P heads, B samples, D feature, W hidden width, C outputs, L hidden blocks, N weights
of a head, V of them in vectors (biases, gains, offsets).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from raffect.heads.fused_layout import column_block, layers_of
from raffect.heads.head_batch import normalise
from raffect.heads.label_losses import MulticlassLoss, MultilabelLoss
from raffect.heads.mlp import MlpSpec, norm_name

if TYPE_CHECKING:
    from raffect.heads.learner import Learner

_BLOCK_K = 32
"""Terms of a product's sum at a time."""
_TILE = (32, 64)
"""Outputs and inputs of a matrix that one program updates."""
_MOST_OUTPUTS = 64
"""Of the losses' kernels, which hold all outputs of a head."""
_MOST_COMPARED = 2**15
"""Of the kernel of labels, which compares that many numbers at once: 32 labels of 32 samples, 8 of
64. For 12 of 64 it took half a minute to compile on two busy cores."""


class FusedStep:
    """A learner's step by Triton kernels.

    Args:
        learner: Whose tensors move; `raffect.heads.fused.serves` says which learners this is for.

    Attributes:
        launches: Kernels of this module launched so far.
    """

    def __init__(self, learner: Learner) -> None:
        # Late, since a machine without CUDA may have no Triton.
        from raffect.heads import fused_kernels

        self.kernels, self.learner, self.launches = fused_kernels, learner, 0
        spec = learner.heads.spec
        assert isinstance(spec, MlpSpec)
        self.spec, self.layers = spec, layers_of(spec)
        self._make_sizes()
        self._make_memory()

    def _make_sizes(self) -> None:
        """Constants of the kernels."""
        spec, batch = self.spec, self.learner.batch
        block_b = max(16, _power(batch))
        parts = (spec.depth + 1) * (block_b // 16)
        self._norm_sizes = {"PARTS": parts, "BLOCK_PARTS": _power(parts)}
        self._rows = {"B": batch, "BLOCK_B": block_b}
        self._sizes = {
            **self._rows,
            **self._norm_sizes,
            "BLOCK_N": column_block(len(self.learner.heads), spec.width),
            "BLOCK_K": _BLOCK_K,
        }

    def _make_memory(self) -> None:
        """What one kernel leaves to another."""
        heads, spec, rows = len(self.learner.heads), self.spec, self.learner.heads.rows
        samples = (heads, self.learner.batch)
        passes = 2 if self.learner.is_sharp else 1
        self.hidden, self.delta = (
            rows.new_empty(passes, spec.depth, *samples, spec.width) for _ in range(2)
        )
        self.normal = rows.new_empty(spec.depth, *samples, spec.width)
        self.rstd = rows.new_empty(spec.depth, heads, spec.width)
        self.outputs = rows.new_empty(*samples, spec.outputs)
        self.d_outputs = rows.new_empty(passes, *samples, spec.outputs)
        self.losses = rows.new_empty(passes, heads)
        # Gradients by biases before BatchNorm are 0 and stay it.
        num_vectors = self.layers[-1].vector_at + spec.outputs
        self.vectors = rows.new_zeros(passes, heads, num_vectors)
        self.squares = rows.new_empty(heads, self._norm_sizes["PARTS"])
        configs = [recipe.optim for recipe in self.learner.recipes]
        self._decays = rows.new_tensor([config.weight_decay for config in configs])
        self._update_kind = {
            "DECAYS": any(config.weight_decay for config in configs),
            "DECOUPLED": configs[0].name == "adamw",
        }

    def step(self, batch: Tensor, target: Tensor) -> None:
        """See `raffect.heads.learner.Learner.step`."""
        batch = normalise(batch, self.spec.normalise)
        last = 0
        self._forward(batch, 0)
        self._differentiate(target, 0)
        self._backward(batch, 0)
        if self.learner.is_sharp:
            last = 1
            self._square_norms(batch)
            self._forward(batch, 1)
            self._differentiate(target, 1)
            self._backward(batch, 1)
        self._update(batch, last)
        self._count()

    def _forward(self, batch: Tensor, number: int) -> None:
        """Outputs of pass ``number``: 0 at the rows, 1 where SAM goes."""
        buffers, dropout = self.learner.heads.buffers, self.learner.noise.dropout
        for block, layer in enumerate(self.layers[:-1]):
            name, width = norm_name(block), self.spec.width
            self._launch(
                self.kernels.block_forward,
                -(-width // self._sizes["BLOCK_N"]),
                *self._linear(batch, block, number),
                self.hidden[number, block],
                self.normal[block],
                self.rstd[block],
                buffers[f"{name}.running_mean"],
                buffers[f"{name}.running_var"],
                *dropout,
                self.learner.counter,
                self.spec.num_noise,
                block * width,
                IN=layer.inputs,
                OUT=layer.outputs,
                SECOND=number > 0,
                DROPS=self.learner.noise.active,
                **self._sizes,
            )
        layer, sizes = self.layers[-1], self._sizes | {"BLOCK_N": 16}
        self._launch(
            self.kernels.last_forward,
            -(-layer.outputs // 16),
            *self._linear(batch, self.spec.depth, number),
            self.outputs,
            IN=layer.inputs,
            OUT=layer.outputs,
            SECOND=number > 0,
            **sizes,
        )

    def _linear(self, batch: Tensor, block: int, number: int) -> tuple[Any, ...]:
        """Parameters that both kernels of a Linear's outputs begin with."""
        rows, layer = self.learner.heads.rows, self.layers[block]
        inputs, stride = self._inputs(batch, block, number)
        first_inputs, _ = self._inputs(batch, block, 0)
        norm = (self.vectors[0], self.vectors.shape[2], layer.vector_at, *self._norm)
        first_delta = self._deltas(block, 0)
        return (
            *(rows, rows.stride(0), layer.weight_at),
            *(inputs, stride, first_inputs, first_delta),
            *norm,
        )

    @property
    def _norm(self) -> tuple[Tensor, Tensor]:
        return self.squares, self.learner.rho

    def _inputs(self, batch: Tensor, block: int, number: int) -> tuple[Tensor, int]:
        """What a Linear was given in a pass, and how far its heads are apart."""
        if block == 0:
            return batch, batch.stride(0)
        found = self.hidden[number, block - 1]
        return found, found.stride(0)

    def _deltas(self, block: int, number: int) -> Tensor:
        """The gradient by a Linear's outputs in a pass."""
        is_last = block == self.spec.depth
        return self.d_outputs[number] if is_last else self.delta[number, block]

    def _differentiate(self, target: Tensor, number: int) -> None:
        """Losses, and their derivative by the outputs."""
        # A loss without a kernel is the objective's own
        objective, spec = self.learner.objective, self.spec
        loss_P, derivative = self.losses[number], self.d_outputs[number]
        is_plain = not objective.num_penalties and objective.temperature is None
        has_classes = type(objective.kind) is MulticlassLoss
        has_labels = (
            type(objective.kind) is MultilabelLoss
            and objective.tail_over != "frames"
            and self._rows["BLOCK_B"] ** 2 * _power(spec.outputs) <= _MOST_COMPARED
        )
        if spec.outputs > _MOST_OUTPUTS or not is_plain or not (has_classes or has_labels):
            for memory, found in zip(
                (loss_P, derivative), objective.gradient(self.outputs, target), strict=True
            ):
                memory.copy_(found)
            return

        # What a kernel does not read may be anything
        alpha, shift, weights = objective.tail.alpha, objective.shift, objective.weights
        read = [alpha if tensor is None else tensor for tensor in (shift, weights)]
        sizes = {"SHIFTS": shift is not None, "WEIGHS": weights is not None}
        kernel = self.kernels.label_losses
        if has_classes:
            kernel, left_out = self.kernels.class_losses, objective.left_out
            read.append(alpha if left_out is None else left_out)
            sizes["LEAVES_OUT"] = left_out is not None
        self._launch(
            kernel,
            0,
            *(self.outputs, target, *read, alpha),
            *(loss_P, derivative, target.stride(0)),
            OUT=spec.outputs,
            BLOCK_C=_power(spec.outputs),
            **sizes,
            **self._rows,
        )

    def _backward(self, batch: Tensor, number: int) -> None:
        """Gradients by the outputs of every Linear and by vectors."""
        rows, width = self.learner.heads.rows, self.spec.width
        for block in reversed(range(self.spec.depth)):
            own, behind = self.layers[block], self.layers[block + 1]
            first_inputs, _ = self._inputs(batch, block + 1, 0)
            self._launch(
                self.kernels.block_backward,
                -(-width // self._sizes["BLOCK_N"]),
                rows,
                rows.stride(0),
                behind.weight_at,
                own.weight_at + own.outputs * own.inputs + width,
                self._deltas(block + 1, number),
                first_inputs,
                self._deltas(block + 1, 0),
                self.vectors[0],
                self.vectors[number],
                self.vectors.shape[2],
                own.vector_at,
                *self._norm,
                self.hidden[number, block],
                self.normal[block],
                self.rstd[block],
                self.learner.noise.dropout[2],
                self.delta[number, block],
                IN=behind.inputs,
                OUT=behind.outputs,
                SECOND=number > 0,
                DROPS=self.learner.noise.active,
                IS_LAST=block + 1 == self.spec.depth,
                **self._sizes | {"BLOCK_K": min(_BLOCK_K, max(16, _power(behind.outputs)))},
            )

    def _square_norms(self, batch: Tensor) -> None:
        """Squared norms of the first pass's gradients, in parts."""
        spec = self.spec
        self._launch(
            self.kernels.square_norms,
            self._norm_sizes["PARTS"],
            batch,
            batch.stride(0),
            self.hidden[0],
            self.delta[0],
            self.d_outputs[0],
            self.vectors[0],
            self.squares,
            *(spec.dim, spec.width, spec.outputs, spec.depth),
            PARTS=self._norm_sizes["PARTS"],
            BLOCK_K=_BLOCK_K,
            **self._rows,
        )

    def _update(self, batch: Tensor, number: int) -> None:
        """Adam's step of every weight by the gradient of pass ``number``."""
        rows, optimizer = self.learner.heads.rows, self.learner.optimizer
        means, squares = optimizer.state["exp_avg"], optimizer.state["exp_avg_sq"]
        for block, layer in enumerate(self.layers):
            inputs, stride = self._inputs(batch, block, number)
            tiles = -(-layer.outputs // _TILE[0]) * -(-layer.inputs // _TILE[1])
            self._launch(
                self.kernels.layer_update,
                tiles + -(-layer.count // (_TILE[0] * _TILE[1])),
                rows,
                means,
                squares,
                rows.stride(0),
                layer.weight_at,
                inputs,
                stride,
                self._deltas(block, number),
                self.vectors[number],
                self.vectors.shape[2],
                layer.vector_at,
                optimizer.state["step"],
                optimizer.rates,
                self._decays,
                IN=layer.inputs,
                OUT=layer.outputs,
                COUNT=layer.count,
                BLOCK_M=_TILE[0],
                BLOCK_N=_TILE[1],
                **self._update_kind,
                **self._rows,
            )

    def _count(self) -> None:
        """What the host reads at the end of an epoch."""
        learner = self.learner
        self._launch(
            self.kernels.count_step,
            None,
            self.losses[0],
            learner.loss_sum,
            learner.first_bad,
            learner.optimizer.state["step"],
            learner.counter,
            len(learner.heads),
            BLOCK_P=_power(len(learner.heads)),
        )

    def _launch(self, kernel: Any, columns: int | None, *args: Any, **sizes: Any) -> None:
        """Launch a kernel over column blocks and heads; 0: over heads alone, None: one program."""
        heads = len(self.learner.heads)
        grid = (1,) if columns is None else (columns, heads) if columns else (heads,)
        kernel[grid](*args, **sizes, enable_fp_fusion=True)
        self.launches += 1


def _power(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << max(0, number - 1).bit_length()
