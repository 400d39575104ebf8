"""Launches, bytes and arithmetic of a training step by Triton kernels, counted from shapes.

    python benchmarks/fused_counts.py            # heads of the paper, batch 32, on three cards

All of it is computed; no GPU is used. A time is `launches` times what one costs in a CUDA graph,
plus the longer of the bytes at the memory's bandwidth and the arithmetic at float32's rate without
tensor cores. Both rates are those of the makers' data sheets; no kernel reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass

from roofline import CARDS
from tools import FIGURE_2

from raffect.heads.fused_layout import column_block, layers_of
from raffect.heads.head import MlpSpec

SHOWN = ("A6000", "A100", "H100")
PAPER = MlpSpec(768, 768, 3, 8)
TORCH_LAUNCHES = 9
"""Of the gather of a batch: counted in tests/heads/test_fused.py."""


@dataclass(frozen=True)
class StepCount:
    """Of one step of all heads."""

    launches: int
    bytes: int
    operations: int

    def seconds(self, card: str, per_launch: float) -> float:
        """Computed time on a card of `roofline.CARDS`."""
        limits = CARDS[card]
        busy = max(self.bytes / limits.bytes_s, self.operations / limits.flop_s["float32"])
        return self.launches * per_launch + busy


def count_step(heads: int, spec: MlpSpec = PAPER, batch: int = 32, sharp: bool = True) -> StepCount:
    """Count a step with a loss of classes or labels, which has a kernel of its own.

    Bytes: each kernel reads what it needs once (column blocks of one layer share inputs by the
    cache) and writes its results once. For a matrix of M numbers, i inputs, o outputs, v numbers in
    vectors and B samples:

    - forward: reads M + v + B i, writes 2 B o (outputs and normalised ones; the last Linear B o);
      SAM's second pass also reads the first one's B i + B o and v gradients
    - backward through a Linear behind a block: reads M + B o + 2 B i, writes B i; the second pass
      also reads B i + B o
    - norm of SAM: reads B i + B o
    - update: reads and writes weight and both of Adam's, 6 (M + v), reads B i + B o + v

    and 10 bytes for each number of the batch, which is gathered in float16 and widened.

    Operations: two a term; of Linears forward 2 B M, backward as much without the first, gradient
    as much; SAM's lifts B B (i a column block + o) forward and the like backward.
    """
    layers, passes = layers_of(spec), 2 if sharp else 1
    columns = column_block(heads, spec.width)
    numbers = terms = 0
    for index, layer in enumerate(layers):
        i, o, v = layer.inputs, layer.outputs, layer.count
        matrix, is_last = i * o, index == spec.depth
        samples = batch * (i + o)
        blocks = -(-o // (16 if is_last else columns))
        # Forward
        numbers += passes * (matrix + v + batch * i + batch * o * (1 if is_last else 2))
        terms += passes * batch * matrix
        # Backward through every Linear but the first
        if index > 0:
            numbers += passes * (matrix + batch * o + 3 * batch * i)
            terms += passes * batch * matrix
        if sharp:
            numbers += 2 * samples + v + (samples if index > 0 else 0)
            terms += batch * batch * (i * blocks + o + i + o)
            if index > 0:
                terms += batch * batch * (o * -(-i // columns) + i)
        # The update
        numbers += 6 * (matrix + v) + samples + v
        terms += batch * matrix
    numbers += passes * 2 * batch * spec.outputs
    total = heads * (4 * numbers + 10 * batch * spec.dim)
    kernels = passes * (2 * spec.depth + 2) + (1 if sharp else 0) + len(layers) + 1
    return StepCount(kernels + TORCH_LAUNCHES, total, heads * 2 * terms)


def lines() -> list[str]:
    """A table, and Figure 2."""
    out = ["| heads | launches | MB a head | Mflop a head | card | us a head, 1 to 2 us a launch |"]
    out.append("|---|---|---|---|---|---|")
    for heads in (1, 10, 50):
        count = count_step(heads)
        sizes = f"{count.bytes / heads / 1e6:.1f} | {count.operations / heads / 1e6:.0f}"
        for card in SHOWN:
            low, high = (count.seconds(card, each) / heads * 1e6 for each in (1e-6, 2e-6))
            out.append(f"| {heads} | {count.launches} | {sizes} | {card} | {low:.1f}-{high:.1f} |")
    low, high = (count_step(50).seconds("H100", each) / 50 * FIGURE_2 / 60 for each in (1e-6, 2e-6))
    return [*out, "", f"Figure 2, fifty heads at a time on an H100: {low:.1f}-{high:.1f} minutes."]


if __name__ == "__main__":
    print("\n".join(lines()))
