"""Large packages, imported sooner."""

import gc
import subprocess
import sys

import pytest
import torch

from raffect.config import EncoderConfig
from raffect.extraction.asked_encoder import load_clip
from raffect.imports import quick_imports


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_garbage_is_not_looked_for_within_and_is_found_again_after():
    with quick_imports():
        assert not gc.isenabled()
        kept = [[] for _ in range(100_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(kept)
    # A cycle that is made afterwards is garbage like any other
    gc.collect()
    cycle: list = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401  # ty: ignore[unresolved-import]
    assert gc.isenabled()


def test_an_encoder_that_a_notebook_loads_keeps_none_of_its_garbage():
    gc.unfreeze()
    load_clip(
        EncoderConfig(model="raffect-faces", weights="embedded"), "cpu", torch.get_num_threads()
    )
    assert gc.get_freeze_count() == 0


def test_a_program_ends_without_a_word_after_quick_imports():
    code = "from raffect.imports import quick_imports\nwith quick_imports():\n    import pyarrow"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""
