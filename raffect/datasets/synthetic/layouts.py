"""Drawn copies of other data sets than Aff-Wild2: a function a layout.

Words, numbers and their orders are written here once more, apart from the importers that read them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np

from raffect.datasets.synthetic.course import draw_course
from raffect.datasets.synthetic.faces import DRAWN_UNITS
from raffect.datasets.synthetic.layout import DrawnClip, Face, Layout, plan_clips, plan_pictures
from raffect.datasets.synthetic.plan import LAYOUT_STREAM, Video

_FOLDS = (1, 2, 3, 4, 5)
_SIDES = ("train", "test")
_SEVEN = ("Happiness", "Sadness", "Neutral", "Anger", "Surprise", "Disgust", "Fear")
_WORDS = {"Happiness": "Happy", "Sadness": "Sad", "Anger": "Angry"}
_SCENES = ("Action", "Crime", "DailyLife", "War")


def _fold_of(clip: DrawnClip) -> int:
    return clip.number % 5 + 1


def _in_list(clip: DrawnClip, fold: int, side: str) -> bool:
    return (_fold_of(clip) == fold) == (side == "test")


def _text(lines: Sequence[str], encoding: str = "utf-8", ending: str = "\n") -> bytes:
    return "".join(f"{line}{ending}" for line in lines).encode(encoding)


def _add_frames(layout: Layout, clip: DrawnClip, pattern: str) -> None:
    """Add the pictures of a clip; ``pattern`` has a place for the frame's number."""
    for frame, face in zip(clip.frames, clip.faces, strict=True):
        layout.pictures[pattern.format(frame)] = face


def _row(clip: DrawnClip, video: str, **more: object) -> dict:
    return {
        "video": video,
        "start": clip.frames[0],
        "end": clip.frames[-1],
        "expression": "_".join(clip.classes),
        **more,
    }


def draw_dfew(num_frames: int, seed: int) -> Layout:
    """Text lists with paths, numbers of frames, and classes from 0."""
    layout, clips = Layout(), plan_clips(num_frames, seed, _SEVEN)
    for clip in clips:
        name = f"{clip.number:05d}"
        _add_frames(layout, clip, f"DFEW_Frame_Face/{name}/{{:05d}}.jpg")
        layout.rows.append(_row(clip, name, fold=_fold_of(clip)))
    for fold in _FOLDS:
        for side in _SIDES:
            lines = [
                f"DFEW/clip_224x224/{clip.number:05d} {len(clip.frames)} "
                f"{_SEVEN.index(clip.classes[0])}"
                for clip in clips
                if _in_list(clip, fold, side)
            ]
            layout.files[f"DFEW_set_{fold}_{side}.txt"] = _text(lines)
    return layout


def draw_ferv39k(num_frames: int, seed: int) -> Layout:
    """Two lists; scenes and emotions as folders, pictures without leading zeros."""
    layout, clips = Layout(), plan_clips(num_frames, seed, _SEVEN)
    lines: dict[str, list[str]] = {side: [] for side in _SIDES}
    for clip in clips:
        word = _WORDS.get(clip.classes[0], clip.classes[0])
        video = f"{_SCENES[clip.number % len(_SCENES)]}/{word}/{clip.number:04d}"
        side = "test" if clip.number % 5 == 0 else "train"
        _add_frames(layout, clip, f"2_ClipsforFaceCrop/{video}/{{}}.jpg")
        number = _SEVEN.index(clip.classes[0])
        lines[side].append(f"2_ClipsforFaceCrop/{video} {len(clip.frames)} {number}")
        layout.rows.append(_row(clip, video, side=side))
    for side, texts in lines.items():
        layout.files[f"{side}_image.txt"] = _text(texts, ending="\r\n")
    return layout


_ELEVEN = (
    *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
_COMPOUNDS = ("Anger_Disgust", "Fear_Surprise", "Sadness_Helplessness")


def draw_mafw(num_frames: int, seed: int) -> Layout:
    """Lists in GBK with tabs, single and compound, with and without captions."""
    layout = Layout()
    clips = plan_clips(num_frames, seed, [word.title() for word in _ELEVEN], _COMPOUNDS)
    for clip in clips:
        name = f"{clip.number:05d}"
        _add_frames(layout, clip, f"data/faces/{name}/{{:04d}}.png")
        layout.rows.append(
            _row(clip, name, fold=_fold_of(clip), caption=_caption(clip), size=len(clip.classes))
        )
    for kind, size in (("single", 1), ("compound", 2)):
        for fold in _FOLDS:
            for side in _SIDES:
                own = [
                    clip
                    for clip in clips
                    if len(clip.classes) == size and _in_list(clip, fold, side)
                ]
                plain = [f"{clip.number:05d}.mp4\t{'_'.join(clip.classes).lower()}" for clip in own]
                texts = [
                    f"{line}\t\u4e00\u4e2a\u4eba\u7684\u8138\t{_caption(clip)}"
                    for line, clip in zip(plain, own, strict=True)
                ]
                for variant, lines in (("no_caption", plain), ("with_caption", texts)):
                    path = f"Train_Test_Set/{kind}/{variant}/set_{fold}/{side}.txt"
                    layout.files[path] = _text(lines, "gbk")
    return layout


def _caption(clip: DrawnClip) -> str:
    """The units that a clip shows, as a sentence."""
    middle = clip.faces[len(clip.faces) // 2].units
    shown = [unit for unit, height in zip(DRAWN_UNITS, middle, strict=True) if height > 0.4]
    return f"A drawn face with {', '.join(shown) or 'no unit'}, clip {clip.number}."


def draw_afew(num_frames: int, seed: int) -> Layout:
    """Split, emotion and clip as folders, no lists."""
    layout = Layout()
    for clip in plan_clips(num_frames, seed, _SEVEN):
        word = _WORDS.get(clip.classes[0], clip.classes[0])
        split = "validation" if clip.number % 3 == 0 else "train"
        video = f"{split}/{word}/{clip.number:09d}"
        _add_frames(layout, clip, f"AFEW_Face/{video}/{clip.number:09d}-{{:03d}}.jpg")
        layout.rows.append(_row(clip, video, split=split))
    return layout


_EIGHT = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")


def _plan_affectnet(num_frames: int, seed: int) -> tuple[Layout, list[DrawnClip]]:
    """Rows with classes, of which some are without one, and valence and arousal."""
    layout, pictures = Layout(), plan_pictures(num_frames, seed, _EIGHT)
    rng = np.random.default_rng([seed, LAYOUT_STREAM, 3])
    for picture in pictures:
        valence, arousal = np.round(rng.uniform(-1, 1, 2), 3).tolist()
        without = picture.number % 17 == 0
        layout.rows.append(
            {
                "expression": "" if without else picture.classes[0],
                "number": 8 + picture.number % 3 if without else _EIGHT.index(picture.classes[0]),
                "valence": -2.0 if without else valence,
                "arousal": -2.0 if without else arousal,
                "split": "validation" if picture.number % 4 == 0 else "train",
            }
        )
    return layout, pictures


def draw_affectnet(num_frames: int, seed: int) -> Layout:
    """Pictures and one array a label."""
    layout, pictures = _plan_affectnet(num_frames, seed)
    for row, picture in zip(layout.rows, pictures, strict=True):
        folder = "val_set" if row["split"] == "validation" else "train_set"
        row["video"] = f"{row['split']}/{picture.number}"
        layout.pictures[f"{folder}/images/{picture.number}.jpg"] = picture.faces[0]
        # As in the data set: numbers as text
        for kind, name in (("exp", "number"), ("val", "valence"), ("aro", "arousal")):
            path = f"{folder}/annotations/{picture.number}_{kind}.npy"
            layout.files[path] = _array(str(row[name]))
    return layout


def _array(text: str) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array(text))
    return sink.getvalue()


def draw_affectnet_csv(num_frames: int, seed: int) -> Layout:
    """Two tables, whose pictures are named by numbered folder and file."""
    layout, pictures = _plan_affectnet(num_frames, seed)
    head = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks"
    lines = {name: [f"{head},expression,valence,arousal"] for name in ("train", "validation")}
    for row, picture in zip(layout.rows, pictures, strict=True):
        path = f"{picture.number % 7}/{picture.number:08x}"
        row["video"] = path
        layout.pictures[f"Manually_Annotated_Images/{path}.jpg"] = picture.faces[0]
        labels = f"{row['number']},{row['valence']},{row['arousal']}"
        lines[row["split"]].append(f"{path}.jpg,0,0,112,112,1;2;3,{labels}")
    for split, name in (("train", "training"), ("validation", "validation")):
        layout.files[f"Manually_Annotated_file_lists/{name}.csv"] = _text(lines[split])
    return layout


_RAFDB = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")


def draw_rafdb(num_frames: int, seed: int) -> Layout:
    """One list, classes from 1, aligned pictures."""
    layout, lines = Layout(), []
    for picture in plan_pictures(num_frames, seed, _RAFDB):
        side = "test" if picture.number % 5 == 0 else "train"
        name = f"{side}_{picture.number:05d}"
        layout.pictures[f"Image/aligned/{name}_aligned.jpg"] = picture.faces[0]
        lines.append(f"{name}.jpg {_RAFDB.index(picture.classes[0]) + 1}")
        layout.rows.append({"video": name, "expression": picture.classes[0], "side": side})
    layout.files["EmoLabel/list_patition_label.txt"] = _text(lines)
    return layout


_DISFA = tuple(f"AU{number}" for number in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26))
_DISFA_SUBJECTS = 6


def draw_disfa(num_frames: int, seed: int) -> Layout:
    """Six subjects, one of them seen by both cameras; a list a unit, with intensities."""
    layout = Layout()
    length = max(20, num_frames // (_DISFA_SUBJECTS + 1))
    for subject in range(1, _DISFA_SUBJECTS + 1):
        # What happens: every expression in turn
        expressions = tuple((subject + k) % 8 for k in range(4))
        video = Video(
            name=f"SN{subject:03d}",
            index=subject,
            num_frames=length,
            subject=subject,
            splits={},
            expressions=expressions,
        )
        units = draw_course(video, seed).units
        levels = np.round(units * 5).astype(int)
        for unit in _DISFA:
            column = levels[:, DRAWN_UNITS.index(unit)].tolist()
            path = f"ActionUnit_Labels/{video.name}/{video.name}_{unit.lower()}.txt"
            layout.files[path] = _text([f"{k},{level}" for k, level in enumerate(column, 1)])
        # Pictures, and what the labels say
        for camera in ("Left", "Right") if subject == 1 else ("Left",):
            folder = f"Video_{camera}Camera/{camera}Video{video.name}_comp"
            for frame, row in enumerate(units.tolist(), 1):
                face = Face(subject, subject, frame, tuple(row))
                layout.pictures[f"{folder}/{frame:05d}.jpg"] = face
                own = {unit: int(levels[frame - 1, DRAWN_UNITS.index(unit)]) for unit in _DISFA}
                name = f"{video.name}_{camera.lower()}"
                layout.rows.append({"video": name, "frame": frame, "group": video.name} | own)
    return layout


LAYOUTS: dict[str, Callable[[int, int], Layout]] = {
    "dfew": draw_dfew,
    "ferv39k": draw_ferv39k,
    "mafw": draw_mafw,
    "afew": draw_afew,
    "affectnet": draw_affectnet,
    "affectnet-csv": draw_affectnet_csv,
    "rafdb": draw_rafdb,
    "disfa": draw_disfa,
}
"""Layouts by their name for ``--layout``; Aff-Wild2's own is in `tree`."""
