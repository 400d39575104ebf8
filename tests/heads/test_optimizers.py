"""SGD over the rows of a batch of heads, and what states of both optimisers hold."""

import pytest
import torch

from raffect.heads import sgd as sgd_module
from raffect.heads.adam import Adam
from raffect.heads.sgd import Sgd
from raffect.recipe import OptimConfig
from tests.helpers.small_heads import make_learner, make_recipe, make_samples, run

CONFIGS = [
    OptimConfig(name="sgd", lr=0.1),
    OptimConfig(name="sgd", lr=0.1, momentum=0.0),
    OptimConfig(name="sgd", lr=0.03, momentum=0.5, weight_decay=0.2),
    OptimConfig(name="sgd", lr=0.03, momentum=0.0, weight_decay=0.2),
    OptimConfig(name="sgd", lr=0.1),
]


def test_ten_steps_of_each_head_are_those_of_torchs_sgd():
    torch.manual_seed(0)
    rows = torch.randn(len(CONFIGS), 33, dtype=torch.float64)
    gradient = torch.zeros_like(rows)
    alone = [torch.nn.Parameter(row.clone()) for row in rows]
    textbook = [
        torch.optim.SGD([own], lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
        for own, c in zip(alone, CONFIGS, strict=True)
    ]
    ours = Sgd(CONFIGS, rows, gradient)
    for step in range(10):
        gradient.copy_(torch.randn_like(rows))
        for p, (own, optimizer) in enumerate(zip(alone, textbook, strict=True)):
            # A schedule changes the rate.
            rate = CONFIGS[p].lr * 0.8**step
            ours.set_rate(CONFIGS[p], rate)
            optimizer.param_groups[0]["lr"] = rate
            own.grad = gradient[p].clone()
            optimizer.step()
        ours.update()
        assert torch.allclose(rows, torch.stack(list(alone)), rtol=0, atol=1e-14), step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_is_updated_to_the_same_bytes_in_any_batch(dtype):
    torch.manual_seed(0)
    start = torch.randn(len(CONFIGS), 1001).to(dtype)
    steps = torch.randn(3, *start.shape).to(dtype)
    together = updated(CONFIGS, start.clone(), steps)
    for p, config in enumerate(CONFIGS):
        part = slice(p, p + 1)
        assert torch.equal(updated([config], start[part].clone(), steps[:, part])[0], together[p])


def updated(configs, rows, gradients):
    gradient = torch.zeros_like(rows)
    optimizer = Sgd(configs, rows, gradient)
    for step in gradients:
        gradient.copy_(step)
        optimizer.update()
    return rows


def test_heads_of_equal_settings_are_one_launch(monkeypatch):
    launches, launch = [], sgd_module.sgd

    def counted(weights, *args, **options):
        launches.append(len(weights))
        launch(weights, *args, **options)

    monkeypatch.setattr(sgd_module, "sgd", counted)
    rows = torch.ones(len(CONFIGS), 4)
    Sgd(CONFIGS, rows, torch.ones_like(rows)).update()
    assert launches == [2, 1, 1, 1]
    assert (rows < 1).all()


def test_going_on_needs_the_velocity_and_no_more():
    samples, recipe = make_samples(), make_recipe(optim__name="sgd", optim__lr=0.1)
    straight = run(make_learner([recipe], samples), samples, 2)
    state = run(make_learner([recipe], samples), samples, 1).state()
    assert "momentum_buffer" in state
    found = []
    for velocity in (state["momentum_buffer"], torch.zeros_like(state["momentum_buffer"])):
        learner = make_learner([recipe], samples)
        learner.load_state(state | {"momentum_buffer": velocity})
        learner.set_epoch(1)
        for _ in learner.run(samples, 1):
            pass
        found.append(torch.equal(learner.heads.rows, straight.heads.rows))
    assert found == [True, False]


def test_states_have_the_names_that_earlier_ones_have():
    rows = torch.zeros(2, 3)
    for name, expected in (
        ("adam", {"exp_avg": (2, 3), "exp_avg_sq": (2, 3), "step": (2,)}),
        ("adamw", {"exp_avg": (2, 3), "exp_avg_sq": (2, 3), "step": (2,)}),
        ("sgd", {"momentum_buffer": (2, 3)}),
    ):
        recipe = make_recipe(optim__name=name, head__depth=0)
        learner = make_learner([recipe, recipe], make_samples())
        found = {key: tuple(value.shape) for key, value in learner.optimizer.state.items()}
        count = learner.heads.rows.shape[1]
        assert found == {k: (s[0], count) if len(s) == 2 else s for k, s in expected.items()}
        assert learner.state().keys() == {*expected, "rows", "counter", "first_bad"}
    assert Adam([OptimConfig()] * 2, rows, rows).state["step"].dtype == torch.float32
