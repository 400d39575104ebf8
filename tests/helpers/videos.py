"""Small videos of drawn faces that move over a background, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from raffect.datasets.synthetic.faces import Pose, draw_face, draw_look

MS = Fraction(1, 1000)


def face_picture(seed: int = 0, side: int = 64) -> np.ndarray:
    """A drawn face, uint8 (side, side, 3)."""
    from PIL import Image

    face = draw_face(draw_look(np.random.default_rng(seed)), {"AU12": 0.7}, Pose(noise=0.0), seed)
    return np.asarray(Image.fromarray(face).resize((side, side)))


def moving_faces(
    frames: int, width: int = 192, height: int = 96, people: int = 2, side: int = 48
) -> tuple[list[np.ndarray], list[dict]]:
    """Pictures in which drawn faces move, and the box of each face in each frame.

    Face k moves along its own lane; person 1 is hidden in the frames 31 to 45.
    """
    faces = [face_picture(k, side) for k in range(people)]
    pictures, boxes = [], []
    for number in range(1, frames + 1):
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[:, :, 1] = number % 200
        for k, face in enumerate(faces):
            if k == 1 and 31 <= number <= 45:
                continue
            x = round(4 + k * (width // people) + 20 * abs(np.sin(number / 17)))
            y = round(8 + 12 * abs(np.cos(number / 11 + k)))
            picture[y : y + side, x : x + side] = face
            boxes.append({"frame": number, "x": x, "y": y, "w": side, "h": side, "score": 0.9})
        pictures.append(picture)
    return pictures, boxes


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    codec: str = "libx264",
    gop: int = 12,
    times: Sequence[int] | None = None,
    rate: int = 25,
    sound: bool = False,
) -> Path:
    """Write pictures as a video with B-frames where the codec has them.

    Args:
        path: The file; its suffix names the container.
        pictures: uint8 (height, width, 3), of even sizes.
        codec: Of the pictures.
        gop: Frames from one key frame to the next.
        times: Of each picture in milliseconds; ``rate`` pictures a second by default.
        rate: Pictures a second.
        sound: Whether it also has silence as sound.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        if codec == "libx264":
            context.options = {"x264-params": "scenecut=0"}
        if times is not None:
            context.time_base = stream.time_base = MS
        track = container.add_stream("aac", rate=16000) if sound else None
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate) if times is None else MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            write_silence(container, track)
    return path


def write_silence(container, track) -> None:
    """A quarter of a second of silence."""
    for start in range(0, 4096, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


def write_sound(path: Path) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        write_silence(container, container.add_stream("aac", rate=16000))
    return path


def rotate(path: Path, out: Path, degrees: int) -> Path:
    """The same MP4 file whose track header asks viewers to turn it clockwise by so many degrees."""
    matrices = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = matrices[degrees]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    cells = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = b"".join(cell.to_bytes(4, "big", signed=True) for cell in cells)
    out.write_bytes(content)
    return out


def plain_loop(path: Path) -> list[tuple[float | None, np.ndarray]]:
    """Time and picture of every frame, decoded from the start to the end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            (frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
