"""A manifest whose paths stay in its file gives the rows of one that is read whole."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raffect.datasets import listing as listings
from raffect.datasets import manifest_paths
from raffect.datasets.listing import Listing, Video, build_manifest
from raffect.datasets.manifest import read_manifest
from raffect.datasets.manifest_paths import Manifest, take_frames
from raffect.errors import RaffectError

LENGTHS = {"a": 5, "b": 1, "c": 9, "d": 4}


def _rows():
    videos = [name for name, count in LENGTHS.items() for _ in range(count)]
    frames = [k for count in LENGTHS.values() for k in range(1, count + 1)]
    paths = [f"{video}/{frame:05d}.jpg" for video, frame in zip(videos, frames, strict=True)]
    return {
        "video": pa.array(videos).dictionary_encode(),
        "frame": pa.array(frames, pa.int32()),
        "path": pa.array(paths),
        "root": pa.array(["/images"] * len(paths)).dictionary_encode(),
    }


@pytest.fixture(params=[1, 3, 7, 100])
def path(request, tmp_path):
    """A manifest in row groups of so many rows."""
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table(_rows()), path, row_group_size=request.param)
    return path


def test_rows_are_those_of_a_manifest_that_is_read_whole(path):
    whole, found = read_manifest(path), Manifest(path)
    assert found.frames.column_names == ["video", "frame", "root"]
    assert len(found) == len(whole)
    numbers = np.arange(len(whole))
    rng = np.random.default_rng(0)
    some = [np.sort(rng.choice(numbers, size, replace=False)) for size in (1, 2, 5, 18)]
    # All, each alone, further down, back again, and with gaps
    for places in (numbers, *numbers[:, None], numbers[4:11], numbers[2:3], *some):
        expected = whole.take(pa.array(places)).to_pylist()
        assert take_frames(found, places).select(whole.column_names).to_pylist() == expected
        assert take_frames(whole, places).to_pylist() == expected


def test_another_file_in_its_place_changes_nothing(path):
    found, before = Manifest(path), read_manifest(path)["path"].to_pylist()
    rows = _rows()
    other = path.with_name("other.parquet")
    pq.write_table(pa.table(rows | {"path": pa.array(["x"] * len(rows["path"]))}), other)
    other.replace(path)
    assert found.take(np.arange(len(before)))["path"].to_pylist() == before


def test_another_file_while_frames_are_read_is_refused(path, monkeypatch):
    def read(*args, **options):
        found = read_manifest(*args, **options)
        rows = _rows() | {"path": pa.array(["x"] * len(found))}
        pq.write_table(pa.table(rows), path.with_name("other.parquet"))
        path.with_name("other.parquet").replace(path)
        return found

    monkeypatch.setattr(manifest_paths, "read_manifest", read)
    with pytest.raises(RaffectError, match="was replaced while it was read; run the same command"):
        Manifest(path)


def test_bytes_that_are_lost_later_are_an_error_of_one_line(path):
    found = Manifest(path)
    with path.open("r+b") as file:
        file.truncate(8)
    with pytest.raises(RaffectError, match="manifest.parquet: not a readable Parquet file"):
        found.take(np.arange(len(found)))


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        (None, "column 'path' is missing"),
        (pa.array(["x"] * 18 + [None]), "empty cells"),
        (pa.array(range(19)), "expected text"),
        (pa.array([b"x"] * 18 + [b"\xff"]).view(pa.string()), "column 'path' is damaged"),
    ],
    ids=["missing", "empty", "numbers", "not UTF-8"],
)
def test_damaged_paths_are_refused_before_anything_is_taken(tmp_path, column, fault):
    rows, path = _rows(), tmp_path / "manifest.parquet"
    del rows["path"]
    pq.write_table(pa.table(rows if column is None else rows | {"path": column}), path)
    with pytest.raises(RaffectError, match=fault):
        Manifest(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RaffectError, match="not a readable Parquet file"):
        Manifest(path)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_frames_of_two_roots_are_sorted_with_their_paths(monkeypatch, at_once):
    monkeypatch.setattr(listings, "_TEXTS", at_once)
    videos = [
        Video("b", "/one", "b", np.array([3, 1], np.int32), pa.array(["3.jpg", "1.jpg"])),
        Video("a", "/one", "a", np.array([2], np.int32), pa.array(["2.jpg"])),
        Video("b", "/two", "b", np.array([2, 3], np.int32), pa.array(["2.png", "3.png"])),
    ]
    listing = Listing(pa.table({}))
    found = build_manifest(videos, listing).to_pylist()
    assert [(row["path"], row["root"]) for row in found] == [
        ("a/2.jpg", "/one"),
        ("b/1.jpg", "/one"),
        ("b/2.png", "/two"),
        ("b/3.jpg", "/one"),
    ]
    assert [problem.file for problem in listing.problems] == ["b/3.png"]
