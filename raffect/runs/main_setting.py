"""Which of a run's settings stands for it, and why.

A sweep has many settings, and whoever reads one score of it must know how that one was chosen. The
first rule that applies chooses it, and is named wherever the setting is shown:

1. ``only``: there is one setting.
2. ``classes``: settings differ in ``loss.leave_out`` alone. Their scores are of different classes
   each, so nothing is chosen: all heads together stand for the run.
3. ``cv``: cross-validation on folds of the training split chose it.
4. ``own``: the recipe's own values are among the settings, which were fixed before any score.
5. ``best``: the highest val-last; chosen on the validation split itself, so optimistic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raffect.config import LearnPromptsConfig, TrainConfig, TuneConfig
from raffect.recipe import DEFAULTS, NAMES, read_recipe
from raffect.runs.folder import RunFolder
from raffect.runs.records import HeadRecord
from raffect.runs.spread import LEAVE_OUT, mean_score, varying

Rule = Literal["only", "classes", "cv", "own", "best"]
BRIEFLY: dict[Rule, str] = {
    "only": "the only setting",
    "classes": "mean over left-out classes",
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
        heads: That have it, and differ in their seed alone; by the rule ``classes`` in the class
            that they leave out too.
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
            "classes": (
                f"mean over {self.num_settings} left-out classes, which are not compared, of the "
                "score on seen classes"
            ),
            "cv": f"chosen {many} on folds of the training split",
            "own": "the recipe's own values, fixed before any score was known",
            "best": by_highest(self.num_settings),
        }[self.rule]


def by_highest(num_settings: int) -> str:
    """How the setting with the highest score was chosen, as a phrase."""
    return (
        f"highest val-last of {num_settings} settings, compared on the validation split itself: "
        "optimistic"
    )


def choose_main_setting(
    folder: RunFolder,
    groups: Sequence[Sequence[HeadRecord]],
    cross_validated: Sequence[HeadRecord] | None,
) -> MainSetting:
    """The setting that stands for a run, by the rules above.

    Args:
        folder: The run.
        groups: Its finished heads by setting, at least one.
        cross_validated: Of `raffect.runs.cross_validation.select_by_cv`.

    Raises:
        RaffectError: If its config.toml is damaged.
    """
    if len(groups) == 1:
        return MainSetting(groups[0], "only", 1)

    if varying(groups) == [LEAVE_OUT]:
        return MainSetting([head for group in groups for head in group], "classes", len(groups))

    if cross_validated is not None:
        # What only stands beside a run was judged on no fold
        num_judged = sum(heads[0].cv_epoch is not None for heads in groups)
        return MainSetting(cross_validated, "cv", num_judged or len(groups))

    # The recipe's own values, or else the highest score
    own = _read_own_settings(folder)
    if own and (found := [group for group in groups if _has(group[0], own)]):
        return MainSetting(found[0], "own", len(groups))
    best = max(groups, key=lambda heads: mean_score(heads, "last"))
    return MainSetting(best, "best", len(groups))


def _read_own_settings(folder: RunFolder) -> dict[str, Any]:
    """What the run's recipe sets, by dotted name; empty if it was never written.

    Also empty for heads made of texts: their command names prompt sets, and no recipe.
    """
    if folder.read_run().command == "zeroshot":
        return {}
    kinds = (TrainConfig, TuneConfig, LearnPromptsConfig)
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
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
