"""timm's image towers by name, ``timm:ARCHITECTURE.TAG``: their input, transform and weights.

timm is imported where a name is looked up, since that takes torch and seconds. Weights are looked
for in raffect's own folder (as ``timm--ARCHITECTURE.TAG.safetensors|.pt|.bin``), then where the
Hugging Face hub and torch.hub keep what timm downloads.
"""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from raffect.config import TIMM_PREFIX, EncoderConfig
from raffect.encoders.weights import SUFFIXES, Source, random_source, view_side, weights_folder
from raffect.errors import RaffectError, did_you_mean, require

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_DINOV2_SIZE = 224
"""timm's own 518 has 5.3 times the tokens, and crops of faces have 112 pixels."""
_RESIZE_MODES = {"center": "shortest", "squash": "squash"}


def timm_name(model: str) -> str:
    """The name that timm knows a model by."""
    return model.removeprefix(TIMM_PREFIX)


@cache
def list_timm() -> list[str]:
    """All towers that timm has weights for, with ``timm:`` before each, sorted."""
    import timm

    return sorted(f"{TIMM_PREFIX}{name}" for name in timm.list_models(pretrained=True))


@cache
def read_timm_config(model: str) -> Any:
    """timm's configuration of a tower's weights; without a tag, of its first ones.

    Raises:
        RaffectError: If timm has no such tower or tag; suggests near names.
    """
    from timm.models import get_pretrained_cfg

    try:
        found = get_pretrained_cfg(timm_name(model), allow_unregistered=False)
    except RuntimeError:
        found = None
    if found is None:
        hint = did_you_mean(model, list_timm(), most=3, cutoff=0.5)
        shown = "`raffect models list --pattern timm:` shows all"
        raise RaffectError(f"--encoder.model {model}: timm has no such model{hint}; {shown}")
    return found


def input_size(model: str, asked: int = 0) -> int:
    """Side of a tower's input: what is asked for, else 224 for DINOv2, else timm's."""
    if asked:
        return asked
    found = read_timm_config(model)
    if "dinov2" in found.architecture:
        return _DINOV2_SIZE
    channels, height, width = found.input_size
    require(
        channels == 3 and height == width,
        f"--encoder.model {model}: takes {channels} channels of {height}x{width} pixels; "
        "raffect has square pictures of 3 only: use another one",
    )
    return height


def read_transform(source: Source) -> dict[str, Any]:
    """timm's own evaluation transform as the fields of `raffect.encoders.preprocess.Preprocess`.

    timm resizes to ``floor(size / crop_pct)`` and crops the centre of ``size``.

    Raises:
        RaffectError: If raffect does not have that transform.
    """
    found = read_timm_config(source.model)
    size = input_size(source.model, source.image_size)
    side = math.floor(size / (found.crop_pct or 0.875))
    require(
        side >= size and found.crop_mode in _RESIZE_MODES,
        f"--encoder.model {source.model}: pads pictures with a border, which raffect does not; "
        "use another one",
    )
    side = view_side(side, source.view)
    return {
        "size": size,
        "mean": tuple(found.mean),
        "std": tuple(found.std),
        "interpolation": found.interpolation,
        "resize_mode": _RESIZE_MODES[found.crop_mode],
        "resize_to": side if side != size else 0,
        "view": source.view,
    }


def find_timm(config: EncoderConfig) -> Source:
    """The weights that ``--encoder.weights`` names: the model's tag, a file or random:SEED.

    Raises:
        RaffectError: If the model or tag is unknown, or the file is missing.
    """
    read_timm_config(config.model)
    source = _find(config.model, config.weights)
    return replace(source, image_size=config.image_size, view=config.view)


def _find(model: str, weights: str) -> Source:
    if weights == "random" or weights.startswith("random:"):
        return random_source(model, weights)
    if Path(weights).suffix in SUFFIXES or os.sep in weights:
        file = Path(weights)
        what = f"--encoder.weights {file}: no such file"
        require(file.is_file(), f"{what}; expected a .safetensors or a PyTorch state dict")
        return Source(model, file.name, file=file)
    require_tag(model, weights)
    found = find_timm_file(model)
    if found is None:
        raise RaffectError(_missing(model))
    return Source(model, weights, file=found)


def require_tag(model: str, weights: str) -> None:
    """Refuse weights that the model's name does not end in, so that each encoder has one name.

    Raises:
        RaffectError: Also if timm has no such model.
    """
    read_timm_config(model)
    name, _, tag = timm_name(model).partition(".")
    if tag and weights == tag:
        return
    known = [full for full in list_timm() if full.startswith(f"{TIMM_PREFIX}{name}.")]
    what = f"--encoder.weights {weights}: the tag of a timm model is in its name"
    tags = f"use --encoder.model {' or '.join(known[:4])}" if known else "timm has no weights of it"
    raise RaffectError(f"{what}; {tags}, a local file, or random:SEED")


def find_timm_file(model: str) -> Path | None:
    """The file on this machine that holds the weights of a model's tag."""
    from huggingface_hub import try_to_load_from_cache

    # Our own folder first, then the caches of the hub and of torch.
    name, found = timm_name(model), read_timm_config(model)
    candidates = [weights_folder() / f"timm--{name}{suffix}" for suffix in SUFFIXES]
    if found.hf_hub_id:
        names = [found.hf_hub_filename] if found.hf_hub_filename else _HUB_FILES
        files = [try_to_load_from_cache(found.hf_hub_id, each) for each in names]
        candidates += [Path(file) for file in files if isinstance(file, str)]
    if found.url:
        home = os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch"
        candidates.append(Path(home) / "hub" / "checkpoints" / found.url.rsplit("/", 1)[-1])
    # Google's .npz files need loaders of their own.
    return next((file for file in candidates if _is_usable(file)), None)


def _is_usable(file: Path) -> bool:
    return file.suffix in SUFFIXES and file.is_file()


def list_present() -> list[str]:
    """Names of towers whose weights lie here by their usual name, found without timm."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own = [file.stem for file in weights_folder().glob("timm--*") if _is_usable(file)]
    hub = Path(HF_HUB_CACHE).glob("models--timm--*/snapshots/*/*")
    names = own + [
        file.parents[2].name.removeprefix("models--") for file in hub if _is_usable(file)
    ]
    return sorted({f"{TIMM_PREFIX}{name.removeprefix('timm--')}" for name in names})


def download_timm(model: str) -> Path:
    """Download the weights of a model's tag into the hub's cache, where timm finds them too."""
    from huggingface_hub import hf_hub_download

    found = read_timm_config(model)
    require(
        bool(found.hf_hub_id),
        f"{model}: is not on the Hugging Face hub; bring the file from {found.url or 'its authors'}"
        " by hand and name it with --encoder.weights",
    )
    return Path(hf_hub_download(found.hf_hub_id, found.hf_hub_filename or _HUB_FILES[0]))


def _missing(model: str) -> str:
    """How to get weights that are not on this machine."""
    found = read_timm_config(model)
    where = found.url or "its authors"
    if found.hf_hub_id:
        where = f"https://huggingface.co/{found.hf_hub_id} ({_HUB_FILES[0]})"
    target = weights_folder() / f"timm--{timm_name(model)}.safetensors"
    pull = shlex.join(["raffect", "models", "pull", "--encoder.model", model])
    return (
        f"weights of {model} are not on this machine; with a network run `{pull}`; without one "
        f"bring the file from {where} and save it as {target}, or name it with --encoder.weights "
        "FILE"
    )
