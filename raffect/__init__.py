"""raffect: frozen CLIP features and small robust heads for facial expressions and action units.

The public names are loaded on first use, so that importing raffect costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raffect.bank.features import read_features
    from raffect.bank.format import Bank
    from raffect.bank.inspect import BankFacts, count_videos, describe_bank
    from raffect.bank.join import join_banks
    from raffect.bank.join_report import JoinReport
    from raffect.bank.records import Identity
    from raffect.bank.rejects import RejectList, list_rejects
    from raffect.bank.verify import Verification, verify
    from raffect.config import (
        CaptionsConfig,
        CompareConfig,
        EncoderConfig,
        EvaluateConfig,
        ExportConfig,
        ExtractConfig,
        FacesConfig,
        ImportEmoclipConfig,
        LearnPromptsConfig,
        PackConfig,
        PostprocessConfig,
        PredictConfig,
        PrepareConfig,
        ProbeConfig,
        RobustConfig,
        SubmitConfig,
        TrainConfig,
        TuneConfig,
        ZeroshotConfig,
    )
    from raffect.datasets.affwild2.tasks import AU, EXPR, VA
    from raffect.datasets.labels import read_labels
    from raffect.datasets.manifest import read_manifest
    from raffect.datasets.prepare import PrepareReport, prepare
    from raffect.datasets.synthetic.tree import write_synthetic
    from raffect.datasets.tasks import Task
    from raffect.encoders.tower import load_encoder
    from raffect.errors import RaffectError
    from raffect.evaluation.comparison import CompareResult
    from raffect.evaluation.evaluate import evaluate
    from raffect.evaluation.postprocess import PostprocessResult, postprocess
    from raffect.evaluation.predict import PredictResult
    from raffect.evaluation.results import EvaluateResult
    from raffect.evaluation.robustness import RobustResult
    from raffect.export.export import ExportResult, export_heads
    from raffect.extraction.estimate import Estimate, estimate
    from raffect.extraction.extract import extract
    from raffect.extraction.find_faces import FacesResult, find_faces
    from raffect.extraction.pack import PackReport, pack
    from raffect.extraction.summary import ExtractSummary
    from raffect.heads.checkpoint import HeadCard, load_head
    from raffect.language.captions import captions
    from raffect.language.captions_result import CaptionsResult
    from raffect.language.import_emoclip import ImportedHead, import_emoclip
    from raffect.language.learn_prompts import learn_prompts
    from raffect.language.learnt_result import LearnPromptsResult
    from raffect.language.zeroshot import zeroshot
    from raffect.language.zeroshot_result import ZeroshotResult
    from raffect.pipelines.compare import compare
    from raffect.pipelines.predict_files import PredictFilesResult, predict
    from raffect.pipelines.probe import ProbeResult, probe
    from raffect.pipelines.robust import robust
    from raffect.predictions.challenge import SubmitResult, submit
    from raffect.reporting.report import ReportResult, report
    from raffect.runs.conclusions import SweepResult, TrainResult
    from raffect.training.official_folds import OfficialFoldsResult, train_on_official_folds
    from raffect.training.train import train
    from raffect.training.tune import tune

_HOME = {
    "AU": "datasets.affwild2.tasks",
    "Bank": "bank.format",
    "BankFacts": "bank.inspect",
    "CaptionsConfig": "config",
    "CaptionsResult": "language.captions_result",
    "CompareConfig": "config",
    "CompareResult": "evaluation.comparison",
    "EXPR": "datasets.affwild2.tasks",
    "EncoderConfig": "config",
    "Estimate": "extraction.estimate",
    "EvaluateConfig": "config",
    "EvaluateResult": "evaluation.results",
    "ExportConfig": "config",
    "ExportResult": "export.export",
    "ExtractConfig": "config",
    "ExtractSummary": "extraction.summary",
    "FacesConfig": "config",
    "FacesResult": "extraction.find_faces",
    "HeadCard": "heads.checkpoint",
    "Identity": "bank.records",
    "ImportEmoclipConfig": "config",
    "ImportedHead": "language.import_emoclip",
    "JoinReport": "bank.join_report",
    "LearnPromptsConfig": "config",
    "LearnPromptsResult": "language.learnt_result",
    "OfficialFoldsResult": "training.official_folds",
    "PackConfig": "config",
    "PackReport": "extraction.pack",
    "PostprocessConfig": "config",
    "PostprocessResult": "evaluation.postprocess",
    "PredictConfig": "config",
    "PredictFilesResult": "pipelines.predict_files",
    "PredictResult": "evaluation.predict",
    "PrepareConfig": "config",
    "PrepareReport": "datasets.prepare",
    "ProbeConfig": "config",
    "ProbeResult": "pipelines.probe",
    "RaffectError": "errors",
    "RejectList": "bank.rejects",
    "ReportResult": "reporting.report",
    "RobustConfig": "config",
    "RobustResult": "evaluation.robustness",
    "SubmitConfig": "config",
    "SubmitResult": "predictions.challenge",
    "SweepResult": "runs.conclusions",
    "Task": "datasets.tasks",
    "TrainConfig": "config",
    "TrainResult": "runs.conclusions",
    "TuneConfig": "config",
    "VA": "datasets.affwild2.tasks",
    "Verification": "bank.verify",
    "ZeroshotConfig": "config",
    "ZeroshotResult": "language.zeroshot_result",
    "captions": "language.captions",
    "compare": "pipelines.compare",
    "count_videos": "bank.inspect",
    "describe_bank": "bank.inspect",
    "estimate": "extraction.estimate",
    "evaluate": "evaluation.evaluate",
    "export_heads": "export.export",
    "extract": "extraction.extract",
    "find_faces": "extraction.find_faces",
    "import_emoclip": "language.import_emoclip",
    "learn_prompts": "language.learn_prompts",
    "join_banks": "bank.join",
    "list_rejects": "bank.rejects",
    "load_encoder": "encoders.tower",
    "load_head": "heads.checkpoint",
    "pack": "extraction.pack",
    "postprocess": "evaluation.postprocess",
    "predict": "pipelines.predict_files",
    "prepare": "datasets.prepare",
    "probe": "pipelines.probe",
    "read_features": "bank.features",
    "read_labels": "datasets.labels",
    "read_manifest": "datasets.manifest",
    "report": "reporting.report",
    "robust": "pipelines.robust",
    "submit": "predictions.challenge",
    "train": "training.train",
    "train_on_official_folds": "training.official_folds",
    "tune": "training.tune",
    "verify": "bank.verify",
    "write_synthetic": "datasets.synthetic.tree",
    "zeroshot": "language.zeroshot",
}
"""Where each public name lives, below ``raffect``."""

__all__ = [
    "AU",
    "EXPR",
    "VA",
    "Bank",
    "BankFacts",
    "CaptionsConfig",
    "CaptionsResult",
    "CompareConfig",
    "CompareResult",
    "EncoderConfig",
    "Estimate",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "ExportResult",
    "ExtractConfig",
    "ExtractSummary",
    "FacesConfig",
    "FacesResult",
    "HeadCard",
    "Identity",
    "ImportEmoclipConfig",
    "ImportedHead",
    "JoinReport",
    "LearnPromptsConfig",
    "LearnPromptsResult",
    "OfficialFoldsResult",
    "PackConfig",
    "PackReport",
    "PostprocessConfig",
    "PostprocessResult",
    "PredictConfig",
    "PredictFilesResult",
    "PredictResult",
    "PrepareConfig",
    "PrepareReport",
    "ProbeConfig",
    "ProbeResult",
    "RaffectError",
    "RejectList",
    "ReportResult",
    "RobustConfig",
    "RobustResult",
    "SubmitConfig",
    "SubmitResult",
    "SweepResult",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "Verification",
    "ZeroshotConfig",
    "ZeroshotResult",
    "__version__",
    "captions",
    "compare",
    "count_videos",
    "describe_bank",
    "estimate",
    "evaluate",
    "export_heads",
    "extract",
    "find_faces",
    "import_emoclip",
    "join_banks",
    "learn_prompts",
    "list_rejects",
    "load_encoder",
    "load_head",
    "pack",
    "postprocess",
    "predict",
    "prepare",
    "probe",
    "read_features",
    "read_labels",
    "read_manifest",
    "report",
    "robust",
    "submit",
    "train",
    "train_on_official_folds",
    "tune",
    "verify",
    "write_synthetic",
    "zeroshot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raffect' has no attribute {name!r}")
    return getattr(importlib.import_module(f"raffect.{_HOME[name]}"), name)
