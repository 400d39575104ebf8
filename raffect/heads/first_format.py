"""Heads of November 2026 (format 1): their JSON in today's words.

`raffect.runs.first_format` does the same for run folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raffect.bank.facts import join_caveats
from raffect.bank.records import translate_first_identity
from raffect.datasets.affwild2 import tasks as affwild2
from raffect.errors import RaffectError
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.recipe import in_todays_words

SNAPSHOTS = {"last": "last", "best": "best", "chosen": "cv"}
"""Snapshots by the names that they had, and have now."""


def read_card(content: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """A head's config.json as the values of today's `raffect.heads.checkpoint.HeadCard`.

    Raises:
        RaffectError: If something is missing.
    """
    try:
        task = affwild2.read_task(content["task"], str(where))
        kind, data = kind_of(task), content["data"]
        # What it was trained on; format 1 did not say where.
        identity = translate_first_identity(content["encoder"])
        same = ("bank_digest", "labels_sha256", "edition", "synthetic")
        facts = {
            "task": task.to_json(),
            "bank": "?",
            "labels": "?",
            **{name: data[name] for name in same},
            "encoders": [identity],
            "caveat": join_caveats(identity["caveat"], data["synthetic"]),
            "splits": {split: read_split(data[split]) for split in ("train", "validation")},
            "incomplete": data.get("incomplete", ""),
        }
        # The head itself, which was an MLP on raw features.
        same = ("device", "threads", "versions", "git_commit")
        return {
            "sha256": content["sha256"],
            "head": {"kind": "mlp", **content["layout"], "normalise": "none"},
            "id": content["member"],
            "status": content["status"],
            "snapshot": SNAPSHOTS[content["snapshot"]],
            "recipe": nest_recipe(content["recipe"]),
            "data": facts,
            "validation": read_score(content["validation"], kind),
            "chance": read_chance(content["trivial"], kind),
            **{name: content[name] for name in same},
        }
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{where}: damaged ({error} is missing or not as expected)"
        raise RaffectError(f"{what}; train again") from error


def nest_recipe(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe by dotted name as the nested object that records hold.

    Settings that are younger than the recipe have their defaults.
    """
    nested: dict[str, Any] = {}
    for name, value in in_todays_words(flat).items():
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    return nested


def read_split(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Frames of a split."""
    names = ("no_image", "rejected", "not_extracted")
    reasons = {name: facts[name] for name in names if name in facts}
    frames = {"frames": facts["frames"], "groups": facts["videos"]}
    return frames | (reasons or {"no_image": facts["labelled_without_feature"]})


def read_score(score: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """One snapshot's score; an unfinished head has its headline alone."""
    # Outputs were named by the kind of the task.
    metrics = (kind.key, "accuracy", "pcc", "rmse")
    outputs = next((score[name] for name in ("classes", "values") if name in score), {})
    renamed = {"said": "predicted"}
    return {
        "headline": score[kind.key],
        "metrics": {name: score[name] for name in metrics if name in score},
        "outputs": {
            name: {renamed.get(key, key): value for key, value in part.items()}
            for name, part in outputs.items()
        },
        "confusion": score.get("confusion"),
        "epoch": score["epoch"],
        "interval_95": score.get("interval_95"),
    }


def read_chance(found: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The chance level, which was called the trivial score."""
    answer, majority, prior = found["answer"], found[kind.key], found.get("guess")
    return {"answer": answer, "majority": majority, "prior": prior}
