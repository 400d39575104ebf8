"""One of timm's image towers with its weights: its vector is timm's pooled feature before a head.

The modules and their sums are timm's own. Weights are loaded by timm's filters, which know the
layouts of published files and stretch position embeddings to another image size; what is left has
to fit the tower name by name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raffect.encoders.preprocess import Preprocess
from raffect.encoders.timm_models import input_size, read_timm_config, read_transform, timm_name
from raffect.encoders.weights import Source, explain_unreadable
from raffect.errors import RaffectError


def build_timm(source: Source) -> nn.Module:
    """A tower in float32 on the CPU with its weights, in evaluation mode.

    Raises:
        RaffectError: If the image size does not fit the tower, or the file is damaged, holds code,
            or does not fit it.
    """
    found, size = read_timm_config(source.model), input_size(source.model, source.image_size)
    options: dict[str, Any] = {"num_classes": 0}
    # Only towers of one size have to know it.
    if found.fixed_input_size and size != found.input_size[-1]:
        options["img_size"] = size
    if source.file is not None:
        tensors = _read_tensors(source.file, found.classifier)
        # A head that is neither in the file nor in the tower leaves timm strict.
        overlay = {"state_dict": tensors, "num_classes": 0, "custom_load": False}
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed or 0)
            model: nn.Module = timm.create_model(timm_name(source.model), **options).eval()
    except Exception as error:
        # Towers and loaders raise nearly anything, from TypeError to AssertionError.
        raise RaffectError(_explain(source, size, error)) from error
    _require_patches(model, source.model, size)
    return model


def require_size(source: Source) -> None:
    """Refuse an image size that was asked for and that the tower cannot take.

    The tower is built, which takes seconds, and its weights are not read.

    Raises:
        RaffectError: If it cannot be built for that size, or its patches do not fill it.
    """
    if source.image_size:
        build_timm(replace(source, file=None))


def read_timm_preprocess(source: Source, model: nn.Module) -> tuple[Preprocess, dict[str, Any]]:
    """A tower's transform, and its record in a bank, with the pooling of the vector."""
    preprocess = Preprocess(**read_transform(source))
    return preprocess, preprocess.as_dict() | {"pooling": _pooling(model)}


@torch.inference_mode()
def measure_dim(model: nn.Module, name: str, size: int) -> int:
    """Length of a tower's vector, which is that of a black picture.

    Raises:
        RaffectError: If it gives anything but one vector a picture.
    """
    out = model(torch.zeros(1, 3, size, size))
    if not isinstance(out, Tensor) or out.ndim != 2:
        what = f"--encoder.model {name}: gives no single vector a picture"
        raise RaffectError(f"{what}; use another one")
    return out.shape[1]


def _read_tensors(file: Path, classifier: str | tuple[str, ...] | None) -> dict[str, Tensor]:
    """A file's tensors without its classifier; no code of the file's runs."""
    from timm.models import load_state_dict

    try:
        found = load_state_dict(str(file), weights_only=True)
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        if not tensors:
            raise ValueError("holds no tensors")
    except Exception as error:
        what = f"--encoder.weights {file}: cannot be loaded ({explain_unreadable(error)[:200]})"
        raise RaffectError(f"{what}; expected a .safetensors or a PyTorch state dict") from error
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    dropped = tuple(f"{head}.{part}" for head in heads for part in ("weight", "bias"))
    return {name: value for name, value in tensors.items() if name not in dropped}


def _explain(source: Source, size: int, error: Exception) -> str:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    if source.file is not None:
        what = f"--encoder.weights {source.file}: does not fit {source.model} ({reason})"
        return f"{what}; expected weights of this very model"
    what = f"--encoder.model {source.model}: timm cannot build it for {size} pixels ({reason})"
    return f"{what}; use another --encoder.image-size or model"


def _require_patches(model: nn.Module, name: str, size: int) -> None:
    """Refuse a size that patches do not fill: timm would leave pixels out, or fail later."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    sides = patch if isinstance(patch, tuple) else (patch,)
    if any(size % side for side in sides):
        side = max(sides)
        near = f"{size // side * side} or {(size // side + 1) * side}"
        what = f"--encoder.image-size {size}: {name} has patches of {side} pixels"
        raise RaffectError(f"{what}; use a multiple of that, {near}")


def _pooling(model: nn.Module) -> str:
    """How a tower makes one vector of many: token, avg, map ..., as timm names it."""
    for holder in (model, getattr(model, "head", None)):
        pool = getattr(holder, "global_pool", None)
        name = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if isinstance(name, str) and name:
            return name
    return "its own"
