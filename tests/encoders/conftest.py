"""A small model that tests of encoders share."""

from __future__ import annotations

import json

import open_clip
import pytest

from raffect.config import EncoderConfig


@pytest.fixture(scope="package")
def tiny_vit(tmp_path_factory):
    """A small CLIP with a text tower and a 224-pixel input, which open_clip knows by name."""
    folder = tmp_path_factory.mktemp("configs")
    vision = {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    for name, quick in (("tiny-vit", False), ("tiny-vit-quickgelu", True)):
        towers = {"vision_cfg": vision, "text_cfg": text}
        config = {"embed_dim": 24, "quick_gelu": quick, **towers}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    from raffect.encoders import weights

    known = weights.model_configs()
    known.update({file.stem: file for file in folder.glob("*.json")})
    yield EncoderConfig(model="tiny-vit-quickgelu", weights="random:0", batch_size=4)
    for file in folder.glob("*.json"):
        known.pop(file.stem)
