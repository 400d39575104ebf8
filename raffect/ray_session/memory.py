"""A watch over workers that Ray's monitor of memory ends.

Ray gives up a task that it has ended `raffect.ray_session.session.OOM_RETRIES` times. Actors it
begins again without a limit: encoders, and those that Ray Data itself asks where the others are.
Where a machine stays short of memory nothing moves then, and nothing fails: the main thread waits
in Ray's code. So a thread counts what Ray has ended since the last result.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from raffect.leaving import leave

SHORT_OF_MEMORY = (
    "Ray ended a task again and again since a machine was short of memory: end other programs, or "
    "take fewer --num-actors, or a smaller --shard-rows in a new bank"
)
GOES_ON = "what is committed is kept, the same command goes on from there"
_LOOK_EVERY_S = 5.0
_WITHOUT_RESULT_S = 60.0
"""Seconds without a result, before which a run is not given up: memory may become free."""
_MOST_ENDED = 50
"""Workers of this job that Ray has ended since the last result, beyond which a run is given up."""

T = TypeVar("T")


def watch_memory(results: Iterable[T]) -> Iterator[T]:
    """Yield what Ray works out; leave the process if workers are ended instead, again and again."""
    watch = _MemoryWatch()
    try:
        for result in results:
            watch.begin_anew()
            yield result
    finally:
        watch.end()


class _MemoryWatch:
    """Looks every few seconds at what Ray has ended."""

    def __init__(self) -> None:
        self._before: set[bytes] = set()
        self._since = time.monotonic()
        self._is_new = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._thread.start()

    def begin_anew(self) -> None:
        """Count from now on, since there is a result."""
        self._is_new = True

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _keep_looking(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            # Whatever fails here is Ray's own part, whose end another watch sees.
            with contextlib.suppress(Exception):
                self._look()

    def _look(self) -> None:
        ended = ended_for_memory()
        if self._is_new:
            self._before, self._since, self._is_new = ended, time.monotonic(), False
        is_long = time.monotonic() - self._since > _WITHOUT_RESULT_S
        if is_long and len(ended - self._before) > _MOST_ENDED:
            leave(f"{SHORT_OF_MEMORY}; {GOES_ON}")


def ended_for_memory() -> set[bytes]:
    """Workers of this job that Ray's monitor has ended, as far as Ray remembers them.

    Ray has no public way to ask without its dashboard. A client (``ray://``) cannot
    ask at all.
    """
    import ray
    from ray._private.state import state

    # Types of messages are made when these modules are imported.
    common: Any = importlib.import_module("ray.core.generated.common_pb2")
    gcs: Any = importlib.import_module("ray.core.generated.gcs_pb2")
    table = state._connect_and_get_accessor().get_worker_table()
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    workers = map(gcs.WorkerTableData.FromString, table)
    return {
        worker.worker_address.worker_id
        for worker in workers
        if worker.exit_type == common.WorkerExitType.NODE_OUT_OF_MEMORY and worker.job_id == job
    }
