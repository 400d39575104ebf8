"""Every kind of module in training: as plain autograd has it, alone as in a batch, stopped or not,
by one worker or two.

`test_prompts.py` has the same of learnt prompts, which one worker learns.
"""

import math

import pytest
import torch
from torch import nn

from raffect.heads.fit import fit
from raffect.heads.workers import Workers
from tests.helpers.several_workers import run_workers
from tests.helpers.small_heads import (
    Killed,
    kill_after,
    make_job,
    make_learner,
    make_recipe,
    make_samples,
    make_vectors,
    run,
    spec_of,
    textbook_cvar,
)
from tests.helpers.small_modules import WINDOW, make_windows
from tests.helpers.textbook import captions_loss, plain_step, seen

SGD = {"optim__name": "sgd", "optim__momentum": 0.9, "optim__weight_decay": 5e-4}
SGD |= {"optim__lr": 0.02, "head__dropout": 0.0, "head__snippets": 0}
KINDS = {
    "temporal": {"head__snippets": 0, "loss__soft_targets": 0.1},
    "snippets": {"loss__order": 0.0},
    "order of snippets": {"loss__order": 0.3, "sam__independent_dropout": False},
    "classes": {
        "task": "expr",
        "head__kind": "temporal",
        "head__width": 8,
        "head__attention_heads": 2,
        "head__window": WINDOW,
        "head__pool": "centre",
        "head__dropout": 0.2,
    },
    "order and classes": {
        "task": "expr",
        "head__kind": "temporal",
        "head__width": 8,
        "head__layers": 1,
        "head__attention_heads": 1,
        "head__window": WINDOW,
        "head__snippets": WINDOW,
        "loss__order": 0.2,
    },
    "emoclip-released": SGD | {"head__kind": "emoclip-released", "head__attention_heads": 1},
    "projection": SGD | {"head__kind": "projection", "head__init": "torch"},
    "pooled": {"head__kind": "pooled", "head__snippets": 0},
}
EACH_KIND = pytest.mark.parametrize("name", KINDS)


def make_recipes(name, **more):
    """Three heads of a kind that differ in all that heads of one batch may differ in."""
    settings = {"optim__name": "adamw", "optim__lr": 0.01} | KINDS[name] | more
    task = settings.pop("task", "captions")
    own = [
        {"seed": 0, "loss__alpha": 0.3, "sam__rho": 0.05},
        {"seed": 1, "loss__alpha": 1.0, "sam__rho": 0.0},
        {"seed": 1, "loss__alpha": 0.5, "sam__rho": 0.3},
    ]
    if task == "captions":
        own[2] |= {"loss__leave_out": "Joy"}
    return [make_recipe(task, **settings | each) for each in own]


def samples_of(name, seed=0, rows=48):
    """Windows with gaps, for heads of a kind."""
    if "task" in KINDS[name]:
        return make_windows(KINDS[name]["task"], seed, rows)
    samples = make_samples("captions", seed, rows)
    samples.x[::7, 3] = math.nan
    samples.x[5] = math.nan
    return samples


def jobs_of(name, recipes, **options):
    windows = {"train": samples_of(name), "validation": samples_of(name, seed=9, rows=32)}
    return make_job(recipes, **windows, **options)


@EACH_KIND
def test_steps_are_those_of_plain_autograd_and_torch_optim(name):
    recipes, samples = make_recipes(name), samples_of(name)
    spec = spec_of(recipes[0])
    learner = make_learner(recipes, samples, spec=spec)
    modules = [spec.build_module(learner.heads.state(p)) for p in range(3)]
    optimizers = [optimizer_of(*pair) for pair in zip(recipes, modules, strict=True)]
    begin = learner.heads.rows.clone()
    learner.set_epoch(0)
    order = torch.from_numpy(learner._order(len(samples), 0))
    for step, _ in enumerate(learner.run(samples, 0)):
        noise = learner.noise.draw(torch.tensor(step, dtype=torch.int32), second=False)
        for p, (recipe, module) in enumerate(zip(recipes, modules, strict=True)):
            seeds = sorted({recipe.seed for recipe in recipes})
            own = order[seeds.index(recipe.seed), step * 16 : (step + 1) * 16]
            x, y = samples.take(own)
            mask = None if noise is None else noise[p].clone()

            def loss(module=module, x=x, y=y, mask=mask, recipe=recipe):
                return loss_of(module(x.double(), mask, training=True), y, recipe)

            plain_step(optimizers[p], loss, recipe.sam.rho)
            named = dict(module.named_parameters())
            expected = torch.cat([named[key].detach().flatten() for key in spec.weights])
            found = learner.heads.rows[p]
            assert torch.allclose(found, expected, rtol=0, atol=1e-9), (step, p)
    assert step == 2
    # Every weight has learnt, the scale of logits among them where a kind has one.
    moved = spec.views(learner.heads.rows - begin)
    assert all((change.abs() > 1e-9).any() for change in moved.values()), moved.keys()


def optimizer_of(recipe, module):
    optim, parameters = recipe.optim, module.parameters()
    options = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, momentum=optim.momentum, **options)
    return torch.optim.AdamW(parameters, **options)


def loss_of(outputs, y, recipe):
    """What a head minimises of a batch; its own losses stand behind its outputs."""
    keep = torch.ones(len(y), dtype=torch.bool)
    penalty = 0.0
    if recipe.loss.order:
        outputs, own = outputs[:, :-1], outputs[:, -1]
        keep = seen(y, recipe) if recipe.task == "captions" else keep
        penalty = recipe.loss.order * own[keep].mean()
    if recipe.task == "captions":
        return captions_loss(outputs, y, make_vectors(), recipe) + penalty
    losses = nn.functional.cross_entropy(outputs, y, reduction="none")
    return textbook_cvar(losses, recipe.loss.alpha) + penalty


@EACH_KIND
def test_trained_by_fit_a_head_has_the_bytes_that_it_has_alone(name):
    recipes = make_recipes(name)
    together = fit(jobs_of(name, recipes))
    for p, recipe in enumerate(recipes):
        alone = fit(jobs_of(name, [recipe]))
        for kept, snapshot in alone.snapshots.items():
            assert torch.equal(together.snapshots[kept].rows[p], snapshot.rows[0]), (kept, p)
            assert together.snapshots[kept].epoch[p] == snapshot.epoch[0]
        for ours, theirs in zip(together.history, alone.history, strict=True):
            lists = {key: value for key, value in theirs.items() if isinstance(value, list)}
            assert {key: ours[key][p] for key in lists} == {key: lists[key][0] for key in lists}


@EACH_KIND
def test_going_on_after_a_kill_is_bit_identical_to_never_having_stopped(name, tmp_path):
    recipes = make_recipes(name, epochs=2)
    saved = {"state_path": tmp_path / "state", "save_every_s": 0}
    with pytest.raises(Killed):
        fit(jobs_of(name, recipes, **saved), on_epoch=kill_after(1))
    resumed, straight = fit(jobs_of(name, recipes, **saved)), fit(jobs_of(name, recipes))
    for kept, snapshot in straight.snapshots.items():
        assert torch.equal(resumed.snapshots[kept].rows, snapshot.rows), kept
    losses = [[entry["train_loss"] for entry in one.history] for one in (straight, resumed)]
    assert losses[0] == losses[1]


def train_together(name, workers=None):
    recipes, samples = make_recipes(name), samples_of(name)
    learner = make_learner(recipes, samples, workers=workers)
    return run(learner, samples, epochs=1).heads.rows


def _worker(rank, folder):
    for number, name in enumerate(KINDS):
        rows = train_together(name, Workers.current())
        if rank == 0:
            torch.save(rows, folder / f"{number}.pt")


@pytest.mark.cluster
def test_two_workers_together_give_the_result_of_one(tmp_path):
    """Each sees half of a batch, and its loss is that of the whole one."""
    run_workers(_worker, 2, tmp_path)
    for number, name in enumerate(KINDS):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        torch.testing.assert_close(found, train_together(name), rtol=0, atol=1e-9, msg=name)
