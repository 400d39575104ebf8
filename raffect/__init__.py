"""raffect: frozen CLIP features and small robust heads for facial expressions and action units.

The public names are loaded on first use, so that importing raffect costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raffect.config import EncoderConfig, ExtractConfig, TrainConfig, TuneConfig
    from raffect.data.affwild2 import AU, EXPR, VA
    from raffect.data.bank import Bank
    from raffect.data.features import read_features
    from raffect.data.tables import read_labels
    from raffect.data.tasks import Task
    from raffect.errors import RaffectError
    from raffect.model.checkpoint import load_head
    from raffect.model.encoder import load_encoder
    from raffect.stages.extract import extract
    from raffect.training.train import train
    from raffect.training.tune import tune

_HOME = {
    "Bank": "data.bank", "read_features": "data.features", "read_labels": "data.tables", "EXPR": "data.affwild2", "AU": "data.affwild2", "VA": "data.affwild2", "Task": "data.tasks",
    "EncoderConfig": "config", "ExtractConfig": "config", "RaffectError": "errors", "load_encoder": "model.encoder", "extract": "stages.extract",
    "TrainConfig": "config", "TuneConfig": "config", "load_head": "model.checkpoint", "train": "training.train", "tune": "training.tune",
}  # fmt: skip
__all__ = [
    "AU", "EXPR", "VA", "Bank", "EncoderConfig", "ExtractConfig", "RaffectError", "Task", "TrainConfig", "TuneConfig", "__version__", "extract", "load_encoder", "load_head", "read_features",
    "read_labels", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raffect' has no attribute {name!r}")
    return getattr(importlib.import_module(f"raffect.{_HOME[name]}"), name)
