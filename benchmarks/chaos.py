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
import csv
import ctypes
import hashlib
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
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
HUNG_S = 300
SHARD_ROWS = 64
EPOCHS = 12
BY_ITSELF, RERUN, UNKNOWN = OUTCOMES = ("the run went on by itself", "it took a rerun", "the driver was killed as well")
NAIVE = """

def write_atomic(path, content):
    '''In place, on a slow disk: the file is there before its bytes are.'''
    import time

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(half)
            file.flush()
            time.sleep(0.2)


def _naive_read_commits(self):
    numbers = sorted(int(path.stem) for path in (self.path / "shards").glob("[0-9]*.parquet"))
    return {number: Commit(shard=number, rows=0, rejects=0) for number in numbers}


Bank.read_commits = _naive_read_commits
"""


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


# Processes


def list_processes() -> dict[int, tuple[int, str]]:
    """Process -> its parent and title; those that end meanwhile are left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found[int(folder.name)] = (int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]), title)
    return found


def cpu_s() -> float:
    """CPU time of this process and all below it, ended ones included: the cost on a machine that others use too."""
    ticks = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Everything below a process."""
    processes, found = list_processes(), [pid]
    for parent in found:
        found += [child for child, (its, _) in processes.items() if its == parent]
    return found[1:]


class Nodes:
    """A Ray cluster on this machine whose nodes come and go."""

    def __init__(self, num_nodes: int, package: Path, folder: Path) -> None:
        # Before Ray is imported; raylets and workers inherit it. Ray's own folder is ours, so that nobody else finds this cluster by `auto`.
        os.environ |= {"PYTHONPATH": str(package), "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
        os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
        from ray.cluster_utils import Cluster

        self._node = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
        # A node that was removed is to be missed within seconds, and no worker is to be started that nobody asked for.
        settings = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5, "prestart_worker_first_driver": False}
        self._cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": settings})
        for _ in range(num_nodes):
            self.add()
        self.address = self._cluster.address

    def add(self) -> None:
        """One more node; a loaded machine may miss Ray's 30 s for it once."""
        try:
            self._cluster.add_node(**self._node)
        except Exception as error:
            print(f"a node did not start, trying again: {error}", flush=True)
            self._cluster.add_node(**self._node)

    def remove(self, rng: random.Random) -> str:
        """Take a node away with all that runs on it."""
        node = rng.choice(sorted(self._cluster.worker_nodes, key=self._pid))
        pid = self._pid(node)
        self._cluster.remove_node(node, allow_graceful=False)
        return f"node of raylet {pid}"

    def workers(self) -> list[tuple[int, str]]:
        """Ray's workers on all nodes, by process and title."""
        raylets = {self._pid(node) for node in self._cluster.list_all_nodes()}
        return [(pid, title.removeprefix("ray::")) for pid, (parent, title) in list_processes().items() if parent in raylets and title.startswith("ray::")]

    def __len__(self) -> int:
        return len(self._cluster.worker_nodes)

    def close(self) -> None:
        self._cluster.shutdown()

    @staticmethod
    def _pid(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid


# What is disturbed


class Extract:
    """A bank of drawn faces."""

    titles: ClassVar = {"worker": r"read_shard|commit_shard", "actor": "MapWorker"}
    signs, step = ("commits/*.json",), 0.02
    columns = ("rows lost", "rows doubled", "rows unknown", "shards whose bytes differ", "files that differ", "strangers among shards", "banks not verified")

    def __init__(self, folder: Path, frames: int, seed: int) -> None:
        self.manifest = folder / "data" / "manifest.parquet"
        cli("synth", "--out", folder / "faces", "--frames", frames, "--seed", seed)
        edition = next(path for path in (folder / "faces").iterdir() if path.name != "cropped_aligned" and path.is_dir())
        cli("prepare", "--images", folder / "faces" / "cropped_aligned", "--annotations", edition, "--out", folder / "data")
        table = pq.read_table(self.manifest, columns=["video", "frame"])
        self.wanted = keys_of(table)
        self.size = -(-len(table) // SHARD_ROWS)
        self.whole: dict[str, str] = {}

    def words(self, out: Path) -> list[str]:
        encoder = ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded", "--gpus-per-actor", "0", "--num-actors", "2"]
        return ["extract", "--manifest", str(self.manifest), "--bank", str(out), "--shard-rows", str(SHARD_ROWS), *encoder]

    def done(self, out: Path) -> dict[str, int]:
        """Finished shards and when their record was written."""
        return stamps(out / "commits")

    def reached(self, out: Path) -> float:
        """Share of the work that is done."""
        return len(self.done(out)) / self.size

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.whole = hashes(out, ("plan", "shards", "rejects", "commits"))

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished bank; read here by pyarrow alone, and by `verify`."""
        from raffect.data.bank import Bank
        from raffect.data.manifest import read_manifest
        from raffect.data.verify import verify

        found = Counter()
        for path in sorted([*(out / "shards").glob("*.parquet"), *(out / "rejects").glob("*.parquet")]):
            with contextlib.suppress(pa.ArrowException, OSError):  # a file that cannot be read has lost its rows
                found += keys_of(pq.read_table(path, columns=["video", "frame"]))
        here, extra = hashes(out, ("plan", "shards", "rejects", "commits")), found - self.wanted
        recorded = {name: sha for path in (out / "commits").glob("*.json") for name, (_, sha) in json.loads(path.read_text())["files"].items()}
        differ = {name for name in self.whole.keys() | here.keys() if self.whole.get(name) != here.get(name)} | {name for name, sha in recorded.items() if here.get(name) != sha}
        return Counter({
            "rows lost": (self.wanted - found).total(), "rows doubled": sum(count for key, count in extra.items() if key in self.wanted),
            "rows unknown": sum(count for key, count in extra.items() if key not in self.wanted),
            "shards whose bytes differ": sum(name.startswith("shards/") for name in differ), "files that differ": sum(not name.startswith("shards/") for name in differ),
            "strangers among shards": sum(not re.fullmatch(r"\d{6}\.parquet|\.tmp-.*", path.name) for path in (out / "shards").iterdir()),
            "banks not verified": int(not verify(Bank(out), read_manifest(self.manifest)).complete),
        })  # fmt: skip


class Tune:
    """A sweep of small packs over a bank made first."""

    titles: ClassVar = {"actor": r"ImplicitFunc|run_trial"}
    signs, step = ("members/*.json", "state/*", "ray/**/events*"), 0.1
    columns = ("members without a record", "members repeated", "heads that differ", "rows of members.csv too few or too many")
    settings = tuple("tune paper --space loss.alpha=0.1:1:0.1 seed=0:3 --members-per-trial 2 --epochs 6 --head.width 128 --device cpu --threads 1".split())  # noqa: SIM905
    expected = 44

    def __init__(self, folder: Path, bank: Extract, nodes: Nodes) -> None:
        self.bank, self.labels, self.size = folder / "bank", bank.manifest.parent, self.expected
        cli(*bank.words(self.bank), "--address", nodes.address)
        self.heads: dict[str, str] = {}

    def words(self, out: Path) -> list[str]:
        return [*self.settings, "--task", "expr", "--bank", str(self.bank), "--labels", str(self.labels), "--out", str(out)]

    def done(self, out: Path) -> dict[str, int]:
        """Finished members and when their record was written."""
        return stamps(out / "members")

    def reached(self, out: Path) -> float:
        """Share of the work that is done."""
        return len(self.done(out)) / self.size

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.heads = self._heads(out)
        if len(self.done(out)) != self.expected:
            raise SystemExit(f"expected {self.expected} members, the undisturbed run has {len(self.done(out))}")

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished sweep."""
        here, names = self._heads(out), sorted(path.stem for path in (out / "members").glob("*.json"))
        with (out / "members.csv").open() as file:
            rows = Counter(row["id"] for row in csv.DictReader(file))
        return Counter({
            "members without a record": self.expected - len(names),
            "heads that differ": sum(self.heads.get(name) != here.get(name) for name in self.heads.keys() | here.keys()),
            "rows of members.csv too few or too many": (rows - Counter(names)).total() + (Counter(names) - rows).total(),
        })  # fmt: skip

    @staticmethod
    def _heads(out: Path) -> dict[str, str]:
        return {str(path.relative_to(out)): sha256(path) for path in (out / "weights").rglob("*.safetensors")}


class Train(Tune):
    """Two heads on two workers of Ray Train."""

    titles: ClassVar = {"worker": "TrainController", "actor": "RayTrainWorker"}
    settings = tuple(f"train paper --num-seeds 2 --num-workers 2 --epochs {EPOCHS} --head.width 128 --device cpu --threads 1".split())
    expected = 2

    def reached(self, out: Path) -> float:
        """Share of the epochs that are trained."""
        try:
            return json.loads((out / "state" / "progress.json").read_text())[0] / EPOCHS
        except (OSError, ValueError):
            return super().reached(out)


def cli(*words: object) -> None:
    """A command that must succeed."""
    done = subprocess.run([sys.executable, "-m", "raffect.cli", *map(str, words)], capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        raise SystemExit(f"raffect {words[0]} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")


def keys_of(table: pa.Table) -> Counter:
    return Counter(zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(out: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Every visible file of some folders."""
    return {str(path.relative_to(out)): sha256(path) for folder in folders for path in sorted((out / folder).glob("*")) if not path.name.startswith(".tmp-")}


def stamps(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


# Disturbing it


class Chaos:
    """Runs a job and kills what belongs to it."""

    def __init__(self, job: Any, nodes: Nodes, folder: Path, rng: random.Random, victims: list[str], kills_a_folder: float = math.inf) -> None:
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
            raise SystemExit(f"the undisturbed run failed with status {process.returncode}:\n{self.log.read_text()}")
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
            self.say(f"finished {out.name}: " + (", ".join(f"{name} {count}" for name, count in found.items() if count) or "as undisturbed"))
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
            in_start = victim == "driver" and self.rng.random() < 0.2  # a driver may also die before it has begun
            if not in_start:
                self._wait(process, out, begun, seen)
            # Uniform over the work that is left, not over seconds: others make this machine faster and slower while we are at it.
            target, jitter_s = self.rng.random(), self.rng.random() * (self.start_s if in_start else self.span_s * self.job.step)
            target = 0.0 if in_start else target + (1 - target) * self.job.reached(out) - self.job.step
            self._wait(process, out, lambda: self.job.reached(out) >= target, seen)  # noqa: B023
            moment = time.monotonic() + jitter_s
            self._wait(process, out, lambda: time.monotonic() > moment, seen)  # noqa: B023
            if process.poll() is not None or self.job.reached(out) >= 1:  # a kill that can harm nothing proves nothing
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
        if status and hits[-1:] == ["driver"]:  # whether the run would have got over the kills before this one, nobody knows
            self.tally.outcomes.update([f"{victim} {UNKNOWN}" for victim in hits[:-1]] + [f"driver {RERUN}"])
            return False
        self.tally.outcomes.update(f"{victim} {RERUN if status else BY_ITSELF}" for victim in hits)
        if status == 0:
            return True
        lines = self.log.read_text().strip().splitlines() or ["nothing"]
        clear = not any("Traceback" in line for line in lines) and lines[-1].startswith(f"raffect {type(self.job).__name__.lower()}: ")
        self.tally.broken["runs that failed without one clear line"] += not clear
        self.say(f"the run failed with status {status}: " + (lines[-1][:300] if clear else "\n".join(lines[-60:])))
        return False

    def _kill(self, victim: str, process: subprocess.Popen, out: Path) -> bool:
        """Kill one of a kind; False if none was there."""
        workers = self.nodes.workers()
        alive = {kind: [worker for worker in workers if re.search(pattern, worker[1])] for kind, pattern in self.job.titles.items()}
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
        words = [sys.executable, "-m", "raffect.cli", *self.job.words(out), "--address", self.nodes.address]
        with self.log.open("w") as log:
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)

    def _wait(self, process: subprocess.Popen, out: Path, ready: Callable[[], bool] = lambda: False, seen: dict[str, int] | None = None) -> None:
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
                self.tally.broken["members repeated"] += not isinstance(self.job, Extract)  # a shard may be written twice, by a task that Ray repeats

    def _newest(self, out: Path) -> float:
        found = [0.0]
        for sign in self.job.signs:
            for path in out.glob(sign):
                with contextlib.suppress(FileNotFoundError):
                    found.append(path.stat().st_mtime)
        return max(found)


# All of it


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder, and nothing left of it and of our processes afterwards, however this ends."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what loses its parent stays below us, where it is found
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    folder = Path(tempfile.mkdtemp(prefix="rchaos-"))  # short: Ray's sockets lie below it
    try:
        yield folder
    finally:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def choose_package(folder: Path, naive: bool) -> Path:
    """Where drivers and workers find raffect: this tree's, or a copy whose bank is written carelessly."""
    if not naive:
        return ROOT
    shutil.copytree(ROOT / "raffect", folder / "naive" / "raffect")
    with (folder / "naive" / "raffect" / "data" / "bank.py").open("a") as file:
        file.write(NAIVE)
    return folder / "naive"


def probe(nodes: Nodes, package: Path, folder: Path) -> None:
    """Drivers and workers must run the code that is to be tried."""
    code = "import ray, raffect, sys; ray.init(address=sys.argv[1], logging_level='ERROR')\nprint(raffect.__file__, ray.get(ray.remote(lambda: __import__('raffect').__file__).remote()))"
    out = subprocess.run([sys.executable, "-c", code, nodes.address], capture_output=True, text=True, check=False, cwd=folder, timeout=300)
    if out.stdout.split() != [str(package / "raffect" / "__init__.py")] * 2:
        raise SystemExit(f"driver and worker import {out.stdout}, not {package}\n{out.stderr}")


def report(args: argparse.Namespace, chaos: Chaos, wall_s: float) -> dict[str, Any]:
    """Print the tables; the same as data."""
    tally = chaos.tally
    print(f"\n| victim | kills | {' | '.join(OUTCOMES)} |\n|{'---|' * 5}")
    for victim, count in sorted(tally.kills.items()):
        print(f"| {victim} | {count} | {' | '.join(str(tally.outcomes[f'{victim} {outcome}']) for outcome in OUTCOMES)} |")
    facts = {
        "runs finished and checked": tally.finished, "reruns": tally.reruns, "kills that came too late": tally.missed,
        "median s to a rerun's first progress": round(statistics.median(tally.rerun_start_s), 1) if tally.rerun_start_s else None,
        "undisturbed s": round(chaos.start_s + chaos.span_s), "wall s": round(wall_s),
    }  # fmt: skip
    broken = {name: tally.broken[name] for name in (*chaos.job.columns, "runs that failed without one clear line", "runs that hung")}
    print("\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in (broken | facts).items()))
    return {"arguments": vars(args) | {"json": str(args.json)}, "tally": vars(tally), "broken": broken, "facts": facts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("extract", "train", "tune"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=("driver", "worker", "actor", "node"), default=None, help="all that the job has by default")
    parser.add_argument("--frames", type=int, default=None, help="10,000 for extract, 4,000 for the others")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="negative control: extract with a bank that is written in place; stops at the first damage")
    parser.add_argument("--json", type=Path, default=None, help="write the result there as well")
    args = parser.parse_args()
    args.json = args.json and args.json.absolute()
    kinds = {"extract": Extract, "tune": Tune, "train": Train}
    known = ["driver", *kinds[args.job].titles, "node"]
    if (args.naive and args.job != "extract") or not set(args.victims or ()) <= set(known):
        parser.error(f"{args.job} has the victims {' '.join(known)}; --naive is for extract")
    rng, begin = random.Random(args.seed), time.monotonic()
    victims = [rng.choice(args.victims or known) for _ in range(args.kills)]
    with workplace() as folder:
        package = choose_package(folder, args.naive)
        (folder / "ray").mkdir()
        sys.path.insert(0, str(ROOT))  # checks are made by this tree's own code, whatever the drivers run
        nodes = Nodes(args.nodes, package, folder)
        try:
            os.chdir(folder)  # `python -m` looks for packages in the working folder first
            probe(nodes, package, folder)
            job = Extract(folder, args.frames or (10_000 if args.job == "extract" else 4_000), args.seed)
            job = job if args.job == "extract" else kinds[args.job](folder, job, nodes)
            chaos = Chaos(job, nodes, folder, rng, victims, 1 if args.naive else math.inf)  # damage is to be seen before the next kill
            chaos.learn()
            chaos.say(f"raffect in {package}; undisturbed run: {chaos.start_s:.0f} s to its first progress, {chaos.span_s:.0f} s from there, {job.size} shards or members")
            chaos.say(f"{cpu_s():.0f} s of CPU so far")
            chaos.disturb(lambda: not victims or (args.naive and chaos.tally.broken.total() > 0))
            chaos.say(f"{cpu_s():.0f} s of CPU in all")
        finally:
            nodes.close()
    result = report(args, chaos, time.monotonic() - begin)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.naive:
        found = chaos.tally.broken.total() > 0
        print(f"\nthe careless bank was {'found out' if found else 'NOT found out'} after {chaos.tally.kills.total()} kills")
        return int(not found)
    return int(chaos.tally.broken.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
