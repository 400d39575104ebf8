"""What each command of the command line runs, and what it prints of the result.

A stage is imported only where its command runs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from raffect import config as c
from raffect.errors import require
from raffect.imports import quick_imports
from raffect.progress import stage
from raffect.several import READ_BANKS

_TORCH, _MATPLOTLIB = "loading torch", "loading matplotlib"
"""What takes the first seconds of commands that train or judge, and of those that draw."""

STAGES = {
    # Data sets and banks
    "prepare": ("raffect.datasets.prepare:prepare", ""),
    "faces": ("raffect.extraction.find_faces:find_faces", ""),
    "pack": ("raffect.extraction.pack:pack", ""),
    # Heads
    "tune": ("raffect.training.tune:tune", _TORCH),
    "postprocess": ("raffect.evaluation.postprocess:postprocess", _TORCH),
    "captions": ("raffect.language.captions.captions:captions", _TORCH),
    "zeroshot": ("raffect.language.zeroshot.zeroshot:zeroshot", _TORCH),
    "import-emoclip": ("raffect.language.import_emoclip:import_emoclip", _TORCH),
    "learn-prompts": ("raffect.language.learn_prompts:learn_prompts", _TORCH),
    # Their results
    "probe": ("raffect.pipelines.probe:probe", _TORCH),
    "evaluate": ("raffect.evaluation.evaluate:evaluate", _TORCH),
    "robust": ("raffect.pipelines.robust:robust", _TORCH),
    "compare": ("raffect.pipelines.compare:compare", _TORCH),
    "predict": ("raffect.pipelines.predict_files:predict", _TORCH),
    "export": ("raffect.export.export:export_heads", _TORCH),
    "submit": ("raffect.predictions.challenge:submit", ""),
}
"""Commands that are one function of their configuration, whose result has lines: the function, and
what loading it is called where that takes seconds."""


_INPUTS = {
    "labels": ("label table", "raffect prepare"),
    "run": ("run folder", "raffect train"),
    "head": ("run folder or head", "raffect train"),
}
"""Settings that are paths of inputs: what is there, and the command that makes it."""


def run(command: str, config: Any) -> int:
    """Run a command and print its result.

    Returns:
        The exit status.
    """
    if command in (*READ_BANKS, "robust"):
        _require_inputs(config)
    if command not in STAGES:
        return _OTHERS[command](config)
    where, loading = STAGES[command]
    return _print(_load(where, loading)(config).lines(), config)


def _require_inputs(config: Any) -> None:
    """Refuse inputs that are not there before torch is loaded, which takes seconds.

    Raises:
        RaffectError: Names the first one, in the order of the flags below.
    """
    if (bank := getattr(config, "bank", None)) is not None:
        from raffect.bank.format import Bank

        Bank(bank).require()
    for name, (what, maker) in _INPUTS.items():
        value = getattr(config, name, None)
        for path in value if isinstance(value, tuple) else (value,):
            is_there = not isinstance(path, Path) or path.exists()
            require(is_there, f"{path}: no such {what}; make it with `{maker}`")


def _load(where: str, loading: str) -> Callable[..., Any]:
    """A function by ``module:name``."""
    module, _, name = where.partition(":")
    if not loading:
        return getattr(importlib.import_module(module), name)
    with _loads(loading):
        return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def _loads(what: str) -> Generator[None]:
    """Imports that take seconds."""
    with stage(what), quick_imports():
        yield


def _demo(config: c.DemoConfig) -> int:
    with _loads(_TORCH):
        from raffect.pipelines.demo import demo

    demo(config, lambda line: print(line, flush=True))
    return 0


def _train(config: c.TrainConfig) -> int:
    with _loads(_TORCH):
        from raffect.training.official_folds import train_on_official_folds
        from raffect.training.train import train

    action = train_on_official_folds if config.folds == "official" else train
    return _print(action(config).lines(), config)


def _report(config: c.ReportConfig) -> int:
    with _loads(_MATPLOTLIB):
        from raffect.reporting.report import report

    if config.predictions and config.labels:  # both are there with --gallery alone
        from raffect.reporting.gallery import write_gallery

        out = config.out or config.runs[0]
        arguments = (config.predictions, config.labels, config.images, config.split)
        _print(write_gallery(*arguments, out.absolute()).lines(), config)
    options = {"judged": config.judged, "has_gallery": config.gallery}
    return _print(report(config.runs, config.out, **options).lines(), config)


def _extract(config: c.ExtractConfig) -> int:
    if config.dry_run:
        from raffect.extraction.estimate import estimate

        return _print(estimate(config).lines(), config)
    from raffect.extraction.extract import extract

    summary = extract(config)
    _print(summary.lines(), config)

    # Too many rejects, or the next command
    if summary.reject_share > config.max_reject_share:
        print(
            f"raffect extract: {summary.reject_share:.2%} of the frames could not be read, "
            f"more than --max-reject-share {config.max_reject_share:.2%}; "
            f"`raffect bank rejects --bank {shlex.quote(str(config.bank))}` lists them",
            file=sys.stderr,
        )
        return 3
    if left := summary.shards_planned - summary.shards_done:
        print(f"next: the same command encodes the other {left} shards")
    else:
        print(f"next: raffect bank verify --bank {shlex.quote(str(config.bank))}")
    return 0


def _bank(config: Any) -> int:
    status = 0
    match config:
        case c.BankInfoConfig():
            from raffect.bank.commands import info

            facts = info(config)
            lines = [json.dumps(facts.to_json(), indent=1)] if config.json else facts.lines()
        case c.BankRejectsConfig():
            from raffect.bank.commands import rejects

            lines = rejects(config).lines()
        case c.BankVerifyConfig():
            from raffect.bank.commands import check

            report = check(config)
            lines, status = report.lines(), 0 if report.ok else 1
        case c.BankJoinConfig():
            from raffect.bank.join import join_banks

            lines = join_banks(config.banks, config.bank, config.how).lines()
        case c.BankExportConfig():
            from raffect.bank.export import export

            lines = export(config).lines()
        case c.BankImportConfig() if config.npy is not None:
            from raffect.bank.import_npy import import_npy

            lines = import_npy(config).lines()
        case _:
            from raffect.bank.import_released import import_released

            lines = import_released(config).lines()
    _print(lines, config)
    return status


def _models(config: Any) -> int:
    from raffect.encoders import catalogue as stage

    actions = {
        c.ModelsListConfig: stage.list_models,
        c.ModelsPathConfig: stage.path,
        c.ModelsPullConfig: stage.pull,
        c.ModelsVerifyConfig: stage.verify,
    }
    return _print(actions[type(config)](config).lines(), config)


def _doctor(config: c.DoctorConfig) -> int:
    from raffect.pipelines.doctor import diagnose

    diagnosis = diagnose(config, lambda check: print(check.line(), flush=True))
    print(diagnosis.conclusion)
    return 0 if diagnosis.ok else 1


def _synth(config: c.SynthConfig) -> int:
    from raffect.datasets.affwild2.tasks import EXPRESSIONS
    from raffect.datasets.synthetic.course import contact_sheet
    from raffect.datasets.synthetic.tree import AFFWILD2, EDITION, SIZES, write_synthetic
    from raffect.progress import Progress

    # Faces and annotations
    frames = config.frames or SIZES[config.size]
    with Progress("synth", frames) as progress:
        counts = write_synthetic(
            config.out, frames, config.seed, progress=progress.advance, layout=config.layout
        )

    # A contact sheet, and a video
    if config.sheet:
        from PIL import Image

        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet(config.seed)).save(config.sheet, format="PNG")
        print(f"contact sheet: {config.sheet}, a row a subject, columns {', '.join(EXPRESSIONS)}")
    if config.video:
        from raffect.datasets.synthetic.video import write_video

        frames = len(write_video(config.video, seed=config.seed).face)
        print(f"video: {config.video}, {frames} frames; boxes: {config.video}.boxes.csv")

    # What was drawn, and the next command
    print(
        f"{counts['videos']} videos, {counts['lines']:,} lines, {counts['images']:,} images "
        f"in {config.out} (drawn faces)"
    )
    if config.layout != AFFWILD2:
        root = shlex.quote(str(config.out))
        print(f"next: raffect prepare --dataset auto --root {root} --out DATA")
        return 0
    images = shlex.quote(str(config.out / "cropped_aligned"))
    annotations = shlex.quote(str(config.out / EDITION))
    print(f"next: raffect prepare --images {images} --annotations {annotations} --out DATA")
    return 0


def _print(lines: list[str], config: Any) -> int:
    """Print a result; paths of the configuration stand as they were typed, not as absolute ones."""
    text = "\n".join(lines)
    for value in vars(config).values():
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and not str(path).startswith("-"):  # it would be a flag
                whole, typed = re.escape(str(path.absolute())), str(path)
                text = re.sub(rf"(?<![^\s']){whole}(?![^\s/':;,])", lambda _, t=typed: t, text)
    print(text)
    return 0


_OTHERS: dict[str, Callable[[Any], int]] = {
    "demo": _demo,
    "doctor": _doctor,
    "synth": _synth,
    "extract": _extract,
    "bank": _bank,
    "models": _models,
    "train": _train,
    "report": _report,
}
"""Commands that print as they go, choose between functions, or have an exit status of their own."""
