"""What the words of a report mean, each explained where it first stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raffect.metrics.task_kinds import KINDS, ScoredByF1
from raffect.metrics.worst import FEWEST_FRAMES
from raffect.reporting.page import as_text
from raffect.reporting.results import AGAINST_ERM
from raffect.reporting.run import Run, short_name
from raffect.runs.spread import CHOICE, NAMES, how_chosen
from raffect.runs.worst import TAIL_NAME

_MACRO_F1, _CCC = ScoredByF1.title, KINDS["regression"].title
_MEANINGS = {
    "head": "a small network on top of a frozen encoder's features; a run trains one a seed "
    "and setting.",
    _MACRO_F1: "F1 is the harmonic mean of precision (right among those predicted) and recall "
    "(found among those true); its plain mean over all classes or labels counts a rare one as "
    "much as a frequent one. 1 is perfect.",
    _CCC: "concordance correlation of predictions and labels, mean over all values: 1 is perfect "
    "agreement, 0 none; a wrong scale or offset lowers it.",
    KINDS["contrastive"].title: "share of frames (or clips) whose own caption, or vector of a "
    "teacher, comes first among all candidates, mean over the classes that occur.",
    "alpha": "conditional value at risk (CVaR): training averages the worst alpha share of each "
    "batch's losses alone; alpha 1 averages all of them.",
    "rho": "sharpness-aware minimisation (SAM): the gradient of each step is taken rho further "
    "uphill, which favours flat minima; rho 0 is plain training.",
    "plain ERM": "empirical risk minimisation, the baseline: the mean of all losses, without "
    "CVaR, SAM, class weights or logit adjustment.",
    "95 % interval": "where the score might lie for other videos (or subjects) of the same kind, "
    "estimated from how it differs between those that were judged; it knows nothing of other data "
    "sets. There is none for a single video.",
    "chance": "the best that a predictor scores which never looks at a frame: one constant answer "
    "(majority), or guesses by the class shares (prior).",
    "± sd (seeds)": "standard deviation over heads that differ in their seed alone, and how many "
    "there are.",
    AGAINST_ERM: "difference of val-last to plain ERM with the same other settings, else the "
    "only one, else that of another run on equal data; and its 95 % interval, paired by video.",
}


class Terms:
    """Explains every term once."""

    def __init__(self) -> None:
        self._explained: set[str] = set()

    def explain(self, meanings: Iterable[tuple[str, str]]) -> list[str]:
        """Lines of Markdown for those that were not explained before."""
        new = [(name, text) for name, text in meanings if name + text not in self._explained]
        self._explained |= {name + text for name, text in new}
        lines = [f"- **{name}**: {text}" for name, text in new]
        return [*lines, ""] if lines else []


def terms_of_opening(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Terms of the sentences that a report opens with."""
    titles = dict.fromkeys(run.kind.title for run in runs)
    names = dict.fromkeys(short_name(name) for run in runs for name in run.shown_settings)
    others = ("95 % interval", "plain ERM", "chance")
    wanted = dict.fromkeys(("head", *names, *titles, *others))
    return [(name, _MEANINGS[name]) for name in wanted if name in _MEANINGS]


def _worst_terms(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What the columns of worst cases are."""
    parts = dict.fromkeys((run.kind.part, run.kind.columns[0][0]) for run in runs)
    groups = " or ".join(dict.fromkeys(as_text(run.data.group_name) for run in runs))
    outputs = [
        (
            f"worst {part}",
            f"{score} of the {part} that a head does worst on, mean over heads, and in brackets "
            "which it is (of how many heads, if they differ). One that does not occur is left out.",
        )
        for part, score in parts
    ]
    tail = (
        f"{TAIL_NAME} of {groups}",
        f"mean score of the {TAIL_NAME[6:]} of {groups} that a head does worst on, mean over "
        "heads. The score of one is over what occurs in it, so it does not compare with that of "
        f"the whole split; one with fewer than {FEWEST_FRAMES} labelled frames has none.",
    )
    return [*outputs, tail]


def terms_of_results(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Terms of the table of results: how each epoch was chosen, spread over seeds, worst cases."""
    found = [
        (NAMES[snapshot], how_chosen(snapshot, run.has_stopped))
        for snapshot in CHOICE
        for run in runs
        if run.is_trained and snapshot in run.main.heads[0].scores
    ]
    chosen = [(name, f"{text}.") for name, text in dict.fromkeys(found)]
    others = [(name, _MEANINGS[name]) for name in ("± sd (seeds)", AGAINST_ERM)]
    return [*chosen, *others, *_worst_terms(runs)]
