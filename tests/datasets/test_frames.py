"""Frames: pixels are PIL's and bad frames have a reason.

A frame that kills its decoder is lost alone.
"""

import io
import os
import socket
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raffect.datasets import frames
from raffect.datasets.frames import BadFrame, decode, find_killers, read_bytes, read_frames, shrink
from raffect.errors import RaffectError

RNG = np.random.default_rng(0)


def picture(height=40, width=30, channels=3):
    coarse = RNG.integers(0, 256, (5, 4, channels), dtype=np.uint8)
    return np.asarray(
        Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)
    )


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def pil(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


EXIF = Image.Exif()
EXIF[0x0112] = 6
FACE, GREY = Image.fromarray(picture()), Image.fromarray(picture(channels=1))
CONTENTS = {
    "jpeg": encoded(FACE, "JPEG", quality=90),
    "jpeg-progressive": encoded(FACE, "JPEG", progressive=True),
    "jpeg-444": encoded(Image.fromarray(picture(41, 33)), "JPEG", subsampling=0),
    "jpeg-grey": encoded(GREY, "JPEG"),
    "jpeg-cmyk": encoded(FACE.convert("CMYK"), "JPEG"),
    "jpeg-exif-rotated": encoded(FACE, "JPEG", exif=EXIF),
    "png": encoded(FACE, "PNG"),
    "png-rgba": encoded(Image.fromarray(picture(channels=4)), "PNG"),
    "png-palette": encoded(FACE.convert("P"), "PNG"),
    "png-one-bit": encoded(FACE.convert("1"), "PNG"),
    "gif-animated": encoded(FACE, "GIF", save_all=True, append_images=[Image.fromarray(picture())]),
    "bmp": encoded(FACE, "BMP"),
    "webp": encoded(FACE, "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_pixels_are_those_of_pil(kind):
    pixels = decode(CONTENTS[kind])
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, pil(CONTENTS[kind]))


def test_sixteen_bit_grey_is_scaled_where_pil_clips_it_to_white():
    wide = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    content = encoded(Image.fromarray(wide), "PNG")
    pixels = decode(content)
    assert np.array_equal(pixels[..., 0], np.round(wide / 257.0).astype(np.uint8))
    assert pil(content).mean() > 250  # PIL alone, as a negative control


def png_bomb(width=30_000, height=30_000) -> bytes:
    """A small PNG file whose header announces a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + checksum

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width // 8 + 1) * 100), 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


BAD = {
    "truncated": (CONTENTS["jpeg"][: len(CONTENTS["jpeg"]) // 2], "cannot be decoded"),
    "text": (b"this is not a picture", "not a picture"),
    "bomb": (png_bomb(), "megapixels"),
    "large": (png_bomb(9_000, 9_000), "megapixels"),
    "float": (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    "int32": (encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"), "32-bit integer"),
    "header-only": (CONTENTS["jpeg"][:20], "cannot be decoded|not a picture"),
    "png-crc": (CONTENTS["png"][:40] + b"\0\0" + CONTENTS["png"][42:], "not a picture"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_rejected_with_its_reason(kind):
    content, reason = BAD[kind]
    with pytest.raises(BadFrame, match=reason):
        decode(content)


@given(
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
    cut=st.integers(0, 10**6),
    kind=st.sampled_from(sorted(CONTENTS)),
)
@settings(max_examples=400, deadline=None)
def test_mutated_pictures_decode_or_are_rejected(position, value, cut, kind):
    content = bytearray(CONTENTS[kind])
    content[position % len(content)] = value
    try:
        pixels = decode(bytes(content[: max(1, cut % (len(content) * 2))]))
    except BadFrame as bad:
        assert str(bad)
        assert "\n" not in str(bad)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


def table(root, *paths):
    """A manifest of frames 1, 2 ... of video v."""
    count = len(paths)
    names = {"root": [str(root)] * count, "path": list(paths), "video": ["v"] * count}
    return pa.table({**names, "frame": list(range(1, count + 1))})


def test_files_are_read_in_order_with_a_reason_for_each_bad_one(tmp_path):
    (tmp_path / "a.jpg").write_bytes(CONTENTS["jpeg"])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    outside = ("../a.jpg", "/etc/passwd", "a\0.jpg")
    out = read_frames(table(tmp_path, "a.jpg", "empty.jpg", "gone.jpg", "folder.jpg", *outside))
    assert np.array_equal(out[0], pil(CONTENTS["jpeg"]))
    reasons = [str(frame) for frame in out[1:]]
    assert reasons[0] == "empty file"
    assert "No such file" in reasons[1]
    assert "directory" in reasons[2]
    assert reasons[3:] == ["path points outside its root"] * 3


@given(st.text(alphabet="./ab", max_size=8))
def test_a_path_leaves_its_root_where_pathlib_sees_that(path):
    parts = PurePosixPath(path)
    leaves = parts.is_absolute() or ".." in parts.parts
    with pytest.raises(BadFrame) as error:  # the root holds nothing
        read_bytes("/proc/self/fdinfo", path)
    assert (str(error.value) == "path points outside its root") == leaves


@pytest.mark.timeout(20)
def test_only_regular_files_below_the_size_limit_are_read_as_pictures(tmp_path, monkeypatch):
    # Files that must not be read
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "pages.jpg").symlink_to("/proc/self/pagemap")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        listener.bind("socket.jpg")
        with open(tmp_path / "huge.jpg", "wb") as file:
            file.truncate(1 << 40)

        # A link to a picture may be read
        (tmp_path / "linked.jpg").symlink_to(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").write_bytes(CONTENTS["jpeg"])

        names = ("pipe", "zero", "pages", "loop", "socket", "huge", "linked")
        out = read_frames(table(tmp_path, *(f"{name}.jpg" for name in names)))
    assert str(out[0]) == "not a regular file but a pipe"
    assert str(out[1]) == "not a regular file but a device"
    assert all(isinstance(frame, BadFrame) for frame in out[:6])
    assert str(out[5]) == "larger than 256 MB"
    assert np.array_equal(out[6], pil(CONTENTS["jpeg"]))


def test_packed_files_are_read_and_their_faults_are_reasons(tmp_path):
    file = tmp_path / "frames-00000.parquet"
    images = {
        "image": pa.array([CONTENTS["jpeg"], None], pa.binary()),
        "reason": pa.array([None, "empty file"], pa.string()),
    }
    pq.write_table(pa.table({"video": ["v", "v"], "frame": [1, 2], **images}), file)
    out = read_frames(table(file, "0/0", "0/1"))
    assert np.array_equal(out[0], pil(CONTENTS["jpeg"]))
    assert isinstance(out[1], BadFrame)
    assert str(out[1]) == "empty file"
    for root, path in ((tmp_path / "gone.parquet", "0/0"), (file, "9/0"), (file, "x/0")):
        with pytest.raises(RaffectError, match="cannot be read"):
            read_frames(table(root, path))


def test_a_packed_file_that_was_made_again_is_never_read_by_an_older_manifest(tmp_path):
    file, content = tmp_path / "frames-00000.parquet", CONTENTS["jpeg"]
    images = {
        "image": pa.array([content, content], pa.binary()),
        "reason": pa.array([None, None], pa.string()),
    }
    pq.write_table(pa.table({"video": ["u", "v"], "frame": [1, 1], **images}), file)
    for path, held in (("0/0", "u frame 1"), ("0/7", "no frame 7"), ("0/x", "no frame x")):
        message = f"holds {held} where the manifest has v frame 1; finish `raffect pack`"
        with pytest.raises(RaffectError, match=message):
            read_frames(table(file, path))


def test_read_bytes_names_the_fault(tmp_path):
    with pytest.raises(BadFrame, match="outside"):
        read_bytes(str(tmp_path), "a/../../b.jpg")


DEADLY = """
import os, signal
import raffect.datasets.frames as f
real = f.decode
def deadly(content):
    if content.endswith(b"deadly"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return real(content)
f.decode = deadly
"""
"""Stands in for a decoder that segfaults: the child process dies at a frame that ends so."""


def test_frames_that_kill_their_decoder_are_found_and_the_others_spared(tmp_path, monkeypatch):
    for k in range(7):
        (tmp_path / f"{k}.jpg").write_bytes(CONTENTS["jpeg"] + (b"deadly" if k in (2, 5) else b""))
    monkeypatch.setattr(frames, "_TRIAL", DEADLY + frames._TRIAL)
    killers = find_killers(table(tmp_path, *[f"{k}.jpg" for k in range(7)]))
    assert killers == {2: "kills its decoder (SIGSEGV)", 5: "kills its decoder (SIGSEGV)"}


GREEDY = """
import raffect.datasets.frames as f
real, kept = f.decode, []
def greedy(content):
    while content.endswith(b"greedy"):
        kept.append(b"x" * 2**24)
    return real(content)
f.decode = greedy
import os
with open(os.environ["SMALL_GROUP"] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
"""
"""Stands in for a decoder that takes all memory, in a group of processes that has little."""


@pytest.fixture
def small_group(monkeypatch):
    """A control group whose processes the kernel kills above 300 MB."""
    group = Path(f"/sys/fs/cgroup/memory/raffect-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(300 * 2**20))
    except OSError:
        pytest.skip("only root may limit memory, where the kernel has its first control groups")
    monkeypatch.setenv("SMALL_GROUP", str(group))
    yield
    group.rmdir()


def test_a_frame_whose_process_is_killed_for_memory_twice_is_found_and_the_others_spared(
    tmp_path, monkeypatch, small_group
):
    for k in range(5):
        (tmp_path / f"{k}.jpg").write_bytes(CONTENTS["jpeg"] + (b"greedy" if k == 3 else b""))
    monkeypatch.setattr(frames, "_TRIAL", GREEDY + frames._TRIAL)
    killers = find_killers(table(tmp_path, *[f"{k}.jpg" for k in range(5)]))
    assert killers == {3: "needs too much memory (SIGKILL)"}


def test_no_frame_is_called_a_killer_without_cause(tmp_path):
    (tmp_path / "a.jpg").write_bytes(CONTENTS["jpeg"])
    assert find_killers(table(tmp_path, "a.jpg", "gone.jpg")) == {}


@pytest.mark.parametrize(("height", "width"), [(300, 300), (400, 250), (113, 900), (225, 224)])
def test_shrinking_is_clips_transform(height, width):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    transform = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])
    expected = np.asarray(transform(Image.fromarray(pixels)))
    assert np.array_equal(shrink(pixels, 224, Image.Resampling.BICUBIC, True), expected)


def test_small_pictures_are_left_as_they_are():
    pixels = picture(112, 224)
    assert shrink(pixels, 224, Image.Resampling.BICUBIC, True) is pixels


def test_a_missing_root_is_not_a_fault_of_its_frames(tmp_path, monkeypatch):
    with pytest.raises(RaffectError, match="image root cannot be read .*mount it"):
        read_frames(table(tmp_path / "unmounted", "a.jpg"))
    (tmp_path / "a.jpg").write_bytes(CONTENTS["jpeg"])

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.open", fail)
    with pytest.raises(RaffectError, match="Input/output error"):
        read_frames(table(tmp_path, "a.jpg"))


def test_a_child_process_that_fails_for_another_reason_blames_no_frame(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(CONTENTS["jpeg"])
    for fault in (
        "import sys; sys.exit(3)\n",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
    ):
        monkeypatch.setattr(frames, "_TRIAL", fault)
        with pytest.raises(RaffectError, match="could not be tried"):
            find_killers(table(tmp_path, "a.jpg"))


@pytest.mark.parametrize("shape", [(65000, 1), (1, 65000)])
def test_a_strip_that_would_grow_beyond_bounds_is_rejected(shape):
    with pytest.raises(BadFrame, match="too narrow"):
        shrink(np.zeros((*shape, 3), np.uint8), 224, Image.Resampling.BICUBIC, True)
