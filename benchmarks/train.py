"""Time of one head's training step, and of a whole Figure 2: raffect's packs against the way the paper's released code does it.

    python benchmarks/train.py [--device cuda] [--steps 100] [--packs 1 2 5 10 50]

The other side is a re-implementation from its description, not its code: an HDF5 file opened for every sample, a DataLoader, an
nn.Sequential, lambda searched with scipy's fminbound at both points of each step, SAM as a wrapper that walks over parameters,
AdamW. Both sides train the same 768-wide head on the same random features in one run; figures are for the ratio.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.optimize import fminbound
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity
from torch.utils.data import DataLoader, Dataset

from raffect.datasets.affwild2.tasks import EXPR
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.mlp import MlpSpec
from raffect.heads.samples import Samples
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

DIM, CLASSES, BATCH, ROWS = 768, 8, 32, 20_000
PASSES = 12
"""Times a step reads or writes all weights at least: forward and backward by inputs twice, backward by weights once, Adam 7."""
FIGURE_2 = 10 * 5 * 32 * (587_000 // BATCH)
"""Head-steps of the paper's Figure 2: 10 alphas, 5 seeds, 32 epochs."""


class FeaturesInHdf5(Dataset):
    """Opens the file for every sample."""

    def __init__(self, path, labels):
        self.path, self.labels = path, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        with h5py.File(self.path, "r") as file:
            return torch.tensor(file["train_features"][index], dtype=torch.float32), int(
                self.labels[index]
            )


def search_cvar(losses, alpha):
    """Eq. (1) by a bounded search for lambda: from 1000 below the smallest loss, each trial value a tensor expression read back to the host."""

    def value_at(lam):
        return lam + nn.ReLU()((losses - lam).clone()).mean().item() / alpha

    host = losses.detach().cpu().numpy()
    lam = float(fminbound(value_at, host.min() - 1000.0, host.max()))
    return lam + nn.ReLU()((losses - lam).clone()).mean() / alpha


class WrappedSam:
    """SAM around an optimiser: walks over parameters to climb, again to come back."""

    def __init__(self, params, rho, **options):
        self.params, self.rho = list(params), rho
        self.base, self.old = torch.optim.AdamW(self.params, **options), {}

    @torch.no_grad()
    def climb(self):
        norm = torch.norm(torch.stack([(1.0 * p.grad).norm(p=2) for p in self.params]), p=2)
        for p in self.params:
            self.old[p] = p.data.clone()
            p.add_(1.0 * p.grad * (self.rho / (norm + 1e-12)))
        self.base.zero_grad()

    @torch.no_grad()
    def come_back_and_step(self):
        for p in self.params:
            p.data = self.old[p]
        self.base.step()
        self.base.zero_grad()


def set_momentum(model, value):
    model.apply(
        lambda layer: (
            setattr(layer, "momentum", value) if isinstance(layer, nn.BatchNorm1d) else None
        )
    )


def released_loop(path, labels, device, steps):
    """Runs ``steps`` steps; returns wall and CPU seconds and launches of each."""
    blocks = [
        part
        for _ in range(3)
        for part in (nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Dropout(0.6))
    ]
    model = nn.Sequential(*blocks, nn.Linear(DIM, CLASSES)).to(device)
    sam = WrappedSam(model.parameters(), 0.5, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4)
    batches = iter(DataLoader(FeaturesInHdf5(path, labels), batch_size=BATCH, shuffle=True))
    truth, guesses, total = [], [], 0.0

    def step_once():
        nonlocal total
        x, y = (part.to(device) for part in next(batches))
        set_momentum(model, 0.1)
        search_cvar(functional.cross_entropy(model(x), y, reduction="none"), 0.5).backward()
        sam.climb()
        set_momentum(model, 0)
        logits = model(x)
        loss = search_cvar(functional.cross_entropy(logits, y, reduction="none"), 0.5)
        loss.backward()
        sam.come_back_and_step()
        truth.extend(y.cpu().numpy())
        guesses.extend(logits.argmax(1).cpu().numpy())
        total += loss.item()

    for step in range(steps + 5):
        if step == 5:
            start = clock(device)
        step_once()
    wall, cpu = since(start, device, steps)
    return wall, cpu, count_launches(step_once, device)


def raffect_loop(rows, labels, device, steps, members, fused=False):
    """The same recipe in a pack, compiled if ``fused``; returns wall and CPU seconds of a head and step, and launches of a step."""
    settings = {
        name: value
        for name, value in read_recipe(find_recipe("released")).items()
        if name != "epochs"
    }
    recipes = [
        with_settings(Recipe(task="expr"), {**settings, "seed": seed}) for seed in range(members)
    ]
    learner = Learner(
        recipes, MlpSpec(DIM, DIM, 3, CLASSES), loss_kind(EXPR).count_prior(labels), device
    )
    if fused:
        learner.fuse()
    learner.set_epoch(0)
    epoch = learner.run_resident(rows, 0)
    for _ in range(5):
        next(epoch)
    start = clock(device)
    for _ in range(steps):
        next(epoch)
    wall, cpu = since(start, device, steps)
    return wall / members, cpu / members, count_launches(lambda: next(epoch), device)


def count_launches(step, device):
    """What one step asks of the device: launches by the host on CUDA (a graph is one), operators on a CPU."""
    on_cuda = device.type == "cuda"
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    ) as profile:
        step()
    launches = (
        "cudaLaunchKernel",
        "cudaGraphLaunch",
        "cuLaunchKernel",
        "cudaMemcpyAsync",
        "cudaMemsetAsync",
    )
    if on_cuda:
        return sum(
            event.count for event in profile.key_averages() if event.key.startswith(launches)
        )
    return sum(event.cpu_parent is None for event in profile.events())


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start, device, steps):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start[0]) / steps, (time.process_time() - start[1]) / steps


def bandwidth(device):
    """Bytes a second of a large copy, read and write together."""
    one = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    two = torch.empty_like(one)
    two.copy_(one)
    start = clock(device)
    for _ in range(10):
        two.copy_(one)
    return 2 * one.numel() / since(start, device, 10)[0]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 5, 10, 50])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.steps = min(options.steps, ROWS // BATCH - 10)  # of one epoch
    torch.set_num_threads(options.threads)
    device, rng = torch.device(options.device), np.random.default_rng(0)
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.processor() or platform.machine()}, {options.threads} threads"
    )
    x, labels = rng.standard_normal((ROWS, DIM)).astype(np.float16), rng.integers(0, CLASSES, ROWS)
    rows = Samples(
        torch.from_numpy(x).to(device),
        torch.from_numpy(labels).to(device),
        torch.zeros(ROWS, dtype=torch.int64, device=device),
        1,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with h5py.File(path, "w") as file:
            file["train_features"] = x
        wall, cpu, launches = released_loop(path, labels, device, options.steps)
    print(
        f"{name}; torch {torch.__version__}; batch {BATCH}, {DIM} wide, {CLASSES} classes; {options.steps} steps after 5 of warm-up\n"
    )
    print(
        "| loop | wall ms a head-step | CPU ms a head-step | head-steps/s | wall ratio | CPU ratio | share of memory bound | launches a step |\n|---|---|---|---|---|---|---|---|"
    )
    print(
        f"| as released | {wall * 1e3:.2f} | {cpu * 1e3:.2f} | {1 / wall:,.0f} | 1 | 1 | - | {launches:,} |"
    )
    bound, fastest = (
        PASSES * 4 * MlpSpec(DIM, DIM, 3, CLASSES).num_weights / bandwidth(device),
        wall,
    )
    for members, fused in [
        (members, fused)
        for members in options.packs
        for fused in ((False, True) if device.type == "cuda" else (False,))
    ]:
        count = max(10, options.steps // members if device.type == "cpu" else options.steps)
        own_wall, own_cpu, launches = raffect_loop(rows, labels, device, count, members, fused)
        ratios = f"{wall / own_wall:.1f} | {cpu / own_cpu:.1f} | {bound / own_wall:.2f}"
        print(
            f"| raffect, pack of {members}{', fused' if fused else ''} | {own_wall * 1e3:.3f} | {own_cpu * 1e3:.3f} | {1 / own_wall:,.0f} | {ratios} | {launches:,} |",
            flush=True,
        )
        fastest = min(fastest, own_wall)
    print(
        f"\nFigure 2 on 587,000 frames ({FIGURE_2:,} head-steps), extrapolated from the steps above: {FIGURE_2 * fastest / 3600:,.1f} h in packs, {FIGURE_2 * wall / 3600:,.1f} h as released"
    )


if __name__ == "__main__":
    main()
