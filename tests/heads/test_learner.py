"""Heads in training: equal to a plain torch loop, to themselves in any batch, to many workers."""

import pytest
import torch
from torch import nn

from raffect.errors import RaffectError
from raffect.heads.learner import learning_rate
from raffect.heads.shared_samples import SharedSamples, share_of
from raffect.heads.shared_settings import require_shared_settings
from raffect.heads.workers import Workers
from raffect.recipe import PLAIN_ERM, OptimConfig, with_settings
from tests.helpers.several_workers import run_workers
from tests.helpers.small_heads import (
    TextbookSam,
    buffer_rows,
    is_bias_before_norm,
    make_learner,
    make_recipe,
    make_samples,
    run,
    spec_of,
    start_head,
    weights_of,
)
from tests.helpers.small_modules import AttentiveSpec, make_windows


def masks_of(learner, step):
    """Dropout's factors of the only head in both passes."""
    counter = torch.tensor(step, dtype=torch.int32)
    scales = (learner.noise.draw(counter, second=second) for second in (False, True))
    return [scale if scale is None else scale[0].clone() for scale in scales]


def steps_of(learner, recipe, samples):
    """Run an epoch; yields the number, samples and targets of each step after it."""
    learner.set_epoch(0)
    order = torch.from_numpy(learner._order(len(samples), 0)[0])
    for step, _ in enumerate(learner.run(samples, 0)):
        index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        yield step, samples.x[index].double(), samples.y[index]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sam__rho": 0.0, "loss__alpha": 1.0, "head__dropout": 0.0},
        {"sam__rho": 0.5, "head__dropout": 0.0},
        {"sam__independent_dropout": True, "sam__rho": 0.2},
        {"sam__rho": 0.5, "batch_size": 32},  # more samples than units: SAM's step is written out
        {"optim__name": "adamw", "optim__weight_decay": 0.1, "head__init": "torch"},
        {"optim__weight_decay": 0.1, "task": "au"},
        {"task": "au", "loss__alpha": 0.1, "head__depth": 1},
        {"task": "va", "loss__alpha": 0.4},
        {"task": "va", "loss__alpha": 1.0, "loss__name": "ccc", "sam__rho": 0.2},
        {"head__depth": 0, "sam__rho": 0.5, "batch_size": 8},
        {"head__depth": 0, "sam__rho": 0.5, "batch_size": 32},
        {"head__depth": 0, "sam__rho": 0.0, "loss__alpha": 1.0, "optim__weight_decay": 0.1},
        {"head__depth": 0, "task": "au", "head__init": "torch"},
    ],
    ids=str,
)
def test_a_batch_of_one_equals_a_plain_torch_loop_step_for_step(settings):
    settings = dict(settings)
    recipe = make_recipe(settings.pop("task", "expr"), **settings)
    samples, spec = make_samples(recipe.task), spec_of(recipe)
    learner, textbook = make_learner([recipe], samples), TextbookSam(recipe, start_head(recipe))
    # Adam makes full steps of the rounding noise that autograd leaves in biases before BatchNorm,
    # and weight decay then feeds on itself; ours stay 0.
    feeds = recipe.optim.weight_decay and recipe.optim.name == "adam"
    compared = ~is_bias_before_norm(spec) if feeds else slice(None)
    for step, x, y in steps_of(learner, recipe, samples):
        textbook.step(x, y, *masks_of(learner, step))
        ours, theirs = learner.heads.rows[0], weights_of(textbook.net, spec)
        assert torch.allclose(ours[compared], theirs[compared], rtol=0, atol=1e-8), f"step {step}"
    norms = [layer for layer in textbook.net if isinstance(layer, nn.BatchNorm1d)]
    assert len(norms) == recipe.head.depth
    for block, norm in enumerate(norms):
        name = f"layers.{4 * block + 1}.running"
        buffers = learner.heads.buffers
        if not feeds:  # those biases move the means
            assert torch.allclose(buffers[f"{name}_mean"][0], norm.running_mean, atol=1e-9)
        assert torch.allclose(buffers[f"{name}_var"][0], norm.running_var, atol=1e-9)


def test_eq_2_as_printed_equals_the_textbook_too():
    # sign(0) is 0 for biases before BatchNorm, whose gradient autograd leaves as noise of either
    # sign; compare the loss surface, not them.
    recipe = make_recipe(sam__perturbation="sign", sam__rho=0.01, head__dropout=0.0)
    samples, spec = make_samples(), spec_of(recipe)
    learner, textbook = make_learner([recipe], samples), TextbookSam(recipe, start_head(recipe))
    _, x, y = next(steps_of(learner, recipe, samples))
    textbook.step(x, y, None, None)
    kept = ~is_bias_before_norm(spec)
    ours, theirs = learner.heads.rows[0], weights_of(textbook.net, spec)
    assert torch.allclose(ours[kept], theirs[kept], atol=1e-8)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("task", ["expr", "au"])
def test_a_head_does_not_depend_on_its_batch(task, depth):
    names = ("seed", "loss__alpha", "sam__rho", "optim__lr", "head__dropout")
    values = ((0, 0.3, 0.05, 1e-3, 0.6), (0, 1.0, 0.0, 1e-2, 0.0), (3, 0.1, 0.5, 1e-3, 0.3))
    settings = [dict(zip(names, row, strict=True)) for row in values]
    recipes = [make_recipe(task, head__depth=depth, **own) for own in settings]
    others = {
        "loss.weighting": "inverse",
        "loss.logit_adjustment": 1.0,
        "optim.weight_decay": 0.01,
        "optim.schedule": "released",
    }
    recipes.append(with_settings(recipes[0], others))
    samples = make_samples(task)
    together = run(make_learner(recipes, samples, torch.float32), samples).heads
    for p, recipe in enumerate(recipes):
        alone = run(make_learner([recipe], samples, torch.float32), samples).heads
        assert torch.allclose(together.rows[p], alone.rows[0], rtol=1e-6, atol=1e-7), p
        for name, buffer in alone.buffers.items():
            assert torch.allclose(together.buffers[name][p], buffer[0], rtol=1e-6, atol=1e-7), p
    # And bit by bit in float64 here.
    first = [run(make_learner(part, samples), samples).heads for part in (recipes, recipes[:2])]
    assert torch.equal(first[0].rows[0], first[1].rows[0])


@pytest.mark.parametrize("settings", [{}, {"head__depth": 0}, {"sam__independent_dropout": True}])
@pytest.mark.parametrize("task", ["expr", "au"])
def test_erm_has_the_same_bytes_beside_sam_and_apart_at_half_of_the_passes(task, settings):
    samples = make_samples(task)
    sam = [make_recipe(task, seed=seed, sam__rho=0.5, **settings) for seed in (0, 1)]
    erm = [with_settings(recipe, PLAIN_ERM) for recipe in sam]
    trained = [make_learner(part, samples, torch.float32) for part in (sam + erm, sam, erm)]
    together, apart, alone = trained
    passes = [count_passes(learner, samples) for learner in trained]
    assert passes == [64, 64, 32]
    for p, learner in enumerate((apart, apart, alone, alone)):
        ours, theirs = together.heads.state(p), learner.heads.state(p % 2)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), p


def count_passes(learner, samples):
    """Forward passes of two epochs of training."""
    forward, calls = learner.heads.forward, []

    def counted(*args, **options):
        calls.append(1)
        return forward(*args, **options)

    learner.heads.forward = counted
    run(learner, samples)
    return len(calls)


def test_heads_of_one_seed_share_batches_and_masks():
    rates = ((0.3, 0.6), (1.0, 0.6), (1.0, 0.2))
    recipes = [make_recipe(loss__alpha=alpha, head__dropout=rate) for alpha, rate in rates]
    learner = make_learner([*recipes, make_recipe(seed=1)], make_samples())
    masks = learner.noise.draw(torch.tensor(4, dtype=torch.int32), second=False)
    assert torch.equal(masks[0], masks[1])
    # What the lower rate drops, the higher one drops as well.
    assert ((masks[2] > 0) | (masks[0] == 0)).all()
    assert not torch.equal(masks[0], masks[3])


@pytest.mark.parametrize("depth", [0, 2])
def test_alpha_one_without_sam_is_plain_adam_on_the_mean(depth):
    recipe = make_recipe(loss__alpha=1.0, sam__rho=0.0, head__dropout=0.0, head__depth=depth)
    samples = make_samples()
    learner = make_learner([recipe], samples)
    net = nn.Sequential(*start_head(recipe).layers).double().train()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _, x, y in steps_of(learner, recipe, samples):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    assert torch.allclose(learner.heads.rows[0], weights_of(net, spec_of(recipe)), atol=1e-8)


def test_the_second_pass_moves_no_buffers():
    samples = make_samples()
    recipes = [make_recipe(sam__rho=rho, head__dropout=0.0) for rho in (0.7, 0.0)]
    with_sam, without = (make_learner([recipe], samples) for recipe in recipes)
    for learner in (with_sam, without):
        learner.set_epoch(0)
        next(iter(learner.run(samples, 0)))
    assert torch.equal(buffer_rows(with_sam.heads), buffer_rows(without.heads))
    assert not torch.equal(with_sam.heads.rows, without.heads.rows)


def test_training_on_normalised_features_equals_normalising_in_the_head():
    samples = make_samples()
    exact = make_learner([make_recipe(head__normalise="l2")], samples)
    normal = nn.functional.normalize(samples.x.double(), dim=-1)
    given = type(samples)(normal, samples.y, samples.video, samples.num_videos)
    plain = make_learner([make_recipe()], given)
    for learner, those in ((exact, samples), (plain, given)):
        run(learner, those)
    assert torch.equal(exact.heads.rows, plain.heads.rows)
    assert torch.equal(buffer_rows(exact.heads), buffer_rows(plain.heads))
    other = run(make_learner([make_recipe()], samples), samples)
    assert not torch.equal(plain.heads.rows, other.heads.rows)


@pytest.mark.parametrize("epochs", range(1, 65))
@pytest.mark.parametrize(("schedule", "share"), [("cosine", 1), ("released", 4)])
def test_rates_are_torchs_cosine_whatever_the_number_of_epochs(schedule, share, epochs):
    config = OptimConfig(lr=1e-3, min_lr=1e-5, schedule=schedule)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    # As the released code has it: a float where 4 does not divide the epochs.
    period: int = epochs / share  # ty: ignore[invalid-assignment]
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period, eta_min=1e-5)
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(config, epoch, epochs) == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        cosine.step()


def test_the_cosine_falls_and_the_released_schedule_rises_again():
    for schedule, falls in (("cosine", True), ("released", False)):
        config = OptimConfig(schedule=schedule)
        rates = [learning_rate(config, epoch, 32) for epoch in range(32)]
        assert (rates == sorted(rates, reverse=True)) == falls


@pytest.mark.parametrize("lowest", [0.0, 5e-5])
def test_emoclips_rate_is_torchs_in_steps_but_never_below_the_lowest(lowest):
    config = OptimConfig(lr=1e-2, min_lr=lowest, schedule="emoclip-released")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [15, 35, 50], gamma=0.1)
    for epoch in range(60):
        expected = max(lowest, optimizer.param_groups[0]["lr"])
        assert learning_rate(config, epoch, 60) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        steps.step()


def test_a_constant_rate_is_constant():
    config = OptimConfig(schedule="constant")
    assert {learning_rate(config, epoch, 32) for epoch in range(32)} == {1e-3}


@pytest.mark.parametrize("setting", [{"head__width": 8}, {"head__normalise": "l2"}])
def test_heads_that_cannot_share_a_batch_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"differ in {name.replace('__', '.')}"):
        require_shared_settings([make_recipe(), make_recipe(**setting)])


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_resume_is_bit_identical(task):
    recipes = [make_recipe(task, seed=s, loss__alpha=a) for s, a in ((0, 0.3), (1, 1.0))]
    samples = make_samples(task)
    straight = run(make_learner(recipes, samples, torch.float32), samples, 3)
    first = run(make_learner(recipes, samples, torch.float32), samples, 1)
    second = make_learner(recipes, samples, torch.float32)
    second.load_state(first.state())
    for epoch in (1, 2):
        second.set_epoch(epoch)
        for _ in second.run(samples, epoch):
            pass
    found = second.state()
    assert all(torch.equal(tensor, found[name]) for name, tensor in straight.state().items())


def test_resuming_without_adams_moments_would_be_noticed():
    samples, recipe = make_samples(), make_recipe()
    straight = run(make_learner([recipe], samples), samples, 2)
    state = run(make_learner([recipe], samples), samples, 1).state()
    moments = ("exp_avg", "exp_avg_sq", "step")
    naive = make_learner([recipe], samples)
    naive.load_state(state | {name: torch.zeros_like(state[name]) for name in moments})
    naive.set_epoch(1)
    for _ in naive.run(samples, 1):
        pass
    assert not torch.equal(straight.heads.rows, naive.heads.rows)


CASES = [
    ("expr", torch.float64, {}, 1e-9),
    ("expr", torch.float64, {"head__depth": 0, "head__normalise": "l2"}, 1e-9),
    ("au", torch.float64, {}, 1e-9),
    ("au", torch.float64, {"loss__tail_over": "frames"}, 1e-9),
    ("expr", torch.float32, {}, 1e-4),
    ("va", torch.float64, {}, 1e-9),
    ("va", torch.float64, {"loss__name": "ccc"}, 1e-9),
    (AttentiveSpec(), torch.float64, {"optim__name": "sgd", "optim__lr": 0.1}, 1e-9),
    (AttentiveSpec(), torch.float32, {"sam__independent_dropout": True}, 1e-4),
    ("captions", torch.float64, {"loss__order": 0.3}, 1e-9),
    ("captions", torch.float32, {}, 1e-5),
    ("captions", torch.float64, {"loss__leave_out": "Joy", "loss__soft_targets": 0.1}, 1e-9),
]


def result_of(number, workers=None, shared=False):
    """Tensors after training the heads of a case; features may lie with all workers together."""
    task, dtype, settings, _ = CASES[number]
    # A module on windows, with dropout, uniform numbers and a temperature.
    spec, task = (None, task) if isinstance(task, str) else (task, "expr")
    values = ((0, 0.3, 0.05), (1, 0.55, 0.5), (1, 1.0, 0.0))
    if settings.get("loss__name") == "ccc":
        values = ((0, 1.0, 0.05), (1, 1.0, 0.0))
    recipes = []
    for seed, alpha, rho in values:
        own = {"seed": seed, "loss__alpha": alpha, "sam__rho": rho}
        recipes.append(make_recipe(task, **own, **settings))
    samples = make_windows() if spec else make_samples(task)
    learner = make_learner(recipes, samples, dtype, workers, spec)
    if shared:
        part = share_of(len(samples), workers)
        samples = SharedSamples(samples.x[part].clone(), part.start, samples.y, workers)
    run(learner, samples)
    return {"rows": learner.heads.rows, "loss": learner.loss_sum, **learner.heads.buffers}


def _worker(rank, folder):
    for number in range(len(CASES)):
        result = result_of(number, Workers.current())
        if rank == 0:
            torch.save(result, folder / f"{number}.pt")
        if number == 0:
            shared = result_of(number, Workers.current(), shared=True)
            same = all(torch.equal(shared[name], tensor) for name, tensor in result.items())
            (folder / f"shared-{rank}").write_text(str(same))
    try:
        Workers.current().require_same(7 - (rank == 1), "epochs", torch.device("cpu"))
    except RaffectError as error:
        (folder / f"refused-{rank}").write_text(str(error))
    Workers.current().require_same(7, "epochs", torch.device("cpu"))


@pytest.mark.cluster
def test_four_workers_together_give_the_result_of_one(tmp_path):
    run_workers(_worker, 4, tmp_path)
    refused = {(tmp_path / f"refused-{rank}").read_text().partition(";")[0] for rank in range(4)}
    assert refused == {"workers see different epochs: 7, 6, 7, 7"}
    # Features of which each worker holds a part give the same bits as a copy for each
    assert [(tmp_path / f"shared-{rank}").read_text() for rank in range(4)] == ["True"] * 4
    for number, (*case, tolerance) in enumerate(CASES):
        many, one = torch.load(tmp_path / f"{number}.pt", weights_only=True), result_of(number)
        assert many.keys() == one.keys()
        for name, expected in one.items():
            largest = (many[name] - expected).abs().max() / max(1.0, expected.abs().max().item())
            print(f"{case} {name}: largest difference {largest:.1e}")
            assert largest <= tolerance


@pytest.mark.cluster
@pytest.mark.parametrize(
    "settings", [{}, {"sam__independent_dropout": True, "sam__rho": 0.2}], ids=str
)
def test_fused_steps_agree_with_plain_ones(settings):
    recipes, samples = [make_recipe(seed=seed, **settings) for seed in (0, 1)], make_samples()
    plain, fused = (make_learner(recipes, samples) for _ in range(2))
    fused.fuse()
    rows = [run(learner, samples).heads.rows for learner in (plain, fused)]
    assert torch.allclose(*rows, rtol=0, atol=1e-12)


def test_shared_samples_of_one_worker_are_all_samples_bit_by_bit():
    samples, workers = make_samples(), Workers()
    samples.x[0, :2] = torch.tensor([-0.0, float("nan")])
    shared = SharedSamples(samples.x, 0, samples.y, workers)
    index = torch.tensor([[0, 3, 3], [len(samples) - 1, 0, 1]])
    for found, expected in zip(
        shared.take_share(index, slice(1, 3)), samples.take(index[:, 1:]), strict=True
    ):
        assert found.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize(("num_samples", "size"), [(10, 3), (2, 4), (7, 7), (1000, 1)])
def test_shares_of_workers_are_all_samples_in_order(num_samples, size):
    parts = [range(num_samples)[share_of(num_samples, Workers(k, size))] for k in range(size)]
    assert [number for part in parts for number in part] == list(range(num_samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
