"""What tests share: one drawn data set, one prepared folder, one Ray.

All are made here; nothing is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raffect.config import PrepareConfig
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from tests.helpers import environment  # noqa: F401 - before anything imports Ray


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """A drawn data set of 600 lines."""
    out = tmp_path_factory.mktemp("faces")
    write_synthetic(out, 600, seed=3, workers=2)
    return out


@pytest.fixture(scope="session")
def prepared(tree, tmp_path_factory) -> Path:
    """Manifest and labels of ``tree``."""
    out = tmp_path_factory.mktemp("data")
    prepare(PrepareConfig(images=(tree / "cropped_aligned",), annotations=tree / EDITION, out=out))
    return out


@pytest.fixture(scope="session")
def local_ray():
    """One small Ray for every test that needs one."""
    import ray

    size = {"num_cpus": 4, "num_gpus": 0, "object_store_memory": 400_000_000}
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    for attempt in (1, 2):
        try:
            ray.init(address="local", **size, **quiet)
            break
        except Exception:  # on a loaded machine; Ray has no class for it
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()


# On several cores (pytest -n) each worker keeps to one of them, and tests that start Ray share a
# worker. With `--dist=loadfile`, which is for the long tests, they do neither: those start more
# processes than there are cores, and wait for most of them.
RAY_FOLDERS = ("extraction", "training", "pipelines", "cluster", "faults", "ray_session")
RAY_FILES = ("test_security.py", "test_api.py", "test_job.py", "test_benchmarks.py")


def pytest_configure(config):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.removeprefix("gw").isdigit() and config.getoption("loadgroup", False):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    for item in items:
        starts_ray = "local_ray" in item.fixturenames or item.path.name in RAY_FILES
        if starts_ray or item.path.parent.name in RAY_FOLDERS:
            item.add_marker(pytest.mark.xdist_group("ray"))
        else:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium (`apt-get install chromium`), which plays H.264."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root may not use Chromium's own sandbox in a container
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield browser
        browser.close()
