"""Everything on an object store: a real S3 server (moto's) on loopback, with real clients."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from raffect.bank.format import Bank
from raffect.bank.running import note_of_run
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.datasets.manifest import read_manifest
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from raffect.errors import RaffectError
from raffect.storage.atomic import atomic_path, write_atomic, write_if_absent
from raffect.storage.paths import list_sizes, local_copy, locate, read_files
from tests.helpers.banks import IDENTITY, make_manifest
from tests.helpers.environment import S3_PORT

EMBEDDED = ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
SMALL = ["--epochs", "2", "--batch-size", "64", "--head.width", "16", "--head.depth", "1"]
SMALL += ["--device", "cpu"]


@pytest.fixture(scope="module")
def bucket():
    """``s3://faces`` on a server of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=S3_PORT, verbose=False)
    server.start()
    locate("s3://faces/x").fs.mkdir("faces")
    yield "s3://faces"
    server.stop()


def test_a_path_is_a_path_and_a_url_is_an_object_store(bucket):
    assert str(locate("/data/bank")) == "/data/bank"
    assert str(locate(f"{bucket}/a/bank/")) == "s3://faces/a/bank"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://key:secret@faces/x", "no credentials"),
        ("s3://key:sec/secret@faces/x", "no credentials"),
        ("s3://faces/x?secret=1", "no credentials"),
        ("s3:///x", "no bucket"),
        ("nfs4://faces/x", "no storage of kind nfs4"),
        ("file:///data/x", "plain path"),
    ],
)
def test_a_url_that_will_not_do_is_one_line_without_its_secret(url, what):
    with pytest.raises(RaffectError, match=what) as error:
        locate(url)
    assert "secret" not in str(error.value)


def test_of_many_writers_exactly_one_creates_an_object(bucket):
    path = locate(f"{bucket}/once/bank.json")
    won = []

    def write(k):
        if write_if_absent(path, str(k).encode()):
            won.append(k)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_text() == str(won[0])


def test_of_writers_with_other_bytes_in_a_bucket_the_first_record_counts(bucket):
    manifest = make_manifest({"a": 8})
    bank = Bank(f"{bucket}/contested")
    plan = bank.extend_plan(manifest, 4)
    bank.claim(IDENTITY)
    start, answers = threading.Barrier(4), []

    def write(writer: int) -> None:
        start.wait()
        for shard in range(plan.num_shards):
            features = np.full((4, IDENTITY.dim), writer, np.float16)
            record = bank.commit(shard, plan.rows(shard), features, {}, IDENTITY)
            answers.append((shard, record))

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commits = bank.read_commits()
    assert len(answers) == 8
    assert all(record == commits[shard] for shard, record in answers)
    named = {name for record in commits.values() for name in record.files}
    assert {f"shards/{name}" for name in list_sizes(bank.path / "shards")} == named
    assert verify(bank, manifest).complete


def test_a_second_run_on_a_bank_in_a_bucket_is_refused(bucket):
    folder = locate(f"{bucket}/noted")
    with note_of_run(folder):
        with pytest.raises(RaffectError, match="another run writes"), note_of_run(folder):
            pass
        with note_of_run(folder, join=True):
            assert len(list_sizes(folder / "running")) == 2
    assert list_sizes(folder / "running") == {}


def test_an_object_that_failed_halfway_is_not_there(bucket):
    path = locate(f"{bucket}/half/head.safetensors")
    with pytest.raises(FileNotFoundError), atomic_path(path) as temporary:
        temporary.with_name("of another writer").write_bytes(b"half")
    assert not path.exists()
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"


def test_listing_and_reading_many_sees_what_another_client_wrote_just_now(bucket):
    folder = locate(f"{bucket}/many")
    assert list_sizes(folder) == {}
    for k in range(20):
        write_atomic(folder / f"{k}.json", b"x" * k)
        assert len(list_sizes(folder)) == k + 1
    assert list_sizes(folder) == {f"{k}.json": k for k in range(20)}
    assert dict(read_files(folder, ["3.json", "absent.json"])) == {"3.json": b"xxx"}
    with local_copy(folder / "5.json") as copy:
        assert copy.read_bytes() == b"xxxxx"
    assert not copy.exists()


@pytest.fixture(scope="module")
def extracted(bucket, local_ray, tmp_path_factory):
    """400 drawn faces, packed and extracted in the bucket, and extracted in folders as well."""
    folder = tmp_path_factory.mktemp("faces")
    write_synthetic(folder / "faces", 400, 0)

    # Manifests and labels
    words = ["--images", str(folder / "faces/cropped_aligned")]
    words += ["--annotations", str(folder / "faces" / EDITION)]
    for out in (f"{bucket}/data", str(folder / "data")):
        assert main(["prepare", *words, "--out", out]) == 0

    # Frames
    rows = ["--shard-rows", "128"]
    words = ["--manifest", f"{bucket}/data/manifest.parquet", "--out", f"{bucket}/packed"]
    assert main(["pack", *words, *rows, "--groups-per-file", "2"]) == 0

    # Banks
    for manifest, bank in (
        (f"{bucket}/packed/manifest.parquet", f"{bucket}/bank"),
        (str(folder / "data/manifest.parquet"), str(folder / "bank")),
    ):
        words = ["--manifest", manifest, "--bank", bank]
        assert main(["extract", *words, *rows, *EMBEDDED]) == 0
    return folder


@pytest.mark.cluster
def test_a_bank_in_a_bucket_has_the_bytes_of_one_in_a_folder(bucket, extracted):
    there, here = Bank(f"{bucket}/bank"), Bank(extracted / "bank")
    assert verify(there, read_manifest(locate(f"{bucket}/packed/manifest.parquet"))).complete
    assert there.read_commits() == here.read_commits()
    assert there.digest() == here.digest()


@pytest.mark.cluster
def test_a_damaged_object_is_named_withdrawn_and_encoded_again(bucket, extracted, capsys):
    bank = Bank(f"{bucket}/bank")
    whole = bank.shard_path(1).read_bytes()
    write_atomic(bank.shard_path(1), whole[:-7])
    assert main(["bank", "verify", "--bank", f"{bucket}/bank", "--repair"]) == 1
    assert "damaged: shard 000001" in capsys.readouterr().out
    words = ["--manifest", f"{bucket}/packed/manifest.parquet", "--bank", f"{bucket}/bank"]
    assert main(["extract", *words, *EMBEDDED]) == 0
    assert bank.shard_path(1).read_bytes() == whole
    assert verify(bank).complete


@pytest.mark.cluster
def test_training_sweep_evaluation_and_report_live_in_a_bucket(bucket, extracted, capsys):
    data = ["--bank", f"{bucket}/bank", "--labels", f"{bucket}/data"]
    learn = ["erm", "--task", "expr", *data, *SMALL]
    run, sweep = f"{bucket}/run", f"{bucket}/sweep"

    # All of it in the bucket; given again, a sweep has nothing left to do
    assert main(["train", *learn, "--out", run, "--num-seeds", "2"]) == 0
    space = ["--space", "loss.alpha=0.5,1", "--no-baseline"]
    assert main(["tune", *learn, "--out", sweep, *space]) == 0
    assert main(["tune", *learn, "--out", sweep, *space]) == 0
    assert main(["evaluate", "--run", run, *data, "--out", f"{bucket}/judged"]) == 0
    assert main(["report", "--runs", run, sweep, "--out", f"{bucket}/report"]) == 0
    assert b"data:image/png;base64" in locate(f"{bucket}/report/report.html").read_bytes()
    assert len(json.loads(locate(f"{bucket}/judged/metrics.json").read_text())["heads"]) == 2

    # The same run in a folder has heads of the same bytes
    here = ["--bank", str(extracted / "bank"), "--labels", str(extracted / "data")]
    assert main(["train", f"{run}/config.toml", *here, "--out", str(extracted / "run")]) == 0
    names = [path.name for path in (extracted / "run" / "weights").iterdir()]
    assert len(names) == 2
    for name in names:
        head = f"weights/{name}/last/head.safetensors"
        assert locate(f"{run}/{head}").read_bytes() == (extracted / "run" / head).read_bytes()


def test_where_an_object_store_cannot_be_the_error_asks_for_a_folder(bucket, tmp_path, capsys):
    assert main(["synth", "--out", f"{bucket}/drawn", "--size", "tiny"]) == 2
    expected = f"--out {bucket}/drawn: expected a folder or file of this machine"
    assert expected in capsys.readouterr().err


def test_a_bucket_that_is_missing_is_one_line(bucket, capsys):
    assert main(["bank", "info", "--bank", "s3://absent/bank"]) == 2
    words = ["--manifest", "s3://absent/manifest.parquet", "--bank", f"{bucket}/b2"]
    assert main(["extract", *words]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "s3://absent/manifest.parquet: no such manifest" in err


@pytest.mark.parametrize(
    "words",
    [
        ["bank", "info", "--bank", "s3://elsewhere/bank"],
        ["extract", "--manifest", "s3://elsewhere/m.parquet", "--bank", "b"],
    ],
)
def test_a_server_that_does_not_answer_is_one_line_and_not_taken_for_an_empty_one(words, tmp_path):
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "raffect.cli", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 2
    # A slow machine has lines of progress before it
    *before, line = done.stderr.splitlines()
    assert all(found.startswith("reading s3://") for found in before)
    assert line.startswith(f"raffect {words[0]}")
    assert "http://127.0.0.1:9" in line


@pytest.mark.cluster
def test_a_listing_that_fails_is_not_an_empty_bank(bucket, extracted, monkeypatch):
    bank = Bank(f"{bucket}/bank")
    whole = bank.read_commits()

    def slow_down(*args, **kwargs):
        raise OSError(16, "SlowDown")

    monkeypatch.setattr(type(bank.path.fs), "_lsdir", slow_down)
    with pytest.raises(OSError, match="SlowDown"):
        bank.read_commits()
    monkeypatch.undo()
    assert bank.read_commits() == whole != {}


def test_a_lost_conditional_put_is_recognised_in_the_words_of_any_server(bucket, monkeypatch):
    path = locate(f"{bucket}/words/bank.json")
    assert write_if_absent(path, b"first")

    def conflict(*args, **kwargs):
        raise OSError(5, "ConditionalRequestConflict")

    monkeypatch.setattr(path.fs, "pipe_file", conflict)
    assert not write_if_absent(path, b"second")
    with pytest.raises(OSError, match="Conflict"):
        write_if_absent(locate(f"{bucket}/words/other.json"), b"never")
    assert path.read_bytes() == b"first"
