"""Heads on CUDA: results of the CPU, and the same bytes by a graph and in a resumed run.

Skipped where there is no device; benchmarks/gpu.py runs them on one.
"""

import dataclasses
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from raffect.heads.fit import count, fit
from raffect.heads.fused_step import FusedStep
from raffect.heads.learner import Learner
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.mlp import MlpSpec
from raffect.heads.samples import Samples
from raffect.heads.workers import Workers
from tests.helpers.small_heads import (
    TASKS,
    Batches,
    Killed,
    kill_after,
    make_job,
    make_recipe,
    make_samples,
    prior_of,
    spec_of,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = [
    {},
    {"sam__rho": 0.0, "loss__alpha": 1.0, "head__dropout": 0.0},
    {"sam__independent_dropout": True, "sam__rho": 0.2},
    {"sam__perturbation": "sign", "sam__rho": 0.01},
    {"sam__rho": 0.5, "batch_size": 32},
    {"optim__name": "adamw", "optim__weight_decay": 0.1, "head__init": "torch"},
    {"loss__weighting": "inverse", "loss__logit_adjustment": 1.0, "optim__schedule": "released"},
    {"task": "au", "loss__alpha": 0.3},
    {"task": "au", "loss__alpha": 0.3, "loss__tail_over": "frames"},
    {"task": "va", "loss__alpha": 0.4},
    {"task": "va", "loss__alpha": 1.0, "loss__name": "ccc", "sam__rho": 0.2},
]


def make_recipes(settings, heads):
    settings = dict(settings)
    task = settings.pop("task", "expr")
    changes = ({}, {"seed": 1, "optim__lr": 1e-3}, {"seed": 0, "optim__lr": 3e-3})
    return [make_recipe(task, **settings | change) for change in changes[:heads]]


def move(samples, device):
    x, y, video = (tensor.to(device) for tensor in (samples.x, samples.y, samples.video))
    return Samples(x, y, video, samples.num_videos)


def make_learner(recipes, samples, device, dtype, workers=None):
    prior = prior_of(recipes[0].task, samples)
    return Learner(recipes, spec_of(recipes[0]), prior, device, dtype, workers)


def train(learner, rows, epochs=2, first=0):
    rows = move(rows, learner.device)
    for epoch in range(first, epochs):
        learner.set_epoch(epoch)
        for _ in learner.run_resident(rows, epoch):
            pass
    return learner


def trained(recipes, rows, device, dtype=torch.float32, epochs=2, eager=False, fused=False):
    learner = make_learner(recipes, rows, device, dtype)
    if fused:
        learner.fuse()
    if eager:
        learner._launch = lambda step: step()
    return train(learner, rows, epochs)


def distance(one, other):
    """Largest difference of two states, relative to the largest value of each tensor."""
    found = {}
    for name, value in one.items():
        scale = max(1e-30, value.double().abs().max().item())
        found[name] = (value.double() - other[name].double()).abs().max().item() / scale
    return max(found.values())


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_cuda_and_cpu_agree_in_float64(settings, heads):
    recipes = make_recipes(settings, heads)
    rows = make_samples(recipes[0].task)
    states = [trained(recipes, rows, device, torch.float64).state() for device in (CUDA, CPU)]
    print(f"float64, {heads} heads, {settings}: {distance(*states):.1e}")
    assert distance(*states) < 1e-6  # rates are float32 on CUDA


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_cuda_in_float32_is_as_near_to_float64_as_the_cpu_is(settings, heads):
    recipes = make_recipes(settings, heads)
    rows = make_samples(recipes[0].task)
    exact = trained(recipes, rows, CPU, torch.float64).state()
    errors = []
    for device in (CUDA, CPU):
        weights = trained(recipes, rows, device).state()["rows"].double()
        errors.append(((weights - exact["rows"]).norm() / exact["rows"].norm()).item())
    print(f"float32, {heads} heads, {settings}: cuda {errors[0]:.1e}, cpu {errors[1]:.1e}")
    assert errors[0] < max(1e-4, 5 * errors[1])


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_graph_has_the_bytes_of_single_launches(settings, heads):
    recipes = make_recipes(settings, heads)
    rows = make_samples(recipes[0].task)
    graph, eager = (trained(recipes, rows, CUDA, eager=eager) for eager in (False, True))
    assert graph._graph is not None
    assert eager._graph is None
    for name, value in graph.state().items():
        assert torch.equal(value, eager.state()[name]), name
    assert torch.equal(graph.loss_sum, eager.loss_sum)


# torch's compiler warns of what it sees fit, which is no error of a step.
compiles = pytest.mark.filterwarnings("default")


@compiles
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("settings", [SETTINGS[k] for k in (0, 2, 3, 5, 7, 10)], ids=str)
def test_fused_steps_agree_with_the_cpu_and_launch_less(settings, heads):
    recipes = make_recipes(settings, heads)
    rows = make_samples(recipes[0].task)
    fused = trained(recipes, rows, CUDA, torch.float64, fused=True)
    exact = trained(recipes, rows, CPU, torch.float64).state()
    print(f"fused float64, {heads} heads, {settings}: {distance(fused.state(), exact):.1e}")
    assert distance(fused.state(), exact) < 1e-6


@compiles
def test_a_compiled_run_goes_on_to_the_same_bytes(tmp_path):
    recipes = [make_recipe(seed=s, epochs=4) for s in (0, 1)]
    straight = run_fit("expr", CUDA, recipes, compile=True)
    saved = {"compile": True, "state_path": tmp_path / "state.safetensors", "save_every_s": 0}
    with pytest.raises(Killed):
        run_fit("expr", CUDA, recipes, **saved, on_epoch=kill_after(2))
    resumed = run_fit("expr", CUDA, recipes, **saved)
    assert curve(straight) == curve(resumed)
    assert torch.equal(straight.snapshots["last"].rows, resumed.snapshots["last"].rows)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[7], SETTINGS[10]], ids=str)
def test_going_on_from_a_state_has_the_bytes_of_never_stopping(settings):
    recipes = make_recipes(settings, 3)
    rows = make_samples(recipes[0].task)
    straight, first = trained(recipes, rows, CUDA, epochs=3), trained(recipes, rows, CUDA, epochs=1)
    second = make_learner(recipes, rows, CUDA, torch.float32)
    second.load_state(first.state())
    train(second, rows, 3, first=1)
    for name, value in straight.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_the_papers_size_agrees_too():
    """For three steps: then a frame that enters a tail, or a unit that opens, lets runs diverge.

    Two runs in float64 on the CPU whose weights differ by 1e-7 at the start differ by 2e-3 within
    16 such steps.
    """
    recipes = [make_recipe(seed=s, head__depth=3, batch_size=32, epochs=1) for s in (0, 1)]
    recipes = [dataclasses.replace(r, head=dataclasses.replace(r.head, width=768)) for r in recipes]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(96, 768)).astype(np.float16))
    y, video = torch.from_numpy(rng.integers(0, 8, 96)), torch.zeros(96, dtype=torch.int64)
    rows = Samples(x, y, video, 1)
    prior, spec = prior_of("expr", rows), MlpSpec(768, 768, 3, 8)

    def weights(device, dtype, recipes=recipes):
        learner = train(Learner(recipes, spec, prior, device, dtype), rows, 1)
        return learner.state()["rows"].double()

    exact = weights(CPU, torch.float64)
    ours, theirs = (weights(device, torch.float32) for device in (CUDA, CPU))
    errors = [((w - exact).norm() / exact.norm()).item() for w in (ours, theirs)]
    double = ((weights(CUDA, torch.float64) - exact).norm() / exact.norm()).item()
    alone = weights(CUDA, torch.float32, recipes[:1])[0]
    apart = ((alone - ours[0]).norm() / alone.norm()).item()
    single = f"cuda float32 {errors[0]:.1e}, cpu float32 {errors[1]:.1e}"
    print(f"768 wide: {single}, cuda float64 {double:.1e}")
    print(f"alone against in a batch {apart:.1e}, equal bytes {torch.equal(alone, ours[0])}")
    assert double < 1e-6
    assert errors[0] < 1e-4
    assert apart < 1e-4


@pytest.mark.parametrize("task", ["expr", "au"])
def test_a_large_batch_is_captured(task):
    rows = make_samples(task, rows=40_000)
    recipes = [make_recipe(task, batch_size=4096, epochs=1, loss__alpha=0.3)]
    graph, eager = (trained(recipes, rows, CUDA, epochs=1, eager=eager) for eager in (False, True))
    assert torch.equal(graph.heads.rows, eager.heads.rows)


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_validation_counts_what_the_cpu_counts_and_repeats_itself(task):
    rows = make_samples(task, rows=30_000)
    rows = Samples(rows.x, rows.y, torch.arange(30_000) % 97, 97)
    kind, recipes = loss_kind(TASKS[task]), make_recipes({"task": task, "head__dropout": 0.1}, 3)
    learner = trained(recipes, make_samples(task), CPU, torch.float64)

    def found(device):
        heads = learner.heads
        buffers = {name: buffer.to(device) for name, buffer in heads.buffers.items()}
        return count(kind, heads.spec.build(heads.rows.to(device), buffers), move(rows, device))

    ours, theirs = found(CUDA), found(CPU)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    for _ in range(5):
        assert np.array_equal(ours, found(CUDA))


def run_fit(task, device, recipes, rows=None, on_epoch=None, **options):
    rows = make_samples(task, rows=1024) if rows is None else rows
    judged = make_samples(task, seed=9, rows=3000)
    judged = Samples(judged.x, judged.y, torch.arange(3000) % 11, 11)
    rows = move(rows, device) if isinstance(rows, Samples) else rows
    job = make_job(recipes, rows, move(judged, device), device=device, **options)
    return fit(job, **({"on_epoch": on_epoch} if on_epoch else {}))


def curve(fitted):
    name = next(name for name in fitted.history[0] if name.startswith("val_"))
    return [entry[name] for entry in fitted.history]


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_fit_scores_as_on_the_cpu_and_a_killed_run_goes_on_to_the_same_bytes(task, tmp_path):
    recipes = [make_recipe(task, seed=s, epochs=4, optim__lr=0.01) for s in (0, 1)]
    straight, expected = run_fit(task, CUDA, recipes), run_fit(task, CPU, recipes)
    # One epoch: at this rate a change of 1e-6 in the weights soon changes scores by 0.1.
    ours, theirs = (fitted.history[0]["train_loss"] for fitted in (straight, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    np.testing.assert_allclose(curve(straight)[0], curve(expected)[0], atol=0.01)
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run_fit(task, CUDA, recipes, state_path=state, save_every_s=0, on_epoch=kill_after(2))
    resumed = run_fit(task, CUDA, recipes, state_path=state, save_every_s=0)
    assert curve(straight) == curve(resumed)
    for name, kept in straight.snapshots.items():
        found = resumed.snapshots[name].tensors("")
        for key, tensor in kept.tensors("").items():
            assert torch.equal(tensor, found[key]), (name, key)
        assert kept.epoch.tolist() == resumed.snapshots[name].epoch.tolist()


def test_a_stream_takes_the_same_step():
    recipes = [make_recipe(seed=3, loss__alpha=a) for a in (0.3, 1.0)]
    rows = make_samples(rows=1024)
    streamed = run_fit("expr", CUDA, recipes, rows=Batches(rows, 3)).snapshots["last"].rows
    resident = run_fit("expr", CUDA, recipes, rows=rows).snapshots["last"].rows
    torch.testing.assert_close(streamed, resident, rtol=1e-5, atol=1e-6)


def test_a_stream_as_a_graph_has_the_bytes_of_single_launches():
    rows, found = make_samples(), []
    for eager in (True, False):
        learner = make_learner(make_recipes({}, 3), rows, CUDA, torch.float32)
        if eager:
            learner._launch = lambda step: step()
        learner.set_epoch(0)
        for _ in learner.run(Batches(rows, 0), 0):
            pass
        found.append(learner.state())
        assert (learner._graph is None) == eager
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_head_that_diverges_stops_alone():
    good, bad = make_recipe(seed=1, epochs=3), make_recipe(seed=1, epochs=3, optim__lr=1e30)
    together, alone = run_fit("expr", CUDA, [good, bad]), run_fit("expr", CUDA, [good, good])
    assert together.diverged[0] is None
    assert "no longer finite at step 2 of epoch 1" in together.diverged[1]
    assert torch.equal(together.snapshots["last"].rows[0], alone.snapshots["last"].rows[0])


def _worker(rank, size, port, folder):
    group = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": size}
    torch.distributed.init_process_group("gloo", **group)
    recipes, rows = make_recipes({"sam__rho": 0.5}, 3), make_samples()
    learner = make_learner(recipes, rows, CUDA, torch.float64, Workers.current())
    train(learner, rows)
    if rank == 0:
        torch.save(learner.state(), folder / "state.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_on_one_device_give_the_result_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (2, port, tmp_path), nprocs=2)
    one = trained(make_recipes({"sam__rho": 0.5}, 3), make_samples(), CUDA, torch.float64).state()
    assert distance(one, torch.load(tmp_path / "state.pt", weights_only=True)) < 1e-9


def test_nccl_sums_and_gathers():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"init_method": f"tcp://127.0.0.1:{port}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("nccl", device_id=CUDA.index or 0, **group)
    try:
        tensor = torch.ones(3, device=CUDA)
        torch.distributed.all_reduce(tensor)
        assert tensor.tolist() == [1, 1, 1]
        Workers.current().require_same(3, "epochs", CUDA)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("settings", [{"sam__rho": 0.5}, {"sam__rho": 0.0}, {"task": "au"}])
def test_triton_kernels_are_taken_on_this_card(settings, caplog):
    recipes, rows = make_recipes(settings, 3), make_samples(settings.get("task", "expr"))
    learner = train(make_learner(recipes, rows, CUDA, torch.float32), rows, epochs=1)
    assert learner.way.__func__ is FusedStep.step, caplog.text
