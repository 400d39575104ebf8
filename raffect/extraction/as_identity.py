"""Make the vectors that a bank's identity describes, of new frames: for heads trained on that bank.

A single encoder extracts; a joined identity extracts with the encoder of each part, into banks
beside the one that joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from raffect.bank.join import join_banks
from raffect.bank.joined import name_of
from raffect.bank.records import Identity
from raffect.config import ExtractConfig
from raffect.encoders.weights import encoder_of
from raffect.errors import require
from raffect.extraction.extract import extract

_IMPORTED = "imported"


def require_loadable(identity: Identity, weights: str, folder: Path) -> None:
    """Refuse heads whose features cannot be computed from pictures.

    Args:
        identity: What the features of a head are.
        weights: ``--weights``; empty where the identity's own are to be taken.
        folder: The head's, for errors.

    Raises:
        RaffectError: If vectors were imported, or ``weights`` would be those of several encoders.
    """
    singles = identity.encoders
    imported = [name_of(single) for single in singles if single.weights_sha256 == _IMPORTED]
    require(
        not imported,
        f"{folder}: was trained on imported vectors ({', '.join(imported)}), which raffect cannot "
        "compute from pictures; use a bank of them",
    )
    require(
        not weights or len({single.weights_sha256 for single in singles}) == 1,
        f"--weights {weights}: {folder} was trained on vectors of {identity.model}, which are of "
        "different weights; leave it out, and put their files where `raffect models path` says",
    )


def extract_as(
    identity: Identity,
    config: ExtractConfig,
    weights: str = "",
    extract_one: Callable[[ExtractConfig], Any] = extract,
) -> None:
    """Make or continue a bank of an identity; what is finished is kept.

    Args:
        identity: What its vectors are to be.
        config: Manifest, bank and machines; its encoder does not count.
        weights: Tag or file of the encoder's weights, in place of the identity's.
        extract_one: Extracts with one encoder.

    Raises:
        RaffectError: As `extract` and `raffect.bank.join.join_banks`.
    """
    if identity.joined is None:
        extract_one(replace(config, encoder=encoder_of(identity, weights)))
        return
    paths = []
    for number, part in enumerate(identity.joined.parts, 1):
        path = config.bank.with_name(f"{config.bank.name}-part{number}")
        extract_as(part, replace(config, bank=path), weights, extract_one)
        paths.append(path)
    join_banks(paths, config.bank, identity.joined.how)
