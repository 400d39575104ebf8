"""`raffect demo`: every real stage on drawn faces.

A new user sees all of it work before owning any data.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raffect.bank.commands import check
from raffect.config import (
    EMBEDDED_MODEL,
    BankVerifyConfig,
    DemoConfig,
    EncoderConfig,
    ExtractConfig,
    PredictConfig,
    PrepareConfig,
    SubmitConfig,
    TrainConfig,
    TuneConfig,
)
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, TEMPLATES, write_synthetic
from raffect.datasets.synthetic.video import write_video
from raffect.errors import RaffectError, how_to_add
from raffect.evaluation.predict import predict
from raffect.extraction.extract import extract
from raffect.pipelines.predict_files import predict_files
from raffect.predictions.challenge import submit
from raffect.progress import Progress, format_seconds
from raffect.ray_session.session import ray_session
from raffect.reporting.report import report
from raffect.storage.atomic import require_writable
from raffect.training.train import train
from raffect.training.tune import tune

_SHARD_ROWS = 512
_EPOCHS = 10
_ALPHAS = "loss.alpha=0.1,0.2,0.3,0.5,0.7,1"
_SEEDS = 3
_AFFWILD2 = (
    "AFFWILD2/cropped_aligned AFFWILD2/cropped_aligned_new_50_vids"
    " --annotations AFFWILD2/ANNOTATIONS"
)
_NEXT = f"""\
Next, with your own copy of Aff-Wild2:
  raffect models pull                      # CLIP ViT-L/14 by OpenAI, 1.7 GB
  raffect prepare --images {_AFFWILD2} --out data
  raffect extract --manifest data/manifest.parquet --bank bank --dry-run
  raffect tune paper --task expr --bank bank --labels data --out runs/figure2"""


def demo(config: DemoConfig, say: Callable[[str], None]) -> None:
    """Draw, prepare, extract, verify, tune, train, report, enter a challenge, predict a video.

    Args:
        config: Where and how much.
        say: Prints a line.

    Raises:
        RaffectError: If a stage fails.
    """
    start = time.perf_counter()
    require_writable(config.out)
    with ray_session(None):  # one Ray for all stages
        _run_stages(config, say)
    # Where the results are, and what to do with real data.
    caveat = "Drawn faces and a small encoder: these scores say nothing about photographs."
    folders = "faces/, data/, bank/, expr-alpha/ (the sweep), au/ (the run), expr-entry.txt"
    say("")
    say(f"Done in {format_seconds(time.perf_counter() - start)}. {caveat}")
    say(f"  open in a browser  {config.out / 'report.html'}")
    say(f"                     {config.out / 'predictions' / 'index.html'}")
    say(f"  everything else    {config.out}: {folders}")
    for line in _NEXT.splitlines():
        say(line)


def _run_stages(config: DemoConfig, say: Callable[[str], None]) -> None:
    data, bank = config.out / "data", config.out / "bank"
    _make_data(config, data, say)
    _make_bank(config, data, bank, say)
    _learn(config, data, bank, say)
    _enter(config, bank, say)
    _predict_video(config, say)


def _make_data(config: DemoConfig, data: Path, say: Callable[[str], None]) -> None:
    """Stages 1 and 2: drawn faces, manifest and label tables."""
    tree = config.out / "faces"
    say(f"1/9 synth: draw {config.frames:,} faces from action units, in Aff-Wild2's layout")
    with Progress("synth", config.frames) as progress:
        counts = write_synthetic(tree, config.frames, config.seed, progress=progress.advance)
    made = f"{counts['videos']} videos, {counts['lines']:,} lines, {counts['images']:,} images"
    say(f"    {made} in {tree}")
    say("2/9 prepare: find the images, read the annotations, say what is missing")
    images = (tree / "cropped_aligned",)
    prepared = prepare(PrepareConfig(images=images, annotations=tree / EDITION, out=data))
    _indent(prepared.lines()[:-2], say)


def _make_bank(config: DemoConfig, data: Path, bank: Path, say: Callable[[str], None]) -> None:
    """Stages 3 and 4: features of every frame, verified."""
    name = f"{EMBEDDED_MODEL}, the small CLIP that ships with raffect"
    say(f"3/9 extract: encode every frame with {name}")
    manifest = data / "manifest.parquet"
    encoder = EncoderConfig(model=EMBEDDED_MODEL)
    extracted = extract(
        ExtractConfig(manifest=manifest, bank=bank, encoder=encoder, shard_rows=_SHARD_ROWS)
    )
    _indent(extracted.lines(), say)
    say("4/9 verify: every byte as committed, every frame once")
    found = check(BankVerifyConfig(bank=bank, manifest=manifest))
    _indent(found.lines(), say)
    if not found.ok:
        raise RaffectError(f"{bank} is not complete; delete {config.out} and run the demo again")


def _learn(config: DemoConfig, data: Path, bank: Path, say: Callable[[str], None]) -> None:
    """Stages 5 to 7: a sweep, a run, and their report."""
    what = f"the paper's recipe for EXPR over alpha, {_SEEDS} seeds each, and plain ERM beside it"
    say(f"5/9 tune: {what}; {_EPOCHS} epochs, not 32")
    # What the sweep and the run share.
    common: dict[str, Any] = {"bank": bank, "labels": data, "seed": config.seed, "epochs": _EPOCHS}
    seeds = f"seed={config.seed}:{config.seed + _SEEDS - 1}"
    sweep_out, run_out = config.out / "expr-alpha", config.out / "au"
    space = (_ALPHAS, seeds)
    sweep = TuneConfig.from_recipe("paper", **common, task="expr", out=sweep_out, space=space)
    _indent(tune(sweep).lines()[:-2], say)
    say("6/9 train: the paper's recipe for AU")
    run = TrainConfig.from_recipe("paper", **common, task="au", out=run_out, num_seeds=_SEEDS)
    _indent(train(run).lines()[:-2], say)
    say("7/9 report: tables and figures")
    _indent(report((sweep.out, run.out), config.out).lines(), say)


def _enter(config: DemoConfig, bank: Path, say: Callable[[str], None]) -> None:
    """Stage 8: a challenge entry for the videos that are in no split."""
    say("8/9 submit: an entry of the EXPR challenge, from predictions of the whole bank")
    table, template = config.out / "bank.parquet", config.out / "faces" / TEMPLATES / "expr.txt"
    head = (config.out / "expr-alpha",)
    predicted = predict(PredictConfig(bank=bank, head=head, out=table))
    _indent(predicted.lines(), say)
    if not template.exists():
        say("    so small a data set has no test videos: take --frames 2500 or more for an entry")
        return
    entry = SubmitConfig(template=template, predictions=table, out=config.out / "expr-entry.txt")
    _indent(submit(entry).lines(), say)


def _predict_video(config: DemoConfig, say: Callable[[str], None]) -> None:
    """Stage 9: a video, from pixels to a page."""
    say("9/9 predict: a drawn video, to look at as an overlay and a page")
    clip, out = config.out / "clip.mp4", config.out / "predictions"
    if importlib.util.find_spec("av") is None:
        say(f"    left out: videos need {how_to_add('video')}")
        return
    if not clip.exists():
        write_video(clip, seed=config.seed)
    heads = (config.out / "expr-alpha", config.out / "au")
    # The boxes are those of drawn faces without a border
    boxes = clip.with_name(f"{clip.name}.boxes.csv")
    found = predict_files(
        PredictConfig(
            inputs=(clip,), head=heads, out=out, boxes=boxes, margin=0, allow_embedded=True
        )
    )
    _indent(found.lines(), say)


def _indent(lines: list[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(f"    {line}" if line else "")
