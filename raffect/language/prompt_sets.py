"""Prompt sets: texts of each class or label, as TOML files.

    title = "a photo of a face that shows the feeling"
    templates = ["a photo of a face with an expression of {}"]
    rest = ["every muscle at rest"]        # for labels: what a face without any of them shows

    [classes]                              # classes, labels or both, by name
    Happiness = ["happiness", "joy"]

    [compounds]                            # a class that is the mean of others
    "Happily surprised" = ["Happiness", "Surprise"]

Every phrase is put into every template. Classes are found by name, whatever their order and
case: every data set has an order of its own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, did_you_mean, require
from raffect.storage.records import Record

PROMPTS = Path(__file__).parent / "prompts"
OTHERS = ("other", "others")
"""Classes that no face shows: a prompt set may leave them out."""
_SAME = (
    ("neutral", "neutrality", "neutral expression"),
    ("anger", "angry"),
    ("disgust", "disgusted"),
    ("fear", "fearful", "afraid"),
    ("happiness", "happy", "joy"),
    ("sadness", "sad"),
    ("surprise", "surprised"),
    ("contempt", "contemptuous"),
)
"""Names that data sets have for one class; the first one stands for all."""
_REMEDY = "write it like raffect/language/prompts/facs.toml"
_MOST_TEMPLATES = 1000

Phrase = Annotated[str, MinLen(1)]
Phrases = Annotated[tuple[Phrase, ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class PromptSet(Record):
    """A prompt set as its file has it.

    Attributes:
        title: What it is, in a few words.
        templates: Sentences with ``{}`` in the place of a phrase.
        rest: Phrases for a face that shows none of the labels; classes do without.
        classes: Phrases of each class or label, by its name.
        compounds: Classes whose vector is the mean of those of others, by name.
    """

    title: str = ""
    templates: Phrases = ("{}",)
    rest: tuple[Phrase, ...] = ()
    classes: Annotated[dict[Phrase, Phrases], MinLen(1)]
    compounds: dict[Phrase, Phrases] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(len(self.templates) <= _MOST_TEMPLATES, f"{len(self.templates)} templates")
        require_templates(self.templates)
        names = [key(name) for name in (*self.classes, *self.compounds)]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"{', '.join(twice)}: there twice, under other names or in other case")
        known = {key(name) for name in self.classes}
        for name, parts in self.compounds.items():
            missing = [part for part in parts if key(part) not in known]
            require(not missing, f"compound {name}: no class {', '.join(missing)}")


Parts = tuple[tuple[str, ...], ...]
"""Prompts of each part of a class: one, or for a compound several."""


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of a set for a task.

    Attributes:
        name: Of the set.
        content: The set's file.
        outputs: Parts of each class or label, in the task's order; None for one that no face shows.
        rest: Prompts for a face that shows none of the labels; empty for classes.
    """

    name: str
    content: bytes
    outputs: Mapping[str, Parts | None]
    rest: tuple[str, ...]

    @property
    def described(self) -> list[str]:
        """Classes or labels that have prompts."""
        return [name for name, parts in self.outputs.items() if parts is not None]

    @property
    def prompts(self) -> list[str]:
        """All prompts, each once."""
        parts = [part for found in self.outputs.values() for part in found or ()]
        return list(dict.fromkeys(text for part in (*parts, self.rest) for text in part))


def require_templates(templates: Sequence[str]) -> None:
    """Refuse a template that has not one place for a phrase.

    Raises:
        RaffectError: Names the first one.
    """
    for template in templates:
        require(template.count("{}") == 1, f"template {template[:60]!r}: expected one {{}}")


def key(name: str) -> str:
    """What names of one class have in common."""
    plain = " ".join(name.casefold().split())
    return next((names[0] for names in _SAME if plain in names), plain)


def list_shipped() -> dict[str, Path]:
    """Prompt sets that ship with raffect, by name."""
    return {file.stem: file for file in sorted(PROMPTS.glob("*.toml"))}


def read_prompt_set(name: str) -> tuple[str, bytes, PromptSet]:
    """A prompt set.

    Args:
        name: Of one that ships with raffect, or the path of a TOML file.

    Returns:
        Its name (of a file without folder and suffix), its bytes, and what is in it.

    Raises:
        RaffectError: If the file is missing or not a prompt set; names the first fault.
    """
    shipped = list_shipped()
    path = shipped.get(name) or Path(name)
    if not path.is_file():
        hint = did_you_mean(name, shipped)
        expected = f"expected all, one of {', '.join(shipped)}, or a TOML file"
        raise RaffectError(f"--prompts {name}: no such prompt set{hint}; {expected}")
    content = path.read_bytes()
    try:
        found = tomllib.loads(content.decode())
        text = json.dumps(found)
    except (ValueError, TypeError, RecursionError) as error:
        what = f"{path}: not a prompt set in TOML ({str(error)[:100]})"
        raise RaffectError(f"{what}; {_REMEDY}") from error
    return path.stem, content, PromptSet.from_json(text, path, _REMEDY)


@dataclass(frozen=True)
class TaskPhrases:
    """The phrases of a set for a task, not yet in its templates.

    Attributes:
        name: Of the set.
        content: The set's file.
        templates: Sentences with ``{}`` in the place of a phrase.
        outputs: Phrases of each part of each class or label, in the task's order; None for one that
            no face shows.
        rest: Phrases for a face that shows none of the labels; empty for classes.
    """

    name: str
    content: bytes
    templates: tuple[str, ...]
    outputs: Mapping[str, Parts | None]
    rest: tuple[str, ...]

    def fill(self) -> TaskPrompts:
        """Every phrase in every template."""
        outputs = {
            name: None if parts is None else tuple(_fill(self.templates, part) for part in parts)
            for name, parts in self.outputs.items()
        }
        return TaskPrompts(self.name, self.content, outputs, _fill(self.templates, self.rest))


def _fill(templates: tuple[str, ...], phrases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(template.replace("{}", phrase) for phrase in phrases for template in templates)


def prompts_for(name: str, task: Task) -> TaskPrompts:
    """What a prompt set says of the outputs of a task; see `phrases_for`."""
    return phrases_for(name, task).fill()


def phrases_for(name: str, task: Task, templates: tuple[str, ...] = ()) -> TaskPhrases:
    """The phrases that a prompt set has for the outputs of a task.

    Args:
        name: As `read_prompt_set` takes it.
        task: Of classes or labels.
        templates: Instead of those of the set.

    Raises:
        RaffectError: If the set says nothing of one of them, but for a class "Other", or, for
            labels, nothing of a face at rest.
    """
    stem, content, found = read_prompt_set(name)
    by_key: dict[str, Parts] = {key(given): (phrases,) for given, phrases in found.classes.items()}
    for given, parts in found.compounds.items():
        by_key[key(given)] = tuple(by_key[key(part)][0] for part in parts)

    # Each output's own, by name
    outputs: dict[str, Parts | None] = {}
    for output in task.outputs:
        parts = by_key.get(key(output))
        require(
            parts is not None or (task.kind == "multiclass" and key(output) in OTHERS),
            f"--prompts {name}: no prompt for {output}; add it to [classes], it has "
            f"{', '.join(found.classes)}",
        )
        outputs[output] = parts
    is_labels = task.kind == "multilabel"
    require(
        not is_labels or bool(found.rest),
        f"--prompts {name}: labels need what a face shows without them; add rest = [...]",
    )
    rest = found.rest if is_labels else ()
    return TaskPhrases(stem, content, templates or found.templates, outputs, rest)


def shipped_for(task: Task) -> list[str]:
    """Names of the shipped prompt sets that have all outputs of a task.

    Raises:
        RaffectError: If no shipped set has them all.
    """
    names = []
    for name in list_shipped():
        try:
            prompts_for(name, task)
        except RaffectError:
            continue
        names.append(name)
    outputs = ", ".join(task.outputs[:6])
    require(
        bool(names),
        f"--prompts all: no prompt set that ships with raffect has all of {outputs} ...; "
        "name a TOML file of your own",
    )
    return names
