"""CUDA without a card: tensors that only say where they are, and a look at each call.

Under torch's FakeTensorMode a tensor has a shape, a type and a device, and no values, so that
``device="cuda"`` needs no card. `Watch` refuses what a CUDA graph cannot capture, and notes what
each call reads, writes and computes. `tests/helpers/fake_cuda.py` checks with it, `launches.py`
counts with it.

What torch cannot do on such tensors: autograd asks the driver, so passes that use it are traced on
the device "meta" and the trace runs on CUDA (`differentiated`); kernels of whole optimisers have no
fake, so their operands are checked and the call is left out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from call_costs import bytes_of, kernel_costs, name_of
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from triton.runtime.jit import JITFunction

CUDA = torch.device("cuda")
aten = torch.ops.aten
_TOLIST = FakeTensor.tolist
_ATTENTION = aten.scaled_dot_product_attention.default
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"} | {
    *("_unsafe_view", "lift_fresh", "detach", "resize_"),
}
"""Calls that launch nothing, beside views: new memory, and other names of the same memory."""


class NotCapturedError(AssertionError):
    """A CUDA graph could not capture this, or would bake a value in."""


class Call(NamedTuple):
    """One call that launches something.

    Attributes:
        op: Its name in aten.
        part: What it belongs to; see `Watch.part`.
        read: Bytes.
        written: Bytes.
        flop: Of products, a multiplication and an addition being two; 0 for others.
        dtype: Of what it writes.
    """

    op: str
    part: str
    read: int
    written: int
    flop: int
    dtype: str


class Watch(TorchDispatchMode):
    """Looks at every call of aten under `fake_cuda`.

    Args:
        captured: Whether a CUDA graph is to capture this: then an operand or a result that is not
            on CUDA, or a wait for the host, raises `NotCapturedError`, which names call and line.
            Otherwise waits are noted, and tensors of two devices are an error of torch's own.

    Attributes:
        calls: Those that launch something.
        waits: Where the host waits for the device, or a copy for the host: call and line.
    """

    def __init__(self, *, captured: bool) -> None:
        super().__init__()
        self.captured = captured
        self.calls: list[Call] = []
        self.waits: list[str] = []
        self._parts: list[str] = []
        self._outer: Watch | None = None
        self._pinned: dict[int, Tensor] = {}

    def __enter__(self) -> Watch:
        global _current
        self._outer, _current = _current, self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _current  # noqa: PLW0603
        _current = self._outer
        super().__exit__(*error)

    def note_kernel(self, name: str, operands: dict[str, Any]) -> None:
        """Add a launch of one of our Triton kernels, whose tensors must be on CUDA."""
        for value in operands.values():
            if isinstance(value, Tensor) and not value.is_cuda:
                what = f"{_shown(value)} among the operands of {name}"
                raise NotCapturedError(f"{what} at {_place()}")
        read, written, flop = kernel_costs(operands)
        part = self._parts[-1] if self._parts else "the rest"
        self.calls.append(Call(name, part, read, written, flop, "float32"))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is called here belongs to the part ``name``; of parts within parts the inner one."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    def label(self, owner: object, **parts: str) -> None:
        """Have calls of methods of an object belong to parts: ``label(noise, draw="noise")``."""
        for name, part in parts.items():
            method = getattr(owner, name)

            def call(
                *args: Any, _method: Callable = method, _part: str = part, **named: Any
            ) -> Any:
                with self.part(_part):
                    return _method(*args, **named)

            setattr(owner, name, call)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        # What is made of other calls is looked at in those.
        if func._can_decompose() and func is not _ATTENTION:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._check_operands(func, tensors)
        try:
            out = self._run(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise NotCapturedError(f"waits for the host: {func} at {_place()}") from None
        self._check_results(func, out)
        self._note(func, args, kwargs, out)
        return out

    def _check_operands(self, func: OpOverload, tensors: list[Tensor]) -> None:
        """Refuse or note operands that are not on CUDA."""
        name = name_of(func)
        foreign = [one for one in tensors if not one.is_cuda]
        if foreign and (self.captured or name.startswith("_fused_")):
            what = f"{_shown(foreign[0])} among the operands of {func}"
            raise NotCapturedError(f"{what} at {_place()}")
        # Between devices a copy waits, unless it is from pinned memory and asked not to.
        if name in ("_to_copy", "copy_"):
            return
        if any(one.is_cuda for one in tensors) and any(one.ndim for one in foreign):
            self.waits.append(f"{func} at {_place()}")

    def _check_results(self, func: OpOverload, out: Any) -> None:
        """Refuse results that are not on CUDA."""
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if self.captured and any(not one.is_cuda for one in made):
            raise NotCapturedError(f"{_shown(made[0])} out of {func} at {_place()}")

    def _run(self, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        """The call's result; of those whose shape depends on values the largest there may be."""
        name = name_of(func)
        if name.startswith("_fused_"):
            return None
        if func is _ATTENTION:
            return torch.empty_like(args[0])
        if name in ("_to_copy", "copy_"):
            return self._copy(func, args, kwargs)
        if not self.captured and name == "bincount":
            self.waits.append(f"{func} at {_place()}")
            return args[0].new_empty(kwargs.get("minlength") or args[2])
        if not self.captured and name == "index" and _has_mask(args[1]):
            self.waits.append(f"{func} at {_place()}")
            return _index_all(args[0], args[1])
        pins = name == "_pin_memory"
        out = torch.empty_like(args[0]) if pins else func(*args, **kwargs)
        if pins or kwargs.get("pin_memory"):
            self._pinned[out.untyped_storage()._cdata] = out
        return out

    def _copy(self, func: OpOverload, args: tuple, kwargs: dict) -> Tensor:
        """A copy, perhaps to another device."""
        out = func(*args, **kwargs)
        source = args[1] if name_of(func) == "copy_" else args[0]
        if source.device.type != out.device.type:
            asked = kwargs.get("non_blocking") or (name_of(func) == "copy_" and args[2:] == (True,))
            is_pinned = source.untyped_storage()._cdata in self._pinned
            # Another type is made on the host, in memory that is not pinned.
            if not (asked and is_pinned and source.dtype == out.dtype):
                self.waits.append(f"{func} at {_place()}")
        return out

    def _note(self, func: OpOverload, args: tuple, kwargs: dict, out: Any) -> None:
        """Add a call that launches something on CUDA."""
        name = name_of(func)
        if func.is_view or name in _NO_KERNEL:
            return
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        read, written = bytes_of(func, args, kwargs, made)
        if func is _ATTENTION:
            flop = sdpa_flop_count(*(one.shape for one in args[:3]))
        else:
            formula = flop_registry.get(func.overloadpacket)
            flop = 0 if formula is None else formula(*args, **kwargs, out_val=out)
        kinds = [one for one in (made or tree_leaves((args, kwargs))) if isinstance(one, Tensor)]
        if not any(one.is_cuda for one in kinds):
            return
        part = self._parts[-1] if self._parts else "the rest"
        dtype = str(kinds[0].dtype).removeprefix("torch.")
        self.calls.append(Call(name, part, read, written, int(flop), dtype))


_current: Watch | None = None
"""The innermost watch, for what does not go through aten."""


def _run_kernel(kernel: Any, *args: Any, **named: Any) -> None:
    """`triton.JITFunction.run` without a card: the launch is noted."""
    if _current is not None:
        operands = dict(zip(kernel.arg_names, args, strict=False)) | named
        _current.note_kernel(kernel.fn.__name__, operands)


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made here have no values, and may be on CUDA.

    Ones on the CPU are all 0 as arrays and lists, and a module moves as it does on a real device.
    """
    values = mock.patch.multiple(FakeTensor, numpy=_zeros, tolist=_list)
    move = mock.patch.object(nn.Module, "_apply", _apply)
    kernels = mock.patch.object(JITFunction, "run", _run_kernel)
    with FakeTensorMode(), values, move, kernels:
        yield


def differentiated(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """A function of tensors on fake CUDA that uses autograd, as a trace of what it calls.

    Args:
        function: What it makes or keeps has to be on the device of its arguments, so that a
            constant of another device is seen.
        args: Like those of later calls: tensors on fake CUDA, or other values.
    """
    with _disable_current_modes():
        there = tree_map_only(Tensor, _on_meta, args)
        trace = make_fx(partial(_call, function))(*there)
        for node in trace.graph.nodes:
            node.args, node.kwargs = tree_map_only(
                torch.device, _rewritten, (node.args, node.kwargs)
            )
        trace.recompile()
    # What the trace keeps beside its arguments
    for node in trace.graph.find_nodes(op="get_attr"):
        kept = getattr(trace, node.target)
        device, shape = _rewritten(kept.device), tuple(kept.shape)
        own = torch.empty_strided(shape, kept.stride(), dtype=kept.dtype, device=device)
        delattr(trace, node.target)
        setattr(trace, node.target, own)
    return trace


def _call(function: Callable[..., Any], *args: Any) -> Any:
    """A call that `make_fx` can read the signature of, as it cannot of bound methods."""
    return function(*args)


def _on_meta(tensor: Tensor) -> Tensor:
    shape, strides = tuple(tensor.shape), tensor.stride()
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")


def _rewritten(device: torch.device) -> torch.device:
    return CUDA if device.type == "meta" else device


def _zeros(self: FakeTensor, *, force: bool = False) -> np.ndarray:
    """A tensor on the CPU as an array; as torch does, refuse one that is on CUDA."""
    if self.is_cuda:
        raise TypeError("can't convert cuda device type tensor to numpy")
    return np.zeros(tuple(self.shape), str(self.dtype).removeprefix("torch."))


def _list(self: FakeTensor) -> Any:
    """A tensor on the CPU as a list; one that is on CUDA waits for the host."""
    is_known = self.is_cuda or self.constant is not None
    return _TOLIST(self) if is_known else _zeros(self).tolist()


def _apply(self: nn.Module, function: Callable, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, whose own exchange of tensors fake ones do not have."""
    for child in self.children():
        child._apply(function)
    for name, weight in self._parameters.items():
        if weight is not None:
            self._parameters[name] = nn.Parameter(function(weight), requires_grad=False)
    for name, buffer in self._buffers.items():
        self._buffers[name] = None if buffer is None else function(buffer)
    return self


def _has_mask(index: list[Tensor | None]) -> bool:
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in index)


def _index_all(tensor: Tensor, index: list[Tensor | None]) -> Tensor:
    """What a mask leaves of a tensor where all of it is true."""
    (axis,) = (axis for axis, one in enumerate(index) if one is not None)
    mask = index[axis]
    assert mask is not None
    shape = (*tensor.shape[:axis], mask.numel(), *tensor.shape[axis + mask.ndim :])
    return tensor.new_empty(shape)


def _shown(tensor: Tensor) -> str:
    return f"a tensor {tuple(tensor.shape)} on {tensor.device.type}"


def _place() -> str:
    """File and line of the innermost caller that is neither torch's nor this module's."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "torch" not in path.parts and path != Path(__file__) and path.suffix == ".py":
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown line"
