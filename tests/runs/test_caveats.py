"""Encoder and images have a caveat each, wherever scores stand; neither speaks for the other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from raffect.bank.facts import join_caveats
from raffect.bank.format import Bank
from raffect.bank.records import parse_bank_file
from raffect.cli import main
from raffect.encoders.weights import EMBEDDED_CAVEAT
from raffect.heads.checkpoint import read_card
from raffect.reporting.report import _caveat_lines
from raffect.reporting.run import read_runs
from raffect.runs.data import open_dataset
from raffect.runs.folder import RunFolder
from raffect.storage.tables import read_metadata, read_table, write_table
from tests.helpers.learning import FAST, IDENTITY, make_data

FIRST = Path(__file__).parents[1] / "fixtures" / "first"


@pytest.fixture
def drawn(tmp_path):
    """Bank, labels and runs of drawn faces, encoded by the embedded encoder."""
    return Path(shutil.copytree(FIRST, tmp_path / "drawn"))


@pytest.fixture
def photographs(drawn):
    """The same as if its images were photographs, encoded with --allow-embedded."""
    for file in (drawn / "labels").glob("*.parquet"):
        table = read_table(file, (), "label table", "raffect prepare")
        write_table(table, file, read_metadata(table) | {"synthetic": "false"})
    return drawn


def data(folder):
    return ["--bank", str(folder / "bank"), "--labels", str(folder)]


def test_no_score_of_photographs_calls_them_drawn(photographs, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "paper", "--task", "expr", *data(photographs), "--out", str(run), *FAST]
    assert main([*words, "--batch-size", "16"]) == 0
    assert main(["evaluate", "--run", str(run), *data(photographs)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"caveat: {EMBEDDED_CAVEAT}\n") == 2
    assert "drawn faces" not in printed

    # Its report, and every picture in it
    found = read_runs([run])[0]
    assert _caveat_lines([found], []) == [f"> **{EMBEDDED_CAVEAT}**", ""]
    assert found.mark == f"\n[{EMBEDDED_CAVEAT}]"


def test_scores_of_drawn_faces_say_both(drawn, capsys):
    assert main(["evaluate", "--run", str(drawn / "expr"), *data(drawn)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("caveat")]
    assert found == [f"caveat: {EMBEDDED_CAVEAT}", "caveat: drawn faces"]
    page = "\n".join(_caveat_lines(read_runs([drawn / "expr"]), []))
    assert f"> **{EMBEDDED_CAVEAT}; drawn faces**: these scores say nothing about photo" in page


def test_heads_of_drawn_faces_judged_on_photographs_say_each_caveat_once(
    photographs, tmp_path, capsys
):
    # The heads of November 2026 were trained on drawn faces
    assert main(["evaluate", "--run", str(photographs / "expr"), *data(photographs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("caveat")]
    assert found == [f"caveat: {EMBEDDED_CAVEAT}", "caveat: drawn faces"]


def test_drawn_faces_need_no_caveat_of_the_encoder(tmp_path):
    folder = make_data(tmp_path)
    facts = open_dataset(folder / "bank", folder, "expr").facts
    assert facts.caveats == (IDENTITY.caveat, "drawn faces")
    assert replace(facts, caveat=join_caveats("", True)).caveats == ("drawn faces",)
    assert replace(facts, caveat=join_caveats("random weights", False)).caveats == (
        "random weights",
    )
    assert replace(facts, caveat=join_caveats("", False)).caveats == ()


@pytest.mark.parametrize("name", ["stamp", "caveat"])
def test_a_bank_of_november_2026_says_nothing_of_its_images(drawn, name):
    file = drawn / "bank" / "bank.json"
    digest = Bank(drawn / "bank").digest()
    found = parse_bank_file(file.read_bytes().replace(b"stamp", name.encode()), file)
    assert found.identity.caveat == EMBEDDED_CAVEAT
    assert Bank(drawn / "bank").digest() == digest


@pytest.mark.parametrize("synthetic", [True, False])
def test_runs_and_heads_of_november_2026_have_a_caveat_each_too(drawn, synthetic):
    run = drawn / "expr"
    files = [run / "env.json", *run.glob("weights/*/last/config.json")]
    assert len(files) == 3
    for file in files:
        content = json.loads(file.read_text())
        content["data"]["synthetic"] = synthetic
        file.write_text(json.dumps(content))
    expected = (EMBEDDED_CAVEAT, "drawn faces") if synthetic else (EMBEDDED_CAVEAT,)
    assert RunFolder(run).read_run().data.caveats == expected
    for file in files[1:]:
        assert read_card(file.parent).data.caveats == expected
