"""What an exported file is: the record beside it, and the same as metadata inside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from raffect.bank.records import Identity
from raffect.datasets.tasks import Task
from raffect.metrics.scores import Chance, Number
from raffect.storage.records import Count, Record

RECORD_FILE = "export.json"
"""Name of the record in the folder."""


@dataclass(frozen=True, kw_only=True)
class ExportedHead(Record):
    """One head of a file.

    Attributes:
        name: In front of the names of its tensors in a safetensors file, ``expr.0``.
        id: Names it in its run.
        seed: Of its weights and of the order of frames.
        snapshot: Which of its epochs it is.
        sha256: Of its weights as they were trained.
        weight: Its share of the mean; shares of a task add up to 1.
        kind: ``mlp``, whose BatchNorm is folded into its Linears, or another kind of head.
        normalise: ``l2`` if an MLP divides features by their norm, else ``none``.
        layers: Linears of an MLP, with ReLU between them; 0 for other kinds.
        data_fingerprint: Names the bank, labels and task that it was trained on.
        score: Headline score on the validation split; None for an imported head.
        interval_95: Of the score, over videos or other groups.
    """

    name: str
    id: str
    seed: int
    snapshot: str
    sha256: str
    weight: float
    kind: str
    normalise: str
    layers: Count
    data_fingerprint: str
    score: float | None
    interval_95: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class ExportedTask(Record):
    """One task of a file.

    Attributes:
        task: Names of its outputs, their meaning and limits.
        outputs: Names of the file's outputs: probabilities or values, then decisions, if any.
        heads: Whose probabilities are averaged.
        thresholds: Probability from which on each label is decided; empty for other kinds.
        bias: What is added to each class's log probability before the largest is decided.
        windows: Half-width in frames of the mean over time of each output. It is not in the file,
            which sees one sample at a time; whoever runs it on a video applies it to probabilities
            before deciding.
        chosen_on: What thresholds, bias, weights and windows were chosen on.
        chance: Scores of predictors that do not look at the frames; of heads of several folds, the
            mean over these.
        samples: What its heads learnt from: ``single frames``, ``means of clips``, or windows.
        trained_on: Such as ``8,000 frames of 60 videos``; empty if not known.
        judged_on: The same of the validation split.
        synthetic: Whether raffect drew every image.
        edition: Edition of the labels.
    """

    task: Task
    outputs: tuple[str, ...]
    heads: tuple[ExportedHead, ...]
    thresholds: tuple[float, ...]
    bias: tuple[Number, ...]
    windows: tuple[int, ...]
    chosen_on: str
    chance: Chance
    samples: str
    trained_on: str
    judged_on: str
    synthetic: bool
    edition: str


@dataclass(frozen=True, kw_only=True)
class About(Record):
    """What a file says of itself.

    Attributes:
        format: Of this record.
        file: Its name.
        input: ``features`` (float32) or ``pixels`` (uint8, RGB), the name of its one input.
        shape: Of the input; ``N`` may be any number.
        tasks: Its tasks in the order of its outputs.
        encoder: Whose features the heads read, with its fingerprint and preprocessing.
        caveats: What results must say.
        data_licence: Licence of the training data.
        weights_licence: Licence of the encoder's weights; empty if not stated.
        versions: Of packages.
        git_commit: Of raffect.
    """

    format: Literal[1] = 1
    file: str
    input: Literal["features", "pixels"]
    shape: tuple[str | int, ...]
    tasks: tuple[ExportedTask, ...]
    encoder: Identity
    caveats: tuple[str, ...] = ()
    data_licence: str
    weights_licence: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    def as_texts(self) -> dict[str, str]:
        """One text a field, for formats whose metadata are texts: JSON but for plain texts."""
        values = self.to_json()
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        return texts | {"made_by": "raffect"}


@dataclass(frozen=True, kw_only=True)
class Agreement(Record):
    """How far a file is from what raffect predicts.

    Attributes:
        runtime: What ran the file, with its version.
        samples: How many were compared.
        source: What they are.
        tolerance: Largest difference that is accepted.
        difference: By output of probabilities or values, the largest absolute difference; where
            values are above 1, beside the largest of them.
        decided_otherwise: By output of decisions, how many differ.
    """

    runtime: str
    samples: Count
    source: str
    tolerance: float
    difference: dict[str, float]
    decided_otherwise: dict[str, Count]

    def lines(self) -> list[str]:
        """The result as lines of text."""
        lines = [f"compared with raffect by {self.runtime} on {self.samples:,} {self.source}:"]
        lines += [
            f"  {name}: largest difference {value:.1e} (at most {self.tolerance:.0e})"
            for name, value in self.difference.items()
        ]
        return lines + [
            f"  {name}: {count:,} decisions differ"
            for name, count in self.decided_otherwise.items()
        ]


@dataclass(frozen=True, kw_only=True)
class ExportRecord(About):
    """``export.json``: what the file says of itself, and how it was checked.

    Attributes:
        sha256: Of the file, and of that with its weights where they lie beside it, by name.
        agreement: With what raffect predicts.
    """

    sha256: dict[str, str]
    agreement: Agreement
