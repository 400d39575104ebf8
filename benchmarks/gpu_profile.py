"""Where a GPU's time goes: one step of packs, one batch of the encoder, and what single changes to them give.

    python benchmarks/gpu_profile.py learner [--packs 1 10 50] [--top 12]
    python benchmarks/gpu_profile.py encoder [--batch 256] [--top 12]
    python benchmarks/gpu_profile.py variants [--batch 256]
    python benchmarks/gpu_profile.py steps [--packs 1 50]

`variants` times builds of the tower and ways to prepare a batch against raffect's own, and the largest
relative difference of a vector to them; `steps` the learner's step as it is, fused, and
with products in TF32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from raffect.heads.pack import Layout
from torch import nn
from torch.profiler import ProfilerActivity, profile

from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.encoders.tower import load_encoder
from raffect.heads.learner import Learner, Rows
from raffect.heads.loss_kinds import loss_kind
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

CUDA = torch.device("cuda")
DIM, CLASSES, ROWS = 768, 8, 40_000
MODEL = "ViT-L-14-quickgelu"


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


def print_ceilings() -> None:
    one = torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)
    two = torch.empty_like(one)
    copied = 2 * one.numel() / milliseconds(lambda: two.copy_(one)) * 1e3
    rates = {}
    for name, dtype, tf32 in (
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
        ("float64", torch.float64, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(8192, 8192, device=CUDA, dtype=dtype)
        rates[name] = 2 * 8192**3 / milliseconds(lambda a=a: a @ a, 5, 2) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = False
    print(
        f"{torch.cuda.get_device_name()}; torch {torch.__version__}; cudnn {torch.backends.cudnn.version()}"
    )
    print(
        f"copy {copied / 1e12:.2f} TB/s; product of 8192: "
        + ", ".join(f"{name} {rate:,.0f} TFLOP/s" for name, rate in rates.items())
    )


def make_learner(members: int, **settings) -> tuple[Learner, Rows]:
    rng = np.random.default_rng(0)
    shipped = {
        name: v for name, v in read_recipe(find_recipe("released")).items() if name != "epochs"
    }
    recipes = [
        with_settings(Recipe(task="expr"), {**shipped, "seed": s, **settings})
        for s in range(members)
    ]
    labels = rng.integers(0, CLASSES, ROWS)
    x = torch.from_numpy(rng.standard_normal((ROWS, DIM)).astype(np.float16))
    rows = Rows(
        x.to(CUDA),
        torch.from_numpy(labels).to(CUDA),
        torch.zeros(ROWS, dtype=torch.int64, device=CUDA),
        1,
    )
    prior = loss_kind(EXPR).count_prior(labels)
    learner = Learner(recipes, Layout(DIM, DIM, 3, CLASSES), prior, CUDA)
    learner.set_epoch(0)
    return learner, rows


def time_steps(learner: Learner, rows: Rows, steps: int = 300) -> float:
    """Milliseconds a step, launched one after the other; the shortest of three parts."""
    epoch = learner.run_resident(rows, 0)
    for _ in range(10):
        next(epoch)
    best = 1e9
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            next(epoch)
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / steps * 1e3)
    return best


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
        share = event.self_device_time_total / times / max(total, 1e-9)
        print(
            f"  {event.self_device_time_total / times:9.1f} us {share:6.1%} {event.count / times:6.1f}x  {event.key[:110]}"
        )
    return sum(e.count for e in kernels) / times, total


def profile_learner(options: argparse.Namespace) -> None:
    for members in options.packs:
        learner, rows = make_learner(members)
        wall = time_steps(learner, rows)
        epoch = learner.run_resident(rows, 1)
        for _ in range(5):
            next(epoch)
        print(
            f"\npack of {members}: {wall * 1e3:.0f} us a step, {wall * 1e3 / members:.1f} us a head-step, "
            f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
        )
        count, busy = show_profile(lambda epoch=epoch: next(epoch), 20, options.top)
        print(
            f"  {count:.0f} kernels a step, busy {busy:.0f} us, {busy / members:.1f} us a head-step"
        )
        torch.cuda.reset_peak_memory_stats()


def make_frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 112, 112, 3), np.uint8))


def profile_encoder(options: argparse.Namespace) -> None:
    encoder = load_encoder(
        EncoderConfig(model=MODEL, weights="random:0", batch_size=options.batch), CUDA
    )
    frames = make_frames(options.batch * 8)
    with torch.inference_mode():
        batch = encoder.prepare(frames[: options.batch])
        for _ in range(3):
            encoder.forward(batch)
        for name, run in (
            ("forward", lambda: encoder.forward(batch)),
            ("prepare", lambda: encoder.prepare(frames[: options.batch])),
        ):
            print(f"\n{name}, batch {options.batch}: {milliseconds(run, 10):.2f} ms")
            count, busy = show_profile(run, 3, options.top)
            print(f"  {count:.0f} kernels, busy {busy / 1e3:.2f} ms")
        start = time.perf_counter()
        for _ in range(8):
            pixels = torch.empty(options.batch, 112, 112, 3, dtype=torch.uint8, pin_memory=True)
            np.stack(frames[: options.batch], out=pixels.numpy())
        print(f"host: stack {(time.perf_counter() - start) / 8 * 1e3:.2f} ms a batch")
        encoder.encode(frames)
        start = time.perf_counter()
        encoder.encode(frames)
        whole = (time.perf_counter() - start) * 1e3
        bare = 8 * milliseconds(lambda: encoder.forward(batch), 10)
        print(f"encode of 8 batches {whole:.1f} ms, bare {bare:.1f} ms, ratio {bare / whole:.3f}")


def use_quick(tower: nn.Module) -> None:
    """QuickGELU as open_clip has it again; weights stay scaled, which time does not notice and `difference` does."""
    for block in tower.transformer.resblocks:
        block.mlp.gelu = Scaled()


class Scaled(nn.Module):
    """QuickGELU of inputs that are 1.702 times as large, in open_clip's three kernels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.0 * x)


def make_conv(patches: nn.Module) -> nn.Module:
    """The patch embedding as open_clip has it again."""
    width, channels, side, _ = patches.weight.shape
    conv = nn.Conv2d(channels, width, side, side, bias=False)
    conv.weight = patches.weight
    return conv


def build(name: str, batch: int, precision: str = "auto"):
    torch._dynamo.reset()
    encoder = load_encoder(
        EncoderConfig(model=MODEL, weights="random:0", batch_size=batch, precision=precision), CUDA
    )
    tower = encoder.tower
    if "plain" in name or "quick" in name:
        use_quick(tower)
    if "patch" not in name:
        tower.conv1 = make_conv(tower.conv1)
    if "compiled" in name:
        tower.compile(dynamic=False)
    if "overhead" in name:
        tower.compile(mode="reduce-overhead", dynamic=False)
    if "tuned" in name:
        tower.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
    return encoder


@torch.inference_mode()
def time_variants(options: argparse.Namespace) -> None:
    frames, first = make_frames(options.batch), None
    print(
        f"| tower, batch {options.batch} | ms | frames/s | difference | GB | first call s |\n|---|---|---|---|---|---|"
    )
    for name in options.variants:
        try:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            encoder = build(name, options.batch, "bfloat16" if "bfloat16" in name else "auto")
            batch = encoder.prepare(frames)
            torch.backends.cuda.enable_cudnn_sdp("flash" not in name)
            start = time.perf_counter()
            out = encoder.forward(batch).float()
            torch.cuda.synchronize()
            began = time.perf_counter() - start
            first = out if first is None else first
            error = ((out - first).norm(dim=1) / first.norm(dim=1)).max().item()
            took = milliseconds(lambda encoder=encoder, batch=batch: encoder.forward(batch), 15)
            if "graph" in name:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    encoder.forward(batch)
                took = milliseconds(graph.replay, 15)
            memory = torch.cuda.max_memory_allocated() / 1e9
            print(
                f"| {name} | {took:.2f} | {options.batch / took * 1e3:,.0f} | {error:.1e} | {memory:.1f} | {began:.1f} |",
                flush=True,
            )
        except Exception as error:
            print(f"| {name} | failed: {str(error).splitlines()[0][:200]} |", flush=True)


def time_parts(options: argparse.Namespace) -> None:
    print(
        "| pack | how | us a step | us a head-step | kernels | busy us | first steps s | difference |\n|---|---|---|---|---|---|---|---|"
    )
    for members in options.packs:
        plain = None
        for parts in ([], ["tf32"], ["fused"], ["fused", "tf32"]):
            try:
                torch._dynamo.reset()
                learner, rows = make_learner(members)
                torch.backends.cuda.matmul.allow_tf32 = "tf32" in parts
                start = time.perf_counter()
                if "fused" in parts:
                    learner.fuse()
                epoch = learner.run_resident(rows, 0)
                for _ in range(20):
                    next(epoch)
                torch.cuda.synchronize()
                began = time.perf_counter() - start
                weights = learner.pack.weights.clone()
                plain = weights if plain is None else plain
                error = ((weights - plain).norm() / plain.norm()).item()
                learner.counter.zero_()
                wall = time_steps(learner, rows) * 1e3
                epoch = learner.run_resident(rows, 1)
                count, busy = show_profile(lambda epoch=epoch: next(epoch), 10, 0)
                name = " + ".join(parts) or "as it is"
                print(
                    f"| {members} | {name} | {wall:.0f} | {wall / members:.1f} | {count:.0f} | {busy:.0f} | {began:.1f} | {error:.1e} |",
                    flush=True,
                )
            except Exception as error:
                print(
                    f"| {members} | {' + '.join(parts)} | failed: {str(error).splitlines()[0][:200]} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("ceilings", "learner", "encoder", "variants", "steps"))
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[
            "plain",
            "silu",
            "silu-patch",
            "silu-patch-flash",
            "quick-compiled",
            "silu-patch-compiled",
            "silu-patch-bfloat16",
            "silu-patch-bfloat16-compiled",
        ],
    )
    options = parser.parse_args()
    print_ceilings()
    {
        "ceilings": lambda o: None,
        "learner": profile_learner,
        "encoder": profile_encoder,
        "variants": time_variants,
        "steps": time_parts,
    }[options.what](options)


if __name__ == "__main__":
    main()
