"""Captions made from labels: sentences of phrases such as those of FACS, or of classes.

Shape letters: N rows, M clips, U units (labels, or classes one-hot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from raffect.datasets.labels import is_of_clips, read_values
from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.language.captions.captioned import Captioned, LeftOut
from raffect.language.prompt_sets import TaskPhrases
from raffect.metrics.task_kinds import kind_of
from raffect.storage.equal_rows import number_equal
from raffect.storage.keys import encode_video

_KEPT = ("video", "frame", "start", "end", "split", "group")


@dataclass(frozen=True)
class Labelled:
    """Rows, frames or clips, with what is active in them.

    Attributes:
        table: ``video``; ``frame``, or ``start`` and ``end``; ``split``, perhaps ``group``.
        active: Which units are, bool, shape (N, U).
        known: Which units are labelled, bool, shape (N, U); one in each row at least.
        where: The file they are from, for errors.
        left_out: What was left out so far.
    """

    table: pa.Table
    active: np.ndarray
    known: np.ndarray
    where: str
    left_out: tuple[LeftOut, ...] = ()

    def take(self, rows: np.ndarray) -> Labelled:
        """Some rows in an order, by their numbers."""
        table = self.table.take(pa.array(rows))
        return replace(self, table=table, active=self.active[rows], known=self.known[rows])

    def without(self, wrong: np.ndarray, what: str) -> Labelled:
        """The same without some rows, which are counted; see `Captioned.without`."""
        found = Captioned(self.table, self.where, (), self.left_out).without(wrong, what)
        return replace(self.take(np.flatnonzero(~wrong)), left_out=found.left_out)


def read_labelled(labels: pa.Table, task: Task, where: str) -> Labelled:
    """The labelled rows of a label table; classes become one unit each.

    Raises:
        RaffectError: If a value is not a label of the task, or no row is labelled.
    """
    values = read_values(labels, task)
    wrong = int(kind_of(task).find_wrong(task, values).any(axis=1).sum())
    require(not wrong, f"{where}: {wrong} rows have values that are not labels of {task.name}")
    known = task.is_labelled(values)
    if task.kind == "multiclass":
        active = values == np.arange(len(task.outputs))
        known = np.repeat(known, len(task.outputs), axis=1)
    else:
        active = values == 1
    names = [name for name in _KEPT if name in labels.column_names]
    if is_of_clips(labels):
        names.remove("frame")
    rows = Labelled(labels.select(names), active & known, known, where)
    return rows.without(~np.asarray(known.any(axis=1)), "no label")


def cut_stretches(rows: Labelled, length: int) -> Labelled:
    """Clips of the labelled frames in each stretch of ``length`` frame numbers of a video.

    A unit is active in a clip if it is in at least half of the frames in which it is labelled.
    """
    rows, frame, is_other = _in_order(rows)
    stretch = (frame - 1) // length
    return _join(rows, frame, is_other | (np.diff(stretch, prepend=stretch[:1]) != 0))


def cut_runs(rows: Labelled) -> Labelled:
    """Clips of consecutive labelled frames of a video with the same labels."""
    rows, frame, begins = _in_order(rows)
    cells = np.concatenate([rows.active, rows.known], axis=1)
    begins |= np.diff(frame, prepend=frame[:1] - 1) != 1
    begins[1:] |= (cells[1:] != cells[:-1]).any(axis=1)
    return _join(rows, frame, begins)


def _in_order(rows: Labelled) -> tuple[Labelled, np.ndarray, np.ndarray]:
    """Frames by split, video and number; the numbers; which are the first of a video."""
    codes = [
        encode_video(rows.table[name]).indices.to_numpy(zero_copy_only=False)
        for name in ("split", "video")
    ]
    order = np.lexsort((rows.table["frame"].to_numpy(), codes[1], codes[0]))
    rows, codes = rows.take(order), [part[order] for part in codes]
    begins = np.ones(len(order), bool)
    begins[1:] = (codes[0][1:] != codes[0][:-1]) | (codes[1][1:] != codes[1][:-1])
    return rows, rows.table["frame"].to_numpy().astype(np.int64), begins


def _join(rows: Labelled, frame: np.ndarray, begins: np.ndarray) -> Labelled:
    """Clips of rows in order; ``begins`` says where one begins."""
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(frame)) - 1
    active, known = (
        np.add.reduceat(cells.astype(np.int32), first, axis=0)
        for cells in (rows.active, rows.known)
    )
    table = rows.table.take(pa.array(first)).drop_columns(["frame"])
    for name, ends in (("start", first), ("end", last)):
        table = table.append_column(name, pa.array(frame[ends].astype(np.int32)))
    active = (2 * active >= known) & (known > 0)
    return Labelled(table, active, known > 0, rows.where, rows.left_out)


def caption_units(rows: Labelled, sets: Sequence[TaskPhrases], seed: int) -> Captioned:
    """A sentence for each row: the phrases of its active units in a template.

    Each row has a template of all sets, and for each active unit one of the phrases that the
    template's set has for it, all drawn uniformly and apart; a face without an active unit is at
    rest. Rows without an active unit of which not all labels are known are left out.

    Args:
        rows: Of labels.
        sets: Phrases and templates.
        seed: Of the draws.
    """
    is_unsure = ~np.asarray(rows.active.any(axis=1) | rows.known.all(axis=1))
    rows = rows.without(is_unsure, "nothing active, but not all labels are known")

    # A template, and of its set the number of a phrase for what is active; -1 for all else
    sentences = [(k, text) for k, found in enumerate(sets) for text in found.templates]
    slots = [(k, *slot) for k, found in enumerate(sets) for slot in _slots(found)]
    rng, count = np.random.default_rng(seed), len(rows.active)
    drawn = rng.integers(0, len(sentences), count)
    owner = np.array([k for k, _ in sentences])[drawn]
    shows = np.column_stack([rows.active, ~rows.active.any(axis=1)])
    cells = np.full((count, 1 + len(slots)), -1, np.int32)
    cells[:, 0] = drawn
    for column, (k, unit, phrases) in enumerate(slots, 1):
        choice = rng.integers(0, len(phrases), count)
        cells[:, column] = np.where(shows[:, unit] & (owner == k), choice, -1)

    # Each sentence once
    number, first = number_equal(cells)
    texts = [_write(cells[row], sentences, slots) for row in first]
    once = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    target = np.array([once[text] for text in texts])[number]
    table = rows.table.append_column("target", pa.array(target))
    return Captioned(table, rows.where, list(once), rows.left_out)


def _slots(found: TaskPhrases) -> list[tuple[int, Sequence[str]]]:
    """What a set has phrases for, with these: parts of unit k; -1 is a face at rest."""
    outputs = enumerate(found.outputs.values())
    slots = [(k, phrases) for k, parts in outputs for phrases in parts or ()]
    return [*slots, (-1, found.rest)]


def _write(
    cells: np.ndarray,
    sentences: Sequence[tuple[int, str]],
    slots: Sequence[tuple[int, int, Sequence[str]]],
) -> str:
    """``a face with brows lowered and lips parted``, of what `caption_units` drew for a row."""
    sentence, *choices = cells.tolist()
    _, template = sentences[sentence]
    pairs = zip(slots, choices, strict=True)
    words = [phrases[choice] for (_, _, phrases), choice in pairs if choice >= 0]
    return template.replace("{}", join(words))


def join(phrases: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def caption_classes(rows: Labelled, task: Task, described: Sequence[str]) -> Captioned:
    """Each row with the number of its class among those that prompts describe.

    Rows of other classes, such as Other, are left out. A clip's class is the first one that at
    least half of its frames have.

    Args:
        rows: Of classes.
        task: Their task.
        described: Names of the classes with prompts.
    """
    is_mixed = ~np.asarray(rows.active.any(axis=1))
    rows = rows.without(is_mixed, "no class that at least half of the frames have")
    for k, name in enumerate(task.outputs):
        if name not in described:
            is_own = rows.active.argmax(axis=1) == k
            rows = rows.without(is_own, f"class {name}, which has no prompt")

    # Numbers without the classes left out
    new = np.array([described.index(name) if name in described else -1 for name in task.outputs])
    own = pa.array(new[rows.active.argmax(axis=1)])
    table = rows.table.append_column("target", own).append_column("class", own)
    return Captioned(table, rows.where, tuple(described), rows.left_out)
