"""Train the embedded encoder: a small CLIP on drawn faces and captions of their action units.

    uv run python scripts/train_embedded_encoder.py

Takes about 40 minutes on 2 cores and writes raffect/encoders/embedded/. Captions name what the FACS
manual sees ("lips parted and jaw dropped") and never an emotion, so that zero-shot expressions stay
a real test. The identities come from a random stream that `raffect synth` never draws from.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from raffect.datasets.affwild2.tasks import ACTION_UNITS, EXPRESSIONS
from raffect.datasets.synthetic.course import (
    PROTOTYPES,
    draw_course,
    iter_frames,
    sample_pose,
    sample_prototype,
)
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face
from raffect.datasets.synthetic.looks import draw_look
from raffect.datasets.synthetic.plan import plan_videos

EMBEDDED = Path(__file__).parents[1] / "raffect" / "encoders" / "embedded"
MODEL = "raffect-faces"
PHRASES = ACTION_UNITS | {
    "AU5": "upper eyelids raised",
    "AU9": "nose wrinkled",
    "AU17": "chin raised",
    "AU20": "lips stretched sideways",
}
TEMPLATES = (
    "a face with {}",
    "a drawing of a face with {}",
    "a photo of a face with {}",
    "a person with {}",
    "{}",
)
AT_REST = "every muscle at rest"
IDENTITY_STREAM = 77
VISIBLE = 0.3
CHUNK = 500
EVAL_FRAMES, EVAL_SEED = 8_000, 1

# Faces and captions


def sample_units(rng: np.random.Generator) -> np.ndarray:
    """Half the faces show an expression over some other units, half any mixture of units."""
    if rng.random() < 0.5:
        units = sample_prototype(rng, EXPRESSIONS[rng.integers(8)]) * rng.uniform(0.3, 1)
        extra = rng.random(len(DRAWN_UNITS)) < 0.1
    else:
        units = np.zeros(len(DRAWN_UNITS))
        extra = rng.random(len(DRAWN_UNITS)) < rng.uniform(0.05, 0.3)
    return np.maximum(units, extra * rng.uniform(0.2, 1, len(DRAWN_UNITS)))


def draw_chunk(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Faces and their units; the job is the seed, the chunk's number and how many faces."""
    seed, chunk, count = job
    rng = np.random.default_rng([seed, IDENTITY_STREAM, chunk])
    units = np.stack([sample_units(rng) for _ in range(count)])
    faces = []
    for row in units:
        look, named = draw_look(rng), dict(zip(DRAWN_UNITS, row.tolist(), strict=True))
        faces.append(draw_face(look, named, sample_pose(rng), int(rng.integers(2**31))))
    return np.stack(faces), units


def draw_faces(seed: int, frames: int) -> tuple[Tensor, np.ndarray]:
    """Faces, uint8 (N, H, W, 3), and their units (N, U), drawn by two processes."""
    jobs = [(seed, chunk, CHUNK) for chunk in range(frames // CHUNK)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        faces, units = zip(*pool.map(draw_chunk, jobs), strict=True)
    return torch.from_numpy(np.concatenate(faces)), np.concatenate(units)


def caption(units: np.ndarray, rng: np.random.Generator) -> str:
    """A sentence that names the visible units in random order."""
    named = zip(DRAWN_UNITS, units, strict=True)
    visible = [PHRASES[name] for name, value in named if value > VISIBLE]
    rng.shuffle(visible)
    *others, last = visible or [AT_REST]
    listed = f"{', '.join(others)} and {last}" if others else last
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(listed)


def normalise(pixels: Tensor, rng: np.random.Generator | None = None) -> Tensor:
    """uint8 (B, H, W, 3) -> the model's input.

    With ``rng`` shifted by up to 4 pixels, and half of them mirrored.
    """
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    x = (pixels.permute(0, 3, 1, 2).float().div_(255) - mean) / std
    if rng is not None:
        x = torch.roll(x, shifts=tuple(rng.integers(-4, 5, 2).tolist()), dims=(2, 3))
        mirrored = torch.from_numpy(rng.random(len(x)) < 0.5)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


# Training


def train(args: argparse.Namespace) -> open_clip.CLIP:
    """Draw faces and train a model on them."""
    # Faces
    start = time.perf_counter()
    faces, units = draw_faces(args.seed, args.frames)
    print(f"{len(faces)} faces drawn in {time.perf_counter() - start:.0f} s", flush=True)

    # Model, optimiser and its rate
    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, IDENTITY_STREAM + 1])
    model = open_clip.create_model(MODEL, pretrained=None)
    tokenizer = open_clip.get_tokenizer(MODEL)
    options = {"lr": args.lr, "weight_decay": 0.02, "betas": (0.9, 0.98)}
    optimiser = torch.optim.AdamW(model.parameters(), **options)
    batches = len(faces) // args.batch
    steps = {"total_steps": args.epochs * batches, "pct_start": 0.08}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, **steps)

    # Epochs
    visible = torch.from_numpy(units > VISIBLE)
    model.train()
    for epoch in range(args.epochs):
        losses = []
        for part in np.array_split(rng.permutation(len(faces)), batches):
            index = part[: args.batch]
            pixels = normalise(faces[index], rng)
            tokens = tokenizer([caption(units[i], rng) for i in index])
            loss = clip_loss(model, pixels, tokens, visible[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, np.log(100))
            losses.append(loss.item())
        scale, took = model.logit_scale.exp().item(), time.perf_counter() - start
        shown = f"epoch {epoch + 1}/{args.epochs} loss {np.mean(losses):.3f}"
        print(f"{shown} scale {scale:.1f} {took:.0f} s", flush=True)

    forget_unused_words(model, tokenizer)
    return model.eval()


def clip_loss(model: open_clip.CLIP, pixels: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
    """Contrastive loss of pictures and captions.

    Faces on which the same units are visible are each other's captions, too.
    """
    image = model.encode_image(pixels, normalize=True)
    text = model.encode_text(tokens, normalize=True)
    logits = model.logit_scale.exp() * image @ text.T
    same = (visible[:, None] == visible[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def forget_unused_words(model: open_clip.CLIP, tokenizer: Any) -> None:
    """Set embeddings of words that no caption has to 0: they mean nothing, and zeros compress."""
    phrases = [*PHRASES.values(), AT_REST]
    captions = [template.format(phrase) for template in TEMPLATES for phrase in phrases]
    tokens = tokenizer([f"{text}, and" for text in captions])
    used = torch.zeros(model.token_embedding.num_embeddings, dtype=torch.bool)
    used[tokens.flatten()] = True
    model.token_embedding.weight[~used] = 0


# Evaluation


@dataclass(frozen=True)
class Drawn:
    """Frames of `raffect synth`: faces, labels of both tasks, and the split in each task."""

    faces: np.ndarray
    expr: np.ndarray
    au: np.ndarray
    split: np.ndarray


def draw_dataset(num_frames: int, seed: int) -> Drawn:
    """The frames that `raffect synth` would write."""
    faces, expr, au, split = [], [], [], []
    for video in plan_videos(num_frames, seed):
        course = draw_course(video, seed)
        drawn = list(iter_frames(video, course, seed))
        rows = [frame - 1 for frame, _ in drawn]
        faces += [pixels for _, pixels in drawn]
        expr.append(course.expr[rows])
        au.append(course.au[rows])
        split += [(video.splits["expr"], video.splits["au"])] * len(rows)
    splits = np.array(split, dtype=object)
    return Drawn(np.stack(faces), np.concatenate(expr), np.concatenate(au), splits)


@torch.no_grad()
def encode(model: open_clip.CLIP, faces: np.ndarray) -> np.ndarray:
    """Vectors of faces."""
    batches = (torch.from_numpy(faces[i : i + 256]) for i in range(0, len(faces), 256))
    return np.concatenate([model.encode_image(normalise(batch)).numpy() for batch in batches])


def evaluate(model: open_clip.CLIP, data: Drawn) -> dict[str, float]:
    """Macro F1 on unseen subjects: heads (logistic regression) and zero-shot."""
    x, score = encode(model, data.faces), {}
    logistic = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced")
    head = make_pipeline(StandardScaler(), logistic)
    options = {"average": "macro", "labels": range(len(EXPRESSIONS)), "zero_division": 0}

    # Expressions
    labelled = data.expr >= 0
    fit, test = ((data.split[:, 0] == name) & labelled for name in ("train", "validation"))
    head.fit(x[fit], data.expr[fit])
    score["head_expr"] = f1_score(data.expr[test], head.predict(x[test]), **options)

    # Action units, one head each
    units = []
    for true in data.au.T:
        fit, test_au = (
            (data.split[:, 1] == name) & (true >= 0) for name in ("train", "validation")
        )
        head.fit(x[fit], true[fit])
        units.append(f1_score(true[test_au], head.predict(x[test_au])))
    score["head_au"] = float(np.mean(units))

    # Expressions again, from their descriptions
    predicted = predict_zero_shot(model, x)
    score["zeroshot_expr"] = f1_score(data.expr[test], predicted[test], **options)
    return {key: round(float(value), 3) for key, value in score.items()}


@torch.no_grad()
def predict_zero_shot(model: open_clip.CLIP, x: np.ndarray) -> np.ndarray:
    """The expression whose descriptions are nearest to each vector, by number."""
    tokenizer, classes = open_clip.get_tokenizer(MODEL), []
    for name in EXPRESSIONS:
        texts = []
        for variant in PROTOTYPES[name]:
            phrases = [PHRASES[unit] for unit, value in variant.items() if value > VISIBLE]
            listed = ", ".join(phrases or [AT_REST])
            texts += [template.format(listed) for template in TEMPLATES]
        vectors = model.encode_text(tokenizer(texts), normalize=True)
        classes.append(F.normalize(vectors.mean(0), dim=0))
    similarity = F.normalize(torch.from_numpy(x), dim=1) @ torch.stack(classes).T
    return similarity.argmax(1).numpy()


# What is written

CARD = """# raffect-faces: the embedded encoder

A small CLIP that ships with raffect so that everything can be tried without data or weights. **It
has never seen a photograph**: it was trained on {frames} drawn faces (seed {seed}, {epochs} epochs)
and captions of their action units by `scripts/train_embedded_encoder.py`. Scores that rest on it
say nothing about real faces; raffect marks them "embedded encoder, not CLIP" and refuses other
images without `--allow-embedded`.

- Image tower: open_clip's ModifiedResNet, 112x112, {image_parameters} parameters, 256-d vectors.
  Text tower: 2 layers of 32.
- Weights: float16 safetensors, {size_mb} MB. Captions name units, never emotions.
- Licence: Apache-2.0, as raffect. No images, labels or weights of others went into it.

Macro F1 on `raffect synth --frames {eval_frames} --seed {eval_seed}`, unseen subjects, of logistic
regression on the frozen vectors (8 expressions; 12 units) and zero-shot from descriptions of units,
beside the same tower with random weights:

| | EXPR head | AU head | EXPR zero-shot |
|---|---|---|---|
| trained | {trained[head_expr]} | {trained[head_au]} | {trained[zeroshot_expr]} |
| random weights | {random[head_expr]} | {random[head_au]} | {random[zeroshot_expr]} |

Training took {minutes} minutes on {threads} threads with torch {torch}.
"""


def save(model: open_clip.CLIP, path: Path) -> None:
    """Write the weights, in float16."""
    state = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, path)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()

    # The weights
    open_clip.add_model_config(EMBEDDED / f"{MODEL}.json")
    start = time.perf_counter()
    model = train(args)
    minutes = round((time.perf_counter() - start) / 60)
    path = args.out / f"{MODEL}.safetensors"
    save(model, path)

    # Scores, beside those of random weights
    torch.manual_seed(0)
    data = draw_dataset(EVAL_FRAMES, EVAL_SEED)
    trained = evaluate(model, data)
    random = evaluate(open_clip.create_model(MODEL, pretrained=None).eval(), data)
    scores = {"trained": trained, "random": random}
    print(json.dumps(scores, indent=1))

    # The card
    facts = dict(
        frames=args.frames,
        seed=args.seed,
        epochs=args.epochs,
        image_parameters=f"{sum(p.numel() for p in model.visual.parameters()):,}",
        size_mb=round(path.stat().st_size / 1e6, 1),
        eval_frames=EVAL_FRAMES,
        eval_seed=EVAL_SEED,
        minutes=minutes,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **scores,
    )
    (args.out / "CARD.md").write_text(CARD.format(**facts))


if __name__ == "__main__":
    main()
