"""Self-attention of a frozen tower as one product for query, key and value and one fused softmax: the same sums, faster."""

from __future__ import annotations

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class FusedAttention(nn.Module):
    """What an `nn.MultiheadAttention` computes in evaluation mode when query, key and value are one tensor.

    On a CPU torch's own fast path takes 1.17 times as long for ViT-L/14 in float32, and its other path, which `torch.compile` takes, far longer
    (docs/decisions.md). Only rounding differs.

    Args:
        attention: Batch first, without extra biases; its weights are shared, not copied.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        assert attention.in_proj_weight is not None
        self.qkv.weight, self.qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out = attention.out_proj

    def forward(self, x: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, attn_mask: Tensor | None = None) -> tuple[Tensor, None]:
        """Attention of tokens to each other.

        Args:
            x: Shape (pictures, tokens, width).
            key: ``x`` itself, as `nn.MultiheadAttention` is called.
            value: Likewise.
            need_weights: Not available.
            attn_mask: Added before the softmax.

        Returns:
            Shape of ``x``, and None for the weights.
        """
        pictures, tokens, width = x.shape
        q, k, v = self.qkv(x).view(pictures, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(pictures, tokens, width)), None


def fuse_attention(tower: nn.Module) -> nn.Module:
    """Replace the self-attention of a transformer's blocks in place; other towers stay as they are."""
    for block in tower.modules():
        if isinstance(block, ResidualAttentionBlock) and not hasattr(block, "ln_1_kv") and type(block.attn) is nn.MultiheadAttention and _is_plain(block.attn):
            block.add_module("attn", FusedAttention(block.attn))
    return tower


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return attention.batch_first and attention.in_proj_weight is not None and attention.in_proj_bias is not None and attention.bias_k is None and not attention.add_zero_attn
