"""`raffect probe`: what few labels reach on frozen features, against their number.

Prototypes after Devos et al. 2019; linear probes after CLIP's and EmoCLIP's protocols.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from raffect.bank.format import Bank
from raffect.config import ProbeConfig
from raffect.datasets.tasks import Task
from raffect.encoders.text import open_text_encoder
from raffect.errors import require
from raffect.evaluation.few_shot import Frames, draw_shots, fit_logistic, fit_ridge, prototypes
from raffect.heads.loss_kind import Truth
from raffect.heads.loss_kinds import loss_kind
from raffect.language.classifiers import Classifier, build_classifier
from raffect.language.prompt_sets import prompts_for
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.pipelines.probe_result import Method, Probe, ProbePoint, ProbeResult
from raffect.progress import Progress, stage
from raffect.provenance import describe_run
from raffect.reporting.few_shot import draw_few_shot
from raffect.runs.data import Dataset, open_dataset, targets_of
from raffect.runs.read_samples import check_finite
from raffect.runs.spread import spread_of
from raffect.storage.atomic import require_writable, write_atomic
from raffect.storage.tables import write_csv

_ZERO = 0
"""Number of shots of zero-shot; all training frames are None."""
_SEED_STREAM = 15


@dataclass
class _Setting:
    """The data of a probe, and all that its draws add to.

    Attributes:
        config: The command's.
        task: What is predicted.
        train: Training frames with the labels of the task's kind.
        x: Validation features of length 1, shape (N, D).
        judge: Statistics by group of outputs (N, C) for the validation frames.
        group_name: What groups are called.
        texts: The zero-shot classifier, where there are prompts.
        found: Statistics by group of each draw, with the regularisation that it chose, by method
            and number of shots.
    """

    config: ProbeConfig
    task: Task
    train: Frames
    x: np.ndarray
    judge: Callable[[np.ndarray], np.ndarray]
    group_name: str
    texts: Classifier | None = None
    found: dict[tuple[Method, int | None], list[tuple[np.ndarray, float | None]]] = field(
        default_factory=dict
    )

    def add(
        self, method: Method, shots: int | None, outputs: np.ndarray, setting: float | None = None
    ) -> None:
        """Judge outputs of one draw."""
        self.found.setdefault((method, shots), []).append((self.judge(outputs), setting))


def probe(config: ProbeConfig) -> ProbeResult:
    """Learn from few labels and from all, and judge on the validation split.

    Raises:
        RaffectError: If a class is in fewer groups than shots are asked for, or texts do not go
            with the bank.
    """
    # Data
    with stage(f"reading {config.labels} and {config.bank}"):
        dataset = open_dataset(
            config.bank, config.labels, config.task, allow_incomplete=config.allow_incomplete
        )
        kind = kind_of(dataset.task)
        require(
            kind.answers,
            f"task {dataset.task.name} is {dataset.task.kind}: a probe learns classes, labels or "
            "values; give another --task",
        )
        setting = _read(config, dataset)
    if config.prompts:
        setting.texts = _read_texts(config, dataset)
        setting.add("zero-shot", _ZERO, setting.x @ setting.texts.weight.T + setting.texts.bias)
    steps = list(_plan(setting))
    require_writable(config.out)

    # Draws
    with Progress("probe", len(steps), "draws") as progress:
        for step in steps:
            step()
            progress.advance(1)

    # Scores
    groups = dataset.facts.group_name
    order = {name: k for k, name in enumerate(typing.get_args(Method))}
    points = [
        _describe(method, shots, found, kind, dataset.task, groups)
        for (method, shots), found in sorted(
            setting.found.items(),
            key=lambda item: (order[item[0][0]], item[0][1] is None, item[0][1] or 0),
        )
    ]
    statistics = next(iter(setting.found.values()))[0][0]
    found = Probe(
        run=describe_run(),
        data=dataset.facts,
        prompts=config.prompts,
        text_shots=config.text_shots if config.prompts else 0.0,
        chance=kind.chance(statistics.sum(0), dataset.task),
        points=tuple(points),
    )
    _write(config.out, found, kind)
    return ProbeResult(probe=found, out=config.out)


def _read(config: ProbeConfig, dataset: Dataset) -> _Setting:
    """Features of length 1 of both splits, with their labels."""
    task, splits = dataset.task, dataset.splits
    parts = {}
    for name, index in splits.items():
        x = index.read()
        check_finite(x, index)
        x = x.astype(np.float32)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        parts[name] = x / np.where(norms > 0, norms, 1)
    validation, loss = splits["validation"], loss_kind(task)
    targets = torch.from_numpy(targets_of(validation, task))
    group = torch.from_numpy(validation.group.astype(np.int64))

    def judge(outputs: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.asarray(outputs, np.float32))[None]
        return loss.count(given, Truth(targets, group, len(validation.groups)))[0].numpy()

    y, train = targets_of(splits["train"], task), splits["train"]
    y = y.astype(np.float64) if task.kind == "regression" else y.astype(np.int64)
    frames = Frames(parts["train"], y, train.group)
    return _Setting(config, task, frames, parts["validation"], judge, dataset.facts.group_name)


def _read_texts(config: ProbeConfig, dataset: Dataset) -> Classifier:
    """The zero-shot classifier of a prompt set."""
    task = dataset.task
    require(
        task.kind != "regression",
        f"--prompts {config.prompts}: task {task.name} has numbers, which no text names; leave it "
        "out",
    )
    identity = Bank(config.bank).require_identity()
    encoder = open_text_encoder(identity, config.bank, config.weights)
    return build_classifier(prompts_for(config.prompts, task), encoder, "vectors", "rest")


def _plan(setting: _Setting) -> Iterator[Callable[[], None]]:
    """What is to be learnt, a step a draw; frames are drawn at once, so that too few are refused
    before anything is learnt.
    """
    config, learn = setting.config, _LEARN[setting.task.kind]
    for shots in sorted(set(config.shots)):
        for seed in range(config.num_seeds):
            rng = np.random.default_rng([_SEED_STREAM, seed, shots])
            yield learn(setting, shots, seed, rng)
    if config.all_frames:
        yield learn(setting, None, 0, np.random.default_rng(_SEED_STREAM))


def _draw(
    setting: _Setting, y: np.ndarray, names: list[str], shots: int | None, rng: np.random.Generator
) -> Frames:
    """Shots of every class, or all labelled frames, at most so many; labels are ``y``."""
    frames = Frames(setting.train.x, y, setting.train.group)
    if shots is not None:
        return frames.take(draw_shots(y, frames.group, shots, names, setting.group_name, rng))
    rows = np.flatnonzero(y >= 0)
    if len(rows) > setting.config.most_frames:
        rows = np.sort(rng.choice(rows, setting.config.most_frames, replace=False))
    return frames.take(rows)


def _learn_classes(
    setting: _Setting, shots: int | None, seed: int, rng: np.random.Generator
) -> Callable[[], None]:
    names = list(setting.task.outputs)
    frames = _draw(setting, setting.train.y, names, shots, rng)

    def step() -> None:
        config, texts = setting.config, setting.texts
        setting.add("prototype", shots, setting.x @ prototypes(frames, len(names)).T)
        if texts is not None:
            vectors = _text_vectors(texts)
            found = prototypes(frames, len(names), vectors, config.text_shots)
            setting.add("text prototype", shots, setting.x @ found.T)
        outputs, strength = fit_logistic(frames, len(names), config.folds, seed)
        setting.add("logistic", shots, outputs(setting.x), strength)

    return step


def _learn_labels(
    setting: _Setting, shots: int | None, seed: int, rng: np.random.Generator
) -> Callable[[], None]:
    """Each label is a question of its own: k active frames, and k that are not."""
    parts = []
    for k, name in enumerate(setting.task.outputs):
        names = [f"{name} not active", f"{name} active"]
        parts.append(_draw(setting, setting.train.y[:, k], names, shots, rng))

    def step() -> None:
        found: dict[Method, list[np.ndarray]] = {"prototype": [], "logistic": []}
        for frames in parts:
            rows = prototypes(frames, 2)
            found["prototype"].append(setting.x @ (rows[1] - rows[0]))
            outputs, _ = fit_logistic(frames, 2, setting.config.folds, seed)
            found["logistic"].append(outputs(setting.x)[:, 1])
        for method, columns in found.items():
            setting.add(method, shots, np.stack(columns, 1))

    return step


def _learn_values(
    setting: _Setting, shots: int | None, seed: int, rng: np.random.Generator
) -> Callable[[], None]:
    """Ridge on frames with all values; k of them are of k groups."""
    y, config = setting.train.y, setting.config
    whole = np.where(np.isfinite(y).all(1), 0, -1)
    if shots is None:
        rows = np.flatnonzero(whole == 0)
        count = min(len(rows), config.most_frames)
        rows = np.sort(rng.choice(rows, count, replace=False))
    else:
        group, name = setting.train.group, setting.group_name
        rows = draw_shots(whole, group, shots, ["a frame with all values"], name, rng)
    frames = setting.train.take(rows)

    def step() -> None:
        outputs, penalty = fit_ridge(frames, config.folds, seed)
        setting.add("ridge", shots, outputs(setting.x), penalty)

    return step


_LEARN = {
    "multiclass": _learn_classes,
    "multilabel": _learn_labels,
    "regression": _learn_values,
}


def _text_vectors(texts: Classifier) -> np.ndarray:
    """Directions of the texts, NaN for a class without."""
    vectors = texts.weight / np.maximum(np.linalg.norm(texts.weight, axis=1, keepdims=True), 1e-12)
    vectors[list(texts.silent)] = np.nan
    return vectors


def _describe(
    method: Method,
    shots: int | None,
    found: list[tuple[np.ndarray, float | None]],
    kind: Kind,
    task: Task,
    group_name: str,
) -> ProbePoint:
    """Scores of all draws together."""
    statistics = [one for one, _ in found]
    scores = [kind.score(one.sum(0), task) for one in statistics]
    headlines = [score.headline for score in scores]
    metrics = {
        name: float(np.mean([score.metrics[name] for score in scores]))
        for name in scores[0].metrics
    }
    return ProbePoint(
        method=method,
        shots=shots,
        score=spread_of(headlines, [1] * len(found), statistics, kind, group_name),
        metrics=metrics,
        settings=tuple(value for _, value in found if value is not None),
    )


def _write(out: Path, found: Probe, kind: Kind) -> None:
    """probe.json, points.csv and the figure with its numbers."""
    rows = [point.row() for point in found.points]
    write_csv(out / "points.csv", rows)
    caveat = f"\n[{found.data.caveat}]" if found.data.caveat else ""
    title = f"{found.data.task.name.upper()} {kind.title} from few labels{caveat}"
    lines = {f"chance ({found.chance.name})": found.chance.level}
    draw_few_shot(rows, lines, f"{title}{found.data.incomplete_mark}", kind, out / "few-shot")
    write_atomic(out / "probe.json", found.to_bytes())
