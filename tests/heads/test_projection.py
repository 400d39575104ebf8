"""The projection that images and texts share."""

import json

import numpy as np
import pytest
import torch

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head, save_head
from raffect.heads.head_batch import EmbeddingSpec
from raffect.heads.head_kinds import head_spec, read_spec
from raffect.heads.projection import ProjectionSpec
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import make_card, require_refusal

SPEC = ProjectionSpec(12, 20)
CONFIG = HeadConfig(kind="projection", init="torch")


def make_heads(spec=SPEC, seeds=(0, 1)):
    rows = torch.stack([spec.initial_row(seed, CONFIG) for seed in seeds])
    return spec.build(rows.double())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("how", ["none", "l2"])
def test_outputs_are_those_of_an_implementation_by_numpy(how):
    spec = ProjectionSpec(12, 20, how)
    heads, rng = make_heads(spec), np.random.default_rng(0)
    frames = rng.normal(size=(6, 12)) * rng.uniform(0.1, 9, (6, 1))
    windows = rng.normal(size=(6, 4, 12)) * rng.uniform(0.1, 9, (6, 4, 1))
    windows[1, 2] = windows[3, :3] = np.nan
    found = heads.predict(heads.rows, {}, torch.from_numpy(frames)).numpy()
    of_windows = heads.predict(heads.rows, {}, torch.from_numpy(windows)).numpy()
    for p in range(2):
        weight = heads.state(p)["weight"].numpy()
        assert np.allclose(found[p], 100 * unit(frames @ weight.T))
        # Projections of frames and then their mean, as Exp-CLIP has it, or of what is normalised.
        mapped = (windows if how == "none" else unit(windows)) @ weight.T
        assert np.allclose(of_windows[p], 100 * unit(np.nanmean(mapped, 1)))


def test_normalised_features_matter_to_windows_alone():
    plain, normal = (make_heads(ProjectionSpec(12, 20, how)) for how in ("none", "l2"))
    x = torch.randn(5, 3, 12, dtype=torch.float64) * torch.tensor([0.1, 1.0, 9.0])[:, None]
    outputs = [
        [heads.predict(heads.rows, {}, batch) for heads in (plain, normal)]
        for batch in (x[:, 0], x)
    ]
    assert torch.allclose(*outputs[0])
    assert not torch.allclose(*outputs[1])


def test_rows_that_are_not_there_change_nothing():
    heads, x = make_heads(), torch.randn(5, 3, 12, dtype=torch.float64)
    padded = torch.cat([x, torch.full((5, 4, 12), torch.nan, dtype=torch.float64)], 1)
    one, other = (heads.predict(heads.rows, {}, batch) for batch in (x, padded))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_window_without_any_row_is_zeros_and_spoils_no_gradient():
    heads, x = make_heads(), torch.randn(2, 3, 4, 12, dtype=torch.float64)
    x[:, 1] = torch.nan
    outputs = heads.forward(heads.rows, x, None, update_buffers=True)
    assert (outputs[:, 1] == 0).all()
    heads.backward(torch.ones_like(outputs))
    assert heads.gradient.isfinite().all()
    assert (heads.gradient != 0).any()


def test_texts_are_mapped_as_images_are():
    heads, texts = make_heads(), torch.randn(7, 12, dtype=torch.float64)
    outputs = heads.predict(heads.rows, {}, texts)
    for p in range(2):
        vectors = SPEC.embed_texts(heads.state(p), texts)
        assert vectors.shape == (7, SPEC.length) == (7, 20)
        assert torch.allclose(vectors * 100, outputs[p])
        # Of any length and type, as a text tower gives them.
        assert torch.allclose(
            SPEC.embed_texts(heads.state(p), 3 * texts.float()), vectors, atol=1e-6
        )


def test_weights_start_as_those_of_a_linear():
    spec = ProjectionSpec(768, 4096)
    views = spec.views(spec.initial_row(3, CONFIG)[None])
    linear = torch.nn.Linear(768, 4096, bias=False).weight
    assert views["weight"].abs().max().item() == pytest.approx(768**-0.5, rel=1e-4)
    assert views["weight"].std().item() == pytest.approx(linear.std().item(), rel=0.01)
    he = spec.views(spec.initial_row(3, HeadConfig(kind="projection", init="he"))[None])["weight"]
    assert he.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.01)
    # 3.1 million weights, as the paper's head for ViT-L/14.
    assert spec.num_weights == 768 * 4096


def test_a_recipe_asks_for_a_map_as_long_as_the_targets():
    spec = head_spec(CONFIG, 768, 4096, compares=True)
    assert spec == ProjectionSpec(768, 4096)
    assert isinstance(spec, EmbeddingSpec)
    with pytest.raises(RaffectError, match=r"head.kind projection: gives vectors .*head.kind mlp"):
        head_spec(CONFIG, 768, 8)


@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 12)])
def test_it_comes_back_from_its_files(tmp_path, shape):
    spec, x = ProjectionSpec(12, 20, "l2"), torch.randn(shape)
    heads = spec.build(spec.initial_row(0, CONFIG)[None])
    save_head(tmp_path, make_card(spec), heads.state(0))
    head, card = load_head(tmp_path)
    assert read_spec(json.loads(json.dumps(card.head)), tmp_path) == spec
    assert torch.allclose(head(x), heads.predict(heads.rows, {}, x)[0], atol=1e-4)


GOOD = SPEC.to_json()
HOSTILE = [
    {"kind": "projection"},
    {name: value for name, value in GOOD.items() if name != "outputs"},
    GOOD | {"more": 1},
    GOOD | {"dim": 0},
    GOOD | {"dim": True},
    GOOD | {"dim": 12.0},
    GOOD | {"dim": 10**30},
    GOOD | {"outputs": -1},
    GOOD | {"outputs": "20"},
    GOOD | {"outputs": [20]},
    GOOD | {"outputs": None},
    GOOD | {"normalise": "l1"},
    GOOD | {"normalise": ["l2"]},
    GOOD | {"normalise": "x" * 10_000},
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: str(content)[:60])
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content)
