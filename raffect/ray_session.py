"""Start or join Ray, and find out what it has."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from raffect.errors import RaffectError
from raffect.progress import format_seconds
from raffect.storage.paths import is_remote

NO_PROGRESS_S = {"cuda": 1800, "cpu": 6 * 3600}
"""After how long without a finished block a pipeline is given up, encoders' start included; on a CPU one shard may take half an hour."""
_TOKEN = Path.home() / ".ray" / "auth_token"


@contextlib.contextmanager
def ray_session(address: str | None) -> Generator[None]:
    """Ray for the duration of a block: joined where ``address`` or ``RAY_ADDRESS`` says so, else started on this machine.

    A Ray that was already initialised in this process is used and left running.

    Args:
        address: ``"auto"``, an address, or None.

    Raises:
        RaffectError: If the cluster cannot be reached.
    """
    # `uv run` would have Ray's workers build an environment of their own; on one machine they share ours.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _offer_token()
        _require_authentication(address)
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray Data and Tune import it next; it takes as long as `ray.init` waits for the processes it starts, and imports nothing of Ray's itself.
    threading.Thread(target=_import_pandas).start()
    try:
        if address:
            with _silent_stderr():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            _start_local()
    except Exception as error:  # a node that does not start raises a bare one
        remedy = (
            "check that it runs and that ~/.ray/auth_token here is its own (`ray get-auth-token`), or leave --address out to use this machine alone"
            if address
            else "see `raffect doctor`"
        )
        raise RaffectError(
            f"Ray {f'at {address} cannot be reached' if address else 'did not start on this machine'} ({_first_line(error)}); {remedy}"
        ) from error
    _tighten_token()
    _warn_if_open()
    try:
        yield
    finally:
        ray.shutdown()


def _import_pandas() -> None:
    with contextlib.suppress(ImportError):  # whoever needs it will say so
        importlib.import_module("pandas")


def _start_local() -> None:
    # Ray prints harmless red lines of its own (an actor's constructor arguments, for one) in the middle of ours.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    # Reading tasks wait for the disk as much as they compute, and a pipeline needs a few slots to move at all.
    cpus = max(4, os.cpu_count() or 1)
    for attempt in (1, 2):  # Ray gives a node 30 s to start, which a loaded machine may miss once
        try:
            with _silent_stderr():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            return
        except Exception:  # Ray has no class of its own for it
            ray.shutdown()
            if attempt == 2:
                raise


@contextlib.contextmanager
def _silent_stderr() -> Generator[None]:
    """Hide what C++ code writes while Ray starts (that it was told to be quiet); failures still arrive as exceptions."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _offer_token() -> None:
    """Show a cluster the token that lies here; Ray itself only does so where ``RAY_AUTH_MODE`` says so."""
    if (
        _TOKEN.is_file()
        or os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def _require_authentication(address: str) -> None:
    """Whoever reaches an open cluster runs code on it, and joining one shows it our data."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() not in ("token", "disabled"):
        raise RaffectError(
            f"Ray at {address}: no authentication token here (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE') or 'not set'}), so the cluster is either open to everyone who can reach it, or will not let you in; start it with "
            "RAY_AUTH_MODE=token and bring its ~/.ray/auth_token here (cluster/README.md), or set RAY_AUTH_MODE=disabled if you mean it"
        )


def _warn_if_open() -> None:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        print(
            "warning: Ray runs without authentication (RAY_AUTH_MODE=disabled); whoever reaches its ports can run code as you: unset it, or keep the machines behind a firewall",
            file=sys.stderr,
        )


def _tighten_token() -> None:
    """Ray writes its authentication token readable by everyone."""
    with contextlib.suppress(OSError):
        if _TOKEN.stat().st_mode & 0o077:
            _TOKEN.chmod(0o600)


def configure_data(device: str = "cpu") -> None:
    """Ray Data's settings for a pipeline whose slowest step is on a device; call before the dataset is made, which captures them."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = -1  # readers fill the queue while encoders load, and the first encoder does not wait for the last one
    context.max_consecutive_actor_init_deaths = (
        3  # that raise, as on one faulty GPU; those whose process or node dies are Ray's to replace
    )
    context.execution_no_progress_timeout_s = NO_PROGRESS_S[device]
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def explain_stop(error: BaseException, device: str) -> str:
    """Why Ray Data ended an extraction, for people."""
    from ray.data.exceptions import ExecutionTimeoutError

    if isinstance(error, ExecutionTimeoutError):
        return (
            f"nothing moved for {format_seconds(NO_PROGRESS_S[device])}: the cluster lacks what an encoder asks for (`ray status`; --num-actors, --gpus-per-actor, --device), "
            "or one shard takes longer than that (a smaller --shard-rows, in a new bank)"
        )
    return f"Ray stopped the run: {last_line(error)}; --debug shows all"


def ray_storage(folder: Path) -> dict[str, Any]:
    """Arguments that make Ray Train and Tune keep their own notes in a folder, which may be in an object store."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    import pyarrow.fs

    store: Any = folder
    return {
        "storage_path": store.path,
        "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs)),
    }


def cluster_gpus() -> float:
    """GPUs of the cluster or machine Ray runs on."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def last_line(error: BaseException) -> str:
    """What an error that Ray wrapped in pages of traceback says at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        lines[-1].partition(" Worker exit type:")[0][:300] if lines else type(error).__name__
    )  # what follows are Ray's guesses


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
