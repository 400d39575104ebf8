"""The encoder that a run asks for: how it is loaded, what it reads, whether a bank is its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from raffect.bank.format import Bank, Identity
from raffect.config import EMBEDDED_MODEL, EncoderConfig, ExtractConfig, count_cores
from raffect.datasets.manifest import is_synthetic_manifest
from raffect.encoders.weights import (
    EMBEDDED_CAVEAT,
    Source,
    is_timm,
    read_model_config,
    view_side,
)
from raffect.errors import RaffectError
from raffect.extraction.steps import Geometry


def load_clip(config, device, threads):
    """Load the encoder that actors use by default; only here torch is imported."""
    import torch

    from raffect.encoders.tower import load_encoder

    if device == "cpu":  # Ray gives an actor one thread
        torch.set_num_threads(threads)
    return load_encoder(config, device)


def check_embedded(config: ExtractConfig, manifest: pa.Table) -> None:
    """Refuse photographs for the embedded encoder, unless the user allows them.

    Raises:
        RaffectError: If the manifest lists images that raffect did not draw.
    """
    if config.encoder.model != EMBEDDED_MODEL or config.encoder.weights.startswith("random"):
        return
    if not is_synthetic_manifest(manifest) and not config.allow_embedded:
        raise RaffectError(
            f"{config.manifest} lists images that raffect did not draw, and the embedded encoder "
            "has never seen a photograph; choose a real encoder (`raffect models list`), or pass "
            "--allow-embedded to try it all the same "
            f"(results are labelled {EMBEDDED_CAVEAT!r})"
        )


def check_model(config: ExtractConfig, bank: Bank) -> None:
    """Refuse another model, input or precision before an encoder is loaded.

    Actors compare the tensors.
    """
    identity = bank.read_identity()
    if identity is None:
        return
    precision = config.encoder.precision
    if precision == "auto":
        precision = identity.precision
    wanted = replace(
        identity,
        model=config.encoder.model,
        precision=precision,
        preprocess=_expect_input(config.encoder, identity),
    )
    identity.require_equal(wanted, bank.path)


def _expect_input(encoder: EncoderConfig, identity: Identity) -> dict[str, Any]:
    """A bank's transform with the view and image size that are asked for."""
    found = dict(identity.preprocess)
    found.pop("view", None)
    if encoder.view:
        found["view"] = encoder.view
    if is_timm(encoder.model) and encoder.model == identity.model:
        from raffect.encoders.timm_models import input_size

        found["size"] = input_size(encoder.model, encoder.image_size)
    return found


def check_finished(config: ExtractConfig, bank: Bank) -> None:
    """Refuse another encoder than a finished bank's.

    Weights of the same name count as the same weights. Weights of another name, or given by a path,
    are loaded and compared by their tensors; so are those of a bank whose ``bank.json`` was
    withdrawn, which is made again.
    """
    check_model(config, bank)
    identity = bank.read_identity()
    if identity is None:
        bank.claim(load_clip(config.encoder, "cpu", count_cores()).identity)
    elif identity.weights != config.encoder.weights:
        loaded = load_clip(config.encoder, "cpu", count_cores()).identity
        identity.require_equal(replace(loaded, precision=identity.precision), bank.path)


def read_geometry(source: Source) -> Geometry:
    """The encoder's input, from its configuration files."""
    if is_timm(source.model):
        from raffect.encoders.timm_models import read_transform

        found = read_transform(source)
        names = ("size", "interpolation", "resize_mode", "resize_to")
        return Geometry(**{name: found[name] for name in names})
    size = read_model_config(source.model)["vision_cfg"].get("image_size", 224)
    side = size if isinstance(size, int) else size[0]
    return Geometry(
        size=side,
        interpolation=source.preprocess.get("interpolation", "bicubic"),
        resize_mode=source.preprocess.get("resize_mode", "shortest"),
        resize_to=view_side(side, source.view),
    )
