"""Rows of the page that `gpu.py` writes: numbers of gpu_parts.py, and what they should be.

A row whose aim is a *check* must hold; others may fall short. Aims in time were set for an H100.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from raffect.pipelines.gpu_checks import LIMITS


@dataclass(frozen=True)
class Row:
    """A number that is shown.

    Attributes:
        part: Which measures it.
        value: Its name there, and in the part ``roofline``.
        text: What it is.
        bound: ``>=``, ``<=``, or empty for a number without an aim.
        aim: What it should be.
        source: Where the aim stands.
        is_check: Whether it must hold.
        needs_cuda: Whether a CPU can show nothing of it.
    """

    part: str
    value: str
    text: str
    bound: str = ""
    aim: float = 0.0
    source: str = ""
    is_check: bool = False
    needs_cuda: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value reaches the aim; one that is not a number does not."""
        return value >= self.aim if self.bound == ">=" else value <= self.aim


def _check(part: str, value: str, text: str) -> Row:
    return Row(part, value, text, "<=", LIMITS.get(value, 0.0), "must hold", is_check=True)


def _on_card(part: str, value: str, text: str) -> Row:
    """A check that a CPU would pass by comparing it with itself, or by leaving it out."""
    return replace(_check(part, value, text), needs_cuda=True)


def _at_work(part: str, value: str, text: str) -> Row:
    """That a kill came in the middle, without which nothing was shown."""
    return Row(part, value, text, ">=", 1, "else nothing is shown", is_check=True)


_FIRST, _18 = "speed_2cores_202611.md", "issue 18"
ROWS = (
    _on_card("encoder", "encode float32", "float32 vectors off the CPU's, relative"),
    _on_card("encoder", "encode float16", "float16 vectors off the CPU's float32, relative"),
    _on_card("steps", "graph", "tensors with other bytes by a graph than by single steps"),
    _on_card("steps", "waits", "training steps in which the host waits"),
    _on_card("steps", "kernels", "learners whose first batch refused the Triton kernels"),
    _on_card("steps", "kernels forward", "losses by Triton kernels off eager steps', relative"),
    _on_card("steps", "kernels weights", "weights by Triton kernels off eager steps', relative"),
    _on_card("steps", "step", "weights off the CPU's after 3 steps in float64, relative"),
    _on_card("steps", "group", "error of sums over one process, nccl"),
    _on_card("tests", "tests failed", "tests of CUDA that fail"),
    Row("tests", "tests passed", "tests of CUDA that pass", needs_cuda=True),
    _check("extraction", "bank differs", "a bank killed and gone on with has other bytes"),
    _at_work("extraction", "kept shards", "shards on record when it was killed"),
    _check("training", "heads differ", "heads killed and gone on with have other bytes"),
    _at_work("training", "kept states", "states saved when it was killed"),
    Row("tower", "tower", "bare tower, frames/s", ">=", 3400, f"{_18}.2, H100, float16"),
    Row("tower", "mfu", "bare tower, MFU by products of 8192", ">=", 0.61, _FIRST),
    Row("tower", "around", "encoder from uint8 frames, of the bare tower", ">=", 0.98, _FIRST),
    Row("tower", "script", "a script with a DataLoader, frames/s"),
    Row("tower", "tower GB", "encoder, GB of memory at the peak"),
    Row("extraction", "extraction", "extraction, frames/s"),
    Row("extraction", "of bare", "extraction, of its actor's bare tower", ">=", 0.95, _FIRST),
    Row("extraction", "busy", "extraction, share of time the GPU encodes", ">=", 0.95, "design"),
    Row("heads", "one us", "a step of one head, us", "<=", 100, f"{_18}.1, H100"),
    Row("heads", "many us", "a step of 50 heads, us a head", "<=", 30.7, f"{_18}.1, by 15 min"),
    Row("heads", "one launches", "launches by the host, a step of one head", "<=", 1, "one graph"),
    Row("heads", "many launches", "launches by the host, a step of 50 heads", "<=", 1, "one graph"),
    Row("heads", "one ratio", "one head, times as fast as the released code", ">=", 100, _FIRST),
    Row("heads", "many ratio", "50 heads, times as fast a head", ">=", 1000, _FIRST),
    Row("heads", "step GB", "training steps, GB of memory at the peak", needs_cuda=True),
    Row("heads", "figure 2", "Figure 2 by those steps, minutes", "<=", 15, f"{_18}.1, H100"),
    Row("figure 2", "sweep us", "a real sweep cut short, us a head-step"),
    Row("figure 2", "sweep minutes", "Figure 2 by that, minutes", "<=", 15, f"{_18}.1, H100"),
    Row("roofline", "counted launches", "launches counted in a step", "<=", 40, f"{_18}.1"),
    Row("start", "first step", "train to its first step, s", "<=", 3.0, f"{_18}.6"),
    Row("start", "first shard", "extract to its first shard, s", "<=", 7.7, f"{_18}.6"),
)
NOT_QUICK = {"script", "bank differs", "kept shards", "one ratio", "many ratio"}
"""Numbers that quick runs of their parts leave out."""
