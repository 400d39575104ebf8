"""What each saving of the image tower gives on a CPU, and other runtimes beside it.

    python benchmarks/tower.py --model ViT-B-16-quickgelu --precision bfloat16

Builds of one tower take turns, forward and backward, on one thread; a figure is processor time, so
that other work on the machine matters less. The first build is what the others are compared with:

    open_clip    as open_clip makes it
    attention    with one product for query, key and value, as raffect had until November 2026
    first        that, and keys and values of the last block's class token alone
    tokens       that, and no key or value at all in the last block (`FusedAttention.first`)
    silu         attention, and QuickGELU as SiLU in place
    patches      attention, and the patch embedding as a product
    inplace      attention, and sums of a block written over their operand
    folded       attention, and factors and offsets of LayerNorm in the product behind it
    scaled       attention, and the scale of a query in its product
    raffect      what is used: attention, tokens, silu and patches
    onnxruntime, openvino   open_clip's tower in another runtime (see runtimes.py)

Random weights. "Difference" is the largest |v - v32| / |v32| of a picture, v32 being open_clip's in
float32.
"""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path

import torch
from runtimes import RUNTIMES, OnnxRuntime, OpenVino
from tools import new_parser, print_header, print_machine, print_row, scratch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from raffect.config import EncoderConfig
from raffect.encoders.attention import (
    FusedAttention,
    fuse,
    fuse_attention,
    fuse_gelu,
    fuse_patches,
    skip_tokens,
)
from raffect.encoders.tower import build_model
from raffect.encoders.weights import resolve

DROPPED = ("first", "inplace", "folded", "scaled")
BUILDS = ("open_clip", "tokens", "silu", "patches", *DROPPED, "raffect", *RUNTIMES)


class Variant(nn.Module):
    """A block with one saving that raffect does not use."""

    def __init__(self, block: nn.Module, saving: str) -> None:
        super().__init__()
        self.block, self.saving, self.scale = block, saving, None
        attention: FusedAttention = block.attn
        if saving == "folded":
            fold(block.ln_1, attention.qkv)
            fold(block.ln_2, block.mlp.c_fc)
        if saving == "scaled":
            width, self.scale = attention.qkv.in_features, 1.0
            factor = (width // attention.heads) ** -0.5
            attention.qkv.weight[:width].mul_(factor)
            attention.qkv.bias[:width].mul_(factor)

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        block = self.block
        mixed = self.attend(block.ln_1(x))
        if self.saving == "inplace":
            x = mixed.add_(x)
            return block.mlp(block.ln_2(x)).add_(x)
        x = (x[:, :1] if self.saving == "first" else x) + mixed
        return x + block.mlp(block.ln_2(x))

    def attend(self, x: Tensor) -> Tensor:
        """As `FusedAttention`, for the first token where that is the saving."""
        attention, (pictures, tokens, width) = self.block.attn, x.shape
        shape = (pictures, tokens, -1, attention.heads, width // attention.heads)
        if self.saving == "first":
            weight, bias = attention.qkv.weight, attention.qkv.bias
            q = linear(x[:, :1], weight[:width], bias[:width]).view(pictures, 1, *shape[3:])
            q = q.transpose(1, 2)
            k, v = linear(x, weight[width:], bias[width:]).view(shape).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = attention.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, scale=self.scale)
        return attention.out(mixed.transpose(1, 2).reshape(pictures, -1, width))


def fold(norm: nn.Module, product: nn.Linear) -> None:
    """Factors and offsets of a LayerNorm into the product behind it."""
    product.bias.add_(product.weight @ norm.bias)
    product.weight.mul_(norm.weight)
    norm.weight = norm.bias = None


@torch.no_grad()
def build(name: str, tower: nn.Module, example: Tensor, folder: Path, precision: str) -> nn.Module:
    """One build of a tower, from open_clip's in float32."""
    tower = copy.deepcopy(tower)
    if name == "onnxruntime":
        return OnnxRuntime(tower, example, folder)
    if name == "openvino":
        return OpenVino(tower, example, precision)
    if name == "raffect":
        fuse(tower)
    elif name != "open_clip":
        fuse_attention(tower)
    steps = {"tokens": skip_tokens, "silu": fuse_gelu, "patches": fuse_patches}
    if name in steps:
        steps[name](tower)
    if name in DROPPED:
        blocks = tower.transformer.resblocks
        for k in range(len(blocks) - 1 if name == "first" else 0, len(blocks)):
            blocks[k] = Variant(blocks[k], name)
    return tower.to(getattr(torch, precision))


@torch.inference_mode()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--builds", nargs="+", default=BUILDS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)

    # Builds, and what they compute
    config = EncoderConfig(model=options.model, weights="random:0")
    plain = build_model(resolve(config)).visual.eval().requires_grad_(False)
    side, dtype = plain.image_size[0], getattr(torch, options.precision)
    example = torch.randn(options.batch, 3, side, side)
    exact, pictures = plain(example), example.to(dtype)
    names, towers = ["attention", *options.builds], {}
    with scratch("tower") as folder, torch.inference_mode(False):
        for name in names:
            towers[name] = build(name, plain, example.clone(), folder, options.precision)
    vectors = {name: tower(pictures).float() for name, tower in towers.items()}

    # Their time, in turns
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.repeats):
        for name in names[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            towers[name](pictures)
            times[name].append(time.process_time() - start)
    print(f"{options.model}, {options.precision}, batch {options.batch}, {options.repeats} turns\n")
    print_header("build", "CPU ms a picture", "times as fast (quartiles)", "difference")
    for name in names:
        ratios = [first / own for first, own in zip(times["attention"], times[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        error = ((vectors[name] - exact).norm(dim=1) / exact.norm(dim=1)).max()
        speed = 1e3 * statistics.median(times[name]) / options.batch
        ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        print_row(name, f"{speed:.1f}", ratio, f"{error:.1e}")
    print_machine()


if __name__ == "__main__":
    main()
