"""Temporal heads against the MLP with and without smoothing, frame by frame, on the same folds.

    python benchmarks/temporal.py search --bank BANK --labels DATA --out OUT --task expr
    python benchmarks/temporal.py compare --bank BANK --labels DATA --out OUT [--tasks expr au va]
    python benchmarks/temporal.py speed

`search` tries changes to the recipe `temporal` one at a time, on folds of the training split alone.
`compare` trains both, and the temporal head once more on single frames, with epochs and settings
fixed, chooses decision rules (weights, biases or thresholds, and the window of smoothing) on the
folds of each, and judges everything twice: on the held-out folds, and once on the validation split.
Differences are paired over videos.
`speed` measures how long the windows of a million frames take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools import new_parser, print_header, print_machine, print_row

import raffect
from raffect.bank.windows import Window, around, renumber, spread
from raffect.config import PostprocessConfig, TrainConfig
from raffect.evaluation.choose_rules import read_rules
from raffect.evaluation.ensemble import Ensemble
from raffect.evaluation.held_out import collect, find_candidates
from raffect.evaluation.inputs import read_inputs
from raffect.metrics.intervals import Headline
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.predictions.choose import choose
from raffect.predictions.counting import Counting
from raffect.predictions.gains import Gain
from raffect.predictions.rules import RULES_FILE, DecisionRules, WeightedHead, plain_rules
from raffect.predictions.smoothing import timeline
from raffect.runs.against_erm import Difference
from raffect.runs.cross_validation import choose_epoch
from raffect.runs.data import Dataset, open_dataset, targets_of
from raffect.runs.folder import RunFolder
from raffect.runs.pick import PickedHead, sound_heads
from raffect.runs.spread import chance_text, headline_text, short
from raffect.runs.windows import read_windows

CPU = torch.device("cpu")
_GAPS, _SHARE = 0.05, 0.8
"""Share of frames that the bank lacks, and of those that a fold trains on."""
TEMPORAL: dict[str, Any] = {"head.width": 64, "epochs": 6}
"""Beside the recipe: its 192 units are meant for 768 features, the embedded encoder has 256; and
few epochs, to save time."""
ONE_FRAME: dict[str, Any] = TEMPORAL | {"head.window": 1}
"""The temporal head without the frames around: what it owes to architecture and optimiser alone."""
MLP: dict[str, Any] = {"epochs": 12}
PAIRS = (
    ("MLP + rules", "MLP"),
    ("one frame", "MLP"),
    ("temporal", "one frame"),
    ("temporal", "one frame + rules"),
    ("temporal", "MLP"),
    ("temporal", "MLP + rules"),
    ("temporal + rules", "temporal"),
    ("temporal + rules", "MLP + rules"),
)
"""Differences that are shown: of the first method to the second."""
ERM = {"loss.alpha": 1.0, "sam.rho": 0.0}
"""The search is without CVaR and SAM, which take twice the time."""
QUICK = ERM | {"optim.lr": 1e-3, "epochs": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "recipe with rate 1e-3": {},
    "rate 3e-4": {"optim.lr": 3e-4},
    "rate 3e-3": {"optim.lr": 3e-3},
    "width 128": {"head.width": 128},
    "1 layer": {"head.layers": 1},
    "pool mean": {"head.pool": "mean"},
    "stride 4": {"head.stride": 4},
    "stride 1": {"head.stride": 1},
    "window 33": {"head.window": 33},
    "window 9": {"head.window": 9},
    "dropout 0": {"head.dropout": 0.0},
    "dropout 0.3": {"head.dropout": 0.3},
}


def train(
    args: argparse.Namespace, task: str, recipe: str, out: Path, settings: dict[str, Any]
) -> Path:
    """A run with heads of folds; the same call again reads what is there."""
    paths = {"bank": args.bank, "labels": args.labels, "out": out}
    more = {"select": "cv", "folds": args.folds, "num_seeds": args.seeds, "device": "cpu"}
    config = TrainConfig.from_recipe(recipe, {"task": task} | settings, **paths, **more, threads=1)
    raffect.train(config)
    return out


def search(args: argparse.Namespace) -> None:
    """Score of each change on held-out folds, at its best epoch."""
    print_header("change", "macro F1 or other headline on folds", "epoch", "gain over temporal")
    task, of_first = args.task, None
    for name in args.changes or CHANGES:
        change = CHANGES[name]
        out = args.out / "search" / task / name.replace(" ", "-")
        run = RunFolder(train(args, task, "temporal", out, TEMPORAL | QUICK | change))
        epoch, score = choose_epoch(run, [r for r in run.read_records() if r.fold is not None])
        held = collect(find_candidates(config := PostprocessConfig(run=(out,))), config)
        statistics = choose(held).before
        of_first = statistics if of_first is None else of_first
        gain = Gain.of(statistics, of_first, held.kind)
        text = "" if of_first is statistics else difference_text(gain)
        print_row(name, short(score), epoch, text)


def difference_text(gain: Gain) -> str:
    return Difference(mean=gain.gain, interval_95=gain.interval_95).text()


@dataclass(frozen=True)
class Judged:
    """Statistics by group of a method: on held-out folds, and on the validation split."""

    name: str
    folds: np.ndarray
    validation: np.ndarray


def compare(args: argparse.Namespace) -> None:
    """Every head, without and with decision rules, of each task."""
    for task in args.tasks:
        mlp = "va" if task == "va" else "paper"
        runs = {
            "MLP": train(args, task, mlp, args.out / f"{task}-mlp", MLP),
            "one frame": train(args, task, "temporal", args.out / f"{task}-one", ONE_FRAME),
            "temporal": train(args, task, "temporal", args.out / f"{task}-temporal", TEMPORAL),
        }
        judge_task(args, task, runs)
    print_machine()


def judge_task(args: argparse.Namespace, task: str, runs: dict[str, Path]) -> None:
    """Tables of one task."""
    # Each head, plain and with its rules
    found, notes = [], []
    for name, run in runs.items():
        config = PostprocessConfig(run=(run,))
        chosen = raffect.postprocess(config).found
        choice = choose(collect(find_candidates(config), config))
        kept = [chosen.rules.describe(part.rule) for part in chosen.gains if part.kept]
        folder = RunFolder(run)
        folds = [record for record in folder.read_records() if record.fold is not None]
        epoch, best = choose_epoch(folder, folds)
        notes.append(
            f"{name}: best on folds after epoch {epoch} of {folds[0].recipe.epochs} "
            f"({short(best)}); {'; '.join(kept) or 'no rule kept'}"
        )
        heads = sound_heads(run, "last", [], "is judged")
        dataset = open_dataset(
            args.bank, args.labels, task, around=read_windows(h.recipe.head for h in heads)
        )
        rules = read_rules(run / RULES_FILE)
        plain = plain_rules(
            dataset.task,
            tuple(WeightedHead(folder=str(h.folder), sha256=h.card.sha256) for h in heads),
        )
        found += [
            Judged(name, choice.before, count(dataset, heads, plain)),
            Judged(f"{name} + rules", choice.after, count(dataset, heads, rules)),
        ]

    # Scores, then differences
    kind = kind_of(dataset.task)
    of_chance = kind.chance(found[0].validation.sum(0), dataset.task)
    print(f"\n## {task}: {kind.title}, mean of {args.seeds} seed(s)\n")
    print_header("method", "held-out folds", "validation")
    for one in found:
        print_row(one.name, score(one.folds, kind), score(one.validation, kind))
    print_row("chance", chance_text(chosen.chance), chance_text(of_chance))
    print()
    print_header("difference, paired over videos", "held-out folds", "validation")
    by_name = {one.name: one for one in found}
    for after, before in ((by_name[first], by_name[second]) for first, second in PAIRS):
        print_row(
            f"{after.name}, against {before.name}",
            difference_text(Gain.of(after.folds, before.folds, kind)),
            difference_text(Gain.of(after.validation, before.validation, kind)),
        )
    print("\nRules: " + ". ".join(notes) + ".", flush=True)


def score(statistics: np.ndarray, kind: Kind) -> str:
    return headline_text(Headline.of(statistics, kind))


def count(dataset: Dataset, heads: Sequence[PickedHead], rules: DecisionRules) -> np.ndarray:
    """Statistics by group of heads together on the validation split, with their rules."""
    index, task = dataset.splits["validation"], dataset.task
    by_sha = {head.card.sha256: head for head in heads}
    named = [by_sha[one.sha256] for one in rules.heads]
    moment = timeline(index.video, index.frame, max(rules.windows))
    order = np.argsort(moment, kind="stable")
    counting = Counting(task, targets_of(index, task)[order], index.group[order], len(index.groups))
    scores = Ensemble(named, rules, CPU).scores(read_inputs(dataset, "validation", named))[order]
    return counting.count(rules.decide(rules.smooth(scores, moment[order])))


def measure(args: argparse.Namespace) -> None:
    """Seconds for the windows of a million labelled frames, and of clips of them."""
    rng, videos = np.random.default_rng(0), 400
    video = np.sort(rng.integers(0, videos, 1_100_000)).astype(np.int64)
    keys = ((video << 32) | np.arange(len(video)))[rng.random(len(video)) > _GAPS]
    print_header("T", "frames", "around each, s", "clips of 64 frames, s", "some of them, s")
    for length in (4, 16, 32):
        start = time.perf_counter()
        places = around(keys, keys, Window(length, 2))
        by_frame = time.perf_counter() - start
        start = time.perf_counter()
        spread(keys, keys + 63, keys, length)
        by_clip = time.perf_counter() - start
        start = time.perf_counter()
        renumber(places[rng.random(len(keys)) < _SHARE], len(keys))
        some = time.perf_counter() - start
        print_row(length, f"{len(keys):,}", f"{by_frame:.1f}", f"{by_clip:.1f}", f"{some:.1f}")
    print_machine()


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("what", choices=["search", "compare", "speed"])
    for name in ("bank", "labels", "out"):
        parser.add_argument(f"--{name}", type=Path, default=Path(name))
    parser.add_argument("--task", default="expr", help="of search")
    parser.add_argument("--tasks", nargs="+", default=["expr", "au", "va"], help="of compare")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--changes", nargs="+", help="of search: some of them")
    args = parser.parse_args()
    {"search": search, "compare": compare, "speed": measure}[args.what](args)


if __name__ == "__main__":
    main()
