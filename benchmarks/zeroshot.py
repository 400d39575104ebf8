"""A sweep over prompt sets: wall time and memory of `raffect zeroshot`, first and with its cache.

    uv run python benchmarks/zeroshot.py [--frames 500000] [--sets 50] [--model ViT-B-32-quickgelu]

Features are made up and weights random, so only time and memory mean anything; 3 in 5 frames train.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from made import make_bank
from tools import flags, new_parser, print_header, print_machine, print_row, scratch

from raffect.config import EncoderConfig
from raffect.encoders.tower import load_encoder
from raffect.language.prompt_sets import list_shipped, read_prompt_set

WORDS = ["calm", "plain", "quiet", "bright", "dark", "close", "distant", "blurred", "sharp", "old"]
"""What is put before the templates, so that every set has prompts of its own."""


def write_sets(folder: Path, count: int) -> list[str]:
    """Prompt sets of one template and seven classes each."""
    _, _, found = read_prompt_set(str(list_shipped()["photo"]))
    names = []
    for k in range(count):
        template = f"a {WORDS[k % len(WORDS)]} photo number {k // len(WORDS)} of {{}}"
        lines = [f'templates = ["{template}"]', "[classes]"]
        lines += [f'{name} = ["{phrases[0]}"]' for name, phrases in found.classes.items()]
        file = folder / f"set{k:02d}.toml"
        file.write_text("\n".join(lines) + "\n")
        names.append(str(file))
    return names


def measure(words: list[str], cache: Path) -> tuple[float, float, float, str]:
    """Wall and CPU seconds, largest resident memory in GB, and the stages that were printed."""
    environment = os.environ | {"RAFFECT_CACHE": str(cache)}
    start = time.perf_counter()
    command = [sys.executable, "-m", "raffect", "zeroshot", *words]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(text)
    stages = [line for line in text.splitlines() if ": " in line and line.rstrip().endswith(" s")]
    wall_s, cpu_s = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return wall_s, cpu_s, usage.ru_maxrss / 1e6, "; ".join(stages)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=500_000)
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--weights", default="random:0")
    args = parser.parse_args()

    with scratch("zeroshot") as folder:
        encoder = EncoderConfig(model=args.model, weights=args.weights, precision="float32")
        identity = load_encoder(encoder, "cpu").identity
        train = args.frames * 3 // 5
        bank, labels = make_bank(folder, train, args.frames - train, identity=identity)
        sets = write_sets(folder, args.sets)
        print_header("run", "wall s", "CPU s", "memory GB", "stages")
        for name in ("texts encoded", "texts in the cache"):
            out = folder / name.replace(" ", "-")
            words = flags(bank=bank, labels=labels, out=out, task="expr")
            found = measure([*words, "--prompts", *sets], folder / "cache")
            wall_s, cpu_s, memory_gb, stages = found
            print_row(name, f"{wall_s:.1f}", f"{cpu_s:.1f}", f"{memory_gb:.2f}", stages)
    dim = identity.dim
    print(f"\n{args.sets} sets of 7 prompts, {args.frames:,} frames of {dim}-d, {args.model}")
    print_machine()


if __name__ == "__main__":
    main()
