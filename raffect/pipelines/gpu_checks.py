"""What only a GPU can show, as numbers beside a limit: `raffect doctor --gpu`.

Each check is a function of a device, so that all of it but CUDA itself runs on a CPU too: there a
step is no graph, Triton's kernels are left out, and the group of processes is gloo's.
`benchmarks/gpu.py` has the same checks as rows. Weights may be random: nothing here depends on what
an encoder was trained on.

Shape letters: P heads, B samples of a batch.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.encoders.tower import load_encoder
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.heads.fused import FORWARD_TOLERANCE, TOLERANCE, differences, was_refused
from raffect.heads.fused_step import FusedStep
from raffect.heads.head import MlpSpec
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.random import epoch_order
from raffect.heads.samples import Samples
from raffect.heads.workers import Workers
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

CPU = torch.device("cpu")
DIM, CLASSES, ROWS, HEADS, FRAMES = 768, 8, 512, 3, 8
STEPS = 12
"""Of which CUDA takes the first three launch by launch, and the others as a graph."""
_FEW_STEPS = 3
"""After which runs on two devices can still be compared: later a frame that enters the tail, or a
unit that opens, lets them diverge (benchmarks/results/gpu_h200_202611.md)."""
LIMITS = {
    "encode float32": 1e-5,
    "encode float16": 5e-3,
    "graph": 0.0,
    "step": 1e-6,
    "waits": 0.0,
    "kernels": 0.0,
    "kernels forward": FORWARD_TOLERANCE,
    "kernels weights": TOLERANCE,
    "group": 0.0,
}
"""Largest value of each check that passes. On an H100 float32 was 1.3e-6 and float16 1.6e-3 away
from open_clip on the CPU (before the last block left other tokens out), and a step in float64
8.2e-9 from the CPU's, whose rates are float64. Three steps by kernels differed from eager ones by
1.7e-6 (forward) and 5.6e-5 (weights) where Triton's interpreter ran them on a CPU, 768 wide."""


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        name: Of the check, a key of `LIMITS`.
        value: 0 is perfect; a value that is not a number never passes.
        text: What was compared.
    """

    name: str
    value: float
    text: str

    @property
    def limit(self) -> float:
        """Largest value that passes."""
        return LIMITS[self.name]

    @property
    def ok(self) -> bool:
        """Whether it passes."""
        return self.value <= self.limit

    @property
    def line(self) -> str:
        """What was compared, the number and its limit."""
        return f"{self.text}: {self.value:.1e}, at most {self.limit:g}"


def checks(
    encoder: EncoderConfig, device: torch.device
) -> dict[str, Callable[[], Iterator[Found]]]:
    """All checks of a device by name, each to be called apart, since any of them may raise.

    Args:
        encoder: Which tower; random weights take the place of such as are not on this machine.
        device: Where.
    """
    found = {
        "encode": lambda: compare_encoding(encoder, device),
        "step": lambda: compare_steps(device),
        "group": lambda: compare_group(device),
    }
    if device.type == "cuda":
        found["kernels"] = lambda: compare_kernels(device)
    return found


# Encoding


def compare_encoding(config: EncoderConfig, device: torch.device) -> Iterator[Found]:
    """Vectors of a device, in float32 and float16, against those of the CPU in float32."""
    config = _with_weights(config)
    expected = _encode(replace(config, precision="float32"), CPU)
    for precision in ("float32", "float16"):
        ours = _encode(replace(config, precision=precision), device)
        distance = (ours - expected).norm(dim=1) / expected.norm(dim=1)
        what = f"{config.model} {config.weights}, {precision} on {device} against float32 on cpu"
        text = f"{what}, largest relative distance of {FRAMES} vectors"
        yield Found(f"encode {precision}", float(distance.max()), text)


def _with_weights(config: EncoderConfig) -> EncoderConfig:
    """The same encoder with its weights, or random ones."""
    try:
        resolve(config)
    except RaffectError:
        return replace(config, weights="random:0")
    return config


@torch.inference_mode()
def _encode(config: EncoderConfig, device: torch.device) -> Tensor:
    """Vectors of noise of three sizes, float64 on the CPU, shape (frames, dim)."""
    rng, sizes = np.random.default_rng(0), [(112, 112), (64, 80), (224, 224)]
    shapes = [sizes[k % len(sizes)] for k in range(FRAMES)]
    frames = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    encoder = load_encoder(replace(config, batch_size=FRAMES, compile=False), device)
    # Not `encode`, whose vectors are rounded to float16
    return encoder.forward(encoder.prepare(frames)).cpu().double()


# Training steps


def compare_steps(device: torch.device) -> Iterator[Found]:
    """Steps as training takes them against single ones, and against the CPU's.

    On CUDA training launches a graph, single steps do not; both must have equal bytes, and single
    ones must not wait for the host, which a graph could not hold.
    """
    # Launched as training does, and step by step
    samples = _samples(device)
    trained, single = (_learner(device, torch.float32) for _ in range(2))
    _train(trained, samples, STEPS)
    waits = _step_alone(single, samples, STEPS)
    differing = sum(
        not torch.equal(value, single.state()[name]) for name, value in trained.state().items()
    )
    how = "a graph" if device.type == "cuda" else "steps in a row (a CPU has no graph)"
    size = f"{HEADS} heads, {DIM} wide, {STEPS} steps on {device}"
    text = f"tensors that {how} leaves with other bytes than single steps"
    yield Found("graph", differing, f"{size}: {text}")
    text = "single steps in which the host waits (only CUDA can show it)"
    yield Found("waits", waits, f"{size}: {text}")
    text = "learners whose first batch refused the Triton kernels (a line above says why)"
    yield Found("kernels", was_refused(trained) + was_refused(single), f"{size}: {text}")

    # On the CPU
    ours, theirs = (_learner(where, torch.float64) for where in (device, CPU))
    for learner in (ours, theirs):
        _train(learner, _samples(learner.device), _FEW_STEPS)
    one, other = (learner.state()["rows"] for learner in (ours, theirs))
    text = f"float64, {_FEW_STEPS} steps on {device} against cpu, relative distance of the weights"
    yield Found("step", float((one - other).norm() / other.norm()), text)


@torch.no_grad()
def compare_kernels(device: torch.device) -> Iterator[Found]:
    """Steps by Triton kernels against eager ones, whatever the guard of the first batch finds.

    Forward are losses and BatchNorm's buffers, weights all that lies behind a derivative (rows,
    Adam's moments); tolerances are the guard's. Triton needs CUDA, or its interpreter.
    """
    samples = _samples(device)
    eager, fused = (_learner(device, torch.float32) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in eager.tensors().items()}
    by_kernels = FusedStep(fused)
    for x, target in _batches(eager, samples, _FEW_STEPS):
        eager.eager_step(x, target)
        by_kernels.step(x, target)
    found = differences(fused, before, eager.tensors())
    for name, limit in (("kernels forward", FORWARD_TOLERANCE), ("kernels weights", TOLERANCE)):
        worst = max((one for one in found if one.tolerance == limit), key=lambda one: one.value)
        size = f"{HEADS} heads, {DIM} wide, {_FEW_STEPS} float32 steps on {device}"
        text = "Triton kernels against eager steps, largest relative difference"
        yield Found(name, worst.value, f"{size}: {text} ({worst.name})")


def _samples(device: torch.device) -> Samples:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((ROWS, DIM)).astype(np.float16))
    y = torch.from_numpy(rng.integers(0, CLASSES, ROWS))
    video = torch.zeros(ROWS, dtype=torch.int64)
    return Samples(x.to(device), y.to(device), video.to(device), 1)


def _learner(device: torch.device, dtype: torch.dtype) -> Learner:
    """Heads by the released recipe, at the rates of its first epoch."""
    base = with_settings(Recipe(task="expr"), read_recipe(find_recipe("released")))
    recipes = [with_settings(base, {"seed": seed}) for seed in range(HEADS)]
    prior = loss_kind(EXPR).count_prior(_samples(CPU).y.numpy())
    learner = Learner(recipes, MlpSpec(DIM, DIM, 3, CLASSES), prior, device, dtype)
    learner.set_epoch(0)
    return learner


def _train(learner: Learner, samples: Samples, steps: int) -> None:
    """Steps of an epoch, as training takes them."""
    epoch = learner.run_resident(samples, 0)
    for _ in range(steps):
        next(epoch)


@torch.no_grad()
def _step_alone(learner: Learner, samples: Samples, steps: int) -> int:
    """The same steps, each called by itself; how many of them waited for the host."""
    waits = 0
    for step, (x, target) in enumerate(_batches(learner, samples, steps)):
        # The first step loads libraries, which waits
        with _counted_waits(learner.device if step else CPU) as found:
            learner.step(x, target)
        waits += len(found) > 0
    return waits


def _batches(learner: Learner, samples: Samples, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of an epoch and their targets."""
    size = learner.recipes[0].batch_size
    orders = [epoch_order(recipe.seed, 0, len(samples)) for recipe in learner.recipes]
    order_PN = torch.from_numpy(np.stack(orders)).to(learner.device)
    for step in range(steps):
        x, target = samples.take(order_PN[:, step * size : (step + 1) * size])
        yield x.to(learner.dtype), target


@contextlib.contextmanager
def _counted_waits(device: torch.device) -> Generator[list[warnings.WarningMessage]]:
    """Warnings that torch gives of a block that waits for a GPU; none on a CPU."""
    if device.type != "cuda":
        yield []
        return
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found[:] = [one for one in found if "synchronizing CUDA" in str(one.message)]


# A group of processes


def compare_group(device: torch.device) -> Iterator[Found]:
    """Sums and gathers of one process, through the library that several would use."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    own = torch.device("cuda", device.index or 0) if backend == "nccl" else None
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=own)
    try:
        tensor = torch.arange(3.0, device=device)
        parts = [torch.zeros_like(tensor)]
        dist.all_reduce(tensor)
        dist.all_gather(parts, tensor)
        Workers.current().require_same(3, "epochs", device)
        error = float((parts[0].cpu() - torch.arange(3.0)).abs().max())
    finally:
        dist.destroy_process_group()
    yield Found("group", error, f"{backend} with one process: error of a sum and of a gather")
