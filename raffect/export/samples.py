"""What an exported file is compared on: frames that heads were judged on, or pictures.

Shape letters: N samples, D feature, T features of a window, H side of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raffect.bank.windows import Window
from raffect.datasets.frames import BadFrame, decode
from raffect.errors import RaffectError, require
from raffect.evaluation.ensemble import Ensemble
from raffect.evaluation.inputs import Inputs, read_inputs
from raffect.export.graph import output_names
from raffect.runs.data import open_dataset
from raffect.runs.pick import PickedHead

_FEATURES, _PICTURES = 10_000, 64
_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_SEED = 0


def take_features(head: PickedHead, window: Window, count: int) -> tuple[Inputs, str]:
    """Features of validation frames of the bank that a head names; drawn ones if that is gone.

    Args:
        head: Of any task.
        window: The shape of a sample.
        count: At most so many; 0 for 10,000.

    Returns:
        The samples, and what they are.
    """
    count, facts = count or _FEATURES, head.card.data
    try:
        return _of_validation(head, window, count), f"validation {facts.samples} of the bank"
    except (RaffectError, OSError):
        dim, rows = facts.encoders[0].dim, count * window.length
        drawn = np.random.default_rng(_SEED).normal(size=(rows, dim)).astype(np.float16)
        places = np.arange(rows).reshape(count, window.length)
        return Inputs(drawn, places), "features drawn at random (bank or labels cannot be read)"


def _of_validation(head: PickedHead, window: Window, count: int) -> Inputs:
    """Samples that are evenly spread over the validation split."""
    facts = head.card.data
    bank, labels, name = Path(facts.bank), Path(facts.labels), facts.task.name
    data = open_dataset(bank, labels, name, ("validation",), allow_incomplete=True)
    (ours,), (theirs,) = facts.encoders, data.facts.encoders
    require(not ours.differences(theirs), f"{bank}: is of another encoder now")
    index = data.splits["validation"]
    keep = np.zeros(len(index), bool)
    keep[np.linspace(0, len(index) - 1, min(count, len(index))).astype(int)] = True
    data = replace(data, splits={"validation": index.select(keep)})
    return read_inputs(data, "validation", [head])[window]


def take_pictures(images: Path | None, side: int, count: int) -> tuple[np.ndarray, str]:
    """Pictures of one size.

    Args:
        images: Folder of pictures, which are resized to squares; None draws noise.
        side: In pixels.
        count: At most so many; 0 for 64.

    Returns:
        uint8, shape (N, H, H, 3), and what they are.

    Raises:
        RaffectError: If a picture cannot be read, or there is no picture.
    """
    count = count or _PICTURES
    if images is None:
        shape = (count, side, side, 3)
        drawn = np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)
        return drawn, "pictures of noise, drawn at random"
    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in _ENDINGS)[:count]
    require(bool(files), f"--images {images}: no picture in it; expected {', '.join(_ENDINGS)}")
    return np.stack([_read(file, side) for file in files]), "pictures of --images"


def _read(file: Path, side: int) -> np.ndarray:
    try:
        picture = Image.fromarray(decode(file.read_bytes()))
    except (BadFrame, OSError) as error:
        raise RaffectError(f"{file}: cannot be read ({error}); mend or remove it") from error
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))


def given_to_file(inputs: Inputs) -> np.ndarray:
    """Samples as a file reads them: float32, shape (N, D) or (N, T, D), NaN where none is."""
    return inputs.to(torch.device("cpu"))(slice(None)).float().numpy()


def expected_of_file(
    ensembles: Sequence[Ensemble], inputs: Inputs, window: Window
) -> dict[str, np.ndarray]:
    """What raffect predicts: by output, probabilities or values, and decisions."""
    found = {}
    for one in ensembles:
        scores = one.scores({window: inputs})
        # Values have no decision; there `zip` leaves out the second
        answers = (scores, one.rules.decide(scores))
        found |= dict(zip(output_names(one.rules), answers, strict=False))
    return found
