"""Kill drivers, workers, actors and whole nodes of a Ray cluster, and check what they leave.

    uv run python benchmarks/chaos.py extract --kills 50 --seed 0            # and tune, train
    uv run python benchmarks/chaos.py tune --kills 50 --victims driver node
    uv run python benchmarks/chaos.py extract --kills 50 --naive             # a careless bank

Kills come at seeded random moments, and nothing may be lost, doubled or changed. With ``--naive``
the bank is written carelessly, and the checks must notice.

The cluster is `ray.cluster_utils.Cluster`: a head and ``--nodes`` nodes on this machine, with
logical CPUs and GPUs (everything computes on the CPU). ``raffect extract|tune|train --address``
runs in a process of its own, so a driver that is killed leaves Ray standing. An undisturbed run
comes first; then runs are disturbed until the kills are used up, each followed by the same command
again where it did not finish by itself. Whatever is finished is compared with the undisturbed one,
and a new folder is begun. The exit status is 1 if anything was lost, doubled, changed or trained
twice, if a run hung or failed without one clear line; with ``--naive`` it is 1 if nothing of that
was found.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_jobs import Extract, Train, Tune
from chaos_nodes import ROOT, Nodes, choose_package, probe
from processes import CpuWatch, tree
from tools import new_parser, print_header, print_row

HUNG_S = 300
IN_START = 0.2
"""Share of the drivers that are killed before their first progress."""
BY_ITSELF, RERUN, UNKNOWN = OUTCOMES = (
    "the run went on by itself",
    "it took a rerun",
    "the driver was killed as well",
)
HUNG, UNCLEAR = "runs that hung", "runs that failed without one clear line"
JOBS = {"extract": Extract, "tune": Tune, "train": Train}
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Tally:
    """What happened; every field of ``broken`` must be 0."""

    kills: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)
    finished: int = 0
    runs: int = 0
    reruns: int = 0
    missed: int = 0
    rerun_start_s: list[float] = field(default_factory=list)
    broken: Counter = field(default_factory=Counter)


@dataclass
class Run:
    """One run of the command.

    Attributes:
        process: The driver.
        out: Its folder.
        seen: When the record of each finished head was written, noted over all runs on a folder;
            None for the undisturbed run.
        start: When it started, on the clock of files.
        start_s: Likewise, on the monotonic clock.
        begun_s: Seconds to its first progress, once that has been seen.
        killed: Kinds of what was killed in it.
    """

    process: subprocess.Popen
    out: Path
    seen: dict[str, int] | None
    start: float
    start_s: float
    begun_s: float | None = None
    killed: list[str] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None


class Chaos:
    """Runs a job and kills what belongs to it."""

    def __init__(
        self,
        job: Any,
        nodes: Nodes,
        folder: Path,
        rng: random.Random,
        victims: list[str],
        kills_a_folder: float = math.inf,
    ) -> None:
        self.job, self.nodes, self.folder, self.rng, self.victims = job, nodes, folder, rng, victims
        self.tally, self.begin, self.kills_a_folder = Tally(), time.monotonic(), kills_a_folder
        self.start_s, self.span_s, self.folder_kills = 0.0, 0.0, 0
        self.log = folder / "driver.log"

    def learn(self) -> None:
        """The undisturbed run: what comes out, and seconds before and after its first progress."""
        run = self._start(self.folder / "whole", None)
        self._wait(run, lambda: self._has_begun(run))
        self.start_s = time.monotonic() - run.start_s
        self._wait(run)
        self.span_s = time.monotonic() - run.start_s - self.start_s
        if status := run.process.returncode:
            log = self.log.read_text()
            raise SystemExit(f"the undisturbed run failed with status {status}:\n{log}")
        self.job.learn(run.out)

    def disturb(self, until: Callable[[], bool]) -> None:
        """Finish one folder after another, with kills in between, until ``until`` is true."""
        while not until():
            # A folder, by as many runs as it takes
            out, seen, self.folder_kills = self.folder / f"run-{self.tally.finished}", {}, 0
            while not self._run(out, seen):
                self.tally.reruns += 1

            # What is wrong with it
            self.tally.finished += 1
            self.say(self.job.close(out, self.tally.broken))

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.begin:6.0f} s  {line}", flush=True)

    def _run(self, out: Path, seen: dict[str, int]) -> bool:
        """One run of the command, disturbed while there are kills left; whether it finished."""
        is_first = not out.exists()
        run = self._start(out, seen)
        self.tally.runs += 1
        while self.victims and not run.has_ended and self.folder_kills < self.kills_a_folder:
            victim = self.victims[0]
            self._await_moment(run, victim)
            # A kill that can harm nothing proves nothing.
            if run.has_ended or self.job.reached(out) >= 1:
                self.tally.missed += 1
                break
            if not self._kill(victim, run):
                self.tally.missed += 1
                continue
            self.victims.pop(0)
            self.folder_kills += 1
            run.killed.append(victim)
            if victim == "driver":
                break
        # To its end
        self._wait(run, lambda: self._has_begun(run))
        self._wait(run)
        if not is_first and run.begun_s is not None:
            self.tally.rerun_start_s.append(run.begun_s)
        return self._judge(run.process.returncode, run.killed)

    def _await_moment(self, run: Run, victim: str) -> None:
        """Wait for a random moment to kill; a driver may also die before it has begun."""
        in_start = victim == "driver" and self.rng.random() < IN_START
        if not in_start:
            self._wait(run, lambda: self._has_begun(run))
        # Uniform over the work that is left, not over seconds, since other load makes this machine
        # faster and slower during a run.
        share, jitter = self.rng.random(), self.rng.random()
        target, jitter_s = 0.0, jitter * self.start_s
        if not in_start:
            target = share + (1 - share) * self.job.reached(run.out) - self.job.step
            jitter_s = jitter * self.span_s * self.job.step
        self._wait(run, lambda: self.job.reached(run.out) >= target)
        moment = time.monotonic() + jitter_s
        self._wait(run, lambda: time.monotonic() > moment)

    def _judge(self, status: int, killed: list[str]) -> bool:
        """Count what became of a run that has ended, for each kill in it."""
        # Whether the run would have survived the kills before the driver's is unknown.
        if status and killed[-1:] == ["driver"]:
            before = [f"{victim} {UNKNOWN}" for victim in killed[:-1]]
            self.tally.outcomes.update([*before, f"driver {RERUN}"])
            return False
        outcome = RERUN if status else BY_ITSELF
        self.tally.outcomes.update(f"{victim} {outcome}" for victim in killed)
        if status == 0:
            return True

        # A failure must end with one clear line
        lines = self.log.read_text().strip().splitlines() or ["nothing"]
        is_ours = lines[-1].startswith(f"raffect {type(self.job).__name__.lower()}: ")
        clear = is_ours and not any("Traceback" in line for line in lines)
        self.tally.broken[UNCLEAR] += not clear
        shown = lines[-1][:300] if clear else "\n".join(lines[-60:])
        self.say(f"the run failed with status {status}: {shown}")
        return False

    def _kill(self, victim: str, run: Run) -> bool:
        """Kill one of a kind; False if none was there."""
        # What is alive now
        workers, alive = self.nodes.workers(), {}
        for kind, pattern in self.job.titles.items():
            alive[kind] = [worker for worker in workers if re.search(pattern, worker[1])]
        living = ", ".join(f"{len(found)} {kind}s" for kind, found in alive.items())
        done = f"{len(self.job.done(run.out))}/{self.job.size} done"
        state = f"{done}; alive: {living}, {len(self.nodes)} nodes"

        # The kill
        if victim == "driver":
            name = f"process {run.process.pid}"
            run.process.kill()
        elif victim == "node":
            name = self.nodes.remove(self.rng)
        else:
            if not alive[victim]:
                return False
            pid, name = self.rng.choice(sorted(alive[victim]))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        self.tally.kills[victim] += 1
        self.say(f"kill {self.tally.kills.total()}: {victim} ({name}); {state}")

        # Another node for one that was removed
        if victim == "node":
            time.sleep(self.rng.uniform(0.5, 5))
            self.nodes.add()
        return True

    def _start(self, out: Path, seen: dict[str, int] | None) -> Run:
        words = [*self.job.words(out), "--address", self.nodes.address]
        command = [sys.executable, "-m", "raffect.cli", *words]
        start, start_s = time.time(), time.monotonic()
        with self.log.open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        return Run(process, out, seen, start, start_s)

    def _has_begun(self, run: Run) -> bool:
        """Whether a run has made progress; notes after how many seconds."""
        if run.begun_s is None and self._newest(run.out) > run.start:
            run.begun_s = time.monotonic() - run.start_s
        return run.begun_s is not None

    def _wait(self, run: Run, ready: Callable[[], bool] = lambda: False) -> None:
        """Until ``ready``, the end of the process, or HUNG_S without progress.

        Finished heads whose record changes are counted on the way.
        """
        quiet, before = time.monotonic(), 0.0
        while not run.has_ended and not ready():
            time.sleep(0.2)
            newest = self._newest(run.out)
            if newest != before:
                quiet, before = time.monotonic(), newest
            if time.monotonic() - quiet > HUNG_S:
                self.say(f"no progress for {HUNG_S} s, ended: {self.log.read_text()[-2000:]}")
                self.tally.broken[HUNG] += 1
                run.process.kill()
                run.process.wait()
            self._note_repeated(run)
        self._note_repeated(run)

    def _note_repeated(self, run: Run) -> None:
        # A shard may be written twice, by a task that Ray repeats.
        if run.seen is None or isinstance(self.job, Extract):
            return
        for name, written in self.job.done(run.out).items():
            if run.seen.setdefault(name, written) != written:
                run.seen[name] = written
                self.tally.broken["heads repeated"] += 1

    def _newest(self, out: Path) -> float:
        """When the last sign of progress was written; 0 without any."""
        found = [0.0]
        for sign in self.job.signs:
            for path in out.glob(sign):
                with contextlib.suppress(FileNotFoundError):
                    found.append(path.stat().st_mtime)
        return max(found)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder; nothing of it and of our processes is left afterwards, however this ends."""
    # Processes that lose their parent stay below this one, where they are found.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    folder = Path(tempfile.mkdtemp(prefix="rchaos-"))  # short: Ray's sockets lie below it
    try:
        yield folder
    finally:
        for pid in tree().keys() - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def report(args: argparse.Namespace, chaos: Chaos, wall_s: float, cpu_s: float) -> dict[str, Any]:
    """Print the tables; the same as data."""
    # Kills
    tally = chaos.tally
    print()
    print_header("victim", "kills", *OUTCOMES)
    for victim, count in sorted(tally.kills.items()):
        print_row(victim, count, *(tally.outcomes[f"{victim} {outcome}"] for outcome in OUTCOMES))

    # What was found, and what it took
    begun = statistics.median(tally.rerun_start_s) if tally.rerun_start_s else None
    facts = {
        "runs finished and checked": tally.finished,
        "reruns": tally.reruns,
        "kills that came too late": tally.missed,
        "median s to a rerun's first progress": begun if begun is None else round(begun, 1),
        "undisturbed s": round(chaos.start_s + chaos.span_s),
        "wall s": round(wall_s),
        "CPU s": round(cpu_s),
    }
    broken = {name: tally.broken[name] for name in (*chaos.job.columns, UNCLEAR, HUNG)}
    print("\n| | |\n|---|---|")
    for name, value in (broken | facts).items():
        print_row(name, value)
    arguments = vars(args) | {"json": str(args.json)}
    return {"arguments": arguments, "tally": vars(tally), "broken": broken, "facts": facts}


def parse() -> argparse.Namespace:
    """The command line."""
    parser, kinds = new_parser(__doc__), ("driver", "worker", "actor", "node")
    all_kinds, frames = (
        "all that the job has by default",
        "10,000 for extract, 4,000 for the others",
    )
    careless = "negative control: extract with a bank that is written in place; stops at the first"
    as_file = "write the result there as well"
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=kinds, default=None, help=all_kinds)
    parser.add_argument("--frames", type=int, default=None, help=frames)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help=f"{careless} damage")
    parser.add_argument("--json", type=Path, default=None, help=as_file)
    args = parser.parse_args()
    args.json = args.json and args.json.absolute()
    known = victims_of(args.job)
    if (args.naive and args.job != "extract") or not set(args.victims or ()) <= set(known):
        parser.error(f"{args.job} has the victims {' '.join(known)}; --naive is for extract")
    return args


def victims_of(job: str) -> list[str]:
    """The kinds of processes that can be killed in a job."""
    return ["driver", *JOBS[job].titles, "node"]


def run(args: argparse.Namespace, folder: Path) -> Chaos:
    """The undisturbed run, then disturbed ones until the kills are used up."""
    # The cluster; checks are made by this tree's own code, whatever the drivers run
    rng = random.Random(args.seed)
    kinds = args.victims or victims_of(args.job)
    victims = [rng.choice(kinds) for _ in range(args.kills)]
    package = choose_package(folder, args.naive)
    (folder / "ray").mkdir()
    sys.path.insert(0, str(ROOT))
    nodes = Nodes(args.nodes, package, folder)
    try:
        os.chdir(folder)  # `python -m` looks for packages in the working folder first
        probe(nodes, package, folder)

        # The job
        frames = args.frames or (10_000 if args.job == "extract" else 4_000)
        job = Extract(folder, frames, args.seed)
        job = job if args.job == "extract" else JOBS[args.job](folder, job, nodes.address)

        # Runs; the damage of a careless bank is to be seen before the next kill
        chaos = Chaos(job, nodes, folder, rng, victims, 1 if args.naive else math.inf)
        chaos.learn()
        times = f"{chaos.start_s:.0f} s to its first progress, {chaos.span_s:.0f} s from there"
        size = f"{job.size} {'shards' if args.job == 'extract' else 'heads'}"
        chaos.say(f"raffect in {package}; undisturbed run: {times}, {size}")
        chaos.disturb(lambda: not victims or (args.naive and chaos.tally.broken.total() > 0))
    finally:
        nodes.close()
    return chaos


def main() -> int:
    args, begin = parse(), time.monotonic()
    with workplace() as folder, CpuWatch(every_s=1) as watch:
        chaos = run(args, folder)
    cpu_s = sum(seconds for _, seconds in watch.used.values())
    result = report(args, chaos, time.monotonic() - begin, cpu_s)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    found = chaos.tally.broken.total() > 0
    if args.naive:
        noticed = "found out" if found else "NOT found out"
        print(f"\nthe careless bank was {noticed} after {chaos.tally.kills.total()} kills")
        return int(not found)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
