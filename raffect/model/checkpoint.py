"""A trained head on disk: `head.safetensors` and `config.json`, which says everything about it; no code, no pickle.

`config.json` is written last and holds the SHA-256 of the tensors, so a folder is either whole or refused.
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
from torch import Tensor

from raffect.data.atomic import atomic_path, write_atomic
from raffect.data.bank import Identity
from raffect.data.storage import local_copy
from raffect.errors import RaffectError
from raffect.model.head import Head, build_head
from raffect.model.pack import Layout
from raffect.recipe import MOST_DEPTH, MOST_WIDTH

FORMAT = 1


def save_head(folder: Path, layout: Layout, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one head.

    Args:
        folder: Of this head alone; made, or its head replaced.
        layout: Shape of the head.
        state: Tensors of `raffect.model.head.member_state`.
        about: Recipe, data, encoder, scores: plain JSON values.
    """
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in sorted(state.items())}, metadata={"format": "pt"})
    write_atomic(folder / "head.safetensors", content)
    shape = {"dim": layout.dim, "width": layout.width, "depth": layout.depth, "outputs": layout.outputs}
    config = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest(), "layout": shape, **about}
    write_atomic(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """What `save_head` was told about a head, with its ``layout`` and ``sha256``.

    Raises:
        RaffectError: If there is no head, or one of another format.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RaffectError(f"{folder}: no head there, config.json is missing; expected a folder such as RUN/weights/<member>/last") from error
    except ValueError as error:
        raise RaffectError(f"{path}: damaged ({error}); train again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or "layout" not in config:
        raise RaffectError(f"{path}: not a head of this version of raffect (format {FORMAT}); train again or use the version that wrote it")
    return config


def load_head(folder: Path) -> tuple[Head, dict[str, Any]]:
    """A head in evaluation mode on the CPU, and its configuration.

    Raises:
        RaffectError: If it is missing, damaged or not as committed.
    """
    config = read_config(folder)
    path = folder / "head.safetensors"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RaffectError(f"{path}: missing; train again") from error
    if hashlib.sha256(content).hexdigest() != config["sha256"]:
        raise RaffectError(f"{path}: not the file that config.json describes (its SHA-256 differs); copy it again or train again")
    layout = read_layout(config["layout"], folder / "config.json")
    try:
        tensors = safetensors.torch.load(content)
        # Before anything is built: a layout that the file does not hold must cost nothing.
        if (found := {name: tuple(tensor.shape) for name, tensor in tensors.items()}) != layout.state_shapes:
            differing = sorted(name for name in found.keys() | layout.state_shapes.keys() if found.get(name) != layout.state_shapes.get(name))
            raise RaffectError(f"{path}: does not fit its config.json ({len(differing)} tensors differ, first {differing[0]}); train again")
        return build_head(layout, tensors), config
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise RaffectError(f"{path}: does not fit its config.json ({str(error).splitlines()[0][:200]}); train again") from error


def read_layout(content: Any, path: Path) -> Layout:
    """The shape of a head, within the bounds of a recipe.

    Raises:
        RaffectError: If it is none, or out of bounds.
    """
    most = {"dim": MOST_WIDTH, "width": MOST_WIDTH, "depth": MOST_DEPTH, "outputs": MOST_WIDTH}
    if not isinstance(content, dict) or content.keys() != most.keys():
        raise RaffectError(f"{path}: its layout has to name {', '.join(most)} and nothing else; train again")
    for name, largest in most.items():
        if type(content[name]) is not int or not 1 <= content[name] <= largest:
            raise RaffectError(f"{path}: layout {name} {str(content[name])[:40]}: expected 1 to {largest}; train again")
    return Layout(**content)


def require_encoder(config: Mapping[str, Any], bank: Identity, folder: Path, bank_path: Path) -> None:
    """Raise unless a head was trained on features of the encoder that made a bank.

    Raises:
        RaffectError: Names every difference.
    """
    if differences := Identity(**config["encoder"]).differences(bank):
        raise RaffectError(
            f"{folder} was trained on features of another encoder than {bank_path} holds; head against bank: {'; '.join(differences)}; use a bank of the head's encoder"
        )


def save_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write what training needs to go on, as one safetensors file with JSON in its header, whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(dict(tensors), temporary, metadata={"raffect": json.dumps(about)})
        except SafetensorError as error:  # it hides the system's error
            raise RaffectError(f"{path}: cannot be written ({error}); check the free space; the same command goes on from the last save") from error


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote.

    Raises:
        RaffectError: If it is damaged.
    """
    try:
        with local_copy(path) as local, safetensors.safe_open(local, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["raffect"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RaffectError(f"{path}: damaged ({str(error).splitlines()[0][:200]}); delete it to train from the start") from error


def to_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
