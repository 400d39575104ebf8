"""What the organisers of a challenge list: the rows, header and line ends of an entry.

Three forms are read (docs/prediction.md): a file with a row ``<video>/<frame>.jpg,...`` for each
frame, of one task or of the multi-task challenge; a folder with a file for each video; and a list
of videos, of which a file each is to be written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from raffect.datasets.affwild2.tasks import HEADERS
from raffect.errors import RaffectError, require
from raffect.storage.keys import encode_video
from raffect.storage.paths import Damaged, read_regular

IMAGE_COLUMNS = ("image_location", "image")
"""What the first column of a file with a row a frame is called."""
MTL = ("image", "valence", "arousal", "expression", "aus")
"""Header of the multi-task challenge, whose rows have 16 cells."""

_pc: Any = pa.compute
"""Its functions are made at run time, so that no checker of types knows them."""
_BOM = b"\xef\xbb\xbf"
_ROW = r'^\s*(?P<image>(?P<video>[^,"]+)/(?P<frame>[0-9]{1,9})\.[A-Za-z]{3,4})\s*(?:,.*)?$'
_LISTED = re.compile(r'\s*([^,"/]+?)(?:\.(?:txt|mp4|avi))?\s*(?:,\s*([0-9]{1,9})\s*)?')
_NOT_A_BYTE = "\x01"
"""A separator that no line has, so that a line is one cell."""


@dataclass(frozen=True)
class Template:
    """What an entry must list.

    Attributes:
        path: The organisers' file or folder.
        form: A row a frame of one task, the same of three tasks, or a file a video.
        columns: Names in the header behind that of the picture; empty for a list of videos.
        header: The header as it stands there; empty for a list of videos.
        ending: Of its lines.
        videos: Names of videos; in a form with a file a video, of the files in order.
        frames: How many frames each video has where that is known, else 0; for a file a video.
        image: Name of the picture of each row, as it stands there; for a row a frame.
        video: Number of each row's video, int64, shape (N,); for a row a frame.
        frame: 1-based frame of each row, int64, shape (N,); for a row a frame.
    """

    path: Path
    form: Literal["frames", "mtl", "videos"]
    columns: tuple[str, ...]
    header: str
    ending: str
    videos: list[str]
    frames: tuple[int, ...] = ()
    image: pa.StringArray | None = None
    video: np.ndarray | None = None
    frame: np.ndarray | None = None

    @property
    def what(self) -> str:
        """Which task it is of, for errors."""
        if self.form == "mtl":
            return "the multi-task challenge"
        header = ",".join(self.columns)
        known = [task.name for task, names in HEADERS.items() if names == header]
        return known[0] if known else f"{len(self.columns)} column(s), {header[:60]}"


def read_template(path: Path) -> Template:
    """Read what the organisers list.

    Raises:
        RaffectError: If it is none of the three forms, or lists a frame twice.
    """
    if path.is_dir():
        return _read_folder(path)
    require(path.exists(), f"--template {path}: no such file or folder")
    header, ending, body = _split(path)
    names = _names(header)
    if names[0] in IMAGE_COLUMNS:
        return _read_rows(path, header, ending, body)
    require(
        ",".join(names) not in HEADERS.values(),
        f"{path}: the file of one video; give the folder of all files, or a list of videos",
    )
    return _read_list(path, [header, *_lines(path, body).to_pylist()], ending)


def _read_rows(path: Path, header: str, ending: str, body: bytes) -> Template:
    """A file with a row a frame."""
    # Parts of each row
    lines = _lines(path, body)
    found = _pc.extract_regex(lines, _ROW)
    if found.null_count:
        bad = lines.filter(found.is_null())
        raise RaffectError(
            f"{path}: {len(bad):,} lines are not rows of a template, first "
            f"{bad[0].as_py()[:60]!r}; expected <video>/<frame>.jpg,..."
        )
    require(len(lines) > 0, f"{path}: lists no frame")
    image, names, digits = (found.field(k) for k in ("image", "video", "frame"))
    video = encode_video(pa.chunked_array([names]))
    number = video.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    frame = digits.cast(pa.int64()).to_numpy(zero_copy_only=False)

    # Each frame once
    require(int(frame.min()) > 0, f"{path}: has a frame 0; frames are counted from 1")
    order = np.argsort((number << 32) | frame, kind="stable")
    doubled = np.flatnonzero(np.diff(((number << 32) | frame)[order]) == 0)
    if len(doubled):
        first = image[int(order[doubled[0] + 1])].as_py()
        raise RaffectError(f"{path}: lists {len(doubled):,} frame(s) twice, first {first[:60]}")
    columns = _names(header)
    return Template(
        path=path,
        form="mtl" if tuple(columns) == MTL else "frames",
        columns=tuple(columns[1:]),
        header=header,
        ending=ending,
        videos=video.dictionary.to_pylist(),
        image=image,
        video=number,
        frame=frame,
    )


def _read_folder(path: Path) -> Template:
    """A folder with a file a video."""
    files = sorted(file for file in path.glob("*.txt") if not file.name.startswith("."))
    require(bool(files), f"--template {path}: no .txt file in it; expected one a video")
    found = [_split(file) for file in files]
    (header, ending, _), columns = found[0], _names(found[0][0])
    for file, (other, _, _) in zip(files, found, strict=True):
        require(
            _names(other) == columns,
            f"{file}: header {other[:60]!r}, but {files[0].name} has {header[:60]!r}",
        )
    counts = tuple(len(_lines(file, body)) for file, (_, _, body) in zip(files, found, strict=True))
    return Template(
        path=path,
        form="videos",
        columns=tuple(columns),
        header=header,
        ending=ending,
        videos=[file.stem for file in files],
        frames=counts,
    )


def _read_list(path: Path, lines: Sequence[str], ending: str) -> Template:
    """A list of videos, with the number of frames of each or without."""
    parts = [_LISTED.fullmatch(line) for line in lines]
    if None in parts:
        bad = lines[parts.index(None)][:60]
        raise RaffectError(
            f"{path}: not a template, its line {bad!r} is neither a header of a challenge nor "
            f"a video; expected {IMAGE_COLUMNS[0]},<outputs> or a line <video>,<frames> each"
        )
    names = [part.group(1) for part in parts if part]
    doubled = next((name for name, count in Counter(names).items() if count > 1), None)
    require(doubled is None, f"{path}: lists {doubled} twice")
    return Template(
        path=path,
        form="videos",
        columns=(),
        header="",
        ending=ending,
        videos=names,
        frames=tuple(int(part.group(2) or 0) for part in parts if part),
    )


def _split(path: Path) -> tuple[str, str, bytes]:
    """Header without its end, the end of lines, and what follows, without empty lines before.

    Raises:
        RaffectError: If it cannot be read, or has no line.
    """
    try:
        content = read_regular(path).removeprefix(_BOM).lstrip(b"\r\n")
        first, newline, body = content.partition(b"\n")
        header = first.removesuffix(b"\r").decode()
    except (Damaged, UnicodeDecodeError) as error:
        raise RaffectError(f"{path}: not a text file of a challenge ({error})") from error
    require(bool(header.strip()), f"{path}: is empty")
    return header, "\r\n" if first.endswith(b"\r") and newline else "\n", body


def _lines(path: Path, body: bytes) -> pa.StringArray:
    """Lines of a text that are not blank."""
    one_cell = pa.csv.ParseOptions(delimiter=_NOT_A_BYTE, quote_char=False)
    if not body.strip():
        return pa.array([], pa.string())
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(body),
            pa.csv.ReadOptions(column_names=["line"], block_size=1 << 24),
            one_cell,
            pa.csv.ConvertOptions(column_types={"line": pa.string()}),
        )
    except pa.ArrowException as error:
        what = str(error).splitlines()[0][:120]
        raise RaffectError(f"{path}: not a text file of a challenge ({what})") from error
    lines = table["line"].combine_chunks()
    return lines.filter(_pc.not_equal(_pc.utf8_trim_whitespace(lines), ""))


def _names(header: str) -> list[str]:
    """Names in a header, without the spaces and the last comma that files in the wild have."""
    names = [name.strip() for name in header.split(",")]
    return names[:-1] if len(names) > 1 and not names[-1] else names
