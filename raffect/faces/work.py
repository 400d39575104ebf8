"""Units of work of `raffect faces`, each of which reads inputs or finished units and is committed.

    scan-000012        the frames of a video, from its packets alone
    part-000012-0003   detections, links and crops of a segment of it
    done-000012        its tracks joined: packed frames and their rows of ``faces.parquet``
    done-000032        the same of a block of pictures, in one step

A unit's files are a pure function of its input and the settings; ``done`` of the committed parts
alone. Once it is committed, scan and parts are deleted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.datasets.frames import BadFrame
from raffect.errors import RaffectError
from raffect.faces import parts
from raffect.faces.detectors import load_detector
from raffect.faces.pictures import read_picture
from raffect.faces.records import FaceSettings, Input, InputFacts, Unit, open_commits
from raffect.faces.table import STATUSES, UNREADABLE
from raffect.faces.tracks import Node
from raffect.faces.video import Scan, scan_video
from raffect.storage.paths import Damaged, parse_parquet
from raffect.storage.records import Count, Record, parse_object
from raffect.storage.tables import read_metadata

ROWS_A_GROUP = 2048
"""Crops of a row group of packed frames, as in a shard of a bank."""

_Table = tuple[str, pa.Table]
"""A table, with the folder in which it belongs."""


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """What one unit of work is to do.

    Attributes:
        unit: Its name.
        kind: Which of the four it is.
        inputs: A video, or the pictures of a block.
        source: Digest of their sizes and times.
        settings: Of the run.
        first: First frame of a segment.
        stop: Frame behind its last one.
        scan: The unit with the frames of the video; empty for a scan itself and for pictures.
        parts: Units of all segments of the video, in order; of a ``join`` alone.
    """

    unit: str
    kind: Literal["scan", "part", "join", "pictures"]
    inputs: tuple[Input, ...]
    source: str
    settings: FaceSettings
    first: Count = 0
    stop: Count = 0
    scan: str = ""
    parts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Frames of a segment, or pictures of a block."""
        return self.stop - self.first if self.kind == "part" else len(self.inputs)


Killers = Mapping[int, str]
"""Place of an input in its task -> what decoding it does to a process, as a reason."""


def run_task(folder: Path, task: Task, killers: Killers = MappingProxyType({})) -> Unit:
    """Do a unit of work and commit it.

    Args:
        folder: Of `raffect faces`.
        task: What to do.
        killers: Inputs that are not to be decoded again.

    Raises:
        RaffectError: If the folder's files are damaged, or the detector cannot be loaded.
        OSError: If the storage is at fault.
    """
    work = {"scan": _scan, "part": _cut, "join": _join, "pictures": _cut_pictures}
    return work[task.kind](folder, task, killers)


def _commit(folder: Path, task: Task, tables: Iterable[_Table] = (), **facts: Any) -> Unit:
    """Write a unit's tables and its record; the one that counts."""
    files = _write(folder, task, tables)
    record = Unit(unit=task.unit, source=task.source, files=files, **facts)
    return open_commits(folder).settle(f"{task.unit}.json", record)


def _write(folder: Path, task: Task, tables: Iterable[_Table]) -> dict[str, tuple[int, str]]:
    """Write tables one by one, each into its folder; names, sizes and SHA-256 of the files."""
    commits, files = open_commits(folder), {}
    for below, table in tables:
        files |= commits.write(task.unit, {below: _to_parquet(table)})
    return files


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    packed = "image" in table.column_names
    compression = "none" if packed else "zstd"
    pq.write_table(table, sink, compression=compression, row_group_size=ROWS_A_GROUP)
    return sink.getvalue().to_pybytes()


def _read(folder: Path, unit: str, below: str) -> pa.Table:
    """A table of a finished unit.

    Raises:
        RaffectError: If it is not as committed; the unit is withdrawn, so that it is done again.
    """
    commits, name = open_commits(folder), f"{unit}.json"
    record = commits.read(name)
    try:
        if record is None or (found := record.file(below)) is None:
            raise Damaged("its record is missing")
        return parse_parquet(commits.read_committed(*found))
    except Damaged as error:
        commits.withdraw(name)
        raise RaffectError(f"{folder}: {unit}: {error}; run the same command again") from error


# Videos


def _scan(folder: Path, task: Task, killers: Killers) -> Unit:
    """Commit the frames of a video, or why it has none."""
    (one,) = task.inputs
    try:
        if killers:
            raise Damaged(killers[0])
        scan = scan_video(one.path)
    except (Damaged, OSError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        facts = describe_input(one, "unreadable", what or "cannot be read")
        return _commit(folder, task, inputs=(facts,))
    columns = {"pts": scan.pts, "seconds": scan.seconds, "keys": scan.keys}
    about: dict[str, Any] = {"is_counted": scan.is_counted, "problem": scan.problem}
    about |= {"width": scan.width, "height": scan.height}
    table = pa.table(columns).replace_schema_metadata({"scan": json.dumps(about)})
    return _commit(folder, task, [("scans", table)])


def read_scan(folder: Path, unit: Unit) -> Scan | None:
    """The frames that a scan found; None if the video cannot be read.

    Raises:
        RaffectError: If its file is damaged.
    """
    if unit.inputs:
        return None
    table = _read(folder, unit.unit, "scans")
    columns = {name: table[name].to_numpy() for name in ("pts", "seconds", "keys")}
    about = parse_object(read_metadata(table)["scan"], folder, "run the same command again")
    return Scan(**columns, **about)


def _cut(folder: Path, task: Task, killers: Killers) -> Unit:
    """Commit a segment of a video."""
    (one,) = task.inputs
    scan = _scan_of(folder, task)
    if scan is None:
        raise RaffectError(f"{folder}: {task.unit}: no scan; run the same command again")
    bounds = task.first, task.stop
    try:
        if killers:
            raise Damaged(killers[0])
        detector = load_detector(task.settings, one.path)
        part, links = parts.cut_part(one.path, scan, task.settings, detector, *bounds)
    except Damaged:
        part, links = parts.unreadable_part(scan, *bounds)
    counts = Counter(part["status"].to_pylist())
    tables = [("parts", part), ("links", links)]
    return _commit(folder, task, tables, counts=dict(sorted(counts.items())))


def _scan_of(folder: Path, task: Task) -> Scan | None:
    record = open_commits(folder).read(f"{task.scan}.json")
    return None if record is None else read_scan(folder, record)


def _join(folder: Path, task: Task, killers: Killers) -> Unit:
    """Commit the tracks of a video, and delete its scan and parts."""
    (one,) = task.inputs
    commits = open_commits(folder)
    scanned = commits.read(f"{task.scan}.json")
    scan = None if scanned is None else read_scan(folder, scanned)
    if scanned is None:
        raise RaffectError(f"{folder}: {task.unit}: no scan; run the same command again")
    if scan is None:
        tables = [("tables", parts.unreadable_input(one.shown, None))]
        unit = _commit(folder, task, tables, inputs=scanned.inputs, counts={UNREADABLE: 1})
    else:
        unit = _join_parts(folder, task, scan)
    for name in (*task.parts, task.scan):
        commits.withdraw(f"{name}.json")
    return unit


def _join_parts(folder: Path, task: Task, scan: Scan) -> Unit:
    """Commit the packed frames of a video, a file a segment, and its rows of the table."""
    (one,) = task.inputs
    tracks = parts.join_links(_read(folder, name, "links") for name in task.parts)
    ids: dict[int | Node, int] = {}
    faces: list[pa.Table] = []

    # A part after another, so that no more than one is in memory
    def packed() -> Iterator[_Table]:
        for name in task.parts:
            part = _read(folder, name, "parts")
            named = parts.name_faces(part, tracks, ids, one.shown, one.name)
            faces.append(named.faces)
            if len(named.packed):
                yield "frames", named.packed

    files = _write(folder, task, packed())
    rows = pa.concat_tables(faces)
    files |= _write(folder, task, [("tables", rows)])
    record = Unit(
        unit=task.unit,
        source=task.source,
        files=files,
        inputs=(_describe_video(one, scan, rows, len(ids)),),
        counts=count_statuses(rows),
    )
    return open_commits(folder).settle(f"{task.unit}.json", record)


def _describe_video(one: Input, scan: Scan, rows: pa.Table, faces: int) -> InputFacts:
    """What became of a video that could be opened."""
    status = np.array(rows["status"].to_pylist())
    problems, (bad,) = [scan.problem] * bool(scan.problem), np.nonzero(status == UNREADABLE)
    if len(bad):
        first = rows.slice(int(bad[0]), 1).to_pylist()[0]
        where = f"the first is frame {first['frame']} at {first['timestamp_s']:.2f} s"
        problems.append(f"{len(bad):,} frames cannot be decoded, {where}")
    word = "damaged" if problems else "ok" if faces else "no_face"
    return describe_input(
        one,
        word,
        "; ".join(problems),
        frames=len(scan.pts),
        faces=faces,
        seconds=float(scan.seconds[-1]),
        width=scan.width,
        height=scan.height,
    )


# Pictures


def _cut_pictures(folder: Path, task: Task, killers: Killers) -> Unit:
    """Commit a block of pictures."""
    found = [
        _cut_one(one, task.settings, killers.get(place, ""))
        for place, one in enumerate(task.inputs)
    ]
    packed = pa.concat_tables([named.packed for _, named in found])
    tables = [("frames", packed.sort_by([("video", "ascending")]))] if len(packed) else []
    rows = pa.concat_tables([named.faces for _, named in found])
    tables.append(("tables", rows))
    facts = tuple(fact for fact, _ in found)
    return _commit(folder, task, tables, inputs=facts, counts=count_statuses(rows))


def _cut_one(one: Input, settings: FaceSettings, killed: str) -> tuple[InputFacts, parts.Named]:
    """What became of a picture, and its faces."""
    try:
        if killed:
            raise BadFrame(killed)
        rgb = read_picture(one.path)
    except BadFrame as error:
        rows = parts.unreadable_input(one.shown, 1)
        nothing = parts.Named(rows, parts.PACKED_SCHEMA.empty_table())
        return describe_input(one, "unreadable", str(error), frames=1), nothing
    part = parts.cut_picture(rgb, settings, load_detector(settings, one.path))
    tracks = {(0, row): row for row in range(len(part))}
    ids: dict[int | Node, int] = {}
    named = parts.name_faces(part, tracks, ids, one.shown, one.name)
    height, width = rgb.shape[:2]
    size: dict[str, Any] = {"width": width, "height": height, "frames": 1, "faces": len(ids)}
    return describe_input(one, "ok" if ids else "no_face", "", **size), named


def describe_input(one: Input, status: Any, problem: str, **facts: Any) -> InputFacts:
    """The facts of an input; all that is not given is 0."""
    known: dict[str, Any] = {"frames": 0, "faces": 0, "seconds": 0.0, "width": 0, "height": 0}
    known |= facts
    return InputFacts(
        input=one.shown, name=one.name, kind=one.kind, status=status, problem=problem, **known
    )


def count_statuses(rows: pa.Table) -> dict[str, int]:
    """Rows by status, in the order of `STATUSES`."""
    counts = Counter(rows["status"].to_pylist())
    return {status: counts[status] for status in STATUSES if counts[status]}
