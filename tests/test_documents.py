"""Documents name what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("", "raffect", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_ours_that_a_page_cites_exist(page):
    cited = r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|yaml|sh|toml))(?:[`:]| )"
    for name in re.findall(cited, page.read_text()):
        if name.split("/")[0] in ("RUN", "bank", "data", "runs") or name == "config.toml":
            continue  # files that commands write
        found = any((ROOT / folder / name).exists() for folder in FOLDERS)
        assert found, f"{page.name} cites {name}"


def test_scikit_learn_is_one_that_shuffles_groups_of_folds():
    # GroupKFold(shuffle=) is of 1.6.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (name for name in project["dependencies"] if name.startswith("scikit-learn"))
    assert bound == "scikit-learn>=1.6"
    locked = (ROOT / "uv.lock").read_text()
    assert '{ name = "scikit-learn", specifier = ">=1.6" }' in locked


def test_the_first_screen_of_the_readme_shows_a_result():
    text = (ROOT / "README.md").read_text()
    first_screen = text[: text.index("## With your own copy")]
    assert len(first_screen.splitlines()) < 60
    assert "pip install uv && uv run raffect demo" in first_screen
    assert "Done in" in first_screen


def test_no_docstring_says_for_whom_a_text_is_instead_of_what_it_holds():
    files = [file for file in (ROOT / "raffect").rglob("*.py") if "For people." in file.read_text()]
    assert files == []
