"""A trained head on disk: `head.safetensors` and `config.json`, which says everything about it.

No code, no pickle. `config.json` is written last and holds the SHA-256 of the tensors, so a folder
is either whole or refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raffect.data.atomic import atomic_path, write_atomic
from raffect.data.bank import Identity
from raffect.data.storage import local_copy
from raffect.errors import RaffectError
from raffect.model.batch import HeadBatch, HeadSpec
from raffect.model.head_kinds import read_spec

FORMAT = 2
"""Of new heads; 1, which is read as well, knew MLPs alone and had their shape as ``layout``."""


def save_head(
    folder: Path,
    spec: HeadSpec,
    state: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write one head.

    Args:
        folder: Of this head alone; made, or its head replaced.
        spec: What the head is.
        state: Its tensors; see `raffect.model.batch.HeadBatch.state`.
        about: Recipe, data, encoder, scores: plain JSON values.
    """
    tensors = {name: tensor.contiguous() for name, tensor in sorted(state.items())}
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_atomic(folder / "head.safetensors", content)
    digest = hashlib.sha256(content).hexdigest()
    config = {"format": FORMAT, "sha256": digest, "head": spec.to_json(), **about}
    write_atomic(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """What `save_head` was told about a head, with ``head`` (what it is) and ``sha256``.

    Raises:
        RaffectError: If there is no head, or one of another format.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        what = f"{folder}: no head there, config.json is missing"
        remedy = "expected a folder such as RUN/weights/ID/last"
        raise RaffectError(f"{what}; {remedy}") from error
    except ValueError as error:
        raise RaffectError(f"{path}: damaged ({error}); train again") from error
    if isinstance(config, dict):
        if config.get("format") == FORMAT and "head" in config:
            return config
        if config.get("format") == 1 and isinstance(config.get("layout"), dict):
            return config | {"head": config["layout"] | {"kind": "mlp", "normalise": "none"}}
    what = f"{path}: not a head of this version of raffect (format {FORMAT})"
    raise RaffectError(f"{what}; train again or use the version that wrote it")


def load_head(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A head as an ordinary module in evaluation mode on the CPU, and its configuration.

    Raises:
        RaffectError: If it is missing, damaged or not as committed.
    """
    spec, tensors, config = _read(folder)
    return spec.build_module(tensors), config


def load_batch(folder: Path, device: torch.device) -> tuple[HeadBatch, dict[str, Any]]:
    """A head as a batch of one on a device, and its configuration.

    Raises:
        RaffectError: If it is missing, damaged or not as committed.
    """
    spec, tensors, config = _read(folder)
    return spec.build_one(tensors, device), config


def _read(folder: Path) -> tuple[HeadSpec, dict[str, Tensor], dict[str, Any]]:
    """What a head is, its tensors, which have the names and shapes of that, and its config."""
    config = read_config(folder)
    path = folder / "head.safetensors"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RaffectError(f"{path}: missing; train again") from error
    if hashlib.sha256(content).hexdigest() != config.get("sha256"):
        what = f"{path}: not the file that config.json describes (its SHA-256 differs)"
        raise RaffectError(f"{what}; copy it again or train again")
    spec = read_spec(config["head"], folder / "config.json")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        what = f"{path}: does not fit its config.json ({str(error).splitlines()[0][:200]})"
        raise RaffectError(f"{what}; train again") from error
    _require_fit(path, spec, tensors)
    return spec, tensors, config


def _require_fit(path: Path, spec: HeadSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless names, shapes and types are a head's, before anything is built.

    What a file claims to be but does not hold must cost nothing.
    """
    expected = spec.weights | spec.buffers
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = sorted(found.keys() | expected.keys())
    differing = [name for name in names if found.get(name) != expected.get(name)]
    what = f"{path}: does not fit its config.json"
    if differing:
        found_text = f"{len(differing)} tensors differ, first {differing[0]}"
        raise RaffectError(f"{what} ({found_text}); train again")
    types = {tensor.dtype for tensor in tensors.values()}
    if types not in ({torch.float32}, {torch.float64}):
        text = ", ".join(sorted(str(dtype) for dtype in types))
        raise RaffectError(f"{what} (tensors of type {text}); train again")


def require_encoder(
    config: Mapping[str, Any],
    bank: Identity,
    folder: Path,
    bank_path: Path,
) -> None:
    """Raise unless a head was trained on features of the encoder that made a bank.

    Raises:
        RaffectError: Names every difference.
    """
    if differences := Identity(**config["encoder"]).differences(bank):
        what = f"{folder} was trained on features of another encoder than {bank_path} holds"
        differing = f"head against bank: {'; '.join(differences)}"
        raise RaffectError(f"{what}; {differing}; use a bank of the head's encoder")


def save_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write what training needs to go on, whole or not at all.

    Args:
        path: A safetensors file, replaced.
        tensors: On the CPU.
        about: Plain JSON values, kept in its header.
    """
    with atomic_path(path) as temporary:
        try:
            metadata = {"raffect": json.dumps(about)}
            safetensors.torch.save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # it hides the system's error
            remedy = "check the free space; the same command goes on from the last save"
            raise RaffectError(f"{path}: cannot be written ({error}); {remedy}") from error


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote.

    Raises:
        RaffectError: If it is damaged.
    """
    try:
        with (
            local_copy(path) as local,
            safetensors.safe_open(local, framework="pt") as file,
        ):
            about = json.loads(file.metadata()["raffect"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        what = f"{path}: damaged ({str(error).splitlines()[0][:200]})"
        raise RaffectError(f"{what}; delete it to train from the start") from error
