"""A disk that fails, or a machine that dies, at every durable operation in turn.

SQLite tests itself in this way. Only calls of the operating system are mocked: writes, syncs,
renames, links and unlinks are counted, and from number k on they do not happen (death) or fail
because there is no space (full). Then the same command runs again on a sound disk.
"""

import contextlib
import errno
import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raffect.bank.format import Bank, Identity
from raffect.bank.verify import verify
from raffect.config import CaptionsConfig, EncoderConfig, TrainConfig
from raffect.datasets.labels import read_labels
from raffect.datasets.targets import read_targets
from raffect.errors import RaffectError
from raffect.extraction.steps import EncodeShard, Geometry, commit_shard, read_shard, to_item
from raffect.language.captions.captions import captions
from raffect.recipe import HeadConfig, LossConfig, SamConfig
from raffect.storage import atomic
from raffect.training import train as training
from raffect.training.batch_job import BatchJob
from tests.helpers.learning import make_data

FRAMES, SHARD_ROWS = 10, 4


class Death(BaseException):
    """The machine is gone: no `finally` writes anything any more."""


class Disk:
    """Counts durable operations; from number ``last`` on they do not happen."""

    def __init__(self, monkeypatch, last: float = float("inf"), full: bool = False):
        self.count, self.last, self.full = 0, last, full
        for name in ("replace", "link", "fsync", "unlink"):
            monkeypatch.setattr(os, name, partial(self._operate, getattr(os, name), name))
        for name in ("write_bytes", "unlink"):
            monkeypatch.setattr(Path, name, self._method(getattr(Path, name), name))

    def _method(self, real, name):
        return lambda path, *args, **kwargs: self._operate(real, name, path, *args, **kwargs)

    def _operate(self, real, name, *args, **kwargs):
        self.count += 1
        if self.count < self.last or (self.full and name == "unlink"):  # a full disk still deletes
            return real(*args, **kwargs)
        if name == "write_bytes":  # half of it arrives
            with open(args[0], "wb") as file:
                file.write(args[1][: len(args[1]) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if self.full else Death


@pytest.fixture(autouse=True)
def _no_killers(monkeypatch):
    """Leave out the search for frames that kill a process, which takes half a second each time."""
    monkeypatch.setattr("raffect.extraction.steps.find_killers", lambda rows: {})


# Extraction


class Mean:
    """An encoder whose feature is a frame's brightness, which is drawn by its number."""

    identity = Identity(
        model="m",
        weights_sha256="a" * 64,
        weights="none",
        preprocess={"size": 4},
        precision="float32",
        dim=2,
    )
    batch_size = 4

    def probe(self):
        return 1.0

    def encode(self, frames):
        features = [[frame.mean(), frame.shape[0]] for frame in frames]
        return np.array(features, np.float16).reshape(-1, 2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> pa.Table:
    """Ten frames, one of them unreadable."""
    root = tmp_path_factory.mktemp("images")
    (root / "v").mkdir()
    for k in range(1, FRAMES + 1):
        Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(root / "v" / f"{k:05d}.png")
    (root / "v" / "00006.png").write_bytes(b"no picture")
    paths = [f"v/{k:05d}.png" for k in range(1, FRAMES + 1)]
    return pa.table(
        {
            "video": ["v"] * FRAMES,
            "frame": np.arange(1, FRAMES + 1, dtype=np.int32),
            "root": [str(root)] * FRAMES,
            "path": paths,
        }
    )


def extract(folder: Path, manifest: pa.Table) -> None:
    """What `raffect extract` does, with its own functions, in one process and order."""
    bank = Bank(folder)
    plan = bank.extend_plan(manifest, SHARD_ROWS)
    for shard in sorted(set(range(plan.num_shards)) - set(bank.read_commits())):
        rows = manifest.slice(plan.offsets[shard], plan.offsets[shard + 1] - plan.offsets[shard])
        table = pa.table({name: [value] for name, value in to_item(shard, rows).items()})
        load = lambda config, device, threads: Mean()  # noqa: E731
        encode = EncodeShard(EncoderConfig(), str(folder), "cpu", 1, load)
        encoded = encode(read_shard(table, str(folder), Geometry(size=8)))
        failure = commit_shard(encoded, str(folder))["failure"][0].as_py()
        if failure is not None:
            raise RaffectError(failure)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a reader may see, by name below the folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(atomic.PREFIX):
            name = path.relative_to(folder).as_posix()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def operations(monkeypatch, work) -> int:
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        work()
    return disk.count


def break_at(monkeypatch, k: int, full: bool, work) -> None:
    """Run ``work`` on a disk that stops at operation k.

    A full disk may only give errors that users get as one line.
    """
    with monkeypatch.context() as patch:
        Disk(patch, k, full)
        with contextlib.suppress(OSError, RaffectError) if full else pytest.raises(Death):
            work()


@pytest.mark.parametrize("full", [False, True], ids=["death", "full"])
def test_an_extract_broken_at_any_write_is_finished_by_the_next_to_the_same_bytes(
    tmp_path, manifest, monkeypatch, full
):
    extract(tmp_path / "whole", manifest)
    whole = contents(tmp_path / "whole")
    total = operations(monkeypatch, lambda: extract(tmp_path / "counted", manifest))
    assert total > 40
    monkeypatch.setattr("raffect.bank.verify.QUIET_S", 0.0)
    for k in range(1, total + 1):
        # Broken at operation k, the bank is sound, and no file is half-written
        folder = tmp_path / f"{k}"
        break_at(monkeypatch, k, full, lambda folder=folder: extract(folder, manifest))
        if Bank(folder).exists:
            found = verify(Bank(folder))
            assert found.sound, f"operation {k}: {found}"
            assert found.rows + found.rejects + found.missing == found.planned
        digests = contents(folder).items()
        half = {name for name, digest in digests if whole.get(name, digest) != digest}
        assert not half, f"operation {k}: half-written"

        # The next attempt finishes it; `bank verify --repair` deletes what is left over
        extract(folder, manifest)
        found = verify(Bank(folder), manifest)
        assert found.complete, f"operation {k}"
        for path in found.leftovers:
            path.unlink()
        assert contents(folder) == whole, f"operation {k}"


def test_a_writer_without_these_precautions_fails_this_test(tmp_path, manifest, monkeypatch):
    def in_place(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("raffect.storage.commits.write_atomic", in_place)
    with pytest.raises(AssertionError, match="half-written"):
        test_an_extract_broken_at_any_write_is_finished_by_the_next_to_the_same_bytes(
            tmp_path, manifest, monkeypatch, False
        )


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), videos=6, length=20)


def learn(data: Path, out: Path) -> None:
    """`raffect train` of two heads, saving its state after every epoch."""
    config = TrainConfig(
        task="expr",
        bank=data / "bank",
        labels=data,
        out=out,
        epochs=2,
        batch_size=32,
        num_seeds=2,
        head=HeadConfig(width=8, depth=1),
        loss=LossConfig(alpha=0.5),
        sam=SamConfig(rho=0.0),
        device="cpu",
        threads=1,
    )
    training.train(config)


@pytest.mark.parametrize("full", [False, True], ids=["death", "full"])
@pytest.mark.parametrize(
    "every",
    [pytest.param(1, marks=[pytest.mark.cluster, pytest.mark.release]), 9],
    ids=["each", "every ninth"],
)
def test_training_broken_at_any_write_goes_on_to_the_same_heads(
    data, tmp_path, monkeypatch, full, every
):
    monkeypatch.setattr(training, "BatchJob", partial(BatchJob, save_every_s=0.0))
    learn(data, tmp_path / "whole")
    whole = heads(tmp_path / "whole")
    total = operations(monkeypatch, lambda: learn(data, tmp_path / "counted"))
    assert total > 40
    # Both kinds of broken disk begin elsewhere, so that together they break more of the writes
    for k in range(1 + 4 * full, total + 1, every) if every > 1 else range(1, total + 1):
        out = tmp_path / f"{k}"
        break_at(monkeypatch, k, full, lambda out=out: learn(data, out))
        learn(data, out)
        assert heads(out) == whole, f"operation {k}"
        assert len(list((out / "heads").glob("[!.]*.json"))) == 2
        left = list((out / "state").glob("*.safetensors"))
        assert not left, f"operation {k}: state of a finished run"


def heads(out: Path) -> dict[str, str]:
    """SHA-256 of weights and of the one table in which no time stands."""
    found = contents(out)
    names = [name for name in found if name.endswith(".safetensors") or name == "per_group.csv"]
    return {name: found[name] for name in names}


# Captions


@pytest.mark.parametrize("full", [False, True], ids=["death", "full"])
def test_captions_broken_at_any_write_leave_whole_files_that_never_mix(
    data, tmp_path, monkeypatch, full
):
    def caption(out: Path, seed: int) -> None:
        labels = data / "labels" / "expr.parquet"
        source = {"teacher": data / "bank", "labels": labels, "not_in": ("none",)}
        captions(CaptionsConfig(bank=data / "bank", out=out / "c.parquet", seed=seed, **source))

    caption(tmp_path / "old", 0)
    caption(tmp_path / "whole", 1)
    old, whole = contents(tmp_path / "old"), contents(tmp_path / "whole")
    assert old.keys() == whole.keys() == {"c.parquet", "c.targets.parquet"}
    total = operations(monkeypatch, lambda: caption(tmp_path / "counted", 1))
    assert total > 5
    for k in range(1, total + 1):
        out = tmp_path / f"{k}"
        caption(out, 0)
        break_at(monkeypatch, k, full, lambda out=out: caption(out, 1))
        found = contents(out)
        assert all(found[name] in (old[name], whole[name]) for name in whole), f"operation {k}"
        if found not in (old, whole):
            with pytest.raises(RaffectError, match="not the targets that .* was written with"):
                read_targets(out / "c.parquet", read_labels(out / "c.parquet"))
        caption(out, 1)
        assert contents(out) == whole, f"operation {k}"
