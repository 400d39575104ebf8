"""Recipes: the paper's values are pinned, every name is known, every value is checked."""

import pytest

from raffect.cli import main, parse
from raffect.errors import RaffectError
from raffect.recipe import (
    NAMES,
    RECIPES,
    LossConfig,
    Recipe,
    digest,
    expand,
    find_recipe,
    flatten,
    plain,
    read_recipe,
    with_settings,
)
from tests.helpers.commands import error_line

PAPER = {
    "epochs": 32,
    "batch_size": 32,
    "head.width": 0,
    "head.depth": 3,
    "head.dropout": 0.6,
    "head.init": "he",
    "loss.alpha": 0.3,
    "loss.tail_over": "units",
    "loss.weighting": "none",
    "loss.logit_adjustment": 0.0,
    "sam.rho": 0.05,
    "sam.perturbation": "l2",
    "sam.independent_dropout": False,
    "optim.name": "adam",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.0,
    "optim.schedule": "cosine",
    "optim.min_lr": 0.0,
}
RELEASED = PAPER | {
    "loss.alpha": 0.5,
    "sam.rho": 0.5,
    "sam.independent_dropout": True,
    "optim.name": "adamw",
    "optim.weight_decay": 1e-4,
    "optim.schedule": "released",
    "optim.min_lr": 1e-5,
}
DATA = ["--bank", "b", "--labels", "l", "--out", "o"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper", PAPER),
        ("released", RELEASED),
        ("erm", PAPER | {"loss.alpha": 1.0, "sam.rho": 0.0}),
        ("weighted", PAPER | {"loss.alpha": 1.0, "sam.rho": 0.0, "loss.weighting": "inverse"}),
    ],
)
@pytest.mark.parametrize("task", ["expr", "au"])
def test_shipped_recipes_are_pinned_for_both_tasks(name, expected, task):
    config = parse("train", [name, "--task", task, *DATA])
    assert {key: value for key, value in flatten(config).items() if key in expected} == expected
    assert config.task == task


def test_the_recipe_of_values_is_the_papers_on_squared_errors_with_less_dropout():
    expected = PAPER | {"loss.name": "default", "head.dropout": 0.2}
    assert read_recipe(find_recipe("va")).items() <= expected.items()
    config = parse("train", ["va", "--task", "va", *DATA])
    assert flatten(plain(config)) == flatten(with_settings(Recipe(task="va"), expected))
    ccc = ["va", "--task", "va", "--loss.name", "ccc", "--loss.alpha", "1", *DATA]
    assert parse("train", ccc).loss == LossConfig(name="ccc", alpha=1)


def test_the_recipe_of_a_projection_is_exp_clips():
    expected = {
        "epochs": 5,
        "batch_size": 512,
        "head.kind": "projection",
        "head.init": "torch",
        "loss.alpha": 1.0,
        "sam.rho": 0.0,
        "optim.name": "sgd",
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-4,
        "optim.schedule": "constant",
    }
    recipe = with_settings(Recipe(), read_recipe(find_recipe("expclip")))
    assert recipe == with_settings(Recipe(), expected)


def test_only_an_mlp_reads_no_windows():
    assert with_settings(Recipe(), {"head.kind": "projection", "head.window": 16}).head.window == 16
    with pytest.raises(RaffectError, match=r"head.window 16: a head of kind mlp reads one feature"):
        with_settings(Recipe(), {"head.window": 16})


def test_the_recipe_of_windows_minimises_what_the_papers_does():
    recipe = read_recipe(find_recipe("temporal"))
    same = {name: value for name, value in PAPER.items() if name.startswith(("loss.", "sam."))}
    assert same.items() <= recipe.items()
    assert {"head.kind": "temporal", "head.window": 17, "head.pool": "centre"}.items() <= (
        recipe.items()
    )


def test_the_recipe_emoclip_is_the_plain_mean_of_batches_of_64_over_windows_of_16():
    expected = {
        "head.kind": "temporal",
        "head.window": 16,
        "head.pool": "mean",
        "batch_size": 64,
        "loss.alpha": 1.0,
        "sam.rho": 0.0,
    }
    assert expected.items() <= read_recipe(find_recipe("emoclip")).items()


def test_the_recipe_emoclip_released_is_the_released_codes():
    expected = {
        "epochs": 30,
        "batch_size": 64,
        "head.kind": "emoclip-released",
        "head.layers": 2,
        "head.attention_heads": 8,
        "head.window": 32,
        "head.dropout": 0.0,
        "loss.alpha": 1.0,
        "loss.soft_targets": 0.0,
        "sam.rho": 0.0,
        "optim.name": "sgd",
        "optim.lr": 1e-3,
        "optim.momentum": 0.9,
        "optim.weight_decay": 5e-4,
        "optim.schedule": "emoclip-released",
    }
    assert read_recipe(find_recipe("emoclip-released")) == expected


def test_defaults_are_the_papers():
    assert flatten(Recipe(task="expr")) == flatten(with_settings(Recipe(task="expr"), PAPER))


def test_all_recipes_are_shipped_and_no_other():
    assert sorted(file.stem for file in RECIPES.glob("*.toml")) == [
        "emoclip",
        "emoclip-released",
        "erm",
        "expclip",
        "paper",
        "released",
        "temporal",
        "va",
        "weighted",
    ]


def test_the_set_of_settings_is_frozen():
    text = {f"text.{name}" for name in ("prompts", "ensemble", "other", "against", "head")}
    later = {"task", "seed", "loss.beta", "loss.name", "head.normalise", "optim.momentum"}
    windows = {
        f"head.{name}"
        for name in ("kind", "layers", "attention_heads", "window", "stride", "pool", "snippets")
    }
    prompts = {"head.tokens", "head.descriptors"}
    language = {f"loss.{name}" for name in ("soft_targets", "order", "leave_out")}
    assert set(NAMES) == set(PAPER) | later | text | windows | language | prompts


def test_flags_override_a_recipe_and_a_file_works_like_a_name(tmp_path):
    config = parse(
        "train",
        ["released", "--task", "au", *DATA, "--loss.alpha", "0.2", "--sam.no-independent-dropout"],
    )
    assert (config.loss.alpha, config.sam.rho, config.sam.independent_dropout) == (0.2, 0.5, False)
    file = tmp_path / "mine.toml"
    file.write_text('task = "au"\n[loss]\nalpha = 0.7\n')
    assert parse("train", [str(file), *DATA]).loss.alpha == 0.7


@pytest.mark.parametrize(
    ("recipe", "flag", "match"),
    [
        ("papr", "", "papr: no such recipe (did you mean paper?); expected one of"),
        ("paper", "--loss.alpha 0", "loss.alpha 0.0: expected more than 0 and at most 1"),
        ("paper", "--loss.alpha 1.5", "loss.alpha 1.5: expected more than 0 and at most 1"),
        ("paper", "--loss.alpha nan", "loss.alpha nan"),
        ("paper", "--sam.rho -1", "sam.rho -1.0: expected 0 (off) or more"),
        ("paper", "--sam.rho inf", "sam.rho inf"),
        ("paper", "--batch-size 1", "batch-size 1: expected 2 or more, since BatchNorm"),
        ("paper", "--epochs 0", "epochs 0: expected 1 to 100000"),
        ("paper", "--head.dropout 1", "head.dropout 1.0: expected 0 or more, less than 1"),
        ("paper", "--optim.lr 0", "optim.lr 0.0: expected more than 0"),
        ("paper", "--optim.min-lr 1", "optim.min-lr 1.0: expected 0 to optim.lr"),
        ("paper", "--seed -1", "seed -1: expected 0"),
        ("paper", "--num-workers 3", "--num-workers 3: does not divide --batch-size 32"),
        ("paper", "", "b: no bank there"),
    ],
)
def test_a_wrong_value_is_one_line(recipe, flag, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", recipe, "--task", "expr", *DATA, *flag.split()]) == 2
    assert match in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[loss]\nalfa = 1\n", "unknown setting 'loss.alfa' .did you mean loss.alpha..; all are: "),
        ("lr = 1\n", "unknown setting 'lr'"),
        ("loss = [1\n", "not a TOML file"),
        ("loss = 3\n", r"loss is a table; write \[loss\]"),
        ("[loss]\nalpha = true\n", "mine.toml: loss.alpha True: expected a number"),
        ('epochs = "three"\n', "mine.toml: epochs 'three': expected a whole number"),
        ('[optim]\nname = "lion"\n', "mine.toml: optim.name 'lion': expected one of adam, adamw"),
        ("\x00", "not a TOML file"),
    ],
)
def test_a_wrong_recipe_file_is_named(tmp_path, text, match):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RaffectError, match=match):
        read_recipe(file)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss.alpha": "x"}, "expected a number"),
        ({"epochs": 1.5}, "expected a whole number"),
        ({"sam.independent_dropout": 1}, "expected true or false"),
        ({"optim.name": "lion"}, "expected one of adam, adamw"),
        ({"x": 1}, "unknown setting"),
    ],
)
def test_settings_by_name_are_checked(settings, match):
    with pytest.raises(RaffectError, match=match):
        with_settings(Recipe(task="expr"), settings)


def test_digests_name_settings_and_nothing_else():
    base = Recipe(task="expr")
    shipped = parse("train", ["paper", "--task", "expr", *DATA])
    assert digest(base) == digest(with_settings(base, {"epochs": 32})) == digest(shipped)
    grid = expand(base, {"loss.alpha": [0.1, 0.2, 1.0], "seed": [0, 1]})
    assert len({digest(recipe) for recipe in grid}) == 6


def test_find_recipe_prefers_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text("epochs = 1\n")
    assert find_recipe("paper") == RECIPES / "paper.toml"
