"""The run folder: what training and sweeps leave, under fixed names.

config.toml        the command's settings; `raffect train RUN/config.toml --out NEW` repeats it
env.json           versions, commit, machine, and the facts of the data
folds.json         digest of the folds that epochs are chosen on
heads/<id>.json    one head's record: settings, curve and scores; written last
statistics/        counts by head, epoch and video behind the scores, a Parquet file a batch
predictions/       what heads of folds predict for their fold, likewise
spec.json          what the heads are, where settings alone do not say, as for learnt prompts
weights/<id>/{last,best,cv}/   head.safetensors and config.json
state/             what unfinished batches of heads go on from
heads.csv, heads.parquet       one row a head, with its curve
results.csv        one row a head and epoch
per_group.csv      one row a head and video (or subject, or picture)
metrics.json       scores for programs
decision_rules.json, postprocess.json   what `raffect postprocess` chose, and what it gains
report.md, report.html, plots/ what `raffect report` draws

Folders of November 2026 have other names; they are read, continued and reported alike
(`raffect.runs.first_format`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raffect.bank.facts import DataFacts
from raffect.config import LearnConfig
from raffect.errors import RaffectError, require
from raffect.provenance import describe_run
from raffect.runs import first_format
from raffect.runs.fold_predictions import (
    FoldPredictions,
    read_fold_predictions,
    write_fold_predictions,
)
from raffect.runs.group_statistics import (
    ByEpoch,
    Recent,
    Statistics,
    read_statistics,
    require_shapes,
    write_statistics,
)
from raffect.runs.records import BatchNote, HeadRecord, NamedFile, RunRecord
from raffect.runs.settings_file import command_of, require_same_settings, to_toml
from raffect.storage.atomic import PREFIX, write_atomic
from raffect.storage.paths import Damaged, is_remote
from raffect.storage.records import parse_object

_RERUN = "delete it and run the same command again"
_BEGIN_AGAIN = "delete it and the file beside it, to train these heads from the start"
_RESTORE = "restore it from a backup, or train into a new --out"


class RunFolder:
    """A folder in the layout above.

    Args:
        path: Where; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[Path, tuple[tuple[int, ...], HeadRecord]] = {}
        self._statistics = Recent()
        self._sums: dict[str, dict[str, ByEpoch]] = {}
        self._groups: dict[tuple[int | None, int], Sequence[str]] = {}

    @classmethod
    def create(cls, config: LearnConfig, facts: DataFacts, fingerprint: str) -> RunFolder:
        """Make a run folder, or go on in one of the same data and settings.

        Raises:
            RaffectError: If the folder holds something else.
        """
        # A folder that holds nothing else
        folder = cls(config.out.absolute())
        known = (folder.path / "env.json").exists()
        if folder.path.exists() and not known and not _is_free(folder.path):
            raise RaffectError(
                f"--out {config.out}: exists and is not a run folder; name a new or an empty one"
            )

        # The same run as before, or a new one
        command = command_of(config)
        if known:
            folder._require_same(config, fingerprint, command)
        else:
            run = RunRecord(
                command=command, fingerprint=fingerprint, run=describe_run(), data=facts
            )
            write_atomic(folder.path / "env.json", run.to_bytes())
        write_atomic(folder.path / "config.toml", to_toml(config).encode())
        return folder

    def keep_spec(self, spec: Mapping[str, Any]) -> None:
        """Note what the heads of this run are, where settings alone do not say.

        Args:
            spec: Plain JSON values, as `raffect.heads.head_batch.HeadSpec.to_json` has them.

        Raises:
            RaffectError: If those that are here are others.
        """
        file = self.path / "spec.json"
        if file.exists():
            before = parse_object(file.read_bytes(), file, _RESTORE)
            names = [name for name in spec if before.get(name) != spec[name]]
            require(
                not names,
                f"--out {self.path}: its heads have another {' and '.join(names)}, since a prompt "
                "set or the weights were others when they were made; name a new folder",
            )
        write_atomic(file, json.dumps(dict(spec), indent=1).encode())

    def read_run(self) -> RunRecord:
        """Versions, machine and facts of the data.

        Raises:
            RaffectError: If this is not a run folder.
        """
        file = self.path / "env.json"
        try:
            content = parse_object(file.read_bytes(), file, _RESTORE)
        except FileNotFoundError as error:
            folds = sorted(path.parent.name for path in self.path.glob("fold-*/env.json"))
            expected = "expected the --out of `raffect train` or `raffect tune`"
            if folds:
                expected = f"it holds official folds; name those, such as {self.path / folds[0]}"
            what = f"{self.path}: not a run folder, env.json is missing"
            raise RaffectError(f"{what}; {expected}") from error
        if first_format.is_first(content):
            return first_format.read_run(content, file)
        return RunRecord.from_json(content, file, _RESTORE)

    def recorded_stream(self, choice: str) -> Literal["always", "never"] | None:
        """How a run that goes on reads its rows.

        None if the choice does not leave it open, as ``auto`` does, and for a new run.
        """
        path = self.path / "config.toml"
        if choice != "auto" or not path.exists():
            return None
        try:
            found = tomllib.loads(path.read_text()).get("stream")
        except ValueError:  # `create` says what is wrong with it
            return None
        return found if found in ("always", "never") else None

    # Batches of heads under way

    def state_path(self, ids: Iterable[str]) -> Path:
        """Where a batch of these heads saves what it goes on from."""
        name = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]
        return self.path / "state" / f"{name}.safetensors"

    def note_batch(self, cv_epochs: Mapping[str, int]) -> None:
        """Note the heads of a batch under way; see `BatchNote`."""
        note = BatchNote(heads=dict(cv_epochs))
        write_atomic(self.state_path(cv_epochs).with_suffix(".json"), note.to_bytes())

    def batches_under_way(self) -> list[dict[str, int]]:
        """What `note_batch` noted of each batch that has saved something to go on from.

        Raises:
            RaffectError: If a note is damaged.
        """
        noted = []
        for path in sorted((self.path / "state").glob("*.json")):
            if path.with_suffix(".safetensors").exists():
                content = parse_object(path.read_bytes(), path, _BEGIN_AGAIN)
                # In the first format the heads themselves; their state is refused by its version
                note = content if "heads" in content else {"heads": content}
                heads = BatchNote.from_json(note, path, _BEGIN_AGAIN).heads
                require(bool(heads), f"{path}: damaged, names no head; {_BEGIN_AGAIN}")
                noted.append(heads)
        return noted

    def drop_state(self, ids: Iterable[str]) -> None:
        """Forget a batch under way: it is recorded, or cannot go on."""
        path = self.state_path(ids)
        for suffix in (".safetensors", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)

    # Heads

    def weights_path(self, head_id: str, snapshot: str) -> Path:
        """Folder of one head's weights."""
        return self.path / "weights" / head_id / snapshot

    def write_record(self, record: HeadRecord) -> None:
        """Record a head; from then on it is finished."""
        write_atomic(self._record_paths(record.id)[0], record.to_bytes())

    def forget_record(self, head_id: str) -> None:
        """Make a head unfinished again."""
        for path in self._record_paths(head_id):
            path.unlink(missing_ok=True)

    def read_record(self, head_id: str) -> HeadRecord | None:
        """A head's record, or None."""
        for path in self._record_paths(head_id):
            with contextlib.suppress(FileNotFoundError):
                return self._read_record(path)
        return None

    def read_records(self) -> list[HeadRecord]:
        """All records, by id."""
        files = {
            path.name: path
            for name in (first_format.HEADS, "heads")
            for path in (self.path / name).glob("*.json")
        }
        return [self._read_record(path) for _, path in sorted(files.items())]

    # Statistics and predictions

    def write_statistics(self, statistics: Statistics) -> NamedFile:
        """Keep the statistics of a batch of heads.

        See `raffect.runs.group_statistics.write_statistics`.
        """
        return write_statistics(self.path / "statistics", statistics)

    def write_predictions(self, found: FoldPredictions) -> NamedFile:
        """Keep the predictions of heads of a fold.

        See `raffect.runs.fold_predictions.write_fold_predictions`.
        """
        return write_fold_predictions(self.path / "predictions", found)

    def read_predictions(self, records: Sequence[HeadRecord]) -> FoldPredictions:
        """Predictions of heads of one batch for their fold, which name the same file.

        Raises:
            RaffectError: If it is missing or another one.
        """
        file, task = records[0].predictions, records[0].task
        assert file is not None
        heads = [record.id for record in records]
        return read_fold_predictions(self.path / "predictions", file, heads, len(task.outputs))

    def drop_unnamed(self, records: Sequence[HeadRecord]) -> None:
        """Delete statistics and predictions that no record names: of heads that were trained
        again, or of a run that was killed before it wrote its records; and tables by the names of
        the first format.
        """
        named = {
            "statistics": {record.statistics.name for record in records if record.statistics},
            "predictions": {record.predictions.name for record in records if record.predictions},
        }
        for kind, names in named.items():
            for path in (self.path / kind).glob("*.parquet"):
                if path.name not in names:
                    path.unlink(missing_ok=True)
        for name in first_format.TABLES:
            (self.path / name).unlink(missing_ok=True)

    def read_statistics(self, record: HeadRecord) -> Statistics | None:
        """Statistics behind a head's scores, perhaps with those of others.

        Returns:
            None for a head that was stopped, or never had a sound epoch.

        Raises:
            RaffectError: If the file that the record names is missing or another one.
        """
        if record.statistics is None and record.format != 1:
            return None
        key = record.statistics.sha256 if record.statistics else record.id
        found = self._statistics.get(key, lambda: self._load_statistics(record))
        self._require_fit(record, found)
        return found if found.heads.get(record.id) or record.statistics else None

    def _require_fit(self, record: HeadRecord, found: Statistics) -> None:
        """Refuse statistics of another task than a head's, or of other groups than its fellows'."""
        if not (by_epoch := found.heads.get(record.id, {})):
            return
        try:
            require_shapes(by_epoch, found.groups, record.task)
        except Damaged as error:
            raise RaffectError(f"{self._path_of(record)}: {error}; {_RERUN}") from error
        groups = self._groups.setdefault((record.fold, record.num_folds), found.groups)
        if groups is not found.groups and list(groups) != list(found.groups):
            what = f"its statistics are of other {record.group_name} than those of other heads"
            raise RaffectError(f"{self._path_of(record)}: {what}; {_RERUN}")

    def _path_of(self, record: HeadRecord) -> Path:
        """Where a record was read."""
        now, first = self._record_paths(record.id)
        return now if now.exists() else first

    def _load_statistics(self, record: HeadRecord) -> Statistics:
        if record.statistics is not None:
            return read_statistics(self.path / "statistics", record.statistics)
        path = self.path / first_format.HEADS / f"{record.id}.json"
        content = parse_object(path.read_bytes(), path, _RERUN)
        return first_format.read_statistics(content, record, path)

    def sums_by_epoch(self, record: HeadRecord) -> ByEpoch:
        """Statistics of a head over all groups by 1-based epoch, shape (A, B), as were kept.

        Those by group are not held in memory: of heads of folds there are many, in every epoch.
        """
        if record.statistics is None:
            return {}
        key = record.statistics.sha256
        if key not in self._sums:
            self._sums[key] = {
                head: {epoch: values.sum(0) for epoch, values in by_epoch.items()}
                for head, by_epoch in self._load_statistics(record).heads.items()
            }
        return self._sums[key].get(record.id, {})

    def statistics_of(self, record: HeadRecord, snapshot: str) -> np.ndarray | None:
        """Statistics of one snapshot of a head by group, shape (groups, A, B); None if none."""
        statistics = self.read_statistics(record) if snapshot in record.scores else None
        if statistics is None:
            return None
        epoch = record.scores[snapshot].epoch  # ty: ignore[invalid-argument-type]
        try:
            return statistics.heads[record.id][epoch]
        except KeyError as error:
            path = self._record_paths(record.id)[0]
            raise RaffectError(f"{path}: no statistics at epoch {epoch}; {_RERUN}") from error

    def _record_paths(self, head_id: str) -> tuple[Path, Path]:
        """Where a head's record is, and where the first format had it."""
        file = f"{head_id}.json"
        return self.path / "heads" / file, self.path / first_format.HEADS / file

    def _read_record(self, path: Path) -> HeadRecord:
        """A record, which is parsed again only if the file is another one.

        A sweep looks through all of its records half a dozen times. They are replaced whole, so
        that a file's number, size and time tell which it is; an object store has no numbers.
        """
        version = None if is_remote(path) else _version_of(path)
        known = self._records.get(path)
        if version is not None and known is not None and known[0] == version:
            return known[1]
        text = path.read_bytes()
        content = parse_object(text, path, _RERUN)
        if first_format.is_first(content):
            record = first_format.read_head(content, path)
        else:
            record = HeadRecord.from_json(text, path, _RERUN)
        if version is not None:
            self._records[path] = version, record
        return record

    def _require_same(self, config: LearnConfig, fingerprint: str, command: str) -> None:
        """Refuse to go on in a folder of another command, other data or other settings."""
        # Command and data
        run, wrong = self.read_run(), f"--out {config.out}"
        if run.command != command:
            raise RaffectError(
                f"{wrong}: made by `raffect {run.command}`, not by `raffect {command}`; "
                "name a new folder"
            )
        if run.fingerprint != fingerprint:
            what = f"{run.data.bank}, {run.data.labels}, or their content has changed"
            raise RaffectError(f"{wrong}: a run on other data ({what}); name a new folder")

        # Settings, unless the command was killed before it wrote them
        if (file := self.path / "config.toml").exists():
            require_same_settings(config, file)


def _version_of(path: Path) -> tuple[int, ...]:
    """What tells a file from another one that has taken its place."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_free(path: Path) -> bool:
    """Whether a folder holds nothing but what a killed command of ours may have left."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else ["a file"]
    return all(name == "config.toml" or name.startswith(PREFIX) for name in names)


def find_records(folder: RunFolder, ids: Sequence[str]) -> list[HeadRecord]:
    """Records of some heads that have one, in order."""
    return [record for head_id in ids if (record := folder.read_record(head_id))]
