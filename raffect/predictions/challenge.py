"""`raffect submit`: the entry of a challenge, exactly the rows that its organisers list.

Frames that the table does not predict, such as those without a face, are filled in
(`raffect.predictions.gaps`); decision rules are applied to the filled probabilities. What was
written is read back and compared with the template before it appears.

Shape letters: M predicted frames, N rows of the entry, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from raffect.config import SubmitConfig
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.predictions.columns import columns_of
from raffect.predictions.entry import cells_of, write_entry
from raffect.predictions.gaps import HOW, Filling, fill_gaps
from raffect.predictions.other_rules import choose_for_table, smooth_anew
from raffect.predictions.rules import DecisionRules
from raffect.predictions.table import ROWS, PredictionFacts, iter_predictions, read_facts
from raffect.predictions.template import Template, read_template
from raffect.storage.atomic import atomic_path

_pc: Any = pa.compute
"""Its functions are made at run time, so that no checker of types knows them."""
_MTL_ORDER = (VA, EXPR, AU)
_SHOWN = 5
"""Videos that a line names."""


@dataclass(frozen=True, kw_only=True)
class SubmitResult:
    """An entry that was written and read back.

    Attributes:
        out: Its file, or its folder with a file a video.
        filled_file: CSV with the frames that were filled in; None if all were predicted.
        facts: Where the predictions come from.
        tasks: What the entry predicts, in the order of its columns.
        videos: Names of its videos.
        counts: Rows of each video by how they were made, in the order of
            `raffect.predictions.gaps.HOW`, shape (videos, 4).
        guessed: Videos whose number of frames the template does not give: as many as the table has.
        notes: Which decision rules were applied.
    """

    out: Path
    filled_file: Path | None
    facts: PredictionFacts
    tasks: tuple[Task, ...]
    videos: tuple[str, ...]
    counts: np.ndarray
    guessed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the entry."""
        return int(self.counts.sum())

    @property
    def by_how(self) -> dict[str, int]:
        """Rows by how they were made."""
        return dict(zip(HOW, self.counts.sum(0).tolist(), strict=True))

    @property
    def without(self) -> list[str]:
        """Videos without any predicted frame: all their rows are the prior."""
        return [name for name, row in zip(self.videos, self.counts, strict=True) if row[3]]

    def to_pandas(self) -> Any:
        """Rows by how they were made, a row a video; a pandas DataFrame."""
        columns = {name: self.counts[:, k] for k, name in enumerate(HOW)}
        return pa.table({"video": list(self.videos), **columns}).to_pandas()

    def lines(self) -> list[str]:
        """The result as lines of text."""
        names = " + ".join(task.name.upper() for task in self.tasks)
        parts = [f"{count:,} {how}" for how, count in self.by_how.items() if count]
        lines = [f"{names}: {self.rows:,} rows of {len(self.videos):,} videos: {', '.join(parts)}"]
        lines += self.notes
        if self.without:
            what = f"{len(self.without)} video(s) without a predicted frame have the prior"
            lines.append(f"{what}, the mean of all predictions: {_some(self.without)}")
        if self.guessed:
            what = f"{len(self.guessed)} video(s) have as many rows as the table has frames"
            lines.append(f"{what}, since the template does not say: {_some(self.guessed)}")
        if self.facts.incomplete:
            lines.append(f"INCOMPLETE BANK: it lacked {self.facts.incomplete}; they are filled in")
        lines += [f"caveat: {caveat}" for caveat in self.facts.caveats]
        lines.append(f"wrote {self.out}, read back: rows, order and values are the template's")
        return [*lines, *([f"filled rows: {self.filled_file}"] if self.filled_file else [])]


def submit(config: SubmitConfig) -> SubmitResult:
    """Write the entry of a challenge.

    Raises:
        RaffectError: If the template is not one or of another task, the table lacks every video of
            it, rules do not go with the table, or what was written is not what the template lists.
    """
    # What is wanted, and what the table has of it
    template, facts = read_template(config.template), read_facts(config.predictions)
    had = _match(template, facts, config)
    rules, notes = choose_for_table(had, config.postprocess, config.predictions)
    _require_free(config, template)
    found = _read_known(config.predictions, facts, had, template.videos)
    require(
        len(found.key) > 0,
        f"{config.predictions}: predicts no frame of the {len(template.videos):,} videos of "
        f"{config.template}, first {template.videos[0]}; predict on the bank of these videos",
    )
    rows = _list_rows(template, found.last_frame)

    # Every row, with what is missing filled in
    filling = fill_gaps(found.key, (rows.video << 32) | rows.frame)
    scores = smooth_anew(found.scores, found.key, rules, had)
    parts = filling.iter_scores(scores, found.prior, ROWS)
    cells = pa.chunked_array([cells_of(rules, part) for _, part in parts]).combine_chunks()
    _write(config.out, template, rows, cells, [one.task for one in rules])
    counts = np.zeros((len(template.videos), len(HOW)), np.int64)
    np.add.at(counts, (rows.video, filling.how), 1)
    return SubmitResult(
        out=config.out,
        filled_file=_write_filled(config.out, template.videos, rows, filling),
        facts=facts,
        tasks=tuple(one.task for one in rules),
        videos=tuple(template.videos),
        counts=counts,
        guessed=rows.guessed,
        notes=tuple(notes),
    )


def _match(template: Template, facts: PredictionFacts, config: SubmitConfig) -> list[DecisionRules]:
    """Rules of the tasks that a template is of, in the order of its columns.

    Raises:
        RaffectError: If the table does not predict them.
    """
    by_outputs = {one.task.outputs: one for one in reversed(facts.rules)}
    names = [task.name for task in facts.tasks]
    table = f"{config.predictions} predicts {' and '.join(names)}"
    if template.form == "mtl":
        lacking = [task.name for task in _MTL_ORDER if task.outputs not in by_outputs]
        require(
            not lacking,
            f"{template.path}: a template of {template.what}, which takes expr, au and va, but "
            f"{table}; give `raffect predict` the heads of all three",
        )
        return [by_outputs[task.outputs] for task in _MTL_ORDER]

    # A list of videos does not say which task
    if not template.columns:
        chosen = [one for one in facts.rules if config.task in ("", one.task.name)]
        require(
            len(chosen) == 1,
            f"{template.path}: a list of videos says no task, and {table}; choose with --task",
        )
        return chosen
    require(
        template.columns in by_outputs,
        f"{template.path}: a template of {template.what}, but {table}; "
        "give the template of that task, or predict with other heads",
    )
    return [by_outputs[template.columns]]


def _require_free(config: SubmitConfig, template: Template) -> None:
    """Refuse to write over the template, or into a folder with other files.

    Raises:
        RaffectError: Names the file in the way.
    """
    out = config.out
    same = out.resolve() in (config.template.resolve(), config.predictions.resolve())
    require(not same, f"--out {out}: would be written over what is read; name another one")
    if template.form != "videos":
        require(not out.is_dir(), f"--out {out}: a folder, but the template is one file")
        return
    require(not out.exists() or out.is_dir(), f"--out {out}: a file, but an entry is a folder")
    ours = {f"{name}.txt" for name in template.videos}
    others = sorted(file.name for file in out.glob("*") if file.name not in ours)
    require(not others, f"--out {out}: holds {others[:1]}, which is not of the entry; empty it")


@dataclass(frozen=True)
class _Known:
    """What a table predicts of the videos of a template.

    Attributes:
        key: ``video << 32 | frame``, ascending, shape (M,).
        scores: Probabilities or values, float32, shape (M, C).
        prior: Their mean over all frames of the table, shape (C,).
        last_frame: Highest frame number of each video, predicted or not; 0 for none.
    """

    key: np.ndarray
    scores: np.ndarray
    prior: np.ndarray
    last_frame: np.ndarray


def _read_known(
    path: Path, facts: PredictionFacts, rules: Sequence[DecisionRules], videos: Sequence[str]
) -> _Known:
    """Read the scores of some tasks for some videos.

    Raises:
        RaffectError: If the table predicts a frame twice, as for two faces.
    """
    by_task = columns_of(facts.tasks)
    columns = [name for one in rules for name in by_task[one.task.name].scores]
    wanted, last_frame = pa.array(videos, pa.string()), np.zeros(len(videos), np.int64)
    keys, scores = [np.empty(0, np.int64)], [np.empty((0, len(columns)), np.float32)]
    total, count = np.zeros(len(columns)), 0
    for part in iter_predictions(path, ["video", "frame", *columns]):
        # The mean of all predictions
        values = np.column_stack([part[name].to_numpy() for name in columns])
        is_predicted = np.isfinite(values).all(axis=1)
        total += values[is_predicted].sum(0, dtype=np.float64)
        count += int(is_predicted.sum())
        # Those of the template's videos
        place = _pc.index_in(part["video"], value_set=wanted)
        video = place.fill_null(-1).to_numpy().astype(np.int64)
        frame = part["frame"].to_numpy().astype(np.int64)
        np.maximum.at(last_frame, video[video >= 0], frame[video >= 0])
        keep = is_predicted & (video >= 0)
        keys.append((video[keep] << 32) | frame[keep])
        scores.append(values[keep])

    # In order, each frame once
    key, found = np.concatenate(keys), np.concatenate(scores)
    order = np.argsort(key, kind="stable")
    key = key[order]
    if len(doubled := np.flatnonzero(np.diff(key) == 0)):
        first = int(key[doubled[0]])
        raise RaffectError(
            f"{path}: predicts {videos[first >> 32]} frame {first & 0xFFFFFFFF} twice; an entry "
            "has one row a frame"
        )
    return _Known(key, found[order], total / max(count, 1), last_frame)


@dataclass(frozen=True)
class _Rows:
    """Rows of an entry.

    Attributes:
        video: Number of each row's video, int64, shape (N,).
        frame: Its 1-based frame, int64, shape (N,).
        guessed: Videos whose number of frames is that of the table.
    """

    video: np.ndarray
    frame: np.ndarray
    guessed: tuple[str, ...] = ()


def _list_rows(template: Template, last_frame: np.ndarray) -> _Rows:
    """Every row of an entry, in order.

    Raises:
        RaffectError: If neither template nor table say how many frames a video has.
    """
    if template.video is not None and template.frame is not None:
        return _Rows(template.video, template.frame)
    counts = np.where(np.array(template.frames) > 0, template.frames, last_frame)
    if not counts.all():
        name = template.videos[int(counts.argmin())]
        raise RaffectError(
            f"{template.path}: does not say how many frames {name} has, and the table has none; "
            "write a line <video>,<frames>"
        )
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    guessed = [name for name, n in zip(template.videos, template.frames, strict=True) if not n]
    return _Rows(
        video=np.repeat(np.arange(len(counts)), counts),
        frame=np.arange(len(starts)) - starts + 1,
        guessed=tuple(guessed),
    )


def _write(
    out: Path, template: Template, rows: _Rows, cells: pa.StringArray, tasks: Sequence[Task]
) -> None:
    """The file of the entry, or its folder with a file a video."""
    header = template.header or ",".join(tasks[0].outputs)
    if template.image is not None:
        write_entry(out, header, template.ending, template.image, cells, tasks)
        return
    begins = np.searchsorted(rows.video, np.arange(len(template.videos) + 1)).tolist()
    for name, (start, stop) in zip(template.videos, pairwise(begins), strict=True):
        part = cells.slice(start, stop - start)
        write_entry(out / f"{name}.txt", header, template.ending, None, part, tasks)


def _write_filled(out: Path, videos: Sequence[str], rows: _Rows, filling: Filling) -> Path | None:
    """Write the rows that were filled in, beside the entry; None if all were predicted."""
    path = out.with_name(f"{out.name}.filled.csv")
    which = np.flatnonzero(filling.how)
    if not len(which):
        path.unlink(missing_ok=True)
        return None
    table = pa.table(
        {
            "video": pa.array(videos, pa.string()).take(pa.array(rows.video[which])),
            "frame": rows.frame[which],
            "filled": pa.array(HOW).take(pa.array(filling.how[which])),
        }
    )
    with atomic_path(path) as temporary:
        pa.csv.write_csv(table, temporary, pa.csv.WriteOptions(quoting_style="needed"))
    return path


def _some(names: Sequence[str]) -> str:
    """The first of some names."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
