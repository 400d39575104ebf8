"""raffect on a real Ray of five nodes in one machine.

Jobs go through the job server, nodes die and join, a sweep runs over four GPUs. The GPUs are
logical: Ray counts them, the work runs on the CPU.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.datasets.manifest import read_manifest
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from raffect.ray_session import private

ROOT = Path(__file__).parents[2]
EMBEDDED = ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
NODES = 4
FRAMES = 1600

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def token() -> Generator[None]:
    """This user's token, for Ray's processes and its clients alike.

    It is no token of this cluster's own: a Ray that another test started in this process has the
    user's, and a process has one token.
    """
    private.make_token()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        yield


@pytest.fixture(scope="module")
def cluster(token):
    """A head without GPUs and four nodes with one each."""
    from ray.cluster_utils import Cluster

    with socket.socket() as free:  # the agent's own default is one port for all Rays of a machine
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {
        "num_cpus": 2,
        "num_gpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": 0,
        "dashboard_agent_listen_port": port,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES):
        add_node(cluster)
    wait_for(lambda: takes_jobs(cluster), "the job server")
    yield cluster
    cluster.shutdown()


def add_node(cluster) -> None:
    """One more machine with a GPU, and with a copy of a job's files of its own.

    By default all nodes of a session share the folder, which each node's agent clears first.
    """
    cluster.add_node(num_cpus=1, num_gpus=1, runtime_env_dir_name=f"files_{uuid.uuid4().hex[:8]}")


def takes_jobs(cluster) -> bool:
    """Whether the head's agent, which starts after everything else, runs jobs already."""
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(f"http://{cluster.webui_url}")
        return bool(client.submit_job(entrypoint="true"))
    except (RuntimeError, ConnectionError):
        time.sleep(1)
        return False


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Drawn faces, prepared."""
    from raffect.config import PrepareConfig
    from raffect.datasets.prepare import prepare

    folder = tmp_path_factory.mktemp("faces")
    write_synthetic(folder, FRAMES, 0, workers=2)
    images, annotations = (folder / "cropped_aligned",), folder / EDITION
    prepare(PrepareConfig(images=images, annotations=annotations, out=folder / "data"))
    return folder / "data"


@contextmanager
def submitted(cluster, *words: str) -> Generator[subprocess.Popen]:
    """A job on its way, as a user submits it."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    command += ["--address", f"http://{cluster.webui_url}", "--working-dir", str(ROOT)]
    command += ["--runtime-env", str(ROOT / "cluster" / "runtime-env.yaml")]
    command += ["--", sys.executable, *words]
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def result_of(job: subprocess.Popen, limit_s: float = 600) -> tuple[int, dict, str]:
    """Exit status, the JSON line and all output of a job."""
    text, _ = job.communicate(timeout=limit_s)
    lines = [line for line in text.splitlines() if line.startswith('{"job"')]
    assert lines, text[-3000:]
    return job.returncode, json.loads(lines[-1]), text


def wait_for(condition, what: str, limit_s: float = 500) -> None:
    end = time.time() + limit_s
    while not condition():
        assert time.time() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.05)


def commits(bank: Path) -> int:
    return len(list((bank / "commits").glob("*.json")))


def nodes_of_drivers(cluster) -> set[str]:
    """Nodes that a driver belongs to: it dies with its node, as it would with its machine.

    On one machine Ray gives a driver any node of its address.
    """
    from ray.util.state import list_workers

    drivers = list_workers(
        address=f"http://{cluster.webui_url}",
        filters=[("worker_type", "=", "DRIVER")],
        raise_on_missing_output=False,
    )
    return {driver.node_id for driver in drivers}


@pytest.fixture(scope="module")
def extracted(cluster, data, tmp_path_factory) -> tuple[Path, str]:
    """A bank made over four logical GPUs by a job while one node was killed and another joined."""
    bank = tmp_path_factory.mktemp("bank") / "bank"
    words = ["jobs/extract.py", "--manifest", str(data / "manifest.parquet"), "--bank", str(bank)]
    words += ["--shard-rows", "16", "--device", "cpu", "--gpus-per-actor", "1", *EMBEDDED]
    with submitted(cluster, *words) as job:
        wait_for(lambda: commits(bank) >= 5 or job.poll() is not None, "the first shards")
        before, kept = commits(bank), nodes_of_drivers(cluster)
        victim = next(node for node in cluster.worker_nodes if node.node_id not in kept)
        cluster.remove_node(victim, allow_graceful=False)
        add_node(cluster)
        code, result, text = result_of(job)
    assert code == 0, text[-3000:]
    assert result["job"] == "extract"
    assert before < FRAMES // 16 / 2, "the node went too late to matter"
    return bank, json.dumps(result)


def test_an_extract_over_four_gpus_loses_and_doubles_nothing_when_a_node_dies_and_one_joins(
    extracted, data
):
    bank, result = extracted
    manifest = read_manifest(data / "manifest.parquet")
    verification = verify(Bank(bank), manifest)
    assert verification.complete
    assert verification.rows == len(manifest) == json.loads(result)["rows"]
    assert json.loads(result)["digest"] == Bank(bank).digest()
    runs = [json.loads(file.read_text()) for file in (bank / "runs").glob("*.json")]
    assert [run["summary"]["encoders"] for run in runs] == [NODES]


@pytest.mark.release
def test_a_sweep_over_four_gpus_outlives_its_driver_and_a_trial_and_ends_with_its_best_head(
    cluster, extracted, data, tmp_path
):
    bank, _ = extracted
    words = ["jobs/tune.py", "paper", "--task", "expr", "--bank", str(bank), "--labels", str(data)]
    words += ["--out", str(tmp_path / "run"), "--device", "cpu", "--gpus-per-trial", "1"]
    words += ["--heads-per-trial", "1", "--epochs", "4", "--batch-size", "64", "--head.width", "32"]
    words += ["--space", "loss.alpha=0.2,0.5,1", "seed=0:1", "--track", "tensorboard"]
    folder = tmp_path / "run" / "heads"

    # The driver is killed after the first heads
    with submitted(cluster, *words) as job:
        wait_for(lambda: count_records(folder) >= 2 or job.poll() is not None, "the first heads")
        os.kill(driver_of("jobs/tune.py", tmp_path / "run"), signal.SIGKILL)
        assert job.wait(60) == 1
    finished = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert 2 <= len(finished) < 8

    # The same job goes on, and a trial is killed
    with submitted(cluster, *words) as job:
        wait_for(lambda: trials(cluster) or job.poll() is not None, "a trial")
        os.kill(trials(cluster)[0], signal.SIGKILL)  # which Ray Tune starts again
        code, result, text = result_of(job)
    assert code == 0, text[-3000:]
    now = {name: (folder / name).stat().st_mtime_ns for name in finished}
    assert now == finished, "a finished head was trained again"
    assert count_records(folder) == 3 * 2 + 2  # and ERM with both seeds
    assert result["headline"]["settings"]["loss.alpha"] in (0.2, 0.5, 1.0)
    assert result["headline"]["scores"]["last"]["heads"] == 2
    assert Path(result["report"]).read_text().startswith("<!doctype html>")


def count_records(folder: Path) -> int:
    return len(list(folder.glob("*.json")))


def trials(cluster) -> list[int]:
    """Processes of Ray Tune's trials on this cluster's nodes."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if command.startswith(b"ray::ImplicitFunc") and parent in raylets:
                found.append(int(folder.name))
    return found


def driver_of(script: str, out: Path) -> int:
    """Process of a job's driver, below the job server and not below the client."""
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = stat.read_bytes().split(b"\0")
            is_python = words[0].endswith((b"python3.11", b"python"))
            if is_python and words[1:2] == [script.encode()] and bytes(out) in words:
                return int(stat.parent.name)
    raise AssertionError(f"no driver of {script}")


@pytest.mark.release
def test_training_that_waits_for_four_gpus_ends_with_its_scores(cluster, extracted, data, tmp_path):
    bank, _ = extracted
    words = ["cluster/with_gpus.py", "4", "jobs/train.py", "erm", "--task", "au"]
    words += ["--bank", str(bank), "--labels", str(data), "--out", str(tmp_path / "run")]
    words += ["--epochs", "2", "--batch-size", "64", "--head.width", "16"]
    words += ["--device", "cpu", "--num-workers", "4"]
    with submitted(cluster, *words) as job:
        code, result, text = result_of(job)
    assert "with_gpus.py: 4 of 4 GPUs" in text
    assert code == 0, text[-3000:]
    assert 0 <= result["headline"]["scores"]["last"]["mean"] <= 1


def test_a_job_that_fails_says_why_in_its_last_line_and_its_status(cluster, data, tmp_path):
    words = ["--manifest", str(tmp_path / "absent.parquet"), "--bank", str(tmp_path / "bank")]
    with submitted(cluster, "jobs/extract.py", *words) as job:
        code, result, _ = result_of(job)
    assert code == 1  # of `ray job submit`
    assert result["status"] == "failed"
    assert result["exit"] == 2
    assert "absent.parquet: no such manifest" in result["error"]


def test_without_the_token_neither_job_server_nor_cluster_lets_anyone_in(cluster, data, tmp_path):
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{cluster.webui_url}/api/jobs/", timeout=30)
    assert refused.value.code in (401, 403)
    assert re.match(r"127\.0\.0\.1|localhost", cluster.webui_url)
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    words = ["--manifest", str(data / "manifest.parquet"), "--bank", str(tmp_path / "bank")]
    words += ["--address", cluster.address, *EMBEDDED]
    done = subprocess.run(
        [sys.executable, "-m", "raffect.cli", "extract", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bank" / "shards").exists()
