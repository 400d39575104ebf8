"""Everything that only a GPU can answer, beside what it should be: one command, one page.

    python benchmarks/gpu.py            # 30 minutes on one GPU
    python benchmarks/gpu.py --quick    # 5 minutes: fewer parts, smaller ones
    python benchmarks/gpu.py --list     # parts with their limits, and rows

Each part runs in a process of its own with a time limit; one that fails or hangs is the row
"failed: why", and the rest goes on. The page is benchmarks/results/gpu_<card>_<yyyymm>.md (and
..._quick.md), with reached, aimed and computed bound of each row; finished parts are kept in a JSON
file beside it, so that the same command at the same commit goes on after a stop (--again measures
anew). The last lines are one a row: pass, short (an aim that was not reached), FAIL (a check), or
missing (a part ran and left no number, which fails where it is a check).
Weights are random: nothing is downloaded. For which kernels take the time: gpu_profile.py.

Exit status: 0; 1 if a check fails or could not be made; 2 without a GPU, or for wrong words.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from gpu_parts import PARTS, SIZES, Size
from gpu_rows import NOT_QUICK, ROWS, Row
from tools import new_parser

from raffect.errors import RaffectError, require
from raffect.provenance import describe_run
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record

RESULTS = Path(__file__).parent / "results"
_REMEDY = "delete it, or give --again"
_ON_A_CPU = 4
"""Times as long may a trial take there, beside other work."""


@dataclass(frozen=True, kw_only=True)
class Done(Record):
    """A part that ran: its numbers, or why it failed."""

    commit: str
    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Kept(Record):
    """All parts that ran, by name; the file beside the page."""

    parts: dict[str, Done] = field(default_factory=dict)


# Parts


def limit_of(name: str, size: Size) -> int:
    """Seconds that a part may take; 0 if this run leaves it out."""
    seconds = PARTS[name].quick_seconds if size.name == "quick" else PARTS[name].seconds
    return seconds * _ON_A_CPU if size.name == "cpu" else seconds


def run_part(name: str, size: Size) -> Done:
    """Run a part in a process of its own, whose children end with it."""
    start, commit = time.monotonic(), describe_run().git_commit or "unknown"
    with tempfile.TemporaryDirectory(prefix="raffect-gpu-") as folder:
        log, out = Path(folder) / "log", Path(folder) / "values.json"
        command = [sys.executable, __file__, "--part", name, "--size", size.name, "--to", str(out)]
        with log.open("w") as sink:
            streams = {"stdout": sink, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, start_new_session=True, **streams)
        try:
            status = process.wait(limit_of(name, size))
            why = f"status {status}" if status else ""
        except subprocess.TimeoutExpired:
            why = f"took longer than {limit_of(name, size)} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it left running, Ray's too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - start
        if not why:
            found = Done.from_json(out.read_bytes(), out, _REMEDY)
            return Done(commit=commit, seconds=seconds, values=found.values)
        last = ([line for line in log.read_text(errors="replace").splitlines() if line] or [""])[-1]
        return Done(commit=commit, seconds=seconds, failed=f"{why}: {last[:160]}".rstrip(": "))


def run_child(options: argparse.Namespace) -> None:
    """Measure one part, and write its numbers."""
    start = time.monotonic()
    values = PARTS[options.part].run(SIZES[options.size])
    done = Done(commit="", seconds=time.monotonic() - start, values=values)
    write_atomic(options.to, done.to_bytes())


# The page


def verdict(row: Row, done: Done | None, size: Size) -> str:
    """``pass``, ``short``, ``FAIL``, ``failed: why``, ``missing``, or why there is no number."""
    if done is None:
        return "not in this run"
    if done.failed:
        return f"failed: {done.failed}"
    if is_left_out(row, size):
        return "not run (CPU)" if size.device == "cpu" else "not in this run"
    if row.value not in done.values or not row.bound:
        return "no aim" if row.value in done.values else "missing"
    if row.holds(done.values[row.value]):
        return "pass"
    return "FAIL" if row.is_check else "short"


def is_left_out(row: Row, size: Size) -> bool:
    """Whether a run of this size has no number for a row, even where its part ran."""
    if size.device == "cpu":
        return row.needs_cuda
    return size.name == "quick" and row.value in NOT_QUICK


def is_wrong(row: Row, found: str) -> bool:
    """Whether a verdict makes the command fail."""
    return row.is_check and found.startswith(("FAIL", "failed", "missing"))


def cells(row: Row, parts: dict[str, Done], size: Size) -> list[str]:
    """A row's cells, after its text."""
    done, roofline = parts.get(row.part), parts.get("roofline")
    value = done.values.get(row.value) if done and not is_left_out(row, size) else None
    bound = None
    if roofline is not None and row.part != "roofline":
        bound = roofline.values.get(row.value)
    reached = "-" if value is None else _short(value)
    aim = f"{row.bound} {_short(row.aim)}" if row.bound else "-"
    return [
        reached,
        aim,
        "-" if bound is None else _short(bound),
        verdict(row, done, size),
        row.source,
    ]


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 0.001 else f"{value:.3g}"


def write_page(path: Path, size: Size, parts: dict[str, Done]) -> None:
    """Write the page from the parts that ran so far."""
    run, on_cuda = describe_run(), size.device == "cuda"
    trial = "**A trial on a CPU with tiny sizes: no number here says anything about a GPU.**"
    card = torch.cuda.get_device_name() if on_cuda else "CPU, trial"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    commits = ", ".join(sorted({done.commit for done in parts.values()})) or "-"
    rows = [f"| {' | '.join([row.text, *cells(row, parts, size)])} |" for row in ROWS]
    times = ", ".join(f"{name} {done.seconds:.0f} s" for name, done in parts.items())
    known = "one us" in parts["roofline"].values if "roofline" in parts else False
    without = (
        "" if known else " It is left out: roofline.py does not know this card, or did not run."
    )
    lines = [
        f"# {card}, {datetime.now(UTC):%B %Y}",
        "",
        *([] if on_cuda else [trial, ""]),
        f"Command: `python benchmarks/gpu.py{_words(size)}`. Commit: {commits}. {_describe_card()}",
        f"{versions}; {run.machine.system}, {run.machine.cores} cores.",
        f"{size.model}, random weights, batch {size.batch}. One run of each part on one machine; "
        "Figure 2's minutes are extrapolated.",
        "Bound: computed by roofline.py from counted launches and bytes, never measured." + without,
        "",
        "| | reached | aim | bound | | source of the aim |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Parts: {times}.",
        "Not shown: several GPUs, real weights, another day.",
    ]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _words(size: Size) -> str:
    return {"full": "", "quick": " --quick", "cpu": " --cpu"}[size.name]


def _describe_card() -> str:
    if not torch.cuda.is_available():
        return ""
    found = torch.cuda.get_device_properties(0)
    cudnn, memory = torch.backends.cudnn.version(), found.total_memory / 1e9
    return f"{memory:.0f} GB, CUDA {torch.version.cuda}, cuDNN {cudnn}."


def page_of(folder: Path, size: Size) -> Path:
    """Where the page is written."""
    words = {"nvidia", "geforce", "rtx", "tesla", "graphics", "hbm3", "pcie", "sxm"}
    name = torch.cuda.get_device_name() if size.device == "cuda" else "cpu"
    kept = [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in words]
    card = next(iter(kept), "card")
    more = "" if size.name == "full" else f"_{size.name}"
    return folder / f"gpu_{card}_{datetime.now(UTC):%Y%m}{more}.md"


# The command


def measure(page: Path, size: Size, names: list[str], again: bool) -> dict[str, Done]:
    """Run the parts that are not kept from this commit; the page and its file grow with each."""
    file = page.with_suffix(".json")
    has_file = file.exists()
    if page.exists() and not has_file:
        raise RaffectError(f"{page}: not a page of this command; name another folder with --out")
    kept = Kept.from_json(file.read_bytes(), file, _REMEDY) if has_file and not again else Kept()
    commit = describe_run().git_commit or "unknown"
    parts = dict(kept.parts)
    for name in names:
        done = parts.get(name)
        if done is not None and done.commit == commit and not done.failed:
            print(f"{name}: kept, {done.seconds:.0f} s", flush=True)
            continue
        print(f"{name}: at most {limit_of(name, size)} s ...", flush=True)
        parts[name] = done = run_part(name, size)
        print(f"{name}: {done.failed or 'done'}, {done.seconds:.0f} s", flush=True)
        write_atomic(file, Kept(parts=parts).to_bytes())
        write_page(page, size, parts)
    write_page(page, size, parts)
    return parts


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="five minutes")
    parser.add_argument("--cpu", action="store_true", help="try this script on a CPU, tiny")
    parser.add_argument("--again", action="store_true", help="measure finished parts anew")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts alone")
    parser.add_argument("--list", action="store_true", help="print parts and rows, and end")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for page and JSON file")
    for hidden in ("--part", "--size"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_child(options)
        return 0

    # What to run, and where
    size = SIZES["cpu" if options.cpu else "quick" if options.quick else "full"]
    unknown = set(options.only) - PARTS.keys()
    require(not unknown, f"--only {' '.join(unknown)}: expected {', '.join(PARTS)}")
    names = [name for name in options.only or PARTS if limit_of(name, size)]
    if options.list:
        for name in names:
            rows = [row.text for row in ROWS if row.part == name]
            print(f"{name:12} {limit_of(name, size):4} s  {'; '.join(rows)}")
        return 0
    if not options.cpu and not torch.cuda.is_available():
        print("gpu.py: no CUDA device is here; --cpu tries the script itself", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    page = page_of(options.out, size)
    parts = measure(page, size, names, options.again)

    # A line a row
    found = [(row, verdict(row, parts.get(row.part), size)) for row in ROWS if row.part in names]
    for row, result in found:
        print(f"{result:6} {row.text}: {' '.join(cells(row, parts, size)[:2])}")
    wrong = sum(is_wrong(row, result) for row, result in found)
    trial = "" if size.device == "cuda" else "; a trial on a CPU, which says nothing about a GPU"
    made = sum(row.is_check and result == "pass" for row, result in found)
    checks = f"{wrong} check(s) failed" if wrong else f"{made} checks made, none failed"
    print(f"wrote {page}; {checks}{trial}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RaffectError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"gpu.py: {error.filename}: {error.strerror}; check the path", file=sys.stderr)
        sys.exit(2)
