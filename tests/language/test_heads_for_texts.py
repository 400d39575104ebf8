"""Heads that texts are compared through: what is refused, what results tell of their training."""

import dataclasses

import pytest

import raffect
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import TuneConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import read_labels
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head, save_head
from raffect.language.zeroshot.trained import read_trained, seen_lines
from raffect.recipe import HeadConfig, LossConfig
from raffect.runs.data import open_dataset
from raffect.storage.tables import read_metadata, write_table
from tests.helpers.zeroshot_heads import (
    PROJECTION,
    WINDOWS,
    card_with,
    config_of,
    vars_of,
    zeroshot_of,
)


@pytest.mark.cluster
def test_videos_that_a_head_was_trained_on_are_named_where_it_is_judged_on_them(
    texts, captions, tmp_path
):
    labels = read_labels(captions)
    swapped = labels["split"].to_pandas().map({"train": "validation", "validation": "train"})
    other = tmp_path / "captions.parquet"
    rows = labels.drop_columns(["split"]).append_column("split", [swapped.to_list()])
    write_table(rows, other, read_metadata(labels))
    targets = captions.with_name("captions.targets.parquet")
    (tmp_path / targets.name).write_bytes(targets.read_bytes())
    raffect.train(config_of(texts, other, tmp_path / "leaky", PROJECTION))
    config = zeroshot_of(texts, tmp_path / "out", tmp_path / "leaky", select="none")
    lines = "\n".join(raffect.zeroshot(config).lines())
    assert "captions of 4 of the 4 validation videos trained the heads of leaky: their" in lines
    other.unlink()
    config = dataclasses.replace(config, out=tmp_path / "again")
    assert "any more: they may have seen these" in "\n".join(raffect.zeroshot(config).lines())


def test_test_videos_that_a_head_was_trained_on_are_named(texts, projection, tmp_path):
    labels = read_labels(texts / "labels" / "expr.parquet")
    split = [
        "test" if row["video"] in ("v00", "v01") else row["split"] for row in labels.to_pylist()
    ]
    table = labels.drop_columns(["split"]).append_column("split", [split])
    write_table(table, tmp_path / "expr.parquet", read_metadata(labels))
    config = zeroshot_of(texts, tmp_path / "out", projection, labels=tmp_path / "expr.parquet")
    trained = read_trained(config, Bank(config.bank).require_identity())
    dataset = open_dataset(config.bank, config.labels, "expr", ("validation",))
    (line,) = seen_lines(trained, dataset)
    assert line.startswith("caveat: captions of 2 of the 2 test videos trained the heads of proj")
    assert "evaluate --split test" in line


@pytest.mark.cluster
def test_the_same_command_goes_on_and_other_heads_are_refused(
    texts, captions, projection, tmp_path
):
    out = tmp_path / "out"
    config = zeroshot_of(texts, out, projection, select="none")
    assert raffect.zeroshot(config).scores == raffect.zeroshot(config).scores
    with pytest.raises(RaffectError, match="a run with other settings; name a new folder"):
        raffect.zeroshot(zeroshot_of(texts, out, select="none"))
    run = tmp_path / "run"
    for seeds in (1, 2):
        raffect.train(config_of(texts, captions, run, PROJECTION, num_seeds=seeds))
        if seeds == 1:
            raffect.zeroshot(zeroshot_of(texts, tmp_path / "mine", run, select="none"))
    with pytest.raises(RaffectError, match="the heads of --head were others when it was made"):
        raffect.zeroshot(zeroshot_of(texts, tmp_path / "mine", run, select="none"))


def test_heads_that_cannot_be_used_are_refused_in_one_line(
    texts, projection, left_out, tmp_path, capsys
):
    (folder, *_) = projection.glob("weights/*/last")
    module, card = load_head(folder)
    tensors = module.state_dict()

    def saved(name, **changes):
        folder = tmp_path / name / "weights" / "a" / "last"
        other = {key: tensor + len(name) for key, tensor in tensors.items()}
        save_head(folder, card_with(card, **changes), other)
        return tmp_path / name

    expr = dataclasses.replace(EXPR, name="mine")
    other = dataclasses.replace(card.data.encoders[0], weights_sha256="0" * 64)
    named = dataclasses.replace(card.recipe, loss=LossConfig(leave_out="Awe"))
    cases = [
        ((saved("classes", task=expr),), "a head of task mine (multiclass), which compares with"),
        ((saved("encoder", encoders=(other,)),), "features of another encoder than"),
        ((saved("awe", recipe=named),), "trained without Awe, which expr does not have"),
        ((projection, saved("b/projection")), "another run is called projection as well"),
        ((projection, left_out.folder), "some heads were trained without a class and some with"),
        ((tmp_path / "none",), "no head in weights/*/last"),
    ]
    for heads, line in cases:
        with pytest.raises(RaffectError) as caught:
            raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", *heads))
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
    for words, line in (
        ({"other": "threshold"}, "--other threshold: is chosen by labels of every class"),
        ({"task": "au"}, "heads were trained without one class, and au has labels"),
    ):
        with pytest.raises(RaffectError, match=line):
            raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", left_out.folder, **words))
    assert not (tmp_path / "out").exists()
    paths = ["--bank", str(texts / "bank"), "--labels", str(texts), "--out", str(tmp_path / "o")]
    words = ["--task", "expr", "--head", str(tmp_path / "classes")]
    assert main(["zeroshot", *paths, *words]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("raffect zeroshot: ")


def test_texts_that_a_projection_would_map_once_more_are_refused(texts, own_captions, tmp_path):
    with pytest.raises(RaffectError, match=r"head.kind projection: .* mapped once more; .*teacher"):
        raffect.train(config_of(texts, own_captions, tmp_path / "run", PROJECTION))
    assert not (tmp_path / "run").exists()


def test_vectors_of_a_teacher_are_no_vectors_of_texts(texts, own_captions, tmp_path):
    run = tmp_path / "windows"
    raffect.train(config_of(texts, own_captions, run, HeadConfig(kind="pooled")))
    (folder,) = run.glob("weights/*/last")
    module, card = load_head(folder)
    targets = dataclasses.replace(card.data.targets, image_sha256="")
    save_head(folder, card_with(card, targets=targets), module.state_dict())
    with pytest.raises(RaffectError, match="was trained against a teacher, whose vectors are not"):
        raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", run))


@pytest.mark.cluster
def test_heads_of_one_run_that_differ_in_settings_are_refused(texts, captions, tmp_path):
    base = vars(config_of(texts, captions, tmp_path / "tune", PROJECTION))
    own = {name: value for name, value in base.items() if name in vars_of(TuneConfig)}
    own |= {"select": "cv", "folds": 2, "save_heads": True}
    space = ("head.window=1,3", "head.stride=1,4")
    raffect.tune(TuneConfig(**own, space=space, baseline=False))
    heads = sorted((tmp_path / "tune").glob("weights/*/last"))
    assert len(heads) == 4
    with pytest.raises(RaffectError, match="differ in head.window, head.stride; give those of one"):
        raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", *heads))
    # Each of them alone, and the one that stands for the run
    for k, head in enumerate((*heads, tmp_path / "tune")):
        result = raffect.zeroshot(zeroshot_of(texts, tmp_path / f"out{k}", head, select="none"))
        by_run = {one.trained: one for one in result.scores}
        assert by_run.keys() == {"tune", ""}
        assert by_run["tune"].gains


def test_what_trained_an_imported_head_is_called_unknown(texts, projection, tmp_path):
    (folder, *_) = projection.glob("weights/*/last")
    module, card = load_head(folder)
    imported = dataclasses.replace(card_with(card, labels=""), validation=None)
    save_head(tmp_path / "mine", imported, module.state_dict())
    result = raffect.zeroshot(
        zeroshot_of(texts, tmp_path / "out", tmp_path / "mine", select="none")
    )
    line = "what trained the heads of mine is not known: they may have seen these very videos"
    assert f"caveat: {line}" in result.lines()
    assert "any more" not in "\n".join(result.lines())


def test_heads_that_were_trained_on_clips_say_so_on_frames(texts, own_captions, tmp_path):
    run = tmp_path / "windows"
    raffect.train(config_of(texts, own_captions, run, WINDOWS))
    (folder,) = run.glob("weights/*/last")
    module, card = load_head(folder)
    save_head(folder, card_with(card, of_clips=True), module.state_dict())
    lines = raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", run, select="none")).lines()
    what = "trained on 3 frames evenly spread over a clip, used here on windows of 3 neighbouring"
    assert f"caveat: {what} frames, stride 1" in lines
