"""The text tower of the encoder that made a bank, and a cache of the vectors of its prompts.

Vectors of texts and images can be compared only if both are of the same weights, so a weights file
must yield the bank's fingerprint of the image tower. A vector follows from the weights and the
prompt, and is kept under both (``$RAFFECT_CACHE``, or ``~/.cache/raffect``, in ``text/``): the text
tower of ViT-L/14 takes about a second a prompt on a CPU.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from annotated_types import Ge, Gt

from raffect.bank.joined import text_space
from raffect.bank.records import Identity, Text
from raffect.config import EncoderConfig
from raffect.encoders.tower import Clip, build_model, digest_tensors, fingerprint, make_known
from raffect.encoders.weights import Source, is_timm, read_model_config, resolve
from raffect.errors import RaffectError, require
from raffect.progress import stage
from raffect.storage.atomic import write_atomic
from raffect.storage.paths import Damaged, read_parquet, sha256_of
from raffect.storage.records import Record

_BATCH = 16
"""Prompts a step: one static shape, its tail padded, so that a vector has the same last bits
whatever prompts are encoded with it."""
_SHOWN = 100
_REMEDY = "delete it, it is made again"


@dataclass(frozen=True, kw_only=True)
class TextIdentity(Record):
    """Which text tower made vectors of prompts.

    Attributes:
        model: open_clip model name.
        weights: How they were asked for.
        image_sha256: Fingerprint of the image tower in the same weights, as in the bank.
        text_sha256: Fingerprint of everything else in them: text tower and scale.
        dim: Length of a vector.
        context_length: Most tokens of a prompt, start and end included.
        scale: By which the weights multiply cosines before a softmax.
        caveat: What every result must say; empty for pretrained weights.
    """

    model: Text
    weights: str
    image_sha256: Text
    text_sha256: Text
    dim: Annotated[int, Ge(1)]
    context_length: Annotated[int, Ge(3)]
    scale: Annotated[float, Gt(0)]
    caveat: str = ""


class TextEncoder:
    """A text tower on the CPU in float32, loaded once a prompt is not in the cache.

    Args:
        source: The weights.
        folder: The cache of these weights; made when something is written.

    Attributes:
        source: The weights.
        num_encoded: Prompts that were encoded, because the cache did not have them.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self._folder, self.num_encoded = source, folder, 0
        self._unknown: dict[str, tuple[str, ...]] = {}

    @cached_property
    def identity(self) -> TextIdentity:
        """Of its weights; read from the cache if they were loaded before."""
        path = self._folder / "identity.json"
        if path.exists():
            return TextIdentity.from_json(path.read_bytes(), path, _REMEDY)
        model = self.model
        others = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith("visual.")
        }
        found = TextIdentity(
            model=self.source.model,
            weights=self.source.name,
            image_sha256=fingerprint(model.visual),
            text_sha256=digest_tensors(others),
            dim=self._encode([""]).shape[1],
            context_length=self.tokenizer.context_length,
            scale=model.logit_scale.detach().exp().item(),
            caveat=self.source.caveat,
        )
        _keep(path, found.to_bytes())
        return found

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, start and end included."""
        return len(_load_tokenizer(self.source.model).encode(prompt)) + 2

    def encode(self, prompts: Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """Vectors of prompts.

        Args:
            prompts: In any number.
            truncate: Cut one with more tokens than the model reads, instead of refusing it: its
                last token is then the end token, as in CLIP's ``tokenize(truncate=True)``.

        Returns:
            As the tower gives them, not normalised: float32, shape (len(prompts), dim).

        Raises:
            RaffectError: If a prompt has more tokens than the model reads, or none.
        """
        for prompt in dict.fromkeys(() if truncate else prompts):
            self._require_fit(prompt)
        known = self._cached
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if missing:
            with stage(f"encoding {len(missing)} prompts"):
                vectors = self._encode(missing)
            unknown = [self._find_unknown(prompt) for prompt in missing]
            known |= zip(missing, vectors, strict=True)
            self._unknown |= zip(missing, unknown, strict=True)
            self.num_encoded += len(missing)
            _keep(*_pack(self._folder, missing, vectors, unknown))
        return np.stack([known[prompt] for prompt in prompts])

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of encoded prompts that the weights have no vector for, such as names of feelings
        in the embedded encoder: they say nothing to it.
        """
        return sorted({word for prompt in prompts for word in self._unknown.get(prompt, ())})

    @cached_property
    def _cached(self) -> dict[str, np.ndarray]:
        """Vectors by prompt that earlier calls have kept."""
        found: dict[str, np.ndarray] = {}
        for path in sorted(self._folder.glob("*.parquet")):
            try:
                table = read_parquet(path)
                prompts, unknown = (table[name].to_pylist() for name in ("prompt", "unknown"))
                flat = table["vector"].combine_chunks().flatten().to_numpy()
                vectors = flat.reshape(len(prompts), self.identity.dim)
            except (Damaged, KeyError, ValueError, AttributeError, pa.ArrowException) as error:
                what = f"{path}: damaged ({str(error).splitlines()[0][:80]})"
                raise RaffectError(f"{what}; {_REMEDY}") from error
            found |= zip(prompts, vectors, strict=True)
            words = (tuple(part) for part in unknown)
            self._unknown |= zip(prompts, words, strict=True)
        return found

    @property
    def tokenizer(self) -> Any:
        """open_clip's, of the model."""
        return _load_tokenizer(self.source.model)

    @cached_property
    def model(self) -> Clip:
        """open_clip's whole model in float32, loaded on first use."""
        _load_tokenizer(self.source.model)  # refuses a model before its weights are read
        with stage(f"loading {self.source.model} with its text tower"):
            return build_model(self.source).eval()

    def _require_fit(self, prompt: str) -> None:
        require(bool(prompt.strip()), "an empty prompt; write a sentence, or leave the class out")
        tokens = len(self.tokenizer.encode(prompt)) + 2
        most = self.tokenizer.context_length
        shown = prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]} ..."
        require(
            tokens <= most,
            f"prompt of {tokens} tokens, {self.source.model} reads {most}: {shown!r}; shorten it",
        )

    @torch.inference_mode()
    def _encode(self, prompts: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            tokens = self.tokenizer([*batch, *[""] * (_BATCH - len(batch))])
            parts.append(self.model.encode_text(tokens)[: len(batch)].float().numpy())
        vectors = np.concatenate(parts)
        require(
            bool(np.isfinite(vectors).all()),
            f"{self.source.name}: its text tower gives NaN or infinity; download the weights again",
        )
        return vectors

    def _find_unknown(self, prompt: str) -> tuple[str, ...]:
        """Words with an embedding that is all 0: no caption that made the weights had them."""
        tower = getattr(self.model, "text", self.model)
        is_known = tower.token_embedding.weight.any(1)
        words = dict.fromkeys(re.findall(r"[^\W_]+", prompt.lower()))
        return tuple(word for word in words if not is_known[self.tokenizer.encode(word)].all())


def open_text_encoder(bank: Identity, bank_path: Path, weights: str = "") -> TextEncoder:
    """The text tower that goes with a bank.

    Args:
        bank: The bank's encoder.
        bank_path: Where it is, for errors.
        weights: Tag or file of its weights; by default as the bank names them.

    Raises:
        RaffectError: If the weights are missing, or are not those that made the bank, or it joins
            vectors of several encoders.
    """
    space = text_space(bank)
    if space is None:
        raise RaffectError(
            f"{bank_path}: joined of {bank.model}, {bank.weights}, and texts can only be compared "
            "with vectors of one encoder, or with a mean of its views; use the bank of a CLIP model"
        )
    bank = space
    require(
        not is_timm(bank.model),
        f"{bank_path}: made by {bank.model}, which has no text tower; use a bank of a CLIP model",
    )
    # The weights, which the bank names without their folder
    try:
        source = resolve(EncoderConfig(model=bank.model, weights=weights or bank.weights))
    except RaffectError as error:
        what = f"{bank_path}: texts need the weights that made it, {bank.weights} of {bank.model}"
        raise RaffectError(f"{what}; name them with --weights ({error})") from error
    name = _name_of(source)
    encoder = TextEncoder(source, _cache_folder() / name)

    # The same weights
    found = encoder.identity.image_sha256
    require(
        found == bank.weights_sha256,
        f"{bank_path}: made by other weights than {source.name} (image tower "
        f"{bank.weights_sha256[:12]} against {found[:12]}); texts and images must be encoded by "
        "the same weights, name those with --weights",
    )
    return encoder


@cache
def _load_tokenizer(model: str) -> Any:
    """The tokenizer of a model.

    Raises:
        RaffectError: If it would be downloaded.
    """
    config = read_model_config(model).get("text_cfg", {})
    require(
        "hf_tokenizer_name" not in config and "siglip" not in model.lower(),
        f"{model}: its tokenizer does not come with open_clip; use a CLIP model for texts",
    )
    make_known(model)
    return open_clip.get_tokenizer(model)


def _cache_folder() -> Path:
    return Path(os.environ.get("RAFFECT_CACHE") or Path.home() / ".cache" / "raffect") / "text"


def _name_of(source: Source) -> str:
    """Name of the cache of some weights, from their content."""
    content = source.name if source.file is None else sha256_of(source.file)
    return hashlib.sha256(f"{source.model} {content}".encode()).hexdigest()[:16]


def _pack(
    folder: Path, prompts: Sequence[str], vectors: np.ndarray, unknown: Sequence[Sequence[str]]
) -> tuple[Path, bytes]:
    """A file of the cache, named by its content, so that several writers do not meet."""
    flat = pa.array(vectors.astype(np.float32).ravel())
    table = pa.table(
        {
            "prompt": pa.array(prompts, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            "unknown": pa.array([list(words) for words in unknown], pa.list_(pa.string())),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    return folder / f"{hashlib.sha256(content).hexdigest()[:16]}.parquet", content


def _keep(path: Path, content: bytes) -> None:
    """Write a file of the cache, if that is possible."""
    try:
        write_atomic(path, content)
    except OSError as error:
        line = "%s: prompts are not kept for the next time (%s)"
        logging.getLogger("raffect").warning(line, path.parent, error.strerror or error)
