"""Execute the notebooks of docs/notebooks in a kernel, and write them with their output.

    uv run python scripts/notebooks.py [NAME ...] [--out runs/notebooks]

They are kept as Python files, which can be read, compared and linted; a cell begins at `# %%`. What
this writes, NAME.ipynb and the drawn data they share, is not committed. Together they take about
two minutes on 2 idle cores. The first cell that fails ends it, with its text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = ("first_look", "figure2", "zero_shot", "on_a_cluster")
"""In the order in which they are read; later ones find the bank of the first."""
_CELL_S = 600


def execute(source: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook with its output.

    Args:
        source: The Python file.
        folder: Where its kernel works.

    Raises:
        CellExecutionError: If a cell fails; it holds the cell's text and the traceback.
    """
    notebook = jupytext.read(source)
    place = {"metadata": {"path": str(folder)}}
    # Sockets that this user alone can open; ports of the machine are everyone's
    with tempfile.TemporaryDirectory() as sockets:
        kernel = AsyncKernelManager(
            kernel_name="python3", transport="ipc", connection_file=f"{sockets}/kernel.json"
        )
        client = NotebookClient(notebook, km=kernel, timeout=_CELL_S, resources=place)
        client.execute(cleanup_kc=True)  # or a kernel that it did not make outlives it

    # What a cell prints must not show where it ran
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "text" in output:
            output.text = output.text.replace(f"{folder.resolve()}/", "")
    return notebook


def main(words: Sequence[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("runs/notebooks"))
    arguments = parser.parse_args(words)
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(NAMES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        try:
            notebook = execute(NOTEBOOKS / f"{name}.py", arguments.out)
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        nbformat.write(notebook, arguments.out / f"{name}.ipynb")
        print(arguments.out / f"{name}.ipynb", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
