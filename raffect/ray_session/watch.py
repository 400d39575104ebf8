"""A watch over Ray itself: where Ray is dead the run ends with one line.

No ``except`` sees a dead Ray: the main thread waits in Ray's C++ code, which ends the process at
once, after a minute, or never, and without a word. So a thread watches what nothing moves without:
the GCS, which is the cluster's memory of itself, the raylet, which is this machine's part, and the
raylet's agents, with which it ends. It does so from before Ray is started, and finds Ray's
processes as they appear.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raffect.leaving import leave
from raffect.ray_session import joining

WAKE_S = 0.2
"""Seconds between two looks for new processes; the end of one wakes the watch at once."""
CONNECT_EVERY_S = 2.0
"""Seconds between two connections to the GCS of a cluster."""
LOST_S = 30.0
"""Seconds of failed connections after which a cluster is given up."""
_RAY_LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_STORAGE = "RAY_gcs_storage"
_RAY_LIMIT_S = 60.0
"""Seconds after which Ray itself gives up a GCS, unless `_RAY_LIMIT` is set."""
_MARGIN_S = 5.0
"""Seconds before Ray's own limit, at which it ends the process without a word."""
_GOES_ON = "what is finished is kept, the same command goes on from there"
_NUM_OWN = 4
"""Processes that are watched of a Ray of our own: GCS, raylet and two agents."""
_AGENTS = ("dashboard/agent.py", "runtime_env/agent/main.py", "ray::DashboardAgent")
_AGENTS += ("ray::RuntimeEnvAgent",)
"""Ends of a word in the command of an agent, and titles that agents give themselves."""


class RayWatch:
    """Watches the Ray that this process is about to start or to join.

    Args:
        address: Of the cluster that is joined; None if this process starts Ray.
    """

    def __init__(self, address: str | None) -> None:
        self._address, self._stop = address, threading.Event()
        self._found: dict[int, str] = {}  # by process id
        self._ends: dict[int, str] = {}  # by handle
        self._connections: Connections | None = None
        self._find()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._thread.start()

    def end(self, last_look: bool = False) -> None:
        """End the watch, before Ray is ended on purpose.

        Args:
            last_look: Whether to leave the process if Ray has just died.
        """
        self._stop.set()
        self._thread.join()
        if last_look:
            self._look()
        for handle in self._ends:
            os.close(handle)

    def _look(self, wait_s: float = 0.0) -> None:
        """Leave the process if Ray is dead, or dies within ``wait_s`` seconds."""
        poll = select.poll()
        for handle in self._ends:
            poll.register(handle, select.POLLIN)
        found = None
        for handle, _ in poll.poll(wait_s * 1000):
            found = f"{self._ends[handle]} has ended (killed, maybe since memory ran out)"
        if found is None and self._connections is not None:
            found = self._connections.fault()
        if found is not None:
            leave(f"{found}; {_GOES_ON}")

    def _keep_looking(self) -> None:
        while not self._stop.is_set():
            self._find()
            self._look(WAKE_S)

    def _find(self) -> None:
        """Take note of what has appeared since the last look."""
        node = _node()
        # Processes on this machine; a client (ray://) has none
        pids: dict[int, str] = {}
        if hasattr(os, "pidfd_open"):
            if self._address is None and len(self._found) < _NUM_OWN:
                pids = _pids_of_own(is_up=node is not None)
            elif self._address is not None and node is not None and not self._found:
                pids = _pids_of_cluster(node, self._address)
        for pid in pids.keys() - self._found.keys():
            with contextlib.suppress(ProcessLookupError):
                self._ends[os.pidfd_open(pid)] = pids[pid]
        self._found |= pids
        # The GCS on another machine, or where the system cannot wait for processes
        is_elsewhere = self._address is not None or (node is not None and not self._found)
        if is_elsewhere and self._connections is None:
            where = node.gcs_address if node is not None else _resolve(str(self._address))
            if where is not None:
                self._connections = Connections(where)


def _resolve(address: str) -> str | None:
    """Address of a cluster before it is joined; None if there is no such cluster."""
    with contextlib.suppress(Exception):  # `ray.init` gets it too
        return joining.resolve(address)
    return None


def _pids_of_own(is_up: bool) -> dict[int, str]:
    """The GCS and the raylet, which are children of this process, and the raylet's agents.

    Args:
        is_up: Whether all of them run. Until then Ray itself misses a raylet that is dead, and is
            started once more; without its GCS it waits for a minute and ends the process.
    """
    children = {Path(words[0]).name: pid for pid, words in _children(os.getpid())}
    names = ("gcs_server", "raylet") if is_up else ("gcs_server",)
    found = {children[name]: f"Ray's {name}" for name in names if name in children}
    if is_up and "raylet" in children:
        for pid, words in _children(children["raylet"]):
            if any(word.strip().endswith(_AGENTS) for word in words):
                found[pid] = f"an agent of Ray's raylet (process {pid})"
    return found


def _children(parent: int) -> Iterator[tuple[int, list[str]]]:
    """Children of a process, and the words of their commands."""
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in file.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
                yield int(pid), command.split("\0")


def _pids_of_cluster(node: Any, address: str) -> dict[int, str]:
    """The raylet on this machine, named by its socket; none where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS
        return {}
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_EVERY_S)
        client.connect(node.raylet_socket_name)
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _user, _group = struct.unpack("3i", peer)
        if pid:  # 0: of another container
            return {pid: f"the raylet of {address} on this machine"}
    return {}


class Connections:
    """Tries a cluster's GCS every `CONNECT_EVERY_S` seconds.

    Args:
        address: Host and port.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address, self._target = address, (host.strip("[]"), int(port))
        self._limit_s = lost_limit_s()
        self._next = self._answered = time.monotonic()

    def fault(self) -> str | None:
        """What is wrong, once no connection was made for too long."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + CONNECT_EVERY_S
        try:
            socket.create_connection(self._target, timeout=CONNECT_EVERY_S).close()
            self._answered = time.monotonic()
        except OSError as error:
            if now - self._answered > self._limit_s:
                why = error.strerror or error
                return f"Ray at {self.address}: no connection for {self._limit_s:g} s ({why})"
        return None


def lost_limit_s() -> float:
    """Seconds without a connection after which a cluster is given up.

    A GCS that keeps its memory elsewhere may come back; then it is Ray's own limit that counts.
    """
    returns = os.environ.get("RAY_REDIS_ADDRESS") or os.environ.get(_STORAGE) == "rocksdb"
    if not returns and _RAY_LIMIT not in os.environ:
        return LOST_S
    return max(1.0, float(os.environ.get(_RAY_LIMIT, _RAY_LIMIT_S)) - _MARGIN_S)


def _node() -> Any:
    """What Ray knows of the processes that it has started or joined here."""
    from ray._private import worker

    return worker._global_node
