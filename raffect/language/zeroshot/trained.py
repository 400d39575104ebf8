"""Trained heads that compare with texts, as `raffect zeroshot --head` takes them from runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from raffect.bank.format import Identity
from raffect.config import ZeroshotConfig
from raffect.datasets.labels import read_labels, select_split
from raffect.datasets.targets import KIND
from raffect.errors import RaffectError, require
from raffect.heads.checkpoint import HeadCard, load_batch, require_encoder
from raffect.heads.head_batch import EmbeddingSpec
from raffect.heads.head_kinds import read_spec
from raffect.heads.prompts import PromptSpec
from raffect.language.leaks import base_of, bases_of
from raffect.language.sources import Source
from raffect.metrics.scores import Snapshot
from raffect.recipe import plain
from raffect.runs.data import Dataset
from raffect.runs.pick import PickedHead, main_heads, sound_heads
from raffect.runs.spread import group_by_settings, varying
from raffect.storage.paths import locate
from raffect.storage.records import Record

_LEAVE_OUT = "loss.leave_out"


@dataclass(frozen=True, kw_only=True)
class Origin(Record):
    """Where one trained head is from.

    Attributes:
        name: Of its run.
        id: Its own, in the run.
        snapshot: Which of its epochs it is.
        epoch: That epoch.
        sha256: Of its tensors.
        labels_sha256: Of the captions that it was trained on.
    """

    name: str
    id: str
    snapshot: Snapshot
    epoch: int
    sha256: str
    labels_sha256: str


@dataclass(frozen=True, kw_only=True)
class Origins(Record):
    """Which heads texts were compared through; ``trained.json`` of the run folder."""

    heads: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class TrainedHeads:
    """Heads of some runs.

    Attributes:
        sources: What gives vectors, one a head.
        cards: What is known about each.
        notes: What was left out and why.
    """

    sources: Sequence[Source] = ()
    cards: Sequence[HeadCard] = ()
    notes: Sequence[str] = ()

    @property
    def leaves_out(self) -> bool:
        """Whether the heads were trained without one class each."""
        return any(source.recipe.loss.leave_out for source in self.sources)

    @property
    def origins(self) -> Origins:
        """Where they are from."""
        pairs = zip(self.sources, self.cards, strict=True)
        return Origins(
            heads=tuple(
                Origin(
                    name=source.name,
                    id=card.id,
                    snapshot=card.snapshot,
                    epoch=card.epoch,
                    sha256=card.sha256,
                    labels_sha256=card.data.labels_sha256,
                )
                for source, card in pairs
            )
        )

    @property
    def caveats(self) -> list[str]:
        """What the data that they were trained on makes every score say."""
        found = (caveat for card in self.cards for caveat in card.data.trained_caveats)
        return list(dict.fromkeys(found))


def read_trained(config: ZeroshotConfig, bank: Identity) -> TrainedHeads:
    """The heads that ``--head`` names.

    Args:
        config: The command's.
        bank: The encoder of its bank.

    Raises:
        RaffectError: If a head does not compare with texts, is of another encoder, or two runs have
            one name.
    """
    heads, notes = _pick(config)
    _require_names(heads)
    sources = []
    for head in heads:
        spec = _require_contrastive(head)
        require_encoder(head.card, bank, head.folder, config.bank)
        batch, _ = load_batch(head.folder, torch.device("cpu"))
        sources.append(Source(plain(head.recipe), _name_of(head.run), spec, batch.state(0)))
    return TrainedHeads(sources, [head.card for head in heads], notes)


def _pick(config: ZeroshotConfig) -> tuple[list[PickedHead], list[str]]:
    """Heads of each run's main setting, or all that were trained without one class each."""
    found: dict[str, PickedHead] = {}
    notes: list[str] = []
    for path in config.head:
        sound = sound_heads(path, config.epoch, notes, "is used")
        leaving = [head for head in sound if head.recipe.loss.leave_out]
        if leaving:
            _require_one_setting(path, leaving)
        chosen = leaving or main_heads(path, sound, notes)
        found |= {head.card.sha256: head for head in chosen if head.card.sha256 not in found}
    _require_one_setting_a_run(list(found.values()))
    kinds = {bool(head.recipe.loss.leave_out) for head in found.values()}
    require(
        len(kinds) < 2,
        "--head: some heads were trained without a class and some with all; give them apart",
    )
    return list(found.values()), list(dict.fromkeys(notes))


def _other_settings(heads: Sequence[PickedHead]) -> list[str]:
    """Settings in which heads differ beside the class that they leave out."""
    return [name for name in varying(group_by_settings(heads)) if name != _LEAVE_OUT]


def _require_one_setting(path: Path, heads: Sequence[PickedHead]) -> None:
    """Refuse heads without one class each that differ in other settings as well."""
    others = _other_settings(heads)
    require(
        not others,
        f"{path}: heads without one class differ in {', '.join(others)} as well; name the folders "
        "of single heads, RUN/weights/<head>/last",
    )


def _require_one_setting_a_run(heads: Sequence[PickedHead]) -> None:
    """Refuse single heads of a run that differ in settings, whose scores have one name."""
    by_run: dict[Path, list[PickedHead]] = {}
    for head in heads:
        by_run.setdefault(_run_of(head.run), []).append(head)
    for run, found in by_run.items():
        others = _other_settings(found)
        require(
            not others,
            f"--head: heads of {run} differ in {', '.join(others)}; give those of one setting, and "
            "of others to another command",
        )


def _require_contrastive(head: PickedHead) -> EmbeddingSpec:
    """What a head is, if it compares."""
    spec = read_spec(head.card.head, head.folder / "config.json")
    task = head.card.task
    require(
        spec.kind != PromptSpec.kind,
        f"{head.folder}: a head of learnt prompts, which are texts themselves; judge it by "
        "`raffect evaluate`, and give --head heads that were trained on captions",
    )
    if task.kind != KIND or not (isinstance(spec, EmbeddingSpec) and spec.compares):
        raise RaffectError(
            f"{head.folder}: a head of task {task.name} ({task.kind}), which compares with no "
            "text; --head needs heads that were trained on captions"
        )
    # Vectors of a teacher are no vectors of texts, unless the head maps texts as it maps features
    targets = head.card.data.targets
    maps_texts = type(spec).embed_texts is not EmbeddingSpec.embed_texts
    require(
        maps_texts or targets is None or targets.image_sha256 != "",
        f"{head.folder}: was trained against a teacher, whose vectors are not those of texts; "
        "--head needs heads that were trained on captions, or a projection",
    )
    return spec


def _require_names(heads: Sequence[PickedHead]) -> None:
    """Refuse two runs of one name, whose heads would have one name."""
    runs: dict[str, Path] = {}
    for head in heads:
        name, run = _name_of(head.run), _run_of(head.run)
        require(
            runs.setdefault(name, run) == run,
            f"--head {head.run}: another run is called {name} as well ({runs[name]}); rename one",
        )


def _run_of(path: Path) -> Path:
    """The run folder that was named, or in which the one head lies that was named."""
    path = path.absolute()
    is_head = (path / "config.json").exists() and path.parent.parent.name == "weights"
    return path.parents[2] if is_head else path


def _name_of(path: Path) -> str:
    return _run_of(path).name


_SEEN = {
    "validation": "their scores here are optimistic",
    "test": "their scores by `raffect evaluate --split test` are optimistic",
    "train": "on folds, which chose the prompt set, their scores are optimistic",
}
"""What it means that captions of a split's videos trained a head."""


def seen_lines(trained: TrainedHeads, dataset: Dataset) -> list[str]:
    """What heads have seen of the videos that they are judged on: their captions say so.

    Args:
        trained: The heads.
        dataset: What they are judged on; its training split, if it has one, chooses prompt sets.
    """
    lines, judged = [], _judged_videos(dataset)
    pairs = zip(trained.sources, trained.cards, strict=True)
    runs = {source.name: card for source, card in pairs}
    for name, card in runs.items():
        if (videos := _caption_videos(card)) is None:
            unknown = f"what trained the heads of {name} is not known"
            gone = f"the captions that trained the heads of {name} are not at {card.data.labels}"
            why = f"{gone} any more" if card.data.labels else unknown
            lines.append(f"caveat: {why}: they may have seen these very videos")
            continue
        for split, means in _SEEN.items():
            theirs = judged.get(split, set())
            if count := len(theirs & videos):
                lines.append(
                    f"caveat: captions of {count} of the {len(theirs)} {split} videos trained the "
                    f"heads of {name}: {means}"
                )
    return lines


def _judged_videos(dataset: Dataset) -> dict[str, set[str]]:
    """Videos of the splits that heads are judged on, now or later.

    The test split is not read for zero-shot, but the run folder can be evaluated on it.
    """
    test = select_split(read_labels(locate(dataset.facts.labels)), "test")
    opened = {name: set(map(base_of, index.videos)) for name, index in dataset.splits.items()}
    return {"test": bases_of(test)} | opened


def _caption_videos(card: HeadCard) -> set[str] | None:
    """Training videos of a head's captions; None if their table is gone or another one."""
    if not card.data.labels or not (path := locate(card.data.labels)).is_file():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != card.data.labels_sha256:
        return None
    return bases_of(select_split(read_labels(path), "train"))
