"""In which arithmetic a tower computes, and what a CPU pays for halves that it does not know."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from raffect.bank.records import Precision

_MKLDNN_NAMES = {"float16": "fp16", "bfloat16": "bf16"}
"""As oneDNN calls them, which multiplies matrices on a CPU."""


def choose_precision(asked: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The arithmetic of a device: what was asked for, or with ``"auto"`` its fastest safe one.

    Warns where a half takes a CPU longer than float32: without AVX-512 or AMX each number is
    converted for each product.
    """
    on_cuda = device.type == "cuda"
    if asked == "auto":
        return "float16" if on_cuda else "float32"
    if not on_cuda and not computes_in(asked):
        line = "%s on this CPU, which has no instructions for it, takes several times as long as "
        line += "float32; leave --encoder.precision out, unless a bank was begun with it"
        logging.getLogger("raffect").warning(line, asked)
    return asked


def computes_in(precision: Precision) -> bool:
    """Whether this CPU multiplies numbers of this kind itself; True also where nothing is known."""
    name = _MKLDNN_NAMES.get(precision)
    if name is None or not torch.backends.mkldnn.is_available():
        return True
    return getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
