"""Files that appear whole or not at all: write beside the target, fsync, rename.

An object store has no rename and needs none: one PUT makes an object appear whole or not at all,
and with ``If-None-Match: *`` only if it is not there yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from raffect.storage.paths import is_remote

PREFIX = ".tmp-"
"""Beginning of an unfinished file's name; a file that a killed process left is never read."""

_PUTS = 4
"""Attempts at a conditional PUT."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path, whose file becomes ``path`` in one step when the block ends.

    If the block raises, the temporary file is deleted and ``path`` stays as it was.

    Args:
        path: The file to write; its folder is created. An existing file is replaced whole.
    """
    # An object store gets one PUT of a local file.
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="raffect-") as folder:
            yield (local := Path(folder) / path.name)
            store: Any = path
            store.fs.put_file(str(local), store.path)
        return
    # A folder gets a file with another name, which is renamed once its bytes are on the disk.
    temporary = _temporary(path)
    with _faults_name(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder, which becomes ``path`` in one step when the block ends.

    If the block raises, nothing is left of it, and faults of files in it name ``path``.

    Args:
        path: A folder of this machine that is empty or not there.
    """
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        ours = error.filename is None or str(error.filename).startswith(str(temporary))
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path`` so that a reader sees all of it or the file before it."""
    if is_remote(path):
        path.write_bytes(bytes(content))
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_if_absent(path: Path, content: bytes) -> bool:
    """Create ``path`` whole unless it exists; of several writers only one creates it.

    Returns:
        Whether this call created it.
    """
    if is_remote(path):
        return _put_if_absent(path, content)
    # Unlike a rename, a hard link fails if the name is taken.
    temporary = _temporary(path)
    with _faults_name(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync(path.parent)
    return True


def require_writable(folder: Path) -> None:
    """Make a folder and a file in it, which is deleted: before hours of work, not after them.

    An object store is not asked.

    Raises:
        OSError: If that is not possible; it names the folder.
    """
    if is_remote(folder):
        return
    temporary = _temporary(folder / "probe")
    with _faults_name(folder, temporary):
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(b"")


def _put_if_absent(path: Any, content: bytes) -> bool:
    """One conditional PUT; whether it created the object.

    If another writer was first, the store answers 412, or 409 while that write is under way.
    Servers put this in different words, so after any error the object itself is looked for.
    """
    for attempt in range(_PUTS):
        try:
            path.fs.pipe_file(path.path, content, mode="create")
        except FileExistsError:
            return False
        except OSError:
            if path.exists():
                return False
            if attempt == _PUTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
        else:
            return True
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _faults_name(path: Path, temporary: Path) -> Generator[None]:
    """Faults of a block that writes ``path`` name it: a full disk names no file, or our own.

    The temporary file is deleted at the end if it is still there.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
