"""Heads that compare: an embedding head beside fixed texts is a head like any other."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_batch, load_head, read_card, save_head
from raffect.heads.compared import ComparedSpec
from raffect.heads.head_batch import EmbeddingSpec
from raffect.heads.head_kinds import HEAD_KINDS, read_spec
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.pooled import PooledSpec
from raffect.heads.projection import ProjectionSpec
from raffect.heads.released_emoclip import ReleasedEmoclipSpec
from raffect.heads.temporal import TemporalSpec
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import CPU, DIM, make_card, require_refusal

LENGTH, CLASSES, SIZE = 5, 4, 9


@dataclasses.dataclass(frozen=True)
class MapSpec(EmbeddingSpec, ModuleSpec):
    """A linear map of a feature, or of the mean of a window; with a loss and noise of its own."""

    outputs: int
    penalties: int = 0

    kind = "map"

    @property
    def length(self):
        return self.outputs

    @property
    def weights(self):
        return {"weight": (self.outputs, DIM)}

    @property
    def buffers(self):
        return {"shift": (self.outputs,)}

    @property
    def num_penalties(self):
        return self.penalties

    def initial_row(self, seed, config):
        return torch.randn(self.num_weights, generator=torch.manual_seed(seed))

    def module(self):
        return Map(self)

    @classmethod
    def from_json(cls, content, where):
        return cls(**content)


class Map(HeadModule):
    def __init__(self, spec):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(spec.outputs, DIM))
        self.register_buffer("shift", torch.zeros(spec.outputs))
        self.penalties = spec.penalties

    def forward(self, x, noise=None, *, training=False):
        x = x.nanmean(-2) if x.ndim == 3 else x
        found = nn.functional.normalize(x @ self.weight.mT + self.shift, dim=-1) * 7
        own = [x.square().sum(-1, keepdim=True) * self.weight.sum()] * (training * self.penalties)
        return torch.cat([found, *own], -1)


SPECS = [
    ComparedSpec(MapSpec(LENGTH), CLASSES),
    ComparedSpec(MapSpec(LENGTH, penalties=1), CLASSES),
    ComparedSpec(PooledSpec(DIM), CLASSES),
]
EACH_SPEC = pytest.mark.parametrize("spec", SPECS, ids=str)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(HEAD_KINDS, "map", MapSpec)


def make_heads(spec, dtype=torch.float64, seeds=(0, 1, 2)):
    rows = torch.stack([spec.initial_row(seed, HeadConfig()) for seed in seeds]).to(dtype)
    random = torch.Generator().manual_seed(4)
    buffers = {
        name: torch.randn(len(rows), *shape, generator=random, dtype=torch.float64).to(dtype)
        for name, shape in spec.buffers.items()
    }
    return spec.build(rows, buffers)


def make_batch(*shape, dtype=torch.float64):
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(9)).to(dtype)


@EACH_SPEC
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [(), (3,)], ids=str)
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(spec, dtype, window):
    together, x = make_heads(spec, dtype), make_batch(3, SIZE, *window, dtype=dtype)
    upstream = torch.randn(3, SIZE, CLASSES + spec.num_penalties).to(dtype)
    outputs = together.forward(together.rows, x, None, update_buffers=True)
    together.backward(upstream)
    predicted = together.predict(together.rows, together.buffers, x[0])
    for p in range(3):
        part = slice(p, p + 1)
        buffers = {name: buffer[part].clone() for name, buffer in together.buffers.items()}
        alone = spec.build(together.rows[part].clone(), buffers)
        found = alone.forward(alone.rows, x[part], None, update_buffers=True)
        assert torch.equal(found, outputs[part])
        alone.backward(upstream[part])
        assert torch.equal(alone.gradient, together.gradient[part])
        assert torch.equal(alone.predict(alone.rows, alone.buffers, x[0]), predicted[part])


def test_a_large_head_alone_is_the_same_head_in_a_batch_bit_by_bit():
    for length, size in ((771, 33), (96, 5), (200, 64)):
        spec = ComparedSpec(PooledSpec(length), 7)
        rows = torch.full((4, 1), 2.0)
        shapes = ((4, 7, length), (4, 7))
        classes, offset = (torch.randn(shape) for shape in shapes)
        together = spec.build(rows, {"classes": classes, "offset": offset})
        x = torch.randn(size, length)
        predicted = together.predict(rows, together.buffers, x)
        for p in range(4):
            buffers = {name: buffer[p : p + 1] for name, buffer in together.buffers.items()}
            alone = spec.build(rows[p : p + 1], buffers)
            assert torch.equal(alone.predict(alone.rows, buffers, x)[0], predicted[p])


@EACH_SPEC
def test_outputs_are_products_with_the_texts_and_gradients_those_of_autograd(spec):
    heads, x = make_heads(spec), make_batch(3, SIZE)
    upstream = torch.randn(3, SIZE, CLASSES + spec.num_penalties, dtype=torch.float64)
    outputs = heads.forward(heads.rows, x, None, update_buffers=True)
    heads.backward(upstream)
    for p in range(3):
        inner = spec.build_module(heads.state(p)).inner
        found = inner(x[p], training=True)
        classes, offset = (heads.buffers[name][p] for name in ("classes", "offset"))
        length = spec.inner.length
        expected = torch.einsum("be,ce->bc", found[:, :length], classes) + offset
        expected = torch.cat([expected, found[:, length:]], -1)
        assert torch.allclose(outputs[p], expected, atol=1e-12)
        expected.backward(upstream[p])
        named = dict(inner.named_parameters())
        gradient = torch.cat([named[name].grad.flatten() for name in spec.inner.weights])
        assert torch.allclose(heads.gradient[p], gradient, atol=1e-12)


@EACH_SPEC
def test_a_batch_predicts_what_the_module_does_and_it_comes_back_from_its_files(spec, tmp_path):
    heads, x = make_heads(spec, torch.float32), make_batch(SIZE, 3, dtype=torch.float32)
    predicted = heads.predict(heads.rows, heads.buffers, x)
    assert predicted.shape == (3, SIZE, CLASSES)
    for p in range(3):
        save_head(tmp_path, make_card(spec), heads.state(p))
        assert read_spec(json.loads(json.dumps(spec.to_json())), tmp_path) == spec
        assert read_card(tmp_path).head == spec.to_json()
        batch, _ = load_batch(tmp_path, CPU)
        assert batch.spec == spec
        assert torch.equal(batch.predict(batch.rows, batch.buffers, x)[0], predicted[p])
        module, _ = load_head(tmp_path)
        assert torch.allclose(module(x), predicted[p], atol=1e-5)


def test_a_pooled_head_is_the_mean_of_the_normalised_features_that_are_there():
    spec = PooledSpec(DIM)
    heads = spec.build(torch.stack([spec.initial_row(seed, HeadConfig()) for seed in (0, 1)]))
    x = make_batch(SIZE, 4, dtype=torch.float32)
    x[2, 1:] = float("nan")
    x[3, :2] = float("nan")
    found = heads.predict(heads.rows, {}, x)
    expected = []
    for window in x.numpy().astype(float):
        rows = [row / np.linalg.norm(row) for row in window if np.isfinite(row).all()]
        mean = np.mean(rows, 0)
        expected.append(mean / np.linalg.norm(mean) / 0.07)
    for head in found:
        np.testing.assert_allclose(head, expected, atol=1e-5)
    assert torch.allclose(found[0], heads.predict(heads.rows, {}, x.flip(1))[1], atol=1e-5)
    single = heads.predict(heads.rows, {}, x[:, 0].nan_to_num(1))[0]
    assert torch.allclose(single.norm(dim=-1), torch.tensor(1 / 0.07))


@pytest.mark.parametrize(
    "spec",
    [
        PooledSpec(DIM),
        ProjectionSpec(DIM, 5),
        ReleasedEmoclipSpec(DIM, 1, 1),
        TemporalSpec(DIM, 8, 1, 2, 4, DIM, compares=True),
    ],
    ids=lambda spec: spec.kind,
)
def test_a_row_is_missing_only_where_all_of_it_is_nan(spec):
    heads, x = make_heads(spec), make_batch(3, 4)
    x[1, 2] = float("nan")
    x[2, 2, 0] = float("nan")  # a fault of the features, which no head hides
    found = heads.predict(heads.rows, heads.buffers, x)
    assert found[:, :2].isfinite().all()
    assert found[:, 2].isnan().any(-1).all()
    # The scale of those that learn one has one shape.
    assert spec.weights.get("logit_scale", ()) == ()


GOOD = ComparedSpec(PooledSpec(DIM), CLASSES).to_json()
CLASSIFIER = TemporalSpec(DIM, 8, 1, 2, 3, CLASSES).to_json()
HOSTILE = [
    {"kind": "compared"},
    GOOD | {"more": 1},
    GOOD | {"outputs": 0},
    GOOD | {"outputs": 10**9},
    GOOD | {"outputs": True},
    GOOD | {"outputs": "4"},
    GOOD | {"inner": GOOD},
    GOOD | {"inner": GOOD | {"inner": GOOD | {"inner": GOOD}}},
    GOOD | {"inner": None},
    GOOD | {"inner": [GOOD]},
    GOOD | {"inner": {"kind": "os.system"}},
    GOOD | {"inner": {"kind": "mlp", "dim": 4, "width": 0, "depth": 0, "outputs": 4}},
    GOOD
    | {"inner": {"kind": "mlp", "dim": 4, "width": 0, "depth": 0, "outputs": 4, "normalise": "l2"}},
    GOOD | {"inner": CLASSIFIER},
    GOOD | {"inner": {"kind": "pooled"}},
    GOOD | {"inner": {"kind": "pooled", "dim": 10**9}},
    GOOD | {"inner": {"kind": "pooled", "dim": "x" * 10_000}},
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: str(content)[:80])
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content, "again")


def test_texts_that_the_file_does_not_hold_are_refused(tmp_path):
    spec = SPECS[0]
    save_head(tmp_path, make_card(spec), make_heads(spec).state(0))
    config = read_card(tmp_path).to_json()
    config["head"]["outputs"] = CLASSES + 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RaffectError, match="does not fit its config.json"):
        load_head(tmp_path)
