"""Captions of a user: a CSV, TSV or Parquet file with a row a caption, read as text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from raffect.datasets.imported import SPLIT_NAMES
from raffect.errors import RaffectError, require
from raffect.language.captions.captioned import Captioned, ends_of
from raffect.language.captions.in_bank import BankFrames
from raffect.storage.keys import encode_video, of_each_name
from raffect.storage.paths import Damaged, read_parquet, read_regular
from raffect.storage.tables import read_metadata

COLUMNS = ("video", "start", "end", "frame", "caption", "split", "group")
"""Columns that are read; others are not looked at."""
_TABS = (".tsv", ".tab", ".txt")
"""Suffixes of files whose cells are parted by tabs."""
_MOST_BYTES = 4_000_000_000
_LINE_END = re.compile(r"[\r\n]")
"""Any: of a Mac's old files it is one alone, as pyarrow takes it too."""
_NUMBER = re.compile(r"([0-9]{1,9})(?:\.0*)?", re.A)
"""A frame number; tables that went through floating point have ``12.0``."""


def read_captions(file: Path, encoding: str, frames: BankFrames) -> Captioned:
    """Read a user's captions; rows that cannot be used are left out and counted.

    Without ``start``, ``end`` and ``frame`` a caption is of all frames that the bank has of its
    video, as where each video is one clip. Equal captions share one number.

    Args:
        file: With at least the columns ``video`` and ``caption``.
        encoding: Of a CSV or TSV file.
        frames: Of the bank.

    Returns:
        Rows in the order of the file.

    Raises:
        RaffectError: If the file is not such a table, or no row can be used.
    """
    cells = _read_cells(file, encoding)
    has_header = file.suffix.lower() != ".parquet"
    table = _name_rows(cells, frames, file)
    table = table.append_column("line", pa.array(np.arange(len(table)) + 1 + has_header))
    found = Captioned(table, f"--table {file}")
    require(len(found) > 0, f"--table {file}: it has no rows")

    # Rows that name a clip with a caption
    found = found.without(_is_empty(found.table["caption"]), "no caption")
    found = found.without(_is_empty(found.table["video"]), "no video")
    found = found.without(
        ~frames.find_known(found.table), "videos that the bank does not have, check their names"
    )
    first, last = ends_of(found.table)
    found = found.without(
        (first < 1) | (last < 1), "a frame number that is not a whole number from 1"
    )
    first, last = ends_of(found.table)
    found = found.without(last < first, "clips that end before they start")
    found = found.without(
        _again(found.table), "clips that an earlier row has too, of which the first caption counts"
    )
    if "split" in table.column_names:
        found = found.without(
            np.array(found.table["split"].is_null()),
            "a split other than train, validation or test",
        )
    return _number_texts(found)


def is_of_drawn_faces(file: Path) -> bool:
    """Whether `raffect prepare` wrote a table, of faces that raffect drew."""
    return _read_about(file).get("synthetic") == "true"


def is_prepared(file: Path) -> bool:
    """Whether `raffect prepare` wrote a table, of a data set that has captions."""
    return "raffect" in _read_about(file)


def _read_about(file: Path) -> dict[str, str]:
    """Metadata of a table; none of text files."""
    return read_metadata(read_parquet(file)) if file.suffix.lower() == ".parquet" else {}


def _read_cells(file: Path, encoding: str) -> pa.Table:
    """Columns of the file that have a meaning, all as text without outer spaces."""
    try:
        if file.suffix.lower() == ".parquet":
            table = read_parquet(file)
        else:
            table = _parse_text(read_regular(file, _MOST_BYTES), file, encoding)
        names = table.column_names
        table = table.select([name for name in COLUMNS if name in names])
        columns = [part.cast(pa.string()).fill_null("") for part in table.columns]
        table = pa.table(columns, names=table.column_names).combine_chunks()
        table.validate(full=True)
    except (pa.ArrowException, Damaged, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).splitlines()[0][:150]
        raise RaffectError(f"--table {file}: not a readable table ({reason})") from error
    missing = [name for name in ("video", "caption") if name not in names]
    parted = ""
    if len(names) == 1 and file.suffix.lower() != ".parquet":
        parted = f"; cells of {file.suffix or 'such a file'} are parted by {_delimiter(file)[1]}"
    require(
        not missing,
        f"--table {file}: no column {' or '.join(missing)}; found {', '.join(names)[:200]}{parted}",
    )
    return table


def _delimiter(file: Path) -> tuple[str, str]:
    """What parts the cells of a text file, and how that is called."""
    return ("\t", "tabs") if file.suffix.lower() in _TABS else (",", "commas")


def _parse_text(content: bytes, file: Path, encoding: str) -> pa.Table:
    """The columns of a text file that have a meaning."""
    # As UTF-8
    is_utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    if b"\0" in content[:4096] and not encoding.lower().startswith(("utf-16", "utf-32")):
        what = "a binary file; expected CSV, TSV or Parquet"
        raise Damaged(f"{what}, or --encoding utf-16 for text that Windows calls Unicode")
    try:
        text = content.decode("utf-8-sig" if is_utf8 else encoding)
    except UnicodeError as error:
        place = f" (byte {error.start:,})" if isinstance(error, UnicodeDecodeError) else ""
        hint = "; if it is of another encoding, name that with --encoding, such as gbk"
        raise Damaged(f"not {encoding}{place}{hint}") from error

    # Its columns; pyarrow is asked for those with a meaning alone, and guesses no type
    delimiter, _ = _delimiter(file)
    first = _LINE_END.split(text, maxsplit=1)[0]
    try:
        cells = next(csv.reader(io.StringIO(first), delimiter=delimiter), [])
    except csv.Error as error:
        raise Damaged(f"its first line is no list of columns ({error})") from error
    header = [name.strip() for name in cells]
    twice = next((name for name in COLUMNS if header.count(name) > 1), None)
    if twice is not None:
        raise Damaged(f"column {twice!r} is there twice")
    return pyarrow.csv.read_csv(
        io.BytesIO(text.encode()),
        read_options=pyarrow.csv.ReadOptions(column_names=header, skip_rows=1),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    )


def _name_rows(cells: pa.Table, frames: BankFrames, file: Path) -> pa.Table:
    """``video``, ``frame`` or ``start`` and ``end``, ``caption``, ``split`` and ``group``."""
    names = cells.column_names
    columns = {name: _map(cells[name], _tidy, pa.string()) for name in ("video", "caption")}
    given = [name for name in ("start", "end", "frame") if name in names]
    if given in (["start", "end"], ["frame"]):
        columns |= {name: _map(cells[name], _number, pa.int64()) for name in given}
    else:
        expected = "expected start and end, or frame, or none of them (captions of whole videos)"
        require(not given, f"--table {file}: columns {', '.join(given)}; {expected}")
        first, last = frames.ends_of_videos(pa.table({"video": columns["video"]}))
        columns |= {"start": pa.array(first), "end": pa.array(last)}
    if "split" in names:
        columns["split"] = _map(
            cells["split"], lambda cell: SPLIT_NAMES.get(_tidy(cell).lower()), pa.string()
        )
    if "group" in names:
        # A row without one is a group with its video alone
        both = zip(cells["group"].to_pylist(), columns["video"].to_pylist(), strict=True)
        columns["group"] = pa.array([_tidy(group) or video for group, video in both], pa.string())
    return pa.table(columns)


def _map(column: pa.ChunkedArray, function: Callable[[str], Any], kind: pa.DataType) -> pa.Array:
    """What a function makes of each cell; it is called once for equal ones."""
    cells = encode_video(column)
    return pa.array(map(function, cells.dictionary.to_pylist()), kind).take(cells.indices)


def _tidy(cell: str) -> str:
    """A text without outer spaces, and with one space for several or a line end."""
    return " ".join(cell.split())


def _number(cell: str) -> int:
    """The frame number in a cell; 0 if it holds none."""
    found = _NUMBER.fullmatch(cell.strip())
    return int(found[1]) if found else 0


def _is_empty(column: pa.ChunkedArray) -> np.ndarray:
    return of_each_name(column, lambda cell: not cell, bool)


def _again(table: pa.Table) -> np.ndarray:
    """Which rows are of a clip that an earlier row is of: bool, shape (N,)."""
    first, last = ends_of(table)
    video = encode_video(table["video"]).indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((np.arange(len(first)), last, first, video))
    parts = [part[order] for part in (video, first, last)]
    again = np.zeros(len(order), bool)
    again[order[1:]] = np.all([part[1:] == part[:-1] for part in parts], axis=0)
    return again


def _number_texts(found: Captioned) -> Captioned:
    """The number of each row's caption instead of the caption."""
    captions = encode_video(found.table["caption"])
    table = found.table.drop_columns(["caption"])
    table = table.append_column("target", captions.indices.cast(pa.int64()))
    return Captioned(table, found.where, captions.dictionary.to_pylist(), found.left_out)
