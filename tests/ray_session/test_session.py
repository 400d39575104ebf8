"""Starting Ray: what is refused before it starts, and what its processes are not given."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raffect.errors import RaffectError
from raffect.ray_session import private, session


def run_code(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which starts a Ray."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    """A home folder that cannot be written, even by root: a file."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").touch()
    monkeypatch.setattr(private, "TOKEN", tmp_path / "home" / ".ray" / "auth_token")
    return tmp_path / "home"


def test_a_home_that_cannot_be_written_is_refused_with_the_cure(no_token):
    with pytest.raises(RaffectError, match=r"export HOME=") as found:
        session._prepare_own()
    assert str(found.value).startswith(f"{no_token}/.ray: Not a directory; Ray keeps its token")


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_MODE", "disabled"), (None, "")]
)
def test_a_home_that_ray_does_not_write_may_be_read_only(no_token, monkeypatch, name, value):
    if name:
        monkeypatch.setenv(name, value)
    else:  # the token is there already
        monkeypatch.setattr(private, "TOKEN", Path(__file__))
    private.make_token()


@pytest.fixture
def open_umask():
    """New files are open to everyone unless their rights are named."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_token_has_its_rights_from_the_start_and_of_two_runs_one_makes_it(
    tmp_path, monkeypatch, open_umask
):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / ".ray" / "auth_token"
    monkeypatch.setattr(private, "TOKEN", token)
    modes, links, real = [], [], os.link

    def link(name, target):
        modes.append(os.stat(name).st_mode & 0o777)
        barrier.wait(timeout=20)  # both have found no token
        real(name, target)
        links.append(Path(target).read_text())

    barrier = threading.Barrier(2)
    monkeypatch.setattr(os, "link", link)
    runs = [threading.Thread(target=private.make_token) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert modes == [0o600, 0o600]
    assert links == [token.read_text()]
    assert len(token.read_text()) == 64
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    assert token.parent.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def base(tmp_path_factory, monkeypatch):
    """A short folder for temporary files, and a home folder elsewhere."""
    folder = tmp_path_factory.mktemp("b")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    if len(str(folder)) > 25:
        pytest.skip(f"{folder} is too long for Ray")
    return folder


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_rays_folder_is_named_by_the_user_and_closed_to_others(base, monkeypatch, open_umask, name):
    monkeypatch.setenv(name, str(base / "x"))
    (base / "x").mkdir()
    private = base / "x" / f"raffect-{os.getuid()}"
    assert private.make_temp_folder() == private / "ray"
    assert private.stat().st_mode & 0o777 == 0o700
    private.chmod(0o777)  # as an earlier program may have left it
    private.make_temp_folder()
    assert private.stat().st_mode & 0o777 == 0o700


def test_rays_folder_is_never_below_home_nor_too_long_for_sockets(base, monkeypatch):
    own = Path(f"/tmp/raffect-{os.getuid()}/ray")
    for bad, why in ((Path.home() / "tmp", "in your home"), (base / ("x" * 60), "too long")):
        bad.mkdir()
        monkeypatch.setenv("TMPDIR", str(bad))
        assert private.make_temp_folder() == own
        monkeypatch.setenv("RAY_TMPDIR", str(bad))
        with pytest.raises(RaffectError, match=f"^RAY_TMPDIR=.*{why}.*; name a short folder"):
            private.make_temp_folder()
        monkeypatch.delenv("RAY_TMPDIR")


def test_the_longest_folder_that_is_taken_is_one_in_which_ray_can_make_its_sockets():
    room = private.SOCKET_BYTES - len(f"/raffect-{os.getuid()}{private._SOCKET}")
    base = Path("/tmp/" + "b" * (room - len("/tmp/")))
    assert private._is_short(base)
    assert not private._is_short(Path(f"{base}b"))
    folder = Path(f"{base}/raffect-{os.getuid()}{private._SOCKET}")
    for path, fits in ((str(folder), True), (f"{folder}b", False)):
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(path)
            except FileNotFoundError:  # the name is taken, and only the folder is not there
                assert fits
            except OSError as error:
                assert "too long" in str(error)
                assert not fits


@pytest.mark.parametrize("kind", ["link", "file", "stranger"])
def test_a_folder_that_somebody_else_prepared_for_ray_is_refused(base, monkeypatch, kind):
    private = base / f"raffect-{os.getuid()}"
    if kind == "link":
        (base / "elsewhere").mkdir()
        private.symlink_to(base / "elsewhere")
    elif kind == "file":
        private.touch()
    else:
        if os.geteuid() != 0:
            pytest.skip("only root may give a folder away")
        private.mkdir()
        os.chown(private, 12345, 12345)
    with pytest.raises(RaffectError, match="is not a folder of your own, .*; delete it, or set"):
        private.make_temp_folder()


def test_warnings_that_are_errors_are_not_handed_to_rays_processes(local_ray, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with session.ray_session(None):
        assert "PYTHONWARNINGS" not in os.environ


@pytest.mark.cluster
def test_ray_starts_where_warnings_are_errors():
    code = (
        "from raffect.ray_session.session import ray_session\n"
        "with ray_session(None):\n"
        "    import ray\n"
        "    print(ray.get(ray.remote(lambda: 42).remote()))\n"
    )
    done = run_code(code, PYTHONWARNINGS="error")
    assert done.stdout.strip() == "42", done.stderr


PRIVATE = """
import os, stat, sys
os.umask(0o022)
from pathlib import Path
from raffect.ray_session.session import ray_session
from raffect.storage.atomic import write_atomic
with ray_session(None):
    import ray
    write = lambda path: write_atomic(Path(path), b"")
    ray.get(ray.remote(write).remote(sys.argv[1]))
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    print(folder.parents[1], oct(folder.parents[1].stat().st_mode & 0o777))
    print(oct(os.stat(sys.argv[1]).st_mode & 0o777), os.environ["RAY_USAGE_STATS_ENABLED"])
"""


@pytest.mark.cluster
def test_rays_folder_is_private_and_files_of_its_workers_are_not(base, tmp_path):
    done = run_code(PRIVATE, str(tmp_path / "file"))
    assert done.stdout.splitlines() == [f"{base}/raffect-{os.getuid()} 0o700", "0o644 0"], (
        done.stderr
    )


@pytest.mark.cluster
def test_a_ray_that_does_not_start_is_one_line_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    code = "import pathlib, sys; from raffect.ray_session import session\n"
    code += "session._start(pathlib.Path(sys.argv[1]))"
    done = run_code(code, str(tmp_path / "file"))
    last = done.stderr.splitlines()[-1]
    assert "Ray did not start on this machine (" in last
    assert last.endswith(
        "give the command again where the machine is busy, else see `raffect doctor`"
    )
