"""Run the commands of docs/tutorial.md, and write what they print below each.

    uv run python scripts/tutorial.py

Blocks of bash that have a block of text below are run one after another in a temporary folder, and
the text becomes what each printed to its standard output.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
_STEP = re.compile(r"(?ms)^```bash\n(raffect .*?)\n```\n\n```text\n(.*?)^```$")


def steps(text: str) -> list[tuple[str, str]]:
    """Commands of the page, and the lines that it says each prints."""
    return [(match[1], match[2]) for match in _STEP.finditer(text)]


def run_step(command: str, folder: Path) -> str:
    """What a command prints in a folder.

    Raises:
        RuntimeError: If it fails; it holds what the command wrote to standard error.
    """
    words = shlex.split(command.replace("\\\n", " "))
    line = [sys.executable, "-m", *words]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: status {done.returncode}\n{done.stderr}")
    return done.stdout.replace(f"{folder}/", "").rstrip() + "\n"


def main() -> None:
    text = PAGE.read_text()
    with tempfile.TemporaryDirectory() as name:
        for command, printed in steps(text):
            found = run_step(command, Path(name).resolve())
            block = f"```bash\n{command}\n```\n\n```text\n"
            text = text.replace(f"{block}{printed}```", f"{block}{found}```")
            PAGE.write_text(text)
            print(f"{command}\n{found}", flush=True)


if __name__ == "__main__":
    main()
