"""Paths as text, and what a file of a user's is read as."""

import os
import re
from pathlib import Path

import pytest

import raffect
from raffect.storage import paths
from raffect.storage.paths import Damaged, printable, read_regular


def test_bytes_of_a_path_that_are_not_utf8_are_escapes_and_all_else_stays():
    assert printable(Path(os.fsdecode(b"a/caf\xe9 1.mp4"))) == r"a/caf\xe9 1.mp4"
    assert printable("straße/顔.png") == "straße/顔.png"
    printable(os.fsdecode(bytes(range(1, 256)))).encode()


def test_one_function_makes_paths_printable():
    package = Path(raffect.__file__).parent
    twin = re.compile(r'os\.fsencode\(.*\)\.decode\("utf-8", "backslashreplace"\)')
    found = [file.name for file in package.rglob("*.py") if twin.search(file.read_text())]
    assert found == ["paths.py"]


def test_a_file_without_a_known_size_is_read_to_its_end_and_no_further(monkeypatch):
    # The size of a file in /proc is 0, and it comes in as many pieces as are asked for.
    file = Path("/proc/version")
    whole = file.read_bytes()
    monkeypatch.setattr(paths, "_CHUNK", 7)
    assert read_regular(file, len(whole)) == whole
    with pytest.raises(Damaged, match="larger than"):
        read_regular(file, len(whole) - 1)


@pytest.mark.parametrize("size", [0, 1, 4096, 70_000])
def test_a_file_is_read_whole_if_it_has_at_most_the_bytes_that_are_allowed(tmp_path, size):
    file, content = tmp_path / "a.jpg", os.urandom(size)
    file.write_bytes(content)
    assert read_regular(file, size) == content
    file.write_bytes(content + b"!")
    with pytest.raises(Damaged, match="larger than"):
        read_regular(file, size)
