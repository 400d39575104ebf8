"""A further data set touches two files: its own, and a line among the importers."""

import ast
import re
import sys
import types
from pathlib import Path

import pytest

from raffect.datasets import importers
from raffect.datasets.importers import BY_ROOT, Importer
from tests.helpers.layouts import PIXELS, labels_of, run

ROOT = Path(__file__).parents[2]
SETS = ROOT / "raffect" / "datasets" / "sets"


@pytest.fixture
def moods(monkeypatch):
    """The module and the line that docs/datasets.md shows as a diff, as they would be there."""
    page = (ROOT / "docs" / "datasets.md").read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.S)
    lines, _, module = diff.partition("+++ b/raffect/datasets/sets/moods.py\n")
    code = "".join(f"{line[1:]}\n" for line in module.splitlines())
    found = types.ModuleType("raffect.datasets.sets.moods")
    exec(compile(code, "moods.py", "exec"), found.__dict__)
    monkeypatch.setitem(sys.modules, found.__name__, found)
    (entry,) = re.findall(r"^\+ +(\"moods\": .*),$", lines, re.M)
    known = eval(f"{{{entry}}}", {"Importer": Importer, "moods": found})
    monkeypatch.setitem(BY_ROOT, "moods", known["moods"])


@pytest.mark.parametrize("dataset", ["moods", "auto"])
def test_a_thirteenth_set_goes_through_prepare_by_its_module_and_a_line(moods, tmp_path, dataset):
    root = tmp_path / "set"
    (root / "faces").mkdir(parents=True)
    for number in range(4):
        (root / f"faces/face{number}.png").write_bytes(PIXELS[".png"])
    rows = ["face0.png happy train", "face1.png sad train", "face2.png sad val"]
    (root / "moods.lst").write_text("\n".join([*rows, "face3.png grumpy val"]))
    _, manifest, labels, problems = run(root, tmp_path / "out", dataset)
    assert labels_of(labels["expr"]) == {
        "face0.png": "Happiness",
        "face1.png": "Sadness",
        "face2.png": "Sadness",
        "face3.png": None,
    }
    assert manifest["face0.png", 1] == "faces/face0.png"
    assert [(row["file"], row["line"]) for row in problems] == [("moods.lst", "4")]
    assert labels["expr"]["split"].to_pylist() == ["train", "train", "validation", "validation"]


def test_no_other_module_of_raffect_imports_that_of_a_data_set():
    """Except for the importers; Aff-Wild2's tasks are also those of heads of November 2026."""
    sets = {Path(sys.modules[one.read.__module__].__file__) for one in BY_ROOT.values()}
    names = {file.stem for file in sets if file.parent == SETS}
    assert {"dfew", "mafw", "rafdb", "disfa"} <= names
    for file in sorted((ROOT / "raffect").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                used = {name for name in names if f"raffect.datasets.sets.{name}" in found}
                assert not used or file == Path(importers.__file__), (file, used)
