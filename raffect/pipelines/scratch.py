"""The scratch folder of `raffect predict`: crops of faces and features, while they are needed.

It lies in ``--out`` under a name that follows from inputs and settings, so that the same command
finds it after a stop. It holds pictures of faces, so it is deleted at the end, and one that a dead
run left is deleted by the next run a day later.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raffect.storage.atomic import write_atomic

PREFIX = ".scratch-"
_GONE = f"{PREFIX}gone-"
_STARTED = "started"
DAY_S = 24 * 3600


def open_scratch(out: Path, files: Sequence[Path], settings: Any) -> tuple[Path, list[str]]:
    """The scratch folder of a run, after old ones were deleted.

    Args:
        out: Of the run.
        files: Its inputs; one that was replaced makes a new folder.
        settings: What decides the result, as JSON.

    Returns:
        The folder, and a line for each folder that was deleted.
    """
    deleted = []
    for folder in sorted(out.glob(f"{PREFIX}*")):
        age_s = _age_s(folder)
        if folder.name.startswith(_GONE) or age_s > DAY_S:
            shutil.rmtree(folder)
            what = f"crops of faces that a run left {age_s / 3600:.0f} hours ago"
            deleted.append(f"deleted {folder}: {what}")
    facts = [_state_of(path) for path in files]
    digest = hashlib.sha256(json.dumps([facts, settings]).encode()).hexdigest()
    scratch = out / f"{PREFIX}{digest[:12]}"
    scratch.mkdir(parents=True, exist_ok=True)
    write_atomic(scratch / _STARTED, b"")
    return scratch, deleted


def delete_scratch(scratch: Path) -> None:
    """Delete a folder; a stop meanwhile leaves none that the same command would go on from."""
    gone = scratch.with_name(f"{_GONE}{scratch.name.removeprefix(PREFIX)}")
    if gone.exists():
        shutil.rmtree(gone)
    scratch.rename(gone)
    shutil.rmtree(gone)


def _state_of(file: Path) -> list[Any]:
    """Path, size and time of an input; the path alone of one that cannot be read."""
    try:
        found = file.stat()
    except OSError:
        return [str(file.absolute())]
    return [str(file.absolute()), found.st_size, found.st_mtime_ns]


def _age_s(folder: Path) -> float:
    """Seconds since a run last began on it."""
    started = folder / _STARTED
    return time.time() - (started if started.exists() else folder).stat().st_mtime
