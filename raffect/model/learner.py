"""One training step of a pack, and everything it needs on the device: objective, SAM, Adam, dropout, order of frames.

A step never waits for the host: which frames it takes, its dropout and its rate are all tensors, so that on CUDA the whole step
is one graph that is launched again and again.

Shape letters: P members, B frames of this worker's part of the batch, D feature, C outputs, K hidden units of all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raffect.model import losses
from raffect.model.pack import Layout, Pack
from raffect.model.random import dropout_bits, dropout_key, epoch_order, keep_threshold
from raffect.model.sam import perturb
from raffect.model.workers import Workers
from raffect.recipe import OptimConfig, Recipe, flatten

PACK_WIDE = ("task", "epochs", "batch_size", "head.width", "head.depth", "loss.granularity", "sam.perturbation", "optim.name")
"""Settings that all members of a pack share; every other one may differ between them."""

_EAGER_STEPS = 3


@dataclass(frozen=True)
class Rows:
    """Features and labels of one split on a device.

    Attributes:
        x: float16, shape (N, D).
        y: Classes, int64 of shape (N,), or units, int8 of shape (N, U), negative where unlabelled.
        video: Number of each frame's video, int64, shape (N,).
        num_videos: How many videos there are.
    """

    x: Tensor
    y: Tensor
    video: Tensor
    num_videos: int

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Prior:
    """How often each class occurs (EXPR), or each unit is active and inactive (AU), in the training rows."""

    positive: Tensor
    negative: Tensor | None = None


class Objective:
    """The loss of a pack's logits: weighted, adjusted and masked, and of it each member's worst share.

    Args:
        recipes: One a member.
        prior: Counts of the training labels.
        device: Where the logits are.
        dtype: Their type.
        workers: Who computes parts of a batch.
    """

    def __init__(self, recipes: Sequence[Recipe], prior: Prior, device: torch.device, dtype: torch.dtype, workers: Workers) -> None:
        self.workers, self.granularity = workers, recipes[0].loss.granularity
        self.alpha = torch.tensor([recipe.loss.alpha for recipe in recipes], dtype=dtype, device=device)
        weights, shifts = zip(*(_weights_and_shift(recipe, prior) for recipe in recipes), strict=True)
        self.weights = torch.stack(weights).to(device, dtype) if any(recipe.loss.weighting != "none" for recipe in recipes) else None
        self.shift = torch.stack(shifts)[:, None].to(device, dtype) if any(recipe.loss.logit_adjustment for recipe in recipes) else None

    def loss(self, logits_PBC: Tensor, target: Tensor) -> Tensor:
        """Loss of the global batch of each member, shape (P,), differentiable in this worker's logits."""
        if self.shift is not None:
            logits_PBC = logits_PBC + self.shift
        if target.ndim == 2:
            return losses.cvar(self.workers.gather(losses.softmax_losses(logits_PBC, target, self.weights)), self.alpha)
        values, mask = losses.sigmoid_losses(logits_PBC, target, self.weights), target >= 0
        if self.granularity == "sample":
            values, mask = losses.frame_means(values, mask)
        return losses.cvar(self.workers.gather(values.flatten(1)), self.alpha, self.workers.gather(mask.flatten(1)))

    def gradient(self, logits_PBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (P,), and its derivative by this worker's logits."""
        logits = logits_PBC.detach().requires_grad_()
        with torch.enable_grad():
            loss_P = self.loss(logits, target)
            (derivative,) = torch.autograd.grad(loss_P.sum(), logits)
        return loss_P.detach(), derivative


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
        self.optimizer = _build_optimizer(recipes, self.pack, device)
        self.batch = recipes[0].batch_size // self.workers.size
        self.counter = torch.zeros((), dtype=torch.int32, device=device)
        self.loss_sum = torch.zeros(len(recipes), dtype=dtype, device=device)
        self.first_bad = torch.full((len(recipes),), -1, dtype=torch.int32, device=device)
        self._rho = torch.tensor([r.sam.rho for r in recipes], dtype=dtype, device=device)
        self._sharp = any(r.sam.rho for r in recipes)
        self._dropout = _Dropout(recipes, layout, self.batch, device, dtype, self.workers)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0

    def step(self, x_PBD: Tensor, target: Tensor) -> None:
        """One update of every member.

        Args:
            x_PBD: Features of this worker's part of the batch, of the learner's type.
            target: Their labels: (P, B) or (P, B, U).
        """
        pack, scale = self.pack, self._dropout.draw(self.counter, second=False)
        loss_P, derivative = self.objective.gradient(pack.forward(pack.at_weights, x_PBD, scale, update_running=True), target)
        pack.backward(pack.at_weights, derivative)
        if self._sharp:
            perturb(pack.weights, pack.gradient, self._rho, self.recipes[0].sam.perturbation, out=pack.perturbed)
            if self._dropout.redraws:
                scale = self._dropout.draw(self.counter, second=True)
            _, derivative = self.objective.gradient(pack.forward(pack.at_perturbed, x_PBD, scale, update_running=False), target)
            pack.backward(pack.at_perturbed, derivative)
        self.optimizer.step()
        self.loss_sum += loss_P
        is_first = (self.first_bad < 0) & ~torch.isfinite(loss_P)
        self.first_bad.copy_(torch.where(is_first, self.counter, self.first_bad))
        self.counter += 1

    @torch.no_grad()
    def run_resident(self, rows: Rows, epoch: int) -> Iterator[None]:
        """Train for an epoch on rows that are on the device; yields after each step."""
        order = self._order(len(rows), epoch)
        steps = order.shape[1] // self.recipes[0].batch_size
        self._fill_order(order, self.counter.item() if epoch else 0)
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
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self.loss_sum.zero_()
        return rates

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, by name: copies on the CPU."""
        pack, moments = self.pack, [self.optimizer.state[p] for group in self.optimizer.param_groups for p in group["params"]]
        tensors = {"weights": pack.weights, "running_mean": pack.running_mean, "running_var": pack.running_var, "counter": self.counter, "first_bad": self.first_bad}
        if moments and moments[0]:
            tensors |= {name: torch.stack([moment[name] for moment in moments]) for name in ("exp_avg", "exp_avg_sq", "step")}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name in ("weights", "running_mean", "running_var"):
            getattr(self.pack, name).copy_(state[name])
        self.counter.copy_(state["counter"])
        self.first_bad.copy_(state["first_bad"])
        if "step" in state:
            per_member = [{name: state[name][p].clone() for name in ("exp_avg", "exp_avg_sq", "step")} for p in range(len(self.recipes))]
            self.optimizer.load_state_dict({"state": dict(enumerate(per_member)), "param_groups": self.optimizer.state_dict()["param_groups"]})

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


class _Dropout:
    """Factors of every hidden unit in every step, the same for members of one seed up to their rate."""

    def __init__(self, recipes: Sequence[Recipe], layout: Layout, batch: int, device: torch.device, dtype: torch.dtype, workers: Workers) -> None:
        self.redraws = any(r.sam.redraw_dropout and r.sam.rho and r.head.dropout for r in recipes)
        self._active = any(r.head.dropout for r in recipes)
        self._shape = (len(recipes), batch, layout.depth * layout.width)
        size, self._dtype = batch * layout.depth * layout.width, dtype
        self._position = torch.arange(workers.rank * size, (workers.rank + 1) * size, dtype=torch.int32, device=device)
        self._key = torch.tensor([dropout_key(r.seed) for r in recipes], dtype=torch.int32, device=device)
        self._threshold = torch.tensor([[keep_threshold(r.head.dropout)] for r in recipes], dtype=torch.int32, device=device)
        self._factor = torch.tensor([[1 / (1 - r.head.dropout)] for r in recipes], dtype=dtype, device=device)
        self._redraw = torch.tensor([int(r.sam.redraw_dropout and r.sam.rho > 0) for r in recipes], dtype=torch.int32, device=device)

    def draw(self, step: Tensor, second: bool) -> Tensor | None:
        """Shape (P, B, K), or None where nobody drops anything."""
        if not self._active:
            return None
        bits = dropout_bits(self._key, 2 * step + (self._redraw if second else 0), self._position)
        return ((bits >= self._threshold).to(self._dtype) * self._factor).view(self._shape)


def learning_rate(config: OptimConfig, epoch: int, epochs: int) -> float:
    """Rate of an epoch (0-based).

    ``cosine`` falls from ``lr`` to ``min_lr`` at the end; ``released`` has a period of ``epochs / 2``, as its ``T_max = epochs / 4``
    without restarts makes it. Both are torch's ``CosineAnnealingLR`` in closed form.
    """
    if config.schedule == "constant":
        return config.lr
    half_period = max(1, epochs // 4) if config.schedule == "released" else epochs
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / half_period)) / 2


def require_one_pack(recipes: Sequence[Recipe]) -> None:
    """Raise unless recipes can train side by side.

    Raises:
        ValueError: If they differ in one of `PACK_WIDE`.
    """
    for name in PACK_WIDE:
        if len(found := {flatten(recipe)[name] for recipe in recipes}) > 1:
            raise ValueError(f"members of one pack differ in {name}: {sorted(found, key=str)}")


def count_labels(y: np.ndarray, outputs: int) -> Prior:
    """Class counts of (N,) labels, or active and inactive counts of (N, U) ones."""
    if y.ndim == 1:
        return Prior(torch.from_numpy(np.bincount(y, minlength=outputs)))
    return Prior(torch.from_numpy((y == 1).sum(0)), torch.from_numpy((y == 0).sum(0)))


def _weights_and_shift(recipe: Recipe, prior: Prior) -> tuple[Tensor, Tensor]:
    loss = recipe.loss
    if prior.negative is None:
        return losses.class_weights(prior.positive, loss.weighting, loss.beta), loss.logit_adjustment * losses.class_shift(prior.positive)
    return losses.unit_weights(prior.positive, prior.negative, loss.weighting, loss.beta), loss.logit_adjustment * losses.unit_shift(prior.positive, prior.negative)


def _build_optimizer(recipes: Sequence[Recipe], pack: Pack, device: torch.device) -> torch.optim.Optimizer:
    """torch's fused Adam or AdamW with one group a member, whose only parameter is the member's row."""
    groups = []
    for recipe, weights, gradient in zip(recipes, pack.weights, pack.gradient, strict=True):
        row = torch.nn.Parameter(weights)
        row.grad = gradient
        lr = torch.tensor(recipe.optim.lr, device=device) if device.type == "cuda" else recipe.optim.lr
        groups.append({"params": [row], "lr": lr, "weight_decay": recipe.optim.weight_decay})
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipes[0].optim.name]
    return kind(groups, fused=True, capturable=device.type == "cuda")
