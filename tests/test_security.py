"""What SECURITY.md promises: hostile files run nothing and reach nothing outside their folder; open clusters are refused."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import fill_bank, make_manifest
from stages.test_train import make_data

from raffect.cli import main
from raffect.data.bank import Bank
from raffect.data.verify import verify, withdraw
from raffect.errors import RaffectError
from raffect.model.checkpoint import load_head, load_state
from raffect.stages.report import to_html
from raffect.stages.runtime import ray_session

ROOT = Path(__file__).parents[1]


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_pickle_in_the_place_of_a_head_or_a_state_does_not_run(tmp_path):
    data = make_data(tmp_path / "data")
    words = [
        "train",
        "erm",
        "--task",
        "expr",
        "--bank",
        str(data / "bank"),
        "--labels",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--head.width",
        "8",
    ]
    assert main([*words, "--device", "cpu"]) == 0
    (folder,) = (tmp_path / "run" / "weights").glob("*/last")
    for content in (pickle.dumps(Evil(tmp_path / "ran")), _torch_file(tmp_path)):
        (folder / "head.safetensors").write_bytes(content)
        with pytest.raises(RaffectError, match="SHA-256 differs"):
            load_head(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"sha256": hashlib.sha256(content).hexdigest()}))  # and its hash as well
        with pytest.raises(RaffectError, match="does not fit"):
            load_head(folder)
        (tmp_path / "state.safetensors").write_bytes(content)
        with pytest.raises(RaffectError, match="damaged"):
            load_state(tmp_path / "state.safetensors")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists(), "this pickle does nothing, so the test proves nothing"


def _torch_file(folder: Path) -> bytes:
    torch.save({"layers.0.weight": Evil(folder / "ran")}, folder / "evil.pt")
    return (folder / "evil.pt").read_bytes()


def test_a_commit_record_reaches_nothing_outside_its_bank(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}))
    outside = tmp_path / "outside.parquet"
    outside.write_bytes(bank.shard_path(1).read_bytes())
    record = json.loads(bank.commit_path(1).read_text())
    (facts,) = record["files"].values()
    for name in ("../outside.parquet", str(outside), "shards/../../outside.parquet"):
        bank.commit_path(1).write_text(json.dumps(record | {"files": {name: facts}}))
        assert 1 not in Bank(bank.path).read_commits()
        verdict = verify(Bank(bank.path))
        assert list(verdict.damaged) == [1]
    withdraw(bank, verdict.damaged)
    assert outside.exists()


def test_a_report_shows_markup_in_names_as_text(tmp_path):
    page = to_html("# <script>alert(1)</script> `<img src=x onerror=alert(1)>`\n", tmp_path)
    assert "<script>" not in page
    assert "<img" not in page


def test_no_module_of_raffect_unpickles():
    for file in (ROOT / "raffect").rglob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text, file
        assert "allow_pickle" not in text, file
        assert "weights_only=False" not in text, file
        assert "yaml.load(" not in text, file


def test_a_cluster_without_a_token_is_refused_before_anything_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr("raffect.stages.runtime._TOKEN", tmp_path / "no_token")
    with pytest.raises(RaffectError, match=r"198\.51\.100\.1:6379: no authentication token here"), ray_session("198.51.100.1:6379"):
        pass


LISTENERS = """
from raffect.stages.runtime import ray_session
with ray_session(None):
    import os, psutil, ray  # psutil is Ray's own
    print(oct(os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o777), os.environ["RAY_AUTH_MODE"])
    import time, urllib.request
    end, ports = time.monotonic() + 20, []
    while not ports and time.monotonic() < end:  # it starts to listen some time after ray.init has returned
        heads = [process for process in psutil.Process().children(recursive=True) if "dashboard/dashboard.py" in " ".join(process.cmdline())]
        ports = [found for process in heads for found in process.net_connections("tcp") if found.status == "LISTEN"]
        time.sleep(0.2)
    for found in ports:
        print(urllib.request.urlopen(f"http://127.0.0.1:{found.laddr.port}/api/jobs/", timeout=30).read()[:6].decode())
"""


def test_rays_token_is_not_left_readable_and_its_dashboard_takes_no_jobs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LISTENERS], env=environment, capture_output=True, text=True, check=True, timeout=200)
    token, *answers = done.stdout.splitlines()
    assert token == "0o600 token"
    assert set(answers) <= {"# HELP"}  # counters for Prometheus, whatever is asked for, and no job server; nothing at all where another Ray has that port


def test_a_local_ray_without_authentication_is_warned_about():
    code = "from raffect.stages.runtime import ray_session\nwith ray_session(None):\n    pass\n"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, check=True, timeout=200)
    assert "warning: Ray runs without authentication" in done.stderr
