"""Settings of the commands that judge and show heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raffect.errors import require


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score trained heads on a bank.

    Example: `raffect evaluate --run runs/expr --bank bank --labels data`
    """

    run: tuple[Path, ...]
    """Run folders of train or tune, or folders of one head each; several if they are of several
    tasks. Expressions, action units and valence with arousal together also have the sum of their
    scores, which is that of ABAW's multi-task challenge."""
    bank: Path
    """Bank made by the encoder that the heads were trained on."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    split: Literal["train", "validation", "test"] = "validation"
    """Frames to score on; test where the labels have such a split, as those of a table, a folder or
    `raffect bank import` may."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head: last epoch, best on validation, or the cross-validated epoch."""
    allow_incomplete: bool = False
    """Score on a bank that lacks planned frames (not extracted yet, or damaged). Every score is
    then marked as such."""
    out: Path | None = None
    """Also write metrics.json and per_group.csv to this folder, of several tasks to a folder of
    each in it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        require(bool(self.run), "--run: expected one run folder or more")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw tables and figures of one run or several: report.md, and report.html for a browser.

    Example: `raffect report --runs runs/figure2 runs/expr --out report`
    """

    runs: tuple[Path, ...]
    """Run folders of train and tune."""
    out: Path | None = None
    """Folder for the report; by default that of the first run."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "--runs: expected one run folder or more")
