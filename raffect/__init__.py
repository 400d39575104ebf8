"""raffect: frozen CLIP features and small robust heads for facial expressions and action units.

The public names are loaded on first use, so that importing raffect costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raffect.config import EncoderConfig, EvaluateConfig, ExtractConfig, PackConfig, PrepareConfig, TrainConfig, TuneConfig
    from raffect.data.affwild2 import AU, EXPR, VA
    from raffect.data.bank import Bank
    from raffect.data.bank_records import Identity
    from raffect.data.features import read_features
    from raffect.data.manifest import read_manifest
    from raffect.data.synthetic import write_synthetic
    from raffect.data.tables import read_labels
    from raffect.data.tasks import Task
    from raffect.data.verify import Verdict, verify
    from raffect.errors import RaffectError
    from raffect.evaluation.evaluate import EvaluateResult, evaluate
    from raffect.model.checkpoint import HeadCard, load_head
    from raffect.model.encoder import load_encoder
    from raffect.reporting.report import ReportResult, report
    from raffect.runs.conclusions import SweepResult, TrainResult
    from raffect.stages.bank_facts import BankFacts, count_videos, describe_bank
    from raffect.stages.estimate import Estimate, estimate
    from raffect.stages.extract import extract
    from raffect.stages.pack import PackReport, pack
    from raffect.stages.prepare import PrepareReport, prepare
    from raffect.stages.summary import ExtractSummary
    from raffect.training.train import train
    from raffect.training.tune import tune

_HOME = {
    "AU": "data.affwild2",
    "Bank": "data.bank",
    "BankFacts": "stages.bank_facts",
    "EXPR": "data.affwild2",
    "EncoderConfig": "config",
    "Estimate": "stages.estimate",
    "EvaluateConfig": "config",
    "EvaluateResult": "evaluation.evaluate",
    "ExtractConfig": "config",
    "ExtractSummary": "stages.summary",
    "HeadCard": "model.checkpoint",
    "Identity": "data.bank_records",
    "PackConfig": "config",
    "PackReport": "stages.pack",
    "PrepareConfig": "config",
    "PrepareReport": "stages.prepare",
    "RaffectError": "errors",
    "ReportResult": "reporting.report",
    "SweepResult": "runs.conclusions",
    "Task": "data.tasks",
    "TrainConfig": "config",
    "TrainResult": "runs.conclusions",
    "TuneConfig": "config",
    "VA": "data.affwild2",
    "Verdict": "data.verify",
    "count_videos": "stages.bank_facts",
    "describe_bank": "stages.bank_facts",
    "estimate": "stages.estimate",
    "evaluate": "evaluation.evaluate",
    "extract": "stages.extract",
    "load_encoder": "model.encoder",
    "load_head": "model.checkpoint",
    "pack": "stages.pack",
    "prepare": "stages.prepare",
    "read_features": "data.features",
    "read_labels": "data.tables",
    "read_manifest": "data.manifest",
    "report": "reporting.report",
    "train": "training.train",
    "tune": "training.tune",
    "verify": "data.verify",
    "write_synthetic": "data.synthetic",
}
"""Where each public name lives, below ``raffect``."""

__all__ = [
    "AU",
    "EXPR",
    "VA",
    "Bank",
    "BankFacts",
    "EncoderConfig",
    "Estimate",
    "EvaluateConfig",
    "EvaluateResult",
    "ExtractConfig",
    "ExtractSummary",
    "HeadCard",
    "Identity",
    "PackConfig",
    "PackReport",
    "PrepareConfig",
    "PrepareReport",
    "RaffectError",
    "ReportResult",
    "SweepResult",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "Verdict",
    "__version__",
    "count_videos",
    "describe_bank",
    "estimate",
    "evaluate",
    "extract",
    "load_encoder",
    "load_head",
    "pack",
    "prepare",
    "read_features",
    "read_labels",
    "read_manifest",
    "report",
    "train",
    "tune",
    "verify",
    "write_synthetic",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raffect' has no attribute {name!r}")
    return getattr(importlib.import_module(f"raffect.{_HOME[name]}"), name)
