"""The documentation site: its navigation, its generated reference, its links, and how it looks."""

from __future__ import annotations

import re

import jupytext
import nbformat
import pytest
from nbformat import v4

import raffect
from raffect.cli import COMMANDS
from raffect.recipe import NAMES
from scripts.documentation.api import names_by_theme, write_api
from scripts.documentation.commands import write_commands
from scripts.documentation.links import check_site
from scripts.documentation.notebooks import cell_lines, read_notebook
from scripts.documentation.pages import ROOT, adapt, copy_pages, places, title_of
from scripts.documentation.recipes import write_recipes
from tests.helpers.flags import FLAGS


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Pages of commands."""
    out = tmp_path_factory.mktemp("commands")
    write_commands(out)
    return out


def test_every_written_page_is_in_the_navigation_once(tmp_path):
    copy_pages(tmp_path)
    listed = re.findall(r"(?m)^ *- (?:[^:\n]+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text())
    summary = (tmp_path / "benchmarks" / "SUMMARY.md").read_text()
    listed += [f"benchmarks/{name}" for name in re.findall(r"\]\((.*?)\)", summary)]
    written = [name for name in places().values() if name.endswith(".md")]
    assert sorted(listed) == sorted([*written, "recipes.md"])


def test_every_command_is_in_the_reference_and_its_navigation(commands):
    summary = (commands / "SUMMARY.md").read_text()
    index = (commands / "index.md").read_text()
    for name in COMMANDS:
        assert f"# raffect {name}\n" in (commands / f"{name}.md").read_text()
        assert f"({name}.md)" in summary
        assert f"({name}.md)" in index


@pytest.mark.parametrize("command", FLAGS)
def test_a_commands_page_shows_each_flag_that_it_takes_once(command, commands):
    text = (commands / f"{command.split()[0]}.md").read_text()
    shown = re.findall(r"(?m)^### `(--[\w.-]+)`", text)
    assert set(shown) == FLAGS[command]
    if command not in ("bank", "models"):  # of several configurations each
        assert len(shown) == len(FLAGS[command])


def test_a_flag_shows_its_own_commands_default(commands):
    def shown(command, flag):
        (found,) = re.findall(
            rf"(?m)^### `{flag}` .*\n\n(.*)$", (commands / f"{command}.md").read_text()
        )
        return found

    assert shown("train", "--loss.alpha") == "number · default `0.3`"
    assert shown("train", "--bank") == "path · **required**"
    saving = "switch · default on, `--no-save-predictions` turns it off"
    assert shown("train", "--save-predictions") == saving
    assert shown("train", "--sam.independent-dropout") == "switch · default off"
    assert "default `mlp`" in shown("train", "--head.kind")
    assert "default `prompts`" in shown("learn-prompts", "--head.kind")
    assert shown("robust", "--strengths").endswith("default `1 2 3 4 5`")


def test_help_that_looks_like_html_or_emphasis_is_shown_as_it_is(commands):
    text = (commands / "train.md").read_text()
    assert "labels/&lt;task&gt;.parquet" in text
    assert re.search(r"<(?!!)\w", re.sub(r"(?s)```.*?```|`[^`]*`", "", text)) is None


def test_every_recipe_setting_is_on_the_page_of_recipes(tmp_path):
    write_recipes(tmp_path / "recipes.md")
    text = (tmp_path / "recipes.md").read_text()
    assert re.findall(r"(?m)^### `([\w.]+)`", text) == sorted(NAMES, key=lambda n: "." in n)
    alpha = text[text.index("### `loss.alpha`") : text.index("### `loss.beta`")]
    assert re.search(r"`0\.3` in [^;]*\bpaper\b", alpha)
    assert re.search(r"`0\.5` in [^;]*\breleased\b", alpha)


def test_every_public_name_is_on_one_page_of_the_python_reference(tmp_path):
    write_api(tmp_path)
    text = "".join(file.read_text() for file in tmp_path.glob("*.md"))
    shown = re.findall(r"(?m)^::: raffect\.[\w.]*\.(\w+)$", text)
    assert sorted(shown) == sorted({*raffect.__all__} - {"__version__"})
    assert sum(map(len, names_by_theme().values())) == len(shown)


def test_links_of_a_page_lead_from_its_place_on_the_site():
    where = {"README.md": "index.md", "docs/a.md": "a.md", "benchmarks/b.md": "benchmarks/b.md"}
    text = (
        "[x](../benchmarks/b.md#c) [y](../README.md) [z](../jobs/) [w](#h)\n```\n[x](no.md)\n```\n"
    )
    assert adapt(text, "docs/a.md", where) == (
        "[x](benchmarks/b.md#c) [y](index.md) "
        "[z](https://github.com/raffect/raffect/blob/main/jobs) [w](#h)\n```\n[x](no.md)\n```\n"
    )
    assert adapt("[a](../docs/a.md)", "benchmarks/b.md", where) == "[a](../a.md)"


def test_a_list_below_a_line_of_text_stands_apart_from_it():
    assert adapt("Text:\n- a\n  b\n- c\n\n- d", "README.md", {}) == "Text:\n\n- a\n  b\n- c\n\n- d"
    assert adapt("# T\n1. a\n2. b", "README.md", {}) == "# T\n1. a\n2. b"


def test_a_page_without_a_heading_is_refused_by_name(tmp_path):
    (tmp_path / "empty.md").write_text("text")
    with pytest.raises(raffect.RaffectError, match="empty.md: has no heading"):
        title_of(tmp_path / "empty.md")


def test_a_notebook_shows_its_output_as_long_as_no_cell_has_changed(tmp_path):
    source, executed = tmp_path / "look.py", tmp_path / "look.ipynb"
    source.write_text(
        "# %% [markdown]\n# # Title\n# Text\n\n# %%\nprint(6 * 7)\n"
        "\n# %% [markdown]\n# Two lines\n# of text\n"
    )
    notebook = jupytext.read(source)
    notebook.cells[1].outputs = [
        v4.new_output("stream", name="stderr", text="a warning"),
        v4.new_output("stream", name="stdout", text="42\n"),
        v4.new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}),
        v4.new_output("display_data", {"text/html": "<b>", "text/plain": "<HTML object>"}),
        v4.new_output("execute_result", {"text/html": "<b>", "text/plain": "   x\n0  1"}),
    ]
    nbformat.write(notebook, executed)
    assert read_notebook(source, tmp_path / "gone.ipynb")[1] is False
    found, is_executed = read_notebook(source, executed)
    assert is_executed
    page = [part for cell in found.cells for part in cell_lines(cell, "look", tmp_path)]
    (picture,) = tmp_path.glob("look_*.png")
    assert page == [
        "# Title",
        "Text",
        "```python\nprint(6 * 7)\n```",
        "```text\n42\n```",
        f"![Output of the cell above]({picture.name})",
        "```text\n   x\n0  1\n```",
        "Two lines\nof text",
    ]
    assert picture.read_bytes() == b"hello"
    source.write_text(source.read_text().replace("7", "8"))
    assert read_notebook(source, executed)[1] is False


FAULTS = {
    '<a href="gone/">': "gone/ leads to no file",
    '<a href="b/#no">': "b/#no leads to no heading",
    '<a href="#no">': "#no leads to no heading",
    '<a href="../out.html">': "../out.html leads to no file",
    '<img src="c.png">': "c.png leads to no file",
    '<a href="ftp://a.b/c">': "ftp://a.b/c has a scheme that no browser opens",
    '<a href="https://a b.c/">': "https://a b.c/ is not an address",
    '<script src="https://cdn.org/x.js">': "loads https://cdn.org/x.js, of another site",
    '<link rel="stylesheet" href="//f.org/x">': "loads //f.org/x, of another site",
    '<img srcset="b/x.png, http://f.org/y 2x">': "loads http://f.org/y, of another site",
    '<p style="background: url(http://f.org/z)">': "loads http://f.org/z, of another site",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_link_that_leads_nowhere_or_loads_from_elsewhere_is_found(text, tmp_path):
    site = tmp_path / "site"
    (site / "b").mkdir(parents=True)
    (site / "b" / "index.html").write_text('<h1 id="yes">B</h1>')
    (site / "b" / "x.png").write_bytes(b"")
    (tmp_path / "out.html").write_text("outside")
    good = '<a href="b/#yes"><a href="/r/b/"><a href="https://a.org/x?y#z"><img src="b/x.png">'
    (site / "index.html").write_text(good)
    assert check_site(site, "/r/") == []
    (site / "page.html").write_text(good + text)
    assert check_site(site, "/r/") == [f"page.html: {FAULTS[text]}"]


def test_a_style_sheet_that_loads_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.css").write_text("@import 'https://fonts.org/f.css'; p { color: red }")
    assert check_site(tmp_path, "/") == ["a.css: loads https://fonts.org/f.css, of another site"]
