"""What has to be in order before a cluster is joined: the token, and an answer."""

from __future__ import annotations

import contextlib
import os
import threading

from raffect.errors import RaffectError
from raffect.ray_session import private

ANSWER_S = 20.0
"""Seconds in which a cluster has to answer; one that is being started needs some.

Less than `raffect.ray_session.watch.LOST_S`, after which the watch would end the process."""


def offer_token() -> None:
    """Let Ray send this machine's token, which it does only if ``RAY_AUTH_MODE`` is set."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if private.TOKEN.is_file() or named:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def require_authentication(address: str) -> None:
    """Refuse to join a cluster without a token.

    Everyone who can reach an open cluster can run code on it, and could read the data of this run.

    Raises:
        RaffectError: If no token is known and ``RAY_AUTH_MODE`` is not ``disabled``.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() not in ("token", "disabled"):
        raise RaffectError(
            f"Ray at {address}: no authentication token here (RAY_AUTH_MODE is "
            f"{mode or 'not set'}), so the cluster is either open to everyone who can reach it, or "
            "will not let you in; start it with RAY_AUTH_MODE=token and bring its "
            "~/.ray/auth_token here (cluster/README.md), or set RAY_AUTH_MODE=disabled if you mean "
            "it"
        )


def resolve(address: str) -> str | None:
    """The ``host:port`` of a cluster's GCS, or of a client's server (``ray://``).

    Returns:
        Where `ray.init` will look for ``address``; None for ``local``, which is no cluster yet.

    Raises:
        ConnectionError: If ``auto`` finds no cluster.
        ValueError: If it is no address.
    """
    if address.startswith("ray://"):
        return address.removeprefix("ray://")
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address(address)


def wait_for_answer(address: str) -> None:
    """Wait until a cluster's GCS answers.

    `ray.init` would wait without end, in C++ code, where nothing listens at an address, or another
    program does. A client (``ray://``) has a limit of its own.

    Raises:
        TimeoutError: If there is no answer within `ANSWER_S` seconds.
        ConnectionError: If ``auto`` finds no cluster.
        ValueError: If it is no address.
    """
    where = resolve(address)
    if where is None or "://" in address:
        return
    from ray._raylet import GcsClient  # ty: ignore[import-not-found]

    def ask() -> None:
        with contextlib.suppress(Exception):  # `ray.init` gets it too
            GcsClient(address=where)

    # Nothing can end the thread where no answer comes, so it is left behind
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {ANSWER_S:g} s")
