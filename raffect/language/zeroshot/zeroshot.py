"""`raffect zeroshot`: recognise classes by texts; every prompt set becomes a head in a run folder.

Prompt sets learn nothing, so their scores on held-out folds of the training split are those of the
whole split; they choose the set, and the validation split is not looked at for that. Texts are
compared with features, or with what trained heads make of them; features then stand beside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from raffect.bank.clips import ClipIndex
from raffect.bank.format import Bank
from raffect.bank.windows import Window
from raffect.config import ZeroshotConfig
from raffect.datasets.tasks import Task
from raffect.encoders.text import TextEncoder, open_text_encoder
from raffect.errors import require
from raffect.language.classifiers import build_classifier
from raffect.language.prompt_sets import TaskPrompts, prompts_for, shipped_for
from raffect.language.sources import plain_source
from raffect.language.zeroshot.folder import open_folder
from raffect.language.zeroshot.judging import Group, Judge, Judged, read_splits
from raffect.language.zeroshot.leave_one_out import judge_left_out, require_left_out
from raffect.language.zeroshot.result import ZeroshotResult, describe_scores
from raffect.language.zeroshot.trained import TrainedHeads, read_trained, seen_lines
from raffect.progress import Progress, stage
from raffect.recipe import TextConfig
from raffect.runs.conclusions import conclude_sweep
from raffect.runs.cross_validation import keep_folds
from raffect.runs.data import open_dataset, pick_device
from raffect.runs.folder import RunFolder
from raffect.runs.windows import describe_other_samples, read_windows
from raffect.storage.tables import write_table


def zeroshot(config: ZeroshotConfig) -> ZeroshotResult:
    """Judge prompt sets on a bank, by themselves or through trained heads.

    Raises:
        RaffectError: If a class has no prompt, a prompt is too long, the weights are not those of
            the bank, a head does not compare with texts, or the run folder holds something else.
    """
    # Data, texts and trained heads, which are checked before anything is written
    cv = config.select == "cv"
    identity = Bank(config.bank).require_identity()
    trained = read_trained(config, identity) if config.head else TrainedHeads()
    with stage(f"reading {config.labels} and {config.bank}"):
        wanted = ("train", "validation") if cv else ("validation",)
        dataset = open_dataset(
            config.bank,
            config.labels,
            config.task,
            wanted,
            allow_incomplete=config.allow_incomplete,
            around=read_windows(source.recipe.head for source in trained.sources),
        )
    fold_of = dataset.fold_of_frames(config.folds) if cv else None
    prompts = _read_prompts(config, dataset.task)
    require_left_out(config, trained, dataset.task, prompts)
    encoder = open_text_encoder(identity, config.bank, config.weights)
    groups = _build_groups(config, dataset.task, prompts, encoder, trained)
    config = replace(config, task=dataset.task.name, prompts=tuple(f.name for f in prompts))
    contents = {found.name: found.content for found in prompts}
    folder = open_folder(config, dataset, contents, trained.origins)
    if fold_of is not None:
        keep_folds(folder, fold_of)
    for found in prompts:
        _write_texts(folder, found, encoder)

    # Held-out folds first, then the validation split
    device = pick_device(config.device)
    has_threshold = config.other == "threshold"
    judge = Judge(dataset, folder, device, config.folds if cv else 0, has_threshold)
    judged = _judge(judge, groups, wanted)

    # Tables, and scores as the field has them
    found = conclude_sweep(
        folder, dataset.facts, judged.records, _axes(config, trained), saved_heads=True
    )
    unknown = {one.name: encoder.unknown_words(one.prompts) for one in prompts}
    described = prompts[0].described if not has_threshold else list(dataset.task.outputs)
    unit = "clips" if isinstance(dataset.splits["validation"], ClipIndex) else "frames"
    result = describe_scores(folder, found, judged, described, unknown, unit)
    if not config.head:
        return result
    caveats = [*dict.fromkeys((*dataset.facts.caveats, *trained.caveats))]
    tables = ()
    if trained.leaves_out:
        tables = judge_left_out(folder, judged, dataset, described, unit, caveats)
    other = describe_other_samples(trained.cards, dataset.facts.of_clips)
    seen = (*(f"caveat: {what}" for what in other), *seen_lines(trained, dataset))
    return replace(result, trained=trained, left_out=tables, seen=seen)


def _judge(judge: Judge, groups: Sequence[Group], splits: Sequence[str]) -> Judged:
    """Judge all groups; those of one window share what was read."""
    found, rows, window = Judged(), {}, None
    with Progress("zeroshot", sum(len(group.recipes) for group in groups), "heads") as progress:
        for group in sorted(groups, key=lambda group: group.source.window):
            if group.source.window != window:
                window = group.source.window
                head = group.source.recipe.head
                rows = read_splits(judge.dataset, splits, head, judge.device)
            judge.run(group, rows, found)
            progress.advance(len(group.recipes))
    return found


def _axes(config: ZeroshotConfig, trained: TrainedHeads) -> list[str]:
    """Settings in which the heads may differ, by dotted name."""
    axes = ["text.prompts", *(["text.ensemble"] if len(config.ensemble) > 1 else [])]
    return [
        *axes,
        *(["text.head"] if trained.sources else []),
        *(["loss.leave_out"] if trained.leaves_out else []),
    ]


def _read_prompts(config: ZeroshotConfig, task: Task) -> list[TaskPrompts]:
    """The prompt sets of a configuration for a task."""
    require(
        task.kind in ("multiclass", "multilabel"),
        f"{config.labels}: task {task.name} has numbers, which no text names; expected classes or "
        "labels",
    )
    names = []
    for name in config.prompts:
        names += shipped_for(task) if name == "all" else [name]
    found = [prompts_for(name, task) for name in dict.fromkeys(names)]
    stems = [prompts.name for prompts in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    require(not twice, f"--prompts: two sets are called {', '.join(twice)}; rename a file")
    described = [prompts.described for prompts in found]
    require(
        all(names == described[0] for names in described),
        "--prompts: some sets describe Other and some do not, their scores cannot be compared; "
        "give them apart",
    )
    silent = len(task.outputs) - len(described[0])
    require(
        config.other == "never" or silent == 1,
        f"--other threshold: {silent} classes without prompts, expected one (Other)",
    )
    return found


def _build_groups(
    config: ZeroshotConfig,
    task: Task,
    prompts: Sequence[TaskPrompts],
    encoder: TextEncoder,
    trained: TrainedHeads,
) -> list[Group]:
    """Heads of each source: features, and every trained head."""
    # All prompts at once, in full batches
    encoder.encode([text for found in prompts for text in found.prompts])

    # Features as they are, and the mean of what each of the heads reads
    windows = dict.fromkeys([*(source.window for source in trained.sources), Window()])
    plain = [plain_source(task.name, window, encoder.identity) for window in windows]
    groups = []
    for source in (*trained.sources, *plain):
        recipes, classifiers = [], []
        for found, ensemble in itertools.product(prompts, dict.fromkeys(config.ensemble)):
            text = TextConfig(
                prompts=found.name,
                ensemble=ensemble,
                other=config.other,
                against=config.against,
                head=source.name,
            )
            recipes.append(replace(source.recipe, task=task.name, text=text))
            embed = None if source.spec is None else source.embed_texts
            classifiers.append(build_classifier(found, encoder, ensemble, config.against, embed))
        # What stands for the run: trained heads, unless each of them lacks a class
        is_main = not trained.sources or bool(source.name) != trained.leaves_out
        groups.append(Group(source, recipes, classifiers, keeps_folds=is_main))
    return groups


def _write_texts(folder: RunFolder, prompts: TaskPrompts, encoder: TextEncoder) -> None:
    """Prompts with their vectors, and both fingerprints of the weights."""
    texts = prompts.prompts
    vectors = encoder.encode(texts)
    table = pa.table(
        {
            "prompt": pa.array(texts, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
    )
    metadata = {"raffect": "texts/1", "encoder": encoder.identity.to_bytes().decode()}
    write_table(table, folder.path / "prompts" / f"{prompts.name}.parquet", metadata)
