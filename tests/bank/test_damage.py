"""Damaged and hostile files of a bank: one line that names the file, and a repair."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raffect.bank.commands import check
from raffect.bank.export import export
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.inspect import count_videos, describe_bank
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.config import BankExportConfig, BankVerifyConfig
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary
from tests.helpers.banks import IDENTITY, fill_bank, make_manifest

FIRST, MORE = make_manifest({"b": 40, "d": 10}), make_manifest({"a": 20, "b": 40, "c": 5, "d": 10})
EVEN_MORE = make_manifest({"a": 20, "b": 40, "c": 5, "d": 10, "e": 20})
REJECTS = {1: {2: "empty file"}}
TASK = Task(name="t", kind="multiclass", outputs=("x", "y"), columns=("label",))


@pytest.fixture
def bank(tmp_path):
    """Two generations, one reject."""
    fill_bank(tmp_path / "bank", FIRST, rejects=REJECTS)
    return fill_bank(tmp_path / "bank", MORE, rejects=REJECTS)


def contents(bank: Bank, *folders: str) -> dict[str, bytes]:
    files = [path for folder in folders for path in (bank.path / folder).glob("*")]
    return {path.relative_to(bank.path).as_posix(): path.read_bytes() for path in files}


def run(bank: Bank, *words: str) -> int:
    return main(["bank", *words, "--bank", str(bank.path)])


# The plan


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def with_rows(rows: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({"shard_rows": rows})


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return change


def swap(frames: pa.ChunkedArray) -> pa.Array:
    """The first two frames of a plan in the other order."""
    return frames.take([1, 0, *range(2, len(frames))]).combine_chunks()


PLANS = {
    "rows of 0": with_rows("0"),
    "rows of -1": with_rows("-1"),
    "rows of a float": with_rows("16.0"),
    "rows of a power": with_rows("9" * 5000),
    "no rows": lambda table: table.replace_schema_metadata(None),
    "metadata that are not text": lambda t: t.replace_schema_metadata({b"shard_rows": b"\xff"}),
    "no column": lambda table: table.drop_columns("frame"),
    "a column twice": lambda table: table.append_column("video", table["video"]),
    "numbers as videos": with_column("video", list(range(50))),
    "text as frames": with_column("frame", ["1"] * 50),
    "lists as videos": with_column("video", [["b"]] * 50),
    "wide frames": with_column("frame", list(range(50))),
    "frames of 0": with_column("frame", pa.array([0] * 50, pa.int32())),
    "other frames": lambda table: with_column("frame", swap(table["frame"]))(table),
    "other rows of a shard": lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, b"shard_rows": b"17"}
    ),
    "an empty cell": with_column("frame", pa.array([None, *range(1, 50)], pa.int32())),
    "an empty name": with_column("video", [None, *["b"] * 49]),
}


@pytest.mark.parametrize("how", PLANS)
def test_a_damaged_plan_is_named_in_one_line_and_withdrawn_by_repair(bank, how, capsys):
    file = bank.path / "plan" / "0000.parquet"
    rewrite(file, PLANS[how])
    for words in (["info"], ["verify"]):
        assert run(bank, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file}: damaged plan (" in line
        assert "--repair" in line
    assert run(bank, "verify", "--repair") == 1
    assert f"withdrawn: {file}: damaged plan (" in capsys.readouterr().out
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 1000, b"\x00" * 5000])
def test_a_plan_that_is_not_parquet_is_named_in_one_line(bank, content, capsys):
    (bank.path / "plan" / "0001.parquet").write_bytes(content)
    assert run(bank, "verify") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "plan/0001.parquet: damaged plan (" in line


@pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
def test_a_plan_that_was_withdrawn_comes_back_and_every_shard_is_kept(bank, lost):
    if lost == (0, 1):  # both would become one generation
        shutil.rmtree(bank.path)
        bank = fill_bank(bank.path, MORE, rejects=REJECTS)
        lost = (0,)
    whole, plan = contents(bank, "shards", "rejects", "commits"), Bank(bank.path).plan
    for number in lost:
        (bank.path / "plan" / f"{number:04d}.parquet").write_bytes(b"damaged")
    assert check(BankVerifyConfig(bank=bank.path, repair=True)).unreadable
    again = Bank(bank.path)
    assert again.extend_plan(MORE).table.equals(plan.table)
    assert np.array_equal(again.plan.offsets, plan.offsets)
    assert contents(again, "shards", "rejects", "commits") == whole
    assert verify(again, MORE).complete
    assert not list((bank.path / "plan").glob("*.withdrawn"))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_plan_that_is_missing_and_was_not_withdrawn_is_not_made_up(bank, lost):
    (bank.path / "plan" / f"{lost:04d}.parquet").unlink()
    commits = bank.read_commits()
    with pytest.raises(RaffectError, match=f"plan/000{lost}.parquet is missing although"):
        Bank(bank.path).extend_plan(MORE)
    assert bank.read_commits() == commits


@pytest.mark.parametrize("left", ["by a run that was killed", "without shards"])
def test_a_mark_beside_a_file_of_the_plan_makes_up_no_later_loss(tmp_path, left):
    if left == "without shards":  # withdrawn before any of its shards was committed
        bank = fill_bank(tmp_path / "bank", FIRST)
        Bank(bank.path).extend_plan(MORE)
        (bank.path / "plan" / "0001.parquet").rename(bank.path / "plan" / "0001.withdrawn")
    else:
        bank = fill_bank(tmp_path / "bank", MORE)
        fill_bank(bank.path, EVEN_MORE)
        (bank.path / "plan" / "0001.withdrawn").touch()
    fill_bank(bank.path, EVEN_MORE)
    assert not list((bank.path / "plan").glob("*.withdrawn"))
    (bank.path / "plan" / "0001.parquet").unlink()
    commits = bank.read_commits()
    with pytest.raises(RaffectError, match=r"plan/0001\.parquet is missing although"):
        Bank(bank.path).extend_plan(EVEN_MORE)
    assert bank.read_commits() == commits


def test_shards_that_do_not_fit_a_plan_that_is_made_again_are_withdrawn(bank):
    for file in (bank.path / "plan").iterdir():
        file.write_bytes(b"damaged")
    check(BankVerifyConfig(bank=bank.path, repair=True))
    again = Bank(bank.path)
    again.extend_plan(MORE)  # as one generation, so that most frames are in other shards
    assert again.plan.generations == 1
    assert again.plan.shard_rows == 16
    found = verify(again, MORE)
    assert found.sound
    assert found.missing > 0
    assert verify(fill_bank(bank.path, MORE), MORE).complete


def test_a_plan_that_another_run_extends_meanwhile_costs_it_no_shard(bank):
    larger = make_manifest({"a": 20, "b": 40, "c": 5, "d": 10, "e": 30})
    other = make_manifest({"a": 20, "b": 40, "c": 5, "d": 10, "f": 30})
    late = Bank(bank.path)
    assert late.plan.num_shards == bank.plan.num_shards
    fill_bank(bank.path, larger, rejects=REJECTS)
    commits = bank.read_commits()
    with pytest.raises(RaffectError, match="holds 30 frames that the manifest lacks"):
        late.extend_plan(other)
    assert bank.read_commits() == commits


def test_frames_that_are_planned_twice_are_a_problem(bank):
    shutil.copy(bank.path / "plan" / "0000.parquet", bank.path / "plan" / "0002.parquet")
    found = verify(Bank(bank.path))
    assert "50 frames are planned twice" in found.problems


def test_verify_looks_at_each_video_a_few_times_however_many_shards_there_are(
    tmp_path, monkeypatch
):
    videos, looked = 60, []
    manifest = make_manifest({f"v{k:03d}": 2 for k in range(videos)})
    bank, real = fill_bank(tmp_path / "bank", manifest, 2), Vocabulary.number
    number = lambda self, name: looked.append(name) or real(self, name)  # noqa: E731
    monkeypatch.setattr(Vocabulary, "number", number)
    assert verify(Bank(bank.path), manifest).complete
    assert videos <= len(looked) <= 8 * videos


# bank.json


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"format": 2, "identity": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"format": 2}',
        b"9" * 5000,
    ],
)
def test_a_damaged_bank_json_is_withdrawn_and_made_again_by_its_own_encoder(bank, content, capsys):
    whole = (bank.path / "bank.json").read_bytes()
    (bank.path / "bank.json").write_bytes(content)
    assert run(bank, "verify") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{bank.path / 'bank.json'}: damaged, " in line
    assert run(bank, "verify", "--repair") == 1
    assert "withdrawn: " in capsys.readouterr().out
    again = Bank(bank.path)
    for other in ({"precision": "float16"}, {"preprocess": {"size": 5}}, {"arithmetic": 2}):
        with pytest.raises(RaffectError, match=r"bank\.json is missing although shards"):
            again.claim(replace(IDENTITY, **other))
    again.claim(IDENTITY)
    assert (bank.path / "bank.json").read_bytes() == whole
    assert verify(again, MORE).complete


@pytest.mark.parametrize(
    "change",
    [
        {"preprocess": {"size": float("inf")}},
        {"preprocess": {"size": float("nan")}},
        {"dim": "6"},
        {"dim": 6.5},
        {"arithmetic": "1"},
        {"weights_sha256": ["a"]},
    ],
)
def test_wrong_types_in_bank_json_are_one_line(bank, change, capsys):
    content = {"format": 2, "identity": IDENTITY.to_json() | change}
    (bank.path / "bank.json").write_text(json.dumps(content))
    assert run(bank, "verify") == 2
    assert f"damaged, identity.{next(iter(change))}" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["3", "Infinity", '"2"'])
def test_a_bank_of_another_format_is_not_taken_for_damage(bank, other, capsys):
    content = f'{{"format": {other}, "identity": {{}}}}'
    (bank.path / "bank.json").write_text(content)
    assert run(bank, "verify", "--repair") == 2
    assert "this program reads 1 or 2" in capsys.readouterr().err
    assert (bank.path / "bank.json").read_text() == content


# Shards and rejects: their hash is that of the record, their content is not a shard's


def recommit(bank: Bank, shard: int, folder: str, content: bytes) -> None:
    """Put other bytes into a shard, with a record that says they are right."""
    import hashlib

    record = json.loads(bank.commit_path(shard).read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{folder}/{shard:06d}-{sha256[:8]}.parquet"
    kept = {key: value for key, value in record["files"].items() if not key.startswith(folder)}
    (bank.path / name).write_bytes(content)
    files = kept | {name: [len(content), sha256]}
    bank.commit_path(shard).write_text(json.dumps(record | {"files": files}))


def as_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("folder", ["shards", "rejects"])
@pytest.mark.parametrize("how", ["text", "column", "rows", "type", "empty"])
def test_a_file_that_is_not_a_shards_is_damage_even_where_its_record_agrees(bank, folder, how):
    path = bank.shard_path(1) if folder == "shards" else bank.rejects_path(1)
    table = pq.read_table(path)
    if how == "text":
        content = b"no parquet"
    elif how == "column":
        content = as_bytes(table.drop_columns(table.column_names[-1]))
    elif how == "rows":
        content = as_bytes(pa.concat_tables([table, table]))
    elif how == "type":
        content = as_bytes(with_column("frame", ["1"] * len(table))(table))
    else:
        content = as_bytes(with_column("frame", pa.nulls(len(table), pa.int32()))(table))
    recommit(bank, 1, folder, content)
    found = verify(Bank(bank.path), MORE)
    assert list(found.damaged) == [1]
    if folder == "rejects" or how in ("text", "column", "rows"):  # what readers of features need
        with pytest.raises(RaffectError, match="verify"):
            use(Bank(bank.path), None)


# Mutations at random


def use(bank: Bank, out: Path | None) -> None:
    """Everything that reads a bank."""
    labels = pa.table({"video": MORE["video"], "frame": MORE["frame"]})
    labels = labels.append_column("split", pa.array(["train"] * len(MORE)))
    labels = labels.append_column("label", pa.array(np.arange(len(MORE)) % 2, pa.int8()))
    describe_bank(bank).lines()
    count_videos(bank)
    bank.unplanned(MORE)
    read_features(bank, labels, TASK, "train", threads=1)
    if out is not None:
        export(BankExportConfig(bank=bank.path, out=out / "npy"))
        export(BankExportConfig(bank=bank.path, out=out / "list", format="list"))


VALUES = ["Infinity", "-1", "64.0", '"64"', "null", "[]", "{}", "true", "1e400", "9" * 400, "NaN"]


def mutate(rng: random.Random, content: bytes, is_json: bool) -> bytes:
    """A hostile variant of a file."""
    how = rng.randrange(5)
    if is_json and how < 3:
        text = content.decode()
        spots = [k for k, sign in enumerate(text) if sign in ':,[{"']
        at = rng.choice(spots)
        deep = "[" * 900 + "]" * 900
        return (
            text[: at + 1] + rng.choice([*VALUES, deep]) + text[at + rng.randrange(9) :]
        ).encode()
    if how == 3:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 30])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def disturb(source: Path, folder: Path, seed: int) -> str:
    """A copy of a bank with one file mutated; half of the Parquet files have a fitting record."""
    rng = random.Random(seed)
    bank = Bank(shutil.copytree(source, folder))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = rng.choice(files)
    content = mutate(rng, file.read_bytes(), file.suffix == ".json")
    kind = file.parent.name
    if kind in ("shards", "rejects") and rng.random() < 0.5:
        recommit(bank, int(file.name[:6]), kind, content)
    else:
        file.write_bytes(content)
    return file.name


def survive(source: Path, folder: Path, seed: int) -> None:
    """A mutated bank is read or refused in one line, and repaired until it is whole."""
    name = disturb(source, folder / "bank", seed)
    bank = Bank(folder / "bank")
    try:
        try:
            use(bank, folder)
        except RaffectError as error:
            assert "\n" not in str(error), name
        for _ in range(3):
            try:
                check(BankVerifyConfig(bank=bank.path, repair=True)).lines()
            except RaffectError as error:
                assert "\n" not in str(error), name
        fill_bank(bank.path, MORE, rejects=REJECTS)
        assert verify(Bank(bank.path), MORE).complete, name
    except Exception as error:
        error.add_note(f"seed {seed}: {name}")
        raise


def test_a_mutated_bank_is_refused_in_one_line_and_repaired(bank, tmp_path):
    for seed in range(12):
        survive(bank.path, tmp_path / f"{seed}", seed)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_two_hundred_mutated_banks_are_refused_in_one_line_and_repaired(
    bank, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for seed in range(1000, 1200):
        survive(bank.path, tmp_path / f"{seed}", seed)
        shutil.rmtree(tmp_path / f"{seed}")
