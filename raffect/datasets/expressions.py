"""Names of expressions: the words of every data set, as one noun each.

Data sets number their classes in orders of their own, so raffect maps them by name. Equal nouns let
heads and prompts of one set be used on another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raffect.datasets.tasks import Task

_WORDS = {
    "Neutral": ("neutrality", "normal"),
    "Anger": ("angry",),
    "Disgust": ("disgusted",),
    "Fear": ("fearful", "afraid"),
    "Happiness": ("happy",),
    "Sadness": ("sad",),
    "Surprise": ("surprised",),
    "Contempt": ("contemptuous",),
    "Anxiety": ("anxious",),
    "Helplessness": ("helpless",),
    "Disappointment": ("disappointed",),
}
_CLASSES = {word: name for name, words in _WORDS.items() for word in (name.lower(), *words)}

BASIC = ("Happiness", "Sadness", "Neutral", "Anger", "Surprise", "Disgust", "Fear")
"""The seven of DFEW, FERV39k and AFEW, in the order of their papers."""


def find_expression(word: str) -> str | None:
    """The noun that a data set's word means, such as ``Happiness`` for ``happy``; else None."""
    return _CLASSES.get(word.strip().lower())


def expression_task(classes: Iterable[str], name: str = "expr") -> Task:
    """The task of naming an expression; column ``expression`` holds the number of the class."""
    return Task(name=name, kind="multiclass", outputs=tuple(classes), columns=("expression",))


def describe_classes(names: Mapping[str, str], classes: Iterable[str]) -> list[str]:
    """Two lines: numbers and names of the classes here, and the data set's own words for them.

    Args:
        names: Word or number of the data set -> class.
        classes: Classes in the order of their numbers.
    """
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
    own = ", ".join(f"{word} -> {name}" for word, name in names.items())
    return [f"classes: {numbered}", f"classes by name: {own or 'none found'}"]
