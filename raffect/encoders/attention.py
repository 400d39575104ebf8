"""A frozen tower's blocks in fewer passes over memory: the same sums, faster.

There is one product for query, key and value, one fused softmax, one QuickGELU, one product for the
patches of a picture, and a last block that computes the class token alone.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

_QUICK = 1.702
"""QuickGELU's factor: ``x * sigmoid(1.702 x)``."""
_ARITHMETIC = 2
"""Version of the sums of open_clip's own transformers; other towers have 1, as all had before.

Raise it when they change by more than their order does, so that no bank holds vectors of both.
"""


def arithmetic_of(tower: nn.Module) -> int:
    """Version of a tower's sums, which a bank records: vectors of two versions are not mixed."""
    return _ARITHMETIC if isinstance(tower, VisionTransformer) else 1


def fuse(tower: nn.Module) -> nn.Module:
    """Everything below, in place, for a tower in float32 whose weights are not rounded yet.

    Towers that are not open_clip's own transformers stay as they are.
    """
    return skip_tokens(fuse_patches(fuse_gelu(fuse_attention(tower))))


class FusedAttention(nn.Module):
    """What an `nn.MultiheadAttention` computes when query, key and value are one tensor.

    It is for evaluation mode. On a CPU torch's own fast path takes 1.17 times as long for ViT-L/14
    in float32, and its other path, which `torch.compile` takes, far longer (docs/decisions.md).
    Only rounding differs.

    Args:
        attention: Batch first, without extra biases; its weights are shared, not copied.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        # On "meta" the new Linear has no memory of its own before it takes the weights over.
        self.qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        assert attention.in_proj_weight is not None
        self.qkv.weight, self.qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out = attention.out_proj

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
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
        # Query, key and value, each (pictures, heads, tokens, width of a head).
        projected = self.qkv(x).view(pictures, tokens, 3, self.heads, width // self.heads)
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(pictures, tokens, width)), None

    def first(self, x: Tensor) -> Tensor:
        """Attention of each picture's first token to all tokens.

        No token is projected to a key or a value. A query ``q`` scores ``q . (K x + b)``, which is
        ``(K' q) . x`` and a number that all tokens share, so it falls out of the softmax; its
        answer, a mean of values, is the value of the tokens' mean.

        Its one head is as wide as a token. On CUDA that is too wide for flash attention, which ends
        at 256; torch takes its memory-efficient kernel, which holds up to 65,536.

        Args:
            x: Shape (pictures, tokens, width).

        Returns:
            Shape (pictures, 1, width).
        """
        pictures, _, width = x.shape
        depth = width // self.heads
        weight_q, weight_k, weight_v = self.qkv.weight.view(3, self.heads, depth, width)
        bias_q, _, bias_v = self.qkv.bias.chunk(3)
        # A query of each head, as a direction among tokens.
        q = linear(x[:, 0], weight_q.flatten(0, 1), bias_q).view(pictures, self.heads, depth)
        q = torch.einsum("phd,hdw->phw", q, weight_k)
        # Heads share the tokens, so they are the queries of one head as wide as a token.
        tokens = x[:, None]
        means = scaled_dot_product_attention(q[:, None], tokens, tokens, scale=depth**-0.5)[:, 0]
        mixed = torch.einsum("phw,hdw->phd", means, weight_v).reshape(pictures, 1, width)
        return self.out(mixed + bias_v)


def fuse_attention(tower: nn.Module) -> nn.Module:
    """Replace the self-attention of a transformer's blocks in place.

    Other towers stay as they are.
    """
    for block in tower.modules():
        # A block with ln_1_kv attends to other tokens than its own, as a pooler does.
        if (
            isinstance(block, ResidualAttentionBlock)
            and not hasattr(block, "ln_1_kv")
            and type(block.attn) is nn.MultiheadAttention
            and _is_plain(block.attn)
        ):
            block.add_module("attn", FusedAttention(block.attn))
    return tower


class LastBlock(nn.Module):
    """A last block whose tower reads the class token alone, as CLIP's do: no other is computed.

    Args:
        block: Its attention is fused; its modules are shared, not copied.
    """

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        """The class token behind the block.

        Args:
            x: Shape (pictures, tokens, width), the class token first.
            attn_mask: Not available.

        Returns:
            Shape (pictures, 1, width).
        """
        block = self.block
        attention: Any = block.attn
        token = x[:, :1] + block.ls_1(attention.first(block.ln_1(x)))
        return token + block.ls_2(block.mlp(block.ln_2(token)))


def skip_tokens(tower: nn.Module) -> nn.Module:
    """Replace the last block in place, if its attention is fused and its tower reads one token.

    Towers that pool by means or by attention, and those that return their tokens, read all.
    """
    if (
        isinstance(tower, VisionTransformer)
        and tower.pool_type == "tok"
        and tower.attn_pool is None
        and not tower.output_tokens
    ):
        blocks = tower.transformer.resblocks
        last = blocks[-1]
        if isinstance(last, ResidualAttentionBlock) and isinstance(last.attn, FusedAttention):
            blocks[-1] = LastBlock(last)
    return tower


@torch.no_grad()
def fuse_gelu(tower: nn.Module) -> nn.Module:
    """Compute QuickGELU as SiLU, in place; both factors go into the Linears around it.

    ``x * sigmoid(1.702 x) = silu(1.702 x) / 1.702``. Call it in float32, before weights are
    rounded. open_clip's three kernels over the widest tensors take a fifth of ViT-L/14 on an H200.
    """
    for block in tower.modules():
        if isinstance(block, ResidualAttentionBlock) and isinstance(block.mlp.gelu, QuickGELU):
            first, second = block.mlp.c_fc, block.mlp.c_proj
            assert isinstance(first, nn.Linear)
            assert isinstance(second, nn.Linear)
            # Before SiLU times the factor, after it divided by the factor.
            first.weight.mul_(_QUICK)
            first.bias.mul_(_QUICK)
            second.weight.div_(_QUICK)
            block.mlp.add_module("gelu", nn.SiLU(inplace=True))
    return tower


class Patches(nn.Module):
    """A patch embedding as one product.

    Its windows lie side by side, where a convolution's kernels expect them to overlap.

    Args:
        conv: Its kernel is as large as its stride; its weights are shared, not copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.side, self.weight = conv.kernel_size[0], conv.weight

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) to (B, width, S / side, S / side)."""
        pictures, channels, height, width = x.shape
        rows, columns = height // self.side, width // self.side
        # Cut off what fills no patch, then bring the pixels of each patch together.
        whole = x[:, :, : rows * self.side, : columns * self.side]
        windows = whole.reshape(pictures, channels, rows, self.side, columns, self.side)
        flat = windows.permute(0, 2, 4, 1, 3, 5).reshape(pictures, rows * columns, -1)
        out = linear(flat, self.weight.flatten(1))
        return out.transpose(1, 2).view(pictures, -1, rows, columns)


def fuse_patches(tower: nn.Module) -> nn.Module:
    """Replace the patch embedding of open_clip's own transformers in place.

    Other towers stay as they are.
    """
    # A patch embedding: square, without overlap, padding or bias.
    conv = getattr(tower, "conv1", None)
    if (
        isinstance(tower, VisionTransformer)
        and type(conv) is nn.Conv2d
        and conv.kernel_size == conv.stride
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.bias is None
        and conv.padding == (0, 0)
    ):
        tower.add_module("conv1", Patches(conv))
    return tower


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    """Whether `FusedAttention` has all that it computes."""
    return (
        attention.batch_first
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
