"""A machine without memory: Ray's monitor ends workers, and the run ends as well, with one line."""

import os
import subprocess
import sys

import pytest


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_where_ray_ends_every_task_for_memory_the_run_ends_with_one_line(prepared, tmp_path):
    """Without a limit the same run went on for more than 500 s, until it was ended."""
    words = ["--manifest", str(prepared / "manifest.parquet"), "--bank", str(tmp_path / "bank")]
    words += ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
    # A machine is short of memory from its first percent on
    short = {"RAY_memory_usage_threshold": "0.01", "RAY_task_oom_retries": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "raffect.cli", "extract", *words],
        env=os.environ | short,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "Ray ended a task again and again since a machine was short of memory" in line
    assert line.endswith("what is committed is kept, the same command goes on from there")
    assert "Traceback" not in done.stderr
