"""Which learners step by Triton kernels, and the first batch, which decides whether they do.

The kernels have to earn it on the card at hand: the first batch is stepped both ways from one
state, and only if rows, buffers and the optimiser's state come out equal do later steps take the
kernels. Otherwise, and after any error of Triton's, training goes on as without them, with one line
that says why.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raffect.heads.fused_step import FusedStep
from raffect.heads.mlp import MlpSpec

if TYPE_CHECKING:
    from raffect.heads.learner import Learner

Step = Callable[[Tensor, Tensor], None]
"""A learner's step on a batch and its targets."""

SWITCH = "RAFFECT_KERNELS"
"""Environment variable; ``0`` leaves the kernels out."""
MOST_SAMPLES = 64
"""Of a batch whose columns one program holds."""
FORWARD_TOLERANCE = 1e-3
"""Of buffers and losses: float32's own differences are 1e-6, those of TF32 1e-3."""
TOLERANCE = 2e-2
"""Of all that lies behind a derivative. Where a sum's last bits put a unit on the other side of
ReLU's 0, its share of a vector's gradient changes, up to 0.7 % at width 768; and Adam's first step
has full size even for the one gradient in a million that is rounding alone."""
_ROUNDING = 1e-6
_PARTS = ("rows", "exp_avg", "exp_avg_sq")


def serves(learner: Learner) -> bool:
    """Whether kernels are to be tried: on CUDA, where they fit the learner and are not off."""
    return learner.device.type == "cuda" and os.environ.get(SWITCH) != "0" and fits(learner)


def fits(learner: Learner) -> bool:
    """Whether the kernels compute this learner's step.

    That is one worker's, of MLPs with a hidden block, in float32, with Adam or AdamW, SAM in the L2
    norm or none, and from 2 to `MOST_SAMPLES` samples.
    """
    spec, recipe = learner.heads.spec, learner.recipes[0]
    return (
        type(spec) is MlpSpec
        and spec.depth >= 1
        and learner.workers.size == 1
        and 2 <= learner.batch <= MOST_SAMPLES
        and learner.dtype == torch.float32
        and recipe.optim.name in ("adam", "adamw")
        and (recipe.sam.perturbation == "l2" or not learner.is_sharp)
    )


def was_refused(learner: Learner) -> bool:
    """Whether kernels were to be tried, and the first batch decided against them."""
    return serves(learner) and learner.way == learner.eager_step


def first_step(learner: Learner, batch: Tensor, target: Tensor) -> Step:
    """Take a step both ways, keep that of the kernels if both agree, else the learner's own.

    It waits for the host, and so comes before a graph is captured.

    Returns:
        How to take all later steps.
    """
    if reason := _shortage(learner):
        learner.eager_step(batch, target)
        return _refuse(learner, reason)
    before = _copies(learner)
    learner.eager_step(batch, target)
    expected = _copies(learner)
    _restore(learner, before)
    try:
        fused = FusedStep(learner)
        fused.step(batch, target)
        reason = _difference(learner, before, expected)
    except Exception as error:  # Triton has no class for all that can go wrong
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    if reason is None:
        return fused.step
    _restore(learner, expected)
    return _refuse(learner, reason)


def _refuse(learner: Learner, reason: str) -> Step:
    message = "training goes on without Triton kernels (%s)"
    logging.getLogger("raffect").warning(message, reason)
    return learner.eager_step


def _shortage(learner: Learner) -> str | None:
    """Why there is no memory for two copies of the state; None if there is."""
    if learner.device.type != "cuda":
        return None
    needed = 2 * sum(tensor.nbytes for tensor in learner.tensors().values())
    free = torch.cuda.mem_get_info(learner.device)[0]
    if needed < free:
        return None
    return f"checking them takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


@dataclass(frozen=True)
class Difference:
    """How far a tensor of a learner is from the eager step's.

    Attributes:
        name: Of the tensor, or of a layer's part of it.
        value: Norm of the difference over that of what the steps changed, rounding included.
        tolerance: Largest value that passes.
    """

    name: str
    value: float
    tolerance: float


def differences(
    learner: Learner, before: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[Difference]:
    """How far each tensor of the learner's state is from the expected one.

    NaN equals NaN alone: a head that diverged before a stop is NaN either way.

    Args:
        learner: That stepped by kernels.
        before: Its `tensors` before the steps.
        expected: Its tensors after the same steps, taken eagerly.
    """
    names, tolerances, values = [], [], []
    spec = learner.heads.spec
    found = dict(_named(spec, learner.tensors()))
    start = dict(_named(spec, before))
    for name, tensor in _named(spec, expected):
        changed = _finite(tensor.double() - start[name].double()).norm()
        is_nan = tensor.isnan() & found[name].isnan()
        distance = (found[name].double() - tensor.double()).masked_fill(is_nan, 0).norm()
        is_forward = name.startswith(("buffers.", "loss_sum"))
        tolerance = FORWARD_TOLERANCE if is_forward else TOLERANCE
        changed = changed + _ROUNDING / tolerance * _finite(tensor.double()).norm()
        names.append(name)
        tolerances.append(tolerance)
        values.append(torch.where(distance == 0, 0, distance / changed))
    # One wait for the host
    numbers = torch.stack(values).nan_to_num(nan=torch.inf).tolist()
    return [Difference(*parts) for parts in zip(names, numbers, tolerances, strict=True)]


def _difference(
    learner: Learner, before: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> str | None:
    """Where both ways differ most, if by more than the tolerance."""
    found = differences(learner, before, expected)
    worst = max(found, key=lambda one: one.value / one.tolerance)
    if worst.value <= worst.tolerance:
        return None
    return f"{worst.name} differs by {worst.value:.1e} of what the first batch changed"


def _finite(values: Tensor) -> Tensor:
    """The values, 0 for those that are not finite."""
    return values.nan_to_num(0, 0, 0)


def _named(spec: object, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the state by name; those that are as long as a row, layer by layer."""
    assert isinstance(spec, MlpSpec)
    for name, tensor in tensors.items():
        if name not in _PARTS:
            yield name, tensor
            continue
        for part, view in spec.views(tensor).items():
            yield f"{name} of {part}", view


def _copies(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.tensors().items()}


def _restore(learner: Learner, copies: Mapping[str, Tensor]) -> None:
    for name, tensor in learner.tensors().items():
        tensor.copy_(copies[name])
