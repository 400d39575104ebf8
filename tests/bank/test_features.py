"""Reading a task's features: exact join, filters, memory map, and errors for damaged shards."""

import errno
import os

import numpy as np
import pyarrow as pa
import pytest

from raffect.bank.features import find_features, read_features
from raffect.bank.format import Bank
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.errors import RaffectError
from tests.helpers.banks import fill_bank, make_manifest

MANIFEST = make_manifest({"a": 30, "b": 30, "c": 7})
PLANNED = [(row["video"], row["frame"]) for row in MANIFEST.to_pylist()]
REJECTS = {0: {3: "empty file"}, 2: {0: "x", 1: "y"}}
"""Row of a shard of 16 -> reason, by shard."""


def make_labels(seed=0):
    """Expressions in shuffled order, some of them unknown, some of frames without an image."""
    rng = np.random.default_rng(seed)
    rows = [
        (video, frame, split)
        for video, split in (("b", "train"), ("a", "train"), ("c", "validation"), ("z", "train"))
        for frame in range(1, 36)
    ]
    rows = [rows[k] for k in rng.permutation(len(rows))]
    values = rng.integers(-1, 8, len(rows))
    return pa.table(
        {
            "video": [row[0] for row in rows],
            "frame": pa.array([row[1] for row in rows], pa.int32()),
            "split": [row[2] for row in rows],
            "expression": pa.array(values, pa.int8()),
        }
    )


def expected(labels, split, videos=None):
    """A plain dictionary join, row by row, and how many labelled frames have no feature."""
    rejected = [16 * shard + row for shard, bad in REJECTS.items() for row in bad]
    number = {key: k for k, key in enumerate(PLANNED) if k not in rejected}
    wanted = labelled(labels, split)
    if videos is not None:
        wanted = [row for row in wanted if row["video"] in videos]
    found = []
    for row in wanted:
        key = row["video"], row["frame"]
        if key in number:
            found.append((number[key], *key, row["expression"]))
    return sorted(found), len(wanted) - len(found)


def labelled(labels, split):
    rows = labels.to_pylist()
    return [row for row in rows if row["split"] == split and row["expression"] >= 0]


@pytest.fixture
def bank(tmp_path):
    return fill_bank(tmp_path / "bank", MANIFEST, rejects=REJECTS)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("videos", [None, {"a"}, {"b", "z"}])
def test_the_join_is_that_of_a_dictionary(bank, split, videos):
    labels = make_labels()
    rows, missing = expected(labels, split, videos)
    if not rows:
        with pytest.raises(RaffectError, match="no frame"):
            read_features(bank, labels, EXPR, split, videos=videos)
        return
    out = read_features(bank, labels, EXPR, split, videos=videos)
    assert out.x[:, 0].tolist() == [row[0] for row in rows]
    assert out.x.flags.c_contiguous
    assert out.x.dtype == np.float16
    assert [out.videos[k] for k in out.video] == [row[1] for row in rows]
    assert out.frame.tolist() == [row[2] for row in rows]
    assert out.y[:, 0].tolist() == [row[3] for row in rows]
    assert out.missing.total == missing


def test_limit_takes_the_first_ones_and_memmap_the_same_numbers(bank, tmp_path):
    labels = make_labels()
    whole = read_features(bank, labels, EXPR, "train")
    part = read_features(bank, labels, EXPR, "train", limit=11)
    assert np.array_equal(part.x, whole.x[:11])
    assert np.array_equal(part.y, whole.y[:11])
    mapped = read_features(bank, labels, EXPR, "train", memmap=tmp_path / "x.npy", threads=3)
    assert isinstance(mapped.x, np.memmap)
    assert np.array_equal(mapped.x, whole.x)
    assert np.array_equal(np.load(tmp_path / "x.npy"), whole.x)


def test_a_full_disk_is_an_error_before_anything_is_mapped(bank, tmp_path, monkeypatch):
    def refuse(handle, start, size):
        assert (start, size) == (0, os.fstat(handle).st_size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(OSError, match="No space left on device: .*x.npy"):
        read_features(bank, make_labels(), EXPR, "train", memmap=tmp_path / "x.npy")


def test_a_bank_that_is_not_finished_gives_what_it_has(bank):
    bank.commit_path(1).unlink()
    labels = make_labels()
    whole, _ = expected(labels, "train")
    out = read_features(Bank(bank.path), labels, EXPR, "train")
    assert out.x[:, 0].tolist() == [row[0] for row in whole if not 16 <= row[0] < 32]
    assert out.missing.not_extracted > 0


def test_au_rows_need_one_known_unit(bank):
    values = np.full((3, 12), -1, np.int8)
    values[1, 4] = 0
    table = pa.table(
        {
            "video": ["a"] * 3,
            "frame": pa.array([1, 2, 3], pa.int32()),
            "split": ["train"] * 3,
            **{unit: values[:, k] for k, unit in enumerate(AU.columns)},
        }
    )
    out = read_features(bank, table, AU, "train")
    assert out.frame.tolist() == [2]
    assert out.y.shape == (1, 12)


def test_a_damaged_shard_is_one_clear_error(bank):
    content = bank.shard_path(0).read_bytes()
    bank.shard_path(0).write_bytes(content[:-4] + b"xxxx")
    with pytest.raises(RaffectError, match=r"000000-\w{8}\.parquet.*verify"):
        read_features(bank, make_labels(), EXPR, "train")


@pytest.mark.parametrize("folder", ["shards", "rejects"])
def test_one_flipped_bit_of_a_committed_file_is_never_read(bank, folder):
    bank.digest()
    for file in sorted((bank.path / folder).glob("*.parquet"))[:1]:
        content = file.read_bytes()
        for place in range(0, len(content), 97):
            flipped = bytearray(content)
            flipped[place] ^= 2
            file.write_bytes(flipped)
            fault = rf"{file.name}: not the file that was committed.*verify"
            with pytest.raises(RaffectError, match=fault):
                read_features(Bank(bank.path), make_labels(), EXPR, "train")
        file.write_bytes(content)
    read_features(Bank(bank.path), make_labels(), EXPR, "train")


def test_labelled_frames_without_a_feature_are_counted_by_reason(bank):
    labels = make_labels()
    wanted = {(row["video"], row["frame"]) for row in labelled(labels, "train")}
    rejected = {PLANNED[16 * shard + row] for shard, bad in REJECTS.items() for row in bad}
    bank.commit_path(1).unlink()
    missing = read_features(Bank(bank.path), labels, EXPR, "train").missing
    assert missing.no_image == len(wanted - set(PLANNED))
    assert missing.rejected == len(wanted & rejected)
    assert missing.not_extracted == len(wanted & set(PLANNED[16:32]))


def test_a_frame_that_is_labelled_twice_is_refused(bank):
    labels = make_labels()
    rows = labelled(labels, "train")
    row = next(row for row in rows if row["video"] == "a" and row["frame"] > 4)
    doubled = pa.concat_tables([labels, pa.Table.from_pylist([row], schema=labels.schema)])
    fault = f"1 frame.* of train twice, first a frame {row['frame']};"
    with pytest.raises(RaffectError, match=fault):
        read_features(bank, doubled, EXPR, "train")


def test_calls_with_the_same_commits_see_the_same_shards(bank):
    commits = bank.read_commits()
    first = find_features(bank, make_labels(), EXPR, "train", commits=commits)
    seen = {shard: commits[shard] for shard in list(commits)[1:]}
    assert len(find_features(bank, make_labels(), EXPR, "train", commits=seen)) < len(first)
    assert bank.digest(seen) != bank.digest(commits) == bank.digest()


def test_an_empty_bank_is_one_clear_error(tmp_path):
    bank = Bank(tmp_path / "bank")
    with pytest.raises(RaffectError, match="no bank"):
        read_features(bank, make_labels(), EXPR, "train")
    bank.extend_plan(MANIFEST)
    with pytest.raises(RaffectError, match="nothing extracted"):
        read_features(bank, make_labels(), EXPR, "train")


def test_groups_are_what_the_table_says_and_videos_otherwise(bank):
    labels = make_labels()
    plain = find_features(bank, labels, EXPR, "train")
    assert (plain.group.tolist(), plain.groups) == (plain.video.tolist(), plain.videos)
    subject = dict(zip("abcz", ("kim", "lee", "kim", "lee"), strict=True))
    names = [f"{subject[row['video']]}-{row['frame'] % 3}" for row in labels.to_pylist()]
    index = find_features(bank, labels.append_column("group", pa.array(names)), EXPR, "train")
    expected = [
        f"{subject[index.videos[video]]}-{frame % 3}"
        for video, frame in zip(index.video, index.frame, strict=True)
    ]
    assert [index.groups[number] for number in index.group] == expected
    part = index.select(index.frame % 3 == 1)
    assert sorted(part.groups) == ["kim-1", "lee-1"]
    assert [part.groups[number] for number in part.group] == [
        name for name in expected if name.endswith("-1")
    ]


def test_more_groups_than_statistics_are_kept_of_are_put_into_blocks(tmp_path):
    count = 1300
    manifest = make_manifest({f"p{k:04d}.jpg": 1 for k in range(count)})
    bank = fill_bank(tmp_path / "bank", manifest, shard_rows=500)
    labels = pa.table(
        {
            "video": manifest["video"],
            "frame": manifest["frame"],
            "split": ["train"] * count,
            "expression": pa.array([k % 8 for k in range(count)], pa.int8()),
        }
    )
    index = find_features(bank, labels, EXPR, "train")
    assert len(index.videos) == count
    assert 500 < len(index.groups) <= 1000
    assert index.group.max() == len(index.groups) - 1
    again = find_features(bank, labels.take(pa.array(range(100, count))), EXPR, "train")
    # A picture's block does not depend on the other pictures.
    assert group_by_video(again).items() <= group_by_video(index).items()


def group_by_video(index):
    pairs = zip(index.video, index.group, strict=True)
    return {index.videos[video]: index.groups[group] for video, group in pairs}
