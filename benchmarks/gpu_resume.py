"""Extraction with ViT-L/14 (random weights) on a GPU: its rate, and a SIGKILL in the middle.

    python benchmarks/gpu_resume.py [--frames 24576] [--commits 4]

The bank that was killed and gone on with must have the bytes of the undisturbed one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from made import draw_faces
from tools import flags, new_parser, scratch

from raffect.bank.format import Bank

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from kill_extract import stable_bytes


def start_extract(manifest: Path, bank: Path, model: str, weights: str) -> subprocess.Popen:
    """`raffect extract` in a process of its own."""
    encoder = ["--encoder.model", model, "--encoder.weights", weights]
    words = [*flags(manifest=manifest, bank=bank), *encoder]
    command = [sys.executable, "-m", "raffect.cli", "extract", *words]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **output)


def finish(process: subprocess.Popen, name: str) -> None:
    """Wait for an extraction, and print what it printed."""
    start = time.perf_counter()
    out, _ = process.communicate()
    took = f"{time.perf_counter() - start:.1f} s"
    print(f"{name}: status {process.returncode}, {took}\n{out}", flush=True)


def main() -> None:
    parser = new_parser(__doc__)
    on_record = "shards on record when the driver is killed"
    parser.add_argument("--frames", type=int, default=24_576)
    parser.add_argument("--commits", type=int, default=4, help=on_record)
    parser.add_argument("--model", default="ViT-L-14-quickgelu")
    parser.add_argument("--weights", default="random:0")
    options = parser.parse_args()
    with scratch("resume") as folder:
        # Drawn faces
        start = time.perf_counter()
        manifest, whole, killed = draw_faces(folder, options.frames), folder / "whole", "killed"
        print(f"drawn and prepared in {time.perf_counter() - start:.1f} s", flush=True)
        encoder = (options.model, options.weights)

        # The undisturbed run
        finish(start_extract(manifest, whole, *encoder), "whole")

        # The run that is killed
        bank = Bank(folder / killed)
        process = start_extract(manifest, bank.path, *encoder)
        while process.poll() is None and num_commits(bank) < options.commits:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        done = f"{len(bank.read_commits())} of {bank.plan.num_shards} shards on record"
        print(f"killed with {done}", flush=True)

        # The same command again
        finish(start_extract(manifest, bank.path, *encoder), killed)
        print(f"equal bytes: {stable_bytes(folder / killed) == stable_bytes(whole)}")


def num_commits(bank: Bank) -> int:
    """Shards on record, without reading the records."""
    return len(list(bank.commit_path(0).parent.glob("*.json")))


if __name__ == "__main__":
    main()
