"""`raffect learn-prompts`: prompts learnt on a bank, judged as any head and beside written ones."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import raffect
from raffect.cli import main, parse
from raffect.config import EvaluateConfig, LearnPromptsConfig, TrainConfig, ZeroshotConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.encoders.text import open_text_encoder
from raffect.encoders.text_tower import open_text_tower
from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head
from raffect.language.classifiers import build_classifier
from raffect.language.learn_prompts import build_spec, describe_unused, group_names
from raffect.language.prompt_sets import prompts_for
from raffect.recipe import HeadConfig, OptimConfig
from tests.helpers.texts import embedded, unit

CPU = torch.device("cpu")


def config_of(texts, out, task="expr", head=(), **more):
    small = {"tokens": 3, "descriptors": 2}
    head = HeadConfig(kind="prompts", normalise="l2", dropout=0.0, **{**small, **dict(head)})
    paths = {"bank": texts / "bank", "labels": texts, "out": out, "device": "cpu", "threads": 1}
    usual = {"task": task, "folds": 2, "epochs": 2, "num_seeds": 2, "prompts": ("facs", "photo")}
    optim = OptimConfig(lr=0.005)
    return LearnPromptsConfig(**{**paths, **usual, "head": head, "optim": optim, **more})


@pytest.fixture(scope="module")
def found(texts, tmp_path_factory):
    """Two seeds of learnt prompts for expressions, beside two written sets."""
    out = tmp_path_factory.mktemp("runs") / "prompts"
    return raffect.learn_prompts(config_of(texts, out, select="cv", epochs=3))


@pytest.fixture(scope="module")
def encoder(texts):
    return open_text_encoder(embedded(), texts)


def start_of(texts, task, encoder, **more):
    """A head before its first step: its logits are a function of features."""
    tower = open_text_tower(encoder, CPU)
    config = config_of(texts, texts / "never", task.name, **more)
    spec = build_spec(config, task, encoder, tower)
    batch = spec.build(spec.initial_row(0, config.head)[None])
    return spec, batch


def features(texts, task, split="validation"):
    labels = raffect.read_labels(texts / "labels" / f"{task.name}.parquet")
    read = raffect.read_features(raffect.Bank(texts / "bank"), labels, task, split)
    return torch.from_numpy(read.x.astype(np.float32)), read.y.astype(int)


# Where they start


def test_started_from_one_prompt_a_class_they_are_that_zero_shot_classifier(
    texts, encoder, tmp_path
):
    file = tmp_path / "one.toml"
    phrases = ["lips parted", "jaw dropped", "brows raised", "cheeks raised and lip corners up"]
    names = EXPR.outputs
    file.write_text(
        "[classes]\n" + "\n".join(f'{n} = ["{phrases[k % 4]}"]' for k, n in enumerate(names))
    )
    head = {"tokens": 0, "descriptors": 1}
    _, batch = start_of(texts, EXPR, encoder, start=str(file), head=head)
    x, _ = features(texts, EXPR)
    written = build_classifier(prompts_for(str(file), EXPR), encoder, "vectors", "rest").weight
    expected = unit(x.numpy().astype(np.float64)) @ written.T
    outputs = batch.predict(batch.rows, batch.buffers, x)[0].numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


def test_several_prompts_a_class_start_descriptors_and_the_rest_are_drawn(texts, encoder):
    spec, batch = start_of(texts, EXPR, encoder, start="facs", head={"tokens": 0, "descriptors": 8})
    prompts = prompts_for("facs", EXPR).outputs
    vectors = batch.state(0)["vectors"].numpy()
    for g, parts in enumerate(prompts.values()):
        own = () if parts is None else parts[0]
        for s, text in enumerate(own):
            np.testing.assert_allclose(vectors[g, s], encoder.encode([text])[0], atol=1e-4)
        assert len(own) == (0 if parts is None else 3 if g == 0 else 6)
        # Other, which no prompt describes, and what has fewer prompts than descriptors, is drawn.
        assert spec.start[g, len(own) :].isnan().all()
    assert not np.allclose(vectors[7, 0], vectors[7, 1])


def test_labels_are_compared_with_prompts_of_a_face_without_them(texts, encoder):
    spec, batch = start_of(texts, AU, encoder, start="facs", head={"tokens": 0, "descriptors": 3})
    assert spec.has_rest
    assert group_names(AU)[-1] == "rest"
    assert spec.weights["tokens"][0] == len(AU.outputs) + 1
    prompts = prompts_for("facs", AU)
    x, _ = features(texts, AU)
    cosines = [
        (unit(x.numpy()) @ unit(encoder.encode(texts_of)).T).max(1)
        for texts_of in (*(parts[0] for parts in prompts.outputs.values()), prompts.rest)
    ]
    expected = encoder.identity.scale * (np.stack(cosines[:-1], 1) - cosines[-1][:, None])
    outputs = batch.predict(batch.rows, batch.buffers, x)[0].numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-3)


def test_class_names_stand_behind_the_tokens_and_an_undescribed_class_has_its_own(texts, encoder):
    spec, _ = start_of(texts, EXPR, encoder, class_names="facs-bare")
    tokens = torch.zeros(spec.weights["tokens"])
    tokens[:] = open_text_tower(encoder, CPU).read("a photo of")
    found = spec.read(tokens).numpy()
    parts = prompts_for("facs-bare", EXPR).outputs
    for g, (name, own) in enumerate(parts.items()):
        behind = (name.lower(),) if own is None else own[0]
        for s in range(2):
            text = f"a photo of {behind[s % len(behind)]}"
            np.testing.assert_allclose(found[g, s], encoder.encode([text])[0], atol=1e-4)


# What comes out


def test_evaluate_report_and_load_head_take_them_like_any_others(texts, found, encoder, tmp_path):
    paths = {"bank": texts / "bank", "labels": texts}
    judged = raffect.evaluate(EvaluateConfig(run=(found.folder,), epoch="cv", **paths))
    scores = {record.id: record.scores["cv"].headline for record in found.trained.records}
    assert {head.id: head.score.headline for head in judged.heads} == pytest.approx(scores)
    page = raffect.report((found.folder,), tmp_path / "report").markdown.read_text()
    assert "embedded encoder, not CLIP; drawn faces" in page
    # A head is a module of features, and needs no text tower.
    record = found.trained.records[0]
    head, card = load_head(found.folder / "weights" / record.id / "last")
    assert card.head["text_sha256"] == encoder.identity.text_sha256
    x, y = features(texts, EXPR)
    with torch.no_grad():
        predicted = head(x).argmax(1).numpy()
    macro_f1 = f1_score(y, predicted, average="macro", labels=range(8), zero_division=0)
    assert record.scores["last"].headline == pytest.approx(macro_f1)
    # It learnt something, Other included, which written prompts never answer.
    assert macro_f1 > 3 * found.trained.chance.level
    assert record.scores["last"].outputs["Other"]["f1"] > 0


def test_saved_vectors_are_those_of_the_saved_tokens(texts, found, encoder):
    spec = build_spec(config_of(texts, texts), EXPR, encoder, open_text_tower(encoder, CPU))
    for record in found.trained.records:
        for snapshot in ("last", "best", "cv"):
            head, _ = load_head(found.folder / "weights" / record.id / snapshot)
            assert torch.equal(head.vectors, spec.read(head.tokens.detach()))


def test_they_are_compared_with_the_written_set_that_folds_chose_on_the_same_frames(
    texts, found, encoder
):
    over_all, described = found.compared
    assert found.hand_written.chosen.prompts == over_all.prompts == "facs"
    assert over_all.num_sets == 2
    x, y = features(texts, EXPR)
    learnt = []
    for record in found.trained.records:
        head, _ = load_head(found.folder / "weights" / record.id / "cv")
        with torch.no_grad():
            learnt.append(head(x).argmax(1).numpy())
    weight = build_classifier(prompts_for("facs", EXPR), encoder, "vectors", "rest").weight
    written = (unit(x.numpy()) @ weight[:7].T).argmax(1)

    def macro_f1(true, predicted, classes):
        kept = np.isin(true, classes)
        options = {"average": "macro", "labels": classes, "zero_division": 0}
        return f1_score(true[kept], predicted[kept], **options)

    for compared, count in ((over_all, 8), (described, 7)):
        classes = list(range(count))
        assert compared.outputs == EXPR.outputs[:count]
        expected = np.mean([macro_f1(y[:, 0], predicted, classes) for predicted in learnt])
        by_hand = macro_f1(y[:, 0], written, classes)
        assert compared.learnt.score == pytest.approx(expected)
        assert compared.hand_written.score == pytest.approx(by_hand)
        assert compared.difference == pytest.approx(expected - by_hand)
        low, high = compared.interval_95
        assert low <= compared.difference <= high
        assert compared.chance.prior == pytest.approx(1 / count)
    saved = json.loads((found.folder / "against.json").read_text())["compared"]
    assert [entry["difference"] for entry in saved] == [over_all.difference, described.difference]


def test_the_result_is_lines_a_table_and_files(found):
    lines = "\n".join(found.lines())
    assert "EXPR val-cv" in lines
    assert "8 classes: macro F1 learnt ." in lines
    assert "(facs, chosen of 2 on folds), difference " in lines
    assert "chance .125 (guesses by the class shares)" in lines
    assert "caveat: embedded encoder, not CLIP" in lines
    assert found.lines()[-1].startswith("next: raffect report")
    words = found.to_pandas()
    assert len(words) == 2 * 8 * 2 * 3  # seeds, classes, descriptors, tokens
    assert (words["cosine1"] >= words["cosine2"]).all()
    assert (found.folder / "words.csv").read_text().count("\n") == len(words) + 1


def test_the_same_command_goes_on_and_another_one_is_refused(texts, found):
    out = found.folder
    again = raffect.learn_prompts(config_of(texts, out, select="cv", epochs=3))
    assert again.compared == found.compared
    assert again.words == found.words
    with pytest.raises(RaffectError, match="a run with head.tokens 3, this one has 4"):
        raffect.learn_prompts(config_of(texts, out, select="cv", epochs=3, head={"tokens": 4}))
    with pytest.raises(RaffectError, match=r"a run with class_names , this one has names"):
        raffect.learn_prompts(config_of(texts, out, select="cv", epochs=3, class_names="names"))
    with pytest.raises(RaffectError, match="made by `raffect learn-prompts`, not by"):
        raffect.train(
            TrainConfig(bank=texts / "bank", labels=texts, out=out, task="expr", device="cpu")
        )
    # Its settings are a recipe that repeats it.
    repeat = parse("learn-prompts", [str(out / "config.toml"), "--out", str(out)])
    assert repeat == config_of(texts, out, select="cv", epochs=3, stream="never")


def test_a_seed_alone_has_the_bytes_that_it_has_beside_others(texts, found, tmp_path):
    config = config_of(texts, tmp_path / "alone", epochs=3, num_seeds=1, seed=1, prompts=())
    alone = raffect.learn_prompts(config)
    assert alone.compared == ()
    assert alone.hand_written is None
    (record,) = alone.trained.records
    files = [
        folder / "weights" / record.id / "last" / "head.safetensors"
        for folder in (alone.folder, found.folder)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "va"], "task va has no classes and no labels, which prompts describe"),
        (["--task", "au", "--start", "photo"], "--prompts photo: no prompt for AU1"),
        (["--task", "expr", "--start", "gone"], "--prompts gone: no such prompt set"),
        (
            ["--task", "expr", "--start", "facs"],
            "--start facs: a prompt of 27 tokens, and --head.tokens 4; expected 27 or more, or 0",
        ),
        (
            ["--task", "expr", "--head.tokens", "47"],
            "prompt of 49 tokens (47 learnt tokens), raffect-faces reads 48; take fewer",
        ),
        (
            ["--task", "expr", "--head.tokens", "46", "--class-names", "names"],
            "(46 learnt tokens before 'neutral'), raffect-faces reads 48",
        ),
        (["--task", "expr", "--head.tokens", "0"], "--head.tokens 0: as many as the prompts of"),
        (["--task", "expr", "--head.kind", "mlp"], "`raffect learn-prompts`, which trains no"),
        (["--task", "expr", "--weights", "other.safetensors"], "name them with --weights"),
        (["--task", "expr", "--num-workers", "2"], "prompts are learnt in one process"),
        (["--task", "expr", "--stream", "always"], "on features in memory; leave it out"),
        (["--task", "expr", "--folds", "9"], "--folds 9: the training split has 8 videos"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    texts, tmp_path, monkeypatch, capsys, words, line
):
    monkeypatch.chdir(tmp_path)
    paths = ["--bank", str(texts / "bank"), "--labels", str(texts), "--out", "run"]
    assert main(["learn-prompts", *paths, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("raffect learn-prompts: ")
    assert line in error
    assert not (tmp_path / "run").exists()


def test_weights_that_did_not_make_the_bank_are_refused(texts, tmp_path):
    with pytest.raises(RaffectError, match="made by other weights than random:1"):
        raffect.learn_prompts(config_of(texts, tmp_path / "run", weights="random:1"))
    assert not (tmp_path / "run").exists()


def test_train_trains_no_prompts(texts, tmp_path):
    paths = {"bank": texts / "bank", "labels": texts, "out": tmp_path}
    with pytest.raises(RaffectError, match="kind prompts are trained by `raffect learn-prompts`"):
        TrainConfig(**paths, head=HeadConfig(kind="prompts"))


# Words of prompt sets


def write_set(file, phrase="lips parted", count=3):
    phrases = [f"{phrase} {'very ' * k}wide" for k in range(count)]
    names = "\n".join(f"{name} = {json.dumps(phrases)}" for name in EXPR.outputs)
    file.write_text(f"[classes]\n{names}\n")
    return str(file)


@pytest.mark.parametrize("flag", ["start", "class_names"])
def test_a_prompt_set_that_has_changed_since_is_refused(texts, tmp_path, flag):
    file, out = tmp_path / "mine.toml", tmp_path / "run"
    small = {"num_seeds": 1, "epochs": 1, "prompts": ()}
    head = {"tokens": 0 if flag == "start" else 2, "descriptors": 1}
    config = config_of(texts, out, head=head, **{flag: write_set(file, count=1)}, **small)
    raffect.learn_prompts(config)
    before = sorted(path.read_bytes() for path in out.glob("weights/*/last/*"))
    # The same file under the same name goes on; of other words it does not, whatever the seeds.
    raffect.learn_prompts(config)
    write_set(file, "jaws parted", count=1)
    for changed in (config, dataclasses.replace(config, num_seeds=2)):
        with pytest.raises(RaffectError, match="its heads have another prompts_sha256") as caught:
            raffect.learn_prompts(changed)
        assert "\n" not in str(caught.value)
    assert sorted(path.read_bytes() for path in out.glob("weights/*/last/*")) == before
    (card,) = out.glob("weights/*/last/config.json")
    assert json.loads(card.read_text())["head"] == json.loads((out / "spec.json").read_text())


def test_prompts_beyond_the_descriptors_are_counted(texts, tmp_path):
    more = {"head": {"tokens": 0, "descriptors": 2}, "start": write_set(tmp_path / "mine.toml")}
    notes = describe_unused(config_of(texts, tmp_path / "run", **more), EXPR)
    line = f"--start {tmp_path / 'mine.toml'}: 8 of its 24 prompts were not used, beyond"
    assert notes == (f"{line} --head.descriptors 2 of a class; 3 use all",)
    more["head"]["descriptors"] = 3
    assert describe_unused(config_of(texts, tmp_path / "run", **more), EXPR) == ()


def test_words_are_those_of_the_epoch_that_is_scored(found, encoder):
    tower = open_text_tower(encoder, CPU)
    for record in found.trained.records:
        epoch = record.scores["cv"].epoch
        head, _ = load_head(found.folder / "weights" / record.id / "cv")
        words = [one for one in found.words if one.head == record.id]
        assert {one.epoch for one in words} == {epoch}
        near = tower.nearest(head.tokens.detach().flatten(0, 2), 1)
        assert [one.cosines[0] for one in words] == pytest.approx([one[0][1] for one in near])


def test_zeroshot_through_learnt_prompts_is_refused_in_one_line(texts, found, tmp_path):
    config = ZeroshotConfig(
        bank=texts / "bank", labels=texts, task="expr", out=tmp_path / "z", head=(found.folder,)
    )
    with pytest.raises(RaffectError, match="a head of learnt prompts, which are texts") as caught:
        raffect.zeroshot(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "z").exists()
