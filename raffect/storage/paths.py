"""Where data is stored: a folder that every machine sees, or an object store.

An object store is ``s3://bucket/prefix``; other stores of fsspec are not tested. All code takes a
`pathlib.Path`, or the `upath.UPath` of an object store, which has the same methods; where the two
differ, the code is here and in `raffect.storage.atomic`. Credentials and endpoint come from the
environment of each machine (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` ..., or the role of the
instance), never from a URL or a flag.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from raffect.errors import RaffectError, how_to_add

MAX_BYTES = 256_000_000
"""Largest picture or annotation file that is read."""

_MANY_ROWS, _MOST_ROWS_A_BYTE = 20_000_000, 16
"""Rows of a Parquet file that are read whatever its size, and most for each byte of a larger one.
Frame numbers of many videos compress well, but a file of equal rows has hundreds a byte."""
_READ_AT_ONCE, _CHUNK = 1024, 1 << 16
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
}


def locate(text: str | Path) -> Path:
    """A path from a user's text: a URL is an object store, everything else a local path.

    Returns:
        A `Path`, or the `UPath` of an object store, which behaves like a `Path` but is not one for
        `isinstance`.

    Raises:
        RaffectError: If the URL may contain a secret, names no bucket, or its package is not
            installed.
    """
    if not isinstance(text, str):
        return text
    if "://" not in text:
        return Path(text)
    # What a URL must not or has to contain; a secret with a slash in it would be part of the path.
    url = urlsplit(text)
    if "@" in text or ":" in url.netloc or url.query:
        raise RaffectError(
            f"{url.scheme}://...: no credentials or options in a URL, it would be kept in logs; "
            "set AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL ... on every machine"
        )
    if url.scheme in ("file", "local"):
        raise RaffectError(f"{text}: a folder of this machine; give its plain path")
    if not url.netloc:
        raise RaffectError(f"{text}: no bucket in it; expected {url.scheme}://bucket/folder")
    # The path itself
    from upath import UPath

    try:
        # Another process may have written since a listing, so none is kept.
        path: Any = UPath(text.rstrip("/"), use_listings_cache=False)
        _ = path.fs
    except ImportError as error:
        raise RaffectError(
            f"{text}: {error}; on every machine {how_to_add('s3')} for s3://, "
            f"or fsspec's package for {url.scheme}://"
        ) from error
    except ValueError as error:
        raise RaffectError(
            f"{text}: no storage of kind {url.scheme}://; "
            "expected a path that every machine sees, or s3://bucket/folder"
        ) from error
    return path


def printable(path: str | Path) -> str:
    """A local path as text, with bytes that are not UTF-8 as escapes such as ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return not isinstance(path, Path)


class Damaged(Exception):
    """A file is missing or not what it should be, and the storage itself works.

    The message says what is wrong.
    """


def has_file(path: Path) -> bool:
    """Whether there is a file; raises if an object store does not answer."""
    # A `UPath`'s own ``is_file`` would be False then.
    return path.exists() if is_remote(path) else path.is_file()


def open_regular(path: str | Path) -> io.FileIO:
    """Open a local file that a user provided, if it is a regular file.

    Reading a pipe could wait for ever, and a device such as ``/dev/zero`` has no end.

    Raises:
        Damaged: If it is not a regular file.
        OSError: If it cannot be opened.
    """
    return io.FileIO(_open_regular(path)[0])


def _open_regular(path: str | Path) -> tuple[int, int]:
    """File descriptor and size in bytes of a regular file."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    about = os.fstat(handle)
    kind = stat.S_IFMT(about.st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise Damaged(f"not a regular file but {_KINDS.get(kind, 'something else')}")
    return handle, about.st_size


def read_regular(path: str | Path, most_bytes: int = MAX_BYTES) -> bytes:
    """Bytes of a local file that a user provided.

    Raises:
        Damaged: If it is not a regular file, or has more bytes than ``most_bytes``.
        OSError: If it cannot be opened or read.
    """
    # System calls alone: a file object of Python's costs as much as opening a picture.
    handle, size = _open_regular(path)
    content, asked = b"", size + 1
    try:
        # Once, unless the file grew, or is in /proc, where a size is 0
        while max(size, len(content)) <= most_bytes and (more := os.read(handle, asked)):
            content += more
            if len(content) == size:
                return content
            asked = _CHUNK
    finally:
        os.close(handle)
    if max(size, len(content)) > most_bytes:
        raise Damaged(f"larger than {most_bytes // 1_000_000} MB")
    return content


def read_buffer(path: Path) -> pa.Buffer:
    """Bytes of a file, in memory that Arrow's pool reuses.

    New pages from the system would cost more time than reading.
    """
    if is_remote(path):
        return pa.py_buffer(path.read_bytes())
    with open(path, "rb", buffering=0) as file:
        buffer = pa.allocate_buffer(os.fstat(file.fileno()).st_size)
        view, filled = memoryview(buffer).cast("B"), 0
        try:
            while filled < len(view) and (count := file.readinto(view[filled:])):
                filled += count
        except OSError as error:  # a failing read does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from error
    return buffer.slice(0, filled)


def parse_parquet(content: pa.Buffer, columns: Iterable[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, read by one thread; columns may be views of them.

    Raises:
        Damaged: If they are not a Parquet file.
    """
    names = list(columns) if columns else None
    try:
        # Not `pq.read_table`, which takes three times as long for a shard
        file = pq.ParquetFile(pa.BufferReader(content))
        _require_few_rows(file.metadata, content.size)
        table = file.read(names, use_threads=False)
        return _named(table.select(names) if names else table)
    except Exception as error:  # of wrong bytes Arrow raises nearly anything
        raise _describe_damage(error) from error


def _named(table: pa.Table) -> pa.Table:
    """The table, if the names of its columns are UTF-8, which Arrow does not check."""
    _ = table.column_names
    return table


def _require_few_rows(metadata: pq.FileMetaData, size_bytes: int) -> None:
    """Refuse a small file that would unfold into more memory than there is, before it does.

    Raises:
        Damaged: If it claims more rows than files of frames ever have.
    """
    rows = metadata.num_rows
    if rows > max(_MANY_ROWS, _MOST_ROWS_A_BYTE * size_bytes):
        raise Damaged(f"claims {rows:,} rows in {size_bytes:,} bytes")


def _describe_damage(error: Exception) -> Damaged:
    return Damaged((str(error) or type(error).__name__).splitlines()[0][:120])


def read_parquet(
    path: Path, columns: Iterable[str] | None = None, *, use_threads: bool = True
) -> pa.Table:
    """Read a Parquet file: a local file is mapped, a remote file is fetched by one request.

    Raises:
        Damaged: If it is missing or not a Parquet file.
        OSError: If the disk, the network or the file's permissions are at fault.
    """
    names = list(columns) if columns else None
    try:
        source: Any = pa.BufferReader(path.read_bytes()) if is_remote(path) else path
        size_bytes = source.size() if is_remote(path) else path.stat().st_size
        _require_few_rows(pq.read_metadata(source), size_bytes)
        table = pq.read_table(
            source, columns=names, memory_map=not is_remote(path), use_threads=use_threads
        )
        return _named(table)
    except FileNotFoundError as error:
        raise _describe_damage(error) from error
    except Exception as error:
        # Arrow's own errors about wrong bytes are OSErrors without a number, and nearly any other.
        if (isinstance(error, OSError) and error.errno is not None) or explain(error):
            raise
        raise _describe_damage(error) from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file to read some row groups or columns; if remote, only these are fetched."""
    if not is_remote(path):
        return pq.ParquetFile(path)
    store: Any = path
    return pq.ParquetFile(store.open("rb", cache_type="none"), pre_buffer=True)


def list_sizes(folder: Path) -> dict[str, int]:
    """Names and sizes in bytes of the files in a folder; empty if there is no folder."""
    try:
        if is_remote(folder):
            # Not `find`, which returns an empty listing if the request failed
            store: Any = folder
            files = [one for one in store.fs.ls(store.path, detail=True) if one["type"] == "file"]
            return {one["name"].rpartition("/")[2]: one["size"] for one in files}
        with os.scandir(folder) as entries:
            files = [entry for entry in entries if entry.is_file()]
    except FileNotFoundError:
        return {}
    sizes = {}
    for entry in files:
        # Another process may have renamed its unfinished file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            sizes[entry.name] = entry.stat().st_size
    return sizes


def read_files(folder: Path, names: Iterable[str]) -> Generator[tuple[str, bytes]]:
    """Names and contents of small files; files that are gone are left out.

    Remote files are fetched by many requests at a time.
    """
    # One after another in a folder
    if not is_remote(folder):
        for name in names:
            path, missing = f"{folder}/{name}", contextlib.suppress(FileNotFoundError)
            with missing, open(path, "rb", buffering=0) as file:
                yield name, file.read()
        return
    # Many at a time in an object store
    store: Any = folder
    names = list(names)
    for start in range(0, len(names), _READ_AT_ONCE):
        wanted = [f"{store.path}/{name}" for name in names[start : start + _READ_AT_ONCE]]
        for name, content in store.fs.cat(wanted, on_error="return").items():
            if isinstance(content, bytes):
                yield name.rpartition("/")[2], content
            elif not isinstance(content, FileNotFoundError):
                raise content


@contextlib.contextmanager
def local_copy(path: Path) -> Generator[Path]:
    """A local file with the content of ``path``: itself, or a copy that the block's end deletes."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="raffect-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def explain(error: BaseException) -> str | None:
    """One line for an error of an object store's client that is not an `OSError`, else None."""
    if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
        return None
    what = " ".join(str(error).split())[:200]
    remedy = "check AWS_ENDPOINT_URL, the credentials and the bucket on every machine"
    return f"object storage: {what}; {remedy}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, which may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
