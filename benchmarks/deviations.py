"""Each point where paper and released code differ, and each usual alternative, one at a time.

    python benchmarks/deviations.py --bank BANK --labels DATA --out RUN [--tasks expr au]

Every change is made to the paper's recipe alone. Heads of one seed share weights, frames and
dropout masks, so the column "against paper" is a paired difference: its mean over seeds and the
standard error of that mean. Prints the tables of docs/reproduce.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tools import new_parser, print_header, print_row

from raffect.config import TrainConfig
from raffect.progress import Progress
from raffect.recipe import Recipe, find_recipe, plain, read_recipe, with_settings
from raffect.runs.data import Dataset, open_dataset
from raffect.runs.folder import RunFolder, find_records
from raffect.runs.records import HeadRecord, PlannedHead
from raffect.runs.spread import chance_text, short
from raffect.training.batch_job import BatchJob
from raffect.training.run_batch import plan_batches, run_batch
from raffect.training.train import count_steps

HEADS_A_BATCH = 10
Settings = Mapping[str, Any]


def read_shipped(name: str) -> dict[str, Any]:
    """Settings of a recipe that comes with raffect, but for its epochs."""
    found = read_recipe(find_recipe(name))
    return {setting: value for setting, value in found.items() if setting != "epochs"}


ERM = {"loss.alpha": 1.0, "sam.rho": 0.0}
WEIGHTED = ERM | {"loss.weighting": "inverse"}
RELEASED = {
    name: value
    for name, value in read_shipped("released").items()
    if name in ("loss.alpha", "sam.rho", "sam.independent_dropout") or name.startswith("optim.")
}
VARIANTS: dict[str, Settings] = {
    "paper": {},
    "alpha 0.5 (released)": {"loss.alpha": 0.5},
    "alpha 1, SAM kept": {"loss.alpha": 1.0},
    "rho 0.5 (released)": {"sam.rho": 0.5},
    "rho 0.5 and a new dropout mask": {"sam.rho": 0.5, "sam.independent_dropout": True},
    "rho 0.5 and alpha 0.5": {"sam.rho": 0.5, "loss.alpha": 0.5},
    "rho 0, no SAM": {"sam.rho": 0.0},
    "sign perturbation, rho 0.05 (eq. 2 as printed)": {"sam.perturbation": "sign"},
    "sign perturbation, rho 0.0005": {"sam.perturbation": "sign", "sam.rho": 0.0005},
    "AdamW, weight decay 1e-4 (released)": {"optim.name": "adamw", "optim.weight_decay": 1e-4},
    "cyclic cosine to 1e-5 (released)": {"optim.schedule": "released", "optim.min_lr": 1e-5},
    "new dropout mask in the second pass (released)": {"sam.independent_dropout": True},
    "dropout 0": {"head.dropout": 0.0},
    "dropout 0.3": {"head.dropout": 0.3},
    "torch's initial weights": {"head.init": "torch"},
    "logit adjustment 1": {"loss.logit_adjustment": 1.0},
    "inverse class weights": {"loss.weighting": "inverse"},
    "effective-number class weights": {"loss.weighting": "effective"},
    "recipe erm: alpha 1, no SAM": ERM,
    "recipe weighted: erm + inverse weights": WEIGHTED,
    "erm + logit adjustment 1": ERM | {"loss.logit_adjustment": 1.0},
    "recipe released": RELEASED,
}
AU_VARIANTS: dict[str, Settings] = {
    "paper": {},
    "tail over frames, not units": {"loss.tail_over": "frames"},
    "alpha 0.5 (released)": {"loss.alpha": 0.5},
    "rho 0, no SAM": {"sam.rho": 0.0},
    "inverse unit weights": {"loss.weighting": "inverse"},
    "recipe erm: alpha 1, no SAM": ERM,
    "recipe weighted: erm + inverse weights": WEIGHTED,
    "recipe released": RELEASED,
}


def main() -> None:
    parser = new_parser(__doc__)
    for name in ("--bank", "--labels", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--tasks", nargs="+", default=["expr", "au"])
    options = parser.parse_args()
    for task in options.tasks:
        study(options, task, VARIANTS if task == "expr" else AU_VARIANTS)


def study(options: argparse.Namespace, task: str, variants: Mapping[str, Settings]) -> None:
    """Train every variant of a task with every seed, and print its table."""
    # Heads by variant
    bank, labels, out = options.bank, options.labels, options.out / task
    config = TrainConfig(task=task, epochs=options.epochs, bank=bank, labels=labels, out=out)
    base, seeds = with_settings(plain(config), read_shipped("paper")), range(options.seeds)
    heads = {name: plan_heads(base, settings, seeds) for name, settings in variants.items()}

    # Those that have no record yet, in batches; one that is under way goes on
    dataset = open_dataset(bank, labels, task)
    folder = RunFolder.create(config, dataset.facts, dataset.fingerprint)
    every = [head for group in heads.values() for head in group]
    batches = plan_batches(folder, every, HEADS_A_BATCH, one_seed=False)
    steps = sum(count_steps(dataset, batch) for batch in batches)
    with Progress(task, steps, "head-steps") as progress:
        for batch in batches:
            job = BatchJob(config=config, heads=tuple(batch), save_heads=False)
            run_batch(job, dataset, on_step=partial(progress.advance, len(batch)))

    records = {
        name: find_records(folder, [head.id for head in group]) for name, group in heads.items()
    }
    report(dataset, records)


def plan_heads(base: Recipe, settings: Settings, seeds: range) -> list[PlannedHead]:
    """One head a seed."""
    return [PlannedHead(with_settings(base, {**settings, "seed": seed})) for seed in seeds]


def report(dataset: Dataset, records: Mapping[str, list[HeadRecord]]) -> None:
    """Print what was trained and judged on, and a table with a row a variant."""
    # Data
    facts, paper = dataset.facts, records["paper"]
    train, validation = facts.splits["train"], facts.splits["validation"]
    on_train = f"train {train.frames:,} frames of {train.groups} {facts.group_name}"
    on_validation = f"validation {validation.frames:,} of {validation.groups}"
    chance = f"chance {chance_text(paper[0].chance)}; caveat: {facts.caveat}"
    title = f"{facts.task.name.upper()}: {on_train}, {on_validation}"
    print(f"\n{title}; {len(paper)} seeds; {chance}\n")

    # Scores
    print_header("change", "val-last ± sd", "against paper ± se", "val-best (optimistic)")
    for name, found in records.items():
        diverged = sum("last" not in record.scores for record in found)
        if diverged:
            print_row(name, f"{diverged} of {len(found)} diverged", "-", "-")
            continue
        last, best = scores_of(found, "last"), scores_of(found, "best")
        spread = f"{short(last.mean())} ± {short(last.std(ddof=1))}"
        print_row(name, spread, against_paper(found, paper), short(best.mean()))


def scores_of(records: list[HeadRecord], snapshot: str) -> np.ndarray:
    """Headline scores, shape (seeds,)."""
    return np.array([record.scores[snapshot].headline for record in records])


def against_paper(records: list[HeadRecord], paper: list[HeadRecord]) -> str:
    """Mean and standard error of the paired difference; ``-`` of the paper's heads themselves."""
    if records is paper or any("last" not in record.scores for record in paper):
        return "-"
    gap = scores_of(records, "last") - scores_of(paper, "last")
    return f"{gap.mean():+.3f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
