"""Banks of damaged copies of frames: extraction as usual, with damage in the bank's identity.

Frames are damaged in memory where they are read, and no damaged picture is written. Heads and banks
of the frames as they are refuse such a bank, because its identity differs from theirs; heads that
are trained on it carry its caveat.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from raffect.bank.format import Bank, Identity
from raffect.bank.joined import join_identities
from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.corruptions import VERSION, Corruption
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.extraction.asked_encoder import load_clip, read_geometry
from raffect.extraction.extract import extract
from raffect.extraction.summary import ExtractSummary

if TYPE_CHECKING:
    from raffect.encoders.tower import Encoder

_KEY = "corruption"


def extract_corrupted(config: ExtractConfig, corruption: Corruption) -> ExtractSummary:
    """Encode damaged copies of a manifest's frames; at strength 0 the frames as they are.

    Args:
        config: As for `extract`; its bank is of this corruption alone.
        corruption: The damage.

    Raises:
        RaffectError: As `extract`, and if the bank holds other copies.
    """
    require_copies(Bank(config.bank), corruption)
    if corruption.strength == 0:
        return extract(config)
    geometry = replace(read_geometry(resolve(config.encoder)), corruption=corruption)
    return extract(config, partial(load_corrupted, corruption=corruption), geometry)


def require_copies(bank: Bank, corruption: Corruption) -> None:
    """Refuse a bank of other copies; one that has no feature yet may become any.

    Raises:
        RaffectError: Names what it holds.
    """
    identity = bank.read_identity()
    if identity is None:
        return
    found, wanted = _describe(identity), _mark(corruption) if corruption.strength else ""
    if found != wanted:
        none = "frames without damage"
        raise RaffectError(
            f"{bank.path}: holds {found or none}, not {wanted or none}; delete it, or give another "
            "folder"
        )


def load_corrupted(
    config: EncoderConfig, device: str, threads: int, corruption: Corruption
) -> Encoder:
    """The encoder, whose identity says what is done to the frames that it is given."""
    encoder = load_clip(config, device, threads)
    encoder.identity = mark(encoder.identity, corruption)
    return encoder


def mark(identity: Identity, corruption: Corruption) -> Identity:
    """The identity of an encoder whose frames are damaged."""
    name, strength = corruption.name, corruption.strength
    caveats = [identity.caveat, f"frames damaged by {name} of strength {strength}"]
    return replace(
        identity,
        preprocess={**identity.preprocess, _KEY: _mark(corruption)},
        caveat="; ".join(caveat for caveat in caveats if caveat),
    )


def without_mark(identity: Identity) -> Identity:
    """The identity of a bank's encoder, whatever is done to its frames; caveats stay."""
    if identity.joined is not None:
        parts = [without_mark(part) for part in identity.joined.parts]
        return join_identities(parts, identity.joined.how)
    kept: dict[str, Any] = {k: v for k, v in identity.preprocess.items() if k != _KEY}
    return replace(identity, preprocess=kept)


def _mark(corruption: Corruption) -> str:
    # A seed decides nothing where nothing is drawn, and is named all the same: one rule for all
    name, strength, seed = corruption.name, corruption.strength, corruption.seed
    return f"{name} of strength {strength}, seed {seed}, version {VERSION}"


def _describe(identity: Identity) -> str:
    found = {str(encoder.preprocess.get(_KEY, "")) for encoder in identity.encoders}
    return " and ".join(sorted(found))
