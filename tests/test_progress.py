"""What a user sees while waiting: stages, counts, rates, on a terminal and in a log."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from raffect import progress as module
from raffect.progress import Progress, stage


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_log_names_a_stage_that_lasts_and_then_its_time(monkeypatch, capsys):
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    with stage("loading torch"):
        time.sleep(0.5)
        begun = capsys.readouterr().err
    assert begun == "loading torch ...\n"
    assert capsys.readouterr().err.startswith("loading torch: 0.")


def test_a_short_stage_passes_without_a_word_and_one_that_must_be_seen_does_not(capsys):
    with stage("reading"):
        pass
    assert capsys.readouterr().err == ""
    with stage("starting Ray", at_once=True):
        assert capsys.readouterr().err == "starting Ray ...\n"
    assert Progress.current is None


def test_a_long_stage_is_named_ever_more_rarely(monkeypatch, capsys):
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.1)
    with stage("waiting"):
        time.sleep(1.5)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 7  # at 0.05, 0.15, 0.3, 0.6, 1.2 s, and at the end; not fifteen
    assert all(line.startswith("waiting ... ") for line in lines[1:-1])


def test_a_stage_that_fails_ends_as_well(monkeypatch, capsys):
    with pytest.raises(OSError, match="full"), stage("writing", at_once=True):
        raise OSError("full")
    assert capsys.readouterr().err.splitlines()[-1].startswith("writing: ")
    assert Progress.current is None


def test_time_that_is_left_follows_from_the_steady_rate_alone(clock):
    with Progress("extract", 10_000) as progress:
        clock.now += 300  # start-up
        progress.advance(0)
        assert progress.text() == "0 of 10,000 frames"
        clock.now += 1
        progress.advance(100)
        assert "to go" not in progress.text()  # too little is known
        for _ in range(9):
            clock.now += 1
            progress.advance(100)
        assert progress.text() == "1,000 of 10,000 frames, 100/s, about 1 min 30 s to go"


def test_of_work_that_is_counted_late_the_first_count_is_in_no_rate(clock):
    """Nobody knows how long the first count took, since start-up is in it."""
    with Progress("train", 1000, "head-steps") as progress:
        clock.now += 50
        progress.advance(10)
        clock.now += 10
        progress.advance(10)
        assert progress.rate() == 1


def test_a_resume_shows_what_earlier_runs_did_and_the_rate_of_this_one(clock):
    with Progress("extract", 100_000, earlier=12_000) as progress:
        progress.advance(0)
        clock.now += 40
        progress.advance(24_000)
        expected = (
            "36,000 of 100,000 frames (12,000 by earlier runs), 600/s, about 1 min 47 s to go"
        )
        assert progress.text() == expected
        progress.add_earlier(4_000)
        assert progress.text().startswith(
            "40,000 of 100,000 frames (16,000 by earlier runs), 600/s"
        )


def test_work_under_way_is_counted_once_and_may_be_lost(clock):
    with Progress("extract", 4096) as progress:
        progress.advance(0)
        clock.now += 10
        progress.advance(0, under_way=1500)
        assert (progress.done, progress.rate()) == (1500, 150)
        progress.advance(2048)  # that shard is finished
        assert progress.done == 2048
        clock.now += 1
        progress.advance(0, under_way=300)
        progress.advance(0)  # its encoder died
        assert progress.done == 2048
        assert progress.rate() == pytest.approx(2048 / 11)


def test_the_rate_is_of_the_last_minute(clock):
    with Progress("x", 10**9) as progress:
        for per_second in [1000] * 300 + [10] * 61:
            clock.now += 1
            progress.advance(per_second)
        assert progress.rate() == pytest.approx(10)


def test_small_rates_keep_two_digits(clock):
    with Progress("x", 100) as progress:
        progress.advance(0)
        clock.now += 64
        progress.advance(10)
        assert "0.16/s, about 9 min 36 s to go" in progress.text()


def test_a_log_has_the_count_early_and_then_every_half_minute(clock, capsys):
    with Progress("extract", 1000) as progress:
        progress.advance(0)
        for _ in range(70):
            clock.now += 1
            progress.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["extract: 5", "extract: 35", "extract: 65"]


def test_a_count_ends_a_stage(clock):
    with Progress("tune", 10, "head-steps") as progress:
        progress.begin_stage("starting trials")
        assert progress.text().startswith("starting trials ... ")
        progress.advance(5)
        assert progress.text() == "5 of 10 head-steps"


ON_A_TERMINAL = """
import time
from raffect.progress import Progress, stage
from raffect.ray_session.session import _silent_stderr
with stage("starting Ray"), _silent_stderr():
    time.sleep(1.3)
with Progress("extract", 100, earlier=20) as progress:
    progress.advance(0)
    for _ in range(25):
        time.sleep(0.1)
        progress.advance(1, under_way=10)
"""


def test_a_terminal_has_one_line_that_is_replaced_in_place_and_erased():
    """Also while standard error is turned off, as it is while Ray starts."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL],
        stderr=theirs,
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(theirs)
    seen = io.BytesIO()
    while True:
        try:
            seen.write(os.read(ours, 65536))
        except OSError:  # the child has closed the terminal
            break
    assert child.wait() == 0
    text = seen.getvalue().decode()
    # Replaced in place: each line is written over the one before, and both are gone at the end
    assert "starting Ray ... 1." in text
    assert re.search(r"[34]\d of 100 frames \(20 by earlier runs\)", text)
    assert "/s, about " in text
    erase = "\r\x1b[1A\x1b[2K"
    assert text.count("\n") == text.count(erase) == 2
    assert text.endswith(erase)
