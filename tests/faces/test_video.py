"""Videos: numbers, times and pixels of frames against a plain decode loop; files of any kind."""

import itertools
import os
import random

import av
import numpy as np
import pytest

from raffect.faces.video import cut_segments, decode_frames, scan_video
from raffect.storage.paths import Damaged
from tests.helpers.videos import moving_faces, plain_loop, rotate, write_sound, write_video

PICTURES, _ = moving_faces(70, 96, 64, people=1, side=32)
UNEVEN = list(itertools.accumulate(random.Random(0).choices((20, 33, 40, 90), k=69), initial=500))
KINDS = {
    "clip.mp4": {"times": UNEVEN},
    "clip.mkv": {"times": UNEVEN},
    "clip.ts": {"times": UNEVEN},
    "clip.mov": {"codec": "mpeg4", "times": UNEVEN},
    "clip.webm": {"codec": "libvpx", "times": UNEVEN},
    "clip.avi": {"codec": "mpeg4"},
    "clip.mpg": {"codec": "mpeg2video"},
    "clip.h264": {},
}
"""Files without their own time stamps are counted instead: the last three or some of them."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {name: write_video(folder / name, PICTURES, **how) for name, how in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_frames_have_the_numbers_and_pixels_of_a_plain_decode_loop(name, clips):
    plain, scan = plain_loop(clips[name]), scan_video(clips[name])
    found = list(decode_frames(clips[name], scan, 1, len(plain) + 9))
    assert [number for number, _ in found] == list(range(1, len(plain) + 1))
    assert len(scan.pts) == len(plain) == 70
    for (_, rgb), (_, expected) in zip(found, plain, strict=True):
        assert (rgb == expected).all()


@pytest.mark.parametrize("name", KINDS)
def test_any_part_of_a_video_is_decoded_as_in_the_whole(name, clips):
    plain, scan = plain_loop(clips[name]), scan_video(clips[name])
    for first, stop, every in ((1, 2, 1), (24, 26, 1), (25, 49, 1), (33, 71, 7), (70, 90, 1)):
        found = list(decode_frames(clips[name], scan, first, stop, every))
        wanted = [n for n in range(first, min(stop, 71)) if (n - 1) % every == 0]
        assert [number for number, _ in found] == wanted
        assert all((rgb == plain[number - 1][1]).all() for number, rgb in found)


@pytest.mark.parametrize("name", [name for name, how in KINDS.items() if "times" in how])
def test_time_stamps_are_those_of_the_packets_also_at_a_variable_rate(name, clips):
    scan = scan_video(clips[name])
    with av.open(str(clips[name])) as container:
        stream = container.streams.video[0]
        stamps = sorted(p.pts * p.time_base for p in container.demux(stream) if p.size)
    assert not scan.is_counted
    assert scan.seconds == pytest.approx([float(stamp - stamps[0]) for stamp in stamps])
    assert scan.seconds == pytest.approx((np.array(UNEVEN) - UNEVEN[0]) / 1000, abs=0.002)


def test_segments_begin_at_key_frames_and_together_are_the_video(clips):
    scan = scan_video(clips["clip.mp4"])
    segments = cut_segments(scan, 20)
    assert segments == [(1, 25), (25, 49), (49, 71)]
    assert all(scan.keys[first - 1] for first, _ in segments)
    assert cut_segments(scan, 1000) == [(1, 71)]
    counted = scan_video(clips["clip.h264"])  # no key frame is known: ten times as many at most
    assert cut_segments(counted, 3) == [(1, 31), (31, 61), (61, 71)]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_is_turned_as_its_metadata_say(degrees, clips, tmp_path):
    turned = rotate(clips["clip.mp4"], tmp_path / "turned.mp4", degrees)
    scan = scan_video(turned)
    shape = (64, 96) if degrees == 180 else (96, 64)
    assert (scan.height, scan.width) == shape
    expected = [np.rot90(rgb, -degrees // 90) for _, rgb in plain_loop(clips["clip.mp4"])]
    for number, rgb in decode_frames(turned, scan, 1, 71):
        assert (rgb == expected[number - 1]).all()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_of_a_video_that_is_cut_off_what_decodes_is_kept(name, clips, tmp_path):
    # An index at the end would be lost with it.
    whole = clips[name]
    if name == "clip.mp4":
        whole = tmp_path / "front.mp4"
        move_index_to_the_front(clips[name], whole)
    content = whole.read_bytes()
    cut = tmp_path / name
    cut.write_bytes(content[: len(content) * 6 // 10])
    scan = scan_video(cut)
    found = dict(decode_frames(cut, scan, 1, 71))
    plain = plain_loop(clips[name])
    assert 20 < len(found) < 70
    # All but the last ones, which may lack the packets that they are predicted from
    assert all((found[n] == plain[n - 1][1]).all() for n in sorted(found)[:-4])
    if name == "clip.mp4":
        assert "stops at" in scan.problem


def move_index_to_the_front(path, out):
    options = {"movflags": "faststart"}
    with av.open(str(path)) as source, av.open(str(out), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def test_files_without_pictures_say_so(tmp_path):
    files = {
        "empty.mp4": (b"", "empty file"),
        "text.mp4": (b"this is no video at all\n" * 40, "not a video"),
        "list.mp4": (
            b"#EXTM3U\n#EXTINF:1\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
            "not a video",
        ),
        "concat.mp4": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
    }
    for name, (content, what) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Damaged, match=what):
            scan_video(tmp_path / name)
    with pytest.raises(Damaged, match="sound alone"):
        scan_video(write_sound(tmp_path / "sound.m4a"))
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(Damaged, match="a pipe"):
        scan_video(tmp_path / "pipe.mp4")


def test_names_that_ffmpeg_would_take_for_something_else_are_names(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (b"-i.mp4", b"concat:a|b.mp4", b"%03d.mp4", b"caf\xe9.mp4", b"http:x.mp4"):
        path = os.fsdecode(name)
        os.link(clips["clip.mp4"], path)
        assert len(scan_video(path).pts) == 70
