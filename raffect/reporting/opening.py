"""What a report opens with: two sentences a run, what was trained and what came out."""

from __future__ import annotations

from collections.abc import Sequence

from raffect.metrics.intervals import Interval
from raffect.reporting.page import as_text
from raffect.reporting.run import Run, find_erm, main_against_erm, short_name
from raffect.runs.against_erm import Difference
from raffect.runs.leave_one_out import LeaveOneOut, read_leave_one_out
from raffect.runs.spread import Spread, mean_and_sd, mean_score, short, signed


def opening_lines(runs: Sequence[Run]) -> list[str]:
    """Two sentences a run, and what a reader of its scores must know beside them."""
    lines = []
    for run in runs:
        sentences = f"{_what_was_trained(run)} {_what_came_out(run, runs)}"
        lines += [f"**{as_text(run.name)}** {sentences}", ""]
    remarks = dict.fromkeys(remark for run in runs for remark in _remarks(run))
    return [*lines, *(f"> {remark}\n" for remark in remarks)]


def _what_was_trained(run: Run) -> str:
    """Heads, task, data and settings in one sentence."""
    # How many of what, on what
    data = run.data
    if run.record.command == "zeroshot":
        return _what_was_made(run)
    heads = plural(sum(map(len, run.groups)), "head")
    outputs = f"{len(run.task.outputs)} {run.kind.parts}"
    on = as_text(data.size_of("train"))
    sentence = f"trained {heads} for {as_text(run.title)} ({outputs}) on {on}"

    # By setting
    counts = sorted({len(group) for group in run.groups})
    seeds = plural(counts[-1], "seed")
    if len(run.groups) == 1:
        return f"{sentence}: {seeds} of {as_text(run.describe(run.groups[0]))}."
    each = f"up to {seeds}" if len(counts) > 1 else seeds
    differ = enumerate_words([as_text(short_name(name)) for name in run.varying])
    return f"{sentence}: {len(run.groups):,} settings that differ in {differ}, {each} each."


def _what_was_made(run: Run) -> str:
    """Zero-shot heads in one sentence."""
    outputs = f"{len(run.task.outputs)} {run.kind.parts}"
    heads = plural(sum(map(len, run.groups)), "head")
    made = f"made {heads} for {as_text(run.title)} ({outputs}) of texts alone, without training"
    runs = {record.recipe.text.head for group in run.groups for record in group} - {""}
    if runs:
        through = sum(bool(record.recipe.text.head) for group in run.groups for record in group)
        names = enumerate_words([as_text(name) for name in sorted(runs)])
        made = (
            f"made {heads} for {as_text(run.title)} ({outputs}) of texts: {through:,} through "
            f"heads that {names} trained to compare with texts, the others on features as they are"
        )
    if len(run.groups) == 1:
        return f"{made}: {as_text(run.describe(run.groups[0]))}."
    differ = enumerate_words([as_text(short_name(name)) for name in run.varying])
    return f"{made}: {len(run.groups):,} settings that differ in {differ}."


def _what_came_out(run: Run, runs: Sequence[Run]) -> str:
    """The score of the main setting, with its interval, against plain ERM and chance."""
    if tables := read_leave_one_out(run.folder.path):
        return " ".join(map(_recall_of_unseen, tables))
    # The score
    found, main = run.spread(run.main.heads, "last"), run.main
    assert found is not None  # every finished head has one
    other = "other" if "train" in run.data.splits else ""
    setting = as_text(run.describe(main.heads))
    which = (
        f"its main setting, {setting} ({main.why}), reaches"
        if main.rule != "only"
        else "it reaches"
    )
    if main.rule == "classes":
        which = f"the {main.why}, reaches"
    is_trained = run.record.command != "zeroshot"
    after = " after the last epoch" if is_trained else ""
    score = f"{run.kind.title} **{short(found.mean)}**{_interval_text(found)}{after}"
    start = f"On {as_text(run.data.size_of('validation', other))} {which} {score}"

    # What it is compared with
    chance = main.heads[0].chance
    by_chance = compare(found.mean - chance.level, found.interval_95, chance.level)
    against = f"{by_chance} chance ({short(chance.level)}, {as_text(chance.name)})"
    if (erm := find_erm(run, runs)) is None and not is_trained:
        return f"{start}, {against}."
    if erm is None:
        return f"{start}, {against}; plain ERM was not trained beside it."
    whose, heads = erm
    if heads is main.heads:
        return f"{start}, {against}; it is plain ERM itself."
    baseline, difference = mean_score(heads, "last"), main_against_erm(run, runs)
    name = "plain ERM" if whose is run else f"plain ERM of {as_text(whose.name)}"
    by_erm = compare(found.mean - baseline, difference.interval_95 if difference else None)
    facts = mean_and_sd([record.scores["last"].headline for record in heads])
    facts += f"; {difference_text(difference)}" if difference else ""
    return f"{start}, {by_erm} {name} ({facts}) and {against}."


def _recall_of_unseen(found: LeaveOneOut) -> str:
    """Mean recall of the classes that heads never saw, against the same without a head."""
    mean = found.mean
    ends = ", ".join(map(short, mean.trained.interval_95 or ()))
    interval = f" [{ends}]" if ends else ""
    texts = f" (texts {as_text(found.classes[0].prompts)})" if not found.is_chosen else ""
    return (
        f"Heads of {as_text(found.run)} find **{short(mean.trained.score)}**{interval} of the "
        f"{mean.samples:,} {found.unit} of the {plural(len(found.classes), 'class', 'classes')} "
        f"that they never saw{texts}, mean over classes; without a head it is "
        f"{short(mean.plain.score)} (difference {mean.gain.text()}), chance {short(found.chance)}."
    )


def difference_text(difference: Difference) -> str:
    """``difference -.009, 95 % interval -.047 to +.029``."""
    text = f"difference {signed(difference.mean)}"
    if difference.interval_95 is None:
        return text
    low, high = difference.interval_95
    return f"{text}, 95 % interval {signed(low)} to {signed(high)}"


def _interval_text(found: Spread) -> str:
    if found.interval_95 is None:
        return ""
    low, high = found.interval_95
    return f" (95 % interval {short(low)} to {short(high)}, over {as_text(found.group_name)})"


def _remarks(run: Run) -> list[str]:
    """Absent classes, and frames without an image: both change what a score means."""
    texts = [as_text(line) for line in run.data.missing_lines()]
    if run.record.command != "zeroshot" and run.main.heads[0].recipe.loss.leave_out:
        unseen = "These scores are of seen classes. Recall of the unseen ones: "
        return [*texts, f"{as_text(run.title)}: {unseen}`raffect zeroshot --head RUN`."]
    score = run.main.heads[0].scores["last"]
    if score.absent:
        names = enumerate_words([as_text(run.task.describe(name)) for name in score.absent])
        what = "have no frame" if len(score.absent) > 1 else "has no frame"
        if not run.kind.counts_absent:
            left_out = f"{what} in the validation split and no part in {run.kind.title}"
            return [*texts, f"{as_text(run.title)}: {names} {left_out}."]
        present = len(score.outputs) - len(score.absent)
        others = short(score.over_present(mean_score(run.main.heads, "last")))
        texts.append(
            f"{as_text(run.title)}: {names} {what} in the validation split, which counts as 0 in "
            f"{run.kind.title}; over the {present} {run.kind.parts} that occur, the main setting "
            f"has {others}."
        )
    return texts


def compare(difference: float, interval: Interval | None, level: float = 0.0) -> str:
    """Whether a score is above or below another one, and whether that is clear.

    Args:
        difference: To the other score.
        interval: Of the score or the difference.
        level: Where in the interval both scores would be equal.
    """
    if round(difference, 3) == 0:
        return "equal to"
    word = "above" if difference > 0 else "below"
    if interval is None:
        return f"{word} (there is no interval)"
    return f"not clearly {word}" if interval[0] <= level <= interval[1] else word


def plural(count: int, word: str, words: str = "") -> str:
    """``1 head``, ``1,200 heads``; ``words`` where the plural has another ending."""
    return f"{count:,} {word if count == 1 else words or f'{word}s'}"


def enumerate_words(words: Sequence[str]) -> str:
    """``a, b and c``."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
