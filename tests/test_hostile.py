"""Damaged and hostile files of every kind end in one clear line.

`benchmarks/hostile.py` damages thousands of them; here is a sample, and one test for each fault
that it has found.
"""

import json
import random
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raffect.cli import main
from raffect.datasets.frames import read_contents
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.errors import RaffectError
from raffect.recipe import read_recipe
from raffect.runs.folder import RunFolder
from raffect.storage.paths import Damaged, read_parquet

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from hostile import FAULTS, run_case
from hostile_commands import FAMILIES, go_on
from hostile_files import DEEP, agree, mutate
from hostile_whole import FIRST, make_whole

pytestmark = pytest.mark.xdist_group("hostile")  # which share what takes seconds to make

SAMPLE = 3
DATA = ["--bank", "b", "--labels", "l", "--out", "o"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    make_whole(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_file_is_read_or_refused_in_one_line(family, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    found = [run_case(family, seed, whole, tmp_path / str(seed)) for seed in range(SAMPLE)]
    assert not [one for one in found if one.outcome in FAULTS]
    assert any(one.outcome == "refused" for one in found)


def test_equal_seeds_damage_a_file_alike():
    file = FIRST / "sweep" / "metrics.json"
    first, again, other = (mutate(random.Random(k), file.name, file.read_bytes()) for k in "aab")
    assert first == again != other


# What a name in a file may not do to a terminal


def test_an_error_is_one_line_whatever_a_file_names():
    error = RaffectError("a\nb\x1b[2J\ud800: é漢")
    assert str(error) == "a\\nb\\x1b[2J\\ud800: é漢"


# Manifests and label tables


def text_that_is_not(count):
    plain = pa.array([b"\xff\xfe"] * count, pa.binary())
    return pa.Array.from_buffers(pa.string(), count, plain.buffers())


COLUMNS = {
    "lists": lambda count: pa.array([["x"]] * count),
    "integers": lambda count: pa.array(range(count), pa.int64()),
    "structs": lambda count: pa.array([{"a": 1}] * count),
    "not UTF-8": text_that_is_not,
    "not UTF-8, as a dictionary": lambda count: text_that_is_not(count).dictionary_encode(),
    "empty": pa.nulls,
}


def with_column(source, target, name, make):
    table = pq.read_table(source)
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, make(len(table))), target)
    return target


@pytest.mark.parametrize("how", COLUMNS)
@pytest.mark.parametrize("name", ["video", "path", "root"])
def test_a_manifest_with_a_column_of_anything_but_text_is_one_line(name, how, tmp_path):
    source = FIRST / "manifest.parquet"
    file = with_column(source, tmp_path / "m.parquet", name, COLUMNS[how])
    with pytest.raises(RaffectError, match=rf"m.parquet: column '{name}' .*raffect prepare"):
        read_manifest(file)


@pytest.mark.parametrize("how", COLUMNS)
@pytest.mark.parametrize("name", ["video", "split"])
def test_a_label_table_with_a_column_of_anything_but_text_is_one_line(name, how, tmp_path):
    source = FIRST / "labels" / "expr.parquet"
    file = with_column(source, tmp_path / "l.parquet", name, COLUMNS[how])
    with pytest.raises(RaffectError, match=rf"l.parquet: .*column '{name}' .*raffect prepare"):
        read_labels(file)


@pytest.mark.parametrize(
    "make",
    [
        lambda count: pa.array([1.0] * count),
        lambda count: pa.array([2**31] * count),
        lambda count: pa.array([0] * count, pa.int32()),
    ],
    ids=["floats", "too large", "0"],
)
def test_frames_of_labels_that_are_no_numbers_from_1_are_one_line(make, tmp_path):
    source = FIRST / "labels" / "expr.parquet"
    file = with_column(source, tmp_path / "l.parquet", "frame", make)
    with pytest.raises(RaffectError, match="column 'frame'"):
        read_labels(file)


def test_a_column_that_is_there_twice_is_one_line(tmp_path):
    table = pq.read_table(FIRST / "manifest.parquet")
    pq.write_table(table.append_column("video", table["video"]), tmp_path / "m.parquet")
    with pytest.raises(RaffectError, match=r"m.parquet: .*(video|duplicate).*; make it again"):
        read_manifest(tmp_path / "m.parquet")


def test_a_small_file_of_millions_of_rows_is_refused_before_it_takes_memory(tmp_path):
    column = pa.DictionaryArray.from_arrays(np.zeros(21_000_000, np.int32), ["x"])
    table = pa.table({"x": column})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(Damaged, match=r"claims 21,000,000 rows in [0-9,]+ bytes"):
        read_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize("missing", ["image", "reason", "video", "frame"])
def test_a_packed_file_without_a_column_is_one_line(missing, whole, tmp_path):
    source = whole / "faces" / "packed"
    table = pq.read_table(source / "frames-00000.parquet").drop_columns(missing)
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=16)
    rows = read_manifest(source).slice(0, 3)
    rows = rows.set_column(3, "root", pa.array([str(tmp_path / "p.parquet")] * 3))
    with pytest.raises(RaffectError, match=f"p.parquet: .*column '{missing}' is missing"):
        read_contents(rows)


# Recipes

RECIPES = {
    "nested": f"x = {'[' * DEEP}{']' * DEEP}",
    "a number of thousands of digits": f"seed = {'9' * 5000}",
    "the same in hexadecimal": f"seed = 0x{'f' * 5000}",
    "a float as large": f"loss.alpha = 0x{'f' * 5000}",
    "not UTF-8": "task = '\udcff'",
    "a number as space": "space = 3",
    "numbers as space": "space = [1]",
}
OTHER = ["threads = 'x'", "folds = 2.5", "select = 'x'", "bank = 3", "threads = [1]"]


@pytest.mark.parametrize("how", RECIPES)
def test_a_hostile_recipe_is_one_line(how, tmp_path):
    file = tmp_path / "r.toml"
    file.write_bytes(RECIPES[how].encode("utf-8", "surrogateescape"))
    with pytest.raises(RaffectError, match=r"r\.toml: ") as error:
        read_recipe(file, ["seed", "task", "loss.alpha", "space"])
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("line", OTHER)
def test_a_recipe_with_a_setting_of_another_type_is_one_line(line, tmp_path, capsys):
    (tmp_path / "r.toml").write_text(line)
    assert main(["train", str(tmp_path / "r.toml"), *DATA]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert f"r.toml: {line.split()[0]}" in found


def test_a_text_of_a_recipe_that_begins_like_a_flag_is_a_text(tmp_path, capsys):
    (tmp_path / "r.toml").write_text('task = "--help"\nseed = 3')
    assert main(["train", str(tmp_path / "r.toml"), *DATA]) == 2
    assert "no bank" in capsys.readouterr().err


# Statistics and states of run folders


def replace_statistics(run, change):
    """Other statistics of a head, with records that agree."""
    folder = RunFolder(run)
    record = next(one for one in folder.read_records() if one.fold is None)
    file = run / "statistics" / record.statistics.name
    pq.write_table(change(pq.read_table(file)), file)
    agree(file, run)
    folder = RunFolder(run)
    return folder, folder.read_record(record.id)


STATISTICS = {
    "null": lambda t: t.set_column(3, "statistics", pa.nulls(len(t))),
    "text": lambda t: t.set_column(3, "statistics", pa.array(["x"] * len(t))),
    "lists of lists": lambda t: t.set_column(3, "statistics", pa.array([[[1]]] * len(t))),
    "of another task": lambda t: t.replace_schema_metadata({"shape": "16,4"}),
    "no shape": lambda t: t.replace_schema_metadata(None),
    "a negative shape": lambda t: t.replace_schema_metadata({"shape": "-8,-8"}),
    "no rows": lambda t: t.slice(0, 0),
    "lists as heads": lambda t: t.set_column(0, "head", pa.array([["x"]] * len(t))),
}


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole / "new" / "sweep", tmp_path / "sweep"))


@pytest.mark.parametrize("how", STATISTICS)
def test_statistics_that_are_not_a_heads_are_one_line_even_where_its_record_agrees(how, run):
    folder, record = replace_statistics(run, STATISTICS[how])
    with pytest.raises(RaffectError, match="run the same command again"):
        folder.statistics_of(record, "last")


def test_statistics_of_other_videos_than_those_of_other_heads_are_one_line(run):
    def rename(table):
        groups = pa.array([f"x{name}" for name in table["group"].to_pylist()])
        return table.set_column(2, "group", groups.dictionary_encode())

    folder, changed = replace_statistics(run, rename)
    other = next(one for one in folder.read_records() if one.id != changed.id)
    assert folder.statistics_of(other, "last") is not None
    with pytest.raises(RaffectError, match="of other videos than those of other heads"):
        folder.statistics_of(changed, "last")


def in_history(key, value):
    def change(about):
        about["history"][0][key] = value

    return change


STATES = {
    "no history": lambda about: about.update(history=[]),
    "more epochs than the recipe": lambda about: about["history"].extend(about["history"] * 9),
    "an epoch without its time": lambda about: about["history"][0].pop("wall_s"),
    "a list as time": in_history("wall_s", [1]),
    "one rate for two heads": in_history("lr", [0.1]),
    "a number as losses": in_history("train_loss", 1.5),
    "a text as a score": in_history("val_macro_f1", ["x", "y"]),
    "an unknown snapshot": lambda about: about["epochs"].update(cv=[1, 1]),
    "no snapshot": lambda about: about.update(epochs={}),
    "a later epoch": lambda about: about["epochs"].update(last=[2, 2]),
    "one head": lambda about: about.update(diverged=[None]),
}


def rewrite_state(file, change):
    """Another header of a safetensors file."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    tree = json.loads(content[8 : 8 + size])
    change(tree)
    header = json.dumps(tree).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


@pytest.fixture
def half(whole, tmp_path):
    return Path(shutil.copytree(whole / "new" / "half", tmp_path / "half"))


def test_a_whole_state_is_gone_on_from(whole, half):
    go_on(whole / "new", half)


@pytest.mark.parametrize("how", STATES)
def test_a_state_that_lacks_what_its_heads_need_is_one_line(how, whole, half):
    def change(tree):
        about = json.loads(tree["__metadata__"]["raffect"])
        STATES[how](about)
        tree["__metadata__"]["raffect"] = json.dumps(about)

    (file,) = (half / "state").glob("*.safetensors")
    rewrite_state(file, change)
    with pytest.raises(RaffectError, match="delete it to train from the start"):
        go_on(whole / "new", half)


@pytest.mark.parametrize("name", ["rows", "last.rows", "statistics", "exp_avg", "counter"])
def test_a_state_without_a_tensor_is_one_line(name, whole, half):
    (file,) = (half / "state").glob("*.safetensors")
    rewrite_state(file, lambda tree: tree.update(other=tree.pop(name)))
    with pytest.raises(RaffectError, match="missing or of another shape"):
        go_on(whole / "new", half)


def test_a_note_of_a_batch_without_heads_is_one_line(half):
    (file,) = (half / "state").glob("*.json")
    file.write_text('{"heads": {}}')
    with pytest.raises(RaffectError, match="names no head; delete it"):
        RunFolder(half).batches_under_way()


def test_a_record_whose_curves_are_of_unequal_lengths_is_one_line(run):
    file = next((run / "heads").glob("*.json"))
    record = json.loads(file.read_text())
    record["curve"]["lr"].append(0.1)
    file.write_text(json.dumps(record))
    with pytest.raises(RaffectError, match=rf"{file.name}: damaged, curves of"):
        RunFolder(run).read_records()
