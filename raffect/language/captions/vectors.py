"""Vectors of captions, by the text tower of the weights that made the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raffect.encoders.text import TextEncoder
from raffect.errors import RaffectError
from raffect.language.classifiers import build_classifier
from raffect.language.prompt_sets import TaskPhrases
from raffect.progress import Progress

_AT_ONCE = 256
"""Captions between two progress lines; what is encoded is kept, so that a killed run goes on."""
_SHOWN = 100


@dataclass(frozen=True)
class TargetVectors:
    """Vectors of V targets, and their texts.

    Attributes:
        values: Shape (V, E), of any length above 0.
        captions: The text of each; empty for a teacher.
        image_sha256: See `raffect.datasets.targets.TargetFacts`.
        truncated: Captions that were cut.
        unknown: Words that the weights never saw.
    """

    values: np.ndarray
    captions: Sequence[str] = ()
    image_sha256: str = ""
    truncated: int = 0
    unknown: Sequence[str] = ()

    def take(self, order: np.ndarray) -> TargetVectors:
        """The same in another order."""
        captions = [self.captions[k] for k in order] if self.captions else ()
        return replace(self, values=self.values[order], captions=captions)


def encode_captions(encoder: TextEncoder, texts: Sequence[str], truncate: bool) -> TargetVectors:
    """The vector of each caption.

    Args:
        encoder: The text tower.
        texts: Captions, each once.
        truncate: Cut those that are too long.

    Raises:
        RaffectError: If captions have more tokens than the model reads, and are not to be cut; it
            says how many.
    """
    # Too long ones
    most = encoder.identity.context_length
    long = [text for text in texts if encoder.count_tokens(text) > most]
    if long and not truncate:
        first = long[0] if len(long[0]) <= _SHOWN else f"{long[0][:_SHOWN]} ..."
        what = f"{len(long):,} of {len(texts):,} captions have more tokens than the {most}"
        raise RaffectError(
            f"{what} that {encoder.identity.model} reads, first of "
            f"{encoder.count_tokens(long[0])}: {first!r}; shorten them, or cut them with --truncate"
        )

    # Their vectors
    vectors = np.empty((len(texts), encoder.identity.dim), np.float32)
    with Progress("captions", len(texts), "captions") as progress:
        progress.advance(0)
        for start in range(0, len(texts), _AT_ONCE):
            part = texts[start : start + _AT_ONCE]
            vectors[start : start + len(part)] = encoder.encode(part, truncate=truncate)
            progress.advance(len(part))
    return _of_texts(encoder, vectors, texts, texts, len(long))


def encode_classes(
    encoder: TextEncoder, phrases: TaskPhrases, names: Sequence[str]
) -> TargetVectors:
    """The vector of each class: the mean of its prompts', as zero-shot has it.

    So a class's target is the row of its zero-shot classifier, and a head that learnt from it can
    be compared with that. EmoCLIP has one description a class, where the two are the same.

    Args:
        encoder: The text tower.
        phrases: Of a prompt set.
        names: Classes with prompts.
    """
    prompts = phrases.fill()
    outputs, parts = list(prompts.outputs), [prompts.outputs[name] or () for name in names]
    weight = build_classifier(prompts, encoder, "vectors", "rest").weight
    texts = [list(dict.fromkeys(text for part in found for text in part)) for found in parts]
    prompted = [text for found in texts for text in found]
    values = weight[[outputs.index(name) for name in names]]
    return _of_texts(encoder, values, [" / ".join(found) for found in texts], prompted)


def _of_texts(
    encoder: TextEncoder,
    values: np.ndarray,
    captions: Sequence[str],
    prompts: Sequence[str],
    truncated: int = 0,
) -> TargetVectors:
    """Vectors of texts by an encoder; ``prompts`` are all that it read."""
    unknown = encoder.unknown_words(prompts)
    return TargetVectors(values, captions, encoder.identity.image_sha256, truncated, unknown)
