"""Read and decode frames: uint8 RGB exactly as PIL shows them, or the reason why not.

simplejpeg decodes plain JPEG (bit-identical to PIL in a third of the time). Everything else goes to
PIL, and so does every JPEG that simplejpeg complains of. Fast-DCT options change pixels and are
never used. EXIF rotation is ignored, as PIL's `Image.open` and open_clip do.

Deviations from PIL, each because PIL's answer is wrong without a warning: 16-bit grey is scaled to
8 bits instead of clipped to white; floating-point and 32-bit integer pixels are refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from raffect.errors import RaffectError
from raffect.storage.cells import table_from_bytes, table_to_bytes
from raffect.storage.paths import Damaged, locate, open_parquet, read_regular

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded. Its header is checked first, so that a decompression bomb takes
no memory."""

PACKED_SUFFIX = ".parquet"
"""A manifest root that ends so is a packed file; its paths are ``<row group>/<row>``."""

PACKED_SCHEMA = pa.schema(
    [("video", pa.string()), ("frame", pa.int32()), ("image", pa.binary()), ("reason", pa.string())]
)
"""Schema of a packed file; an image is null where there is a reason why it could not be read."""

# Errors of one file; any other one is a fault of the disk or of the whole root.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_NOT_READABLE = {errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV}
_FRAME_FAULTS = _MISSING | _NOT_READABLE

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
CRASHES |= {signal.SIGKILL}  # what the system sends to a process that takes too much memory
"""Signals by which a decoder ends its process."""
_MANIFEST = pa.schema(
    [("root", pa.string()), ("path", pa.string()), ("video", pa.string()), ("frame", pa.int32())]
)
_PACKED = ("image", "reason", "video", "frame")
_TRIAL = "import sys; from raffect.datasets.frames import _trial; _trial(sys.stdin.buffer)"


class BadFrame(Exception):
    """A frame that cannot be read or decoded; the message is the reason that the rejects give."""


def read_bytes(root: str, path: str) -> bytes:
    """Bytes of a frame's file.

    Raises:
        BadFrame: If the path leaves its root, or the file is missing, unreadable, empty, not a
            regular file or larger than `raffect.storage.paths.MAX_BYTES`.
        RaffectError: If the root or its disk is at fault: then nothing is wrong with the frame.
    """
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise BadFrame("path points outside its root")
    try:
        content = read_regular(f"{root}/{path}")
    except Damaged as error:
        raise BadFrame(str(error)) from None
    except OSError as error:
        # A missing root looks like a missing file, so the root is checked too.
        if error.errno not in _FRAME_FAULTS or not os.path.isdir(root):
            remedy = "mount it or fix the disk, then run the same command again"
            raise RaffectError(
                f"{root}: image root cannot be read ({error.strerror}); {remedy}"
            ) from error
        raise BadFrame(f"cannot be read: {error.strerror}") from None
    if not content:
        raise BadFrame("empty file")
    return content


def decode(content: bytes, room: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
    """Decode a picture as PIL's ``convert("RGB")`` does, except for this module's deviations.

    Args:
        content: An encoded picture of any format that PIL reads; of an animation the first picture.
        room: Gives a uint8 buffer of as many bytes as it is asked for; a plain JPEG is decoded into
            that buffer.

    Returns:
        uint8 array of shape (height, width, 3).

    Raises:
        BadFrame: If it is not a picture, is broken, or is larger than `MAX_PIXELS`.
    """
    if content[:3] == b"\xff\xd8\xff":
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(content, strict=True)
            height, width = int(height), int(width)
            if space in ("YCbCr", "Gray") and height * width <= MAX_PIXELS:
                buffer = room(height * width * 3) if room else None
                return simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True, buffer=buffer)
        except ValueError:
            pass  # PIL decides about everything that libjpeg warns of
    return _decode_pil(content)


def _decode_pil(content: bytes) -> np.ndarray:
    most = f"{MAX_PIXELS // 1_000_000} megapixels"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Decoders of hostile files raise nearly anything: SyntaxError, struct.error, zlib.error ...
        try:
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise BadFrame(f"{image.width}x{image.height} is larger than {most}")
            image.load()
            return np.asarray(_to_rgb(image))
        except BadFrame:
            raise
        except Image.DecompressionBombError:
            raise BadFrame(f"larger than {most}") from None
        except Image.UnidentifiedImageError:
            raise BadFrame("not a picture") from None
        except Exception as error:
            message = " ".join(str(error).split())[:120]
            raise BadFrame(f"cannot be decoded: {type(error).__name__}: {message}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise BadFrame(f"{kind} pixels have no defined brightness; save it with 8 bits")
    return image.convert("RGB")


def read_frames(rows: pa.Table) -> list[np.ndarray | BadFrame]:
    """Read and decode the frames of manifest rows, in order.

    Args:
        rows: Table with the columns of a manifest.

    Returns:
        For each row uint8 (height, width, 3), or a `BadFrame` with the reason why not.
    """
    return [
        _attempt(decode, content) if isinstance(content, bytes) else content
        for content in read_contents(rows)
    ]


def read_contents(rows: pa.Table) -> list[bytes | BadFrame]:
    """Encoded pictures of manifest rows, in order; packed files are read a row group at a time."""
    groups: dict[tuple[str, str], dict[str, list]] = {}
    out: list[bytes | BadFrame] = []
    # Dictionaries would become lists an entry at a time, plain columns do at once.
    plain = rows.select(_MANIFEST.names).cast(_MANIFEST)
    for root, path, *key in zip(*plain.to_pydict().values(), strict=True):
        if root.endswith(PACKED_SUFFIX):
            group, _, row = path.partition("/")
            if (root, group) not in groups:
                groups[root, group] = _read_group(root, group)
            out.append(_attempt(_read_packed, groups[root, group], row, key, root))
        else:
            out.append(_attempt(read_bytes, root, path))
    return out


def _read_group(root: str, group: str) -> dict[str, list]:
    try:
        with open_parquet(locate(root)) as file:
            table = file.read_row_group(int(group), columns=list(_PACKED))
        if missing := set(_PACKED) - set(table.column_names):
            raise Damaged(f"column {min(missing)!r} is missing")
        return table.select(PACKED_SCHEMA.names).cast(PACKED_SCHEMA).to_pydict()
    except (OSError, pa.ArrowException, ValueError, LookupError, OverflowError, Damaged) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        remedy = "bring the file back or run `raffect pack` again"
        raise RaffectError(
            f"{root}: row group {group} cannot be read ({reason}); {remedy}"
        ) from error


def _read_packed(group: dict[str, list], row: str, key: list, root: str) -> bytes:
    try:
        content, reason, *found = (group[name][int(row)] for name in _PACKED)
    except (ValueError, IndexError):
        found = ["no", row]
    # The file may have been packed again since the manifest was written. A picture of another frame
    # must never be encoded as this one.
    if found != key:
        held, wanted = f"{found[0]} frame {found[1]}", f"{key[0]} frame {key[1]}"
        raise RaffectError(
            f"{root}: holds {held} where the manifest has {wanted}; "
            "finish `raffect pack`, and use the manifest that it writes"
        )
    if content is None:
        raise BadFrame(reason or "empty in the packed file")
    return content


def _attempt(function, *args):
    """What ``function`` returns, or the `BadFrame` that it raises."""
    try:
        return function(*args)
    except BadFrame as bad:
        return bad


def shrink(
    pixels: np.ndarray,
    size: int,
    resample: Image.Resampling,
    keep_ratio: bool,
    input_size: int | None = None,
) -> np.ndarray:
    """Shrink a picture with a side longer than the encoder's input to that input, with PIL.

    This happens where the picture is read: such pictures are cheaper to shrink than to send to the
    device, and PIL from version 13 on has rules of its own for the order of its two passes when it
    shrinks. Smaller ones are enlarged on the device, to the same pixels.

    Args:
        pixels: uint8 (height, width, 3).
        size: Side to which pictures are resized.
        resample: Its interpolation.
        keep_ratio: Shortest side to ``size`` and centre crop (CLIP), else both sides to ``size``.
        input_size: Side of the centre that the encoder crops from that, by default all of it. The
            crop to ``size`` lies so that both together are one crop to the pixel.

    Returns:
        ``pixels`` itself if no side is longer than ``size``; else uint8 (size, size, 3).

    Raises:
        BadFrame: If it is so narrow that its enlarged strip would be larger than `MAX_PIXELS`.
    """
    height, width = pixels.shape[:2]
    if max(height, width) <= size:
        return pixels
    image = Image.fromarray(pixels)
    if not keep_ratio:
        return np.asarray(image.resize((size, size), resample))

    # CLIP's resize and centre crop
    new_width, new_height = resized_shape(width, height, size)
    if new_width * new_height > MAX_PIXELS:
        raise BadFrame(f"{width}x{height} is too narrow to be a face")
    inner = size if input_size is None else input_size
    later = round((size - inner) / 2.0)
    left, top = (round((side - inner) / 2.0) - later for side in (new_width, new_height))
    resized = image.resize((new_width, new_height), resample)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def resized_shape(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after torchvision's ``Resize(size)``.

    The shorter side is ``size``, the longer one is truncated to whole pixels.
    """
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def find_killers(rows: pa.Table) -> dict[int, str]:
    """Which frames kill the process that decodes them, found by decoding all in child processes.

    A suspect is tried once more alone. What counts is a crash, or a kill for want of memory, of the
    process that decodes it, twice; an exit does not.

    Args:
        rows: Table with the columns of a manifest.

    Returns:
        Row -> reason, for frames whose decoder died; others may still be bad in ordinary ways.

    Raises:
        RaffectError: If children fail for another reason.
    """
    killers: dict[int, str] = {}
    start = 0
    while start < len(rows):
        passed, _ = _run_trial(rows.slice(start))
        suspect = start + passed
        if suspect < len(rows):
            passed, status = _run_trial(rows.slice(suspect, 1))
            if not passed:
                name = signal.Signals(-status).name
                does = "needs too much memory" if name == "SIGKILL" else "kills its decoder"
                killers[suspect] = f"{does} ({name})"
        start = suspect + 1
    return killers


def _run_trial(rows: pa.Table) -> tuple[int, int]:
    """Decode rows in a child process.

    Returns:
        How many rows passed, and the child's exit status, negative for a crash.
    """
    jobs = table_to_bytes(rows.select(_MANIFEST.names))
    command = [sys.executable, "-c", _TRIAL]
    done = subprocess.run(command, input=jobs, capture_output=True, check=False)
    begun, passed = done.stdout.count(b">"), done.stdout.count(b".")
    if passed < len(rows) and (begun == passed or -done.returncode not in CRASHES):
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        remedy = "free memory or fix the installation, then run the same command again"
        raise RaffectError(
            "frames could not be tried in a child process "
            f"(status {done.returncode}: {last[:200]}); {remedy}"
        )
    return passed, done.returncode


def _trial(jobs: IO[bytes]) -> None:
    """Decode the rows that the parent process sent one by one, with ``>`` before and ``.`` after.

    Where memory ends, the system is to end this process, not the worker that waits for it.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    rows = table_from_bytes(jobs.read())
    for row in range(len(rows)):
        sys.stdout.write(">")
        sys.stdout.flush()
        (content,) = read_contents(rows.slice(row, 1))
        if isinstance(content, bytes):
            _attempt(decode, content)
        sys.stdout.write(".")
        sys.stdout.flush()
