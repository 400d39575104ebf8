"""Damaged copies of the frames of a split, each a bank of its own.

A bank is made by `raffect extract` with the damage in its identity; pictures are damaged in memory
alone. What is finished is kept, so a stop costs one shard a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank
from raffect.bank.records import Identity
from raffect.config import ExtractConfig, RobustConfig
from raffect.datasets.corruptions import Corruption
from raffect.datasets.labels import is_of_clips, read_labels, select_split
from raffect.datasets.manifest import is_synthetic_manifest, read_manifest, write_manifest
from raffect.errors import require
from raffect.evaluation.robustness import CLEAN_COPY, Copy
from raffect.extraction.as_identity import extract_as
from raffect.extraction.corrupted import extract_corrupted, require_copies, without_mark
from raffect.extraction.extract import is_finished
from raffect.heads.checkpoint import require_encoder
from raffect.pipelines.pictures import require_pictures
from raffect.ray_session.session import ray_session
from raffect.runs.pick import PickedHead
from raffect.runs.windows import read_windows
from raffect.storage.keys import Vocabulary, positions


def list_copies(config: RobustConfig) -> dict[Copy, Corruption]:
    """The copies in order, that of the frames as they are first."""
    names, strengths = dict.fromkeys(config.corruptions), sorted(set(config.strengths))
    copies = {CLEAN_COPY: Corruption(config.corruptions[0], 0)}
    for name in names:
        copies |= {(name, k): Corruption(name, k, config.seed) for k in strengths}
    return copies


def bank_path(config: RobustConfig, copy: Copy) -> Path:
    """The folder of a copy's bank, below ``--out``."""
    name, strength = copy
    return config.out.absolute() / "banks" / (f"{name}-{strength}" if strength else name)


def write_frames(config: RobustConfig, labels: Path, heads: Sequence[PickedHead]) -> Path:
    """The manifest of the frames to encode.

    They are the labelled frames of the split; of clips, and for heads that read windows, all frames
    of the same videos, so that each window is filled as the trained bank would fill it.

    Raises:
        RaffectError: If the manifest lists none of them.
    """
    manifest, table = read_manifest(config.manifest), read_labels(labels)
    wanted = select_split(table, config.split)
    vocabulary = Vocabulary()
    keys, listed = vocabulary.keys(wanted), vocabulary.keys(manifest)
    if is_of_clips(table) or read_windows(head.recipe.head for head in heads):
        keys, listed = keys >> 32, listed >> 32
    keep = pa.array(positions(listed, np.sort(keys)) >= 0)
    frames = manifest.filter(keep)
    require(
        len(frames) > 0,
        f"{config.manifest}: lists no frame of {labels} {config.split}; check --manifest, --labels "
        "and --split",
    )
    path = config.out.absolute() / "frames.parquet"
    write_manifest(frames, path, is_synthetic_manifest(manifest))
    return path


def extract_copies(
    config: RobustConfig,
    identity: Identity,
    frames: Path,
    copies: dict[Copy, Corruption],
    heads: Sequence[PickedHead],
) -> None:
    """Encode what is missing, all copies in one session of Ray.

    The frames as they are come first: their bank shows whether the weights are those of the heads.

    Raises:
        RaffectError: If pictures are gone, or as `require_encoders` has it.
    """
    manifest = read_manifest(frames)
    todo = [copy for copy in copies if not is_finished(Bank(bank_path(config, copy)), manifest)]
    if CLEAN_COPY not in todo:
        require_encoders(config, CLEAN_COPY, copies[CLEAN_COPY], heads)
    if not todo:
        return
    if not config.address:  # of a cluster only its machines may see the pictures
        require_pictures(manifest, config.manifest)
    with ray_session(config.address):
        for number, copy in enumerate(todo, 1):
            name = " ".join(map(str, copy)) if copy != CLEAN_COPY else "frames without damage"
            print(f"copy {number} of {len(todo)}: {name}", file=sys.stderr, flush=True)
            extract_config = ExtractConfig(
                manifest=frames,
                bank=bank_path(config, copy),
                address=config.address,
                device=config.device,
                allow_embedded=config.allow_embedded,
            )
            extract_copy = partial(extract_corrupted, corruption=copies[copy])
            extract_as(identity, extract_config, config.weights, extract_copy)
            require_encoders(config, copy, copies[copy], heads)


def require_encoders(
    config: RobustConfig, copy: Copy, corruption: Corruption, heads: Sequence[PickedHead]
) -> None:
    """Check that a bank is of this copy, and of the encoder of all heads.

    Raises:
        RaffectError: If it is not.
    """
    path = bank_path(config, copy)
    require_copies(Bank(path), corruption)
    identity = without_mark(Bank(path).require_identity())
    for head in heads:
        require_encoder(head.card, identity, head.folder, path)
