"""Kill drivers, workers, actors and whole nodes of a real Ray cluster at seeded random moments, and prove that nothing is lost, doubled or changed.

    uv run python benchmarks/chaos.py extract --kills 50 --seed 0            # and tune, train
    uv run python benchmarks/chaos.py tune --kills 50 --victims driver node
    uv run python benchmarks/chaos.py extract --kills 50 --naive             # a bank that is written carelessly: the checks must find it out

The cluster is `ray.cluster_utils.Cluster`: a head and ``--nodes`` nodes on this machine, with logical CPUs and GPUs (everything computes on the
CPU). ``raffect extract|tune|train --address`` runs in a process of its own, so a driver that is killed leaves Ray standing. An undisturbed run
comes first; then runs are disturbed until the kills are used up, each followed by the same command again where it did not finish by itself.
Whatever is finished is compared with the undisturbed one, and a new folder is begun. The exit status is 1 if anything was lost, doubled,
changed or trained twice, if a run hung or failed without one clear line; with ``--naive`` it is 1 if nothing of that was found.
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

HUNG_S = 300
BY_ITSELF, RERUN, UNKNOWN = OUTCOMES = (
    "the run went on by itself",
    "it took a rerun",
    "the driver was killed as well",
)


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
        """The undisturbed run: what comes out, and how long it takes before and after its first progress."""
        out, since, clock = self.folder / "whole", time.time(), time.monotonic()
        process = self._start(out)
        self._wait(process, out, lambda: self._newest(out) > since)
        self.start_s = time.monotonic() - clock
        self._wait(process, out)
        self.span_s = time.monotonic() - clock - self.start_s
        if process.returncode:
            raise SystemExit(
                f"the undisturbed run failed with status {process.returncode}:\n{self.log.read_text()}"
            )
        self.job.learn(out)

    def disturb(self, until: Callable[[], bool]) -> None:
        """Finish one folder after another, with kills in between, until ``until`` says that it is enough."""
        while not until():
            out, seen, self.folder_kills = self.folder / f"run-{self.tally.finished}", {}, 0
            while not self._run(out, seen):
                self.tally.reruns += 1
            found = self.job.check(out)
            self.tally.broken += found
            self.tally.finished += 1
            self.say(
                f"finished {out.name}: "
                + (
                    ", ".join(f"{name} {count}" for name, count in found.items() if count)
                    or "as undisturbed"
                )
            )
            shutil.rmtree(out)

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.begin:6.0f} s  {line}", flush=True)

    def _run(self, out: Path, seen: dict[str, int]) -> bool:
        """One run of the command, disturbed while there are kills left; whether it finished."""
        since, clock, hits, fresh, began = time.time(), time.monotonic(), [], not out.exists(), []
        process = self._start(out)

        def begun() -> bool:
            if not began and self._newest(out) > since:
                began.append(time.monotonic() - clock)
            return bool(began)

        self.tally.runs += 1
        while self.victims and process.poll() is None and self.folder_kills < self.kills_a_folder:
            victim = self.victims[0]
            in_start = (
                victim == "driver" and self.rng.random() < 0.2
            )  # a driver may also die before it has begun
            if not in_start:
                self._wait(process, out, begun, seen)
            # Uniform over the work that is left, not over seconds: others make this machine faster and slower while we are at it.
            target, jitter_s = (
                self.rng.random(),
                self.rng.random() * (self.start_s if in_start else self.span_s * self.job.step),
            )
            target = (
                0.0 if in_start else target + (1 - target) * self.job.reached(out) - self.job.step
            )
            self._wait(process, out, lambda: self.job.reached(out) >= target, seen)  # noqa: B023
            moment = time.monotonic() + jitter_s
            self._wait(process, out, lambda: time.monotonic() > moment, seen)  # noqa: B023
            if (
                process.poll() is not None or self.job.reached(out) >= 1
            ):  # a kill that can harm nothing proves nothing
                self.tally.missed += 1
                break
            if not self._kill(victim, process, out):
                self.tally.missed += 1
                continue
            self.victims.pop(0)
            self.folder_kills += 1
            hits.append(victim)
            if victim == "driver":
                break
        self._wait(process, out, begun, seen)
        self._wait(process, out, seen=seen)
        self.tally.rerun_start_s += [] if fresh else began
        return self._judge(process.returncode, hits)

    def _judge(self, status: int, hits: list[str]) -> bool:
        """Count what became of a run that has ended, for each kill in it."""
        if status and hits[-1:] == [
            "driver"
        ]:  # whether the run would have got over the kills before this one, nobody knows
            self.tally.outcomes.update(
                [f"{victim} {UNKNOWN}" for victim in hits[:-1]] + [f"driver {RERUN}"]
            )
            return False
        self.tally.outcomes.update(f"{victim} {RERUN if status else BY_ITSELF}" for victim in hits)
        if status == 0:
            return True
        lines = self.log.read_text().strip().splitlines() or ["nothing"]
        clear = not any("Traceback" in line for line in lines) and lines[-1].startswith(
            f"raffect {type(self.job).__name__.lower()}: "
        )
        self.tally.broken["runs that failed without one clear line"] += not clear
        self.say(
            f"the run failed with status {status}: "
            + (lines[-1][:300] if clear else "\n".join(lines[-60:]))
        )
        return False

    def _kill(self, victim: str, process: subprocess.Popen, out: Path) -> bool:
        """Kill one of a kind; False if none was there."""
        workers = self.nodes.workers()
        alive = {
            kind: [worker for worker in workers if re.search(pattern, worker[1])]
            for kind, pattern in self.job.titles.items()
        }
        state = f"{len(self.job.done(out))}/{self.job.size} done; alive: {', '.join(f'{len(found)} {kind}s' for kind, found in alive.items())}, {len(self.nodes)} nodes"
        if victim == "driver":
            name = f"process {process.pid}"
            process.kill()
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
        if victim == "node":
            time.sleep(self.rng.uniform(0.5, 5))
            self.nodes.add()
        return True

    def _start(self, out: Path) -> subprocess.Popen:
        words = [
            sys.executable,
            "-m",
            "raffect.cli",
            *self.job.words(out),
            "--address",
            self.nodes.address,
        ]
        with self.log.open("w") as log:
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)

    def _wait(
        self,
        process: subprocess.Popen,
        out: Path,
        ready: Callable[[], bool] = lambda: False,
        seen: dict[str, int] | None = None,
    ) -> None:
        """Until ``ready``, the end of the process, or HUNG_S without progress; finished members that change are counted on the way."""
        quiet, before = time.monotonic(), 0.0
        while process.poll() is None and not ready():
            time.sleep(0.2)
            newest = self._newest(out)
            quiet, before = (time.monotonic(), newest) if newest != before else (quiet, before)
            if time.monotonic() - quiet > HUNG_S:
                self.say(f"no progress for {HUNG_S} s, ended: {self.log.read_text()[-2000:]}")
                self.tally.broken["runs that hung"] += 1
                process.kill()
                process.wait()
            self._note_repeated(out, seen)
        self._note_repeated(out, seen)

    def _note_repeated(self, out: Path, seen: dict[str, int] | None) -> None:
        if seen is None:
            return
        for name, stamp in self.job.done(out).items():
            if seen.setdefault(name, stamp) != stamp:
                seen[name] = stamp
                self.tally.broken["members repeated"] += not isinstance(
                    self.job, Extract
                )  # a shard may be written twice, by a task that Ray repeats

    def _newest(self, out: Path) -> float:
        found = [0.0]
        for sign in self.job.signs:
            for path in out.glob(sign):
                with contextlib.suppress(FileNotFoundError):
                    found.append(path.stat().st_mtime)
        return max(found)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder, and nothing left of it and of our processes afterwards, however this ends."""
    ctypes.CDLL(None).prctl(
        36, 1
    )  # PR_SET_CHILD_SUBREAPER: what loses its parent stays below us, where it is found
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
    tally = chaos.tally
    print(f"\n| victim | kills | {' | '.join(OUTCOMES)} |\n|{'---|' * 5}")
    for victim, count in sorted(tally.kills.items()):
        print(
            f"| {victim} | {count} | {' | '.join(str(tally.outcomes[f'{victim} {outcome}']) for outcome in OUTCOMES)} |"
        )
    facts = {
        "runs finished and checked": tally.finished,
        "reruns": tally.reruns,
        "kills that came too late": tally.missed,
        "median s to a rerun's first progress": round(statistics.median(tally.rerun_start_s), 1)
        if tally.rerun_start_s
        else None,
        "undisturbed s": round(chaos.start_s + chaos.span_s),
        "wall s": round(wall_s),
        "CPU s": round(cpu_s),
    }
    broken = {
        name: tally.broken[name]
        for name in (
            *chaos.job.columns,
            "runs that failed without one clear line",
            "runs that hung",
        )
    }
    print(
        "\n| | |\n|---|---|\n"
        + "\n".join(f"| {name} | {value} |" for name, value in (broken | facts).items())
    )
    return {
        "arguments": vars(args) | {"json": str(args.json)},
        "tally": vars(tally),
        "broken": broken,
        "facts": facts,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("extract", "train", "tune"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--victims",
        nargs="+",
        choices=("driver", "worker", "actor", "node"),
        default=None,
        help="all that the job has by default",
    )
    parser.add_argument(
        "--frames", type=int, default=None, help="10,000 for extract, 4,000 for the others"
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument(
        "--naive",
        action="store_true",
        help="negative control: extract with a bank that is written in place; stops at the first damage",
    )
    parser.add_argument("--json", type=Path, default=None, help="write the result there as well")
    args = parser.parse_args()
    args.json = args.json and args.json.absolute()
    kinds = {"extract": Extract, "tune": Tune, "train": Train}
    known = ["driver", *kinds[args.job].titles, "node"]
    if (args.naive and args.job != "extract") or not set(args.victims or ()) <= set(known):
        parser.error(f"{args.job} has the victims {' '.join(known)}; --naive is for extract")
    rng, begin = random.Random(args.seed), time.monotonic()
    victims = [rng.choice(args.victims or known) for _ in range(args.kills)]
    with workplace() as folder, CpuWatch(every_s=1) as watch:
        package = choose_package(folder, args.naive)
        (folder / "ray").mkdir()
        sys.path.insert(
            0, str(ROOT)
        )  # checks are made by this tree's own code, whatever the drivers run
        nodes = Nodes(args.nodes, package, folder)
        try:
            os.chdir(folder)  # `python -m` looks for packages in the working folder first
            probe(nodes, package, folder)
            job = Extract(
                folder, args.frames or (10_000 if args.job == "extract" else 4_000), args.seed
            )
            job = job if args.job == "extract" else kinds[args.job](folder, job, nodes.address)
            chaos = Chaos(
                job, nodes, folder, rng, victims, 1 if args.naive else math.inf
            )  # damage is to be seen before the next kill
            chaos.learn()
            chaos.say(
                f"raffect in {package}; undisturbed run: {chaos.start_s:.0f} s to its first progress, {chaos.span_s:.0f} s from there, {job.size} shards or members"
            )
            chaos.disturb(lambda: not victims or (args.naive and chaos.tally.broken.total() > 0))
        finally:
            nodes.close()
    result = report(
        args, chaos, time.monotonic() - begin, sum(seconds for _, seconds in watch.used.values())
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.naive:
        found = chaos.tally.broken.total() > 0
        print(
            f"\nthe careless bank was {'found out' if found else 'NOT found out'} after {chaos.tally.kills.total()} kills"
        )
        return int(not found)
    return int(chaos.tally.broken.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
