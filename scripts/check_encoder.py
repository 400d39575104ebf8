"""Largest relative difference of our vectors to open_clip's own transform + `encode_image`, theirs in float32 on the CPU.

uv run python scripts/check_encoder.py --model ViT-L-14-quickgelu --weights random:0 --frames 64 [--device cuda] [--precision float16]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from raffect.config import EncoderConfig
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face, draw_look
from raffect.datasets.synthetic.tree import sample_pose
from raffect.encoders.tower import build_model, load_encoder
from raffect.encoders.weights import resolve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "float16", "bfloat16")
    )
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    frames = [
        draw_face(
            draw_look(rng), dict(zip(DRAWN_UNITS, rng.random(16), strict=True)), sample_pose(rng), k
        )
        for k in range(args.frames)
    ]
    config = EncoderConfig(
        model=args.model, weights=args.weights, precision=args.precision, batch_size=16
    )
    encoder = load_encoder(config, args.device)
    with torch.inference_mode():
        ours = (
            torch.cat(
                [
                    encoder.forward(encoder.prepare(frames[k : k + 16]))[: len(frames) - k]
                    for k in range(0, len(frames), 16)
                ]
            )
            .cpu()
            .float()
        )
        model = build_model(resolve(config)).eval()
        transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        theirs = torch.cat(
            [
                model.encode_image(
                    torch.stack([transform(Image.fromarray(frame)) for frame in frames[k : k + 16]])
                )
                for k in range(0, len(frames), 16)
            ]
        )
    relative = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
    largest = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(
        f"{args.model} {args.weights}, {len(frames)} frames, {args.precision} on {args.device}: largest relative difference of a vector {relative:.2e}, of an element to the largest element {largest:.2e}"
    )


if __name__ == "__main__":
    main()
