import copy

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raffect.encoders.attention import (
    FusedAttention,
    LastBlock,
    Patches,
    arithmetic_of,
    fuse,
    fuse_attention,
    fuse_gelu,
    fuse_patches,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_torchs(dtype, tolerance, masked):
    torch.manual_seed(0)
    oracle = nn.MultiheadAttention(48, 6, batch_first=True).to(dtype).eval()
    nn.init.normal_(oracle.in_proj_bias)
    x = torch.randn(3, 11, 48, dtype=dtype)
    mask = torch.full((11, 11), -torch.inf, dtype=dtype).triu(1) if masked else None
    with torch.inference_mode():
        expected, _ = oracle(x, x, x, need_weights=False, attn_mask=mask)
        found, _ = FusedAttention(oracle)(x, x, x, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def build_tower(name, **changes):
    """open_clip's image tower of a name, without the text tower, which takes longer to fill."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"] | changes
    return _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False)).eval()


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "coca_ViT-B-32", "RN50"])
def test_a_fused_tower_sees_what_open_clips_sees(name):
    tower = build_tower(name)
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = tower(pictures)
        weights = {tensor.data_ptr() for tensor in tower.parameters()}
        fused = fuse_attention(tower)
        found = fused(pictures)
    outputs = [part if isinstance(part, tuple) else (part,) for part in (found, expected)]
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(FusedAttention) == {"ViT-S-32-alt": 12, "coca_ViT-B-32": 12, "RN50": 0}[name]
    # CoCa's pooler has queries from other tokens than its keys.
    assert kinds.count(nn.MultiheadAttention) == (name == "coca_ViT-B-32")
    assert {tensor.data_ptr() for tensor in fused.parameters()} == weights


@pytest.mark.parametrize(("name", "blocks"), [("ViT-S-32-alt", 0), ("ViT-B-32-quickgelu", 2)])
def test_quickgelu_as_silu_is_the_same_function(name, blocks):
    tower = build_tower(name, layers=2).double()
    pictures = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.inference_mode():
        expected = tower(pictures)
    found = fuse_gelu(tower)(pictures)
    assert [type(module) for module in tower.modules()].count(nn.SiLU) == blocks
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "changes", "replaced"),
    [
        ("ViT-B-32-quickgelu", {"layers": 2}, True),
        ("ViT-S-16", {"layers": 2}, True),
        ("RN50", {"layers": [1, 1, 1, 1]}, False),
    ],
)
def test_a_patch_embedding_as_a_product_is_the_same_function(name, changes, replaced):
    tower = build_tower(name, **changes).double()
    pictures = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.inference_mode():
        expected = tower(pictures)
        found = fuse_patches(tower)(pictures)
    assert isinstance(tower.conv1, Patches) == replaced
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def build_transformer(**changes):
    """A small tower of open_clip's whose every weight counts, biases and factors too."""
    shape = {"image_size": 64, "patch_size": 16, "width": 48, "layers": 3, "heads": 3}
    torch.manual_seed(0)
    tower = VisionTransformer(**shape | {"mlp_ratio": 4.0, "output_dim": 24} | changes)
    for name, weight in tower.named_parameters():
        nn.init.normal_(weight, 1.0 if ".ln_" in name and "weight" in name else 0.0, 0.3)
    return tower.eval().requires_grad_(False)


def difference(tower, oracle, side, dtype=torch.float32):
    """Largest relative distance of a vector to open_clip's."""
    torch.manual_seed(1)
    pictures = torch.randn(4, 3, side, side, dtype=dtype)
    with torch.inference_mode():
        found, expected = tower(pictures), oracle(pictures)
    if isinstance(expected, tuple):  # vectors and tokens
        found, expected = (torch.cat([x.flatten(1) for x in out], 1) for out in (found, expected))
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("activation", [nn.GELU, QuickGELU])
@pytest.mark.parametrize("changes", [{}, {"image_size": 70}, {"patch_size": 32, "layers": 1}])
def test_a_fused_transformer_is_open_clips_to_1e_6(activation, changes):
    oracle = build_transformer(act_layer=activation, **changes)
    tower, side = fuse(copy.deepcopy(oracle)), changes.get("image_size", 64)
    assert isinstance(tower.transformer.resblocks[-1], LastBlock)
    assert difference(tower, oracle, side) < 1e-6
    # In float64 nothing is left of it, so the function is the same.
    oracle = oracle.double()
    assert difference(fuse(copy.deepcopy(oracle)), oracle, side, torch.float64) < 1e-14


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_real_tower_is_open_clips_to_1e_6(name):
    oracle = build_tower(name)
    tower = fuse(copy.deepcopy(oracle))
    assert isinstance(tower.transformer.resblocks[-1], LastBlock)
    assert difference(tower, oracle, 224) < 1e-6


@pytest.mark.parametrize(
    ("changes", "is_skipped"),
    [
        ({"final_ln_after_pool": True}, True),
        ({"ls_init_value": 0.5, "no_ln_pre": True}, True),
        ({"pool_type": "avg"}, False),
        ({"pool_type": "avg", "final_ln_after_pool": True}, False),
        ({"output_tokens": True}, False),
        ({"attentional_pool": True, "attn_pooler_heads": 3}, False),
        ({"attentional_pool": "parallel", "attn_pooler_heads": 3, "output_dim": 48}, False),
        ({"qk_norm": True}, False),
    ],
)
def test_only_towers_that_read_the_class_token_skip_the_others(changes, is_skipped):
    oracle = build_transformer(act_layer=QuickGELU, **changes).double()
    tower = fuse(copy.deepcopy(oracle))
    assert isinstance(tower.transformer.resblocks[-1], LastBlock) == is_skipped
    assert difference(tower, oracle, 64, torch.float64) < 1e-12  # of torch 2.11 2e-13
    assert arithmetic_of(tower) == arithmetic_of(oracle) == 2


def test_the_last_block_has_less_to_do():
    """A twelfth of the sums of a tower of twelve blocks, so nearly the whole last block."""
    oracle = build_transformer(width=96, layers=12, image_size=112)
    pictures = torch.randn(2, 3, 112, 112)
    sums = []
    for tower in (fuse_attention(copy.deepcopy(oracle)), fuse(copy.deepcopy(oracle))):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            tower(pictures)
        sums.append(counter.get_total_flops())
    assert 1 - 1 / 12 < sums[1] / sums[0] < 1 - 0.9 / 12


def test_other_towers_keep_their_sums():
    tower = build_tower("RN50")
    kinds = [type(module) for module in tower.modules()]
    assert [type(module) for module in fuse(tower).modules()] == kinds
    assert arithmetic_of(tower) == 1
