"""`raffect bank`: all its commands, and the one-liners of docs/bank.md as they are."""

import csv
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score

from raffect.bank.commands import info
from raffect.bank.export import export
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.import_released import import_released
from raffect.bank.rejects import Reject, list_rejects
from raffect.bank.running import note_of_run
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.config import BankExportConfig, BankImportConfig, BankInfoConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import write_manifest
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from tests.helpers.banks import fill_bank, make_manifest
from tests.helpers.learning import FAST

DOCS = Path(__file__).parents[2] / "docs" / "bank.md"
MANIFEST = make_manifest({"a": 20, "b_left": 13})


@pytest.fixture
def bank(tmp_path):
    return fill_bank(tmp_path / "bank", MANIFEST, rejects={1: {3: "empty file"}})


def expected_matrix():
    rows = np.delete(np.arange(33), 19)
    return (rows[:, None] + np.arange(6) / 4).astype(np.float16)


@pytest.mark.parametrize("tool", ["pyarrow", "polars", "duckdb", "pandas"])
def test_the_one_liners_of_the_specification_read_the_bank(tool, bank, monkeypatch):
    code = DOCS.read_text().split("```python")[1].split("```")[0]
    snippet = re.search(rf"# {tool}\n(.*?)(?=\n# |\Z)", code, re.S)[1]
    monkeypatch.chdir(bank.path.parent)
    names: dict = {}
    exec(snippet, names)
    assert np.array_equal(names["x"], expected_matrix())


def test_info_counts_what_there_is(bank):
    facts = info(BankInfoConfig(bank=bank.path))
    assert (facts.rows, facts.rejects, facts.planned, facts.videos) == (32, 1, 33, 2)
    assert facts.digest == bank.digest()
    assert any("32 features + 1 rejects of 33" in line for line in facts.lines())


def test_verify_exits_one_until_the_bank_is_whole_again(bank, capsys):
    assert main(["bank", "verify", "--bank", str(bank.path)]) == 0
    bank.shard_path(0).write_bytes(b"x")
    assert main(["bank", "verify", "--bank", str(bank.path)]) == 1
    assert "shard 000000" in capsys.readouterr().out
    assert main(["bank", "verify", "--bank", str(bank.path), "--repair"]) == 1
    assert "withdrawn" in capsys.readouterr().out
    fill_bank(bank.path, MANIFEST, rejects={1: {3: "empty file"}})
    assert main(["bank", "verify", "--bank", str(bank.path)]) == 0


def test_a_manifest_is_given_by_its_folder_too(bank, tmp_path, capsys):
    write_manifest(make_manifest({"a": 20}), tmp_path / "data" / "manifest.parquet", False)
    words = ["bank", "verify", "--bank", str(bank.path), "--manifest"]
    for manifest in (tmp_path / "data", tmp_path / "data" / "manifest.parquet"):
        assert main([*words, str(manifest)]) == 1
        assert "problem: " in capsys.readouterr().out
    write_manifest(MANIFEST, tmp_path / "data" / "manifest.parquet", False)
    assert main([*words, str(tmp_path / "data")]) == 0
    assert main([*words, str(tmp_path)]) == 2
    assert f"{tmp_path}/manifest.parquet: no such manifest" in capsys.readouterr().err


def test_exports_hold_every_row_once(bank, tmp_path):
    export(BankExportConfig(bank=bank.path, out=tmp_path / "npy"))
    assert np.array_equal(np.load(tmp_path / "npy" / "features.npy"), expected_matrix())
    keys = pq.read_table(tmp_path / "npy" / "keys.parquet")
    assert (keys["video"][20].as_py(), keys["frame"][18].as_py(), len(keys)) == ("b_left", 19, 32)
    export(BankExportConfig(bank=bank.path, out=tmp_path / "list", format="list"))
    table = pq.read_table(tmp_path / "list" / "features")
    assert np.array_equal(np.array(table["feature"].to_pylist(), np.float16), expected_matrix())
    empty = Bank(tmp_path / "empty")
    empty.extend_plan(MANIFEST)
    with pytest.raises(RaffectError, match="nothing extracted"):
        export(BankExportConfig(bank=empty.path, out=tmp_path / "x"))


def released(folder, split, videos, dim=768, task="expr", seed=0):
    """Files as the released code writes them: features in the order of a shuffled list."""
    import h5py

    # Frames in any order, with random features and labels
    rng = np.random.default_rng(seed)
    keys = [(video, frame) for video, count in videos.items() for frame in range(1, count + 1)]
    keys = [keys[k] for k in rng.permutation(len(keys))]
    features = rng.normal(size=(len(keys), dim)).astype(np.float16)
    if task == "expr":
        labels = rng.integers(0, 8, len(keys))
    else:
        labels = rng.integers(0, 2, (len(keys), 12))
    # The two files
    with h5py.File(folder / f"{task}_{split}_clip.h5", "w") as file:
        file[f"{split}_features"] = features
    cells = [str(label) if task == "expr" else ",".join(map(str, label)) for label in labels]
    lines = [
        f"data/cropped_aligned/{video}/{frame:05d}.jpg\t{cell}"
        for (video, frame), cell in zip(keys, cells, strict=True)
    ]
    (folder / f"{task}_{split}.txt").write_text("\n".join(lines) + "\n")
    return dict(zip(keys, zip(features, labels, strict=True), strict=True))


def importing(folder, split, task="expr"):
    return BankImportConfig(
        features=folder / f"{task}_{split}_clip.h5",
        list=folder / f"{task}_{split}.txt",
        task=task,
        bank=folder / "bank",
        out=folder / "data",
    )


@pytest.mark.parametrize("task", ["expr", "au"])
def test_released_features_come_back_joined_by_video_and_frame(tmp_path, task):
    truth = {
        "train": released(tmp_path, "train", {"v1": 3000, "v2_left": 50}, task=task, seed=0),
        "val": released(tmp_path, "val", {"v0": 70}, task=task, seed=1),
    }
    for split in truth:
        import_released(importing(tmp_path, split, task))
    bank = Bank(tmp_path / "bank")
    assert verify(bank).complete
    labels = read_labels(tmp_path / "data" / "labels" / f"{task}.parquet")
    for split, name in (("train", "train"), ("val", "validation")):
        out = read_features(bank, labels, EXPR if task == "expr" else AU, name)
        assert len(out.x) == len(truth[split])
        for row in range(0, len(out.x), 37):
            feature, label = truth[split][out.videos[out.video[row]], int(out.frame[row])]
            assert np.array_equal(out.x[row], feature)
            assert np.array_equal(out.y[row], np.atleast_1d(label))
    assert bank.read_identity().caveat == "imported features"


def test_an_import_and_another_run_do_not_write_one_bank_at_once(tmp_path):
    released(tmp_path, "train", {"v1": 60})
    config = importing(tmp_path, "train")
    with note_of_run(config.bank), pytest.raises(RaffectError, match="another run writes") as found:
        import_released(config)
    assert "--join" not in str(found.value)  # which this command does not have
    assert import_released(config).written == 60
    assert not list((config.bank / "running").glob("*.json"))


def test_heads_are_judged_on_an_imported_test_split(tmp_path, capsys):
    truth = {
        split: released(tmp_path, split, videos, dim=16, seed=seed)
        for seed, (split, videos) in enumerate(
            {"train": {"v1": 60}, "val": {"v2": 40}, "test": {"v3": 50, "v4": 30}}.items()
        )
    }
    reports = [import_released(importing(tmp_path, split)) for split in truth]
    data = ["--bank", str(tmp_path / "bank"), "--labels", str(tmp_path / "data")]
    following = "raffect evaluate --run RUN --bank"
    assert [following in report.lines()[-1] for report in reports] == [False, False, True]

    # Train, and judge as the last line of the import says
    run, out = tmp_path / "run", tmp_path / "judged"
    assert main(["train", "paper", *data, "--out", str(run), *FAST, "--batch-size", "16"]) == 0
    words = reports[-1].lines()[-1].removeprefix("next: raffect ").replace("RUN", str(run))
    assert main([*words.split(), "--out", str(out), "--device", "cpu"]) == 0
    assert "EXPR test: 80 frames of 2 videos" in capsys.readouterr().out

    # The score is scikit-learn's on the features of the file
    x, y = (np.stack(part) for part in zip(*truth["test"].values(), strict=True))
    head, _ = load_head(next(run.glob("weights/*/last")))
    predicted = head(torch.from_numpy(x).float()).argmax(1).numpy()
    expected = f1_score(y, predicted, labels=range(8), average="macro", zero_division=0)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["heads"][0]["score"]["headline"] == pytest.approx(expected, abs=1e-9)


def test_a_test_split_without_labels_is_imported_and_said_to_have_none(tmp_path):
    released(tmp_path, "test", {"v1": 20})
    config = importing(tmp_path, "test")
    hidden = [line.split("\t")[0] + "\t-1" for line in config.list.read_text().splitlines()]
    config.list.write_text("\n".join(hidden) + "\n")
    report = import_released(config)
    assert (report.listed, report.labelled, report.written) == (20, 0, 20)
    assert "no frame has one" in report.lines()[-1]
    export(BankExportConfig(bank=config.bank, out=tmp_path / "npy"))
    assert len(np.load(tmp_path / "npy" / "features.npy")) == 20


def test_importing_twice_or_after_a_stop_changes_nothing(tmp_path):
    released(tmp_path, "train", {"v1": 3000})
    import_released(importing(tmp_path, "train"))
    digest = Bank(tmp_path / "bank").digest()
    import_released(importing(tmp_path, "train"))
    assert Bank(tmp_path / "bank").digest() == digest
    Bank(tmp_path / "bank").commit_path(0).unlink()
    import_released(importing(tmp_path, "train"))
    assert Bank(tmp_path / "bank").digest() == digest


def test_importing_a_corrected_file_says_what_is_kept_and_what_differs(tmp_path):
    released(tmp_path, "train", {"v1": 3000})
    report = import_released(importing(tmp_path, "train"))
    assert report.lines()[0].startswith("imported 3,000 of 3,000 expr train frames")
    released(tmp_path, "train", {"v1": 3000, "v2": 10}, seed=1)
    report = import_released(importing(tmp_path, "train"))
    assert (report.listed, report.written, report.waiting) == (3010, 10, 0)
    assert (report.kept, report.differing) == (3000, 3000)
    assert len(read_labels(report.labels)) == report.listed
    lines = report.lines()
    assert lines[0].startswith("imported 10 of 3,010 expr train frames")
    assert "kept: 3,000 were there already, 3,000 of them with other features" in lines[1]


def test_released_files_that_do_not_fit_are_one_clear_line(tmp_path):
    released(tmp_path, "train", {"v": 10})
    config = importing(tmp_path, "train")
    text = config.list.read_text()
    for content, match in (
        (text.rsplit("\n", 2)[0], "9 lines .*10 vectors"),
        (text.replace("\t", " ", 1), r"train.txt:1: expected"),
        (text.splitlines()[0] + "\n" + "\n".join(text.splitlines()[:9]), "listed twice"),
    ):
        config.list.write_text(content)
        with pytest.raises(RaffectError, match=match):
            import_released(config)
    config.features.write_bytes(b"no hdf5")
    with pytest.raises(RaffectError, match="not a readable HDF5"):
        import_released(config)


def test_damage_is_not_exported_and_an_unfinished_bank_says_so(bank, tmp_path):
    content = bytearray(bank.shard_path(0).read_bytes())
    content[len(content) // 2] ^= 1
    whole = bank.shard_path(0).read_bytes()
    bank.shard_path(0).write_bytes(content)
    with pytest.raises(RaffectError, match="damaged, nothing exported"):
        export(BankExportConfig(bank=bank.path, out=tmp_path / "out"))
    bank.shard_path(0).write_bytes(whole)
    bank.commit_path(2).unlink()
    report = export(BankExportConfig(bank=bank.path, out=tmp_path / "out"))
    assert "not extracted yet" in report.lines()[0]
    bank.shard_path(0).unlink()
    assert any("broken: 1" in line for line in info(BankInfoConfig(bank=bank.path)).lines())


@pytest.fixture
def rejecting(tmp_path):
    """A bank of 3 shards with three rejects, and the folder of its manifest."""
    rejects = {0: {2: "empty file", 15: "not a picture"}, 2: {0: "empty file"}}
    bank = fill_bank(tmp_path / "bank", MANIFEST, rejects=rejects)
    write_manifest(MANIFEST, tmp_path / "data" / "manifest.parquet", synthetic=False)
    return bank


def test_rejects_are_listed_with_files_and_reasons(rejecting, tmp_path, capsys):
    # In the order of the plan: frames 3 and 16 of a, and row 32, the last frame of b_left
    expected = [
        {"video": "a", "frame": "3", "reason": "empty file", "path": "/nowhere/a/00003.jpg"},
        {"video": "a", "frame": "16", "reason": "not a picture", "path": "/nowhere/a/00016.jpg"},
        {"video": "b_left", "frame": "13", "reason": "empty file"},
    ]
    expected[2]["path"] = "/nowhere/b_left/00013.jpg"
    words = ["bank", "rejects", "--bank", str(rejecting.path), "--manifest", str(tmp_path / "data")]
    assert main([*words, "--out", str(tmp_path / "out" / "rejects.csv")]) == 0
    assert list(csv.DictReader((tmp_path / "out" / "rejects.csv").open())) == expected
    assert capsys.readouterr().out.splitlines() == [
        "rejects: 3 of 33 planned frames",
        "rejected: 2 x empty file",
        "rejected: 1 x not a picture",
        "  /nowhere/a/00003.jpg: empty file",
        "  /nowhere/a/00016.jpg: not a picture",
        "  /nowhere/b_left/00013.jpg: empty file",
        f"wrote {tmp_path / 'out' / 'rejects.csv'}: video, frame, reason, path",
    ]


def test_rejects_are_an_object_in_python(rejecting):
    found = list_rejects(rejecting)
    assert found.reasons == {"empty file": 2, "not a picture": 1}
    assert found.rejects[1] == Reject(video="a", frame=16, reason="not a picture")
    assert found.to_pandas()["frame"].tolist() == [3, 16, 13]
    assert found.lines()[3] == "  a/00003: empty file"
    assert "--manifest DATA" in found.lines()[-1]
    # A manifest that lacks one of them, in any order
    shuffled = MANIFEST.take(np.random.default_rng(0).permutation(32))
    paths = [reject.path for reject in list_rejects(rejecting, shuffled).rejects]
    assert paths == ["/nowhere/a/00003.jpg", "/nowhere/a/00016.jpg", ""]


def test_a_bank_without_rejects_has_an_empty_list(tmp_path):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 3}))
    words = ["bank", "rejects", "--bank", str(bank.path), "--out", str(tmp_path / "r.csv")]
    assert main(words) == 0
    assert (tmp_path / "r.csv").read_text() == "video,frame,reason,path\n"
    assert list_rejects(bank).lines() == ["rejects: 0 of 3 planned frames"]


def test_thousands_of_rejects_are_a_short_report(tmp_path):
    rejects = {0: {row: f"broken at byte {row}" for row in range(3000)}}
    manifest = make_manifest({"a": 3000})
    found = list_rejects(fill_bank(tmp_path / "bank", manifest, 4096, rejects=rejects))
    assert len(found.lines()) < 50
    assert "  and 2,980 others; --out FILE.csv has all" in found.lines()


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "text"])
def test_a_damaged_file_of_rejects_is_one_line(rejecting, harm, capsys):
    path = rejecting.rejects_path(2)
    content = path.read_bytes()
    harmed = {"flipped": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-9], "text": b"x"}
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(harmed[harm])
    assert main(["bank", "rejects", "--bank", str(rejecting.path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "bank verify" in printed.err


def test_rejects_are_read_again_on_request(bank, capsys):
    assert main(["bank", "verify", "--bank", str(bank.path)]) == 0
    assert "1 of them as rejects" in capsys.readouterr().out
    assert main(["bank", "verify", "--bank", str(bank.path), "--retry-rejects"]) == 1
    assert sorted(bank.read_commits()) == [0, 2]


def test_without_rejects_there_is_nothing_to_retry_and_the_bank_is_complete(tmp_path, capsys):
    bank = fill_bank(tmp_path / "bank", make_manifest({"a": 30}))
    assert main(["bank", "verify", "--bank", str(bank.path), "--retry-rejects"]) == 0
    assert "sound and complete" in capsys.readouterr().out


def test_repair_leaves_files_alone_that_somebody_may_be_writing(bank, capsys):
    young, old = (bank.path / "shards" / f".tmp-{name}" for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert main(["bank", "verify", "--bank", str(bank.path), "--repair"]) == 0
    assert "leftovers: 1 " in capsys.readouterr().out
    assert young.exists()
    assert not old.exists()


def test_a_bank_without_its_plan_is_one_clear_error(bank, capsys):
    (bank.path / "plan" / "0000.parquet").unlink()
    for words in (["bank", "info"], ["bank", "verify"]):
        assert main([*words, "--bank", str(bank.path)]) == 2
        assert "plan/0000.parquet is missing" in capsys.readouterr().err
