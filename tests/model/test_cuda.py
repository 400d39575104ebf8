"""What CUDA must share with the CPU, and with itself: results, bytes of a graph and of a resumed run.

Skipped where there is no device; benchmarks/gpu.py runs them on one.
"""

import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from test_encoder import faces, reference, tiny_vit  # noqa: F401
from test_fit import Batches, Killed, kill_after
from test_learner import TASKS, layout_of, make_recipe, make_rows

from raffect.model.encoder import load_encoder
from raffect.model.fit import count, fit
from raffect.model.kinds import loss_kind
from raffect.model.learner import Learner, Rows
from raffect.model.pack import Layout, fold
from raffect.model.preprocess import Preprocess
from raffect.model.workers import Workers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = [
    {},
    {"sam__rho": 0.0, "loss__alpha": 1.0, "head__dropout": 0.0},
    {"sam__redraw_dropout": True, "sam__rho": 0.2},
    {"sam__perturbation": "sign", "sam__rho": 0.01},
    {"sam__rho": 0.5, "batch_size": 32},
    {"optim__name": "adamw", "optim__weight_decay": 0.1, "head__init": "torch"},
    {"loss__weighting": "inverse", "loss__logit_adjustment": 1.0, "optim__schedule": "released"},
    {"task": "au", "loss__alpha": 0.3},
    {"task": "au", "loss__alpha": 0.3, "loss__granularity": "sample"},
    {"task": "va", "loss__alpha": 0.4},
    {"task": "va", "loss__alpha": 1.0, "loss__name": "ccc", "sam__rho": 0.2},
]


def make_recipes(settings, members):
    settings = dict(settings)
    task = settings.pop("task", "expr")
    one = make_recipe(task, **settings)
    others = [make_recipe(task, **{**settings, "seed": s, "optim__lr": lr}) for s, lr in ((1, 1e-3), (0, 3e-3))]
    return [one, *others][:members]


def move(rows, device):
    return Rows(rows.x.to(device), rows.y.to(device), rows.video.to(device), rows.num_videos)


def make_learner(recipes, rows, device, dtype, workers=None):
    prior = loss_kind(TASKS[recipes[0].task]).count_prior(rows.y.cpu().numpy())
    return Learner(recipes, layout_of(recipes[0]), prior, device, dtype, workers)


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
        learner._launch = learner._gather_and_step
    return train(learner, rows, epochs)


def distance(one, other):
    """Largest difference of two states, relative to the largest value of each tensor."""
    found = {}
    for name, value in one.items():
        scale = max(1e-30, value.double().abs().max().item())
        found[name] = (value.double() - other[name].double()).abs().max().item() / scale
    return max(found.values())


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_cuda_and_cpu_agree_in_float64(settings, members):
    recipes = make_recipes(settings, members)
    rows = make_rows(recipes[0].task)
    states = [trained(recipes, rows, device, torch.float64).state() for device in (CUDA, CPU)]
    print(f"float64, {members} members, {settings}: {distance(*states):.1e}")
    assert distance(*states) < 1e-6  # rates are float32 on CUDA


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_cuda_in_float32_is_as_near_to_float64_as_the_cpu_is(settings, members):
    recipes = make_recipes(settings, members)
    rows = make_rows(recipes[0].task)
    exact = trained(recipes, rows, CPU, torch.float64).state()
    errors = []
    for device in (CUDA, CPU):
        weights = trained(recipes, rows, device).state()["weights"].double()
        errors.append(((weights - exact["weights"]).norm() / exact["weights"].norm()).item())
    print(f"float32, {members} members, {settings}: cuda {errors[0]:.1e}, cpu {errors[1]:.1e}")
    assert errors[0] < max(1e-4, 5 * errors[1])


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_graph_has_the_bytes_of_single_launches(settings, members):
    recipes = make_recipes(settings, members)
    rows = make_rows(recipes[0].task)
    graph, eager = (trained(recipes, rows, CUDA, eager=eager) for eager in (False, True))
    assert graph._graph is not None
    assert eager._graph is None
    for name, value in graph.state().items():
        assert torch.equal(value, eager.state()[name]), name
    assert torch.equal(graph.loss_sum, eager.loss_sum)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("settings", [SETTINGS[k] for k in (0, 2, 3, 5, 7, 10)], ids=str)
def test_fused_steps_agree_with_the_cpu_and_launch_less(settings, members):
    recipes = make_recipes(settings, members)
    rows = make_rows(recipes[0].task)
    fused = trained(recipes, rows, CUDA, torch.float64, fused=True)
    exact = trained(recipes, rows, CPU, torch.float64).state()
    print(f"fused float64, {members} members, {settings}: {distance(fused.state(), exact):.1e}")
    assert distance(fused.state(), exact) < 1e-6


def test_a_long_run_is_fused_and_still_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("raffect.model.fit.FUSE_STEPS", 10)
    recipes = [make_recipe(seed=s, epochs=4) for s in (0, 1)]
    seen, fuse = [], Learner.fuse
    monkeypatch.setattr(Learner, "fuse", lambda self: (seen.append(1), fuse(self)))
    straight, state = run_fit("expr", CUDA, recipes), tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run_fit("expr", CUDA, recipes, state_path=state, save_every_s=0, on_epoch=kill_after(2))
    resumed = run_fit("expr", CUDA, recipes, state_path=state, save_every_s=0)
    assert len(seen) == 3
    assert curve(straight) == curve(resumed)
    assert torch.equal(straight.snapshots["last"].weights, resumed.snapshots["last"].weights)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[7], SETTINGS[10]], ids=str)
def test_going_on_from_a_state_has_the_bytes_of_never_stopping(settings):
    recipes = make_recipes(settings, 3)
    rows = make_rows(recipes[0].task)
    straight, first = trained(recipes, rows, CUDA, epochs=3), trained(recipes, rows, CUDA, epochs=1)
    second = make_learner(recipes, rows, CUDA, torch.float32)
    second.load_state(first.state())
    train(second, rows, 3, first=1)
    for name, value in straight.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_the_papers_size_agrees_too():
    """For three steps: then a frame that enters a tail, or a unit that opens, makes any two float32 runs part.

    Float64 on the CPU from weights moved by 1e-7 parts from itself by 2e-3 within 16 steps of these.
    """
    recipes = [make_recipe(seed=s, head__depth=3, batch_size=32, epochs=1) for s in (0, 1)]
    recipes = [replace(r, head=replace(r.head, width=768)) for r in recipes]
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(96, 768)).astype(np.float16))
    rows = Rows(x, torch.from_numpy(rng.integers(0, 8, 96)), torch.zeros(96, dtype=torch.int64), 1)
    prior, layout = loss_kind(TASKS["expr"]).count_prior(rows.y.numpy()), Layout(768, 768, 3, 8)

    def weights(device, dtype, chosen=recipes):
        return train(Learner(chosen, layout, prior, device, dtype), rows, 1).state()["weights"].double()

    exact, ours, theirs = weights(CPU, torch.float64), weights(CUDA, torch.float32), weights(CPU, torch.float32)
    errors = [((w - exact).norm() / exact.norm()).item() for w in (ours, theirs)]
    double = ((weights(CUDA, torch.float64) - exact).norm() / exact.norm()).item()
    alone = weights(CUDA, torch.float32, recipes[:1])[0]
    apart = ((alone - ours[0]).norm() / alone.norm()).item()
    print(f"768 wide: cuda float32 {errors[0]:.1e}, cpu float32 {errors[1]:.1e}, cuda float64 {double:.1e}; "
          f"alone against in a pack {apart:.1e}, equal bytes {torch.equal(alone, ours[0])}")  # fmt: skip
    assert double < 1e-6
    assert errors[0] < 1e-4
    assert apart < 1e-4


@pytest.mark.parametrize("task", ["expr", "au"])
def test_a_large_batch_is_captured(task):
    rows = make_rows(task, rows=40_000)
    recipes = [make_recipe(task, batch_size=4096, epochs=1, loss__alpha=0.3)]
    graph, eager = (trained(recipes, rows, CUDA, epochs=1, eager=eager) for eager in (False, True))
    assert torch.equal(graph.pack.weights, eager.pack.weights)


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_validation_counts_what_the_cpu_counts_and_repeats_itself(task):
    rows = make_rows(task, rows=30_000)
    rows = Rows(rows.x, rows.y, torch.arange(30_000) % 97, 97)
    kind, recipes = loss_kind(TASKS[task]), make_recipes({"task": task, "head__dropout": 0.1}, 3)
    learner = trained(recipes, make_rows(task), CPU, torch.float64)

    def found(device):
        pack = learner.pack
        layers = fold(pack.layout, *(t.to(device) for t in (pack.weights, pack.running_mean, pack.running_var)))
        return count(kind, layers, move(rows, device))

    ours, theirs = found(CUDA), found(CPU)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    for _ in range(5):
        assert np.array_equal(ours, found(CUDA))


def run_fit(task, device, recipes, rows=None, **options):
    rows = make_rows(task, rows=1024) if rows is None else rows
    judged = make_rows(task, seed=9, rows=3000)
    judged = Rows(judged.x, judged.y, torch.arange(3000) % 11, 11)
    prior = loss_kind(TASKS[task]).count_prior(make_rows(task, rows=1024).y.numpy())
    if isinstance(rows, Rows):
        rows = move(rows, device)
    return fit(recipes, layout_of(recipes[0]), prior, rows, move(judged, device), device=device, **options)


def curve(fitted):
    name = next(name for name in fitted.history[0] if name.startswith("val_"))
    return [entry[name] for entry in fitted.history]


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_fit_scores_as_on_the_cpu_and_a_killed_run_goes_on_to_the_same_bytes(task, tmp_path):
    recipes = [make_recipe(task, seed=s, epochs=4, optim__lr=0.01) for s in (0, 1)]
    straight, expected = run_fit(task, CUDA, recipes), run_fit(task, CPU, recipes)
    # One epoch: these heads, at this rate, answer to 1e-6 in their weights with .1 in their scores.
    np.testing.assert_allclose(straight.history[0]["train_loss"], expected.history[0]["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(curve(straight)[0], curve(expected)[0], atol=0.01)
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run_fit(task, CUDA, recipes, state_path=state, save_every_s=0, on_epoch=kill_after(2))
    resumed = run_fit(task, CUDA, recipes, state_path=state, save_every_s=0)
    assert curve(straight) == curve(resumed)
    for name, kept in straight.snapshots.items():
        for field in ("weights", "running_mean", "running_var"):
            assert torch.equal(getattr(kept, field), getattr(resumed.snapshots[name], field)), name
        assert kept.epoch.tolist() == resumed.snapshots[name].epoch.tolist()


def test_a_stream_takes_the_same_step():
    recipes = [make_recipe(seed=3, loss__alpha=a) for a in (0.3, 1.0)]
    rows = make_rows(rows=1024)
    streamed = run_fit("expr", CUDA, recipes, rows=Batches(rows, 3)).snapshots["last"].weights
    resident = run_fit("expr", CUDA, recipes, rows=rows).snapshots["last"].weights
    torch.testing.assert_close(streamed, resident, rtol=1e-5, atol=1e-6)


def test_one_that_diverges_stops_alone():
    good, bad = make_recipe(seed=1, epochs=3), make_recipe(seed=1, epochs=3, optim__lr=1e30)
    together, alone = run_fit("expr", CUDA, [good, bad]), run_fit("expr", CUDA, [good, good])
    assert together.diverged[0] is None
    assert "no longer finite at step 2 of epoch 1" in together.diverged[1]
    assert torch.equal(together.snapshots["last"].weights[0], alone.snapshots["last"].weights[0])


def _worker(rank, size, port, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    recipes, rows = make_recipes({"sam__rho": 0.5}, 3), make_rows()
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
    one = trained(make_recipes({"sam__rho": 0.5}, 3), make_rows(), CUDA, torch.float64).state()
    assert distance(one, torch.load(tmp_path / "state.pt", weights_only=True)) < 1e-9


def test_nccl_sums_and_gathers():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group(
        "nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1, device_id=CUDA.index or 0
    )
    try:
        tensor = torch.ones(3, device=CUDA)
        torch.distributed.all_reduce(tensor)
        assert tensor.tolist() == [1, 1, 1]
        Workers.current().require_same(3, "epochs", CUDA)
    finally:
        torch.distributed.destroy_process_group()


SIZES = [(112, 112), (64, 64), (224, 224), (1, 1), (100, 150), (150, 100), (37, 200), (223, 221)]


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_pixel_is_open_clips(height, width, interpolation, resize_mode, size):
    pixels = np.random.default_rng(height + width).integers(0, 256, (9, height, width, 3), np.uint8)
    pixels[0], pixels[1, ::2] = 255, 255  # the largest sums
    load_encoder_flags()
    ours = Preprocess(
        size=size, mean=(0.48, 0.45, 0.4), std=(0.26, 0.26, 0.27), interpolation=interpolation,
        resize_mode=resize_mode,
    )  # fmt: skip
    theirs = image_transform_v2(
        PreprocessCfg(size=size, mean=ours.mean, std=ours.std, interpolation=interpolation, resize_mode=resize_mode),
        is_train=False,
    )
    resized = ours.resize(torch.from_numpy(pixels).to(CUDA))
    expected = torch.stack([theirs(Image.fromarray(picture)) for picture in pixels])
    whole = (expected * torch.tensor(ours.std).view(3, 1, 1) + torch.tensor(ours.mean).view(3, 1, 1)) * 255
    assert torch.equal(resized.cpu(), whole.round())
    torch.testing.assert_close(ours.normalise(resized).cpu(), expected, rtol=0, atol=1e-6)


def load_encoder_flags():
    """What `load_encoder` sets before a resize."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


FRAMES = [(112, 112), (224, 224), (64, 64), (100, 150), (150, 100), (300, 260), (112, 112)]


def test_vectors_in_float32_are_those_of_encode_image(tiny_vit):  # noqa: F811
    frames = faces(*FRAMES[:4])
    encoder = load_encoder(replace(tiny_vit, precision="float32"), "cuda")
    with torch.inference_mode():
        ours = encoder.forward(encoder.prepare(frames)).cpu().numpy()
    expected = reference(tiny_vit, frames)
    print(f"float32: {np.abs(ours - expected).max() / np.abs(expected).max():.1e}")
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 0.02), ("bfloat16", 0.1)])
@pytest.mark.parametrize("compile", [False, True])
def test_half_precision_is_close(tiny_vit, precision, tolerance, compile):  # noqa: F811
    frames = faces(*FRAMES)
    encoder = load_encoder(replace(tiny_vit, precision=precision, compile=compile), "cuda")
    assert encoder.identity.precision == ("float16" if precision == "auto" else precision)
    ours, expected = encoder.encode(frames).astype(np.float32), reference(tiny_vit, frames)
    print(f"{precision}: {np.abs(ours - expected).max() / np.abs(expected).max():.1e}")
    assert np.abs(ours - expected).max() < tolerance * np.abs(expected).max()


def test_a_vector_does_not_depend_on_the_frames_beside_it(tiny_vit):  # noqa: F811
    encoder = load_encoder(tiny_vit, "cuda")
    frames = faces(*[(112, 112)] * 11)
    whole = encoder.encode(frames)
    for start, stop in ((0, 1), (3, 5), (4, 11), (0, 11)):
        assert np.array_equal(encoder.encode(frames[start:stop]), whole[start:stop])
    again = load_encoder(tiny_vit, "cuda").encode(frames)
    assert np.array_equal(again, whole)


def test_running_out_of_memory_halves_the_batch_and_goes_on(tiny_vit, caplog):  # noqa: F811
    frames = faces(*[(112, 112)] * 64)
    expected = load_encoder(replace(tiny_vit, batch_size=64), "cuda").encode(frames * 8)
    encoder = load_encoder(replace(tiny_vit, batch_size=8192), "cuda")
    torch.cuda.empty_cache()
    share = 2e9 / torch.cuda.get_device_properties(0).total_memory  # the input alone takes 4.9 GB
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        ours = encoder.encode(frames * 8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print(f"{encoder.batch_size} pictures fit")
    assert encoder.batch_size < 8192
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(ours.astype(np.float32), expected.astype(np.float32), rtol=0.02, atol=0.02)
