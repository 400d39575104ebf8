"""What SECURITY.md promises.

Hostile files run nothing and reach nothing outside their folder; open clusters are refused.
"""

import base64
import hashlib
import html
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raffect.bank.format import Bank
from raffect.bank.verify import verify, withdraw
from raffect.cli import main
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head, load_state
from raffect.ray_session.session import ray_session
from raffect.reporting.report import report, to_html
from tests.helpers.banks import fill_bank, make_manifest
from tests.helpers.learning import make_data, words

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "tests" / "fixtures" / "first"


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_pickle_in_the_place_of_a_head_or_a_state_does_not_run(tmp_path):
    # A head
    data = make_data(tmp_path / "data")
    small = ["--epochs", "1", "--batch-size", "32", "--head.width", "8"]
    assert main(words("train", data, tmp_path / "run", *small, recipe="erm")) == 0
    (folder,) = (tmp_path / "run" / "weights").glob("*/last")

    # Pickles in its place, and in the place of a state of training
    for content in (pickle.dumps(Evil(tmp_path / "ran")), _torch_file(tmp_path)):
        (folder / "head.safetensors").write_bytes(content)
        with pytest.raises(RaffectError, match="SHA-256 differs"):
            load_head(folder)
        change = {"sha256": hashlib.sha256(content).hexdigest()}
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(RaffectError, match="does not fit"):
            load_head(folder)
        (tmp_path / "state.safetensors").write_bytes(content)
        with pytest.raises(RaffectError, match="damaged"):
            load_state(tmp_path / "state.safetensors")
    assert not (tmp_path / "ran").exists()

    # The same pickle where it is loaded
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists(), "this pickle does nothing, so the test proves nothing"


HUGE = [
    {"depth": 10**9},
    {"width": 10**9},
    {"dim": 10**9},
    {"outputs": 10**9},
    {"depth": 32, "width": 65536},
    {"depth": -1},
    {"depth": "3"},
    {"more": 1},
]


def test_a_head_that_claims_to_be_huge_costs_nothing(tmp_path):
    """One process for all, of which each would end it: memory is limited from its start."""
    commands = []
    for number, change in enumerate(HUGE):
        folder = tmp_path / f"head-{number}"
        shutil.copytree(next((FIRST / "expr" / "weights").glob("*/last")), folder)
        config = json.loads((folder / "config.json").read_text())
        config["layout"] |= change
        (folder / "config.json").write_text(json.dumps(config))
        commands.append(_evaluate_words(folder))
    code = (
        "import contextlib, io, json, resource\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))\n"
        "from raffect.cli import main\n"
        f"for words in {commands!r}:\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as errors:\n"
        "        status = main(words)\n"
        "    print(json.dumps([status, errors.getvalue()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for change, (status, errors) in zip(HUGE, found, strict=True):
        lines = [line for line in errors.splitlines() if not line.startswith("loading torch")]
        assert status == 2, change
        assert len(lines) == 1, change
        assert "train again" in lines[0], change


def _evaluate_words(head: Path) -> list[str]:
    data = ["--bank", str(FIRST / "bank"), "--labels", str(FIRST)]
    return ["evaluate", "--run", str(head), *data, "--device", "cpu"]


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
        verification = verify(Bank(bank.path))
        assert list(verification.damaged) == [1]
    withdraw(bank, verification.damaged)
    assert outside.exists()


def test_a_report_shows_markup_in_names_as_text(tmp_path):
    page = to_html("# <script>alert(1)</script> `<img src=x onerror=alert(1)>`\n", {})
    assert "<script>" not in page
    assert "<img" not in page


SECRET = b"\x89PNG a secret of the user who opens this report"
TRAPS = [
    "![p](plots/../../../secret)",
    "![p](plots/secret)",
    "![p](SECRET)",
    "![p](http://example.invalid/seen.png)",
    "![p][r]\n\n[r]: plots/../../../secret",
    "[p](http://example.invalid/)",
    "<img src=http://example.invalid/seen.png>",
    "<http://example.invalid/>",
    "a | ![p](plots/../../../secret) | b",
    "`` ` ![p](plots/../../../secret)",
    "costs $\\frac{1}{0}$ \\",
]


@pytest.mark.parametrize("trap", TRAPS)
def test_what_comes_from_a_run_folder_is_text_in_its_report(tmp_path, trap):
    # A run folder with a trap in each text, and a secret where its addresses point
    run, out = tmp_path / "a" / "run", tmp_path / "a" / "report"
    shutil.copytree(FIRST / "expr", run)
    trap = trap.replace("SECRET", str(tmp_path / "secret"))
    for secret in (tmp_path / "secret", tmp_path / "a" / "secret", out / "plots" / "secret"):
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_bytes(SECRET)
    env = json.loads((run / "env.json").read_text())
    env["data"] |= {"edition": trap}
    env["data"]["encoder"]["stamp"] = trap
    env["run"] |= {"command": ["raffect", trap], "folder": trap}
    (run / "env.json").write_text(json.dumps(env))
    records = list((run / "members").glob("*.json"))
    assert records
    for file in records:
        record = json.loads(file.read_text())
        record |= {"device": trap, "git_commit": trap}
        record["trivial"]["answer"] = trap
        file.write_text(json.dumps(record))

    # Its report shows the trap as text, and no picture but its own
    report([run], out)
    page = (out / "report.html").read_text()
    assert base64.b64encode(SECRET)[:20].decode() not in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    pictures = [one for one in addresses if one.startswith("data:image/png;base64,")]
    assert len(pictures) == 3  # those that it has drawn

    # It links to its headings and to the tables that it has written alone
    others = set(addresses) - set(pictures)
    headings = {f"#{name}" for name in re.findall(r' id="([^"]*)"', page)}
    tables = {f"plots/{path.name}" for path in (out / "plots").glob("*.csv")}
    assert headings
    assert tables
    assert others == headings | tables
    shown = html.unescape(re.sub("<[^>]*>", "", page))
    assert " ".join(trap.split()) in " ".join(shown.split())


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
    monkeypatch.setattr("raffect.ray_session.private.TOKEN", tmp_path / "no_token")
    with (
        pytest.raises(RaffectError, match=r"198\.51\.100\.1:6379: no authentication token here"),
        ray_session("198.51.100.1:6379"),
    ):
        pass


LISTENERS = """
import http.client, os, urllib.error, urllib.request
from raffect.ray_session.session import ray_session

def answer(ip, port):
    ip = "127.0.0.1" if ip in ("::", "0.0.0.0") else ip
    try:
        return urllib.request.urlopen(f"http://{ip}:{port}/api/jobs/", timeout=60).read(6).decode()
    except urllib.error.HTTPError as error:
        return error.code
    except http.client.HTTPException:
        return "gRPC"

with ray_session(None):
    import psutil, ray  # psutil is Ray's own
    mode = os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o777
    print(oct(mode), os.environ["RAY_AUTH_MODE"])
    for process in psutil.Process().children(recursive=True):
        for part in process.net_connections("tcp"):
            if part.status == "LISTEN":
                print(answer(*part.laddr))
"""


@pytest.mark.cluster
def test_rays_token_is_not_left_readable_and_what_listens_takes_no_jobs(tmp_path):
    environment = {name: os.environ[name] for name in os.environ if "RAY_AUTH" not in name}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    token, *answers = done.stdout.splitlines()
    assert token == "0o600 token"
    # What speaks HTTP asks for the token, but for counters for Prometheus, at any address
    assert {"401", "gRPC"} <= set(answers) <= {"401", "gRPC", "# HELP"}


@pytest.mark.cluster
def test_a_local_ray_without_authentication_is_warned_about():
    code = (
        "from raffect.ray_session.session import ray_session\nwith ray_session(None):\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    assert "warning: Ray runs without authentication" in done.stderr
