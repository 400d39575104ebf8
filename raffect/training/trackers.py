"""Ray's own loggers, which show a sweep elsewhere: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from raffect.config import TuneConfig
from raffect.errors import how_to_add, require
from raffect.runs.folder import RunFolder
from raffect.storage.paths import is_remote


def build_trackers(config: TuneConfig, folder: RunFolder) -> list[Any]:
    """Callbacks of Tune for the trackers that ``--track`` names."""
    from ray.tune.logger import TBXLoggerCallback

    # TensorBoard writes beside the trials
    name, trackers = folder.path.name, []
    if "tensorboard" in config.track:
        trackers.append(TBXLoggerCallback())

    # MLflow: a server, or a database in the run folder
    if "mlflow" in config.track:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        database = f"sqlite:///{folder.path / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI", database)
        trackers.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name=name))

    # Weights & Biases writes files of its own, which cannot lie in an object store
    if "wandb" in config.track:
        from ray.air.integrations.wandb import WandbLoggerCallback

        trackers.append(
            WandbLoggerCallback(
                project=os.environ.get("WANDB_PROJECT", "raffect"),
                group=name,
                dir=tempfile.gettempdir() if is_remote(folder.path) else str(folder.path),
            )
        )
    return trackers


def require_trackers(track: Sequence[str], remote: bool) -> None:
    """Refuse trackers that are not installed, or that have no place to write to.

    Raises:
        RaffectError: Names the first one.
    """
    require(
        not (remote and "mlflow" in track) or "MLFLOW_TRACKING_URI" in os.environ,
        "--track mlflow: --out is in an object store, where there is no database file; "
        "set MLFLOW_TRACKING_URI",
    )
    for name in track:
        package = {"tensorboard": "tensorboardX"}.get(name, name)
        require(
            importlib.util.find_spec(package) is not None,
            f"--track {name}: not installed; {how_to_add(name)}, or leave it out",
        )
    if "wandb" in track and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        # It warns of a deprecated call, which Ray's callback makes as well.
        with contextlib.redirect_stderr(io.StringIO()):
            key = os.environ.get("WANDB_API_KEY") or importlib.import_module("wandb").api.api_key
        require(
            bool(key),
            "--track wandb: no API key; run `wandb login`, or set WANDB_API_KEY, "
            "or WANDB_MODE=offline",
        )
