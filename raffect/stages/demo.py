"""`raffect demo`: every real stage on drawn faces, so that a new user sees all of it work before owning any data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raffect.config import EMBEDDED_MODEL, BankVerifyConfig, DemoConfig, EncoderConfig, ExtractConfig, PrepareConfig
from raffect.data.atomic import write_atomic
from raffect.data.bank import Bank
from raffect.data.features import Features, read_features
from raffect.data.labels import EXPR, EXPRESSIONS
from raffect.data.synthetic import EDITION, write_synthetic
from raffect.data.tables import read_labels
from raffect.errors import RaffectError
from raffect.stages.bank import check
from raffect.stages.extract import extract
from raffect.stages.prepare import prepare
from raffect.stages.progress import Progress, format_seconds
from raffect.stages.provenance import describe_run

_BOOTSTRAP = 1000
_SHARD_ROWS = 512


def demo(config: DemoConfig, say: Callable[[str], None]) -> None:
    """Draw, prepare, extract, verify, then judge the features with a linear classifier.

    Args:
        config: Where and how much.
        say: Prints a line.

    Raises:
        RaffectError: If a stage fails.
    """
    start = time.perf_counter()
    tree, data, bank = config.out / "faces", config.out / "data", config.out / "bank"
    say(f"1/5 synth: draw {config.frames:,} faces from action units, in Aff-Wild2's layout")
    with Progress("synth", config.frames) as progress:
        counts = write_synthetic(tree, config.frames, config.seed, progress=progress.advance)
    say(f"    {counts['videos']} videos, {counts['lines']:,} lines, {counts['images']:,} images in {tree}")
    say("2/5 prepare: find the images, read the annotations, say what is missing")
    _indent(prepare(PrepareConfig(images=(tree / "cropped_aligned",), annotations=tree / EDITION, out=data))[:-2], say)
    say(f"3/5 extract: encode every frame with {EMBEDDED_MODEL}, the small CLIP that ships with raffect")
    encoder = EncoderConfig(model=EMBEDDED_MODEL, weights="embedded")
    _indent(extract(ExtractConfig(manifest=data / "manifest.parquet", bank=bank, encoder=encoder, shard_rows=_SHARD_ROWS)).lines(), say)
    say("4/5 verify: every byte as committed, every frame once")
    lines, complete = check(BankVerifyConfig(bank=bank, manifest=data / "manifest.parquet"))
    _indent(lines, say)
    if not complete:
        raise RaffectError(f"{bank} is not complete; delete {config.out} and run the demo again")
    say("5/5 judge: logistic regression on the frozen features, trained and validated on different videos")
    score = judge(Bank(bank), data / "labels" / "expr.parquet", config.seed)
    _indent(score_lines(score), say)
    content = {"run": describe_run(), "score": score}
    write_atomic(config.out / "score.json", (json.dumps(content, indent=1) + "\n").encode())
    say("")
    say(f"Done in {format_seconds(time.perf_counter() - start)}. Drawn faces and a small encoder: these scores say nothing about photographs.")
    say(f"  images and annotations  {tree}\n  manifest and labels     {data}\n  bank                    {bank}\n  scores                  {config.out / 'score.json'}")
    say("Next, with your own copy of Aff-Wild2:")
    say("  raffect models pull                      # CLIP ViT-L/14 by OpenAI, 1.7 GB")
    say("  raffect prepare --images AFFWILD2/cropped_aligned AFFWILD2/cropped_aligned_new_50_vids --annotations AFFWILD2/ANNOTATIONS --out data")
    say("  raffect extract --manifest data/manifest.parquet --bank bank --dry-run")


def judge(bank: Bank, labels: Path, seed: int) -> dict:
    """EXPR macro F1 of logistic regression, with a bootstrap over videos, beside the trivial predictor.

    Nothing is chosen on the validation split: the regression's settings are fixed.

    Args:
        bank: A finished bank.
        labels: EXPR label table.
        seed: Of the bootstrap.

    Returns:
        Scores as plain JSON values.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = read_labels(labels)
    train, validation = (read_features(bank, table, EXPR, split) for split in ("train", "validation"))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"))
    model.fit(train.x.astype(np.float32), train.y[:, 0])
    guess = model.predict(validation.x.astype(np.float32))
    trivial = _best_constant(validation.y[:, 0])
    identity = bank.read_identity()
    return {
        "task": "expr", "metric": "macro F1 over 8 classes", "macro_f1": macro_f1(validation.y[:, 0], guess),
        "interval_95": bootstrap_videos(validation, guess, seed), "trivial": trivial, "selection": "none: fixed settings, validation used once",
        "train_frames": len(train.x), "train_videos": len(train.videos), "validation_frames": len(validation.x), "validation_videos": len(validation.videos),
        "stamp": identity.stamp if identity else "", "bank_digest": bank.digest(),
    }  # fmt: skip


def score_lines(score: dict) -> list[str]:
    """The scores for people."""
    low, high = score["interval_95"]
    return [
        f"EXPR macro F1 {score['macro_f1']:.3f}, 95 % interval over videos [{low:.3f}, {high:.3f}]; best constant answer ({score['trivial']['answer']}) {score['trivial']['macro_f1']:.3f}",
        f"trained on {score['train_frames']:,} frames of {score['train_videos']} videos, judged on {score['validation_frames']:,} frames of {score['validation_videos']} others; {score['selection']}",
        f"stamp: {score['stamp']}",
    ]


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean F1 over all 8 classes; a class that never occurs scores 0 and is not dropped."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, guess, labels=range(len(EXPRESSIONS)), average="macro", zero_division=0))


def bootstrap_videos(features: Features, guess: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of macro F1 when whole videos are drawn again with replacement, since their frames are alike.

    A class that no drawn video shows is left out of that draw's mean: the draw lost it, not the classifier.
    """
    rng = np.random.default_rng(seed)
    classes, videos = len(EXPRESSIONS), len(features.videos)
    cell = (features.video.astype(np.int64) * classes + features.y[:, 0]) * classes + guess
    counts = np.bincount(cell, minlength=videos * classes**2).reshape(videos, classes, classes)
    drawn = rng.multinomial(videos, np.full(videos, 1 / videos), _BOOTSTRAP)
    confusion = np.tensordot(drawn, counts, axes=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    f1 = 2 * hits / np.maximum(confusion.sum(1) + confusion.sum(2), 1)
    shown = confusion.sum(2) > 0
    low, high = np.quantile((f1 * shown).sum(1) / shown.sum(1), (0.025, 0.975))
    return float(low), float(high)


def _best_constant(truth: np.ndarray) -> dict:
    scores = [macro_f1(truth, np.full(len(truth), label)) for label in range(len(EXPRESSIONS))]
    return {"answer": EXPRESSIONS[int(np.argmax(scores))], "macro_f1": max(scores)}


def _indent(lines: list[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(f"    {line}" if line else "")
