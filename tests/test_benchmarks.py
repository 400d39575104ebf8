"""Each benchmark runs to its end at a small size and prints its table, so that none breaks."""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from raffect.errors import RaffectError
from tests.helpers.sample import sampled

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import gpu_parts

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "encode": "--model ViT-S-32 --frames 4 --batches 2 --repeats 1 "
    "--towers open_clip raffect bfloat16 float8",
    "feed": "--frames 800 --times 2",
    "bank": "--rows 3000 --samples 20",
    "hashing": "--frames 9000 --repeats 2",
    "joining": "--frames 4096",
    "train": "--steps 10 --batches 1 2",
    "tune": "--heads 4 --frames 4096 --epochs 1 --width 32",
    "memory": "--extract 3000 --train 12000",
    "hostile": "--cases 12",
    "predict": "--frames 12000 --heads 1 --repeats 1 --rows 9000",
    "zeroshot": "--frames 8000 --sets 2 --model raffect-faces --weights embedded",
    "emoclip_loop": "--steps 2 --window 4 --batch 4 --dim 64",
    "language": "--frames 400 --num-seeds 0",
    "postprocess": "--frames 400 --num-seeds 1 --folds 2 --tasks va",
    "robust": "--frames 200 --seeds 1 --epochs 1 --corruptions blur --strengths 3",
    "compare": "--frames 200 --seeds 1 --epochs 1 --encoders raffect-faces "
    "timm:vit_tiny_patch16_224:random@64",
    "tower": "--batch 2 --repeats 2 --builds open_clip first inplace folded scaled raffect",
    "export": "--features 300 --pictures 4 --frames 200 --epochs 1 --encoders raffect-faces",
    "startup": "--frames 12000 --models raffect-faces --repeats 1",
}
IN_CI = ("bank", "hashing", "joining", "train", "hostile", "predict", "emoclip_loop", "zeroshot")
"""Of them, those of less than a minute; all start in `test_every_benchmark_explains_itself`."""


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sampled(SMALL, IN_CI))
def test_a_benchmark_runs_to_its_end_and_prints_a_table(name):
    # pytest's own folder is too long a path for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        environment = {**os.environ, "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALL[name].split()],
            env=environment,
            capture_output=True,
            text=True,
            timeout=580,
            check=False,
        )
        names = {path.name for path in Path(folder).iterdir()}
        # The folder of raffect's own Ray stays, for the next one of this user
        left = [n for n in names - {f"raffect-{os.getuid()}"} if n.startswith("raffect-")]
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) >= 3, done.stdout
    assert "nan" not in done.stdout
    assert not left, "left its files behind"


@pytest.mark.parametrize("name", SMALL)
def test_every_benchmark_explains_itself(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


@pytest.mark.cluster
@pytest.mark.release
@pytest.mark.timeout(1800)
def test_all_that_a_gpu_is_asked_runs_on_a_cpu_and_ends_in_a_page(tmp_path):
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--cpu", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    (page,) = tmp_path.glob("gpu_cpu_*_cpu.md")
    text = page.read_text()
    assert "no number here says anything about a GPU" in text
    assert "failed" not in text.replace("tests failed", "")
    for row in gpu.ROWS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {row.text} |")]
        if row.is_check:
            assert ("| not run (CPU) |" if row.needs_cuda else "| pass |") in line, line
        assert row.text in done.stdout
    # What is finished is kept
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.stdout.count(": kept, ") == len(gpu.PARTS)


def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    bad, good = gpu.Done(commit="c", seconds=1.0, failed="status 1: boom"), {}
    for row in gpu.ROWS:
        good.setdefault(row.part, {})[row.value] = row.aim

    def runs(name, size):
        return bad if name == "steps" else gpu.Done(commit="c", seconds=1.0, values=good[name])

    monkeypatch.setattr(gpu, "run_part", runs)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    out = capsys.readouterr().out
    assert out.count("failed: status 1: boom") == sum(row.part == "steps" for row in gpu.ROWS)
    assert "pass   bare tower, frames/s: 3,400 >= 3,400" in out
    failed = sum(row.part == "steps" and row.is_check for row in gpu.ROWS)
    last = f"; {failed} check(s) failed; a trial on a CPU, which says nothing about a GPU"
    assert out.splitlines()[-1].endswith(last)


def test_a_run_says_how_many_checks_it_made(tmp_path, monkeypatch, capsys):
    for part, made in (("encoder", 0), ("training", 2)):
        values = {row.value: row.aim for row in gpu.ROWS if row.part == part}
        done = gpu.Done(commit="c", seconds=1.0, values=values)
        monkeypatch.setattr(gpu, "run_part", lambda name, size, done=done: done)
        words = ["gpu.py", "--cpu", "--only", part, "--out", str(tmp_path / part)]
        monkeypatch.setattr(sys, "argv", words)
        assert gpu.main() == 0
        assert f"; {made} checks made, none failed; a trial" in capsys.readouterr().out


def test_an_aim_that_is_missed_is_short_and_a_check_that_is_missed_fails():
    for row in gpu.ROWS:
        missed = row.aim - 1 if row.bound == ">=" else row.aim + 1
        for value in (missed, float("nan")):
            done = gpu.Done(commit="c", seconds=1.0, values={row.value: value})
            found = gpu.verdict(row, done, gpu.SIZES["full"])
            if row.bound:
                assert found == ("FAIL" if row.is_check else "short")
            assert gpu.is_wrong(row, found) == row.is_check


def test_a_check_without_a_number_fails_unless_this_run_leaves_it_out():
    full, quick, cpu = (gpu.SIZES[name] for name in ("full", "quick", "cpu"))
    ran = gpu.Done(commit="c", seconds=1.0, values={})
    for row in gpu.ROWS:
        found = gpu.verdict(row, ran, full)
        assert found == "missing"
        assert gpu.is_wrong(row, found) == row.is_check
        expected = "not in this run" if row.value in gpu.NOT_QUICK else "missing"
        assert gpu.verdict(row, ran, quick) == expected
        # A CPU that compares itself with itself shows nothing, whatever number it has
        equal = gpu.Done(commit="c", seconds=1.0, values={row.value: row.aim})
        assert (gpu.verdict(row, equal, cpu) == "not run (CPU)") == row.needs_cuda
        assert (gpu.cells(row, {row.part: equal}, cpu)[0] == "-") == row.needs_cuda
    checks = {row.value for row in gpu.ROWS if row.is_check}
    assert checks & gpu.NOT_QUICK == {"bank differs", "kept shards"}


def test_a_run_takes_thirty_minutes_and_a_quick_one_five():
    full, quick = gpu.SIZES["full"], gpu.SIZES["quick"]
    assert sum(gpu.limit_of(name, full) for name in gpu.PARTS) <= 1800
    assert sum(gpu.limit_of(name, quick) for name in gpu.PARTS) <= 300
    assert {row.part for row in gpu.ROWS} == gpu.PARTS.keys()


def test_a_part_that_hangs_costs_its_limit(monkeypatch):
    monkeypatch.setattr(gpu, "limit_of", lambda name, size: 1)
    found = gpu.run_part("tower", gpu.SIZES["cpu"])
    assert found.failed.startswith("took longer than 1 s")


def test_a_page_that_the_command_did_not_write_is_never_overwritten(tmp_path):
    page = tmp_path / "gpu_h100_202611.md"
    page.write_text("by hand")
    with pytest.raises(RaffectError, match="not a page of this command"):
        gpu.measure(page, gpu.SIZES["cpu"], [], again=True)
    assert page.read_text() == "by hand"


def test_without_a_gpu_the_command_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    line = "gpu.py: no CUDA device is here; --cpu tries the script itself\n"
    assert capsys.readouterr() == ("", line)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    words = ["--cpu", "--only", "roofline", "--out", str(tmp_path / "file" / "out")]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(gpu.__file__, run_name="__main__")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("file/out: Not a directory; check the path")


@pytest.mark.cluster
def test_the_tests_of_a_gpu_are_collected_by_the_command_that_runs_them():
    """Both files have one name, which pytest refuses unless it is asked to import them apart."""
    command = [sys.executable, "-m", "pytest", "-q", *gpu_parts.TEST_OPTIONS, *gpu_parts.CUDA_TESTS]
    done = subprocess.run(
        [*command, "--collect-only"],
        cwd=BENCHMARKS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    for file in gpu_parts.CUDA_TESTS:
        assert f"{file}::" in done.stdout
