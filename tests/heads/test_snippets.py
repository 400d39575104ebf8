"""Snippets: a window part by part, and the order of its parts."""

import math

import pytest
import torch

from raffect.errors import RaffectError
from raffect.heads.snippets import MOST_ORDERS, mean_of, orders_of
from raffect.recipe import HeadConfig, Recipe, with_settings
from tests.helpers.temporal_heads import (
    DIM,
    WINDOW,
    make_module,
    make_noise,
    make_row,
    make_spec,
    make_windows,
)


def test_a_snippet_without_a_row_changes_nothing():
    spec = make_spec(snippets=3)
    x = make_windows(spec)
    x[0, 2:4] = math.nan
    state = spec.build(make_row(spec)[None]).state(0)
    found = spec.build_module(state)(x)[0]
    # Whatever its place says.
    state["encoder.position"] = state["encoder.position"].clone()
    state["encoder.position"][1] = 1e6
    assert torch.equal(spec.build_module(state)(x)[0], found)


def test_orders_are_permutations_that_differ():
    for size in (2, 3, 4, 5, 7, 16, 100):
        orders = orders_of(size)
        assert len(set(orders)) == len(orders) == min(MOST_ORDERS, math.factorial(size))
        assert all(sorted(order) == list(range(size)) for order in orders)
        # The order of the window itself is one of them, and the others are far from it.
        assert orders[0] == tuple(range(size))
    moved = [sum(a != b for a, b in enumerate(order)) for order in orders_of(8)[1:]]
    assert sum(moved) / len(moved) > 5


def test_order_does_not_reach_the_outputs():
    spec = make_spec(snippets=3, order=True)
    head, x, noise = make_module(spec), make_windows(spec), make_noise(spec)
    found = head(x, noise, training=True)
    noise[:, -1] = 0.99
    again = head(x, noise, training=True)
    assert found.shape == (9, DIM + 1)
    assert torch.equal(found[:, :-1], again[:, :-1])
    assert not torch.equal(found[:, -1], again[:, -1])
    assert torch.equal(found[:, :-1], head(x, noise))
    # Of two windows one has a row in its first snippet alone, the other nowhere.
    assert (found[2:4, -1] == 0).all()
    assert (found[[0, 1, *range(4, 9)], -1] > 0).all()


def test_a_head_learns_in_which_order_snippets_stand():
    spec = make_spec(snippets=3, order=True, width=16)
    rows = spec.initial_row(0, HeadConfig())[None].clone()
    heads = spec.build(rows)
    generator = torch.Generator().manual_seed(0)
    trend = torch.arange(WINDOW)[:, None] * torch.randn(DIM, generator=generator) / 3

    def draw(size):
        x = trend + torch.randn(size, WINDOW, DIM, generator=generator)
        x[: size // 4, 1] = math.nan
        noise = torch.ones(size, spec.num_noise + 1)
        noise[:, -1] = torch.rand(size, generator=generator)
        return x, noise

    adam = torch.optim.Adam([rows], lr=5e-3)
    for _ in range(200):
        x, noise = draw(64)
        noise[:, :-1] = (torch.rand(64, spec.num_noise, generator=generator) > 0.1) / 0.9
        upstream = torch.zeros(1, 64, DIM + 1)
        upstream[:, :, -1] = 1 / 64
        heads.forward(rows, x[None], noise[None], update_buffers=False)
        heads.backward(upstream)
        rows.grad = heads.gradient
        adam.step()
    head = spec.build_module(heads.state(0))
    x, noise = draw(600)
    loss = head(x, noise, training=True)[:, -1]
    share_right = (loss < math.log(2)).float().mean()  # then its order has most of the chance
    assert loss.mean() < math.log(6) / 3
    assert share_right > 0.85  # chance is 1/6


def test_mean_of_rows_is_over_those_that_are_there():
    values = torch.tensor([[1.0, 9.0, 3.0], [5.0, 5.0, 5.0]])[..., None]
    is_there = torch.tensor([[True, False, True], [False, False, False]])
    assert mean_of(values, is_there)[:, 0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize("snippets", [0, 1])
def test_the_order_of_one_snippet_cannot_be_learnt(snippets):
    with pytest.raises(RaffectError, match="loss.order 0.5: is about the order of snippets"):
        with_settings(
            Recipe(),
            {
                "head.kind": "temporal",
                "head.window": 6,
                "head.snippets": snippets,
                "loss.order": 0.5,
            },
        )


def test_a_window_is_whole_snippets():
    with pytest.raises(RaffectError, match=r"head.snippets 4: .* a divisor of head.window"):
        with_settings(Recipe(), {"head.kind": "temporal", "head.window": 6, "head.snippets": 4})
