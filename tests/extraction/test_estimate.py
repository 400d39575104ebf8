"""Dry runs: what they would do, and how fast, by a probe like the run's own encoder."""

import json
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from raffect.bank.format import Bank
from raffect.datasets.manifest import read_manifest
from raffect.errors import RaffectError
from raffect.extraction.estimate import combine, estimate
from raffect.extraction.extract import extract
from raffect.extraction.placement import Placement, place_encoders
from raffect.extraction.probe import time_encoder
from raffect.extraction.steps import Geometry
from tests.helpers.banks import IDENTITY, load_stand_in


@pytest.mark.cluster
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(config, tmp_path, local_ray):
    lines = estimate(replace(config, bank=tmp_path / "bank")).lines()
    assert "would encode" in lines[0]
    assert any("frames/s" in line for line in lines)
    assert not (tmp_path / "bank").exists()


@pytest.mark.cluster
def test_a_dry_run_probes_with_the_threads_priority_and_environment_of_the_run(
    config, tmp_path, local_ray, monkeypatch
):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.1)
    config = replace(config, bank=tmp_path / "bank", num_actors=2, limit=100)
    guess = estimate(config, load_stand_in)
    assert not (tmp_path / "bank").exists()
    extract(config, load_stand_in, Geometry(size=32))
    assert guess.caveat == Bank(tmp_path / "bank").read_identity().caveat
    assert (guess.frames, guess.threads) == (100, place_encoders(config, 1).threads)


def test_a_dry_run_probes_with_the_threads_of_the_bank(config, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.1)
    bank, config = Bank(tmp_path / "bank"), replace(config, bank=tmp_path / "bank", limit=100)
    bank.extend_plan(read_manifest(config.manifest), 100)
    threads = place_encoders(config, 1).threads + 1  # not what this machine would have
    bank.claim(IDENTITY, threads)
    guess = estimate(config, load_stand_in)
    assert (guess.threads, json.loads(guess.caveat)[1]) == (threads, threads)


@pytest.mark.parametrize("batch", [1, 100, 2048, 4096])
def test_a_probe_encodes_whole_batches_also_where_one_is_larger_than_a_shard(monkeypatch, batch):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.05)
    sizes = []

    def encode(frames):
        sizes.append(len(frames))
        time.sleep(0.01)

    rate = time_encoder(SimpleNamespace(batch_size=batch, encode=encode), [np.zeros(1)])
    assert 0 < rate < float("inf")
    assert all(size and size % batch == 0 for size in sizes)
    assert max(sizes) <= max(batch, 2048)


@pytest.mark.cluster
def test_a_dry_run_says_when_a_device_like_this_one_would_be_refused(
    config, tmp_path, local_ray, monkeypatch
):
    def load(config, device, threads):
        """As on a GPU, whose precision is another one."""
        precision = "float16" if config.precision == "auto" else config.precision
        encoder = load_stand_in(config, device, threads)
        return SimpleNamespace(
            **vars(encoder) | {"identity": replace(IDENTITY, precision=precision)}
        )

    bank = Bank(tmp_path / "bank")
    bank.extend_plan(read_manifest(config.manifest), 32)
    bank.claim(IDENTITY)
    config = replace(config, bank=bank.path)
    lines = estimate(config, load).lines()
    assert "would encode" in lines[0]
    assert any("refused, unless you add --encoder.precision float32" in line for line in lines)
    # A precision that is asked for, and that is not the bank's
    encoder = replace(config.encoder, precision="bfloat16")
    with pytest.raises(RaffectError, match="precision"):
        estimate(replace(config, encoder=encoder), load)


def test_a_dry_run_with_an_encoder_that_cannot_be_loaded_is_one_line(config, tmp_path, local_ray):
    def load(config, device, threads):
        raise RaffectError("weights are damaged; bring them again")

    with pytest.raises(RaffectError, match=r"^weights are damaged; bring them again$"):
        estimate(replace(config, bank=tmp_path / "bank"), load)

    def die(config, device, threads):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RaffectError, match=r"^Ray stopped the run: [^\n]*$"):
        estimate(replace(config, bank=tmp_path / "bank"), die)


def test_readers_and_encoders_share_cores_on_a_cpu_and_the_slower_one_decides_on_a_gpu(config):
    on_cpu = Placement(actors=1, gpus_per_actor=0, device="cpu", threads=2, may_grow=False)
    on_gpu = replace(on_cpu, gpus_per_actor=1, device="cuda")
    probe = SimpleNamespace(read_s=0.02, read_cpu_s=0.01)
    # 100 frames take 1 s of both cores, and their readers 1 s of one
    assert combine(config, on_cpu, probe, 100.0, 2) == pytest.approx(100 / 1.5)
    assert combine(config, on_cpu, probe, 100.0, 16) == 100  # cores are left for readers
    assert combine(config, on_gpu, probe, 100.0, 16) == 100
    assert combine(config, on_gpu, probe, 5000.0, 16) == pytest.approx(16 / 0.02)
    assert combine(replace(config, cpus_per_read=2), on_gpu, probe, 5e3, 16) == pytest.approx(400)
