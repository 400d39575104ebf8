"""Runs that are killed, on several workers or fed by a stream learn what undisturbed ones do."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from raffect.cli import main
from raffect.datasets.affwild2.tasks import EXPR
from raffect.runs.data import open_dataset
from raffect.training.stream import RayStream
from tests.helpers.learning import LEARN, scores_of, words

SLOW = "--epochs 200 --head.width 64 --head.depth 2 --device cpu --threads 1"


SAVE_EVERY_EPOCH = """
import sys
from functools import partial
import raffect.training.train as train
from raffect.cli import main
train.BatchJob = partial(train.BatchJob, save_every_s=0.0)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.cluster
def test_a_killed_run_goes_on_to_the_same_bytes(data, tmp_path):
    """SIGKILL at a moment that depends on the machine, wherever in an epoch that is."""
    bank = ["--bank", str(data / "bank"), "--labels", str(data)]
    command = ["train", "paper", "--task", "expr", *bank, *SLOW.split(), "--out"]
    half, straight = tmp_path / "killed", tmp_path / "straight"

    # Killed as soon as there is something to go on from
    killed = subprocess.Popen(
        [sys.executable, "-c", SAVE_EVERY_EPOCH, *command, str(half)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = half / "state"
    deadline = time.monotonic() + 300
    while not list(state.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(state.glob("*.safetensors")), "killed before the first save"
    assert not list((half / "weights").rglob("*")), "killed too late"

    # Gone on with, it has the weights of a run that was not disturbed
    assert main([*command, str(half)]) == 0
    assert main([*command, str(straight)]) == 0
    for file in (straight / "weights").rglob("head.safetensors"):
        assert file.read_bytes() == (half / file.relative_to(straight)).read_bytes()
    assert not list(state.glob("*.safetensors"))


@pytest.mark.cluster
def test_workers_of_ray_train_give_the_result_of_one_process(data, tmp_path, local_ray):
    more = ["--batch-size", "16", "--epochs", "2"]
    assert main(words("train", data, tmp_path / "two", *more, "--num-workers", "2")) == 0
    assert main(words("train", data, tmp_path / "one", *more)) == 0
    files = (next((tmp_path / name / "heads").glob("*.json")) for name in ("one", "two"))
    one, two = (json.loads(file.read_text()) for file in files)
    assert (one["trained_by"]["num_workers"], two["trained_by"]["num_workers"]) == (1, 2)
    assert one["curve"]["train_loss"] == pytest.approx(two["curve"]["train_loss"], rel=1e-4)
    scores = [record["scores"]["last"]["headline"] for record in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_a_stream_learns_from_every_row_once_an_epoch_in_an_order_of_its_own(
    data, tmp_path, local_ray
):
    assert main(words("train", data, tmp_path / "run", "--stream", "always", *LEARN)) == 0
    assert scores_of(tmp_path / "run")["settings"][0]["scores"]["last"]["mean"] > 0.4

    # Rows of epoch 0, of epoch 1, and of epoch 0 again
    index = open_dataset(data / "bank", data, "expr").splits["train"]
    stream = RayStream(index, EXPR, batch_size=10, seed=3, window_rows=100)
    epochs = [
        [(x.numpy().copy(), y.numpy().copy()) for x, y in stream.batches(epoch)]
        for epoch in (0, 1, 0)
    ]
    features, labels = (
        [np.concatenate([batch[k] for batch in epoch]) for epoch in epochs] for k in (0, 1)
    )
    assert np.array_equal(features[0], features[2])
    assert not np.array_equal(features[0], features[1])

    # Each has every row of the split once, with its label
    expected = index.read()
    order = np.lexsort(expected.T)
    for x, y in zip(features[:2], labels[:2], strict=True):
        assert len(stream.windows(0)) > 1
        mine = np.lexsort(x.T)
        assert np.array_equal(x[mine], expected[order])
        assert np.array_equal(y[mine], index.y[order, 0])
