"""Exports of heads that were never trained."""

from dataclasses import replace

import numpy as np
import pytest

import raffect
from raffect.datasets.affwild2.tasks import AU, EXPR
from raffect.evaluation.choose_rules import RULES_FILE
from raffect.heads.checkpoint import read_card
from raffect.predictions.rules import WeightedHead, plain_rules

GRAPHS = [pytest.param(form, marks=pytest.mark.cluster) for form in ("onnx", "pt2")]
FORMATS = ["safetensors", *GRAPHS]
LICENCE = "Aff-Wild2's agreement"


def folders_of(*runs):
    return [file.parent for run in runs for file in sorted(run.rglob("config.json"))]


def choose(runs):
    """Decision rules of all kinds for EXPR and AU, in the runs' folders."""
    for task, folders in ((EXPR, folders_of(*runs[:2])), (AU, folders_of(runs[2]))):
        heads = tuple(
            WeightedHead(folder=str(folder), sha256=read_card(folder).sha256, weight=1.0 + place)
            for place, folder in enumerate(folders)
        )
        levels = tuple(np.linspace(0.2, 0.7, len(task.outputs)).tolist())
        own = {"bias": levels} if task is EXPR else {"thresholds": levels}
        windows = (2,) * len(task.outputs)
        rules = replace(plain_rules(task, heads), **own, windows=windows, chosen_on="validation")
        (folders[0].parents[2] / RULES_FILE).write_bytes(rules.to_bytes())


def export(tmp_path, runs, form, **more):
    out = more.pop("out", tmp_path / form)
    usual = {"run": runs, "out": out, "format": form, "data_licence": LICENCE, "num_checked": 50}
    return raffect.export_heads(raffect.ExportConfig(**usual | more))
