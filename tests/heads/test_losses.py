"""Losses against scipy, a linear program, torch and finite differences.

Degenerate tails, and weights and priors by hand. Derivatives are in test_slopes.py.
"""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special
from scipy.optimize import fminbound, linprog
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.heads import losses, sam, tail
from raffect.heads.loss_kind import Terms, Truth
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.losses import (
    ccc_loss,
    class_shift,
    class_weights,
    frame_means,
    sigmoid_losses,
    softmax_losses,
    squared_errors,
    unit_shift,
    unit_weights,
)

ALPHAS = (1e-6, 0.01, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0)


def cvar(loss, alpha, mask=None):
    """CVaR of each head, and its derivative by each loss."""
    return tail.Tail(alpha.tolist(), loss.device, loss.dtype).cvar(loss, mask)


def cvar_of(values, alpha):
    """CVaR of one head in float64."""
    return cvar(torch.tensor(values)[None], torch.tensor([alpha], dtype=torch.float64))[0].item()


def eq_1(values, alpha, lam):
    return lam + np.maximum(values - lam, 0).sum() / (alpha * len(values))


def cases():
    rng = np.random.default_rng(0)
    yield rng.exponential(size=32)
    yield rng.exponential(size=7)  # alpha * n is not a whole number
    yield np.array([2.5])
    yield np.repeat([0.1, 3.0, 3.0, 0.7], 5)  # ties at the threshold
    yield np.full(9, 1.25)
    yield rng.exponential(size=33) * 1e4


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("values", cases(), ids=("32", "7", "1", "ties", "equal", "large"))
def test_cvar_is_the_minimum_of_eq_1_over_lambda(values, alpha):
    ours = cvar_of(values, alpha)
    # A convex piecewise-linear function has its minimum at a breakpoint, one of the losses.
    assert ours == pytest.approx(min(eq_1(values, alpha, lam) for lam in values), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.55, 1.0])
def test_cvar_is_the_optimum_of_its_linear_program(alpha):
    values = np.random.default_rng(1).exponential(size=11)
    n = len(values)
    # The dual: the worst reweighting whose weights are at most 1 / (alpha n).
    found = linprog(-values, A_eq=np.ones((1, n)), b_eq=[1], bounds=[(0, 1 / (alpha * n))] * n)
    assert cvar_of(values, alpha) == pytest.approx(-found.fun, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
def test_cvar_agrees_with_a_search_for_lambda_as_released(alpha):
    values = np.random.default_rng(2).exponential(size=32)
    bounds = (values.min(), values.max())
    lowest = fminbound(lambda lam: eq_1(values, alpha, lam), *bounds, xtol=1e-10)
    searched = eq_1(values, alpha, lowest)
    assert cvar_of(values, alpha) == pytest.approx(searched, rel=1e-7)


def test_cvar_of_alpha_one_is_the_mean_and_of_a_tiny_alpha_the_maximum():
    loss = torch.rand(3, 10, dtype=torch.float64)
    ones, tiny = (torch.full((3,), alpha, dtype=torch.float64) for alpha in (1, 1e-9))
    assert torch.allclose(cvar(loss, ones)[0], loss.mean(1), rtol=1e-14)
    assert torch.equal(cvar(loss, tiny)[0], loss.max(1).values)


def test_cvar_falls_as_alpha_grows_whatever_the_papers_text_says():
    loss = torch.rand(1, 32)
    values = [cvar(loss, torch.tensor([alpha]))[0].item() for alpha in (0.1, 0.3, 0.6, 1.0)]
    assert values == sorted(values, reverse=True)


def test_each_head_has_its_own_alpha():
    loss = torch.rand(4, 32)
    alpha = torch.tensor([0.1, 0.3, 0.31, 1.0])
    alone = [cvar(loss[p : p + 1], alpha[p : p + 1]) for p in range(4)]
    for together, parts in zip(cvar(loss, alpha), zip(*alone, strict=True), strict=True):
        assert torch.equal(together, torch.cat(parts))


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.77, 1.0])
def test_shares_of_cvar_agree_with_finite_differences(alpha):
    values = np.random.default_rng(3).permutation(13) * 0.37 + 0.1
    loss, tail = torch.from_numpy(values)[None], torch.tensor([alpha], dtype=torch.float64)
    mask = torch.ones(1, 13, dtype=torch.bool)
    mask[0, ::4] = False
    for which in (None, mask):
        moves = torch.eye(13).double()[:, None] * 1e-4
        pairs = (
            (cvar(loss + move, tail, which)[0], cvar(loss - move, tail, which)[0]) for move in moves
        )
        numeric = [(ahead - behind).item() / 2e-4 for ahead, behind in pairs]
        assert cvar(loss, tail, which)[1][0].tolist() == pytest.approx(numeric, abs=1e-9)


def released_loss(values, alpha):
    """Eq. (1) as released: lambda is searched for, and then a constant of the gradient."""
    lowest = sorted(values.tolist(), reverse=True)[int(alpha * values.shape[0])]
    return lowest + torch.relu(values - lowest).mean() / alpha


def test_a_fixed_lambda_gives_the_marginal_frame_no_weight_and_ours_its_fraction():
    values = torch.from_numpy(np.random.default_rng(5).exponential(size=32)).requires_grad_()
    tail = torch.tensor([0.3], dtype=torch.float64)  # 9.6 frames
    ours, (own,) = cvar(values.detach()[None], tail)
    released = released_loss(values, 0.3)
    assert ours.item() == pytest.approx(released.item(), rel=1e-12)
    (theirs,) = torch.autograd.grad(released, values)
    marginal = values.argsort(descending=True)[9]
    assert (own.sum().item(), theirs.sum().item()) == pytest.approx((1, 9 / 9.6))
    assert (own[marginal].item(), theirs[marginal].item()) == pytest.approx((0.6 / 9.6, 0))
    others = torch.arange(32) != marginal
    assert torch.allclose(own[others], theirs[others], rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_our_gradient_is_the_derivative_in_any_direction_and_a_fixed_lambdas_is_not(seed):
    rng = np.random.default_rng(seed)
    values, direction = rng.exponential(size=32), rng.normal(size=32)
    ahead, behind = (cvar_of(values + step * direction, 0.3) for step in (1e-6, -1e-6))
    numeric = (ahead - behind) / 2e-6
    loss = torch.from_numpy(values).requires_grad_()
    _, (own,) = cvar(loss.detach()[None], torch.tensor([0.3], dtype=torch.float64))
    (theirs,) = torch.autograd.grad(released_loss(loss, 0.3), loss)
    assert own.numpy() @ direction == pytest.approx(numeric, abs=1e-8)
    assert abs(theirs.numpy() @ direction - numeric) > 1e-3


def test_masked_losses_take_no_part_and_n_counts_the_others():
    loss = torch.rand(2, 20, dtype=torch.float64)
    mask = torch.rand(2, 20) > 0.4
    alpha = torch.tensor([0.3, 0.8], dtype=torch.float64)
    alone = [cvar(loss[p, mask[p]][None], alpha[p : p + 1]) for p in range(2)]
    expected = torch.cat([value for value, _ in alone])
    for hidden in (0.0, 1e30, torch.inf, torch.nan):
        value, share = cvar(torch.where(mask, loss, hidden), alpha, mask)
        assert torch.allclose(value, expected, rtol=1e-14)
        assert all(torch.equal(share[p, mask[p]], alone[p][1][0]) for p in range(2))
        assert not share[~mask].any()


def test_without_any_label_the_loss_is_zero_with_a_zero_gradient():
    for alpha in (0.3, 1.0):
        mask = torch.zeros(1, 5, dtype=torch.bool)
        value, share = cvar(torch.rand(1, 5), torch.tensor([alpha]), mask)
        assert value.item() == 0
        assert torch.equal(share, torch.zeros(1, 5))


def test_softmax_losses_are_torchs_weighted_cross_entropy():
    logits, target, weight = torch.randn(3, 16, 8), torch.randint(0, 8, (3, 16)), torch.rand(3, 8)
    weighted, plain = (softmax_losses(logits, target, own)[0] for own in (weight, None))
    for p in range(3):
        for found, own in ((weighted, weight[p]), (plain, None)):
            expected = F.cross_entropy(logits[p], target[p], own, reduction="none")
            assert torch.allclose(found[p], expected, atol=1e-6)


def test_sigmoid_losses_are_torchs_where_labelled_and_zero_elsewhere():
    logits, target = torch.randn(2, 16, 12), torch.randint(-1, 2, (2, 16, 12))
    weight = torch.rand(2, 12) * 5
    found, _ = sigmoid_losses(logits, target, weight)
    oracle = F.binary_cross_entropy_with_logits
    for p in range(2):
        active, known = target[p].clamp(min=0).float(), target[p] >= 0
        expected = oracle(logits[p], active, pos_weight=weight[p], reduction="none")
        assert torch.allclose(found[p][known], expected[known], atol=1e-6)
        assert (found[p][~known] == 0).all()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4]]])
    loss, slope = sigmoid_losses(logits, torch.tensor([[[0, 1]]]))
    assert (loss.tolist(), slope.tolist()) == ([[[1e4, 1e4]]], [[[1, -1]]])
    loss, slope = softmax_losses(logits, torch.tensor([[1]]))
    assert (loss.tolist(), slope.tolist()) == ([[2e4]], [[[1, -1]]])


def test_frame_means_leave_out_unlabelled_units_and_frames():
    loss = torch.tensor([[[1.0, 3.0], [5.0, 0.0], [0.0, 0.0]]])
    labelled = torch.tensor([[[True, True], [True, False], [False, False]]])
    values, slope, known = frame_means(loss, 2 * loss, labelled)
    assert values.tolist() == [[2.0, 5.0, 0.0]]
    assert slope.tolist() == [[[1.0, 3.0], [10.0, 0.0], [0.0, 0.0]]]
    assert known.tolist() == [[True, True, False]]


@pytest.mark.parametrize("kind", ["none", "inverse", "effective"])
def test_class_weights_average_to_one_over_frames(kind):
    counts = torch.tensor([1000, 10, 0, 500])
    weights = class_weights(counts, kind, 0.999)
    assert (weights * counts).sum().item() == pytest.approx(1510)
    assert weights[2] == 0
    effective = (1 - 0.999**10) / (1 - 0.999**1000)
    ratio = {"none": 1, "inverse": 10 / 1000, "effective": effective}[kind]
    assert (weights[0] / weights[1]).item() == pytest.approx(ratio)


def test_unit_weights_balance_positives_and_are_1_for_units_that_lack_either():
    positive, negative = torch.tensor([10, 0, 50]), torch.tensor([90, 100, 0])
    assert unit_weights(positive, negative, "inverse", 0).tolist() == pytest.approx([9, 1, 1])
    assert unit_weights(positive, negative, "none", 0).tolist() == [1, 1, 1]


def test_shifts_are_log_priors_and_log_odds():
    assert class_shift(torch.tensor([3, 1])).exp().tolist() == pytest.approx([0.75, 0.25])
    assert unit_shift(torch.tensor([1]), torch.tensor([4])).exp().item() == pytest.approx(0.25)


@pytest.mark.parametrize("module", [losses, sam, tail])
def test_examples_in_docstrings_run(module):
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


def values_case(seed=0, heads=3, frames=20, values=2):
    generator = torch.Generator().manual_seed(seed)
    shape, options = (heads, frames, values), {"generator": generator, "dtype": torch.float64}
    outputs, target = (torch.randn(shape, **options) for _ in range(2))
    target[torch.rand(target.shape, generator=generator) < 0.3] = torch.nan
    return outputs, target


def test_squared_errors_are_torchs_where_labelled_and_nothing_elsewhere():
    outputs, target = values_case()
    known = target.isfinite()
    found, _ = squared_errors(outputs, target)
    assert torch.allclose(found[known], F.mse_loss(outputs[known], target[known], reduction="none"))
    assert (found[~known] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_ccc_loss_is_numpys_over_the_labelled_frames_of_each_value(seed):
    outputs, target = values_case(seed)
    for p in range(3):
        parts = []
        for k in range(2):
            known = target[p, :, k].isfinite()
            t, o = target[p, known, k].numpy(), outputs[p, known, k].numpy()
            spread = t.var() + o.var() + (t.mean() - o.mean()) ** 2
            parts.append(2 * np.cov(t, o, ddof=0)[0, 1] / spread)
        assert ccc_loss(outputs, target)[0][p].item() == pytest.approx(1 - np.mean(parts))


def test_losses_of_values_without_labels_or_spread_have_no_slope():
    outputs, target = values_case(heads=2, frames=6)
    for constant in (torch.full_like(target, torch.nan), torch.zeros_like(target)):
        loss, slope = ccc_loss(torch.zeros_like(outputs), constant)
        assert (loss == 1).all()
        assert not slope.any()
    assert not squared_errors(outputs, torch.full_like(target, torch.nan))[1].any()


@pytest.mark.parametrize("shape", [(8,), (5, 8), (3, 4, 8), (0, 8)])
def test_probabilities_are_softmax_sigmoid_and_values_within_limits(shape):
    rng = np.random.default_rng(len(shape))
    outputs = rng.normal(0, 3, shape)

    # Classes add up to 1, labels are each on their own, by scipy
    found = {task.kind: probabilities_of(task, outputs) for task in (EXPR, eight_labels())}
    np.testing.assert_allclose(found["multiclass"], special.softmax(outputs, -1), rtol=1e-12)
    np.testing.assert_allclose(found["multilabel"], special.expit(outputs), rtol=1e-12)

    # Values stay as they are within the limits, and where there are none
    values = outputs[..., :2]
    np.testing.assert_array_equal(probabilities_of(VA, values), np.clip(values, -1, 1))
    free = replace(VA, limits=None)
    np.testing.assert_array_equal(probabilities_of(free, values), values)


def test_probabilities_of_extreme_outputs_are_whole_and_keep_their_type():
    outputs = torch.tensor([[-1e30, 0.0, 1e30, 3e38, 0, 0, 0, 0]])
    for task in (EXPR, eight_labels()):
        found = loss_kind(task).probabilities(outputs)
        assert found.dtype == outputs.dtype
        assert torch.isfinite(found).all()
        assert ((found >= 0) & (found <= 1)).all()
    infinite = torch.tensor([torch.inf, -torch.inf])
    assert loss_kind(VA).probabilities(infinite).tolist() == [1, -1]
    assert loss_kind(VA).probabilities(torch.tensor([torch.nan, 0])).isnan().tolist() == [
        True,
        False,
    ]


def test_what_is_predicted_from_probabilities_is_what_is_counted():
    rng = np.random.default_rng(1)
    outputs, video = torch.from_numpy(rng.normal(0, 2, (2, 50, 8))), torch.zeros(50).long()
    true, labels = torch.from_numpy(rng.integers(0, 8, 50)), eight_labels()
    kind = loss_kind(EXPR)
    counts = kind.count(outputs, Truth(true, video, 1))[:, 0]
    for head, confusion in zip(kind.probabilities(outputs), counts, strict=True):
        expected = confusion_matrix(true, head.argmax(-1), labels=range(8))
        assert np.array_equal(confusion, expected)
    kind, active = loss_kind(labels), torch.from_numpy(rng.integers(0, 2, (50, 8)))
    counts = kind.count(outputs, Truth(active, video, 1))[:, 0]
    is_on = kind.probabilities(outputs) >= 0.5
    assert counts[..., 0].tolist() == (is_on & (active == 1)).sum(1).tolist()
    assert counts[..., 1].tolist() == (is_on & (active == 0)).sum(1).tolist()


def test_values_are_clipped_where_they_are_judged_and_not_where_they_are_learnt():
    # A head that is far too large but right in its order: judged as if it were at the limits
    true = torch.tensor([[-1.0, -0.5], [1.0, 0.5], [0.0, 0.0]])
    outputs, video = 40 * true[None], torch.zeros(3).long()
    kind = loss_kind(VA)
    moments = kind.count(outputs, Truth(true, video, 1))
    assert torch.equal(moments, kind.count(40 * true[None].sign(), Truth(true, video, 1)))
    assert moments[..., 2:5].abs().max() <= 2
    # In training the loss is that of the outputs themselves, and pulls each back
    found = kind.losses(outputs, true, Terms())
    assert found.values.max().item() == pytest.approx(39**2 * 1.25 / 2)
    assert torch.equal(found.by_outputs(torch.ones(1, 3)).sign()[0], true.sign())


def eight_labels():
    return replace(AU, outputs=AU.outputs[:8], columns=AU.columns[:8], descriptions=())


def probabilities_of(task, outputs):
    return loss_kind(task).probabilities(torch.from_numpy(outputs)).numpy()


def test_perfect_agreement_costs_nothing_and_its_opposite_two():
    target = torch.linspace(-1, 1, 9, dtype=torch.float64)[None, :, None]
    assert ccc_loss(target, target)[0].item() == pytest.approx(0)
    assert ccc_loss(-target, target)[0].item() == pytest.approx(2)
    # Shifted, which Pearson's correlation would not see.
    assert 0 < ccc_loss(target + 0.5, target)[0].item() < 1


def test_the_class_that_a_head_leaves_out_is_not_counted_by_any_kind_of_classes():
    outputs = torch.randn(3, 40, 8)
    truth = Truth(torch.arange(40) % 8, torch.arange(40) % 2, 2)
    plain = loss_kind(EXPR).count(outputs, truth)
    found = loss_kind(EXPR).count(outputs, truth._replace(left_out=torch.tensor([-1, 5, 0])))
    assert torch.equal(found[0], plain[0])
    for head, number in ((1, 5), (2, 0)):
        expected = plain[head].clone()
        expected[:, number] = 0
        assert torch.equal(found[head], expected)
