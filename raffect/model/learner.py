"""One training step of a pack, and everything it needs on the device: objective, SAM, Adam, dropout, order of frames.

A step never waits for the host: which frames it takes, its dropout and its rate are all tensors, so that on CUDA the whole step
is one graph that is launched again and again.

Shape letters: P members, B frames of this worker's part of the batch, D feature, C outputs, K hidden units of all blocks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raffect.model.adam import STATE, Adam
from raffect.model.checkpoint import to_cpu
from raffect.model.kinds import Prior
from raffect.model.objective import Objective
from raffect.model.pack import Layout, Lifts, Pack, Views
from raffect.model.random import Dropout, epoch_order
from raffect.model.sam import perturb
from raffect.model.workers import Workers
from raffect.recipe import OptimConfig, Recipe, flatten

PACK_WIDE = ("task", "epochs", "batch_size", "head.width", "head.depth", "loss.name", "loss.granularity", "sam.perturbation", "optim.name")
"""Settings that all members of a pack share; every other one may differ between them."""

_EAGER_STEPS = 3


@dataclass(frozen=True)
class Rows:
    """Features and labels of one split on a device.

    Attributes:
        x: float16, shape (N, D).
        y: Targets of the task's kind: classes, int64 (N,); labels, int8 (N, L), negative where unlabelled; or values, float32 (N, V), NaN
            where unlabelled.
        video: Number of each frame's video, or other group that intervals keep together, int64, shape (N,).
        num_videos: How many there are.
    """

    x: Tensor
    y: Tensor
    video: Tensor
    num_videos: int

    def __len__(self) -> int:
        return len(self.x)


class Learner:
    """P heads in training.

    Args:
        recipes: One a member; they agree in `PACK_WIDE`.
        layout: Shape of the heads.
        prior: Counts of the training labels.
        device: Where to train.
        dtype: float32; float64 for tests.
        workers: Who trains them together.
    """

    def __init__(self, recipes: Sequence[Recipe], layout: Layout, prior: Prior, device: torch.device, dtype: torch.dtype = torch.float32, workers: Workers | None = None) -> None:
        require_one_pack(recipes)
        self.recipes, self.device, self.dtype, self.workers = list(recipes), device, dtype, workers or Workers()
        self.pack = Pack(layout, [r.seed for r in recipes], [r.head.init for r in recipes], device, dtype, self.workers)
        self.objective = Objective(recipes, prior, device, dtype, self.workers)
        self.optimizer = Adam([r.optim for r in recipes], self.pack.weights, self.pack.gradient)
        self.batch = recipes[0].batch_size // self.workers.size
        self.counter = torch.zeros((), dtype=torch.int32, device=device)
        self.loss_sum = torch.zeros(len(recipes), dtype=dtype, device=device)
        self.first_bad = torch.full((len(recipes),), -1, dtype=torch.int32, device=device)
        self._rho = torch.tensor([r.sam.rho for r in recipes], dtype=dtype, device=device)
        self._sharp = any(r.sam.rho for r in recipes)
        redraws = [r.sam.redraw_dropout and r.sam.rho > 0 for r in recipes]
        self.dropout = Dropout([r.seed for r in recipes], [r.head.dropout for r in recipes], redraws, (self.batch, layout.depth * layout.width), self.workers.rank, device, dtype)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0

    def fuse(self) -> None:
        """Have torch compile what lies between the products, before the first step: half of a small pack's time on CUDA, a sixth of a large one's.

        Takes about ten seconds, a C compiler and Triton; without them the step stays as it is. Only last bits differ.
        """
        torch._dynamo.reset()  # forget earlier packs, or torch gives up at the ninth
        try:
            torch.compile(torch.neg)(torch.ones(1, device=self.device))
        except Exception as error:  # whatever a toolchain lacks
            logging.getLogger("raffect").warning("steps are not fused, torch.compile does not work here (%s)", (str(error).splitlines() or [""])[0][:160])
            return
        for owner, names in ((self.dropout, ["draw"]), (self.pack, ["forward", "_through_norm", "_move"]), (self.objective, ["loss"])):
            for name in names:
                setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False))

    def step(self, x_PBD: Tensor, target: Tensor) -> None:
        """One update of every member.

        Args:
            x_PBD: Features of this worker's part of the batch, of the learner's type.
            target: Their labels: (P, B) or (P, B, C).
        """
        pack, scale = self.pack, self.dropout.draw(self.counter, second=False)
        loss_P, derivative = self.objective.gradient(pack.forward(pack.at_weights, x_PBD, scale, update_running=True), target)
        views, lifts = pack.at_weights, None
        if self._sharp:
            views, lifts = self._climb(derivative)
            if self.dropout.redraws:
                scale = self.dropout.draw(self.counter, second=True)
            _, derivative = self.objective.gradient(pack.forward(views, x_PBD, scale, update_running=False, lifts=lifts), target)
        pack.backward(views, derivative, lifts)
        self.optimizer.update()
        self.loss_sum += loss_P
        is_first = (self.first_bad < 0) & ~torch.isfinite(loss_P)
        self.first_bad.copy_(torch.where(is_first, self.counter, self.first_bad))
        self.counter += 1

    def _climb(self, derivative: Tensor) -> tuple[Views, Lifts | None]:
        """Where SAM's second pass is taken."""
        pack, recipe = self.pack, self.recipes[0]
        if recipe.sam.perturbation == "l2" and recipe.batch_size <= pack.layout.width:
            return pack.climb(derivative, self._rho)
        pack.backward(pack.at_weights, derivative)  # a batch so large that the matrix is cheaper than its factors; or its signs are needed
        perturb(pack.weights, pack.gradient, self._rho, recipe.sam.perturbation, out=pack.perturbed)
        return pack.at_perturbed, None

    @torch.no_grad()
    def run_resident(self, rows: Rows, epoch: int) -> Iterator[None]:
        """Train for an epoch on rows that are on the device; yields after each step."""
        order = self._order(len(rows), epoch)
        steps = order.shape[1] // self.recipes[0].batch_size
        self._fill_order(order, int(self.counter))
        for _ in range(steps):
            if self.device.type == "cuda" and self.workers.size == 1:
                self._launch(rows)
            else:
                self._gather_and_step(rows)
            yield

    @torch.no_grad()
    def run_stream(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Train for an epoch on global batches from elsewhere, the same for all members; yields after each step."""
        part, members = self.workers.share(self.recipes[0].batch_size), len(self.recipes)
        for x, y in batches:
            x_BD, target = x[part].to(self.device, self.dtype), y[part].to(self.device)
            self.step(x_BD.expand(members, *x_BD.shape), target.expand(members, *target.shape))
            yield

    def set_epoch(self, epoch: int) -> list[float]:
        """Set each member's rate for an epoch (0-based) and start its mean loss; returns the rates."""
        rates = [learning_rate(recipe.optim, epoch, recipe.epochs) for recipe in self.recipes]
        for recipe, rate in zip(self.recipes, rates, strict=True):
            self.optimizer.set_rate(recipe.optim, rate)
        self.loss_sum.zero_()
        return rates

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, by name: copies on the CPU."""
        pack = self.pack
        tensors = {"weights": pack.weights, "running_mean": pack.running_mean, "running_var": pack.running_var, "counter": self.counter, "first_bad": self.first_bad}
        tensors |= {name: getattr(self.optimizer, name) for name in STATE}
        return {name: to_cpu(tensor) for name, tensor in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name in ("weights", "running_mean", "running_var"):
            getattr(self.pack, name).copy_(state[name])
        self.counter.copy_(state["counter"])
        self.first_bad.copy_(state["first_bad"])
        for name in STATE:
            getattr(self.optimizer, name).copy_(state[name])

    def _order(self, num_rows: int, epoch: int) -> np.ndarray:
        """Rows of every step, a line a distinct seed: shape (S, steps * global batch)."""
        used = num_rows // self.recipes[0].batch_size * self.recipes[0].batch_size
        return np.stack([epoch_order(seed, epoch, num_rows)[:used] for seed in self._seeds])

    @property
    def _seeds(self) -> list[int]:
        return sorted({recipe.seed for recipe in self.recipes})

    def _fill_order(self, order: np.ndarray, first_step: int) -> None:
        if not hasattr(self, "_order_SN"):  # a graph keeps reading the same memory, so later epochs are copied into it
            self._order_SN = torch.empty(order.shape, dtype=torch.int64, device=self.device)
            self._first_step = torch.zeros((), dtype=torch.int32, device=self.device)
            self._seed_of_P = torch.tensor([self._seeds.index(recipe.seed) for recipe in self.recipes], device=self.device)
            self._columns = torch.arange(self.recipes[0].batch_size, device=self.device)[self.workers.share(self.recipes[0].batch_size)]
        self._order_SN.copy_(torch.from_numpy(order))
        self._first_step.fill_(first_step)

    def _gather_and_step(self, rows: Rows) -> None:
        columns = (self.counter - self._first_step).long() * self.recipes[0].batch_size + self._columns
        index = self._order_SN.index_select(1, columns)[self._seed_of_P].flatten()
        x = rows.x.index_select(0, index).to(self.dtype).view(len(self.recipes), self.batch, -1)
        y = rows.y.index_select(0, index)
        self.step(x, y.view(len(self.recipes), self.batch, *y.shape[1:]))

    def _launch(self, rows: Rows) -> None:
        """A step on CUDA: the first ones as they are, which also warms up, then as a graph."""
        if self._graph is not None:
            self._graph.replay()
        elif self._eager_steps < _EAGER_STEPS:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._gather_and_step(rows)
            torch.cuda.current_stream().wait_stream(side)
            self._eager_steps += 1
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._gather_and_step(rows)
            self._graph.replay()


def learning_rate(config: OptimConfig, epoch: int, epochs: int) -> float:
    """Rate of an epoch (0-based).

    ``cosine`` falls from ``lr`` to ``min_lr`` at the end; ``released`` has a period of ``epochs / 2``, as its ``T_max = epochs / 4``
    (a float) without restarts makes it. Both are torch's ``CosineAnnealingLR`` in closed form.
    """
    if config.schedule == "constant":
        return config.lr
    half_period = epochs / 4 if config.schedule == "released" else epochs
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / half_period)) / 2


def require_one_pack(recipes: Sequence[Recipe]) -> None:
    """Raise unless recipes can train side by side.

    Raises:
        ValueError: If they differ in one of `PACK_WIDE`.
    """
    for name in PACK_WIDE:
        if len(found := {flatten(recipe)[name] for recipe in recipes}) > 1:
            raise ValueError(f"members of one pack differ in {name}: {sorted(found, key=str)}")
