"""Files that appear whole: whatever the system refuses, the error names the file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from raffect.cli import main
from raffect.datasets.manifest import write_manifest
from raffect.storage import atomic
from raffect.storage.atomic import atomic_path, require_writable, write_atomic, write_if_absent
from raffect.storage.tables import write_table
from tests.helpers.banks import make_manifest

CONTENT = b"x" * 100_000


@pytest.fixture
def full_disk(monkeypatch):
    """Temporary files are links to the system's own full device."""

    def link(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.symlink_to("/dev/full")
        return temporary

    monkeypatch.setattr(atomic, "_temporary", link)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomic(path, CONTENT),
        lambda path: write_if_absent(path, CONTENT),
        lambda path: write_table(pa.table({"a": list(range(10_000))}), path, {}),
    ],
    ids=["bytes", "if absent", "parquet"],
)
def test_a_full_disk_names_the_file_and_leaves_none(tmp_path, full_disk, write):
    path = tmp_path / "folder" / "file"
    with pytest.raises(OSError, match="No space left") as found:
        write(path)
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(path))
    assert not list(path.parent.iterdir())


def test_a_limit_of_the_system_is_one_line_with_the_file(tmp_path):
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from raffect.storage.atomic import write_atomic; from pathlib import Path;"
        f"write_atomic(Path(sys.argv[1]), {b'x' * 5000!r})"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == f"OSError: [Errno 27] File too large: '{out}'"
    assert not list(tmp_path.iterdir())


def test_an_error_that_names_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as found, atomic_path(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    assert found.value.filename == str(tmp_path / "input")


def test_a_folder_is_writable_or_named_and_nothing_stays(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError) as found:
        require_writable(file / "folder")
    assert found.value.filename == str(file / "folder")
    if os.geteuid():  # root may write everywhere
        (tmp_path / "new").chmod(0o500)
        with pytest.raises(PermissionError):
            require_writable(tmp_path / "new")


@pytest.fixture
def manifest(tmp_path):
    write_manifest(make_manifest({"a": 4}), tmp_path / "manifest.parquet", False)
    return tmp_path / "manifest.parquet"


def test_a_bank_whose_disk_is_read_only_now_fails_before_ray_starts(
    manifest, tmp_path, monkeypatch, capsys
):
    bank = tmp_path / "bank"
    words = ["extract", "--manifest", str(manifest), "--bank", str(bank)]
    words += ["--encoder.weights", "random:0"]

    def refuse(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    def start(address):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("raffect.extraction.extract.ray_session", start)
    monkeypatch.setattr("raffect.extraction.extract.require_writable", refuse)
    assert main(words) == 2
    assert f"{bank}: Read-only file system" in capsys.readouterr().err
    (tmp_path / "file").touch()
    words[4] = str(tmp_path / "file" / "bank")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raffect extract: {words[4]}")
    assert "Not a directory" in error


def test_written_files_are_whole_and_the_first_of_two_writers_wins(tmp_path):
    path = tmp_path / "a" / "file"
    assert write_if_absent(path, CONTENT)
    assert not write_if_absent(path, b"other")
    assert path.read_bytes() == CONTENT
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
