"""Encoders compared: the same heads on several banks, differences by an independent computation."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import t as student
from sklearn.metrics import f1_score

import raffect
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import CompareConfig, EncoderConfig
from raffect.config.compare import name_encoder, read_encoder
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.errors import RaffectError
from raffect.evaluation.comparison import Comparison, JudgedRun, compare_runs
from raffect.evaluation.predict import open_frames
from raffect.extraction.rates import read_rate
from raffect.extraction.summary import ExtractSummary
from raffect.metrics.scores import Chance
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import Machine, describe_run
from raffect.reporting.compare import draw_comparison
from raffect.runs.spread import Spread
from tests.helpers.learning import IDENTITY, make_data
from tests.helpers.runs import draw_confusion


def rewrite_bank(source, path, change, rejects=()):
    """The frames of a bank with other features, as another encoder would give them."""
    old, new = Bank(source), Bank(path)
    frames = old.plan.table.append_column("path", old.plan.table["video"].cast(pa.string()))
    plan = new.extend_plan(frames.append_column("root", frames["path"]), 64)
    identity = replace(IDENTITY, weights_sha256="b" * 64, caveat="another encoder of a test")
    new.claim(identity)
    for shard in range(plan.num_shards):
        x = read_shard(old, shard)
        bad = {row: "damaged" for number, row in rejects if number == shard}
        keys, x = plan.rows(shard), np.delete(change(x), sorted(bad), axis=0)
        new.commit(shard, keys, x, bad, identity)


def read_shard(bank, shard):
    column = pq.read_table(bank.shard_path(shard))["feature"]
    return np.frombuffer(b"".join(column.to_pylist()), "<f2").reshape(len(column), -1)


def noisy(x):
    return (x + np.random.default_rng(5).normal(scale=4, size=x.shape)).astype(np.float16)


QUICK = """
epochs = 6
batch_size = 32
head = {dropout = 0.0}
loss = {alpha = 1.0}
sam = {rho = 0.0}
optim = {lr = 0.01}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two banks of the same frames: one whose features show the labels, one with noise on them."""
    folder = make_data(tmp_path_factory.mktemp("compare"), videos=18)
    rewrite_bank(folder / "bank", folder / "noisy", noisy)
    (folder / "quick.toml").write_text(QUICK)
    return folder


def config_of(world, **more):
    banks = (world / "noisy", world / "bank")
    settings = {"banks": banks, "labels": world, "task": "expr", "out": world / "compare"}
    return CompareConfig(
        **{
            **settings,
            "recipe": (str(world / "quick.toml"),),
            "num_seeds": 3,
            "device": "cpu",
            **more,
        }
    )


@pytest.fixture(scope="module")
def result(world):
    return raffect.compare(config_of(world))


# Differences


def statistics_of(run):
    """Confusion matrices of the last epoch by video: (heads, videos, 8, 8), read as plain Parquet.

    Rows of the file are a head, an epoch and a video each.
    """
    (file,) = (run / "statistics").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    last = max(row["epoch"] for row in rows)
    heads, videos = (sorted({row[name] for row in rows}) for name in ("head", "group"))
    found = np.zeros((len(heads), len(videos), 8, 8))
    for row in rows:
        if row["epoch"] == last:
            place = heads.index(row["head"]), videos.index(row["group"])
            found[place] = np.array(row["statistics"]).reshape(8, 8)
    return found


def macro_f1(matrix):
    """By scikit-learn, from a list of frames."""
    true, predicted = np.nonzero(matrix)
    counts = matrix[true, predicted].astype(int)
    true, predicted = np.repeat(true, counts), np.repeat(predicted, counts)
    return f1_score(true, predicted, labels=range(8), average="macro", zero_division=0)


def by_hand(ours, theirs):
    """The difference of mean scores over heads, and its interval by leaving out each video."""

    def difference(keep):
        one, two = (
            np.mean([macro_f1(head[keep].sum(0)) for head in heads]) for heads in (ours, theirs)
        )
        return one - two

    videos = np.arange(ours.shape[1])
    value = difference(videos)
    without = np.array([difference(videos != left_out) for left_out in videos])
    number, apart = len(videos), without - without.mean()
    centre = number * value - (number - 1) * without.mean()
    error = np.sqrt((number - 1) / number * (apart**2).sum())
    freedom = (apart**2).sum() ** 2 / (apart**4).sum() + 2
    half = student.ppf(0.975, freedom) * error
    return value, (min(value, centre - half), max(value, centre + half))


def test_the_paired_interval_is_that_of_an_independent_computation(result):
    first, second = result.scores
    assert (first.against, second.against) == ("B", "B")  # the bank without noise is the best
    assert second.difference is None
    assert first.verdict() == "lower"
    ours, theirs = (statistics_of(Path(score.run)) for score in result.scores)
    value, ends = by_hand(ours, theirs)
    assert first.difference.mean == pytest.approx(value)
    assert first.difference.interval_95 == pytest.approx(ends)
    assert first.score.mean == pytest.approx(np.mean([macro_f1(m.sum(0)) for m in ours]))


def judged(letter, skill, groups, recipe="erm", seed=0):
    rng = np.random.default_rng(seed)
    truth = draw_confusion(1.0, len(groups)).sum(-1)
    wrong = skill * np.eye(8) + (1 - skill) / 8
    statistics = np.array([rng.multinomial(truth, wrong) for _ in range(2)], float)
    scores = kind_of(EXPR).headline(statistics.sum(1))
    score = Spread(mean=float(scores.mean()), sd=None, interval_95=None, heads=2, epochs=(1, 1))
    return JudgedRun(letter, recipe, "-", score, groups, statistics)


def test_videos_are_paired_by_name_whatever_their_order_in_a_bank():
    names = [f"v{k}" for k in range(7)]
    one, two = judged("A", 0.6, names), judged("B", 0.4, names, seed=1)
    order = [3, 1, 6, 0, 2, 5, 4]
    turned = replace(two, groups=[names[k] for k in order], statistics=two.statistics[:, order])
    kind = kind_of(EXPR)
    straight, mixed = (compare_runs([one, other], "first", kind)[1] for other in (two, turned))
    assert mixed.difference.mean == pytest.approx(straight.difference.mean)
    assert mixed.difference.interval_95 == pytest.approx(straight.difference.interval_95)
    # Without their names other videos would have been paired
    assert not np.allclose(two.statistics, turned.statistics)


def test_every_bank_stands_beside_one_of_its_own_recipe():
    names = [f"v{k}" for k in range(6)]
    runs = [
        judged("A", 0.6, names),
        judged("B", 0.3, names, seed=1),
        judged("A", 0.2, names, "paper", seed=2),
        judged("B", 0.5, names, "paper", seed=3),
    ]
    kind = kind_of(EXPR)
    best, first, named = (compare_runs(runs, word, kind) for word in ("best", "first", "B"))
    assert [found.against for found in best] == ["A", "A", "B", "B"]
    assert [found.against for found in first] == ["A"] * 4
    assert [found.against for found in named] == ["B"] * 4
    assert [found.difference is None for found in best] == [True, False, False, True]
    for found in (best, first, named):
        means = {(score.recipe, score.letter): score.score.mean for score in found}
        for score in found:
            if score.difference is not None:
                own = means[score.recipe, score.letter] - means[score.recipe, score.against]
                assert score.difference.mean == pytest.approx(own)


# The command


def test_heads_are_those_of_train_on_each_bank(world, result, tmp_path):
    words = ["--task", "expr", "--bank", world / "noisy", "--labels", world]
    more = ["--num-seeds", 3, "--device", "cpu", "--out", tmp_path / "run"]
    assert main([str(word) for word in ("train", world / "quick.toml", *words, *more)]) == 0
    ours, theirs = Path(result.scores[0].run) / "heads", tmp_path / "run" / "heads"
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["settings"][0]
    assert result.scores[0].score.mean == found["scores"]["last"]["mean"]
    assert result.scores[0].score.interval_95 == tuple(found["scores"]["last"]["interval_95"])


def test_table_figure_and_record_are_written_with_caveats_wherever_a_score_is(world, result):
    out = world / "compare"
    content = (out / "compare.json").read_bytes()
    assert Comparison.from_json(content, "-", "-") == result.comparison
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.to_pandas()) == 2
    assert {row["score"] for row in rows} == {"val-last"}
    caveats = ["another encoder of a test; drawn faces", "made by a test; drawn faces"]
    assert [row["caveat"] for row in rows] == caveats
    assert float(rows[0]["mean"]) == result.scores[0].score.mean
    assert Image.open(out / "compare.png").size[0] < 1100  # two pixels for each of a phone's

    lines = result.lines()
    for bank, caveat in zip(result.banks, caveats, strict=True):
        (at,) = (
            k for k, line in enumerate(lines) if line.startswith(f"{bank.letter}  {bank.name}")
        )
        assert f"[{caveat}]" in lines[at]
        assert " over videos" in lines[at + 1]
    text = "\n".join(lines)
    assert text.count("nothing was chosen on validation") == 1
    assert "; the highest, chosen on these videos" in text
    assert "to B, paired: lower" in text
    assert "chance: " in text
    start = next(k for k, line in enumerate(lines) if "GFLOP" in line)
    assert max(map(len, lines[start : start + 3])) <= 44
    assert "A, B: frames/s blank, since the bank was given" in text
    assert "A, B: GFLOP blank" in text


def test_lines_of_clips_say_clips(result):
    assert " frames of 6 videos; heads of 3 seed(s)" in "\n".join(result.lines())
    assert "6 videos are few: an interval over fewer than 10" in "\n".join(result.lines())
    banks = [
        replace(bank, data=replace(bank.data, of_clips=True, group_name="clips"))
        for bank in result.banks
    ]
    clips = replace(result, comparison=replace(result.comparison, banks=tuple(banks)))
    assert " clips; heads of 3 seed(s)" in "\n".join(clips.lines())
    assert " frames of " not in "\n".join(clips.lines())


def test_the_same_command_again_has_nothing_to_do(world, result):
    files = [path for path in (world / "compare").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = raffect.compare(config_of(world))
    assert again.is_old
    assert again.comparison == result.comparison
    assert again.lines()[-1].startswith("nothing to do: ")
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_after_a_stop_finished_heads_are_kept_and_the_result_is_the_same(world, result, tmp_path):
    out = tmp_path / "stopped"
    shutil.copytree(world / "compare", out)
    # Killed after the first bank's heads: no results, and the second run not begun
    (out / "compare.json").unlink()
    shutil.rmtree(out / "runs" / "bank")
    heads = sorted((out / "runs" / "noisy").glob("**/head.safetensors"))
    before = [file.stat().st_mtime_ns for file in heads]
    again = raffect.compare(config_of(world, out=out))
    assert not again.is_old
    assert [file.stat().st_mtime_ns for file in heads] == before
    same = [replace(score, run="-") for score in result.scores]
    assert [replace(score, run="-") for score in again.scores] == same


def test_another_reference_trains_nothing_and_turns_the_difference(world, result, tmp_path):
    out = tmp_path / "turned"
    shutil.copytree(world / "compare", out)
    heads = sorted((out / "runs").glob("**/head.safetensors"))
    before = [file.stat().st_mtime_ns for file in heads]
    found = raffect.compare(config_of(world, out=out, against="noisy"))
    assert [file.stat().st_mtime_ns for file in heads] == before
    assert found.scores[1].difference.mean == pytest.approx(-result.scores[0].difference.mean)
    assert found.scores[1].verdict() == "higher"


def test_joined_banks_are_one_more_row_and_nothing_else_is_trained(world, result, tmp_path):
    out = tmp_path / "joined"
    shutil.copytree(world / "compare", out)
    heads = sorted((out / "runs").glob("**/head.safetensors"))
    before = [file.stat().st_mtime_ns for file in heads]
    found = raffect.compare(config_of(world, out=out, join=True))
    assert [file.stat().st_mtime_ns for file in heads] == before
    assert [(bank.letter, bank.name, bank.dim) for bank in found.banks] == [
        ("A", "noisy", 24),
        ("B", "bank", 24),
        ("C", "joined", 48),
    ]
    shard = [read_shard(Bank(bank.path), 3) for bank in found.banks]
    assert np.array_equal(shard[2], np.concatenate(shard[:2], axis=1))
    assert found.banks[2].rate_note == "frames/s blank, since that of a part is not known"
    assert "another encoder of a test" in found.banks[2].mark
    assert "made by a test; drawn faces" in found.banks[2].mark


def test_banks_of_other_frames_are_refused_with_the_first_one(world, tmp_path):
    rewrite_bank(world / "bank", tmp_path / "fewer", noisy, rejects=[(1, 7), (1, 9)])
    frames = Bank(tmp_path / "fewer").plan.rows(1).to_pylist()
    first = f"first {frames[7]['video']} frame {frames[7]['frame']}"
    config = config_of(world, banks=(world / "bank", tmp_path / "fewer"), out=tmp_path / "out")
    with pytest.raises(RaffectError, match=f"fewer: lacks 2 labelled train .*{first}") as error:
        raffect.compare(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()  # no head was trained on the first bank


def test_a_bank_is_no_folder_for_a_comparison(world, tmp_path):
    rewrite_bank(world / "bank", tmp_path / "other", noisy)
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(RaffectError, match="--out .*other: is a bank; name a folder of its own"):
        raffect.compare(config_of(world, out=tmp_path / "other"))
    assert sorted(tmp_path.rglob("*")) == there


def test_an_incomplete_joined_bank_is_refused_with_the_command_that_fills_it(world, tmp_path):
    part, identity = Bank(tmp_path / "part"), replace(IDENTITY, weights_sha256="c" * 64)
    part.claim(identity)
    plan = part.extend_plan(Bank(world / "bank").plan.table, 64)
    for shard in range(1, plan.num_shards):
        keys = plan.rows(shard)
        part.commit(shard, keys, np.ones((len(keys), identity.dim), np.float16), {}, identity)
    joined = tmp_path / "joined"
    raffect.join_banks([world / "bank", part.path], joined)
    with pytest.raises(RaffectError, match="finish the bank with `raffect bank join`"):
        raffect.compare(config_of(world, banks=(joined,), out=tmp_path / "out"))
    with pytest.raises(RaffectError, match=r"finish `raffect bank join` \(`raffect bank verify"):
        open_frames(joined, [], False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"against": "other"}, "--against other: expected best, first, or one of noisy, bank"),
        ({"recipe": ("emr",)}, "emr: no such recipe .did you mean erm"),
        ({"banks": ("noisy", "no-bank")}, "no-bank: no bank there"),
        ({"banks": ("noisy", "bank", "noisy")}, "--banks: .*noisy is there twice; give it once"),
        (
            {"encoders": ("ViT-B-23:random",), "manifest": "."},
            "--encoders ViT-B-23:random:0: .*no ",
        ),
        ({"encoders": ("ViT-B-32:openai",), "manifest": "."}, "--encoders ViT-B-32:openai: "),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(
    world, tmp_path, settings, message
):
    banks = tuple(world / name for name in settings.get("banks", ("noisy", "bank")))
    if "manifest" in settings:
        (tmp_path / "manifest.parquet").write_bytes(b"-")
        settings = {**settings, "manifest": tmp_path}
    config = config_of(world, **{**settings, "banks": banks}, out=tmp_path / "out")
    with pytest.raises(RaffectError, match=message) as error:
        raffect.compare(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# Words and settings


@pytest.mark.parametrize(
    ("word", "expected", "name"),
    [
        ("ViT-L-14-quickgelu", {}, "ViT-L-14-quickgelu:openai"),
        ("ViT-B-32:random", {"weights": "random:0"}, "ViT-B-32:random:0"),
        ("ViT-B-32:random:7", {"weights": "random:7"}, "ViT-B-32:random:7"),
        ("ViT-B-32:/w/a:b@2.pt", {"weights": "/w/a:b@2.pt"}, "ViT-B-32:a:b@2.pt"),
        ("raffect-faces", {"weights": "embedded"}, "raffect-faces:embedded"),
        ("raffect-faces:embedded@flip", {"view": "flip"}, "raffect-faces:embedded@flip"),
        ("timm:a.b", {"weights": "b"}, "timm:a.b"),
        ("timm:a.b@336@crop:.8", {"image_size": 336, "view": "crop:0.8"}, "timm:a.b@336@crop:0.8"),
        ("timm:a:random:3@96", {"weights": "random:3", "image_size": 96}, "timm:a:random:3@96"),
    ],
)
def test_an_encoder_is_one_word(word, expected, name):
    found = read_encoder(word)
    model = word.partition("@")[0] if word.startswith("timm:a.b") else None
    model = model or ("timm:a" if word.startswith("timm:") else word.split(":")[0].split("@")[0])
    weights = "embedded" if model == "raffect-faces" else "b" if model == "timm:a.b" else "openai"
    assert found == EncoderConfig(**{"model": model, "weights": weights, **expected})
    assert name_encoder(found) == name
    assert "/" in word or read_encoder(name) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--encoders: expected one encoder or more"),
        ({"encoders": ("a",)}, "--manifest: expected"),
        ({"banks": ("a",), "join": True}, "--join: expected two"),
        ({"encoders": (":random",), "manifest": "m"}, "--encoders :random: expected MODEL"),
        ({"encoders": ("timm:",), "manifest": "m"}, "--encoders timm:: expected MODEL"),
        ({"encoders": ("a@flop",), "manifest": "m"}, "--encoders a@flop: expected MODEL"),
        ({"encoders": ("a@9@flip@8",), "manifest": "m"}, "has two of @8 and @9"),
        ({"encoders": ("a@9",), "manifest": "m"}, "image-size 9: expected 0"),
        ({"encoders": ("a@crop:3",), "manifest": "m"}, "crop:3: expected flip, or crop"),
        ({"banks": ("a",), "num_seeds": 0}, "--num-seeds 0"),
        ({"banks": ("a",), "epochs": -1}, "--epochs -1"),
        ({"banks": ("a",), "recipe": ()}, "--recipe"),
        ({"banks": tuple("abcdefghijklmnopqrstuvwxyz1")}, "at most 26"),
    ],
)
def test_settings_are_checked_at_once(tmp_path, settings, message):
    with pytest.raises(RaffectError, match=message):
        CompareConfig(labels=tmp_path, out=tmp_path, **settings)


def test_two_encoders_of_one_name_are_refused(tmp_path, world):
    for words in (("raffect-faces", "raffect-faces:embedded"), ("a:/x/w.pt", "a:/y/w.pt")):
        paths = {"manifest": tmp_path, "labels": world, "out": tmp_path}
        with pytest.raises(RaffectError, match="two encoders or banks have this name"):
            raffect.compare(CompareConfig(encoders=words, **paths))


# Costs


def write_summary(bank, number, frames, rate, **more):
    """What an extraction leaves in a bank."""
    summary = ExtractSummary(
        planned=frames, encoded=frames, steady_frames_per_s=rate, encoders=1, **more
    )
    run = replace(describe_run(), machine=Machine(system="Linux", cores=2))
    content = {"run": run.to_json(), "config": {}, "summary": summary.to_json()}
    (bank / "runs").mkdir(parents=True, exist_ok=True)
    (bank / "runs" / f"{number}.json").write_text(json.dumps(content))


def test_the_rate_of_a_bank_is_all_its_frames_over_all_their_time(tmp_path):
    bank = Bank(tmp_path / "bank")
    assert read_rate(bank) == (
        None,
        "its extraction left no rate, since it was stopped before its end",
    )
    write_summary(bank.path, 1, 300, 100.0)
    write_summary(bank.path, 2, 100, 10.0)
    write_summary(bank.path, 3, 0, 0.0)  # nothing to do
    rate, why = read_rate(bank)
    assert rate.frames_per_s == pytest.approx(400 / (3 + 10))
    assert (rate.frames, rate.encoders, why) == (400, 1, "")
    assert rate.where() == "1 encoder(s) on the CPU (Linux, 2 cores)"
    # Parts that were made on other devices have no rate together
    write_summary(bank.path, 4, 100, 900.0, gpus=1.0)
    assert read_rate(bank)[0] is None
    (bank.path / "runs" / "5.json").write_text("{")
    with pytest.raises(RaffectError, match="5.json: damaged"):
        read_rate(bank)


def rows_of_figure(rates, recipes=("erm",)):
    return [
        {
            "letter": "ABC"[k],
            "encoder": f"timm:vit_base_patch14_reg4_dinov2.lvd142m@{k}",
            "recipe": recipe,
            "mean": 0.3 + 0.1 * k,
            "low": None if k == 2 else 0.2 if k else np.nextafter(0.3, 1),  # rounding of an end
            "high": None if k == 2 else 0.6,
            "frames_per_s": rate,
            "gflop": None if k == 1 else 4.4 * (k + 1),
            "bank_bytes": 10_000_000 * (k + 1),
            "caveat": "random weights; drawn faces",
        }
        for recipe in recipes
        for k, rate in enumerate(rates)
    ]


@pytest.mark.parametrize("rates", [(12.0, 3000.0, 400.0), (None, 9.0, None), (None, None, None)])
def test_the_figure_has_a_place_for_every_bank(tmp_path, rates):
    chance = Chance(answer="always Other", majority=0.07, prior=0.125)
    rows = rows_of_figure(rates, ("erm", "paper"))
    draw_comparison(rows, chance, "EXPR", kind_of(EXPR), tmp_path / "compare")
    width, height = Image.open(tmp_path / "compare.png").size
    assert width < 1100 < height * 1.5
    with (tmp_path / "compare.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


# All of it


@pytest.mark.cluster
def test_encoders_are_compared_from_pictures_to_figure_and_after_a_stop(
    prepared, tmp_path, local_ray, capsys
):
    whole = read_manifest(prepared)
    some = whole.filter(pa.array(whole["frame"].to_numpy() % 4 == 0))
    write_manifest(some, tmp_path / "manifest.parquet", True)
    words = ["compare", "--encoders", "raffect-faces", "timm:vit_tiny_patch16_224:random@32"]
    words += ["--manifest", tmp_path, "--labels", prepared, "--task", "expr", "--join"]
    words += ["--epochs", 2, "--num-seeds", 2, "--device", "cpu", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    first, out = capsys.readouterr().out, tmp_path / "out"
    read = Comparison.from_json((out / "compare.json").read_bytes(), "-", "-")
    names = ["raffect-faces:embedded", "timm:vit_tiny_patch16_224:random:0@32", "joined"]
    assert [bank.name for bank in read.banks] == names
    assert [bank.dim for bank in read.banks] == [256, 192, 448]
    one, two, joined = (bank.frames_per_s for bank in read.banks)
    assert joined == pytest.approx(1 / (1 / one + 1 / two))
    assert read.banks[2].flop == read.banks[0].flop + read.banks[1].flop
    assert first.count("[random weights; drawn faces]") == 1
    assert first.count("[embedded encoder, not CLIP; drawn faces]") == 1

    # Stopped before the second bank was whole: the first one and its heads are kept
    (out / "compare.json").unlink()
    for folder in ("banks/joined", "runs/joined", "runs/timm-vit_tiny_patch16_224-random-0@32"):
        shutil.rmtree(out / folder)
    bank = Bank(out / "banks" / "timm-vit_tiny_patch16_224-random-0@32")
    bank.commit_path(0).unlink()
    kept = out / "banks" / "raffect-faces-embedded"
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    assert main([str(word) for word in words]) == 0
    again = Comparison.from_json((out / "compare.json").read_bytes(), "-", "-")
    assert again.scores == read.scores
    assert {path: path.stat().st_mtime_ns for path in before} == before
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing to do: ")
