"""Triton kernels without a GPU: by its interpreter, or compiled for cards that are not here."""

import pytest


def interpret(monkeypatch, *modules):
    """Let the kernels of these modules run on the CPU, whatever Triton was imported as."""
    tl = pytest.importorskip("triton.language", reason="Triton is not installed")
    import triton.experimental.gluon  # noqa: F401 - cannot be imported behind the change below
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for module in (tl, tl.standard, *modules):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, InterpretedFunction(value.fn))
