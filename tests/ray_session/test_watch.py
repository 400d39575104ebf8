"""A dead Ray ends the run in one line with status 2, and leaves no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from raffect.bank.format import Bank
from raffect.ray_session import guard, watch
from tests.helpers.sample import sampled

LEAVING = """
import sys, threading
from contextlib import ExitStack
from pathlib import Path
from raffect.leaving import last_act, leave
acts = {
    "job": (lambda line: print(f"job: {line}"), "line"),
    "cli": (lambda line: print(f"cli: {line}"), "line"),
    "note": (lambda line: (print("too late", flush=True), Path("note").touch()), "after"),
    "fault": (lambda line: 1 / 0, "before"),
    "bar": (lambda line: print("bar"), "before"),
}
with ExitStack() as stack:
    for name in sys.argv[1:]:
        stack.enter_context(last_act(*acts[name]))
    threading.Thread(target=leave, args=("Ray is dead",)).start()
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("acts", "out", "err"),
    [
        (
            ["job", "cli", "note", "fault", "bar"],
            ["bar", "cli: Ray is dead", "job: Ray is dead"],
            [],
        ),
        (["note", "bar"], ["bar"], ["raffect: Ray is dead"]),
    ],
)
def test_a_thread_ends_the_process_after_its_last_acts_and_never_without_the_line(
    tmp_path, acts, out, err
):
    command = [sys.executable, "-c", LEAVING, *acts]
    output = {"capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, check=False, timeout=60, **output)
    assert done.returncode == 2
    assert (tmp_path / "note").exists()
    assert done.stdout.splitlines() == out
    assert done.stderr.splitlines() == err


def test_a_cluster_is_given_up_after_the_limit_and_not_before(monkeypatch):
    monkeypatch.setattr(watch, "CONNECT_EVERY_S", 0.05)
    monkeypatch.setattr(watch, "LOST_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        connections = watch.Connections(address)
        assert connections.fault() is None
    start, found = time.monotonic(), None
    while found is None and time.monotonic() < start + 120:
        time.sleep(0.02)
        found = connections.fault()
    assert time.monotonic() - start > 0.9
    assert found == f"Ray at {address}: no connection for 1 s (Connection refused)"


def test_a_cluster_that_comes_back_in_time_is_not_given_up(monkeypatch):
    monkeypatch.setattr(watch, "CONNECT_EVERY_S", 0.2)
    monkeypatch.setattr(watch, "LOST_S", 0.5)
    server = socket.create_server(("127.0.0.1", 0))
    host, port = server.getsockname()
    connections = watch.Connections(f"{host}:{port}")
    for _ in range(2):
        server.close()
        assert connections.fault() is None  # refused, for the first time
        server = socket.create_server((host, port))
        time.sleep(0.6)
        assert connections.fault() is None
        time.sleep(0.2)
    server.close()


@pytest.mark.parametrize(
    ("settings", "limit_s"),
    [
        ({}, 30.0),
        ({"RAY_REDIS_ADDRESS": "redis:6379"}, 55.0),
        ({"RAY_gcs_storage": "rocksdb"}, 55.0),
        ({"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}, 595.0),
    ],
)
def test_where_a_gcs_may_come_back_rays_own_limit_counts(monkeypatch, settings, limit_s):
    for name in ("RAY_REDIS_ADDRESS", watch._STORAGE, watch._RAY_LIMIT):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert watch.lost_limit_s() == limit_s


def test_the_guard_ends_what_writes_into_the_session_once_the_run_is_killed(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", GUARDED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    sleepers = json.loads(run.stdout.readline())
    assert guard.processes_of(str(tmp_path), run.pid) == {sleepers["writes"]}
    run.kill()
    run.wait()
    try:
        limit = time.monotonic() + 120
        while is_alive(sleepers["writes"]) and time.monotonic() < limit:
            time.sleep(0.05)
        alive = {name: is_alive(pid) for name, pid in sleepers.items()}
        assert alive == {"writes": False, "reads": True, "elsewhere": True, "of_another": True}
    finally:
        for pid in sleepers.values():
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


GUARDED = """
import json, os, subprocess, sys, time
from pathlib import Path
from raffect.ray_session.guard import Guard
folder = Path(sys.argv[1])
guard = Guard(folder)
name = "session_2026-11-26_10-35-56_123456"
session, another = (folder / f"{name}_{other}{os.getpid()}" for other in ("", "9"))
for made in (session, another):
    (made / "logs").mkdir(parents=True)
(session / "log").touch()
own = (session / "own").open("w")
def sleep(**streams):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, **(null | streams)).pid
print(json.dumps({
    "writes": sleep(stderr=(session / "log").open("a")),
    "reads": sleep(stdin=(session / "log").open()),
    "elsewhere": sleep(stdout=Path(f"{session}-2").open("a")),
    "of_another": sleep(stdout=(another / "logs" / "log").open("a")),
}), flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def below(pid: int) -> dict[int, str]:
    """Processes below one, with the words of their commands."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            commands[int(folder.name)] = (folder / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])

    def is_below(child: int) -> bool:
        while child > 1 and child != pid:
            child = parents.get(child, 0)
        return child == pid

    return {child: commands[child] for child in parents if child != pid and is_below(child)}


def wait_for_the_end_of(processes: Iterable[int]) -> None:
    end = time.monotonic() + 200
    while (alive := list(filter(is_alive, processes))) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "victim", sampled(["gcs_server", "raylet/raylet", "ray::DashboardAgent"], ["gcs_server"])
)
def test_a_dead_ray_ends_extract_with_one_line_and_the_same_command_goes_on(
    prepared, tmp_path, victim
):
    words = ["--manifest", str(prepared / "manifest.parquet"), "--bank", str(tmp_path / "bank")]
    words += ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
    command = [sys.executable, "-c", "import sys; from raffect.job import run_job; "]
    command[-1] += "sys.exit(run_job('extract', sys.argv[1:]))"
    command += [*words, "--shard-rows", "16"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("bank/commits/*.json")) and run.poll() is None:
        time.sleep(0.05)
    processes = below(run.pid)
    (found,) = [pid for pid, command in processes.items() if victim in command]
    os.kill(found, signal.SIGKILL)
    out, err = run.communicate(timeout=200)

    # One line, for a user and for a program, and nothing is left
    assert run.returncode == 2, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("raffect extract: ")]
    assert len(lines) == 1, err
    assert "has ended" in lines[0]
    assert lines[0].endswith("what is finished is kept, the same command goes on from there")
    # Ray's own C++ may print lines around it
    result = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
    assert result == {"job": "extract", "status": "failed", "exit": 2, "error": lines[0]}
    wait_for_the_end_of(processes)
    assert not list((tmp_path / "bank" / "running").glob("*.json"))

    # The same command
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert again.returncode == 0, again.stderr
    assert (
        json.loads(again.stdout.splitlines()[-1])["rows"]
        == Bank(tmp_path / "bank").plan.offsets[-1]
    )


STARTED = """
from raffect.ray_session.session import ray_session
with ray_session(None):
    import ray
    print(ray.get(ray.remote(lambda: "works").remote()), flush=True)
"""


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("victim", "after_s"), [("gcs_server", 1.0), ("raylet/raylet", 0.5)])
def test_what_dies_while_ray_starts_is_started_again_or_ends_the_run_with_one_line(victim, after_s):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen([sys.executable, "-c", STARTED], **streams)
    found: list[int] = []
    while not found and run.poll() is None:
        time.sleep(0.02)
        found = [pid for pid, command in below(run.pid).items() if victim in command]
    time.sleep(after_s)
    processes = below(run.pid)
    os.kill(found[0], signal.SIGKILL)
    out, err = run.communicate(timeout=500)

    # It works, or there is one line; and nothing is left
    lines = [line for line in err.splitlines() if line.startswith("raffect: ")]
    assert (run.returncode, "works" in out, len(lines)) in ((0, True, 0), (2, False, 1)), err
    assert "Traceback" not in err
    wait_for_the_end_of(processes)


JOINED = """
import sys, time
from raffect.ray_session.session import ray_session
with ray_session(sys.argv[1]):
    import ray
    print(ray.get(ray.remote(lambda: "works").remote()), flush=True)
    ray.get(ray.remote(lambda: time.sleep(600)).remote())
"""


@contextlib.contextmanager
def joined_cluster(folder: Path) -> Generator[tuple[subprocess.Popen, subprocess.Popen]]:
    """A head on ports of its own, and a process that has joined it.

    A head ends where a part of it needs more than 30 s to start, as on a loaded machine; then there
    is another one.
    """
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    for attempt in range(3):
        address, command = head_command(folder / str(attempt))
        head = subprocess.Popen(command, env=environment, stdout=null, stderr=null)
        try:
            while head.poll() is None:
                command = [sys.executable, "-c", JOINED, address]
                run = subprocess.Popen(
                    command, env=environment, stdout=pipe, stderr=pipe, text=True
                )
                if run.stdout.readline().strip() == "works":
                    yield head, run
                    return
                run.wait()
        finally:
            for pid in (head.pid, *below(head.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            head.wait()
    raise AssertionError("no head started")


def head_command(folder: Path) -> tuple[str, list[str]]:
    """Address of a head on free ports, and the command that starts it."""
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(server.getsockname()[1])
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={ports[2]}", "--disable-usage-stats"]
    command += [f"--ray-client-server-port={ports[3]}", "--node-ip-address=127.0.0.1"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"]
    return f"127.0.0.1:{ports[0]}", command


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("victim", "line"),
    [("gcs_server", "no connection for 30 s"), ("raylet/raylet", "on this machine has")],
)
def test_a_dead_cluster_ends_a_run_that_joined_it_with_one_line(victim, line):
    # pytest's own folder is too long a path for Ray's sockets
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder,
        joined_cluster(Path(folder)) as (head, run),
    ):
        (found,) = [pid for pid, command in below(head.pid).items() if victim in command]
        os.kill(head.pid, signal.SIGSTOP)  # it would end the other parts, as other machines' do not
        os.kill(found, signal.SIGKILL)
        _, err = run.communicate(timeout=200)
    assert run.returncode == 2, err
    last = err.splitlines()[-1]
    assert last.startswith("raffect: "), err
    assert line in last
    assert last.endswith("what is finished is kept, the same command goes on from there")
