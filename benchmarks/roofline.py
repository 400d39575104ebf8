"""How long launches would take on a card if each reached a limit of it: computed, never measured.

A call takes the longest of three times: that of a launch within a CUDA graph, that of its bytes at
the memory's rate, and that of its products at the arithmetic's. Real kernels reach less, so that
this is a bound from below; `launches.py` writes it beside what lent cards took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fake_cuda import Call

LAUNCH_US = (1.0, 2.0)
"""A kernel that has nearly nothing to do, within a graph: from fewest to most on such cards."""


@dataclass(frozen=True)
class Card:
    """A card's limits.

    Attributes:
        name: As it is sold.
        bytes_s: Of its memory.
        flop_s: Dense products by type; ``tf32`` is float32 on tensor cores.
        source: Where the figures stand.
    """

    name: str
    bytes_s: float
    flop_s: dict[str, float]
    source: str


def _rates(float32: float, tf32: float, half: float) -> dict[str, float]:
    half_rates = {"float16": half * 1e12, "bfloat16": half * 1e12}
    return {"float32": float32 * 1e12, "tf32": tf32 * 1e12, **half_rates}


CARDS = {
    "A6000": Card(
        "RTX A6000",
        768e9,
        _rates(38.7, 77.4, 154.8),
        "NVIDIA Ampere GA102 GPU Architecture, whitepaper, and RTX A6000 datasheet",
    ),
    "A100": Card(
        "A100 80 GB SXM",
        2.039e12,
        _rates(19.5, 156, 312),
        "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM",
    ),
    "H100": Card(
        "H100 80 GB SXM",
        3.35e12,
        _rates(66.9, 494.7, 989.4),
        "NVIDIA H100 Tensor Core GPU Architecture, whitepaper, SXM5",
    ),
    "H200": Card(
        "H200 141 GB SXM",
        4.8e12,
        _rates(66.9, 494.7, 989.4),
        "NVIDIA H200 Tensor Core GPU datasheet; products as of the H100",
    ),
}
REACHED = {"bytes": 2.99 / 3.35, "float32": 51 / 66.9, "tf32": 404 / 494.7, "half": 746 / 989.4}
"""What a large copy and large products reached of an H100's limits in gpu_h100_202611.md.

That other cards reach the same shares is an assumption.
"""


def seconds(calls: Iterable[Call], card: Card, launch_us: float, *, reached: bool = False) -> float:
    """Computed time of calls one after the other.

    Args:
        calls: Of one step or batch.
        card: Where.
        launch_us: The least that a call takes.
        reached: Whether the limits are those that large calls reach; see `REACHED`.
    """
    return sum(_one(call, card, launch_us, reached) for call in calls)


def _one(call: Call, card: Card, launch_us: float, reached: bool) -> float:
    kind = "half" if call.dtype in ("float16", "bfloat16") else call.dtype
    memory, products = (REACHED["bytes"], REACHED.get(kind, 1.0)) if reached else (1.0, 1.0)
    moving = (call.read + call.written) / (card.bytes_s * memory)
    rate = card.flop_s.get(call.dtype, card.flop_s["float32"])
    return max(launch_us * 1e-6, moving, call.flop / (rate * products))
