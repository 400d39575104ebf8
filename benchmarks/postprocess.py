"""Decision rules on drawn faces: scores before and after, chosen on folds and on validation.

    uv run python benchmarks/postprocess.py [--frames 12000] [--seed 0] [--num-seeds 2]

Every step is a command as a user types it; its words are printed before it, and behind it what it
printed. Both sets of rules are judged on the validation split, which those of folds have not seen.
Faces are drawn and the encoder is the embedded one, so nothing here says what CLIP does on
photographs.
"""

from __future__ import annotations

import json
from pathlib import Path

from made import extract_faces
from tools import new_parser, print_header, print_machine, print_row, raffect, scratch

RECIPES = {"expr": "paper", "au": "paper", "va": "va"}
"""The recipe that heads of each task are trained by."""


def judge_rules(run: Path, on: str, bank: Path, labels: Path) -> dict[str, dict]:
    """Choose rules for the heads of a run, and judge them on the validation split.

    Returns:
        The scores ``before`` and ``after``, and their ``difference``.
    """
    out, scores = run / f"rules-{on}", run / f"scores-{on}"
    raffect("postprocess", run=run, on=on, out=out)
    rules = out / "decision_rules.json"
    raffect("evaluate", run=run, bank=bank, labels=labels, postprocess=rules, out=scores)
    return json.loads((scores / "metrics.json").read_bytes())["postprocessed"]


def text_of(value: float, interval: list[float] | None, sign: str = "") -> str:
    """A number and its interval, such as ``0.607 [0.508, 0.726]``; nothing kept has no interval."""
    numbers = [f"{number:{sign}.3f}" for number in (value, *(interval or ()))]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if interval else numbers[0]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--frames", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-seeds", type=int, default=2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(RECIPES), choices=RECIPES)
    args = parser.parse_args()

    rows = []
    with scratch("postprocess") as folder:
        bank, data = extract_faces(folder, args.frames, args.seed)
        for task in args.tasks:
            run, labels = folder / task, data / "labels" / f"{task}.parquet"
            seen = {"bank": bank, "labels": labels, "num_seeds": args.num_seeds}
            folds = {"select": "cv", "folds": args.folds, "threads": 1}
            raffect("train", RECIPES[task], task=task, out=run, **seen, **folds)
            for on in ("folds", "validation"):
                found = judge_rules(run, on, bank, labels)
                scores = [found[name] for name in ("before", "after")]
                texts = [text_of(score["score"], score["interval_95"]) for score in scores]
                gain = found["difference"]
                rows.append((task, on, *texts, text_of(gain["gain"], gain["interval_95"], "+")))

    print()
    print_header("task", "rules chosen on", "mean of their heads", "with the rules", "gain")
    for row in rows:
        print_row(*row)
    print_machine()


if __name__ == "__main__":
    main()
