"""Files that are whole or not there: write beside the target, fsync, rename.

An object store has no rename and needs none: an object appears whole with its one PUT, or not at all, and
``If-None-Match: *`` makes it appear only once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from raffect.storage.paths import is_remote

PREFIX = ".tmp-"
"""How an unfinished file's name begins; one left by a killed process is never read."""

_PUTS = 4


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it becomes ``path`` in one step, on error it goes.

    Args:
        path: The file to appear; its folder is made. An existing file is replaced whole.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="raffect-") as folder:
            yield (local := Path(folder) / path.name)
            store: Any = path
            store.fs.put_file(str(local), store.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a reader sees all of it or the file of before."""
    if is_remote(path):
        path.write_bytes(content)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_if_absent(path: Path, content: bytes) -> bool:
    """Create ``path`` whole unless it exists; of several writers one wins.

    Returns:
        Whether this call created it.
    """
    if is_remote(path):
        return _put_if_absent(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        os.link(temporary, path)
        _sync(path.parent)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return True


def _put_if_absent(path: Any, content: bytes) -> bool:
    """One conditional PUT; who loses is told 412, or 409 while the other one's is under way, and not by every server in the same words."""
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


def _temporary(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
