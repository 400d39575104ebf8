"""Starting Ray: what is refused before it starts, and what its processes are not given."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raffect import ray_session
from raffect.errors import RaffectError


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    """A home folder that cannot be written, even by root: a file."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").touch()
    monkeypatch.setattr(ray_session, "_TOKEN", tmp_path / "home" / ".ray" / "auth_token")
    return tmp_path / "home"


def test_a_home_that_cannot_be_written_is_refused_with_the_cure(no_token):
    with pytest.raises(RaffectError, match=r"export HOME=") as found:
        ray_session._start_local()
    assert str(found.value).startswith(f"{no_token}/.ray: Not a directory; Ray keeps its token")


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_MODE", "disabled"), (None, "")]
)
def test_a_home_that_ray_does_not_write_may_be_read_only(no_token, monkeypatch, name, value):
    if name:
        monkeypatch.setenv(name, value)
    else:  # the token is there already
        monkeypatch.setattr(ray_session, "_TOKEN", no_token)
    ray_session._require_home()


def test_warnings_that_are_errors_are_not_handed_to_rays_processes(local_ray, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with ray_session.ray_session(None):
        assert "PYTHONWARNINGS" not in os.environ


@pytest.mark.cluster
def test_ray_starts_where_warnings_are_errors():
    code = (
        "from raffect.ray_session import ray_session\n"
        "with ray_session(None):\n"
        "    import ray\n"
        "    print(ray.get(ray.remote(lambda: 42).remote()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.strip() == "42", done.stderr
