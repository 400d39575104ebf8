"""Frames/s of the image tower, from a script such as people write to the whole extraction, side by side in one run.

    python benchmarks/encode.py [--device cuda] [--frames 4096] [--batches 128 256 512] [--towers open_clip raffect raffect-compiled]

(a) official-style: PIL and open_clip's transform in DataLoader workers, the eager model, blocking copies, batch after batch.
(b) the bare tower on tensors that are ready, in several builds: as open_clip makes it, with raffect's attention, compiled, in half
    precision: what the others are measured against.
(c) raffect's encoder from uint8 frames of 112x112 in memory: copy, resize, normalise, tower, vectors back.
(d) raffect's extraction from JPEG files to a bank, steady rate; needs Ray, and is left out where there is none.

Random weights: speed does not depend on them. Rates of (b) and (c) are the best of --repeats; (a) and (d) run once, (a) with warm workers, (d) on one device. MFU is against a large matrix product of the same precision,
measured in the same run. "Difference" is the largest |v - v32| / |v32| of a frame, v32 being open_clip's tower in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from raffect.config import EncoderConfig, ExtractConfig, PrepareConfig
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from raffect.encoders.tower import Encoder, build_model, load_encoder
from raffect.encoders.weights import resolve

SIDE, WEIGHTS = 112, "random:0"
FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max


class Float8Linear(nn.Module):
    """A Linear whose weights and inputs are rounded to float8 (e4m3), each row with its own scale: its error, not its speed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(to_float8(linear.weight), requires_grad=False),
            linear.bias,
        )

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
    encoder = load_encoder(
        dataclasses.replace(
            config, precision="bfloat16" if name == "bfloat16" else config.precision
        ),
        device,
    )
    if name.startswith("open_clip"):
        encoder.tower = (
            build_model(resolve(config))
            .visual.to(device, getattr(torch, encoder.identity.precision))
            .eval()
            .requires_grad_(False)
        )
    if name == "float8":
        replace_linears(encoder.tower)
    if name.endswith("compiled"):
        encoder.tower.compile(dynamic=False)
    if name.endswith("tuned"):
        encoder.tower.compile(mode="max-autotune", dynamic=False)
    return encoder


def flops_of(tower: nn.Module) -> float:
    """Multiplications and additions of a ViT for one picture, 162.03e9 for ViT-L/14. torch's own counter misses the attention."""
    width, layers = tower.transformer.width, tower.transformer.layers
    patches = tower.grid_size[0] * tower.grid_size[1]
    tokens, pixels = patches + 1, 3 * tower.patch_size[0] * tower.patch_size[1]
    return (
        layers * (24 * tokens * width**2 + 4 * tokens**2 * width)
        + 2 * patches * pixels * width
        + 2 * width * tower.output_dim
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    one = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / best_time(lambda: one @ one, device, 5)


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


class Files(Dataset):
    """What people write: open, convert, transform."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.transform = (
            paths,
            image_transform_v2(PreprocessCfg(size=224), is_train=False),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]))


@torch.no_grad()
def run_script(
    paths: list[Path], config: EncoderConfig, device: torch.device, batch: int, workers: int
) -> tuple[float, np.ndarray]:
    """(a): frames/s from an empty queue to the last vector, and the vectors."""
    dtype = (
        getattr(torch, config.precision)
        if config.precision != "auto"
        else torch.float16
        if device.type == "cuda"
        else torch.float32
    )
    model = build_model(resolve(config)).to(device, dtype).eval()
    model.encode_image(torch.zeros(batch, 3, 224, 224, device=device, dtype=dtype))
    loader = DataLoader(
        Files(paths), batch_size=batch, num_workers=workers, persistent_workers=workers > 0
    )
    next(iter(loader))  # starts the workers
    out, start = [], time.perf_counter()
    for images in loader:
        out.append(model.encode_image(images.to(device, dtype)).cpu().numpy())
    return len(paths) / (time.perf_counter() - start), np.concatenate(out).astype(np.float32)


def difference(vectors: np.ndarray, exact: np.ndarray) -> float:
    one, other = vectors.astype(np.float64), exact[: len(vectors)].astype(np.float64)
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).max())


def run_extract(
    folder: Path, frames: int, config: EncoderConfig, device: torch.device, batch: int
) -> tuple[float, float]:
    """(d): steady frames/s of a whole extraction, and the bare rate that its own actor measured."""
    from raffect.extraction.extract import extract

    write_synthetic(folder / "faces", max(frames, 200), 0)
    prepare(
        PrepareConfig(
            images=(folder / "faces" / "cropped_aligned",),
            annotations=folder / "faces" / EDITION,
            out=folder / "data",
        )
    )
    shard_rows = max(
        batch, frames // 32 // batch * batch
    )  # many, or what readers had queued before the first one would be the measurement
    summary = extract(
        ExtractConfig(
            manifest=folder / "data" / "manifest.parquet",
            bank=folder / "bank",
            encoder=dataclasses.replace(config, batch_size=batch),
            device=device.type,
            num_actors=1,
            shard_rows=shard_rows,
            limit=frames,
            allow_embedded=True,
        )
    )
    return summary.steady_frames_per_s, summary.bare_frames_per_s


def measure(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, int, float, float | None, float | None, float]]:
    """Rows of the table: what, batch, frames/s, MFU, difference, peak GB of device memory."""
    device, config = (
        torch.device(options.device),
        EncoderConfig(model=options.model, weights=WEIGHTS, precision=options.precision),
    )
    rng = np.random.default_rng(0)
    paths, faces = [], []
    write_synthetic(folder / "some", 200, 0)
    for path in sorted((folder / "some" / "cropped_aligned").rglob("*.jpg"))[: options.frames]:
        paths.append(path)
        faces.append(np.asarray(Image.open(path).convert("RGB")))
    order = rng.integers(0, len(faces), options.frames)
    paths, faces = [paths[k] for k in order], [faces[k] for k in order]
    exact_encoder = build_tower(
        "open_clip",
        dataclasses.replace(config, precision="float32", batch_size=min(options.batches)),
        device,
    )
    seen = min(options.frames, options.compared)
    exact = exact_encoder.encode(faces[:seen])
    flops = flops_of(exact_encoder.tower)
    del exact_encoder

    def memory() -> float:
        return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0

    def forget() -> None:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    for batch in options.batches:
        if "a" in options.sides:
            forget()
            rate, vectors = run_script(paths, config, device, batch, options.workers)
            yield (
                "(a) script with a DataLoader",
                batch,
                rate,
                None,
                difference(vectors[:seen], exact),
                memory(),
            )
        for name in options.towers:
            forget()
            encoder = build_tower(name, dataclasses.replace(config, batch_size=batch), device)
            error = difference(encoder.encode(faces[:seen]), exact)
            if name == "float8":
                yield (
                    f"(b) {name} (rounded: its error, not its speed)",
                    batch,
                    math.nan,
                    None,
                    error,
                    memory(),
                )
                continue
            precision = encoder.identity.precision
            with torch.inference_mode():
                ready, count = encoder.prepare(faces[:batch]), max(1, options.frames // batch)

                rate = (
                    count
                    * batch
                    / best_time(
                        partial(repeat, encoder.forward, ready, count), device, options.repeats
                    )
                )
            mfu = rate * flops / peak_flops(device, getattr(torch, precision))
            yield f"(b) bare tower, {name}, {precision}", batch, rate, mfu, error, memory()
            if "c" in options.sides:
                rate = options.frames / best_time(
                    partial(encoder.encode, faces), device, options.repeats
                )
                yield f"(c) encoder from uint8 frames, {name}", batch, rate, None, error, memory()
            del encoder, ready
        if "d" in options.sides:
            if importlib.util.find_spec("ray") is None:
                print("(d) is left out: Ray is not installed here")
                continue
            rate, bare = run_extract(
                folder / f"extract-{batch}", options.frames, config, device, batch
            )
            yield (
                f"(d) extraction, files to bank (its actor's bare tower: {bare:,.1f}/s)",
                batch,
                rate,
                None,
                None,
                0.0,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float16", "bfloat16", "float32")
    )
    parser.add_argument("--frames", type=int, default=4096 if has_cuda else 32)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[128, 256, 512] if has_cuda else [8]
    )
    parser.add_argument(
        "--towers",
        nargs="+",
        default=[
            "open_clip",
            "raffect",
            "open_clip-compiled",
            "raffect-compiled",
            "raffect-tuned",
            "bfloat16",
            "float8",
        ]
        if has_cuda
        else ["open_clip", "raffect", "bfloat16", "float8"],
    )
    parser.add_argument("--sides", default="acd", help="which of a, c, d beside the bare towers")
    parser.add_argument(
        "--workers", type=int, default=torch.multiprocessing.cpu_count(), help="of the DataLoader"
    )
    parser.add_argument(
        "--compared", type=int, default=64, help="frames whose vectors are compared with float32"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if has_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{where}; torch {torch.__version__}; {options.model}, {options.frames} frames of {SIDE}x{SIDE}\n"
    )
    print("| what | batch | frames/s | MFU | difference | GB |\n|---|---|---|---|---|---|")
    folder = Path(tempfile.mkdtemp(prefix="raffect-encode-"))
    try:
        for name, batch, rate, mfu, error, memory in measure(options, folder):
            cells = [
                "" if math.isnan(rate) else f"{rate:,.2f}",
                f"{mfu:.2f}" if mfu else "",
                f"{error:.1e}" if error is not None else "",
                f"{memory:.1f}" if memory else "",
            ]
            print(f"| {name} | {batch} | {' | '.join(cells)} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
