"""The report: what it opens with, what it names, and what its numbers are."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from raffect.datasets.affwild2.tasks import EXPR
from raffect.metrics.intervals import score_interval
from raffect.metrics.task_kinds import kind_of
from raffect.reporting.opening import opening_lines
from raffect.reporting.page import name_anchors, to_html
from raffect.reporting.report import name_pictures, report
from raffect.reporting.results import settings_rows, settings_table
from raffect.reporting.run import MOST_SETTINGS, name_runs, read_runs
from raffect.reporting.videos import group_rows
from raffect.runs import against_erm, spread
from raffect.runs.spread import short, signed
from tests.helpers.runs import ERM, draw_confusion, make_run


def by_alpha(rng, settings):
    """Heads of smaller alpha are worse; all of one setting have equal counts."""
    return draw_confusion(0.3 + 0.4 * settings["loss.alpha"])


def macro_f1(counts):
    """Macro F1 of confusion counts, by scikit-learn, over all classes."""
    true, predicted = np.nonzero(counts)
    weights = counts[true, predicted]
    classes = range(len(counts))
    scores = f1_score(
        true, predicted, labels=classes, average="macro", sample_weight=weights, zero_division=0
    )
    return float(scores)


def f1_by_class(counts):
    """F1 of each class of confusion counts, by scikit-learn."""
    true, predicted = np.nonzero(counts)
    options = {"labels": range(len(counts)), "average": None, "zero_division": 0}
    return f1_score(true, predicted, sample_weight=counts[true, predicted], **options)


SETTINGS = [{"loss.alpha": 0.3}, {"loss.alpha": 0.6}, ERM]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Report of two runs of one name, one of which is cross-validated."""
    folder = tmp_path_factory.mktemp("report")
    names = ["v0", "<b>|bad_*", *(f"v{k}" for k in range(2, 6))]
    common = {"own": {"loss.alpha": 0.3}, "caveat": "made up", "groups": names}
    make_run(folder / "a" / "run", SETTINGS, by_alpha, **common)
    make_run(folder / "b" / "run", SETTINGS, by_alpha, cv_scores=(0.2, 0.4, 0.3), **common)
    report([folder / "a" / "run", folder / "b" / "run"], folder / "out")
    return folder / "out"


@pytest.fixture
def text(out) -> str:
    return (out / "report.md").read_text()


@pytest.fixture
def page(out) -> str:
    return (out / "report.html").read_text()


def opening_of(*paths: Path) -> list[str]:
    """What a report of some runs opens with, without the remarks."""
    lines = opening_lines(read_runs(paths))
    return [line for line in lines if line and line[0] != ">"]


def test_a_report_opens_with_what_was_trained_and_what_came_out(text):
    title, date, caveat, opening, other = text.split("\n\n")[:5]
    assert title == "# raffect report: EXPR"
    assert re.fullmatch(
        r"Written \d+ [A-Z]\w+ \d{4}, \d\d:\d\d UTC, from 2 runs: a/run and b/run\.", date
    )
    assert caveat.startswith("> **made up**")
    assert other.startswith("**b/run** trained")

    # Two sentences: what was trained
    first, second = re.split(r"(?<=each)\. ", opening)
    assert first == (
        "**a/run** trained 6 heads for EXPR (8 classes) on 900 frames of 9 videos: "
        "3 settings that differ in alpha and rho, 2 seeds each"
    )

    # And what came out, with its interval, against ERM and chance
    counts = draw_confusion(0.42)
    low, high = score_interval(counts, kind_of(EXPR))
    score, erm = macro_f1(counts.sum(0)), macro_f1(draw_confusion(0.7).sum(0))
    assert f"macro F1 **{short(score)}** (95 % interval {short(low)} to {short(high)}" in second
    assert f"below plain ERM ({short(erm)} ± .000; difference -" in second
    assert "above chance (.125, guesses by the class shares)" in second
    assert not re.search(r"\. [A-Z]", second)


def test_a_difference_that_other_videos_might_turn_round_is_called_unclear(tmp_path):
    def draw(rng, settings):
        return np.random.default_rng(settings["loss.alpha"] > 0.5).multinomial(
            9, np.full(8, 1 / 8), (5, 8)
        )

    make_run(tmp_path / "run", [{"loss.alpha": 0.3}, ERM], draw, own={"loss.alpha": 0.3})
    (opening,) = opening_of(tmp_path / "run")
    assert re.search(r"not clearly (above|below) plain ERM", opening)
    assert re.search(r"not clearly (above|below) chance", opening)


def test_plain_erm_of_another_run_on_the_same_data_is_compared_with(tmp_path):
    make_run(tmp_path / "paper", [{"loss.alpha": 0.3}], by_alpha)
    make_run(tmp_path / "erm", [ERM], by_alpha)
    make_run(tmp_path / "elsewhere", [{"loss.alpha": 0.3}], by_alpha, fingerprint="0" * 16)
    paper, erm, elsewhere = opening_of(*(tmp_path / n for n in ("paper", "erm", "elsewhere")))
    assert "below plain ERM of erm (" in paper
    assert "it is plain ERM itself" in erm
    assert "plain ERM was not trained beside it" in elsewhere


def test_two_runs_of_one_task_have_rows_of_their_own(text):
    results = text.partition("## Results")[2].partition("## EXPR")[0].splitlines()
    for name in ("a/run", "b/run"):
        assert f"## EXPR: {name}" in text
        assert len([row for row in results if row.startswith(f"| {name} | EXPR | ")]) > 2
    # What depends on the data alone stands there once
    assert len([row for row in results if "chance (majority)" in row]) == 1


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart():
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert name_runs(paths) == ["a/run", "b/run", "b/other"]
    assert name_runs(paths[1:]) == ["run", "other"]
    assert name_runs(paths[:1] * 2) == ["run", "run"]


def test_every_term_is_explained_once_and_where_it_first_stands(text):
    opening, _, rest = text.partition("Contents:")
    for term in ("macro F1", "alpha", "rho", "95 % interval", "chance", "plain ERM", "head"):
        assert opening.count(f"- **{term}**: ") == 1
    results, _, rest = rest.partition("\n## EXPR: a/run")
    scores = ("val-last", "val-best", "val-cv", "± sd (seeds)", "against plain ERM")
    for term in (*scores, "worst class", "worst 30 % of videos"):
        assert results.count(f"- **{term}**: ") == 1
    assert "- **" not in rest.partition("## What was run")[0]


def test_contents_lead_to_every_heading_of_the_page(page):
    links = re.findall(r'<a href="#([^"]*)">([^<]*)</a>', page)
    headings = re.findall(r'<h[23] id="([^"]*)">([^<]*)</h', page)
    assert links == headings
    assert len({anchor for anchor, _ in headings}) == len(headings) == 16


def test_anchors_differ_even_where_headings_try_to_collide():
    found = name_anchors(["Videos", "Videos 1", "Videos", "Videos-1", "é", "?", "Videos"])
    assert len(set(found)) == len(found)
    assert found[:3] == ["videos", "videos-1", "videos-2"]
    assert all(re.fullmatch(r"[\w-]+", name, re.ASCII) for name in found)


def test_links_lead_to_the_tables_that_were_written(out, page):
    links = set(re.findall(r'href="(plots/[^"]*)"', page))
    assert links == {f"plots/{path.name}" for path in (out / "plots").glob("*.csv")}
    whats = ("alpha", "settings", "classes", "confusion", "worst", "groups", "curves")
    assert links == {f"plots/{number}-run-{what}.csv" for number in (1, 2) for what in whats}


def test_a_report_links_a_gallery_that_was_written_beside_it_and_no_other(tmp_path):
    make_run(tmp_path / "run", SETTINGS, by_alpha)
    link = '<a href="gallery.html">'
    for has_gallery in (True, False):
        page = report([tmp_path / "run"], tmp_path, has_gallery=has_gallery).html.read_text()
        assert (link in page) == has_gallery


def test_a_link_elsewhere_stays_text():
    markdown = "[a](http://example.invalid/) [b](plots/own.csv) [c](#x) [d](javascript:alert(1))\n"
    page = to_html(markdown, {}, ["plots/own.csv"])
    assert re.findall(r'href="([^"]*)"', page) == ["plots/own.csv", "#x"]
    assert "[a](http://example.invalid/)" in page
    assert "[d](javascript:alert(1))" in page


def test_a_page_fits_narrow_screens_and_follows_dark_ones(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "<title>raffect report: EXPR</title>" in page
    assert "@media (prefers-color-scheme:dark)" in page
    # Tables and pictures scroll by themselves, so that the page does not
    assert page.count("<table>") == page.count('<div class="scroll" tabindex="0"><table>') > 3
    pictures = re.findall(r'<span class="scroll"[^>]*><img src=[^>]* width="(\d+)">', page)
    assert len(pictures) == page.count("<img") == 8
    assert all(300 < int(width) < 900 for width in pictures)


def test_names_of_videos_are_text(page):
    assert "<b>" not in page
    assert html.escape("<b>|bad_*", quote=False) in page


def test_the_costliest_video_is_the_one_without_which_the_score_is_highest(tmp_path):
    # One video where everything is wrong, among some that differ
    counts = np.stack([draw_confusion(skill, 1)[0] for skill in (0.9, 0.5, 0.7, 0.8)])
    counts[2] = np.roll(counts[2], 1, axis=1)
    names = ["b", "a", "bad", "c"]
    make_run(tmp_path / "run", [{}], lambda *_: counts, groups=names)
    rows = group_rows(read_runs([tmp_path / "run"])[0])

    # Scores without each, by scikit-learn
    without = {name: macro_f1(np.delete(counts, k, 0).sum(0)) for k, name in enumerate(names)}
    assert {row["group"]: row["macro_f1_without"] for row in rows} == pytest.approx(without)
    assert [row["group"] for row in rows] == sorted(without, key=lambda name: -without[name])
    assert rows[0]["group"] == "bad"
    assert {row["group"]: row["frames"] for row in rows} == dict.fromkeys(names, 80)


def test_worst_cases_stand_beside_the_mean_of_each_setting_of_erm_and_of_chance(tmp_path):
    # CVaR is worse on the whole and better where it is worst
    def by_setting(rng, settings):
        skills = np.full(6, 0.55) if settings["loss.alpha"] == 0.3 else np.linspace(0.2, 0.95, 6)
        return np.stack([draw_confusion(skill, 6)[k] for k, skill in enumerate(skills)])

    make_run(tmp_path / "run", [{"loss.alpha": 0.3}, ERM], by_setting, own={"loss.alpha": 0.3})
    (run,) = read_runs([tmp_path / "run"])
    report([tmp_path / "run"])
    text = (tmp_path / "run" / "report.md").read_text()
    rows = list(csv.DictReader((tmp_path / "run" / "plots" / "run-worst.csv").open()))
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == ["main setting", "plain ERM", "chance"]

    for name, alpha in (("main setting", 0.3), ("plain ERM", 1.0)):
        # By scikit-learn: the class with the lowest F1, and the 1.8 worst of 6 videos
        counts = by_setting(None, {"loss.alpha": alpha})
        by_class = f1_by_class(counts.sum(0))
        of_videos = sorted(np.mean(f1_by_class(one)[one.sum(1) > 0]) for one in counts)
        tail, row = (of_videos[0] + 0.8 * of_videos[1]) / 1.8, by_name[name]
        assert float(row["worst class"]) == pytest.approx(by_class.min())
        assert row["worst class is"] == EXPR.outputs[by_class.argmin()]
        assert float(row["worst 30 %"]) == pytest.approx(tail)
        assert float(row["worst 30 % low"]) < tail < float(row["worst 30 % high"])
        # In the table of results, in that of settings, and in its own
        cells = f"| {short(by_class.min())} ({row['worst class is']}) | {short(tail)} |"
        assert text.count(cells) >= 3
        (setting,) = (row for row in settings_rows(run) if row["loss.alpha"] == alpha)
        assert setting["worst 30 %"] == pytest.approx(tail)

    # Chance, and the difference to ERM with its interval, paired
    shares = counts.sum((0, 2)) / counts.sum()
    assert float(rows[2]["worst class"]) == pytest.approx(shares.min())
    difference = float(rows[0]["worst 30 %"]) - float(rows[1]["worst 30 %"])
    assert difference > 0
    assert f"the main setting differs from plain ERM by {signed(difference)} [" in text


def test_of_blocks_there_are_no_worst_videos(tmp_path):
    names = [f"block {k:03d}" for k in range(6)]
    make_run(tmp_path / "run", [ERM], by_alpha, groups=names)
    report([tmp_path / "run"])
    text = (tmp_path / "run" / "report.md").read_text()
    assert re.search(r"\| main setting \| \.\d+ \| \.\d+ \([A-Z]\w+\) \| - \| - \|", text)


def test_one_video_alone_or_pictures_have_no_table_of_videos(tmp_path):
    pictures = np.eye(64, dtype=int).reshape(64, 8, 8)  # one frame each
    for name, counts in (("one", draw_confusion(0.5, 1)), ("pictures", pictures)):
        make_run(tmp_path / name, [{}], lambda *_, found=counts: found)
        assert group_rows(read_runs([tmp_path / name])[0]) == []


def test_absent_classes_are_named_and_have_no_score(tmp_path):
    counts = draw_confusion(0.6)
    counts[:, 1:3] = 0  # Anger and Disgust are predicted, but never true
    make_run(tmp_path / "run", [{}], lambda *_: counts)
    report([tmp_path / "run"])
    text = (tmp_path / "run" / "report.md").read_text()
    both = macro_f1(counts.sum(0))
    assert (
        "> EXPR: Anger and Disgust have no frame in the validation split, which counts as 0 in "
        f"macro F1; over the 6 classes that occur, the main setting has {short(both * 8 / 6)}."
    ) in text
    assert f"macro F1 **{short(both)}**" in text
    assert "| Anger | - | - | - | - | none |" in text
    assert re.search(r"\| Neutral \| \.\d{3} ", text)


def test_each_interval_is_computed_once(tmp_path, monkeypatch):
    calls = {"score_interval": 0, "difference_interval": 0}
    modules = {"score_interval": spread, "difference_interval": against_erm}

    def count(name, real):
        def compute(*arguments):
            calls[name] += 1
            return real(*arguments)

        return compute

    for name, module in modules.items():
        monkeypatch.setattr(module, name, count(name, getattr(module, name)))
    settings = [{"loss.alpha": alpha} for alpha in (0.3, 0.6)] + [ERM]
    make_run(tmp_path / "run", settings, by_alpha, own={"loss.alpha": 0.3})
    report([tmp_path / "run"])
    # val-last of each setting, and val-best of the main one; all but ERM against ERM
    assert calls == {"score_interval": len(settings) + 1, "difference_interval": len(settings) - 1}


def test_of_very_many_settings_the_best_are_shown_and_all_are_in_the_table(tmp_path):
    count = MOST_SETTINGS + 15
    settings = [{"optim.lr": 1e-4 * (k + 1)} for k in range(count)] + [ERM]

    def by_lr(rng, settings):
        return draw_confusion(0.2 if settings["sam.rho"] == 0 else 0.3 + 50 * settings["optim.lr"])

    make_run(tmp_path / "run", settings, by_lr, seeds=1, own={"optim.lr": 1e-4})
    (run,) = read_runs([tmp_path / "run"])
    shown = [row for row in settings_table(run)[2:] if row]

    # The highest, the main setting and plain ERM, which are the lowest
    assert len(shown) == MOST_SETTINGS + 2
    assert "(main setting)" in shown[-2]
    assert "(plain ERM)" in shown[-1]
    scores = [float(row.split("|")[2]) for row in shown]
    assert scores == sorted(scores, reverse=True)
    every = settings_rows(run)
    assert len(every) == count + 1
    assert sum(row["main setting"] for row in every) == 1
    assert (
        min(scores[:MOST_SETTINGS])
        >= sorted(row["val-last"] for row in every)[-MOST_SETTINGS] - 0.001
    )


def test_pictures_of_runs_have_names_of_their_own():
    stems = name_pictures(["\u8868\u60c5", "\u6570\u636e", "a b", "a_b", "x"])
    assert len(set(stems)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", stem) for stem in stems)
    assert len(set(name_pictures(["figure2", "figure2", "1-figure2"]))) == 3
    assert name_pictures(["a", "b"]) == ["a", "b"]
