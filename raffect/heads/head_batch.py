"""What the learner needs of a batch of heads: P heads of one shape, trained side by side.

SAM, Adam, CVaR and the loop act on the rows of one matrix. A batch of heads says how rows become
outputs, and how a derivative by the outputs becomes a gradient by the rows. Learner, fit,
checkpoint and evaluate know these two classes and nothing else about a head.

Shape letters: P heads, N weights of a head, B samples of this worker's part of a batch, C outputs,
K noise factors of a sample. A sample is a feature (D,) or a window of features (T, D), in which a
row that is not there is all NaN; "..." stands for either.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from raffect.errors import RaffectError
from raffect.heads.workers import Workers
from raffect.recipe import HeadConfig

Shapes = dict[str, tuple[int, ...]]
"""Shapes of one head's tensors by name."""

Buffers = dict[str, Tensor]
"""What a head keeps beside its weights, such as running statistics; each of shape (P, ...)."""


@dataclasses.dataclass(frozen=True)
class HeadSpec(ABC):
    """Which module a head is, and its shape: a frozen dataclass of plain values.

    Names in `weights` and `buffers` are those of ``module().state_dict()``, which is also how a
    head is saved, so that a checkpoint can be checked against its spec before anything is built.
    """

    kind: ClassVar[str]
    """Its name in config.json; see `raffect.heads.head_kinds`."""

    @property
    @abstractmethod
    def weights(self) -> Shapes:
        """The trained tensors, in the order in which a row holds them."""

    @property
    def buffers(self) -> Shapes:
        """What is saved beside them; it is not trained by gradients."""
        return {}

    @property
    def num_noise(self) -> int:
        """K: how many factors of noise a sample takes in training; 0 for a head without dropout."""
        return 0

    @property
    def num_uniform(self) -> int:
        """U: how many uniform numbers in [0, 1) a sample takes in training beside its factors."""
        return 0

    @property
    def num_penalties(self) -> int:
        """Q: losses of its own that a head gives for a sample in training, behind its outputs."""
        return 0

    @abstractmethod
    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """Initial weights of one head, shape (N,): float32 on the CPU, so that devices agree."""

    @abstractmethod
    def build(
        self,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> HeadBatch:
        """The batch of heads whose weights are ``rows``; see `HeadBatch` for the parameters."""

    @abstractmethod
    def module(self) -> nn.Module:
        """One head as an ordinary module, with any weights: samples (B, ...) to outputs (B, C)."""

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """What a recipe asks for; see `raffect.heads.head_kinds.head_spec`.

        Raises:
            RaffectError: If heads of this kind cannot do it, or are not made by training.
        """
        raise RaffectError(f"head.kind {cls.kind}: is made of trained heads, and not trained")

    @classmethod
    @abstractmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """A spec of this kind from `to_json`'s values, which are not trusted.

        Raises:
            RaffectError: If a value is missing, unknown or out of the bounds of a recipe.
        """

    def to_json(self) -> dict[str, Any]:
        """Plain values that `raffect.heads.head_kinds.read_spec` makes this spec of."""
        # Fields that are not compared, such as a text tower, are not saved either
        names = (field.name for field in dataclasses.fields(self) if field.compare)
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    @property
    def num_weights(self) -> int:
        """N, the length of a row."""
        return sum(math.prod(shape) for shape in self.weights.values())

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Each tensor of every head, shape (P, ...), as a view into ``rows`` of shape (P, N)."""
        # The tensors lie one after the other in a row.
        out, start = {}, 0
        for name, shape in self.weights.items():
            size = math.prod(shape)
            out[name] = rows[:, start : start + size].view(len(rows), *shape)
            start += size
        return out

    def build_one(self, state: Mapping[str, Tensor], device: torch.device) -> HeadBatch:
        """A batch of one head from its `HeadBatch.state`."""
        row = torch.cat([state[name].flatten() for name in self.weights])
        buffers = {name: state[name][None].to(device) for name in self.buffers}
        return self.build(row[None].to(device), buffers)

    def build_module(self, state: Mapping[str, Tensor]) -> nn.Module:
        """One head as an ordinary module in evaluation mode from its `HeadBatch.state`.

        Raises:
            RuntimeError: If names or shapes differ.
        """
        module = self.module().to(next(iter(state.values())).dtype)
        # A module may count what a head does not keep, such as the batches that BatchNorm saw.
        module.load_state_dict({**module.state_dict(), **state})
        return module.eval()


class EmbeddingSpec(HeadSpec):
    """A head that can give vectors to compare with those of texts or of a teacher.

    Its outputs are then vectors of length 1 times a scale, so that their products with vectors of
    length 1 are the logits of a softmax. Most heads learn the scale as one of their weights; that
    of a projection is fixed.
    """

    @property
    def compares(self) -> bool:
        """Whether this one does; the outputs of a head that does not are classes or values."""
        return True

    @property
    @abstractmethod
    def length(self) -> int:
        """E: length of a vector."""

    def embed_texts(self, state: Mapping[str, Tensor], texts_CD: Tensor) -> Tensor:
        """Vectors of texts as this head compares them: of length 1.

        Args:
            state: The head's `HeadBatch.state`; a head that maps texts as it does images uses it.
            texts_CD: Vectors of texts as the text tower gives them, shape (C, D).

        Returns:
            Shape (C, E), E being the number of the head's outputs.
        """
        return normalise(texts_CD, "l2")


class Moved:
    """Where `HeadBatch.climb` went, in a form that its own `HeadBatch.forward` alone reads."""


class HeadBatch(ABC):
    """P heads of one spec.

    In each step the learner calls `forward` at ``rows``; with SAM `climb`, or without one
    `backward` and a move of the whole matrix, then `forward` there; then `backward`; then it
    updates ``rows`` in place. What must hold:

    - a head has the same outputs, gradient and buffers alone as in any batch;
    - many workers give the result of one: sums over samples are sums over all workers' parts;
    - nothing waits for the host or depends on values: on CUDA a step is captured as a graph, which
      reads and writes the same memory again and again;
    - noise comes from outside alone: nothing is drawn here.

    Args:
        spec: What every head of the batch is.
        rows: Their weights, shape (P, N), on the device where they live; kept, not copied.
        buffers: Kept, not copied; new ones as before any training if None.
        workers: Who trains them together.
    """

    fusible: ClassVar[tuple[str, ...]] = ()
    """Names of methods that torch.compile may fuse, since they call nothing of the host's."""

    def __init__(
        self,
        spec: HeadSpec,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.spec, self.rows, self.workers = spec, rows, workers or Workers()
        self.buffers = self.initial_buffers() if buffers is None else buffers

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def gradient(self) -> Tensor:
        """What `backward` writes, shape (P, N); a batch that only predicts needs none."""
        return torch.zeros_like(self.rows)

    def initial_buffers(self) -> Buffers:
        """Buffers of heads that were never trained: zeros, unless a kind of head says otherwise."""
        shapes = self.spec.buffers.items()
        return {name: self.rows.new_zeros(len(self.rows), *shape) for name, shape in shapes}

    @abstractmethod
    def forward(
        self,
        rows: Tensor | Moved,
        batch: Tensor,
        noise: Tensor | None,
        *,
        update_buffers: bool,
    ) -> Tensor:
        """Outputs in training.

        Args:
            rows: Weights to use, shape (P, N), or what `climb` returned.
            batch: Samples of each head, shape (P, B, ...), of the rows' type; not to be changed.
            noise: Dropout's factors, 0 or 1 / (1 - rate), shape (P, B, K), and behind them U
                uniform numbers; None where no head drops anything and U is 0.
            update_buffers: Whether buffers move; SAM's second pass moves none.

        Returns:
            Shape (P, B, C + Q): outputs, then the head's own losses. What `backward` needs is kept
            until the next call.
        """

    @abstractmethod
    def backward(self, d_outputs: Tensor) -> None:
        """Write the gradient of the last `forward` at its rows, summed over workers, to `gradient`.

        Args:
            d_outputs: Derivative of the heads' losses by what `forward` gave, (P, B, C + Q).
        """

    @abstractmethod
    def predict(self, rows: Tensor, buffers: Buffers, batch: Tensor) -> Tensor:
        """Outputs in use, without noise.

        Args:
            rows: Weights, shape (P, N).
            buffers: Those that belong to them.
            batch: Samples that all heads share, shape (B, ...), of the rows' type.

        Returns:
            Shape (P, B, C); no buffer moves.
        """

    def predictor(self, rows: Tensor, buffers: Buffers) -> Callable[[Tensor], Tensor]:
        """`predict` for many batches; a kind of head may prepare its weights once for all."""
        return functools.partial(self.predict, rows, buffers)

    def climb(self, d_outputs: Tensor, rho_P: Tensor) -> Moved | None:
        """SAM's step rho * g / |g| from the last `forward`, without writing g; optional.

        Args:
            d_outputs: Derivative of the heads' losses by the outputs, shape (P, B, C).
            rho_P: Radius of each head, shape (P,).

        Returns:
            Where to take the second pass; None to let the learner write g and move the rows.
        """
        return None

    def state(self, head: int) -> dict[str, Tensor]:
        """Copies of one head's weights and buffers by name, on the CPU, as it is saved."""
        views = self.spec.views(self.rows[head : head + 1])
        tensors = {name: view[0] for name, view in views.items()}
        tensors |= {name: buffer[head] for name, buffer in self.buffers.items()}
        return {name: to_cpu(tensor) for name, tensor in tensors.items()}


def normalise(batch: Tensor, how: str) -> Tensor:
    """Samples as a head sees them.

    Args:
        batch: Features, shape (..., D).
        how: ``"l2"`` divides each feature by its norm, and leaves one that is all 0 as it is;
            ``"none"`` changes nothing.

    Returns:
        Shape (..., D).
    """
    return nn.functional.normalize(batch, dim=-1) if how == "l2" else batch


def to_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
