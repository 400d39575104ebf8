"""`raffect import-emoclip`: a checkpoint of EmoCLIP's released code becomes a head.

Only tensors are read: a file that holds any other Python object is refused. What a checkpoint does
not say, such as how it was trained, its card does not say either.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raffect.bank.facts import DataFacts
from raffect.bank.format import Bank, Identity
from raffect.config import ImportEmoclipConfig
from raffect.datasets.targets import contrastive_task
from raffect.encoders.tower import digest_tensors
from raffect.encoders.weights import explain_unreadable
from raffect.errors import RaffectError, require
from raffect.heads.checkpoint import HeadCard, save_head
from raffect.heads.released_emoclip import HEAD_WIDTH, ReleasedEmoclipSpec
from raffect.heads.temporal import LOGIT_SCALE
from raffect.metrics.scores import Chance
from raffect.provenance import git_commit, versions
from raffect.recipe import (
    MOST_ATTENTION_HEADS,
    MOST_DEPTH,
    Recipe,
    find_recipe,
    read_recipe,
    with_settings,
)
from raffect.storage.paths import sha256_of

_LAYER = re.compile(r"temporal\.temporal_transformer\.layers\.([0-9]{1,4})\.", re.A)
_QKV = "temporal.temporal_transformer.layers.0.0.fn.fn.to_qkv.weight"
_SCALE = "logit_scale"
_NOT_READ = {
    "backbone.": "of CLIP's own towers, which the bank's encoder has",
    "mlp.": "of a classifier behind the head",
}
"""Tensors of the released code's modules that are no part of the head, by how names begin."""
_EXPECTED = "expected the state dict that EmoCLIP's released code saves (*.pth)"
_CAVEAT = "head imported from a checkpoint, its training unknown"


@dataclass(frozen=True)
class ImportedHead:
    """What was imported.

    Attributes:
        folder: Of the head.
        file: The checkpoint.
        num_weights: Numbers in the head's tensors, without the scale.
        layers: Of the head.
        window: Features that it will be given of a clip.
        scale: By which cosines are multiplied; 100 where the checkpoint has none.
        has_scale: Whether it has one.
        left_out: Tensors that were not read, by what they are.
        is_verified: Whether the checkpoint has its image tower, which then is the bank's.
        bank: The bank whose encoder it goes with.
    """

    folder: Path
    file: Path
    num_weights: int
    layers: int
    window: int
    scale: float
    has_scale: bool
    left_out: dict[str, int]
    is_verified: bool
    bank: Path

    def lines(self) -> list[str]:
        """The result as lines of text."""
        size = f"{self.num_weights:,} weights in {self.layers} layers"
        out = [f"imported {self.file} into {self.folder}: {size}, windows of {self.window}"]
        out += [f"not read: {count:,} tensors {what}" for what, count in self.left_out.items()]
        if not self.has_scale:
            out.append(f"scale: the file has none; taken as CLIP's {self.scale:.0f}")
        if self.is_verified:
            out.append(f"image tower: that of the file made {self.bank}")
        else:
            taken = f"taken on trust to be that of {self.bank}"
            out.append(f"image tower: the file has none; {taken}")
        trained = "how and on what it was trained is not in the file"
        out.append(f"caveat: {trained}; texts come from the bank's weights, not from the file")
        words = ["--head", str(self.folder), "--bank", str(self.bank)]
        return [*out, f"next: raffect zeroshot --labels LABELS --out RUN {shlex.join(words)}"]


def import_emoclip(config: ImportEmoclipConfig) -> ImportedHead:
    """Write the head that a checkpoint of the released code holds.

    Raises:
        RaffectError: If the file holds anything but tensors, these are not a released head's, its
            features are not as long as the bank's, or its image tower is another one.
    """
    identity = Bank(config.bank).require_identity()
    require(
        not (config.out / "config.json").exists(),
        f"--out {config.out}: holds a head already; name a new folder",
    )
    # The checkpoint's tensors: those of the head, and others
    tensors = _read_tensors(config.file)
    own = {name: value for name, value in tensors.items() if not name.startswith(tuple(_NOT_READ))}
    left_out = {}
    for beginning, what in _NOT_READ.items():
        if count := sum(name.startswith(beginning) for name in tensors):
            left_out[what] = count
    has_scale = _SCALE in own
    own.setdefault(_SCALE, torch.tensor(LOGIT_SCALE))
    spec = _spec_of(own, config, identity)
    is_verified = _require_tower(tensors, config, identity)

    # The head
    state = {name: value.detach().to(torch.float32).clone() for name, value in own.items()}
    save_head(config.out, _card(config, identity, spec, sha256_of(config.file)), state)
    return ImportedHead(
        folder=config.out,
        file=config.file,
        num_weights=spec.num_weights - 1,
        layers=spec.layers,
        window=config.window,
        scale=float(state[_SCALE].exp()),
        has_scale=has_scale,
        left_out=left_out,
        is_verified=is_verified,
        bank=config.bank,
    )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, without what distributed training puts before names."""
    require(file.is_file(), f"--file {file}: no such file; {_EXPECTED}")
    require(file.stat().st_size > 0, f"--file {file}: is empty; {_EXPECTED}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle it asks to file an issue
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = explain_unreadable(error)[:160]
        raise RaffectError(f"--file {file}: cannot be read ({reason}); {_EXPECTED}") from error
    is_state = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    require(is_state and len(content) > 0, f"--file {file}: is not a state dict; {_EXPECTED}")
    out = {name.removeprefix("module."): value for name, value in content.items()}
    require(len(out) == len(content), f"--file {file}: has names twice; {_EXPECTED}")
    for name, tensor in out.items():
        what = f"{name[:100]} claims more numbers than the file holds"
        require(_is_whole(tensor), f"--file {file}: {what}; {_EXPECTED}")
    return out


def _is_whole(tensor: Tensor) -> bool:
    """Whether each number of a tensor is in memory by itself.

    A tensor that repeats a few numbers, or that has none, can claim any size, and copying it would
    take that much memory. One whose rows are merely in another order is whole.
    """
    # Of others, such as sparse ones, the storage cannot be asked.
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _spec_of(
    tensors: Mapping[str, Tensor], config: ImportEmoclipConfig, identity: Identity
) -> ReleasedEmoclipSpec:
    """The shape of the head that tensors are, which are all looked at before any is copied."""
    # Sizes by two of them; the bank's comes first, since a file may claim any.
    file = config.file
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dim = (shapes.get("temporal.cls_token") or (0,))[-1]
    require(dim > 0, f"--file {file}: has no tensor temporal.cls_token; {_EXPECTED}")
    require(
        dim == identity.dim,
        f"--file {file}: its features have {dim} numbers, those of {config.bank} {identity.dim}; "
        "expected a bank of the encoder that it was trained with (ViT-B/32 in the released code)",
    )
    numbers = {int(found[1]) for name in tensors if (found := _LAYER.match(name))}
    inner, rest = divmod((shapes.get(_QKV) or (0,))[0], 3 * HEAD_WIDTH)
    require(
        inner > 0 and rest == 0 and inner <= MOST_ATTENTION_HEADS and len(numbers) <= MOST_DEPTH,
        f"--file {file}: {_QKV} is not of attention heads of {HEAD_WIDTH}, as the released code "
        f"makes them; {_EXPECTED}",
    )
    spec = ReleasedEmoclipSpec(dim, len(numbers), inner)

    # All of them
    expected = spec.weights
    names = sorted(shapes.keys() | expected.keys())
    differing = [name for name in names if shapes.get(name) != expected.get(name)]
    if differing:
        name = differing[0]
        found = f"{len(differing)} tensors differ from a released head of {spec.layers} layers"
        which = f"first {name[:100]} ({shapes.get(name)}, expected {expected.get(name)})"
        raise RaffectError(f"--file {file}: {found}, {which}; {_EXPECTED}")
    for name, tensor in tensors.items():
        require(
            tensor.is_floating_point() and bool(torch.isfinite(tensor).all()),
            f"--file {file}: {name} is not of finite floating-point numbers; {_EXPECTED}",
        )
    return spec


def _require_tower(
    tensors: Mapping[str, Tensor], config: ImportEmoclipConfig, identity: Identity
) -> bool:
    """Whether the file has its image tower; raise if that did not make the bank."""
    # In its module for other tasks the image tower is all of the backbone.
    beginnings = ("backbone.visual.", "backbone.")
    beginning = next((b for b in beginnings if f"{b}conv1.weight" in tensors), None)
    if beginning is None:
        return False
    tower = {
        name.removeprefix(beginning): tensor
        for name, tensor in tensors.items()
        if name.startswith(beginning)
    }
    found = digest_tensors(tower)
    require(
        found == identity.weights_sha256,
        f"--file {config.file}: its image tower (fingerprint {found[:12]}) is not the one that "
        f"made {config.bank} ({identity.weights_sha256[:12]}, {identity.weights}); expected a bank "
        "of the same weights: OpenAI's ViT-B/32, unless the checkpoint fine-tuned it",
    )
    return True


def _card(
    config: ImportEmoclipConfig, identity: Identity, spec: ReleasedEmoclipSpec, sha256: str
) -> HeadCard:
    """What is known: the head's shape and the bank's encoder, and nothing of its training."""
    task = contrastive_task("captions")
    settings = read_recipe(find_recipe("emoclip-released")) | {
        "head.layers": spec.layers,
        "head.attention_heads": spec.attention_heads,
        "head.window": config.window,
    }
    facts = DataFacts(
        task=task,
        bank=str(config.bank),
        labels="",
        bank_digest="unknown",
        labels_sha256="unknown",
        encoders=(identity,),
        splits={},
        caveat="; ".join(part for part in (identity.caveat, _CAVEAT) if part),
    )
    return HeadCard(
        head=spec.to_json(),
        id=f"emoclip-{sha256[:12]}",
        status="done",
        snapshot="last",
        recipe=with_settings(Recipe(task=task.name), settings),
        data=facts,
        validation=None,
        chance=Chance(answer="unknown", majority=None),
        versions=versions(),
        git_commit=git_commit(),
    )
