"""Triton kernels without a GPU: by its interpreter, or compiled for cards that are not here."""

import pytest
import torch

_TYPES = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.int8: "*i8"}


def interpret(monkeypatch, *modules):
    """Let the kernels of these modules run on the CPU, whatever Triton was imported as."""
    tl = pytest.importorskip("triton.language", reason="Triton is not installed")
    import triton.experimental.gluon  # noqa: F401 - cannot be imported behind the change below
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def call(function, *args, **named):
        """A kernel's call of another one, which by itself leaves Triton unable to compile."""
        scope = interpreter._patch_lang(function.fn)
        try:
            return function.rewrite()(*args, **named)
        finally:
            scope.restore()

    monkeypatch.setattr(InterpretedFunction, "__call__", call)
    for module in (tl, tl.standard, *modules):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, InterpretedFunction(value.fn))


class Recorder:
    """Kernels of a module that are noted instead of launched.

    Attributes:
        launches: Kernel, grid, arguments and constants of each launch.
    """

    def __init__(self, module):
        self._module, self.launches = module, []

    def __getattr__(self, name):
        return _Noted(self, getattr(self._module, name))


class _Noted:
    def __init__(self, recorder, kernel):
        self._recorder, self._kernel = recorder, kernel

    def __getitem__(self, grid):
        def launch(*args, **sizes):
            self._recorder.launches.append((self._kernel, grid, args, sizes))

        return launch


def compile_for(capability, kernel, args, sizes):
    """Compile one noted launch as Triton would on a card of this capability (90 for sm_90)."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    # As Triton specialises: 1 is a constant, multiples of 16 are known as such
    signature, constants, known = {}, {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            offset = value.storage_offset() * value.element_size()
            if offset % 16 == 0:
                known[(place,)] = [["tt.divisibility", 16]]
        elif value == 1:
            signature[name], constants[(place,)] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                known[(place,)] = [["tt.divisibility", 16]]
    for name in kernel.arg_names[len(args) :]:
        signature[name] = "constexpr"
        constants[(kernel.arg_names.index(name),)] = sizes[name]
    options = {name: value for name, value in sizes.items() if name not in signature}
    source = ASTSource(kernel, signature, constants, known)
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)
