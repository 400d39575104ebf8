"""One training step of a batch of heads, with all it needs on the device.

That is the objective, SAM, the optimiser, noise and the order of samples. A step never waits for
the host: which samples it takes, its noise and its rate are all tensors, so that on CUDA the whole
step is one graph that is launched again and again.

Shape letters: P heads, B samples of this worker's part of the batch, C outputs, S distinct seeds;
"..." is the shape of a sample.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from raffect.heads import fused
from raffect.heads.adam import Adam
from raffect.heads.head_batch import HeadSpec, Moved, to_cpu
from raffect.heads.loss_kind import Prior
from raffect.heads.objective import Objective
from raffect.heads.optimizer import Optimizer
from raffect.heads.random import Noise, epoch_order
from raffect.heads.sam import perturb
from raffect.heads.samples import Feed, Samples, SampleStream
from raffect.heads.sgd import Sgd
from raffect.heads.shared_samples import SharedSamples
from raffect.heads.shared_settings import require_shared_settings
from raffect.heads.workers import Workers
from raffect.recipe import OptimConfig, Recipe

AnySamples = Samples | SharedSamples | SampleStream
"""What heads are trained on."""

_OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": Adam, "sgd": Sgd}
_EAGER_STEPS = 3
_EMOCLIP_MILESTONES = (15, 35, 50)
"""Epochs after which EmoCLIP's released training takes a tenth of its rate."""


class Learner:
    """P heads in training.

    Args:
        recipes: One a head; they agree in `SHARED_SETTINGS`.
        spec: What the heads are.
        prior: Counts of the training labels.
        device: Where to train.
        dtype: float32; float64 for tests.
        workers: Who trains them together.

    Attributes:
        heads: The batch of heads; its rows and buffers move with each step.
        counter: Steps so far, int32.
        loss_sum: Sum of each head's losses since `set_epoch`, shape (P,).
        first_bad: First step of each head whose loss was not finite, int32, shape (P,); -1 if none.
        rho: SAM's radius of each head, shape (P,).
        is_sharp: Whether any head has one.
        way: How a step is taken: `eager_step` or by kernels; None until a first one decides.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        spec: HeadSpec,
        prior: Prior,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        workers: Workers | None = None,
    ) -> None:
        # The heads, and what trains them.
        require_shared_settings(recipes)
        self.recipes, self.device, self.dtype = list(recipes), device, dtype
        self.workers = workers or Workers()
        self.batch = recipes[0].batch_size // self.workers.size
        rows = torch.stack([spec.initial_row(recipe.seed, recipe.head) for recipe in recipes])
        self.heads = spec.build(rows.to(device, dtype), workers=self.workers)
        self.objective = Objective(recipes, prior, device, dtype, self.workers, spec.num_penalties)
        configs = [recipe.optim for recipe in recipes]
        kind = _OPTIMIZERS[configs[0].name]
        self.optimizer = kind(configs, self.heads.rows, self.heads.gradient)
        self.noise = Noise(
            [recipe.seed for recipe in recipes],
            [recipe.head.dropout for recipe in recipes],
            [recipe.sam.independent_dropout and recipe.sam.rho > 0 for recipe in recipes],
            (self.batch, spec.num_noise, spec.num_uniform),
            self.workers.rank,
            device,
            dtype,
        )
        # What every step counts, on the device.
        self.counter = torch.zeros((), dtype=torch.int32, device=device)
        self.loss_sum = torch.zeros(len(recipes), dtype=dtype, device=device)
        self.first_bad = torch.full((len(recipes),), -1, dtype=torch.int32, device=device)
        self.rho = torch.tensor([r.sam.rho for r in recipes], dtype=dtype, device=device)
        self.is_sharp = any(recipe.sam.rho for recipe in recipes)
        self.way: fused.Step | None = None if fused.serves(self) else self.eager_step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0
        self._feed: Feed | None = None

    def fuse(self) -> None:
        """Have torch compile what lies between the products, before the first step.

        On CUDA that saves half of the time of one head, and a quarter of that of fifty. It takes 10
        to 30 seconds, a C compiler and Triton; without them a step stays as it is. Only last bits
        differ.
        """
        self.way = self.eager_step  # kernels of our own leave nothing to compile
        # Forget earlier batches of heads, or torch gives up at the ninth.
        torch._dynamo.reset()
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # float32 is meant
        # Compile something small first: any part of the toolchain may be missing.
        try:
            torch.compile(torch.neg)(torch.ones(1, device=self.device))
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:160]
            message = "steps are not fused, torch.compile does not work here (%s)"
            logging.getLogger("raffect").warning(message, reason)
            return
        owners = (
            (self.noise, ("draw",)),
            (self.heads, self.heads.fusible),
            (self.objective, ("gradient",)),
        )
        for owner, names in owners:
            for name in names:
                setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False))

    def step(self, batch: Tensor, target: Tensor) -> None:
        """One update of every head, by kernels where `raffect.heads.fused` has found them equal.

        Args:
            batch: This worker's samples of each head, shape (P, B, ...), of the learner's type.
            target: Their targets, shape (P, B, *target).
        """
        if self.way is None:
            self.way = fused.first_step(self, batch, target)
        else:
            self.way(batch, target)

    def eager_step(self, batch: Tensor, target: Tensor) -> None:
        """`step` by operations of torch."""
        # The loss where the weights are, then with SAM where it is highest nearby.
        heads, noise = self.heads, self.noise.draw(self.counter, second=False)
        outputs = heads.forward(heads.rows, batch, noise, update_buffers=True)
        loss_P, derivative = self.objective.gradient(outputs, target)
        if self.is_sharp:
            there = self._climb(derivative)
            if self.noise.independent:
                noise = self.noise.draw(self.counter, second=True)
            outputs = heads.forward(there, batch, noise, update_buffers=False)
            _, derivative = self.objective.gradient(outputs, target)
        # The update, from the gradient there.
        heads.backward(derivative)
        self.optimizer.update()
        # What the host reads at the end of an epoch.
        self.loss_sum += loss_P
        is_first = (self.first_bad < 0) & ~torch.isfinite(loss_P)
        self.first_bad.copy_(torch.where(is_first, self.counter, self.first_bad))
        self.counter += 1

    def _climb(self, derivative: Tensor) -> Tensor | Moved:
        """Where SAM's second pass is taken."""
        heads, perturbation = self.heads, self.recipes[0].sam.perturbation
        if perturbation == "l2" and (moved := heads.climb(derivative, self.rho)) is not None:
            return moved
        heads.backward(derivative)
        return perturb(heads.rows, heads.gradient, self.rho, perturbation, out=self._perturbed)

    @cached_property
    def _perturbed(self) -> Tensor:
        """Where rows that SAM moved as a whole are written, (P, N); most runs never need it."""
        return torch.empty_like(self.heads.rows)

    def run(self, samples: AnySamples, epoch: int) -> Iterator[None]:
        """Train for an epoch (0-based); yields after each step."""
        if isinstance(samples, Samples | SharedSamples):
            return self.run_resident(samples, epoch)
        return self.run_stream(samples.batches(epoch))

    @torch.no_grad()
    def run_resident(self, samples: Samples | SharedSamples, epoch: int) -> Iterator[None]:
        """Train for an epoch on samples that are on the device; yields after each step."""
        order = self._order(len(samples), epoch)
        steps = order.shape[1] // self.recipes[0].batch_size
        self._fill_order(order, int(self.counter))
        for _ in range(steps):
            self._launch(partial(self._gather_and_step, samples))
            yield

    @torch.no_grad()
    def run_stream(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Train for an epoch on global batches, the same for all heads; yields after each step."""
        # Each worker takes its part; all heads see the same samples.
        part = self.workers.share(self.recipes[0].batch_size)
        for x, y in batches:
            if self._feed is None:
                self._feed = Feed(x[part], y[part], self.device)
            self._feed.put(x[part], y[part])
            self._launch(partial(self._widen_and_step, self._feed))
            yield

    def set_epoch(self, epoch: int) -> list[float]:
        """Set each head's rate for an epoch (0-based), start its mean loss; returns the rates."""
        rates = [learning_rate(recipe.optim, epoch, recipe.epochs) for recipe in self.recipes]
        for recipe, rate in zip(self.recipes, rates, strict=True):
            self.optimizer.set_rate(recipe.optim, rate)
        self.loss_sum.zero_()
        return rates

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, by name: copies on the CPU."""
        return {name: to_cpu(tensor) for name, tensor in self._saved().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: If a tensor is missing, or of another shape or type.
        """
        for name, tensor in self._saved().items():
            copy_same(tensor, state.get(name), name)

    def tensors(self) -> dict[str, Tensor]:
        """All that a step changes, by name: what `state` copies, and what an epoch counts."""
        return self._saved() | {"loss_sum": self.loss_sum}

    def _saved(self) -> dict[str, Tensor]:
        tensors = dict(self.optimizer.state)
        tensors |= {f"buffers.{name}": buffer for name, buffer in self.heads.buffers.items()}
        return tensors | {
            "rows": self.heads.rows,
            "counter": self.counter,
            "first_bad": self.first_bad,
        }

    def _order(self, num_samples: int, epoch: int) -> np.ndarray:
        """Samples of every step, a line a distinct seed: shape (S, steps * global batch)."""
        used = num_samples // self.recipes[0].batch_size * self.recipes[0].batch_size
        return np.stack([epoch_order(seed, epoch, num_samples)[:used] for seed in self._seeds])

    @property
    def _seeds(self) -> list[int]:
        return sorted({recipe.seed for recipe in self.recipes})

    def _fill_order(self, order: np.ndarray, first_step: int) -> None:
        """Put an epoch's order on the device."""
        # A graph keeps reading the same memory, so later epochs are copied into it.
        if not hasattr(self, "_order_SN"):
            batch_size, seeds = self.recipes[0].batch_size, self._seeds
            seed_of_P = [seeds.index(recipe.seed) for recipe in self.recipes]
            self._order_SN = torch.empty(order.shape, dtype=torch.int64, device=self.device)
            self._first_step = torch.zeros((), dtype=torch.int32, device=self.device)
            self._seed_of_P = torch.tensor(seed_of_P, device=self.device)
            self._columns = torch.arange(batch_size, device=self.device)
        self._order_SN.copy_(torch.from_numpy(order))
        self._first_step.fill_(first_step)

    def _gather_and_step(self, samples: Samples | SharedSamples) -> None:
        """A step on the samples that the order has for it, all of it on the device."""
        step = (self.counter - self._first_step).long()
        batch_size = self.recipes[0].batch_size
        columns = step * batch_size + self._columns
        index_PB = self._order_SN.index_select(1, columns)[self._seed_of_P]
        x, target = samples.take_share(index_PB, self.workers.share(batch_size))
        self.step(x.to(self.dtype), target)

    def _widen_and_step(self, feed: Feed) -> None:
        """A step on the batch of a stream that is on the device."""
        self.step(*feed.take(len(self.recipes), self.dtype))

    def _launch(self, step: Callable[[], None]) -> None:
        """A step, the same in all calls.

        On CUDA the first ones go launch by launch, which also warms up, then all as one graph.
        Workers together exchange what no graph holds.
        """
        if self.device.type != "cuda" or self.workers.size > 1:
            step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._eager_steps < _EAGER_STEPS:
            # On a stream of its own, as torch asks for before a capture.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            self._eager_steps += 1
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                step()
            self._graph.replay()


def copy_same(target: Tensor, source: Tensor | None, name: str) -> None:
    """Copy a tensor of a file; torch itself would spread a smaller one over the larger one.

    Raises:
        ValueError: If there is none, or one of another shape or type.
    """
    if source is None or source.shape != target.shape or source.dtype != target.dtype:
        raise ValueError(f"tensor {name} is missing or of another shape or type")
    target.copy_(source)


def learning_rate(config: OptimConfig, epoch: int, epochs: int) -> float:
    """Rate of an epoch (0-based).

    ``cosine`` falls from ``lr`` to ``min_lr`` at the end; ``released`` has a period of
    ``epochs / 2``, as its ``T_max = epochs / 4`` (a float) without restarts makes it. Both are
    torch's ``CosineAnnealingLR`` in closed form. ``emoclip-released`` is its ``MultiStepLR``, but
    never below ``min_lr``.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "emoclip-released":
        passed = sum(epoch >= milestone for milestone in _EMOCLIP_MILESTONES)
        return max(config.lr * 0.1**passed, config.min_lr)
    half_period = epochs / 4 if config.schedule == "released" else epochs
    cosine = math.cos(math.pi * epoch / half_period)
    return config.min_lr + (config.lr - config.min_lr) * (1 + cosine) / 2
