"""cluster/slurm/submit.sh on two Ray nodes of this machine.

srun and scontrol are replaced by scripts that run the command here.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "submit.sh"
SCONTROL = """#!/bin/sh
printf 'node1\\nnode2\\n'
"""
SRUN = """#!/bin/sh
echo "$@" >> "$SRUN_LOG"
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@"
"""
JOB = """
import json, os, sys
import ray

ray.init(logging_level="ERROR", log_to_driver=False)
token = os.environ["RAY_AUTH_TOKEN_PATH"]
facts = {
    "nodes": sum(node["Alive"] for node in ray.nodes()),
    "cpus": ray.cluster_resources()["CPU"],
    "address": os.environ["RAY_ADDRESS"],
    "token_mode": oct(os.stat(token).st_mode & 0o777),
    "words": sys.argv[1:],
}
print(json.dumps(facts), flush=True)
sys.exit(7)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> dict[str, str]:
    """The environment of a two-node job whose id no other test run has."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "1",
    }
    ours = {
        "RAFFECT_VENV": str(Path(sys.executable).parents[1]),
        "RAFFECT_OBJECT_STORE_BYTES": "80000000",
        "SRUN_LOG": str(tmp_path / "srun.log"),
    }
    foreign = [name for name in os.environ if name.startswith(("SLURM_", "RAY_", "RAFFECT_"))]
    env = {name: os.environ[name] for name in os.environ.keys() - set(foreign)}
    return env | job | ours | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def submit(env: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def leftovers(env: dict[str, str]) -> list[str]:
    """Processes that still carry this job's id."""
    found, mark = [], f"SLURM_JOB_ID={env['SLURM_JOB_ID']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()  # empty for a process that has ended
            if mark in environment.split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{folder.name} {command[:80]}")
        except OSError:
            continue
    return found


def settle(env: dict[str, str], seconds: float = 100) -> list[str]:
    """What is left of a job once its last processes had time to go."""
    end = time.monotonic() + seconds
    while (left := leftovers(env)) and time.monotonic() < end:
        time.sleep(0.2)
    return left


@pytest.fixture
def nothing_stays(slurm):
    """End this job's processes, and no others, after the test."""
    yield
    for line in leftovers(slurm):
        try:
            os.kill(int(line.split()[0]), signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_two_nodes_start_on_the_jobs_own_ports_run_the_script_and_pass_on_its_exit_status(
    slurm, tmp_path, nothing_stays
):
    # Ray gives a node 30 s to start, which is too short on a loaded machine once in a while
    (tmp_path / "job.py").write_text(JOB)
    for _ in (1, 2):
        (tmp_path / "srun.log").unlink(missing_ok=True)
        done = submit(slurm | {"RAFFECT_WAIT_S": "120"}, "job.py", "--alpha", "a b")
        out, err = done.communicate(timeout=500)
        if "timed out during startup" not in err:
            break
    assert done.returncode == 7, out + err

    # What the script saw
    seen = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    port = 20000 + int(slurm["SLURM_JOB_ID"]) % 600 * 20
    assert seen["nodes"] == 2
    assert seen["cpus"] == 2
    assert seen["address"].endswith(f":{port}")
    assert seen["token_mode"] == "0o600"
    assert seen["words"] == ["--alpha", "a b"]

    # How the nodes were started
    log = (tmp_path / "srun.log").read_text()
    first, second = (line for line in log.splitlines() if "ray start" in line)
    assert "--nodelist=node1" in first
    assert "--nodelist=node2" in second
    assert f"--port={port}" in first
    assert f"--dashboard-port={port + 1}" in first
    assert "--dashboard-host=127.0.0.1" in first

    # Nothing is left but logs; the token is gone
    assert settle(slurm) == []
    folder = tmp_path / f"slurm-{slurm['SLURM_JOB_ID']}"
    assert {path.name for path in folder.iterdir()} == {"ray-node1.log", "ray-node2.log"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not Path(f"/tmp/raffect-{os.getuid()}-{slurm['SLURM_JOB_ID']}").exists()


def fake_ray(tmp_path: Path, text: str) -> str:
    """A folder with a venv whose `ray` is a shell script and whose python is this one."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "ray").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "ray").chmod(0o755)
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "python").chmod(0o755)
    return str(folder.parent)


def test_a_node_that_does_not_start_is_an_error_with_the_end_of_its_log(
    slurm, tmp_path, nothing_stays
):
    venv = fake_ray(tmp_path, "echo no such port; exit 3")
    done = submit(slurm | {"RAFFECT_VENV": venv}, "job.py")
    _, err = done.communicate(timeout=200)
    assert done.returncode == 1
    assert "no such port" in err
    assert "a Ray node ended before all had joined" in err
    assert settle(slurm) == []


def test_nodes_that_never_join_are_an_error_after_the_time_limit(slurm, tmp_path, nothing_stays):
    venv = fake_ray(tmp_path, "exec sleep 60")
    done = submit(slurm | {"RAFFECT_VENV": venv, "RAFFECT_WAIT_S": "1"}, "job.py")
    _, err = done.communicate(timeout=200)
    assert done.returncode == 1
    assert "0 of 1 nodes joined in 1 s (none of node1, node2)" in err
    assert "raise RAFFECT_WAIT_S" in err
    assert settle(slurm) == []


def test_a_job_that_has_to_stop_ends_its_nodes_and_says_how_to_go_on(
    slurm, tmp_path, nothing_stays
):
    venv = fake_ray(tmp_path, "exec sleep 60")
    done = submit(slurm | {"RAFFECT_VENV": venv}, "job.py")
    log = tmp_path / "srun.log"
    end = time.monotonic() + 120
    while not log.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(done.pid, signal.SIGTERM)
    _, err = done.communicate(timeout=200)
    assert done.returncode == 143
    assert "the same command goes on" in err
    assert settle(slurm) == []
    assert not (tmp_path / f"slurm-{slurm['SLURM_JOB_ID']}" / "auth_token").exists()


@pytest.mark.parametrize(
    ("drop", "words", "says"),
    [
        ("SLURM_JOB_ID", ["job.py"], "start it with sbatch"),
        ("", [], "expected e.g. jobs/extract.py"),
    ],
)
def test_wrong_use_is_one_line(slurm, drop, words, says):
    slurm.pop(drop, None)
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        check=False,
        env=slurm,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
