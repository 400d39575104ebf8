"""DISFA: videos of 27 subjects from two cameras, 12 action units a frame with intensities 0 to 5.

Labels are ``ActionUnit_Labels/SN001/SN001_au12.txt`` with lines ``frame,intensity``. Frames lie in
folders whose path names the subject and, where there are both, the camera, such as
``Video_LeftCamera/LeftVideoSN001_comp/00001.jpg``.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import ACTION_UNITS
from raffect.datasets.imported import Imported, count_splits, deal_split, describe_counts
from raffect.datasets.listing import Video, build_manifest
from raffect.datasets.problems import Line, Problem
from raffect.datasets.root import Place, Root, open_place, refuse_lists
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require

ACTIVE_FROM = 2
"""Intensity from which a unit is active: the usual binary labels of DISFA."""

UNITS = {name: ACTION_UNITS[name] for name in ("AU1", "AU2", "AU4")} | {
    "AU5": "upper eyelids raised",
    "AU6": ACTION_UNITS["AU6"],
    "AU9": "nose wrinkled",
    "AU12": ACTION_UNITS["AU12"],
    "AU15": ACTION_UNITS["AU15"],
    "AU17": "chin raised",
    "AU20": "lips stretched",
    "AU25": ACTION_UNITS["AU25"],
    "AU26": ACTION_UNITS["AU26"],
}
"""Units in the order of their numbers, with their descriptions after the FACS manual."""

TASK = Task(
    name="au",
    kind="multilabel",
    outputs=tuple(UNITS),
    columns=tuple(UNITS),
    descriptions=tuple(UNITS.values()),
)
_LABELS = r"(?:.*/)?(?P<subject>SN[0-9]{3})/(?P=subject)_au(?P<unit>[0-9]{1,2})\.txt"
_LINE = re.compile(r"\s*([0-9]{1,9})\s*[,\s]\s*([0-9]{1,3})(?:\.0*)?\s*", re.A)
_SUBJECT = re.compile(r"SN[0-9]{3}", re.I | re.A)
_CAMERA = re.compile(r"left|right", re.I)
_COMPLETE = "a complete copy has 27 subjects of 4,844 or 4,845 frames (Mavadati et al. 2013)"


def recognise(root: Root) -> str:
    """Why a root is DISFA's; empty if it is not."""
    found = root.find(_LABELS)
    return f"labels {found[0]}" if found else ""


def import_disfa(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read the units of every subject, and the frames of one camera or both: task ``au``.

    Subjects stay together in splits, folds and intervals, also those seen by both cameras.

    Raises:
        RaffectError: If no labels, no frames of a labelled subject, or no labelled frames are
            found.
    """
    # Labels by subject
    place = open_place(config, root)
    problems = list[Problem]()
    labels = _read_subjects(place.lists, problems)
    if not labels:
        files, expected = place.lists.find(_LABELS), "ActionUnit_Labels/SN001/SN001_au1.txt"
        raise refuse_lists(place.lists, files, problems, "DISFA", expected)

    # Videos of these subjects
    videos = _find_videos(place, problems)
    seen = {video.name.split("_")[0] for video in videos}
    for subject in sorted(labels.keys() - seen):
        kind = "labels of a subject without frames"
        problems.append(Problem(subject, 0, kind))
    for subject in sorted(seen - labels.keys()):
        kind = "frames of a subject without labels"
        problems.append(Problem(subject, 0, kind))
    used = [video for video in videos if video.name.split("_")[0] in labels]
    if not used:
        images = " ".join(root.path for root in place.images)
        raise RaffectError(
            f"{images}: no frames of {', '.join(sorted(labels)[:3])} ...; expected folders such as "
            "Video_LeftCamera/LeftVideoSN001_comp/00001.jpg (DISFA comes as videos: cut them first)"
        )

    # Manifest and label table
    listing = place.listing
    manifest = build_manifest(used, listing)
    table = _build_labels(used, labels)
    groups = table["group"].to_pylist()
    table = table.append_column(
        "split",
        pa.array(deal_split(groups, config.validation_share)).dictionary_encode(),
    )
    values = np.stack([table[name].to_numpy() for name in TASK.columns], 1)
    counts = count_splits(TASK, table, np.asarray((values >= 0).any(axis=1)), manifest)
    if not any(part.with_image for part in counts):
        what = f"no frame of {used[0].name} or another video has labels and a picture"
        raise RaffectError(f"{place.lists.path}: {what}; both count frames from 1")
    sizes = f"{len(labels)} subjects, {len(used)} videos with {len(manifest):,} frames"
    rates = [
        f"{name} {np.mean(column[column >= 0] == 1):.3f}"
        for name, column in zip(TASK.outputs, values.T, strict=True)
        if (column >= 0).any()
    ]
    return Imported(
        manifest=manifest,
        labels={TASK: table},
        edition="ActionUnit_Labels",
        digest=place.lists.digest,
        groups="subjects",
        counts=counts,
        lines=[
            f"DISFA: {sizes}; {_COMPLETE}",
            *listing.lines(),
            f"labels: au, active from intensity {ACTIVE_FROM}: {', '.join(rates)}",
            f"split: dealt by subject, {config.validation_share:g} held out",
            *describe_counts(counts, "subjects"),
        ],
        problems=[*problems, *listing.problems],
        names={
            TASK.name: {
                f"intensity {ACTIVE_FROM} to 5": "active",
                f"0 to {ACTIVE_FROM - 1}": "not active",
            }
        },
    )


_Intensities = dict[int, dict[str, int]]
"""Frame -> unit -> 1 active, 0 not."""


def _read_subjects(root: Root, problems: list[Problem]) -> dict[str, _Intensities]:
    """Labels of every subject; a unit without a file is unlabelled and noted."""
    subjects: dict[str, _Intensities] = defaultdict(lambda: defaultdict(dict))
    units: dict[str, set[str]] = defaultdict(set)
    for file in root.find(_LABELS):
        match = re.fullmatch(_LABELS, file, re.I)
        assert match is not None
        subject, unit = match["subject"].upper(), f"AU{int(match['unit'])}"
        if unit not in UNITS:
            kind = "not one of the 12 units; left out"
            problems.append(Problem(file, 0, f"{unit} {kind}", kind))
            continue
        units[subject].add(unit)
        for frame, is_active in _read_unit(root.lines(file), problems).items():
            if unit in subjects[subject][frame]:
                kind = "a frame again, in another file of the unit; left out"
                problems.append(Problem(file, 0, f"frame {frame}: {kind}", kind))
            else:
                subjects[subject][frame][unit] = is_active
    for subject, found in units.items():
        for unit in sorted(UNITS.keys() - found):
            kind = "no file of a unit; unlabelled"
            problems.append(Problem(subject, 0, f"{unit}: {kind}", kind))
    return dict(subjects)


def _read_unit(lines: list[Line], problems: list[Problem]) -> dict[int, int]:
    """Frame -> 1 active, 0 not; empty if frames count from 0, since pictures count from 1."""
    frames: dict[int, int] = {}
    for line in lines:
        match = _LINE.fullmatch(line.text)
        frame = int(match[1]) if match else 0
        if match is None or int(match[2]) > 5:
            kind = "expected a frame from 1 and an intensity from 0 to 5; unlabelled"
            problems.append(line.problem(f"{line.text[:40]!r}: {kind}", kind))
        elif frame == 0:
            kind = "frames count from 0, expected from 1; the unit is unlabelled"
            problems.append(line.problem(kind))
            return {}
        elif frame in frames:
            kind = "a frame again; left out"
            problems.append(line.problem(f"frame {frame}: {kind}", kind))
        else:
            frames[frame] = int(int(match[2]) >= ACTIVE_FROM)
    return frames


def _find_videos(place: Place, problems: list[Problem]) -> list[Video]:
    """Folders of frames named by subject and camera: ``SN001``, or ``SN001_left``.

    Raises:
        RaffectError: If two folders of one root are the same subject and camera.
    """
    by_name: dict[str, Video] = {}
    for root in place.images:
        own: dict[str, str] = {}
        for video in root.videos:
            subjects = _SUBJECT.findall(video.folder)
            cameras = _CAMERA.findall(video.folder)
            if not subjects:
                kind = "frames in a folder that names no subject (SN001); left out"
                problems.append(Problem(video.folder, 0, kind))
                continue
            name = "_".join([subjects[-1].upper(), *[word.lower() for word in cameras[-1:]]])
            other = own.setdefault(name, video.folder)
            require(
                other == video.folder,
                f"{root.path}: two folders have frames of {name} ({other}, {video.folder}); "
                "name the folder of the right ones with --images",
            )
            by_name.setdefault(name, video._replace(name=name))
    return [by_name[name] for name in sorted(by_name)]


def _build_labels(videos: list[Video], labels: dict[str, _Intensities]) -> pa.Table:
    """A row a labelled frame of every video, by (video, frame)."""
    names, frames, groups, rows = [], [], [], []
    for video in videos:
        subject = video.name.split("_")[0]
        for frame, units in sorted(labels[subject].items()):
            names.append(video.name)
            frames.append(frame)
            groups.append(subject)
            rows.append([units.get(unit, -1) for unit in UNITS])
    values = np.array(rows, np.int8).reshape(len(rows), len(UNITS))
    columns = {
        "video": pa.array(names).dictionary_encode(),
        "frame": np.array(frames, np.int32),
        "group": pa.array(groups).dictionary_encode(),
    }
    return pa.table(columns | dict(zip(UNITS, values.T, strict=True)))
