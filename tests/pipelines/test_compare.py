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
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.errors import RaffectError
from raffect.evaluation.comparison import Comparison
from raffect.evaluation.predict import open_frames
from raffect.runs.data import find_labels
from tests.helpers.compared import config_of, make_two_banks, noisy, read_shard, rewrite_bank
from tests.helpers.learning import IDENTITY


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_two_banks(tmp_path_factory.mktemp("compare"))


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
        (
            {"encoders": ("timm:test_vit.r160_in1k:random@90",), "manifest": "."},
            "random:0@90: --encoder.image-size 90: .* use a multiple of that, 80 or 96",
        ),
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


def test_labels_of_other_data_than_the_manifests_are_refused_before_anything_is_encoded(
    world, tmp_path
):
    names = {"video": ["other"], "path": ["other/1.jpg"], "root": ["/nowhere"]}
    frames = pa.table({**names, "frame": np.array([1], np.int32)})
    frames = frames.select(["video", "frame", "path", "root"])
    write_manifest(frames, tmp_path / "manifest.parquet", True)
    more = {"banks": (), "encoders": ("raffect-faces",), "manifest": tmp_path}
    with pytest.raises(RaffectError, match="lists no video or picture of .*expr.parquet; check"):
        raffect.compare(config_of(world, **more, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_gone_are_refused_before_any_is_encoded(world, tmp_path):
    labels = read_labels(find_labels(config_of(world).labels, "expr"))
    keys = {name: labels[name] for name in ("video", "frame")}
    paths, roots = (pa.array([name] * len(labels)) for name in ("gone.jpg", str(tmp_path)))
    frames = pa.table({**keys, "path": paths, "root": roots})
    write_manifest(frames, tmp_path / "manifest.parquet", True)
    more = {"banks": (), "encoders": ("raffect-faces",), "manifest": tmp_path}
    with pytest.raises(RaffectError, match="none of 32 of its pictures can be read .first /.*gone"):
        raffect.compare(config_of(world, **more, out=tmp_path / "out"))
    assert not (tmp_path / "out" / "banks").exists()


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
