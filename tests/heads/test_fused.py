"""Triton kernels of a training step: by the interpreter they take the eager step, or are refused.

No GPU is needed: the interpreter runs them on the CPU, and Triton compiles them for cards that are
not here. What the interpreter cannot show is speed, and order within a program.
"""

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raffect.heads import fused
from raffect.heads.fused_layout import column_block, layers_of
from raffect.heads.fused_step import FusedStep
from raffect.heads.head import MlpSpec
from raffect.heads.learner import Learner
from raffect.heads.workers import Workers
from tests.helpers.small_heads import (
    CPU,
    make_learner,
    make_recipe,
    make_samples,
    prior_of,
    spec_of,
)
from tests.helpers.triton_interpreter import Recorder, compile_for, interpret

pytest.importorskip("triton", reason="Triton is not installed")
from raffect.heads import fused_backward, fused_forward, fused_update
from raffect.heads import fused_kernels as kernels

EVERY_CARD = {80: 166_912, 86: 101_376, 90: 232_448}
"""Shared memory of a block in bytes, from NVIDIA's tables of compute capabilities."""


@pytest.fixture
def interpreted(monkeypatch):
    interpret(monkeypatch, kernels, fused_forward, fused_backward, fused_update)


def make_recipes(heads, task="expr", **settings):
    """Heads that differ in what may differ."""
    own = [{"loss__alpha": 0.3}, {"loss__alpha": 1.0, "optim__lr": 1e-2}, {"head__dropout": 0.2}]
    base = {"head__width": 20, "head__depth": 1, "batch_size": 20}
    each = [{"seed": head, **base, **own[head % 3]} for head in range(heads)]
    return [make_recipe(task, **one | settings) for one in each]


def make_pair(recipes, task="expr"):
    return [make_learner(recipes, make_samples(task), torch.float32) for _ in range(2)]


def batch_of(recipes, step, task="expr"):
    samples = make_samples(task)
    size = (len(recipes), recipes[0].batch_size)
    index = torch.randint(0, len(samples), size, generator=torch.manual_seed(step))
    x, target = samples.take(index)
    return x.float(), target


CASES = {
    "sam": (2, {"sam__rho": 0.5}),
    "deep, other noise in the second pass": (
        1,
        {"sam__rho": 0.2, "sam__independent_dropout": True, "head__depth": 2, "batch_size": 16},
    ),
    "plain": (3, {"sam__rho": 0.0, "head__dropout": 0.0, "loss__alpha": 1.0}),
    "decay apart, l2": (
        1,
        {
            "optim__name": "adamw",
            "optim__weight_decay": 0.1,
            "head__width": 48,
            "head__normalise": "l2",
            "sam__rho": 0.0,
        },
    ),
    "decay in the gradient": (1, {"optim__weight_decay": 0.1, "sam__rho": 0.0}),
    "weights, priors, a class left out": (
        1,
        {"loss__weighting": "inverse", "loss__logit_adjustment": 1.0, "sam__rho": 0.0},
    ),
    "labels": (1, {"task": "au", "sam__rho": 0.1, "batch_size": 5}),
    "labels weighted": (
        2,
        {
            "task": "au",
            "loss__weighting": "inverse",
            "loss__logit_adjustment": 1.0,
            "sam__rho": 0.0,
        },
    ),
    "values": (1, {"task": "va", "sam__rho": 0.0, "batch_size": 5}),
}
WIDE = {
    "sam": (3, {"sam__rho": 0.5, "head__width": 64, "head__depth": 2, "batch_size": 33}),
    "other noise": (
        2,
        {"sam__rho": 0.5, "sam__independent_dropout": True, "head__width": 100, "batch_size": 64},
    ),
    "decay": (2, {"sam__rho": 0.5, "optim__name": "adamw", "optim__weight_decay": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_by_kernels_are_three_eager_steps(interpreted, case):
    require_three_equal_steps(*CASES[case])


@pytest.mark.cluster
@pytest.mark.parametrize("case", WIDE)
def test_three_steps_of_wider_heads_are_three_eager_steps(interpreted, case):
    require_three_equal_steps(*WIDE[case])


def require_three_equal_steps(heads, settings):
    settings = dict(settings)
    task = settings.pop("task", "expr")
    recipes = make_recipes(heads, task, **settings)
    eager, other = make_pair(recipes, task)
    by_kernels, start = FusedStep(other), eager.heads.rows.clone()
    for step in range(3):
        batch = batch_of(recipes, step, task)
        eager.step(*batch)
        by_kernels.step(*batch)
    # Sums of other orders differ in float32's last bits: of 48 terms by some 1e-7 of their size;
    # Adam divides by the gradient's size, which makes more of it in the smallest gradients alone
    for name, tensor in eager.tensors().items():
        found = other.tensors()[name]
        assert torch.allclose(found, tensor, rtol=1e-4, atol=3e-6), name
    assert (eager.heads.rows - start).norm() > 100 * (eager.heads.rows - other.heads.rows).norm()


@pytest.mark.parametrize("second", [False, True])
def test_dropout_of_the_kernels_is_that_of_the_noise_bit_by_bit(interpreted, second):
    settings = {"sam__rho": 0.1, "sam__independent_dropout": True, "head__depth": 2}
    recipes = make_recipes(2, **settings)
    learner = make_pair(recipes)[0]
    learner.counter.fill_(123_456)
    # With gain 0 and offset 1 what comes out is the factor itself
    views = learner.heads.spec.views(learner.heads.rows)
    for block in (1, 5):
        views[f"layers.{block}.weight"].zero_()
        views[f"layers.{block}.bias"].fill_(1)
    by_kernels = FusedStep(learner)
    by_kernels.squares.fill_(1)
    for memory in (by_kernels.delta, by_kernels.d_outputs, by_kernels.hidden):
        memory.zero_()
    x, _ = batch_of(recipes, 0)
    by_kernels._forward(x, int(second))
    expected = learner.noise.draw(learner.counter, second=second)
    found = torch.cat(list(by_kernels.hidden[int(second)]), -1)
    assert torch.equal(found, expected)
    assert 0 < (found == 0).float().mean() < 1


def test_the_first_batch_lets_equal_kernels_take_all_later_steps(interpreted, caplog, monkeypatch):
    recipes = make_recipes(1, sam__rho=0.1)
    eager, other = make_pair(recipes)
    monkeypatch.setattr(fused, "serves", fused.fits)
    learner = make_pair(recipes)[0]
    FusedStep(other).step(*batch_of(recipes, 0))
    learner.step(*batch_of(recipes, 0))
    assert learner.way.__func__ is FusedStep.step
    for name, tensor in other.tensors().items():
        assert torch.equal(learner.tensors()[name], tensor), name
    assert int(learner.counter) == 1
    assert not caplog.records
    assert eager.way == eager.eager_step


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")  # of the interpreter
def test_a_head_that_diverges_is_seen_by_kernels_and_leaves_the_others_alone(
    interpreted, caplog, monkeypatch
):
    # NaN in one unit of a hidden block must reach the loss, as it does through torch's ReLU
    recipes = make_recipes(2, sam__rho=0.1)
    eager, other = make_pair(recipes)
    for learner in (eager, other):
        learner.heads.rows[1, 0] = float("nan")
    monkeypatch.setattr(fused, "serves", fused.fits)
    other.way = None
    for step in range(2):
        for learner in (eager, other):
            learner.step(*batch_of(recipes, step))
    # NaN on both sides is no difference: a resumed batch of heads keeps its kernels
    assert other.way.__func__ is FusedStep.step, caplog.text
    for learner in (eager, other):
        assert learner.first_bad.tolist() == [-1, 0]
        assert learner.loss_sum.isnan().tolist() == [False, True]
    assert torch.allclose(other.heads.rows[0], eager.heads.rows[0], rtol=1e-4, atol=3e-6)


def test_a_norm_that_is_not_a_number_moves_no_weights_far(interpreted):
    # rho / |g| of a gradient with NaN is NaN, not rho / 1e-12
    recipes = make_recipes(1, sam__rho=0.1)
    by_kernels = FusedStep(make_pair(recipes)[0])
    for memory in (by_kernels.delta, by_kernels.d_outputs, by_kernels.hidden):
        memory.zero_()
    by_kernels.squares.fill_(float("nan"))
    by_kernels._forward(batch_of(recipes, 0)[0], 1)
    assert by_kernels.outputs.isnan().all()


def wrong_weight(learner):
    learner.heads.spec.views(learner.heads.rows)["layers.0.weight"][0, 0] += 1e-3


def wrong_variance(learner):
    learner.heads.buffers["layers.1.running_var"] += 1e-3


def wrong_moment(learner):
    learner.optimizer.state["exp_avg_sq"] *= 1.1


def wrong_bias(learner):
    learner.heads.spec.views(learner.heads.rows)["layers.0.bias"][0, 3] = 1e-3


def not_a_number(learner):
    learner.heads.rows[0, 5] = float("nan")


def wrong_count(learner):
    learner.counter += 1


WRONG = [wrong_weight, wrong_variance, wrong_moment, wrong_bias, not_a_number, wrong_count]


@pytest.mark.parametrize("harm", WRONG, ids=lambda harm: harm.__name__)
def test_wrong_kernels_leave_the_learner_as_the_eager_step_does(harm, monkeypatch, caplog):
    recipes = make_recipes(1, sam__rho=0.1)
    eager, learner = make_pair(recipes)

    def step(self, batch, target):
        self.learner.eager_step(batch, target)
        harm(self.learner)

    monkeypatch.setattr(FusedStep, "step", step)
    require_eager(eager, learner, recipes, caplog, " differs by ")


@pytest.mark.parametrize("error", [RuntimeError("no compiler\nmore"), ImportError(), OSError("x")])
def test_an_error_of_triton_leaves_the_learner_as_the_eager_step_does(error, monkeypatch, caplog):
    recipes = make_recipes(1, sam__rho=0.1)
    eager, learner = make_pair(recipes)

    def step(self, batch, target):
        wrong_weight(self.learner)
        raise error

    monkeypatch.setattr(FusedStep, "step", step)
    require_eager(eager, learner, recipes, caplog, type(error).__name__)


def require_eager(eager, learner, recipes, caplog, text):
    """The learner goes on eagerly from the eager step's state, and says so in one line."""
    with caplog.at_level(logging.WARNING, "raffect"):
        way = fused.first_step(learner, *batch_of(recipes, 0))
    eager.step(*batch_of(recipes, 0))
    assert way == learner.eager_step
    for name, tensor in eager.tensors().items():
        assert torch.equal(learner.tensors()[name], tensor), name
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("training goes on without Triton kernels (")
    assert text in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"optim__name": "adamw"}, True),
        ({"optim__name": "sgd"}, False),
        ({"head__depth": 0}, False),
        ({"batch_size": 64}, True),
        ({"batch_size": 65}, False),
        ({"sam__perturbation": "sign", "sam__rho": 0.1}, False),
        ({"sam__perturbation": "sign", "sam__rho": 0.0}, True),
    ],
    ids=str,
)
def test_kernels_serve_what_they_compute_and_nothing_else(settings, fits):
    recipes = [make_recipe(**settings)]
    prior, spec = prior_of("expr", make_samples()), spec_of(recipes[0])
    assert fused.fits(make_learner(recipes, make_samples(), torch.float32)) == fits
    assert not fused.fits(make_learner(recipes, make_samples(), torch.float64))
    assert not fused.serves(make_learner(recipes, make_samples(), torch.float32))
    many = Learner(recipes, spec, prior, CPU, torch.float32, Workers(0, 2))
    assert not fused.fits(many)


def test_the_switch_turns_kernels_off(monkeypatch):
    learner = make_pair(make_recipes(1))[0]
    learner.device = torch.device("cuda")
    assert fused.serves(learner)
    monkeypatch.setenv(fused.SWITCH, "0")
    assert not fused.serves(learner)


def test_layers_lie_in_a_row_as_the_spec_has_them():
    spec = MlpSpec(12, 20, 2, 8)
    rows = torch.arange(2 * spec.num_weights, dtype=torch.float32).view(2, -1)
    views = spec.views(rows)
    for block, layer in enumerate(layers_of(spec)):
        weight = views[f"layers.{4 * block}.weight"]
        assert weight[1, 0, 0] == rows[1, layer.weight_at]
        assert weight.shape[1:] == (layer.outputs, layer.inputs)
        behind = rows[1, layer.weight_at + layer.inputs * layer.outputs :]
        assert torch.equal(behind[: layer.outputs], views[f"layers.{4 * block}.bias"][1])
    assert layer.vector_at + layer.count == spec.num_weights - 12 * 20 - 20 * 20 - 20 * 8


def test_one_head_has_more_and_narrower_programs_than_fifty():
    assert [column_block(heads, 768) for heads in (1, 3, 6, 10, 50)] == [16, 16, 32, 32, 64]


class Counter(TorchDispatchMode):
    """Counts operations that launch something."""

    def __init__(self):
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        silent = ("detach", "empty", "_unsafe_view", "new_empty")
        self.launches += not func.is_view and func.overloadpacket.__name__ not in silent
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("task", ["expr", "au"])
@pytest.mark.parametrize("heads", [1, 10, 50])
def test_a_step_of_sam_is_at_most_40_launches(task, heads):
    recipe = make_recipe(task, head__depth=3, batch_size=32, sam__rho=0.1)
    samples, learner = make_samples(task), make_pair([recipe] * heads, task)[0]
    by_kernels = FusedStep(learner)
    by_kernels.kernels = Recorder(kernels)
    learner.way = by_kernels.step
    learner._fill_order(learner._order(len(samples), 0), 0)
    with Counter() as counter:
        learner._gather_and_step(samples)
    assert by_kernels.launches == len(by_kernels.kernels.launches) == 22
    # The gather of the batch: indices, samples, targets, and features widened to float32
    assert counter.launches == 9


@pytest.mark.cluster
@pytest.mark.parametrize("capability", EVERY_CARD)
@pytest.mark.parametrize(("heads", "batch"), [(1, 32), (50, 32), (50, 64)])
def test_every_kernel_compiles_within_a_cards_shared_memory(capability, heads, batch):
    recipes = [make_recipe(seed=seed, batch_size=batch, sam__rho=0.1) for seed in range(heads)]
    target = torch.empty(heads, batch, dtype=torch.int64, device="meta")
    compiled = compile_step(capability, recipes, MlpSpec(768, 768, 3, 8), target)
    assert len(compiled) == 13


@pytest.mark.cluster
@pytest.mark.parametrize("capability", EVERY_CARD)
def test_the_kernel_of_labels_compiles_within_a_cards_shared_memory(capability):
    target = torch.empty(1, 32, 32, dtype=torch.int8, device="meta")
    recipe = make_recipe("au", batch_size=32, sam__rho=0.0)
    assert "label_losses" in compile_step(capability, [recipe], MlpSpec(64, 64, 1, 32), target)


def test_triton_compiles_in_a_process_whose_kernels_were_interpreted(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    recipe = make_recipe(batch_size=16, head__width=16, head__depth=1, sam__rho=0.0)
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch, kernels, fused_forward, fused_backward, fused_update)
        FusedStep(make_pair([recipe])[0]).step(*batch_of([recipe], 0))
    target = torch.empty(1, 16, dtype=torch.int64, device="meta")
    assert "class_losses" in compile_step(90, [recipe], MlpSpec(16, 16, 1, 8), target)


@pytest.mark.parametrize(("batch", "labels", "is_kernel"), [(32, 32, True), (64, 12, False)])
def test_losses_of_many_labels_are_torchs_since_their_kernel_compiles_for_long(
    batch, labels, is_kernel
):
    recipe = make_recipe("au", batch_size=batch, sam__rho=0.0)
    prior = prior_of("au", make_samples("au"))
    by_kernels = FusedStep(Learner([recipe], MlpSpec(8, 16, 1, labels), prior, CPU, torch.float32))
    by_kernels.kernels = Recorder(kernels)
    target = torch.ones(1, batch, labels, dtype=torch.int8)
    by_kernels._differentiate(target, 0)
    assert len(by_kernels.kernels.launches) == is_kernel


def compile_step(capability, recipes, spec, target):
    """Compile what a step launches; names of kernels, one for each set of constants."""
    heads, batch = target.shape[:2]
    task, meta = recipes[0].task, torch.device("meta")
    prior = prior_of(task, make_samples(task))
    by_kernels = FusedStep(Learner(recipes, spec, prior, meta, torch.float32))
    by_kernels.kernels = Recorder(kernels)
    by_kernels.step(torch.empty(heads, batch, spec.dim, device=meta), target)
    compiled = {}
    for kernel, _, args, sizes in by_kernels.kernels.launches:
        key = kernel.__name__, tuple(sizes.items())
        if key not in compiled:
            found = compiled[key] = compile_for(capability, kernel, args, sizes)
            assert found.metadata.shared <= EVERY_CARD[capability], key
    return [name for name, _ in compiled]
