"""Heads on damaged copies: scores against features and scores computed by hand."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import f1_score

import raffect
from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.cli import main
from raffect.config import EvaluateConfig, RobustConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.corruptions import Corruption
from raffect.datasets.frames import read_frames
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest, write_manifest
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.evaluation.robustness import CLEAN_COPY, RobustRun, Scoring
from raffect.extraction.asked_encoder import load_clip, read_geometry
from raffect.extraction.corrupted import extract_corrupted, load_corrupted, without_mark
from raffect.extraction.extract import iter_items
from raffect.extraction.steps import EncodeShard, commit_shard, read_shard
from raffect.heads.checkpoint import load_head
from raffect.metrics.intervals import difference_interval
from raffect.metrics.task_kinds import kind_of
from raffect.runs.against_erm import Difference
from raffect.runs.data import open_dataset
from raffect.runs.pick import find_heads
from tests.helpers.banks import TINY
from tests.helpers.learning import FAST
from tests.helpers.runs import draw_confusion

COPIES = {
    "clean": Corruption("blur", 0),
    "occlusion-2": Corruption("occlusion", 2),
    "occlusion-5": Corruption("occlusion", 5),
}
GRID = {"corruptions": ("occlusion",), "strengths": (5, 2)}


def encode_here(frames: pa.Table, bank: Bank, corruption: Corruption) -> None:
    """What extraction does on Ray, with its own functions, in this process."""
    plan, names = bank.extend_plan(frames, 64), (bank.path, corruption)
    geometry = read_geometry(resolve(TINY))
    load = load_clip
    if corruption.strength:
        geometry = replace(geometry, corruption=corruption)
        load = partial(load_corrupted, corruption=corruption)
    actor = EncodeShard(TINY, str(names[0]), "cpu", 1, load)
    for item in iter_items(plan, range(plan.num_shards), frames, np.arange(len(frames))):
        table = pa.table({name: [value] for name, value in item.items()})
        encoded = actor(read_shard(table, str(bank.path), geometry))
        assert commit_shard(encoded, str(bank.path))["failure"][0].as_py() is None


@pytest.fixture(scope="module")
def world(prepared, tmp_path_factory):
    """A bank of drawn faces, plain ERM and CVaR of two seeds each, and banks of copies."""
    folder = tmp_path_factory.mktemp("robust")
    whole = read_manifest(prepared)
    manifest = whole.filter(pa.array(whole["frame"].to_numpy() % 4 == 0))
    write_manifest(manifest, folder / "manifest.parquet", True)
    encode_here(manifest, Bank(folder / "bank"), COPIES["clean"])
    inputs = ["--task", "expr", "--bank", folder / "bank", "--labels", prepared]
    for name, alpha in (("erm", 1), ("cvar", 0.3)):
        more = ["--loss.alpha", alpha, "--sam.rho", 0, "--num-seeds", 2, "--out", folder / name]
        assert main([str(w) for w in ("train", "paper", *inputs, *FAST, *more)]) == 0
    labels = read_labels(prepared / "labels" / "expr.parquet").to_pylist()
    wanted = {(row["video"], row["frame"]) for row in labels if row["split"] == "validation"}
    rows = zip(manifest["video"].to_pylist(), manifest["frame"].to_pylist(), strict=True)
    frames = manifest.filter(pa.array([row in wanted for row in rows]))
    for name, corruption in COPIES.items():
        encode_here(frames, Bank(folder / "robust" / "banks" / name), corruption)
    return folder


def config_of(world, prepared, **more):
    paths = {"manifest": world, "labels": prepared, "out": world / "robust"}
    run = (world / "erm", world / "cvar")
    return RobustConfig(**{"run": run, "device": "cpu", **GRID, **paths, **more})


@pytest.fixture(scope="module")
def result(world, prepared):
    return raffect.robust(config_of(world, prepared))


def point_of(result, run, corruption, strength):
    key = (run, corruption, strength)
    return next(p for p in result.points if (p.run, p.corruption, p.strength) == key)


def heads_of(run):
    return find_heads(run, "last")


def test_scores_are_those_of_frames_damaged_and_encoded_by_hand(world, prepared, result):
    labels = read_labels(prepared / "labels" / "expr.parquet")
    frames = read_manifest(world / "robust" / "frames.parquet")
    value = {(r["video"], r["frame"]): r["expression"] for r in labels.to_pylist()}
    keys = list(zip(frames["video"].to_pylist(), frames["frame"].to_pylist(), strict=True))
    y = np.array([value[key] for key in keys])
    encoder = load_clip(TINY, "cpu", 1)
    for strength in (0, 2, 5):
        damage = Corruption("occlusion", strength)
        pixels = [damage.apply(p, *k) for p, k in zip(read_frames(frames), keys, strict=True)]
        x = torch.from_numpy(encoder.encode(pixels).astype(np.float32))[y >= 0]
        for run in ("erm", "cvar"):
            heads = [load_head(folder)[0] for folder in heads_of(world / run)]
            found = [
                f1_score(y[y >= 0], head(x).argmax(1), labels=range(8), average="macro")
                for head in heads
            ]
            name = "occlusion" if strength else "clean"
            assert point_of(result, run, name, strength).score.mean == pytest.approx(
                np.mean(found), abs=2e-3
            )


def test_scores_without_damage_are_those_of_evaluate(world, prepared, result):
    for run in ("erm", "cvar"):
        paths = {"run": (world / run,), "bank": world / "bank", "labels": prepared}
        (setting,) = raffect.evaluate(EvaluateConfig(**paths, device="cpu")).settings
        point = point_of(result, run, "clean", 0)
        assert point.score == setting.scores["last"]
        assert point.worst == setting.worst


def test_every_run_stands_beside_erm_on_the_same_copies(result):
    assert [(run.name, run.erm, run.against) for run in result.robustness.runs] == [
        ("erm", True, ""),
        ("cvar", False, "erm"),
    ]
    for corruption, strength in (("clean", 0), ("occlusion", 2), ("occlusion", 5), ("mean", None)):
        ours, erm = (point_of(result, run, corruption, strength) for run in ("cvar", "erm"))
        assert ours.against_erm.mean == pytest.approx(ours.score.mean - erm.score.mean)
        assert erm.against_erm is None
        if strength != 0:
            assert ours.change_against_erm.mean == pytest.approx(ours.change.mean - erm.change.mean)
    means = [point_of(result, "cvar", "occlusion", k).score.mean for k in (2, 5)]
    assert point_of(result, "cvar", "mean", None).score.mean == pytest.approx(np.mean(means))


def test_table_figure_and_record_are_written_and_no_picture_is(world, result):
    out = world / "robust"
    with (out / "robust.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.points) == len(result.to_pandas()) == 2 * 6
    assert float(rows[0]["mean"]) == result.points[0].score.mean
    found = raffect.RobustResult(
        robustness=type(result.robustness).from_json(
            (out / "robust.json").read_bytes(), out / "robust.json", "-"
        ),
        out=out,
    )
    assert found.robustness == result.robustness
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes <= {".parquet", ".json", ".csv", ".png", ".attempt", ""}
    assert [path.name for path in out.rglob("*.png")] == ["robust.png"]
    size = (out / "robust.png").stat().st_size
    assert size > 20_000


def test_lines_have_a_table_for_a_phone_chance_and_caveats(result):
    lines = result.lines()
    start = next(k for k, line in enumerate(lines) if "clean" in line and "2" in line.split())
    assert [line.split()[0] for line in lines[start + 1 : start + 3]] == ["erm", "cvar"]
    assert max(map(len, lines[start : start + 3])) <= 44
    text = "\n".join(lines)
    assert "chance: " in text
    assert "caveat: drawn faces" in text
    assert "caveat: embedded encoder, not CLIP" in text
    assert "less lost than erm" in text


def test_the_same_command_again_has_nothing_to_do(world, prepared, result):
    files = [path for path in (world / "robust").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = raffect.robust(config_of(world, prepared))
    assert again.is_old
    assert again.robustness == result.robustness
    assert again.lines()[-1].startswith("nothing to do: ")
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_a_bank_of_damaged_frames_is_refused_where_others_are_expected(world, prepared):
    damaged = world / "robust" / "banks" / "occlusion-5"
    identity = Bank(damaged).require_identity()
    assert "frames damaged by occlusion of strength 5" in identity.caveat
    clean = Bank(world / "bank").require_identity()
    assert not clean.differences(without_mark(identity))
    paths = {"run": (world / "erm",), "bank": damaged, "labels": prepared}
    with pytest.raises(RaffectError, match="another encoder .*occlusion of strength 5, seed 0"):
        raffect.evaluate(EvaluateConfig(**paths))
    # Whoever trains on it has its caveat with every score
    dataset = open_dataset(damaged, prepared, "expr", ["validation"])
    assert "frames damaged by occlusion of strength 5" in dataset.facts.caveats
    # Continued without damage, or as another copy
    labels = read_labels(prepared / "labels" / "expr.parquet")
    assert len(read_features(Bank(damaged), labels, EXPR, "validation").x)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seed": 1}, "holds occlusion of strength 2, seed 0, version 1, not occlusion .* seed 1"),
        ({"split": "test"}, "lists no frame of .*expr.parquet test"),
        ({"epoch": "cv"}, "no head in weights/.*/cv"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(world, prepared, more, message):
    with pytest.raises(RaffectError, match=message) as error:
        raffect.robust(config_of(world, prepared, **more))
    assert "\n" not in str(error.value)


def test_a_bank_that_lies_under_another_name_is_refused(world, prepared, tmp_path):
    shutil.copytree(world / "robust" / "banks", tmp_path / "banks")
    (tmp_path / "banks" / "occlusion-2").rename(tmp_path / "x")
    (tmp_path / "banks" / "clean").rename(tmp_path / "banks" / "occlusion-2")
    (tmp_path / "x").rename(tmp_path / "banks" / "clean")
    with pytest.raises(RaffectError, match="clean: holds occlusion .*, not frames without damage"):
        raffect.robust(config_of(world, prepared, out=tmp_path))


def test_pictures_that_are_gone_are_refused_before_a_copy_is_encoded(world, prepared, tmp_path):
    frames = read_manifest(world)
    roots = pa.array([str(tmp_path)] * len(frames)).dictionary_encode()
    frames = frames.set_column(frames.column_names.index("root"), "root", roots)
    write_manifest(frames, tmp_path / "manifest.parquet", True)
    message = "none of 32 of its pictures can be read .first /.*.jpg: .*raffect prepare"
    with pytest.raises(RaffectError, match=message) as error:
        raffect.robust(config_of(world, prepared, manifest=tmp_path, out=tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "banks").exists()


def test_heads_of_two_tasks_or_of_damaged_frames_are_refused(world, prepared, tmp_path):
    words = ["--bank", world / "bank", "--labels", prepared, "--task", "au", "--out"]
    command = ["train", "paper", *words, tmp_path / "au", *FAST]
    assert main([str(word) for word in command]) == 0
    run = (world / "erm", tmp_path / "au")
    with pytest.raises(RaffectError, match="is of task expr and .* of au"):
        raffect.robust(config_of(world, prepared, run=run))
    shutil.copytree(world / "erm", tmp_path / "damaged")
    for file in (tmp_path / "damaged").glob("weights/*/*/config.json"):
        card = json.loads(file.read_text())
        (encoder,) = card["data"]["encoders"]
        encoder["preprocess"]["corruption"] = "blur of strength 1, seed 0, version 1"
        file.write_text(json.dumps(card))
    with pytest.raises(RaffectError, match="was trained on damaged frames"):
        raffect.robust(config_of(world, prepared, run=(tmp_path / "damaged",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strengths": (0, 1)}, "--strengths 0 1: expected numbers from 1 to 5"),
        ({"strengths": ()}, "--strengths"),
        ({"corruptions": ()}, "--corruptions: expected one"),
        ({"corruptions": ("fog",)}, "--corruptions fog: expected some of blur, noise"),
        ({"run": ()}, "--run: expected one"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_settings_are_checked_at_once(tmp_path, settings, message):
    paths = {"manifest": tmp_path, "labels": tmp_path, "out": tmp_path, "run": (tmp_path,)}
    with pytest.raises(RaffectError, match=message):
        RobustConfig(**{**paths, **settings})


def made_scoring(seeds=3, groups=7):
    """Two runs on three copies, whose skill falls with damage."""
    kind = kind_of(EXPR)
    skills = {CLEAN_COPY: (0.6, 0.6), ("blur", 1): (0.5, 0.3), ("noise", 1): (0.4, 0.2)}
    rng = np.random.default_rng(0)
    truth = draw_confusion(1.0, groups).sum(-1)
    copies = {}
    for copy, by_run in skills.items():
        heads = []
        for skill in by_run:
            wrong = skill * np.eye(8) + (1 - skill) / 8
            heads += [rng.multinomial(truth, wrong) for _ in range(seeds)]
        copies[copy] = np.array(heads)
    names = {"heads": ("a",), "path": "-"}
    runs = [
        RobustRun(name="ours", erm=False, against="erm", **names),
        RobustRun(name="erm", erm=True, **names),
    ]
    rows = [slice(0, seeds), slice(seeds, 2 * seeds)]
    return Scoring(kind, EXPR.outputs, "videos", True, runs, rows, [1] * 2 * seeds, copies)


def test_a_run_that_starts_lower_and_loses_less_is_not_called_robust(result):
    def lines(against, change):
        points = [
            replace(
                p,
                against_erm=Difference(mean=against, interval_95=None),
                change_against_erm=Difference(mean=change, interval_95=None),
            )
            if p.run == "cvar"
            else p
            for p in result.points
        ]
        return replace(result, robustness=replace(result.robustness, points=tuple(points))).lines()

    def has_warning(*values):
        return any("this is not robustness" in line for line in lines(*values))

    assert has_warning(-0.03, 0.08)
    assert not has_warning(0.03, 0.08)
    assert not has_warning(-0.03, -0.01)


def macro_f1(matrix):
    true, predicted = [], []
    for (row, column), count in np.ndenumerate(matrix):
        true += [row] * int(count)
        predicted += [column] * int(count)
    return f1_score(true, predicted, labels=range(8), average="macro", zero_division=0)


def test_what_is_lost_less_than_by_erm_is_a_jackknife_of_the_difference_of_differences():
    scoring = made_scoring()
    points = {(p.run, p.corruption, p.strength): p for p in scoring.points()}
    found = points["ours", "mean", None].change_against_erm
    damaged, groups = [("blur", 1), ("noise", 1)], 7

    def value(keep):
        def mean(copies, rows):
            heads = [m[keep].sum(0) for copy in copies for m in scoring.copies[copy][rows]]
            return np.mean([macro_f1(m) for m in heads])

        ours, erm = scoring.rows
        lost = mean(damaged, ours) - mean([CLEAN_COPY], ours)
        return lost - (mean(damaged, erm) - mean([CLEAN_COPY], erm))

    everyone = np.arange(groups)
    assert found.mean == pytest.approx(value(everyone))
    assert found.mean > 0.1
    without = np.array([value(np.delete(everyone, k)) for k in everyone])
    deviations = without - without.mean()
    half = np.sqrt((groups - 1) / groups * np.square(deviations).sum())
    low, high = found.interval_95
    # At least the normal quantile, around the value without its bias
    centre = groups * value(everyone) - (groups - 1) * without.mean()
    assert high - centre >= 1.95 * half
    assert low < found.mean < high


def test_a_mean_over_corruptions_has_the_spread_of_the_means_of_each_head():
    scoring = made_scoring()
    points = {(p.run, p.corruption, p.strength): p for p in scoring.points()}
    blur, noise = scoring.copies["blur", 1][:3], scoring.copies["noise", 1][:3]
    means = [
        (macro_f1(a.sum(0)) + macro_f1(b.sum(0))) / 2 for a, b in zip(blur, noise, strict=True)
    ]
    for strength in (1, None):
        found = points["ours", "mean", strength].score
        assert found.mean == pytest.approx(np.mean(means))
        assert found.sd == pytest.approx(np.std(means, ddof=1))
        assert found.heads == 3
    paired = difference_interval(blur, scoring.copies["blur", 1][3:], scoring.kind)
    found = points["ours", "blur", 1].against_erm
    assert (found.mean, found.interval_95) == (pytest.approx(paired[0]), pytest.approx(paired[1]))


@pytest.mark.cluster
def test_copies_that_are_missing_are_encoded_again_and_windows_are_filled_by_whole_videos(
    world, prepared, tmp_path, local_ray
):
    inputs = ["--task", "expr", "--bank", world / "bank", "--labels", prepared]
    more = ["--head.width", 16, "--head.attention-heads", 2, "--epochs", 2, "--device", "cpu"]
    more += ["--head.window", 3, "--head.stride", 4]  # the bank has every fourth frame
    command = ["train", "temporal", *inputs, "--out", tmp_path / "windows", *more]
    assert main([str(word) for word in command]) == 0
    config = config_of(
        world,
        prepared,
        run=(tmp_path / "windows",),
        out=tmp_path / "robust",
        corruptions=("blur",),
        strengths=(3,),
    )
    result = raffect.robust(config)
    clean = raffect.evaluate(
        EvaluateConfig(run=(tmp_path / "windows",), bank=world / "bank", labels=prepared)
    ).settings[0]
    assert point_of(result, "windows", "clean", 0).score.mean == pytest.approx(
        clean.scores["last"].mean, abs=5e-3
    )
    # Stopped before the last copy: what is there is kept, and at the end deleted as asked for
    banks = tmp_path / "robust" / "banks"
    shutil.rmtree(banks / "blur-3")
    (tmp_path / "robust" / "robust.json").unlink()
    runs = list((banks / "clean" / "runs").iterdir())
    raffect.robust(config)
    assert list((banks / "clean" / "runs").iterdir()) == runs
    (tmp_path / "robust" / "robust.json").unlink()
    again = raffect.robust(replace(config, keep_banks=False))
    assert again.points == result.points
    assert not banks.exists()


@pytest.mark.cluster
def test_extraction_on_ray_makes_the_bank_that_this_process_makes(
    world, result, tmp_path, local_ray
):
    frames = world / "robust" / "frames.parquet"
    config = raffect.ExtractConfig(
        manifest=frames, bank=tmp_path / "bank", encoder=TINY, threads=1, shard_rows=64
    )
    extract_corrupted(config, COPIES["occlusion-5"])
    ours, theirs = Bank(tmp_path / "bank"), Bank(world / "robust" / "banks" / "occlusion-5")
    assert ours.digest() == theirs.digest()
    with pytest.raises(RaffectError, match="holds occlusion of strength 5, .* not blur"):
        extract_corrupted(config, Corruption("blur", 1))
