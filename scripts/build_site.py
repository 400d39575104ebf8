"""Build the documentation site in build/site, and check it.

    uv run python scripts/build_site.py
    uv run python -m http.server -d build/site       # to look at it

Pages are gathered and generated in build/docs: docs/ and other Markdown of the repository, a page a
command and the recipes from the configuration classes, the Python interface from docstrings.
Zensical builds them by mkdocs.yml, where a warning is an error. Exit status 1: a warning, or a
link that leads nowhere.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.documentation.api import write_api
from scripts.documentation.commands import write_commands
from scripts.documentation.links import check_site
from scripts.documentation.notebooks import write_notebooks
from scripts.documentation.pages import ROOT, copy_pages
from scripts.documentation.recipes import write_recipes

DOCS, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"


def main() -> int:
    """Build and check; what is wrong is printed."""
    gather(DOCS)
    shutil.rmtree(SITE, ignore_errors=True)
    words = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    if status := subprocess.run(words, cwd=ROOT, check=False).returncode:
        return status
    wrong = check_site(SITE, "/raffect/")
    print("\n".join([*wrong, f"{len(list(SITE.rglob('*.html')))} pages, {len(wrong)} faults"]))
    return 1 if wrong else 0


def gather(docs: Path) -> None:
    """Write every page of the site, as Markdown, into a new folder."""
    shutil.rmtree(docs, ignore_errors=True)
    copy_pages(docs)
    write_notebooks(docs / "notebooks")
    write_commands(docs / "commands")
    write_recipes(docs / "recipes.md")
    write_api(docs / "python")
    shutil.copytree(ROOT / "docs" / "site" / "assets", docs / "assets")


if __name__ == "__main__":
    sys.exit(main())
