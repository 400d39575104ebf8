"""Runs everything that only a GPU can answer, as steps with a time limit each, and prints a table.

    python benchmarks/gpu.py [--out FOLDER] [--list] GROUP...

A group is one step, or several joined by ``+`` that run side by side (for checks, never for timings). Made for
a lent machine: a step that hangs or fails costs its limit and no more, what each printed is in FOLDER/logs.txt,
and the end of it is shown here. `--list` shows the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PY = sys.executable
TEST = f"{PY} -m pytest --durations=5 -q -p no:cacheprovider -o addopts= -o timeout=250"
RAFFECT = f"{PY} -m raffect.cli"
VIT = "--encoder.model ViT-L-14-quickgelu --encoder.weights random:0"
DRAWN = (
    f"{PY} -c 'from pathlib import Path; from raffect.datasets.synthetic.tree import write_synthetic;"
    ' write_synthetic(Path("/tmp/drawn"), FRAMES, 0)\' && ' + RAFFECT + " prepare --images"
    " /tmp/drawn/cropped_aligned --annotations /tmp/drawn/8th_ABAW_Annotations --out /tmp/drawn/data | tail -3"
)


def on_cuda(name: str) -> str:
    """Tests of whole runs, on the device instead of the CPU: in a copy of the checkout, Ray has a GPU."""
    copy = f"/tmp/on-cuda-{name}"
    return (
        f"rm -rf {copy} && cp -r . {copy} && cd {copy} && sed -i 's/num_gpus=0/num_gpus=1/' tests/conftest.py"
        ' && sed -i \'s/"--device", "cpu"/"--device", "cuda"/\' tests/stages/test_t*.py'
        f" && PYTHONPATH={copy}:$PYTHONPATH {TEST} -m 'not cluster' tests/stages/test_{name}.py"
    )


STEPS: dict[str, tuple[int, str]] = {
    # name: seconds, command
    "doctor": (40, f"nvidia-smi -L; {RAFFECT} doctor"),
    "cuda-tests": (170, f"{TEST} -s tests/heads/test_cuda.py"),
    "model-tests": (240, f"{TEST} tests/model --deselect tests/heads/test_cuda.py"),
    "stage-tests": (
        300,
        f"{TEST} -m 'not cluster' tests/stages/test_train.py tests/stages/test_tune.py tests/stages/test_extract.py tests/stages/test_shards.py",
    ),
    "train-on-cuda": (240, on_cuda("train")),
    "tune-on-cuda": (150, on_cuda("tune")),
    "extract-on-cuda": (150, on_cuda("extract")),
    "demo": (240, f"rm -rf /tmp/demo; {RAFFECT} demo --frames 3000 --out /tmp/demo"),
    "check-encoder": (
        165,
        f"{PY} scripts/check_encoder.py --frames 64 --device cuda --precision float32 && {PY} scripts/check_encoder.py --frames 64 --device cuda --precision float16",
    ),
    "kills": (165, f"{PY} scripts/kill_extract.py --frames 4000 --kills 6"),
    "profile-learner": (120, f"{PY} benchmarks/gpu_profile.py learner"),
    "profile-encoder": (120, f"{PY} benchmarks/gpu_profile.py encoder"),
    "variants": (
        170,
        f"{PY} benchmarks/gpu_profile.py variants --variants plain silu-patch silu-patch-flash silu-patch-compiled silu-patch-bfloat16-compiled",
    ),
    "steps": (120, f"{PY} benchmarks/gpu_profile.py steps --packs 50 1"),
    "train": (120, f"{PY} benchmarks/train.py --device cuda --steps 200 --packs 1 10 50 64"),
    "encode": (
        200,
        f"{PY} benchmarks/encode.py --device cuda --frames 4096 --repeats 2 --batches 256 --towers open_clip raffect raffect-compiled bfloat16",
    ),
    "batches": (
        200,
        f"{PY} benchmarks/encode.py --device cuda --frames 4096 --repeats 2 --batches 64 128 512 1024 --towers raffect --sides c",
    ),
    "feed": (240, f"{PY} benchmarks/feed.py --frames 20000"),
    "startup": (300, f"{PY} benchmarks/startup.py --repeats 2"),
    "draw": (120, DRAWN.replace("FRAMES", "20000")),
    "extract": (
        200,
        f"rm -rf /tmp/bank; {RAFFECT} extract --manifest /tmp/drawn/data/manifest.parquet --bank /tmp/bank {VIT}",
    ),
    "figure2": (400, f"{PY} benchmarks/gpu_figure2.py"),
}


def start(name: str, folder: Path, beside: bool) -> tuple[subprocess.Popen, Path, float]:
    log = folder / f"{name}.log"
    environment = (
        os.environ
        | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
        | ({"OMP_NUM_THREADS": "2"} if beside else {})
    )
    with log.open("w") as sink:
        process = subprocess.Popen(
            ["bash", "-c", STEPS[name][1]],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return process, log, time.monotonic()


def finish(name: str, process: subprocess.Popen, began: float) -> tuple[str, float]:
    left = STEPS[name][0] - (time.monotonic() - began)
    try:
        status = str(process.wait(max(1.0, left)))
    except subprocess.TimeoutExpired:
        status = "time limit"
    took = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):  # whatever it left running, Ray's processes too
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return status, took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or tempfile.mkdtemp(prefix="raffect-gpu-")),
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--tail", type=int, default=1500, help="characters of each log that are shown"
    )
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    if options.list:
        for name, (limit, command) in STEPS.items():
            print(f"{name:22} {limit:4} s  {command[:140]}")
        return
    folder, table, shown = Path(tempfile.mkdtemp(prefix="raffect-logs-")), [], []
    for group in options.groups:
        under_way = [(name, *start(name, folder, "+" in group)) for name in group.split("+")]
        for name, process, log, began in under_way:
            status, took = finish(name, process, began)
            text = log.read_text(errors="replace")
            with (options.out / "logs.txt").open("a") as sink:
                sink.write(f"===== {name}: {status}, {took:.0f} s\n{STEPS[name][1]}\n{text}\n")
            table.append(f"| {name} | {status} | {took:.0f} |")
            shown.append(f"----- {name}\n{text[-options.tail :]}")
            print(f"{name}: {status}, {took:.0f} s", flush=True)
    print("\n".join(shown))
    print("\n| step | status | s |\n|---|---|---|\n" + "\n".join(table))


if __name__ == "__main__":
    main()
