"""What makes a head: every setting of a training run by its dotted name, and recipes as TOML.

`settings` has each setting with its check, `names` what they are called in flags, files and sweeps,
`files` reads recipes.
"""

from __future__ import annotations

from raffect.recipe.files import RECIPES, find_recipe, read_recipe
from raffect.recipe.names import (
    DEFAULTS,
    NAMES,
    PLAIN_ERM,
    digest,
    expand,
    in_todays_words,
    plain,
    unknown_name,
    with_settings,
)
from raffect.recipe.settings import (
    MOST_ATTENTION_HEADS,
    MOST_DEPTH,
    MOST_EPOCHS,
    MOST_WIDTH,
    MOST_WINDOW,
    HeadConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    SamConfig,
    TextConfig,
    flatten,
)

__all__ = [
    "DEFAULTS",
    "MOST_ATTENTION_HEADS",
    "MOST_DEPTH",
    "MOST_EPOCHS",
    "MOST_WIDTH",
    "MOST_WINDOW",
    "NAMES",
    "PLAIN_ERM",
    "RECIPES",
    "HeadConfig",
    "LossConfig",
    "OptimConfig",
    "Recipe",
    "SamConfig",
    "TextConfig",
    "digest",
    "expand",
    "find_recipe",
    "flatten",
    "in_todays_words",
    "plain",
    "read_recipe",
    "unknown_name",
    "with_settings",
]
