"""What a step of heads and a batch of pictures ask of a GPU: launches and bytes, without a GPU.

    python benchmarks/launches.py [--save FILE] [--before FILE] [--page FILE]

Runs the code itself on tensors without values on "cuda" (fake_cuda.py), and counts its calls of
aten. A launch is a call that is neither a view nor new memory. A sort, a sum of much or an Adam of
many heads is one here, and may be several kernels on a card; a kernel of Triton's is one. Bytes are
each operand and each result once, of a gather what it returns: what a cache would save is not
taken off. Figures are of the paper's recipe (CVaR and SAM), 768 wide, three blocks, eight classes,
batches of 32; and of ViT-L/14 in float16, 256 pictures of 112x112.

`--save` writes the counts, `--page` the table and what follows from it for three cards
(roofline.py), beside counts that were saved before.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from fake_cuda import CUDA, Call, Watch, fake_cuda
from roofline_page import PICTURES, page
from tools import new_parser, print_header, print_row

from raffect.config import EncoderConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.encoders import rounding, tower
from raffect.encoders.tower import Encoder, load_encoder
from raffect.heads.fused_step import FusedStep
from raffect.heads.head import MlpSpec
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.samples import Samples
from raffect.provenance import describe_run
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

DIM, CLASSES, ROWS = 768, 8, 4_096
HEADS = (1, 10, 50)
MODEL, SIDE = "ViT-L-14-quickgelu", 112
BATCH, TOWER = "batch of pictures", "the rest of the tower"
EAGER = "eager "
"""Before names of steps without our kernels, which is all that there was before."""
_MODULES = (
    (r"conv1$", "patches"),
    (r"(gelu|act)$", "activation"),
    (r"(ln_\w+|norm\w*)$", "norms"),
    (r"attn$", "attention"),
    (r"mlp$", "MLP"),
)
"""Parts of a tower by the names of its modules, the innermost one counting."""

Counts = dict[str, list[Call]]
"""Calls by what was counted: ``step of 10`` heads, ``released step of 1``, `BATCH`."""


def count_all() -> Counts:
    """All that the page shows."""
    found = {f"step of {heads}": count_step(heads) for heads in HEADS}
    found |= {f"{EAGER}step of {heads}": count_step(heads, eager=True) for heads in HEADS}
    # What lent cards ran
    for heads in (1, 50):
        name = f"released step of {heads}"
        found[EAGER + name] = count_step(heads, "released", eager=True)
    return found | {BATCH: count_encoder()}


# A step of heads


def count_step(heads: int, recipe: str = "paper", *, eager: bool = False) -> list[Call]:
    """Calls of one step of so many heads, as a CUDA graph would capture it.

    By our Triton kernels, as where the first batch has found them equal, or by torch alone.
    """
    settings = read_recipe(find_recipe(recipe))
    base = with_settings(Recipe(task="expr"), settings)
    recipes = [with_settings(base, {"seed": seed}) for seed in range(heads)]
    labels = np.zeros(ROWS, np.int64)
    with fake_cuda(), torch.no_grad():
        prior = loss_kind(EXPR).count_prior(labels)
        learner = Learner(recipes, MlpSpec(DIM, DIM, 3, CLASSES), prior, CUDA)
        x = torch.empty(ROWS, DIM, dtype=torch.float16, device=CUDA)
        y = torch.empty(ROWS, dtype=torch.int64, device=CUDA)
        learner._fill_order(learner._order(ROWS, 0), 0)
        learner.way = learner.eager_step if eager else FusedStep(learner).step
        # The first step makes what later ones use again.
        for _ in range(2):
            with Watch(captured=True) as watch:
                _label_step(watch, learner)
                learner._gather_and_step(Samples(x, y, y, 1))
    return watch.calls


def _label_step(watch: Watch, learner: Learner) -> None:
    if isinstance(own := getattr(learner.way, "__self__", None), FusedStep):
        watch.label(own, _forward="forward", _differentiate="loss", _backward="backward")
        watch.label(own, _square_norms="SAM's climb", _update="Adam")
        return
    watch.label(learner.noise, draw="noise")
    watch.label(learner.heads, forward="forward", backward="backward")
    watch.label(learner.objective, gradient="loss")
    watch.label(learner, _climb="SAM's climb")
    watch.label(learner.optimizer, update="Adam")


# A batch of pictures


def count_encoder(model: str = MODEL) -> list[Call]:
    """Calls of one full batch of pictures of one size, from uint8 to vectors."""
    config = EncoderConfig(model=model, weights="random:0", batch_size=PICTURES)
    frames = [np.zeros((SIDE, SIDE, 3), np.uint8)] * PICTURES
    digest = mock.patch.object(tower, "fingerprint", return_value="0" * 64)
    kernel = mock.patch.object(rounding, "_has_kernel", return_value=True)
    with fake_cuda(), digest, kernel:
        encoder = load_encoder(config, CUDA)
        encoder.encode(frames)  # makes what later batches use again
        with Watch(captured=False) as watch:
            _label_encoder(watch, encoder)
            encoder.encode(frames)
    return watch.calls


def _label_encoder(watch: Watch, encoder: Encoder) -> None:
    watch.label(encoder, prepare="preparation", forward=TOWER)
    for name, module in encoder.tower.named_modules():
        for pattern, part in _MODULES:
            if re.search(pattern, name):
                watch.label(module, forward=part)
                break


# Tables


def save(counts: Counts, path: Path) -> None:
    """Write counts, equal calls once with their number."""
    run = describe_run()
    rows = {
        name: [[*call, n] for call, n in Counter(calls).items()] for name, calls in counts.items()
    }
    path.write_text(json.dumps({"commit": run.git_commit, "counts": rows}) + "\n")


def load(path: Path) -> Counts:
    """Read what `save` wrote."""
    rows = json.loads(path.read_text())["counts"]
    return {
        name: [Call(*row[:-1]) for row in own for _ in range(row[-1])] for name, own in rows.items()
    }


def megabytes(calls: Iterable[Call]) -> float:
    """Bytes read and written, in millions."""
    return sum(call.read + call.written for call in calls) / 1e6


def parts_of(calls: Iterable[Call]) -> dict[str, list[Call]]:
    """Calls by part, in the order in which parts begin."""
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.part, []).append(call)
    return found


def print_counts(counts: Counts, before: Counts) -> None:
    """Launches and bytes of each step and batch, beside those before."""
    names = "launches before", "launches", "MB before", "MB", "GFLOP"
    print_header("", *names)
    for name, calls in counts.items():
        heads = heads_of(name)
        print_row(name, *_cells(calls, earlier_of(before, name), heads))
    for name in (f"step of {HEADS[0]}", BATCH):
        print(f"\nParts of a {name}:\n")
        print_header("part", *names)
        own, earlier = parts_of(counts[name]), parts_of(earlier_of(before, name))
        for part in dict.fromkeys([*earlier, *own]):
            print_row(part, *_cells(own.get(part, []), earlier.get(part, []), 1))


def _cells(calls: list[Call], before: list[Call], heads: int) -> list[str]:
    flop = sum(call.flop for call in calls) / 1e9 / heads
    sizes = [f"{megabytes(own) / heads:,.1f}" if own else "-" for own in (before, calls)]
    return [f"{len(before) or '-'}", f"{len(calls)}", *sizes, f"{flop:,.2f}"]


def earlier_of(before: Counts, name: str) -> list[Call]:
    """What was counted before under a name."""
    return before.get(name) or before.get(name.removeprefix(EAGER), [])


def heads_of(name: str) -> int:
    """Of how many heads a step is; 1 for a batch of pictures."""
    return int(name.rsplit(" ", 1)[-1]) if name.rsplit(" ", 1)[-1].isdigit() else 1


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--save", type=Path, help="file for the counts")
    parser.add_argument("--before", type=Path, help="counts to stand beside")
    parser.add_argument("--page", type=Path, help="file for the page; needs --before")
    options = parser.parse_args()
    if options.page is not None and options.before is None:
        parser.error("--page needs --before")
    counts = count_all()
    if options.save is not None:
        save(counts, options.save)
    before = {} if options.before is None else load(options.before)
    tables = io.StringIO()
    with contextlib.redirect_stdout(tables):
        print_counts(counts, before)
    print(tables.getvalue())
    if options.page is not None:
        earlier = json.loads(options.before.read_text())["commit"][:7]
        commits = (f"{earlier} (the code of af4b002)", describe_run().git_commit[:7])
        lines = page(counts, before, tables.getvalue().strip(), commits)
        options.page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
