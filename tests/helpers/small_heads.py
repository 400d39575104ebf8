"""Small problems and heads that tests of training share."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from raffect.bank.facts import DataFacts
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.targets import contrastive_task
from raffect.errors import RaffectError
from raffect.heads.checkpoint import HeadCard
from raffect.heads.fit import FitJob
from raffect.heads.head_kinds import head_spec, read_spec
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.random import epoch_order
from raffect.heads.retrieval import CandidateVectors
from raffect.heads.samples import Samples
from raffect.metrics.retrieval import find_candidates
from raffect.metrics.scores import Chance, JudgedScore
from raffect.recipe import Recipe, with_settings
from tests.helpers.banks import IDENTITY

CPU = torch.device("cpu")
DIM, ROWS = 12, 256
CAPTIONS = contrastive_task("captions", ("Anger", "Fear", "Joy", "Other"))
TASKS = {task.name: task for task in (EXPR, AU, VA, CAPTIONS)}
WINDOW = 4
TEMPORAL = {
    "head.kind": "temporal",
    "head.width": 8,
    "head.layers": 1,
    "head.attention_heads": 2,
    "head.window": WINDOW,
    "head.snippets": 2,
    "head.dropout": 0.1,
}
"""Of heads for captions."""


def make_samples(task="expr", seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, DIM)).astype(np.float16)
    if task == "captions":
        # Four captions a class, of which two are equal
        y = rng.integers(0, 16, (rows, 1)) // [1, 4]
        x = (rng.normal(size=(rows, WINDOW, DIM)) + 2 * make_vectors()[y[:, :1]]).astype(np.float16)
    elif task == "expr":
        y = rng.integers(0, 8, rows)
        x[np.arange(rows), y] += 2
    elif task == "va":
        y = (x[:, :2] / 3 + rng.normal(size=(rows, 2)) / 9).astype(np.float32)
        y[rng.random(y.shape) < 0.2] = np.nan
    else:
        y = (x > 0).astype(np.int8)
        y[rng.random(y.shape) < 0.2] = -1
    video = torch.zeros(rows, dtype=torch.int64)
    return Samples(torch.from_numpy(x), torch.from_numpy(y), video, 1)


def make_vectors(seed=3):
    """Vectors of the captions of `make_samples`; of each class the last two are equal."""
    found = np.random.default_rng(seed).normal(size=(16, DIM)).astype(np.float16)
    found[3::4] = found[2::4]
    return found


def make_recipe(task="expr", **settings):
    base = {"head.width": 16, "head.depth": 2, "batch_size": 16, "epochs": 2}
    base |= TEMPORAL if task == "captions" else {}
    own = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(Recipe(task=task), base | own)


def spec_of(recipe):
    order = recipe.loss.order > 0
    if recipe.task == "captions":
        return head_spec(recipe.head, DIM, DIM, compares=True, order=order)
    return head_spec(recipe.head, DIM, len(TASKS[recipe.task].outputs), order=order)


def prior_of(task, samples, vectors=None):
    y, found = samples.y.numpy(), None
    if task == "captions":
        vectors = make_vectors() if vectors is None else vectors
        found = CandidateVectors.of(vectors, find_candidates(vectors, y), CPU)
    return loss_kind(TASKS[task], found).count_prior(y)


def make_learner(recipes, samples, dtype=torch.float64, workers=None, spec=None):
    prior = prior_of(recipes[0].task, samples)
    return Learner(recipes, spec or spec_of(recipes[0]), prior, CPU, dtype, workers)


def make_job(recipes, train=None, validation=None, **options):
    task = recipes[0].task
    return FitJob(
        **{
            "recipes": recipes,
            "spec": spec_of(recipes[0]),
            "prior": prior_of(task, make_samples(task)),
            "train": make_samples(task) if train is None else train,
            "validation": make_samples(task, seed=9) if validation is None else validation,
            "device": CPU,
            **options,
        },
    )


def make_card(spec, status="done"):
    """A whole config.json, with scores that are made up."""
    chance = Chance(answer="always Other", majority=0.07)
    score = JudgedScore(headline=0.1, metrics={"macro_f1": 0.1}, outputs={}, epoch=1)
    names = {"bank": "b", "labels": "l", "bank_digest": "d", "labels_sha256": "s"}
    facts = DataFacts(task=EXPR, encoders=(IDENTITY,), splits={}, **names)
    return HeadCard(
        head=spec.to_json(),
        id="a",
        status=status,
        snapshot="last",
        recipe=make_recipe(),
        data=facts,
        validation=score,
        chance=chance,
    )


def run(learner, samples, epochs=2):
    for epoch in range(epochs):
        learner.set_epoch(epoch)
        for _ in learner.run(samples, epoch):
            pass
    return learner


def buffer_rows(heads, head=0):
    """All buffers of one head as one vector."""
    return torch.cat([buffer[head].flatten() for buffer in heads.buffers.values()])


class Mask(nn.Module):
    """Dropout with factors from outside."""

    def forward(self, x):
        return x if self.scale is None else x * self.scale


def textbook_cvar(losses, alpha):
    """Mean of the largest ``alpha * n`` losses, a vector, by autograd; 0 of none."""
    ranked, k = losses.sort(descending=True, stable=True).values, alpha * len(losses)
    share = (k - torch.arange(len(losses), dtype=torch.float64)).clamp(0, 1)
    return (ranked * share).sum() / max(k, 1e-300)


def textbook_ccc(one, other):
    covariance = ((one - one.mean()) * (other - other.mean())).mean()
    spread = one.var(correction=0) + other.var(correction=0)
    return 2 * covariance / (spread + (one.mean() - other.mean()) ** 2)


class TextbookSam:
    """The loop that the paper describes, with torch's own parts, one head at a time."""

    def __init__(self, recipe, start):
        self.recipe = recipe
        layers = copy.deepcopy(start.layers)
        layers = [layer if not isinstance(layer, nn.Dropout) else Mask() for layer in layers]
        self.net = nn.Sequential(*layers).double().train()
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optim.name]
        optim = recipe.optim
        self.optimizer = kind(self.net.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)

    def loss(self, x, y, scale):
        width = self.recipe.head.width
        masks = [layer for layer in self.net if isinstance(layer, Mask)]
        for k, layer in enumerate(masks):
            layer.scale = None if scale is None else scale[:, k * width : (k + 1) * width]
        outputs, alpha = self.net(x), self.recipe.loss.alpha
        if self.recipe.task == "expr":
            losses = functional.cross_entropy(outputs, y, reduction="none")
            return textbook_cvar(losses, alpha)
        if self.recipe.loss.name == "ccc":
            return 1 - torch.stack([self.ccc(outputs[:, k], y[:, k]) for k in range(2)]).mean()
        if self.recipe.task == "va":
            known = y.isfinite()
            errors = outputs - y.double()
            frames = [(errors[i, known[i]] ** 2).mean() for i in range(len(y)) if known[i].any()]
            return textbook_cvar(torch.stack(frames), alpha)
        known, oracle = y >= 0, functional.binary_cross_entropy_with_logits
        return textbook_cvar(oracle(outputs[known], y[known].double(), reduction="none"), alpha)

    @staticmethod
    def ccc(predicted, true):
        known = true.isfinite()
        return textbook_ccc(predicted[known], true[known].double())

    def step(self, x, y, scale, second_scale):
        self.optimizer.zero_grad()
        self.loss(x, y, scale).backward()
        if self.recipe.sam.rho:
            self.second_pass(x, y, second_scale)
        self.optimizer.step()

    def second_pass(self, x, y, scale):
        rho, params = self.recipe.sam.rho, list(self.net.parameters())
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        moves = [rho * p.grad / (norm + 1e-12) for p in params]
        if self.recipe.sam.perturbation == "sign":
            moves = [rho * p.grad.sign() for p in params]
        norms = [layer for layer in self.net if isinstance(layer, nn.BatchNorm1d)]
        with torch.no_grad():
            for p, move in zip(params, moves, strict=True):
                p.add_(move)
        for layer in norms:
            layer.momentum = 0.0
        self.optimizer.zero_grad()
        self.loss(x, y, scale).backward()
        for layer in norms:
            layer.momentum = 0.1
        with torch.no_grad():
            for p, move in zip(params, moves, strict=True):
                p.sub_(move)


def start_head(recipe):
    """The module that a head of this recipe starts as, float64."""
    spec = spec_of(recipe)
    row = spec.initial_row(recipe.seed, recipe.head)
    return spec.build_module(spec.build(row[None].double()).state(0))


def weights_of(net, spec):
    """Weights of the layers of a module as a row."""
    state = {f"layers.{name}": value for name, value in net.state_dict().items()}
    return torch.cat([state[name].flatten() for name in spec.weights])


def is_bias_before_norm(spec):
    names = {f"layers.{4 * block}.bias" for block in range(spec.depth)}
    parts = [(torch.Size(shape).numel(), name in names) for name, shape in spec.weights.items()]
    return torch.cat([torch.full((size,), is_one) for size, is_one in parts])


class Killed(BaseException):
    pass


def kill_after(epochs):
    def on_epoch(history):
        if len(history) == epochs:
            raise Killed

    return on_epoch


class Batches:
    """Samples in the order of a resident epoch, so that both can be compared."""

    def __init__(self, samples, seed):
        self.samples, self.seed = samples, seed

    def batches(self, epoch):
        order = torch.from_numpy(epoch_order(self.seed, epoch, len(self.samples)))
        for start in range(0, len(order) - 15, 16):
            index = order[start : start + 16]
            yield self.samples.x[index], self.samples.y[index]


def require_refusal(content, remedy="train again", most=200, where=Path("config.json")):
    """A spec is refused in one line of at most so many characters, which names the remedy."""
    with pytest.raises(RaffectError, match=rf"^config.json: .*{remedy}") as caught:
        read_spec(content, where)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < most
