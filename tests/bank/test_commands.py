"""`raffect bank`: info, verify, export, import, and the one-liners of docs/bank.md as they are."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raffect.bank.commands import info
from raffect.bank.export import export
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.bank.import_released import import_released
from raffect.bank.verify import verify
from raffect.cli import main
from raffect.config import BankExportConfig, BankImportConfig, BankInfoConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.labels import read_labels
from raffect.errors import RaffectError
from tests.helpers.banks import fill_bank, make_manifest

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
