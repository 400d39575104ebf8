"""Time of one head's training step, and of a whole Figure 2: batches of heads against one head.

    python benchmarks/train.py [--device cuda] [--steps 100] [--batches 1 2 5 10 50]

The other side is the way the paper's released code does it, re-implemented from its description,
not its code: an HDF5 file opened for every sample, a DataLoader, an nn.Sequential, lambda searched
with scipy's fminbound at both points of each step, SAM as a wrapper that walks over parameters,
AdamW. Both sides train the same 768-wide head on the same random features in one run; figures are
for the ratio.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from scipy.optimize import fminbound
from tools import FIGURE_2, new_parser, print_header, print_row
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity
from torch.utils.data import DataLoader, Dataset

from raffect.datasets.affwild2.tasks import EXPR
from raffect.heads.head import MlpSpec
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.samples import Samples
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

DIM, CLASSES, BATCH, ROWS = 768, 8, 32, 20_000
SPEC = MlpSpec(DIM, DIM, 3, CLASSES)
WARM_UP = 5
PASSES = 12
"""Times a step reads or writes all weights at least.

Forward and backward by inputs twice, backward by weights once, Adam 7.
"""
LAUNCHES = (
    "cudaLaunchKernel",
    "cudaGraphLaunch",
    "cuLaunchKernel",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
)


class Cost(NamedTuple):
    """What one step of one head takes; launches are of the whole step."""

    wall_s: float
    cpu_s: float
    launches: int


# As the released code does it


class FeaturesInHdf5(Dataset):
    """Opens the file for every sample."""

    def __init__(self, path: Path, labels: np.ndarray) -> None:
        self.path, self.labels = path, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with h5py.File(self.path, "r") as file:
            feature = torch.tensor(file["train_features"][index], dtype=torch.float32)
        return feature, int(self.labels[index])


def search_cvar(losses: Tensor, alpha: float) -> Tensor:
    """Eq. (1) by a bounded search for lambda, from 1000 below the smallest loss.

    Each trial value is a tensor expression that the host reads back.
    """

    def value_at(lam: float) -> float:
        return lam + nn.ReLU()((losses - lam).clone()).mean().item() / alpha

    host = losses.detach().cpu().numpy()
    lam = float(fminbound(value_at, host.min() - 1000.0, host.max()))
    return lam + nn.ReLU()((losses - lam).clone()).mean() / alpha


class WrappedSam:
    """SAM around an optimiser: walks over parameters to climb, again to come back."""

    def __init__(self, params: Iterable[nn.Parameter], rho: float, **options: Any) -> None:
        self.params, self.rho = list(params), rho
        self.base = torch.optim.AdamW(self.params, **options)
        self.old: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def climb(self) -> None:
        norm = torch.norm(torch.stack([(1.0 * p.grad).norm(p=2) for p in self.params]), p=2)
        for p in self.params:
            self.old[p] = p.data.clone()
            p.add_(1.0 * p.grad * (self.rho / (norm + 1e-12)))
        self.base.zero_grad()

    @torch.no_grad()
    def come_back_and_step(self) -> None:
        for p in self.params:
            p.data = self.old[p]
        self.base.step()
        self.base.zero_grad()


def set_momentum(model: nn.Module, value: float) -> None:
    """Momentum of every BatchNorm."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = value


def build_released() -> nn.Sequential:
    """The released head."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Dropout(0.6)]
    return nn.Sequential(*layers, nn.Linear(DIM, CLASSES))


def time_released(path: Path, labels: np.ndarray, device: torch.device, steps: int) -> Cost:
    """Train for so many steps the way the released code does."""
    model = build_released().to(device)
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-4}
    sam = WrappedSam(model.parameters(), 0.5, **options)
    batches = iter(DataLoader(FeaturesInHdf5(path, labels), batch_size=BATCH, shuffle=True))
    true, predicted, total = [], [], 0.0

    def losses_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return logits, functional.cross_entropy(logits, y, reduction="none")

    def step_once() -> None:
        nonlocal total
        x, y = (part.to(device) for part in next(batches))
        # First pass and climb
        set_momentum(model, 0.1)
        search_cvar(losses_of(x, y)[1], 0.5).backward()
        sam.climb()
        # Second pass, which must not move BatchNorm's statistics
        set_momentum(model, 0)
        logits, losses = losses_of(x, y)
        loss = search_cvar(losses, 0.5)
        loss.backward()
        sam.come_back_and_step()
        # What it notes of every batch
        true.extend(y.cpu().numpy())
        predicted.extend(logits.argmax(1).cpu().numpy())
        total += loss.item()

    return time_steps(step_once, device, steps, heads=1)


# As raffect does it


def time_raffect(
    samples: Samples, labels: np.ndarray, steps: int, heads: int, fused: bool = False
) -> Cost:
    """Train a batch of heads by the same recipe for so many steps, compiled if ``fused``."""
    released = read_recipe(find_recipe("released"))
    settings = {name: value for name, value in released.items() if name != "epochs"}
    base = with_settings(Recipe(task="expr"), settings)
    recipes = [with_settings(base, {"seed": seed}) for seed in range(heads)]
    device = samples.x.device
    learner = Learner(recipes, SPEC, loss_kind(EXPR).count_prior(labels), device)
    if fused:
        learner.fuse()
    learner.set_epoch(0)
    epoch: Iterator[None] = learner.run_resident(samples, 0)
    return time_steps(lambda: next(epoch), device, steps, heads)


# Clocks


def time_steps(step: Callable[[], object], device: torch.device, steps: int, heads: int) -> Cost:
    """Cost of a step by head, after some that are not counted."""
    for _ in range(WARM_UP):
        step()
    start = clock(device)
    for _ in range(steps):
        step()
    wall, cpu = since(start, device, steps)
    return Cost(wall / heads, cpu / heads, count_launches(step, device))


def count_launches(step: Callable[[], object], device: torch.device) -> int:
    """What one step asks of the device.

    On CUDA launches by the host, of which a graph is one; on a CPU operators.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    if device.type == "cuda":
        events = [event for event in profile.key_averages() if event.key.startswith(LAUNCHES)]
        return sum(event.count for event in events)
    return sum(event.cpu_parent is None for event in profile.events())


def clock(device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds now, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], device: torch.device, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds a step."""
    wall, cpu = clock(device)
    return (wall - start[0]) / steps, (cpu - start[1]) / steps


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and write together."""
    one = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    two = torch.empty_like(one)
    two.copy_(one)
    start = clock(device)
    for _ in range(10):
        two.copy_(one)
    return 2 * one.numel() / since(start, device, 10)[0]


# The table


def main() -> None:
    parser = new_parser(__doc__)
    has_cuda, sizes = torch.cuda.is_available(), [1, 2, 5, 10, 50]
    side_by_side = "heads side by side, a row each"
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=sizes, help=side_by_side)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    steps = min(options.steps, ROWS // BATCH - 10)  # of one epoch

    # Random features
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((ROWS, DIM)).astype(np.float16), rng.integers(0, CLASSES, ROWS)

    # The other side, from a file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with h5py.File(path, "w") as file:
            file["train_features"] = x
        released = time_released(path, labels, device, steps)
    print_title(device, steps)
    show("as released", released, "1", "1", "-")

    # raffect, from the device
    fastest = show_raffect(x, labels, device, steps, options.batches, released)
    hours = (f"{FIGURE_2 * wall / 3600:,.1f} h" for wall in (fastest, released.wall_s))
    found = "{} in batches of heads, {} as released".format(*hours)
    extrapolated = f"({FIGURE_2:,} head-steps), extrapolated from the steps above"
    print(f"\nFigure 2 on 587,000 frames {extrapolated}: {found}")


def print_title(device: torch.device, steps: int) -> None:
    """Machine and sizes, and the header of the table."""
    processor = platform.processor() or platform.machine()
    name = f"{processor}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if device.type == "cuda" else name
    size = f"batch {BATCH}, {DIM} wide, {CLASSES} classes; {steps} steps after {WARM_UP} of warm-up"
    print(f"{name}; torch {torch.__version__}; {size}\n")
    costs = "wall ms a head-step", "CPU ms a head-step", "head-steps/s"
    ratios = "wall ratio", "CPU ratio", "share of memory bound"
    print_header("loop", *costs, *ratios, "launches a step")


def show_raffect(
    x: np.ndarray,
    labels: np.ndarray,
    device: torch.device,
    steps: int,
    batches: Iterable[int],
    released: Cost,
) -> float:
    """A row a batch of heads; returns the fewest seconds of a head's step in this table."""
    video = torch.zeros(ROWS, dtype=torch.int64, device=device)
    on_device = (torch.from_numpy(part).to(device) for part in (x, labels))
    samples = Samples(*on_device, video, 1)
    bound, fastest = PASSES * 4 * SPEC.num_weights / bandwidth(device), released.wall_s
    ways = (False, True) if device.type == "cuda" else (False,)
    for heads, fused in [(heads, fused) for heads in batches for fused in ways]:
        count = max(10, steps // heads) if device.type == "cpu" else steps
        own = time_raffect(samples, labels, count, heads, fused)
        ratios = released.wall_s / own.wall_s, released.cpu_s / own.cpu_s
        shown = [*(f"{ratio:.1f}" for ratio in ratios), f"{bound / own.wall_s:.2f}"]
        show(f"raffect, batch of {heads}{', fused' if fused else ''}", own, *shown)
        fastest = min(fastest, own.wall_s)
    return fastest


def show(name: str, cost: Cost, *ratios: str) -> None:
    """A row of the table."""
    digits = 2 if name == "as released" else 3
    times = [f"{seconds * 1e3:.{digits}f}" for seconds in (cost.wall_s, cost.cpu_s)]
    print_row(name, *times, f"{1 / cost.wall_s:,.0f}", *ratios, f"{cost.launches:,}")


if __name__ == "__main__":
    main()
