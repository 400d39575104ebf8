"""Temporal heads' specs: weights and their start, what a recipe decides, and files."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from raffect.errors import RaffectError
from raffect.heads.head_kinds import head_spec, read_spec
from raffect.heads.temporal import TemporalSpec
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import require_refusal
from tests.helpers.temporal_heads import (
    DIM,
    EACH_SPEC,
    make_module,
    make_spec,
    make_windows,
)

WHERE = Path("config.json")


def test_the_recipes_head_has_about_1200000_weights_at_768():
    config = HeadConfig(kind="temporal", width=192, layers=2, attention_heads=8, window=16)
    assert head_spec(config, 768, 768, compares=True).num_weights == 1_188_865


# What it is


@EACH_SPEC
def test_a_spec_names_the_weights_of_its_module(spec):
    module = spec.module()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert spec.weights == shapes
    assert spec.num_weights == sum(tensor.numel() for tensor in module.parameters())


@EACH_SPEC
def test_weights_start_small_and_norms_as_the_identity(spec):
    views = spec.views(spec.initial_row(3, HeadConfig())[None])
    for name, view in views.items():
        if name == "logit_scale":
            assert view.item() == pytest.approx(math.log(100))
        elif "norm" in name:
            assert (view == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias") or name.startswith("residual"):
            assert (view == 0).all()
        else:
            expected = view.shape[-1] ** -0.5 if name.endswith("weight") else 0.02
            assert view.std().item() == pytest.approx(expected, rel=0.5), name


# Settings and files


@pytest.mark.parametrize(
    ("changes", "outputs", "options", "message"),
    [
        ({"attention_heads": 5}, 12, {}, "head.attention-heads 5: does not divide"),
        ({}, 7, {"compares": True}, "vectors are as long as the features"),
        ({"kind": "mlp", "window": 1}, 12, {"compares": True}, "head.kind mlp: does not compare"),
    ],
)
def test_heads_that_cannot_be_are_refused_in_one_line(changes, outputs, options, message):
    values = {"kind": "temporal", "attention_heads": 4, "window": 6, **changes}
    with pytest.raises(RaffectError, match=message) as caught:
        head_spec(HeadConfig(**values), DIM, outputs, **options)
    assert "\n" not in str(caught.value)


def test_a_recipe_decides_the_shape():
    config = HeadConfig(kind="temporal", attention_heads=4, window=6, snippets=3, pool="centre")
    spec = head_spec(config, DIM, 8, order=True)
    assert spec == TemporalSpec(DIM, DIM, 2, 4, 6, 8, "centre", snippets=3, order=True)
    assert (spec.num_noise, spec.num_uniform, spec.num_penalties) == (2 * DIM * 3, 1, 1)
    compared = head_spec(dataclasses.replace(config, width=8, layers=1), DIM, DIM, compares=True)
    assert compared == TemporalSpec(DIM, 8, 1, 4, 6, DIM, "centre", snippets=3, compares=True)
    assert (compared.num_uniform, compared.num_penalties) == (0, 0)


@EACH_SPEC
def test_a_spec_comes_back_from_its_file(spec):
    assert read_spec(json.loads(json.dumps(spec.to_json())), WHERE) == spec


GOOD = make_spec(snippets=3, order=True).to_json()
HOSTILE = [
    {name: value for name, value in GOOD.items() if name != "dim"},
    GOOD | {"more": 1},
    GOOD | {"dim": 10**9, "outputs": 10**9},
    GOOD | {"width": 0},
    GOOD | {"width": 2**17},
    GOOD | {"width": 9},
    GOOD | {"layers": 10**9},
    GOOD | {"layers": 2.0},
    GOOD | {"attention_heads": 0},
    GOOD | {"attention_heads": 3},
    GOOD | {"attention_heads": True},
    GOOD | {"window": 10**6},
    GOOD | {"window": 7},
    GOOD | {"snippets": -1},
    GOOD | {"snippets": 4},
    GOOD | {"snippets": 1},
    GOOD | {"pool": "max"},
    GOOD | {"pool": ["mean"]},
    GOOD | {"order": 1},
    GOOD | {"order": "true"},
    GOOD | {"compares": None},
    GOOD | {"outputs": 11},
    GOOD | {"outputs": "x" * 10_000},
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: str(content)[:60])
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content, most=250)


@EACH_SPEC
def test_no_sample_has_no_output(spec):
    module = make_module(spec)
    assert module(make_windows(spec)[:0]).shape == (0, spec.outputs)
