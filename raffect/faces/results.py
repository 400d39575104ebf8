"""What a finished run writes: the manifest, ``faces.parquet``, ``inputs.csv`` and a sheet."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raffect.datasets.frames import BadFrame, read_frames
from raffect.datasets.manifest import write_manifest
from raffect.errors import RaffectError
from raffect.faces.crops import draw_sheet
from raffect.faces.records import InputFacts, Unit, open_commits
from raffect.faces.table import SCHEMA
from raffect.storage.atomic import atomic_path, write_atomic
from raffect.storage.paths import Damaged, open_parquet, parse_parquet
from raffect.storage.tables import table_of, write_csv

_SHEET_CROPS = 48


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        manifest: The manifest; None if there is no crop.
        faces: ``faces.parquet``.
        inputs: ``inputs.csv``.
        sheet: ``faces.png``; None if there is no crop.
        counts: Rows of ``faces.parquet`` by status.
        crops: Rows of the manifest.
    """

    manifest: Path | None
    faces: Path
    inputs: Path
    sheet: Path | None
    counts: Mapping[str, int]
    crops: int


def write_results(folder: Path, units: Sequence[Unit]) -> Written:
    """Write the results of finished units into their folder.

    Raises:
        RaffectError: If a unit's file is damaged; it is withdrawn, to be done again.
    """
    faces, inputs = folder / "faces.parquet", folder / "inputs.csv"
    _write_faces(folder, units, faces)
    facts = [fact for unit in units for fact in unit.inputs]
    table = table_of(facts, InputFacts)
    write_csv(inputs, table.to_pylist(), table.column_names)
    counts: Counter[str] = Counter()
    for unit in units:
        counts.update(unit.counts)
    rows = _list_crops(folder, units)
    manifest, sheet = folder / "manifest.parquet", folder / "faces.png"
    if not len(rows):
        manifest.unlink(missing_ok=True)
        sheet.unlink(missing_ok=True)
    else:
        write_manifest(rows, manifest, synthetic=False)
        _write_sheet(rows, sheet)
    return Written(
        manifest=manifest if len(rows) else None,
        faces=faces,
        inputs=inputs,
        sheet=sheet if len(rows) else None,
        counts=dict(counts),
        crops=len(rows),
    )


def _write_faces(folder: Path, units: Sequence[Unit], path: Path) -> None:
    """Write the rows of all units one after another, so that one unit's are in memory."""
    commits = open_commits(folder)
    about = SCHEMA.with_metadata({"raffect": "faces/1"})
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, about, compression="zstd") as writer,
    ):
        for unit in units:
            try:
                if (found := unit.file("tables")) is None:
                    raise Damaged("its record names no table")
                table = parse_parquet(commits.read_committed(*found))
                writer.write_table(table.cast(about))
            except (Damaged, pa.ArrowException, ValueError) as error:
                commits.withdraw(f"{unit.unit}.json")
                remedy = "run the same command again"
                raise RaffectError(f"{folder}: {unit.unit}: damaged ({error}); {remedy}") from error


def _list_crops(folder: Path, units: Sequence[Unit]) -> pa.Table:
    """The manifest: ``video, frame, path, root`` of every crop, sorted."""
    names = [name for unit in units for name in unit.files if name.startswith("frames/")]
    tables, roots = [], pa.array([str(folder / name) for name in names], pa.string())
    for number, name in enumerate(names):
        with open_parquet(folder / name) as file:
            keys = file.read(columns=["video", "frame"])
            sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        paths = [f"{group}/{row}" for group, size in enumerate(sizes) for row in range(size)]
        root = pa.DictionaryArray.from_arrays(np.full(len(paths), number, np.int32), roots)
        columns = {"video": keys["video"].cast(pa.string()), "frame": keys["frame"]}
        tables.append(pa.table(columns | {"path": pa.array(paths, pa.string()), "root": root}))
    if not tables:
        return pa.table({})
    # A dictionary's order of names would be that of the files, so plain names are sorted.
    table = pa.concat_tables(tables).sort_by([("video", "ascending"), ("frame", "ascending")])
    table = table.combine_chunks()
    return table.set_column(0, "video", table["video"].dictionary_encode())


def _write_sheet(rows: pa.Table, path: Path) -> None:
    """Save crops at even distances in the manifest."""
    places = np.unique(np.linspace(0, len(rows) - 1, _SHEET_CROPS).round().astype(int))
    crops = [crop for crop in read_frames(rows.take(places)) if not isinstance(crop, BadFrame)]
    sink = io.BytesIO()
    Image.fromarray(draw_sheet(crops)).save(sink, format="PNG")
    write_atomic(path, sink.getvalue())
