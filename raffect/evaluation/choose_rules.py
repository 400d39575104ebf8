"""Which decision rules heads predict by: those that were chosen for them, or the plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.heads.checkpoint import read_card
from raffect.predictions.rules import (
    RULES_FILE,
    DecisionRules,
    WeightedHead,
    plain_rules,
    read_rules,
)
from raffect.runs.pick import PickedHead, find_heads

Choice = tuple[DecisionRules, list[PickedHead], str]
"""Rules, the heads that they name in their order, and a line that says which rules these are."""


def choose_rules(task: Task, heads: Sequence[PickedHead], postprocess: str = "auto") -> Choice:
    """The decision rules of some heads of a task.

    ``auto`` takes ``decision_rules.json`` of a run if it names none but these heads (by the SHA-256
    of their weights, since folders may move) or others of the same runs, as rules of all settings
    of a sweep do; and at least one of every folder that was named. It may leave out heads of a
    folder, as greedy selection does.

    Args:
        task: What the heads predict.
        heads: Of one run or several.
        postprocess: ``auto``, ``none``, or a file of rules, which counts for its own task alone;
            others have ``auto``.

    Raises:
        RaffectError: If a file of rules is damaged, or one that was named does not fit the heads.
    """
    name = task.name.upper()
    if postprocess == "none":
        return _plain(task, heads, f"{name}: no decision rules (--postprocess none)")

    # A file that was named
    if postprocess != "auto":
        file = Path(postprocess)
        rules = read_rules(file)
        if rules.task.name == task.name:
            among, wrong = _match(rules, task, heads)
            require(not wrong, f"--postprocess {file}: {wrong}")
            return _apply(rules, among, f"{name}: decision rules of {file}{_others(heads, among)}")

    # Those of a run
    why = "no decision rules chosen (`raffect postprocess` chooses them)"
    for file in dict.fromkeys(root / RULES_FILE for head in heads for root in _roots(head)):
        if not file.is_file():
            continue
        rules = read_rules(file)
        among, wrong = _match(rules, task, heads)
        if not wrong:
            return _apply(rules, among, f"{name}: decision rules of {file}{_others(heads, among)}")
        why = f"without the decision rules of {file}: {wrong}"
    return _plain(task, heads, f"{name}: {why}")


def require_rules(postprocess: str, tasks: Sequence[Task]) -> None:
    """Refuse a file of rules that cannot count, before anything is computed.

    Args:
        postprocess: See `choose_rules`.
        tasks: What the heads predict.

    Raises:
        RaffectError: If the file is missing, damaged, or for a task that no head predicts.
    """
    if postprocess in ("auto", "none"):
        return
    rules, names = read_rules(Path(postprocess)), sorted({task.name for task in tasks})
    require(
        rules.task.name in names,
        f"--postprocess {postprocess}: rules for {rules.task.name}, and the heads predict "
        f"{' and '.join(names)}; name rules for one of these, auto or none",
    )


def require_one_task(tasks: Sequence[Task]) -> None:
    """Refuse tasks that share a name and differ in what they predict.

    Raises:
        RaffectError: Names the task.
    """
    known: dict[str, Task] = {}
    for task in tasks:
        other = known.setdefault(task.name, task)
        if (other.kind, other.outputs) != (task.kind, task.outputs):
            raise RaffectError(
                f"two tasks are called {task.name}, with {len(other.outputs)} and "
                f"{len(task.outputs)} outputs or other names of them; predict them one by one"
            )


def _roots(head: PickedHead) -> list[Path]:
    """The run folder of a head, if it lies in one."""
    folder = head.folder.absolute()
    return [folder.parents[2]] if folder.parent.parent.name == "weights" else []


def _match(
    rules: DecisionRules, task: Task, heads: Sequence[PickedHead]
) -> tuple[list[PickedHead], str]:
    """Heads among which rules find theirs, and why they cannot be applied; empty if they can."""
    among = _with_other_settings(rules, heads)
    return among, _misfit(rules, task, among) or _left_out(rules, among)


def _with_other_settings(rules: DecisionRules, heads: Sequence[PickedHead]) -> list[PickedHead]:
    """Some heads, and those of other settings of their runs that rules name, in one snapshot."""
    unknown = {named.sha256 for named in rules.heads} - {head.card.sha256 for head in heads}
    found = list(heads)
    runs = dict.fromkeys((head.run, head.card.snapshot) for head in heads)
    for run, snapshot in runs if unknown else ():
        others = [PickedHead(path, read_card(path), run) for path in find_heads(run, snapshot)]
        found += [head for head in others if head.card.sha256 in unknown]
    return found


def _others(heads: Sequence[PickedHead], among: Sequence[PickedHead]) -> str:
    """That rules take heads beside those that were picked; empty if they do not."""
    more = len(among) - len(heads)
    return f", which take {more} head(s) of other settings of the same run(s)" if more else ""


def _misfit(rules: DecisionRules, task: Task, heads: Sequence[PickedHead]) -> str:
    """Why rules cannot be applied to heads; empty if they can."""
    if (rules.task.kind, rules.task.outputs) != (task.kind, task.outputs):
        return f"rules for {rules.task.name}, not for the outputs of these heads"
    known = {head.card.sha256 for head in heads}
    unknown = [head for head in rules.heads if head.sha256 not in known]
    if unknown or not rules.heads:
        count = f"{len(unknown)} of the {len(rules.heads)} head(s) that it names"
        first = unknown[0].folder if unknown else "none"
        return f"{count} are not of the heads or runs that were named (first {first})"
    return ""


def _left_out(rules: DecisionRules, heads: Sequence[PickedHead]) -> str:
    """Why rules leave out a folder that was named; empty if they do not."""
    named = {head.sha256 for head in rules.heads}
    using = {head.run for head in heads if head.card.sha256 in named}
    without = [str(head.run) for head in heads if head.run not in using]
    return f"it names no head of {without[0]}; leave that out" if without else ""


def _apply(rules: DecisionRules, heads: Sequence[PickedHead], note: str) -> Choice:
    by_sha256 = {head.card.sha256: head for head in heads}
    chosen = [by_sha256[head.sha256] for head in rules.heads]
    # Where the heads are now
    found = [
        replace(named, folder=str(head.folder.absolute()))
        for named, head in zip(rules.heads, chosen, strict=True)
    ]
    rules = replace(rules, heads=tuple(found))
    optimistic = ", chosen on validation: optimistic there"
    return rules, chosen, note + optimistic * (rules.chosen_on == "validation")


def _plain(task: Task, heads: Sequence[PickedHead], note: str) -> Choice:
    named = tuple(
        WeightedHead(folder=str(head.folder.absolute()), sha256=head.card.sha256) for head in heads
    )
    return plain_rules(task, named), list(heads), note
