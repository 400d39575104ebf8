"""Kill what belongs to a run on raffect's own Ray, at seeded random moments.

    uv run python benchmarks/dead_ray.py extract --kills 12 --seed 0
    uv run python benchmarks/dead_ray.py train --kills 6 --while-starting 0.5

Victims are the GCS, the raylet and the dashboard agent, some of them while Ray starts, the run
itself, and its actors, tasks and idle workers. The jobs: `extract`; `tune`, `asha` and `train`, a
sweep, one under a scheduler, and two heads on two workers of Ray Train; `writers` and `store`, two
runs that write one bank, on a disk and in an object store (moto's), of which one is disturbed.

A run must go on by itself or end with one clear line and status 2, within ``--limit`` seconds; no
process of it may live on; and the same command must go on. Whatever is finished in the end must
have the bytes of an undisturbed run. The exit status is 1 if anything of that fails.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_jobs import Asha, Extract, Sweep, Train, Writers, WritersInStore
from processes import tree
from tools import new_parser, print_header, print_row

SERVERS = {
    "GCS": "/gcs_server ",
    "raylet": "/raylet/raylet ",
    "dashboard agent": "ray::DashboardAgent",
}
"""Parts of Ray, which are also killed while they start, and what is in the title of each."""
DRIVER, IDLE = "driver", "idle worker"
JOBS = {
    "extract": Extract,
    "tune": Sweep,
    "asha": Asha,
    "train": Train,
    "writers": Writers,
    "store": WritersInStore,
}
STARTED = "starting Ray: "
"""In the log of a run whose Ray has started."""
LEFT_S = 120.0
"""Seconds after which processes that outlive their run are counted as left behind."""
CLEAR = (
    "one line, status 2",
    "went on by itself",
    "was the victim",
    "hung",
    "without one clear line",
    "other status",
    "processes left",
    "other writer failed",
)
NUM_GOOD = 3


@dataclass
class Tally:
    """What happened."""

    kills: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)
    broken: Counter = field(default_factory=Counter)
    finished: int = 0
    late: int = 0
    end_s: list[float] = field(default_factory=list)
    outlived_s: list[float] = field(default_factory=list)


class Killer:
    """Runs a job and kills a part of it.

    Args:
        job: Of `JOBS`.
        folder: For all of its files.
        rng: Decides victims and moments.
        victims: Each with whether it dies while Ray starts.
        limit_s: Seconds after which a run hung.
    """

    def __init__(
        self,
        job: Any,
        folder: Path,
        rng: random.Random,
        victims: list[tuple[str, bool]],
        limit_s: float,
    ) -> None:
        self.job, self.folder, self.rng, self.limit_s = job, folder, rng, limit_s
        self.victims, self.tally, self.begin = victims, Tally(), time.monotonic()
        self.log, self.work_s = folder / "log", 0.0
        self.start_s: dict[str, float] = {}
        self.titles = SERVERS | {IDLE: "ray::IDLE"}
        self.titles |= {kind: f"ray::.*({title})" for kind, title in job.titles.items()}

    def learn(self) -> None:
        """The undisturbed run: seconds from each part's beginning to Ray's, and from there on."""
        process = self._start(self.folder / "whole", self.log)
        begun = {kind: self._appearance(process, kind) for kind in SERVERS}
        up = self._await_ray(process)
        self.start_s = {kind: max(0.0, up - moment) for kind, moment in begun.items()}
        if status := process.wait():
            raise SystemExit(f"the undisturbed run: status {status}\n{self.log.read_text()}")
        self.work_s = time.monotonic() - up
        self.job.learn(self.folder / "whole")
        start_s = max(self.start_s.values())
        self.say(f"undisturbed: Ray started within {start_s:.0f} s, {self.work_s:.0f} s from there")

    def disturb(self) -> None:
        """Finish one folder after another until all victims are used up."""
        while self.victims:
            out, seen = self.folder / f"run-{self.tally.finished}", {}
            while not self._run(out):
                self._note_repeated(out, seen)
            self._note_repeated(out, seen)
            self.tally.finished += 1
            self.say(self.job.close(out, self.tally.broken))

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.begin:6.0f} s  {line}", flush=True)

    def _run(self, out: Path) -> bool:
        """One run with one kill, if there is one left; whether the folder is finished."""
        process = self._start(out, self.log)
        logs = [self.folder / f"log-{k}" for k in range(1, self.job.writers)]
        beside = [(self._start(out, log), log) for log in logs]
        finished = [self._disturb_one(process, out)]
        for other, log in beside:
            finished.append(other.wait() == 0)
            if not finished[-1]:
                self.tally.outcomes["nobody", "work", CLEAR[-1]] += 1
                self.say(f"the other writer failed: {log.read_text()[-3000:]}")
        return any(finished)

    def _disturb_one(self, process: subprocess.Popen, out: Path) -> bool:
        """Kill a part of a run; whether it finished all the same."""
        if not self.victims:
            return self._is_done(process)
        victim, in_start = self.victims[0]
        # A moment of Ray's start, or over the work that is left
        if in_start:
            moment = self._appearance(process, victim) + self.rng.random() * self.start_s[victim]
        else:
            up = self._await_ray(process)
            moment = up + self.rng.random() * self.work_s * (1 - self.job.reached(out))
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        # Ray's start is tried twice, and tasks are short
        while (pid := self._find(process, victim)) is not None:
            below = {pid: started(pid) for pid in tree(process.pid)}
            done, is_up = len(self.job.done(out)), STARTED in self.log.read_text()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.victims.pop(0)
                self.say(f"{victim} killed, {done}/{self.job.size} done")
                return self._judge(process, (victim, not is_up), below)
        self.tally.late += 1
        return self._is_done(process)

    def _is_done(self, process: subprocess.Popen) -> bool:
        if status := process.wait():
            raise SystemExit(f"a run that nobody killed: {status}\n{self.log.read_text()}")
        return True

    def _judge(
        self, process: subprocess.Popen, kill: tuple[str, bool], below: dict[int, str | None]
    ) -> bool:
        """Judge how a run ends; whether it finished all the same."""
        victim, in_start = kill
        key, start = (victim, "Ray's start" if in_start else "work"), time.monotonic()
        self.tally.kills[key] += 1
        try:
            status = process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = None
        end_s = time.monotonic() - start
        outlived_s = wait_until_gone(below)
        self.tally.outlived_s.append(outlived_s)

        # How it ended
        lines = self.log.read_text().strip().splitlines() or [""]
        errors = [line for line in lines if line.startswith(f"raffect {self.command}: ")]
        is_clear = len(errors) == 1 and errors[0] == lines[-1]
        is_clear &= not any("Traceback" in line for line in lines)
        is_good = status == 0 or victim == DRIVER
        found = {
            "went on by itself": status == 0,
            "was the victim": victim == DRIVER,
            "hung": status is None,
            "without one clear line": not is_clear and not is_good,
            "other status": status not in (0, 2, None) and victim != DRIVER,
            "processes left": outlived_s >= LEFT_S,
        }
        outcomes = [what for what, is_so in found.items() if is_so] or [CLEAR[0]]
        self.tally.outcomes.update((*key, outcome) for outcome in outcomes)
        if not is_good:
            self.tally.end_s.append(end_s)
        shown = lines[-1][:200] if is_clear or is_good else "\n".join(lines[-20:])
        state = f"in {key[1]}: ended after {end_s:.1f} s with {status}"
        self.say(f"{victim} {state}, last process {outlived_s:.1f} s later: {shown}")
        return status == 0

    @property
    def command(self) -> str:
        return self.job.words(self.folder)[0]

    def _start(self, out: Path, log: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "raffect.cli", *self.job.words(out)]
        with log.open("w") as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def _appearance(self, process: subprocess.Popen, kind: str) -> float:
        """Wait for a part of the run's Ray; the moment."""
        self._find(process, kind)
        return time.monotonic()

    def _await_ray(self, process: subprocess.Popen) -> float:
        """Wait until Ray has started, or the run has ended; the moment."""
        while process.poll() is None and STARTED not in self.log.read_text():
            time.sleep(0.05)
        return time.monotonic()

    def _find(self, process: subprocess.Popen, kind: str) -> int | None:
        """Wait for a process of a kind; None if the run ends first."""
        while process.poll() is None:
            if kind == DRIVER:
                return process.pid
            below = sorted((pid, title) for pid, (title, _) in tree(process.pid).items())
            found = [pid for pid, title in below if re.search(self.titles[kind], f"{title} ")]
            if found:
                return self.rng.choice(found)
            time.sleep(0.05)
        return None

    def _note_repeated(self, out: Path, seen: dict[str, int]) -> None:
        """Count finished heads whose record has changed; a shard may be written twice."""
        if isinstance(self.job, Extract):
            return
        for name, written in self.job.done(out).items():
            self.tally.broken["heads repeated"] += seen.setdefault(name, written) != written
            seen[name] = written


def started(pid: int) -> str | None:
    """When a process started; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def wait_until_gone(processes: dict[int, str | None]) -> float:
    """Seconds until processes have ended, `LEFT_S` at most."""
    begin = time.monotonic()
    while any(start and started(pid) == start for pid, start in processes.items()):
        if time.monotonic() - begin > LEFT_S:
            return LEFT_S
        time.sleep(0.1)
    return time.monotonic() - begin


@contextlib.contextmanager
def object_store() -> Iterator[None]:
    """An object store on this machine, with a bucket, which this process and its children use."""
    from moto.server import ThreadedMotoServer

    from raffect.storage.paths import locate

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    os.environ |= {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    locate(f"{WritersInStore.bucket}/x").fs.mkdir(WritersInStore.bucket.removeprefix("s3://"))
    try:
        yield
    finally:
        server.stop()


def choose_victims(args: argparse.Namespace, rng: random.Random) -> list[tuple[str, bool]]:
    """All kinds in turn, in random order; a share of the parts of Ray dies while it starts."""
    kinds = args.victims or [*SERVERS, DRIVER, *JOBS[args.job].titles, IDLE]
    names = [kinds[k % len(kinds)] for k in range(args.kills)]
    rng.shuffle(names)
    return [(name, name in SERVERS and rng.random() < args.while_starting) for name in names]


def main() -> int:
    """Run the kills and print the tables."""
    parser = new_parser(__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--victims", nargs="+", help="all kinds that the job has by default")
    share = "share of the kills of Ray's parts that come while it starts"
    parser.add_argument("--while-starting", type=float, default=0.4, help=share)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a run hung")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rdead-"))
    try:
        with object_store() if args.job == "store" else contextlib.nullcontext():
            return kill(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill(args: argparse.Namespace, folder: Path) -> int:
    """All kills of a job in a folder; the exit status."""
    rng, kind = random.Random(args.seed), JOBS[args.job]
    victims = choose_victims(args, rng)
    if issubclass(kind, Extract):
        job: Any = kind(folder, args.frames, args.seed)
    else:
        job = kind(folder, Extract(folder, args.frames, args.seed))
    killer = Killer(job, folder, rng, victims, args.limit)
    killer.learn()
    killer.disturb()

    # The tables
    tally = killer.tally
    print()
    print_header("victim", "in", "kills", *CLEAR)
    for key, count in sorted(tally.kills.items()):
        print_row(*key, count, *(tally.outcomes[*key, outcome] for outcome in CLEAR))
    print("\n| | |\n|---|---|")
    facts = {
        **{name: tally.broken[name] for name in job.columns},
        "finished and compared": tally.finished,
        "kills that came too late": tally.late,
        "s from a kill to the line, median": round(statistics.median(tally.end_s or [0]), 1),
        "at most": round(max(tally.end_s, default=0), 1),
        "s until a run's last process ended, at most": round(max(tally.outlived_s), 1),
        "wall s": round(time.monotonic() - killer.begin),
    }
    for name, value in facts.items():
        print_row(name, value)
    is_clear = all(outcome in CLEAR[:NUM_GOOD] for *_, outcome in tally.outcomes)
    return int(not is_clear or any(tally.broken[name] for name in job.columns))


if __name__ == "__main__":
    sys.exit(main())
