"""A data set in Aff-Wild2's exact layout, drawn from action units.

Every frame and label follows from one seed. A *course* is what happens in one video: intensities of
every unit over time, and from them the labels. Expressions come in segments that rise and fall,
over a background of talking and squinting, so that neighbouring frames resemble each other, classes
are as unequal as in Aff-Wild2, and units occur without the expression they are known for.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, Le
from PIL import Image

from raffect.datasets.affwild2.tasks import ACTION_UNITS, COMPLETE_EXPR_COUNTS, EXPRESSIONS, HEADERS
from raffect.datasets.synthetic.faces import DRAWN_UNITS, Look, Pose, draw_face, draw_look
from raffect.errors import RaffectError
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record

MARKER = "raffect-synthetic.json"
"""File that marks a data set as drawn."""

GENERATOR = 2
"""Version of the drawings: one more with every change of what is drawn from the same seed."""

SIZES = {"tiny": 400, "small": 4_000, "medium": 40_000}
IMAGES, EDITION = "cropped_aligned", "8th_ABAW_Annotations"
TASK_FOLDERS = {
    "expr": "EXPR_Recognition_Challenge",
    "au": "AU_Detection_Challenge",
    "va": "VA_Estimation_Challenge",
}
_PATH = re.compile(rf"{IMAGES}/([^/]+)/([0-9]{{5,9}})\.jpg", re.A)
_REDRAW = "delete its folder and draw it again"
_SPLIT_FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}

PROTOTYPES: dict[str, tuple[dict[str, float], ...]] = {
    "Neutral": ({},),
    "Anger": (
        {"AU4": 1, "AU5": 0.5, "AU7": 0.8, "AU23": 0.9},
        {"AU4": 1, "AU7": 0.9, "AU24": 0.8, "AU10": 0.3},
    ),
    "Disgust": (
        {"AU9": 1, "AU10": 1, "AU4": 0.4, "AU7": 0.5, "AU25": 0.4},
        {"AU9": 0.9, "AU10": 0.8, "AU15": 0.6, "AU17": 0.5},
    ),
    "Fear": ({"AU1": 1, "AU2": 0.8, "AU4": 0.7, "AU5": 1, "AU20": 0.9, "AU25": 0.7, "AU26": 0.3},),
    "Happiness": ({"AU6": 1, "AU12": 1, "AU25": 0.8}, {"AU6": 0.8, "AU12": 1, "AU7": 0.4}),
    "Sadness": (
        {"AU1": 1, "AU4": 0.7, "AU15": 1, "AU17": 0.7},
        {"AU1": 0.8, "AU15": 0.9, "AU7": 0.4},
    ),
    "Surprise": (
        {"AU1": 1, "AU2": 1, "AU5": 1, "AU25": 1, "AU26": 1},
        {"AU1": 0.9, "AU2": 0.9, "AU5": 0.8, "AU25": 0.6},
    ),
    "Other": (
        {"AU24": 1, "AU6": 0.8},
        {"AU12": 0.9, "AU4": 0.8},
        {"AU7": 0.9, "AU10": 0.7, "AU12": 0.5},
        {"AU26": 0.9, "AU25": 0.9, "AU7": 0.7},
        {"AU23": 0.8, "AU1": 0.7, "AU2": 0.7},
    ),
}
"""Expressions as combinations of units, after EMFACS; "Other" fits none of the seven.

Each has one variant or more: intensities in [0, 1] of the units that it shows.
"""

# Share of the time in which a unit is active whatever the expression
_BACKGROUND = {
    "AU25": 0.5,
    "AU7": 0.27,
    "AU10": 0.24,
    "AU6": 0.14,
    "AU12": 0.06,
    "AU4": 0.06,
    "AU26": 0.03,
}

# Valence and arousal of each expression at its height
_CIRCUMPLEX = {
    "Neutral": (0.05, 0.05),
    "Anger": (-0.55, 0.65),
    "Disgust": (-0.6, 0.35),
    "Fear": (-0.5, 0.75),
    "Happiness": (0.75, 0.45),
    "Sadness": (-0.65, -0.15),
    "Surprise": (0.15, 0.75),
    "Other": (0.0, 0.2),
}
# Most intensity of another expression that is mixed into a segment's own
_MOST_TRACE = 0.7

# Share of segments that the annotator labels as Neutral or Other
_DOUBT = 0.15

# Intensity from which a unit, and an expression, is labelled
_AU_THRESHOLD = 0.3
_EXPR_THRESHOLD = 0.35

# Independent streams of random numbers from one seed
_LOOK_STREAM, _COURSE_STREAM, _LAYOUT_STREAM = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class DrawnSpec(Record):
    """Everything that decides what a drawn data set holds."""

    generator: int
    num_frames: Annotated[int, Ge(0), Le(100_000_000)]
    seed: Annotated[int, Ge(0)]

    def __str__(self) -> str:
        return f"generator {self.generator}, {self.num_frames:,} frames, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Drawn(Record):
    """The content of `MARKER`: the data set's specification, and its counts once it is finished."""

    spec: DrawnSpec
    counts: Mapping[str, Annotated[int, Ge(0)]] | None = None


@dataclass(frozen=True, kw_only=True)
class Video:
    """Plan of one drawn video.

    Attributes:
        name: Of its folder and annotation files.
        index: Number in the data set from 0.
        num_frames: Length.
        subject: Number of the person it shows.
        splits: Its split in each task, None where it is not part of the task.
        expressions: Labels of its segments in order.
    """

    name: str
    index: int
    num_frames: int
    subject: int
    splits: dict[str, str | None]
    expressions: tuple[int, ...]


@dataclass(frozen=True)
class Course:
    """What happens in a video of T frames.

    Attributes:
        units: Intensities, shape (T, len(DRAWN_UNITS)), in [0, 1].
        expr: EXPR labels, shape (T,), -1 unlabelled.
        au: AU labels, shape (T, 12), -1 unlabelled.
        va: Valence and arousal, shape (T, 2), -5 unlabelled.
        face: Whether a frame has an image, shape (T,).
    """

    units: np.ndarray
    expr: np.ndarray
    au: np.ndarray
    va: np.ndarray
    face: np.ndarray


def sample_prototype(rng: np.random.Generator, expression: str) -> np.ndarray:
    """One way to show an expression: intensities of `DRAWN_UNITS`, shape (16,).

    Each intensity is varied by about a fifth.
    """
    variants = PROTOTYPES[expression]
    variant = variants[rng.integers(len(variants))]
    target = np.array([variant.get(unit, 0.0) for unit in DRAWN_UNITS])
    return np.clip(target * rng.uniform(0.75, 1.1, len(target)), 0, 1)


def sample_pose(rng: np.random.Generator) -> Pose:
    """A camera at random, as after a face detector and with a cheap webcam."""
    return Pose(
        roll=rng.normal(0, 0.07),
        yaw=float(np.clip(rng.normal(0, 0.35), -1, 1)),
        shift=(rng.normal(0, 0.03), rng.normal(0, 0.03)),
        scale=rng.uniform(0.93, 1.08),
        light=rng.uniform(0.7, 1.15),
        light_side=rng.normal(0, 0.12),
        noise=rng.uniform(1, 6),
    )


def write_synthetic(
    out: Path,
    num_frames: int,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, int]:
    """Write a drawn data set: ``out/cropped_aligned`` and ``out/8th_ABAW_Annotations``.

    A finished data set with the same size and seed is kept; an interrupted one is drawn again.

    Args:
        out: Folder to make; an existing one must be empty or hold a drawn data set.
        num_frames: Annotated lines over all videos, about; gaps leave 3 % of them without an image.
        seed: Decides everything that is drawn.
        workers: Processes; all cores by default.
        progress: Called with the number of frames each finished video adds.

    Returns:
        Counts: videos, lines, images.

    Raises:
        RaffectError: If ``out`` holds something else or a damaged marker, or ``num_frames`` is too
            small to have every split.
    """
    spec = DrawnSpec(generator=GENERATOR, num_frames=num_frames, seed=seed)
    if finished := _read_finished(out, spec):
        return finished

    # Videos; until all are written the marker has no counts
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / MARKER, Drawn(spec=spec).to_bytes())
    videos = plan_videos(num_frames, seed)
    images = 0
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_write_video, out, video, seed) for video in videos]
        for video, job in zip(videos, jobs, strict=True):
            images += job.result()
            progress(video.num_frames)

    counts = {"videos": len(videos), "lines": sum(v.num_frames for v in videos), "images": images}
    write_atomic(out / MARKER, Drawn(spec=spec, counts=counts).to_bytes())
    return counts


def _read_finished(out: Path, spec: DrawnSpec) -> dict[str, int]:
    """Counts of the finished data set in a folder; empty if there is none and it may be drawn.

    Raises:
        RaffectError: If the folder holds something else or a damaged marker.
    """
    marker = out / MARKER
    if marker.exists():
        found = Drawn.from_json(marker.read_bytes(), marker, _REDRAW)
        if found.spec != spec:
            raise RaffectError(
                f"{out} holds another drawn data set ({found.spec}); "
                "choose another --out or delete the folder"
            )
        return dict(found.counts or {})
    if out.exists() and any(out.iterdir()):
        raise RaffectError(f"{out} is not empty and was not drawn by raffect; choose another --out")
    return {}


def count_drawn(table: pa.Table) -> int:
    """How many images of a manifest raffect drew.

    Drawn are frames of a drawn data set under the names that were drawn there. Others that lie in
    or beside it, photographs for instance, are not.

    Args:
        table: ``path, root`` among its columns; roots are folders of this machine.

    Raises:
        RaffectError: If the marker of a drawn data set is damaged.
    """
    count = 0
    for root in map(Path, table["root"].unique().to_pylist()):
        # The drawn data set is the root, or a folder above it.
        folders = (root, *list(root.parents)[:2])
        tree = next((folder for folder in folders if (folder / MARKER).is_file()), None)
        if tree is not None:
            lengths, below = _read_lengths(tree), root.relative_to(tree)
            rows = table.filter(pc.field("root").cast(pa.string()) == str(root))
            count += sum(_is_drawn(below / path, lengths) for path in rows["path"].to_pylist())
    return count


def _read_lengths(tree: Path) -> dict[str, int]:
    """Frames of each video of a drawn data set, by name."""
    marker = tree / MARKER
    spec = Drawn.from_json(marker.read_bytes(), marker, _REDRAW).spec
    return {video.name: video.num_frames for video in plan_videos(spec.num_frames, spec.seed)}


def _is_drawn(path: Path, lengths: Mapping[str, int]) -> bool:
    """Whether a path below a drawn data set is that of one of its pictures."""
    match = _PATH.fullmatch(path.as_posix())
    return match is not None and 0 < int(match[2]) <= lengths.get(match[1], 0)


def plan_videos(num_frames: int, seed: int) -> list[Video]:
    """Distribute frames over videos, subjects, splits and expressions.

    Args:
        num_frames: Lines in all, at least 200.
        seed: Decides the whole plan.

    Returns:
        Videos in order; the last two are a ``<name>`` and ``<name>_right`` pair, the two before
        ``_left`` and ``_right``.

    Raises:
        RaffectError: If there are too few frames.
    """
    if num_frames < 200:
        raise RaffectError(
            f"--frames {num_frames} is too few to show 8 expressions in two splits; "
            "take 200 or more"
        )
    rng = np.random.default_rng([seed, _LAYOUT_STREAM])

    num_videos = int(np.clip(round(4 * (num_frames / 400) ** 0.5) * 2, 8, 594))
    lengths = _sample_lengths(rng, num_videos, num_frames)
    names = _name_videos(num_videos)

    # A subject keeps to one split of a task; tasks have splits of their own.
    splits = {
        task: ["validation" if k == rest else "train" for k in np.arange(num_videos) % 3]
        for task, rest in (("expr", 2), ("au", 1), ("va", 0))
    }

    # Segments of expressions, and the tasks that a video is part of
    segment = float(np.clip(num_frames / 250, 6, 45))
    videos: list[Video] = []
    for split in ("train", "validation"):
        indices = [i for i in range(num_videos) if splits["expr"][i] == split]
        counts = [max(1, round(lengths[i] / segment)) for i in indices]
        queue = _share_expressions(rng, sum(counts), split)
        for i, count in zip(indices, counts, strict=True):
            own = {
                task: splits[task][i] if rng.random() > 0.08 or num_videos < 20 else None
                for task in splits
            }
            video = Video(
                name=names[i],
                index=i,
                num_frames=int(lengths[i]),
                subject=i,
                splits=own,
                expressions=tuple(queue[:count]),
            )
            videos.append(video)
            queue = queue[count:]
    return sorted(videos, key=lambda video: video.index)


def _sample_lengths(rng: np.random.Generator, num_videos: int, num_frames: int) -> np.ndarray:
    """Frames of each video, int, shape (num_videos,); they add up to ``num_frames``."""
    lengths = rng.lognormal(0, 0.6, num_videos)
    lengths = np.maximum(20, np.round(lengths / lengths.sum() * num_frames)).astype(int)
    lengths[lengths.argmax()] += num_frames - lengths.sum()
    return lengths


def _name_videos(num_videos: int) -> list[str]:
    """Names of the kinds that Aff-Wild2 has; the last four belong to videos with two people."""
    names = [f"{i}-30-1920x1080" if i % 2 else f"video{i}" for i in range(num_videos)]
    first, second = str(num_videos), str(num_videos + 1)
    names[-4:] = [f"{first}_left", f"{first}_right", second, f"{second}_right"]
    return names


def _share_expressions(rng: np.random.Generator, num_segments: int, split: str) -> list[int]:
    """Expressions of a split's segments.

    Every class occurs if the segments suffice; the rest are in Aff-Wild2's proportions.
    """
    share = np.array(COMPLETE_EXPR_COUNTS[split], float)
    # Segments fade in and out of Neutral, which therefore needs fewer segments of its own.
    share[0] *= 0.35
    quota = np.maximum(1, np.floor(share / share.sum() * num_segments)).astype(int)
    queue = np.repeat(np.arange(len(quota)), quota)
    extra = rng.choice(len(quota), max(0, num_segments - len(queue)), p=share / share.sum())
    return rng.permutation(np.concatenate([queue, extra]))[:num_segments].tolist()


def draw_course(video: Video, seed: int) -> Course:
    """What happens in a video; a pure function of the video and the seed."""
    rng = np.random.default_rng([seed, _COURSE_STREAM, video.index])
    frames = video.num_frames

    # Segments: an expression that rises and falls, and its label
    bounds = np.linspace(0, frames, len(video.expressions) + 1).round().astype(int)
    target = np.zeros((frames, len(DRAWN_UNITS)))
    envelope, expression = np.zeros(frames), np.zeros(frames, int)
    for start, stop, label in zip(bounds, bounds[1:], video.expressions, strict=False):
        rise = rng.uniform(0.4, 1.0) * _ramp(stop - start)
        target[start:stop] = rise[:, None] * _sample_blend(rng, label)
        envelope[start:stop], expression[start:stop] = rise, _sample_label(rng, label)

    # Units of the face over time
    units = np.maximum(target, _draw_background(rng, frames))
    units = np.clip(units + _smooth(rng.normal(0, 0.12, units.shape), 5) * (units > 0.05), 0, 1)

    # Labels of the three tasks
    expr = np.where(envelope > _EXPR_THRESHOLD, expression, 0)
    labelled = [DRAWN_UNITS.index(unit) for unit in ACTION_UNITS]
    au = (units[:, labelled] > _AU_THRESHOLD).astype(int)
    centre = np.array([_CIRCUMPLEX[EXPRESSIONS[label]] for label in expression]) * envelope[:, None]
    va = np.clip(centre + _smooth(rng.normal(0, 0.2, (frames, 2)), 9), -1, 1)

    # Frames without a face, and unlabelled ones
    face = ~_spans(rng, frames, 0.03)
    expr[_spans(rng, frames, 0.05)] = -1
    au[_spans(rng, frames, 0.03)] = -1
    au[rng.random(au.shape) < 0.002] = -1
    va[_spans(rng, frames, 0.03)] = -5
    return Course(units, expr, au, va, face)


def _ramp(length: int) -> np.ndarray:
    """From near 0 to 1 in a fifth of a segment's frames, and back at its end: shape (length,)."""
    from_ends = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.clip(from_ends / max(2.0, length / 5), 0, 1)


def _sample_blend(rng: np.random.Generator, label: int) -> np.ndarray:
    """An expression with a trace of another one in it, as spontaneous ones have."""
    trace = sample_prototype(rng, EXPRESSIONS[rng.integers(1, len(EXPRESSIONS))])
    own = sample_prototype(rng, EXPRESSIONS[label])
    return np.maximum(own, rng.uniform(0, _MOST_TRACE) * trace)


def _sample_label(rng: np.random.Generator, label: int) -> int:
    """An annotator's label of a segment: sometimes Neutral or Other, as after a doubt."""
    if rng.random() >= _DOUBT:
        return label
    return int(rng.choice([EXPRESSIONS.index("Neutral"), EXPRESSIONS.index("Other")]))


def _draw_background(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Talking, squinting, half-smiles: mild units that come and go whatever the expression.

    Returns:
        Intensities of `DRAWN_UNITS`, shape (frames, 16).
    """
    out = np.zeros((frames, len(DRAWN_UNITS)))
    for unit, share in _BACKGROUND.items():
        wave = _smooth(rng.normal(size=(frames, 1)), 11)[:, 0]
        on = wave > np.quantile(wave, 1 - np.clip(share * rng.uniform(0.4, 1.6), 0.01, 0.95))
        out[:, DRAWN_UNITS.index(unit)] = _smooth((on * rng.uniform(0.35, 0.65))[:, None], 3)[:, 0]
    return out


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Weighted moving average over time with a Hann window; the ends are padded by their values.

    Args:
        values: Shape (frames, columns).
        width: Length of the window in frames.

    Returns:
        Shape (frames, columns).
    """
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    frames = len(values)
    padded = [np.pad(column, width // 2, mode="edge") for column in values.T]
    return np.stack([np.convolve(column, kernel, mode="valid")[:frames] for column in padded], 1)


def _spans(rng: np.random.Generator, frames: int, share: float) -> np.ndarray:
    """A mask that is true in a few runs of about eight frames, ``share`` of the time on average."""
    starts = rng.random(frames) < share / 8
    return np.convolve(starts, np.ones(8), mode="full")[:frames] > 0


def _write_video(out: Path, video: Video, seed: int) -> int:
    """Write a video's pictures and annotations; returns how many pictures it has."""
    course = draw_course(video, seed)
    folder = out / IMAGES / video.name
    folder.mkdir(parents=True, exist_ok=True)
    for frame, pixels in iter_frames(video, course, seed):
        Image.fromarray(pixels).save(folder / f"{frame:05d}.jpg", quality=90)
    for task, lines in _annotation_lines(course).items():
        split = video.splits[task]
        if split is not None:
            _write_annotation(out, video, task, split, lines)
    return int(course.face.sum())


def iter_frames(video: Video, course: Course, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """The pictures of a video, for every frame that shows a face.

    Yields:
        1-based number of the frame, and uint8 (112, 112, 3).
    """
    # The subject, and a camera that drifts
    look: Look = draw_look(np.random.default_rng([seed, _LOOK_STREAM, video.subject]))
    rng = np.random.default_rng([seed, _COURSE_STREAM, video.index, 1])
    base = sample_pose(rng)
    drift = _smooth(rng.normal(0, 1, (video.num_frames, 4)), 15)

    for t in np.flatnonzero(course.face).tolist():
        pose = dataclasses.replace(
            base,
            roll=base.roll + 0.1 * drift[t, 0],
            yaw=float(np.clip(base.yaw + 0.5 * drift[t, 1], -1, 1)),
            shift=(base.shift[0] + 0.04 * drift[t, 2], base.shift[1] + 0.04 * drift[t, 3]),
        )
        units = dict(zip(DRAWN_UNITS, course.units[t].tolist(), strict=True))
        noise_seed = seed * 1_000_003 + video.index * 100_003 + t
        yield t + 1, draw_face(look, units, pose, noise_seed)


def _annotation_lines(course: Course) -> dict[str, list[str]]:
    """Task -> its lines as in Aff-Wild2's files, one a frame."""
    va = [
        "-5,-5" if -5 in (valence, arousal) else f"{valence:.3f},{arousal:.3f}"
        for valence, arousal in course.va.tolist()
    ]
    return {
        "expr": [str(label) for label in course.expr.tolist()],
        "au": [",".join(map(str, row)) for row in course.au.tolist()],
        "va": va,
    }


def _write_annotation(out: Path, video: Video, task: str, split: str, lines: list[str]) -> None:
    """Write one annotation file, with the irregularities that the real ones have."""
    # Some files have more images than lines, others more lines than images
    if video.index % 5 == 2:
        lines = lines[:-2]
    elif video.index % 5 == 3:
        lines = [*lines, lines[-1]]

    # Line ends of two kinds, and sometimes none at the end
    header = {found.name: line for found, line in HEADERS.items()}[task]
    ending = "\r\n" if video.index % 4 == 1 else "\n"
    text = ending.join([header, *lines]) + ("" if video.index % 3 == 1 else ending)

    folder = out / EDITION / TASK_FOLDERS[task] / _SPLIT_FOLDERS[split]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{video.name}.txt").write_bytes(text.encode())


def contact_sheet(seed: int, num_subjects: int = 6) -> np.ndarray:
    """Subjects by expressions: a picture to check that a person can name them.

    Returns:
        uint8 array of shape (112 * num_subjects, 112 * 8, 3); columns in the order of
        `EXPRESSIONS`.
    """
    rows = []
    for subject in range(num_subjects):
        rng = np.random.default_rng([seed, _COURSE_STREAM, subject, 2])
        look = draw_look(np.random.default_rng([seed, _LOOK_STREAM, subject]))
        pose = sample_pose(rng)
        cells = []
        for name in EXPRESSIONS:
            units = dict(zip(DRAWN_UNITS, sample_prototype(rng, name).tolist(), strict=True))
            cells.append(draw_face(look, units, pose, seed))
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)
