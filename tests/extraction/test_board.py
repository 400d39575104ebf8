"""Progress by frames within a shard, and of runs that go on."""

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from raffect.extraction.board import ShardProgress, watch_encoders
from raffect.extraction.extract import choose_shards, extract, open_progress
from raffect.extraction.steps import Geometry
from raffect.progress import Progress
from tests.helpers.banks import IDENTITY, fill_bank, load_stand_in, make_manifest


@pytest.mark.cluster
def test_frames_of_an_unfinished_shard_are_shown_also_when_its_encoder_dies(
    config, tmp_path, local_ray, monkeypatch, capfd
):
    monkeypatch.setattr("raffect.progress.FIRST_PLAIN_S", 0.0)
    monkeypatch.setattr("raffect.progress.PLAIN_EVERY_S", 0.0)

    def load(config, device, threads):
        def encode(frames):
            time.sleep(len(frames) / 16)
            if len(calls) == 1:
                with suppress(FileExistsError):
                    (tmp_path / "died").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            calls.append(len(frames))
            return np.zeros((len(frames), IDENTITY.dim), np.float16)

        calls = []
        encoder = load_stand_in(config, device, threads)
        return SimpleNamespace(**vars(encoder) | {"encode": encode, "probe": lambda: 8.0})

    one_shard = replace(config, bank=tmp_path / "bank", limit=1)
    assert extract(one_shard, load, Geometry(size=32)).rows == 100
    assert (tmp_path / "died").exists()
    shown = re.findall(r"extract: ([\d,]+) of 100 frames", capfd.readouterr().err)
    under_way = {int(count) for count in shown} - {0, 100}
    assert len(under_way) >= 3
    assert all(count % 8 == 0 for count in under_way)  # whole batches


def test_a_run_that_goes_on_counts_the_frames_of_earlier_runs(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}), rejects={1: {3: "empty file"}})
    bank.commit_path(0).unlink()
    bank.commit_path(2).unlink()
    plan, done = bank.plan, bank.read_commits()
    with open_progress(plan, done, choose_shards(plan, done, None)) as progress:
        assert (progress.earlier, progress.total) == (16, 40)
    with open_progress(plan, done, choose_shards(plan, done, 10)) as progress:
        assert (progress.earlier, progress.total) == (16, 32)


def test_a_board_that_dies_is_started_again_and_a_dead_one_stops_nothing(local_ray):
    import ray

    class Heard(ShardProgress):
        def update(self, news):
            heard.update(news)

    def wait_for(key):
        deadline = time.monotonic() + 120
        while key not in heard and time.monotonic() < deadline:
            reporter.encoded(key, 8)
            time.sleep(0.2)
        return heard.get(key)

    heard = {}
    with Progress("extract", 100) as progress, watch_encoders(Heard(progress)) as reporter:
        assert wait_for(1) == 8
        ray.kill(reporter._board, no_restart=False)
        assert wait_for(2) == 8
        ray.kill(reporter._board)
        reporter.encoded(3, 8)
    assert 3 not in heard
