"""Units of work of `raffect faces` on Ray Data: one row, one block and one task each.

A failure that a user must read travels as data, as in `raffect.extraction.steps`. A note is
written before a unit begins and deleted after its commit. Where one is found, the unit's last
worker may have been killed by its decoder: then a child process does the unit, and if that crashes
twice, the input is unreadable.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from raffect.config import FacesConfig
from raffect.datasets.frames import CRASHES, find_killers
from raffect.errors import RaffectError
from raffect.faces.records import Input, Unit
from raffect.faces.work import Task, run_task
from raffect.ray_session.memory import GOES_ON, watch_memory
from raffect.ray_session.session import configure_data, explain_stop
from raffect.storage.atomic import write_atomic
from raffect.storage.keys import is_utf8

TASKS_PER_WAVE = 16_384
"""Most tasks of one dataset."""
_CHILD = "import sys; from raffect.extraction.face_units import _be_child; _be_child(sys.argv[1])"
_REMEDY = "install the same raffect on every machine, then run the same command again"


def run_units(tasks: Sequence[Task], folder: Path, config: FacesConfig) -> Iterator[Unit]:
    """Do units of work on Ray, in any order.

    Yields:
        The record of each.

    Raises:
        RaffectError: If one fails, or Ray stops.
    """
    import ray
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    configure_data("cpu")
    try:
        for start in range(0, len(tasks), TASKS_PER_WAVE):
            items = [{"task": task.to_bytes()} for task in tasks[start : start + TASKS_PER_WAVE]]
            dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                partial(_run_row, folder=str(folder)),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=config.cpus_per_task,
            )
            for row in watch_memory(dataset.iter_rows()):
                if row["failure"] is not None:
                    raise RaffectError(row["failure"])
                yield Unit.from_json(row["unit"], f"{folder}: a unit", _REMEDY)
    except (ExecutionTimeoutError, RayError, OSError) as error:
        raise RaffectError(f"{explain_stop(error, 'cpu')}; {GOES_ON}") from error


def _run_row(table: pa.Table, folder: str) -> pa.Table:
    """Do the unit of a row: its record, or the failure that stops the run."""
    unit = failure = None
    try:
        task = Task.from_json(table["task"][0].as_py(), f"{folder}: a task", _REMEDY)
        unit = do_noted(Path(folder), task).to_bytes()
    except RaffectError as error:
        failure = str(error)
    except OSError as error:
        remedy = "make room or fix the folder, then run the same command again"
        failure = f"{folder}: cannot read or write ({error.strerror or error}); {remedy}"
    return pa.table(
        {"unit": pa.array([unit], pa.binary()), "failure": pa.array([failure], pa.string())}
    )


def do_noted(folder: Path, task: Task) -> Unit:
    """Do a unit of work, in a child process if an attempt before this one was cut off."""
    note = folder / "attempts" / task.unit
    try:
        was_begun = note.exists()
        write_atomic(note, b"")
        unit = _do_apart(folder, task) if was_begun else run_task(folder, task)
    finally:
        # An error that Python raises killed nothing.
        note.unlink(missing_ok=True)
    return unit


def _do_apart(folder: Path, task: Task) -> Unit:
    """Do a unit in a child process; one that crashes twice takes its input for unreadable."""
    if task.kind == "pictures":
        return run_task(folder, task, killers=_find_killers(task.inputs))
    content, status = task.to_bytes(), 0
    for _ in range(2):
        command = [sys.executable, "-c", _CHILD, str(folder)]
        done = subprocess.run(command, input=content, capture_output=True, check=False)
        if done.returncode == 0:
            return Unit.from_json(done.stdout, f"{folder}: {task.unit}", _REMEDY)
        status = -done.returncode
        if status not in CRASHES:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise RaffectError(last)
    killer = f"kills its decoder ({signal.Signals(status).name})"
    return run_task(folder, task, killers=dict.fromkeys(range(len(task.inputs)), killer))


def _be_child(folder: str) -> None:
    """Do the unit on standard input, and write its record on standard output."""
    content = sys.stdin.buffer.read()
    try:
        unit = run_task(Path(folder), Task.from_json(content, "task", _REMEDY))
    except (RaffectError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(unit.to_bytes())


def _find_killers(inputs: Sequence[Input]) -> dict[int, str]:
    """Pictures that kill the process that decodes them: place -> reason."""
    # Names that are not UTF-8 fit in no table, and are not tried.
    places = [place for place, one in enumerate(inputs) if is_utf8(str(one.path))]
    paths = [inputs[place].path for place in places]
    rows = pa.table(
        {
            "root": pa.array([str(path.parent) for path in paths], pa.string()),
            "path": pa.array([path.name for path in paths], pa.string()),
            "video": pa.array([inputs[place].name for place in places], pa.string()),
            "frame": pa.array([1] * len(paths), pa.int32()),
        }
    )
    return {places[row]: why for row, why in find_killers(rows).items()}
