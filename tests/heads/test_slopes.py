"""Derivatives of every loss in closed form: against torch's autograd of torch's own losses.

The other side is written one head at a time, from `torch.nn.functional` and a sort.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from raffect.heads import losses
from raffect.heads.head_batch import normalise
from raffect.heads.objective import Objective
from raffect.heads.workers import Workers
from raffect.recipe import with_settings
from tests.helpers.small_heads import (
    CAPTIONS,
    CPU,
    DIM,
    TASKS,
    make_learner,
    make_recipe,
    make_samples,
    make_vectors,
    prior_of,
    run,
    textbook_ccc,
    textbook_cvar,
)

B = 20
ALPHAS = (0.3, 1.0, 1e-6, 0.77)
PENALTIES = 2


def of_classes(outputs, y, recipe, prior):
    """Losses of the frames that a head may see."""
    own, left_out = recipe.loss, recipe.loss.leave_out
    number = TASKS["expr"].outputs.index(left_out) if left_out else -1
    counts = prior.without(number).positive
    outputs = outputs + own.logit_adjustment * losses.class_shift(counts)
    weight = losses.class_weights(counts, own.weighting, own.beta)
    return F.cross_entropy(outputs, y, weight, reduction="none")[y != number]


def of_labels(outputs, y, recipe, prior):
    """Losses of labels, or of frames that have any."""
    own, counts = recipe.loss, (prior.positive, prior.negative)
    outputs = outputs + own.logit_adjustment * losses.unit_shift(*counts)
    weight = losses.unit_weights(*counts, own.weighting, own.beta)
    found = F.binary_cross_entropy_with_logits(
        outputs, y.clamp(min=0).double(), pos_weight=weight, reduction="none"
    )
    known = y >= 0
    if own.tail_over == "units":
        return found[known]
    return means([values[which] for values, which in zip(found, known, strict=True)])


def of_values(outputs, y, recipe, prior):
    """Losses of frames, or one of the batch."""
    known, true = y.isfinite(), y.double()
    if recipe.loss.name != "ccc":
        rows = zip(outputs, true, known, strict=True)
        return means([(o[which] - t[which]) ** 2 for o, t, which in rows])
    columns = zip(outputs.T, true.T, known.T, strict=True)
    found = [textbook_ccc(o[which], t[which]) for o, t, which in columns if which.any()]
    return 1 - torch.stack(found).mean()[None]


def of_captions(outputs, y, recipe, prior):
    """Losses of the samples that a head may see."""
    own, keep = recipe.loss, torch.ones(len(y), dtype=torch.bool)
    if own.leave_out:
        keep = y[:, 1] != CAPTIONS.outputs.index(own.leave_out)
    text = normalise(torch.from_numpy(make_vectors()).double(), "l2")[y[keep, 0]]
    share = (text[:, None] == text[None]).all(-1).double()
    share = share / share.sum(1, keepdim=True)
    if own.soft_targets:
        share = (text @ text.T / own.soft_targets).softmax(1)
    logits = outputs[keep] @ text.T
    ways = [F.cross_entropy(way, share, reduction="none") for way in (logits, logits.T)]
    return sum(ways) / 2 + torch.special.xlogy(share, share).sum(1)


def means(parts):
    found = [part.mean() for part in parts if len(part)]
    return torch.stack(found) if found else torch.zeros(0).double()


ORACLES = {"expr": of_classes, "au": of_labels, "va": of_values, "captions": of_captions}


def by_autograd(outputs, target, recipes, prior, num_penalties):
    """Loss and derivative of each head."""
    values, slopes = [], []
    for of_head, y, recipe in zip(outputs, target, recipes, strict=True):
        own = of_head.clone().requires_grad_()
        answers, penalties = own[:, : own.shape[1] - num_penalties], own[:, -num_penalties:]
        found = ORACLES[recipe.task](answers, y, recipe, prior)
        loss = textbook_cvar(found, recipe.loss.alpha) + 0 * own.sum()
        if num_penalties:
            left_out = recipe.loss.leave_out
            keep = y[:, 1] != (CAPTIONS.outputs.index(left_out) if left_out else -1)
            if keep.any():
                loss = loss + recipe.loss.order * penalties[keep].mean()
        values.append(loss.detach())
        slopes.append(torch.autograd.grad(loss, own)[0])
    return torch.stack(values), torch.stack(slopes)


CASES = [
    *itertools.product(
        ["expr"],
        [{}, {"loss__weighting": "inverse"}, {"loss__weighting": "effective"}],
        [{}, {"loss__logit_adjustment": 0.7}, {"loss__leave_out": "Fear"}],
    ),
    *itertools.product(
        ["au"],
        [{}, {"loss__weighting": "inverse"}],
        [{}, {"loss__tail_over": "frames", "loss__logit_adjustment": 0.7}],
    ),
    ("va", {}, {}),
    ("va", {"loss__name": "ccc"}, {}),
    *itertools.product(
        ["captions"], [{}, {"loss__soft_targets": 0.3}], [{}, {"loss__leave_out": "Joy"}]
    ),
]


def problem(task, settings, seed, dtype=torch.float64, heads=4):
    """Recipes of several alphas, a prior, outputs and targets."""
    rng = np.random.default_rng(seed)
    alphas = [1.0] * heads if "loss__name" in settings else rng.permutation(ALPHAS)[:heads]
    own = {"head__depth": 0} if task == "expr" else {}
    own |= {"loss__order": 0.4} if task == "captions" else {}
    recipes = [make_recipe(task, **own, **settings, loss__alpha=float(a)) for a in alphas]
    samples = make_samples(task, seed)
    index = torch.from_numpy(rng.integers(0, len(samples), (heads, B)))
    outputs = DIM if task == "captions" else len(TASKS[task].outputs)
    outputs = rng.normal(0, 3, (heads, B, outputs + num_penalties_of(task)))
    return recipes, prior_of(task, samples), torch.tensor(outputs, dtype=dtype), samples.y[index]


def num_penalties_of(task):
    return PENALTIES if task == "captions" else 0


def in_closed_form(recipes, prior, outputs, target):
    count = num_penalties_of(recipes[0].task)
    objective = Objective(recipes, prior, CPU, outputs.dtype, Workers(), count)
    return objective.gradient(outputs, target)


def require_same(recipes, prior, outputs, target, tolerance=1e-12):
    found = in_closed_form(recipes, prior, outputs, target)
    count = num_penalties_of(recipes[0].task)
    expected = by_autograd(outputs.double(), target, recipes, prior, count)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == outputs.dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("task", "one", "other"), CASES, ids=str)
def test_loss_and_derivative_are_autograds(task, one, other):
    for seed in range(5):
        recipes, prior, outputs, target = problem(task, one | other, seed)
        require_same(recipes, prior, outputs, target)
        # Heads that all take the mean, which needs no sort
        erm = [with_settings(recipe, {"loss.alpha": 1.0}) for recipe in recipes]
        require_same(erm, prior, outputs, target)
        # Losses that are all equal; ccc has no spread then
        if "loss__name" not in one:
            tied = outputs[:, :1].expand_as(outputs).contiguous(), target[:, :1].expand_as(target)
            require_same(recipes, prior, *tied)


@pytest.mark.parametrize(("task", "one", "other"), CASES, ids=str)
def test_derivatives_are_those_of_finite_differences(task, one, other):
    recipes, prior, outputs, target = problem(task, one | other, 7)
    _, derivative = in_closed_form(recipes, prior, outputs, target)
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        move = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
        ahead, behind = (
            in_closed_form(recipes, prior, outputs + step * move, target)[0]
            for step in (1e-6, -1e-6)
        )
        numeric = (ahead - behind) / 2e-6
        assert torch.allclose(numeric, (derivative * move).sum((1, 2)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_shorter_types_differ_by_their_rounding_alone(task, dtype, tolerance):
    require_same(*problem(task, {}, 3, dtype), tolerance)


@pytest.mark.parametrize("task", ["expr", "au", "va", "captions"])
def test_extreme_outputs_have_finite_derivatives(task):
    for size, dtype in itertools.product((1e4, 1e-30), (torch.float32, torch.float64)):
        recipes, prior, outputs, target = problem(task, {}, 0, dtype)
        found = in_closed_form(recipes, prior, size * outputs.sign(), target)
        assert all(part.isfinite().all() for part in found)


def test_a_batch_without_any_label_has_neither_loss_nor_derivative():
    unlabelled = {"au": -1, "va": torch.nan}
    cases = [("au", {}), ("au", {"loss__tail_over": "frames"}), ("va", {})]
    for (task, settings), erm in itertools.product(cases, (True, False)):
        recipes, prior, outputs, target = problem(task, settings, 0)
        recipes = [
            with_settings(recipe, {"loss.alpha": 1.0}) for recipe in recipes * erm
        ] or recipes
        target = target.clone().fill_(unlabelled[task])
        loss, derivative = in_closed_form(recipes, prior, outputs, target)
        assert not loss.any()
        assert not derivative.any()


def test_a_class_of_weight_0_has_neither_loss_nor_derivative():
    recipes, prior, outputs, target = problem("expr", {"loss__weighting": "inverse"}, 0)
    prior = replace(prior, positive=prior.positive.index_fill(0, torch.tensor([2]), 0))
    loss, derivative = in_closed_form(recipes, prior, outputs, torch.full_like(target, 2))
    assert not loss.any()
    assert not derivative.any()


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_no_step_of_an_mlp_records_anything_for_autograd(task):
    samples = make_samples(task)
    recipes = [make_recipe(task, loss__alpha=alpha, sam__rho=0.1) for alpha in (0.3, 1.0)]
    learner, plain = (make_learner(recipes, samples) for _ in range(2))
    with torch.inference_mode():  # where nothing can be differentiated
        run(learner, samples, 1)
    assert torch.equal(learner.heads.rows, run(plain, samples, 1).heads.rows)


def test_a_mean_is_not_sorted_and_a_loss_of_classes_takes_few_operators():
    counts = {}
    for alpha in (0.3, 1.0):
        recipes = [make_recipe(loss__alpha=alpha)] * 4
        _, prior, outputs, target = problem("expr", {}, 0)
        objective = Objective(recipes, prior, CPU, outputs.dtype, Workers())
        objective.gradient(outputs, target)
        with Operators() as seen:
            objective.gradient(outputs, target)
        counts[alpha] = seen.names
    assert any("sort" in name for name in counts[0.3])
    assert not any("sort" in name for name in counts[1.0])
    assert [len(counts[alpha]) for alpha in (0.3, 1.0)] == [12, 9]


class Operators(TorchDispatchMode):
    """Names of what is computed: views are not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))
