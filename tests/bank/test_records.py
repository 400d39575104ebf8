"""The JSON files of a bank are read back, and each fault of a damaged one is one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raffect.bank.format import Bank
from raffect.bank.records import Commit, parse_commit
from raffect.bank.verify import verify
from raffect.datasets.synthetic.tree import MARKER, write_synthetic
from raffect.errors import RaffectError
from tests.helpers.banks import IDENTITY, fill_bank, make_manifest

COMMIT = Commit(
    shard=3,
    rows=15,
    rejects=1,
    files={
        "shards/000003-aaaaaaaa.parquet": (900, "a" * 64),
        "rejects/000003-bbbbbbbb.parquet": (80, "b" * 64),
    },
    pictures="c" * 64,
)
SHARD = COMMIT.features_file


def test_a_record_of_the_first_format_keeps_its_bytes_and_so_the_digest_of_its_bank():
    files = {"shards/000003.parquet": [900, "a" * 64], "rejects/000003.parquet": [80, "b" * 64]}
    content = {"shard": 3, "rows": 15, "rejects": 1, "files": files}
    first = (json.dumps(content, indent=1) + "\n").encode()
    record = parse_commit("000003.json", first)
    assert record.to_bytes() == first
    assert record.pictures is None
    assert record.features_file == "shards/000003.parquet"
    assert record.rejects_file == "rejects/000003.parquet"


def test_what_is_written_is_read_again_with_the_same_digest(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 40}), rejects={1: {2: "empty file"}})
    assert bank.read_identity() == IDENTITY
    record = bank.read_commits()[1]
    assert Commit.from_json(bank.commit_path(1).read_bytes(), "x", "y") == record
    assert parse_commit("000003.json", COMMIT.to_bytes()) == COMMIT


REMEDY = (
    "restore it from a backup or extract into a new bank, or let `raffect bank verify --repair` "
    "withdraw it"
)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"dim": 0}, "identity.dim 0: input should be greater than or equal to 1"),
        ({"dim": 10**9}, "identity.dim 1000000000: input should be less than or equal to 65536"),
        ({"dim": "6"}, "identity.dim '6': input should be a valid integer"),
        ({"model": ""}, "identity.model '': string should have at least 1 character"),
        ({"precision": "int8"}, "identity.precision 'int8': input should be"),
        ({"normalised": True}, "identity.normalised True: input should be False"),
        ({"preprocess": {"mean": ["x"]}}, "identity.preprocess.mean"),
        ({"preprocess": {"mean": {"more": [[1]]}}}, "identity.preprocess.mean"),
        ({"preprocess": {"size": float("inf")}}, "identity.preprocess.size"),
        ({"arithmetic": 0}, "identity.arithmetic 0: input should be greater than or equal to 1"),
        ({"weights": 7}, "identity.weights 7: input should be a valid string"),
        ({"more": 1}, "identity.more: unexpected keyword argument"),
    ],
)
def test_a_fault_of_an_identity_is_one_line_with_its_remedy(tmp_path, change, fault):
    content = {"format": 1, "identity": IDENTITY.to_json() | change}
    (tmp_path / "bank.json").write_text(json.dumps(content))
    with pytest.raises(RaffectError) as caught:
        Bank(tmp_path).read_identity()
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/bank.json: damaged, ")
    assert line.endswith(f"; {REMEDY}")
    assert fault in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format":' * 50_000]
)
def test_a_bank_json_that_is_not_json_is_one_line(tmp_path, content):
    (tmp_path / "bank.json").write_bytes(content)
    with pytest.raises(RaffectError, match=r"bank\.json: damaged, .*; restore it from a backup"):
        Bank(tmp_path).read_identity()


@pytest.mark.parametrize("other", [0, 3, "1", None, [1]])
def test_a_bank_of_another_format_says_which_and_what_to_do(tmp_path, other):
    content = json.dumps({"format": other, "identity": {"of": "the future"}, "more": 1})
    (tmp_path / "bank.json").write_text(content)
    with pytest.raises(RaffectError) as caught:
        Bank(tmp_path).read_identity()
    assert str(caught.value) == (
        f"{tmp_path}/bank.json: format {other!r}, this program reads 1 or 2; use the raffect that "
        "wrote it, or restore it from a backup or extract into a new bank"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"shard": 2},
        {"shard": -3},
        {"shard": "3"},
        {"rows": -1},
        {"rows": 1e400},
        {"rejects": None},
        {"rejects": 0},
        {"files": {}},
        {"files": []},
        {"files": {"shards/000003-aaaaaaaa.parquet": [900, "a" * 64]}},
        {"files": {"shards/000003-aaaaaaaa.parquet": [900, "a" * 64], "x": [80, "b" * 64]}},
        {"files": COMMIT.to_json()["files"] | {"shards/000003.parquet": [900, "a" * 64]}},
        {"files": COMMIT.to_json()["files"] | {"../x": [1, "a" * 64]}},
        {"files": COMMIT.to_json()["files"] | {SHARD: [-1, "a" * 64]}},
        {"files": COMMIT.to_json()["files"] | {SHARD: [1.5, "a" * 64]}},
        {"files": COMMIT.to_json()["files"] | {SHARD: [900, "a" * 63]}},
        {"files": COMMIT.to_json()["files"] | {SHARD: [900, "a" * 64, 1]}},
        {"files": COMMIT.to_json()["files"] | {SHARD: [900, "d" * 64]}},
        {"files": COMMIT.to_json()["files"] | {SHARD: [float("inf"), "a" * 64]}},
        {"shard": 10**30},
        {"rows": "64"},
        {"pictures": "c" * 63},
        {"more": 1},
    ],
)
def test_a_damaged_commit_record_is_not_a_finished_shard(change):
    assert parse_commit("000003.json", json.dumps(COMMIT.to_json() | change).encode()) is None


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\x00" * 99, b"[" * 100_000])
def test_a_record_that_is_not_json_is_named_by_verify_and_encoded_again(tmp_path, content):
    manifest = make_manifest({"a": 40})
    bank = fill_bank(tmp_path / "bank", manifest)
    bank.commit_path(1).write_bytes(content)
    assert list(bank.read_commits()) == [0, 2]
    found = verify(bank)
    assert list(found.damaged) == [1]
    assert "commit record is unreadable" in found.damaged[1]
    assert found.damaged_rows == 16
    assert verify(fill_bank(bank.path, manifest), manifest).complete


def test_identities_compare_by_what_makes_vectors():
    assert IDENTITY.differences(replace(IDENTITY, weights="other name", caveat="x")) == []
    other = replace(IDENTITY, preprocess={"size": 5}, dim=7)
    assert [line.partition(":")[0] for line in IDENTITY.differences(other)] == ["preprocess", "dim"]
    flip = replace(IDENTITY, preprocess={**IDENTITY.preprocess, "view": "flip"})
    assert IDENTITY.differences(flip) == ["preprocess: {} against {'view': 'flip'}"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"spec": {"generator": "2"}}', b"[" * 100_000])
def test_a_damaged_mark_of_a_drawn_data_set_is_one_line(tmp_path, content):
    (tmp_path / MARKER).write_bytes(content)
    fault = f"{MARKER}: damaged, .*; delete its folder and draw it again"
    with pytest.raises(RaffectError, match=fault):
        write_synthetic(tmp_path, 200, 0)
