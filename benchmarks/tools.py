"""What several benchmarks share: command lines, folders of their own, tables, and the machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from raffect.provenance import describe_run

FIGURE_2 = 10 * 5 * 32 * (587_000 // 32)
"""Head-steps of the paper's Figure 2: 10 alphas, 5 seeds, 32 epochs, batches of 32."""


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line whose help shows a module's docstring as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=raw)


def flags(**options: object) -> list[str]:
    """``flags(shard_rows=64)`` -> ``["--shard-rows", "64"]``."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def raffect(command: str, *words: object, **options: object) -> None:
    """Run a command and print its lines. An error ends the benchmark with what was printed."""
    line = ["raffect", command, *map(str, words), *flags(**options)]
    print(f"\n$ {shlex.join(line)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *line], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    print(f"{done.stdout.rstrip()}\n{time.perf_counter() - start:.0f} s", flush=True)


@contextlib.contextmanager
def scratch(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder ``raffect-<name>-...``, deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"raffect-{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def print_header(*names: str) -> None:
    """The first two lines of a table in Markdown."""
    print_row(*names)
    print("|" + "---|" * len(names), flush=True)


def print_row(*cells: object) -> None:
    """One more line of it."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_machine() -> None:
    """Versions, commit and machine, which every result states."""
    run = describe_run()
    facts = run.versions | run.machine.to_json() | {"git_commit": run.git_commit}
    print(f"\n{json.dumps(facts)}")
