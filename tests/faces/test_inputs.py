"""Inputs: what paths lead to, and names that are unique, safe and stay."""

import os
import re
from pathlib import Path

import pytest

from raffect.errors import RaffectError
from raffect.faces.inputs import add_inputs, list_inputs, read_inputs
from raffect.storage.atomic import write_atomic


def touch(folder, *names):
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_at_any_depth_patterns_and_single_files_are_listed_once(tmp_path):
    touch(
        tmp_path, b"a/1.JPG", b"a/b/c/2.png", b"a/v.MP4", b"a/notes.txt", b"a/.hidden.jpg", b"x.dat"
    )
    given = (tmp_path / "a" / "*.MP4", tmp_path / "a", tmp_path / "x.dat", tmp_path / "a" / "1.JPG")
    listing = list_inputs(given)
    names = [str(path.relative_to(tmp_path)) for path in listing.files]
    assert names == ["a/v.MP4", "a/1.JPG", "a/b/c/2.png", "x.dat"]
    assert listing.ignored.counts == {"hidden": 1, ".txt files": 1}


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    touch(tmp_path, b"a[1].mp4", b"a1.mp4")
    assert list_inputs([tmp_path / "a[1].mp4"]).files == [tmp_path / "a[1].mp4"]


def test_links_in_a_circle_end(tmp_path):
    touch(tmp_path, b"a/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    listing = list_inputs([tmp_path])
    assert listing.files == [tmp_path / "a" / "1.jpg"]
    assert ["lies in" in problem.what for problem in listing.problems] == [True]


def test_results_of_one_run_are_no_inputs_of_the_next(tmp_path):
    touch(tmp_path, b"a/1.jpg", b"a/out/faces.png", b"a/out/overlay/1.png", b"a/outer/2.jpg")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "out")
    out = tmp_path / "a" / "x" / ".." / "out"
    wanted = [tmp_path / "a" / "1.jpg", tmp_path / "a" / "outer" / "2.jpg"]
    for given in ([tmp_path / "a"], [tmp_path / "a" / "**" / "*.*g"], [tmp_path / "a" / "*"]):
        assert list_inputs(given, out).files == wanted
    # One that is named is taken; --out itself is left out, and named where nothing else is left
    named = tmp_path / "a" / "out" / "faces.png"
    assert list_inputs([named], out).files == [named]
    assert list_inputs([tmp_path / "a" / "out" / "*.png"], out).files == [named]
    with pytest.raises(RaffectError, match=r"beside those of --out .*, which is left out$"):
        list_inputs([tmp_path / "a" / "out"], tmp_path / "a" / "out")


@pytest.mark.parametrize(
    ("name", "match"),
    [("gone.mp4", "no such file"), ("*.mp4", "matches nothing"), ("", "no pictures")],
)
def test_what_leads_to_nothing_is_one_line(name, match, tmp_path):
    with pytest.raises(RaffectError, match=match):
        list_inputs([tmp_path / name])


HOSTILE = [
    b"-rf.mp4",
    b"..mp4",
    b"a b;c.mp4",
    b"caf\xe9.mp4",
    "日本.mp4".encode(),
    b"x" * 200 + b".mp4",
]
HOSTILE += [b"a/clip.mp4", b"b/clip.mp4", b"c/clip.mov", b"a/CLIP.MP4", b"%2e.mp4", b"a_face1.mp4"]
HOSTILE += [
    b"new\nline.mp4",
    b"clip_face1.mp4",
    b"e/e/clip.mp4",
    b"d/e/clip.mp4",
    b"f/d/e/clip.mp4",
]


def test_names_are_unique_and_safe_and_paths_come_back_as_they_were(tmp_path):
    touch(tmp_path, *HOSTILE)
    files = [tmp_path / os.fsdecode(name) for name in HOSTILE]
    inputs = add_inputs(tmp_path / "out", files)
    assert [one.path for one in inputs] == files
    names = [one.name for one in inputs]
    assert len({name.lower() for name in names}) == len(names)
    tracks = {f"{name}_face{k}" for name in names for k in range(1, 40)}
    assert len(tracks) == 39 * len(names)
    for name in names:
        assert re.fullmatch(r"[\w.-]{1,80}", name)
        assert not name.startswith(("-", "."))
        name.encode()
    assert "日本" in names
    assert [one.shown for one in inputs][3].endswith("caf\\xe9.mp4")


def test_a_name_has_at_most_160_bytes_and_is_cut_at_a_character(tmp_path):
    # 83 characters fit into a name of a file; with what is put around it 80 did not
    text = "日本語" * 27 + "末尾"
    (one,) = add_inputs(tmp_path / "out", [tmp_path / f"{text}.mp4"])
    assert text.endswith(one.name)
    assert 157 < len(one.name.encode()) <= 160
    write_atomic(tmp_path / f"{one.name}.json", b"")


def test_an_input_keeps_its_name_when_others_are_added(tmp_path):
    touch(tmp_path, b"a/clip.mp4", b"b/clip.mp4", b"c.jpg")
    first = add_inputs(tmp_path / "out", [tmp_path / "b" / "clip.mp4"])
    both = add_inputs(tmp_path / "out", [tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mp4"])
    assert [one.name for one in both] == ["clip", "a_clip"]
    assert both[:1] == first
    assert add_inputs(tmp_path / "out", [tmp_path / "a" / "clip.mp4"]) == both
    assert len(os.listdir(tmp_path / "out" / "inputs")) == 2
    assert add_inputs(tmp_path / "out", [tmp_path / "c.jpg"])[2].kind == "picture"


def test_a_damaged_list_of_inputs_is_one_line(tmp_path):
    touch(tmp_path, b"a.mp4", b"b.mp4")
    add_inputs(tmp_path / "out", [tmp_path / "a.mp4"])
    add_inputs(tmp_path / "out", [tmp_path / "b.mp4"])
    (tmp_path / "out" / "inputs" / "0000.json").unlink()
    with pytest.raises(RaffectError, match="0000.json"):
        read_inputs(tmp_path / "out")
    Path(tmp_path / "out" / "inputs" / "0000.json").write_text("{")
    with pytest.raises(RaffectError, match="damaged"):
        read_inputs(tmp_path / "out")
