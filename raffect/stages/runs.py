"""The run folder: what training and sweeps leave, under fixed names.

config.toml        the command's settings; `raffect train RUN/config.toml --out NEW` repeats it
env.json           versions, commit, machine, and the facts of the data
members/<id>.json  one head's record: settings, curve, scores and counts of every video; written last
weights/<id>/{last,best,chosen}/   head.safetensors and config.json
state/             what unfinished packs go on from
members.csv, members.parquet       one row a head, with its curve
results.csv        one row a head and epoch
per_video.csv      one row a head and video
metrics.json       scores for programs
report.md, report.html, plots/     for people
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tomli_w

from raffect.config import LearnConfig
from raffect.data import affwild2
from raffect.data.atomic import PREFIX, write_atomic
from raffect.data.tables import write_table
from raffect.errors import RaffectError
from raffect.metrics.kinds import Kind, kind_of
from raffect.recipe import DEFAULTS, NAMES, Recipe, digest, flatten, plain, read_recipe
from raffect.stages.dataset import Dataset
from raffect.stages.provenance import describe_run

SCORES = ("last", "best", "chosen")
"""Snapshots that are judged: last epoch, best epoch on validation, epoch chosen on folds."""

FREE = ("allow_incomplete", "out", "bank", "labels", "threads", "device", "address", "num_workers", "space", "samples", "baseline", "members_per_trial", "gpus_per_trial", "cpus_per_trial", "scheduler", "save_heads", "track", "num_seeds")  # fmt: skip
"""Settings that may change when a run goes on: none of them decides what a head becomes."""


@dataclass(frozen=True)
class Member:
    """One head to train: a recipe, and for selection the fold of the training split that judges it."""

    recipe: Recipe
    fold: int | None = None
    num_folds: int = 0

    @property
    def id(self) -> str:
        """Names it on disk; equal for equal settings."""
        return digest(self.recipe) + ("" if self.fold is None else f"-fold{self.fold + 1}of{self.num_folds}")


class RunFolder:
    """A folder in the layout above.

    Args:
        path: Where; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: LearnConfig, dataset: Dataset) -> RunFolder:
        """Make a run folder, or go on in one of the same data and settings.

        Raises:
            RaffectError: If the folder holds something else.
        """
        folder = cls(config.out.absolute())
        known = (folder.path / "env.json").exists()
        if folder.path.exists() and not known and (not folder.path.is_dir() or any(not _is_ours(path.name) for path in folder.path.iterdir())):
            raise RaffectError(f"--out {config.out}: exists and is no run folder; name a new or an empty one")
        command = type(config).__name__.removesuffix("Config").lower()
        if known:
            folder._require_same(config, dataset, command)
        else:
            env = {"run": describe_run(), "data": dataset.facts, "fingerprint": dataset.fingerprint, "command": command}
            write_atomic(folder.path / "env.json", (json.dumps(env, indent=1) + "\n").encode())
        write_atomic(folder.path / "config.toml", to_toml(config).encode())
        return folder

    def read_env(self) -> dict[str, Any]:
        """Versions, machine and facts of the data.

        Raises:
            RaffectError: If this is no run folder.
        """
        try:
            return json.loads((self.path / "env.json").read_text())
        except FileNotFoundError as error:
            raise RaffectError(f"{self.path}: no run folder, env.json is missing; expected the --out of `raffect train` or `raffect tune`") from error
        except ValueError as error:
            raise RaffectError(f"{self.path}/env.json: damaged ({error})") from error

    def state_path(self, ids: Sequence[str]) -> Path:
        """Where a pack of these members saves what it goes on from."""
        name = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]
        return self.path / "state" / f"{name}.safetensors"

    def write_members(self, keep: Mapping[str, int]) -> None:
        """Note which members a pack under way has, by id, and which epoch of each is kept as chosen (0 for none)."""
        write_atomic(self.state_path(list(keep)).with_suffix(".json"), json.dumps(keep).encode())

    def packs_under_way(self) -> list[dict[str, int]]:
        """What `write_members` noted of each pack that has saved something to go on from."""
        noted = [json.loads(path.read_text()) for path in sorted((self.path / "state").glob("*.json")) if path.with_suffix(".safetensors").exists()]
        return [dict.fromkeys(names, 0) if isinstance(names, list) else names for names in noted]  # a list: of an older raffect

    def drop_state(self, ids: Iterable[str]) -> None:
        """Forget a pack under way: it is recorded, or cannot go on."""
        ids = list(ids)
        for suffix in (".safetensors", ".json"):
            self.state_path(ids).with_suffix(suffix).unlink(missing_ok=True)

    def weights_path(self, member_id: str, snapshot: str) -> Path:
        """Folder of one head."""
        return self.path / "weights" / member_id / snapshot

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Record a member; from then on it is finished."""
        write_atomic(self.path / "members" / f"{record['id']}.json", (json.dumps(record) + "\n").encode())

    def recorded_stream(self, choice: str) -> Literal["always", "never"] | None:
        """How a run that goes on reads its rows, where ``auto`` leaves it open; None for a new run."""
        path = self.path / "config.toml"
        if choice != "auto" or not path.exists():
            return None
        try:
            found = tomllib.loads(path.read_text()).get("stream")
        except ValueError:  # `create` says what is wrong with it
            return None
        return found if found in ("always", "never") else None

    def forget_record(self, member_id: str) -> None:
        """Make a member unfinished again."""
        (self.path / "members" / f"{member_id}.json").unlink(missing_ok=True)

    def read_record(self, member_id: str) -> dict[str, Any] | None:
        """A finished member's record, or None."""
        path = self.path / "members" / f"{member_id}.json"
        return _read_record(path) if path.exists() else None

    def read_records(self) -> list[dict[str, Any]]:
        """All records, by id."""
        return [_read_record(path) for path in sorted((self.path / "members").glob("*.json"))]

    def write_tables(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write members.csv and .parquet, results.csv and per_video.csv from records."""
        rows = [member_row(record) for record in records]
        write_table(pa.Table.from_pylist(rows), self.path / "members.parquet", {"raffect": "members/1"})
        write_csv(self.path / "members.csv", [{name: " ".join(map(_short, value)) if isinstance(value, list) else value for name, value in row.items()} for row in rows])
        write_csv(self.path / "results.csv", [line for record in records for line in _epoch_rows(record)])
        write_csv(self.path / "per_video.csv", [line for record in records for line in _video_rows(record)])

    def _require_same(self, config: LearnConfig, dataset: Dataset, command: str) -> None:
        env = self.read_env()
        if env["command"] != command:
            raise RaffectError(f"--out {config.out}: made by `raffect {env['command']}`, not by `raffect {command}`; name a new folder")
        if env["fingerprint"] != dataset.fingerprint:
            raise RaffectError(f"--out {config.out}: a run on other data ({env['data']['bank']}, {env['data']['labels']}, or their content has changed); name a new folder")
        if not (self.path / "config.toml").exists():  # killed before it was written
            return
        before = read_recipe(self.path / "config.toml", [*NAMES, *(field.name for field in dataclasses.fields(type(config))), *FREE])
        swept = {axis.partition("=")[0].strip() for axis in (*before.get("space", ()), *getattr(config, "space", ()))}
        for name, value in _settings(config).items():
            if name not in FREE and name not in swept and before.get(name, value) != value:
                raise RaffectError(f"--out {config.out}: a run with {name} {before[name]}, this one has {value}; name a new folder")


def to_toml(config: LearnConfig) -> str:
    """All settings of a command, as a recipe that repeats it."""
    nested: dict[str, Any] = {}
    for name, value in _settings(config).items():
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    return tomli_w.dumps(
        {name: value for name, value in nested.items() if not isinstance(value, dict)} | {name: value for name, value in nested.items() if isinstance(value, dict)}
    )


def member_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """One row of members.csv: settings, scores by name, curve."""
    kind = _kind(record)
    row = {"id": record["id"], "status": record["status"], "fold": record["fold"], "num_folds": record["num_folds"], **record["recipe"]}
    for name in SCORES:
        score = record["scores"].get(name, {})
        row |= {f"{name}.epoch": score.get("epoch"), f"{name}.{kind.key}": score.get(kind.key)}
        row |= {f"{name}.low": score.get("interval_95", [None])[0], f"{name}.high": score.get("interval_95", [None, None])[1]}
    row |= {f"trivial.{kind.key}": record["trivial"][kind.key], "wall_s": record["wall_s"], "pack_size": record["pack_size"], "note": record["note"]}
    return row | {f"curve.{name}": record["history"][name] for name in ("train_loss", f"val_{kind.key}")}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns of the first one; an empty file where there is none."""
    sink = io.StringIO()
    if rows:
        writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomic(path, sink.getvalue().encode())


def _is_ours(name: str) -> bool:
    return name == "config.toml" or name.startswith(PREFIX)


def _settings(config: LearnConfig) -> dict[str, Any]:
    flat = flatten(plain(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name not in flat and not dataclasses.is_dataclass(value) and value is not None:
            flat[item.name] = str(value.absolute()) if hasattr(value, "absolute") else list(value) if isinstance(value, tuple) else value
    return flat


def _epoch_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    history = record["history"]
    names = ("lr", "train_loss", f"val_{_kind(record).key}")
    return [{"id": record["id"], "epoch": k + 1, **{name: history[name][k] for name in names}} for k in range(len(history["lr"]))]


def _video_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "last" not in record["videos"]:
        return []
    kind, statistics = _kind(record), np.array(record["videos"]["last"])
    return [{"id": record["id"], **row} for row in video_rows(kind, statistics, record["video_names"])]


def video_rows(kind: Kind, statistics: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a video, from one head's statistics (videos, A, B): its frames and headline score, over all classes or values."""
    frames, scores = kind.count_frames(statistics), kind.headline(statistics)
    return [{"video": name, "frames": int(frames[k]), f"{kind.key}_over_all_{kind.parts}": round(float(scores[k]), 4)} for k, name in enumerate(names)]


def _kind(record: Mapping[str, Any]) -> Kind:
    return kind_of(affwild2.read_task(record.get("task", record["recipe"]["task"]), f"record of head {record['id']}"))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        return record | {"recipe": DEFAULTS | record["recipe"]}  # settings that are younger than the record
    except (ValueError, KeyError, TypeError) as error:
        raise RaffectError(f"{path}: damaged ({error}); delete it and run the same command again") from error


def _short(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4g}"
