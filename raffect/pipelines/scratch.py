"""The scratch folder of `raffect predict`: crops of faces and features, while they are needed.

It lies in ``--out`` under a name that follows from inputs and settings, so that the same command
finds it after a stop. It holds pictures of faces, so it is deleted at the end, and one that a dead
run left is deleted by another command a day later. One that is to be kept stays.

Ages are differences of the files' own times, which one clock gives, that of the storage.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raffect.bank.running import DEAD_S
from raffect.storage.atomic import write_atomic

PREFIX = ".scratch-"
_GONE = f"{PREFIX}gone-"
_NAME = re.compile(r"\.scratch-(gone-)?[0-9a-f]{12}", re.A)
_STARTED, _KEPT = "started", "kept"
DAY_S = 24 * 3600


def open_scratch(
    out: Path, files: Sequence[Path], settings: Any, keep: bool = False
) -> tuple[Path, list[str]]:
    """The scratch folder of a run, and old ones of other runs are deleted.

    Args:
        out: Of the run.
        files: Its inputs; one that was replaced makes a new folder.
        settings: What decides the result, as JSON.
        keep: Whether no later run is to delete it.

    Returns:
        The folder, and a line for each folder that was deleted.
    """
    # Our own, which from now on is young, however old it was: the same command goes on with it
    facts = [state_of(path) for path in files]
    digest = hashlib.sha256(json.dumps([facts, settings]).encode()).hexdigest()
    scratch = out / f"{PREFIX}{digest[:12]}"
    scratch.mkdir(parents=True, exist_ok=True)
    write_atomic(scratch / _STARTED, b"")
    if keep:
        write_atomic(scratch / _KEPT, b"")
    else:
        (scratch / _KEPT).unlink(missing_ok=True)
    # Those that nobody will go on with
    deleted, now = [], _time_of(scratch / _STARTED)
    for folder in sorted(out.iterdir()):
        if not _NAME.fullmatch(folder.name) or folder.is_symlink():
            continue
        if folder.is_dir() and _is_left(folder, now):
            hours = (now - _last_start(folder)) / 3600
            shutil.rmtree(folder)
            what = f"crops of faces that a run left {hours:.0f} hours ago"
            deleted.append(f"deleted {folder}: {what}")
    return scratch, deleted


def delete_scratch(scratch: Path) -> None:
    """Delete a folder; a stop meanwhile leaves none that the same command would go on from."""
    gone = scratch.with_name(f"{_GONE}{scratch.name.removeprefix(PREFIX)}")
    if gone.exists():
        shutil.rmtree(gone)
    scratch.rename(gone)
    shutil.rmtree(gone)


def state_of(file: Path) -> list[Any]:
    """Path, size and time of a file, as JSON; the path alone of one that cannot be read."""
    try:
        found = file.stat()
    except OSError:
        return [str(file.absolute())]
    return [str(file.absolute()), found.st_size, found.st_mtime_ns]


def _is_left(folder: Path, now: float) -> bool:
    """Whether no run works in a folder of another command, and none will."""
    if folder.name.startswith(_GONE):
        return True
    if (folder / _KEPT).exists() or now - _last_start(folder) <= DAY_S:
        return False
    return all(now - _time_of(note) > DEAD_S for note in folder.glob("running/*.json"))


def _last_start(folder: Path) -> float:
    """When a run last began on a folder, in seconds of the epoch."""
    started = folder / _STARTED
    return _time_of(started if started.exists() else folder)


def _time_of(path: Path) -> float:
    return path.stat().st_mtime
