"""The page that says what counted launches and bytes would take on a card; see launches.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fake_cuda import Call
from roofline import CARDS, LAUNCH_US, REACHED, Card, seconds
from tools import FIGURE_2

PICTURES = 256
_BATCH = "batch of pictures"
_MEASURED = (
    # card, what, counted as, in microseconds or frames/s, source
    ("H100", "one head, us a step", "eager released step of 1", 1_058, "gpu_h100"),
    ("H100", "fifty heads, us a head-step", "eager released step of 50", 80, "gpu_h100"),
    ("H100", "tower, eager, frames/s", _BATCH, 2_522, "gpu_h100"),
    ("H100", "from uint8 frames, eager, frames/s", "whole", 2_465, "gpu_h100"),
    ("H200", "one head, us a step", "eager released step of 1", 1_006, "gpu_h200"),
    ("H200", "fifty heads, us a head-step", "eager released step of 50", 73, "gpu_h200"),
    ("H200", "tower, eager, frames/s", _BATCH, 2_646, "gpu_h200"),
)
_KERNELS = {"eager released step of 1": 488, "eager released step of 50": 466}

Counts = dict[str, list[Call]]


def page(counts: Counts, before: Counts, tables: str, commits: tuple[str, str]) -> Iterator[str]:
    """Lines of the page.

    Args:
        counts: Of `launches.count_all`.
        before: Likewise, of the code before.
        tables: What `launches.print_counts` prints.
        commits: Of the code before, and of this code.
    """
    yield from (
        "# Launches, bytes and a roofline, November 2026: computed, not measured",
        "",
        "`python benchmarks/launches.py --before benchmarks/results/launches_before.json "
        "--page benchmarks/results/roofline_202611.md`",
        "",
        f"Before: {commits[0]}. Now: {commits[1]}. **No GPU took part.** The code itself ran on "
        "tensors without values on `cuda` (benchmarks/fake_cuda.py),",
        "and its calls were counted. A launch is a call of aten that is neither a view nor new "
        "memory, or one of our Triton kernels; a sort, a large sum or Adam",
        "of many heads is one launch here and may be several kernels on a card. Bytes are each "
        "operand and each result once (of a gather what it returns), without",
        "what a cache saves; those of our Triton kernels follow from their operands' sizes "
        "(fused_counts.py, written apart, agrees to 2 %). The "
        "recipe is `paper` (CVaR, SAM), 768 wide, three blocks, batch 32;",
        f"the encoder ViT-L/14 in float16 on {PICTURES} pictures of 112x112. MB and GFLOP are a "
        "head's, or a batch's of pictures. `eager` is the step where our kernels",
        "are not used (docs/training.md).",
        "",
        "## Counted",
        tables,
        "",
        "## Computed times",
        "Each call takes the longest of a launch within a graph (1 to 2 us: the two ends of each "
        "range), its bytes at the card's rate, and its products at the",
        "card's peak. That is a bound from below. Under *reached* rates are what a large copy and "
        "large products reached of an H100's",
        "([measured](gpu_h100_202611.md): "
        + ", ".join(f"{name} {share:.2f}" for name, share in REACHED.items())
        + "); that other cards reach the same shares is an assumption.",
        "",
    )
    yield from _times(counts, before)
    yield from ("", "Sources of the cards' limits, dense products:", "")
    for card in CARDS.values():
        rates = ", ".join(f"{kind} {rate / 1e12:g}" for kind, rate in card.flop_s.items())
        yield f"- {card.name}: {card.bytes_s / 1e12:g} TB/s; TFLOP/s {rates} ({card.source})."
    yield ""
    yield from _against_measured(before)
    yield _if_as_far_off(counts, before)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _times(counts: Counts, before: Counts) -> Iterator[str]:
    names = list(CARDS)
    yield _row("", "", *names, "aim on an H100")
    yield "|" + "---|" * (len(names) + 3)
    one, fifty = "step of 1", "step of 50"
    wanted: Sequence[tuple[str, str, Callable[[float], float], str]] = (
        ("one head, us a step", one, lambda s: s * 1e6, "<= 100"),
        ("fifty heads, us a head-step", fifty, lambda s: s * 1e6 / 50, ""),
        ("Figure 2 by that, minutes", fifty, lambda s: s / 50 * FIGURE_2 / 60, "<= 15"),
        ("tower, frames/s", _BATCH, lambda s: PICTURES / s, "3,400"),
        ("from uint8 frames, frames/s", "whole", lambda s: PICTURES / s, ""),
        ("preparation, ms a batch", "preparation", lambda s: s * 1e3, ""),
    )
    for what, name, unit, aim in wanted:
        for when, found in (("before", before), ("now", counts)):
            calls = _chosen(found, name)
            for how, reached in (("", False), (", reached", True)):
                cells = [_range(calls, CARDS[card], unit, reached=reached) for card in names]
                yield _row(what, when + how, *cells, aim)


def _chosen(counts: Counts, name: str) -> list[Call]:
    """Calls of a row: a step, the tower without preparation, that alone, or both."""
    if name not in ("whole", "preparation", _BATCH):
        return counts[name] if name in counts else counts[name.removeprefix("eager ")]
    calls = counts[_BATCH]
    if name == "whole":
        return calls
    return [call for call in calls if (call.part == "preparation") == (name == "preparation")]


def _range(calls: list[Call], card: Card, unit: Callable[[float], float], *, reached: bool) -> str:
    found = sorted(unit(seconds(calls, card, launch, reached=reached)) for launch in LAUNCH_US)
    digits = 0 if found[1] >= 100 else 1
    shown = dict.fromkeys(f"{value:,.{digits}f}" for value in found)
    return " to ".join(shown)


def _against_measured(before: Counts) -> Iterator[str]:
    yield from (
        "## Against what lent cards took",
        "The code before, of which an H100 and an H200 ran an earlier commit of the same step "
        "(recipe `released`) and tower: how many times as long it took as is",
        "computed here. The H200 is computed with 4.8 TB/s and the H100's products.",
        "",
        _row("card", "what", "measured", "computed", "off", "computed, reached", "off", "source"),
        "|" + "---|" * 8,
    )
    for name, what, counted, found, source in _MEASURED:
        card, cells = CARDS[name], []
        calls = _chosen(before, counted)
        heads = 50 if counted.endswith("50") else 1
        is_rate = "frames/s" in what
        for reached in (False, True):
            times = [seconds(calls, card, launch, reached=reached) for launch in LAUNCH_US]
            values = [PICTURES / t if is_rate else t * 1e6 / heads for t in times]
            ratios = sorted(v / found if is_rate else found / v for v in values)
            cells.append(" to ".join(dict.fromkeys(f"{v:,.0f}" for v in sorted(values))))
            cells.append(" to ".join(dict.fromkeys(f"{ratio:.2f}x" for ratio in ratios)))
        yield _row(name, what, f"{found:,}", *cells, f"{source}_202611.md")
    yield ""
    for name, kernels in _KERNELS.items():
        calls = len(_chosen(before, name))
        yield (
            f"- {name.removeprefix('eager ')} heads: {kernels} kernels on both cards, "
            f"{calls} launches counted here ({kernels / calls:.2f} kernels a launch)."
        )
    yield from (
        "- So a step took 1.2 to 2.4 times as long as computed, and the tower 1.3 to 1.8 times: "
        "kernels of a step took 2 us or more, and products of 32 rows",
        "  in float32 reach less than large ones. Take the upper end of each range, and more.",
        "- What a Triton kernel of *one* head takes is further from its bound than this shows: it "
        "has 48 programs for 132 multiprocessors, and each adds up 24",
        "  blocks of a product one after the other, which counts neither as a launch nor as bytes. "
        "Only a card can tell; `benchmarks/gpu.py` asks it.",
    )


def _if_as_far_off(counts: Counts, before: Counts) -> str:
    """What the code now would take on an H100 if it were as far from its bound as that before."""
    card, found = CARDS["H100"], []
    for what, counted, now, measured in (
        ("fifty heads", "eager released step of 50", "step of 50", 80 * 50e-6),
        ("tower", _BATCH, _BATCH, PICTURES / 2_522),
    ):
        launch = LAUNCH_US[1]
        off = measured / seconds(_chosen(before, counted), card, launch, reached=True)
        time = off * seconds(_chosen(counts, now), card, launch, reached=True)
        rate = f"{PICTURES / time:,.0f} frames/s"
        shown = f"Figure 2 {time / 50 * FIGURE_2 / 60:.0f} minutes"
        found.append(f"{what} {off:.2f}x: {rate if counted == _BATCH else shown}")
    return (
        f"- If the code now is as far from its bound as that before ({'; '.join(found)}), it "
        "reaches\n  neither 15 minutes nor 3,400 frames/s: an extrapolation, not a bound."
    )
