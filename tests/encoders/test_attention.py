import open_clip
import pytest
import torch
from torch import nn

from raffect.encoders.attention import (
    FusedAttention,
    Patches,
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


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "coca_ViT-B-32", "RN50"])
def test_a_fused_tower_sees_what_open_clips_sees(name):
    torch.manual_seed(0)
    tower = open_clip.create_model(name, pretrained=None).visual.eval()
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


@pytest.mark.parametrize(("name", "blocks"), [("ViT-S-32-alt", 0), ("ViT-B-32-quickgelu", 12)])
def test_quickgelu_as_silu_is_the_same_function(name, blocks):
    torch.manual_seed(0)
    tower = open_clip.create_model(name, pretrained=None).visual.double().eval()
    pictures = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.inference_mode():
        expected = tower(pictures)
    found = fuse_gelu(tower)(pictures)
    assert [type(module) for module in tower.modules()].count(nn.SiLU) == blocks
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "side", "replaced"),
    [("ViT-B-32-quickgelu", 224, True), ("ViT-S-16", 224, True), ("RN50", 224, False)],
)
def test_a_patch_embedding_as_a_product_is_the_same_function(name, side, replaced):
    torch.manual_seed(0)
    tower = open_clip.create_model(name, pretrained=None).visual.double().eval()
    pictures = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        expected = tower(pictures)
        found = fuse_patches(tower)(pictures)
    assert isinstance(tower.conv1, Patches) == replaced
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
