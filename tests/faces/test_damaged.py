"""Damaged pictures and videos end in one clear status, and killed runs lose and double nothing.

`benchmarks/faces.py` damages thousands, `benchmarks/kill_faces.py` kills more; here is a sample.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from faces import STATUSES, make_seeds, mutate, run_case

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
UNKNOWN = {"d.webm": (b"V_VP8", b"V_VPX"), "b.mkv": (b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/AVX")}
"""Names of codecs, and others of which FFmpeg knows nothing."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_a_damaged_picture_or_video_ends_in_one_clear_status(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    found = {}
    for case, file in enumerate(seeds * 2):
        folder = tmp_path / str(case)
        folder.mkdir()
        content = mutate(file.read_bytes(), random.Random(f"suite/{case}"))
        found[f"{case} {file.name}"] = run_case(file.name, content, folder)
    assert not {name: status for name, status in found.items() if status not in STATUSES}
    assert {"no_face", "damaged", "unreadable"} <= set(found.values())


def test_a_whole_picture_or_video_is_not_damaged(seeds, tmp_path):
    for file in seeds:
        folder = tmp_path / file.stem
        folder.mkdir()
        status = run_case(file.name, file.read_bytes(), folder)
        assert status in ("no_face", "ok"), f"{file.name}: {status}"


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_video_of_an_unknown_codec_is_unreadable(name, seeds, tmp_path):
    (file,) = (seed for seed in seeds if seed.name == name)
    known, unknown = UNKNOWN[name]
    assert known in file.read_bytes()
    assert run_case(name, file.read_bytes().replace(known, unknown), tmp_path) == "unreadable"


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_two_kills_at_random_moments_leave_the_bytes_of_an_undisturbed_run():
    # pytest's own folder is too long a path for Ray's sockets.
    command = [sys.executable, str(BENCHMARKS / "kill_faces.py"), "--kills", "2", "--videos", "2"]
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=1100, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "2 kills with seed 0" in done.stdout
    assert "0 faults" in done.stdout
