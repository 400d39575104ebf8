"""A training step, validation and prediction on CUDA, checked without a card.

Tensors here have a shape and a device and no values: see benchmarks/fake_cuda.py. What a CUDA graph
captures must keep to CUDA and never wait for the host.
"""

from unittest import mock

import pytest
import torch

from raffect.heads import adam as adam_module
from raffect.heads.fit import count
from raffect.heads.predicting import predict
from raffect.heads.samples import Feed
from tests.helpers.fake_cuda import (
    CUDA,
    NotCapturedError,
    Watch,
    capture_step,
    fake_cuda,
    fake_learner,
    modules_traced,
    to_cuda,
)
from tests.helpers.small_heads import DIM, make_recipe, spec_of
from tests.helpers.small_modules import AttentiveSpec, make_windows

SETTINGS = [
    {},
    {"sam__rho": 0.0, "loss__alpha": 1.0, "head__dropout": 0.0},
    {"sam__independent_dropout": True, "sam__rho": 0.2},
    {"sam__perturbation": "sign", "sam__rho": 0.01},
    {"sam__rho": 0.5, "batch_size": 32},
    {"head__depth": 0},
    {"head__depth": 1, "head__normalise": "l2"},
    {"head__depth": 0, "loss__leave_out": "Anger"},
    {"optim__name": "adamw", "optim__weight_decay": 0.1, "head__init": "torch"},
    {"optim__name": "sgd", "optim__momentum": 0.9},
    {"loss__weighting": "inverse", "loss__logit_adjustment": 1.0, "optim__schedule": "released"},
    {"loss__weighting": "effective", "loss__alpha": 0.1},
    {"task": "au", "loss__alpha": 0.3},
    {"task": "au", "loss__alpha": 0.3, "loss__tail_over": "frames"},
    {"task": "au", "loss__weighting": "inverse", "loss__logit_adjustment": 0.5},
    {"task": "va", "loss__alpha": 0.4},
    {"task": "va", "loss__alpha": 1.0, "loss__name": "ccc", "sam__rho": 0.2},
]


# Each setting with one head or ten; the other number where there is more time.
CASES = [
    pytest.param(settings, heads, marks=() if heads == (1, 10)[k % 2] else pytest.mark.cluster)
    for k, settings in enumerate(SETTINGS)
    for heads in (1, 10)
]


def make_recipes(settings, heads):
    """So many heads, of which every other one has settings of its own."""
    settings = dict(settings)
    task = settings.pop("task", "expr")
    changes = [{"seed": k // 2, "optim__lr": 1e-3 * (1 + k % 2)} for k in range(heads)]
    return [make_recipe(task, **settings | change) for change in changes]


@pytest.mark.parametrize(("settings", "heads"), CASES, ids=str)
def test_a_step_keeps_to_cuda_and_never_waits(settings, heads):
    with fake_cuda():
        watch = capture_step(*fake_learner(make_recipes(settings, heads)))
    assert not watch.waits
    assert len(watch.calls) > 50
    updates = [call for call in watch.calls if call.op.startswith("_fused_")]
    assert len(updates) == min(heads, 2)  # one for each rate


KERNELS = [{}, {"sam__rho": 0.0}, {"task": "au", "loss__alpha": 0.3}, {"task": "va"}]


@pytest.mark.parametrize("settings", KERNELS, ids=str)
def test_a_step_of_our_kernels_keeps_to_cuda_and_never_waits(settings):
    with fake_cuda():
        watch = capture_step(*fake_learner(make_recipes(settings, 3), kernels=True))
    assert not watch.waits
    kernels = [call.op for call in watch.calls]
    assert kernels.count("block_forward") == (2 if settings.get("sam__rho") == 0.0 else 4)
    assert kernels.count("count_step") == 1


def test_what_a_kernel_reads_from_the_cpu_is_named():
    with fake_cuda(), torch.no_grad():
        learner, samples = fake_learner(make_recipes({}, 2), kernels=True)
        learner.rho = torch.zeros(2)
        with pytest.raises(NotCapturedError, match=r"a tensor \(2,\) on cpu among the operands of"):
            capture_step(learner, samples)


def test_a_stream_is_copied_from_pinned_memory_and_takes_the_same_step():
    """What the host does for each batch waits for nothing; the rest is captured."""
    with fake_cuda(), torch.no_grad():
        learner, samples = fake_learner(make_recipes({}, 3))
        x, y = torch.zeros(16, DIM, dtype=torch.float16), torch.zeros(16, dtype=torch.int64)
        feed = Feed(x, y, CUDA)
        with Watch(captured=False) as host:
            feed.put(x, y)
        with Watch(captured=True) as graph:
            learner._widen_and_step(feed)
        resident = capture_step(learner, samples)
    assert not host.waits
    assert len(host.calls) == 2
    assert len(graph.calls) < len(resident.calls)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_reads_rates_and_steps_from_cuda(name):
    """Its kernel has no fake: what it is given is looked at instead."""
    with fake_cuda(), mock.patch.object(adam_module, "adam") as kernel:
        capture_step(*fake_learner(make_recipes({"optim__name": name}, 3)))
    for call in kernel.call_args_list:
        *tensors, no_maxima, steps = call.args
        assert not no_maxima
        assert all(tensor.device.type == "cuda" for group in [*tensors, steps] for tensor in group)
        assert call.kwargs["lr"].device.type == "cuda"
        assert call.kwargs["fused"]
        assert call.kwargs["capturable"]


def test_a_new_rate_is_written_where_the_graph_reads_it():
    with fake_cuda(), torch.no_grad():
        learner, _ = fake_learner(make_recipes({}, 3))
        optimizer = learner.optimizer
        before = optimizer.rates.untyped_storage()._cdata
        with Watch(captured=False):
            learner.set_epoch(1)
        read = [optimizer.rates, *optimizer._rates.values()]
    assert all(rate.untyped_storage()._cdata == before for rate in read)


TEMPORAL = {"head__kind": "temporal", "head__attention_heads": 2, "head__window": 3}
MODULES = [
    ("expr", AttentiveSpec(), {}, 1),
    ("expr", AttentiveSpec(penalties=1), {"sam__rho": 0.0}, 3),
    pytest.param("expr", None, TEMPORAL, 3, marks=pytest.mark.cluster),
    pytest.param("captions", None, {}, 3, marks=pytest.mark.cluster),
]


@pytest.mark.parametrize(("task", "spec", "settings", "heads"), MODULES, ids=str)
def test_a_step_of_modules_keeps_to_cuda_and_never_waits(task, spec, settings, heads):
    with fake_cuda(), modules_traced():
        learner, samples = fake_learner(make_recipes({"task": task, **settings}, heads), spec)
        if task != "captions":
            samples = to_cuda(make_windows(task))
        watch = capture_step(learner, samples)
    assert not watch.waits
    assert any(call.op == "bmm" for call in watch.calls)


# The checks can fail


def plant(where, fault):
    """A learner one of whose parts has a fault, and its samples."""
    learner, samples = fake_learner(make_recipes({}, 2))
    owner, name = {
        "noise": (learner.noise, "draw"),
        "heads": (learner.heads, "forward"),
        "objective": (learner.objective, "gradient"),
        "optimizer": (learner.optimizer, "update"),
    }[where]
    method = getattr(owner, name)

    def faulty(*args, **kwargs):
        fault(learner)
        return method(*args, **kwargs)

    setattr(owner, name, faulty)
    return learner, samples


FAULTS = {
    "item": (lambda one: one.counter.item(), "waits for the host: aten._local_scalar_dense"),
    "bool": (lambda one: bool((one.counter > 0).all()), "waits for the host"),
    "mask": (lambda one: one.loss_sum[one.loss_sum > 0], "waits for the host: aten.index"),
    "nonzero": (lambda one: one.loss_sum.nonzero(), "waits for the host: aten.nonzero"),
    "to the CPU": (lambda one: one.loss_sum.cpu(), r"a tensor \(2,\) on cpu out of aten._to_copy"),
    "a number": (lambda one: one.loss_sum * torch.tensor(0.5), r"a tensor \(\) on cpu among"),
    "a copy": (lambda one: torch.tensor(0.5, device=CUDA), r"a tensor \(\) on cpu among"),
    "a list": (lambda one: one.loss_sum[[0, 1]], r"a tensor \(2,\) on cpu among"),
    "made on the CPU": (lambda one: one.loss_sum + torch.ones(2), r"a tensor \(2,\) on cpu out of"),
}


@pytest.mark.parametrize(
    ("fault", "where"),
    [(fault, "objective") for fault in FAULTS]
    + [("item", where) for where in ("noise", "heads", "optimizer")],
)
def test_a_planted_fault_is_named_with_its_line(fault, where):
    planted, message = FAULTS[fault]
    with fake_cuda(), torch.no_grad():
        learner, samples = plant(where, planted)
        with pytest.raises(NotCapturedError, match=message) as caught, Watch(captured=True):
            learner._gather_and_step(samples)
    assert f"{__file__.rsplit('/', 1)[-1]}:" in str(caught.value)


def test_what_the_optimiser_reads_from_the_cpu_is_named():
    with fake_cuda(), torch.no_grad():
        learner, samples = fake_learner(make_recipes({}, 2))
        for config in learner.optimizer._rates:
            learner.optimizer._rates[config] = torch.zeros(())
        with pytest.raises(NotCapturedError, match="aten._fused_adam_"), Watch(captured=True):
            learner._gather_and_step(samples)


def test_a_constant_within_a_module_is_named():
    """Its pass is traced elsewhere, where a constant of the CPU stays one."""

    def forward(self, x, noise=None, *, training=False):
        return original(self, x, noise, training=training) * torch.tensor(0.5)

    module = type(AttentiveSpec().module())
    original = module.forward
    with fake_cuda(), modules_traced(), mock.patch.object(module, "forward", forward):
        learner, _ = fake_learner(make_recipes({}, 2), AttentiveSpec())
        with pytest.raises(NotCapturedError, match=r"a tensor \(\) on cpu among"):
            capture_step(learner, to_cuda(make_windows()))


# What no graph captures


@pytest.mark.parametrize(("task", "waits"), [("expr", 2), ("au", 3), ("va", 1), ("captions", 1)])
def test_validation_runs_on_cuda(task, waits):
    """It waits where it counts, and where the host reads the counts."""
    with fake_cuda():
        learner, samples = fake_learner(make_recipes({"task": task}, 3))
        with Watch(captured=False) as watch:
            found = count(learner.objective.kind, learner.heads, samples)
    assert found.shape[0] == 3
    assert len(watch.waits) == waits, watch.waits


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_prediction_waits_only_for_what_it_returns(task):
    with fake_cuda():
        learner, samples = fake_learner(make_recipes({"task": task}, 3))
        with Watch(captured=False) as watch:
            found = predict(learner.objective.kind, learner.heads, samples)
    assert found.shape[:2] == (3, 256)
    assert len(watch.waits) == 1, watch.waits


def test_a_head_on_the_cpu_is_not_mixed_with_samples_on_cuda():
    recipe = make_recipe()
    with fake_cuda():
        heads = spec_of(recipe).build(torch.zeros(1, spec_of(recipe).num_weights))
        with (
            pytest.raises(RuntimeError, match="same device|two different devices"),
            Watch(captured=False),
        ):
            heads.predict(heads.rows, heads.buffers, torch.zeros(4, DIM, device=CUDA))
