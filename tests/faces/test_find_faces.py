"""`raffect faces` from inputs to manifest: against the drawn truth, resumed, and on any file."""

import io
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from raffect.cli import main
from raffect.config import ExtractConfig, FacesConfig
from raffect.config.encoders import EncoderConfig
from raffect.datasets.frames import read_frames
from raffect.datasets.manifest import read_manifest
from raffect.errors import RaffectError
from raffect.extraction import face_units
from raffect.extraction.extract import extract
from raffect.extraction.find_faces import find_faces
from raffect.faces import work
from raffect.faces.table import SCHEMA, read_faces
from raffect.storage.tables import write_csv
from tests.helpers.videos import moving_faces, write_sound, write_video

PICTURES, BOXES = moving_faces(90)
GREY = [np.full((96, 192, 3), 128, np.uint8)] * 10
pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_video(folder / "clip.mp4", PICTURES)
    write_csv(folder / "boxes.csv", [{"input": "clip.mp4", **box} for box in BOXES])
    return folder


def config_of(clip, out, **changes):
    given = {"inputs": (clip / "clip.mp4",), "boxes": clip / "boxes.csv", "margin": 0.0}
    return FacesConfig(out=out, **{**given, "smooth": 0, "segment_frames": 20, **changes})


@pytest.fixture(scope="module")
def found(clip, tmp_path_factory, local_ray):
    return find_faces(config_of(clip, tmp_path_factory.mktemp("faces") / "out"))


def files_of(folder):
    """Bytes of all files below a folder, but for notes that say when."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def test_every_face_of_a_drawn_video_is_a_row_with_its_box_and_time(found):
    faces = found.to_pandas()
    assert list(faces.columns) == SCHEMA.names
    # Person 2 is hidden for 15 frames, and comes back as a new track: nobody knows that it is her
    expected = {(box["frame"], box["x"], box["y"]) for box in BOXES}
    assert set(zip(faces.frame, faces.x, faces.y, strict=True)) == expected
    assert faces.timestamp_s.to_numpy() == pytest.approx((faces.frame - 1) / 25)
    spans = faces.groupby("video").frame.agg(["min", "max", "count"])
    assert spans.loc["clip_face1"].tolist() == [1, 90, 90]
    assert spans.loc["clip_face2"].tolist() == [1, 30, 30]
    assert spans.loc["clip_face3"].tolist() == [46, 90, 45]
    assert set(faces.status) == {"ok"}
    assert found.counts == {"ok": len(BOXES)}
    (facts,) = found.inputs
    assert (facts.frames, facts.faces, facts.width, facts.height) == (90, 3, 192, 96)


def test_crops_show_the_faces(found):
    manifest = read_manifest(found.manifest)
    assert len(manifest) == found.crops == len(BOXES)
    faces = {(row["video"], row["frame"]): row for row in read_faces(found.faces).to_pylist()}
    rows = manifest.to_pylist()
    for row, crop in zip(rows, read_frames(manifest), strict=True):
        box = faces[row["video"], row["frame"]]
        x, y, side = int(box["x"]), int(box["y"]), int(box["w"])
        drawn = Image.fromarray(PICTURES[row["frame"] - 1][y : y + side, x : x + side])
        expected = np.asarray(drawn.resize((112, 112), Image.Resampling.BICUBIC))
        # H.264 and JPEG change colours somewhat
        assert np.abs(crop.astype(int) - expected).mean() < 12


@pytest.mark.cluster
def test_extract_reads_the_crops(found, tmp_path):
    encoder = EncoderConfig(model="raffect-faces")
    bank = ExtractConfig(
        manifest=found.manifest, bank=tmp_path / "b", encoder=encoder, allow_embedded=True
    )
    assert extract(bank).rows == len(BOXES)


def test_the_sheet_shows_crops_and_is_as_small_as_they_are(found):
    with Image.open(found.sheet) as sheet:
        assert sheet.size == (8 * 116 + 4, 6 * 116 + 4)


def test_segments_joined_are_the_video_in_one_piece(clip, found, tmp_path):
    whole = find_faces(config_of(clip, tmp_path / "whole", segment_frames=1000))
    assert read_faces(whole.faces).equals(read_faces(found.faces))
    ours, theirs = read_manifest(found.manifest), read_manifest(whole.manifest)
    assert ours["path"].to_pylist() != theirs["path"].to_pylist()  # or one test says nothing
    for name in ("video", "frame"):
        assert ours[name].to_pylist() == theirs[name].to_pylist()
    assert all(map(np.array_equal, read_frames(ours), read_frames(theirs)))


def test_run_again_there_is_nothing_to_do(clip, found, capsys):
    before = files_of(found.faces.parent)
    words = ["faces", str(clip / "clip.mp4"), "--out", str(found.faces.parent), "--smooth", "0"]
    words += ["--boxes", str(clip / "boxes.csv"), "--margin", "0", "--segment-frames", "20"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "detector: boxes (boxes of " in printed
    assert "nothing to do; wrote" in printed
    assert "next: raffect extract --manifest" in printed
    assert files_of(found.faces.parent) == before


@pytest.mark.parametrize("kind", ["scan", "part", "join"])
def test_a_run_that_was_stopped_goes_on_and_has_the_same_bytes(
    kind, clip, found, tmp_path, monkeypatch
):
    out = found.faces.parent
    again = tmp_path / "out"  # of the same length as a root, which manifests name
    seen = []

    def stop(tasks, folder, config):
        for unit in run(tasks, folder, config):
            seen.append(unit.unit)
            yield unit
            if unit.unit.startswith(
                "part" if kind == "part" else "scan" if kind == "scan" else "-"
            ):
                raise KeyboardInterrupt
        if kind == "join" and tasks and tasks[0].kind == "part":
            raise KeyboardInterrupt

    run = face_units.run_units
    monkeypatch.setattr("raffect.extraction.find_faces.run_units", stop)
    with pytest.raises(KeyboardInterrupt):
        find_faces(config_of(clip, again))
    assert seen
    monkeypatch.undo()
    find_faces(config_of(clip, again))
    ours, theirs = files_of(again), files_of(out)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name != "manifest.parquet":
            assert ours[name] == theirs[name], name
    paths = [read_manifest(folder)["path"].to_pylist() for folder in (again, out)]
    assert paths[0] == paths[1]


def test_a_damaged_part_is_made_again(clip, found, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("raffect.extraction.find_faces.FacePlan.joins", lambda plan: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_faces(config_of(clip, out))
    monkeypatch.undo()
    part = min((out / "parts").iterdir())
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(RaffectError, match="run the same command again"):
        find_faces(config_of(clip, out))
    assert read_faces(find_faces(config_of(clip, out)).faces).equals(read_faces(found.faces))


def test_other_settings_are_refused_and_a_replaced_input_is_worked_on_again(clip, tmp_path):
    shutil.copy(clip / "clip.mp4", tmp_path / "clip.mp4")
    inputs = {"inputs": (tmp_path / "clip.mp4",)}
    assert find_faces(config_of(clip, tmp_path / "out", **inputs)).inputs[0].frames == 90
    with pytest.raises(RaffectError, match=r"margin 0.0 against 0.2; use those or a new --out"):
        find_faces(config_of(clip, tmp_path / "out", **inputs, margin=0.2))
    write_video(tmp_path / "clip.mp4", PICTURES[:50])
    again = find_faces(config_of(clip, tmp_path / "out", **inputs))
    assert (again.inputs[0].frames, again.done) == (50, 5)  # scan, three segments, join
    os.unlink(tmp_path / "clip.mp4")
    (tmp_path / "out" / "faces.png").unlink()
    (tmp_path / "other").mkdir()
    write_video(tmp_path / "other" / "clip.mp4", PICTURES[:20])
    both = find_faces(config_of(clip, tmp_path / "out", inputs=(tmp_path / "other" / "clip.mp4",)))
    assert [one.frames for one in both.inputs] == [50, 20]
    assert both.sheet.exists()


def pictures(folder):
    """Pictures of all kinds, made of one photograph: name -> (width, height) as displayed."""
    image = Image.fromarray(data.astronaut())
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "sixteen.png")
    turned = image.transpose(Image.Transpose.ROTATE_90).resize((400, 512))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    sink = io.BytesIO()
    Image.new("1", (20000, 20000)).save(sink, "PNG")
    (folder / "huge.png").write_bytes(sink.getvalue())
    (folder / "cut.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:3000])
    (folder / "empty.png").write_bytes(b"")
    (folder / os.fsdecode(b"caf\xe9 -- 1.jpg")).write_bytes((folder / "cmyk.jpg").read_bytes())


def test_files_as_users_have_them_end_in_one_clear_status_each(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    pictures(folder)
    write_sound(folder / "sound.mp4")
    (folder / "text.avi").write_bytes(b"nothing of a video\n" * 30)
    write_video(folder / "-v.mp4", GREY, sound="aac")
    result = find_faces(FacesConfig(inputs=(folder,), out=tmp_path / "out"))
    status = {one.input.removeprefix(f"{folder}/"): one for one in result.inputs}
    expected = {
        "alpha.png": "ok",
        "cmyk.jpg": "ok",
        "sixteen.png": "ok",
        "turned.jpg": "ok",
        "caf\\xe9 -- 1.jpg": "ok",
        "huge.png": "unreadable",
        "cut.jpg": "unreadable",
        "empty.png": "unreadable",
        "sound.mp4": "unreadable",
        "text.avi": "unreadable",
        "-v.mp4": "no_face",
    }
    assert {name: one.status for name, one in status.items()} == expected
    assert status["huge.png"].problem == "larger than 64 megapixels"
    assert status["sound.mp4"].problem == "no pictures in it, sound alone"
    assert (status["turned.jpg"].width, status["turned.jpg"].height) == (512, 400)
    rows = result.to_pandas()
    assert rows[rows.status == "unreadable"].video.isna().all()
    assert len(rows[rows.status == "no_face"]) == 10
    listed = (tmp_path / "out" / "problems.csv").read_text()
    assert listed.count("\n") == 6
    assert "huge.png,,unreadable: larger than 64" in listed


def test_without_any_face_there_is_no_manifest_and_no_stale_one(tmp_path, capsys):
    write_video(tmp_path / "v.mp4", GREY[:8])
    words = ["faces", str(tmp_path / "v.mp4"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    (tmp_path / "out" / "manifest.parquet").write_bytes(b"stale")
    assert main(words) == 0
    assert "no face was found, so there is nothing to extract" in capsys.readouterr().out
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    assert pq.read_table(tmp_path / "out" / "faces.parquet").num_rows == 8


def test_boxes_that_may_be_of_two_inputs_are_refused_before_anything_is_written(tmp_path):
    for folder in ("s01", "s02"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "face.png")
    (tmp_path / "b.csv").write_text("input,frame,x,y,w,h\ns01/face.png,1,1,1,20,20\n")
    inputs = (tmp_path / "s01", tmp_path / "s02")
    config = FacesConfig(inputs=inputs, out=tmp_path / "out", boxes=tmp_path / "b.csv")
    with pytest.raises(RaffectError, match=r"rows of s01/face.png may be of .*s01.* or of .*s02"):
        find_faces(config)
    assert not (tmp_path / "out").exists()


def test_inputs_that_a_table_of_boxes_does_not_name_stand_in_the_result(tmp_path, capsys):
    for name in ("001", "002"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.csv").write_text("input,frame,x,y,w,h\n001,1,1,1,20,20\n")
    words = ["faces", str(tmp_path / "001.png"), str(tmp_path / "002.png")]
    words += ["--boxes", str(tmp_path / "b.csv"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"b.csv; no row for 1 of 2 inputs, the first is {tmp_path}/002.png)" in printed
    assert "faces: 1 in 1 crops; rows by status: 1 ok," in printed
    assert " 1 no_face" in printed


def test_a_video_that_kills_its_decoder_is_unreadable_and_the_others_are_not(
    clip, tmp_path, monkeypatch
):
    shutil.copy(clip / "clip.mp4", tmp_path / "killer.mp4")
    config = config_of(clip, tmp_path / "out")
    monkeypatch.setattr("raffect.extraction.find_faces.FacePlan.parts", lambda plan: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_faces(config)
    monkeypatch.undo()
    from raffect.faces.inputs import read_inputs
    from raffect.faces.plan import FacePlan
    from raffect.faces.records import read_settings

    out = tmp_path / "out"
    plan = FacePlan(out, read_inputs(out), read_settings(out / "settings.json"))
    tasks, _ = plan.parts()
    # A child process that dies, as one does whose decoder has a fault
    monkeypatch.setattr(
        face_units, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    note = out / "attempts" / tasks[0].unit
    note.parent.mkdir(exist_ok=True)
    note.write_bytes(b"")
    assert face_units.do_noted(out, tasks[0]).counts == {"unreadable": tasks[0].size}
    assert not note.exists()
    result = find_faces(config)
    assert result.inputs[0].status == "damaged"
    assert "frames cannot be decoded, the first is frame 1 at 0.00 s" in result.inputs[0].problem
    assert result.counts["unreadable"] == tasks[0].size
    assert result.counts["ok"] > 0


def test_a_child_process_does_a_unit_as_this_one_does(clip, tmp_path, monkeypatch):
    from raffect.extraction.find_faces import choose_settings
    from raffect.faces.inputs import add_inputs
    from raffect.faces.plan import FacePlan

    units = []
    for name in ("here", "there"):
        out = tmp_path / name
        plan = FacePlan(
            out, add_inputs(out, [clip / "clip.mp4"]), choose_settings(config_of(clip, out))[0]
        )
        (task,) = plan.scans()
        units.append(
            work.run_task(out, task) if name == "here" else face_units._do_apart(out, task)
        )
    assert units[0] == units[1]


def test_a_face_that_is_gone_between_two_detections_is_not_followed_over_the_wall(tmp_path):
    photograph = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    wall = np.full_like(photograph, 128)
    gone = range(13, 19)
    shown = [wall if number in gone else photograph for number in range(1, 29)]
    write_video(tmp_path / "v.mp4", shown)
    result = find_faces(FacesConfig(inputs=(tmp_path / "v.mp4",), out=tmp_path / "out"))
    rows = result.to_pandas()
    assert rows[rows.status == "no_face"].frame.tolist() == list(gone)
    assert rows[rows.status != "no_face"].frame.tolist() == [
        n for n in range(1, 29) if n not in gone
    ]
    assert result.inputs[0].faces == 1
