"""Zero-shot: open_clip's classifier as a head of a run folder, judged as scikit-learn judges."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import raffect
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import EvaluateConfig, TrainConfig, ZeroshotConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.tasks import Task
from raffect.encoders.text import TextIdentity, open_text_encoder
from raffect.encoders.tower import build_model
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.language.classifiers import build_batch, build_classifier, choose_thresholds
from raffect.language.prompt_sets import prompts_for
from raffect.runs.folder import RunFolder
from raffect.storage.tables import read_metadata
from raffect.training.space import read_space
from tests.helpers.banks import TINY
from tests.helpers.texts import embedded, unit

SETS = ("facs", "photo", "everyday")


@pytest.fixture(scope="module")
def expr(texts, tmp_path_factory):
    """Three prompt sets for expressions, chosen on folds."""
    out = tmp_path_factory.mktemp("runs") / "expr"
    return raffect.zeroshot(config_of(texts, out, prompts=SETS))


def config_of(texts, out, task="expr", **more):
    paths = {"bank": texts / "bank", "labels": texts, "out": out}
    return ZeroshotConfig(**{"task": task, "folds": 3, **paths, **more})


def frames_of(texts, task, split="validation"):
    """Features and labels of a split, float64."""
    labels = read_labels(texts / "labels" / f"{task.name}.parquet")
    found = read_features(Bank(texts / "bank"), labels, task, split)
    return found.x.astype(np.float64), found.y.astype(int)


def cosines(texts, name, task=EXPR):
    """Each frame's cosine with the mean of each described class's normalised prompts."""
    encoder = open_text_encoder(embedded(), texts)
    outputs = prompts_for(name, task).outputs
    rows = [unit(encoder.encode(parts[0])).mean(0) for parts in outputs.values() if parts]
    x, y = frames_of(texts, task)
    return unit(x) @ unit(np.stack(rows)).T, y[:, 0]


def test_our_classifier_is_open_clips(texts):
    names, templates = ["lips parted", "jaw dropped"], ["a face with {}", "{}", "a person with {}"]
    model, tokenizer = build_model(resolve(TINY)).eval(), open_clip.get_tokenizer(TINY.model)
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates).T.numpy()
    task = Task(name="t", kind="multiclass", outputs=("AU25", "AU26"), columns=("c",))
    prompts = prompts_for("facs", task)
    prompts.outputs["AU25"], prompts.outputs["AU26"] = (
        (tuple(text.replace("{}", name) for text in templates),) for name in names
    )
    encoder = open_text_encoder(embedded(), texts)
    ours = build_classifier(prompts, encoder, "vectors", "rest")
    np.testing.assert_allclose(ours.weight / encoder.identity.scale, theirs, atol=2e-6)
    assert not ours.bias.any()


def test_scores_are_scikit_learns_on_frames_of_the_described_classes(texts, expr):
    for found in expr.scores:
        similarity, true = cosines(texts, found.prompts)
        kept = true < 7
        predicted, true = similarity[kept].argmax(1), true[kept]
        macro_f1 = f1_score(true, predicted, average="macro", labels=range(7), zero_division=0)
        assert found.macro_f1.score == pytest.approx(macro_f1)
        assert found.uar.score == pytest.approx(balanced_accuracy_score(true, predicted))
        assert found.war.score == pytest.approx(accuracy_score(true, predicted))
        for score in (found.macro_f1, found.uar, found.war):
            low, high = score.interval_95
            assert 0 <= low <= score.score <= high <= 1
    assert expr.frames == kept.sum()
    assert expr.described == EXPR.outputs[:7]
    # What the prompts say is in the features; sets with words that the encoder has never seen fail.
    assert {found.prompts: found.macro_f1.score > 0.9 for found in expr.scores} == {
        "facs": True,
        "photo": False,
        "everyday": False,
    }


def test_over_all_classes_a_class_without_prompts_counts_and_is_never_predicted(texts, expr):
    similarity, true = cosines(texts, "facs")
    predicted = similarity.argmax(1)
    macro_f1 = f1_score(true, predicted, average="macro", labels=range(8), zero_division=0)
    (facs,) = (found for found in expr.scores if found.prompts == "facs")
    assert facs.over_all == pytest.approx(macro_f1)
    record = RunFolder(expr.folder).read_record(facs.head)
    assert np.array(record.scores["last"].confusion)[:, 7].sum() == 0


def test_the_set_with_the_highest_score_on_folds_of_the_training_split_is_chosen(texts, expr):
    encoder = open_text_encoder(embedded(), texts)
    x, y = frames_of(texts, EXPR, "train")
    scores = {}
    for name in SETS:
        weight = build_classifier(prompts_for(name, EXPR), encoder, "vectors", "rest").weight
        predicted = (unit(x) @ weight[:7].T).argmax(1)
        scores[name] = f1_score(y, predicted, average="macro", labels=range(8), zero_division=0)
    assert {found.prompts: found.held_out for found in expr.scores} == pytest.approx(scores)
    assert expr.chosen.prompts == max(scores, key=scores.get)
    assert expr.sweep.cross_validated.settings == {"text.prompts": expr.chosen.prompts}


def test_evaluate_report_and_load_head_take_its_heads_like_any_others(texts, expr, tmp_path):
    paths = {"bank": texts / "bank", "labels": texts}
    judged = raffect.evaluate(EvaluateConfig(run=(expr.folder,), epoch="cv", **paths))
    assert {head.id: head.score.headline for head in judged.heads} == {
        found.head: pytest.approx(found.over_all) for found in expr.scores
    }
    page = raffect.report((expr.folder,), tmp_path / "report").markdown.read_text()
    assert "made 3 heads for EXPR (8 classes) of texts alone, without training" in page
    assert "chosen of 3 settings on folds of the training split" in page
    assert "embedded encoder, not CLIP; drawn faces" in page

    # Probabilities are a softmax of scaled cosines
    similarity, _ = cosines(texts, "facs")
    head, card = load_head(expr.folder / "weights" / expr.scores[0].head / "last")
    assert card.recipe.text.prompts == "facs"
    with torch.no_grad():
        found = head(frames_of(texts, EXPR)[0]).softmax(1).numpy()
    scale = open_text_encoder(embedded(), texts).identity.scale
    expected = torch.from_numpy(scale * similarity).softmax(1).numpy()
    np.testing.assert_allclose(found[:, :7], expected, atol=1e-5)
    assert not found[:, 7].any()


def test_texts_lie_beside_the_heads_with_both_fingerprints(texts, expr):
    table = pq.read_table(expr.folder / "prompts" / "facs.parquet")
    encoder = open_text_encoder(embedded(), texts)
    assert table["prompt"].to_pylist() == prompts_for("facs", EXPR).prompts
    found = TextIdentity.from_json(read_metadata(table)["encoder"], "facs.parquet", "")
    assert found == encoder.identity
    vectors = np.stack(table["vector"].to_numpy())
    assert (vectors == encoder.encode(table["prompt"].to_pylist())).all()


def test_the_result_is_lines_a_table_and_files(expr):
    lines = "\n".join(expr.lines())
    assert "EXPR zero-shot on " in lines
    assert "caveat: embedded encoder, not CLIP" in lines
    assert "chance  macro F1 .143" in lines
    assert "the encoder has never seen words of photo: an, anger" in lines
    assert "words of facs" not in lines
    assert tuple(expr.to_pandas()["prompts"]) == SETS
    assert (expr.folder / "zeroshot.csv").read_text().count("\n") == 4
    metrics = json.loads((expr.folder / "metrics.json").read_text())
    assert metrics["main"]["settings"] == {"text.prompts": expr.chosen.prompts}


def test_labels_are_compared_with_a_face_at_rest_or_with_the_mean_of_the_others(texts, tmp_path):
    encoder = open_text_encoder(embedded(), texts)
    prompts = prompts_for("facs", AU)
    active = np.stack(
        [unit(encoder.encode(parts[0])).mean(0) for parts in prompts.outputs.values()]
    )
    active, rest = unit(active), unit(unit(encoder.encode(prompts.rest)).mean(0))
    others = [np.delete(active, k, 0).mean(0) for k in range(len(active))]
    x, y = frames_of(texts, AU)
    for against, compared in (("rest", rest), ("mean", np.stack(others))):
        predicted = unit(x) @ (active - compared).T > 0
        expected = f1_score(y, predicted, average="macro", zero_division=0)
        config = config_of(texts, tmp_path / against, "au", prompts=("facs",), against=against)
        (found,) = raffect.zeroshot(config).scores
        assert found.macro_f1.score == found.over_all == pytest.approx(expected)
        assert found.uar is found.war is None


def test_the_mean_of_logits_is_that_of_every_prompt_alone(texts):
    encoder, prompts = open_text_encoder(embedded(), texts), prompts_for("facs", EXPR)
    found = build_classifier(prompts, encoder, "logits", "rest")
    x, _ = frames_of(texts, EXPR)
    for k, parts in enumerate(list(prompts.outputs.values())[:7]):
        each = encoder.identity.scale * unit(x) @ unit(encoder.encode(parts[0])).T
        np.testing.assert_allclose(unit(x) @ found.weight[k], each.mean(1), atol=1e-3)


def test_a_compound_class_is_the_mean_of_its_parts(texts, tmp_path):
    file = tmp_path / "mine.toml"
    lines = '[classes]\nsad = ["lips parted"]\njoy = ["jaw dropped"]\n'
    lines += '[compounds]\nboth = ["sad", "joy"]\n'
    file.write_text(lines)
    task = Task(name="t", kind="multiclass", outputs=("both", "happy", "sad"), columns=("c",))
    encoder = open_text_encoder(embedded(), texts)
    found = build_classifier(prompts_for(str(file), task), encoder, "vectors", "rest").weight
    np.testing.assert_allclose(
        found[0], encoder.identity.scale * unit(found[1] + found[2]), atol=1e-4
    )


def test_the_threshold_for_other_is_the_best_of_all_on_training_frames(texts):
    encoder = open_text_encoder(embedded(), texts)
    classifier = build_classifier(prompts_for("facs", EXPR), encoder, "vectors", "rest")
    x, y = frames_of(texts, EXPR, "train")
    features, target = torch.from_numpy(x).half(), y[:, 0]
    (found,) = choose_thresholds([classifier], features, target, candidates=1000)
    scores = unit(x) @ classifier.weight[:7].T

    def macro_f1(threshold):
        predicted = np.where(scores.max(1) < threshold, 7, scores.argmax(1))
        return f1_score(target, predicted, average="macro", labels=range(8), zero_division=0)

    best = max(macro_f1(value) for value in scores.max(1))
    assert macro_f1(found) == pytest.approx(best)
    assert best > macro_f1(-np.inf)
    head = build_batch([classifier.with_threshold(found)], torch.device("cpu"))
    outputs = head.predict(head.rows, {}, features.float())[0].argmax(1).numpy()
    near = np.abs(scores.max(1) - found) < 1e-3
    assert (outputs == np.where(scores.max(1) < found, 7, scores.argmax(1)))[~near].all()


def test_under_a_rule_for_other_all_classes_are_judged(texts, tmp_path):
    out = tmp_path / "run"
    found = raffect.zeroshot(config_of(texts, out, prompts=("facs",), other="threshold"))
    (facs,) = found.scores
    assert found.described == EXPR.outputs
    assert facs.macro_f1.score == pytest.approx(facs.over_all)
    assert found.outputs.outputs["Other"]["f1"] > 0.5


def test_the_same_command_goes_on_and_another_one_is_refused(texts, tmp_path):
    out = tmp_path / "run"
    first = raffect.zeroshot(config_of(texts, out, prompts=("facs",)))
    assert raffect.zeroshot(config_of(texts, out, prompts=("facs",))).scores == first.scores
    with pytest.raises(RaffectError, match="a run with other settings; name a new folder"):
        raffect.zeroshot(config_of(texts, out, prompts=("photo",)))
    with pytest.raises(RaffectError, match="another command or on other data"):
        raffect.zeroshot(config_of(texts, out, "au", prompts=("facs",)))
    with pytest.raises(RaffectError, match="not a run folder"):
        raffect.zeroshot(config_of(texts, texts, prompts=("facs",)))
    file = tmp_path / "mine.toml"
    file.write_text("[classes]\n" + "\n".join(f'{name} = ["a"]' for name in EXPR.outputs))
    raffect.zeroshot(config_of(texts, tmp_path / "mine", prompts=(str(file),), select="none"))
    file.write_text(file.read_text().replace('["a"]', '["b"]'))
    with pytest.raises(RaffectError, match="prompt set mine was another one"):
        raffect.zeroshot(config_of(texts, tmp_path / "mine", prompts=(str(file),), select="none"))


def test_a_run_goes_on_with_its_own_folds_alone(texts, tmp_path):
    """Which matters to thresholds: they are chosen on the other folds."""
    config = config_of(texts, tmp_path / "run", prompts=("facs",), other="threshold")
    raffect.zeroshot(config)
    run = tmp_path / "run"
    heads = {file.name: file.stat().st_mtime_ns for file in run.glob("heads/*")}
    (run / "folds.json").write_text(json.dumps({"sha256": "0" * 64, "scikit_learn": "1.5.2"}))
    with pytest.raises(RaffectError, match=r"its folds are those of scikit-learn 1\.5\.2, and"):
        raffect.zeroshot(config)
    assert heads == {file.name: file.stat().st_mtime_ns for file in run.glob("heads/*")}
    raffect.zeroshot(replace(config, out=tmp_path / "none", select="none", other="never"))
    assert not (tmp_path / "none" / "folds.json").exists()


def test_heads_that_are_trained_have_no_prompts(texts, tmp_path):
    paths = {"bank": texts / "bank", "labels": texts, "out": tmp_path}
    recipe = {"text": replace(raffect.recipe.TextConfig(), prompts="facs")}
    with pytest.raises(RaffectError, match="heads that are trained have no prompts"):
        TrainConfig(**paths, **recipe)
    with pytest.raises(RaffectError, match="--space text.prompts=facs: heads that are trained"):
        read_space(["text.prompts=facs"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "au", "--prompts", "photo"], "--prompts photo: no prompt for AU1"),
        (["--task", "va"], "task va has numbers, which no text names"),
        (
            ["--task", "expr", "--prompts", "long.toml"],
            "prompt of 62 tokens, raffect-faces reads 48",
        ),
        (["--task", "expr", "--weights", "other.safetensors"], "name them with --weights"),
        (["--task", "expr", "--other", "threshold", "--select", "none"], "--other threshold: is"),
        (["--task", "au", "--other", "threshold"], "0 classes without prompts, expected one"),
        (["--task", "expr", "--prompts", "all", "own.toml"], "some sets describe Other and some"),
        (["--task", "expr", "--folds", "9"], "--folds 9: the training split has 8 videos"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    texts, tmp_path, monkeypatch, capsys, words, line
):
    monkeypatch.chdir(tmp_path)
    for name, phrase in (("long", "face " * 60), ("own", "face")):
        lines = "\n".join(f'{output} = ["{phrase}"]' for output in EXPR.outputs)
        (tmp_path / f"{name}.toml").write_text(f"[classes]\n{lines}\n")
    paths = ["--bank", str(texts / "bank"), "--labels", str(texts), "--out", "run"]
    assert main(["zeroshot", *paths, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("raffect zeroshot: ")
    assert line in error
    assert not (tmp_path / "run").exists()
