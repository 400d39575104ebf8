"""Several writers on one bank: names, records, and notes of the runs that write."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raffect.bank import running
from raffect.bank.commands import check
from raffect.bank.format import Bank
from raffect.bank.running import Writer, note_of_run
from raffect.bank.verify import verify, withdraw
from raffect.config import BankVerifyConfig
from raffect.errors import RaffectError
from raffect.storage import atomic
from tests.helpers.banks import IDENTITY, fill_bank, make_manifest

MANIFEST = make_manifest({"a": 64, "b": 33})


def features_of(writer: int, rows: int) -> np.ndarray:
    return np.full((rows, IDENTITY.dim), writer, np.float16)


def files_of(bank: Bank, folder: str = "shards") -> set[str]:
    return {f"{folder}/{path.name}" for path in (bank.path / folder).iterdir()}


def named(bank: Bank) -> set[str]:
    """Files that records name."""
    return {name for record in bank.read_commits().values() for name in record.files}


def test_of_writers_with_other_bytes_the_first_record_wins_and_losers_delete_their_own(tmp_path):
    bank = Bank(tmp_path / "bank")
    plan = bank.extend_plan(MANIFEST, 16)
    bank.claim(IDENTITY)
    start, answers = threading.Barrier(4), []

    def write(writer: int) -> None:
        start.wait()
        for shard in range(plan.num_shards):
            rejects = {writer: "bad"} if shard == 2 else {}
            keys = plan.rows(shard)
            features = features_of(writer, len(keys) - len(rejects))
            answers.append((shard, bank.commit(shard, keys, features, rejects, IDENTITY)))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    commits = bank.read_commits()
    assert len(answers) == 4 * plan.num_shards
    assert all(record == commits[shard] for shard, record in answers)
    assert files_of(bank) | files_of(bank, "rejects") == named(bank)
    assert verify(bank, MANIFEST).complete


def test_a_second_writer_of_the_same_bytes_deletes_nothing(tmp_path):
    bank = fill_bank(tmp_path / "bank", MANIFEST)
    before = files_of(bank)
    fill_bank(bank.path, MANIFEST)
    assert files_of(bank) == before
    assert verify(bank, MANIFEST).complete


@pytest.mark.parametrize("how", ["record", "size", "missing"])
def test_a_damaged_record_is_replaced_by_the_next_writer(tmp_path, how):
    bank = fill_bank(tmp_path / "bank", MANIFEST)
    whole, path = bank.read_commits(), bank.shard_path(1)
    if how == "record":
        bank.commit_path(1).write_bytes(b"{")
    elif how == "size":
        path.write_bytes(b"PAR1")
    else:
        path.unlink()
    keys = bank.plan.rows(1)
    record = bank.commit(1, keys, features_of(7, len(keys)), {}, IDENTITY)
    assert bank.read_commits() == {**whole, 1: record}
    if how != "record":  # it is not known which file an unreadable record named
        assert files_of(bank) == named(bank)
    assert verify(bank, MANIFEST).complete


@pytest.mark.parametrize("how", ["record", "missing"])
def test_a_damaged_record_that_another_writer_replaces_meanwhile_is_not_deleted(
    tmp_path, monkeypatch, how
):
    bank = fill_bank(tmp_path / "bank", MANIFEST)
    if how == "record":
        bank.commit_path(1).write_bytes(b"{")
    else:
        bank.shard_path(1).unlink()
    keys, look, others = bank.plan.rows(1), bank.records.read, []

    def look_and_pause(name):
        found = look(name)
        if not others:  # the other writer comes between our first look and what follows
            features = features_of(3, len(keys))
            others.append(Bank(bank.path).commit(1, keys, features, {}, IDENTITY))
        return found

    monkeypatch.setattr(bank.records, "read", look_and_pause)
    record = bank.commit(1, keys, features_of(7, len(keys)), {}, IDENTITY)
    assert [record] == others
    assert Bank(bank.path).read_commits()[1] == record
    if how != "record":  # it is not known which file an unreadable record named
        assert files_of(bank) == named(bank)


def test_names_follow_from_content_so_that_equal_writers_make_equal_banks(tmp_path):
    one, two = (fill_bank(tmp_path / name, MANIFEST) for name in ("one", "two"))
    assert files_of(one) == files_of(two)
    assert one.digest() == two.digest()
    for shard, record in one.read_commits().items():
        assert record.features_file == f"shards/{shard:06d}-{record.sha256[:8]}.parquet"


def test_files_that_no_record_names_are_left_over_and_never_read(tmp_path, monkeypatch):
    bank = fill_bank(tmp_path / "bank", MANIFEST)
    lost = bank.path / "shards" / "000001-00000000.parquet"
    lost.write_bytes(bank.shard_path(2).read_bytes())
    assert verify(bank).leftovers == ()  # it may be a running writer's
    monkeypatch.setattr("raffect.bank.verify.QUIET_S", -1.0)
    found = verify(bank, MANIFEST)
    assert found.complete
    assert found.leftovers == (lost,)


def test_withdrawn_shards_take_all_their_files_and_no_other_shards(tmp_path):
    bank = fill_bank(tmp_path / "bank", MANIFEST, rejects={1: {0: "bad"}})
    (bank.path / "shards" / "000001.parquet").write_bytes(b"of format 1")
    (bank.path / "shards" / "0000010-12345678.parquet").write_bytes(b"of shard ten")
    withdraw(bank, [1])
    assert not [
        name for name in files_of(bank) if name.startswith(("shards/000001-", "shards/000001."))
    ]
    assert files_of(bank, "rejects") == set()
    assert "shards/0000010-12345678.parquet" in files_of(bank)
    assert sorted(bank.read_commits()) == [0, 2, 3, 4, 5, 6]


def test_a_writer_that_replaces_records_fails_the_first_test(tmp_path, monkeypatch):
    def replace_it(path, content):
        atomic.write_atomic(path, content)
        return True

    monkeypatch.setattr("raffect.storage.commits.write_if_absent", replace_it)
    with pytest.raises(AssertionError):
        test_of_writers_with_other_bytes_the_first_record_wins_and_losers_delete_their_own(tmp_path)


# Notes of runs


def put_note(bank: Path, age: float = 0.0, **changes) -> Path:
    """The note of another run, written ``age`` seconds ago."""
    other = Writer(host="elsewhere", machine="other boot", pid=77, renewed=3)
    file = bank / "running" / "elsewhere-77-abcdef.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(replace(other, **changes).to_bytes())
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_a_second_run_refuses_in_one_line_with_host_process_and_age(tmp_path):
    put_note(tmp_path, age=95)
    with pytest.raises(RaffectError) as caught, note_of_run(tmp_path):
        pass
    line = str(caught.value)
    assert "process 77 on elsewhere, seen 1 min 35 s ago" in line
    assert "--join" in line
    assert "\n" not in line
    assert len(list((tmp_path / "running").iterdir())) == 1


def test_join_writes_beside_another_run(tmp_path):
    put_note(tmp_path)
    with note_of_run(tmp_path, join=True):
        assert len(list((tmp_path / "running").iterdir())) == 2
    assert len(list((tmp_path / "running").iterdir())) == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"[" * 100_000])
def test_notes_older_than_ten_minutes_or_damaged_stop_nobody(tmp_path, content):
    file = put_note(tmp_path, age=601 if content is None else 0)
    if content is not None:
        file.write_bytes(content)
    with note_of_run(tmp_path):
        pass


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    machine = running._machine()
    here = {"host": running.socket.gethostname(), "machine": machine, "pid": child.pid}
    deadline = time.time() + 60
    while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "Z":
        assert time.time() < deadline
        time.sleep(0.01)
    put_note(tmp_path, **here)
    with note_of_run(tmp_path):  # it has ended, and nobody has collected it
        pass
    child.wait()
    with note_of_run(tmp_path):
        pass
    # A living one, and the same number on another machine
    for changes in ({"pid": os.getppid()}, {"machine": "other boot"}):
        put_note(tmp_path, **here | changes)
        with pytest.raises(RaffectError, match="another run"), note_of_run(tmp_path):
            pass


@pytest.mark.parametrize("by", ["repair", "the next run"])
def test_notes_of_dead_runs_are_deleted_and_those_of_living_ones_kept(tmp_path, by):
    bank = fill_bank(tmp_path / "bank", MANIFEST)
    dead = put_note(bank.path, age=601)
    living = bank.path / "running" / "elsewhere-78-abcdef.json"
    living.write_bytes(dead.read_bytes())
    assert verify(bank).leftovers == (dead,)
    if by == "repair":
        assert check(BankVerifyConfig(bank=bank.path, repair=True)).complete
    else:
        with pytest.raises(RaffectError, match="another run"), note_of_run(bank.path):
            pass
    assert list((bank.path / "running").iterdir()) == [living]


def test_marks_beside_files_of_the_plan_are_left_over_and_those_of_withdrawn_ones_are_not(tmp_path):
    bank = fill_bank(tmp_path / "bank", MANIFEST)
    stale, needed = (bank.path / "plan" / f"000{k}.withdrawn" for k in range(2))
    stale.touch(), needed.touch()
    assert verify(bank).leftovers == (stale,)
    assert check(BankVerifyConfig(bank=bank.path, repair=True)).complete
    assert not stale.exists()
    assert needed.exists()


def test_a_run_renews_its_note_and_takes_it_away(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "RENEWED_S", 0.02)
    with note_of_run(tmp_path):
        (file,) = (tmp_path / "running").iterdir()
        deadline = time.time() + 60
        while json.loads(file.read_text())["renewed"] < 3:
            assert time.time() < deadline
            time.sleep(0.01)
        with pytest.raises(RaffectError, match=f"process {os.getpid()} on"), note_of_run(tmp_path):
            pass
    assert list((tmp_path / "running").iterdir()) == []


def test_of_runs_that_start_at_once_exactly_one_goes_on(tmp_path):
    start, went_on, done = threading.Barrier(8), [], threading.Event()

    def run(number: int) -> None:
        start.wait()
        try:
            with note_of_run(tmp_path):
                went_on.append(number)
                done.wait()
        except RaffectError:
            pass

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    deadline = time.time() + 60
    while sum(thread.is_alive() for thread in threads) > 1:
        assert time.time() < deadline
        time.sleep(0.01)
    done.set()
    [thread.join() for thread in threads]
    assert len(went_on) == 1
