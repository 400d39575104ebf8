"""Zero-shot through trained heads, against plain numpy."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import raffect
from raffect.config import EvaluateConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.encoders.text import open_text_encoder
from raffect.heads.checkpoint import load_head, read_card
from raffect.heads.projection import SCALE
from raffect.language.prompt_sets import prompts_for
from tests.helpers.texts import embedded, unit
from tests.helpers.zeroshot_heads import (
    PROJECTION,
    SETS,
    SEVEN,
    WINDOWS,
    config_of,
    frames_of,
    macro_f1,
    predict,
    text_rows,
    unit_map,
    weights_of,
    zeroshot_of,
)


def test_scores_through_a_head_are_those_of_its_map_of_images_and_texts(texts, projection, judged):
    weights = weights_of(projection)
    for found in judged.scores:
        maps = [weights[seed, ""] for seed in (0, 1)] if found.trained else [None]
        scores = []
        for weight in maps:
            predicted, true, _ = predict(texts, found.prompts, weight)
            kept = true < 7
            predicted, true = predicted[kept], true[kept]
            recalls = balanced_accuracy_score(true, predicted), accuracy_score(true, predicted)
            scores.append((macro_f1(true, predicted), *recalls))
        assert found.heads == len(maps)
        got_all = found.macro_f1, found.uar, found.war
        for got, expected in zip(got_all, np.transpose(scores), strict=True):
            assert got.score == pytest.approx(np.mean(expected), abs=1e-9)
            low, high = got.interval_95
            assert low <= got.score <= high
            spread = None if len(maps) == 1 else pytest.approx(np.std(expected, ddof=1))
            assert got.sd == spread
    assert [(found.trained, found.prompts) for found in judged.scores] == [
        (run, name) for run in ("projection", "") for name in SETS
    ]


def test_features_without_a_head_stand_beside_with_a_paired_difference(judged):
    through, plain = judged.scores[:2], judged.scores[2:]
    for one, other in zip(through, plain, strict=True):
        for name in ("macro_f1", "uar", "war"):
            gain = one.gains[name]
            expected = getattr(one, name).score - getattr(other, name).score
            assert gain.mean == pytest.approx(expected, abs=1e-9)
            assert gain.interval_95 is None or gain.interval_95[0] <= gain.mean
        assert not other.gains
    lines = "\n".join(judged.lines())
    assert "SET through RUN: texts of a prompt set, compared by the trained heads of a run" in lines
    assert "facs through projection " in lines
    assert "facs without a head " in lines
    assert "difference to no head: macro F1 " in lines
    rows = list(csv.DictReader((judged.folder / "zeroshot.csv").open()))
    assert [row["trained"] for row in rows] == ["projection", "projection", "", ""]
    assert float(rows[0]["macro_f1.gain"]) == pytest.approx(through[0].gains["macro_f1"].mean)


def test_a_prompt_set_is_chosen_on_folds_for_heads_and_for_features_apart(
    texts, projection, judged
):
    maps = {"projection": list(weights_of(projection).values()), "": [None]}
    for run, weights in maps.items():
        scores = {}
        for name in SETS:
            pairs = [predict(texts, name, weight, "train") for weight in weights]
            scores[name] = np.mean([macro_f1(true, found, 8) for found, true, _ in pairs])
        own = [found for found in judged.scores if found.trained == run]
        held_out = {found.prompts: found.held_out for found in own}
        assert held_out == pytest.approx(scores, abs=1e-9)
        chosen = [found.prompts for found in own if found.is_chosen]
        assert chosen == [max(scores, key=scores.get)]
    assert judged.chosen.trained == "projection"
    settings = judged.sweep.cross_validated.settings
    assert settings == {"text.prompts": judged.chosen.prompts, "text.head": "projection"}
    # The heads have seen the frames of these folds, and the lines say so.
    caveat = "captions of 8 of the 8 train videos trained the heads of projection: on folds"
    assert caveat in "\n".join(judged.lines())


def test_its_heads_are_used_like_any_others(texts, projection, judged):
    paths = {"bank": texts / "bank", "labels": texts}
    scores = raffect.evaluate(EvaluateConfig(run=(judged.folder,), **paths)).heads
    by_head = {record.id: record.scores["last"].headline for record in judged.sweep.records}
    assert {head.id: head.score.headline for head in scores} == pytest.approx(by_head, abs=1e-9)
    (card,) = {found.head for found in judged.scores if found.trained and found.is_chosen}
    head, card = load_head(judged.folder / "weights" / card / "last")
    assert card.head["kind"] == "compared"
    x, _, _ = frames_of(texts)
    weight = weights_of(projection)[card.recipe.seed, ""]
    expected = SCALE * unit_map(x, weight) @ text_rows(texts, "facs", through=weight).T
    with torch.no_grad():
        found = head(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(found[:, :7], expected, atol=1e-4)
    assert (found[:, 7] < -9000).all()


def test_windows_are_read_as_the_head_reads_them(texts, own_captions, tmp_path):
    run = tmp_path / "windows"
    raffect.train(config_of(texts, own_captions, run, WINDOWS))
    result = raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", run, select="none"))
    x, y, videos = frames_of(texts)
    windows = np.full((len(x), 3, x.shape[1]), np.nan)
    for row, video in enumerate(videos):
        for place, other in enumerate((row - 1, row, row + 1)):
            if 0 <= other < len(x) and videos[other] == video:
                windows[row, place] = x[other]
    (folder,) = run.glob("weights/*/last")
    with torch.no_grad():
        vectors = load_head(folder)[0](torch.from_numpy(windows).float()).numpy()
    rows, kept = text_rows(texts, "facs"), y[:, 0] < 7
    means = np.nanmean(windows / np.linalg.norm(windows, axis=-1, keepdims=True), 1)
    expected = {("windows", 3): vectors, ("", 3): unit(means), ("", 1): unit(x)}
    found = {(one.trained, one.window): one.macro_f1.score for one in result.scores}
    assert found == pytest.approx(
        {
            name: macro_f1(y[kept, 0], (one @ rows.T).argmax(1)[kept])
            for name, one in expected.items()
        },
        abs=1e-9,
    )
    (trained,) = (one for one in result.scores if one.trained)
    gain = trained.gains["macro_f1"].mean
    assert gain == pytest.approx(found["windows", 3] - found["", 3], abs=1e-9)
    lines = "\n".join(result.lines())
    assert "facs without a head (means of windows of 3)" in lines
    assert "facs without a head (single frames)" in lines
    paths = {"bank": texts / "bank", "labels": texts}
    scores = raffect.evaluate(EvaluateConfig(run=(result.folder,), **paths)).heads
    assert sorted(head.score.headline for head in scores) == pytest.approx(
        sorted(one.over_all for one in result.scores), abs=1e-9
    )


def test_labels_are_compared_with_a_face_at_rest_through_the_head(texts, projection, tmp_path):
    config = zeroshot_of(texts, tmp_path / "au", projection, task="au", select="none")
    found = {one.trained: one.macro_f1.score for one in raffect.zeroshot(config).scores}
    encoder = open_text_encoder(embedded(), texts)
    x, y, _ = frames_of(texts, task=AU)
    scores = []
    for weight in weights_of(projection).values():
        rest = unit(unit_map(encoder.encode(prompts_for("facs", AU).rest), weight).mean(0))
        active = text_rows(texts, "facs", AU, weight)
        predicted = unit_map(x, weight) @ (active - rest).T > 0
        scores.append(f1_score(y, predicted, average="macro", zero_division=0))
    assert found["projection"] == pytest.approx(np.mean(scores), abs=1e-9)


def test_a_compound_class_is_the_mean_of_its_parts_through_the_head(texts, projection, tmp_path):
    file = tmp_path / "mine.toml"
    names = [f'{name} = ["face {k}"]' for k, name in enumerate(SEVEN[:6])]
    lines = [*names, "[compounds]", 'Surprise = ["Anger", "Fear"]']
    file.write_text("[classes]\n" + "\n".join(lines))
    config = zeroshot_of(texts, tmp_path / "out", projection, prompts=(str(file),), select="none")
    result = raffect.zeroshot(config)
    (first, *_) = (found.head for found in result.scores if found.trained)
    head, card = load_head(result.folder / "weights" / first / "last")
    weight = weights_of(projection)[card.recipe.seed, ""]
    expected = text_rows(texts, str(file), through=weight)
    np.testing.assert_allclose(head.classes[:7].numpy(), expected, atol=1e-5)
    classes = head.classes.numpy()
    np.testing.assert_allclose(classes[6], unit(classes[1] + classes[3]), atol=1e-5)


def test_under_a_rule_for_other_all_classes_are_judged_through_the_head(
    texts, projection, tmp_path
):
    result = raffect.zeroshot(zeroshot_of(texts, tmp_path / "out", projection, other="threshold"))
    assert result.described == EXPR.outputs
    through = next(found for found in result.scores if found.trained)
    assert through.macro_f1.score == pytest.approx(through.over_all)
    assert result.outputs.outputs["Other"]["f1"] > 0


def test_cards_of_the_judged_heads_name_texts_and_run(judged):
    for record in judged.sweep.records:
        card = read_card(judged.folder / "weights" / record.id / "last")
        assert card.recipe.text.head in ("projection", "")
        assert card.task == EXPR


def test_a_stride_means_nothing_to_heads_of_single_features(texts, captions, tmp_path):
    strided = dataclasses.replace(PROJECTION, stride=4)
    raffect.train(config_of(texts, captions, tmp_path / "strided", strided))
    result = raffect.zeroshot(
        zeroshot_of(texts, tmp_path / "out", tmp_path / "strided", select="none")
    )
    assert [(one.trained, one.window, one.stride) for one in result.scores] == [
        ("strided", 1, 1),
        ("", 1, 1),
    ]
