"""Time of a training step of heads that are any module, against a plain torch loop.

    python benchmarks/modules.py [--steps 200] [--heads 1 8] [--threads 1]

Each head is Linear -> GELU -> Linear, 768 -> 512 -> 8, with cross-entropy and Adam, on the same
random features in one run. The other side is what one writes by hand: an nn.Sequential, a batch by
index, backward, `torch.optim.Adam` (fused, as ours), for one head after the other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from tools import new_parser, print_header, print_machine, print_row
from torch import Tensor, nn

from raffect.datasets.affwild2.tasks import EXPR
from raffect.heads.head_batch import Shapes
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.random import weights_generator
from raffect.heads.samples import Samples
from raffect.recipe import PLAIN_ERM, HeadConfig, Recipe, with_settings

DIM, WIDTH, CLASSES, BATCH, ROWS, WARM_UP = 768, 512, 8, 32, 20_000, 5


@dataclasses.dataclass(frozen=True)
class PlainSpec(ModuleSpec):
    """Linear -> GELU -> Linear."""

    kind = "plain"

    @property
    def weights(self) -> Shapes:
        return {
            "up.weight": (WIDTH, DIM),
            "up.bias": (WIDTH,),
            "down.weight": (CLASSES, WIDTH),
            "down.bias": (CLASSES,),
        }

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        return torch.randn(self.num_weights, generator=weights_generator(seed)) / WIDTH**0.5

    def module(self) -> HeadModule:
        return Plain()

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        return cls()


class Plain(HeadModule):
    """One such head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


def our_steps(samples: Samples, heads: int, settings: dict[str, Any]) -> Iterator[None]:
    """Steps of heads side by side."""
    base = with_settings(Recipe(task="expr", batch_size=BATCH), settings)
    recipes = [with_settings(base, {"seed": seed}) for seed in range(heads)]
    prior = loss_kind(EXPR).count_prior(samples.y.cpu().numpy())
    learner = Learner(recipes, PlainSpec(), prior, torch.device("cpu"))
    learner.set_epoch(0)
    return learner.run(samples, 0)


def plain_steps(samples: Samples, heads: int) -> Iterator[None]:
    """Steps of heads one after the other, as one writes them by hand."""
    modules = []
    for seed in range(heads):
        torch.manual_seed(seed)
        layers = nn.Linear(DIM, WIDTH), nn.GELU(), nn.Linear(WIDTH, CLASSES)
        modules.append(nn.Sequential(*layers))
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3, fused=True) for module in modules]
    orders = [torch.randperm(ROWS) for _ in modules]
    for start in range(0, ROWS - BATCH + 1, BATCH):
        for module, optimizer, order in zip(modules, optimizers, orders, strict=True):
            index = order[start : start + BATCH]
            optimizer.zero_grad()
            outputs = module(samples.x[index].float())
            nn.functional.cross_entropy(outputs, samples.y[index]).backward()
            optimizer.step()
        yield


def cpu_ms(make: Callable[[], Iterator[None]], heads: int, steps: int) -> float:
    """CPU time of a head-step in milliseconds: the least of three runs."""
    found = []
    for _ in range(3):
        run = make()
        for _ in range(WARM_UP):
            next(run)
        start = time.process_time()
        for _ in range(steps):
            next(run)
        found.append((time.process_time() - start) / steps / heads * 1e3)
    return min(found)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, DIM).half(), torch.randint(0, CLASSES, (ROWS,))
    samples = Samples(x, y, torch.zeros(ROWS, dtype=torch.int64), 1)
    print_header("heads", "plain torch, CPU ms", "ours", "ratio", "ours with CVaR", "and SAM")
    cvar = PLAIN_ERM | {"loss.alpha": 0.3}
    for heads in args.heads:
        plain = cpu_ms(lambda heads=heads: plain_steps(samples, heads), heads, args.steps)
        ours = [
            cpu_ms(lambda heads=heads, own=own: our_steps(samples, heads, own), heads, args.steps)
            for own in (PLAIN_ERM, cvar, cvar | {"sam.rho": 0.05})
        ]
        figures = [f"{value:.2f}" for value in (plain, ours[0], ours[0] / plain, *ours[1:])]
        print_row(heads, *figures)
    print_machine()


if __name__ == "__main__":
    main()
