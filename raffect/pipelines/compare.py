"""`raffect compare`: which encoder is worth its GPU hours on a user's own data.

    manifest ── a bank an encoder ─┐
    banks that are there ──────────┼─ the same heads on each ─ scores, paired differences, costs
    all of them, concatenated ─────┘

Banks are made by `raffect extract`, heads by `raffect train`, each in its own folder below OUT: a
stop costs a shard or an epoch, and another encoder can be added without doing anything again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from raffect.bank.format import Bank
from raffect.bank.inspect import describe_bank
from raffect.bank.join import join_banks
from raffect.bank.running import note_of_run
from raffect.bank.same_frames import list_frames, require_same_frames
from raffect.config import CompareConfig, ExtractConfig, TrainConfig
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.encoders.flops import count_flop
from raffect.encoders.timm_tower import require_size
from raffect.encoders.weights import is_timm, resolve
from raffect.errors import RaffectError, require
from raffect.evaluation.comparison import (
    ComparedBank,
    CompareResult,
    Comparison,
    JudgedRun,
    compare_runs,
)
from raffect.extraction.asked_encoder import check_embedded
from raffect.extraction.extract import extract, is_finished
from raffect.extraction.rates import read_rate
from raffect.metrics.scores import Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.pipelines.compared import (
    Candidate,
    find_against,
    list_candidates,
    read_recipes,
    take_fingerprint,
)
from raffect.pipelines.known import read_known
from raffect.pipelines.pictures import require_pictures
from raffect.provenance import describe_run
from raffect.ray_session.session import ray_session
from raffect.reporting.compare import draw_comparison
from raffect.runs.conclusions import RunResult
from raffect.runs.data import Dataset, find_labels
from raffect.runs.folder import RunFolder
from raffect.runs.spread import NAMES, finished, spread
from raffect.storage.atomic import require_writable, write_atomic
from raffect.training.run_batch import open_data
from raffect.training.train import train_on

_FILES = ("compare.json", "compare.csv", "compare.png")


def compare(config: CompareConfig) -> CompareResult:
    """Make what is missing of banks and heads, compare them, and write table and figure.

    Raises:
        RaffectError: If an encoder or its weights are missing, banks lack frames that others have,
            or whatever `raffect.extract` and `raffect.train` refuse.
    """
    # What is compared, and whether that is known
    candidates = list_candidates(config)
    against = find_against(config, candidates)
    labels = find_labels(config.labels, config.task)
    recipes = read_recipes(config)
    fingerprint = take_fingerprint(config, labels, candidates, recipes)
    if (known := read_known(Comparison, config.out, _FILES, fingerprint)) is not None:
        return CompareResult(comparison=known, out=config.out, is_old=True)

    # Inputs, all of them before anything is made
    require(
        not Bank(config.out).exists,
        f"--out {config.out}: is a bank; name a folder of its own for the comparison",
    )
    _require_weights(candidates)
    if any(found.origin == "encoded" for found in candidates):
        _require_labelled(config, labels)
    _require_alike([found for found in candidates if found.origin == "given"], recipes)
    require_writable(config.out)

    # Banks
    with note_of_run(config.out):
        _extract_banks(config, candidates)
        if config.join:
            parts = [found.path for found in candidates if found.origin != "joined"]
            join_banks(parts, candidates[-1].path, "concatenate")

        # Heads, then all of them beside each other
        if any(found.origin != "given" for found in candidates):
            _require_alike(candidates, recipes)
        found = _judge(config, candidates, recipes, against, fingerprint)
        _write(config.out, found)
    return CompareResult(comparison=found, out=config.out)


# Banks


def _require_weights(candidates: Sequence[Candidate]) -> None:
    """Refuse what could not be encoded before hours are spent on the first encoder."""
    for found in candidates:
        if found.encoder is None:
            continue
        try:
            source = resolve(found.encoder)
            if is_timm(source.model):
                require_size(source)
        except RaffectError as error:
            raise RaffectError(f"--encoders {found.name}: {error}") from error


def _require_labelled(config: CompareConfig, labels: Path) -> None:
    """Refuse labels of other data than the manifest's before anything is encoded."""
    assert config.manifest is not None  # checked with the settings
    tables = read_manifest(config.manifest), read_labels(labels)
    listed, labelled = (set(table["video"].unique().to_pylist()) for table in tables)
    require(
        bool(listed & labelled),
        f"--manifest {config.manifest}: lists no video or picture of {labels}; check --manifest "
        "and --labels",
    )


def _require_alike(candidates: Sequence[Candidate], recipes: Mapping[str, TrainConfig]) -> None:
    """Refuse banks of other frames than the first one's before any head is trained."""
    first = None
    for found in candidates:
        frames = found.path, list_frames(_open(found, recipes).splits)
        first = first or frames
        require_same_frames(first, frames)


def _extract_banks(config: CompareConfig, candidates: Sequence[Candidate]) -> None:
    """Encode what is missing, all encoders in one session of Ray."""
    made = [found for found in candidates if found.encoder is not None]
    if not made:
        return
    assert config.manifest is not None  # checked with the settings
    manifest, todo = read_manifest(config.manifest), []
    for found in made:
        settings = _extraction_of(config, found)
        check_embedded(settings, manifest)
        # A finished bank is compared with its encoder, which needs no Ray
        if is_finished(Bank(found.path), manifest):
            extract(settings)
        else:
            todo.append((found, settings))
    if not todo:
        return
    if not config.address:  # of a cluster only its machines may see the pictures
        require_pictures(manifest, config.manifest)
    with ray_session(config.address):
        for number, (found, settings) in enumerate(todo, 1):
            _say(f"bank {number} of {len(todo)}: {found.name}")
            extract(settings)


def _extraction_of(config: CompareConfig, found: Candidate) -> ExtractConfig:
    assert config.manifest is not None
    assert found.encoder is not None
    return ExtractConfig(
        manifest=config.manifest,
        bank=found.path,
        encoder=found.encoder,
        address=config.address,
        device=config.device,
        allow_embedded=config.allow_embedded,
    )


def _describe_bank(found: Candidate, dataset: Dataset) -> ComparedBank:
    """A bank and its costs, without the rate of joined ones."""
    bank = Bank(found.path)
    rate, note = None, "frames/s blank, since the bank was given and nothing was encoded here"
    if found.origin == "encoded":
        rate, note = read_rate(bank)
        note = f"frames/s measured while {rate.where()} made the bank" if rate else note
        note = note if rate else f"frames/s blank: {note}"
    flop = [count_flop(identity) for identity in bank.require_identity().encoders]
    return ComparedBank(
        letter=found.letter,
        name=found.name,
        origin=found.origin,
        path=str(found.path),
        data=dataset.facts,
        dim=dataset.splits["train"].dim,
        frames_per_s=rate.frames_per_s if rate else None,
        rate_note=note,
        flop=sum(one for one in flop if one) if all(flop) else None,
        size_bytes=describe_bank(bank).bytes,
    )


def _with_rate(joined: ComparedBank, parts: Sequence[ComparedBank]) -> ComparedBank:
    """A joined bank with the rate of all its encoders one after another, which is computed."""
    rates = [part.frames_per_s for part in parts]
    if not all(rates):
        note = "frames/s blank, since that of a part is not known"
        return replace(joined, frames_per_s=None, rate_note=note)
    rate = 1 / sum(1 / rate for rate in rates if rate)
    note = "frames/s computed: each frame is encoded by every part, one after another"
    return replace(joined, frames_per_s=rate, rate_note=note)


# Heads


def _judge(
    config: CompareConfig,
    candidates: Sequence[Candidate],
    recipes: Mapping[str, TrainConfig],
    against: str,
    fingerprint: str,
) -> Comparison:
    """Train what is missing on every bank, and compare."""
    snapshot: Snapshot = "cv" if config.select == "cv" else "last"
    banks: list[ComparedBank] = []
    runs: list[JudgedRun] = []
    notes: list[str] = []
    chance = None
    for number, found in enumerate(candidates, 1):
        _say(f"heads on bank {number} of {len(candidates)}: {found.name}")
        dataset = _open(found, recipes)
        for name, recipe in recipes.items():
            out = config.out.absolute() / "runs" / found.folder / name
            result = train_on(replace(recipe, bank=found.path, out=out), dataset)
            run = _read_run(result, found.letter, name, snapshot)
            lost = config.num_seeds - run.score.heads
            if lost:
                notes.append(f"{found.letter}, {name}: {lost} head(s) diverged and are in no mean")
            runs.append(run)
            chance = chance or result.chance
        bank = _describe_bank(found, dataset)
        banks.append(bank if bank.origin != "joined" else _with_rate(bank, banks))
    assert chance is not None  # there is a bank and a recipe
    kind = kind_of(banks[0].data.task)
    order = list(recipes)
    runs.sort(key=lambda run: order.index(run.recipe))
    return Comparison(
        fingerprint=fingerprint,
        run=describe_run(),
        snapshot=snapshot,
        seeds=tuple(range(config.seed, config.seed + config.num_seeds)),
        epochs={name: recipe.epochs for name, recipe in recipes.items()},
        chosen=against if against in ("best", "first") else "named",
        chance=chance,
        banks=tuple(banks),
        scores=tuple(compare_runs(runs, against, kind)),
        notes=tuple(notes),
    )


def _open(found: Candidate, recipes: Mapping[str, TrainConfig]) -> Dataset:
    """The labelled frames of a bank, all of which have to be there."""
    first = next(iter(recipes.values()))
    settings = replace(first, bank=found.path, allow_incomplete=True)
    dataset = open_data(settings, [recipe.head for recipe in recipes.values()])
    bank = Bank(found.path)
    require(
        not dataset.facts.incomplete,
        f"{found.path}: {dataset.facts.incomplete} are planned and not there; finish the bank with "
        f"`{bank.fill_command}` (`{bank.repair_command}` withdraws what is damaged)",
    )
    return dataset


def _read_run(result: RunResult, letter: str, recipe: str, snapshot: Snapshot) -> JudgedRun:
    """Scores of the heads of a run, with the statistics behind them."""
    folder, heads = RunFolder(result.folder), finished(result.records)
    score = spread(folder, heads, snapshot)
    statistics = [folder.statistics_of(head, snapshot) for head in heads]
    groups = folder.read_statistics(heads[0])
    assert score is not None  # `train` refuses a run of which no head was trained to the end
    assert groups is not None
    return JudgedRun(
        letter, recipe, result.folder, score, groups.groups, np.array(statistics, dtype=float)
    )


# Results


def _write(out: Path, found: Comparison) -> None:
    """Write figure and table, then the record, which says that all is there."""
    data = found.banks[0].data
    title = f"{data.task.name.upper()}, {NAMES[found.snapshot]}; "
    title += f"bars: 95 % interval over {data.group_name}"
    if any(bank.origin == "joined" and bank.frames_per_s for bank in found.banks):
        title += "; frames/s of joined banks are computed"
    draw_comparison(found.rows(), found.chance, title, kind_of(data.task), out / "compare")
    write_atomic(out / "compare.json", found.to_bytes())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
