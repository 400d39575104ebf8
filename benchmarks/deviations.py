"""Each point where paper and released code part ways, and each usual alternative, changed one at a time from the paper's recipe.

    python benchmarks/deviations.py --bank BANK --labels DATA --out RUN [--seeds 5] [--tasks expr au]

Members of one seed share weights, frames and dropout masks, so the column "against paper" is a paired difference: its mean over
seeds and the standard error of that mean. Prints the tables of docs/reproduce.md.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from raffect.config import TrainConfig
from raffect.progress import Progress
from raffect.recipe import find_recipe, plain, read_recipe, with_settings
from raffect.runs.data import open_dataset
from raffect.runs.folder import Member, RunFolder
from raffect.runs.scores import short, trivial_text
from raffect.training.job import plan_batches, run_batch
from raffect.training.train import count_steps

RELEASED = read_recipe(find_recipe("released"))
VARIANTS = {
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
    "recipe erm: alpha 1, no SAM": {"loss.alpha": 1.0, "sam.rho": 0.0},
    "recipe weighted: erm + inverse weights": {
        "loss.alpha": 1.0,
        "sam.rho": 0.0,
        "loss.weighting": "inverse",
    },
    "erm + logit adjustment 1": {"loss.alpha": 1.0, "sam.rho": 0.0, "loss.logit_adjustment": 1.0},
    "recipe released": {
        name: value
        for name, value in RELEASED.items()
        if name in ("loss.alpha", "sam.rho", "sam.independent_dropout") or name.startswith("optim.")
    },
}
AU_VARIANTS = {
    "paper": {},
    "tail over frames, not units": {"loss.tail_over": "frames"},
    "alpha 0.5 (released)": {"loss.alpha": 0.5},
    "rho 0, no SAM": {"sam.rho": 0.0},
    "inverse unit weights": {"loss.weighting": "inverse"},
    "recipe erm: alpha 1, no SAM": {"loss.alpha": 1.0, "sam.rho": 0.0},
    "recipe weighted: erm + inverse weights": {
        "loss.alpha": 1.0,
        "sam.rho": 0.0,
        "loss.weighting": "inverse",
    },
    "recipe released": VARIANTS["recipe released"],
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--tasks", nargs="+", default=["expr", "au"])
    options = parser.parse_args()
    for task in options.tasks:
        study(options, task, VARIANTS if task == "expr" else AU_VARIANTS)


def study(options, task, variants):
    config = TrainConfig(
        task=task,
        epochs=options.epochs,
        bank=options.bank,
        labels=options.labels,
        out=options.out / task,
    )
    base = with_settings(
        plain(config),
        {
            name: value
            for name, value in read_recipe(find_recipe("paper")).items()
            if name != "epochs"
        },
    )
    dataset = open_dataset(config.bank, config.labels, task)
    folder = RunFolder.create(config, dataset.facts, dataset.fingerprint)
    members = {
        name: [
            Member(with_settings(base, {**settings, "seed": seed})) for seed in range(options.seeds)
        ]
        for name, settings in variants.items()
    }
    every = [member for group in members.values() for member in group]
    packs = plan_batches(folder, every, 10, one_seed=False)
    with Progress(
        task, sum(count_steps(dataset, pack) for pack in packs), "head-steps"
    ) as progress:
        for pack in packs:
            run_batch(
                config,
                dataset,
                folder,
                pack,
                on_step=partial(progress.advance, len(pack)),
                save_heads=False,
            )
    report(folder, members, dataset)


def report(folder, members, dataset):
    scores = {
        name: [folder.read_record(member.id)["scores"] for member in group]
        for name, group in members.items()
    }
    paper = np.array([score["last"]["macro_f1"] for score in scores["paper"]])
    trivial = folder.read_record(members["paper"][0].id)["trivial"]
    facts = dataset.facts
    print(
        f"\n{facts['task'].upper()}: train {facts['train']['frames']:,} frames of {facts['train']['videos']} videos, validation {facts['validation']['frames']:,} of {facts['validation']['videos']}; {len(paper)} seeds; trivial {trivial_text(trivial)}; caveat: {facts['caveat']}\n"
    )
    print(
        "| change | val-last ± sd | against paper ± se | val-best (optimistic) |\n|---|---|---|---|"
    )
    for name, found in scores.items():
        if any("last" not in score for score in found):
            print(
                f"| {name} | {sum('last' not in score for score in found)} of {len(found)} diverged | - | - |"
            )
            continue
        last, best = (
            np.array([score[key]["macro_f1"] for score in found]) for key in ("last", "best")
        )
        gap = last - paper
        against = (
            "-"
            if name == "paper"
            else f"{gap.mean():+.3f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.3f}"
        )
        print(
            f"| {name} | {short(last.mean())} ± {short(last.std(ddof=1))} | {against} | {short(best.mean())} |"
        )


if __name__ == "__main__":
    main()
