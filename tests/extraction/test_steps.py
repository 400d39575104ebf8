"""The three steps without Ray: their tables, attempts, and failures that are returned as data."""

import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.config import EncoderConfig
from raffect.datasets import frames
from raffect.errors import RaffectError
from raffect.extraction import pile
from raffect.extraction.board import Board, Reporter, ShardProgress
from raffect.extraction.notes import EncodeNotes, ReadNotes, ShardStats, read_notes
from raffect.extraction.pile import Memory
from raffect.extraction.probe import probe, time_encoder
from raffect.extraction.steps import EncodeShard, Geometry, commit_shard, read_shard, to_item
from raffect.extraction.summary import Tally, summarise
from raffect.progress import Progress
from raffect.storage.cells import as_cell, read_cell
from tests.helpers.banks import IDENTITY

SIZES = [(112, 112), (40, 30), (112, 112), (300, 260), (1, 1)]


class Mean:
    """A stand-in whose feature is a frame's shape and mean, by which tests tell frames apart."""

    identity = IDENTITY
    batch_size = 4

    def encode(self, pictures):
        features = [[*frame.shape[:2], frame.mean(), 0, 0, 0] for frame in pictures]
        return np.array(features, np.float16).reshape(-1, 6)

    def probe(self):
        return 1.0


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "v").mkdir()
    for k, (height, width) in enumerate(SIZES, start=1):
        picture = Image.fromarray(np.full((height, width, 3), 40 * k, np.uint8))
        picture.save(tmp_path / "v" / f"{k:05d}.png")
    count = len(SIZES)
    return pa.table(
        {
            "video": ["v"] * count,
            "frame": np.arange(1, count + 1, dtype=np.int32),
            "root": [str(tmp_path)] * count,
            "path": [f"v/{k:05d}.png" for k in range(1, count + 1)],
        }
    )


@pytest.fixture
def bank(tmp_path, rows):
    bank = Bank(tmp_path / "bank")
    bank.extend_plan(rows, 16)
    return bank


def as_table(rows):
    return pa.table({key: [value] for key, value in to_item(0, rows).items()})


def load_mean(config, device, threads):
    return Mean()


def run(bank, rows, load=load_mean):
    return answer(encode(bank, rows, load), bank)


def encode(bank, rows, load=load_mean):
    read = read_shard(as_table(rows), str(bank.path), Geometry(size=224))
    return EncodeShard(EncoderConfig(), str(bank.path), "cpu", os.cpu_count(), load)(read)


def answer(encoded, bank):
    """Statistics of a shard, or its failure."""
    row = commit_shard(encoded, str(bank.path)).to_pylist()[0]
    return row["failure"] or read_notes(ShardStats, row["stats"], "bank")


def test_frames_of_mixed_sizes_stay_in_order_and_large_frames_are_shrunk(bank, rows):
    stats = run(bank, rows)
    assert (stats.rows, stats.rejects) == (5, 0)
    from raffect.bank.features import read_shard_features

    stored = read_shard_features(bank, bank.read_commits()[0], 6)
    assert stored[:, :2].tolist() == [[112, 112], [40, 30], [112, 112], [224, 224], [1, 1]]
    assert stored[:, 2].tolist() == [40, 80, 120, 160, 200]
    assert verify(bank).complete
    assert not bank.attempt_path(0).exists()


def test_a_shard_of_bad_frames_alone_is_committed_as_rejects(bank, rows, tmp_path):
    for file in (tmp_path / "v").iterdir():
        file.write_bytes(b"")
    stats = run(bank, rows)
    assert (stats.rows, stats.rejects) == (0, 5)
    assert verify(bank).complete


DEADLY = """
import os
import raffect.datasets.frames as f
real = f.decode
def deadly(content):
    pixels = real(content)
    if pixels[0, 0, 0] == 120:
        os.abort()
    return pixels
f.decode = deadly
"""
"""Put before the code of a child process: the third frame kills its decoder."""


def test_a_frame_that_killed_an_earlier_attempt_is_rejected_alone(bank, rows, monkeypatch):
    monkeypatch.setattr(frames, "_TRIAL", DEADLY + frames._TRIAL)
    assert run(bank, rows).rejects == 0  # without a note nothing is tried in a child
    bank.commit_path(0).unlink()
    bank.attempt_path(0).touch()
    assert run(bank, rows).rejects == 1
    assert bank.read_rejects(bank.read_commits().values()).to_pylist() == [
        {"video": "v", "frame": 3, "reason": "kills its decoder (SIGABRT)"}
    ]
    assert verify(bank).complete


def test_the_note_is_written_before_the_first_frame_is_read(bank, rows, monkeypatch):
    def die(_):
        assert bank.attempt_path(0).exists()
        raise SystemExit("died")

    monkeypatch.setattr("raffect.extraction.steps.read_contents", die)
    with pytest.raises(SystemExit):
        read_shard(as_table(rows), str(bank.path), Geometry(size=224))
    assert bank.attempt_path(0).exists()


def test_an_encoder_that_cannot_be_loaded_is_a_failure_in_the_statistics(bank, rows):
    def load(config, device, threads):
        raise RaffectError("weights are not on this machine; bring them")

    assert run(bank, rows, load) == "weights are not on this machine; bring them"
    assert not bank.commit_path(0).exists()


def test_a_full_disk_is_a_failure_that_names_the_bank_and_leaves_nothing_half_written(
    bank, rows, monkeypatch
):
    def fail(handle):
        raise OSError(28, "No space left on device")

    encoded, real = encode(bank, rows), os.fsync
    monkeypatch.setattr(os, "fsync", fail)
    assert f"{bank.path}: cannot write (No space left on device)" in answer(encoded, bank)
    assert bank.read_commits() == {}
    monkeypatch.setattr(os, "fsync", real)
    assert run(bank, rows).rows == 5
    assert verify(bank).complete


def test_handing_pixels_over_copies_them_once(bank, rows):
    table = read_shard(as_table(rows), str(bank.path), Geometry(size=224))
    assert table["pixels"].type == pa.large_binary()
    expected = [(112, 112), (40, 30), (112, 112), (224, 224), (1, 1)]
    size = sum(height * width * 3 for height, width in expected)
    assert len(table["pixels"][0].as_buffer()) == size


def test_a_root_that_is_gone_stops_the_run_and_rejects_nothing(bank, rows):
    gone = rows.set_column(2, "root", pa.array(["/unmounted"] * len(rows)))
    assert "/unmounted: image root cannot be read" in run(bank, gone)
    assert bank.read_commits() == {}


def test_features_that_are_not_finite_are_never_committed(bank, rows):
    class Broken(Mean):
        def encode(self, pictures):
            return np.full((len(pictures), 6), np.nan, np.float16)

    assert "NaN" in run(bank, rows, lambda config, device, threads: Broken())
    assert bank.read_commits() == {}


class Slow(Mean):
    """An encoder of a given rate, which notes the size of each call."""

    def __init__(self, frames_per_s):
        self.frames_per_s, self.calls = frames_per_s, []

    def probe(self):
        return self.frames_per_s

    def encode(self, pictures):
        self.calls.append(len(pictures))
        time.sleep(len(pictures) / self.frames_per_s)
        return super().encode(pictures)


def encode_with(encoder, bank, rows, board):
    reporter = Reporter(SimpleNamespace(put=SimpleNamespace(remote=board.put)))
    read = read_shard(as_table(rows), str(bank.path), Geometry(size=224))
    place = (str(bank.path), "cpu", 1, lambda config, device, threads: encoder)
    return EncodeShard(EncoderConfig(), *place, reporter)(read)


def test_a_slow_encoder_reports_frames_of_its_shard_and_a_fast_one_does_not(
    bank, rows, monkeypatch
):
    monkeypatch.setattr("raffect.extraction.steps._PIECE_S", 0.2)
    rows = pa.concat_tables([rows] * 4)
    # Pieces of 0.2 seconds, in whole batches of 4
    slow, board = Slow(45.0), Board()
    in_pieces = encode_with(slow, bank, rows, board)
    assert slow.calls == [8, 8, 4]
    assert board.take() == {"stage": "ready", 0: 16}
    assert board.take() == {}
    # A fast encoder has the whole shard at once, and the same features
    fast, board = Slow(1e5), Board()
    at_once = encode_with(fast, bank, rows, board)
    assert fast.calls == [20]
    assert board.take() == {"stage": "ready"}
    assert in_pieces["features"] == at_once["features"]


def test_an_encoder_is_timed_in_whole_batches_without_its_first_one(monkeypatch):
    class ColdStart(Slow):
        def encode(self, pictures):
            time.sleep(0 if self.calls else 1.0)
            return super().encode(pictures)

    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.3)
    encoder = ColdStart(400.0)
    rate = time_encoder(encoder, [np.zeros((8, 8, 3), np.uint8)] * 5)
    assert 20 < rate <= 400  # with the first batch it would be 4
    assert all(size % encoder.batch_size == 0 for size in encoder.calls)


def test_a_probe_of_frames_that_cannot_be_read_encodes_black_ones(
    bank, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr("raffect.extraction.probe._ENCODE_S", 0.1)
    for file in (tmp_path / "v").iterdir():
        file.write_bytes(b"")
    found = probe(rows, EncoderConfig(), Geometry(size=24), "cpu", 1, lambda *_: Slow(1e3))
    assert (found.sampled, found.unreadable, found.identity) == (5, 5, IDENTITY)
    assert 0 < found.encoder_frames_per_s <= 1e3
    assert found.spent_s >= 0.1


def test_reports_of_a_finished_shard_and_of_a_lost_encoder_are_counted_once():
    stats = SimpleNamespace(shard=3, rows=90, rejects=10)
    with Progress("extract", 400, earlier=100) as progress:
        shards = ShardProgress(progress)
        assert progress.text().startswith("waiting for an encoder's process ...")
        shards.update({"stage": "loading"})
        assert progress.text().startswith("loading torch and the encoder ...")
        shards.update({"stage": "ready", 3: 64})
        assert progress.text() == "164 of 400 frames (100 by earlier runs)"
        shards.update({4: 32})
        assert progress.done == 196
        shards.update({"stage": "loading", 4: 8})  # its encoder died, another one began again
        assert progress.done == 172
        shards.finish(stats)
        assert (progress.done, progress.counted) == (208, 100)
        shards.update({3: 96})  # arrives late
        assert progress.done == 208


def test_an_encoder_that_nobody_watches_or_whose_board_is_gone_encodes(bank, rows, monkeypatch):
    monkeypatch.setattr("raffect.extraction.steps._PIECE_S", 0.2)

    def fail(*_):
        raise RuntimeError("the board is gone")

    encoded = encode_with(Slow(20.0), bank, rows, SimpleNamespace(put=fail))
    assert answer(encoded, bank).rows == 5


def test_a_batch_that_the_probe_already_cut_is_reported(bank, rows):
    class Small(Mean):
        def probe(self):
            self.batch_size = 2
            return 1.0

    tally = Tally()
    tally.add(run(bank, rows, lambda config, device, threads: Small()))
    assert any("batches were cut to 2" in note for note in summarise(bank, tally).notes)


@pytest.mark.parametrize("step", ["read", "encode"])
def test_notes_of_another_version_are_one_line(bank, rows, step):
    encoded = encode(bank, rows)
    column = encoded.column_names.index(step)
    line = answer(encoded.set_column(column, step, pa.array([b'{"more": 1}'])), bank)
    assert line.startswith(f"{bank.path}: notes between two steps: damaged, ")
    remedy = "install the same raffect on every machine, then run the same command again"
    assert line.endswith(f"; {remedy}")
    assert "\n" not in line
    assert bank.read_commits() == {}


@pytest.mark.parametrize("kind", [ReadNotes, EncodeNotes, ShardStats])
def test_negative_times_are_refused(kind, bank, rows):
    stats = run(bank, rows)
    notes = {ReadNotes: stats.read, EncodeNotes: stats.encode, ShardStats: stats}[kind]
    assert kind.from_json(notes.to_bytes(), "x", "do") == notes
    name = {ReadNotes: "read_s", EncodeNotes: "encode_start", ShardStats: "commit_s"}[kind]
    fault = f"x: damaged, {name} -1.0: .*greater than or equal to 0; do"
    with pytest.raises(RaffectError, match=fault):
        kind.from_json(notes.to_json() | {name: -1.0}, "x", "do")


@pytest.mark.parametrize("hold", [lambda one: one[9:39].reshape(2, 5, 3), as_cell])
def test_memory_of_frames_is_lent_again_once_nobody_holds_them_and_never_before(hold):
    memory = Memory()
    first = memory.lend(1000)
    first[:] = 1
    held = hold(first)
    del first

    # Another piece of memory, as long as something of the first is held
    other = memory.lend(1000)
    other[:] = 2
    values = held if isinstance(held, np.ndarray) else read_cell(pa.chunked_array([held]))
    assert (values == 1).all()

    # The same piece, if it is free and large enough
    address = other.ctypes.data
    del other
    assert memory.lend(800).ctypes.data == address
    assert memory.lend(2000).size == 2000


def test_memory_of_very_large_pictures_is_not_kept(monkeypatch):
    monkeypatch.setattr(pile, "KEPT_BYTES", 1000)
    memory = Memory()
    large = memory.lend(1001)
    gone = weakref.ref(large)
    del large
    assert gone() is None
    assert memory.lend(10).size == 10


def test_memory_of_one_thread_is_never_that_of_another():
    memory = Memory()
    address = memory.lend(1000).ctypes.data  # free again, for this thread
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: memory.lend(1000).ctypes.data).result() != address
    assert memory.lend(1000).ctypes.data == address


def test_a_shard_that_is_still_held_is_not_overwritten_by_the_next(bank, rows):
    table = read_shard(as_table(rows), str(bank.path), Geometry(size=224))
    before = table["pixels"][0].as_py()
    other = read_shard(as_table(rows.take([4, 3, 2, 1, 0])), str(bank.path), Geometry(size=224))
    assert table["pixels"][0].as_py() == before != other["pixels"][0].as_py()
