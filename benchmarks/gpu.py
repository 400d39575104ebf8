"""Runs everything that only a GPU can answer, as steps with a time limit each, and prints a table.

    python benchmarks/gpu.py [--out FOLDER] [--list] GROUP...

A group is one step, or several joined by ``+`` that run side by side (for checks, never for
timings). Made for a lent machine: a step that hangs or fails costs its limit and no more, what each
printed is in FOLDER/logs.txt, and the end of it is shown here. `--list` shows the steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools import new_parser, print_header, print_row

PY = sys.executable
OPTIONS = "-p no:cacheprovider -o addopts= --import-mode=importlib -o timeout=250"
TEST = f"{PY} -m pytest --durations=5 -q {OPTIONS}"
RAFFECT = f"{PY} -m raffect.cli"
BENCH = f"{PY} benchmarks"
ENCODE = f"{BENCH}/encode.py --device cuda --frames 4096 --repeats 2"
CUDA_TESTS = "tests/heads/test_cuda.py tests/encoders/test_cuda.py"
DRAWN = "/tmp/drawn"
NOT_ON_CUDA = {
    "bad_data_and_settings": "hides CUDA itself",
    "workers_of_ray_train": "wants two GPUs",
    "trains_each_head_once": "equal bytes in another batch of heads, which CUDA does not give",
}
"""Parts of names of tests that hold on a CPU alone, and why."""


def on_cuda(folder: str, name: str) -> str:
    """Tests of whole runs, on the device instead of the CPU, in a copy of the checkout.

    In the copy Ray has a GPU, and commands that name ``cpu`` name ``cuda``.
    """
    chosen = " and ".join(f"not {part}" for part in NOT_ON_CUDA)
    copy, helpers = f"/tmp/on-cuda-{name}", "tests/training/test_t*.py tests/helpers/learning.py"
    # `num_gpus=0` or `"num_gpus": 0`; `--device cpu` in one string or in two
    gpu = r"""sed -E -i 's/(num_gpus"?[:=] ?)0/\11/' tests/conftest.py"""
    device = r"""sed -E -i 's/(--device"?,? "?)cpu/\1cuda/'"""
    lines = (
        f"rm -rf {copy} && cp -r . {copy} && cd {copy}",
        gpu,
        f"{device} {helpers}",
        f"PYTHONPATH={copy}:$PYTHONPATH {TEST} -m 'not cluster' -k '{chosen}' "
        f"tests/{folder}/test_{name}.py",
    )
    return " && ".join(lines)


def check_encoder() -> str:
    """Vectors against open_clip's, in both precisions."""
    command = f"{PY} scripts/check_encoder.py --frames 64 --device cuda --precision"
    return f"{command} float32 && {command} float16"


def draw(frames: int) -> str:
    """Drawn faces and their manifest, for the step ``extract``."""
    synth = f"{RAFFECT} synth --out {DRAWN} --frames {frames}"
    images, annotations = f"{DRAWN}/cropped_aligned", f"{DRAWN}/8th_ABAW_Annotations"
    prepare = f"{RAFFECT} prepare --images {images} --annotations {annotations}"
    return f"rm -rf {DRAWN}; {synth} && {prepare} --out {DRAWN}/data | tail -3"


def extract() -> str:
    """A bank of ViT-L/14 from what ``draw`` made."""
    encoder = "--encoder.model ViT-L-14-quickgelu --encoder.weights random:0"
    data = f"--manifest {DRAWN}/data/manifest.parquet --bank /tmp/bank"
    return f"rm -rf /tmp/bank; {RAFFECT} extract {data} {encoder}"


def model_tests() -> str:
    """Tests of heads and encoders, but for those that ``cuda-tests`` runs."""
    skipped = " ".join(f"--deselect {file}" for file in CUDA_TESTS.split())
    return f"{TEST} tests/heads tests/encoders {skipped}"


def stage_tests() -> str:
    """Tests of whole runs, on the CPU."""
    files = "training/test_train training/test_tune extraction/test_extract extraction/test_steps"
    paths = " ".join(f"tests/{file}.py" for file in files.split())
    return f"{TEST} -m 'not cluster' {paths}"


def variants() -> str:
    """Builds of the tower that are worth comparing."""
    patch = "silu-patch silu-patch-flash silu-patch-compiled silu-patch-bfloat16-compiled"
    return f"{BENCH}/gpu_profile.py variants --variants plain {patch}"


TOWERS = "open_clip raffect raffect-compiled bfloat16"
STEPS: dict[str, tuple[int, str]] = {
    # name: seconds, command
    "doctor": (40, f"nvidia-smi -L; {RAFFECT} doctor"),
    "cuda-tests": (240, f"{TEST} -s {CUDA_TESTS}"),
    "model-tests": (240, model_tests()),
    "stage-tests": (300, stage_tests()),
    "train-on-cuda": (240, on_cuda("training", "train")),
    "tune-on-cuda": (150, on_cuda("training", "tune")),
    "tasks-on-cuda": (150, on_cuda("training", "tasks")),
    "extract-on-cuda": (200, on_cuda("extraction", "extract")),
    "results-on-cuda": (100, on_cuda("extraction", "results")),
    "demo": (240, f"rm -rf /tmp/demo; {RAFFECT} demo --frames 3000 --out /tmp/demo"),
    "check-encoder": (165, check_encoder()),
    "kills": (165, f"{PY} scripts/kill_extract.py --frames 4000 --kills 6"),
    "profile-learner": (120, f"{BENCH}/gpu_profile.py learner"),
    "profile-encoder": (120, f"{BENCH}/gpu_profile.py encoder"),
    "variants": (170, variants()),
    "steps": (170, f"{BENCH}/gpu_profile.py steps --batches 50 1"),
    "train": (200, f"{BENCH}/train.py --device cuda --steps 200 --batches 1 10 50 64"),
    "encode": (200, f"{ENCODE} --batches 256 --towers {TOWERS}"),
    "batches": (200, f"{ENCODE} --batches 64 128 512 1024 --towers raffect --sides c"),
    "feed": (240, f"{BENCH}/feed.py --frames 20000"),
    "startup": (300, f"{BENCH}/startup.py --repeats 2"),
    "draw": (120, draw(20_000)),
    "extract": (200, extract()),
    "resume": (150, f"{BENCH}/gpu_resume.py"),
    "figure2": (400, f"{BENCH}/gpu_figure2.py"),
}


def start(name: str, folder: Path, beside: bool) -> tuple[subprocess.Popen, Path, float]:
    """Start a step, with few threads if others run beside it; its process, log and start."""
    log = folder / f"{name}.log"
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    if beside:
        environment["OMP_NUM_THREADS"] = "2"
    with log.open("w") as sink:
        output = {"stdout": sink, "stderr": subprocess.STDOUT}
        command = ["bash", "-c", STEPS[name][1]]
        process = subprocess.Popen(command, env=environment, start_new_session=True, **output)
    return process, log, time.monotonic()


def finish(name: str, process: subprocess.Popen, began: float) -> tuple[str, float]:
    """Wait for a step until its limit; its status and seconds."""
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
    parser = new_parser(__doc__)
    where = "for logs.txt; by default $OUT, or else a temporary folder"
    shown_part = "characters of each log that are shown"
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help=where)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tail", type=int, default=1500, help=shown_part)
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    if options.list:
        for name, (limit, command) in STEPS.items():
            print(f"{name:22} {limit:4} s  {command[:140]}")
        return

    # Group after group
    out = options.out or Path(tempfile.mkdtemp(prefix="raffect-gpu-"))
    folder, table, shown = Path(tempfile.mkdtemp(prefix="raffect-logs-")), [], []
    for group in options.groups:
        under_way = [(name, *start(name, folder, "+" in group)) for name in group.split("+")]
        for name, process, log, began in under_way:
            status, took = finish(name, process, began)
            text = log.read_text(errors="replace")
            with (out / "logs.txt").open("a") as sink:
                sink.write(f"===== {name}: {status}, {took:.0f} s\n{STEPS[name][1]}\n{text}\n")
            table.append((name, status, f"{took:.0f}"))
            shown.append(f"----- {name}\n{text[-options.tail :]}")
            print(f"{name}: {status}, {took:.0f} s", flush=True)

    # What they printed, and a table
    print("\n".join(shown), end="\n\n")
    print_header("step", "status", "s")
    for cells in table:
        print_row(*cells)


if __name__ == "__main__":
    main()
