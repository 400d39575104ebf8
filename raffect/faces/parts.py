"""Parts of a video: crops of a segment with its own detections and links, and their join.

A part knows which detection each crop follows, but not which track that is. Joining reads the links
of all parts in order and gives every crop its track; it looks at no picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.datasets.frames import PACKED_SCHEMA
from raffect.faces.crops import cut_out, encode
from raffect.faces.detectors import Detector
from raffect.faces.records import FaceSettings
from raffect.faces.table import LOW, NO_FACE, OK, SCHEMA, UNREADABLE
from raffect.faces.tracks import Face, Node, confirm, join_tracks, link, margin_steps, place_faces
from raffect.faces.video import Scan, decode_frames

_BOX = ("x", "y", "w", "h", "score")
PART = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("frame", "timestamp_s")),
        ("step", pa.int32()),
        ("row", pa.int32()),
        *(SCHEMA.field(name) for name in (*_BOX, "status")),
        ("image", pa.binary()),
    ]
)
"""A crop or a frame without one; ``step`` and ``row`` are the detection that the crop follows."""
LINKS = pa.schema([(name, pa.int32()) for name in ("step", "row", "next_step", "next_row")])
"""A detection of the part, and the next one of the same face, which may be of the next part."""


def cut_part(
    path: Path, scan: Scan, settings: FaceSettings, detector: Detector, first: int, stop: int
) -> tuple[pa.Table, pa.Table]:
    """Find, follow and cut out the faces of a segment.

    The video is decoded twice, for detections and then for crops, so that one picture at a time is
    in memory.

    Args:
        path: The video.
        scan: Of this video.
        settings: Of the run.
        detector: Of this video.
        first: First frame of the segment.
        stop: Frame behind its last one.

    Returns:
        Tables of `PART`, by frame, and of `LINKS`.
    """
    every, total = settings.every, len(scan.pts)
    around = margin_steps(settings.smooth) * every
    found = {
        (frame - 1) // every: detector.detect(rgb, frame)
        for frame, rgb in decode_frames(path, scan, first - around, stop + around, every)
    }
    links = link(found)
    faces = place_faces(found, links, settings.smooth, every, total)

    # Crops
    rows = []
    decoded = iter(decode_frames(path, scan, first, stop))
    frame, rgb = next(decoded, (stop, np.empty(0)))
    for number in range(first, stop):
        seconds = float(scan.seconds[number - 1])
        if number < frame:
            rows.append(_row(number, seconds, UNREADABLE))
            continue
        seen = faces.get(number, [])
        if any(face.is_guess for face in seen):
            seen = confirm(seen, detector.detect(rgb, number))
        crops = list(_cut_faces(number, seconds, rgb, seen, settings))
        rows += crops or [_row(number, seconds, NO_FACE)]
        frame, rgb = next(decoded, (stop, np.empty(0)))
    part = pa.Table.from_pylist(rows, schema=PART)

    # Links of the segment's own detections
    own = [step for step in found if first <= 1 + step * every < stop]
    nodes = [(step, row) for step in sorted(own) for row in range(len(found[step]))]
    none = (None, None)
    edges = [(*node, *links.get(node, none)) for node in nodes]
    return part, pa.Table.from_pylist(
        [dict(zip(LINKS.names, edge, strict=True)) for edge in edges], LINKS
    )


def _cut_faces(
    frame: int,
    seconds: float | None,
    rgb: np.ndarray,
    faces: Iterable[Face],
    settings: FaceSettings,
):
    """Rows of `PART` for the faces of a picture that can be cut out."""
    for face in faces:
        if (crop := cut_out(rgb, face.values, settings.margin)) is None:
            continue
        row = _row(frame, seconds, LOW if face.values[4] < settings.min_score else OK)
        row |= dict(zip(_BOX, face.values[:5].tolist(), strict=True))
        yield row | {"step": face.node[0], "row": face.node[1], "image": encode(crop)}


def _row(frame: int, seconds: float | None, status: str) -> dict:
    return {"frame": frame, "timestamp_s": seconds, "status": status}


def cut_picture(rgb: np.ndarray, settings: FaceSettings, detector: Detector) -> pa.Table:
    """Find and cut out the faces of a picture: a table of `PART` whose one frame is 1."""
    found = detector.detect(rgb, 1)
    faces = [Face((0, row), values, False) for row, values in enumerate(found)]
    crops = list(_cut_faces(1, None, rgb, faces, settings))
    return pa.Table.from_pylist(crops or [_row(1, None, NO_FACE)], schema=PART)


def unreadable_part(scan: Scan, first: int, stop: int) -> tuple[pa.Table, pa.Table]:
    """The part of a segment that cannot be decoded at all."""
    rows = [_row(frame, float(scan.seconds[frame - 1]), UNREADABLE) for frame in range(first, stop)]
    return pa.Table.from_pylist(rows, schema=PART), LINKS.empty_table()


def join_links(tables: Iterable[pa.Table]) -> dict[Node, int]:
    """Track of each detection of a video, from the `LINKS` of its parts in order."""
    nodes: list[Node] = []
    links: dict[Node, Node] = {}
    for table in tables:
        for step, row, next_step, next_row in zip(*table.to_pydict().values(), strict=True):
            nodes.append((step, row))
            if next_step is not None:
                links[step, row] = (next_step, next_row)
    return join_tracks(nodes, links)


@dataclass(frozen=True)
class Named:
    """A part whose crops have their tracks.

    Attributes:
        faces: Rows of ``faces.parquet``.
        packed: Its crops as a table of `PACKED_SCHEMA`, by frame and track.
    """

    faces: pa.Table
    packed: pa.Table


def name_faces(
    part: pa.Table, tracks: Mapping[Node, int], ids: dict[int | Node, int], shown: str, name: str
) -> Named:
    """Give the crops of a part their face ids, which follow the order in which tracks begin.

    Args:
        part: Of `PART`.
        tracks: Of `join_links`.
        ids: Track -> face id so far; tracks that begin here are added.
        shown: The input as the user gave it.
        name: The input's name.
    """
    crops, rows = [], []
    for row in part.to_pylist():
        image, node = row.pop("image"), (row.pop("step"), row.pop("row"))
        video = face_id = None
        if image is not None:
            # A detection that no table of links has stands alone.
            face_id = ids.setdefault(tracks.get(node, node), len(ids) + 1)
            video = f"{name}_face{face_id}"
            crop = {"video": video, "frame": row["frame"], "image": image, "reason": None}
            crops.append(crop)
        rows.append(row | {"input": shown, "video": video, "face_id": face_id})
    rows.sort(key=lambda row: (row["frame"], row["face_id"] or 0))
    crops.sort(key=lambda crop: (crop["frame"], crop["video"]))
    faces = pa.Table.from_pylist(rows, schema=SCHEMA)
    return Named(faces, pa.Table.from_pylist(crops, schema=PACKED_SCHEMA))


def unreadable_input(shown: str, frame: int | None) -> pa.Table:
    """The row of ``faces.parquet`` of an input that cannot be opened."""
    row = {"input": shown, "frame": frame, "status": UNREADABLE}
    return pa.Table.from_pylist([row], schema=SCHEMA)
