"""Notes of the runs that write into a bank: ``running/HOST-PID-XXXXXX.json``, renewed every minute.

They spare a user two runs that encode the same shards. No promise of the bank rests on them: of
several writers the first record of a shard counts.

Ages are differences of the files' own times, which one clock gives, that of the storage; clocks of
machines may differ.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import socket
import threading
import uuid
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from raffect.errors import RaffectError
from raffect.leaving import last_act
from raffect.progress import format_seconds
from raffect.storage.atomic import write_atomic
from raffect.storage.paths import is_remote, list_sizes, read_files
from raffect.storage.records import Count, Record

RENEWED_S = 60.0
"""Seconds between two renewals of a note."""
DEAD_S = 600.0
"""Age in seconds above which a note is of a run that is dead."""


@dataclass(frozen=True, kw_only=True)
class Writer(Record):
    """A run that writes into a bank.

    Attributes:
        host: Name of its machine.
        machine: What tells its process numbers from those of another machine or container; empty
            where the system does not say.
        pid: Its process.
        renewed: How often it has renewed its note.
    """

    host: str
    machine: str
    pid: Count
    renewed: Count = 0


@contextlib.contextmanager
def note_of_run(bank: Path, join: bool | None = False) -> Generator[None]:
    """Keep a note in a bank for the duration of a block.

    Args:
        bank: Folder of the bank.
        join: Write beside other runs; None where a command cannot.

    Raises:
        RaffectError: If another run writes into the bank, and ``join`` is false.
    """
    ours = Writer(host=socket.gethostname(), machine=_machine(), pid=os.getpid())
    host = re.sub(r"[^\w.-]", "_", ours.host)[:60]
    file = bank / "running" / f"{host}-{ours.pid}-{uuid.uuid4().hex[:6]}.json"
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(file, ours, stop), daemon=True)
    advice = ", or add --join to share the work" if join is False else ""
    try:
        write_atomic(file, ours.to_bytes())
        with _one_at_a_time(file.parent):
            if not join:
                _require_alone(file, ours, advice)
            write_atomic(file, replace(ours, renewed=1).to_bytes())
        renewal.start()
        with last_act(lambda _: file.unlink(missing_ok=True), "after"):
            yield
    finally:
        stop.set()
        if renewal.is_alive():
            renewal.join()
        with contextlib.suppress(Exception):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Generator[None]:
    """Locks a folder against other runs of this machine; nothing where its storage has no locks.

    Between two machines only the order of notes decides: two that start within one tick of the
    storage's clock may then both go on, which costs work done twice and nothing else.
    """
    if is_remote(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _renew(file: Path, ours: Writer, stop: threading.Event) -> None:
    for renewed in itertools.count(2):
        if stop.wait(RENEWED_S):
            return
        # If the storage is at fault, the run itself will say so.
        with contextlib.suppress(Exception):
            write_atomic(file, replace(ours, renewed=renewed).to_bytes())


def _require_alone(file: Path, ours: Writer, or_else: str) -> None:
    """Refuse to run beside a run that came first; notes of dead runs are deleted.

    Each run writes its note, looks, and renews it at once, so of two that start together one goes
    on: a note that was renewed comes before one that was not, and then times and names count.
    """
    now = file.stat().st_mtime
    mine = (ours.renewed == 0, now, file.name)
    names = [name for name in list_sizes(file.parent) if name.endswith(".json")]
    for name, content in read_files(file.parent, sorted(set(names) - {file.name})):
        try:
            other = Writer.from_json(content, name, "delete it")
            written = (file.parent / name).stat().st_mtime
        except (RaffectError, FileNotFoundError):  # damaged, or its run has ended meanwhile
            continue
        age = max(0.0, now - written)
        if age > DEAD_S or _is_dead(other, ours):
            (file.parent / name).unlink(missing_ok=True)
            continue
        if (other.renewed == 0, written, name) < mine:
            raise RaffectError(
                f"{file.parent.parent}: another run writes into it, process {other.pid} on "
                f"{other.host}, seen {format_seconds(age)} ago; wait for it (if it is dead, "
                f"{format_seconds(DEAD_S)}){or_else}"
            )


def _is_dead(other: Writer, ours: Writer) -> bool:
    """Whether a process of this very machine is gone."""
    if not ours.machine or (other.host, other.machine) != (ours.host, ours.machine):
        return False
    try:
        os.kill(other.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's, which lives
        return False
    # One that has ended and was not collected yet. Its state stands behind its name, which may
    # contain anything.
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{other.pid}/stat").read_text(errors="replace")
        return status.rpartition(")")[2].split()[0] in "ZX"
    return False


def _machine() -> str:
    """Names the space of process numbers: the boot, and the container; "" where not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
