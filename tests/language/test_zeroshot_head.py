"""Zero-shot through trained heads, and classes that heads never saw, against plain numpy."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

import raffect
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import EvaluateConfig, TrainConfig, TuneConfig, ZeroshotConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.labels import read_labels
from raffect.encoders.text import open_text_encoder
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head, read_card, save_head
from raffect.heads.projection import SCALE
from raffect.language.prompt_sets import prompts_for
from raffect.language.zeroshot.trained import read_trained, seen_lines
from raffect.metrics.intervals import Headline
from raffect.recipe import HeadConfig, LossConfig, OptimConfig, SamConfig
from raffect.runs.against_erm import Difference
from raffect.runs.data import open_dataset
from raffect.runs.leave_one_out import UnseenClass, read_leave_one_out
from raffect.storage.tables import read_metadata, write_table
from raffect.training.checks import find_left_out
from raffect.training.space import list_recipes
from tests.helpers.texts import embedded, unit, write_class_captions

SEVEN = EXPR.outputs[:7]
UNSEEN = ("Anger", "Fear", "Surprise")
SETS = ("facs", "photo")
PROJECTION = HeadConfig(kind="projection", init="torch")
WINDOWS = HeadConfig(kind="temporal", width=8, layers=1, attention_heads=2, window=3)


@pytest.fixture(scope="module")
def captions(texts, tmp_path_factory):
    """Vectors as of a teacher, for projections."""
    file = tmp_path_factory.mktemp("captions") / "captions.parquet"
    return write_class_captions(texts, file, image_sha256="")


@pytest.fixture(scope="module")
def own_captions(texts, tmp_path_factory):
    """Texts by the weights of the bank."""
    return write_class_captions(texts, tmp_path_factory.mktemp("own") / "captions.parquet")


@pytest.fixture(scope="module")
def projection(texts, captions, tmp_path_factory):
    """Two seeds of a projection."""
    out = tmp_path_factory.mktemp("runs") / "projection"
    raffect.train(config_of(texts, captions, out, PROJECTION, num_seeds=2))
    return out


@pytest.fixture(scope="module")
def left_out(texts, captions, tmp_path_factory):
    """A projection without each of three classes."""
    out = tmp_path_factory.mktemp("runs") / "left-out"
    return raffect.train(config_of(texts, captions, out, PROJECTION, leave_out=UNSEEN))


@pytest.fixture(scope="module")
def judged(texts, projection, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "judged"
    return raffect.zeroshot(zeroshot_of(texts, out, projection, prompts=SETS))


def config_of(texts, labels, out, head, **more):
    own = {"loss": LossConfig(alpha=1.0), "sam": SamConfig(rho=0.0), "epochs": 1, "batch_size": 32}
    own |= {"bank": texts / "bank", "labels": labels, "out": out, "device": "cpu"}
    return TrainConfig(head=head, optim=OptimConfig(lr=1e-3), **own, **more)


def zeroshot_of(texts, out, *heads, **more):
    usual = {"task": "expr", "folds": 3, "prompts": ("facs",), "labels": texts}
    return ZeroshotConfig(bank=texts / "bank", out=out, head=heads, **{**usual, **more})


def frames_of(texts, split="validation", task=EXPR):
    """Features, labels and videos of a split, in order of video and frame."""
    labels = read_labels(texts / "labels" / f"{task.name}.parquet")
    found = read_features(Bank(texts / "bank"), labels, task, split)
    order = np.lexsort((found.frame, found.video))
    x, y = found.x.astype(float)[order], found.y.astype(int)[order]
    return x, y, np.array(found.videos)[found.video][order]


def videos_of(texts, number):
    _, y, videos = frames_of(texts)
    return videos[y[:, 0] == number].tolist()


def test_a_class_of_one_video_says_why_it_has_no_interval():
    one = Headline(score=0.5, interval_95=None)
    gain = Difference(mean=0.1, interval_95=None)
    fields = {"name": "Fear", "samples": 9, "prompts": "facs", "gain": gain}
    found = UnseenClass(groups=1, trained=one, plain=one, **fields)
    assert found.why_no_interval("videos") == " (one video: no interval)"
    assert (found.row()["groups"], found.row()["samples"]) == (1, 9)
    known = dataclasses.replace(found, trained=Headline(score=0.5, interval_95=(0.2, 0.8)))
    assert known.why_no_interval("videos") == ""
    assert "equal without any video" in dataclasses.replace(found, groups=3).why_no_interval(
        "videos"
    )


def text_rows(texts, name, task=EXPR, through=None):
    """The mean of each described class's prompts, each mapped first."""
    encoder = open_text_encoder(embedded(), texts)
    rows = []
    for parts in prompts_for(name, task).outputs.values():
        if parts is not None:
            one = [unit((unit_map(encoder.encode(part), through)).mean(0)) for part in parts]
            rows.append(one[0] if len(one) == 1 else unit(np.mean(one, 0)))
    return np.stack(rows)


def unit_map(vectors, weight):
    return unit(vectors.astype(float) if weight is None else vectors.astype(float) @ weight.T)


def weights_of(run):
    """The map of each head of a run of projections, by seed."""
    found = {}
    for folder in run.glob("weights/*/last"):
        head, card = load_head(folder)
        found[card.recipe.seed, card.recipe.loss.leave_out] = head.weight.detach().numpy()
    return found


def predict(texts, name, weight=None, split="validation"):
    x, y, videos = frames_of(texts, split)
    cosines = unit_map(x, weight) @ text_rows(texts, name, through=weight).T
    return cosines.argmax(1), y[:, 0], videos


def macro_f1(true, predicted, classes=7):
    return f1_score(true, predicted, average="macro", labels=range(classes), zero_division=0)


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


def test_each_class_has_heads_that_are_those_of_its_setting_alone(
    texts, captions, left_out, tmp_path
):
    recipes = [record.recipe for record in left_out.records]
    assert [recipe.loss.leave_out for recipe in recipes] == list(UNSEEN)
    assert {record.trained_by.batch_of_heads for record in left_out.records} == {3}
    axes = [setting.settings["loss.leave_out"] for setting in left_out.settings]
    assert sorted(axes) == sorted(UNSEEN)
    # Each is all classes that the training split has
    dataset = open_dataset(texts / "bank", captions, "captions")
    assert find_left_out(("each",), dataset) == list(SEVEN)
    loss = LossConfig(alpha=1.0, leave_out="Fear")
    config = dataclasses.replace(
        config_of(texts, captions, tmp_path / "alone", PROJECTION), loss=loss
    )
    (alone,) = raffect.train(config).records
    (same,) = (record for record in left_out.records if record.id == alone.id)
    path = f"weights/{alone.id}/last/head.safetensors"
    assert (tmp_path / "alone" / path).read_bytes() == (left_out.folder / path).read_bytes()
    assert same.scores["last"].headline == alone.scores["last"].headline


def test_classes_that_are_left_out_do_not_compete(left_out, tmp_path):
    scores = [record.scores["last"].headline for record in left_out.records]
    main_setting = left_out.metrics.headline
    assert left_out.best is None
    assert main_setting.scores["last"].mean == pytest.approx(np.mean(scores))
    assert main_setting.settings["loss.leave_out"] == "each"
    lines = "\n".join(left_out.lines())
    assert "highest" not in lines
    assert "absent" not in lines
    assert "over 3 heads without one class each" in lines
    assert "mean over 3 left-out classes, which are not compared" in lines
    assert "recall@1" in lines
    assert f"next: raffect zeroshot --head {left_out.folder}" in lines
    page = raffect.report((left_out.folder,), tmp_path / "report").markdown.read_text()
    assert "the mean over 3 left-out classes, which are not compared, of the score on" in page
    assert "its main setting" not in page
    assert "optimistic as val-best" not in page
    assert "rows do not compare with each other" in page
    (file,) = (tmp_path / "report" / "plots").glob("*-by-setting.csv")
    rows = list(csv.DictReader(file.open()))
    assert [row["sd"] for row in rows] == [""] * 3  # so the bars are intervals
    key = "recall_at_1"
    assert all(float(row["low"]) < float(row[key]) < float(row["high"]) for row in rows)


def test_the_same_command_trains_no_head_again_and_more_classes_train_theirs_alone(
    texts, captions, tmp_path
):
    config = config_of(texts, captions, tmp_path / "run", PROJECTION, leave_out=("Fear",))
    raffect.train(config)
    (before,) = (tmp_path / "run" / "heads").glob("*.json")
    time, content = before.stat().st_mtime_ns, before.read_bytes()
    more = dataclasses.replace(config, leave_out=("Fear", "Anger"))
    found = raffect.train(more)
    assert [record.recipe.loss.leave_out for record in found.records] == ["Fear", "Anger"]
    assert (before.stat().st_mtime_ns, before.read_bytes()) == (time, content)
    assert raffect.train(more).metrics.settings == found.metrics.settings


def test_recall_of_a_class_is_that_of_the_heads_that_never_saw_it(
    texts, left_out, tmp_path_factory
):
    out = tmp_path_factory.mktemp("runs") / "unseen"
    config = zeroshot_of(texts, out, left_out.folder, prompts=SETS)
    result = raffect.zeroshot(config)
    (table,) = result.left_out
    weights = weights_of(left_out.folder)
    recalls, plain = {}, {}
    for name in UNSEEN:
        # The prompt set by the recall of the other classes on the training split
        k = SEVEN.index(name)
        others = [other for other in range(7) if other != k]
        scores = {}
        for prompts in SETS:
            found, true, _ = predict(texts, prompts, weights[0, name], "train")
            scores[prompts] = recall_score(true, found, labels=others, average="macro")
        chosen = max(scores, key=scores.get)
        for values, weight in ((recalls, weights[0, name]), (plain, None)):
            found, true, _ = predict(texts, chosen, weight)
            values[name] = (found[true == k] == k).mean()
        (one,) = (one for one in table.classes if one.name == name)
        assert one.prompts == chosen
        assert one.samples == (true == k).sum()
        assert one.trained.score == pytest.approx(recalls[name])
        assert one.plain.score == pytest.approx(plain[name])
        assert one.gain.mean == pytest.approx(recalls[name] - plain[name])
    assert table.mean.trained.score == pytest.approx(np.mean(list(recalls.values())))
    assert table.mean.plain.score == pytest.approx(np.mean(list(plain.values())))
    low, high = table.mean.gain.interval_95
    assert low <= table.mean.gain.mean <= high
    assert (table.candidates, table.chance) == (7, pytest.approx(1 / 7))

    # As lines, as files and in the report
    lines = "\n".join(result.lines())
    assert "leave one class out, left-out: recall of each class by heads that never saw it" in lines
    assert "chance .143 (guesses with equal shares); intervals over videos" in lines
    assert read_leave_one_out(out) == result.left_out
    rows = list(csv.DictReader((out / "leave_one_out.csv").open()))
    assert [row["class"] for row in rows] == [*UNSEEN, "mean"]
    assert float(rows[-1]["recall"]) == pytest.approx(table.mean.trained.score)
    page = raffect.report((out,), out / "report").markdown.read_text()
    assert "made 8 heads for EXPR (8 classes) of texts: 6 through heads that left-out" in page
    assert "### Leave one class out" in page
    assert "| **mean** |" in page
    assert f"Heads of left-out find **{table.mean.trained.score:.3f}".replace("0.", ".", 1) in page
    assert page.index("### Leave one class out") < page.index("### Settings")
    for words in ("last epoch", "val-cv", "(val-last)", "epoch cross-validated"):
        assert words not in page, words
    for one in table.classes:
        groups = len(set(videos_of(texts, SEVEN.index(one.name))))
        assert one.groups == groups
        if groups == 1:
            assert one.trained.interval_95 is None
            assert "(one video: no interval)" in lines
    assert [int(row["groups"]) for row in rows[:-1]] == [one.groups for one in table.classes]
    paths = {"bank": texts / "bank", "labels": texts}
    again = "\n".join(raffect.evaluate(EvaluateConfig(run=(out,), **paths)).lines())
    assert "6 heads were trained without one class each" in again
    assert not any(f"leave_out {name}" in again for name in UNSEEN)
    assert again.count("macro F1") <= len(SETS) + 3
    assert "comparison, without a head: chosen on folds" in lines
    assert "by class, " in lines
    # What stands for the run has seen all classes: features.
    assert result.sweep.cross_validated.settings["text.head"] == ""


def test_without_folds_every_prompt_set_has_a_table(texts, left_out, tmp_path):
    config = zeroshot_of(texts, tmp_path / "out", left_out.folder, prompts=SETS, select="none")
    tables = raffect.zeroshot(config).left_out
    assert [{one.prompts for one in table.classes} for table in tables] == [{"facs"}, {"photo"}]
    assert not any(table.is_chosen for table in tables)
    assert read_leave_one_out(tmp_path / "out") == tables

    # A damaged record is refused
    file = tmp_path / "out" / "leave_one_out.json"
    content = json.loads(file.read_text())
    content["tables"][0]["candidates"] = "seven"
    file.write_text(json.dumps(content))
    with pytest.raises(RaffectError, match=r"leave_one_out.json: .*again"):
        read_leave_one_out(tmp_path / "out")


def test_tune_varies_the_class_that_is_left_out(texts, captions, left_out, tmp_path):
    base = vars(config_of(texts, captions, tmp_path / "tune", PROJECTION))
    own = {name: value for name, value in base.items() if name in vars_of(TuneConfig)}
    config = TuneConfig(**own, space=("loss.leave_out=Fear,Anger",), baseline=False)
    base = dataclasses.replace(raffect.recipe.plain(config), task="captions")
    recipes = list_recipes(base, config.space, 0)
    known = {record.id for record in left_out.records}
    assert {raffect.recipe.digest(recipe) for recipe in recipes} < known


def vars_of(kind):
    return {item.name for item in dataclasses.fields(kind)}


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


def card_with(card, recipe=None, **data):
    facts = dataclasses.replace(card.data, **data)
    return dataclasses.replace(card, data=facts, recipe=recipe or card.recipe)


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


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"leave_out": ("Awe",)}, "loss.leave-out Awe: task captions has no such class; expected"),
        ({"leave_out": ("",)}, "--leave-out '': expected names of classes, or each"),
        (
            {"leave_out": ("Fear",), "loss": LossConfig(alpha=1.0, leave_out="Fear")},
            "--leave-out: goes with all classes; take loss.leave-out Fear out",
        ),
    ],
)
def test_classes_that_cannot_be_left_out_are_one_line(texts, captions, tmp_path, more, line):
    config = config_of(texts, captions, tmp_path / "run", PROJECTION)
    with pytest.raises(RaffectError, match=line):
        raffect.train(dataclasses.replace(config, **more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "more", "line"),
    [
        ("au", {"leave_out": ("each",)}, "--leave-out each: task au is multilabel"),
        ("expr", {"leave_out": ("Fear",)}, "--leave-out Fear: task expr is multiclass"),
        ("expr", {"leave_out": "Fear"}, "loss.leave-out Fear: task expr is multiclass"),
    ],
)
def test_labels_have_no_class_to_leave_out(texts, tmp_path, task, more, line):
    if task == "expr" and isinstance(more["leave_out"], str):
        more = {"loss": LossConfig(alpha=1.0, **more)}
    config = config_of(texts, texts, tmp_path / "run", HeadConfig(depth=0))
    with pytest.raises(RaffectError, match=f"{line}.*captions of its classes"):
        raffect.train(dataclasses.replace(config, task=task, **more))
    assert not (tmp_path / "run").exists()


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


@pytest.mark.cluster
def test_a_stride_means_nothing_to_heads_that_never_saw_a_class(
    texts, captions, left_out, tmp_path
):
    strided = dataclasses.replace(PROJECTION, stride=4)
    runs = [left_out.folder, tmp_path / "unseen"]
    raffect.train(config_of(texts, captions, runs[1], strided, leave_out=UNSEEN))
    tables = []
    for run in runs:
        out = tmp_path / f"out-{run.name}"
        (table,) = raffect.zeroshot(zeroshot_of(texts, out, run, select="none")).left_out
        tables.append([one.trained.score for one in table.classes])
    assert tables[0] == tables[1]


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
