"""What a bank guarantees, one claim after another."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raffect.bank.format import Bank
from raffect.bank.records import BankFile
from raffect.bank.verify import verify, withdraw
from raffect.errors import RaffectError
from raffect.storage import atomic
from tests.helpers.banks import IDENTITY, fill_bank, make_manifest


def tree_bytes(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_rows_in_shards_and_rejects_are_the_manifest(tmp_path):
    manifest = make_manifest({"a": 20, "b": 30})
    rejects = {1: {3: "empty file"}, 2: {0: "not a picture", 5: "empty file"}}
    bank = fill_bank(tmp_path / "bank", manifest, rejects=rejects)
    found = verify(bank, manifest)
    assert found.complete
    assert (found.rows, found.rejects, found.planned) == (47, 3, 50)
    reasons = bank.read_rejects(bank.read_commits().values())["reason"].to_pylist()
    assert reasons == ["empty file", "not a picture", "empty file"]


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": "more"},
        {"rows": -5},
        {"rows": -5, "rejects": 21},
        {"rows": 15},
        {"rows": 15, "rejects": 1},
        {"rows": 16.0},
        {"rows": True},
        {"rejects": 1},
    ],
)
def test_a_commit_record_that_does_not_say_what_its_plan_implies_is_not_sound(tmp_path, change):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}))
    record = json.loads(bank.commit_path(1).read_text())
    if change.get("files") == "more":
        others = json.loads(bank.commit_path(0).read_text())["files"]
        change = {"files": record["files"] | others}
    bank.commit_path(1).write_text(json.dumps(record | change))
    found = verify(Bank(bank.path))
    assert list(found.damaged) == [1]
    assert not found.complete
    assert (found.rows, found.rejects) == (24, 0)


def test_a_shard_is_what_the_specification_says(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 20}))
    table = pq.read_table(bank.shard_path(0))
    assert [str(field.type) for field in table.schema] == [
        "dictionary<values=string, indices=int32, ordered=0>",
        "int32",
        "fixed_size_binary[12]",
    ]
    column = pq.ParquetFile(bank.shard_path(0)).metadata.row_group(0).column(2)
    assert column.compression == "UNCOMPRESSED"
    assert column.statistics is None or not column.statistics.has_min_max
    vector = np.frombuffer(table["feature"][3].as_py(), "<f2")
    assert vector.tolist() == [3, 3.25, 3.5, 3.75, 4, 4.25]


def test_the_same_arguments_write_the_same_bytes(tmp_path):
    manifest = make_manifest({"a": 20, "b": 13})
    rejects = {0: {1: "x"}}
    one, two = (fill_bank(tmp_path / name, manifest, rejects=rejects) for name in ("one", "two"))
    assert tree_bytes(one.path) == tree_bytes(two.path)
    assert one.digest() == two.digest()


def test_shards_do_not_depend_on_the_dictionary_their_keys_came_with(tmp_path):
    manifest = make_manifest({"a": 20, "b": 13})
    # The same rows with another order of the dictionary
    other = manifest.take([*range(20, 33), *range(20)]).take([*range(13, 33), *range(13)])
    assert other["frame"].equals(manifest["frame"])
    one, two = fill_bank(tmp_path / "one", manifest), fill_bank(tmp_path / "two", other)
    assert tree_bytes(one.path) == tree_bytes(two.path)


def test_another_encoder_is_refused_with_every_difference(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 4}))
    bank.claim(IDENTITY)
    bank.claim(replace(IDENTITY, weights="a file of the same tensors"))
    changes = {"weights_sha256": "b" * 64, "precision": "float16", "preprocess": {"size": 5}}
    weights = r"weights_sha256: aaaaaaaaaaaa \(random:0\) against bbb"
    differences = rf"{weights}.*size.*precision: float32 against float16"
    with pytest.raises(RaffectError, match=differences):
        bank.claim(replace(IDENTITY, **changes))


def test_new_frames_extend_the_bank_and_leave_old_shards_alone(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"b": 20, "d": 20}))
    before = tree_bytes(bank.path / "shards")
    larger = make_manifest({"a": 5, "b": 25, "c": 7, "d": 20})
    plan = bank.extend_plan(larger)
    assert plan.num_shards == 3 + 2
    after = tree_bytes(bank.path / "shards")
    assert {name: after[name] for name in before} == before
    bank = fill_bank(bank.path, larger, shard_rows=16)
    assert verify(bank, larger).complete
    assert verify(bank).rows == 57


def test_a_manifest_that_lost_frames_is_refused(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 20}))
    with pytest.raises(RaffectError, match="5 frames that the manifest lacks, e.g. a/00016"):
        bank.extend_plan(make_manifest({"a": 15}))


def test_shard_rows_belong_to_the_bank(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 20}))
    assert bank.extend_plan(make_manifest({"a": 20}), None).shard_rows == 16
    with pytest.raises(RaffectError, match="shards of 16 rows"):
        bank.extend_plan(make_manifest({"a": 20}), 32)


def damage_truncate(bank):
    path = bank.shard_path(1)
    path.write_bytes(path.read_bytes()[:-10])


def damage_bit(bank):
    path = bank.shard_path(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_missing(bank):
    bank.shard_path(1).unlink()


def damage_swap(bank):
    """Another shard's files and record under this shard's name: hashes agree, rows do not."""
    record = json.loads(bank.commit_path(0).read_text())
    (bank.path / "shards" / f"000001{bank.shard_path(0).name[6:]}").write_bytes(
        bank.shard_path(0).read_bytes()
    )
    ((_, (size, sha)),) = record["files"].items()
    record |= {"shard": 1, "files": {f"shards/000001-{sha[:8]}.parquet": [size, sha]}}
    bank.commit_path(1).write_text(json.dumps(record))


def damage_record(bank):
    bank.commit_path(1).write_text("{")


def damage_rejects(bank):
    bank.rejects_path(1).unlink()


DAMAGE = {
    "truncate": damage_truncate,
    "bit": damage_bit,
    "missing": damage_missing,
    "swap": damage_swap,
    "record": damage_record,
    "rejects": damage_rejects,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_repaired_and_only_that_shard_is_done_again(tmp_path, how):
    manifest = make_manifest({"a": 40})
    rejects = {1: {2: "empty file"}}
    bank = fill_bank(tmp_path / "bank", manifest, rejects=rejects)
    whole = tree_bytes(bank.path)
    DAMAGE[how](bank)
    found = verify(bank, manifest)
    assert list(found.damaged) == [1]
    assert not found.complete
    assert withdraw(bank, found.damaged) == [1]
    assert list(bank.read_commits()) == [0, 2]
    found = verify(bank, manifest)
    assert found.sound
    assert not found.complete
    assert tree_bytes(fill_bank(bank.path, manifest, rejects=rejects).path) == whole


def test_a_truncated_shard_counts_as_missing_for_the_next_extract(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}))
    damage_truncate(bank)
    assert list(bank.read_commits()) == [0, 2]


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.helpers.banks import fill_bank, make_manifest
count = 0
def crash(real):
    def step(*args, **kwargs):
        global count
        count += 1
        if count == {at}:
            os._exit(9)
        return real(*args, **kwargs)
    return step
for name in ("replace", "link", "fsync"):
    setattr(os, name, crash(getattr(os, name)))
fill_bank(Path({bank!r}), make_manifest({{"a": 20}}), rejects={{0: {{1: "x"}}}})
print(count)
"""


def run_crash(bank: Path, at: int) -> subprocess.CompletedProcess:
    code = CRASH.format(tests=str(Path(__file__).parents[2]), bank=str(bank), at=at)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_crash_at_every_tenth_durable_step_is_recovered_to_the_same_bytes(tmp_path):
    undisturbed = run_crash(tmp_path / "whole", at=-1)
    steps = int(undisturbed.stdout)
    whole = tree_bytes(tmp_path / "whole")
    assert steps > 20
    for at in range(1, steps + 1, 5):
        bank = Bank(tmp_path / f"crash{at}")
        assert run_crash(bank.path, at).returncode == 9
        commits = bank.read_commits() if bank.exists else {}
        for record in commits.values():  # what is visible is whole
            assert all((bank.path / name).read_bytes() == whole[name] for name in record.files)
        fill_bank(bank.path, make_manifest({"a": 20}), rejects={0: {1: "x"}})
        left = tree_bytes(bank.path)
        unfinished = {name for name in left if Path(name).name.startswith(atomic.PREFIX)}
        assert {name: left[name] for name in left if name not in unfinished} == whole


def test_two_writers_at_once_leave_one_whole_bank(tmp_path):
    manifest = make_manifest({"a": 64, "b": 64})
    errors = []

    def write():
        try:
            fill_bank(tmp_path / "bank", manifest)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors
    assert verify(Bank(tmp_path / "bank"), manifest).complete
    assert tree_bytes(tmp_path / "bank") == tree_bytes(fill_bank(tmp_path / "alone", manifest).path)


def test_two_manifests_that_extend_at_once_are_both_planned(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 10}))
    late = Bank(bank.path)
    assert late.plan.num_shards == 1  # it has read the plan before the other one extends it
    bank.extend_plan(make_manifest({"a": 10, "b": 5}))
    plan = late.extend_plan(make_manifest({"a": 10, "b": 5, "c": 5}))
    assert len(plan.table) == 20
    assert len(set(map(str, plan.table.to_pylist()))) == 20


def test_a_failed_write_leaves_nothing_visible(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_atomic(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_wrong_features_are_refused(tmp_path):
    bank = Bank(tmp_path / "bank")
    plan = bank.extend_plan(make_manifest({"a": 4}))
    with pytest.raises(ValueError, match="expected float16"):
        bank.commit(0, plan.rows(0), np.zeros((4, 5), np.float16), {}, IDENTITY)
    with pytest.raises(ValueError, match="expected float16"):
        bank.commit(0, plan.rows(0), np.zeros((4, 6), np.float32), {}, IDENTITY)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 99, "identity": {}}'])
def test_a_damaged_bank_json_is_one_clear_error(tmp_path, content):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 4}))
    (bank.path / "bank.json").write_text(content)
    with pytest.raises(RaffectError, match=r"bank\.json"):
        bank.read_identity()


def test_a_folder_that_is_not_a_bank_is_one_clear_error(tmp_path):
    with pytest.raises(RaffectError, match="no bank there"):
        Bank(tmp_path).require()


def test_a_missing_bank_json_damages_no_shard_and_lets_no_other_encoder_in(tmp_path):
    manifest = make_manifest({"a": 40})
    bank = fill_bank(tmp_path / "bank", manifest)
    (bank.path / "bank.json").unlink()
    found = verify(bank, manifest)
    assert found.damaged == {}
    assert not found.sound
    with pytest.raises(RaffectError, match="bank.json is missing"):
        bank.claim(replace(IDENTITY, weights_sha256="b" * 64))


def test_after_an_error_of_the_disk_no_shard_counts_as_damaged(tmp_path, monkeypatch):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}))

    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("raffect.storage.commits.read_buffer", fail)
    found = verify(bank)
    assert found.damaged == {}
    assert any("Input/output error" in what for what in found.problems)


@pytest.mark.parametrize("how", ["gap", "column", "number"])
def test_a_damaged_plan_is_one_clear_error(tmp_path, how):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 20}))
    bank.extend_plan(make_manifest({"a": 20, "b": 3}))
    first = bank.path / "plan" / "0000.parquet"
    table = pq.read_table(first)
    if how == "gap":
        first.unlink()
    elif how == "column":
        pq.write_table(table.drop_columns("frame"), first)
    else:
        pq.write_table(table.replace_schema_metadata({"shard_rows": "many"}), first)
    with pytest.raises(RaffectError, match="damaged plan"):
        _ = Bank(bank.path).plan


def test_a_bank_of_other_arithmetic_is_not_continued_by_accident(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 4}))
    with pytest.raises(RaffectError, match="bank against this run: arithmetic: 1 against 2"):
        bank.claim(replace(IDENTITY, arithmetic=2))


def fill_with_threads(path, threads):
    bank, manifest = Bank(path), make_manifest({"a": 20})
    plan = bank.extend_plan(manifest, 8)
    bank.claim(IDENTITY, threads)
    for shard in range(plan.num_shards):
        keys = plan.rows(shard)
        features = np.zeros((len(keys), 6), np.float16)
        bank.commit(shard, keys, features, {}, IDENTITY, threads=threads)
    return bank


def test_a_bank_json_that_was_withdrawn_comes_back_with_its_threads_and_the_same_digest(tmp_path):
    bank = fill_with_threads(tmp_path / "bank", 3)
    file, digest = bank.path / "bank.json", bank.digest()
    content = file.read_bytes()
    file.unlink()
    assert Bank(bank.path).read_threads() == 3
    bank.claim(IDENTITY)  # as a finished bank is, which has no threads to choose
    assert file.read_bytes() == content
    assert bank.digest() == digest
    file.unlink()
    with pytest.raises(RaffectError, match="its encoders have 3 CPU threads, not 2"):
        bank.claim(IDENTITY, 2)


def test_a_digest_depends_on_identity_and_shards_and_not_on_threads_or_format(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 20}))
    file, digest = bank.path / "bank.json", bank.digest()
    bank.claim(IDENTITY, 4)
    assert bank.digest() == digest
    first = {"format": 1, "identity": IDENTITY.to_json()}
    first["identity"]["stamp"] = first["identity"].pop("caveat")
    del first["identity"]["arithmetic"]
    file.write_text(json.dumps(first, indent=1) + "\n")
    assert bank.read_file().format == 1
    assert bank.digest() == digest
    for changes in ({"weights_sha256": "b" * 64}, {"arithmetic": 2}, {"caveat": "drawn"}):
        file.write_bytes(BankFile(identity=replace(IDENTITY, **changes)).to_bytes())
        assert bank.digest() != digest
    file.write_bytes(BankFile(identity=IDENTITY).to_bytes())
    bank.commit_path(1).unlink()
    assert bank.digest() != digest


def test_threads_of_a_cpu_encoder_are_recorded_once_and_a_gpu_has_none(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 4}))
    assert bank.read_file().threads is None
    bank.claim(IDENTITY, 4)
    bank.claim(IDENTITY)
    assert bank.read_file().threads == 4
    with pytest.raises(RaffectError, match="its encoders have 4 CPU threads, not 2"):
        bank.claim(IDENTITY, 2)
    assert bank.read_identity() == IDENTITY
