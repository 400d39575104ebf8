"""Captions of a user: one table in every encoding, and what is left out of it, counted."""

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raffect.bank.format import Bank
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import read_labels
from raffect.datasets.targets import read_targets
from raffect.encoders.tower import build_model
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError
from raffect.runs.data import open_dataset
from raffect.storage.tables import read_metadata, write_table
from tests.helpers.banks import TINY, fill_bank, make_manifest
from tests.helpers.caption_tables import (
    make_captions,
    rows_of,
    write_rows,
)
from tests.helpers.texts import LENGTH, embedded, unit

# A user's table


LINES = [
    ["video", "start", "end", "caption", "split", "note"],
    ["v00", "1", "9", "微笑, a face with cheeks raised", "Training", ""],
    ["v01", "3.0", "12.00", "  lips\u3000 parted ", "train", "x"],
    ["v02", "1", "30", "lips parted", "val", ""],
]


def as_text(lines, delimiter=","):
    quoted = [[f'"{cell}"' if "," in cell else cell for cell in line] for line in lines]
    return "\n".join(delimiter.join(line) for line in quoted) + "\n"


@pytest.mark.parametrize("drawn", ["true", "false"])
def test_captions_that_prepare_wrote_of_drawn_faces_say_so_without_labels(texts, tmp_path, drawn):
    columns = dict(zip(LINES[0], zip(*LINES[1:], strict=True), strict=True))
    table = pa.table({name: list(columns[name]) for name in ("video", "caption", "split")})
    about = {"raffect": "captions/1", "synthetic": drawn}
    write_table(table, tmp_path / "captions.parquet", about)
    found = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "captions.parquet")
    assert ("drawn faces" in found.caveat.split("; ")) == (drawn == "true")
    assert "captions of" not in found.caveat
    # Heads that are trained on it say so as well
    assert read_metadata(read_labels(found.out)).get("synthetic", "false") == drawn


def test_scores_of_heads_that_learnt_from_captions_of_a_user_say_so(texts, tmp_path):
    (tmp_path / "mine.csv").write_text(as_text(LINES))
    caveat = "captions of mine.csv, not checked"
    found = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "mine.csv")
    assert f"caveat: {found.caveat}" in found.lines()
    assert found.caveat.split("; ")[-1] == caveat
    # What every result of a head that is trained on it says
    facts = open_dataset(texts / "bank", found.out).facts
    assert facts.caveats[-1] == facts.trained_caveats[-1] == caveat
    # Captions that raffect makes of labels have no such source
    labels = texts / "labels" / "au.parquet"
    made = make_captions(texts, tmp_path / "d.parquet", from_labels=labels)
    assert "captions of" not in made.caveat + open_dataset(texts / "bank", made.out).facts.caveat


def test_a_table_is_the_same_in_every_encoding_and_format(texts, tmp_path):
    utf8, tabs = as_text(LINES).encode(), as_text(LINES, "\t")
    files = {
        "plain.csv": (utf8, "utf-8"),
        "bom.csv": (b"\xef\xbb\xbf" + utf8, "utf-8"),
        "dos.csv": (utf8.replace(b"\n", b"\r\n"), "UTF8"),
        "mac.csv": (utf8.replace(b"\n", b"\r"), "utf-8"),
        "mafw.txt": (tabs.encode("gbk"), "gbk"),
        "two.tsv": (tabs.encode("utf-16"), "utf-16"),
    }
    found = {}
    for name, (content, encoding) in files.items():
        (tmp_path / name).write_bytes(content)
        found[name] = make_captions(
            texts, tmp_path / "c.parquet", table=tmp_path / name, encoding=encoding
        )
    columns = dict(zip(LINES[0], zip(*LINES[1:], strict=True), strict=True))
    columns = {name: list(cells) for name, cells in columns.items()}
    columns |= {"start": [1, 3, 1], "end": [9.0, 12.0, 30.0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found["t.parquet"] = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "t.parquet")
    first, *others = found.values()
    assert all(other.table.equals(first.table) for other in others)
    assert all(list(other.captions) == list(first.captions) for other in others)
    names = ("video", "start", "end", "caption", "split")
    assert [tuple(row[name] for name in names) for row in rows_of(first)] == [
        ("v00", 1, 9, "微笑, a face with cheeks raised", "train"),
        ("v01", 3, 12, "lips parted", "train"),
        ("v02", 1, 30, "lips parted", "validation"),
    ]
    assert first.num_targets == 2


def test_what_a_table_has_wrong_is_left_out_and_counted_by_reason(texts, tmp_path):
    lines = [
        "frame,video,caption,split",
        "1,v00,lips parted,train",
        "2,v00,,train",
        "3,v00,   ,train",
        "4,nobody,lips parted,train",
        "5,,lips parted,train",
        "zero,v00,lips parted,train",
        "-3,v00,lips parted,train",
        "1,v00,jaw dropped,train",
        "6,v00,jaw dropped,future",
        "31,v00,jaw dropped,train",
        "7,v02,jaw dropped,val",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "t.csv")
    counts = {part.what: (part.rows, part.first) for part in found.facts.left_out}
    assert counts == {
        "no caption": (2, "line 3"),
        "no video": (1, "line 6"),
        "videos that the bank does not have, check their names": (1, "line 5"),
        "a frame number that is not a whole number from 1": (2, "line 7"),
        "clips that an earlier row has too, of which the first caption counts": (1, "line 9"),
        "a split other than train, validation or test": (1, "line 10"),
        "frames that the bank does not have": (1, "line 11"),
    }
    text = "\n".join(found.lines())
    assert all(f"{what} (first: {first})" in text for what, (_, first) in counts.items())
    assert len(found.table) == 2


def test_a_caption_without_frames_is_of_the_whole_video(texts, tmp_path):
    (tmp_path / "t.csv").write_text("video,caption\nv00,lips parted\nv02,jaw dropped\n")
    source = {"table": tmp_path / "t.csv", "labels": texts / "labels" / "expr.parquet"}
    found = make_captions(texts, tmp_path / "c.parquet", **source)
    rows = [(r["video"], r["start"], r["end"], r["split"]) for r in rows_of(found)]
    assert rows == [("v00", 1, LENGTH, "train"), ("v02", 1, LENGTH, "validation")]


def test_videos_take_the_split_and_group_that_a_label_table_gives_them(texts, tmp_path):
    rows = [
        {"video": name, "frame": 1, "split": split, "group": group, "expression": 0}
        for name, split, group in (("v03", "train", "anna"), ("v01", "validation", "otto"))
    ]
    labels = write_rows(tmp_path / "own.parquet", EXPR, rows, groups="subjects")
    text = "video,frame,caption\nv03,1,lips parted\nv01,2,lips parted\nv02,1,lips parted\n"
    (tmp_path / "t.csv").write_text(text)
    source = {"table": tmp_path / "t.csv", "labels": labels}
    found = make_captions(texts, tmp_path / "c.parquet", **source)
    assert [(r["video"], r["split"], r["group"]) for r in rows_of(found)] == [
        ("v01", "validation", "otto"),
        ("v03", "train", "anna"),
    ]
    assert [part.what for part in found.facts.left_out] == ["videos without a split in own.parquet"]
    assert read_metadata(pq.read_table(found.out))["groups"] == "subjects"
    write_rows(labels, EXPR, [*rows, rows[0] | {"split": "validation"}])
    with pytest.raises(RaffectError, match="1 videos have two splits or groups"):
        make_captions(texts, tmp_path / "d.parquet", **source)


@pytest.mark.parametrize("column", ["", "train"])
def test_whole_groups_are_held_out_where_nothing_validates(texts, tmp_path, column):
    lines = [
        f"v{k:02d},{frame},face {k},g{k // 2},{column}" for k in range(12) for frame in range(1, 5)
    ]
    names = ["video,frame,caption,group", "split"]
    text = "\n".join([",".join(names[: 1 + bool(column)]), *lines])
    (tmp_path / "t.csv").write_text(text if column else text.replace(",\n", "\n").rstrip(","))
    source = {"table": tmp_path / "t.csv", "validation_share": 0.4}
    parts = []
    for seed in range(3):
        found = make_captions(texts, tmp_path / "c.parquet", seed=seed, **source)
        by_group: dict[str, set[str]] = {}
        for row in rows_of(found):
            by_group.setdefault(row["group"], set()).add(row["split"])
        assert all(len(splits) == 1 for splits in by_group.values())
        assert set().union(*by_group.values()) == {"train", "validation"}
        parts.append([name for name, splits in by_group.items() if "validation" in splits])
        assert "dealt by group, 0.4 held out" in "\n".join(found.lines())
    assert any(part != parts[0] for part in parts)


def test_two_people_of_a_video_are_held_out_together(tmp_path):
    videos = [f"v{k}{side}" for k in range(8) for side in ("", "_left", "_right")]
    fill_bank(tmp_path / "bank", make_manifest(dict.fromkeys(videos, 2)), identity=embedded())
    lines = [f"{name},face {k}" for k, name in enumerate(videos)]
    (tmp_path / "t.csv").write_text("\n".join(["video,caption", *lines]))
    source = {"table": tmp_path / "t.csv", "validation_share": 0.5}
    found = make_captions(tmp_path, tmp_path / "c.parquet", **source)
    by_video: dict[str, set[str]] = {}
    for row in rows_of(found):
        by_video.setdefault(row["video"].partition("_")[0], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_video.values())
    assert found.in_both == 0


def test_two_people_of_a_video_in_two_splits_are_a_caveat(tmp_path):
    videos = ("a_left", "a_right", "b", "b_left", "c", "d", "d_left")
    splits = ("train", "val", "test", "val", "train", "test", "train")
    fill_bank(tmp_path / "bank", make_manifest(dict.fromkeys(videos, 2)), identity=embedded())
    pairs = zip(videos, splits, strict=True)
    lines = [f"{name},face {k},{split}" for k, (name, split) in enumerate(pairs)]
    (tmp_path / "t.csv").write_text("\n".join(["video,caption,split", *lines]))
    found = make_captions(tmp_path, tmp_path / "c.parquet", table=tmp_path / "t.csv")
    assert found.in_both == 2
    assert any(line.startswith("caveat: 2 videos are in train and") for line in found.lines())


def test_a_video_that_trains_and_validates_is_a_caveat(texts, tmp_path):
    text = "video,frame,caption,split\nv00,1,lips parted,train\nv00,2,lips parted,val\n"
    (tmp_path / "t.csv").write_text(text)
    found = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "t.csv")
    line = "caveat: 1 videos are in train and in a split that is judged, so scores are optimistic"
    assert line in found.lines()


def test_frames_that_are_not_extracted_yet_wait(texts, tmp_path):
    manifest = make_manifest({"a": 16, "b": 16})
    bank = Bank(tmp_path / "bank")
    plan = bank.extend_plan(manifest, 16)
    bank.claim(embedded())
    bank.commit(0, plan.rows(0), np.ones((16, embedded().dim), np.float16), {}, embedded())
    lines = "a,1,8,lips parted,train\na,9,16,jaw dropped,train\nb,1,2,lips parted,val\n"
    (tmp_path / "t.csv").write_text(f"video,start,end,caption,split\n{lines}")
    found = make_captions(tmp_path, tmp_path / "c.parquet", table=tmp_path / "t.csv")
    assert (len(found.table), found.waiting) == (3, 1)
    assert any(line.startswith("waiting: 1 clips are not extracted") for line in found.lines())


def test_a_damaged_table_is_one_line_whatever_its_bytes(texts, tmp_path):
    whole, rng = as_text(LINES).encode(), np.random.default_rng(0)
    file, read = tmp_path / "t.csv", 0
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 6)).tolist():
            content[place] = rng.choice([0, 10, 13, 34, 44, 9, 255, 65, rng.integers(256)])
        cut = rng.choice([len(content), rng.integers(1, len(content))])
        file.write_bytes(content[:cut])
        try:
            found = make_captions(texts, tmp_path / "c.parquet", table=file, truncate=True)
        except RaffectError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            read_targets(found.out, read_labels(found.out))
    assert 0 < read < 60


HEAD = "video,start,end,caption,split\n"
LATE = HEAD + "v00,9,1,lips parted,train\nv02,1,9,jaw dropped,val\n"
UNKNOWN = HEAD + "nobody,1,9,lips parted,val\nv00,1,9,jaw dropped,train\n"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "t.csv",
            LATE.encode(),
            "no row trains; expected a split train; left out before: 1 row of 1 video: clips that "
            "end before they start (first: line 2)",
        ),
        ("t.csv", UNKNOWN.encode(), "or give splits; left out before: 1 row of 1 video: videos"),
        ("t.csv", LATE.replace(",", "\t").encode(), "cells of .csv are parted by commas"),
        ("t.txt", LATE.encode(), "cells of .txt are parted by tabs"),
        ("t.csv", LATE.encode("utf-16"), "a binary file; .*, or --encoding utf-16 for text that"),
    ],
    ids=["late", "unknown", "tabs", "commas", "utf-16"],
)
def test_a_table_that_cannot_be_used_says_what_is_wrong_with_its_rows(
    texts, tmp_path, name, content, line
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RaffectError, match=line.replace("(", r"\(").replace(")", r"\)")):
        make_captions(texts, tmp_path / "c.parquet", table=tmp_path / name)
    assert not (tmp_path / "c.parquet").exists()


def test_no_character_of_a_caption_reaches_a_terminal_as_a_command(texts, tmp_path):
    rows = "v00,1,lips \x1b[31mparted,train\nv02,1,jaw dropped,val\n"
    (tmp_path / "t.csv").write_text("video,frame,caption,split\n" + rows)
    found = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "t.csv")
    assert any(line.endswith(r"lips \x1b[31mparted") for line in found.lines())
    assert all(line.isprintable() for line in found.lines())
    assert "lips \x1b[31mparted" in found.captions


# Captions that are too long


def test_a_long_caption_is_refused_or_cut_as_clip_cuts_it(texts, tmp_path):
    long = "a face with " + "cheeks raised, " * 40
    rows = [f'v00,1,"{long}",train', f'v00,2,"{long} b",train', "v02,1,lips parted,val"]
    (tmp_path / "t.csv").write_text("video,frame,caption,split\n" + "\n".join(rows))
    with pytest.raises(RaffectError, match=r"2 of 3 captions have more tokens than the 48 .*first"):
        make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "t.csv")
    assert not (tmp_path / "c.parquet").exists()
    found = make_captions(texts, tmp_path / "c.parquet", table=tmp_path / "t.csv", truncate=True)
    assert found.facts.truncated == 2
    assert "cut: 2 captions had more tokens than the model reads" in found.lines()

    # CLIP's own way: the first tokens, the last of them the end
    tokenizer, model = open_clip.get_tokenizer(TINY.model), build_model(resolve(TINY)).eval()
    ids = [tokenizer.sot_token_id, *tokenizer.encode(long.strip()), tokenizer.eot_token_id][:48]
    ids[-1] = tokenizer.eot_token_id
    with torch.inference_mode():
        expected = unit(model.encode_text(torch.tensor([ids])).double().numpy())[0]
    row = next(row for row in rows_of(found) if row["frame"] == 1)
    vector = read_targets(found.out, read_labels(found.out)).vectors[row["target"]]
    np.testing.assert_allclose(vector.astype(np.float64), expected, atol=1e-3)
