"""Probes: shots of different groups, and what scikit-learn learns from the same frames."""

import json

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import NearestCentroid

import raffect
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import ProbeConfig, ZeroshotConfig
from raffect.datasets.affwild2.tasks import EXPR, VA
from raffect.datasets.labels import read_labels
from raffect.errors import RaffectError
from raffect.evaluation.few_shot import (
    PENALTIES,
    STRENGTHS,
    Frames,
    draw_shots,
    fit_logistic,
    fit_ridge,
    prototypes,
)
from tests.helpers.texts import unit

FOLDS, CLASSES = 3, 4
ALL_FRAMES = {"shots": (1,), "num_seeds": 1, "all_frames": True, "folds": FOLDS}


def make_frames(seed=0, count=160, dim=6, groups=8):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = unit(rng.normal(size=(count, dim)) + 1.5 * np.eye(CLASSES, dim)[y]).astype(np.float32)
    return Frames(x, y, rng.integers(0, groups, count))


def config_of(texts, out, task, **more):
    paths = {"bank": texts / "bank", "labels": texts, "out": out}
    return ProbeConfig(**{"task": task, "num_seeds": 2, **paths, **more})


def read(texts, task, split):
    labels = read_labels(texts / "labels" / f"{task.name}.parquet")
    found = read_features(Bank(texts / "bank"), labels, task, split)
    return unit(found.x.astype(np.float32)), found.y, found.video


def scores_of(result):
    return {(point.method, point.shots): point for point in result.points}


@pytest.mark.parametrize("shots", [1, 3, 8])
def test_shots_of_a_class_are_frames_of_as_many_groups(shots):
    frames = make_frames()
    names = [f"c{k}" for k in range(CLASSES)]
    draws = [
        draw_shots(frames.y, frames.group, shots, names, "videos", np.random.default_rng(seed))
        for seed in range(20)
    ]
    for rows in draws:
        assert frames.y[rows].tolist() == np.repeat(np.arange(CLASSES), shots).tolist()
        for part in frames.group[rows].reshape(CLASSES, shots):
            assert len(set(part)) == shots
    assert len({tuple(rows) for rows in draws}) > 15


def test_more_shots_than_groups_are_refused_with_the_class():
    y, group = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 2, 2, 3])
    rng = np.random.default_rng(0)
    with pytest.raises(RaffectError, match="--shots 3: a is in 2 subjects of the training split"):
        draw_shots(y, group, 3, ["a", "b"], "subjects", rng)
    with pytest.raises(RaffectError, match="--shots 1: c is in 0 subjects"):
        draw_shots(y, group, 1, ["a", "b", "c"], "subjects", rng)


def test_prototypes_are_scikit_learns_centroids_of_length_one():
    frames = make_frames()
    theirs = NearestCentroid().fit(frames.x, frames.y).centroids_
    np.testing.assert_allclose(prototypes(frames, CLASSES), unit(theirs), atol=1e-6)


def test_a_text_counts_as_that_many_frames():
    frames = make_frames()
    texts = unit(np.random.default_rng(1).normal(size=(CLASSES, 6)))
    copies = np.repeat(np.arange(CLASSES), 4)
    both = Frames(
        np.concatenate([frames.x, texts[copies]]), np.concatenate([frames.y, copies]), frames.group
    )
    found = prototypes(frames, CLASSES, texts, text_shots=4)
    np.testing.assert_allclose(found, prototypes(both, CLASSES), atol=1e-6)
    texts[2] = np.nan
    found = prototypes(frames, CLASSES, texts, text_shots=1e9)
    np.testing.assert_allclose(found[2], prototypes(frames, CLASSES)[2], atol=1e-6)
    np.testing.assert_allclose(found[[0, 1, 3]], texts[[0, 1, 3]], atol=1e-6)


def test_logistic_regression_is_scikit_learns_with_c_chosen_on_whole_groups():
    frames = make_frames()
    outputs, strength = fit_logistic(frames, CLASSES, FOLDS, seed=0)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0)
    scores = [
        f1_score(
            frames.y,
            cross_val_predict(
                LogisticRegression(C=value, max_iter=300),
                frames.x,
                frames.y,
                groups=frames.group,
                cv=folds,
            ),
            average="macro",
        )
        for value in STRENGTHS
    ]
    assert strength == STRENGTHS[int(np.argmax(scores))]
    theirs = LogisticRegression(C=strength, max_iter=300).fit(frames.x, frames.y)
    np.testing.assert_allclose(outputs(frames.x), theirs.decision_function(frames.x), atol=1e-5)


def test_classes_without_a_frame_are_never_predicted_and_one_group_has_no_folds():
    frames = make_frames()
    part = Frames(frames.x, frames.y % 2, 0 * frames.group)
    outputs, strength = fit_logistic(part, CLASSES, FOLDS, seed=0)
    assert strength == 1.0
    theirs = LogisticRegression(C=1.0).fit(part.x, part.y).predict(frames.x)
    assert (outputs(frames.x).argmax(1) == theirs).all()


def test_ridge_is_scikit_learns_with_its_penalty_chosen_on_whole_groups():
    frames = make_frames()
    rng = np.random.default_rng(2)
    y = frames.x[:, :2].astype(np.float64) + 0.3 * rng.normal(size=(len(frames.x), 2))
    values = Frames(frames.x, y, frames.group)
    outputs, penalty = fit_ridge(values, FOLDS, seed=0)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0)
    errors = []
    for value in PENALTIES:
        found = cross_val_predict(Ridge(alpha=value), values.x, y, groups=frames.group, cv=folds)
        errors.append(np.square(found - y).sum())
    assert penalty == PENALTIES[int(np.argmin(errors))]
    np.testing.assert_allclose(
        outputs(values.x), Ridge(alpha=penalty).fit(values.x, y).predict(values.x)
    )


def test_expressions_from_few_frames_all_frames_and_texts(texts, tmp_path):
    result = raffect.probe(
        config_of(texts, tmp_path, "expr", shots=(2, 1), prompts="facs", folds=2)
    )
    found = scores_of(result)
    few = [(method, k) for method in ("prototype", "text prototype", "logistic") for k in (1, 2)]
    every = [(method, None) for method in ("prototype", "text prototype", "logistic")]
    assert found.keys() == {("zero-shot", 0), *few, *every}
    assert found["prototype", 2].score.heads == 2
    assert len(found["logistic", 1].settings) == 2

    # Zero-shot is that of `raffect zeroshot`
    paths = {"bank": texts / "bank", "labels": texts, "out": tmp_path / "run"}
    other = raffect.zeroshot(ZeroshotConfig(task="expr", prompts=("facs",), select="none", **paths))
    assert found["zero-shot", 0].score.mean == pytest.approx(other.scores[0].over_all)

    # All frames: scikit-learn on them
    x, y, _ = read(texts, EXPR, "train")
    test, true, _ = read(texts, EXPR, "validation")
    means = unit(np.stack([x[y[:, 0] == k].mean(0) for k in range(8)]))
    expected = f1_score(true[:, 0], (test @ means.T).argmax(1), average="macro")
    assert found["prototype", None].score.mean == pytest.approx(expected)
    point = found["logistic", None]
    theirs = LogisticRegression(C=point.settings[0], max_iter=300).fit(x, y[:, 0])
    expected = f1_score(true[:, 0], theirs.predict(test), average="macro")
    assert point.score.mean == pytest.approx(expected, abs=0.02)

    # Lines, table and files
    lines = "\n".join(result.lines())
    assert f"probes, validation: {result.probe.data.size_of('validation')}; k training" in lines
    assert "chance: .125 (guesses by the class shares)" in lines
    assert "caveat: embedded encoder, not CLIP\ncaveat: drawn faces" in lines
    assert len(result.to_pandas()) == len(found)
    assert {file.name for file in tmp_path.iterdir()} >= {
        *("probe.json", "points.csv", "few-shot.png", "few-shot.csv")
    }
    assert len(json.loads((tmp_path / "probe.json").read_text())["points"]) == len(found)


def test_draws_are_the_same_each_time(texts, tmp_path):
    more = {"shots": (2,), "all_frames": False, "folds": 2}
    first, second = (
        raffect.probe(config_of(texts, tmp_path / name, "expr", **more)) for name in "ab"
    )
    assert first.points == second.points


def test_labels_are_learnt_one_by_one(texts, tmp_path):
    more = {"shots": (1,), "prompts": "facs", "num_seeds": 1, "all_frames": False, "folds": 2}
    found = scores_of(raffect.probe(config_of(texts, tmp_path, "au", **more)))
    assert found.keys() == {("zero-shot", 0), ("prototype", 1), ("logistic", 1)}
    for point in found.values():
        assert 0 <= point.score.mean <= 1


def test_numbers_have_pcc_and_ccc_of_ridge(texts, tmp_path):
    found = scores_of(raffect.probe(config_of(texts, tmp_path, "va", **ALL_FRAMES)))
    point = found["ridge", None]
    x, y, _ = read(texts, VA, "train")
    test, true, _ = read(texts, VA, "validation")
    predicted = Ridge(alpha=point.settings[0]).fit(x, y).predict(test).clip(-1, 1)
    pcc = np.mean([pearsonr(true[:, k], predicted[:, k])[0] for k in range(2)])
    assert point.metrics["pcc"] == pytest.approx(pcc, abs=1e-3)
    ccc = [
        2 * np.cov(a, b, bias=True)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
        for a, b in zip(true.T.astype(float), predicted.T, strict=True)
    ]
    assert point.score.mean == point.metrics["ccc"] == pytest.approx(np.mean(ccc), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "expr", "--shots", "9"], "--shots 9: Neutral is in 8 videos of the training"),
        (["--task", "expr", "--prompts", "nope"], "--prompts nope: no such prompt set"),
        (["--task", "va", "--prompts", "facs"], "task va has numbers, which no text names"),
        (["--task", "expr", "--shots", "0"], "--shots 0: expected numbers from 1"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(texts, tmp_path, capsys, words, line):
    paths = ["--bank", str(texts / "bank"), "--labels", str(texts), "--out", str(tmp_path / "p")]
    assert main(["probe", *paths, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("raffect probe: ")
    assert line in error
    assert not (tmp_path / "p").exists()
