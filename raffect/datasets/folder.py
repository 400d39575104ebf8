"""`raffect prepare --dataset folder`: pictures of any name at any depth; a folder a class, or no labels at all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.importing import (
    SPLIT_NAMES,
    Imported,
    Problem,
    count_splits,
    deal_split,
    describe_counts,
)
from raffect.datasets.manifest import list_pictures
from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.storage.keys import digest_keys

_DEALT_SEED = 0


def import_folder(config: PrepareConfig) -> Imported:
    """List pictures, and take the class of each from the folder it lies in.

    Below a root may stand the split (train, val, test ...), then the class, then anything: ``root/train/happy/2019/IMG_0001.jpg``.
    A picture is its own group, and its key is its path below the root, frame 1.

    Raises:
        RaffectError: If there is no picture, or ``--classes`` names a folder that is not there.
    """
    require(
        config.annotations is None,
        "--annotations: --dataset folder has none, the folders are the labels; --dataset table reads a file",
    )
    listing = list_pictures(config.images)
    found = Imported(
        manifest=listing.table,
        labels={},
        edition="folders",
        groups="pictures",
        digest=digest_keys(listing.table),
    )
    found.problems = [
        Problem(path, 0, what)
        for path, _, what in (problem.partition(": ") for problem in listing.problems)
    ]
    found.lines = [
        f"images: {len(listing.table):,} pictures ({listing.num_other:,} other files ignored)",
        *listing.link_lines(),
    ]
    names = listing.table["video"].to_pylist()
    places = [_read_place(name) for name in names]
    classes = _choose_classes(config, [label for _, label in places])
    if len(classes) < 2:
        found.lines.append(
            f"labels: none ({'--no-with-labels' if not config.with_labels else 'no two folders of pictures side by side'})"
        )
        return found
    task = Task(name=config.task, kind="multiclass", outputs=classes, columns=("label",))
    number = {name: k for k, name in enumerate(classes)}
    values = np.array([number.get(label, -1) for _, label in places], np.int16)
    found.problems += [
        Problem(name, 0, f"folder {label!r} is not among --classes; unlabelled")
        for name, (_, label) in zip(names, places, strict=True)
        if label and label not in number
    ]
    has_split = all(split for split, _ in places)
    split = (
        np.array([split for split, _ in places])
        if has_split
        else deal_split(names, config.validation_share, _DEALT_SEED)
    )
    table = pa.table(
        {
            "video": listing.table["video"],
            "frame": listing.table["frame"],
            "split": pa.array(split.tolist()).dictionary_encode(),
            "label": values,
        }
    )
    found.labels[task] = table
    found.lines += [
        f"labels: {task.name}, a class a folder: {', '.join(f'{k} {name}' for k, name in enumerate(classes))}"
    ]
    found.lines += [
        f"split: {'as the folders say' if has_split else f'dealt by picture, {config.validation_share:g} held out'}"
    ]
    found.counts = count_splits(task, table, values >= 0, found.manifest)
    found.lines += describe_counts(found.counts, found.groups)
    return found


def _read_place(path: str) -> tuple[str, str]:
    """Split and class that the folders of a picture name; empty where they name none."""
    folders = path.split("/")[:-1]
    split = SPLIT_NAMES.get(folders[0].lower(), "") if folders else ""
    rest = folders[1:] if split else folders
    return split, rest[0] if rest else ""


def _choose_classes(config: PrepareConfig, labels: list[str]) -> tuple[str, ...]:
    """Classes in order: those of ``--classes``, else the folders by name."""
    counts = Counter(label for label in labels if label)
    if not config.with_labels:
        return ()
    if missing := [name for name in config.classes if name not in counts]:
        require(
            False,
            f"--classes {missing[0]}: no such folder of pictures; there are {', '.join(sorted(counts)) or 'none'}",
        )
    return config.classes or tuple(sorted(counts))
