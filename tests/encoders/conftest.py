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
    # Kinds of open_clip's ViT-B CoCa and SigLIP, with as little in them
    pooled = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    coca = {
        "embed_dim": 32,
        "vision_cfg": vision | pooled,
        "text_cfg": text | {"width": 32, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text | {"width": 32, "attn_pooler_heads": 2},
        "custom_text": True,
    }
    timms = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    siglip = {
        "embed_dim": 96,
        "vision_cfg": {"image_size": 160, "timm_model_pretrained": False} | timms,
        "text_cfg": text | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        "init_logit_bias": -10,
        "custom_text": True,
    }
    for name, config in (("coca_tiny-vit", coca), ("tiny-vit-SigLIP", siglip)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    from raffect.encoders import weights

    known = weights.model_configs()
    known.update({file.stem: file for file in folder.glob("*.json")})
    yield EncoderConfig(model="tiny-vit-quickgelu", weights="random:0", batch_size=4)
    for file in folder.glob("*.json"):
        known.pop(file.stem)
