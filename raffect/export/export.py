"""`raffect export`: heads, or an encoder with heads, as a folder that is ready for the Hub."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from raffect.bank.facts import DataFacts
from raffect.bank.records import Identity
from raffect.bank.windows import Window
from raffect.config import EMBEDDED_MODEL, ExportConfig
from raffect.encoders.tower import Encoder, load_encoder
from raffect.encoders.weights import encoder_of
from raffect.errors import RaffectError, as_one_line, require
from raffect.evaluation.ensemble import Ensemble, load_ensembles
from raffect.evaluation.inputs import Inputs
from raffect.export.card import write_card
from raffect.export.check import compare
from raffect.export.formats import FORMATS
from raffect.export.graph import HeadsGraph, PixelsGraph, output_names
from raffect.export.records import (
    RECORD_FILE,
    About,
    ExportedHead,
    ExportedTask,
    ExportRecord,
)
from raffect.export.samples import expected_of_file, given_to_file, take_features, take_pictures
from raffect.heads.checkpoint import HeadCard
from raffect.metrics.scores import Chance, mean_chance
from raffect.progress import stage
from raffect.provenance import git_commit, versions
from raffect.runs.data import fingerprint_of
from raffect.runs.pick import PickedHead, pick_heads
from raffect.runs.windows import describe_other_samples, describe_samples
from raffect.storage.atomic import atomic_folder
from raffect.storage.paths import sha256_of

_OWN_LICENCES = {"embedded": "Apache-2.0, raffect's own", "random": "none, drawn at random"}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A folder that was exported.

    Attributes:
        out: The folder: the file, ``export.json`` and ``README.md``.
        record: What the file is, and how it was checked.
        size_bytes: Of all files.
        notes: Which heads and decision rules were taken, and why.
    """

    out: Path
    record: ExportRecord
    size_bytes: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The result as lines of text."""
        lines = [*self.notes, *self.record.agreement.lines()]
        for task in self.record.tasks:
            if any(task.windows):
                name = task.task.name.upper()
                lines.append(f"{name}: means over time are not in the file, which sees one sample")
        lines += [f"caveat: {caveat}" for caveat in self.record.caveats]
        name, out = shlex.quote(f"USER/{self.out.name}"), shlex.quote(str(self.out))
        size = f"{self.size_bytes / 1e6:,.1f} MB"
        lines.append(f"wrote {self.out}: {self.record.file}, {RECORD_FILE}, README.md ({size})")
        return [*lines, f"next: hf upload {name} {out}, if the licences allow it"]


@dataclass(frozen=True)
class _Source:
    """What is exported, loaded.

    Attributes:
        graph: What becomes the file.
        given: Samples to compare on, as the file reads them.
        expected: What raffect predicts for them.
        where: What they are.
        shape: Of the input.
    """

    graph: nn.Module
    given: np.ndarray
    expected: dict[str, np.ndarray]
    where: str
    shape: tuple[str | int, ...]


def export_heads(config: ExportConfig) -> ExportResult:
    """Export heads, compare the file with raffect, and write it with its record and card.

    Raises:
        RaffectError: If the folder is not empty, a head or package is missing, heads do not go
            into one file, or the file differs from what raffect predicts; nothing is left then.
    """
    # What can be refused at once
    out, written_as = config.out.resolve(), FORMATS[config.format]
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    require(not taken, f"--out {config.out}: exists and is not an empty folder; name a new one")
    # It becomes the new folder by a rename, and whoever is in it would go on seeing an empty one
    require(out != Path.cwd(), f"--out {config.out}: is where you are; name a new folder")
    written_as.require_packages()
    heads, notes = pick_heads(config.run, config.epoch)
    identity = _one_encoder(heads)
    licence = config.weights_licence or _known_licence(identity, config)

    # What is exported
    ensembles, chosen = load_ensembles(heads, torch.device("cpu"), config.postprocess)
    window = _one_window(ensembles)
    graph = HeadsGraph(ensembles)
    if config.input == "pixels":
        source = _from_pixels(config, identity, ensembles, graph, window)
    else:
        source = _from_features(config, ensembles, graph, window)
    about = About(
        file=written_as.file,
        input=config.input,
        shape=source.shape,
        tasks=tuple(map(_describe, ensembles)),
        encoder=identity,
        caveats=_caveats(identity, ensembles, config.input),
        data_licence=config.data_licence,
        weights_licence=licence,
        versions=versions(),
        git_commit=git_commit(),
    )

    # The folder, which is there once the file in it was checked
    with atomic_folder(out) as folder:
        with stage(f"writing {about.file}"):
            graph = source.graph.eval().requires_grad_(requires_grad=False)
            written_as.write(folder, graph, torch.from_numpy(source.given), about)
        with stage(f"checking {about.file}"):
            agreement = compare(
                written_as.open(folder),
                source.given,
                source.expected,
                runtime=written_as.runtime_version,
                source=source.where,
            )
        digests = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
        record = ExportRecord(**vars(about), sha256=digests, agreement=agreement)
        (folder / RECORD_FILE).write_bytes(record.to_bytes())
        card = write_card(record, as_one_line(out.name), config.licence)
        (folder / "README.md").write_text(card, "utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
    return ExportResult(out=out, record=record, size_bytes=size, notes=(*notes, *chosen))


def _from_features(
    config: ExportConfig, ensembles: Sequence[Ensemble], graph: HeadsGraph, window: Window
) -> _Source:
    inputs, where = take_features(ensembles[0].heads[0], window, config.num_checked)
    given = given_to_file(inputs)
    expected = expected_of_file(ensembles, inputs, window)
    return _Source(graph, given, expected, where, ("N", *given.shape[1:]))


def _from_pixels(
    config: ExportConfig,
    identity: Identity,
    ensembles: Sequence[Ensemble],
    heads: HeadsGraph,
    window: Window,
) -> _Source:
    require(
        window.length == 1,
        f"--input pixels: these heads read windows of {window.length} frames, and a file of "
        "pictures sees one; expected --input features",
    )
    encoder = _load(config, identity)
    side = config.size or encoder.preprocess.side
    require(
        side <= encoder.preprocess.side,
        f"--size {side}: {identity.model} takes {encoder.preprocess.side} pixels, and a file can "
        f"enlarge pictures only; expected at most {encoder.preprocess.side}",
    )
    pictures, where = take_pictures(config.images, side, config.num_checked)
    with stage("predicting pictures"):
        features = encoder.encode(list(pictures))
    expected = expected_of_file(ensembles, Inputs(features), window)
    shape = ("N", *pictures.shape[1:])
    return _Source(PixelsGraph(encoder, heads), pictures, expected, where, shape)


def _load(config: ExportConfig, identity: Identity) -> Encoder:
    """The encoder of some heads, in float32 on the CPU."""
    require(
        identity.joined is None,
        f"--input pixels: these heads read vectors of several encoders ({identity.model}); "
        "expected --input features",
    )
    wanted = replace(identity, precision="float32")
    with stage(f"loading {identity.model}"):
        encoder = load_encoder(encoder_of(wanted, config.weights), "cpu")
    if differences := wanted.differences(encoder.identity):
        what = f"--weights: not the encoder of these heads ({'; '.join(differences)})"
        raise RaffectError(f"{what}; name the weights that the bank was made with")
    return encoder


def _one_encoder(heads: Sequence[PickedHead]) -> Identity:
    """The encoder that all heads read."""
    (identity,) = heads[0].card.data.encoders
    for head in heads:
        require(
            not identity.differences(head.card.data.encoders[0]),
            f"--run: {heads[0].folder} and {head.folder} are of different encoders; export each "
            "alone",
        )
    return identity


def _one_window(ensembles: Sequence[Ensemble]) -> Window:
    """The shape of a sample that all heads read."""
    windows = list(dict.fromkeys(window for one in ensembles for window in one.windows))
    lengths = " and ".join(str(window.length) for window in windows)
    require(
        len(windows) == 1,
        f"--run: heads read windows of {lengths} frames, and a file has one input; export each "
        "alone",
    )
    return windows[0]


def _known_licence(identity: Identity, config: ExportConfig) -> str:
    """Licence of weights that raffect made itself; empty for others.

    Raises:
        RaffectError: If others go into the file without a licence.
    """
    made = "embedded" if identity.model == EMBEDDED_MODEL else identity.weights.partition(":")[0]
    known = _OWN_LICENCES.get(made, "")
    require(
        bool(known) or config.input == "features",
        f"--weights-licence: not stated; the file holds the weights of {identity.model} "
        f"({identity.weights}), whose licence its page states, such as --weights-licence MIT",
    )
    return known


def _describe(ensemble: Ensemble) -> ExportedTask:
    rules, cards = ensemble.rules, [head.card for head in ensemble.heads]
    heads, data = [], [card.data for card in cards]
    for place, (card, share) in enumerate(zip(cards, rules.shares, strict=True)):
        heads.append(
            ExportedHead(
                name=f"{rules.task.name}.{place}",
                id=card.id,
                seed=card.recipe.seed,
                snapshot=card.snapshot,
                sha256=card.sha256,
                weight=share,
                kind=str(card.head["kind"]),
                normalise=str(card.head.get("normalise", "none")),
                layers=card.head["depth"] + 1 if card.head["kind"] == "mlp" else 0,
                data_fingerprint=fingerprint_of(card.data),
                score=card.validation.headline if card.validation else None,
                interval_95=card.validation.interval_95 if card.validation else None,
            )
        )
    return ExportedTask(
        task=rules.task,
        outputs=output_names(rules),
        heads=tuple(heads),
        thresholds=rules.thresholds,
        bias=rules.bias,
        windows=rules.windows,
        chosen_on=rules.chosen_on,
        chance=_chance(cards),
        samples=" or ".join(dict.fromkeys(map(_samples, cards))),
        trained_on=_sizes(data, "train"),
        judged_on=_sizes(data, "validation"),
        synthetic=any(facts.synthetic for facts in data),
        edition=" and ".join(dict.fromkeys(facts.edition for facts in data if facts.edition)),
    )


def _chance(cards: Sequence[HeadCard]) -> Chance:
    """The mean over the data that heads were judged on: official folds have one each."""
    judged = [card for card in cards if card.validation is not None] or cards
    return mean_chance(list({fingerprint_of(card.data): card.chance for card in judged}.values()))


def _samples(card: HeadCard) -> str:
    return describe_samples(card.recipe.head, card.data.of_clips)


def _sizes(data: Sequence[DataFacts], split: str) -> str:
    """Of a split of the heads' data, each once: those of official folds differ."""
    found = [facts.size_of(split) for facts in data if split in facts.splits]
    return " or ".join(dict.fromkeys(found))


def _caveats(
    identity: Identity, ensembles: Sequence[Ensemble], given: Literal["features", "pixels"]
) -> tuple[str, ...]:
    """What results must say, of the encoder, the images and the training."""
    found = [identity.caveat] if identity.caveat else []
    cards = [head.card for one in ensembles for head in one.heads]
    for card in cards:
        found += card.data.trained_caveats
        if card.status == "diverged":
            found.append(f"head {card.id} diverged, and this is its last sound epoch")
    if given == "pixels":  # a picture is a frame
        found += describe_other_samples(cards, of_clips=False)
    return tuple(dict.fromkeys(found))
