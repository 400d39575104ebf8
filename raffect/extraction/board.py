"""How far encoders are with shards that are not finished: a small Ray actor that they write to.

A slow encoder takes minutes for a shard, and Ray hands over nothing before a shard is done. So each
encoder sends what it is doing to this actor, without waiting for an answer, and a thread of the
driver collects it once a second. Nothing but the progress line depends on that: if an encoder dies,
its counts are replaced by those of the one that encodes the shard again, and if the board dies the
line moves shard by shard. It takes no CPU of Ray's, lies beside the driver and ends with it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from raffect.progress import Progress

if TYPE_CHECKING:
    from raffect.extraction.notes import ShardStats

_COLLECT_EVERY_S = 1.0
_WAITING, _LOADING = "waiting for an encoder's process", "loading torch and the encoder"


class Reporter:
    """An encoder's way to the board.

    Args:
        board: The actor; None for an encoder that nobody watches.
    """

    def __init__(self, board: Any = None) -> None:
        self._board = board

    def loading(self) -> None:
        """Report that an encoder's process has started, and loads torch and the encoder."""
        self._send("stage", "loading")

    def ready(self) -> None:
        """Report that an encoder takes shards from now on."""
        self._send("stage", "ready")

    def encoded(self, shard: int, frames: int) -> None:
        """Report how many frames of a shard are encoded."""
        self._send(shard, frames)

    def _send(self, key: str | int, value: str | int) -> None:
        # Whatever fails here, only the progress line suffers.
        if self._board is not None:
            with contextlib.suppress(Exception):
                self._board.put.remote(key, value)


class Board:
    """The actor: holds what was reported since the driver has last asked."""

    def __init__(self) -> None:
        self._news: dict[str | int, str | int] = {}

    def put(self, key: str | int, value: str | int) -> None:
        """Keep the last value of a key; the stage ``ready`` is never taken back."""
        if self._news.get(key) != "ready":
            self._news[key] = value

    def take(self) -> dict[str | int, str | int]:
        """What was reported since the last call."""
        news, self._news = self._news, {}
        return news


class ShardProgress:
    """Moves a progress line by finished shards, and by frames of those that encoders work on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._finished: set[int] = set()
        self._under_way: dict[int, int] = {}
        self._is_ready = False
        self._lock = threading.Lock()
        progress.begin_stage(_WAITING)

    def finish(self, stats: ShardStats) -> None:
        """Count a shard that is in the bank."""
        with self._lock:
            self._begin()
            self._finished.add(stats.shard)
            self._under_way.pop(stats.shard, None)
            self._progress.advance(stats.rows + stats.rejects, sum(self._under_way.values()))

    def update(self, news: dict[str | int, Any]) -> None:
        """Show what encoders have reported."""
        with self._lock:
            # Start-up, until the first encoder is ready
            match news.pop("stage", None):
                case "loading" if not self._is_ready:
                    self._progress.begin_stage(_LOADING)
                case "ready":
                    self._begin()
            # Shards, of which reports may arrive after they are finished
            shards: dict[Any, int] = {
                key: n for key, n in news.items() if key not in self._finished
            }
            self._under_way |= shards
            if self._is_ready:
                self._progress.advance(0, sum(self._under_way.values()))

    def _begin(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self._progress.end_stage()
            self._progress.advance(0)


@contextlib.contextmanager
def watch_encoders(shards: ShardProgress) -> Generator[Reporter]:
    """A way for encoders to report; a thread passes on what they do during the block."""
    import ray

    board = _start_board()
    over = threading.Event()

    def collect() -> None:
        answer = None
        while not over.wait(_COLLECT_EVERY_S):
            # Whatever fails here, only the progress line suffers.
            with contextlib.suppress(Exception):
                answer = answer or board.take.remote()
                if ray.wait([answer], timeout=_COLLECT_EVERY_S)[0]:
                    done, answer = answer, None
                    shards.update(ray.get(done))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        yield Reporter(board)
    finally:
        over.set()
        thread.join()
        ray.kill(board)


def _start_board() -> Any:
    """The actor, on the driver's machine, with which it would be of no use anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(Board).options(**options).remote()
