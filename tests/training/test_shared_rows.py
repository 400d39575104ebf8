"""Workers that hold the features together, each a part of a bank."""

import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from raffect.errors import RaffectError
from raffect.heads import fit
from raffect.heads.head_kinds import head_spec
from raffect.heads.predicting import predict
from raffect.heads.workers import Workers
from raffect.recipe import Recipe, with_settings
from raffect.runs.data import open_dataset
from raffect.runs.read_samples import read_mapped_rows, read_rows, read_shared_rows
from raffect.training import stream

CPU = torch.device("cpu")


def _worker(rank, port, data, folder):
    group = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": 2}
    torch.distributed.init_process_group("gloo", **group)
    workers, dataset = Workers.current(), open_dataset(data / "bank", data, "expr")
    index = dataset.splits["train"]

    # Only one of them is short of memory, for both splits and not for one; both share
    splits = index, dataset.splits["validation"]
    are_short = [stream.are_short(splits, "cpu", workers)]
    if rank == 0:
        of_train = 1.1 * workers.size * 2 * len(index) * index.dim
        stream.MEMORY_SHARE = of_train / stream._memory_bytes("cpu")
    are_short += [stream.are_short((index,), "cpu", workers)]
    are_short += [stream.are_short(splits, "cpu", workers)]

    # What both hold together is what one would read
    shared = read_shared_rows(index, dataset.task, CPU, workers)
    whole = read_rows(index, dataset.task, CPU)
    numbers = torch.from_numpy(np.random.default_rng(0).integers(0, len(index), (3, 8)))
    found = shared.take_share(numbers, workers.share(8))
    expected = whole.take(numbers[:, workers.share(8)])
    same = [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
    torch.save((are_short, same, len(shared.x), len(whole.x)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.cluster
def test_workers_short_of_memory_read_a_part_each_and_take_the_same_samples(data, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, data, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [answers for answers, _, _, _ in found] == [[False, False, True]] * 2
    assert all(all(same) for _, same, _, _ in found)
    assert sum(own for _, _, own, _ in found) == found[0][3]


def test_a_part_with_a_feature_that_is_not_finite_is_refused_by_name(data, monkeypatch):
    dataset = open_dataset(data / "bank", data, "expr")
    index, read = dataset.splits["train"], type(dataset.splits["train"]).read

    def damaged(self, *arguments):
        x = read(self, *arguments)
        x[-1, 0] = np.inf
        return x

    monkeypatch.setattr(type(index), "read", damaged)
    half = (len(index) - 1) // 2
    with pytest.raises(RaffectError, match=f"{index.name_of(half)} is not finite"):
        read_shared_rows(index, dataset.task, CPU, Workers(0, 2))


def test_one_worker_shares_nothing(data, monkeypatch):
    monkeypatch.setattr(stream, "MEMORY_SHARE", 1e-12)
    splits = open_dataset(data / "bank", data, "expr").splits
    assert not stream.are_short((splits["train"], splits["validation"]), "cpu", Workers())


@pytest.mark.parametrize(
    "settings", [{}, {"head.kind": "temporal", "head.window": 5}], ids=["frames", "windows"]
)
def test_mapped_validation_is_judged_as_features_in_memory_are(
    data, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    recipe = with_settings(Recipe(task="expr"), settings | {"head.width": 16})
    dataset = open_dataset(data / "bank", data, "expr")
    index, task = dataset.rows("validation", recipe.head), dataset.task
    mapped, held = (read(index, task, CPU) for read in (read_mapped_rows, read_rows))
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()
    assert not any(tmp_path.iterdir())

    # A few samples at a time, the last of them fewer
    monkeypatch.setattr(fit, "_PREDICTIONS", 50)
    spec, kind = head_spec(recipe.head, index.dim, dataset.num_outputs), dataset.loss_kind(CPU)
    heads = spec.build(torch.stack([spec.initial_row(seed, recipe.head) for seed in range(2)]))
    counts = [fit.count(kind, heads, samples) for samples in (mapped, held)]
    assert counts[0].sum() == 2 * len(index)
    assert np.array_equal(*counts)
    assert np.array_equal(*(predict(kind, heads, samples) for samples in (mapped, held)))


def test_mapped_features_that_are_not_finite_are_refused_by_name(data, monkeypatch):
    dataset = open_dataset(data / "bank", data, "expr")
    index, read = dataset.splits["validation"], type(dataset.splits["validation"]).read

    def damaged(self, *arguments):
        x = read(self, *arguments)
        x[3, 0] = np.nan
        return x

    monkeypatch.setattr(type(index), "read", damaged)
    with pytest.raises(RaffectError, match=f"{index.name_of(3)} is not finite"):
        read_mapped_rows(index, dataset.task, CPU)
