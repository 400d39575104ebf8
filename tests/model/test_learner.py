"""Packs: equal to a plain torch loop, to themselves in any other pack, and to many workers."""

import copy
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from raffect.data.affwild2 import AU, EXPR, VA
from raffect.errors import RaffectError
from raffect.model.head import Head, build_head, member_state
from raffect.model.kinds import loss_kind
from raffect.model.learner import Learner, Rows, learning_rate, require_one_pack
from raffect.model.losses import cvar, sigmoid_losses, softmax_losses
from raffect.model.pack import Layout, Pack, fold, predict
from raffect.model.workers import Workers
from raffect.recipe import OptimConfig, Recipe, with_settings

CPU = torch.device("cpu")
DIM, ROWS = 12, 256
TASKS = {task.name: task for task in (EXPR, AU, VA)}


def make_rows(task="expr", seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, DIM)).astype(np.float16)
    if task == "expr":
        y = rng.integers(0, 8, rows)
        x[np.arange(rows), y] += 2
    elif task == "va":
        y = (x[:, :2] / 3 + rng.normal(size=(rows, 2)) / 9).astype(np.float32)
        y[rng.random(y.shape) < 0.2] = np.nan
    else:
        y = (x > 0).astype(np.int8)
        y[rng.random(y.shape) < 0.2] = -1
    return Rows(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(rows, dtype=torch.int64), 1)


def make_recipe(task="expr", **settings):
    base = {"head.width": 16, "head.depth": 2, "batch_size": 16, "epochs": 2}
    return with_settings(Recipe(task=task), base | {name.replace("__", "."): value for name, value in settings.items()})


def layout_of(recipe):
    return Layout(DIM, recipe.head.width, recipe.head.depth, len(TASKS[recipe.task].outputs))


def make_learner(recipes, rows, dtype=torch.float64, workers=None):
    return Learner(recipes, layout_of(recipes[0]), loss_kind(TASKS[recipes[0].task]).count_prior(rows.y.numpy()), CPU, dtype, workers)


def run(learner, rows, epochs=2):
    for epoch in range(epochs):
        learner.set_epoch(epoch)
        for _ in learner.run_resident(rows, epoch):
            pass
    return learner


class Mask(nn.Module):
    """Dropout with factors from outside."""

    def forward(self, x):
        return x if self.scale is None else x * self.scale


def textbook_ccc(one, other):
    covariance = ((one - one.mean()) * (other - other.mean())).mean()
    return 2 * covariance / (one.var(correction=0) + other.var(correction=0) + (one.mean() - other.mean()) ** 2)


class TextbookSam:
    """The loop that the paper describes, with torch's own parts, one head at a time."""

    def __init__(self, recipe, start):
        self.recipe = recipe
        layers = [layer if not isinstance(layer, nn.Dropout) else Mask() for layer in copy.deepcopy(start.layers)]
        self.net = nn.Sequential(*layers).double().train()
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optim.name]
        self.optimizer = kind(self.net.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)

    def loss(self, x, y, scale):
        for k, layer in enumerate(layer for layer in self.net if isinstance(layer, Mask)):
            width = self.recipe.head.width
            layer.scale = None if scale is None else scale[:, k * width : (k + 1) * width]
        logits, alpha = self.net(x)[None], torch.tensor([self.recipe.loss.alpha], dtype=torch.float64)
        if self.recipe.task == "expr":
            return cvar(softmax_losses(logits, y[None]), alpha).sum()
        if self.recipe.loss.name == "ccc":
            return 1 - torch.stack([textbook_ccc(logits[0, y[:, k].isfinite(), k], y[y[:, k].isfinite(), k].double()) for k in range(2)]).mean()
        if self.recipe.task == "va":
            known = y.isfinite()
            frames = torch.stack([((logits[0, i] - y[i].double())[known[i]] ** 2).mean() for i in range(len(y)) if known[i].any()])
            return cvar(frames[None], alpha).sum()
        return cvar(sigmoid_losses(logits, y[None]).flatten(1), alpha, (y >= 0).flatten()[None]).sum()

    def step(self, x, y, scale, second_scale):
        self.optimizer.zero_grad()
        self.loss(x, y, scale).backward()
        rho = self.recipe.sam.rho
        if rho:
            params = list(self.net.parameters())
            norm = torch.stack([p.grad.norm() for p in params]).norm()
            moves = [rho * (p.grad.sign() if self.recipe.sam.perturbation == "sign" else p.grad / (norm + 1e-12)) for p in params]
            norms = [layer for layer in self.net if isinstance(layer, nn.BatchNorm1d)]
            with torch.no_grad():
                for p, move in zip(params, moves, strict=True):
                    p += move
            for layer in norms:
                layer.momentum = 0.0
            self.optimizer.zero_grad()
            self.loss(x, y, second_scale).backward()
            for layer in norms:
                layer.momentum = 0.1
            with torch.no_grad():
                for p, move in zip(params, moves, strict=True):
                    p -= move
        self.optimizer.step()


def start_head(recipe):
    layout = layout_of(recipe)
    pack = Pack(layout, [recipe.seed], [recipe.head.init], CPU, torch.float64)
    return build_head(layout, member_state(layout, pack.weights[0], pack.running_mean[0], pack.running_var[0]))


def is_bias_before_norm(layout):
    names = {f"layers.{4 * block}.bias" for block in range(layout.depth)}
    return torch.cat([torch.full((int(np.prod(shape)),), name in names) for name, shape in layout.tensors])


def weights_of(net, layout):
    state = {f"layers.{name}": value for name, value in net.state_dict().items()}
    return torch.cat([state[name].flatten() for name, _ in layout.tensors])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sam__rho": 0.0, "loss__alpha": 1.0, "head__dropout": 0.0},
        {"sam__rho": 0.5, "head__dropout": 0.0},
        {"sam__redraw_dropout": True, "sam__rho": 0.2},
        {"sam__rho": 0.5, "batch_size": 32},  # more frames than units: SAM's step is written out
        {"optim__name": "adamw", "optim__weight_decay": 0.1, "head__init": "torch"},
        {"optim__weight_decay": 0.1, "task": "au"},
        {"task": "au", "loss__alpha": 0.1, "head__depth": 1},
        {"task": "va", "loss__alpha": 0.4},
        {"task": "va", "loss__alpha": 1.0, "loss__name": "ccc", "sam__rho": 0.2},
    ],
    ids=str,
)
def test_a_pack_of_one_equals_a_plain_torch_loop_step_for_step(settings):
    settings = dict(settings)
    recipe = make_recipe(settings.pop("task", "expr"), **settings)
    rows = make_rows(recipe.task)
    learner, textbook = make_learner([recipe], rows), TextbookSam(recipe, start_head(recipe))
    learner.set_epoch(0)
    order = learner._order(len(rows), 0)[0]
    for step, _ in enumerate(learner.run_resident(rows, 0)):
        index = torch.from_numpy(order[step * recipe.batch_size : (step + 1) * recipe.batch_size])
        counter = torch.tensor(step, dtype=torch.int32)
        first, second = (scale if scale is None else scale[0].clone() for scale in (learner.dropout.draw(counter, second=k) for k in (False, True)))
        textbook.step(rows.x[index].double(), rows.y[index], first, second)
        ours, theirs = learner.pack.weights[0], weights_of(textbook.net, layout_of(recipe))
        if recipe.optim.weight_decay and recipe.optim.name == "adam":
            # Adam makes full steps of the rounding noise that autograd leaves in these, and weight decay then feeds on itself; ours stay 0.
            ours, theirs = (row[~is_bias_before_norm(layout_of(recipe))] for row in (ours, theirs))
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-8), f"step {step}"
    means = torch.stack([layer.running_mean for layer in textbook.net if isinstance(layer, nn.BatchNorm1d)])
    variances = torch.stack([layer.running_var for layer in textbook.net if isinstance(layer, nn.BatchNorm1d)])
    if not (recipe.optim.weight_decay and recipe.optim.name == "adam"):  # those biases move the means
        assert torch.allclose(learner.pack.running_mean[0], means, atol=1e-9)
    assert torch.allclose(learner.pack.running_var[0], variances, atol=1e-9)


def test_eq_2_as_printed_equals_the_textbook_too():
    # sign(0) is 0 for biases before BatchNorm, whose gradient autograd leaves as noise of either sign; compare the loss surface, not them.
    recipe = make_recipe(sam__perturbation="sign", sam__rho=0.01, head__dropout=0.0)
    rows = make_rows()
    learner, textbook = make_learner([recipe], rows), TextbookSam(recipe, start_head(recipe))
    learner.set_epoch(0)
    order = learner._order(len(rows), 0)[0]
    next(iter(learner.run_resident(rows, 0)))
    index = torch.from_numpy(order[:16])
    textbook.step(rows.x[index].double(), rows.y[index], None, None)
    ours, theirs = learner.pack.weights[0], weights_of(textbook.net, layout_of(recipe))
    kept = ~is_bias_before_norm(layout_of(recipe))
    assert torch.allclose(ours[kept], theirs[kept], atol=1e-8)


@pytest.mark.parametrize("task", ["expr", "au"])
def test_a_member_does_not_depend_on_its_pack(task):
    recipes = [
        make_recipe(task, seed=s, loss__alpha=a, sam__rho=r, optim__lr=lr, head__dropout=d)
        for s, a, r, lr, d in ((0, 0.3, 0.05, 1e-3, 0.6), (0, 1.0, 0.0, 1e-2, 0.0), (3, 0.1, 0.5, 1e-3, 0.3))
    ]
    recipes.append(with_settings(recipes[0], {"loss.weighting": "inverse", "loss.logit_adjustment": 1.0, "optim.weight_decay": 0.01, "optim.schedule": "released"}))
    rows = make_rows(task)
    together = run(make_learner(recipes, rows, torch.float32), rows)
    for p, recipe in enumerate(recipes):
        alone = run(make_learner([recipe], rows, torch.float32), rows)
        assert torch.allclose(together.pack.weights[p], alone.pack.weights[0], rtol=1e-6, atol=1e-7), p
        assert torch.allclose(together.pack.running_var[p], alone.pack.running_var[0], rtol=1e-6), p
    assert torch.equal(*(run(make_learner(part, rows), rows).pack.weights[0] for part in (recipes, recipes[:2])))  # and bit by bit in float64 here


def test_members_of_one_seed_share_batches_and_masks():
    recipes = [make_recipe(loss__alpha=alpha, head__dropout=rate) for alpha, rate in ((0.3, 0.6), (1.0, 0.6), (1.0, 0.2))] + [make_recipe(seed=1)]
    learner = make_learner(recipes, make_rows())
    masks = learner.dropout.draw(torch.tensor(4, dtype=torch.int32), second=False)
    assert torch.equal(masks[0], masks[1])
    assert ((masks[2] > 0) | (masks[0] == 0)).all()  # what the lower rate drops, the higher one drops as well
    assert not torch.equal(masks[0], masks[3])


def test_alpha_one_without_sam_is_plain_adam_on_the_mean():
    recipe = make_recipe(loss__alpha=1.0, sam__rho=0.0, head__dropout=0.0)
    rows = make_rows()
    learner = make_learner([recipe], rows)
    learner.set_epoch(0)
    net = nn.Sequential(*start_head(recipe).layers).double().train()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    order = learner._order(len(rows), 0)[0]
    for step, _ in enumerate(learner.run_resident(rows, 0)):
        index = torch.from_numpy(order[step * recipe.batch_size : (step + 1) * recipe.batch_size])
        adam.zero_grad()
        nn.functional.cross_entropy(net(rows.x[index].double()), rows.y[index]).backward()
        adam.step()
    assert torch.allclose(learner.pack.weights[0], weights_of(net, layout_of(recipe)), atol=1e-8)


def test_the_second_pass_moves_no_running_statistics():
    rows = make_rows()
    with_sam, without = (make_learner([make_recipe(sam__rho=rho, head__dropout=0.0)], rows) for rho in (0.7, 0.0))
    for learner in (with_sam, without):
        learner.set_epoch(0)
        next(iter(learner.run_resident(rows, 0)))
    assert torch.equal(with_sam.pack.running_mean, without.pack.running_mean)
    assert not torch.equal(with_sam.pack.weights, without.pack.weights)


def test_backward_agrees_with_autograd():
    layout = Layout(DIM, 16, 3, 8)
    pack = Pack(layout, [0, 1], ["he", "torch"], CPU, torch.float64)
    x, upstream = torch.randn(2, 9, DIM, dtype=torch.float64), torch.randn(2, 9, 8, dtype=torch.float64)
    scale = (torch.rand(2, 9, 48) > 0.4).double() / 0.6
    pack.weights.add_(torch.randn_like(pack.weights) * 0.1)
    pack.forward(pack.at_weights, x, scale, update_running=False)
    pack.backward(pack.at_weights, upstream)
    for p in range(2):
        head = build_head(layout, member_state(layout, pack.weights[p], pack.running_mean[p], pack.running_var[p])).double().train()
        hidden = x[p]
        for block in range(3):
            hidden = head.layers[4 * block + 2](head.layers[4 * block + 1](head.layers[4 * block](hidden))) * scale[p, :, 16 * block : 16 * (block + 1)]
        head.layers[12](hidden).backward(upstream[p])
        expected = torch.cat([dict(head.named_parameters())[name].grad.flatten() for name, _ in layout.tensors])
        assert torch.allclose(pack.gradient[p], expected, atol=1e-12)


def test_folded_layers_predict_what_the_head_does():
    layout = Layout(DIM, 16, 2, 8)
    pack = Pack(layout, [0, 1], ["he", "he"], CPU, torch.float64)
    for _ in range(3):
        pack.forward(pack.at_weights, torch.randn(2, 20, DIM, dtype=torch.float64), None, update_running=True)
    x = torch.randn(7, DIM, dtype=torch.float64)
    found = predict(fold(layout, pack.weights, pack.running_mean, pack.running_var), x)
    for p in range(2):
        head = build_head(layout, member_state(layout, pack.weights[p], pack.running_mean[p], pack.running_var[p])).double()
        assert torch.allclose(found[p], head(x), atol=1e-12)


def test_the_papers_heads_have_its_number_of_weights():
    assert Layout(768, 768, 3, 8).num_weights == sum(p.numel() for p in Head(Layout(768, 768, 3, 8)).parameters()) == 1_782_536
    assert Layout(768, 768, 3, 12).num_weights == 1_785_612


def test_he_weights_have_hes_spread_and_zero_biases():
    layout = Layout(200, 300, 1, 8)
    views = layout.views(Pack(layout, [5], ["he"], CPU).weights)
    assert views["layers.0.weight"].std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert (views["layers.0.bias"] == 0).all()
    assert (views["layers.1.weight"] == 1).all()


@pytest.mark.parametrize("epochs", range(1, 65))
@pytest.mark.parametrize(("schedule", "share"), [("cosine", 1), ("released", 4)])
def test_rates_are_torchs_cosine_whatever_the_number_of_epochs(schedule, share, epochs):
    config = OptimConfig(lr=1e-3, min_lr=1e-5, schedule=schedule)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    # As the released code has it: a float where 4 does not divide the epochs.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs / share, eta_min=1e-5)  # ty: ignore[invalid-argument-type]
    for epoch in range(epochs):
        assert learning_rate(config, epoch, epochs) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_the_cosine_falls_and_the_released_schedule_rises_again():
    for schedule, falls in (("cosine", True), ("released", False)):
        rates = [learning_rate(OptimConfig(schedule=schedule), epoch, 32) for epoch in range(32)]
        assert (rates == sorted(rates, reverse=True)) == falls


def test_a_constant_rate_is_constant():
    assert {learning_rate(OptimConfig(schedule="constant"), epoch, 32) for epoch in range(32)} == {1e-3}


def test_members_that_cannot_share_a_pack_are_refused():
    with pytest.raises(ValueError, match="differ in head.width"):
        require_one_pack([make_recipe(), make_recipe(head__width=8)])


@pytest.mark.parametrize("task", ["expr", "au", "va"])
def test_resume_is_bit_identical(task):
    recipes = [make_recipe(task, seed=s, loss__alpha=a) for s, a in ((0, 0.3), (1, 1.0))]
    rows = make_rows(task)
    straight = run(make_learner(recipes, rows, torch.float32), rows, 3)
    first = run(make_learner(recipes, rows, torch.float32), rows, 1)
    second = make_learner(recipes, rows, torch.float32)
    second.load_state(first.state())
    for epoch in (1, 2):
        second.set_epoch(epoch)
        for _ in second.run_resident(rows, epoch):
            pass
    assert all(torch.equal(straight.state()[name], second.state()[name]) for name in straight.state())


def test_resuming_without_adams_moments_would_be_noticed():
    rows, recipe = make_rows(), make_recipe()
    straight = run(make_learner([recipe], rows), rows, 2)
    state = run(make_learner([recipe], rows), rows, 1).state()
    naive = make_learner([recipe], rows)
    naive.load_state(state | {name: torch.zeros_like(state[name]) for name in ("exp_avg", "exp_avg_sq", "step")})
    naive.set_epoch(1)
    for _ in naive.run_resident(rows, 1):
        pass
    assert not torch.equal(straight.pack.weights, naive.pack.weights)


CASES = [
    ("expr", torch.float64, "element", 1e-9),
    ("au", torch.float64, "element", 1e-9),
    ("au", torch.float64, "sample", 1e-9),
    ("expr", torch.float32, "element", 1e-4),
    ("va", torch.float64, "element", 1e-9),
    ("va", torch.float64, "ccc", 1e-9),
]


def _worker(rank, size, port, folder):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    for number, (task, dtype, granularity, _) in enumerate(CASES):
        recipes, rows = worker_setup(task, granularity)
        learner = run(make_learner(recipes, rows, dtype, Workers.current()), rows)
        if rank == 0:
            torch.save({"weights": learner.pack.weights, "mean": learner.pack.running_mean, "var": learner.pack.running_var, "loss": learner.loss_sum}, folder / f"{number}.pt")
    try:
        Workers.current().require_same(7 - (rank == 1), "epochs", torch.device("cpu"))
    except RaffectError as error:
        (folder / f"refused-{rank}").write_text(str(error))
    Workers.current().require_same(7, "epochs", torch.device("cpu"))
    torch.distributed.destroy_process_group()


def worker_setup(task, granularity):
    if granularity == "ccc":
        return [make_recipe(task, seed=s, loss__alpha=1.0, sam__rho=r, loss__name="ccc") for s, r in ((0, 0.05), (1, 0.0))], make_rows(task)
    recipes = [make_recipe(task, seed=s, loss__alpha=a, sam__rho=r, loss__granularity=granularity) for s, a, r in ((0, 0.3, 0.05), (1, 0.55, 0.5), (1, 1.0, 0.0))]
    return recipes, make_rows(task)


def test_four_workers_together_give_the_result_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (4, port, tmp_path), nprocs=4)
    assert {(tmp_path / f"refused-{rank}").read_text().partition(";")[0] for rank in range(4)} == {"workers see different epochs: 7, 6, 7, 7"}
    for number, (task, dtype, granularity, tolerance) in enumerate(CASES):
        many, (recipes, rows) = torch.load(tmp_path / f"{number}.pt", weights_only=True), worker_setup(task, granularity)
        one = run(make_learner(recipes, rows, dtype), rows)
        for name, expected in (("weights", one.pack.weights), ("mean", one.pack.running_mean), ("var", one.pack.running_var), ("loss", one.loss_sum)):
            largest = (many[name] - expected).abs().max().item() / max(1.0, expected.abs().max().item())
            print(f"{task} {dtype} {granularity} {name}: largest difference {largest:.1e}")
            assert largest <= tolerance
