"""Run folders of November 2026 (format 1): their JSON in today's words.

All other modules know one format. A folder of format 1 has ``members/<id>.json``, which hold the
counts of every video, snapshots named ``chosen``, and flat recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raffect.bank.facts import join_caveats
from raffect.bank.records import translate_first_identity
from raffect.datasets.affwild2 import tasks as affwild2
from raffect.errors import RaffectError
from raffect.heads.first_format import SNAPSHOTS, nest_recipe, read_chance, read_score, read_split
from raffect.metrics.task_kinds import kind_of
from raffect.runs.group_statistics import Statistics
from raffect.runs.records import HeadRecord, RunRecord

HEADS = "members"
"""Folder of the records of heads."""
TABLES = ("members.csv", "members.parquet", "per_video.csv")
"""Tables that have other names now."""
_REMEDY = "restore the folder from a backup, or train into a new --out"
_RERUN = "delete it and run the same command again"

# Names that are the same in both formats
_RUN = ("command", "fingerprint", "run")
_FACTS = ("bank", "labels", "bank_digest", "labels_sha256", "edition", "synthetic")
_HEAD = ("id", "fold", "num_folds", "fingerprint", "status", "note")
_TRAINED = ("device", "threads", "num_workers", "streamed", "wall_s", "git_commit", "versions")


def is_first(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object of a run folder is of format 1, which wrote no number."""
    return "format" not in content


def read_run(content: dict[str, Any], where: Path) -> RunRecord:
    """The record of a run from its env.json.

    Raises:
        RaffectError: If it is damaged.
    """
    try:
        # Facts of the data: renamed, or made of what was written another way
        data = content["data"]
        splits = [split for split in ("train", "validation", "test") if split in data]
        identity = translate_first_identity(data["encoder"])
        facts = {
            "task": affwild2.read_task(data["task"], str(where)).to_json(),
            **{name: data[name] for name in _FACTS},
            "encoders": [identity],
            "caveat": join_caveats(identity["caveat"], data["synthetic"]),
            "published": data.get("published", {}),
            "splits": {split: read_split(data[split]) for split in splits},
            "incomplete": data.get("incomplete", ""),
            "group_name": data.get("groups", "videos"),
        }
        new = {name: content[name] for name in _RUN} | {"data": facts}
    except (KeyError, TypeError, AttributeError) as error:
        raise RaffectError(f"{where}: {_damage(error)}; {_REMEDY}") from error
    return RunRecord.from_json(new, where, _REMEDY)


def read_head(content: dict[str, Any], where: Path) -> HeadRecord:
    """The record of a head from its members/<id>.json.

    Raises:
        RaffectError: If it is damaged.
    """
    try:
        task = affwild2.read_task(content.get("task", content["recipe"]["task"]), str(where))
        # A head's values by their names of today
        kind, history = kind_of(task), content["history"]
        trained_by = {name: content[name] for name in _TRAINED if name in content}
        scores = content["scores"].items()
        new = {
            **{name: content[name] for name in _HEAD},
            "format": 1,
            "task": task.to_json(),
            "recipe": nest_recipe(content["recipe"]),
            "incomplete": content.get("incomplete", ""),
            "group_name": content.get("groups", "videos"),
            "cv_epoch": content["keep_epoch"],
            "trained_by": trained_by | {"batch_of_heads": content["pack_size"]},
            "curve": {
                "lr": history["lr"],
                "train_loss": history["train_loss"],
                "validation": history[kind.curve_key],
            },
            "scores": {SNAPSHOTS[name]: read_score(score, kind) for name, score in scores},
            "chance": read_chance(content["trivial"], kind),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise RaffectError(f"{where}: {_damage(error)}; {_RERUN}") from error
    return HeadRecord.from_json(new, where, _RERUN)


def read_statistics(content: dict[str, Any], record: HeadRecord, where: Path) -> Statistics:
    """The statistics in a head's members/<id>.json, by the epochs of its snapshots.

    Raises:
        RaffectError: If they are damaged.
    """
    try:
        # Moments of numbers are not whole, counts are
        dtype = np.float64 if record.task.kind == "regression" else np.int64
        by_epoch = {
            content["scores"][name]["epoch"]: np.array(values, dtype)
            for name, values in content["videos"].items()
        }
        groups = [str(name) for name in content["video_names"]]
        if any(values.ndim != 3 or len(values) != len(groups) for values in by_epoch.values()):
            raise ValueError("counts do not fit the videos")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RaffectError(f"{where}: damaged ({str(error)[:80]}); {_RERUN}") from error
    return Statistics(groups, {record.id: by_epoch})


def _damage(error: Exception) -> str:
    return f"damaged ({error} is missing or not as expected)"
