"""Epochs chosen on folds of the training split, by whole runs."""

import json
import re

import numpy as np
import pytest

from raffect.cli import main
from raffect.heads.checkpoint import load_head
from raffect.runs.folder import RunFolder
from tests.helpers.learning import words, write_times


@pytest.mark.parametrize("task", ["expr", "au"])
def test_folds_choose_the_epoch_without_the_validation_split(data, tmp_path, capsys, task):
    out = tmp_path / "run"
    assert main(words("train", data, out, "--select", "cv", "--folds", "3", task=task)) == 0
    text = capsys.readouterr().out
    assert f"{task.upper()} val-cv" in text
    assert main(words("train", data, out, "--select", "cv", "--folds", "4", task=task)) == 2
    assert "a run with folds 3, this one has 4" in capsys.readouterr().err

    # Every fold keeps statistics of every epoch
    records = [json.loads(path.read_text()) for path in (out / "heads").glob("*.json")]
    folds = [record for record in records if record["fold"] is not None]
    folder = RunFolder(out)
    found = [folder.read_statistics(folder.read_record(record["id"])) for record in folds]
    for statistics, record in zip(found, folds, strict=True):
        assert set(statistics.heads[record["id"]]) == {1, 2, 3}

    # Folds are of training videos alone, and no video is in two
    held_out = [set(statistics.groups) for statistics in found]
    assert len(folds) == 3
    assert set.union(*held_out) == {f"v{k:02d}" for k in range(12) if k % 3 != 2}
    assert sum(map(len, held_out)) == 8

    # The epoch is the best over the frames of all folds
    epoch = next(record for record in records if record["fold"] is None)["scores"]["cv"]["epoch"]
    kind, ids = folder.read_records()[0].kind, [record["id"] for record in folds]
    by_fold = [statistics.heads[name] for statistics, name in zip(found, ids, strict=True)]
    curve = [kind.headline(sum(fold[k].sum(0) for fold in by_fold)) for k in (1, 2, 3)]
    assert epoch == int(np.argmax(curve)) + 1
    assert load_head(next((out / "weights").glob("*/cv")))[1].epoch == epoch


def test_a_run_goes_on_with_its_own_folds_alone(data, tmp_path, capsys):
    out, more = tmp_path / "run", ["--select", "cv", "--folds", "2", "--epochs", "1"]
    assert main(words("train", data, out, *more)) == 0
    note, heads = out / "folds.json", write_times(out / "heads")
    before = note.read_bytes()
    note.unlink()  # as in a run of an earlier version
    assert main(words("train", data, out, *more)) == 0
    assert note.read_bytes() == before
    note.write_text(json.dumps({"sha256": "0" * 64, "scikit_learn": "1.5.2"}))
    capsys.readouterr()
    assert main(words("train", data, out, *more)) == 2
    line = "its folds are those of scikit-learn 1.5.2, and .* deals others; go on with that version"
    assert re.search(line, capsys.readouterr().err)
    assert write_times(out / "heads") == heads


def test_statistics_of_folds_end_where_a_head_diverged(data, tmp_path, capsys):
    out = tmp_path / "run"
    more = ["--select", "cv", "--folds", "2", "--num-seeds", "1", "--optim.lr", "1e30"]
    assert main(words("train", data, out, *more)) == 2
    assert "no head was trained to the end on any fold" in capsys.readouterr().err
    folder = RunFolder(out)
    for record in folder.read_records():
        assert record.status == "diverged"
        assert record.statistics is None
