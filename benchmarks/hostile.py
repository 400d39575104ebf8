"""Thousands of damaged and hostile files: does each end in one clear line?

Files of every kind that raffect reads are made once, small and whole. Each case copies some of
them, changes one file by a seeded mutation, and runs the commands that read it, in one process a
kind of file. A case fails by a traceback, more than one line, more than 10 s of CPU, more than 2 GB
of memory, or the death of its process. `python benchmarks/hostile.py --only runs:1234` repeats one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from hostile_commands import FAMILIES, Case, Step
from hostile_files import agree, mutate
from hostile_whole import make_whole
from tools import new_parser, print_header, print_machine, print_row, scratch

MOST_CPU_S, MOST_WALL_S, MOST_BYTES = 10, 300, 2 << 30
SHOWN_EVERY = 100
OUTCOMES = ("read", "refused", "traceback", "lines", "hang", "memory", "died")
"""Whole or harmless; one line; and what must not be."""
FAULTS = OUTCOMES[2:]
_ROOM = 4 << 30
"""Address space that a case may take beyond what its process has: more fails at once."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: the worst of its commands."""

    family: str
    seed: int
    outcome: str
    file: str = ""
    line: str = ""
    cpu_s: float = 0.0
    peak_bytes: int = 0


class _Hang(BaseException):
    """Raised by a timer; no ``except Exception`` of a command catches it."""


def run_case(family: str, seed: int, whole: Path, folder: Path) -> Outcome:
    """One damaged file, and the commands that read it.

    Args:
        family: Of `FAMILIES`.
        seed: Decides everything.
        whole: Of `make_whole`.
        folder: For the copy; must not exist, and is deleted.
    """
    # The copy, and the damage
    rng, kind = random.Random(f"{family}:{seed}"), FAMILIES[family]
    unit = rng.choice(kind.units)
    copy = folder / Path(unit).relative_to(Path(unit).parts[0])
    copy.parent.mkdir(parents=True)
    is_file = (whole / unit).is_file()
    (shutil.copy2 if is_file else shutil.copytree)(whole / unit, copy)
    # First the kind of file: there are more weights than records, and more videos than tables
    files = kind.files(copy)
    group = rng.choice(sorted({(len(file.parts), file.parts[-2], file.suffix) for file in files}))
    files = [f for f in files if (len(f.parts), f.parts[-2], f.suffix) == group]
    file = rng.choice(files)
    name = f"{unit}/{file.relative_to(copy)}"
    file.write_bytes(mutate(rng, file.name, file.read_bytes()))
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
            agree(file, copy)

    # The commands, until one fails
    case = Case(copy, file, whole, whole / Path(unit).parts[0], rng)
    _reset_peak()
    outcome, line, before = "read", "", _peak()
    start = time.process_time()
    for step in kind.steps(case):
        found, text = _run_step(step)
        if OUTCOMES.index(found) > OUTCOMES.index(outcome):
            outcome, line = found, text
    peak = _peak() - before
    if peak > MOST_BYTES and outcome not in FAULTS:
        outcome, line = "memory", f"{peak >> 20} MB"
    shutil.rmtree(folder)
    cpu_s = round(time.process_time() - start, 2)
    return Outcome(family, seed, outcome, name, line, cpu_s, peak)


def _run_step(step: Step) -> tuple[str, str]:
    """How a command ended, and its line or the end of its traceback."""
    from raffect.cli import _explain

    out, err = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGPROF, _raise_hang)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = step()
    except _Hang:
        return "hang", _last_frames()
    except SystemExit:
        return "lines", err.getvalue()[-300:]
    except Exception as error:
        # What the command line does
        line = _explain(error)
        if line is None:
            what = "memory" if isinstance(error, MemoryError) else "traceback"
            return what, f"{type(error).__name__}: {str(error)[:200]} at {_last_frames()}"
        return ("lines" if "\n" in line or "\r" in line else "refused"), line
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if found != 2:
        return "read", ""
    *_, line = err.getvalue().splitlines() or [""]
    return ("refused" if line.startswith("raffect ") else "lines"), line or "nothing"


def _raise_hang(signum: int, frame: object) -> None:
    raise _Hang


def _last_frames() -> str:
    """Where in raffect an error came from."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [
        f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames if "/raffect/" in f.filename
    ]
    return " < ".join(reversed(ours[-3:]))


def _peak() -> int:
    """Most resident bytes of this process since `_reset_peak`."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) << 10


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# One process a family


def run_family(family: str, seeds: Sequence[int], whole: Path, folder: Path) -> None:
    """Run cases in this process and print each outcome as a line of JSON."""
    os.fsync = lambda handle: None
    import torch

    import raffect.evaluation.evaluate
    import raffect.reporting.report
    import raffect.training.train  # noqa: F401

    torch.set_num_threads(1)
    address = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address + _ROOM, resource.RLIM_INFINITY))
    for seed in seeds:
        print(json.dumps({"family": family, "seed": seed}), flush=True)
        outcome = run_case(family, seed, whole, folder / str(seed))
        print(json.dumps(asdict(outcome)), flush=True)


def watch_family(family: str, seeds: Sequence[int], whole: Path, folder: Path) -> list[Outcome]:
    """Run cases in a child process; after a case that it did not survive, in another one.

    Faults are printed when they are found, and how far it is.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(seeds):
        words = [family, str(seeds[len(outcomes)]), str(seeds[-1] + 1), str(whole), str(folder)]
        with subprocess.Popen(
            [sys.executable, __file__, "--child", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        ) as child:
            before = len(outcomes)
            for outcome in _follow(child):
                outcomes.append(outcome)
                _show(outcome, len(outcomes), len(seeds))
        # A case costs its child at most once; a child that comes to no case never will
        if len(outcomes) == before:
            raise RuntimeError(f"{family}: a child ended with {child.returncode} before any case")
        if len(outcomes) < len(seeds):
            shutil.rmtree(folder / str(outcomes[-1].seed), ignore_errors=True)
    return outcomes


def _follow(child: subprocess.Popen) -> Iterator[Outcome]:
    """Outcomes that a child prints, and one for the case that it did not survive."""
    assert child.stdout is not None
    under_way = None
    while True:
        # Its start is the longest silence on a loaded machine
        watch = threading.Timer(MOST_WALL_S, child.kill)
        watch.start()
        line = child.stdout.readline()
        watch.cancel()
        if not line:
            break
        under_way = json.loads(line)
        if "outcome" in under_way:
            yield Outcome(**under_way)
            under_way = None
    status = child.wait()
    if under_way is not None:
        outcome = "hang" if status == -signal.SIGKILL else "died"
        yield Outcome(**under_way, outcome=outcome, line=f"status {status}")


def _show(outcome: Outcome, number: int, count: int) -> None:
    name, file = f"{outcome.family}:{outcome.seed}", outcome.file
    if outcome.outcome in FAULTS:
        print(f"{name} {outcome.outcome} {file}: {outcome.line}", file=sys.stderr, flush=True)
    if number % SHOWN_EVERY == 0 or number == count:
        print(f"{outcome.family}: {number} of {count}", file=sys.stderr, flush=True)


# The command


def share_out(cases: int, names: Sequence[str]) -> dict[str, int]:
    """How many cases each family has."""
    total = sum(FAMILIES[name].share for name in names)
    return {name: max(1, round(cases * FAMILIES[name].share / total)) for name in names}


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="over all kinds of files")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--only", help="repeat one case, such as runs:1234, and show its traceback")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--work", type=Path, help="folder in memory, such as /dev/shm")
    parser.add_argument("--child", nargs=5, help=_HIDDEN)
    config = parser.parse_args()
    if config.child:
        family, first, stop, whole, folder = config.child
        run_family(family, range(int(first), int(stop)), Path(whole), Path(folder))
        return 0
    with scratch("hostile", config.work) as folder:
        return _run_all(config, folder)


_HIDDEN = "of the command itself"


def _run_all(config, folder: Path) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        make_whole(folder / "whole")
    if config.only:
        family, _, seed = config.only.partition(":")
        print(run_case(family, int(seed), folder / "whole", folder / "case"))
        return 0
    counts = share_out(config.cases, config.families)

    def watch(name: str) -> list[Outcome]:
        seeds = list(range(config.seed, config.seed + counts[name]))
        return watch_family(name, seeds, folder / "whole", folder / name)

    outcomes: dict[str, list[Outcome]] = {}
    with ThreadPoolExecutor(config.jobs) as pool:
        for name, found in zip(counts, pool.map(watch, counts), strict=True):
            outcomes[name] = found
    _print_table(outcomes)
    return int(any(one.outcome in FAULTS for found in outcomes.values() for one in found))


def _print_table(outcomes: dict[str, list[Outcome]]) -> None:
    print_header("files", "cases", *OUTCOMES, "most CPU s", "most MB")
    for name, found in (
        *outcomes.items(),
        ("all", [one for part in outcomes.values() for one in part]),
    ):
        counts = Counter(one.outcome for one in found)
        cpu_s, peak = max(one.cpu_s for one in found), max(one.peak_bytes for one in found)
        cells = [counts[outcome] for outcome in OUTCOMES]
        print_row(name, len(found), *cells, f"{cpu_s:.1f}", f"{peak / 1e6:,.0f}")
    print_machine()


if __name__ == "__main__":
    sys.exit(main())
