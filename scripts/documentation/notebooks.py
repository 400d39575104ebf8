"""Notebooks as pages: their text, code and, where they were executed, output.

`scripts/notebooks.py` executes them; what it wrote is shown as long as no cell has changed since.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from scripts.documentation.pages import BLOB, ROOT, title_of, write_navigation
from scripts.notebooks import NAMES, NOTEBOOKS

EXECUTED = ROOT / "runs" / "notebooks"
"""Where `scripts/notebooks.py` writes."""


def write_notebooks(out: Path, executed: Path = EXECUTED) -> None:
    """Write a page a notebook to ``out``, with its pictures, and a list of them."""
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        notebook, is_executed = read_notebook(NOTEBOOKS / f"{name}.py", executed / f"{name}.ipynb")
        title, *cells = [part for cell in notebook.cells for part in cell_lines(cell, name, out)]
        source = f"[docs/notebooks/{name}.py]({BLOB}/docs/notebooks/{name}.py)"
        how = "executed" if is_executed else "shown without output"
        about = f"A notebook: {source}, {how}. `uv run python scripts/notebooks.py {name}` runs it."
        (out / f"{name}.md").write_text("\n\n".join([title, about, *cells]) + "\n")
    rows = [f"- [{title_of(out / f'{name}.md')}]({name}.md)" for name in NAMES]
    text = (
        "On drawn faces, from the first cell to the last; each is a Python file that Jupyter opens."
    )
    (out / "index.md").write_text("\n".join(["# Notebooks", "", text, "", *rows]) + "\n")
    pages = {"index.md": "All notebooks"} | {f"{name}.md": None for name in NAMES}
    write_navigation(out, pages)


def read_notebook(source: Path, executed: Path) -> tuple[Any, bool]:
    """A notebook, and whether it has the output of just these cells."""
    notebook = jupytext.read(source)
    if executed.exists():
        found = nbformat.read(executed, as_version=4)
        if [cell.source for cell in found.cells] == [cell.source for cell in notebook.cells]:
            return found, True
    return notebook, False


def cell_lines(cell: Any, name: str, out: Path) -> Iterator[str]:
    """Parts of a cell as Markdown; pictures are written to ``out``."""
    if cell.cell_type == "markdown":
        is_headed = cell.source.startswith("#")
        yield from cell.source.split("\n", 1) if is_headed else [cell.source]
        return
    yield f"```python\n{cell.source}\n```"
    for number, output in enumerate(cell.get("outputs", ())):
        data = output.get("data", {})
        if "image/png" in data:
            file = out / f"{name}_{cell.id}_{number}.png"
            file.write_bytes(base64.b64decode(data["image/png"]))
            yield f"![Output of the cell above]({file.name})"
        elif output.output_type == "execute_result":  # other text stands for a live display
            yield f"```text\n{data['text/plain']}\n```"
        elif output.get("name") == "stdout":
            yield f"```text\n{output.text.rstrip()}\n```"
