"""Paths as text."""

import os
import re
from pathlib import Path

import raffect
from raffect.storage.paths import printable


def test_bytes_of_a_path_that_are_not_utf8_are_escapes_and_all_else_stays():
    assert printable(Path(os.fsdecode(b"a/caf\xe9 1.mp4"))) == r"a/caf\xe9 1.mp4"
    assert printable("straße/顔.png") == "straße/顔.png"
    printable(os.fsdecode(bytes(range(1, 256)))).encode()


def test_one_function_makes_paths_printable():
    package = Path(raffect.__file__).parent
    twin = re.compile(r'os\.fsencode\(.*\)\.decode\("utf-8", "backslashreplace"\)')
    found = [file.name for file in package.rglob("*.py") if twin.search(file.read_text())]
    assert found == ["paths.py"]
