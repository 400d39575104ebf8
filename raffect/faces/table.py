"""``faces.parquet``: a row for each face of each frame, and for each frame without one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from raffect.storage.tables import read_table

OK, LOW, NO_FACE, UNREADABLE = "ok", "low_conf", "no_face", "unreadable"
STATUSES = (OK, LOW, NO_FACE, UNREADABLE)
"""``ok`` and ``low_conf`` rows have a crop in the manifest, under their (video, frame); the others
have neither video nor box. ``low_conf`` is a score below ``--min-score``."""

SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("video", pa.string()),
        ("frame", pa.int32()),
        ("timestamp_s", pa.float64()),
        ("face_id", pa.int32()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("w", pa.float32()),
        ("h", pa.float32()),
        ("score", pa.float32()),
        ("status", pa.string()),
    ]
)
"""Columns of ``faces.parquet``.

- input: path as the user gave it; bytes that are not UTF-8 are shown as ``\\xff``.
- video: the track, ``<name of the input>_face<face_id>``: a video of the manifest and the bank;
  null where there is no face.
- frame: 1-based number in display order; 1 for a picture; null where an input cannot be opened.
- timestamp_s: seconds of the stream's own clock from its first frame; null for pictures.
- face_id: 1-based, in the order in which tracks begin; null where there is no face.
- x, y, w, h: box in pixels of the picture as it is displayed (rotation applied): left, top, width,
  height. It is the smoothed box of the face without the margin of the crop.
- score: of the detector, 0 to 1; comparable within one detector only. 1 for boxes without one.
- status: one of `STATUSES`.

The rows of an input follow one another, by frame and then by face_id."""


def read_faces(path: Path) -> pa.Table:
    """Read ``faces.parquet``, given the file or the folder of `raffect faces`.

    Raises:
        RaffectError: If the file is missing or damaged.
    """
    path = path / "faces.parquet" if path.is_dir() else path
    return read_table(path, tuple(SCHEMA.names), "table of faces", "raffect faces")
