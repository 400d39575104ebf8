"""Decision rules of a run: scores before and after, what each gains, the curve of the window."""

from __future__ import annotations

from raffect.predictions.gains import Gain, Postprocessing
from raffect.predictions.rules import RULE_TITLES
from raffect.reporting.page import as_text
from raffect.reporting.results import difference_cell, table_of
from raffect.runs.against_erm import Difference
from raffect.runs.spread import headline_text, short


def rules_lines(found: Postprocessing) -> list[str]:
    """How the rules were chosen, and a row for each step from single heads to all rules."""
    title, groups = found.kind.title, as_text(found.group_name)
    about = (
        f"Chosen on {as_text(found.where)}: {as_text(found.size)}. "
        "Each rule is cross-fitted: chosen on the other parts of these frames, judged on the part "
        "that was left out; and kept if it gains more than about one standard error. Differences "
        f"are paired by {groups.removesuffix('s')}."
    )
    rows = [["single heads, mean", short(found.single), "-", ""]]
    rows.append(["mean of their probabilities", headline_text(found.before), "-", ""])
    for part in found.gains:
        what = as_text(found.rules.describe(part.rule)) if part.kept else "not kept"
        rows.append([RULE_TITLES[part.rule], "", _gain(part.gain), what])
    mark = as_text(f"bank lacked {found.incomplete}") if found.incomplete else ""
    rows.append(
        ["**with the kept rules**", headline_text(found.after), _gain(found.difference), mark]
    )
    chance = f"chance: {as_text(found.chance.name)}"
    rows.append([chance, short(found.chance.level), "-", ""])
    titles = ["", f"{title}, 95 % over {groups}", "gain", "what was chosen"]
    optimistic = (
        f"On the very frames that they were chosen on the rules score {short(found.on_chosen)}, "
        "which is optimistic."
    )
    return [about, "", *table_of(titles, rows), optimistic, ""]


def curve_rows(found: Postprocessing) -> list[dict[str, float]]:
    """Half-width of the window and score of each point of the curve."""
    return [{"window": window, found.kind.key: score} for window, score in found.curve]


def _gain(found: Gain) -> str:
    return difference_cell(Difference(mean=found.gain, interval_95=found.interval_95))
