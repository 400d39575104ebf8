"""`scripts/reproduce.py`: Table I and Figure 2 from a data set and weights, by one command."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raffect.datasets.synthetic.tree import write_synthetic
from raffect.errors import RaffectError
from raffect.runs.metrics_file import Metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import reproduce

SCRIPT = Path(__file__).parents[1] / "scripts" / "reproduce.py"
TRIAL = ["--seeds", "2", "--epochs", "1", "--alphas", "0.3,1"]


def run(*words):
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A trial on a drawn tree, run to its end."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_synthetic(folder / "tree", 800, 0)
    words = (folder / "tree", "embedded", "--out", folder / "out", *TRIAL)
    done = run(*words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "out", words


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_drawn_tree_goes_from_prepare_to_a_page_without_the_papers_scores(reproduced):
    out, _ = reproduced
    (page,) = out.glob("reproduce_*.md")
    text = page.read_text()
    assert (
        "**A trial run, not the paper's: 2 seed(s), 1 epoch(s), alpha 0.3,1 in Figure 2.**" in text
    )
    assert "**Caveat: embedded encoder, not CLIP; drawn faces.**" in text
    assert "The paper's scores are left out: images are drawn." in text
    assert "paper |" not in text.split("## Table I")[1].splitlines()[2]
    for task in ("EXPR", "AU"):
        for recipe in ("paper", "released", "erm"):
            assert f"| {task} | {recipe} | " in text
    assert text.count("(ERM)") == 1
    assert (out / "report" / "report.html").is_file()


@pytest.mark.cluster
@pytest.mark.release
@pytest.mark.timeout(900)
def test_the_same_command_again_trains_nothing_anew(reproduced):
    out, words = reproduced
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/heads/*.json")}
    kept |= {path: path.stat().st_mtime_ns for path in out.glob("bank/shards/*")}
    kept[out / "data" / "manifest.parquet"] = (out / "data" / "manifest.parquet").stat().st_mtime_ns
    assert len(kept) > 10
    done = run(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "done already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_papers_scores_stand_there_only_beside_a_whole_validation_split(reproduced):
    out, _ = reproduced
    runs = {}
    for name in reproduce.run_names():
        file = out / name / "metrics.json"
        runs[name] = Metrics.from_json(file.read_bytes(), file, "-")
    whole = {}
    for name, metrics in runs.items():
        score = 0.36 if "au" not in name else 0.43
        data = replace(metrics.data, published={"Lin et al. 2024": score})
        whole[name] = replace(metrics, data=data)
    shown = "\n".join(reproduce._table(whole, has_paper=True))
    assert shown.count(" .360 |") == 2  # of paper and released, not of plain ERM
    assert shown.count(" .430 |") == 2


def test_a_folder_of_other_settings_is_refused(tmp_path):
    first = reproduce.Settings(data="/a", weights="openai")
    reproduce.claim(replace(first, data="/wrong"), tmp_path)
    reproduce.claim(first, tmp_path)  # nothing was made of the wrong folder
    (tmp_path / reproduce.PREPARED).parent.mkdir()
    (tmp_path / reproduce.PREPARED).touch()
    reproduce.claim(first, tmp_path)
    with pytest.raises(RaffectError, match="was made with seeds 5, not 3; give"):
        reproduce.claim(replace(first, seeds=3), tmp_path)


def test_the_papers_own_settings_are_no_trial_and_train_by_its_recipe():
    settings = reproduce.Settings(data="/data", weights="openai")
    assert not settings.is_trial
    assert replace(settings, epochs=2).is_trial
    words = [" ".join(stage.words) for stage in reproduce.stages(settings, Path("out"))]
    assert not any("--epochs" in line for line in words)
    assert sum(line.startswith("train ") for line in words) == 6
    assert "--space loss.alpha=0.1:1:0.1 seed=0:4" in next(w for w in words if w[:4] == "tune")


def test_what_is_missing_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(RaffectError, match=r"gone: no such folder; expected that of Aff-Wild2"):
        reproduce.main([str(tmp_path / "gone"), "openai"])
    words = [str(tmp_path), str(tmp_path / "gone.pt"), "--out", str(tmp_path / "out")]
    with pytest.raises(RaffectError, match="raffect models pull"):
        reproduce.main(words)
    words[1:2] = ["embedded", "--epochs", "0"]
    with pytest.raises(RaffectError, match="--epochs 0: expected 1 or more"):
        reproduce.main(words)
    words[2:4] = ["--alphas", "high"]
    with pytest.raises(RaffectError, match="loss.alpha 'high': expected a number"):
        reproduce.main(words)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_mended_by_images_and_not_by_a_flag_of_prepare(tmp_path, capfd):
    words = [str(tmp_path), "embedded", "--out", str(tmp_path / "out")]
    assert reproduce.main(words) == 2
    first, last = capfd.readouterr().err.splitlines()[-2:]
    assert "no folder cropped_aligned below it" in first
    assert "bring images and annotations below DATA (flags of prepare are not taken here)" in last


def test_ctrl_c_ends_it_in_one_line(tmp_path):
    write_synthetic(tmp_path / "tree", 200, 0)
    words = [str(tmp_path / "tree"), "embedded", "--out", str(tmp_path / "out"), *TRIAL]
    command = [sys.executable, str(SCRIPT), *words]
    # A group of its own, which Ctrl-C reaches as a whole, as in a terminal
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    assert process.stdout.readline().startswith("[1/10] raffect prepare")
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "reproduce: interrupted; the same command goes on"
    assert "reproduce.py" not in error


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = run(tmp_path, "embedded", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("file/out: Not a directory; check the path\n")
