"""`raffect prepare --dataset folder`: pictures of any name at any depth.

The folders are the classes; pictures without such folders have no labels at all.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.imported import (
    SPLIT_NAMES,
    Imported,
    count_splits,
    deal_split,
    describe_counts,
)
from raffect.datasets.listing import list_pictures
from raffect.datasets.problems import Problem
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.storage.keys import digest_keys

_Place = tuple[str, str]
"""Split and class of a picture; empty where its folders name none."""


def import_folder(config: PrepareConfig) -> Imported:
    """List pictures, and take the class of each from the folder it lies in.

    Below a root may stand the split (train, val, test ...), then the class, then anything:
    ``root/train/happy/2019/IMG_0001.jpg``. A picture is its own group, and its key is its path
    below the root, frame 1.

    Raises:
        RaffectError: If no picture is found, or ``--classes`` names a folder that is missing.
    """
    require(
        config.annotations is None,
        "--annotations: --dataset folder has none, the folders are the labels; "
        "--dataset table reads a file",
    )

    # Pictures
    listing = list_pictures(config.images)
    found = Imported(
        manifest=listing.table,
        labels={},
        edition="folders",
        groups="pictures",
        digest=digest_keys(listing.table),
        problems=listing.problems,
    )
    found.lines = [f"images: {len(listing.table):,} pictures", *listing.lines()]

    # Labels, where two folders or more make classes
    places = [_read_place(name) for name in listing.table["video"].to_pylist()]
    classes = _choose_classes(config, [label for _, label in places])
    if len(classes) >= 2:
        _add_labels(found, config, places, classes)
    else:
        reason = "no two folders of pictures side by side"
        found.lines.append(f"labels: none ({reason if config.with_labels else '--no-with-labels'})")
    return found


def _read_place(path: str) -> _Place:
    folders = path.split("/")[:-1]
    split = SPLIT_NAMES.get(folders[0].lower(), "") if folders else ""
    rest = folders[1:] if split else folders
    return split, rest[0] if rest else ""


def _choose_classes(config: PrepareConfig, labels: list[str]) -> tuple[str, ...]:
    """Classes in order: those of ``--classes``, else the folders by name."""
    counts = Counter(label for label in labels if label)
    if not config.with_labels:
        return ()
    missing = [name for name in config.classes if name not in counts]
    if missing:
        present = ", ".join(sorted(counts)) or "none"
        raise RaffectError(
            f"--classes {missing[0]}: no such folder of pictures; there are {present}"
        )
    return config.classes or tuple(sorted(counts))


def _add_labels(
    found: Imported, config: PrepareConfig, places: list[_Place], classes: tuple[str, ...]
) -> None:
    """Add the label table, its counts and its problems to what was found."""
    names = found.manifest["video"].to_pylist()
    task = Task(name=config.task, kind="multiclass", outputs=classes, columns=("label",))

    # Class of each picture; a folder that is not among the classes leaves it unlabelled
    number = {name: k for k, name in enumerate(classes)}
    values = np.array([number.get(label, -1) for _, label in places], np.int16)
    found.problems += [
        Problem(name, 0, f"folder {label!r} is not among --classes; unlabelled")
        for name, (_, label) in zip(names, places, strict=True)
        if label and label not in number
    ]

    # Split of each picture: that of its folder only where every picture has one
    if all(split for split, _ in places):
        splits, how_split = [split for split, _ in places], "as the folders say"
    else:
        share = config.validation_share
        splits = deal_split(names, share).tolist()
        how_split = f"dealt by picture, {share:g} held out"

    # Label table and report
    table = pa.table(
        {
            "video": found.manifest["video"],
            "frame": found.manifest["frame"],
            "split": pa.array(splits).dictionary_encode(),
            "label": values,
        }
    )
    found.labels[task] = table
    numbered = ", ".join(f"{k} {name}" for k, name in enumerate(classes))
    found.lines += [f"labels: {task.name}, a class a folder: {numbered}", f"split: {how_split}"]
    found.counts = count_splits(task, table, values >= 0, found.manifest)
    found.lines += describe_counts(found.counts, found.groups)
