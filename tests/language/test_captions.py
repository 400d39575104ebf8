"""Captions made from labels: what they say, their vectors, and what is never trained on."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from raffect.bank.format import Bank
from raffect.cli import main
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.labels import read_labels, write_clip_labels
from raffect.datasets.targets import read_targets
from raffect.datasets.tasks import Task
from raffect.encoders.text import open_text_encoder
from raffect.errors import RaffectError
from raffect.language.captions.labels import Labelled, caption_units
from raffect.language.captions.result import CaptionFacts
from raffect.language.classifiers import build_classifier
from raffect.language.prompt_sets import TaskPhrases, prompts_for, read_prompt_set
from raffect.storage.tables import read_metadata
from tests.helpers.banks import IDENTITY, fill_bank, make_manifest
from tests.helpers.caption_tables import (
    au_rows,
    expr_rows,
    make_captions,
    make_teacher,
    rows_of,
    write_rows,
)
from tests.helpers.texts import embedded, unit

FACS = read_prompt_set("facs")[2]


# Captions of labels


def test_a_caption_names_the_active_units_and_no_others(texts, tmp_path):
    found = make_captions(
        texts, tmp_path / "c.parquet", from_labels=texts / "labels" / "au.parquet", seed=3
    )
    labels = {
        (row["video"], row["frame"]): row
        for row in read_labels(texts / "labels" / "au.parquet").to_pylist()
    }
    rows, used = rows_of(found), set()
    assert len(rows) == len(labels)
    for row in rows:
        truth = labels[row["video"], row["frame"]]
        phrases = [FACS.classes[name][0] for name in AU.outputs if truth[name] == 1]
        expected = phrases or ["every muscle at rest"]
        joined = " and ".join([", ".join(expected[:-1])] * (len(expected) > 1) + expected[-1:])
        (template,) = (t for t in FACS.templates if t.replace("{}", joined) == row["caption"])
        assert row["split"] == truth["split"]
        used.add(template)
    assert used == set(FACS.templates)
    assert [row["target"] for row in found.table.to_pylist()] == [row["target"] for row in rows]
    assert set(found.to_pandas()["caption"]) == {row["caption"] for row in rows}


def test_targets_are_the_vectors_of_their_captions_by_the_weights_of_the_bank(texts, tmp_path):
    found = make_captions(
        texts, tmp_path / "c.parquet", from_labels=texts / "labels" / "au.parquet"
    )
    targets = read_targets(found.out, read_labels(found.out))
    encoder = open_text_encoder(embedded(), texts)
    captions = pq.read_table(found.targets)["caption"].to_pylist()
    assert len(set(captions)) == len(captions) == targets.facts.count
    expected = unit(encoder.encode(captions).astype(np.float64))
    np.testing.assert_allclose(targets.vectors.astype(np.float64), expected, atol=1e-3)
    assert targets.facts.image_sha256 == embedded().weights_sha256


def test_targets_of_a_block_are_of_many_videos(texts, tmp_path):
    found = make_captions(
        texts, tmp_path / "c.parquet", from_labels=texts / "labels" / "au.parquet"
    )
    first = found.table.filter(pa.array(found.table["target"].to_numpy() < 40))
    assert len(first["video"].unique()) == len(found.table["video"].unique())


def test_several_sets_and_own_templates_paraphrase(texts, tmp_path):
    templates = ("look at {}", "{} here")
    few = read_labels(texts / "labels" / "au.parquet").to_pylist()[::8]
    labels = write_rows(tmp_path / "au.parquet", AU, few)
    source = {"from_labels": labels, "templates": templates}
    sets = {"prompts": ("facs", "everyday"), "truncate": True}
    found = make_captions(texts, tmp_path / "c.parquet", **source, **sets)
    captions = [row["caption"] for row in rows_of(found)]
    everyday = read_prompt_set("everyday")[2]
    for words, prompts in itertools.product(("look at", "here"), (FACS, everyday)):
        phrases = [phrase for values in prompts.classes.values() for phrase in values]
        assert any(words in text and any(p in text for p in phrases) for text in captions)
    assert all(text.startswith("look at ") or text.endswith(" here") for text in captions)


def test_phrases_are_drawn_uniformly_and_each_units_apart():
    count, names = 6000, ("AU1", "AU2", "AU4")
    phrases = {name: (tuple(f"{name}-{k}" for k in range(2 + i)),) for i, name in enumerate(names)}
    sets = [
        TaskPhrases("a", b"", ("one {}", "two {}"), phrases, ("rest-0", "rest-1", "rest-2")),
        TaskPhrases("b", b"", ("three {}",), phrases, ("rest-3",)),
    ]
    active = np.ones((count, 3), bool)
    active[::4] = False
    video = [f"v{k}" for k in range(count)]
    rows = Labelled(pa.table({"video": video}), active, np.ones_like(active), "x")
    found = caption_units(rows, sets, seed=0)
    texts = [found.texts[k] for k in found.table["target"].to_pylist()]
    words = [re.findall(r"[^ ,]+-\d", text) for text in texts]
    assert Counter(map(len, words)) == {1: count // 4, 3: count - count // 4}

    # Templates, and phrases of all units together
    first = Counter(text.split()[0] for text in texts)
    assert chisquare(list(first.values())).pvalue > 0.001
    together = Counter(tuple(found) for found in words if len(found) == 3)
    assert len(together) == 2 * 3 * 4
    assert chisquare(list(together.values())).pvalue > 0.001
    at_rest = Counter(
        text.split()[1] for text in texts if text.startswith(("one rest", "two rest"))
    )
    assert len(at_rest) == 3
    assert chisquare(list(at_rest.values())).pvalue > 0.001
    again = caption_units(rows, sets, seed=0)
    assert again.table.equals(found.table)
    assert not caption_units(rows, sets, seed=1).table.equals(found.table)


@pytest.mark.parametrize("clips", ["runs", "stretches"])
def test_clips_have_what_is_active_in_at_least_half_of_their_labelled_frames(tmp_path, clips):
    rng = np.random.default_rng(5)
    rows, names = [], ("AU1", "AU2", "AU4")
    task = Task(name="au", kind="multilabel", outputs=names, columns=names)
    for video, split in (("a", "train"), ("b", "validation"), ("c", "train")):
        values = np.repeat(rng.choice([-1, 0, 1], (15, 3), p=(0.1, 0.5, 0.4)), 2, axis=0)
        for k in rng.permutation(30).tolist():
            if k not in (7, 20):
                row = dict(zip(names, values[k].tolist(), strict=True))
                rows.append({"video": video, "frame": k + 1, "split": split} | row)
    labels = write_rows(tmp_path / "au.parquet", task, rows)
    fill_bank(tmp_path / "bank", make_manifest({"a": 30, "b": 30, "c": 30}), identity=embedded())
    source = {"from_labels": labels, "clips": clips, "clip_frames": 8, "templates": ("{}",)}
    found = make_captions(tmp_path, tmp_path / "c.parquet", **source)

    # By hand: labelled frames of each video, cut, and counted unit by unit
    expected, unsure = {}, 0
    for video in "abc":
        own = sorted((r for r in rows if r["video"] == video), key=lambda r: r["frame"])
        own = [row for row in own if any(row[name] >= 0 for name in names)]
        parts: list[list[dict]] = []
        for row in own:
            last = parts[-1][-1] if parts else None
            same = last is not None and (
                (row["frame"] - 1) // 8 == (last["frame"] - 1) // 8
                if clips == "stretches"
                else row["frame"] == last["frame"] + 1 and all(row[n] == last[n] for n in names)
            )
            parts = [*parts[:-1], [*parts[-1], row]] if same else [*parts, [row]]
        for part in parts:
            cells = {name: [row[name] for row in part if row[name] >= 0] for name in names}
            active = [name for name in names if cells[name] and np.mean(cells[name]) >= 0.5]
            if not active and not all(cells.values()):
                unsure += 1
                continue
            phrases = [FACS.classes[name][0] for name in active] or list(FACS.rest)
            text = " and ".join([", ".join(phrases[:-1])] * (len(phrases) > 1) + phrases[-1:])
            expected[video, part[0]["frame"], part[-1]["frame"]] = text
    assert {(r["video"], r["start"], r["end"]): r["caption"] for r in rows_of(found)} == expected
    counted = [part.rows for part in found.facts.left_out if "not all labels" in part.what]
    assert counted == [unsure] * (unsure > 0)
    assert found.unit == "clips"


def test_a_table_of_clips_gets_a_caption_a_clip(texts, tmp_path):
    clips = pa.table(
        {"video": ["v00", "v02"], "start": [1, 3], "end": [9, 9], "split": ["train", "validation"]}
    )
    for k, name in enumerate(AU.columns):
        clips = clips.append_column(name, pa.array([int(k == 0)] * 2))
    write_clip_labels(tmp_path / "au.parquet", clips, AU)
    found = make_captions(texts, tmp_path / "c.parquet", from_labels=tmp_path / "au.parquet")
    rows = [(row["start"], row["end"], "inner brows" in row["caption"]) for row in rows_of(found)]
    assert rows == [(1, 9, True), (3, 9, True)]
    source = {"from_labels": tmp_path / "au.parquet", "clips": "runs"}
    with pytest.raises(RaffectError, match="is a table of clips already"):
        make_captions(texts, tmp_path / "d.parquet", **source)


def test_a_class_has_the_vector_of_its_zero_shot_classifier_and_other_is_left_out(texts, tmp_path):
    source = {"from_labels": texts / "labels" / "expr.parquet", "prompts": ("facs",)}
    found = make_captions(texts, tmp_path / "c.parquet", **source)
    table = read_labels(found.out)
    targets, task = read_targets(found.out, table), read_metadata(table)["task"]
    assert tuple(json.loads(task)["outputs"]) == EXPR.outputs[:7]
    encoder = open_text_encoder(embedded(), texts)
    classifier = build_classifier(prompts_for("facs", EXPR), encoder, "vectors", "rest")
    expected = unit(classifier.weight[:7])
    truth = read_labels(texts / "labels" / "expr.parquet").to_pylist()
    classes = {(row["video"], row["frame"]): row["expression"] for row in truth}
    for row in table.to_pylist():
        assert classes[row["video"], row["frame"]] == row["class"] < 7
        found_vector = targets.vectors[row["target"]].astype(np.float64)
        np.testing.assert_allclose(found_vector, expected[row["class"]], atol=1e-3)
    (other,) = found.facts.left_out
    assert other.what == "class Other, which has no prompt"
    assert other.rows == sum(value == 7 for value in classes.values()) == len(classes) - len(table)
    assert found.num_targets == 7


# The leak guard


@pytest.fixture(scope="module")
def two_people(tmp_path_factory):
    """Units of one split of the videos, expressions of another one, in a folder of `prepare`."""
    folder = tmp_path_factory.mktemp("people")
    videos = ("x", "x_left", "y_right", "y_left", "z", "left", "w_left_right", "v", "u")
    fill_bank(folder / "bank", make_manifest(dict.fromkeys(videos, 6)), identity=embedded())
    au = [row for name in videos[:7] for row in au_rows(name, "train")]
    au += [row for name in videos[7:] for row in au_rows(name, "validation", active=("AU4",))]
    write_rows(folder / "labels" / "au.parquet", AU, au, synthetic="true")
    judged = ("x_right", "y", "v", "w_left")
    expr = [row for name in judged for row in expr_rows(name, "validation")]
    expr += [row for name in ("z", "u") for row in expr_rows(name, "train")]
    write_rows(folder / "labels" / "expr.parquet", EXPR, expr)
    va = [{"video": "z", "frame": 1, "split": "validation", "valence": 0.0, "arousal": 0.0}]
    write_rows(folder / "labels" / "va.parquet", VA, va)
    return folder


def base(name):
    while (side := name.rpartition("_"))[2] in ("left", "right") and side[1]:
        name = side[0]
    return name


def test_no_video_that_validates_expressions_is_trained_on_whoever_of_its_people_it_shows(
    two_people, tmp_path
):
    labels = two_people / "labels"
    found = make_captions(two_people, tmp_path / "c.parquet", from_labels=labels / "au.parquet")
    validating = {
        row["video"]
        for row in read_labels(labels / "expr.parquet").to_pylist()
        if row["split"] == "validation"
    }
    trained = {row["video"] for row in rows_of(found) if row["split"] == "train"}
    assert not {base(name) for name in trained} & {base(name) for name in validating}
    assert trained == {"z", "left"}
    # What validates may do so again, and nothing of it is dropped
    assert {r["video"] for r in rows_of(found) if r["split"] == "validation"} == {"v", "u"}

    # How many were dropped stands in the lines and in the table
    assert (found.facts.guard.videos, found.facts.guard.rows) == (5, 30)
    assert found.facts.guard.tables == ("expr.parquet",)  # no text names what va.parquet holds
    line = "leak guard: 5 training videos (30 rows) left out, which are validation or test videos "
    assert f"{line}of expr.parquet" in found.lines()
    kept = read_metadata(pq.read_table(found.out))["captions"]
    assert CaptionFacts.from_json(kept, "", "") == found.facts


def test_the_guard_takes_tables_and_can_be_turned_off(two_people, tmp_path):
    labels = two_people / "labels"
    source = {"from_labels": labels / "au.parquet"}
    found = make_captions(two_people, tmp_path / "a.parquet", not_in=("none",), **source)
    assert found.splits == {"train": (42, 7), "validation": (12, 2)}
    assert "leak guard: off" in "\n".join(found.lines())
    tables = tuple(str(labels / name) for name in ("expr.parquet", "va.parquet"))
    found = make_captions(two_people, tmp_path / "b.parquet", not_in=tables, **source)
    assert {r["video"] for r in rows_of(found) if r["split"] == "train"} == {"left"}
    everything = [row for name in ("z", "left") for row in expr_rows(name, "validation")]
    more = write_rows(tmp_path / "more.parquet", EXPR, everything)
    tables = (str(labels / "expr.parquet"), str(more))
    with pytest.raises(
        RaffectError, match=r"all 7 training videos are validation or test videos of expr"
    ):
        make_captions(two_people, tmp_path / "c.parquet", not_in=tables, **source)


def test_no_video_that_another_table_tests_on_is_trained_on(two_people, tmp_path):
    labels = two_people / "labels"
    rows = [row for name in ("z_right", "w") for row in expr_rows(name, "test")]
    tested = write_rows(tmp_path / "tested.parquet", EXPR, [*rows, *expr_rows("x", "train")])
    source = {"from_labels": labels / "au.parquet", "not_in": (str(tested),)}
    found = make_captions(two_people, tmp_path / "c.parquet", **source)
    trained = {row["video"] for row in rows_of(found) if row["split"] == "train"}
    assert trained == {"x", "x_left", "y_right", "y_left", "left"}


def test_a_table_whose_splits_rows_do_not_have_guards_them(two_people, tmp_path):
    labels = two_people / "labels" / "expr.parquet"
    lines = ["x,lips parted", "z,jaw dropped", "u,brows raised"]
    source = {"table": tmp_path / "t.csv", "labels": labels}
    splits = ("train", "train", "val")
    text = "\n".join(f"{line},{split}" for line, split in zip(lines, splits, strict=True))
    (tmp_path / "t.csv").write_text(f"video,caption,split\n{text}")
    found = make_captions(two_people, tmp_path / "c.parquet", **source)
    assert found.facts.guard.tables == ("au.parquet", "expr.parquet")
    # x_right is a validation video there
    assert [(row["video"], row["split"]) for row in rows_of(found)] == [
        ("u", "validation"),
        ("z", "train"),
    ]

    # Splits that rows have from the table are its own
    (tmp_path / "t.csv").write_text("video,caption\nz,jaw dropped\nv,lips parted")
    found = make_captions(two_people, tmp_path / "d.parquet", **source)
    assert found.facts.guard.tables == ("au.parquet",)


def test_classes_are_judged_on_their_own_table_so_that_others_do_not_guard_them(
    two_people, tmp_path
):
    source = {"from_labels": two_people / "labels" / "expr.parquet"}
    found = make_captions(two_people, tmp_path / "c.parquet", **source)
    assert found.facts.guard.tables == ()
    found = make_captions(two_people, tmp_path / "d.parquet", not_in=("others",), **source)
    assert found.facts.guard.tables == ("au.parquet",)
    assert {r["video"] for r in rows_of(found) if r["split"] == "train"} == {"z"}


# Files


@pytest.mark.parametrize("source", ["au", "expr", "teacher", "table"])
def test_the_same_command_gives_the_same_bytes_and_another_seed_others(texts, tmp_path, source):
    lines = ["video,caption", *(f"v{k:02d},f {k}" for k in range(12))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    rows = read_labels(texts / "labels" / "au.parquet").to_pylist()[::8]
    few = write_rows(tmp_path / "au.parquet", AU, rows)
    more = {
        "au": {"from_labels": few},
        "expr": {"from_labels": texts / "labels" / "expr.parquet"},
        "teacher": {"teacher": texts / "bank", "labels": texts / "labels" / "expr.parquet"},
        "table": {"table": tmp_path / "t.csv", "validation_share": 0.5},
    }[source]
    contents = []
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        found = make_captions(texts, tmp_path / name / "c.parquet", seed=seed, **more)
        contents.append((found.out.read_bytes(), found.targets.read_bytes()))
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {"c.parquet", "c.targets.parquet"}


def test_a_table_of_labels_is_never_replaced_and_one_of_captions_may_be(texts, tmp_path):
    few = write_rows(
        tmp_path / "au.parquet", AU, read_labels(texts / "labels" / "au.parquet").to_pylist()[::8]
    )
    before = few.read_bytes()
    with pytest.raises(RaffectError, match="a table of labels is there"):
        make_captions(texts, few, from_labels=few)
    assert few.read_bytes() == before
    for _ in range(2):
        made = make_captions(texts, tmp_path / "c.parquet", from_labels=few)
    assert made.out.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "captions of none: expected one of --table, --from-labels and --teacher"),
        ("--table t.csv --teacher BANK", "captions of --table and --teacher: expected one"),
        ("--teacher BANK", "--teacher: needs --labels"),
        ("--table t.csv --clips runs", "--clips runs: makes clips of --from-labels alone"),
        ("--table t.csv --encoding hex", "--encoding hex: no encoding of text"),
        ("--table t.csv --not-in none others", "--not-in none others: expected others, none, or"),
        ("--table gone.csv", "--table gone.csv: not a readable table (No such file"),
        ("--table .", "not a readable table (not a regular file but a directory)"),
        ("--table bytes.csv", "not a readable table (a binary file; expected CSV, TSV or Parquet"),
        ("--table gbk.csv", "is of another encoding, name that with --encoding, such as gbk"),
        ("--table fake.parquet", "--table fake.parquet: not a readable table"),
        ("--table names.csv", "--table names.csv: no column video or caption; found a, b"),
        ("--table twice.csv", "column 'caption' is there twice"),
        ("--table half.csv", "columns start; expected start and end, or frame, or none"),
        ("--table ragged.csv", "Expected 2 columns, got 3"),
        ("--table empty.csv", "--table empty.csv: "),
        ("--table header.csv", "--table header.csv: it has no rows"),
        ("--table unknown.csv", "no row is left to learn from: 2 rows of 2 videos: videos that"),
        ("--table t.csv --validation-share 0.01", "--validation-share 0.01 of its videos leaves"),
        ("--table valid.csv", "--table valid.csv: no row trains; expected a split train"),
        ("--table t.csv --labels LABELS/no.parquet", "no such label table"),
        ("--from-labels LABELS/va.parquet", "task va is regression; captions are made of classes"),
        ("--from-labels LABELS/au.parquet --prompts photo", "--prompts photo: no prompt for AU1"),
        ("--from-labels LABELS/au.parquet --templates face", "template 'face': expected one {}"),
        (
            "--from-labels LABELS/expr.parquet --prompts facs photo",
            "--prompts facs photo: a class has the mean vector of one prompt set",
        ),
        ("--from-labels LABELS/au.parquet --not-in no.parquet", "no.parquet: no such label table"),
        ("--teacher other --labels LABELS/expr.parquet", "other: has none of the 360 rows"),
        ("--teacher zeros --labels LABELS/expr.parquet", "are not finite, or all 0"),
        ("--teacher gone --labels LABELS/expr.parquet", "gone: no bank there"),
        ("--table both.csv --bank other", "other: texts need the weights that made it"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    texts, tmp_path, monkeypatch, capsys, words, line
):
    monkeypatch.chdir(tmp_path)
    contents = {
        "t.csv": b"video,caption\nv00,lips parted\nv01,jaw dropped\n",
        "bytes.csv": bytes(range(256)) * 9,
        "gbk.csv": "video,caption\nv00,她皱着眉头\n".encode("gbk"),
        "fake.parquet": b"PAR1 and no more",
        "names.csv": b"a,b\n1,2\n",
        "twice.csv": b"video,caption,caption\nv00,x,y\n",
        "half.csv": b"video,start,caption\nv00,1,x\n",
        "ragged.csv": b"video,caption\nv00,lips, parted\n",
        "empty.csv": b"",
        "header.csv": b"video,caption\n",
        "unknown.csv": b"video,caption\nw,x\nu,y\n",
        "both.csv": b"video,caption,split\nv00,x,train\nv01,y,val\n",
        "valid.csv": b"video,caption,split\nv00,x,val\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    if "other" in words:
        make_teacher(tmp_path / "other", {"w": 3} if "--teacher" in words else {"v00": 3, "v01": 3})
    if "zeros" in words:
        bank = Bank(tmp_path / "zeros")
        bank.extend_plan(make_manifest({"v00": 9}), 32)
        bank.claim(IDENTITY)
        bank.commit(0, bank.plan.rows(0), np.zeros((9, 6), np.float16), {}, IDENTITY)
    words = words.replace("BANK", str(texts / "bank")).replace("LABELS", str(texts / "labels"))
    bank = ["--bank", str(texts / "bank")] * ("--bank" not in words)
    before = set(tmp_path.iterdir())
    assert main(["captions", *bank, "--out", "out.parquet", *words.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("raffect captions: ")
    assert line in error
    assert set(tmp_path.iterdir()) == before
