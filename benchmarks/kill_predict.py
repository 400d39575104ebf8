"""Kill `raffect predict INPUT` and all its processes with SIGKILL, at seeded random moments.

    uv run python benchmarks/kill_predict.py --kills 10 --seed 0

Runs of one command on drawn videos are killed and started again until all kills of a folder are
used up, and once more until it ends. What is in the folder then must be what an undisturbed run
leaves: every file of the same bytes (of the table its rows: its facts name the time of the run), no
crop, no scratch folder, nothing unfinished. The exit status is 1 if anything of that fails.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_faces import kill
from tools import new_parser

sys.path.insert(0, str(Path(__file__).parents[1]))
from raffect.datasets.synthetic.tree import EDITION
from raffect.datasets.synthetic.video import write_video
from raffect.predictions.table import read_predictions

MOST_S = 300.0
OUT = "predictions"


def raffect(folder: Path, *words: str) -> None:
    """Run a command to its end."""
    subprocess.run(
        [sys.executable, "-m", "raffect", *words], cwd=folder, check=True, capture_output=True
    )


def prepare(folder: Path, videos: int, seconds: float) -> None:
    """Heads of drawn faces, and drawn videos with one table of their boxes."""
    raffect(folder, "synth", "--out", "faces", "--frames", "400")
    raffect(folder, "prepare", "--images", "faces/cropped_aligned", "--out", "data",
            "--annotations", f"faces/{EDITION}")  # fmt: skip
    raffect(folder, "extract", "--manifest", "data", "--bank", "bank",
            "--encoder.model", "raffect-faces")  # fmt: skip
    raffect(folder, "train", "erm", "--task", "expr", "--bank", "bank", "--labels", "data",
            "--out", "expr", "--epochs", "2", "--threads", "1")  # fmt: skip
    lines: list[str] = []
    (folder / "inputs").mkdir()
    for number in range(videos):
        clip = folder / "inputs" / f"clip{number}.mp4"
        write_video(clip, seconds, seed=number)
        boxes = clip.with_name(f"{clip.name}.boxes.csv")
        lines += boxes.read_text().splitlines()[1 if lines else 0 :]
        boxes.unlink()
    (folder / "boxes.csv").write_text("\n".join([*lines, ""]))


def start(folder: Path) -> subprocess.Popen:
    """Begin a run; results have the same path in each."""
    words = ["predict", "inputs", "--head", "expr", "--out", OUT, "--boxes", "boxes.csv"]
    words += ["--margin", "0", "--allow-embedded"]
    log = (folder / "log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-m", "raffect", *words],
        cwd=folder, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def run_whole(folder: Path) -> float:
    """A run that is left alone; its seconds from the scratch folder to the end."""
    process = start(folder)
    begin = wait_for_scratch(process, folder)
    if status := process.wait(MOST_S):
        raise SystemExit(f"an undisturbed run: status {status}\n{(folder / 'log').read_text()}")
    return time.monotonic() - begin


def wait_for_scratch(process: subprocess.Popen, folder: Path) -> float:
    """The moment at which a run has its scratch folder, or ends."""
    while process.poll() is None and not list((folder / OUT).glob(".scratch-*")):
        time.sleep(0.02)
    return time.monotonic()


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file; of the table its rows."""
    out = folder / OUT
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    rows = read_predictions(out / "predictions.parquet").to_pandas().to_csv().encode()
    return {name: path.read_bytes() for name, path in found.items()} | {"predictions.parquet": rows}


def disturb(folder: Path, kills: int, rng: random.Random, span_s: float) -> tuple[int, list[str]]:
    """Kill run after run in one folder, then finish it; kills, and the step each run was at."""
    steps: list[str] = []
    while len(steps) < kills:
        process = start(folder)
        moment = wait_for_scratch(process, folder) + rng.random() * span_s
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        steps.append(step_of(folder))
        kill(process)
    run_whole(folder)
    return len(steps), steps


def step_of(folder: Path) -> str:
    """What a run had got to, from what is there."""
    scratch = next((folder / OUT).glob(".scratch-*"), None)
    if scratch is None:
        return "end"
    if list(scratch.glob("shown/*.json")):
        return "overlays"
    if (scratch / "bank").exists():
        return "features"
    return "faces"


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--a-folder", type=int, default=3, help="kills of one folder at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kp") as name:
        return kill_all(args, Path(name))


def kill_all(args: argparse.Namespace, folder: Path) -> int:
    """All kills; the exit status."""
    rng, done, faults = random.Random(args.seed), 0, 0
    prepare(folder, args.videos, args.seconds)
    span_s = run_whole(folder)
    whole = contents(folder)
    print("| folder | kills | step at each | faults |\n|---|---|---|---|", flush=True)
    for number in range(1, 2 * args.kills):
        if done >= args.kills:
            break
        shutil.rmtree(folder / OUT)
        kills, steps = disturb(folder, min(args.a_folder, args.kills - done), rng, span_s)
        found, done = contents(folder), done + kills
        wrong = [f"{path}: missing" for path in sorted(whole.keys() - found.keys())]
        wrong += [f"{path}: left over" for path in sorted(found.keys() - whole.keys())]
        same = sorted(whole.keys() & found.keys())
        wrong += [f"{path}: other bytes" for path in same if whole[path] != found[path]]
        faults += len(wrong)
        print(f"| {number} | {kills} | {' '.join(steps)} | {'; '.join(wrong) or 'none'} |")
        sys.stdout.flush()
    print(f"\n{done} kills, seed {args.seed}, undisturbed {span_s:.0f} s of work; {faults} faults")
    return int(faults > 0 or done < args.kills)


if __name__ == "__main__":
    sys.exit(main())
