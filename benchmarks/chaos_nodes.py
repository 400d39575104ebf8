"""The Ray cluster that `chaos.py` takes nodes from, and the raffect that runs on it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from processes import tree

ROOT = Path(__file__).resolve().parents[1]
NAIVE = """

def write_atomic(path, content):
    '''In place, on a slow disk: the file is there before its bytes are.'''
    import time

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(half)
            file.flush()
            time.sleep(0.2)


def _naive_read_commits(self):
    numbers = sorted(int(path.stem[:6]) for path in (self.path / "shards").glob("[0-9]*.parquet"))
    return {number: Commit(shard=number, rows=0, rejects=0, files={}) for number in numbers}


Bank.read_commits = _naive_read_commits
"""
"""Code behind `raffect.bank.format` that makes its bank a careless one."""
PROBE = """
import ray, raffect, sys

ray.init(address=sys.argv[1], logging_level="ERROR")
of_worker = ray.remote(lambda: __import__("raffect").__file__).remote()
print(raffect.__file__, ray.get(of_worker))
"""
FOR_RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
}
# A node that was removed is to be missed within seconds, and no worker is to be started before a
# task needs it.
SYSTEM = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
    "prestart_worker_first_driver": False,
}


class Nodes:
    """A Ray cluster on this machine whose nodes come and go."""

    def __init__(self, num_nodes: int, package: Path, folder: Path) -> None:
        # Before Ray is imported; raylets and workers inherit it. Ray's folder is our own, so that
        # `auto` elsewhere on this machine does not find this cluster.
        os.environ |= {"PYTHONPATH": str(package), "RAY_TMPDIR": str(folder)} | FOR_RAY
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": False, "_system_config": SYSTEM}
        self._node = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
        for _ in range(num_nodes):
            self.add()
        self.address = self._cluster.address

    def add(self) -> None:
        """One more node; on a loaded machine a start may once take longer than Ray's 30 s."""
        try:
            self._cluster.add_node(**self._node)
        except Exception as error:
            print(f"a node did not start, trying again: {error}", flush=True)
            self._cluster.add_node(**self._node)

    def remove(self, rng: random.Random) -> str:
        """Take a node away with all that runs on it."""
        node = rng.choice(sorted(self._cluster.worker_nodes, key=self._pid))
        pid = self._pid(node)
        self._cluster.remove_node(node, allow_graceful=False)
        return f"node of raylet {pid}"

    def workers(self) -> list[tuple[int, str]]:
        """Ray's workers on all nodes, by process and title."""
        found = []
        for node in self._cluster.list_all_nodes():
            for pid, (title, _) in tree(self._pid(node)).items():
                if title.startswith("ray::"):
                    found.append((pid, title.removeprefix("ray::")))
        return found

    def __len__(self) -> int:
        return len(self._cluster.worker_nodes)

    def close(self) -> None:
        self._cluster.shutdown()

    @staticmethod
    def _pid(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid


def choose_package(folder: Path, naive: bool) -> Path:
    """Where drivers and workers find raffect: this tree, or a copy with a careless bank."""
    if not naive:
        return ROOT
    package = folder / "naive"
    shutil.copytree(ROOT / "raffect", package / "raffect")
    with (package / "raffect" / "bank" / "format.py").open("a") as file:
        file.write(NAIVE)
    return package


def probe(nodes: Nodes, package: Path, folder: Path) -> None:
    """Check that drivers and workers run the code that is to be tried."""
    command = [sys.executable, "-c", PROBE, nodes.address]
    quiet = {"capture_output": True, "text": True, "timeout": 300}
    out = subprocess.run(command, check=False, cwd=folder, **quiet)
    if out.stdout.split() != [str(package / "raffect" / "__init__.py")] * 2:
        raise SystemExit(f"driver and worker import {out.stdout}, not {package}\n{out.stderr}")
