"""The units of work of a folder of faces, and whose files a run deletes."""

from pathlib import Path

import pytest

from raffect.cli import main
from raffect.config import FacesConfig
from raffect.errors import RaffectError
from raffect.extraction.find_faces import choose_settings
from raffect.faces import work
from raffect.faces.inputs import add_inputs
from raffect.faces.plan import FacePlan, finished_units, list_jobs, sweep
from raffect.faces.records import Unit

OURS = ["frames/done-000000-0123abcd.parquet", "parts/part-000001-0002-0123abcd.parquet"]
OURS += [".tmp-faces.parquet-0123abcd", "frames/.tmp-done-000000-0123abcd.parquet-89abcdef"]
THEIRS = ["frames/1.jpg", "frames/done-old.parquet", "tables/scan-1.parquet", ".tmp-notes"]
THEIRS += ["parts/.tmp-mine", "frames/done-000000-0123abcd.parquet.bak"]


def write_files(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")


def files_of(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


def test_a_sweep_deletes_no_file_of_the_user(tmp_path):
    write_files(tmp_path, OURS + THEIRS)
    sweep(tmp_path)
    assert files_of(tmp_path) == set(THEIRS)


@pytest.mark.parametrize(
    "name", ["frames/1.jpg", "tables/a.csv", "inputs/clip.mp4", "manifest.parquet", "faces.parquet"]
)
def test_an_out_with_files_of_something_else_is_refused_and_stays_as_it_was(name, tmp_path, capsys):
    write_files(tmp_path, ["a.jpg", f"project/{name}"])
    words = ["faces", str(tmp_path / "a.jpg"), "--out", str(tmp_path / "project")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "is not of `raffect faces`, which would write into it; name a new folder" in error
    assert str(tmp_path / "project" / name.partition("/")[0]) in error
    assert files_of(tmp_path) == {"a.jpg", f"project/{name}"}


def test_an_out_that_machines_do_not_share_is_one_line(tmp_path):
    # A task of another machine has finished, and its record lies there
    write_files(tmp_path, ["a.mp4"])
    out = tmp_path / "out"
    inputs = add_inputs(out, [tmp_path / "a.mp4"])
    settings, _ = choose_settings(FacesConfig(inputs=(tmp_path / "a.mp4",), out=out))
    for step in (
        FacePlan(out, inputs, settings).parts,
        FacePlan(out, inputs, settings).joins,
        lambda: finished_units(out, inputs),
    ):
        with pytest.raises(RaffectError, match="on a cluster every machine must see --out"):
            step()


def test_a_block_stays_finished_without_its_pictures_and_with_one_more_it_does_not(tmp_path):
    write_files(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    files = [tmp_path / f"{number}.jpg" for number in (1, 2, 3)]
    inputs = add_inputs(tmp_path / "out", files)
    (two,), (three,) = list_jobs(inputs[:2]), list_jobs(inputs)
    facts = tuple(work.describe_input(one, "no_face", "") for one in inputs[:2])
    units = {two.done: Unit(unit=two.done, source=two.source, files={}, inputs=facts)}
    assert (two.is_done(units), three.is_done(units)) == (True, False)
    files[0].unlink()
    assert [list_jobs(some)[0].is_done(units) for some in (inputs[:2], inputs)] == [True, False]
