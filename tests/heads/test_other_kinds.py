"""A kind of head that a test makes up trains, is saved and goes on like any."""

import dataclasses

import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_head, save_head
from raffect.heads.fit import fit
from raffect.heads.head import MlpSpec
from raffect.heads.head_batch import HeadBatch, HeadSpec
from raffect.heads.head_kinds import HEAD_KINDS
from tests.helpers.small_heads import (
    DIM,
    Killed,
    kill_after,
    make_card,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
)


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
