"""One kernel for pixels: the bits of torch's steps, compiled for every card, never a failure."""

import logging

import pytest
import torch

from raffect.encoders import rounding
from raffect.encoders.rounding import drawn_halves, round_sum

CPU = torch.device("cpu")


@pytest.fixture
def kernel():
    """The module with the kernel, where torch comes with triton."""
    pytest.importorskip("triton")
    from raffect.encoders import rounding_kernel

    return rounding_kernel


def test_steps_round_halves_up_and_stop_at_0_and_255():
    coarse, fine = drawn_halves(CPU)
    exact = (coarse.double() + fine.double() + 0.5).floor().clamp(0, 255).float()
    assert exact.unique().numel() == 256
    # In float32 alone the sum would lose bits.
    assert not torch.equal((coarse + fine + 0.5).floor().clamp(0, 255), exact)
    assert torch.equal(round_sum(coarse, fine), exact)


@pytest.mark.parametrize("count", [1, 1023, 5000])
def test_one_kernel_gives_the_bits_of_the_steps(kernel, monkeypatch, count):
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(kernel, "round_kernel", InterpretedFunction(kernel.round_kernel.fn))
    coarse, fine = drawn_halves(CPU, count)
    found = kernel.round_in_one(coarse.clone(), fine.clone())
    assert torch.equal(found, round_sum(coarse, fine))


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_the_kernel_compiles_for_each_card_without_having_it(kernel, capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {"coarse_ptr": "*fp32", "fine_ptr": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    source = ASTSource(kernel.round_kernel, names, {"BLOCK": kernel.BLOCK})
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target, options=kernel.OPTIONS)
    assert compiled.metadata.shared == 0
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


def test_a_device_on_which_the_kernel_fails_takes_torchs_with_one_line(kernel, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rounding._has_kernel.cache_clear()
    with caplog.at_level(logging.WARNING, "raffect"):
        # Triton has no driver for a CPU.
        assert not rounding._has_kernel(CPU)
        assert not rounding._has_kernel(CPU)
    rounding._has_kernel.cache_clear()
    (line,) = caplog.messages
    assert line.startswith("cpu: no kernel of our own for pixels (")
