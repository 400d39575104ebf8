"""MAFW: clips in 11 expressions and their compounds, with five official folds and captions.

Lists are ``Train_Test_Set/<single|compound>/<with|no>_caption*/set_<k>/<side>.txt`` in GBK, with
tabs: clip, class by name (parts of a compound joined by ``_``) and, with captions, one in Chinese
and one in English.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.expressions import expression_task, find_expression
from raffect.datasets.imported import Imported
from raffect.datasets.listing import Listing, Video, build_manifest
from raffect.datasets.problems import Line, Problem, note_unknown, unread_lines
from raffect.datasets.root import Place, Root, open_place, refuse_lists
from raffect.datasets.sets.clip_lists import (
    Clip,
    Entry,
    clip_name,
    is_header,
    merge_entries,
)
from raffect.datasets.sets.clip_sets import ClipFolders, ClipSet
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError

SINGLE = (
    "Anger",
    "Disgust",
    "Fear",
    "Happiness",
    "Neutral",
    "Sadness",
    "Surprise",
    "Contempt",
    "Anxiety",
    "Helplessness",
    "Disappointment",
)
"""The 11 single expressions, in the order of the paper."""

_LISTS = (
    r"(?:.*/)?(?P<kind>single|compound)/(?P<variant>[^/]*caption[^/]*)"
    r"/set_(?P<fold>[1-5])/(?P<side>train|test)\.txt"
)
_CAPTIONS = pa.schema(
    {
        "video": pa.string(),
        "start": pa.int32(),
        "end": pa.int32(),
        "split": pa.string(),
        "fold": pa.int8(),
        "caption": pa.string(),
    }
)
_EXPECTED = "Train_Test_Set/single/no_caption/set_1/train.txt"
_HAN = re.compile(r"[\u3400-\u9fff]")
_COMPLETE = {
    "single": "a complete copy has 9,172 (Liu et al. 2022)",
    "compound": "",
}


class _Row(NamedTuple):
    """A line of a list."""

    line: Line
    fold: int
    side: str
    clip: str
    word: str
    texts: tuple[str, ...]


def recognise(root: Root) -> str:
    """Why a root is MAFW's; empty if it is not."""
    found = root.find(_LISTS)
    return f"list {found[0]}" if found else ""


def import_mafw(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read the lists of single and of compound expressions: a task each, ``expr`` and ``compound``.

    Captions are those of all lists that have some; labels are those of the lists without captions
    where there are such, which have more clips.

    Raises:
        RaffectError: If no list or no frames are found.
    """
    # Lists by kind and variant
    place = open_place(config, root)
    files: dict[str, dict[str, list[re.Match[str]]]] = defaultdict(lambda: defaultdict(list))
    for file in place.lists.find(_LISTS):
        match = re.fullmatch(_LISTS, file, re.I)
        assert match is not None
        files[match["kind"].lower()][match["variant"].lower()].append(match)
    if not files:
        raise refuse_lists(place.lists, [], [], "MAFW", _EXPECTED)

    # A data set for each kind, on the same frames
    folders = ClipFolders(place)
    parts, captions = [], list[_Row]()
    for kind in ("single", "compound"):
        if kind in files:
            data, rows = _read_kind(place, kind, files[kind])
            data.find_frames(folders)
            parts.append(data)
            captions += rows
    folders.ignore_unused(place.images[0].listing)
    found = _join(parts, config)
    _add_captions(found, captions, parts)
    return found


def _read_kind(
    place: Place, kind: str, variants: dict[str, list[re.Match[str]]]
) -> tuple[ClipSet, list[_Row]]:
    """Clips of one kind, and the lines that have captions."""
    # Variants: one for the labels, those with texts for captions
    plain = sorted((name for name in variants if name.startswith("no")), key=_newest_first)
    texts = sorted((name for name in variants if not name.startswith("no")), key=_newest_first)
    chosen = (plain or texts)[0]
    problems = list[Problem]()
    rows = _read_lines(place.lists, variants[chosen], problems)
    captions = rows if chosen in texts else []
    why = ", not those of the lists with captions" if plain and texts else ""
    lines = [f"{kind}: labels are those of the lists in {kind}/{chosen}{why}"]
    if texts and not captions:
        captions = _read_lines(place.lists, variants[texts[0]], problems)
    lines += unread_lines(f"{kind}: ", sorted(set(variants) - {chosen, *texts[:1]}))
    if not rows:
        lists = [match.string for match in variants[chosen]]
        raise refuse_lists(place.lists, lists, problems, f"MAFW {kind}", _EXPECTED)

    # Classes by name
    names, entries = dict[str, str](), []
    for row in rows:
        label = _name(row.word)
        if label is None or (kind == "single" and label not in SINGLE):
            problems.append(note_unknown(row.line, row.word, SINGLE))
            label = None
        else:
            names[row.word] = label
        entries.append(Entry(row.line, row.clip, label, row.side, row.fold))
    clips, found = merge_entries(entries)
    task = _task(kind, set(names.values()), f"{place.lists.path}: {kind}/{chosen}")
    data = ClipSet(
        title=f"MAFW {kind}",
        place=place,
        task=task,
        names=dict(sorted(names.items())),
        complete=_COMPLETE[kind],
        edition=chosen,
        clips=clips,
        num_official=5,
        problems=[*problems, *found],
        lines=lines,
    )
    return data, captions


def _newest_first(variant: str) -> tuple[bool, str]:
    return "new" not in variant, variant


def _task(kind: str, found: set[str], where: str) -> Task:
    """All single expressions; or those compounds that the lists have, behind single ones."""
    if kind == "single":
        return expression_task(SINGLE)
    single = [name for name in SINGLE if name in found]
    compounds = sorted(found - set(SINGLE), key=lambda name: (name.count("_"), _rank(name)))
    classes = [*single, *compounds]
    if len(classes) < 2:
        raise RaffectError(f"{where}: fewer than two compound classes in its lists")
    return expression_task(classes, "compound")


def _rank(name: str) -> list[int]:
    return [SINGLE.index(part) for part in name.split("_")]


def _name(word: str) -> str | None:
    """``Anger_Disgust`` for ``disgust_anger``: parts in the order of `SINGLE`."""
    parts = [find_expression(part) for part in re.split(r"[_+&]", word)]
    if any(part not in SINGLE for part in parts) or len(set(parts)) != len(parts):
        return None
    return "_".join(sorted(map(str, parts), key=SINGLE.index))


def _read_lines(root: Root, files: list[re.Match[str]], problems: list[Problem]) -> list[_Row]:
    rows = []
    for match in files:
        for line in root.lines(match.string):
            cells = [cell.strip() for cell in line.text.split("\t")]
            if len(cells) == 1:
                cells = line.text.split(maxsplit=1)
            if len(cells) > 1 and is_header(line, cells[1]):
                continue
            if len(cells) < 2 or not cells[0] or not cells[1]:
                what = "expected a clip and its class, between tabs; left out"
                problems.append(line.problem(f"{line.text[:60]!r}: {what}", what))
                continue
            texts = tuple(cell for cell in cells[2:] if cell)
            part = int(match["fold"]), match["side"].lower()
            rows.append(_Row(line, *part, clip_name(cells[0]), cells[1], texts))
    return rows


def _join(parts: Sequence[ClipSet], config: PrepareConfig) -> Imported:
    """What was found of every kind that has frames, and the frames of all."""
    usable = [part for part in parts if part.has_frames] or parts[:1]
    first, *others = (part.to_imported(config) for part in usable)
    for other in others:
        first.labels |= other.labels
        first.counts += other.counts
        first.lines = list(dict.fromkeys([*first.lines, *other.lines]))
        first.problems = list(dict.fromkeys([*first.problems, *other.problems]))
        first.names |= other.names
        first.edition += f" and {other.edition}"
    for part in parts:
        if part not in usable:
            first.lines.append(
                f"{part.title}: left out, no frames of its {len(part.clips):,} clips"
            )
    videos = {name: clip.video for part in usable for name, clip in part.clips.items()}
    found = [video for video in videos.values() if video is not None]
    first.manifest = build_manifest(found, Listing(pa.table({})))
    return first


def _add_captions(found: Imported, lines: list[_Row], parts: Sequence[ClipSet]) -> None:
    """Add a table of captions in English: one row a clip with frames and text."""
    texts: dict[str, _Row] = {}
    for row in lines:
        english = [text for text in row.texts if not _HAN.search(text)]
        if not row.texts:
            found.problems.append(row.line.problem("no caption"))
        elif len(english) != 1:
            kind = "expected one caption in English; left out"
            found.problems.append(row.line.problem(f"{row.clip}: {kind}", kind))
        else:
            first = texts.setdefault(row.clip, row._replace(texts=(english[0],)))
            if first.texts != (english[0],):
                kind = "another caption than in an earlier list; left out"
                where = f"{first.line.file}:{first.line.number}"
                found.problems.append(row.line.problem(f"{row.clip}: {kind} ({where})", kind))
    if not texts:
        found.lines.append("captions: none, no lists with captions")
        return
    clips: dict[str, tuple[Clip, Video]] = {}
    for part in parts:
        for name, clip in part.clips.items():
            if name in texts and clip.video is not None:
                clips.setdefault(name, (clip, clip.video))
    rows = [
        {
            "video": name,
            "start": int(video.frames.min()),
            "end": int(video.frames.max()),
            "split": clip.split,
            "fold": clip.fold,
            "caption": texts[name].texts[0],
        }
        for name, (clip, video) in sorted(clips.items())
    ]
    found.captions = pa.Table.from_pylist(rows, _CAPTIONS)
    found.lines.append(f"captions: {len(rows):,} clips with a caption in English")
