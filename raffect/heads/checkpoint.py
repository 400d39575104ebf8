"""A trained head on disk: `head.safetensors`, and `config.json` with everything about it.

No code, no pickle. `config.json` is written last and holds the SHA-256 of the tensors, so a folder
is either whole or refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raffect.bank.facts import DataFacts
from raffect.bank.format import Identity
from raffect.bank.joined import suggest_join
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads import first_format
from raffect.heads.head_batch import HeadBatch, HeadSpec
from raffect.heads.head_kinds import read_spec
from raffect.metrics.scores import Chance, JudgedScore, Snapshot, Status
from raffect.recipe import Recipe
from raffect.storage.atomic import atomic_path, write_atomic
from raffect.storage.paths import local_copy
from raffect.storage.records import Record, parse_object

_REMEDY = "train again"
_RESTART = "delete it to train from the start"
_CHUNK = 1 << 24
"""Bytes that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class HeadCard(Record):
    """Everything that is known about a head on disk; its ``config.json``.

    Attributes:
        format: 2; format 1, which is read as well, knew MLPs alone.
        sha256: Of the tensors.
        head: What the head is; see `raffect.heads.head_batch.HeadSpec.to_json`.
        id: Names the head in its run.
        status: ``done``, or ``diverged`` for the last sound epoch of a head that did.
        snapshot: Which of its epochs it is.
        recipe: Its settings.
        data: What it was trained and judged on.
        validation: Its score on the validation split, with the epoch; None for a head that was
            imported, whose training nothing is known of.
        chance: The chance level there.
        device: What it was trained on.
        threads: CPU threads.
        versions: Of packages.
        git_commit: Of raffect.
    """

    format: Literal[2] = 2
    sha256: str = ""
    head: dict[str, Any]
    id: str
    status: Status
    snapshot: Snapshot
    recipe: Recipe
    data: DataFacts
    validation: JudgedScore | None
    chance: Chance
    device: str = "?"
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    @property
    def epoch(self) -> int:
        """1-based epoch of the weights; 1 of an imported head, which has these alone."""
        return 1 if self.validation is None else self.validation.epoch

    @property
    def task(self) -> Task:
        """What it predicts."""
        return self.data.task


def save_head(folder: Path, card: HeadCard, state: Mapping[str, Tensor]) -> None:
    """Write one head.

    Args:
        folder: Of this head alone; made, or its head replaced.
        card: What the head is and where it is from.
        state: Its tensors; see `raffect.heads.head_batch.HeadBatch.state`.
    """
    tensors = {name: tensor.contiguous() for name, tensor in sorted(state.items())}
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_atomic(folder / "head.safetensors", content)
    # Last, and with the hash: without it there is no head.
    card = replace(card, sha256=hashlib.sha256(content).hexdigest())
    write_atomic(folder / "config.json", card.to_bytes())


def read_card(folder: Path) -> HeadCard:
    """The card of a head.

    Raises:
        RaffectError: If there is no head, or one of another format.
    """
    path = folder / "config.json"
    try:
        content = parse_object(path.read_bytes(), path, _REMEDY)
    except FileNotFoundError as error:
        what = f"{folder}: no head there, config.json is missing"
        remedy = "expected a folder such as RUN/weights/<head>/last"
        raise RaffectError(f"{what}; {remedy}") from error
    if content.get("format") == 1:
        content = first_format.read_card(content, path)
    elif content.get("format") != 2:
        what = f"{path}: not a head of this version of raffect (format 2)"
        raise RaffectError(f"{what}; train again or use the version that wrote it")
    return HeadCard.from_json(content, path, _REMEDY)


def load_head(folder: Path) -> tuple[nn.Module, HeadCard]:
    """A head as an ordinary module in evaluation mode on the CPU, and its card.

    Raises:
        RaffectError: If it is missing, damaged or not as committed.
    """
    spec, tensors, card = _read(folder)
    return spec.build_module(tensors), card


def load_batch(folder: Path, device: torch.device) -> tuple[HeadBatch, HeadCard]:
    """A head as a batch of one on a device, and its card.

    Raises:
        RaffectError: If it is missing, damaged or not as committed.
    """
    spec, tensors, card = _read(folder)
    return spec.build_one(tensors, device), card


def _read(folder: Path) -> tuple[HeadSpec, dict[str, Tensor], HeadCard]:
    """A head's spec, its tensors, whose names and shapes are the spec's, and its card."""
    # The bytes that the card describes.
    card = read_card(folder)
    path = folder / "head.safetensors"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RaffectError(f"{path}: missing; train again") from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        what = f"{path}: not the file that config.json describes (its SHA-256 differs)"
        raise RaffectError(f"{what}; copy it again or train again")
    # Tensors that fit the spec.
    spec = read_spec(card.head, folder / "config.json")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        what = f"{path}: does not fit its config.json ({str(error).splitlines()[0][:200]})"
        raise RaffectError(f"{what}; train again") from error
    _require_fit(path, spec, tensors)
    return spec, tensors, card


def _require_fit(path: Path, spec: HeadSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless names, shapes and types are a head's, before anything is built.

    A file that claims a large head but does not hold one must not cost any memory.
    """
    # Names and shapes.
    expected = spec.weights | spec.buffers
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = sorted(found.keys() | expected.keys())
    differing = [name for name in names if found.get(name) != expected.get(name)]
    what = f"{path}: does not fit its config.json"
    if differing:
        found_text = f"{len(differing)} tensors differ, first {differing[0]}"
        raise RaffectError(f"{what} ({found_text}); train again")
    # Types: all of one floating-point type.
    types = {tensor.dtype for tensor in tensors.values()}
    if types not in ({torch.float32}, {torch.float64}):
        text = ", ".join(sorted(str(dtype) for dtype in types))
        raise RaffectError(f"{what} (tensors of type {text}); train again")


def require_encoder(card: HeadCard, bank: Identity, folder: Path, bank_path: Path) -> None:
    """Raise unless a head was trained on features of the encoder that made a bank.

    Raises:
        RaffectError: Names every difference.
    """
    (encoder,) = card.data.encoders
    if differences := encoder.differences(bank):
        what = f"{folder} was trained on features of another encoder than {bank_path} holds"
        differing = f"head against bank: {'; '.join(differences)}"
        remedy = suggest_join(encoder, bank) or "use a bank of the head's encoder"
        raise RaffectError(f"{what}; {differing}; {remedy}")


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
        except SafetensorError as error:  # safetensors wraps the system's error
            remedy = "check the free space; the same command goes on from the last save"
            raise RaffectError(f"{path}: cannot be written ({error}); {remedy}") from error


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote.

    Raises:
        RaffectError: If it is damaged, or cannot be read.
    """
    try:
        with local_copy(path) as local:
            _read_through(local)
            with safetensors.safe_open(local, framework="pt") as file:
                about = parse_object(file.metadata()["raffect"], path, _RESTART)
                return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except OSError as error:
        # Of the disk or the network: what is saved may be sound, and deleting it would lose it.
        what = f"{path}: cannot be read ({error.strerror or error})"
        remedy = "check the disk and the rights; the same command goes on from there"
        raise RaffectError(f"{what}; {remedy}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        what = f"{path}: damaged ({str(error).splitlines()[0][:200]})"
        raise RaffectError(f"{what}; {_RESTART}") from error


def _read_through(path: Path) -> None:
    """Read a file once: a fault is an `OSError` here, and would kill the process in a mapping."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_CHUNK):
            pass
