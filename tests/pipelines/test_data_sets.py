"""Data sets end to end: drawn, prepared, encoded with the embedded encoder, trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

import raffect
from raffect.bank.clips import find_clips
from raffect.bank.features import find_features
from raffect.datasets.labels import is_of_clips, read_label_task, read_labels
from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.heads.checkpoint import load_head
from raffect.runs.spread import short
from tests.helpers.banks import TINY
from tests.helpers.end_to_end import SHORT, encode, go_through
from tests.helpers.sample import sampled


def extract_on_ray(manifest: Path, bank_path: Path) -> None:
    config = raffect.ExtractConfig(manifest=manifest, bank=bank_path, encoder=TINY, shard_rows=64)
    assert raffect.extract(config).rejects == 0


def test_drawn_pictures_of_rafdb_are_trained_on(tmp_path):
    found = go_through("rafdb", tmp_path, 60, encode)
    assert found.data.group_name == "pictures"
    assert "drawn faces" in found.data.caveat
    labelled = found.data.splits["train"].frames + found.data.splits["validation"].frames
    assert labelled == 48, "a fifth is test"


@pytest.mark.cluster
@pytest.mark.parametrize("layout", sampled(LAYOUTS, ["dfew"]))
def test_drawn_copies_of_all_data_sets_are_trained_on(layout, tmp_path):
    found = go_through(layout, tmp_path, 150, encode)
    assert "drawn faces" in found.data.caveat
    assert found.data.of_clips == (layout in ("dfew", "ferv39k", "mafw", "afew"))


@pytest.mark.cluster
def test_drawn_clips_of_dfew_are_trained_on_fold_by_fold(tmp_path, local_ray):
    found = go_through("dfew", tmp_path, 300, extract_on_ray, folds="official")
    assert len(found.runs) == 5
    assert sum(run.data.splits["validation"].frames for run in found.runs) == 38


@pytest.mark.cluster
def test_heads_of_affectnet_are_judged_on_rafdb_by_the_names_of_classes(tmp_path, local_ray):
    go_through("affectnet", tmp_path / "affectnet", 150, encode)
    # Of its tasks that one trained va
    labels = tmp_path / "affectnet/data/labels/expr.parquet"
    config = raffect.TrainConfig.from_recipe(
        "erm",
        SHORT,
        bank=tmp_path / "affectnet/bank",
        labels=labels,
        out=tmp_path / "run",
        device="cpu",
    )
    trained = raffect.train(config)

    # RAF-DB in AffectNet's classes, seven of eight
    root, data, bank = tmp_path / "rafdb", tmp_path / "mapped", tmp_path / "bank"
    raffect.write_synthetic(root, 60, seed=3, workers=1, layout="rafdb")
    prepared = raffect.prepare(
        raffect.PrepareConfig(dataset="auto", root=root, out=data, map=labels)
    )
    encode(prepared.manifest, bank)
    config = raffect.EvaluateConfig(
        run=(trained.folder,), bank=bank, labels=data, split="test", device="cpu"
    )
    found = raffect.evaluate(config)
    assert any("absent from test: Contempt" in line for line in found.lines())


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("own", "other"),
    sampled([("affectnet", "affwild2"), ("dfew", "mafw")], [("dfew", "mafw")]),
)
def test_heads_of_one_drawn_set_are_judged_on_the_classes_that_another_one_has(
    own, other, tmp_path
):
    data = {name: prepare_drawn(name, tmp_path / name) for name in (own, other)}
    config = raffect.TrainConfig.from_recipe(
        "erm",
        {"epochs": 5, "batch_size": 16},
        bank=data[own] / "bank",
        labels=data[own] / "data",
        task="expr",
        out=tmp_path / "run",
        num_seeds=2,
        device="cpu",
    )
    run = raffect.train(config)
    config = raffect.EvaluateConfig(
        run=(run.folder,),
        bank=data[other] / "bank",
        labels=data[other] / "data",
        classes="common",
        out=tmp_path / "judged",
        device="cpu",
    )
    found = raffect.evaluate(config).tasks[0].evaluation

    # Answers among the common classes by hand, scores by scikit-learn
    table = read_labels(data[other] / "data/labels/expr.parquet")
    theirs = read_label_task(table, tmp_path).outputs
    bank, rows = raffect.Bank(data[other] / "bank"), run.data.task.outputs
    common = [name for name in rows if name in theirs]
    assert found.common.outputs == tuple(common)
    assert len(common) == 7
    find = find_clips if is_of_clips(table) else find_features
    task = read_label_task(table, tmp_path)
    index = find(bank, table, task, "validation", commits=bank.read_commits())
    true = [theirs[k] for k in index.y[:, 0].tolist()]
    keep = np.array([name in common for name in true])
    assert found.common.left_out == int((~keep).sum()) > 0
    true = np.array([common.index(name) for name in true if name in common])
    x = torch.from_numpy(index.read()).float()
    for head in found.heads:
        module, _ = load_head(Path(head.folder))
        outputs = module(x).detach().numpy()[keep][:, [rows.index(name) for name in common]]
        said = outputs.argmax(1)
        score = f1_score(true, said, labels=range(7), average="macro", zero_division=0)
        assert head.score.headline == pytest.approx(score)
        assert head.score.metrics["accuracy"] == pytest.approx(accuracy_score(true, said))
        recalls = recall_score(true, said, labels=np.unique(true), average="macro")
        assert head.score.metrics["uar"] == pytest.approx(recalls)
    assert "drawn faces" in "; ".join(found.caveats)

    # The same score stands in the report
    page = raffect.report([run.folder], tmp_path / "report", judged=[tmp_path / "judged"])
    mean = found.settings[0].scores["last"].mean
    assert f"{short(mean)} ± " in page.markdown.read_text()
    assert "drawn faces" in page.markdown.read_text().partition("Across data sets")[0]


def prepare_drawn(name: str, folder: Path) -> Path:
    """A drawn copy, its labels in ``data`` and its bank in ``bank``."""
    root = folder / "set"
    raffect.write_synthetic(root, 400, seed=1, workers=1, layout=name)
    config = raffect.PrepareConfig(dataset="auto", root=root, out=folder / "data")
    encode(raffect.prepare(config).manifest, folder / "bank")
    return folder
