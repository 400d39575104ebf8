"""Entries of challenges, read by a parser that knows the organisers' formats and nothing else."""

import csv
import dataclasses

import numpy as np
import pyarrow as pa
import pytest

import raffect
from raffect.cli import main
from raffect.datasets.affwild2.tasks import AU, EXPR, HEADERS, VA
from raffect.predictions.entry import cells_of, find_fault, write_entry
from raffect.predictions.rules import WeightedHead, plain_rules
from raffect.predictions.table import iter_predictions
from tests.helpers.predictions import HEADS, make_table

VIDEOS = {"1-30-1280x720": [2, 3, 7], "1-30-1280x720_left": [1, 2], "video96": [4], "more": [1]}
WITHOUT = {"video96": [5, 6]}
LISTED = [
    ("video96", 3),
    ("1-30-1280x720_left", 1),
    *[("1-30-1280x720", k) for k in range(1, 10)],
    ("1-30-1280x720_left", 2),
    ("video96", 5),
    ("gone_right", 1),
    ("gone_right", 2),
]
MTL_HEADER = "image,valence,arousal,expression,aus"


def parse(path):
    """Header and rows of a file as the organisers' scripts read them: split by lines and commas."""
    lines = path.read_bytes().decode("ascii").split("\n")
    assert lines.pop() == ""
    assert not any(line != line.strip() for line in lines)
    return lines[0], [line.split(",") for line in lines[1:]]


def template_of(task, listed=LISTED, example="0"):
    header = MTL_HEADER if task == "mtl" else f"image_location,{HEADERS[task]}"
    return "\n".join([header, *(f"{v}/{k:05d}.jpg,{example}" for v, k in listed)]) + "\n"


@pytest.fixture
def submit(tmp_path):
    """Write a template, then an entry; returns its path, the result and the scores."""

    def run(template, rules=(EXPR, AU, VA), name="p.parquet", **more):
        scores = make_table(tmp_path / name, rules, VIDEOS, WITHOUT)
        if isinstance(template, bytes | str):
            content = template if isinstance(template, bytes) else template.encode()
            template = tmp_path / "template.txt"
            template.write_bytes(content)
        out = tmp_path / "entry.txt"
        config = raffect.SubmitConfig(
            template=template, predictions=tmp_path / name, out=more.pop("out", out), **more
        )
        return config.out, raffect.submit(config), scores

    return run


def expected_scores(scores, task, video, frame):
    """Scores of one frame by hand: between the neighbours of its video, or the mean of all."""
    known = {f: found[task] for (v, f), found in scores.items() if v == video}
    if not known:
        return np.mean([found[task] for found in scores.values()], axis=0)
    frames = sorted(known)
    outputs = range(len(known[frames[0]]))
    return np.array([np.interp(frame, frames, [known[f][k] for f in frames]) for k in outputs])


def answer(scores, task):
    """What a task's plain rules predict, as text."""
    if task is EXPR:
        return [str(int(scores.argmax()))]
    if task is AU:
        return [str(int(score >= 0.5)) for score in scores]
    return [f"{score:.6f}" for score in scores]


@pytest.mark.parametrize("task", [EXPR, AU, VA], ids=lambda task: task.name)
@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_an_entry_has_the_rows_of_the_template_in_its_order(submit, task, name):
    out, result, scores = submit(template_of(task), name=name)
    header, rows = parse(out)
    assert header == f"image_location,{HEADERS[task]}"
    assert [row[0] for row in rows] == [f"{video}/{frame:05d}.jpg" for video, frame in LISTED]
    for (video, frame), (_, *cells) in zip(LISTED, rows, strict=True):
        expected = answer(expected_scores(scores, task.name, video, frame), task)
        if task is VA:
            np.testing.assert_allclose(np.float64(cells), np.float64(expected), atol=2e-6)
        else:
            assert cells == expected
    assert result.by_how == {"predicted": 5, "interpolated": 3, "held": 5, "prior": 2}
    assert result.without == ["gone_right"]


def test_the_multi_task_entry_has_sixteen_cells_a_row(submit):
    out, result, scores = submit(template_of("mtl"))
    header, rows = parse(out)
    assert header == MTL_HEADER
    assert {len(row) for row in rows} == {16}
    video, frame = LISTED[4]
    _, valence, arousal, expression, *units = rows[4]
    assert [expression] == answer(expected_scores(scores, "expr", video, frame), EXPR)
    assert units == answer(expected_scores(scores, "au", video, frame), AU)
    values = expected_scores(scores, "va", video, frame)
    np.testing.assert_allclose([float(valence), float(arousal)], values, atol=2e-6)
    assert result.lines()[0].startswith("VA + EXPR + AU: 15 rows of 4 videos")


@pytest.mark.parametrize("task", [EXPR, AU, VA], ids=lambda task: task.name)
def test_editions_one_to_five_have_a_file_a_video_and_a_line_a_frame(submit, tmp_path, task):
    folder, lengths = tmp_path / "given", {"video96": 6, "1-30-1280x720": 8, "new": 3}
    folder.mkdir()
    for video, length in lengths.items():
        lines = [HEADERS[task], *["-1"] * length]
        (folder / f"{video}.txt").write_bytes("\r\n".join(lines).encode())
    out, result, scores = submit(folder, out=tmp_path / "entry")
    assert sorted(file.name for file in out.iterdir()) == sorted(f"{v}.txt" for v in lengths)
    for video, length in lengths.items():
        content = (out / f"{video}.txt").read_bytes()
        assert content.count(b"\r\n") == content.count(b"\n") == length + 1
        header, *lines = content.decode().splitlines()
        assert (header, len(lines)) == (HEADERS[task], length)
        if task is not VA:
            found = [expected_scores(scores, task.name, video, k + 1) for k in range(length)]
            assert [line.split(",") for line in lines] == [answer(one, task) for one in found]
    assert result.rows == 17
    assert result.filled_file == tmp_path / "entry.filled.csv"


def test_a_list_of_videos_gives_files_as_long_as_it_or_the_table_says(submit, tmp_path):
    out, result, _ = submit(
        "1-30-1280x720_left\nvideo96.mp4\nnew,4\n", out=tmp_path / "entry", task="au"
    )
    lengths = {file.stem: len(parse(file)[1]) for file in out.iterdir()}
    assert lengths == {"1-30-1280x720_left": 2, "video96": 6, "new": 4}  # 6 could not be read
    assert result.guessed == ("1-30-1280x720_left", "video96")
    assert {parse(file)[0] for file in out.iterdir()} == {HEADERS[AU]}


def test_rules_are_applied_to_the_interpolated_probabilities(submit, tmp_path):
    rng = np.random.default_rng(3)
    bias = tuple(rng.normal(size=8).tolist())
    thresholds = tuple(rng.uniform(0.2, 0.8, 12).tolist())
    rules = [
        dataclasses.replace(plain_rules(EXPR), bias=bias),
        dataclasses.replace(plain_rules(AU), thresholds=thresholds),
    ]
    for task in (EXPR, AU):
        out, _, scores = submit(template_of(task), rules)
        _, rows = parse(out)
        for (video, frame), (_, *cells) in zip(LISTED, rows, strict=True):
            found = expected_scores(scores, task.name, video, frame)
            if task is EXPR:
                assert cells == [str(int((np.log(found) + bias).argmax()))]
            else:
                assert cells == [str(int(s >= t)) for s, t in zip(found, thresholds, strict=True)]


RULES = {
    "windows": (2,) * 8,
    "bias": tuple(np.linspace(-1, 1, 8).tolist()),
    "chosen_on": "folds",
}


@pytest.fixture
def rules_file(tmp_path):
    """A file of rules of EXPR for the heads of `make_table`; with changes."""

    def write(**changes):
        rules = dataclasses.replace(plain_rules(EXPR, HEADS), **RULES | changes)
        (tmp_path / "rules.json").write_bytes(rules.to_bytes())
        return str(tmp_path / "rules.json"), rules

    return write


def test_rules_of_a_file_are_applied_to_a_table_that_was_made_without_any(submit, rules_file):
    file, rules = rules_file()
    out, result, scores = submit(template_of("mtl"), postprocess=file)
    _, rows = parse(out)
    for (video, frame), (*_, cell) in zip(LISTED, [row[:4] for row in rows], strict=True):
        known = {f: found["expr"] for (v, f), found in scores.items() if v == video}
        # Means over frames by a plain loop, then the line between neighbours, then the bias
        smooth = {
            ("v", f): {"e": np.mean([known[k] for k in known if abs(k - f) <= 2], axis=0)}
            for f in known
        }
        found = expected_scores(smooth, "e", "v", frame) if known else prior_of(scores)
        assert cell == str(int((np.log(found) + rules.bias).argmax()))
    assert f"EXPR: decision rules of {file}, chosen on folds" in result.lines()
    assert "AU: no decision rules" in result.lines()


def prior_of(scores):
    return np.mean([found["expr"] for found in scores.values()], axis=0)


def test_plain_rules_are_applied_to_a_table_that_was_made_with_a_bias(submit):
    biased = dataclasses.replace(plain_rules(EXPR, HEADS), bias=RULES["bias"], chosen_on="folds")
    usual, result, _ = submit(template_of(EXPR), [biased])
    assert any("p.parquet, chosen on folds" in line for line in result.lines())
    with_bias = parse(usual)
    out, result, scores = submit(template_of(EXPR), [biased], postprocess="none")
    assert parse(out) != with_bias
    for (video, frame), (_, cell) in zip(LISTED, parse(out)[1], strict=True):
        assert [cell] == answer(expected_scores(scores, "expr", video, frame), EXPR)
    assert "EXPR: no decision rules" in result.lines()


@pytest.mark.parametrize(
    ("made_with", "file", "match"),
    [
        ({"windows": (2,) * 8}, "none", "holds means over windows already .mean over ± 2 frames."),
        ({"windows": (3,) * 8}, {}, "holds means over windows already .mean over ± 3 frames."),
        ({"heads": 2}, "none", "holds the mean of other heads, or with other weights"),
        ({"heads": 2}, {}, "holds the mean of other heads, or with other weights"),
        ({}, "nowhere.json", "--postprocess nowhere.json: no such file; expected auto, none or"),
        ({"task": AU}, {}, "rules for expr, and the entry is of au; name rules for one of these"),
    ],
)
def test_rules_that_do_not_go_with_a_table_are_one_line(
    submit, tmp_path, rules_file, made_with, file, match
):
    task = made_with.pop("task", EXPR)
    weights = [1.0, 3.0][: made_with.pop("heads", 1)]
    heads = tuple(
        WeightedHead(folder="h", sha256=name * 64, weight=w)
        for name, w in zip("ab", weights, strict=False)
    )
    rules = dataclasses.replace(plain_rules(task, heads), **made_with)
    postprocess = file if isinstance(file, str) else rules_file(**file)[0]
    with pytest.raises(raffect.RaffectError, match=match):
        submit(template_of(task), [rules], postprocess=postprocess)
    assert not (tmp_path / "entry.txt").exists()


def test_filled_rows_are_listed(submit):
    _, result, _ = submit(template_of(EXPR))
    with result.filled_file.open(newline="") as file:
        found = {(row["video"], int(row["frame"])): row["filled"] for row in csv.DictReader(file)}
    assert found == {
        ("video96", 3): "held",
        ("video96", 5): "held",
        **{("1-30-1280x720", k): "interpolated" for k in (4, 5, 6)},
        **{("1-30-1280x720", k): "held" for k in (1, 8, 9)},
        ("gone_right", 1): "prior",
        ("gone_right", 2): "prior",
    }
    table = result.to_pandas().set_index("video")
    assert table.loc["1-30-1280x720"].tolist() == [3, 3, 3, 0]
    assert "1 video(s) without a predicted frame have the prior" in "\n".join(result.lines())


def test_an_entry_without_gaps_has_no_list_of_filled_rows(submit, tmp_path):
    submit(template_of(EXPR))
    _, result, _ = submit(template_of(EXPR, [("video96", 4)]))
    assert result.filled_file is None
    assert not (tmp_path / "entry.txt.filled.csv").exists()


def test_line_ends_header_and_names_are_the_templates(submit):
    # A BOM, CRLF, blank lines, a comma behind the header, spaces, numbers of other lengths
    header = b"image_location," + HEADERS[EXPR].replace(",", ", ").encode() + b", "
    lines = [header, b"video96/0000004.png,0", b"", b"  ", b"video96/5.jpg", b"video96/00007.jpg, "]
    out, result, _ = submit(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n\r\n")
    found = out.read_bytes().split(b"\r\n")
    assert found[0] == header
    assert [line.split(b",")[0] for line in found[1:-1]] == [
        b"video96/0000004.png",
        b"video96/5.jpg",
        b"video96/00007.jpg",
    ]
    assert found[-1] == b""
    assert result.by_how["predicted"] == 1


HEADER = f"image_location,{HEADERS[EXPR]}\n"


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (b"", "is empty"),
        (b"\n\r\n \n", "is empty"),
        (HEADER, "lists no frame"),
        (
            HEADER + "video96/00004.jpg,0\nvideo96/4.jpg,0\n",
            "lists 1 frame.s. twice, first video96/4",
        ),
        (HEADER + "video96/00000.jpg,0\n", "has a frame 0"),
        (
            HEADER + "video96/frame4.jpg,0\n",
            "1 lines are not rows of a template, first 'video96/fr",
        ),
        (HEADER + "00004.jpg,0\n", "not rows of a template"),
        (HEADER + "video96/00004,0\n", "not rows of a template"),
        (HEADER + "video96/99999999999.jpg,0\n", "not rows of a template"),
        (HEADER + 'video96/00004.jpg,0\n"video96/00005.jpg",0\n', "not rows of a template"),
        (HEADER + "video96/00004.jpg\x01,0\n", "not a text file of a challenge"),
        (HEADER.encode() + b"video\xff/00004.jpg,0\n", "not a text file of a challenge"),
        (b"\xff\xfe" + HEADER.encode("utf-16-le"), "not a text file of a challenge"),
        (HEADER + "nowhere/00001.jpg,0\n", "predicts no frame of the 1 videos"),
        (HEADERS[EXPR] + "\n0\n", "the file of one video; give the folder"),
        ("a,b,c\nvideo96/00004.jpg,0\n", "not a template, its line 'a,b,c'"),
        ("video96\nvideo96\n", "lists video96 twice"),
        ("video96\nnew\n", "does not say how many frames new has"),
        ("image_location,happy,sad\nvideo96/00004.jpg,0\n", "a template of 2 column.s., happy,sad"),
    ],
)
def test_what_is_no_template_is_one_line(submit, tmp_path, template, match):
    with pytest.raises(raffect.RaffectError, match=match):
        submit(template, [EXPR])
    assert not (tmp_path / "entry.txt").exists()


@pytest.mark.parametrize(
    ("task", "rules", "match"),
    [
        (AU, [EXPR], "a template of au, but .*p.parquet predicts expr; give the template of that"),
        (EXPR, [AU, VA], "a template of expr, but .* predicts au and va"),
        (
            "mtl",
            [EXPR, VA],
            "the multi-task challenge, which takes expr, au and va, but .*expr and",
        ),
    ],
)
def test_a_template_of_another_task_is_refused_in_one_line(submit, task, rules, match):
    with pytest.raises(raffect.RaffectError, match=match):
        submit(template_of(task), rules)


def test_a_list_of_videos_needs_a_task_where_the_table_has_several(submit, tmp_path):
    with pytest.raises(raffect.RaffectError, match="says no task, .*; choose with --task"):
        submit("video96\n", out=tmp_path / "entry")


def test_an_entry_is_never_written_over_what_is_read_or_beside_other_files(submit, tmp_path):
    with pytest.raises(raffect.RaffectError, match="would be written over what is read"):
        submit(template_of(EXPR), out=tmp_path / "template.txt")
    (tmp_path / "entry").mkdir()
    with pytest.raises(raffect.RaffectError, match="a folder, but the template is one file"):
        submit(template_of(EXPR), out=tmp_path / "entry")
    (tmp_path / "entry" / "older.txt").touch()
    with pytest.raises(raffect.RaffectError, match=r"holds \['older.txt'\]"):
        submit("video96\n", [EXPR], out=tmp_path / "entry")


def test_folders_with_files_of_two_tasks_are_refused(submit, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    with pytest.raises(raffect.RaffectError, match="no .txt file in it"):
        submit(folder)
    for name, task in {"a": EXPR, "b": AU}.items():
        (folder / f"{name}.txt").write_text(HEADERS[task] + "\n0\n")
    with pytest.raises(
        raffect.RaffectError, match=r"b.txt: header 'AU1.*', but a.txt has 'Neutral"
    ):
        submit(folder)


def test_a_table_with_two_faces_in_a_frame_is_refused(submit, tmp_path, monkeypatch):
    twice = lambda *args: (part for _ in range(2) for part in iter_predictions(*args))  # noqa: E731
    monkeypatch.setattr("raffect.predictions.challenge.iter_predictions", twice)
    with pytest.raises(raffect.RaffectError, match="predicts video96 frame 4 twice"):
        submit(template_of(EXPR, [("video96", 4)]))


def test_values_are_written_without_exponents_and_within_the_limits():
    values = np.array([[1.5, -1e-9], [-2.0, 1e-5], [0.1234567, -0.5]], np.float32)
    cells = cells_of([plain_rules(VA)], values).to_pylist()
    assert cells == ["1.000000,0.000000", "-1.000000,0.000010", "0.123457,-0.500000"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,8"), "has 8.0 for expr, expected 0 to 7"),
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,-1"), "has -1.0 for expr"),
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,0.5"), "has 0.5 for expr"),
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,nan"), "has nan for expr"),
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,"), "has nan for expr"),
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,x"), "not readable"),
        (lambda text: text.replace("v/1.jpg,0", "v/1.jpg,0,0"), "not readable"),
        (lambda text: text.replace("v/1.jpg", "v/2.jpg"), "not those of the template"),
        (lambda text: text.replace("v/1.jpg,0\n", ""), "has not 2 rows"),
        (lambda text: text.replace("\n", "\r\n"), "its header is another"),
        (lambda text: text.replace("Neutral", "neutral"), "its header is another"),
        (lambda text: text[:-1], "has not 2 rows"),
    ],
)
def test_reading_back_finds_every_fault_of_an_entry(tmp_path, change, why):
    path, header = tmp_path / "entry.txt", HEADER.strip()
    images, cells = texts(["v/1.jpg", "w/1.jpg"]), texts(["0", "7"])
    write_entry(path, header, "\n", images, cells, [EXPR])
    assert find_fault(path, header, "\n", images, 2, [EXPR]) == ""
    path.write_bytes(change(path.read_text()).encode())
    assert why in find_fault(path, header, "\n", images, 2, [EXPR])
    with pytest.raises(raffect.RaffectError, match="not written, it has 9.0 for expr"):
        write_entry(tmp_path / "new.txt", header, "\n", images, texts(["0", "9"]), [EXPR])
    assert not (tmp_path / "new.txt").exists()


def texts(values):
    return pa.array(values, pa.string())


def test_the_command_prints_what_was_filled(submit, tmp_path, capsys):
    submit(template_of(VA))
    files = {"--template": "template.txt", "--predictions": "p.parquet", "--out": "again.txt"}
    words = [word for flag, name in files.items() for word in (flag, str(tmp_path / name))]
    assert main(["submit", *words]) == 0
    out = capsys.readouterr().out
    assert "VA: 15 rows of 4 videos: 5 predicted, 3 interpolated, 5 held, 2 prior" in out
    assert (tmp_path / "again.txt").read_bytes() == (tmp_path / "entry.txt").read_bytes()
