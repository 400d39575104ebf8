"""Frames/s of the image tower, from a plain script to the whole extraction, in one run.

    python benchmarks/encode.py [--device cuda] [--frames 4096] [--batches 128 256 512]
        [--towers open_clip raffect raffect-compiled]

(a) official-style: PIL and open_clip's transform in DataLoader workers, the eager model, blocking
    copies, batch after batch.
(b) the bare tower on tensors that are ready, in several builds: as open_clip makes it, with
    raffect's attention, compiled, in half precision: what the others are measured against.
(c) raffect's encoder from uint8 frames of 112x112 in memory: copy, resize, normalise, tower,
    vectors back.
(d) raffect's extraction from JPEG files to a bank, steady rate; needs Ray, and is left out without.

Random weights: speed does not depend on them. Rates of (b) and (c) are the best of --repeats; (a)
and (d) run once, (a) with warm workers, (d) on one device. MFU is against a large matrix product of
the same precision, measured in the same run. "Difference" is the largest |v - v32| / |v32| of a
frame, v32 being open_clip's tower in float32.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import draw_faces
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tools import new_parser, print_header, print_row, scratch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.synthetic.tree import write_synthetic
from raffect.encoders.precision import computes_in
from raffect.encoders.tower import Encoder, build_model, load_encoder
from raffect.encoders.weights import resolve

SIDE, WEIGHTS = 112, "random:0"
FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max
CPU_TOWERS = ["open_clip", "raffect", "bfloat16", "float8"]
CUDA_TOWERS = [
    *("open_clip", "raffect", "open_clip-compiled", "raffect-compiled", "raffect-tuned"),
    *("bfloat16", "float8"),
]

# Builds of the tower


class Float8Linear(nn.Module):
    """A Linear whose weights and inputs are rounded to float8 (e4m3): its error, not its speed.

    Each row has a scale of its own.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(to_float8(linear.weight), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(to_float8(x), self.weight, self.bias)


def to_float8(x: Tensor) -> Tensor:
    """``x`` as float8 holds it, in its own type."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / FLOAT8_MAX
    return ((x.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


def replace_linears(tower: nn.Module) -> None:
    for parent in list(tower.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Float8Linear(child))


def build_tower(name: str, config: EncoderConfig, device: torch.device) -> Encoder:
    """raffect's encoder with its tower in one of several builds."""
    torch._dynamo.reset()  # or a second batch size would be compiled for any size
    precision = "bfloat16" if name == "bfloat16" else config.precision
    encoder = load_encoder(replace(config, precision=precision), device)
    if name.startswith("open_clip"):
        tower = build_model(resolve(config)).visual
        tower = tower.to(device, getattr(torch, encoder.identity.precision))
        encoder.tower = tower.eval().requires_grad_(False)
    if name == "float8":
        replace_linears(encoder.tower)
    if name.endswith("compiled"):
        encoder.tower.compile(dynamic=False)
    if name.endswith("tuned"):
        encoder.tower.compile(mode="max-autotune", dynamic=False)
    return encoder


def flops_of(tower: Any) -> float:
    """Multiplications and additions of a ViT for one picture, 162.03e9 for ViT-L/14.

    torch's own counter misses the attention.
    """
    width, layers = tower.transformer.width, tower.transformer.layers
    patches = tower.grid_size[0] * tower.grid_size[1]
    tokens, pixels = patches + 1, 3 * tower.patch_size[0] * tower.patch_size[1]
    blocks = layers * (24 * tokens * width**2 + 4 * tokens**2 * width)
    return blocks + 2 * patches * pixels * width + 2 * width * tower.output_dim


# Clocks


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of large matrix products, on CUDA ten in a row, since one is over before clocks settle."""
    size, count = (8192, 10) if device.type == "cuda" else (2048, 1)
    one = torch.randn(size, size, device=device, dtype=dtype)
    run = partial(repeat, partial(torch.matmul, one), one, count)
    return count * 2 * size**3 / best_time(run, device, 5)


def repeat(function: Callable[[Tensor], object], argument: Tensor, count: int) -> None:
    for _ in range(count):
        function(argument)


def best_time(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of several runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """GB of device memory at the peak since `forget`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def forget(device: torch.device) -> None:
    """Free what is not in use any more, and start the peak of memory again."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# (a)


class Files(Dataset):
    """What people write: open, convert, transform."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]))


@torch.no_grad()
def run_script(
    paths: Sequence[Path], config: EncoderConfig, device: torch.device, batch: int, workers: int
) -> tuple[float, np.ndarray]:
    """(a): frames/s from an empty queue to the last vector, and the vectors."""
    # The model, warm
    default = "float16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, default if config.precision == "auto" else config.precision)
    model = build_model(resolve(config)).to(device, dtype).eval()
    model.encode_image(torch.zeros(batch, 3, 224, 224, device=device, dtype=dtype))

    # The workers, started
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(Files(paths), batch_size=batch, **options)
    next(iter(loader))

    out, start = [], time.perf_counter()
    for images in loader:
        out.append(model.encode_image(images.to(device, dtype)).cpu().numpy())
    return len(paths) / (time.perf_counter() - start), np.concatenate(out).astype(np.float32)


# (d)


def run_extract(
    folder: Path, frames: int, config: EncoderConfig, device: torch.device, batch: int
) -> tuple[float, float]:
    """(d): steady frames/s of a whole extraction, and the bare rate that its actor measured."""
    from raffect.extraction.extract import extract

    # Many shards, or what readers had queued before the first one would be the measurement
    shard_rows = max(batch, frames // 32 // batch * batch)
    extract_config = ExtractConfig(
        manifest=draw_faces(folder, max(frames, 200)),
        bank=folder / "bank",
        encoder=replace(config, batch_size=batch),
        device=device.type,
        num_actors=1,
        shard_rows=shard_rows,
        limit=frames,
        allow_embedded=True,
    )
    summary = extract(extract_config)
    return summary.steady_frames_per_s, summary.bare_frames_per_s


# All of them


@dataclass(frozen=True)
class Result:
    """A row of the table; None where a figure was not measured."""

    what: str
    batch: int
    frames_per_s: float | None = None
    mfu: float | None = None
    difference: float | None = None
    memory_gb: float = 0.0

    def cells(self) -> list[str]:
        """For `print_row`."""
        return [
            self.what,
            str(self.batch),
            "" if self.frames_per_s is None else f"{self.frames_per_s:,.2f}",
            "" if self.mfu is None else f"{self.mfu:.2f}",
            "" if self.difference is None else f"{self.difference:.1e}",
            f"{self.memory_gb:.1f}" if self.memory_gb else "",
        ]


class Comparison:
    """Frames, exact vectors of some of them, and what is measured on them.

    Args:
        options: The command line.
        folder: For drawn faces and banks.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = torch.device(options.device)
        self.config = EncoderConfig(
            model=options.model, weights=WEIGHTS, precision=options.precision
        )
        self.paths, self.faces = self._draw()

        # Vectors of open_clip's tower in float32
        small = min(options.batches)
        config = replace(self.config, precision="float32", batch_size=small)
        encoder = build_tower("open_clip", config, self.device)
        self.compared = min(options.frames, options.compared)
        self.exact = encoder.encode(self.faces[: self.compared])
        self.flops = flops_of(encoder.tower)

    def _draw(self) -> tuple[list[Path], list[np.ndarray]]:
        """Files and pixels of so many frames, some of them several times."""
        frames, some = self.options.frames, self.folder / "some"
        write_synthetic(some, 200, 0)
        paths = sorted((some / "cropped_aligned").rglob("*.jpg"))[:frames]
        faces = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        order = np.random.default_rng(0).integers(0, len(faces), frames)
        return [paths[k] for k in order], [faces[k] for k in order]

    def difference(self, vectors: np.ndarray) -> float:
        """Largest relative distance of a vector to the exact one."""
        exact = self.exact.astype(np.float64)
        distance = np.linalg.norm(vectors[: self.compared].astype(np.float64) - exact, axis=1)
        return float((distance / np.linalg.norm(exact, axis=1)).max())

    def measure(self) -> Iterator[Result]:
        """Rows of the table, batch size after batch size."""
        for batch in self.options.batches:
            if "a" in self.options.sides:
                yield self.measure_script(batch)
            for name in self.options.towers:
                yield from self.measure_tower(name, batch)
            if "d" in self.options.sides:
                yield from self.measure_extract(batch)

    def measure_script(self, batch: int) -> Result:
        """(a)"""
        forget(self.device)
        workers = self.options.workers
        rate, vectors = run_script(self.paths, self.config, self.device, batch, workers)
        error, memory = self.difference(vectors), peak_memory(self.device)
        name = "(a) script with a DataLoader"
        return Result(name, batch, rate, difference=error, memory_gb=memory)

    def measure_tower(self, name: str, batch: int) -> Iterator[Result]:
        """(b) and (c) of one build."""
        forget(self.device)
        encoder = build_tower(name, replace(self.config, batch_size=batch), self.device)
        error = self.difference(encoder.encode(self.faces[: self.compared]))
        memory = peak_memory(self.device)
        if name == "float8":
            title = f"(b) {name} (rounded: its error, not its speed)"
            yield Result(title, batch, difference=error, memory_gb=memory)
            return

        # (b)
        repeats, count = self.options.repeats, max(1, self.options.frames // batch)
        with torch.inference_mode():
            ready = encoder.prepare(self.faces[:batch])
            run = partial(repeat, encoder.forward, ready, count)
            rate = count * batch / best_time(run, self.device, repeats)
        precision, mfu = encoder.identity.precision, None
        if self.device.type == "cuda" or computes_in(precision):  # else it has no peak to speak of
            mfu = rate * self.flops / peak_flops(self.device, getattr(torch, precision))
        title, memory = f"(b) bare tower, {name}, {precision}", peak_memory(self.device)
        yield Result(title, batch, rate, mfu, error, memory)

        # (c)
        if "c" in self.options.sides:
            run = partial(encoder.encode, self.faces)
            rate = self.options.frames / best_time(run, self.device, repeats)
            title, memory = f"(c) encoder from uint8 frames, {name}", peak_memory(self.device)
            yield Result(title, batch, rate, difference=error, memory_gb=memory)

    def measure_extract(self, batch: int) -> Iterator[Result]:
        """(d)"""
        if importlib.util.find_spec("ray") is None:
            print("(d) is left out: Ray is not installed here")
            return
        folder, frames = self.folder / f"extract-{batch}", self.options.frames
        rate, bare = run_extract(folder, frames, self.config, self.device, batch)
        title = f"(d) extraction, files to bank (its actor's bare tower: {bare:,.1f}/s)"
        yield Result(title, batch, rate)


def main() -> None:
    parser = new_parser(__doc__)
    has_cuda = torch.cuda.is_available()
    precisions = ("auto", "float16", "bfloat16", "float32")
    towers, batches = CUDA_TOWERS if has_cuda else CPU_TOWERS, [128, 256, 512] if has_cuda else [8]
    workers, compared = torch.multiprocessing.cpu_count(), "whose vectors are compared with float32"
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument("--precision", default="auto", choices=precisions)
    parser.add_argument("--frames", type=int, default=4096 if has_cuda else 32)
    parser.add_argument("--batches", type=int, nargs="+", default=batches)
    parser.add_argument("--towers", nargs="+", default=towers)
    parser.add_argument("--sides", default="acd", help="which of a, c, d beside the bare towers")
    parser.add_argument("--workers", type=int, default=workers, help="of the DataLoader")
    parser.add_argument("--compared", type=int, default=64, help=f"frames {compared}")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if has_cuda else f"CPU, {torch.get_num_threads()} threads"
    size = f"{options.frames} frames of {SIDE}x{SIDE}"
    print(f"{where}; torch {torch.__version__}; {options.model}, {size}\n")
    print_header("what", "batch", "frames/s", "MFU", "difference", "GB")
    with scratch("encode") as folder:
        for result in Comparison(options, folder).measure():
            print_row(*result.cells())


if __name__ == "__main__":
    main()
