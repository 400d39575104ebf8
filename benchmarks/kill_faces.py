"""Kill `raffect faces` and all its processes with SIGKILL, at seeded random moments.

    uv run python benchmarks/kill_faces.py --kills 10 --seed 0

Runs of one command are killed and started again until all kills are used up and it ends. What is in
the folder then must have the bytes of an undisturbed run, no file more and none less, and running
once more must find nothing to do. The exit status is 1 if anything of that fails.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from processes import tree

sys.path.insert(0, str(Path(__file__).parents[1]))
from raffect.storage.tables import write_csv
from tests.helpers.videos import moving_faces, write_video

FOLDER, MOST_S = "faces", 300.0


@dataclass
class Outcome:
    """What became of a folder.

    Attributes:
        kills: Runs that were killed.
        reached: Units that were finished at each kill.
        faults: What is not as it should be.
    """

    kills: int
    reached: list[int]
    faults: list[str]


def make_inputs(folder: Path, videos: int, frames: int) -> None:
    """Drawn videos, pictures, and the boxes of their faces."""
    rows = []
    for number in range(videos):
        pictures, boxes = moving_faces(frames, people=2)
        name = f"clip{number}.mp4"
        (folder / "inputs").mkdir(exist_ok=True)
        write_video(folder / "inputs" / name, pictures)
        rows += [{"input": name, **box} for box in boxes]
    write_csv(folder / "boxes.csv", rows)


def start(folder: Path) -> subprocess.Popen:
    """Begin a run in a folder of its own; results have the same path in each, relative to it."""
    words = [sys.executable, "-m", "raffect", "faces", "inputs", "--out", FOLDER]
    words += ["--boxes", "boxes.csv", "--segment-frames", "24"]
    log = (folder / "log").open("ab")
    return subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """End a run and everything below it, all at once."""
    victims = list(tree(process.pid))
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file of a folder of faces."""
    out = folder / FOLDER
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*")}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def wait_for_work(process: subprocess.Popen, folder: Path) -> None:
    """Wait until a run begins its first unit, which is after Ray's start, or ends."""
    noted = set((folder / FOLDER / "attempts").glob("*"))
    while process.poll() is None and not set((folder / FOLDER / "attempts").glob("*")) - noted:
        if (folder / FOLDER / "faces.parquet").exists():
            return
        time.sleep(0.02)


def run_whole(folder: Path) -> float:
    """A run that is left alone; its seconds of work."""
    process = start(folder)
    wait_for_work(process, folder)
    begin = time.monotonic()
    if status := process.wait(MOST_S):
        raise SystemExit(f"an undisturbed run: status {status}\n{(folder / 'log').read_text()}")
    return time.monotonic() - begin


def num_commits(folder: Path) -> int:
    return len(list((folder / FOLDER / "commits").glob("*.json")))


def disturb(folder: Path, kills: int, seed: int, span_s: float, whole: dict[str, bytes]) -> Outcome:
    """Kill run after run in a folder, finish it, and compare it with an undisturbed one."""
    rng, outcome = random.Random(seed), Outcome(0, [], [])
    units = sum(name.startswith("commits/") for name in whole)
    while outcome.kills < kills:
        left = 1 - num_commits(folder) / units
        process = start(folder)
        wait_for_work(process, folder)
        moment = time.monotonic() + rng.random() * span_s * left
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        if process.poll() is not None:
            break  # it ended before its moment
        kill(process)
        outcome.kills += 1
        outcome.reached.append(num_commits(folder))
    # What is left when the command has ended by itself
    run_whole(folder)
    found = contents(folder)
    outcome.faults += [f"{name}: missing" for name in sorted(whole.keys() - found.keys())]
    outcome.faults += [f"{name}: left over" for name in sorted(found.keys() - whole.keys())]
    same = sorted(whole.keys() & found.keys())
    outcome.faults += [f"{name}: other bytes" for name in same if whole[name] != found[name]]
    (folder / "log").write_bytes(b"")
    run_whole(folder)
    if b"nothing to do" not in (folder / "log").read_bytes():
        outcome.faults.append("run once more, it did something")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--a-folder", type=int, default=5, help="kills of one folder at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--frames", type=int, default=120)
    args = parser.parse_args()
    faults, done = 0, 0
    print("| folder | kills | units finished at each | faults |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="k") as name:
        # A root is named in the manifest, so all runs have the same one, one after the other.
        place, kept = Path(name) / "run", 0
        place.mkdir()
        make_inputs(place, args.videos, args.frames)
        span_s = run_whole(place)
        whole = contents(place)
        while done < args.kills and kept < 5 * args.kills:
            (place / FOLDER).rename(Path(name) / f"kept-{kept}")
            kept += 1
            kills = min(args.a_folder, args.kills - done)
            outcome = disturb(place, kills, args.seed + kept, span_s, whole)
            done += outcome.kills
            faults += len(outcome.faults)
            shown = "; ".join(outcome.faults) or "none"
            reached = " ".join(map(str, outcome.reached))
            print(f"| {kept} | {outcome.kills} | {reached} | {shown} |", flush=True)
    print(
        f"\n{done} kills with seed {args.seed}, undisturbed {span_s:.0f} s of work; {faults} faults"
    )
    return int(faults > 0 or done < args.kills)


if __name__ == "__main__":
    sys.exit(main())
