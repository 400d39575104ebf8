"""Largest relative difference of our vectors to open_clip's own transform + `encode_image`.

    uv run python scripts/check_encoder.py --model ViT-L-14-quickgelu --weights random:0
        --frames 64 [--device cuda] [--precision float16]

Theirs are computed in float32 on the CPU.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from raffect.config import EncoderConfig
from raffect.datasets.synthetic.course import sample_pose
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face
from raffect.datasets.synthetic.looks import draw_look
from raffect.encoders.tower import build_model, load_encoder
from raffect.encoders.weights import resolve

BATCH = 16


def draw_frames(count: int) -> list[np.ndarray]:
    """Faces of random looks, units and poses."""
    rng, frames = np.random.default_rng(0), []
    for k in range(count):
        look, units = draw_look(rng), dict(zip(DRAWN_UNITS, rng.random(16), strict=True))
        frames.append(draw_face(look, units, sample_pose(rng), k))
    return frames


def encode_ours(config: EncoderConfig, device: str, frames: list[np.ndarray]) -> Tensor:
    """raffect's vectors, float32 on the CPU; its batches have one size, the last one padded."""
    encoder, out = load_encoder(config, device), []
    for start in range(0, len(frames), BATCH):
        batch = encoder.prepare(frames[start : start + BATCH])
        out.append(encoder.forward(batch)[: len(frames) - start])
    return torch.cat(out).cpu().float()


def encode_theirs(config: EncoderConfig, frames: list[np.ndarray]) -> Tensor:
    """open_clip's vectors."""
    model, out = build_model(resolve(config)).eval(), []
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    for start in range(0, len(frames), BATCH):
        pictures = [Image.fromarray(frame) for frame in frames[start : start + BATCH]]
        out.append(model.encode_image(torch.stack([transform(picture) for picture in pictures])))
    return torch.cat(out)


@torch.inference_mode()
def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    precisions = ("float32", "float16", "bfloat16")
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=precisions)
    args = parser.parse_args()

    # Both sides
    frames = draw_frames(args.frames)
    config = EncoderConfig(
        model=args.model, weights=args.weights, precision=args.precision, batch_size=BATCH
    )
    ours, theirs = encode_ours(config, args.device, frames), encode_theirs(config, frames)

    # Differences
    relative = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
    largest = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    what = f"{args.model} {args.weights}, {len(frames)} frames, {args.precision} on {args.device}"
    of_vector = f"largest relative difference of a vector {relative:.2e}"
    print(f"{what}: {of_vector}, of an element to the largest element {largest:.2e}")


if __name__ == "__main__":
    main()
