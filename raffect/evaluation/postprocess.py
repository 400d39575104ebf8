"""`raffect postprocess`: decision rules of an ensemble, and what each of them gains."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raffect.config import PostprocessConfig
from raffect.evaluation.held_out import (
    Candidate,
    CandidateRun,
    collect,
    find_candidates,
    require_chosen_on,
)
from raffect.predictions.choose import choose, count_plain
from raffect.predictions.gains import GAINS_FILE, Gain, Postprocessing, describe_choice
from raffect.predictions.held_out import HeldOut
from raffect.predictions.rules import RULE_TITLES, RULES_FILE, DecisionRules, WeightedHead
from raffect.progress import stage
from raffect.provenance import describe_run
from raffect.runs.against_erm import Difference
from raffect.runs.metrics_file import table
from raffect.runs.spread import chance_text, headline_text, short
from raffect.storage.atomic import require_writable, write_atomic


@dataclass(frozen=True, kw_only=True)
class PostprocessResult:
    """Decision rules and what they gain.

    Attributes:
        found: All of it, as in postprocess.json.
        out: Folder that decision_rules.json and postprocess.json were written to.
    """

    found: Postprocessing
    out: Path

    @property
    def rules(self) -> DecisionRules:
        """The rules, as in decision_rules.json."""
        return self.found.rules

    def to_pandas(self) -> Any:
        """One row a rule that was tried: what it gains, and whether it was kept."""
        return table(
            [
                {"rule": part.rule, "kept": part.kept, "gain": part.gain.gain}
                | dict(zip(("low", "high"), part.gain.interval_95 or (None, None), strict=True))
                for part in self.found.gains
            ]
        )

    def lines(self) -> list[str]:
        """The result as lines of text."""
        found, title = self.found, self.found.kind.title
        mark = f" [INCOMPLETE BANK, it lacks {found.incomplete}]" if found.incomplete else ""
        task, heads = found.rules.task.name.upper(), f"{found.num_candidates} head(s)"
        lines = [
            f"{task}: decision rules chosen on {found.where}; {found.size}, {heads}",
            f"single heads       {title} {short(found.single)}{mark}",
            f"their mean         {title} {headline_text(found.before)}{mark}",
        ]

        # Each rule, and all of them
        for part in found.gains:
            kept = found.rules.describe(part.rule) if part.kept else "not kept"
            lines.append(f"{RULE_TITLES[part.rule]:18} {_gain(part.gain)}: {kept}")
        difference = _gain(found.difference)
        lines += [
            f"with kept rules    {title} {headline_text(found.after)}, {difference} (cross-fitted: "
            f"chosen on the other parts){mark}",
            f"on what they were chosen on: {short(found.on_chosen)}, which is optimistic",
            f"chance             {title} {chance_text(found.chance)}",
        ]
        if found.rules.chosen_on == "folds" and found.snapshot != "last":
            lines.append(
                f"note: predictions of folds are of the last epoch, these rules are for "
                f"{found.snapshot} snapshots"
            )
        lines += [f"caveat: {caveat}" for caveat in found.caveats]
        lines.append(f"wrote {self.out}: {RULES_FILE}, {GAINS_FILE}")
        return [*lines, f"next: {self._following()}"]

    def _following(self) -> str:
        file = shlex.quote(str(self.out / RULES_FILE))
        rules = "" if str(self.out) in self.found.runs else f" --postprocess {file}"
        run = self.found.runs[0]
        return f"raffect evaluate --run {shlex.quote(run)} --bank BANK --labels DATA{rules}"


def postprocess(config: PostprocessConfig) -> PostprocessResult:
    """Choose decision rules for the heads of one run or several, and write them.

    Raises:
        RaffectError: If runs do not go together, or have no predictions for held-out frames.
    """
    # Heads, and what they predict for frames that they have not seen
    runs = find_candidates(config)
    out = (config.out or config.run[0]).absolute()
    require_writable(out)
    with stage("reading predictions"):
        held = collect(runs, config)
    require_chosen_on(held, runs)

    # Rules
    heads = [head for run in runs for head in run.heads]
    plain = [place for place, head in enumerate(heads) if head.is_main]
    with stage("choosing decision rules"):
        choice = choose(held, plain, per_output=config.per_output)
    named = tuple(
        WeightedHead(folder=_folder_text(head, out), sha256=head.card.sha256, weight=float(count))
        for head, count in zip(heads, choice.counts, strict=True)
        if count
    )
    rules = replace(choice.rules, heads=named, chosen_on=config.on)

    # Both files; the one that others apply is the last
    found = Postprocessing(
        run=describe_run(),
        runs=tuple(str(run.folder.path) for run in runs),
        rules=rules,
        snapshot=config.epoch,
        frames=len(held.target),
        groups=held.num_groups,
        group_name=runs[0].record.data.group_name,
        samples=runs[0].record.data.samples,
        num_parts=held.num_parts,
        num_candidates=len(heads),
        chance=held.kind.chance(choice.before.sum(0), held.task),
        single=_mean_single(held, plain),
        **describe_choice(choice, held.kind),
        incomplete=next((text for run in runs if (text := run.record.data.incomplete)), ""),
        caveats=_caveats(runs),
    )
    write_atomic(out / GAINS_FILE, found.to_bytes())
    write_atomic(out / RULES_FILE, rules.to_bytes())
    return PostprocessResult(found=found, out=out)


def _folder_text(head: Candidate, out: Path) -> str:
    """A head's folder, from the folder of the rules where it lies in it."""
    folder = head.folder.absolute()
    return str(folder.relative_to(out) if folder.is_relative_to(out) else folder)


def _mean_single(held: HeldOut, plain: Sequence[int]) -> float:
    """Mean score of single heads without rules."""
    alone = [tuple(int(head == place) for place in range(len(held.scores))) for head in plain]
    found = [held.kind.headline(count_plain(held, counts).sum(0)) for counts in alone]
    return float(np.mean(found))


def _caveats(runs: Sequence[CandidateRun]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for run in runs for text in run.record.data.caveats))


def _gain(found: Gain) -> str:
    return Difference(mean=found.gain, interval_95=found.interval_95).text()
