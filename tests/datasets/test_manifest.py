"""Manifests: numbers come from names, several roots, nothing is left out without a report."""

import os

import numpy as np
import pyarrow as pa
import pytest

from raffect.datasets.listing import list_images
from raffect.datasets.manifest import is_synthetic_manifest, read_manifest, write_manifest
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, digest_keys, positions
from tests.helpers.banks import make_manifest


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def rows(listing):
    return [(row["video"], row["frame"], row["path"]) for row in listing.table.to_pylist()]


def test_a_gap_in_the_files_is_a_gap_in_the_numbers(tmp_path):
    touch(tmp_path, "b/00007.jpg", "b/00002.jpg", "a_left/00010.JPG", "a_left/00001.png")
    assert rows(list_images([tmp_path])) == [
        ("a_left", 1, "a_left/00001.png"),
        ("a_left", 10, "a_left/00010.JPG"),
        ("b", 2, "b/00002.jpg"),
        ("b", 7, "b/00007.jpg"),
    ]


def test_other_files_are_counted_and_zero_is_not_a_frame(tmp_path):
    others = ("a/.DS_Store", "a/00000.jpg", "a/00002_mask.png", "a/٣.jpg", "a/1e3.jpg")
    touch(tmp_path, "a/00001.jpg", *others, "readme.txt")
    listing = list_images([tmp_path])
    assert rows(listing) == [("a", 1, "a/00001.jpg")]
    assert listing.ignored.total == 6


def test_ignored_files_are_named_by_kind_with_their_number(tmp_path):
    pictures = [f"a/mask_{k}.png" for k in range(12)]
    others = ("readme.txt", "b/notes.TXT", "b/LICENSE", "a/.DS_Store", ".cache/x.jpg")
    touch(tmp_path, "a/00001.jpg", "b/00001.jpg", *pictures, *others)
    first = "a/mask_0.png, a/mask_1.png, a/mask_10.png ..."
    assert list_images([tmp_path]).lines() == [
        f"ignored among the images: 12 pictures without a frame number from 1 ({first})",
        "ignored among the images: 2 .txt files (b/notes.TXT, readme.txt)",
        "ignored among the images: 2 hidden (.cache, a/.DS_Store)",
        "ignored among the images: 1 files without a suffix (b/LICENSE)",
    ]


def test_files_beside_nested_videos_are_counted_once(tmp_path):
    touch(tmp_path, "archive/a/00001.jpg", "archive/readme.txt", "archive/.hidden")
    (tmp_path / "archive" / "loop").symlink_to("loop")
    listing = list_images([tmp_path])
    assert listing.ignored.counts == {".txt files": 1, "hidden": 1}
    assert len(listing.problems) == 1


def test_a_folder_name_with_a_colon_stays_the_file_of_its_problem(tmp_path):
    listing = list_images([touch(tmp_path, "a/00001.jpg", "b: c/00001.txt")])
    (problem,) = listing.problems
    assert (problem.file, problem.what) == (str(tmp_path / "b: c"), "no frames in it")


def test_nested_archives_and_several_roots_with_the_first_one_winning(tmp_path):
    one = touch(tmp_path / "one", "cropped_aligned/a/00001.jpg")
    two = touch(tmp_path / "two", "a/00001.jpg", "a/00002.jpg", "c/00001.jpg")
    listing = list_images([one, two])
    roots = [row["root"].rsplit("/", 1)[-1] for row in listing.table.to_pylist()]
    assert roots == ["cropped_aligned", "two", "two"]
    assert any("same frame" in problem.what for problem in listing.problems)


def test_a_number_twice_in_one_folder_counts_once_and_is_reported(tmp_path):
    listing = list_images([touch(tmp_path, "a/00001.jpg", "a/1.png")])
    assert len(listing.table) == 1
    assert len(listing.problems) == 1


def test_names_that_are_not_utf8_are_reported(tmp_path):
    touch(tmp_path, "a/00001.jpg")
    bad = os.fsencode(tmp_path) + b"/v\xff"
    os.mkdir(bad)
    open(bad + b"/00001.jpg", "wb").close()
    listing = list_images([tmp_path])
    assert len(listing.table) == 1
    assert "not UTF-8" in listing.problems[0].what
    assert "\\xff" in listing.problems[0].file


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    touch(tmp_path, "a/00001.jpg", "b/00001.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = list_images([tmp_path])
    assert rows(listing) == [("a", 1, "a/00001.jpg")]
    assert any("Permission denied" in problem.what for problem in listing.problems)


@pytest.mark.parametrize(("names", "match"), [((), "no frames"), (("00001.jpg",), "folder above")])
def test_a_wrong_root_is_one_clear_error(tmp_path, names, match):
    with pytest.raises(RaffectError, match=match):
        list_images([touch(tmp_path, *names)])
    with pytest.raises(RaffectError, match="no such folder"):
        list_images([tmp_path / "missing"])


def test_a_manifest_comes_back_and_keeps_whether_it_is_synthetic(tmp_path):
    table = make_manifest({"a": 3, "b": 2})
    write_manifest(table, tmp_path / "m.parquet", synthetic=True)
    back = read_manifest(tmp_path / "m.parquet")
    assert back.select(["video", "frame", "path", "root"]).to_pylist() == table.to_pylist()
    assert is_synthetic_manifest(back)
    write_manifest(table, tmp_path / "m.parquet", synthetic=False)
    assert not is_synthetic_manifest(read_manifest(tmp_path / "m.parquet"))


def test_a_manifest_is_found_in_the_folder_that_holds_it(tmp_path):
    write_manifest(make_manifest({"a": 3}), tmp_path / "manifest.parquet", synthetic=False)
    assert len(read_manifest(tmp_path)) == 3
    (tmp_path / "manifest.parquet").unlink()
    with pytest.raises(RaffectError, match=r"manifest\.parquet: no such manifest; .*prepare"):
        read_manifest(tmp_path)


def broken(table, how):
    if how == "unsorted":
        return table.take([1, 0, 2])
    if how == "doubled":
        return pa.concat_tables([table.slice(0, 1), table])
    if how == "column":
        return table.drop_columns("frame")
    if how == "null":
        return table.set_column(2, "path", pa.array(["x", None, "y"]))
    if how == "zero":
        return table.set_column(1, "frame", pa.array([0, 1, 2], pa.int32()))
    if how == "type":
        return table.set_column(1, "frame", pa.array([1, 2, 3], pa.int64()))
    return table.slice(0, 0)


@pytest.mark.parametrize("how", ["unsorted", "doubled", "column", "null", "zero", "type", "empty"])
def test_a_wrong_manifest_is_one_clear_error(tmp_path, how):
    import pyarrow.parquet as pq

    pq.write_table(broken(make_manifest({"a": 3}), how), tmp_path / "m.parquet")
    with pytest.raises(RaffectError, match=r"m\.parquet"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text"])
def test_a_file_that_is_not_parquet_is_one_clear_error(tmp_path, content):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(RaffectError, match="not a readable Parquet"):
        read_manifest(tmp_path / "m.parquet")
    with pytest.raises(RaffectError, match="raffect prepare"):
        read_manifest(tmp_path / "missing.parquet")


def test_keys_join_as_a_dictionary_does():
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(90, 50, replace=False))
    left = make_manifest({"a": 40, "b": 30, "c": 20}).take(chosen)
    right = make_manifest({"b": 40, "a": 10, "d": 5})
    vocabulary = Vocabulary()
    keys, among = vocabulary.keys(left), vocabulary.keys(right)
    order = np.argsort(among)
    found = positions(keys, among[order])
    where = {(row["video"], row["frame"]): i for i, row in enumerate(right.to_pylist())}
    expected = [where.get((row["video"], row["frame"]), -1) for row in left.to_pylist()]
    assert [order[i] if i >= 0 else -1 for i in found] == expected


def test_the_key_digest_ignores_paths_and_dictionaries_but_no_row():
    table = make_manifest({"a": 3, "b": 2})
    moved = make_manifest({"a": 3, "b": 2}, root="/elsewhere")
    plain = table.set_column(0, "video", table["video"].cast(pa.string()))
    assert digest_keys(table) == digest_keys(moved) == digest_keys(plain)
    assert digest_keys(table) != digest_keys(table.slice(0, 4))


def test_folders_beside_frames_are_reported(tmp_path):
    for name in ("cropped/v/00001.jpg", "cropped/1.jpg", "new/w/00001.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = list_images([tmp_path])
    assert sorted(set(listing.table["video"].to_pylist())) == ["cropped", "w"]
    assert ["its folders left out" in problem.what for problem in listing.problems] == [True]


def test_links_are_followed_and_those_that_leave_the_root_are_counted(tmp_path):
    root = touch(tmp_path / "root", "a/00001.jpg", "d/00001.jpg")
    elsewhere = touch(tmp_path / "elsewhere", "b/00001.jpg", "00002.jpg")
    (root / "b").symlink_to(elsewhere / "b")
    (root / "c").symlink_to(root / "d")
    (root / "a" / "00002.jpg").symlink_to(elsewhere / "00002.jpg")
    listing = list_images([root])
    found = [(video, frame) for video, frame, _ in rows(listing)]
    assert found == [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("d", 1)]
    assert listing.links_out == [f"a/00002.jpg -> {elsewhere}/00002.jpg", f"b -> {elsewhere}/b"]
    assert listing.problems == []


def test_a_root_that_is_a_link_itself_does_not_count_as_leaving(tmp_path):
    touch(tmp_path / "real", "a/00001.jpg")
    (tmp_path / "root").symlink_to("real")
    assert list_images([tmp_path / "root"]).links_out == []


def test_a_looping_link_is_a_problem_and_does_not_stop_the_listing(tmp_path):
    touch(tmp_path, "a/00001.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "above").symlink_to(tmp_path)
    (tmp_path / "a" / "00002.jpg").symlink_to("00002.jpg")
    (tmp_path / "a" / "here").symlink_to(".")
    listing = list_images([tmp_path])
    assert rows(listing) == [("a", 1, "a/00001.jpg")]
    links = ("a/00002.jpg", "a/here", "above", "loop")
    found = sorted(problem.file for problem in listing.problems)
    assert found == [str(tmp_path / name) for name in links]
