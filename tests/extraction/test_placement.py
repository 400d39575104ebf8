"""Threads, priority and waiting of encoders: decided once a bank, and kept."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from raffect.bank.format import Bank
from raffect.encoders.tower import load_encoder
from raffect.errors import RaffectError
from raffect.extraction.extract import extract
from raffect.extraction.placement import place_encoders, share_cores


def test_an_encoder_has_as_many_threads_for_the_last_shard_as_for_the_first(config, local_ray):
    config = replace(config, num_actors=2, device="cpu")
    assert place_encoders(config, 1).threads == place_encoders(config, 100).threads
    assert place_encoders(config, 1).actors == 1


@pytest.mark.parametrize(
    ("actors", "share", "nodes", "threads"),
    [
        (1, 0, [{"CPU": 8}], 8),
        (2, 0, [{"CPU": 8}], 4),
        (16, 0, [{"CPU": 8}], 1),
        (2, 0, [{"CPU": 8}, {"CPU": 6}], 6),
        (3, 0, [{"CPU": 8}, {"CPU": 6}], 3),
        (2, 0, [{"CPU": 8}, {"CPU": 6}, {"memory": 1}], 6),
        (4, 1, [{"CPU": 32, "GPU": 4}, {"CPU": 2}], 8),
        (6, 1, [{"CPU": 32, "GPU": 4}, {"CPU": 12, "GPU": 2}], 6),
        (8, 0.5, [{"CPU": 32, "GPU": 4}], 4),
        (1, 1, [{"CPU": 32, "GPU": 4}], 32),
        (1, 1, [{"CPU": 2}], 1),
    ],
)
def test_threads_are_the_cores_of_the_smallest_node_over_its_encoders(
    actors, share, nodes, threads
):
    assert share_cores(actors, share, nodes) == threads


@pytest.mark.cluster
def test_threads_are_decided_once_a_bank_and_kept_in_reruns(config, tmp_path, local_ray):
    config = replace(config, bank=tmp_path / "bank", threads=3, limit=100)
    extract(config)
    bank = Bank(config.bank)
    assert bank.read_file().threads == 3
    # Whatever the machine is like now, the rest is encoded with as many
    seen = tmp_path / "threads"

    def load(encoder, device, threads):
        seen.write_text(str(threads))
        return load_encoder(encoder, device)

    extract(replace(config, threads=None, num_actors=2), load=load)
    assert seen.read_text() == "3"
    assert bank.read_file().threads == 3
    with pytest.raises(RaffectError, match="--threads 2: .* was made with 3"):
        extract(replace(config, threads=2))


@pytest.mark.cluster
@pytest.mark.parametrize(("setting", "nice"), [({}, 15), ({"RAY_worker_niceness": "0"}, 0)])
def test_workers_have_the_niceness_and_the_waiting_that_the_page_names(setting, nice):
    code = (
        "import os, ray\n"
        "from raffect.ray_session.session import ray_session\n"
        "look = lambda: (os.nice(0), os.environ['OMP_WAIT_POLICY'])\n"
        "with ray_session(None):\n"
        "    print(ray.get(ray.remote(look).remote()))\n"
    )
    known = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=known | setting,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str((min(19, os.nice(0) + nice), "PASSIVE"))
    # One line when it begins, one with its time
    begun, ended, *_ = done.stderr.splitlines()
    assert begun == "starting Ray ..."
    assert ended.startswith("starting Ray: ")
