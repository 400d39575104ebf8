"""Windows: by frame number, of one video, each feature once, as a plain loop finds them."""

import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raffect.bank.clips import ClipIndex
from raffect.bank.features import find_features
from raffect.bank.format import Bank
from raffect.bank.in_order import frames_in_order
from raffect.bank.windows import Window, WindowIndex, around, find_windows, spread
from raffect.datasets.labels import write_clip_labels
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.recipe import HeadConfig
from raffect.runs import data as runs_data
from raffect.runs.data import open_dataset
from raffect.runs.read_samples import read_rows
from raffect.runs.windows import require_full_window
from raffect.storage.tables import write_table
from raffect.training.stream import decide_stream
from tests.helpers.banks import IDENTITY, LAST, draw_bank

TASK = Task(name="mood", kind="multiclass", outputs=("low", "high"), columns=("mood",))
CPU = torch.device("cpu")
SHAPES = [Window(2, 1), Window(3, 1), Window(8, 1), Window(5, 3), Window(4, 7), Window(1, 1)]


def label(keys, rng, share=0.5):
    """A label table of some frames, in any order, with some that the bank lacks."""
    rows = [key for key in keys if rng.random() < share] + [("v0", 99), ("elsewhere", 1)]
    rows = [rows[k] for k in rng.permutation(len(rows))]
    return pa.table(
        {
            "video": [video for video, _ in rows],
            "frame": pa.array([frame for _, frame in rows], pa.int32()),
            "mood": pa.array(rng.integers(0, 2, len(rows)), pa.int8()),
            "split": ["train"] * len(rows),
        }
    )


def windows_by_loop(index, features, window):
    """The features of each window, looked up one by one; NaN where there is none."""
    nothing, out = np.full(IDENTITY.dim, np.nan, np.float16), []
    for video, frame in zip(index.video, index.frame, strict=True):
        numbers = [
            int(frame) + (k - window.length // 2) * window.stride for k in range(window.length)
        ]
        out.append([features.get((index.videos[video], n), nothing) for n in numbers])
    return np.array(out)


def read_windows(index):
    """The features of each window by its numbers."""
    x = np.concatenate([index.read(), np.full((1, index.dim), np.nan, np.float16)])
    return x[index.window]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_windows_are_what_a_plain_loop_over_frame_numbers_finds(tmp_path, seed):
    bank, features = draw_bank(tmp_path / "bank", seed)
    index = find_features(bank, label(features, np.random.default_rng(seed)), TASK, "train")
    for window in SHAPES:
        found = find_windows(index, frames_in_order(bank), window)
        expected = windows_by_loop(index, features, window)
        np.testing.assert_array_equal(read_windows(found), expected)
        assert found.window.dtype == np.int32
        # Samples are those of single features, and each feature is there once
        for name in ("y", "video", "frame", "group"):
            np.testing.assert_array_equal(getattr(found, name), getattr(index, name))
        places = found.shard * 100 + found.row
        assert (np.diff(places) > 0).all()
        assert set(found.window[found.window >= 0].tolist()) == set(range(len(places)))


@pytest.mark.parametrize("seed", [1])
def test_some_windows_alone_are_those_that_they_are_among_others(tmp_path, seed):
    rng = np.random.default_rng(seed)
    bank, features = draw_bank(tmp_path / "bank", seed)
    index = find_features(bank, label(features, rng), TASK, "train")
    whole = find_windows(index, frames_in_order(bank), Window(5, 2))
    keep = rng.random(len(index)) < 0.2
    part = whole.select(keep)
    np.testing.assert_array_equal(read_windows(part), read_windows(whole)[keep])
    assert len(part) == keep.sum()
    assert set(part.window[part.window >= 0].tolist()) == set(range(len(part.shard)))
    assert part.videos == index.select(keep).videos


def test_a_window_never_reaches_into_another_video():
    video = np.int64(1) << 32
    keys = np.array([0 * video + LAST, video + 1, video + 2, 2 * video + 1])
    found = around(keys, keys, Window(1024, 1024))
    assert (found >= 0).sum(1).tolist() == [1, 1, 1, 1]
    assert around(keys, keys, Window(3, 1)).tolist() == [
        [-1, 0, -1],
        [-1, 1, 2],
        [1, 2, -1],
        [-1, 3, -1],
    ]


@pytest.mark.parametrize("seed", [0, 3])
def test_features_of_a_clip_are_the_middles_of_equal_parts_of_what_is_there(tmp_path, seed):
    rng = np.random.default_rng(seed)
    bank, features = draw_bank(tmp_path / "bank", seed)
    rows = []
    for _ in range(40):
        video, start = f"v{rng.integers(6)}", int(rng.integers(1, 50))
        end = start + int(rng.integers(0, 30))
        rows.append({"video": video, "start": start, "end": end, "mood": 0, "split": "train"})
    rows = list({(row["video"], row["start"], row["end"]): row for row in rows}.values())
    path = tmp_path / "clips.parquet"
    write_clip_labels(path, pa.Table.from_pylist(rows), TASK)
    dataset = open_dataset(bank.path, path, "mood", ["train"])
    index = dataset.splits["train"]
    assert isinstance(index, ClipIndex)
    for length in (2, 4, 9, 64):
        found = dataset.rows("train", HeadConfig(kind="temporal", window=length))
        for n, window in enumerate(read_windows(found)):
            name, first, last = index.videos[index.video[n]], index.frame[n], index.end[n]
            there = [features[key] for key in sorted(features) if key[0] == name]
            numbers = [key[1] for key in sorted(features) if key[0] == name]
            clip = [x for x, number in zip(there, numbers, strict=True) if first <= number <= last]
            expected = np.full((length, IDENTITY.dim), np.nan, np.float16)
            picked = [clip[int((k + 0.5) * len(clip) / length)] for k in range(length)]
            picked = clip if len(clip) <= length else picked
            expected[: len(picked)] = picked
            np.testing.assert_array_equal(window, expected)


def test_evenly_spread_means_the_middle_of_each_part():
    among = np.arange(1, 41)
    first, last = np.array([1, 2, 5, 41]), np.array([20, 3, 11, 50])
    found = spread(first, last, among, 7)
    assert (found - [[0], [1], [4], [0]]).tolist()[0] == [1, 4, 7, 10, 12, 15, 18]
    assert found[1].tolist() == [1, 2, -1, -1, -1, -1, -1]
    assert found[2].tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert found[3].tolist() == [-1] * 7  # a clip of no frame
    assert spread(first[:1], last[:1], among, 1).tolist() == [[10]]


@pytest.fixture
def data(tmp_path):
    """A bank, and a label table of half of its frames."""
    bank, features = draw_bank(tmp_path / "bank", 1)
    rng = np.random.default_rng(1)
    keys = [key for key in features if rng.random() < 0.5]
    table = label(keys, rng, 1.0)
    split = ["train" if k % 2 else "validation" for k in range(len(table))]
    table = table.set_column(table.column_names.index("split"), "split", pa.array(split))
    meta = {"raffect": "labels/1", "task": TASK.to_bytes().decode(), "digest": ""}
    write_table(table, tmp_path / "mood.parquet", meta)
    return bank, features, tmp_path / "mood.parquet"


def test_a_window_of_one_is_todays_path_byte_for_byte(data):
    bank, _, path = data
    dataset = open_dataset(bank.path, path)
    index = dataset.splits["train"]
    assert dataset.rows("train", HeadConfig(stride=9)) is index
    samples = read_rows(dataset.rows("train", HeadConfig()), TASK, CPU)
    assert samples.window is None
    assert samples.x.numpy().tobytes() == index.read().tobytes()
    # And windows of one, were they made, would be the same samples
    one = find_windows(index, frames_in_order(bank), Window(1, 1))
    assert read_rows(one, TASK, CPU).samples()[:, 0].numpy().tobytes() == index.read().tobytes()
    around_them = open_dataset(bank.path, path, around=True)
    assert around_them.fingerprint == dataset.fingerprint
    assert around_them.facts == dataset.facts


def test_windows_are_read_once_for_all_heads_and_are_samples_of_the_learner(data):
    bank, features, path = data
    dataset = open_dataset(bank.path, path)
    head = HeadConfig(kind="temporal", window=4, stride=2)
    index = dataset.rows("train", head)
    assert dataset.rows("train", head) is index
    samples = read_rows(index, TASK, CPU)
    expected = windows_by_loop(index, features, Window(4, 2))
    np.testing.assert_array_equal(samples.samples().numpy(), expected)
    which = torch.tensor([[3, 0], [1, 3]])
    np.testing.assert_array_equal(samples.take(which)[0].numpy(), expected[which.numpy()])
    assert samples.part(slice(3, 3)).samples().shape == (0, 4, IDENTITY.dim)  # a worker's last part
    fold = dataset.fold_of_frames(2)
    assert len(index.select(fold == 1)) == (fold == 1).sum()


def test_frames_are_found_once_and_windows_of_one_shape_are_kept(data, monkeypatch):
    bank, _, path = data
    asked = []
    for name in ("frames_in_order", "find_windows"):
        plain = getattr(runs_data, name)
        count = lambda *given, plain=plain, name=name: asked.append(name) or plain(*given)  # noqa: E731
        monkeypatch.setattr(runs_data, name, count)
    dataset = open_dataset(bank.path, path, around=True)
    earlier = []
    for length in (4, 2, 3):
        head = HeadConfig(kind="temporal", window=length)
        both = [dataset.rows(split, head) for split in ("train", "validation")]
        # Heads of folds ask again, and single features are not in the way
        for split, index in zip(("train", "validation"), both, strict=True):
            assert dataset.rows(split, HeadConfig()) is dataset.splits[split]
            assert dataset.rows(split, head) is index
        assert all(index() is None for index in earlier)
        earlier = [weakref.ref(index) for index in both]
        del both, index
    assert asked == ["frames_in_order", *["find_windows"] * 6]


def test_windows_of_which_none_is_full_are_refused_by_name(data):
    bank, _, path = data
    dataset = open_dataset(bank.path, path)
    head = HeadConfig(kind="temporal", window=256, stride=2)
    index = dataset.rows("train", head)
    line = rf"head.window 256, head.stride 2: the fullest window .* has {index.fullest} frames;"
    with pytest.raises(RaffectError, match=line):
        require_full_window(index, head, of_clips=False)
    require_full_window(dataset.splits["train"], HeadConfig(), of_clips=False)


def test_a_bank_that_lacks_neighbours_is_incomplete_for_windows(data):
    bank, features, path = data
    # A shard whose frames have no label is withdrawn
    plan, table = bank.plan, pq.read_table(path)
    lost = {tuple(row.values()) for row in plan.rows(0).to_pylist()}
    keys = [tuple(row.values()) for row in table.select(["video", "frame"]).to_pylist()]
    pq.write_table(table.filter(pa.array([key not in lost for key in keys])), path)
    next((bank.path / "commits").glob("*000000*")).unlink()
    assert lost & set(keys)
    assert open_dataset(bank.path, path).facts.incomplete == ""
    line = f"8 of {len(plan.table):,} frames are planned and not there"
    with pytest.raises(RaffectError, match=line):
        open_dataset(bank.path, path, around=True)
    found = open_dataset(bank.path, path, around=True, allow_incomplete=True)
    assert found.facts.incomplete == f"8 of {len(plan.table):,} frames"
    index = found.rows("train", HeadConfig(kind="temporal", window=3))
    left = {key: x for key, x in features.items() if key not in lost}
    np.testing.assert_array_equal(read_windows(index), windows_by_loop(index, left, Window(3, 1)))


def test_a_feature_that_is_not_finite_is_named_though_its_frame_has_no_label(tmp_path):
    bank = Bank(tmp_path / "bank")
    names, frames = ["b"] * 4 + ["a"] * 9, [*range(1, 5), *range(1, 10)]
    rows = sorted(zip(names, frames, strict=True))
    table = {"video": [v for v, _ in rows], "frame": pa.array([f for _, f in rows], pa.int32())}
    plan = bank.extend_plan(pa.table(table | {"path": names, "root": names}), 4)  # a: shards 0-2
    bank.claim(IDENTITY)
    for shard in range(plan.num_shards):
        x = np.ones((len(plan.rows(shard)), IDENTITY.dim), np.float16)
        if shard == 1:
            x[2, 3] = np.inf  # of frame 7 of video a: row 0 is rejected
        bad = {0: "damaged"} if shard == 1 else {}
        bank.commit(shard, plan.rows(shard), x[len(bad) :], bad, IDENTITY)
    labels = pa.table({"video": ["a"], "frame": [6], "mood": [0], "split": ["train"]})
    index = find_features(bank, labels, TASK, "train")
    read_rows(index, TASK, CPU)
    wide = find_windows(index, frames_in_order(bank), Window(5, 1))
    with pytest.raises(RaffectError, match="the feature of a frame 7 is not finite"):
        read_rows(wide, TASK, CPU)


def test_windows_are_not_streamed(data, monkeypatch):
    bank, _, path = data
    index = open_dataset(bank.path, path).rows("train", HeadConfig(kind="temporal", window=4))
    assert isinstance(index, WindowIndex)
    assert decide_stream("auto", index, "cpu") == "never"
    with pytest.raises(RaffectError, match="--stream always: windows .head.window. need features"):
        decide_stream("always", index, "cpu")
    monkeypatch.setattr("raffect.training.stream.MEMORY_SHARE", 1e-12)
    assert decide_stream("never", index, "cpu") == "never"
    with pytest.raises(RaffectError, match="head.window: windows and their features take"):
        decide_stream("auto", index, "cpu")


@pytest.mark.timeout(60)  # 0.15 s on an idle core; of each with each there are ten billion
def test_windows_of_a_hundred_thousand_frames_are_not_looked_for_in_pairs():
    video = np.sort(np.random.default_rng(0).integers(0, 40, 100_000)).astype(np.int64)
    keys = (video << 32) | np.arange(len(video))
    assert around(keys, keys, Window(16, 1)).shape == (100_000, 16)
