"""Which of a run's settings stands for it, and why.

A sweep has many settings, and whoever reads one score of it must know how that one was chosen. The
first rule that applies chooses it, and is named wherever the setting is shown:

1. ``only``: there is one setting.
2. ``cv``: cross-validation on folds of the training split chose it.
3. ``own``: the recipe's own values are among the settings, which were fixed before any score.
4. ``best``: the highest val-last; chosen on the validation split itself, so optimistic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raffect.config import TrainConfig, TuneConfig
from raffect.recipe import DEFAULTS, NAMES, read_recipe
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.records import HeadRecord

Rule = Literal["only", "cv", "own", "best"]
BRIEFLY: dict[Rule, str] = {
    "only": "the only setting",
    "cv": "chosen on folds",
    "own": "the recipe's own",
    "best": "highest val-last, optimistic",
}
"""Why, for a cell of a table."""
_NOT_COMPARED = ("task", "seed")


@dataclass(frozen=True)
class MainSetting:
    """The setting that stands for a run.

    Attributes:
        heads: That have it, and differ in their seed alone.
        rule: Which chose it.
        num_settings: Of how many.
    """

    heads: Sequence[HeadRecord]
    rule: Rule
    num_settings: int

    @property
    def why(self) -> str:
        """How it was chosen, as a phrase."""
        many = f"of {self.num_settings} settings"
        return {
            "only": "the only setting of the run",
            "cv": f"chosen {many} on folds of the training split",
            "own": "the recipe's own values, fixed before any score was known",
            "best": f"highest val-last {many}, compared on the validation split itself: optimistic",
        }[self.rule]


def choose_main_setting(
    folder: RunFolder, groups: Sequence[Sequence[HeadRecord]], records: Sequence[HeadRecord]
) -> MainSetting:
    """The setting that stands for a run, by the rules above.

    Args:
        folder: The run.
        groups: Its finished heads by setting, at least one.
        records: All its records, those of folds among them.

    Raises:
        RaffectError: If its config.toml is damaged.
    """
    if len(groups) == 1:
        return MainSetting(groups[0], "only", 1)

    # Nothing is cross-validated where no fold was trained to the end
    selected = select_by_cv(folder, groups, records)
    if selected is not None and any("cv" in record.scores for record in selected):
        return MainSetting(selected, "cv", len(groups))

    # The recipe's own values, or else the highest score
    own = _read_own_settings(folder)
    if own and (found := [group for group in groups if _has(group[0], own)]):
        return MainSetting(found[0], "own", len(groups))
    return MainSetting(max(groups, key=_mean_of_last), "best", len(groups))


def _read_own_settings(folder: RunFolder) -> dict[str, Any]:
    """What the run's recipe sets, by dotted name; empty if it was never written."""
    names = [field.name for kind in (TrainConfig, TuneConfig) for field in dataclasses.fields(kind)]
    try:
        return read_recipe(folder.path / "config.toml", [*NAMES, *names])
    except FileNotFoundError:
        return {}


def _has(record: HeadRecord, own: Mapping[str, Any]) -> bool:
    """Whether a head has a recipe's values; a setting younger than the file has its default."""
    return all(
        value == own.get(name, DEFAULTS[name])
        for name, value in record.settings.items()
        if name not in _NOT_COMPARED
    )


def _mean_of_last(group: Sequence[HeadRecord]) -> float:
    return float(np.mean([record.scores["last"].headline for record in group]))
