"""The run folder of `raffect zeroshot`: that of training, with its prompts beside the heads.

prompts/<set>.toml      the prompt set, as it was read
prompts/<set>.parquet   its prompts with their vectors, and fingerprints of both towers
folds.json              digest of the folds that the prompt set is chosen on
trained.json            which trained heads the texts were compared through, with --head
zeroshot.csv            one row a prompt set: UAR, WAR and macro F1 over the classes with prompts
leave_one_out.csv       one row a class: its recall by heads that never saw it; leave_one_out.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tomli_w

from raffect.config import ZeroshotConfig
from raffect.errors import require
from raffect.language.zeroshot.trained import Origins
from raffect.provenance import describe_run
from raffect.runs.data import Dataset
from raffect.runs.folder import RunFolder
from raffect.runs.records import RunRecord
from raffect.storage.atomic import require_writable, write_atomic

_MAY_CHANGE = ("out", "weights", "device", "allow_incomplete")
TRAINED = "trained.json"
"""Name of the record of the heads of ``--head``."""
_REMEDY = "name a new folder"
_LATER = ("head", "epoch")
"""Settings younger than the first folders: left out at their default."""


def open_folder(
    config: ZeroshotConfig, dataset: Dataset, prompts: Mapping[str, bytes], trained: Origins
) -> RunFolder:
    """Make a run folder, or go on in one of the same data, settings, prompts and heads.

    Args:
        config: The command's, with the task and the names of the prompt sets.
        dataset: The data.
        prompts: Prompt sets by name, as they were read.
        trained: The heads of ``--head``; may be empty.

    Raises:
        RaffectError: If the folder holds something else.
    """
    folder, wrong = RunFolder(config.out.absolute()), f"--out {config.out}"
    if (folder.path / "env.json").exists():
        run = folder.read_run()
        same = run.command == "zeroshot" and run.fingerprint == dataset.fingerprint
        require(same, f"{wrong}: a run of another command or on other data; name a new folder")
        path = folder.path / "config.toml"
        found = path.read_text() if path.exists() else to_toml(config)
        require(found == to_toml(config), f"{wrong}: a run with other settings; name a new folder")
        for name, content in prompts.items():
            path = folder.path / "prompts" / f"{name}.toml"
            unchanged = not path.exists() or path.read_bytes() == content
            require(
                unchanged,
                f"{wrong}: prompt set {name} was another one when it was made; name a new folder",
            )
        path = folder.path / TRAINED
        require(
            not path.exists() or Origins.from_json(path.read_bytes(), path, _REMEDY) == trained,
            f"{wrong}: the heads of --head were others when it was made; name a new folder",
        )
    else:
        # A killed run may have left its own files alone.
        found = (
            sorted(entry.name for entry in folder.path.iterdir()) if folder.path.exists() else []
        )
        require(not found, f"{wrong}: exists and is not a run folder; name a new or an empty one")
        require_writable(folder.path)
        run = RunRecord(
            command="zeroshot",
            fingerprint=dataset.fingerprint,
            run=describe_run(),
            data=dataset.facts,
        )
        write_atomic(folder.path / "env.json", run.to_bytes())
    write_atomic(folder.path / "config.toml", to_toml(config).encode())
    if trained.heads:
        write_atomic(folder.path / TRAINED, trained.to_bytes())
    for name, content in prompts.items():
        write_atomic(folder.path / "prompts" / f"{name}.toml", content)
    return folder


def to_toml(config: ZeroshotConfig) -> str:
    """What decides the results of a command, as TOML."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in _MAY_CHANGE or (item.name in _LATER and value == item.default):
            continue
        values[item.name] = [*map(_plain, value)] if isinstance(value, tuple) else _plain(value)
    return tomli_w.dumps(values)


def _plain(value: Any) -> Any:
    """A value as TOML has it."""
    return str(value.absolute()) if hasattr(value, "absolute") else value
