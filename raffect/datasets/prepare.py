"""`raffect prepare`: images and labels become a manifest and label tables.

What is missing or wrong is listed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffect.config import PrepareConfig
from raffect.datasets.class_map import map_classes
from raffect.datasets.imported import Imported, SplitCounts
from raffect.datasets.importers import import_dataset
from raffect.datasets.manifest import write_manifest
from raffect.datasets.problems import Problem, problem_lines, write_problems
from raffect.errors import RaffectError, require
from raffect.storage.paths import Damaged, has_file, read_parquet
from raffect.storage.tables import read_metadata, table_of, write_table

_CAPTIONS = "captions.parquet"


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What was prepared.

    Attributes:
        manifest: The manifest that was written.
        labels: Name of each task -> its label table.
        problems_file: A CSV file of all problems.
        frames: Images in the manifest.
        counts: Rows and groups of each split of each task.
        problems: All that was wrong, in the order of the files.
        groups: What intervals and folds keep together: videos, subjects or pictures.
        edition: Which edition or file the labels come from.
        synthetic: Whether raffect drew every image.
        captions: A table of clips and their captions; None where the data set has none.
        found: What the importer found, as lines of text.
    """

    manifest: Path
    labels: Mapping[str, Path]
    problems_file: Path
    frames: int
    counts: tuple[SplitCounts, ...]
    problems: tuple[Problem, ...]
    groups: str
    edition: str
    synthetic: bool
    captions: Path | None
    found: tuple[str, ...]

    def lines(self) -> list[str]:
        """What was found and written, problems, and the next command, as lines of text."""
        # What was found
        lines = list(self.found)
        if self.problems:
            count = f"{len(self.problems):,}"
            lines.append(f"problems: {count}, all in {self.problems_file}; the first of each kind:")
            lines += problem_lines(self.problems)

        # What was written
        labels = ", and no labels"
        if self.labels:
            labels = f" and {self.manifest.parent}/labels/ ({', '.join(sorted(self.labels))})"
        captions = f", and {self.captions}" if self.captions else ""
        lines.append(f"wrote {self.manifest}{labels}{captions}")

        # The next command; drawn faces have an encoder of their own
        following = f"raffect extract --manifest {shlex.quote(str(self.manifest))} --bank BANK"
        if self.synthetic:
            following += " --encoder.model raffect-faces"
        return [*lines, f"next: {following}"]

    def to_pandas(self) -> Any:
        """A data frame, a row a split of a task, with the fields of `SplitCounts`."""
        return table_of(self.counts, SplitCounts).to_pandas()


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write ``manifest.parquet``, ``labels/*.parquet`` and ``problems.csv``.

    Raises:
        RaffectError: If no image is found, none of them has a line in the annotations, or the
            labels are not labels; or if a label table that it did not write is in the way.
    """
    folder = config.out / "labels"
    require(
        not folder.is_file(),
        f"{folder}: a file is where the folder of label tables goes; move it, or choose another "
        "--out",
    )
    found = import_dataset(config)
    if config.map is not None:
        map_classes(found, config.map)
    own, foreign = _find_tables(folder, found)
    manifest = config.out / "manifest.parquet"
    write_manifest(found.manifest, manifest, found.synthetic)
    labels = _write_labels(found, folder, own)
    gone = [file for file in own if file not in labels.values()]
    problems_file = config.out / "problems.csv"
    write_problems(found.problems, problems_file)
    return PrepareReport(
        manifest=manifest,
        labels=labels,
        problems_file=problems_file,
        frames=len(found.manifest),
        counts=tuple(found.counts),
        problems=tuple(found.problems),
        groups=found.groups,
        edition=found.edition,
        synthetic=found.synthetic,
        captions=_write_captions(found, config.out / _CAPTIONS),
        found=(
            *(*found.lines, *_drawn_lines(found), *(f"kept: {file}" for file in foreign)),
            *(f"deleted: {file}, of an earlier `raffect prepare`" for file in gone),
        ),
    )


def _drawn_lines(found: Imported) -> list[str]:
    """One line if raffect drew any image."""
    if found.synthetic:
        return ["images: drawn by raffect; every score will say so"]
    if found.num_drawn:
        mixed = f"{found.num_drawn:,} of {len(found.manifest):,} drawn by raffect"
        return [f"images: {mixed}; no score will say so, because others are among them"]
    return []


def _find_tables(folder: Path, found: Imported) -> tuple[list[Path], list[Path]]:
    """Label tables that are there: those of an earlier `raffect prepare`, and all others.

    Raises:
        RaffectError: If a table that it did not write has the name of one that it will.
    """
    own, foreign = [], []
    for file in sorted(folder.glob("*.parquet")):
        (own if _is_own(file) else foreign).append(file)
    names = {task.name for task in found.labels}
    in_the_way = [file for file in foreign if file.stem in names]
    captions = folder.parent / _CAPTIONS
    if found.captions is not None and has_file(captions) and not _is_own(captions):
        in_the_way.append(captions)
    if in_the_way:
        raise RaffectError(
            f"{in_the_way[0]}: was not written by `raffect prepare`, which would replace it; move "
            "it, or choose another --out"
        )
    return own, foreign


def _is_own(file: Path) -> bool:
    """Whether `raffect prepare` wrote a table: it alone notes a digest of what it was read from."""
    try:
        return "digest" in read_metadata(read_parquet(file))
    except Damaged:
        return False


def _write_labels(found: Imported, folder: Path, earlier: Sequence[Path]) -> dict[str, Path]:
    """Write a label table for each task, and delete those of earlier ones: task name -> file."""
    files = {task.name: folder / f"{task.name}.parquet" for task in found.labels}
    for file in earlier:
        if file.stem not in files:
            file.unlink()
    for task, table in found.labels.items():
        metadata = {
            "raffect": "labels/2",
            "task": json.dumps(task.to_json()),
            "groups": found.groups,
            "edition": found.edition,
            "digest": found.digest,
            "synthetic": str(found.synthetic).lower(),
        }
        if names := found.names.get(task.name):
            metadata["names"] = json.dumps(names)
        write_table(table, files[task.name], metadata)
    return files


def _write_captions(found: Imported, file: Path) -> Path | None:
    """Write the table of captions, or delete that of another data set prepared here before."""
    if found.captions is None:
        if has_file(file) and _is_own(file):
            file.unlink()
        return None
    metadata = {"raffect": "captions/1", "edition": found.edition, "digest": found.digest}
    metadata["synthetic"] = str(found.synthetic).lower()
    write_table(found.captions, file, metadata)
    return file
