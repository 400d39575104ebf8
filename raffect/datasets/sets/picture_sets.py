"""Data sets whose samples are pictures that belong to no video: named in a list, found anywhere.

A picture's key is its name, frame 1, and it is its own group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.expressions import describe_classes
from raffect.datasets.imported import Imported, count_splits, describe_counts, hold_out
from raffect.datasets.problems import Line, Problem, note_unknown
from raffect.datasets.root import Place
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError

Values = tuple[float, ...]
"""Cells of a picture in the columns of a task."""


@dataclass(frozen=True)
class Picture:
    """A picture that a list names.

    Attributes:
        line: The line, or the file, that names it.
        name: Its key.
        split: ``train``, ``validation`` or ``test``.
        labels: Task -> the picture's labels as they stand there.
    """

    line: Line
    name: str
    split: str
    labels: Mapping[Task, Values]


@dataclass
class PictureSet:
    """A data set of pictures on its way to `Imported`.

    Attributes:
        title: Its name, such as ``RAF-DB``.
        place: Where it lies.
        complete: What a complete copy has, as text.
        edition: Which lists the labels come from.
        tasks: Tasks -> type of their columns.
        names: The data set's own word or number -> class.
        pictures: Every picture once, by name.
        problems: All that is wrong so far.
        lines: What was found so far, as lines of text.
    """

    title: str
    place: Place
    complete: str
    edition: str
    tasks: Mapping[Task, np.dtype]
    names: dict[str, str]
    pictures: dict[str, Picture] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def add(self, picture: Picture) -> None:
        """Add a picture; one that is there is noted, and if lines disagree it has no labels."""
        first = self.pictures.setdefault(picture.name, picture)
        if first is picture:
            return
        where = f"first in {first.line.file}:{first.line.number}"
        if first.labels == picture.labels:
            kind = "a picture again; left out"
        else:
            kind = "a picture again with other labels; unlabelled"
            unlabelled = {task: unlabelled_of(task) for task in first.labels}
            self.pictures[picture.name] = Picture(first.line, first.name, first.split, unlabelled)
        if first.split != picture.split:
            kind += f"; in {first.split} and {picture.split}"
        self.problems.append(picture.line.problem(f"{picture.name}: {kind} ({where})", kind))

    def to_imported(
        self, config: PrepareConfig, key_of: Callable[[str], tuple[str, int] | None]
    ) -> Imported:
        """Manifest, label tables and report.

        Args:
            config: Settings of the command.
            key_of: Name of the picture that a path below an image root shows and its rank: of
                several files the lowest one counts; None for other files.

        Raises:
            RaffectError: If no picture is found.
        """
        # Pictures on disk
        manifest = self._find_images(key_of)
        listing = self.place.listing
        names = sorted(self.pictures)
        chosen = [self.pictures[name] for name in names]

        # Splits
        splits, how_split = [picture.split for picture in chosen], "as given"
        if "validation" not in splits:
            how_split = "test as given; " if "test" in splits else ""
            how_split += f"{config.validation_share:g} of train is validation"
            splits = hold_out(names, splits, config.validation_share)

        # Label tables
        found = Imported(
            manifest=manifest,
            labels={},
            edition=self.edition,
            digest=self.place.lists.digest,
            groups="pictures",
            names={task.name: self.names for task in self.tasks if task.kind == "multiclass"},
        )
        columns = {"video": names, "frame": np.ones(len(names), np.int32)}
        columns["split"] = pa.array(splits).dictionary_encode()
        for task, dtype in self.tasks.items():
            values = np.array([picture.labels[task] for picture in chosen], dtype)
            cells = dict(zip(task.columns, values.T, strict=True))
            table = pa.table(columns | cells)
            found.labels[task] = table
            known = np.asarray(task.is_labelled(values).any(axis=1))
            found.counts += count_splits(task, table, known, manifest)

        # Report
        sizes = f"{len(names):,} pictures, {len(manifest):,} of them found; {self.complete}"
        found.lines = [f"{self.title}: {sizes}", *listing.lines(), *self.lines]
        classes = next((task.outputs for task in self.tasks if task.kind == "multiclass"), ())
        found.lines += [*describe_classes(self.names, classes), f"split: {how_split}"]
        found.lines += describe_counts(found.counts, "pictures")
        found.problems = [*self.problems, *listing.problems]
        return found

    def _find_images(self, key_of: Callable[[str], tuple[str, int] | None]) -> pa.Table:
        """Manifest of the pictures that are there; what is missing or doubled is noted."""
        images: dict[str, tuple[int, str, str]] = {}
        unnamed = []
        for root in self.place.images:
            for path in root.find_pictures():
                name, rank = key_of(path) or ("", 0)
                first = images.setdefault(name, (rank, path, root.path))
                if name not in self.pictures:
                    unnamed.append(path)
                elif rank < first[0]:
                    images[name] = (rank, path, root.path)
                elif rank == first[0] and first[1:] != (path, root.path):
                    kind = "a picture of this name is there already; left out"
                    self.problems.append(Problem(path, 0, f"{kind}: {first[1]}", kind))
        if unnamed:
            kind, count = "pictures that no list names", len(unnamed)
            self.place.images[0].listing.ignored.add(kind, *unnamed[:3], count=count)
        for name in sorted(self.pictures.keys() - images.keys()):
            kind = "no such picture"
            self.problems.append(self.pictures[name].line.problem(f"{name}: {kind}", kind))

        # Manifest
        found = sorted(self.pictures.keys() & images.keys())
        if not found:
            roots, first = " ".join(root.path for root in self.place.images), min(self.pictures)
            what = f"none of the {len(self.pictures):,} pictures of {self.title} (first {first})"
            raise RaffectError(f"{roots}: {what}; name the folder of its pictures with --images")
        return pa.table(
            {
                "video": pa.array(found, pa.string()).dictionary_encode(),
                "frame": np.ones(len(found), np.int32),
                "path": pa.array([images[name][1] for name in found], pa.string()),
                "root": pa.array([images[name][2] for name in found]).dictionary_encode(),
            }
        )


def unlabelled_of(task: Task) -> Values:
    """Cells of a picture that has no label in a task."""
    mark = float("nan") if task.unlabelled is None else float(task.unlabelled)
    return (mark,) * len(task.columns)


def read_class(
    line: Line, word: str, task: Task, names: Mapping[str, str], problems: list[Problem]
) -> Values:
    """Cell of a class; a word that ``names`` lacks is noted, and the picture unlabelled."""
    if word in names:
        return (float(task.outputs.index(names[word])),)
    problems.append(note_unknown(line, word, names))
    return unlabelled_of(task)
