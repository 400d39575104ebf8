"""Start or join Ray, and ask for its resources."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

from raffect.errors import RaffectError
from raffect.leaving import last_act
from raffect.progress import format_seconds, stage
from raffect.ray_session import joining, private
from raffect.ray_session.guard import Guard, end_sessions
from raffect.ray_session.memory import SHORT_OF_MEMORY
from raffect.ray_session.watch import RayWatch
from raffect.storage.paths import is_remote

OOM_RETRIES = 10
"""How often a task is begun again that Ray's monitor of memory has killed. Ray's own limit is none:
where another program keeps the memory, nothing moves and nothing fails. From the fifth on there are
tens of seconds between two."""
NO_PROGRESS_S = {"cuda": 1800, "cpu": 6 * 3600}
"""Seconds without a finished block after which a pipeline is given up; on a CPU one shard may take
half an hour. The time that encoders take to start counts as well."""

_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_ALONE: dict[str, Any] = {"address": "local", "include_dashboard": False}


@contextlib.contextmanager
def ray_session(address: str | None) -> Generator[None]:
    """Ray for the duration of a block.

    A cluster is joined if ``address`` or ``RAY_ADDRESS`` names one; else Ray is started on this
    machine. A Ray that is already initialised in this process is used and left running.

    Args:
        address: ``"auto"``, an address, or None.

    Where Ray dies meanwhile, the process ends with one line and status 2 (`watch`).

    Raises:
        RaffectError: If the cluster cannot be reached, or Ray does not start.
    """
    # Under `uv run` Ray's workers would each build an environment; on one machine they share ours.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(OOM_RETRIES))
    # Ray's processes end at their own warnings where these are errors.
    os.environ.pop("PYTHONWARNINGS", None)
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        joining.offer_token()
        joining.require_authentication(address)
    if _is_started():
        yield
        return
    with _joined(address) if address else _own():
        private.tighten_token()
        _warn_if_open()
        yield


@contextlib.contextmanager
def _joined(address: str) -> Generator[None]:
    """A cluster's Ray, watched from before it is joined."""
    with contextlib.ExitStack() as stack:
        with stage(f"joining Ray at {address}", at_once=True):
            ray = _import_ray()
            watch = RayWatch(address)
            stack.callback(watch.end)
            _join(address)
        try:
            yield
        finally:
            with stage("stopping Ray"):
                ray.shutdown()


@contextlib.contextmanager
def _own() -> Generator[None]:
    """A Ray of our own, guarded and watched."""
    folder = _prepare_own()
    guard = Guard(folder)
    try:
        with stage("starting Ray", at_once=True):
            ray = _import_ray()
            watch = _start(folder)
        try:
            yield
        finally:
            # An error of a Ray that has just died is not worth a line.
            watch.end(last_look=True)
            with stage("stopping Ray"):
                ray.shutdown()
    finally:
        guard.release()


def _import_ray() -> ModuleType:
    # Ray Data and Tune import pandas next. That takes as long as `ray.init` waits for the
    # processes it starts, and imports nothing of Ray's own.
    import ray

    threading.Thread(target=_import_pandas).start()
    return ray


def _is_started() -> bool:
    # Ray takes seconds to import, and is not imported to learn that it was not.
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _import_pandas() -> None:
    # If it is not installed, the code that needs it raises the error. A process that has to end
    # meanwhile, for want of a cluster, does without it.
    with contextlib.suppress(ImportError, RuntimeError):
        importlib.import_module("pandas")


def _join(address: str) -> None:
    import ray

    try:
        with _silent_stderr():
            joining.wait_for_answer(address)
            ray.init(address=address, **_QUIET)
    except Exception as error:  # Ray has no class of its own for this error
        remedy = (
            "check that it runs and that ~/.ray/auth_token here is its own (`ray get-auth-token`), "
            "or leave --address out to use this machine alone"
        )
        what = f"Ray at {address} cannot be reached ({_first_line(error)})"
        raise RaffectError(f"{what}; {remedy}") from error


def _prepare_own() -> Path:
    """Set up a Ray of our own; its folder."""
    # Ray prints harmless red lines, such as an actor's constructor arguments, between ours.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    private.make_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else `ray.init` waits for the first workers in C++ code that lets no other thread of Python
    # run, for a second or more, and would end the process without a word if Ray died meanwhile.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # By default OpenMP's threads wait for each other in a loop that holds their core. Where readers
    # or other programs want it too, an encoder of several threads is then 10 to 50 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return private.make_temp_folder()


def _start(folder: Path) -> RayWatch:
    """Start Ray, if need be twice: its 30 s may be too short once on a loaded machine."""
    with contextlib.suppress(Exception):  # Ray has no class of its own for this error
        return _try_to_start(folder)
    try:
        return _try_to_start(folder)
    except Exception as error:
        what = f"Ray did not start on this machine ({_first_line(error)})"
        cure = "give the command again where the machine is busy, else see `raffect doctor`"
        raise RaffectError(f"{what}; {cure}") from error


def _try_to_start(folder: Path) -> RayWatch:
    """Start Ray, watched from its first process on; nothing is left of one that fails."""
    import ray

    # Reading tasks wait for the disk as long as they compute, and a pipeline with fewer slots than
    # steps would not run at all.
    cpus = max(4, os.cpu_count() or 1)
    watch = RayWatch(None)
    try:
        with _silent_stderr():
            ray.init(num_cpus=cpus, _temp_dir=str(folder), **_ALONE, **_QUIET)
    except BaseException:
        watch.end(last_look=True)
        ray.shutdown()
        end_sessions(str(folder), os.getpid())
        raise
    return watch


@contextlib.contextmanager
def _silent_stderr() -> Generator[None]:
    """Hide what Ray's C++ code writes while it starts; failures still arrive as exceptions."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with last_act(lambda _: os.dup2(saved, 2), "before"):
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _warn_if_open() -> None:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        what = "Ray runs without authentication (RAY_AUTH_MODE=disabled)"
        risk = "whoever reaches its ports can run code as you"
        remedy = "unset it, or keep the machines behind a firewall"
        print(f"warning: {what}; {risk}: {remedy}", file=sys.stderr)


def configure_data(device: str = "cpu") -> None:
    """Set up Ray Data for a pipeline whose slowest step is on a device.

    Call it before a dataset is made, since a dataset copies the settings.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Readers fill the queue while encoders load, and no encoder waits for the others.
    context.wait_for_min_actors_s = -1
    # Actors that raise, as on a faulty GPU; Ray replaces those whose process or node dies.
    context.max_consecutive_actor_init_deaths = 3
    context.execution_no_progress_timeout_s = NO_PROGRESS_S[device]
    # Its tracebacks of errors that `explain_stop` turns into one line are not worth a page.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def explain_stop(error: BaseException, device: str) -> str:
    """Why Ray Data ended an extraction, as one line."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import OutOfMemoryError

    if isinstance(error, ExecutionTimeoutError):
        return (
            f"nothing moved for {format_seconds(NO_PROGRESS_S[device])}: the cluster lacks what an "
            "encoder asks for (`ray status`; --num-actors, --gpus-per-actor, --device), or one "
            "shard takes longer than that (a smaller --shard-rows, in a new bank)"
        )
    if isinstance(error, OutOfMemoryError):
        return SHORT_OF_MEMORY
    return f"Ray stopped the run: {last_line(error)}; --debug shows all"


def ray_storage(folder: Path) -> dict[str, Any]:
    """Arguments that make Ray Train and Tune keep their files in a folder or an object store."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    import pyarrow.fs

    store: Any = folder
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
    return {"storage_path": store.path, "storage_filesystem": filesystem}


def cluster_gpus() -> float:
    """Number of GPUs of the cluster or machine that Ray runs on."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def node_resources() -> list[dict[str, float]]:
    """What each node of the cluster has, such as ``{"CPU": 8.0, "GPU": 1.0}``."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def last_line(error: BaseException) -> str:
    """The last line of an error, which Ray puts below pages of traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # The exit type is followed by Ray's guesses.
    return lines[-1].partition(" Worker exit type:")[0][:300]


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
