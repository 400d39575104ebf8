"""CPU time of 20 steps of EmoCLIP's training: the released loop and raffect's, with the same head.

    python benchmarks/emoclip_loop.py [--window 16] [--batch 16] [--steps 20]

The other side is the way the released code trains, re-implemented from its description, not its
code: a DataLoader that draws a window of each clip, which wraps around its end, a transformer by
torch's autograd with attention over all tokens in every layer, logits both ways, two
cross-entropies against `arange(batch)`, torch's SGD, and the loss read back in every step. Both
sides start from the same weights, and see frozen features of clips and vectors of captions: the
released code also runs CLIP's two towers in each step, which is left out. Figures are for the
ratio; the released sizes (windows of 32, batches of 64) take minutes a step on two cores.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tools import new_parser, print_header, print_machine, print_row
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from raffect.datasets.targets import contrastive_task
from raffect.heads.head_kinds import head_spec
from raffect.heads.learner import Learner
from raffect.heads.loss_kind import Prior
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.released_emoclip import HEAD_WIDTH
from raffect.heads.retrieval import CandidateVectors
from raffect.heads.samples import Samples
from raffect.metrics.retrieval import find_candidates
from raffect.recipe import Recipe, find_recipe, read_recipe, with_settings

FRAMES = 40
"""Frames of a clip, of which a window takes some."""
WARM_UP = 2
DEVICE = torch.device("cpu")


# As the released code does it


class RandomWindows(Dataset):
    """Features of clips, of which a window is drawn anew each time."""

    def __init__(self, clips: np.ndarray, texts: np.ndarray, window: int) -> None:
        self.clips, self.texts, self.window = clips, texts, window

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = np.random.randint(FRAMES)
        frames = np.arange(start, start + self.window) % FRAMES
        clip = torch.tensor(self.clips[index][frames], dtype=torch.float32)
        return clip, torch.tensor(self.texts[index], dtype=torch.float32)


class Layer(nn.Module):
    """Attention and a hidden layer, each with its norm before it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(heads * HEAD_WIDTH, dim)
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        queries, keys, values = (
            part.view(*part.shape[:2], self.heads, HEAD_WIDTH).transpose(1, 2) for part in parts
        )
        scores = torch.einsum("bhid,bhjd->bhij", queries, keys) * HEAD_WIDTH**-0.5
        found = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), values)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.hidden(self.norm2(x))


class PlainModel(nn.Module):
    """The released head as a plain module, which gives logits both ways."""

    def __init__(self, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1024, dim))
        self.layers = nn.Sequential(*(Layer(dim, heads) for _ in range(layers)))
        self.scale = nn.Parameter(torch.tensor(100.0).log())

    def embed(self, clips: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(clips), -1, -1), clips], 1)
        return self.layers(x + self.position[:, : x.shape[1]])[:, 0]

    def forward(self, clips: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        video = self.embed(clips)
        video = video / video.norm(dim=1, keepdim=True)
        texts = texts / texts.norm(dim=1, keepdim=True)
        logits = self.scale.exp() * video @ texts.t()
        return logits, logits.t()

    def take_weights(self, state: dict[str, Tensor]) -> None:
        """Start from the weights of raffect's head, which has the released names."""
        own = {
            "cls": state["temporal.cls_token"],
            "position": state["temporal.pos_embedding"],
            "scale": state["logit_scale"],
        }
        names = {
            "norm": "0.fn.norm",
            "qkv": "0.fn.fn.to_qkv",
            "out": "0.fn.fn.to_out.0",
            "norm2": "1.fn.norm",
            "hidden.0": "1.fn.fn.net.0",
            "hidden.2": "1.fn.fn.net.3",
        }
        for name in self.state_dict():
            if name not in own:
                _, number, rest = name.split(".", 2)
                part, _, kind = rest.rpartition(".")
                layers = f"temporal.temporal_transformer.layers.{number}"
                own[name] = state[f"{layers}.{names[part]}.{kind}"]
        self.load_state_dict(own)


def run_released(model: PlainModel, data: RandomWindows, batch: int) -> Iterator[float]:
    """The released loop; yields the loss of each step."""
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    cross_entropy = nn.CrossEntropyLoss()
    while True:
        for clips, texts in DataLoader(data, batch_size=batch, shuffle=True, drop_last=True):
            sgd.zero_grad()
            by_image, by_text = model(clips, texts)
            true = torch.arange(len(clips))
            loss = (cross_entropy(by_image, true) + cross_entropy(by_text, true)) / 2
            loss.backward()
            sgd.step()
            yield loss.item()


# As raffect does it


def make_learner(recipe: str, options: Any, prior: Prior) -> Learner:
    """What trains one head by a recipe that ships with raffect, but for window and batch."""
    settings = read_recipe(find_recipe(recipe))
    settings |= {"head.window": options.window, "batch_size": options.batch}
    found = with_settings(Recipe(task="captions"), settings)
    spec = head_spec(found.head, options.dim, options.dim, compares=True)
    return Learner([found], spec, prior, DEVICE)


def run_raffect(learner: Learner, samples: Samples) -> Iterator[None]:
    """Epoch after epoch."""
    for epoch in range(1_000_000):
        learner.set_epoch(0)
        yield from learner.run_resident(samples, epoch)


def make_samples(clips: np.ndarray, window: int) -> Samples:
    """Windows of evenly spread frames of each clip, as numbers of the resident features."""
    count = len(clips)
    spread = ((np.arange(window) + 0.5) * FRAMES / window).astype(np.int64)
    rows = torch.from_numpy(np.arange(count)[:, None] * FRAMES + spread)
    y = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64)], 1)
    x = torch.from_numpy(clips.reshape(count * FRAMES, -1))
    return Samples(x, y, torch.arange(count), count, rows)


# Clocks


def time_steps(step: Callable[[], object], steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of some steps, after some that are not counted."""
    for _ in range(WARM_UP):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return time.perf_counter() - wall, time.process_time() - cpu


def largest_difference(model: PlainModel, learner: Learner, samples: Samples) -> float:
    """Between the vectors of both sides, of length 1, for the same clips."""
    x, _ = samples.take(torch.arange(8))
    heads = learner.heads
    ours = heads.predict(heads.rows, heads.buffers, x.float())[0]
    with torch.no_grad():
        theirs = model.embed(x.float())
    pair = (functional.normalize(vectors, dim=1) for vectors in (ours, theirs))
    return float((next(pair) - next(pair)).abs().max())


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    # Random clips, each with a caption of its own
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((options.clips, FRAMES, options.dim)).astype(np.float16)
    texts = rng.standard_normal((options.clips, options.dim)).astype(np.float16)
    samples = make_samples(clips, options.window)
    vectors = CandidateVectors.of(texts, find_candidates(texts, samples.y.numpy()), DEVICE)
    prior = loss_kind(contrastive_task("captions"), vectors).count_prior(samples.y.numpy())

    # The released loop, from the weights of ours
    learner = make_learner("emoclip-released", options, prior)
    spec: Any = learner.heads.spec
    model = PlainModel(options.dim, spec.layers, spec.attention_heads)
    model.take_weights(learner.heads.state(0))
    difference = largest_difference(model, learner, samples)
    released = run_released(model, RandomWindows(clips, texts, options.window), options.batch)
    theirs = time_steps(released.__next__, options.steps)
    del model, released

    # raffect's, with that head and with its own
    size = f"{options.steps} steps, batch {options.batch}, windows of {options.window} features"
    print(
        f"{platform.machine()}, {options.threads} threads; torch {torch.__version__}; {size} of "
        f"{options.dim}\nlargest difference of the vectors of both sides: {difference:.1e}\n"
    )
    print_header("loop and head", "weights", "CPU s", "wall s", "CPU ratio", "wall ratio")
    print_row("released loop, released head", *_cells(spec.num_weights, theirs, theirs))
    ours = run_raffect(learner, samples)
    print_row(
        "raffect, released head",
        *_cells(spec.num_weights, time_steps(ours.__next__, options.steps), theirs),
    )
    del learner, ours
    learner = make_learner("emoclip", options, prior)
    ours = run_raffect(learner, samples)
    print_row(
        "raffect, its own head (recipe emoclip)",
        *_cells(learner.heads.spec.num_weights, time_steps(ours.__next__, options.steps), theirs),
    )
    print_machine()


def _cells(
    weights: int, cost: tuple[float, float], than: tuple[float, float]
) -> tuple[str, str, str, str, str]:
    """A row: weights, CPU and wall seconds, and how many times less than the other side's."""
    wall, cpu = cost
    ratios = f"{than[1] / cpu:.2f}", f"{than[0] / wall:.2f}"
    return f"{weights:,}", f"{cpu:.2f}", f"{wall:.2f}", *ratios


if __name__ == "__main__":
    main()
