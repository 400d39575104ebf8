"""Each benchmark runs to its end at a small size and prints its table, so that none breaks."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "encode": "--model ViT-B-32-quickgelu --frames 8 --batches 4 --repeats 1 "
    "--towers open_clip raffect bfloat16 float8",
    "feed": "--frames 800 --times 2",
    "bank": "--rows 3000 --samples 20",
    "hashing": "--frames 9000 --repeats 2",
    "train": "--steps 10 --batches 1 2",
    "tune": "--heads 4 --frames 4096 --epochs 1 --width 32",
    "memory": "--extract 3000 --train 12000",
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
        left = [path.name for path in Path(folder).iterdir() if path.name.startswith("raffect-")]
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) >= 3, done.stdout
    assert "nan" not in done.stdout
    assert not left, "left its files behind"
