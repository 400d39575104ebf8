"""`raffect compare`: which encoder is worth its GPU hours on a user's own data.

    manifest ── a bank an encoder ─┐
    banks that are there ──────────┼─ the same heads on each ─ scores, paired differences, costs
    all of them, concatenated ─────┘

Banks are made by `raffect extract`, heads by `raffect train`, each in its own folder below OUT: a
stop costs a shard or an epoch, and another encoder can be added without doing anything again.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raffect.bank.features import FeatureIndex
from raffect.bank.format import Bank
from raffect.bank.inspect import describe_bank
from raffect.bank.running import note_of_run
from raffect.config import CompareConfig, EncoderConfig, ExtractConfig, TrainConfig
from raffect.config.compare import name_encoder, read_encoder
from raffect.datasets.manifest import read_manifest
from raffect.encoders.flops import count_flop
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError, require
from raffect.evaluation.comparison import (
    ComparedBank,
    CompareResult,
    Comparison,
    JudgedRun,
    compare_runs,
)
from raffect.extraction.extract import check_embedded, extract, is_finished
from raffect.extraction.rates import read_rate
from raffect.metrics.scores import Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import describe_run
from raffect.ray_session.session import ray_session
from raffect.recipe import flatten, plain
from raffect.reporting.compare import draw_comparison
from raffect.runs.conclusions import RunResult
from raffect.runs.data import Dataset, find_labels
from raffect.runs.folder import RunFolder
from raffect.runs.spread import NAMES, finished, spread
from raffect.storage.atomic import require_writable, write_atomic
from raffect.training.run_batch import open_data
from raffect.training.train import train_on

_FILES = ("compare.json", "compare.csv", "compare.png")
_JOINED = "joined"
_VERSION = 1
"""Of what is computed: another one makes known results old."""


@dataclass(frozen=True)
class _Candidate:
    """A bank to compare.

    Attributes:
        letter: Names it in table and figure.
        name: As the table has it.
        folder: Name of its folders below OUT.
        path: Of the bank.
        encoder: What makes it here; None for a bank that was given, and for joined ones.
    """

    letter: str
    name: str
    folder: str
    path: Path
    encoder: EncoderConfig | None = None

    @property
    def origin(self) -> Literal["encoded", "given", "joined"]:
        if self.encoder is not None:
            return "encoded"
        return "joined" if self.name == _JOINED else "given"


def compare(config: CompareConfig) -> CompareResult:
    """Make what is missing of banks and heads, compare them, and write table and figure.

    Raises:
        RaffectError: If an encoder or its weights are missing, banks lack frames that others have,
            or whatever `raffect.extract` and `raffect.train` refuse.
    """
    # What is compared, and whether that is known
    candidates = _list_candidates(config)
    against = _find_against(config, candidates)
    labels = find_labels(config.labels, config.task)
    recipes = _read_recipes(config)
    fingerprint = _fingerprint(config, labels, candidates, recipes)
    if (known := _read_known(config.out, fingerprint)) is not None:
        return CompareResult(comparison=known, out=config.out, is_old=True)

    # Banks
    _require_weights(candidates)
    require_writable(config.out)
    with note_of_run(config.out):
        _extract_banks(config, candidates)
        if config.join:
            parts = [found.path for found in candidates if found.origin != "joined"]
            from raffect.bank.join import join_banks

            join_banks(parts, candidates[-1].path, "concatenate")

        # Heads, then all of them beside each other
        found = _judge(config, candidates, recipes, against, fingerprint)
        _write(config.out, found)
    return CompareResult(comparison=found, out=config.out)


# What is compared


def _list_candidates(config: CompareConfig) -> list[_Candidate]:
    """Encoders, given banks, and the joined one, each with a name and a letter of its own.

    Raises:
        RaffectError: If two have one name.
    """
    banks, found = config.out.absolute() / "banks", []
    for word in config.encoders:
        encoder = read_encoder(word)
        name = name_encoder(encoder)
        found.append((name, banks / _as_folder(name), encoder))
    paths = list(dict.fromkeys(path.absolute() for path in config.banks))
    names = [path.name for path in paths]
    for path in paths:
        name = path.name if names.count(path.name) == 1 else str(path)
        found.append((name, path, None))
    if config.join:
        found.append((_JOINED, banks / _JOINED, None))
    folders = [_as_folder(name) for name, _, _ in found]
    for (name, _, _), folder in zip(found, folders, strict=True):
        require(
            folders.count(folder) == 1,
            f"{name}: two encoders or banks have this name, or nearly; give each once, and rename "
            "one of two files or folders of the same name",
        )
    letters = zip(string.ascii_uppercase, found, folders, strict=False)
    return [
        _Candidate(letter, name, folder, path, encoder)
        for letter, (name, path, encoder), folder in letters
    ]


def _as_folder(name: str) -> str:
    """A name that any file system takes; names that differ in other signs alone share it."""
    return re.sub(r"[^\w.@+-]+", "-", name, flags=re.A).strip("-.")


def _find_against(config: CompareConfig, candidates: Sequence[_Candidate]) -> str:
    """``best``, ``first``, or the letter of the one that ``--against`` names."""
    if config.against in ("best", "first"):
        return config.against
    word = config.against
    for found in candidates:
        if word in (found.name, str(found.path)):
            return found.letter
        if found.encoder is not None and found.encoder == read_encoder(word):
            return found.letter
    names = ", ".join(found.name for found in candidates)
    raise RaffectError(f"--against {word}: expected best, first, or one of {names}")


def _read_recipes(config: CompareConfig) -> dict[str, TrainConfig]:
    """What heads are trained with, by name; bank and folder are still to be filled in.

    Raises:
        RaffectError: If there is no such recipe, or two have one name.
    """
    settings = {"epochs": config.epochs} if config.epochs else {}
    recipes: dict[str, TrainConfig] = {}
    for word in dict.fromkeys(config.recipe):
        name = Path(word).stem
        require(name not in recipes, f"--recipe {word}: two recipes are named {name}; rename one")
        recipes[name] = TrainConfig.from_recipe(
            word,
            settings,
            task=config.task,
            bank=config.out,
            labels=config.labels,
            out=config.out,
            seed=config.seed,
            num_seeds=config.num_seeds,
            select=config.select,
            device=config.device,
            address=config.address,
        )
    return recipes


# Banks


def _require_weights(candidates: Sequence[_Candidate]) -> None:
    """Refuse what could not be encoded before hours are spent on the first encoder."""
    for found in candidates:
        if found.encoder is None:
            continue
        try:
            resolve(found.encoder)
        except RaffectError as error:
            raise RaffectError(f"--encoders {found.name}: {error}") from error


def _extract_banks(config: CompareConfig, candidates: Sequence[_Candidate]) -> None:
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
    with ray_session(config.address):
        for number, (found, settings) in enumerate(todo, 1):
            _say(f"bank {number} of {len(todo)}: {found.name}")
            extract(settings)


def _extraction_of(config: CompareConfig, found: _Candidate) -> ExtractConfig:
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


def _describe_bank(found: _Candidate, dataset: Dataset) -> ComparedBank:
    """A bank and its costs, without the rate of joined ones."""
    bank = Bank(found.path)
    rate, note = None, "frames/s blank, since the bank was given and nothing was encoded here"
    if found.origin == "encoded":
        rate, note = read_rate(bank)
        note = f"frames/s measured while {rate.where()} made the bank" if rate else note
        note = note if rate else f"frames/s blank: {note}"
    flop = [count_flop(identity) for identity in [bank.require_identity()]]
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
    candidates: Sequence[_Candidate],
    recipes: dict[str, TrainConfig],
    against: str,
    fingerprint: str,
) -> Comparison:
    """Train what is missing on every bank, and compare."""
    snapshot: Snapshot = "cv" if config.select == "cv" else "last"
    banks: list[ComparedBank] = []
    runs: list[JudgedRun] = []
    notes: list[str] = []
    chance, first = None, None
    for number, found in enumerate(candidates, 1):
        _say(f"heads on bank {number} of {len(candidates)}: {found.name}")
        dataset = _open(config, found, recipes)
        frames = _frames_of(dataset)
        first = first or (found.path, frames)
        _require_same_frames(first, (found.path, frames))
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


def _open(config: CompareConfig, found: _Candidate, recipes: dict[str, TrainConfig]) -> Dataset:
    """The labelled frames of a bank, all of which have to be there."""
    first = next(iter(recipes.values()))
    settings = replace(first, bank=found.path, allow_incomplete=True)
    dataset = open_data(settings, [recipe.head for recipe in recipes.values()])
    require(
        not dataset.facts.incomplete,
        f"{found.path}: {dataset.facts.incomplete} are planned and not there; finish the bank with "
        f"`raffect extract` (`{Bank(found.path).repair_command}` withdraws what is damaged)",
    )
    return dataset


def _frames_of(dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """Frames (or first frames of clips) of each video of each split, ascending."""
    return {split: dict(_iter_videos(index)) for split, index in dataset.splits.items()}


def _iter_videos(index: FeatureIndex) -> Iterator[tuple[str, np.ndarray]]:
    order = np.lexsort((index.frame, index.video))
    ends = np.flatnonzero(np.diff(index.video[order])) + 1
    for rows in np.split(order, ends):
        yield index.videos[index.video[rows[0]]], index.frame[rows]


def _require_same_frames(
    one: tuple[Path, dict[str, dict[str, np.ndarray]]],
    two: tuple[Path, dict[str, dict[str, np.ndarray]]],
) -> None:
    """Refuse banks whose heads would learn from, or be judged on, different frames.

    Raises:
        RaffectError: Counts them, and names the first one.
    """
    for split, ours in one[1].items():
        theirs = two[1][split]
        for (has, there), (lacks, here) in (
            ((one[0], ours), (two[0], theirs)),
            ((two[0], theirs), (one[0], ours)),
        ):
            lacking = {
                video: absent
                for video, frames in sorted(there.items())
                if len(absent := np.setdiff1d(frames, here.get(video, [])))
            }
            if lacking:
                video, absent = next(iter(lacking.items()))
                raise RaffectError(
                    f"{lacks}: lacks {sum(map(len, lacking.values())):,} labelled {split} frames "
                    f"that {has} has, first {video} frame {absent[0]}; banks are compared on the "
                    "same frames alone: `raffect extract` them, or leave one bank out"
                )


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


def _fingerprint(
    config: CompareConfig,
    labels: Path,
    candidates: Sequence[_Candidate],
    recipes: dict[str, TrainConfig],
) -> str:
    """SHA-256 of all that decides the results, as far as files say it."""
    require(labels.is_file(), f"{labels}: no such label table; make one with `raffect prepare`")
    files = [labels]
    if config.manifest is not None and config.encoders:
        path = config.manifest
        path = path / "manifest.parquet" if path.is_dir() else path
        require(path.is_file(), f"{path}: no such manifest; make one with `raffect prepare`")
        files.append(path)
    parts: list[Any] = [_VERSION, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]]
    parts += [[config.join, config.num_seeds, config.select, config.against]]
    parts += [{name: flatten(plain(recipe)) for name, recipe in recipes.items()}]
    for found in candidates:
        encoder = vars(found.encoder) if found.encoder else None
        given = found.origin == "given"
        digest = Bank(found.path).require().digest() if given else ""
        parts.append([found.name, encoder, str(found.path) if given else "", digest])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_known(out: Path, fingerprint: str) -> Comparison | None:
    """What an earlier run of the same command found; None without one, or without a file of it."""
    if not all((out / name).is_file() for name in _FILES):
        return None
    file, remedy = out / "compare.json", "delete it and run the same command again"
    found = Comparison.from_json(file.read_bytes(), file, remedy)
    return found if found.fingerprint == fingerprint else None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
