"""Kill the GCS, the raylet and the dashboard agent of raffect's own Ray, at seeded random moments.

    uv run python benchmarks/dead_ray.py extract --kills 12 --seed 0         # and tune

Each killed run must end with one clear line and status 2, within ``--limit`` seconds; no process of
it may live on; and the same command must go on. Whatever is finished in the end must have the bytes
of an undisturbed run. The exit status is 1 if anything of that fails.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_jobs import Extract, Tune
from processes import tree
from tools import flags, new_parser, print_header, print_row

TITLES = {
    "GCS": "gcs_server",
    "raylet": "/raylet/raylet ",
    "dashboard agent": "ray::DashboardAgent",
}
"""Victims, and what is in the title of each."""
LEFT_S = 120.0
"""Seconds after which processes that outlive their run are counted as left behind."""
CLEAR = (
    "ended with one line and status 2",
    "went on by itself",
    "hung",
    "without one clear line",
    "other status",
    "processes left",
)


class Sweep(Tune):
    """A smaller sweep, since each kill starts Ray again."""

    settings = (
        *("tune", "paper", "--space", "loss.alpha=0.5:1:0.5", "seed=0:3"),
        *flags(heads_per_trial=2, epochs=6, device="cpu", threads=1),
        *("--head.width", "128"),
    )
    expected = 12


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
    """Runs a job and kills a part of its Ray."""

    def __init__(self, job: Any, folder: Path, rng: random.Random, limit_s: float) -> None:
        self.job, self.folder, self.rng, self.limit_s = job, folder, rng, limit_s
        self.tally, self.begin, self.span_s = Tally(), time.monotonic(), 0.0
        self.log = folder / "log"

    def learn(self) -> None:
        """The undisturbed run, and its seconds from the start of Ray to its end."""
        process = self._start(self.folder / "whole")
        self._victim(process, "raylet")
        start = time.monotonic()
        if status := process.wait():
            raise SystemExit(f"the undisturbed run: status {status}\n{self.log.read_text()}")
        self.span_s = time.monotonic() - start
        self.job.learn(self.folder / "whole")
        self.say(f"undisturbed: {self.span_s:.0f} s from the start of Ray to the end")

    def disturb(self, victims: list[str]) -> None:
        """Finish one folder after another until all victims are used up."""
        while victims:
            out = self.folder / f"run-{self.tally.finished}"
            while not self._run(out, victims):
                pass
            self.tally.finished += 1
            self.say(self.job.close(out, self.tally.broken))

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.begin:6.0f} s  {line}", flush=True)

    def _run(self, out: Path, victims: list[str]) -> bool:
        """One run with one kill, if there is one left; whether it finished."""
        process = self._start(out)
        if not victims:
            return self._is_done(process)
        # A moment over the work that is left; Ray's own start comes before it.
        found = self._victim(process, victims[0])
        share = 1 - self.job.reached(out)
        moment = time.monotonic() + self.rng.random() * self.span_s * share
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.05)
        if found is not None and started(found) is None:  # Ray's start is tried twice
            found = self._victim(process, victims[0])
        if found is None or process.poll() is not None:
            self.tally.late += 1
            return self._is_done(process)
        return self._kill(process, found, victims.pop(0), out)

    def _is_done(self, process: subprocess.Popen) -> bool:
        if status := process.wait():
            raise SystemExit(f"a run that nobody killed: {status}\n{self.log.read_text()}")
        return True

    def _kill(self, process: subprocess.Popen, pid: int, victim: str, out: Path) -> bool:
        """Kill a part of Ray and judge how the run ends; whether it finished all the same."""
        below = {pid: started(pid) for pid in tree(process.pid)}
        done, start = len(self.job.done(out)), time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.tally.kills[victim] += 1
        try:
            status = process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = None
        end_s = time.monotonic() - start
        outlived_s = wait_until_gone(below)
        self.tally.end_s.append(end_s)
        self.tally.outlived_s.append(outlived_s)

        # How it ended
        lines = self.log.read_text().strip().splitlines() or [""]
        name = f"raffect {self.job.words(out)[0]}: "
        by_itself = status == 0  # a start of Ray is tried twice
        errors = [line for line in lines if line.startswith(name)]
        is_clear = len(errors) == 1 and errors[0] == lines[-1]
        is_clear &= not any("Traceback" in line for line in lines)
        failed = {
            "hung": status is None,
            CLEAR[1]: by_itself,
            "without one clear line": not is_clear and not by_itself,
            "other status": status not in (0, 2, None),
            "processes left": outlived_s >= LEFT_S,
        }
        outcomes = [what for what, is_so in failed.items() if is_so] or [CLEAR[0]]
        self.tally.outcomes.update((victim, outcome) for outcome in outcomes)
        state = f"{done}/{self.job.size} done, ended after {end_s:.1f} s with {status}"
        shown = lines[-1][:200] if is_clear else "\n".join(lines[-20:])
        self.say(f"{victim} killed; {state}, last process {outlived_s:.1f} s later: {shown}")
        return by_itself

    def _start(self, out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "raffect.cli", *self.job.words(out)]
        with self.log.open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _victim(self, process: subprocess.Popen, kind: str) -> int | None:
        """Wait for a part of the run's Ray; None if the run ends first."""
        while process.poll() is None:
            for pid, (title, _) in tree(process.pid).items():
                if TITLES[kind] in f"{title} ":
                    return pid
            time.sleep(0.1)
        return None


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


def main() -> int:
    """Run the kills and print the tables."""
    parser = new_parser(__doc__)
    parser.add_argument("job", choices=("extract", "tune"))
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a run hung")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rdead-"))
    try:
        return kill(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill(args: argparse.Namespace, folder: Path) -> int:
    """All kills of a job in a folder; the exit status."""
    rng = random.Random(args.seed)
    victims = [list(TITLES)[k % len(TITLES)] for k in range(args.kills)]
    rng.shuffle(victims)
    job: Any = Extract(folder, args.frames, args.seed)
    if args.job == "tune":
        job = Sweep(folder, job)
    killer = Killer(job, folder, rng, args.limit)
    killer.learn()
    killer.disturb(victims)

    # The tables
    tally = killer.tally
    print()
    print_header("victim", "kills", *CLEAR)
    for victim, count in sorted(tally.kills.items()):
        print_row(victim, count, *(tally.outcomes[victim, outcome] for outcome in CLEAR))
    print("\n| | |\n|---|---|")
    facts = {
        **{name: tally.broken[name] for name in job.columns},
        "finished and compared": tally.finished,
        "kills that came too late": tally.late,
        "s from a kill to the end, median": round(statistics.median(tally.end_s), 1),
        "at most": round(max(tally.end_s), 1),
        "s until its last process ended, at most": round(max(tally.outlived_s), 1),
        "wall s": round(time.monotonic() - killer.begin),
    }
    for name, value in facts.items():
        print_row(name, value)
    is_clear = all(outcome in CLEAR[:2] for _, outcome in tally.outcomes)
    return int(not is_clear or any(tally.broken[name] for name in job.columns))


if __name__ == "__main__":
    sys.exit(main())
