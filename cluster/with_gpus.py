"""Ask an autoscaling cluster for GPUs, wait for them, then run a job:
`python cluster/with_gpus.py 4 jobs/extract.py --join --device cuda --manifest M --bank B`.

raffect plans with the GPUs it sees when it starts, and a cluster that scales down to nothing shows
none. After ``RAFFECT_WAIT_S`` seconds (1200) it goes on with those that came, if any did.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable

HOLD_S = 5.0


def main(argv: list[str]) -> int:
    """Wait, then become the job, so that its signals and exit status are this process's own."""
    # The words: a number of GPUs, and the job
    if len(argv) < 2 or not (argv[0].isascii() and argv[0].isdigit() and int(argv[0]) > 0):
        print(
            "with_gpus.py: expected a number of GPUs, 1 or more, and a script with its flags",
            file=sys.stderr,
        )
        return 2

    # The GPUs
    wanted, limit_s = int(argv[0]), float(os.environ.get("RAFFECT_WAIT_S", "1200"))
    found = gather_gpus(wanted, limit_s)
    if found < 1:
        remedy = "`ray status` on the head says what the autoscaler tried"
        print(f"with_gpus.py: no GPU joined within {limit_s:g} s; {remedy}", file=sys.stderr)
        return 1

    # The job, in place of this process
    print(f"with_gpus.py: {found:g} of {wanted} GPUs", flush=True)
    os.execv(sys.executable, [sys.executable, *argv[1:]])


def gather_gpus(wanted: int, limit_s: float) -> float:
    """Let the cluster grow, and wait.

    Returns:
        GPUs that are there in the end.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    try:
        request_resources(bundles=[{"GPU": 1}] * wanted)
        found = wait_for(lambda: float(ray.cluster_resources().get("GPU", 0)), wanted, limit_s)
        # A machine's idle time runs from its start, requested or not: one that waited long for the
        # others would be removed as soon as the request is withdrawn. A task on every GPU at once
        # sets the idle time of all back to 0, and the job takes them before it runs out.
        with contextlib.suppress(Exception):
            task = ray.remote(num_cpus=0, num_gpus=1)(hold)
            ray.get([task.remote(HOLD_S) for _ in range(int(found))], timeout=120)
        return found
    finally:
        # The request outlives this process, and would keep the machines and cost money for ever.
        with contextlib.suppress(Exception):
            request_resources(bundles=[])
        ray.shutdown()


def hold(seconds: float) -> None:
    """Keep the resources of the task for a while."""
    time.sleep(seconds)


def wait_for(
    count: Callable[[], float], wanted: int, limit_s: float, every_s: float = 5.0
) -> float:
    """Call ``count`` until it returns ``wanted`` or more, for ``limit_s`` seconds at most.

    Returns:
        The last count.
    """
    end = time.monotonic() + limit_s
    while (found := count()) < wanted and time.monotonic() < end:
        time.sleep(every_s)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
