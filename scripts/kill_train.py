"""Kill a sweep's driver and a worker of Ray Train at random moments, run the same command again, and count what was repeated.

    python scripts/kill_train.py --bank BANK --labels DATA [--kills 5] [--seed 0]

Prints, for each part, kills, finished members that were trained again (must be 0), and whether heads have the bytes (sweep) or losses
(workers) of an undisturbed run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from raffect.cli import main; sys.exit(main(sys.argv[1:]))"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    data = ["--task", "expr", "--bank", str(options.bank), "--labels", str(options.labels)]
    with tempfile.TemporaryDirectory() as folder:
        kill_sweeps(Path(folder), data, options.kills, rng)
        kill_workers(Path(folder), data, rng)


def kill_sweeps(folder, data, kills, rng):
    words = ["tune", "paper", *data, "--space", "loss.alpha=0.1:1:0.1", "seed=0,1", "--members-per-trial", "4", "--epochs", "6", "--head.width", "128"]
    start = time.monotonic()
    subprocess.run([*COMMAND, *words, "--out", str(folder / "straight")], check=True, capture_output=True)
    straight_s = time.monotonic() - start
    members = len(records(folder / "straight"))
    print(f"sweep: {members} members, undisturbed {straight_s:.0f} s", flush=True)
    repeated, done = 0, 0
    for kill in range(kills):
        process = subprocess.Popen([*COMMAND, *words, "--out", str(folder / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, wanted = records(folder / "killed"), (kill + 1) * members // (kills + 2)
        while process.poll() is None and len(records(folder / "killed")) < wanted:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 3))
        early = process.poll() is None
        if early:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(3)  # what Ray leaves behind notices that its driver is gone
        after = records(folder / "killed")
        repeated += sum(after.get(name) != stamp for name, stamp in before.items())
        print(f"  kill {kill + 1}: {'killed' if early else 'had finished'}, {len(before)} -> {len(after)} members finished", flush=True)
        done = len(after)
    subprocess.run([*COMMAND, *words, "--out", str(folder / "killed")], check=True, capture_output=True)
    heads = {path.relative_to(folder / "straight"): path.read_bytes() for path in (folder / "straight" / "weights").rglob("head.safetensors")}
    same = sum((folder / "killed" / path).read_bytes() == content for path, content in heads.items())
    print(
        f"  {done} members were finished before the last run; finished members trained again: {repeated}; heads equal to the undisturbed sweep's: {same} of {len(heads)}",
        flush=True,
    )


def kill_workers(folder, data, rng):
    words = ["train", "paper", *data, "--epochs", "12", "--num-workers", "2", "--head.width", "128"]
    subprocess.run([*COMMAND, *words, "--out", str(folder / "workers-straight")], check=True, capture_output=True)
    process = subprocess.Popen([*COMMAND, *words, "--out", str(folder / "workers-killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress, wanted = folder / "workers-killed" / "state" / "progress.json", rng.randint(3, 6)
    while process.poll() is None and epoch_of(progress) < wanted:
        time.sleep(0.05)
    workers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and b"RayTrainWorker" in command_line(pid)]
    at = epoch_of(progress)
    if workers:
        os.kill(rng.choice(workers), signal.SIGKILL)
    process.wait()
    one, two = (json.loads(next((folder / name / "members").glob("*.json")).read_text())["history"]["train_loss"] for name in ("workers-straight", "workers-killed"))
    largest = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
    print(
        f"workers: {len(workers)} found, one killed after epoch {at} of 12; exit status {process.returncode}; {len(two)} epochs on record; largest relative difference of a loss {largest:.1e}"
    )


def epoch_of(progress):
    try:
        return json.loads(progress.read_text())[0]
    except (OSError, ValueError):
        return 0


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def records(run):
    return {path.name: path.stat().st_mtime_ns for path in (run / "members").glob("*.json")}


if __name__ == "__main__":
    main()
