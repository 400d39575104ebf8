"""Kill extraction at seeded random moments and check that nothing is lost, doubled or changed.

    uv run python scripts/kill_extract.py --frames 5000 --kills 20 --victim driver
    uv run python scripts/kill_extract.py --frames 5000 --kills 20 --victim worker

``driver``: the extract process gets SIGKILL at a random moment of its run and is started again on
the same bank. ``worker``: a random Ray worker of it (reader, encoder or committer) gets SIGKILL;
the run must finish by itself. Whenever a bank is finished, its every byte is compared with that of
an undisturbed run and a new bank is begun.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from raffect.bank.format import Bank
from raffect.bank.verify import verify
from raffect.config import PrepareConfig
from raffect.datasets.manifest import read_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic

STABLE = ("plan", "shards", "rejects", "commits")
STEPS = ("read_shard", "commit_shard", "MapWorker", "IDLE")
"""Ray workers of an extraction; idle ones hold results of the others."""
KILLS_A_RUN = 4


@dataclass
class Tally:
    """What happened over all kills."""

    kills: int = 0
    missed: int = 0
    banks: int = 0
    shards_kept: list[int] = field(default_factory=list)
    victims: Counter = field(default_factory=Counter)


def start_extract(manifest: Path, bank: Path, shard_rows: int) -> subprocess.Popen:
    """`raffect extract` in a process of its own; Ray's processes end with it."""
    data = ["--manifest", str(manifest), "--bank", str(bank), "--shard-rows", str(shard_rows)]
    encoder = ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
    command = [sys.executable, "-m", "raffect.cli", "extract", *data, *encoder]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **output)


def finish(process: subprocess.Popen) -> str:
    """Wait for an extract that must succeed."""
    out, _ = process.communicate(timeout=900)
    if process.returncode != 0:
        raise SystemExit(f"extract failed with status {process.returncode}:\n{out}")
    return out


def stable_bytes(bank: Path) -> dict[str, bytes]:
    """Every file of a bank that must not depend on how it came about."""
    files = [file for folder in STABLE for file in sorted((bank / folder).glob("*"))]
    visible = [file for file in files if not file.name.startswith(".tmp-")]
    return {str(file.relative_to(bank)): file.read_bytes() for file in visible}


def check_bank(bank: Path, whole: dict[str, bytes], manifest: Path) -> None:
    """Every (video, frame) once, and bytes equal to an undisturbed run."""
    found = verify(Bank(bank), read_manifest(manifest))
    assert found.complete, found
    assert stable_bytes(bank) == whole, "bytes differ from an undisturbed run"


def kill_drivers(
    rng: random.Random,
    manifest: Path,
    folder: Path,
    whole: dict[str, bytes],
    kills: int,
    typical_s: float,
    shard_rows: int,
    tally: Tally,
) -> None:
    """Kill the driver ``kills`` times at moments spread over a whole run, start-up included."""
    bank = folder / "bank-0"
    while tally.kills < kills:
        process, start = start_extract(manifest, bank, shard_rows), time.monotonic()
        try:
            process.wait(timeout=rng.uniform(0.15, 1.0) * typical_s)
            finish(process)
            # A machine that has become faster must not finish before every kill.
            typical_s = time.monotonic() - start
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            tally.kills += 1
            tally.shards_kept.append(len(Bank(bank).read_commits()) if bank.exists() else 0)
            continue
        check_bank(bank, whole, manifest)
        tally.banks += 1
        bank = folder / f"bank-{tally.banks}"
    finish(start_extract(manifest, bank, shard_rows))
    check_bank(bank, whole, manifest)
    tally.banks += 1


def find_workers(driver: int) -> list[tuple[int, str]]:
    """Ray workers below a driver, by process and title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        is_worker = title.startswith("ray::") and any(step in title for step in STEPS)
        if is_worker and _descends(int(folder.name), driver):
            found.append((int(folder.name), title.removeprefix("ray::").split(".")[0]))
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def kill_workers(
    rng: random.Random,
    manifest: Path,
    folder: Path,
    whole: dict[str, bytes],
    kills: int,
    shard_rows: int,
    tally: Tally,
) -> None:
    """Kill a few workers in each run; the run itself must end well."""
    while tally.kills < kills:
        bank = folder / f"bank-{tally.banks}"
        process = start_extract(manifest, bank, shard_rows)
        while process.poll() is None and not find_workers(process.pid):
            time.sleep(0.05)
        for _ in range(KILLS_A_RUN):
            until = time.monotonic() + rng.uniform(0, 6)
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            workers = find_workers(process.pid)
            if process.poll() is None and workers and tally.kills < kills:
                _kill_one(rng, workers, tally)
        finish(process)
        check_bank(bank, whole, manifest)
        tally.banks += 1


def _kill_one(rng: random.Random, workers: list[tuple[int, str]], tally: Tally) -> None:
    """Kill a worker, each kind being as likely as the others."""
    kind = rng.choice(sorted({title for _, title in workers}))
    pid, title = rng.choice([worker for worker in workers if worker[1] == kind])
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        tally.missed += 1
        return
    tally.kills += 1
    tally.victims[title] += 1


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--victim", choices=("driver", "worker"), default="driver")
    parser.add_argument("--shard-rows", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raffect-kill-"))
    try:
        run(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(args: argparse.Namespace, folder: Path) -> None:
    """The undisturbed run, then disturbed ones until the kills are used up."""
    # Drawn faces
    faces, data = folder / "faces", folder / "data"
    counts = write_synthetic(faces, args.frames, args.seed)
    images = (faces / "cropped_aligned",)
    prepare(PrepareConfig(images=images, annotations=faces / EDITION, out=data))
    manifest = data / "manifest.parquet"

    # The undisturbed run
    start = time.monotonic()
    finish(start_extract(manifest, folder / "whole", args.shard_rows))
    typical_s = time.monotonic() - start
    whole = stable_bytes(folder / "whole")
    shards = sum(name.startswith("shards") for name in whole)
    size = f"{counts['images']} frames, {shards} shards"
    print(f"{size}, undisturbed run {typical_s:.0f} s", flush=True)

    # Disturbed ones
    rng, tally = random.Random(args.seed), Tally()
    job = (rng, manifest, folder, whole, args.kills)
    if args.victim == "driver":
        kill_drivers(*job, typical_s, args.shard_rows, tally)
        print(f"shards already committed at each kill: {tally.shards_kept}")
    else:
        kill_workers(*job, args.shard_rows, tally)
        print(f"victims: {dict(tally.victims)}")
    kills = f"{tally.kills} {args.victim} kills over {tally.banks} bank(s)"
    took = f"{time.monotonic() - start:.0f} s"
    print(f"{kills} in {took}: every frame exactly once, every byte as undisturbed")


if __name__ == "__main__":
    main()
