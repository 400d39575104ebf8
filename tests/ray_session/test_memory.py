"""A machine without memory: Ray's monitor ends workers, and the run ends as well, with one line."""

import os
import subprocess
import sys
import threading

import pytest

from raffect.ray_session.memory import ended_for_memory, watch_memory
from tests.helpers.sample import sampled


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("retries", sampled([1, 1000], [1000]))
def test_where_ray_ends_every_task_for_memory_the_run_ends_with_one_line(
    retries, prepared, tmp_path
):
    """Ray gives up tasks by itself, actors never: which it ends first is chance."""
    words = ["--manifest", str(prepared / "manifest.parquet"), "--bank", str(tmp_path / "bank")]
    words += ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
    # A machine is short of memory from its first percent on
    short = {"RAY_memory_usage_threshold": "0.01", "RAY_task_oom_retries": str(retries)}
    done = subprocess.run(
        [sys.executable, "-m", "raffect.cli", "extract", *words],
        env=os.environ | short,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "Ray ended a task again and again since a machine was short of memory" in line
    assert line.endswith("what is committed is kept, the same command goes on from there")
    assert "Traceback" not in done.stderr


def test_a_watch_of_memory_passes_on_what_ray_works_out_and_then_ends(local_ray):
    before = threading.active_count()
    assert list(watch_memory(range(5))) == list(range(5))
    assert ended_for_memory() == set()
    assert threading.active_count() == before
