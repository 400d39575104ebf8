"""Batches of heads: what holds of every kind, of MLPs, and of a kind that a test makes up."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_batch, load_head, read_card, save_head
from raffect.heads.fit import fit
from raffect.heads.head import Head, MlpSpec
from raffect.heads.head_batch import HeadBatch, HeadSpec, normalise
from raffect.heads.head_kinds import HEAD_KINDS, head_spec, read_spec
from raffect.heads.mlp import MlpBatch
from raffect.heads.sam import perturb
from raffect.recipe import HeadConfig
from tests.helpers.small_heads import (
    CPU,
    DIM,
    Killed,
    buffer_rows,
    kill_after,
    make_card,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
    require_refusal,
    run,
)

SHAPES = [
    MlpSpec(DIM, 16, 3, 8),
    MlpSpec(DIM, 16, 1, 8, "l2"),
    MlpSpec(DIM, 0, 0, 8),
    MlpSpec(DIM, 0, 0, 8, "l2"),
]
EACH_SHAPE = pytest.mark.parametrize("spec", SHAPES, ids=str)


def make_heads(spec, seeds=(0, 1, 2), dtype=torch.float64):
    """Heads moved from their start, so that biases, gains and buffers are not 0 or 1."""
    inits = ["he", "torch"]
    configs = [HeadConfig(init=inits[seed % 2]) for seed in seeds]
    rows = [spec.initial_row(seed, config) for seed, config in zip(seeds, configs, strict=True)]
    noise = [torch.randn(spec.num_weights, generator=torch.manual_seed(seed)) for seed in seeds]
    rows = torch.stack([row + 0.1 * part for row, part in zip(rows, noise, strict=True)])
    return spec.build(rows.to(dtype))


def make_pass(spec, num_heads=3, size=9, dtype=torch.float64, seed=5):
    """Samples, dropout's factors, and a derivative by the outputs."""
    torch.manual_seed(seed)
    x = torch.randn(num_heads, size, spec.dim, dtype=dtype)
    x[:, 0] = 0  # a feature that l2 cannot scale
    noise = (torch.rand(num_heads, size, spec.num_noise) > 0.4).to(dtype) / 0.6
    upstream = torch.randn(num_heads, size, spec.outputs, dtype=dtype)
    return x, noise, upstream


@EACH_SHAPE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_head_alone_is_the_same_head_in_a_batch_bit_by_bit(spec, dtype):
    together = make_heads(spec, dtype=dtype)
    x, noise, upstream = make_pass(spec, dtype=dtype)
    rho = torch.tensor([0.5, 0.0, 0.1], dtype=dtype)
    found = one_step(together, x, noise, upstream, rho, x[0])
    for p in range(3):
        part = slice(p, p + 1)
        alone = spec.build(together.rows[part].clone())
        expected = one_step(alone, x[part], noise[part], upstream[part], rho[part], x[0])
        for name, tensor in expected.items():
            assert torch.equal(found[name][part], tensor), name
        for name, buffer in alone.buffers.items():
            assert torch.equal(together.buffers[name][part], buffer), name


def one_step(heads, x, noise, upstream, rho, judged):
    """Everything that a step with SAM computes."""
    first = heads.forward(heads.rows, x, noise, update_buffers=True)
    moved = heads.climb(upstream, rho)
    second = heads.forward(moved, x, noise, update_buffers=False)
    heads.backward(upstream)
    predicted = heads.predict(heads.rows, heads.buffers, judged)
    gradient = heads.gradient.clone()
    return {"first": first, "second": second, "gradient": gradient, "predicted": predicted}


@EACH_SHAPE
def test_the_first_product_is_taken_once_and_no_bit_tells(spec):
    heads = make_heads(spec)
    x, noise, upstream = make_pass(spec)
    heads.forward(heads.rows, x, noise, update_buffers=True)
    moved = heads.climb(upstream, torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64))
    lifts = {name: dataclasses.replace(lift, outputs=None) for name, lift in moved.lifts.items()}
    plain = dataclasses.replace(moved, lifts=lifts)
    # A linear probe's only Linear has an offset that moves, and l2 makes samples of its own.
    assert any(lift.outputs is not None for lift in moved.lifts.values()) == (spec.depth > 0)
    both = (heads.forward(point, x, noise, update_buffers=False) for point in (moved, plain))
    assert torch.equal(*both)


@EACH_SHAPE
def test_backward_agrees_with_autograd_through_the_module(spec):
    heads = make_heads(spec)
    x, noise, upstream = make_pass(spec)
    outputs = heads.forward(heads.rows, x, noise, update_buffers=False)
    heads.backward(upstream)
    for p in range(3):
        head = spec.build_module(heads.state(p)).train()
        hidden = normalise(x[p], spec.normalise)
        for block in range(spec.depth):
            linear, norm, relu, _ = head.layers[4 * block : 4 * block + 4]
            part = noise[p, :, spec.width * block : spec.width * (block + 1)]
            hidden = relu(norm(linear(hidden))) * part
        expected = head.layers[-1](hidden)
        expected.backward(upstream[p])
        named = dict(head.named_parameters())
        gradient = torch.cat([named[name].grad.flatten() for name in spec.weights])
        assert torch.allclose(outputs[p], expected, atol=1e-12)
        assert torch.allclose(heads.gradient[p], gradient, atol=1e-12)


@EACH_SHAPE
def test_a_batch_predicts_what_the_modules_do(spec):
    heads = make_heads(spec)
    x, noise, _ = make_pass(spec)
    for _ in range(3):
        heads.forward(heads.rows, x + 1, noise, update_buffers=True)
    before = {name: buffer.clone() for name, buffer in heads.buffers.items()}
    found = heads.predict(heads.rows, heads.buffers, x[0])
    assert torch.equal(found, heads.predictor(heads.rows, heads.buffers)(x[0]))
    for p in range(3):
        head = spec.build_module(heads.state(p))
        assert torch.allclose(found[p], head(x[0]), atol=1e-12)
    assert all(torch.equal(before[name], buffer) for name, buffer in heads.buffers.items())


@EACH_SHAPE
def test_a_low_rank_step_of_sam_is_that_of_the_whole_matrix(spec):
    low_rank, matrix = make_heads(spec), make_heads(spec)
    x, noise, upstream = make_pass(spec)
    rho = torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64)
    for heads in (low_rank, matrix):
        heads.forward(heads.rows, x, noise, update_buffers=True)
    there = low_rank.climb(upstream, rho)
    matrix.backward(upstream)
    moved = perturb(matrix.rows, matrix.gradient, rho, "l2", torch.empty_like(matrix.rows))
    outputs = low_rank.forward(there, x, noise, update_buffers=False)
    expected = matrix.forward(moved, x, noise, update_buffers=False)
    assert torch.allclose(outputs, expected, atol=1e-12)
    for heads in (low_rank, matrix):
        heads.backward(upstream)
    assert torch.allclose(low_rank.gradient, matrix.gradient, atol=1e-12)
    # The step is one: only the head whose rho is 0 stays where it was.
    here = low_rank.forward(low_rank.rows, x, noise, update_buffers=False)
    assert [torch.allclose(outputs[p], here[p]) for p in range(3)] == [False, True, False]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_batch_without_climb_takes_the_matrix_path_to_the_same_heads(monkeypatch, depth):
    settings = {"sam__rho": 0.3, "head__depth": depth, "batch_size": 8}
    recipes = [make_recipe(seed=seed, **settings) for seed in (0, 1)]
    samples = make_samples()
    with_climb = run(make_learner(recipes, samples), samples)
    monkeypatch.setattr(MlpBatch, "climb", HeadBatch.climb)
    without = run(make_learner(recipes, samples), samples)
    assert torch.allclose(with_climb.heads.rows, without.heads.rows, atol=1e-9)
    assert "_perturbed" in vars(without)
    assert "_perturbed" not in vars(with_climb)


def test_a_batch_larger_than_a_layer_is_wide_is_cheaper_as_a_matrix():
    for spec, size in ((MlpSpec(DIM, 16, 1, 8), 17), (MlpSpec(DIM, 0, 0, 8), DIM + 1)):
        heads = make_heads(spec)
        for samples, is_written_out in ((size - 1, False), (size, True)):
            x, _, upstream = make_pass(spec, size=samples)
            heads.forward(heads.rows, x, None, update_buffers=False)
            found = heads.climb(upstream, torch.ones(3, dtype=torch.float64))
            assert (found is None) == is_written_out


def test_l2_divides_each_feature_by_its_norm_and_leaves_zeros():
    x = torch.randn(5, 7, DIM, dtype=torch.float64)
    x[2, 3] = 0
    found = normalise(x, "l2")
    assert torch.equal(found[2, 3], torch.zeros(DIM, dtype=torch.float64))
    expected = torch.ones(5, 7, dtype=torch.float64)
    expected[2, 3] = 0
    assert torch.allclose(found.norm(dim=-1), expected)
    assert torch.allclose(found * x.norm(dim=-1, keepdim=True), x)
    assert normalise(x, "none") is x
    spec = MlpSpec(DIM, 16, 1, 8, "l2")
    head = spec.build_module(make_heads(spec).state(0))
    assert torch.allclose(head(x[0]), head(x[0] * 100), atol=1e-12)
    assert head(x[2])[3].isfinite().all()


def test_the_papers_heads_have_its_number_of_weights():
    spec = MlpSpec(768, 768, 3, 8)
    assert spec.num_weights == sum(p.numel() for p in Head(spec).parameters()) == 1_782_536
    assert MlpSpec(768, 768, 3, 12).num_weights == 1_785_612


@pytest.mark.parametrize("how", ["none", "l2"])
def test_a_head_takes_a_banks_float16_features_as_they_are(how):
    spec = MlpSpec(4, 8, 2, 3, how)
    head = spec.build_module(spec.build(torch.randn(1, spec.num_weights)).state(0))
    features = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    features.flags.writeable = False  # as those that are mapped from a file
    expected = head(torch.from_numpy(features.astype(np.float32)))
    assert expected.dtype == torch.float32
    assert torch.equal(head(features), expected)
    assert torch.equal(head(torch.from_numpy(features.copy())), expected)


def test_a_head_of_depth_0_is_one_linear():
    spec = head_spec(HeadConfig(depth=0, width=300), 768, 8)
    assert spec.weights == {"layers.0.weight": (8, 768), "layers.0.bias": (8,)}
    assert (spec.buffers, spec.num_noise) == ({}, 0)
    assert [type(layer) for layer in spec.module().layers] == [nn.Linear]


def test_he_weights_have_hes_spread_and_zero_biases():
    spec = MlpSpec(200, 300, 1, 8)
    views = spec.views(spec.initial_row(5, HeadConfig(init="he"))[None])
    assert views["layers.0.weight"].std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert (views["layers.0.bias"] == 0).all()
    assert (views["layers.1.weight"] == 1).all()


@EACH_SHAPE
def test_a_spec_and_a_head_come_back_from_their_files(tmp_path, spec):
    heads = make_heads(spec, dtype=torch.float32)
    x, noise, _ = make_pass(spec, dtype=torch.float32)
    heads.forward(heads.rows, x, noise, update_buffers=True)
    save_head(tmp_path, make_card(spec), heads.state(1))
    assert read_spec(json.loads(json.dumps(spec.to_json())), tmp_path) == spec
    assert read_card(tmp_path).head == spec.to_json()
    batch, card = load_batch(tmp_path, CPU)
    assert (batch.spec, card.status, len(batch)) == (spec, "done", 1)
    assert torch.equal(batch.rows[0], heads.rows[1])
    assert torch.equal(batch_vector(batch, 0), batch_vector(heads, 1))
    predicted = batch.predict(batch.rows, batch.buffers, x[0])
    assert torch.equal(predicted[0], heads.predict(heads.rows, heads.buffers, x[0])[1])
    assert torch.allclose(load_head(tmp_path)[0](x[0]), predicted[0], atol=1e-4)


def batch_vector(heads, head):
    return buffer_rows(heads, head) if heads.buffers else torch.zeros(0)


GOOD = MlpSpec(DIM, 16, 2, 8).to_json()
HOSTILE = [
    None,
    [],
    "mlp",
    {},
    {"kind": []},
    {"kind": "os.system"},
    {name: value for name, value in GOOD.items() if name != "dim"},
    GOOD | {"more": 1},
    GOOD | {"depth": 10**9},
    GOOD | {"depth": -1},
    GOOD | {"depth": "2"},
    GOOD | {"depth": True},
    GOOD | {"depth": 2.0},
    GOOD | {"depth": None},
    GOOD | {"depth": 0},  # a width without a block
    GOOD | {"width": 0},
    GOOD | {"width": 10**30},
    GOOD | {"dim": [1]},
    GOOD | {"outputs": 0},
    GOOD | {"normalise": "l1"},
    GOOD | {"normalise": ["l2"]},
    GOOD | {"normalise": "x" * 10_000},
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: str(content)[:60])
def test_a_hostile_spec_is_refused_in_one_line(content):
    require_refusal(content)


@pytest.mark.parametrize(
    "change",
    [{"outputs": 9}, {"depth": 1}, {"depth": 0, "width": 0}, {"width": 17}],
    ids=str,
)
def test_a_spec_that_its_file_does_not_hold_is_refused(tmp_path, change):
    spec = MlpSpec(DIM, 16, 2, 8)
    save_head(tmp_path, make_card(spec), make_heads(spec).state(0))
    config = read_card(tmp_path).to_json()
    (tmp_path / "config.json").write_text(json.dumps(config | {"head": config["head"] | change}))
    with pytest.raises(RaffectError, match="does not fit its config.json"):
        load_head(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64])
def test_tensors_of_another_type_are_refused(tmp_path, dtype):
    spec = MlpSpec(DIM, 0, 0, 8)
    state = {name: tensor.to(dtype) for name, tensor in make_heads(spec).state(0).items()}
    save_head(tmp_path, make_card(spec), state)
    with pytest.raises(RaffectError, match="does not fit its config.json"):
        load_batch(tmp_path, CPU)


@dataclasses.dataclass(frozen=True)
class ToySpec(HeadSpec):
    """A linear map of a feature less the mean of all features that training has seen."""

    dim: int
    outputs: int

    kind = "toy"

    @property
    def weights(self):
        return {"weight": (self.outputs, self.dim)}

    @property
    def buffers(self):
        return {"mean": (self.dim,)}

    def initial_row(self, seed, config):
        return torch.randn(self.num_weights, generator=torch.manual_seed(seed)) / 10

    def build(self, rows, buffers=None, workers=None):
        return ToyBatch(self, rows, buffers, workers)

    def module(self):
        return ToyModule(self)

    @classmethod
    def from_json(cls, content, where):
        return cls(**content)


class ToyModule(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(spec.outputs, spec.dim))
        self.register_buffer("mean", torch.zeros(spec.dim))

    def forward(self, x):
        return (x - self.mean) @ self.weight.mT


class ToyBatch(HeadBatch):
    """By autograd, and without a step of its own for SAM."""

    def outputs(self, rows, buffers, batch):
        return (batch - buffers["mean"][:, None]) @ self.spec.views(rows)["weight"].mT

    def forward(self, rows, batch, noise, *, update_buffers):
        if update_buffers:
            self.buffers["mean"].lerp_(batch.mean(1), 0.1)
        with torch.enable_grad():
            self._rows = rows.detach().requires_grad_()
            self._outputs = self.outputs(self._rows, self.buffers, batch)
        return self._outputs.detach()

    def backward(self, d_outputs):
        (gradient,) = torch.autograd.grad(self._outputs, self._rows, d_outputs)
        self.gradient.copy_(gradient)

    def predict(self, rows, buffers, batch):
        return self.outputs(rows, buffers, batch.expand(len(rows), *batch.shape))


TOY = ToySpec(DIM, 8)


def test_another_kind_of_head_trains_as_torch_would():
    recipe = make_recipe(sam__rho=0.2, loss__alpha=1.0)
    samples = make_samples()
    learner = make_learner([recipe], samples, spec=TOY)
    module = TOY.build_module(learner.heads.state(0)).train()
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    learner.set_epoch(0)
    order = torch.from_numpy(learner._order(len(samples), 0)[0])
    for step, _ in enumerate(learner.run(samples, 0)):
        index = order[step * 16 : (step + 1) * 16]
        x, y = samples.x[index].double(), samples.y[index]
        module.mean.lerp_(x.mean(0), 0.1)
        (first,) = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), module.weight)
        move = 0.2 * first / first.norm()
        moved = nn.functional.cross_entropy((x - module.mean) @ (module.weight + move).mT, y)
        (module.weight.grad,) = torch.autograd.grad(moved, module.weight)
        adam.step()
    assert torch.allclose(learner.heads.rows[0], module.weight.flatten(), atol=1e-9)
    assert torch.allclose(learner.heads.buffers["mean"][0], module.mean, atol=1e-12)


def test_another_kind_of_head_is_saved_and_goes_on_byte_for_byte(tmp_path, monkeypatch):
    recipes = [make_recipe(seed=seed, epochs=4, optim__lr=0.01) for seed in (0, 1)]
    saved = {"spec": TOY, "state_path": tmp_path / "state", "save_every_s": 0}
    with pytest.raises(Killed):
        fit(make_job(recipes, **saved), on_epoch=kill_after(2))
    resumed, straight = fit(make_job(recipes, **saved)), fit(make_job(recipes, spec=TOY))
    assert straight.history[-1]["val_macro_f1"][0] > straight.history[0]["val_macro_f1"][0]
    for name, kept in straight.snapshots.items():
        found = resumed.snapshots[name].tensors("")
        assert all(torch.equal(tensor, found[key]) for key, tensor in kept.tensors("").items())
    with pytest.raises(RaffectError, match="other heads"):
        fit(make_job(recipes, **saved | {"spec": MlpSpec(DIM, 16, 2, 8)}))
    # And as a head on its own, once its kind has a name.
    heads = straight.heads("last")
    save_head(tmp_path / "head", make_card(TOY), heads.state(1))
    with pytest.raises(RaffectError, match=r"not a head of a known kind \(toy\)"):
        load_head(tmp_path / "head")
    monkeypatch.setitem(HEAD_KINDS, "toy", ToySpec)
    head, x = load_head(tmp_path / "head")[0], make_samples(seed=9).x.float()
    predicted = heads.predict(heads.rows, heads.buffers, x)
    assert torch.allclose(head(x), predicted[1], atol=1e-6)


class Pooled(ToyBatch):
    """The same map of a window's mean over the rows that are there."""

    def outputs(self, rows, buffers, batch):
        return super().outputs(rows, buffers, batch.nanmean(-2))

    def forward(self, rows, batch, noise, *, update_buffers):
        return super().forward(rows, batch, noise, update_buffers=False)


class Still(ToyBatch):
    """The same without a mean that moves, for single features."""

    def forward(self, rows, batch, noise, *, update_buffers):
        return super().forward(rows, batch, noise, update_buffers=False)


class PooledSpec(ToySpec):
    def build(self, rows, buffers=None, workers=None):
        return Pooled(self, rows, buffers, workers)


class StillSpec(ToySpec):
    def build(self, rows, buffers=None, workers=None):
        return Still(self, rows, buffers, workers)


def test_a_window_of_features_is_a_sample_like_any():
    few = make_samples(rows=80)
    windows = make_samples().x[:240].view(80, 3, DIM).clone()
    windows[5, 2] = float("nan")  # a row that is not there
    pooled = windows.double().nanmean(1)
    found = []
    for spec, x in ((PooledSpec(DIM, 8), windows), (StillSpec(DIM, 8), pooled)):
        samples = dataclasses.replace(few, x=x)
        options = {"spec": spec, "dtype": torch.float64}
        job = make_job([make_recipe()], train=samples, validation=samples, **options)
        found.append(fit(job).snapshots["last"].rows)
    assert torch.allclose(found[0], found[1], atol=1e-12)
