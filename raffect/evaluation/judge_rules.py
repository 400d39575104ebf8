"""Judging heads together, before and after their decision rules, on the frames of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raffect.errors import RaffectError, require
from raffect.evaluation.ensemble import Ensemble
from raffect.evaluation.inputs import read_inputs
from raffect.evaluation.postprocessed import Postprocessed
from raffect.heads.checkpoint import read_card, require_encoder
from raffect.metrics.intervals import Headline
from raffect.metrics.task_kinds import kind_of
from raffect.predictions.counting import Counting
from raffect.predictions.gains import Gain
from raffect.predictions.rules import REMEDY, RULES_FILE, DecisionRules, plain_rules, read_rules
from raffect.predictions.smoothing import timeline
from raffect.runs.data import Dataset, targets_of
from raffect.runs.pick import PickedHead


def judge_rules(
    dataset: Dataset,
    split: str,
    heads: Sequence[PickedHead],
    postprocess: str,
    device: torch.device,
) -> tuple[Postprocessed | None, tuple[str, ...]]:
    """Scores with decision rules, where there are any.

    Args:
        dataset: The frames.
        split: Its split.
        heads: All heads of one run.
        postprocess: ``auto`` for the rules in the run's folder, ``none``, or a file of rules; for
            heads of another task than it is for, as ``auto``.
        device: Where to compute.

    Returns:
        The scores, and a note if rules of the run's folder do not go with its heads.

    Raises:
        RaffectError: If a file of rules that was named is damaged or missing, or does not fit.
    """
    named = postprocess not in ("auto", "none")
    file = Path(postprocess) if named else heads[0].run / RULES_FILE
    if postprocess == "none" or not (named or file.is_file()):
        return None, ()
    rules = read_rules(file)
    if named and rules.task.name != dataset.task.name:
        return judge_rules(dataset, split, heads, "auto", device)

    # Heads, of this run or of others
    try:
        chosen = _find_heads(rules, file, dataset, heads)
    except RaffectError as error:
        if named:
            raise
        return None, (f"without decision rules: {error}",)
    return _judge(rules, file, chosen, dataset, split, device), ()


def _find_heads(
    rules: DecisionRules, file: Path, dataset: Dataset, heads: Sequence[PickedHead]
) -> list[PickedHead]:
    """The heads that rules name: by their weights among those given, else in their folders.

    Rules that were chosen for other snapshots of the given heads are applied to these.

    Raises:
        RaffectError: If one is missing, was trained again, or is of another encoder.
    """
    task = dataset.task
    require(
        (rules.task.kind, rules.task.outputs) == (task.kind, task.outputs) and bool(rules.heads),
        f"{file}: rules for {rules.task.name}, not for the outputs of these heads; {REMEDY}",
    )
    known, found = {head.card.sha256: head for head in heads}, []
    by_folder = {head.folder.parent.absolute(): head for head in heads}
    (encoder,) = dataset.facts.encoders
    for named in rules.heads:
        head = known.get(named.sha256)
        if head is None:
            folder = file.parent / named.folder
            head = PickedHead(folder, read_card(folder), folder)
            require(
                head.card.sha256 == named.sha256,
                f"{file}: {folder} is not the head that it names, which was trained again since; "
                f"{REMEDY}",
            )
            require_encoder(head.card, encoder, folder, Path(dataset.facts.bank))
            head = by_folder.get(folder.parent.absolute(), head)
        found.append(head)
    return found


def _judge(
    rules: DecisionRules,
    file: Path,
    heads: Sequence[PickedHead],
    dataset: Dataset,
    split: str,
    device: torch.device,
) -> Postprocessed:
    # Frames by video and number, as windows take them
    index, kind, task = dataset.splits[split], kind_of(dataset.task), dataset.task
    moment = timeline(index.video, index.frame, max(rules.windows))
    order = np.argsort(moment, kind="stable")
    inputs, target, group = read_inputs(dataset, split, heads), targets_of(index, task), index.group
    counting = Counting(task, target[order], group[order], len(index.groups))

    # Statistics by group, with and without rules
    plain = plain_rules(task, tuple(replace(head, weight=1.0) for head in rules.heads))
    found = []
    for one in (plain, rules):
        scores = Ensemble(heads, one, device).scores(inputs)[order]
        found.append(counting.count(one.decide(one.smooth(scores, moment[order]))))
    before, after = found
    return Postprocessed(
        file=str(file),
        chosen_on=rules.chosen_on,
        snapshots=tuple(dict.fromkeys(head.card.snapshot for head in heads)),
        heads=len(heads),
        before=Headline.of(before, kind),
        after=Headline.of(after, kind),
        difference=Gain.of(after, before, kind),
        score=kind.score(after.sum(0), task),
    )
