"""A cluster that does not answer, or no more, ends in one line; `ray.init` would wait for ever."""

import os
import socket
import subprocess
import sys

import pytest

from raffect.ray_session import joining, watch

JOINS = """
import sys
from raffect.errors import RaffectError
from raffect.ray_session import joining, watch
from raffect.ray_session.session import ray_session
address, joining.ANSWER_S, watch.LOST_S = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
try:
    with ray_session(address):
        print("joined")
except RaffectError as error:
    print(error)
"""


def join(address: str, answer_s: float, lost_s: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", JOINS, address, str(answer_s), str(lost_s)],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize("listens", [False, True])
def test_an_address_at_which_no_ray_answers_is_one_line(listens):
    with socket.create_server(("0.0.0.0", 0)) as other:  # of another program, which says nothing
        address = f"127.0.0.1:{other.getsockname()[1]}"
        if not listens:
            other.close()
        done = join(address, 1, 100)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"Ray at {address} cannot be reached (no answer within 1 s); check that")
    assert "Traceback" not in done.stderr


def test_a_cluster_that_is_gone_while_it_is_joined_ends_the_process_with_one_line():
    with socket.create_server(("0.0.0.0", 0)) as gone:
        port = gone.getsockname()[1]
    done = join(f"127.0.0.1:{port}", 100, 2)
    assert done.returncode == 2
    assert f":{port}: no connection for 2 s (Connection refused)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_address_is_an_error_before_the_watch_would_end_the_process():
    assert joining.ANSWER_S < watch.LOST_S - 2 * watch.CONNECT_EVERY_S


def test_an_address_is_resolved_as_ray_init_does():
    assert joining.resolve("ray://head:10001") == "head:10001"
    assert joining.resolve("10.0.0.1:6379") == "10.0.0.1:6379"
    assert joining.resolve("local") is None
    with pytest.raises(ValueError, match="Invalid address"):
        joining.resolve("head")
