"""Trained heads beside texts: their configurations, and what plain numpy makes of both."""

import dataclasses

import numpy as np
from sklearn.metrics import f1_score

from raffect.bank.features import read_features
from raffect.bank.format import Bank
from raffect.config import TrainConfig, ZeroshotConfig
from raffect.datasets.affwild2.tasks import EXPR
from raffect.datasets.labels import read_labels
from raffect.encoders.text import open_text_encoder
from raffect.heads.checkpoint import load_head
from raffect.language.prompt_sets import prompts_for
from raffect.recipe import HeadConfig, LossConfig, OptimConfig, SamConfig
from tests.helpers.texts import embedded, unit

SEVEN = EXPR.outputs[:7]
UNSEEN = ("Anger", "Fear", "Surprise")
SETS = ("facs", "photo")
PROJECTION = HeadConfig(kind="projection", init="torch")
WINDOWS = HeadConfig(kind="temporal", width=8, layers=1, attention_heads=2, window=3)


def config_of(texts, labels, out, head, **more):
    own = {"loss": LossConfig(alpha=1.0), "sam": SamConfig(rho=0.0), "epochs": 1, "batch_size": 32}
    own |= {"bank": texts / "bank", "labels": labels, "out": out, "device": "cpu"}
    return TrainConfig(head=head, optim=OptimConfig(lr=1e-3), **own, **more)


def zeroshot_of(texts, out, *heads, **more):
    usual = {"task": "expr", "folds": 3, "prompts": ("facs",), "labels": texts}
    return ZeroshotConfig(bank=texts / "bank", out=out, head=heads, **{**usual, **more})


def frames_of(texts, split="validation", task=EXPR):
    """Features, labels and videos of a split, in order of video and frame."""
    labels = read_labels(texts / "labels" / f"{task.name}.parquet")
    found = read_features(Bank(texts / "bank"), labels, task, split)
    order = np.lexsort((found.frame, found.video))
    x, y = found.x.astype(float)[order], found.y.astype(int)[order]
    return x, y, np.array(found.videos)[found.video][order]


def videos_of(texts, number):
    _, y, videos = frames_of(texts)
    return videos[y[:, 0] == number].tolist()


def text_rows(texts, name, task=EXPR, through=None):
    """The mean of each described class's prompts, each mapped first."""
    encoder = open_text_encoder(embedded(), texts)
    rows = []
    for parts in prompts_for(name, task).outputs.values():
        if parts is not None:
            one = [unit((unit_map(encoder.encode(part), through)).mean(0)) for part in parts]
            rows.append(one[0] if len(one) == 1 else unit(np.mean(one, 0)))
    return np.stack(rows)


def unit_map(vectors, weight):
    return unit(vectors.astype(float) if weight is None else vectors.astype(float) @ weight.T)


def weights_of(run):
    """The map of each head of a run of projections, by seed."""
    found = {}
    for folder in run.glob("weights/*/last"):
        head, card = load_head(folder)
        found[card.recipe.seed, card.recipe.loss.leave_out] = head.weight.detach().numpy()
    return found


def predict(texts, name, weight=None, split="validation"):
    x, y, videos = frames_of(texts, split)
    cosines = unit_map(x, weight) @ text_rows(texts, name, through=weight).T
    return cosines.argmax(1), y[:, 0], videos


def macro_f1(true, predicted, classes=7):
    return f1_score(true, predicted, average="macro", labels=range(classes), zero_division=0)


def vars_of(kind):
    return {item.name for item in dataclasses.fields(kind)}


def card_with(card, recipe=None, **data):
    facts = dataclasses.replace(card.data, **data)
    return dataclasses.replace(card, data=facts, recipe=recipe or card.recipe)
