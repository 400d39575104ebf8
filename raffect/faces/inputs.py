"""Inputs: files, folders and patterns become a list of pictures and videos with safe, unique names.

The list of a folder of faces only grows, so that a name once given stays: run again with further
inputs, it adds those, and units of work that are finished stay finished.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from raffect.datasets.problems import Ignored, Problem
from raffect.errors import RaffectError
from raffect.faces import pictures, video
from raffect.faces.records import Input, InputList, Kind, to_text
from raffect.storage.atomic import write_if_absent
from raffect.storage.paths import list_sizes, printable, read_files

_LIST = re.compile(r"[0-9]{4,8}\.json", re.A)
_UNSAFE = re.compile(r"[^\w.-]+")
_MAGIC = re.compile(r"[*?\[]")
_LONGEST, _MOST_BYTES = 80, 160
"""Characters and bytes of a name; file systems allow 255 bytes, with all that is put around it."""
_IS_OUT = "is --out, whose files are results, left out"


@dataclass
class Listing:
    """What the user's paths lead to.

    Attributes:
        files: Files as given, each once, in the order of the arguments and then of names.
        problems: What was left out for a fault of its own.
        ignored: What is neither picture nor video, by its name.
    """

    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)


def list_inputs(given: Iterable[Path], out: Path | None = None) -> Listing:
    """List the files that paths, folders and patterns mean; no file is opened.

    A file that is named itself is taken whatever it is called; in folders pictures and videos are
    known by their suffixes.

    Args:
        given: The paths.
        out: Folder of the results, which is left out: they are no inputs of the next run.

    Raises:
        RaffectError: If a path leads to nothing, or all of them to no picture or video.
    """
    listing, seen = Listing(), set[bytes]()
    results = os.path.realpath(out) if out else ""
    for path in given:
        for file in _expand(path, results):
            for found in _walk(file, listing, (), results) if file.is_dir() else (file,):
                place = os.fsencode(os.path.abspath(found))
                if place not in seen:
                    seen.add(place)
                    listing.files.append(found)
    if not listing.files:
        shown = " ".join(map(str, given))
        kinds = f"pictures ({_shown(pictures.SUFFIXES)}) or videos ({_shown(video.SUFFIXES)})"
        left_out = [problem.file for problem in listing.problems if problem.what == _IS_OUT]
        why = f" beside those of --out {out}, which is left out" if left_out else ""
        raise RaffectError(f"{shown}: no {kinds}{why}")
    return listing


def _shown(suffixes: Iterable[str]) -> str:
    return " ".join(sorted(suffixes))


def _expand(path: Path, results: str) -> list[Path]:
    """The path itself if it exists, else what it matches as a pattern, in the order of names.

    A pattern that begins outside ``results`` matches nothing in there.
    """
    if os.path.lexists(path):
        return [path]
    text, found = str(path), list[str]()
    if magic := _MAGIC.search(text):
        found = sorted(glob.glob(text, recursive=True))
        if not _lies_in(os.path.dirname(text[: magic.start()]), results):
            found = [one for one in found if not _lies_in(one, results)]
    if not found:
        what = "matches nothing" if magic else "no such file or folder"
        raise RaffectError(f"{path}: {what}; expected a picture, video, folder or pattern")
    return [Path(one) for one in found]


def _lies_in(path: str, results: str) -> bool:
    return bool(results) and Path(os.path.realpath(path)).is_relative_to(results)


def _walk(folder: Path, listing: Listing, above: tuple[str, ...], results: str) -> Iterator[Path]:
    """Pictures and videos below a folder, in the order of names, but for those of ``results``.

    Links to a folder above stop.
    """
    real = os.path.realpath(folder)
    if real == results:
        if not above:
            listing.problems.append(_problem(folder, _IS_OUT))
        return
    if real in above:
        listing.problems.append(_problem(folder, "link to a folder that it lies in, left out"))
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        what = f"folder cannot be read ({error.strerror}), left out"
        listing.problems.append(_problem(folder, what))
        return
    for entry in found:
        path = folder / entry.name
        if entry.name.startswith("."):
            listing.ignored.add_entry(entry, printable(path))
        elif entry.is_dir():
            yield from _walk(path, listing, (*above, real), results)
        elif path.suffix.lower() in pictures.SUFFIXES | video.SUFFIXES:
            yield path
        else:
            listing.ignored.add_entry(entry, printable(path))


def _problem(path: Path, what: str) -> Problem:
    return Problem(printable(path), 0, what)


def read_inputs(folder: Path) -> list[Input]:
    """The inputs of a folder of faces, by number.

    Raises:
        RaffectError: If a list is damaged or missing.
    """
    names = sorted(name for name in list_sizes(folder / "inputs") if _LIST.fullmatch(name))
    inputs: list[Input] = []
    for number, (name, content) in enumerate(read_files(folder / "inputs", names)):
        where = folder / "inputs" / name
        found = InputList.from_json(content, where, "use a new --out")
        if (name, found.first) != (f"{number:04d}.json", len(inputs)):
            what = f"a list before it is missing ({number:04d}.json)"
            raise RaffectError(f"{where}: {what}; bring it back or use a new --out")
        inputs += found.inputs
    return inputs


def add_inputs(folder: Path, files: Iterable[Path]) -> list[Input]:
    """Add files to the inputs of a folder of faces, unless they are among them.

    Returns:
        All its inputs, by number.
    """
    while True:
        inputs = read_inputs(folder)
        known = {one.place for one in inputs}
        taken = {one.name.lower() for one in inputs}
        new: list[Input] = []
        for file in files:
            place = to_text(Path(os.path.abspath(file)))
            if place not in known:
                known.add(place)
                name = _choose_name(file, taken)
                new.append(Input(name=name, kind=kind_of(file), place=place, given=to_text(file)))
        record = InputList(first=len(inputs), inputs=tuple(new))
        number = len(list_sizes(folder / "inputs"))
        path = folder / "inputs" / f"{number:04d}.json"
        # If another run was first, its inputs come first.
        if not new or write_if_absent(path, record.to_bytes()):
            return inputs + new


def kind_of(file: Path) -> Kind:
    """What a file is taken for, by its suffix; a video where that says nothing."""
    return "picture" if file.suffix.lower() in pictures.SUFFIXES else "video"


def _choose_name(file: Path, taken: set[str]) -> str:
    """A name that no other input has, also where case does not count; it is added to ``taken``.

    It is the file's without suffix; if that is taken, with those of folders above it, or a number.
    """
    parts = [_safe(part) for part in Path(os.path.abspath(file)).with_suffix("").parts[1:]]
    names = [_last_part("_".join(parts[-count:])).lstrip("-.") for count in (1, 2)]
    number, name = 1, names[0]
    while not name or name.lower() in taken:
        number += 1
        name = names[1] if number == 2 else f"{names[0]}_{number - 1}"
    taken.add(name.lower())
    return name


def _last_part(name: str) -> str:
    """The end of a name, cut at a character, which fits into `_LONGEST` and `_MOST_BYTES`."""
    return name[-_LONGEST:].encode()[-_MOST_BYTES:].decode(errors="ignore")


def _safe(part: str) -> str:
    """A part of a path with letters, digits, ``_``, ``-`` and ``.`` alone."""
    return _UNSAFE.sub("_", part).lstrip("-.") or "_"
