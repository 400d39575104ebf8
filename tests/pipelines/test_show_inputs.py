"""What is shown of inputs where processes die, files are deleted or the disk is at fault."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raffect.datasets.affwild2.tasks import EXPR
from raffect.errors import RaffectError
from raffect.pipelines import show_inputs as module
from raffect.pipelines.show_inputs import Seen, Showing, delete_unfinished, show_inputs
from raffect.storage.atomic import atomic_path
from tests.helpers.scenes import facts_of, table_of_boxes

ROWS = table_of_boxes([(5, 5, 40, 40)])


def showing_of(folder: Path) -> Showing:
    return Showing(
        out=folder / "out",
        records=folder / "records",
        facts=facts_of([EXPR]),
        style="plain",
        overlay=True,
        truth=None,
    )


def picture(folder: Path, name: str) -> Seen:
    path = folder / f"{name}.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(path)
    return Seen(name=name, path=path, kind="picture", problem="")


def show(showing: Showing, *inputs: Seen) -> dict:
    return dict(show_inputs(showing, iter([(seen, ROWS) for seen in inputs])))


def files_of(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.cluster  # processes that die and start again
def test_an_input_that_kills_its_decoder_has_no_overlay_and_the_others_are_whole(
    tmp_path, local_ray, monkeypatch
):
    whole = module._show

    def show_or_die(showing, seen, rows):
        if seen.name == "killer" and seen.draw:
            with atomic_path(showing.out / "overlay" / "killer.png") as temporary:
                temporary.write_bytes(b"half a face")
                os.kill(os.getpid(), signal.SIGKILL)
        return whole(showing, seen, rows)

    monkeypatch.setattr(module, "_show", show_or_die)
    showing = showing_of(tmp_path)
    inputs = [picture(tmp_path, "killer"), picture(tmp_path, "other")]
    found = show(showing, *inputs)
    assert found["killer"].problem == "no overlay: the process that drew it died again and again"
    assert found["other"].problem == ""
    whole_input = {"csv/other.csv", "overlay/other.png", "previews/other.jpg"}
    assert files_of(showing.out) == {"csv/killer.csv", *whole_input}
    # The same command does not die of it again
    monkeypatch.setattr(module, "_show", lambda *_: 1 / 0)
    assert show(showing, *inputs) == found


def test_a_stopped_run_leaves_no_half_written_overlay(tmp_path, local_ray, monkeypatch):
    def wait(showing, seen, rows):
        with atomic_path(showing.out / "overlay" / f"{seen.name}.png") as temporary:
            temporary.write_bytes(b"half a face")
            time.sleep(300)

    def stop():
        while not list((tmp_path / "out").glob("overlay/.tmp-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "_show", wait)
    inputs = [picture(tmp_path, "a")]
    thread = threading.Thread(target=stop, daemon=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # `pytest &` ignores it
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        show(showing_of(tmp_path), *inputs)
    signal.signal(signal.SIGINT, before)
    assert files_of(tmp_path / "out") == set()


def test_what_a_killed_run_left_half_written_is_deleted_and_nothing_else(tmp_path):
    mine = ["overlay/.tmp-a b.mp4-0123abcd", "previews/.tmp-a b.jpg-0123abcd"]
    mine += ["pages/.tmp-a b.html-0123abcd", "csv/.tmp-a b.csv-0123abcd"]
    mine += [".tmp-predictions.parquet-0123abcd", ".tmp-index.html-0123abcd"]
    old = "overlay/.tmp-c.mp4-0123abcd"
    others = ["overlay/.tmp-b.mp4-0123abcd", "overlay/a b.mp4", ".tmp-mine", "overlay/.tmp-a b"]
    others += [".tmp-notes.txt-0123abcd", "frames/.tmp-a b.mp4-0123abcd", ".tmp-index.html-notes"]
    for name in (*mine, old, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    then = time.time() - 25 * 3600
    for name in (old, ".tmp-mine", ".tmp-notes.txt-0123abcd"):
        os.utime(tmp_path / name, (then, then))
    delete_unfinished(tmp_path, {"a b"})
    assert files_of(tmp_path) == set(others)


@pytest.mark.parametrize("gone", ["overlay/a.png", "previews/a.jpg", "csv/a.csv"])
def test_a_finished_input_whose_files_are_gone_is_shown_again(gone, tmp_path, local_ray):
    showing, seen = showing_of(tmp_path), picture(tmp_path, "a")
    found = show(showing, seen)
    before = {name: (showing.out / name).stat().st_ino for name in files_of(showing.out)}
    assert show(showing, seen) == found
    assert {name: (showing.out / name).stat().st_ino for name in before} == before
    (showing.out / gone).unlink()
    assert show(showing, seen) == found
    assert files_of(showing.out) == set(before)


def test_a_folder_that_cannot_be_written_ends_in_one_line_that_names_it(tmp_path, local_ray):
    showing = showing_of(tmp_path)
    showing.out.mkdir()
    (showing.out / "csv").write_text("a file")
    with pytest.raises(RaffectError) as error:
        show(showing, picture(tmp_path, "a"))
    assert str(error.value) == (
        f"{showing.out}/csv: File exists; what is done is kept, the same command goes on from there"
    )
