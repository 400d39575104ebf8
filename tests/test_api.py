"""The documents do what they say: their Python blocks run one after another, as in a notebook."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raffect
from raffect import recipe
from raffect.recipe import plain
from raffect.runs.settings_file import to_toml

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "docs" / "api.md",  # draws the bank, and README trains the run, that the others use
    ROOT / "README.md",
    *sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "api.md"}),
]
NOT_RUN: set[tuple[str, int]] = set()
"""Pages and numbers of their blocks that are not run; three at most."""


def test_every_public_name_is_there():
    for name in raffect.__all__:
        assert getattr(raffect, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = raffect.trian


@pytest.mark.cluster
def test_every_python_block_of_readme_and_documents_runs_as_printed(
    tmp_path, monkeypatch, local_ray
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe.files, "RECIPES", short_recipes(tmp_path / "recipes"))
    (tmp_path / "annotations" / "a").mkdir(parents=True)
    (tmp_path / "annotations" / "a" / "1.txt").write_text("2\n")
    assert len(NOT_RUN) <= 3
    found = {}
    for page in PAGES:
        found[page.name] = names = run_blocks(page)
        if page.name == "api.md":
            for name in ("bank", "data"):
                (tmp_path / name).symlink_to(names["folder"] / name)

    # What they made
    api, training = found["api.md"], found["training.md"]
    assert isinstance(api["heads"], pd.DataFrame)
    assert isinstance(api["alphas"], pd.DataFrame)
    assert api["page"].html.exists()
    assert found["README.md"]["run"].scores["last"].mean > 0
    assert Path("labels.csv").read_text().split() == ["path,subject,pain", "a/1.png,a,2"]
    features, probabilities = training["features"], training["probabilities"]
    assert features.dtype == np.float16
    assert probabilities.shape == (len(features), 8)
    assert probabilities.sum(1).numpy() == pytest.approx(1)


def short_recipes(folder):
    """The recipes that ship with raffect, of two epochs."""
    folder.mkdir()
    for file in recipe.RECIPES.glob("*.toml"):
        text, changed = re.subn(r"(?m)^epochs = .*$", "epochs = 2", file.read_text())
        assert changed == 1
        (folder / file.name).write_text(text)
    return folder


def run_blocks(page):
    """The names that the Python blocks of a page leave behind."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    names: dict = {}
    for number, block in enumerate(blocks, 1):
        if (page.name, number) not in NOT_RUN:
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


def test_a_configuration_from_a_recipe_is_that_of_the_command_line(tmp_path):
    from raffect.cli import parse

    words = "released --task au --bank b --labels l --out o --loss.alpha 0.2 --num-seeds 3"
    paths = {"bank": Path("b"), "labels": Path("l"), "out": Path("o")}
    fields = {"task": "au", "num_seeds": 3, **paths}
    config = raffect.TrainConfig.from_recipe("released", {"loss.alpha": 0.2}, **fields)
    assert config == parse("train", words.split())
    with pytest.raises(raffect.RaffectError, match="did you mean paper"):
        raffect.TrainConfig.from_recipe("papr", **fields)


def test_a_recipe_may_be_the_configuration_of_a_run(tmp_path):
    fields = {"bank": Path("b"), "labels": Path("l"), "out": Path("o")}
    config = raffect.TrainConfig.from_recipe("released", task="au", seed=3, folds=4, **fields)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    again = raffect.TrainConfig.from_recipe(str(file), {"seed": 5}, **fields)
    assert plain(again) == dataclasses.replace(plain(config), seed=5)
    assert again.folds == 5  # how a run went is not part of its recipe
