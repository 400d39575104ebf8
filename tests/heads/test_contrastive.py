"""Heads that learn from vectors: as a plain loop does, alone or not, and what one never sees."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.errors import RaffectError
from raffect.heads.contrastive import require_answers
from raffect.heads.fit import count, fit
from raffect.heads.head_batch import EmbeddingSpec, normalise
from raffect.heads.losses import sample_means
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.objective import Objective
from raffect.heads.workers import Workers
from raffect.recipe import Recipe, with_settings
from tests.helpers.info_nce import B
from tests.helpers.small_heads import (
    CAPTIONS,
    CPU,
    DIM,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
    make_vectors,
    prior_of,
    run,
    spec_of,
)
from tests.helpers.textbook import captions_loss, seen

# The objective


@dataclasses.dataclass(frozen=True)
class LinearSpec(EmbeddingSpec, ModuleSpec):
    """One linear map and a scale; two made-up penalties a sample."""

    dim: int = DIM
    num_penalties = 2
    kind = "linear"

    @property
    def length(self):
        return self.dim

    @property
    def weights(self):
        return {"scale": (), "map.weight": (self.dim, self.dim)}

    def initial_row(self, seed, config):
        row = torch.randn(self.num_weights, generator=torch.Generator().manual_seed(seed))
        row[0] = 1
        return row

    def module(self):
        return Linear(self)

    @classmethod
    def from_config(cls, config, dim, outputs, *, compares=False):
        return cls(dim)

    @classmethod
    def from_json(cls, content, where):
        return cls(**content)


class Linear(HeadModule):
    def __init__(self, spec):
        super().__init__()
        self.scale, self.map = nn.Parameter(torch.ones(())), nn.Linear(spec.dim, spec.dim, False)

    def forward(self, x, noise=None, *, training=False):
        x = x.mean(1)
        mapped = self.map(x)
        outputs = self.scale.exp() * normalise(mapped, "l2")
        if not training:
            return outputs
        penalties = torch.stack([mapped.square().mean(-1), mapped[:, 0].square()], 1)
        return torch.cat([outputs, penalties], 1)


def textbook_loss(row, x, y, vectors, recipe):
    """What a head minimises, written without batches of heads."""
    scale, weight = row[0].exp(), row[1:].view(DIM, DIM)
    mapped = x.mean(1) @ weight.T
    loss = captions_loss(scale * normalise(mapped, "l2"), y, vectors, recipe)
    penalty = torch.stack([mapped.square().mean(-1), mapped[:, 0].square()], 1)
    return loss + recipe.loss.order * penalty[seen(y, recipe)].mean()


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_heads_of_captions_learn_as_a_plain_loop_does(rho):
    own = {"loss__order": 0.2, "sam__rho": rho, "optim__lr": 0.01}
    recipes = [
        make_recipe("captions", seed=0, loss__alpha=1.0, **own),
        make_recipe("captions", seed=1, loss__alpha=0.3, **own),
        make_recipe("captions", seed=1, loss__alpha=0.5, loss__leave_out="Joy", **own),
    ]
    samples, spec = make_samples("captions"), LinearSpec()
    learner = make_learner(recipes, samples, spec=spec)
    rows = [row.clone().requires_grad_() for row in learner.heads.rows]
    optimizers = [torch.optim.Adam([row], lr=0.01) for row in rows]
    for step in range(5):
        batch = torch.arange(16) + 16 * step
        x, y = samples.take(batch.expand(3, 16))
        learner.step(x.double(), y)
        for row, optimizer, recipe in zip(rows, optimizers, recipes, strict=True):
            loss = textbook_loss(row, x[0].double(), y[0], make_vectors(), recipe)
            (gradient,) = torch.autograd.grad(loss, row)
            moved = row.detach() + rho * gradient / gradient.norm()
            moved.requires_grad_()
            there = textbook_loss(moved, x[0].double(), y[0], make_vectors(), recipe)
            (row.grad,) = torch.autograd.grad(there, moved)
            optimizer.step()
    torch.testing.assert_close(learner.heads.rows, torch.stack(rows).detach(), rtol=0, atol=1e-9)


def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit():
    recipes = [
        make_recipe("captions", seed=seed, loss__alpha=alpha, loss__leave_out=name)
        for seed, alpha, name in ((0, 0.3, ""), (1, 1.0, "Joy"), (2, 0.5, "Fear"))
    ]
    samples = make_samples("captions", rows=64)
    together = run(make_learner(recipes, samples, torch.float32), samples).heads.rows
    for row, recipe in zip(together, recipes, strict=True):
        alone = run(make_learner([recipe], samples, torch.float32), samples).heads.rows[0]
        assert torch.equal(row, alone)


def test_penalties_are_weighed_by_each_heads_order():
    recipes = [make_recipe("captions", loss__order=order) for order in (0.0, 0.5)]
    samples = make_samples("captions")
    prior = prior_of("captions", samples)
    objective = Objective(recipes, prior, CPU, torch.float64, Workers(), 2)
    outputs = torch.randn(2, B, DIM + 2, dtype=torch.float64)
    target = samples.y[:B].expand(2, B, 2)
    loss, derivative = objective.gradient(outputs, target)
    none = [make_recipe("captions") for _ in recipes]
    without = Objective(none, prior, CPU, torch.float64, Workers(), 2)
    plain, _ = without.gradient(outputs, target)
    mean = outputs[1, :, -2:].mean()
    torch.testing.assert_close(loss - plain, torch.stack([0 * mean, 0.5 * mean]))
    expected = torch.tensor([0.0, 0.5 / (2 * B)]).double()[:, None, None].expand(2, B, 2)
    torch.testing.assert_close(derivative[..., -2:], expected)
    valid = torch.arange(B).expand(2, B) < 3
    found, share = sample_means(outputs[..., -2:], valid)
    torch.testing.assert_close(found, outputs[:, :3, -2:].mean((1, 2)))
    torch.testing.assert_close(share, valid.double() / 6)


# A class that is left out


def replaced(samples, vectors, number, seed=7):
    """Samples and vectors with those of one class replaced by noise."""
    rng = np.random.default_rng(seed)
    of_class = samples.y[:, 1] == number
    x = samples.x.clone()
    x[of_class] = torch.from_numpy(rng.normal(size=x[of_class].shape)).half()
    other = vectors.copy()
    other[4 * number : 4 * number + 4] = rng.normal(size=(4, DIM))
    return dataclasses.replace(samples, x=x), other


def test_a_head_never_sees_the_class_that_it_leaves_out():
    """Neither its frames nor its captions: in training, and where the epoch is chosen."""
    recipes = [
        make_recipe("captions", epochs=2, loss__leave_out=name, loss__order=0.2, seed=seed)
        for name, seed in (("Joy", 0), ("", 0), ("Joy", 1))
    ]
    number, found = CAPTIONS.outputs.index("Joy"), []
    for noise in (False, True):
        train, validation = (make_samples("captions", seed, 96) for seed in (0, 9))
        vectors = make_vectors()
        if noise:
            train, _ = replaced(train, vectors, number)
            validation, vectors = replaced(validation, vectors, number)
        prior = prior_of("captions", make_samples("captions"), vectors)
        found.append(fit(make_job(recipes, train, validation, prior=prior)))
    plain, noisy = found
    for name in ("last", "best"):
        same = [
            torch.equal(one, other)
            for one, other in zip(
                plain.snapshots[name].rows, noisy.snapshots[name].rows, strict=True
            )
        ]
        assert same == [True, False, True], name
        assert (plain.snapshots[name].epoch == noisy.snapshots[name].epoch)[[0, 2]].all()
    key = "val_recall_at_1"
    curves = [[entry[key] for entry in one.history] for one in found]
    assert [entry[0] for entry in curves[0]] == [entry[0] for entry in curves[1]]
    assert [entry[1] for entry in curves[0]] != [entry[1] for entry in curves[1]]


def test_a_linear_probe_of_classes_can_leave_one_out_as_well():
    recipes = [make_recipe(head__depth=0, loss__leave_out=name) for name in ("Sadness", "")]
    number, rows = EXPR.outputs.index("Sadness"), []
    for noise in (False, True):
        samples = make_samples()
        if noise:
            samples.x[samples.y == number] = torch.randn(
                int((samples.y == number).sum()), DIM
            ).half()
        learner = run(make_learner(recipes, samples), samples)
        rows.append(learner.heads.rows.clone())
        kind = prior_of("expr", samples).kind
        counts = count(kind, learner.heads, samples, left_out=kind.left_out(recipes))
        assert counts[0, :, number].sum() == 0
        assert counts[1, :, number].sum() > 0
    assert [torch.equal(*pair) for pair in zip(*rows, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("captions", {"loss__leave_out": "Grief"}, "no such class; expected one of Anger, Fear, J"),
        ("expr", {"loss__leave_out": "Fear"}, "BatchNorm of hidden blocks would see its frames"),
        ("au", {"loss__leave_out": "AU1"}, "task au is multilabel and has no classes"),
        ("va", {"loss__leave_out": "valence"}, "task va is regression and has no classes"),
        ("expr", {"loss__soft_targets": 0.1}, "loss.soft-targets 0.1: task expr has no captions"),
        ("captions", {"loss__weighting": "inverse"}, "has vectors to compare with, not classes"),
        ("captions", {"loss__logit_adjustment": 1.0}, "has vectors to compare with"),
        ("captions", {"loss__name": "ccc", "loss__alpha": 1.0}, "is contrastive; expected default"),
    ],
)
def test_losses_that_do_not_go_with_a_task_are_refused(task, settings, message):
    recipe = make_recipe(task, **settings)
    kind = prior_of(task, make_samples(task)).kind
    with pytest.raises(RaffectError, match=message):
        kind.require_recipe(recipe)


def test_heads_that_compare_are_refused_where_answers_are_wanted():
    for task in (EXPR, AU, VA):
        require_answers(task)
    with pytest.raises(RaffectError, match="make a classifier .* `raffect zeroshot --head RUN`"):
        require_answers(CAPTIONS)
    with pytest.raises(RaffectError, match="give vectors, not answers"):
        prior_of("captions", make_samples("captions")).kind.probabilities(torch.zeros(1, 2, DIM))


def test_an_mlp_is_refused_for_captions():
    recipe = with_settings(Recipe(task="captions"), {})
    with pytest.raises(RaffectError, match="head.kind mlp"):
        spec_of(recipe)
