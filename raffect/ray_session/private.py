"""What of Ray's must be a user's alone: its token, and the folder of its sockets and spilled data.

Rights are given when a file or folder is made. No umask is set for that, since Ray's workers would
inherit it and write banks and runs that colleagues cannot read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from raffect.errors import RaffectError, require

TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray keeps its token unless it is named otherwise."""
SOCKET_BYTES = 107
"""Most bytes of a Unix socket's name on Linux."""
_SOCKET = "/ray/session_2026-11-26_10-35-56_123456_4194304/sockets/plasma_store"
"""The longest name that Ray gives a socket, below our folder."""


def make_temp_folder() -> Path:
    """The folder in which raffect's own Ray keeps sockets, logs and what memory does not hold.

    ``raffect-UID`` in ``RAY_TMPDIR``, else in ``TMPDIR`` if that serves, else in ``/tmp``. It is
    readable by its user alone (mode 0700). Ray opens its own folder to everyone (mode 0777), so
    that is one below.

    Raises:
        RaffectError: If there is something else of that name, it cannot be made, its name is too
            long for sockets, or ``RAY_TMPDIR`` lies in the home folder.
    """
    folder = _choose_base() / f"raffect-{os.getuid()}"
    try:
        _make_private(folder)
    except OSError as error:
        what = f"{folder}: {error.strerror}; Ray keeps its sockets there"
        remedy = "set RAY_TMPDIR to a folder on this machine that you can write"
        raise RaffectError(f"{what}: {remedy}") from error
    return folder / "ray"


def _choose_base() -> Path:
    """Where temporary files go; never below the home folder, which may be on a slow network."""
    if named := os.environ.get("RAY_TMPDIR"):
        base = Path(named).absolute()
        remedy = "name a short folder on this machine, such as /tmp"
        require(not _is_home(base), f"RAY_TMPDIR={named}: lies in your home folder; {remedy}")
        limit = f"too long for Ray's sockets ({SOCKET_BYTES} bytes)"
        require(_is_short(base), f"RAY_TMPDIR={named}: {limit}; {remedy}")
        return base
    base = Path(os.environ.get("TMPDIR", "/tmp")).absolute()
    return base if base.is_dir() and _is_short(base) and not _is_home(base) else Path("/tmp")


def _is_short(base: Path) -> bool:
    folder = f"{base}/raffect-{os.getuid()}{_SOCKET}"
    return len(os.fsencode(folder)) <= SOCKET_BYTES


def _is_home(base: Path) -> bool:
    home = Path.home().resolve()
    return home != Path("/") and base.resolve().is_relative_to(home)


def _make_private(folder: Path) -> None:
    """Make a folder that its user alone can enter, or make sure that it is one.

    Raises:
        OSError: If it cannot be made.
        RaffectError: If it is another user's, a link or no folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    remedy = "delete it, or set RAY_TMPDIR to a folder where nobody else writes"
    require(ours, f"{folder}: is not a folder of your own, and Ray's data goes there; {remedy}")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def make_token() -> None:
    """Make the token of this user's Rays where there is none; Ray's own would be open to everyone.

    Raises:
        RaffectError: If the home folder cannot be written; it names the cure.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or TOKEN.is_file() or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    # A file of another name first, so that nobody reads half a token; of two runs one comes first.
    try:
        TOKEN.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=TOKEN.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(name, TOKEN)
        finally:
            os.unlink(name)
    except OSError as error:
        what = f"{TOKEN.parent}: {error.strerror}; Ray keeps its token in your home folder"
        remedy = "set HOME to a folder that can be written, such as `export HOME=/tmp/$USER`"
        raise RaffectError(f"{what}: {remedy}") from error


def tighten_token() -> None:
    """Make a token private that an earlier Ray wrote readable by everyone."""
    with contextlib.suppress(OSError):
        if TOKEN.stat().st_mode & 0o077:
            TOKEN.chmod(0o600)
