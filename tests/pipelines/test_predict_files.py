"""`raffect predict` on a drawn video, from the file to what there is to look at."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from PIL import Image

import raffect
from raffect.cli import main
from raffect.config import EncoderConfig, ExtractConfig
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.datasets.synthetic.video import write_video
from raffect.extraction.extract import extract
from raffect.predictions.table import read_facts, read_predictions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def heads(prepared, tmp_path_factory, local_ray) -> tuple[Path, Path]:
    """Runs of EXPR and AU on features of the embedded encoder."""
    folder = tmp_path_factory.mktemp("heads")
    encoder = EncoderConfig(model="raffect-faces")
    extract(ExtractConfig(manifest=prepared, bank=folder / "bank", encoder=encoder))
    for task in ("expr", "au"):
        words = ["--bank", str(folder / "bank"), "--labels", str(prepared), "--task", task]
        assert main(["train", "erm", *words, "--out", str(folder / task), "--epochs", "3"]) == 0
    return folder / "expr", folder / "au"


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Two seconds of a drawn person; beside it its boxes, of which a few frames have none."""
    path = tmp_path_factory.mktemp("video") / "person.mp4"
    write_video(path, 2.0, seed=1)
    boxes = path.with_name("boxes.csv")
    lines = path.with_name("person.mp4.boxes.csv").read_text().splitlines()
    boxes.write_text(
        "\n".join(line for line in lines if line.split(",")[1] not in ["10", "11", "12"])
    )
    return path


def words_of(heads, video, out) -> list[str]:
    boxes = str(video.with_name("boxes.csv"))
    runs = [str(head) for head in heads]
    return [str(video), "--head", *runs, "--out", str(out), "--boxes", boxes, "--allow-embedded"]


@pytest.fixture(scope="module")
def out(heads, video, tmp_path_factory) -> Path:
    """What one command wrote."""
    folder = tmp_path_factory.mktemp("predict") / "out"
    assert main(["predict", *words_of(heads, video, folder)]) == 0
    return folder


def test_one_command_makes_table_overlay_and_pages_and_leaves_no_crop(out, video):
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert made == {
        "predictions.parquet",
        "csv/person.csv",
        "overlay/person.mp4",
        "pages/person.html",
        "previews/person.jpg",
        "index.html",
    }
    with av.open(str(video)) as before, av.open(str(out / "overlay" / "person.mp4")) as after:
        num_frames = sum(1 for _ in before.decode(video=0))
        assert sum(1 for _ in after.decode(video=0)) == num_frames
        assert len(after.streams.audio) == 1
    rows = read_predictions(out / "predictions.parquet").to_pylist()
    assert sorted({row["frame"] for row in rows}) == list(range(1, num_frames + 1))
    for row in rows:
        if row["status"] == "ok":
            assert sum(row[f"p_{name}"] for name in EXPR.outputs) == pytest.approx(1, abs=1e-5)
            assert {row[name] for name in AU.outputs} <= {0, 1}
            assert row["w"] > 100
        else:
            assert row["expr"] is None
    facts = read_facts(out / "predictions.parquet")
    assert set(facts.caveats) == {"embedded encoder, not CLIP", "drawn faces"}
    for page in ("index.html", "pages/person.html"):
        text = (out / page).read_text()
        assert "embedded encoder, not CLIP; drawn faces" in text
        assert str(video.parent) not in text, "pages are handed on, and folders are private"
    assert "boxes of boxes.csv" in (out / "index.html").read_text()


def test_the_csv_of_an_input_holds_its_rows(out):
    with (out / "csv" / "person.csv").open() as file:
        found = list(csv.DictReader(file))
    table = read_predictions(out / "predictions.parquet")
    assert len(found) == len(table)
    assert list(found[0]) == table.column_names
    for row, before in zip(found, table.to_pylist(), strict=True):
        assert row["expr"] == (before["expr"] or "")
        assert row["AU12"] == ("" if before["AU12"] is None else str(before["AU12"]))


def test_a_frame_is_predicted_as_its_crop_in_a_bank_is(heads, video, out, tmp_path):
    # The same three commands by hand
    boxes = ["--boxes", str(video.with_name("boxes.csv"))]
    faces, bank = tmp_path / "faces", tmp_path / "bank"
    assert main(["faces", str(video), "--out", str(faces), *boxes]) == 0
    encoder = ["--encoder.model", "raffect-faces", "--allow-embedded"]
    assert main(["extract", "--manifest", str(faces), "--bank", str(bank), *encoder]) == 0
    table = tmp_path / "p.parquet"
    words = ["--bank", str(bank), "--head", *map(str, heads), "--out", str(table)]
    assert main(["predict", *words]) == 0
    by_hand = {(row["video"], row["frame"]): row for row in read_predictions(table).to_pylist()}
    rows = read_predictions(out / "predictions.parquet").to_pylist()
    ok = [row for row in rows if row["status"] == "ok"]
    assert len(ok) > 30
    for row in ok:
        assert row["p_Anger"] == by_hand[row["video"], row["frame"]]["p_Anger"]


def test_python_gives_a_data_frame_and_leaves_nothing(heads, video, out, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    boxes = video.with_name("boxes.csv")
    result = raffect.predict(video, head=heads, boxes=boxes, allow_embedded=True)
    expected = read_predictions(out / "predictions.parquet")
    assert result.to_pandas().equals(expected.to_pandas())
    assert list(tmp_path.glob("raffect-*")) == []


def test_heads_of_the_embedded_encoder_are_refused_before_anything_is_written(
    heads, video, tmp_path, capsys
):
    words = words_of(heads, video, tmp_path / "out")[:-1]
    assert main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert "has never seen a photograph" in error
    assert "pass --allow-embedded" in error
    assert not (tmp_path / "out").exists()


def test_boxes_of_another_video_are_refused_before_anything_is_written(
    heads, video, tmp_path, capsys, monkeypatch
):
    other = tmp_path / "other.mp4"
    other.write_bytes(video.read_bytes())
    monkeypatch.setattr("raffect.pipelines.predict_files.ray_session", lambda _: 1 / 0)
    words = words_of(heads, video, tmp_path / "out")
    assert main(["predict", str(other), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert f"expected 'other.mp4' for {other}; it names 'person.mp4'" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_table_without_any_face_has_the_caveats_of_its_heads_too(heads, tmp_path):
    picture, boxes = tmp_path / "wall.png", tmp_path / "none.csv"
    Image.new("RGB", (64, 64)).save(picture)
    boxes.write_text("input,frame,x,y,w,h\nwall.png,1,,,,\n")
    settings = {"boxes": boxes, "allow_embedded": True, "overlay": False}
    result = raffect.predict(picture, head=heads, **settings)
    assert dict(result.statuses) == {"no_face": 1}
    assert result.facts.caveats == ("embedded encoder, not CLIP", "drawn faces")


def test_inputs_that_cannot_be_read_have_a_row_and_a_reason(heads, video, tmp_path, capsys):
    # In a folder with results of an earlier run, which are no inputs
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 99)
    (tmp_path / "notes.txt").write_text("no input")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "out" / "previews").mkdir(parents=True)
    (tmp_path / "out" / "previews" / "old.jpg").write_bytes(b"a picture")
    words = words_of(heads, video, tmp_path / "out")
    assert main(["predict", str(tmp_path), *words, "--keep", "--no-overlay"]) == 0
    text = capsys.readouterr().out
    assert "problem: broken.mp4: not a video" in text
    assert f"ignored among the inputs: 1 .txt files ({tmp_path / 'notes.txt'})" in text
    assert f"problem: {tmp_path / 'loop'}: link to a folder that it lies in, left out" in text
    assert "kept " in text
    rows = read_predictions(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["status"] for row in rows if "broken" in row["input"]] == ["unreadable"]
    assert {Path(row["input"]).name for row in rows} == {"broken.mp4", video.name}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "broken.mp4" in page
    assert len(list((tmp_path / "out").glob(".scratch-*/faces/manifest.parquet"))) == 1
    assert not (tmp_path / "out" / "overlay").exists()


@pytest.mark.parametrize("moment", ["faces/manifest.parquet", "bank/commits/*.json"])
def test_killed_midway_and_run_again_leaves_the_same_bytes(heads, video, out, tmp_path, moment):
    words = words_of(heads, video, tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": str(Path(raffect.__file__).parents[1])}
    command = [sys.executable, "-m", "raffect", "predict", *words]
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 400
    while not list((tmp_path / "out").glob(f".scratch-*/{moment}")):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(list((tmp_path / "out").glob(".scratch-*"))) == 1
    assert not (tmp_path / "out" / "index.html").exists()

    # The same command goes on, and nothing of the first run is left
    assert main(["predict", *words]) == 0
    assert list((tmp_path / "out").glob(".*")) == []
    for path in out.rglob("*.*"):
        again = tmp_path / "out" / path.relative_to(out)
        if path.suffix == ".parquet":
            assert read_predictions(again).equals(read_predictions(path))
        elif path.is_file():
            assert again.read_bytes() == path.read_bytes(), path.name
