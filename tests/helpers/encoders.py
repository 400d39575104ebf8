"""Pictures, and open_clip's own vectors of them."""

from __future__ import annotations

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from raffect.config import EncoderConfig
from raffect.encoders.tower import build_model
from raffect.encoders.weights import resolve

RNG = np.random.default_rng(0)


def faces(*sizes):
    """A smooth random picture of each size (height, width)."""
    out = []
    for height, width in sizes:
        small = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        out.append(np.asarray(small.resize((width, height))))
    return out


def reference(config: EncoderConfig, frames) -> np.ndarray:
    """open_clip's own transform and `encode_image` of the untouched model, in float32."""
    model = build_model(resolve(config)).eval()
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    batch = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
    with torch.no_grad():
        return model.encode_image(batch).numpy()
