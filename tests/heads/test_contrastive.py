"""Losses against vectors: InfoNCE by other code, what counts as equal, what a head never sees."""

import dataclasses

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn import functional as F

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.errors import RaffectError
from raffect.heads.contrastive import require_answers
from raffect.heads.fit import count, fit
from raffect.heads.head_batch import EmbeddingSpec, normalise
from raffect.heads.loss_kind import Terms, Truth
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.losses import info_nce_losses, sample_means, text_shares
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.objective import Objective
from raffect.heads.retrieval import CandidateVectors, count_hits
from raffect.heads.tail import Tail
from raffect.heads.workers import Workers
from raffect.metrics.retrieval import find_candidates
from raffect.recipe import Recipe, with_settings
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

B = 12


def draw(seed=0, size=B, dim=6, heads=2):
    """Outputs of a head with a scale of 5, and unit vectors of texts, for several heads."""
    rng = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, heads, size, dim, generator=rng, dtype=torch.float64)
    return 5 * normalise(image, "l2"), normalise(text, "l2")


def info_nce(outputs, text, same=None, **options):
    count = outputs.shape[1]
    same = torch.arange(count).expand(len(outputs), count) if same is None else same
    return info_nce_losses(outputs @ text.transpose(1, 2), text_shares(same, text, **options))[0]


# Against other code


def test_info_nce_is_cross_entropy_both_ways():
    outputs, text = draw()
    found, own = info_nce(outputs, text), torch.arange(B)
    for head in range(2):
        logits = outputs[head] @ text[head].T
        ways = [F.cross_entropy(way, own, reduction="none") for way in (logits, logits.T)]
        torch.testing.assert_close(found[head], sum(ways) / 2, rtol=0, atol=1e-10)


def test_info_nce_is_open_clips_loss():
    outputs, text = draw(1)
    found = info_nce(outputs, text).mean(1)
    for head in range(2):
        expected = ClipLoss()(outputs[head] / 5, text[head], torch.tensor(5.0).double())
        assert found[head].item() == pytest.approx(expected.item(), abs=1e-6)


def with_copies(seed=2):
    """Texts of which some are equal, and their numbers."""
    outputs, text = draw(seed)
    same = torch.tensor([0, 1, 2, 0, 4, 0, 6, 1, 8, 9, 10, 11]).expand(2, B)
    text = text.gather(1, same[..., None].expand_as(text))
    return outputs.requires_grad_(), text, same


def test_equal_texts_have_the_gradient_of_one_text_a_sample():
    outputs, text, same = with_copies()
    logits = outputs @ text.transpose(1, 2)
    both = logits, logits.transpose(1, 2)
    own = torch.arange(B).expand(2, B)
    hard = sum(F.cross_entropy(way.flatten(0, 1), own.flatten()) for way in both) / 2
    (expected,) = torch.autograd.grad(hard, outputs, retain_graph=True)
    loss = info_nce(outputs, text, same).mean()
    (found,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # The floor alone differs: the mean log of how often a text occurs, from image to text and back
    often = (same[:, :, None] == same[:, None]).sum(-1)
    assert (hard - loss).item() == pytest.approx(often.log().mean().item())


def test_a_perfect_head_has_no_loss_however_often_a_text_occurs():
    _, text, same = with_copies()
    perfect = 1e4 * text
    assert info_nce(perfect, text, same).abs().max() < 1e-9
    own = torch.arange(B).expand(2, B)
    assert info_nce(perfect, text, own)[:, 0].min() > 1  # log 3: three samples have this text


def test_soft_targets_are_a_softmax_of_cosines_and_hard_ones_their_limit():
    _, text, same = with_copies()
    shares = text_shares(same, text, torch.tensor([0.5, 0.0], dtype=torch.float64))
    expected = (text[0] @ text[0].T / 0.5).softmax(-1)
    torch.testing.assert_close(shares[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(shares[1], text_shares(same, text)[1], rtol=0, atol=0)
    limit = text_shares(same, text, torch.full((2,), 1e-3, dtype=torch.float64))
    torch.testing.assert_close(limit, text_shares(same, text), rtol=0, atol=1e-6)


def test_soft_targets_have_the_gradient_of_soft_cross_entropy():
    outputs, text, same = with_copies()
    shares = text_shares(same, text, torch.full((2,), 0.2, dtype=torch.float64))
    logits = outputs @ text.transpose(1, 2)
    losses, _, _ = info_nce_losses(logits, shares)
    (found,) = torch.autograd.grad(losses.mean(), outputs, retain_graph=True)
    flat, target = logits.flatten(0, 1), shares.flatten(0, 1)
    back = logits.transpose(1, 2).flatten(0, 1)
    soft = (F.cross_entropy(flat, target) + F.cross_entropy(back, target)) / 2
    torch.testing.assert_close(found, torch.autograd.grad(soft, outputs)[0], rtol=0, atol=1e-12)
    assert losses.min() >= 0


def test_samples_that_do_not_count_are_as_if_they_were_not_there():
    outputs, text, same = with_copies()
    valid = torch.ones(2, B, dtype=torch.bool)
    valid[:, [0, 7, 10]] = False
    temperature = torch.tensor([0.0, 0.3], dtype=torch.float64)
    shares = text_shares(same, text, temperature, valid)
    found, _, _ = info_nce_losses(outputs @ text.transpose(1, 2), shares, valid)
    keep = valid[0].nonzero()[:, 0]
    small, few = outputs[:, keep], text[:, keep]
    expected, _, _ = info_nce_losses(
        small @ few.transpose(1, 2), text_shares(same[:, keep], few, temperature)
    )
    torch.testing.assert_close(found[:, keep], expected, rtol=0, atol=1e-12)


def test_a_batch_of_which_no_sample_counts_has_no_loss_and_no_gradient():
    outputs, text, same = with_copies()
    valid = torch.zeros(2, B, dtype=torch.bool)
    shares = text_shares(same, text, torch.full((2,), 0.3, dtype=torch.float64), valid)
    found = info_nce_losses(outputs @ text.transpose(1, 2), shares, valid)
    assert all(part.isfinite().all() for part in found)
    loss, share = Tail([0.5, 1.0], CPU, torch.float64).cvar(found[0], valid)
    assert loss.tolist() == [0, 0]
    assert not share.any()


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
    text = normalise(torch.from_numpy(vectors).double(), "l2")[y[:, 0]]
    keep = y[:, 1] != CAPTIONS.outputs.index("Joy") if recipe.loss.leave_out else y[:, 1] >= 0
    logits = (scale * normalise(mapped, "l2") @ text.T)[keep][:, keep]
    equal = (text[:, None] == text[None]).all(-1)[keep][:, keep].double()
    share = equal / equal.sum(1, keepdim=True)
    floor = torch.special.xlogy(share, share).sum(1)
    ways = [F.cross_entropy(way, share, reduction="none") for way in (logits, logits.T)]
    losses = torch.sort(sum(ways) / 2 + floor, descending=True).values
    tail = recipe.loss.alpha * len(losses)
    weights = (tail - torch.arange(len(losses)).double()).clamp(0, 1)
    penalty = torch.stack([mapped.square().mean(-1), mapped[:, 0].square()], 1)[keep].mean()
    return (losses * weights).sum() / weights.sum() + recipe.loss.order * penalty


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


# Statistics


def brute_force(outputs, y, vectors):
    """Hits by one sort a sample, in float64."""
    unit = normalise(torch.from_numpy(vectors).double(), "l2")
    hits = []
    for output, (target, _) in zip(outputs, y, strict=True):
        block = range(len(unit))
        if len(np.unique(vectors, axis=0)) > 1024:
            block = range(target // 1024 * 1024, min(target // 1024 * 1024 + 1024, len(unit)))
        scores = [(unit[k] @ output).item() for k in block]
        best = block[int(np.argmax(scores))]
        hits.append(bool((vectors[best] == vectors[target]).all()))
    return np.array(hits)


@pytest.mark.parametrize("size", [16, 2500])
def test_hits_are_those_of_a_search_one_by_one(size):
    rng = np.random.default_rng(size)
    vectors = rng.normal(size=(size, 3)).astype(np.float16)
    vectors[5::7] = vectors[4::7][: len(vectors[5::7])]
    y = np.stack([rng.integers(0, size, 60), rng.integers(0, 4, 60)], 1)
    y[:5, 0], video = size - 1, rng.integers(0, 3, 60)
    outputs = torch.from_numpy(vectors[y[:, 0]] + rng.normal(size=(2, 60, 3)) * size**-0.5)
    targets = CandidateVectors.of(vectors, find_candidates(vectors, y), CPU)
    kind = loss_kind(CAPTIONS, targets)
    truth = Truth(torch.from_numpy(y), torch.from_numpy(video), 3)
    found = kind.count(outputs, truth).numpy()
    for head in range(2):
        hits = brute_force(outputs[head], y.tolist(), vectors)
        assert 2 < hits.sum() < 58
        for group in range(3):
            for number in range(4):
                here = (video == group) & (y[:, 1] == number)
                assert found[head, group, number, :2].tolist() == [hits[here].sum(), here.sum()]
        assert np.array_equal(kind.count(outputs[head : head + 1], truth)[0], found[head])


def test_hits_do_not_depend_on_how_many_samples_are_judged_at_once(monkeypatch):
    samples, recipe = make_samples("captions", seed=9), make_recipe("captions")
    kind, heads = prior_of("captions", samples).kind, make_learner([recipe], samples).heads
    whole = count(kind, heads, samples)
    monkeypatch.setattr("raffect.heads.fit._PREDICTIONS", 28)
    assert np.array_equal(count(kind, heads, samples), whole)


def test_a_head_that_says_nothing_has_no_more_than_chance():
    samples = make_samples("captions")
    kind = prior_of("captions", samples).kind
    truth = Truth(samples.y, samples.video, 1)
    counts = kind.count(torch.zeros(1, len(samples), DIM), truth)[0, 0]
    assert counts[:, 0].sum() == (samples.y[:, 0] == 0).sum()  # the first candidate, of ties
    assert counts[:, 2] == pytest.approx(counts[:, 1] / 12)


def test_losses_of_a_kind_are_those_of_its_vectors():
    samples, vectors = make_samples("captions"), make_vectors()
    kind = prior_of("captions", samples).kind
    outputs, target = torch.randn(1, B, DIM, dtype=torch.float64), samples.y[None, :B]
    found = kind.losses(outputs, target, Terms())
    text = normalise(torch.from_numpy(vectors).double(), "l2")[target[..., 0]]
    same = torch.tensor([[k - (k % 4 == 3) for k in target[0, :, 0].tolist()]])
    torch.testing.assert_close(found.values, info_nce(outputs, text, same))
    assert found.mask is None


@pytest.mark.parametrize("count", [5, 3000])
def test_no_sample_has_no_hits(count):
    vectors = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float16)
    candidates = find_candidates(vectors, np.array([[0, 0], [1, 1]]))
    targets = CandidateVectors.of(vectors, candidates, CPU)
    none = torch.empty(0, dtype=torch.int64)
    assert targets.take(none, torch.float32).shape == (0, 4)
    hits = count_hits(
        torch.empty(2, 0, 4), Truth(none.view(0, 1).expand(0, 2), none, 3), 2, targets
    )
    assert hits.shape == (2, 3, 2, 4)
    assert not hits.any()
