"""The report's matrix across data sets: rows trained on, columns judged on."""

import csv
import re
import shutil
import struct

import pytest

from raffect.cli import main
from raffect.config import EvaluateConfig
from raffect.errors import RaffectError
from raffect.evaluation.evaluate import evaluate
from raffect.reporting.report import report
from raffect.runs.folder import RunFolder
from raffect.runs.spread import short
from tests.helpers.two_sets import FIRST, SECOND, make_set, train_on

pytestmark = pytest.mark.cluster  # two runs are trained, and a whole report is drawn


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Runs on two sets, each judged on the other one and one on a third."""
    top = tmp_path_factory.mktemp("sets")
    sets = {
        name: make_set(top / "data" / name, task, seed)
        for seed, (name, task) in enumerate((("films", FIRST), ("web", SECOND), ("lab", SECOND)))
    }
    runs = {name: train_on(sets[name], top / f"on-{name}") for name in ("films", "web")}
    found = {}
    for name, other in (("films", "web"), ("web", "films"), ("films", "lab")):
        out = top / "judged" / f"{name}-{other}"
        config = EvaluateConfig(
            run=(runs[name],),
            bank=sets[other] / "bank",
            labels=sets[other],
            classes="common",
            out=out,
            device="cpu",
        )
        found[name, other] = out, evaluate(config).tasks[0].evaluation
    return top, sets, runs, found


@pytest.fixture(scope="module")
def page(judged):
    top, _, runs, found = judged
    folders = [out for out, _ in found.values()]
    # Heads are known by their data and settings, wherever their run lies now
    moved = top / "moved" / "on-films"
    shutil.copytree(runs["films"], moved)
    return report([moved, runs["web"]], top / "report", judged=folders)


def test_each_cell_is_the_score_of_evaluate_and_the_diagonal_that_of_the_run(judged, page):
    _, _, runs, found = judged
    rows = list(csv.DictReader((page.markdown.parent / "plots/across-expr.csv").open()))
    cells = {(row["trained_on"], row["judged_on"]): row for row in rows}
    assert cells.keys() == {("films", "films"), ("web", "web"), *found}
    for key, (_, evaluation) in found.items():
        spread, row = evaluation.settings[0].scores["last"], cells[key]
        assert float(row["macro_f1"]) == pytest.approx(spread.mean)
        assert [float(row[end]) for end in ("low", "high")] == pytest.approx(spread.interval_95)
        assert float(row["chance"]) == pytest.approx(evaluation.chance.level)
        assert (row["outputs"], row["own"]) == ("4", "False")
        assert int(row["left_out"]) == evaluation.common.left_out > 0
        uar = [head.score.metrics["uar"] for head in evaluation.heads]
        assert float(row["uar"]) == pytest.approx(sum(uar) / len(uar))
    for name, run in runs.items():
        records = RunFolder(run).read_records()
        own = [record.scores["last"].headline for record in records]
        assert float(cells[name, name]["macro_f1"]) == pytest.approx(sum(own) / len(own))
        assert (cells[name, name]["outputs"], cells[name, name]["own"]) == ("5", "True")


def test_the_table_has_interval_classes_and_chance_in_every_cell(judged, page):
    _, _, _, found = judged
    text = page.markdown.read_text()
    part = text[text.index("## Across data sets") :]
    titles, _, films, web = part[part.index("| trained on") :].splitlines()[:4]
    assert titles == "| trained on | judged on films | judged on web | judged on lab |"
    assert films.startswith("| films (on-films) | **.")
    assert web.startswith("| web (on-web) | .")
    assert web.endswith("| not judged |")
    _, evaluation = found["films", "web"]
    spread = evaluation.settings[0].scores["last"]
    low, high = map(short, spread.interval_95)
    cell = films.split("|")[3].strip().replace("\\", "")
    left_out = f"{evaluation.common.left_out} left out"
    expected = f"[{low}, {high}]; 4 classes, chance .250; {left_out}"
    assert cell == f"{short(spread.mean)} ± {short(spread.sd)} {expected}"
    assert "films (on-films) on lab" not in text
    assert "- on-films on lab: judged on the 4 classes that heads and labels both have" in text
    assert "compare a score with its own chance before another cell" in text
    # Caveats stand above all scores, and the page holds the picture
    assert re.search(r"> \*\*.*made by a test", text)
    assert page.html.read_text().count('alt="EXPR across data sets"') == 1


def test_the_picture_fits_a_page_with_few_sets(page):
    (picture,) = [file for file in page.pictures if file.name == "across-expr.png"]
    (dots,) = struct.unpack(">I", picture.read_bytes()[16:20])
    assert dots / 2 <= 64 * 16, "no wider than the page's text"


def test_what_is_no_judgement_of_these_runs_is_refused(judged, tmp_path, capsys):
    _, sets, runs, found = judged
    out, _ = found["films", "web"]
    words = ["report", "--out", str(tmp_path / "page"), "--runs"]
    assert main([*words, str(runs["web"]), "--judged", str(out)]) == 2
    assert "add its run to --runs" in capsys.readouterr().err
    with pytest.raises(RaffectError, match="is a run folder; expected a folder of"):
        report([runs["web"]], tmp_path, judged=[runs["web"]])
    with pytest.raises(RaffectError, match=r"no metrics.json in it; judge again with"):
        report([runs["web"]], tmp_path, judged=[tmp_path])
    shutil.copytree(out, tmp_path / "again")
    with pytest.raises(RaffectError, match="is in .*films-web, too; leave it out"):
        report([runs["films"]], tmp_path, judged=[out, tmp_path / "again"])
    for settings, message in (
        ({"epoch": "best"}, "a report compares last epochs"),
        ({}, "is its own score; leave it out"),
    ):
        config = EvaluateConfig(
            run=(runs["web"],),
            bank=sets["web"] / "bank",
            labels=sets["web"],
            out=tmp_path / "own",
            device="cpu",
            **settings,
        )
        evaluate(config)
        with pytest.raises(RaffectError, match=message):
            report([runs["web"]], tmp_path, judged=[tmp_path / "own"])


def test_a_report_without_judgements_has_no_matrix(judged, tmp_path):
    _, _, runs, _ = judged
    text = report([runs["web"]], tmp_path).markdown.read_text()
    assert "Across data sets" not in text
