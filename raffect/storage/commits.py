"""Commits: what a unit of work made counts once its record exists, and each record is created once.

A unit first writes its files, each named by its content, and last its record, which names them with
sizes and SHA-256 and is created only if there is none. Of several writers the first record counts,
and the others delete their own files. A record that is unreadable, or whose files are missing or
of another size, does not count and is replaced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from raffect.storage.atomic import write_atomic, write_if_absent
from raffect.storage.paths import Damaged, list_sizes, read_buffer, read_files


class Committed(Protocol):
    """A record of a unit of work."""

    @property
    def files(self) -> Mapping[str, tuple[int, str]]:
        """Path of each file relative to the root -> (size in bytes, SHA-256)."""
        ...

    def to_bytes(self) -> bytes:
        """The file that holds this record."""
        ...


R = TypeVar("R", bound=Committed)


def content_name(folder: str, unit: str, sha256: str) -> str:
    """Path of a unit's file relative to the root.

    Its content is in its name, so that writers with other bytes never write the same file.
    """
    return f"{folder}/{unit}-{sha256[:8]}.parquet"


class Commits(Generic[R]):
    """The records in ``commits/`` below a folder; making this object reads and creates no file.

    Args:
        root: The folder, or one of an object store.
        names: Names of records.
        parse: The record in a file, given its name and content; None if it is damaged.
    """

    def __init__(
        self, root: Path, names: re.Pattern[str], parse: Callable[[str, bytes], R | None]
    ) -> None:
        self.root, self.folder = root, root / "commits"
        self._names, self._parse = names, parse

    def names(self) -> list[str]:
        """Names of all records, sound or not."""
        return [name for name in list_sizes(self.folder) if self._names.fullmatch(name)]

    def read(self, name: str) -> R | None:
        """A record; None if there is none or it is damaged. Its files may be missing or damaged."""
        for found, content in read_files(self.folder, [name]):
            return self._parse(found, content)
        return None

    def read_all(self, folders: Iterable[str]) -> Iterator[R]:
        """Records that count, in the order of their names; ``folders`` are those of files."""
        # Records first: a unit that is committed meanwhile must not look like one without files.
        names = sorted(self.names())
        sizes = {}
        for folder in folders:
            for name, size in list_sizes(self.root / folder).items():
                sizes[f"{folder}/{name}"] = size
        for name, content in read_files(self.folder, names):
            record = self._parse(name, content)
            if record is None:
                continue
            if all(sizes.get(file) == size for file, (size, _) in record.files.items()):
                yield record

    def write(self, unit: str, contents: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
        """Write the files of a unit, given by folder; their names, sizes and SHA-256."""
        files = {}
        for folder, content in contents.items():
            sha256 = hashlib.sha256(content).hexdigest()
            name = content_name(folder, unit, sha256)
            write_atomic(self.root / name, content)
            files[name] = len(content), sha256
        return files

    def settle(self, name: str, ours: R) -> R:
        """Create a record, unless there is one that counts; the one that counts."""
        path = self.folder / name
        while not write_if_absent(path, ours.to_bytes()):
            found = self.read(name)
            if found and self.has_files(found):
                self.delete(ours.files.keys() - found.files.keys())
                return found
            # A damaged one is in the way, unless another writer has replaced it meanwhile. One that
            # does so between this look and the next line loses its record to ours, and its files
            # are left over.
            again = self.read(name)
            if again != found or (again and self.has_files(again)):
                continue
            path.unlink(missing_ok=True)
            if found:
                self.delete(found.files.keys() - ours.files.keys())
        return ours

    def withdraw(self, name: str) -> None:
        """Delete a record, and then the files that it names."""
        found = self.read(name)
        (self.folder / name).unlink(missing_ok=True)
        if found:
            self.delete(found.files)

    def has_files(self, record: R) -> bool:
        """Whether the files of a record have the recorded sizes."""
        try:
            sizes = {name: (self.root / name).stat().st_size for name in record.files}
        except FileNotFoundError:
            return False
        return all(sizes[name] == size for name, (size, _) in record.files.items())

    def delete(self, names: Iterable[str]) -> None:
        """Delete files of a unit; those that are gone are passed over."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def read_committed(self, name: str, sha256: str) -> pa.Buffer:
        """Bytes of a unit's file, checked to be those that were committed.

        Args:
            name: Path of the file as in the record.
            sha256: SHA-256 of the file as in the record.

        Raises:
            Damaged: If it is missing or holds other bytes.
        """
        try:
            content = read_buffer(self.root / name)
        except FileNotFoundError as error:
            raise Damaged("missing") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Damaged("not the file that was committed (SHA-256 differs)")
        return content
