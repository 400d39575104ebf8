"""The notebooks run from their first cell to their last, in a kernel, on drawn faces."""

import os
import re
import sys
from pathlib import Path

import jupytext
import pytest
from nbclient.exceptions import CellExecutionError

from tests.helpers.sample import sampled

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import notebooks

ROOT = Path(__file__).parents[1]
SHOWS = {"first_look": 5, "figure2": 1, "zero_shot": 3, "on_a_cluster": 0}
"""Pictures of each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of them work, one after another."""
    return tmp_path_factory.mktemp("notebooks")


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.cluster
@pytest.mark.parametrize("name", sampled(notebooks.NAMES, ["first_look", "zero_shot"]))
def test_a_notebook_runs_to_its_end_and_shows_scores_beside_chance(name, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = outputs_of(notebooks.execute(notebooks.NOTEBOOKS / f"{name}.py", folder))
    pictures = [
        output for output in found if {"image/png", "image/jpeg"} & output.get("data", {}).keys()
    ]
    assert len(pictures) == SHOWS[name]
    text = "".join(output.get("text", "") for output in found)
    interval = r"\[[+-]?\.\d{3}, [+-]?\.\d{3}\]"
    for what in ("chance", "drawn faces", interval):
        assert re.search(what, text), f"{name} prints no {what}"
    assert f"{folder}/" not in text


@pytest.mark.cluster
def test_a_cell_that_fails_ends_it_with_its_text_and_its_kernel(tmp_path):
    source = tmp_path / "broken.py"
    first = "import os, pathlib\nwhole = pathlib.Path('pid').write_text(str(os.getpid()))"
    source.write_text(f"# %%\n{first}\n\n# %%\nbroken = whole / 0\n\n# %%\nprint('never')\n")
    with pytest.raises(CellExecutionError) as raised:
        notebooks.execute(source, tmp_path)
    assert "broken = whole / 0" in str(raised.value)
    assert "ZeroDivisionError" in str(raised.value)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_every_notebook_is_named_and_says_that_faces_are_drawn():
    files = {path.stem: path for path in notebooks.NOTEBOOKS.glob("*.py")}
    assert set(files) == set(notebooks.NAMES) == set(SHOWS)
    for name, path in files.items():
        first = jupytext.read(path).cells[0]
        assert first.cell_type == "markdown"
        assert "**drawn**" in first.source, name
        assert "say nothing about photographs" in first.source.replace("\n", " ") or (
            "says nothing about photographs" in first.source.replace("\n", " ")
        )


def test_a_name_that_is_no_notebook_is_one_line(capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["figure2", "figure_2"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("figure_2: expected first_look, figure2, zero_shot, on_a_cluster")
