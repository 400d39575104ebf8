"""Which kernels a GPU's time goes to: what to look at where gpu.py finds a row short.

    python benchmarks/gpu_profile.py learner [--batches 1 10 50] [--top 12]
    python benchmarks/gpu_profile.py encoder [--batch 256] [--top 12]

`learner` profiles one step of batches of heads, `encoder` one batch of pictures. `ceilings` prints
the card's own rates alone, which the others print first. What other builds of the tower and fused
steps give is in encode.py (`--towers`) and train.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tools import new_parser
from torch.profiler import ProfilerActivity, profile

from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.encoders.tower import Encoder, load_encoder
from raffect.heads.head import MlpSpec
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.samples import Samples
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

CUDA = torch.device("cuda")
DIM, CLASSES, ROWS = 768, 8, 40_000
MODEL = "ViT-L-14-quickgelu"

# Clocks


def milliseconds(run: Callable[[], object], repeats: int = 20, warm: int = 3) -> float:
    """Median by device events."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return float(np.median(times))


def show_profile(run: Callable[[], object], times: int, top: int) -> tuple[float, float]:
    """Prints kernels by device time; returns kernels and their microseconds a run."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(times):
            run()
        torch.cuda.synchronize()
    kernels = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in kernels) / times
    for event in kernels[:top]:
        own, count = event.self_device_time_total / times, event.count / times
        share = own / max(total, 1e-9)
        print(f"  {own:9.1f} us {share:6.1%} {count:6.1f}x  {event.key[:110]}")
    return sum(e.count for e in kernels) / times, total


def print_ceilings() -> None:
    """Rates of a large copy and of large products."""
    # A copy
    one = torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)
    two = torch.empty_like(one)
    copied = 2 * one.numel() / milliseconds(lambda: two.copy_(one)) * 1e3

    # Products in each precision
    rates, size = {}, 8192
    for name, dtype in (
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("tf32", torch.float32),
        ("float32", torch.float32),
        ("float64", torch.float64),
    ):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a = torch.randn(size, size, device=CUDA, dtype=dtype)
        rates[name] = 2 * size**3 / milliseconds(partial(torch.matmul, a, a), 5, 2) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = False

    versions = f"torch {torch.__version__}; cudnn {torch.backends.cudnn.version()}"
    products = ", ".join(f"{name} {rate:,.0f} TFLOP/s" for name, rate in rates.items())
    print(f"{torch.cuda.get_device_name()}; {versions}")
    print(f"copy {copied / 1e12:.2f} TB/s; product of {size}: {products}")


# The learner


def make_learner(heads: int) -> tuple[Learner, Samples]:
    """So many heads of the released recipe, and random samples on the card."""
    # Recipes
    released = read_recipe(find_recipe("released"))
    settings = {name: value for name, value in released.items() if name != "epochs"}
    base = with_settings(Recipe(task="expr"), settings)
    recipes = [with_settings(base, {"seed": seed}) for seed in range(heads)]

    # Samples
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, ROWS)
    x = torch.from_numpy(rng.standard_normal((ROWS, DIM)).astype(np.float16))
    video = torch.zeros(ROWS, dtype=torch.int64, device=CUDA)
    samples = Samples(x.to(CUDA), torch.from_numpy(labels).to(CUDA), video, 1)

    prior = loss_kind(EXPR).count_prior(labels)
    learner = Learner(recipes, MlpSpec(DIM, DIM, 3, CLASSES), prior, CUDA)
    learner.set_epoch(0)
    return learner, samples


def time_steps(learner: Learner, samples: Samples, steps: int = 300) -> float:
    """Milliseconds a step, launched one after the other; the shortest of three parts."""
    epoch = learner.run_resident(samples, 0)
    for _ in range(10):
        next(epoch)
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            next(epoch)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / steps * 1e3)
    return min(times)


def profile_learner(options: argparse.Namespace) -> None:
    """Kernels of one step of each batch of heads."""
    for heads in options.batches:
        learner, samples = make_learner(heads)
        wall = time_steps(learner, samples) * 1e3
        epoch = learner.run_resident(samples, 1)
        for _ in range(5):
            next(epoch)
        a_head, memory = wall / heads, torch.cuda.max_memory_allocated() / 1e9
        times = f"{wall:.0f} us a step, {a_head:.1f} us a head-step"
        print(f"\nbatch of {heads} heads: {times}, {memory:.2f} GB")
        count, busy = show_profile(partial(next, epoch), 20, options.top)
        kernels = f"{count:.0f} kernels a step, busy {busy:.0f} us"
        print(f"  {kernels}, {busy / heads:.1f} us a head-step")
        torch.cuda.reset_peak_memory_stats()


# The encoder


def make_frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 112, 112, 3), np.uint8))


def load(batch: int, precision: Any = "auto") -> Encoder:
    config = EncoderConfig(model=MODEL, weights="random:0", batch_size=batch, precision=precision)
    return load_encoder(config, CUDA)


@torch.inference_mode()
def profile_encoder(options: argparse.Namespace) -> None:
    """Kernels of the tower and of what prepares its input; encoding against the bare tower."""
    size, num_batches = options.batch, 8
    encoder, frames = load(size), make_frames(size * num_batches)
    batch = encoder.prepare(frames[:size])
    for _ in range(3):
        encoder.forward(batch)

    # Kernels
    for name, run in (
        ("forward", lambda: encoder.forward(batch)),
        ("prepare", lambda: encoder.prepare(frames[:size])),
    ):
        print(f"\n{name}, batch {size}: {milliseconds(run, 10):.2f} ms")
        count, busy = show_profile(run, 3, options.top)
        print(f"  {count:.0f} kernels, busy {busy / 1e3:.2f} ms")

    # The host's part
    start = time.perf_counter()
    for _ in range(num_batches):
        pixels = torch.empty(size, 112, 112, 3, dtype=torch.uint8, pin_memory=True)
        np.stack(frames[:size], out=pixels.numpy())
    took = (time.perf_counter() - start) / num_batches * 1e3
    print(f"host: stack {took:.2f} ms a batch")

    # Encoding as a whole
    encoder.encode(frames)
    start = time.perf_counter()
    encoder.encode(frames)
    whole = (time.perf_counter() - start) * 1e3
    bare = num_batches * milliseconds(lambda: encoder.forward(batch), 10)
    ratio = f"ratio {bare / whole:.3f}"
    print(f"encode of {num_batches} batches {whole:.1f} ms, bare {bare:.1f} ms, {ratio}")


def main() -> None:
    parser = new_parser(__doc__)
    runs: dict[str, Callable[[argparse.Namespace], None]] = {
        "ceilings": lambda options: None,
        "learner": profile_learner,
        "encoder": profile_encoder,
    }
    side_by_side, pictures = "heads side by side, one after the other", "pictures of the encoder"
    parser.add_argument("what", choices=tuple(runs))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 50], help=side_by_side)
    parser.add_argument("--batch", type=int, default=256, help=pictures)
    parser.add_argument("--top", type=int, default=12, help="kernels that are shown")
    options = parser.parse_args()
    print_ceilings()
    runs[options.what](options)


if __name__ == "__main__":
    main()
