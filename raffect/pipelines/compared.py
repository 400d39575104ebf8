"""What `raffect compare` compares: encoders and banks by name, and recipes."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffect.bank.format import Bank
from raffect.config import CompareConfig, EncoderConfig, TrainConfig
from raffect.config.compare import name_encoder, read_encoder
from raffect.errors import RaffectError, require
from raffect.evaluation.comparison import Origin
from raffect.pipelines.known import digest_inputs
from raffect.recipe import flatten, plain

_JOINED = "joined"
_VERSION = 1
"""Of what is computed: another one makes known results old."""


@dataclass(frozen=True)
class Candidate:
    """A bank to compare.

    Attributes:
        letter: Names it in table and figure.
        name: As the table has it.
        folder: Name of its folders below OUT.
        path: Of the bank.
        origin: As of `raffect.evaluation.comparison.ComparedBank`.
        encoder: What makes it here; None for a bank that was given, and for joined ones.
    """

    letter: str
    name: str
    folder: str
    path: Path
    origin: Origin
    encoder: EncoderConfig | None = None


def list_candidates(config: CompareConfig) -> list[Candidate]:
    """Encoders, given banks, and the joined one, each with a name and a letter of its own.

    Raises:
        RaffectError: If a bank is there twice, or two have one name.
    """
    banks = config.out.absolute() / "banks"
    found: list[tuple[str, Path, Origin, EncoderConfig | None]] = []
    for encoder in map(read_encoder, config.encoders):
        name = name_encoder(encoder)
        found.append((name, banks / _as_folder(name), "encoded", encoder))
    paths = [path.absolute() for path in config.banks]
    doubled = [path for path in paths if paths.count(path) > 1]
    require(not doubled, f"--banks: {doubled[0] if doubled else ''} is there twice; give it once")
    names = [path.name for path in paths]
    for path in paths:
        name = path.name if names.count(path.name) == 1 else str(path)
        found.append((name, path, "given", None))
    if config.join:
        found.append((_JOINED, banks / _JOINED, "joined", None))

    # Each with a folder for its runs
    folders = [_as_folder(name) for name, *_ in found]
    for (name, *_), folder in zip(found, folders, strict=True):
        require(
            folders.count(folder) == 1,
            f"{name}: two encoders or banks have this name, or nearly; give each once, and rename "
            "one of two files or folders of the same name",
        )
    return [
        Candidate(letter, name, folder, path, origin, encoder)
        for letter, (name, path, origin, encoder), folder in zip(
            string.ascii_uppercase, found, folders, strict=False
        )
    ]


def _as_folder(name: str) -> str:
    """A name that any file system takes; names that differ in other signs alone share it."""
    return re.sub(r"[^\w.@+-]+", "-", name, flags=re.A).strip("-.")


def find_against(config: CompareConfig, candidates: Sequence[Candidate]) -> str:
    """``best``, ``first``, or the letter of the one that ``--against`` names."""
    if config.against in ("best", "first"):
        return config.against
    word = config.against
    for found in candidates:
        if word in (found.name, str(found.path)):
            return found.letter
        if found.encoder is not None and found.encoder == read_encoder(word):
            return found.letter
    names = ", ".join(found.name for found in candidates)
    raise RaffectError(f"--against {word}: expected best, first, or one of {names}")


def read_recipes(config: CompareConfig) -> dict[str, TrainConfig]:
    """What heads are trained with, by name; bank and folder are still to be filled in.

    Raises:
        RaffectError: If there is no such recipe, or two have one name.
    """
    settings = {"epochs": config.epochs} if config.epochs else {}
    recipes: dict[str, TrainConfig] = {}
    for word in dict.fromkeys(config.recipe):
        name = Path(word).stem
        require(name not in recipes, f"--recipe {word}: two recipes are named {name}; rename one")
        recipes[name] = TrainConfig.from_recipe(
            word,
            settings,
            task=config.task,
            bank=config.out,
            labels=config.labels,
            out=config.out,
            seed=config.seed,
            num_seeds=config.num_seeds,
            select=config.select,
            device=config.device,
            address=config.address,
        )
    return recipes


def take_fingerprint(
    config: CompareConfig,
    labels: Path,
    candidates: Sequence[Candidate],
    recipes: Mapping[str, TrainConfig],
) -> str:
    """SHA-256 of all that decides the results, as far as files say it."""
    manifest = config.manifest if config.encoders else None
    parts: list[Any] = [_VERSION, digest_inputs(labels, manifest)]
    parts += [[config.join, config.num_seeds, config.select, config.against]]
    parts += [{name: flatten(plain(recipe)) for name, recipe in recipes.items()}]
    for found in candidates:
        encoder = vars(found.encoder) if found.encoder else None
        given = found.origin == "given"
        digest = Bank(found.path).require().digest() if given else ""
        parts.append([found.name, encoder, str(found.path) if given else "", digest])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
