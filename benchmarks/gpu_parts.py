"""What `gpu.py` measures: parts that run in a process each, and return numbers by name.

Each part is a function of a `Size`, so that all of them can be tried on a CPU. Beside what they
should be, numbers stand in gpu_rows.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from encode import Comparison
from made import AFF_WILD2, draw_faces, make_bank
from startup import FIRST_STEP, save_weights, time_command, time_extract
from tools import FIGURE_2, flags, scratch

from raffect.bank.format import Bank
from raffect.config import EncoderConfig, ExtractConfig
from raffect.pipelines.gpu_checks import (
    compare_encoding,
    compare_group,
    compare_kernels,
    compare_steps,
)
from raffect.runs.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from kill_extract import stable_bytes

ROOT = Path(__file__).parents[1]
RAFFECT = [sys.executable, "-m", "raffect.cli"]
CUDA_TESTS = ["tests/heads/test_cuda.py", "tests/encoders/test_cuda.py"]
_IMPORTED_APART = ["--import-mode=importlib", "-o", "addopts=", "-o", "timeout=250"]
TEST_OPTIONS = ["-p", "no:cacheprovider", *_IMPORTED_APART]
SAVES_EACH_EPOCH = """
import sys
from raffect.training.batch_job import BatchJob
BatchJob.__init__.__kwdefaults__["save_every_s"] = 0.0
from raffect.cli import main
sys.exit(main())
"""
"""The command line, but for states that are saved every epoch instead of every half minute."""
Values = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much a run measures.

    Attributes:
        name: ``full``, ``quick`` or ``cpu``.
        device: ``cuda`` or ``cpu``.
        model: Encoder, with random weights.
        batch: Pictures a step of it.
        pictures: That the tower is timed on.
        heads: Trained side by side: few, and many.
        steps: Of each.
        faces: Drawn for an extraction.
        shard_rows: Of its bank.
        frames: Of the banks that are trained on.
    """

    name: str
    device: str
    model: str
    batch: int
    pictures: int
    heads: tuple[int, int]
    steps: int
    faces: int
    shard_rows: int
    frames: int

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder with random weights."""
        return EncoderConfig(model=self.model, weights="random:0", batch_size=self.batch)

    @property
    def train_frames(self) -> int:
        """Those of `frames` that are trained on."""
        return self.frames * AFF_WILD2[0] // sum(AFF_WILD2)


_L14 = "ViT-L-14-quickgelu"
SIZES = {
    "full": Size("full", "cuda", _L14, 256, 4096, (1, 50), 200, 24_576, 2048, sum(AFF_WILD2)),
    "quick": Size("quick", "cuda", _L14, 256, 2048, (1, 50), 100, 8192, 1024, 200_000),
    "cpu": Size("cpu", "cpu", "ViT-S-32", 4, 8, (1, 2), 10, 200, 32, 1600),
}


# Parts


def check_encoder(size: Size) -> Values:
    """Vectors against the CPU's."""
    return {
        found.name: found.value
        for found in compare_encoding(size.encoder, torch.device(size.device))
    }


def check_steps(size: Size) -> Values:
    """Training steps against the CPU's, as a graph and by kernels against single ones; a group."""
    device = torch.device(size.device)
    found = [*compare_steps(device), *compare_group(device)]
    if size.device == "cuda":
        found += compare_kernels(device)
    return {one.name: one.value for one in found}


def time_tower(size: Size) -> Values:
    """The tower, the encoder from uint8 frames, and a script with a DataLoader beside them."""
    towers = ["raffect", "raffect-compiled"] if size.name == "full" else ["raffect"]
    sides = "c" if size.name == "quick" else "ac"
    options = Namespace(
        **{"device": size.device, "model": size.model, "precision": "auto"},
        **{"frames": size.pictures, "batches": [size.batch], "towers": towers, "sides": sides},
        **{"workers": torch.multiprocessing.cpu_count(), "compared": 4, "repeats": 2},
    )
    with scratch("tower") as folder:
        found = list(Comparison(options, folder).measure())

    # Of several builds the fastest, and the encoder around the same one
    rates = {row.what: row.frames_per_s or 0.0 for row in found}
    bare = max((row for row in found if row.what.startswith("(b)")), key=lambda r: rates[r.what])
    build = bare.what.split(", ")[1]
    around = rates[f"(c) encoder from uint8 frames, {build}"]
    values = {
        "tower": rates[bare.what],
        "mfu": bare.mfu or 0.0,
        "around": around / rates[bare.what],
    }
    values |= {"tower GB": max(row.memory_gb for row in found if row.what.startswith("(c)"))}
    if script := [rates[row.what] for row in found if row.what.startswith("(a)")]:
        values["script"] = script[0]
    return values


def time_heads(size: Size) -> Values:
    """Steps of one head and of many, the faster of compiled and not, and the released code's."""
    import train

    # The same features for all
    device, rng = torch.device(size.device), np.random.default_rng(0)
    x = rng.standard_normal((train.ROWS, train.DIM)).astype(np.float16)
    labels = rng.integers(0, train.CLASSES, train.ROWS)
    on_device = (torch.from_numpy(part).to(device) for part in (x, labels))
    video = torch.zeros(train.ROWS, dtype=torch.int64, device=device)
    samples = train.Samples(*on_device, video, 1)

    values: Values = {}
    for name, heads in zip(("one", "many"), size.heads, strict=True):
        ways = (False, True) if size.device == "cuda" else (False,)
        costs = [train.time_raffect(samples, labels, size.steps, heads, way) for way in ways]
        best = min(costs, key=lambda cost: cost.wall_s)
        values |= {f"{name} us": best.wall_s * 1e6, f"{name} launches": best.launches}
    values["figure 2"] = FIGURE_2 * values["many us"] / 60e6
    if size.device == "cuda":
        values["step GB"] = torch.cuda.max_memory_allocated() / 1e9
    if size.name != "quick":
        import h5py

        with scratch("released") as folder:
            path = folder / "features.h5"
            with h5py.File(path, "w") as file:
                file["train_features"] = x
            released = train.time_released(path, labels, device, size.steps)
        values |= {
            f"{name} ratio": released.wall_s * 1e6 / values[f"{name} us"]
            for name in ("one", "many")
        }
    return values


def run_extraction(size: Size) -> Values:
    """A whole extraction; then, but for quick runs, one that is killed and given again."""
    from raffect.extraction.extract import extract

    with scratch("extract") as folder:
        manifest, whole = draw_faces(folder, size.faces), folder / "whole"
        encoder = EncoderConfig(model="raffect-faces") if size.name == "cpu" else size.encoder
        options = {"device": size.device, "shard_rows": size.shard_rows, "num_actors": 1}
        config = ExtractConfig(manifest=manifest, bank=whole, encoder=encoder, **options)
        found = extract(config)
        rate, bare = found.steady_frames_per_s, found.bare_frames_per_s
        values = {"extraction": rate, "of bare": rate / bare, "busy": found.busy_share}
        if size.name != "quick":
            again = folder / "killed"
            kept = _kill_and_repeat(config, again)
            same = stable_bytes(again) == stable_bytes(whole)
            values |= {"kept shards": kept, "bank differs": float(not same)}
    return values


def _kill_and_repeat(config: ExtractConfig, bank: Path) -> int:
    """Extract, kill the driver once a shard is on record, and give the same command again."""
    words = flags(manifest=config.manifest, bank=bank, device=config.device)
    words += flags(shard_rows=config.shard_rows, num_actors=1)
    own = {"model": config.encoder.model, "weights": config.encoder.weights}
    own |= {"batch-size": config.encoder.batch_size}
    words += [word for name, value in own.items() for word in (f"--encoder.{name}", str(value))]
    commits = Bank(bank).commit_path(0).parent
    return _kill_when([*RAFFECT, "extract", *words], lambda: len(list(commits.glob("*.json"))))


def _kill_when(command: list[str], progress: Callable[[], int]) -> int:
    """Kill a command once it has made progress, and run it to its end; the progress at the kill."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    while process.poll() is None and not progress():
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = progress()
    subprocess.run(command, stdout=sys.stderr, check=True)
    return kept


def resume_training(size: Size) -> Values:
    """Training that is killed and given again, against training that never stopped."""
    with scratch("resume") as folder:
        bank, labels = make_bank(folder, *_parts(min(size.frames, 120_000)))
        epochs = 2 if size.name == "cpu" else 12
        words = flags(task="expr", bank=bank, labels=labels, device=size.device)
        words += flags(num_seeds=2, epochs=epochs)
        command = [sys.executable, "-c", SAVES_EACH_EPOCH, "train", "paper", *words, "--out"]
        subprocess.run([*command, str(folder / "whole")], stdout=sys.stderr, check=True)
        own = folder / "killed"
        states = _kill_when(
            [*command, str(own)], lambda: len(list(own.glob("state/*.safetensors")))
        )
        one, other = (_weights(path) for path in (folder / "whole", own))
    return {"kept states": states, "heads differ": float(one != other or not one)}


def _weights(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*.safetensors")}


def _parts(frames: int) -> tuple[int, int]:
    """Frames to train on and to judge on."""
    train = frames * AFF_WILD2[0] // sum(AFF_WILD2)
    return train, frames - train


def sweep(size: Size) -> Values:
    """Figure 2's heads and plain ERM for two epochs on a made-up bank, and 32 epochs by that."""
    epochs = 2 if size.name == "full" else 1
    space = ["loss.alpha=0.1:1:0.1", "seed=0:4"]
    space = ["loss.alpha=0.3,1", "seed=0:0"] if size.name == "cpu" else space
    with scratch("figure2") as folder:
        bank, labels = make_bank(folder, *_parts(size.frames))
        words = flags(task="expr", bank=bank, labels=labels, out=folder / "sweep", epochs=epochs)
        words += flags(device=size.device)
        start = time.perf_counter()
        command = [*RAFFECT, "tune", "paper", *words, "--space", *space]
        subprocess.run(command, stdout=sys.stderr, check=True)
        wall = time.perf_counter() - start
        records = RunFolder(folder / "sweep").read_records()
    trained = max(record.trained_by.wall_s for record in records)
    head_steps = len(records) * (size.train_frames // 32) * epochs
    whole = wall - trained + trained / head_steps * FIGURE_2 * len(records) / 50
    return {"sweep us": trained / head_steps * 1e6, "sweep minutes": whole / 60}


def time_start(size: Size) -> Values:
    """Seconds to the first training step, and to the first committed shard."""
    with scratch("startup") as folder:
        bank, labels = make_bank(folder, *_parts(size.frames))
        data = flags(task="expr", bank=bank, labels=labels, out=folder / "run", device=size.device)
        train = ["train", "paper", *data]
        step, _ = time_command(ROOT, "first step", FIRST_STEP, train)["first step"]
        manifest = draw_faces(folder / "drawn", 400)
        model = "raffect-faces" if size.name == "cpu" else size.model
        weights = save_weights(ROOT, model, folder)
        acts = time_extract(ROOT, manifest, folder / "faces-bank", model, weights)
        shard, _ = acts[f"raffect extract, {model}, first shard committed"]
    return {"first step": step, "first shard": shard}


def run_tests(size: Size) -> Values:
    """The tests that need a GPU; on a CPU pytest skips them all."""
    command = [sys.executable, "-m", "pytest", "-q", *TEST_OPTIONS, *CUDA_TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], file=sys.stderr)
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr[-300:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    wrong = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    passed = counts.get("passed", 0)
    if done.returncode not in (0, 1) or passed + wrong + counts.get("skipped", 0) == 0:
        raise RuntimeError(f"pytest ended with status {done.returncode}: {last}")
    if size.device == "cuda" and not passed:
        raise RuntimeError(f"no test ran: {last}")
    return {"tests passed": passed, "tests failed": wrong}


def compute_roofline(size: Size) -> Values:
    """Bounds of the card from `roofline.py`, where it knows the card; otherwise nothing."""
    from launches import count_encoder, count_step
    from roofline import CARDS, LAUNCH_US, seconds

    name = torch.cuda.get_device_name() if size.device == "cuda" else ""
    known = [card for key, card in CARDS.items() if re.search(rf"\b{key}\b", name)]
    steps = [count_step(heads, "released") for heads in size.heads]
    pictures = [call for call in count_encoder(size.model) if call.part != "preparation"]
    values: Values = {"counted launches": len(steps[0])}
    if not known:
        return values
    one, many = (seconds(calls, known[0], LAUNCH_US[0]) * 1e6 for calls in steps)
    values |= {"one us": one, "many us": many / size.heads[1]}
    values["sweep us"], minutes = values["many us"], FIGURE_2 * values["many us"] / 60e6
    values |= {"figure 2": minutes, "sweep minutes": minutes}
    return values | {"tower": 256 / seconds(pictures, known[0], LAUNCH_US[0])}


@dataclass(frozen=True)
class Part:
    """What one process measures, within so many seconds; 0 leaves it out of quick runs."""

    run: Callable[[Size], Values]
    seconds: int
    quick_seconds: int = 0


PARTS = {
    "encoder": Part(check_encoder, 90, 60),
    "steps": Part(check_steps, 60, 40),
    "tower": Part(time_tower, 200, 75),
    "heads": Part(time_heads, 200, 60),
    "extraction": Part(run_extraction, 200, 65),
    "training": Part(resume_training, 150),
    "figure 2": Part(sweep, 400),
    "start": Part(time_start, 180),
    "tests": Part(run_tests, 250),
    "roofline": Part(compute_roofline, 70),
}
"""In their order; 30 and 5 minutes together."""
