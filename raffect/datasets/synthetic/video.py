"""A drawn video of one person, to try on what is made for people's own videos.

A face of 112 pixels is enlarged and moves before a wall of its own background's colour, while a
tone sounds. Beside the video lies a table of its boxes, since no detector knows drawn faces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raffect.datasets.affwild2.tasks import EXPRESSIONS
from raffect.datasets.synthetic.course import Course, draw_course, iter_frames
from raffect.datasets.synthetic.plan import Video
from raffect.errors import RaffectError, how_to_add
from raffect.storage.atomic import atomic_path
from raffect.storage.tables import write_csv

WIDTH, HEIGHT, FACE = 320, 240, 168
"""Of a picture and of the face in it, in pixels."""
FPS = 25
_SHOWN = ("Happiness", "Surprise", "Anger", "Sadness")
"""Expressions that follow each other."""
_SOUND_RATE, _TONE_HZ = 48_000, 220
_INDEX = 1_000_000
"""Number of the video in its streams of random numbers: no video of a data set has it."""


def write_video(path: Path, seconds: float = 8.0, seed: int = 0) -> Course:
    """Draw a video in H.264 with sound, and ``<path>.boxes.csv`` with a box for each frame.

    Needs PyAV, of the extra ``video``. A frame without a face has no box.

    Args:
        path: An MP4 file; replaced.
        seconds: Length.
        seed: Decides everything that is drawn.

    Returns:
        What happens in it, with labels of every frame.

    Raises:
        RaffectError: If PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        what = f"{path}: writing a video needs PyAV"
        raise RaffectError(f"{what}; {how_to_add('video')}") from error

    # Who is seen, what happens, and where
    video = Video(
        name=path.stem,
        index=_INDEX,
        num_frames=max(2 * len(_SHOWN), round(seconds * FPS)),
        subject=_INDEX + seed,
        splits={},
        expressions=tuple(EXPRESSIONS.index(name) for name in _SHOWN),
    )
    course, corners = draw_course(video, seed), _walk(video.num_frames)

    # Pictures and sound, as one stream each
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as file:
        pictures: Any = file.add_stream("libx264", rate=FPS, options={"crf": "20"})
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound: Any = file.add_stream("aac", rate=_SOUND_RATE, layout="mono")
        for frame in _compose(video, course, corners, seed):
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for samples in _tone(video.num_frames / FPS):
            block = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            block.sample_rate = _SOUND_RATE
            file.mux(sound.encode(block))
        for stream in (pictures, sound):
            file.mux(stream.encode())
    _write_boxes(path, course, corners)
    return course


def _walk(frames: int) -> np.ndarray:
    """Upper left corner of the face in each frame, int, shape (frames, 2)."""
    time = np.linspace(0, 2 * np.pi, frames)
    middle = np.array([WIDTH - FACE, HEIGHT - FACE]) / 2
    return np.stack(
        [middle[0] * (1 + 0.7 * np.sin(time)), middle[1] * (1 + 0.5 * np.sin(2 * time))], 1
    ).astype(int)


def _compose(video: Video, course: Course, corners: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Every picture in order, uint8 (HEIGHT, WIDTH, 3); the wall alone where there is no face."""
    faces, wall = iter_frames(video, course, seed), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number, (x, y) in enumerate(corners):
        picture = wall.copy()
        if course.face[number]:
            _, face = next(faces)
            # The colour of the face's own background, at its upper corners
            wall[:] = np.median(face[:8].reshape(-1, 3), axis=0)
            picture = wall.copy()
            large = Image.fromarray(face).resize((FACE, FACE), Image.Resampling.LANCZOS)
            picture[y : y + FACE, x : x + FACE] = large
        yield picture


def _tone(seconds: float) -> Iterator[np.ndarray]:
    """A quiet tone in blocks of 1,024 samples, float32."""
    time = np.arange(round(seconds * _SOUND_RATE)) / _SOUND_RATE
    wave = (0.05 * np.sin(2 * np.pi * _TONE_HZ * time)).astype(np.float32)
    for start in range(0, len(wave), 1024):
        yield wave[start : start + 1024]


def _write_boxes(path: Path, course: Course, corners: np.ndarray) -> None:
    rows = [
        {"input": path.name, "frame": number + 1, "x": x, "y": y, "w": FACE, "h": FACE}
        for number, (x, y) in enumerate(corners.tolist())
        if course.face[number]
    ]
    write_csv(path.with_name(f"{path.name}.boxes.csv"), rows)
