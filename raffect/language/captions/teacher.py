"""Targets of a teacher: another bank's vectors of the same frames or clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.clips import find_clips
from raffect.bank.features import find_features
from raffect.bank.format import Bank
from raffect.datasets.labels import is_of_clips
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.language.captions.captioned import Captioned
from raffect.language.captions.in_bank import find_frames
from raffect.storage.equal_rows import number_equal

_ROW = Task(name="teacher", kind="regression", outputs=("row",), columns=("row",), unlabelled=None)
"""By which the teacher's vectors find back to their rows."""


def read_teacher(path: Path, found: Captioned) -> tuple[Captioned, np.ndarray]:
    """A teacher's vector of each row; of a clip, the mean of its frames' normalised vectors.

    Rows that the teacher lacks are left out. Equal vectors are one target.

    Args:
        path: A bank with the same names of videos and the same frame numbers.
        found: Frames or clips, each once.

    Returns:
        The rows with the numbers of their targets, and the vectors, shape (V, E), float16, as the
        teacher has them.

    Raises:
        RaffectError: If no row is in the teacher, or a vector is not finite or all 0.
    """
    # Rows that it has
    teacher = Bank(path).require()
    teacher.require_identity()
    frames = find_frames(teacher)
    extracted, _ = frames.count(found.table)
    if not extracted.any():
        names = frames.vocabulary.names
        has = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        raise RaffectError(
            f"--teacher {path}: has none of the {len(found):,} rows of {found.where}, it has "
            f"videos {has}; a teacher needs the same names of videos and frame numbers"
        )
    found = found.without(extracted == 0, f"frames that the teacher {path.name} does not have")

    # Their vectors, in the order of the rows
    keys = [name for name in ("video", "frame", "start", "end") if name in found.table.column_names]
    rows = found.table.select(keys)
    if is_of_clips(rows):
        rows = rows.append_column("frame", rows["start"])
    rows = rows.append_column("split", pa.array(["train"] * len(rows)))
    rows = rows.append_column("row", pa.array(np.arange(len(rows))))
    if is_of_clips(found.table):
        index = find_clips(teacher, rows, _ROW, "train", commits=teacher.read_commits())
    else:
        index = find_features(teacher, rows, _ROW, "train")
    x, number = index.read(), index.y[:, 0].astype(np.int64)
    there = np.zeros(len(rows), bool)
    there[number] = True
    found = found.without(~there, f"clips that the teacher {path.name} has in part so far")
    x = x[np.argsort(number)]
    bad = ~np.isfinite(x).all(axis=1) | ~x.any(axis=1)
    require(
        not bad.any(),
        f"--teacher {path}: vectors of {int(bad.sum()):,} rows are not finite, or all 0; "
        "such a vector says nothing of a frame",
    )

    # Equal vectors once
    target, first = number_equal(x)
    table = found.table.append_column("target", pa.array(target))
    return replace(found, table=table), x[first]
