"""Documents name what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from raffect.cli import main
from raffect.config import TrainConfig

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


def headings_of(page):
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    names = [re.sub(r"[^\w\- ]", "", name.lower()) for name in re.findall(r"(?m)^#+ (.*)", text)]
    return {name.replace(" ", "-") for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_exist(page):
    for name, heading in re.findall(r"\]\(([\w./-]*\.md|)(?:#([\w-]+))?\)", page.read_text()):
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name} links to {name}"
        assert not heading or heading in headings_of(target), (
            f"{page.name} links to {name}#{heading}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_take_the_flags_that_it_gives_them(page, capsys):
    blocks = "".join(re.findall(r"(?ms)^```bash\n(.*?)^```", page.read_text()))
    for line in re.findall(r"(?m)^(?:uv run )?raffect [a-z].*", blocks.replace("\\\n", "")):
        words = line.removeprefix("uv run ").partition(" #")[0].split()[1:]
        command = words[: 2 if words[0] in ("bank", "models") else 1]
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        known = re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out)
        assert {word for word in words if re.match("--[a-z]", word)} <= set(known), line


def test_the_readme_links_every_page():
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if str(page.relative_to(ROOT)) not in text] == []


def test_every_recipe_is_named_where_recipes_are():
    recipes = {file.stem for file in (ROOT / "raffect" / "recipes").glob("*.toml")}
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    (line,) = re.findall(r"(?m)^  recipes/ +(.*)$", architecture)
    assert set(line.split(", ")) == recipes
    for text in (TrainConfig.__doc__, (ROOT / "docs" / "api.md").read_text()):
        assert [name for name in recipes if not re.search(rf"\b{name}\b(?!-)", text)] == []


def test_nothing_stands_in_the_changelog_twice():
    entries = re.split(r"(?m)^(?=- )", (ROOT / "CHANGELOG.md").read_text())
    found = [entry.strip() for entry in entries]
    assert sorted(set(found)) == sorted(found)


def test_decisions_are_newest_first_and_stand_there_once():
    text = (ROOT / "docs" / "decisions.md").read_text()
    days = re.findall(r"(?m)^## (\S+) ", text)
    assert days == sorted(days, reverse=True)
    entries = re.findall(r"(?m)^(?:## |\*\*).*", text)
    assert sorted(set(entries)) == sorted(entries)


def test_scikit_learn_is_one_that_shuffles_groups_of_folds():
    # GroupKFold(shuffle=) is of 1.6; before 1.8 StratifiedGroupKFold(shuffle=) mixes classes up.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (name for name in project["dependencies"] if name.startswith("scikit-learn"))
    assert bound == "scikit-learn>=1.8"
    locked = (ROOT / "uv.lock").read_text()
    assert '{ name = "scikit-learn", specifier = ">=1.8" }' in locked


def test_extras_are_installed_in_one_way_and_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    at_once = re.compile(r"'\.\[([\w,]+)\]'")
    files = [*PAGES, ROOT / "cluster" / "README.md", *(ROOT / "raffect").rglob("*.py")]
    named, other = set(), []
    for file in files:
        text = file.read_text()
        named.update(re.findall(r"how_to_add\([\"'](\w+)", text))
        named.update(name for found in at_once.findall(text) for name in found.split(","))
        other += re.findall(r".*raffect\[\w.*", text)
    assert named == set(extras["optional-dependencies"])
    assert [line for line in other if not line.startswith("Once version 0.1.0 is on PyPI")] == []


def test_the_first_screen_of_the_readme_shows_a_result():
    text = (ROOT / "README.md").read_text()
    first_screen = text[: text.index("## With your own copy")]
    assert len(first_screen.splitlines()) < 60
    assert "pip install uv && uv run raffect demo" in first_screen
    assert 0 < first_screen.find("git clone") < first_screen.find("pip install")
    assert 0 < first_screen.find("Lin et al. 2024") < first_screen.find("the paper's")
    assert "Done in" in first_screen


def test_no_docstring_says_for_whom_a_text_is_instead_of_what_it_holds():
    files = [file for file in (ROOT / "raffect").rglob("*.py") if "For people." in file.read_text()]
    assert files == []
