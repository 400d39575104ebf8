"""Train the embedded encoder: a small CLIP on drawn faces and captions of their action units.

    uv run python scripts/train_embedded_encoder.py            # about 40 minutes on 2 cores; writes raffect/encoders/embedded/

Captions name what the FACS manual sees ("lips parted and jaw dropped") and never an emotion, so that zero-shot
expressions stay a real test. The identities come from a random stream that `raffect synth` never draws from.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raffect.datasets.affwild2.tasks import ACTION_UNITS, EXPRESSIONS
from raffect.datasets.synthetic.faces import DRAWN_UNITS, draw_face, draw_look
from raffect.datasets.synthetic.tree import (
    PROTOTYPES,
    draw_course,
    iter_frames,
    plan_videos,
    sample_pose,
    sample_prototype,
)

EMBEDDED = Path(__file__).parents[1] / "raffect" / "model" / "embedded"
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


def sample_units(rng: np.random.Generator) -> np.ndarray:
    """Half the faces show an expression over a background of other units, half any mixture of units."""
    if rng.random() < 0.5:
        units = sample_prototype(rng, EXPRESSIONS[rng.integers(8)]) * rng.uniform(0.3, 1)
        extra = rng.random(len(DRAWN_UNITS)) < 0.1
    else:
        units = np.zeros(len(DRAWN_UNITS))
        extra = rng.random(len(DRAWN_UNITS)) < rng.uniform(0.05, 0.3)
    return np.maximum(units, extra * rng.uniform(0.2, 1, len(DRAWN_UNITS)))


def draw_chunk(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, chunk, count = job
    rng = np.random.default_rng([seed, IDENTITY_STREAM, chunk])
    units = np.stack([sample_units(rng) for _ in range(count)])
    faces = np.stack(
        [
            draw_face(
                draw_look(rng),
                dict(zip(DRAWN_UNITS, row.tolist(), strict=True)),
                sample_pose(rng),
                int(rng.integers(2**31)),
            )
            for row in units
        ]
    )
    return faces, units


def caption(units: np.ndarray, rng: np.random.Generator) -> str:
    visible = [
        PHRASES[name] for name, value in zip(DRAWN_UNITS, units, strict=True) if value > VISIBLE
    ]
    rng.shuffle(visible)
    listed = (
        ", ".join(visible[:-1]) + " and " + visible[-1]
        if len(visible) > 1
        else (visible or [AT_REST])[0]
    )
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(listed)


def normalise(pixels: torch.Tensor, rng: np.random.Generator | None = None) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> the model's input; with ``rng`` shifted by up to 4 pixels and mirrored by half."""
    x = pixels.permute(0, 3, 1, 2).float().div_(255)
    x = (x - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    ).view(3, 1, 1)
    if rng is not None:
        x = torch.roll(x, shifts=tuple(rng.integers(-4, 5, 2).tolist()), dims=(2, 3))
        x = torch.where(
            torch.from_numpy(rng.random(len(x)) < 0.5)[:, None, None, None], x.flip(3), x
        )
    return x


def train(args: argparse.Namespace) -> open_clip.CLIP:
    start = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(
            pool.map(draw_chunk, [(args.seed, chunk, 500) for chunk in range(args.frames // 500)])
        )
    faces = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    units = np.concatenate([part[1] for part in parts])
    print(f"{len(faces)} faces drawn in {time.perf_counter() - start:.0f} s", flush=True)

    torch.manual_seed(args.seed)
    rng = np.random.default_rng([args.seed, IDENTITY_STREAM + 1])
    model = open_clip.create_model("raffect-faces", pretrained=None)
    tokenizer = open_clip.get_tokenizer("raffect-faces")
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98)
    )
    steps = args.epochs * (len(faces) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.lr, total_steps=steps, pct_start=0.08
    )
    visible = torch.from_numpy(units > VISIBLE)
    model.train()
    for epoch in range(args.epochs):
        losses = []
        for index in np.array_split(rng.permutation(len(faces)), len(faces) // args.batch):
            index = index[: args.batch]
            image = model.encode_image(normalise(faces[index], rng), normalize=True)
            text = model.encode_text(
                tokenizer([caption(units[i], rng) for i in index]), normalize=True
            )
            logits = model.logit_scale.exp() * image @ text.T
            same = (visible[index][:, None] == visible[index][None]).all(-1).float()
            target = same / same.sum(
                1, keepdim=True
            )  # faces of the same units are each other's captions
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, np.log(100))
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {np.mean(losses):.3f} scale {model.logit_scale.exp().item():.1f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    used = torch.zeros(model.token_embedding.num_embeddings, dtype=torch.bool)
    used[
        tokenizer(
            [
                template.format(phrase) + ", and"
                for template in TEMPLATES
                for phrase in [*PHRASES.values(), AT_REST]
            ]
        ).flatten()
    ] = True
    with torch.no_grad():
        model.token_embedding.weight[~used] = 0  # words it never saw say nothing, and compress well
    return model.eval()


@torch.no_grad()
def encode(model: open_clip.CLIP, faces: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            model.encode_image(normalise(torch.from_numpy(faces[i : i + 256]))).numpy()
            for i in range(0, len(faces), 256)
        ]
    )


def evaluate(model: open_clip.CLIP, num_frames: int, seed: int) -> dict[str, float]:
    """Macro F1 on `raffect synth` data of unseen subjects: heads (logistic regression) and zero-shot."""
    faces, expr, au, split = [], [], [], []
    for video in plan_videos(num_frames, seed):
        course = draw_course(video, seed)
        drawn = list(iter_frames(video, course, seed))
        faces += [pixels for _, pixels in drawn]
        rows = [frame - 1 for frame, _ in drawn]
        expr.append(course.expr[rows])
        au.append(course.au[rows])
        split += [(video.splits["expr"], video.splits["au"])] * len(rows)
    x, expr, au, split = (
        encode(model, np.stack(faces)),
        np.concatenate(expr),
        np.concatenate(au),
        np.array(split, dtype=object),
    )
    head = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced")
    )
    score = {}
    fit, test = ((split[:, 0] == name) & (expr >= 0) for name in ("train", "validation"))
    score["head_expr"] = f1_score(
        expr[test],
        head.fit(x[fit], expr[fit]).predict(x[test]),
        average="macro",
        labels=range(8),
        zero_division=0,
    )
    units = []
    for unit in range(au.shape[1]):
        fit, test_au = (
            (split[:, 1] == name) & (au[:, unit] >= 0) for name in ("train", "validation")
        )
        units.append(
            f1_score(au[test_au, unit], head.fit(x[fit], au[fit, unit]).predict(x[test_au]))
        )
    score["head_au"] = float(np.mean(units))
    tokenizer = open_clip.get_tokenizer("raffect-faces")
    classes = []
    for name in EXPRESSIONS:
        texts = []
        for variant in PROTOTYPES[name]:
            phrases = [PHRASES[unit] for unit, value in variant.items() if value > VISIBLE] or [
                AT_REST
            ]
            texts += [template.format(", ".join(phrases)) for template in TEMPLATES]
        with torch.no_grad():
            classes.append(
                F.normalize(model.encode_text(tokenizer(texts), normalize=True).mean(0), dim=0)
            )
    guess = (F.normalize(torch.from_numpy(x), dim=1) @ torch.stack(classes).T).argmax(1).numpy()
    score["zeroshot_expr"] = f1_score(
        expr[test], guess[test], average="macro", labels=range(8), zero_division=0
    )
    return {key: round(float(value), 3) for key, value in score.items()}


CARD = """# raffect-faces: the embedded encoder

A small CLIP that ships with raffect so that everything can be tried without data or weights. **It has never seen a
photograph**: it was trained on {frames} drawn faces (seed {seed}, {epochs} epochs) and captions of their action units by
`scripts/train_embedded_encoder.py`. Scores that rest on it say nothing about real faces; raffect caveats them
"embedded encoder, drawn faces" and refuses other images without `--allow-embedded`.

- Image tower: open_clip's ModifiedResNet, 112x112, {image_parameters} parameters, 256-d vectors. Text tower: 2 layers of 32.
- Weights: float16 safetensors, {size_mb} MB. Captions name units, never emotions.
- Licence: Apache-2.0, as raffect. No images, labels or weights of others went into it.

Macro F1 on `raffect synth --frames {eval_frames} --seed {eval_seed}`, unseen subjects, of logistic regression on the frozen
vectors (8 expressions; 12 units) and zero-shot from descriptions of units, beside the same tower with random weights:

| | EXPR head | AU head | EXPR zero-shot |
|---|---|---|---|
| trained | {trained[head_expr]} | {trained[head_au]} | {trained[zeroshot_expr]} |
| random weights | {random[head_expr]} | {random[head_au]} | {random[zeroshot_expr]} |

Training took {minutes} minutes on {threads} threads with torch {torch}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()
    open_clip.add_model_config(EMBEDDED / "raffect-faces.json")
    start = time.perf_counter()
    model = train(args)
    minutes = round((time.perf_counter() - start) / 60)
    path = args.out / "raffect-faces.safetensors"
    save_file(
        {
            name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        },
        path,
    )
    eval_frames, eval_seed = 8_000, 1
    torch.manual_seed(0)
    scores = {
        "trained": evaluate(model, eval_frames, eval_seed),
        "random": evaluate(
            open_clip.create_model("raffect-faces", pretrained=None).eval(), eval_frames, eval_seed
        ),
    }
    print(json.dumps(scores, indent=1))
    facts = dict(
        frames=args.frames,
        seed=args.seed,
        epochs=args.epochs,
        image_parameters=f"{sum(p.numel() for p in model.visual.parameters()):,}",
        size_mb=round(path.stat().st_size / 1e6, 1),
        eval_frames=eval_frames,
        eval_seed=eval_seed,
        minutes=minutes,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **scores,
    )
    (args.out / "CARD.md").write_text(CARD.format(**facts))


if __name__ == "__main__":
    main()
