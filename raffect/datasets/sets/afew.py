"""AFEW: clips of films in seven expressions; the folders say split and class.

Frames lie in ``<split>/<emotion>/<clip>/``, such as ``AFEW_Face/train/Angry/000046280/001.png``; a
split may be called ``Train_AFEW`` and ``Val_AFEW``, as the archives of its videos are.
"""

from __future__ import annotations

from raffect.config import PrepareConfig
from raffect.datasets.expressions import BASIC, expression_task, find_expression
from raffect.datasets.imported import SPLIT_NAMES, Imported
from raffect.datasets.problems import Line, Problem
from raffect.datasets.root import Root, open_place
from raffect.datasets.sets.clip_lists import Entry, merge_entries
from raffect.datasets.sets.clip_sets import ClipFolders, ClipSet
from raffect.errors import require

_COMPLETE = "a complete copy has 773 to train on and 383 to validate on (EmotiW 2017)"


def recognise(root: Root) -> str:
    """Why a root is AFEW's; empty if it is not."""
    for folder in root.files:
        above, _, last = folder.rpartition("/")
        is_split, is_named = _split_of(last) is not None, last.lower().endswith("_afew")
        if is_split and (is_named or above.split("/")[-1].lower().startswith("afew")):
            return f"folder {folder}"
    name = root.path.split("/")[-1]
    has_splits = {"train", "validation"} <= {_split_of(folder) for folder in root.files}
    return f"its name {name}, train and val" if has_splits and "afew" in name.lower() else ""


def _split_of(folder: str) -> str | None:
    return SPLIT_NAMES.get(folder.lower().removesuffix("_afew"))


def import_afew(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Take split and class of every clip from the folders that it lies in.

    Raises:
        RaffectError: If no folder of frames lies in ``<split>/<emotion>/``.
    """
    # Clips by their folders
    place = open_place(config, root)
    entries, problems, names = list[Entry](), list[Problem](), dict[str, str]()
    for top in place.images:
        for video in top.videos:
            split, word, clip = ["", "", "", *video.folder.split("/")][-3:]
            side, label = _split_of(split), find_expression(word)
            line = Line(video.folder, 0, "")
            if side is None:
                kind = "not in <split>/<emotion>/<clip>; left out"
                problems.append(line.problem(f"frames {kind}", kind))
                continue
            if label not in BASIC:
                kind = "folder is not a class; its clips are unlabelled"
                problems.append(Problem(video.folder.rpartition("/")[0], 0, kind, kind))
                label = None
            else:
                names[word] = label
            entries.append(Entry(line, f"{split}/{word}/{clip}", label, side))
    first = f"; the first frames are in {problems[0].file or 'itself'}" if problems else ""
    require(
        bool(entries),
        f"{place.images[0].path}: no frames of AFEW; expected train/Angry/<clip>/ below it{first}",
    )

    # Clips, and those of one name in both splits
    clips, found = merge_entries(entries)
    sides: dict[str, Entry] = {}
    for entry in entries:
        other = sides.setdefault(entry.clip.split("/")[-1], entry)
        if other.side != entry.side:
            kind = "a clip of this name is in another split, too"
            found.append(entry.line.problem(f"{kind}: {other.line.file}", kind))
    data = ClipSet(
        title="AFEW",
        place=place,
        task=expression_task(BASIC),
        names=dict(sorted(names.items())),
        complete=_COMPLETE,
        edition="folders",
        clips=clips,
        problems=[*problems, *found],
    )
    data.find_frames(ClipFolders(place, depth=3))
    return data.to_imported(config)
