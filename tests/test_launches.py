"""Launches and bytes of a step and of a batch of pictures stay at or below the committed page's."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fused_counts
import launches
from fake_cuda import CUDA, Call, Watch, fake_cuda
from roofline import CARDS, seconds

PAGE = Path(launches.__file__).parent / "results" / "roofline_202611.md"


def committed():
    """Launches and MB of each line of the page's first table."""
    cells = re.findall(
        r"^\| ([a-z ]+[\d]*) \|[^|]*\| (\d+) \|[^|]*\| ([\d,.]+) \|", PAGE.read_text(), re.M
    )
    return {name: (int(count), float(size.replace(",", ""))) for name, count, size in cells}


COUNTED = {
    "step of 1": lambda: launches.count_step(1),
    "step of 10": lambda: launches.count_step(10),
    "eager step of 10": lambda: launches.count_step(10, eager=True),
    "batch of pictures": launches.count_encoder,
}


@pytest.mark.parametrize("name", COUNTED)
def test_launches_and_bytes_do_not_creep_up(name):
    calls, (most_launches, most_megabytes) = COUNTED[name](), committed()[name]
    assert 0 < len(calls) <= most_launches
    heads = launches.heads_of(name)
    assert launches.megabytes(calls) / heads <= most_megabytes * 1.001 + 0.05


def test_the_step_of_our_kernels_keeps_to_its_aim():
    assert all(committed()[f"step of {heads}"][0] <= 40 for heads in launches.HEADS)


@pytest.mark.parametrize("heads", [1, 10])
def test_a_count_from_shapes_alone_agrees(heads):
    """Another count of the kernels' step, written apart from this one."""
    ours, theirs = launches.count_step(heads), fused_counts.count_step(heads)
    assert len(ours) == theirs.launches
    assert launches.megabytes(ours) * 1e6 == pytest.approx(theirs.bytes, rel=0.03)
    assert sum(call.flop for call in ours) == pytest.approx(theirs.operations, rel=0.03)


def test_a_head_more_is_no_launch_more():
    one, three = (launches.count_step(heads) for heads in (1, 3))
    assert len(one) == len(three)
    assert launches.megabytes(three) == pytest.approx(3 * launches.megabytes(one), rel=0.01)


def test_an_added_call_is_counted():
    import torch

    with fake_cuda():
        x = torch.zeros(1000, device=CUDA)
        with Watch(captured=True) as watch:
            x.view(10, 100).mul_(2)
            torch.mm(x.view(10, 100), x.view(100, 10))
    scaled, product = watch.calls
    assert (scaled.read, scaled.written, scaled.flop) == (4000, 4000, 0)
    assert (product.read, product.written, product.flop) == (8000, 400, 20_000)


def test_times_are_those_of_the_nearest_limit():
    card = CARDS["H100"]
    tiny = Call("add", "", 4, 4, 0, "float32")
    copy = Call("copy_", "", 10**9, 10**9, 0, "float16")
    product = Call("mm", "", 10, 10, 10**12, "float16")
    assert seconds([tiny, tiny], card, 2.0) == pytest.approx(4e-6)
    assert seconds([copy], card, 2.0) == pytest.approx(2e9 / 3.35e12)
    assert seconds([product], card, 2.0) == pytest.approx(1e12 / 989.4e12)
    assert seconds([copy, product], card, 2.0, reached=True) > seconds([copy, product], card, 2.0)


def test_counts_are_read_as_they_were_saved(tmp_path):
    counts = {"step of 2": [Call("add", "loss", 4, 8, 0, "float32")] * 3}
    launches.save(counts, tmp_path / "counts.json")
    assert launches.load(tmp_path / "counts.json") == counts
