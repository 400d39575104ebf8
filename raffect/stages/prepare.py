"""`raffect prepare`: images and labels of a data set become a manifest and label tables, and what is missing gets a name."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable

from raffect.config import PrepareConfig
from raffect.data.atomic import write_atomic
from raffect.data.folder import import_folder
from raffect.data.importing import Imported, Problem
from raffect.data.manifest import write_manifest
from raffect.data.table import import_table
from raffect.data.tables import write_table
from raffect.stages.affwild2 import import_affwild2

IMPORTERS: dict[str, Callable[[PrepareConfig], Imported]] = {"affwild2": import_affwild2, "table": import_table, "folder": import_folder}
"""By the name that ``--dataset`` has for them."""

_SHOWN = 10


def prepare(config: PrepareConfig) -> list[str]:
    """Write ``manifest.parquet``, ``labels/*.parquet`` and ``problems.csv``.

    Returns:
        The report, line by line.

    Raises:
        RaffectError: If no image is found, or what should be labels is not.
    """
    found = IMPORTERS[config.dataset](config)
    write_manifest(found.manifest, config.out / "manifest.parquet", found.synthetic)
    for stale in {file.stem for file in (config.out / "labels").glob("*.parquet")} - {task.name for task in found.labels}:
        (config.out / "labels" / f"{stale}.parquet").unlink()  # of other labels, prepared here before
    for task, table in found.labels.items():
        metadata = {"raffect": "labels/2", "task": json.dumps(task.to_json()), "groups": found.groups}
        metadata |= {"edition": found.edition, "digest": found.digest, "synthetic": str(found.synthetic).lower()}
        write_table(table, config.out / "labels" / f"{task.name}.parquet", metadata)
    _write_problems(found.problems, config)
    return [*found.lines, *_closing_lines(config, found)]


def _write_problems(problems: list[Problem], config: PrepareConfig) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["file", "line", "problem"])
    writer.writerows([problem.file, problem.line or "", problem.what] for problem in problems)
    write_atomic(config.out / "problems.csv", sink.getvalue().encode())


def _closing_lines(config: PrepareConfig, found: Imported) -> list[str]:
    """The first problems, what was written, and the command that comes next."""
    lines = []
    if found.problems:
        lines += [f"problems: {len(found.problems):,}, all in {config.out / 'problems.csv'}; the first ones:"]
        lines += [f"  {problem.file}{f':{problem.line}' if problem.line else ''}: {problem.what}" for problem in found.problems[:_SHOWN]]
    labels = f" and {config.out}/labels/ ({', '.join(sorted(task.name for task in found.labels))})" if found.labels else ", and no labels"
    lines.append(f"wrote {config.out}/manifest.parquet{labels}")
    encoder = " --encoder.model raffect-faces --encoder.weights embedded" if found.synthetic else ""
    return [*lines, f"next: raffect extract --manifest {shlex.quote(str(config.out / 'manifest.parquet'))} --bank BANK{encoder}"]
