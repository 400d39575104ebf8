"""Each benchmark runs to its end at a small size and prints its table, so that none breaks."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "encode": "--model ViT-B-32-quickgelu --frames 8 --batches 4 --repeats 1 "
    "--towers open_clip raffect bfloat16 float8",
    "feed": "--frames 800 --times 2",
    "bank": "--rows 3000 --samples 20",
    "hashing": "--frames 9000 --repeats 2",
    "joining": "--frames 4096",
    "train": "--steps 10 --batches 1 2",
    "tune": "--heads 4 --frames 4096 --epochs 1 --width 32",
    "memory": "--extract 3000 --train 12000",
    "hostile": "--cases 12",
    "predict": "--frames 12000 --heads 1 --repeats 1 --rows 9000",
    "zeroshot": "--frames 8000 --sets 2 --model raffect-faces --weights embedded",
    "emoclip_loop": "--steps 2 --window 4 --batch 4 --dim 64",
    "language": "--frames 800 --num-seeds 0",
    "robust": "--frames 400 --seeds 1 --epochs 1 --corruptions blur --strengths 3",
    "startup": "--frames 12000 --models raffect-faces --repeats 1",
}


@pytest.mark.cluster
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_to_its_end_and_prints_a_table(name):
    # pytest's own folder is too long a path for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        environment = {**os.environ, "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL[name].split()],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        names = {path.name for path in Path(folder).iterdir()}
        # The folder of raffect's own Ray stays, for the next one of this user
        left = [n for n in names - {f"raffect-{os.getuid()}"} if n.startswith("raffect-")]
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) >= 3, done.stdout
    assert "nan" not in done.stdout
    assert not left, "left its files behind"


def test_the_tests_of_a_gpu_are_collected_by_the_command_that_runs_them():
    """Both files have one name, which pytest refuses unless it is asked to import them apart."""
    command = shlex.split(gpu.STEPS["cuda-tests"][1])
    root = BENCHMARKS.parent
    done = subprocess.run(
        [*command, "--collect-only"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    for file in gpu.CUDA_TESTS.split():
        assert f"{file}::" in done.stdout


def test_steps_of_a_gpu_name_files_and_tests_that_exist():
    root = BENCHMARKS.parent
    commands = " ".join(command for _, command in gpu.STEPS.values())
    for file in re.findall(r"(?:tests|benchmarks|scripts)/[\w/]+\.py", commands):
        assert (root / file).is_file(), file
    tests = "".join(file.read_text() for file in (root / "tests" / "training").glob("*.py"))
    for part in gpu.NOT_ON_CUDA:
        assert re.search(rf"def test_\w*{part}", tests), part
