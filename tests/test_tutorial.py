"""The tutorial prints what its page shows."""

from __future__ import annotations

import re

import pytest

from scripts.tutorial import PAGE, run_step, steps


def skeleton(text):
    """Printed lines without numbers, times and the spaces that align them."""
    bare = re.sub(r"[\d.,]+(?: (?:h|min|s|kB|MB)\b)?", "#", text)
    return [" ".join(re.sub(r"[# ]+", " ", line).split()) for line in bare.splitlines()]


def test_every_block_of_output_stands_below_a_command():
    text = PAGE.read_text()
    assert len(steps(text)) == text.count("```text\n") >= 10
    assert all("\n" not in command for command, _ in steps(text))
    assert all(printed.strip() for _, printed in steps(text))


@pytest.mark.cluster
def test_the_tutorials_commands_print_what_it_shows_but_for_numbers(tmp_path):
    # The last part, a sweep of 55 heads and a video, takes minutes: the script alone runs it
    before = PAGE.read_text().partition("## Then:")[0]
    assert len(steps(before)) >= 7
    for command, printed in steps(before):
        assert skeleton(run_step(command, tmp_path)) == skeleton(printed), command


@pytest.mark.cluster
def test_a_command_that_fails_is_shown_with_its_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"raffect bank info .*status 2\n.*no bank there"):
        run_step(f"raffect bank info --bank {tmp_path}/gone", tmp_path)
