"""docs/api.md does what it says: its snippets run one after another, as in a notebook."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

import raffect
from raffect.recipe import plain
from raffect.runs.folder import to_toml

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_every_public_name_is_there():
    for name in raffect.__all__:
        assert getattr(raffect, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = raffect.trian


def test_the_snippets_of_the_api_page_run(tmp_path, monkeypatch, local_ray):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(snippets) >= 6
    names: dict = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/api.md snippet {number + 1}", "exec"), names)
    assert isinstance(names["heads"], pd.DataFrame)
    assert isinstance(names["alphas"], pd.DataFrame)
    assert names["page"].html.exists()


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
