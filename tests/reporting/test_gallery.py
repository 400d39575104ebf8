"""The gallery: the frames that cost most, as a plain loop finds them, with their own pictures."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.errors import RaffectError
from raffect.predictions import table
from raffect.predictions.columns import as_table
from raffect.predictions.table import write_predictions
from raffect.reporting import hardest
from raffect.reporting.gallery import write_gallery
from tests.helpers.scenes import TASKS, decide, facts_of


def draw_scores(rows: int) -> dict[str, np.ndarray]:
    """Probabilities and values at random."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (rows, 8))
    return {
        "expr": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        "au": rng.uniform(0.01, 0.99, (rows, 12)),
        "va": rng.uniform(-1, 1, (rows, 2)),
    }


@pytest.fixture(scope="module")
def predictions(prepared, tmp_path_factory) -> Path:
    """A table of predictions of the drawn data set at random."""
    manifest = read_manifest(prepared)
    frames = pa.table(
        {
            "video": manifest["video"].cast(pa.string()),
            "frame": manifest["frame"],
            "status": pa.repeat("ok", len(manifest)),
        }
    )
    scores = draw_scores(len(manifest))
    predicted = {task.name: decide(task, scores[task.name]) for task in TASKS}
    out = tmp_path_factory.mktemp("gallery") / "predictions.parquet"
    with write_predictions(out, facts_of()) as writer:
        writer.write(as_table(frames, predicted, TASKS, "model"))
    return out


def losses(prepared: Path, split: str) -> dict[tuple[str, str], list[tuple[float, str, int]]]:
    """Loss, video and frame of every labelled frame by task and output, by a loop."""
    manifest = read_manifest(prepared)
    scores = {name: array.astype(np.float32) for name, array in draw_scores(len(manifest)).items()}
    keys = list(zip(manifest["video"].to_pylist(), manifest["frame"].to_pylist(), strict=True))
    place = {key: k for k, key in enumerate(keys)}
    found: dict[tuple[str, str], list] = {}
    for task in TASKS:
        for row in read_labels(prepared / "labels" / f"{task.name}.parquet").to_pylist():
            k = place.get((row["video"], row["frame"]))
            if k is None or row["split"] != split:
                continue
            p = scores[task.name][k]
            if task is EXPR:
                costs = [(row["expression"], -np.log(p[row["expression"]]))]
            elif task is AU:
                labels = [row[name] for name in AU.outputs]
                costs = [
                    (j, -np.log(p[j] if y else 1 - p[j])) for j, y in enumerate(labels) if y >= 0
                ]
            else:
                values = [row["valence"], row["arousal"]]
                costs = [(j, (p[j] - y) ** 2) for j, y in enumerate(values) if y >= -1]
            for j, cost in costs:
                if row.get("expression", 0) >= 0:
                    key = (task.name, task.outputs[j])
                    found.setdefault(key, []).append((float(cost), *keys[k]))
    return found


def greedy(rows: list[tuple[float, str, int]], most: int) -> list[tuple[str, int]]:
    """The highest ones: of a second one, of a video three."""
    seconds, videos, chosen = set(), {}, []
    for _, video, frame in sorted(rows, key=lambda row: -row[0]):
        if (video, frame // hardest.ALIKE) in seconds:
            continue
        seconds.add((video, frame // hardest.ALIKE))
        videos[video] = videos.get(video, 0) + 1
        if videos[video] <= hardest.PER_VIDEO:
            chosen.append((video, frame))
    return chosen[:most]


@pytest.mark.parametrize("rows_a_part", [100_000, 37])
def test_the_frames_of_a_gallery_cost_most(prepared, predictions, monkeypatch, rows_a_part):
    # However many rows are read at once
    monkeypatch.setattr(table, "ROWS", rows_a_part)
    from raffect.reporting.truth import Truth

    found = hardest.find_hardest(predictions, Truth(prepared, TASKS, "validation"))
    expected = losses(prepared, "validation")
    assert {(hard.task, hard.output) for hard in found} == set(expected)
    for (task, output), rows in expected.items():
        own = [hard for hard in found if (hard.task, hard.output) == (task, output)]
        assert [(hard.video, hard.frame) for hard in own] == greedy(rows, 12)
        cost = {(video, frame): loss for loss, video, frame in rows}
        for hard in own:
            assert hard.loss == pytest.approx(cost[hard.video, hard.frame], rel=1e-4)


def test_a_gallery_shows_each_frames_own_picture_and_says_that_it_holds_faces(
    prepared, predictions, tree, tmp_path
):
    root = tree / "cropped_aligned"
    done = write_gallery(predictions, prepared, (root,), "validation", tmp_path)
    text = done.html.read_text()
    assert "This page holds pictures of faces" in text
    assert "it holds pictures of faces" in done.lines()[0]
    assert "drawn faces" in text
    rows = list(csv.DictReader(done.csv.open()))
    figures = re.findall(
        r'<figure><img src="data:image/jpeg;base64,([^"]*)"[^>]*><figcaption>'
        r"<b>([^<]*)</b> frame (\d+)",
        text,
    )
    assert len(figures) == len(rows) == done.frames > 100
    for (picture, video, frame), row in zip(figures, rows, strict=True):
        assert (video, frame) == (row["video"], row["frame"])
        with Image.open(root / video / f"{int(frame):05}.jpg") as image:
            expected = np.asarray(image.convert("RGB"), int)
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            shown = np.asarray(image.convert("RGB"), int)
        assert np.abs(shown - expected).mean() < 8


def test_a_gallery_reads_pictures_through_a_manifest_and_names_those_that_lack(
    prepared, predictions, tmp_path
):
    done = write_gallery(predictions, prepared, (prepared,), "validation", tmp_path / "a")
    assert done.without_picture == 0
    (tmp_path / "empty" / "v").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "v" / "00001.jpg")
    done = write_gallery(predictions, prepared, (tmp_path / "empty",), "", tmp_path / "b")
    assert done.without_picture == done.frames
    assert done.html.read_text().count("not below --images") == done.frames


def test_predictions_of_other_frames_than_the_labels_are_one_line(prepared, tmp_path):
    frames = pa.table(
        {"video": ["elsewhere"], "frame": pa.array([1], pa.int32()), "status": ["ok"]}
    )
    predicted = {"va": decide(VA, np.zeros((1, 2)))}
    out = tmp_path / "p.parquet"
    with write_predictions(out, facts_of((VA,))) as writer:
        writer.write(as_table(frames, predicted, (VA,), "model"))
    with pytest.raises(RaffectError, match="no frame of it of split validation has a label"):
        write_gallery(out, prepared, (prepared,), "validation", tmp_path)
    with pytest.raises(RaffectError, match=r"no label table of va; see `raffect prepare`"):
        write_gallery(out, prepared / "labels" / "au.parquet", (prepared,), "", tmp_path)
