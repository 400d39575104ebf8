"""Overlays, read back with PyAV: every frame, its time, its sound, and a box where the face is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raffect.datasets.affwild2.tasks import EXPR, VA
from raffect.errors import RaffectError
from raffect.reporting.colors import FACES, colors_of, rgb
from raffect.reporting.course import read_course
from raffect.reporting.index import draw_preview
from raffect.reporting.overlay import draw_overlay
from raffect.reporting.painter import Painter
from tests.helpers.scenes import (
    draw_people,
    draw_scene,
    facts_of,
    predict_scene,
    table_of_boxes,
)
from tests.helpers.videos import write_video

WHITE, SQUARE = 255, 40
FACTS = facts_of((EXPR,))


def white_square(x: int, y: int, width: int = 160, height: int = 120) -> np.ndarray:
    """A dark picture with a white square whose left and top are (x, y)."""
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[y : y + SQUARE, x : x + SQUARE] = WHITE
    return picture


def read_video(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Seconds and pixels of all frames."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    return [float(frame.time) for frame in frames], [f.to_ndarray(format="rgb24") for f in frames]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is true, the last two behind it."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def box_in(pixels: np.ndarray, width: int) -> tuple[int, int, int, int]:
    """The outer bounds of the first face's box in a picture of some width, without its tag."""
    near = np.abs(pixels[:360, :width].astype(int) - rgb(FACES[0])).sum(2) < 170
    # A line across is long; the tag above the box is not
    rows = np.flatnonzero(near.sum(1) > 50)
    left, _, right, _ = bounds(near[rows])
    return left, int(rows[0]), right, int(rows[-1]) + 1


def packets_of(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as file:
        stream = getattr(file.streams, kind)[0]
        return [bytes(packet) for packet in file.demux(stream) if packet.size]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> tuple[Path, Path, pa.Table]:
    """A video of two drawn people with sound, its overlay and its predictions."""
    folder = tmp_path_factory.mktemp("overlay")
    people = draw_people(50, 2)
    people[0][0].face[20:30] = people[1][0].face[20:30] = False
    rows = predict_scene(people, "clip.mp4")
    source = write_video(folder / "clip.mp4", draw_scene(people), sound="aac")
    done = draw_overlay(source, rows, facts_of(), folder / "overlay.mp4")
    assert (done.frames, done.problem) == (50, "")
    return source, done.path, rows


def test_an_overlay_has_every_frame_at_its_time_and_plays_in_browsers(overlay):
    source, out, _ = overlay
    (before, pictures), (after, drawn) = read_video(source), read_video(out)
    assert after == pytest.approx(before, abs=1e-4)
    with av.open(str(out)) as file:
        video = file.streams.video[0].codec_context
        assert (video.name, video.pix_fmt) == ("h264", "yuv420p")
        assert video.width % 2 == video.height % 2 == 0
    # The index stands before the frames, so that a page can play it while it loads
    content = out.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    # The picture is in it, twice as large
    height, width = pictures[0].shape[:2]
    shown = Image.fromarray(drawn[25][: 2 * height, : 2 * width]).resize((width, height))
    assert np.abs(np.asarray(shown, int) - pictures[25]).mean() < 6


def test_sound_is_copied_packet_by_packet(overlay):
    source, out, _ = overlay
    found = packets_of(out, "audio")
    assert len(found) > 50
    assert found == packets_of(source, "audio")


def test_sound_that_browsers_do_not_play_is_encoded_again(tmp_path):
    frames = [white_square(20, 30)] * 25
    source = write_video(tmp_path / "a.mkv", frames, sound="pcm_s16le")
    rows = table_of_boxes([(20, 30, SQUARE, SQUARE)] * 25)
    draw_overlay(source, rows, FACTS, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert file.streams.audio[0].codec_context.name == "aac"
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    # The tone of 440 Hz for a second
    assert len(sound) / 44100 == pytest.approx(1, abs=0.1)
    spectrum = np.abs(np.fft.rfft(sound[:44100]))
    assert np.argmax(spectrum) * 44100 / len(sound[:44100]) == pytest.approx(440, abs=2)


def test_a_box_surrounds_its_face_in_every_frame(tmp_path):
    places = [(10 + 2 * k, 60 - k) for k in range(30)]
    source = write_video(tmp_path / "a.mp4", (white_square(*place) for place in places))
    rows = table_of_boxes([(x, y, SQUARE, SQUARE) for x, y in places])
    draw_overlay(source, rows, FACTS, tmp_path / "out.mp4")
    _, drawn = read_video(tmp_path / "out.mp4")
    for pixels in drawn:
        picture = pixels[:360, :480]  # three times as large
        inner = bounds(picture.min(2) > 200)
        outer = box_in(pixels, 480)
        assert np.abs(np.subtract(inner, outer)).max() <= 5


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_video_stands_upright_and_so_do_its_boxes(tmp_path, degrees):
    # What is stored is turned; boxes are of the picture that a player shows
    upright = white_square(20, 50)
    stored = np.ascontiguousarray(np.rot90(upright, -degrees // 90))
    source = write_video(tmp_path / "a.mp4", [stored] * 5, rotation=degrees)
    rows = table_of_boxes([(20, 50, SQUARE, SQUARE)] * 5)
    draw_overlay(source, rows, FACTS, tmp_path / "out.mp4")
    _, drawn = read_video(tmp_path / "out.mp4")
    inner = bounds(drawn[2][:360, :480].min(2) > 200)
    assert inner == pytest.approx((60, 150, 180, 270), abs=4)
    assert np.abs(np.subtract(inner, box_in(drawn[2], 480))).max() <= 5


def test_a_variable_frame_rate_stays(tmp_path):
    # Frames stand for 1 to 9 units of 1/90 s
    stamps = np.cumsum([0, 3, 3, 9, 1, 1, 5, 3, 9, 9, 2, 3]).tolist()
    frames = [white_square(10 + 5 * k, 20) for k in range(len(stamps))]
    source = write_video(tmp_path / "a.mkv", frames, times=stamps, time_base=Fraction(1, 90))
    boxes = [(10 + 5 * k, 20, SQUARE, SQUARE) for k in range(len(stamps))]
    rows = table_of_boxes(boxes, [stamp / 90 for stamp in stamps])
    draw_overlay(source, rows, FACTS, tmp_path / "out.mp4")
    times, drawn = read_video(tmp_path / "out.mp4")
    assert times == pytest.approx([stamp / 90 for stamp in stamps], abs=2e-3)
    # Numbers go by the order of timestamps, not by the time between them
    for k, pixels in enumerate(drawn):
        assert box_in(pixels, 480)[0] == pytest.approx(3 * (10 + 5 * k), abs=4)


def test_frames_without_a_face_have_no_box(overlay):
    _, out, rows = overlay
    without = {row["frame"] for row in rows.to_pylist() if row["status"] == "no_face"}
    assert {21, 30} <= without
    _, drawn = read_video(out)
    for frame in (1, 20, 21, 30, 31):
        picture = drawn[frame - 1][:360, :640].astype(int)
        colored = [(np.abs(picture - rgb(color)).sum(2) < 90).sum() for color in FACES[:2]]
        assert (min(colored) > 500) == (frame not in without)


def test_an_input_without_any_face_has_neither_legend_nor_cursor():
    picture, most = Image.new("RGB", (160, 120)), []
    for has_faces in (True, False):
        people = draw_people(9, 2)
        people[0][0].face[:] = people[1][0].face[:] = has_faces
        course = read_course(predict_scene(people, "clip.mp4"), facts_of().tasks, "clip.mp4")
        painter = Painter(course, *picture.size, ())
        below = [painter.paint(picture, frame, frame / 25) for frame in (1, 9)]
        below = [np.asarray(one, int)[painter._tall :] for one in below]
        preview = np.asarray(draw_preview(course, picture), int)
        most.append([np.ptp(below[0], 2).max(), np.ptp(preview, 2).max(), np.ptp(below, 0).max()])
        assert min(preview.max(), below[0].max()) > 120  # words
    with_faces, without = most
    assert min(with_faces) > 100 > 40 > max(without)  # colors of classes, and the cursor


def test_classes_and_values_of_one_legend_differ_in_color():
    colors = colors_of(EXPR) + colors_of(VA)
    assert len(set(colors)) == 10


def test_the_cursor_moves_with_the_time(overlay):
    _, out, _ = overlay
    _, drawn = read_video(out)
    columns = []
    for pixels in drawn[::7]:
        strip = pixels[364:500].astype(int)
        bright = (strip.min(2) > 140).mean(0)
        columns.append(int(np.argmax(bright)))
        assert bright.max() > 0.9
    steps = np.diff(columns)
    assert steps.min() > 0
    assert np.ptp(steps) <= 4


def test_what_can_be_decoded_of_a_damaged_video_is_drawn(tmp_path):
    frames = [white_square(10 + k, 20) for k in range(60)]
    whole = write_video(tmp_path / "a.mkv", frames)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    rows = table_of_boxes([(10 + k, 20, SQUARE, SQUARE) for k in range(60)])
    done = draw_overlay(cut, rows, FACTS, tmp_path / "out.mp4")
    assert 10 < done.frames < 60
    assert len(read_video(tmp_path / "out.mp4")[0]) == done.frames


def test_a_file_that_is_no_video_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    rows = table_of_boxes([(1, 1, 5, 5)])
    with pytest.raises(RaffectError, match="a.mp4: not a readable video"):
        draw_overlay(tmp_path / "a.mp4", rows, FACTS, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_picture_has_an_overlay_that_is_a_picture(tmp_path):
    Image.fromarray(white_square(20, 30)).save(tmp_path / "a.png")
    rows = table_of_boxes([(20, 30, SQUARE, SQUARE)], [None])
    draw_overlay(tmp_path / "a.png", rows, FACTS, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert bounds(pixels[:360, :480].min(2) > 250) == pytest.approx((63, 93, 177, 207), abs=4)
    assert box_in(pixels, 480) == pytest.approx((60, 90, 181, 211), abs=1)
