"""Train one pack from a run's settings and leave records and heads: what a run, a worker of Ray Train and a trial of Ray Tune do."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from raffect.config import LearnConfig
from raffect.data.features import FeatureIndex
from raffect.errors import RaffectError
from raffect.metrics.intervals import bootstrap_videos
from raffect.metrics.kinds import kind_of
from raffect.model.checkpoint import save_head
from raffect.model.fit import FitJob, count, fit, score_name
from raffect.model.head_kinds import head_spec
from raffect.model.kinds import loss_kind
from raffect.model.learner import SHARED_SETTINGS
from raffect.model.samples import Samples
from raffect.model.snapshots import Fitted, History
from raffect.model.workers import Workers
from raffect.recipe import flatten, require
from raffect.stages.dataset import Dataset, check_trainable, pick_device, read_rows, targets_of
from raffect.stages.provenance import git_commit, versions
from raffect.stages.runs import SCORES, Member, RunFolder
from raffect.stages.runtime import ray_session
from raffect.stages.scores import RUNNING
from raffect.stages.stream import RayStream

C = TypeVar("C", bound=LearnConfig)
KeepEpochs = Mapping[str, int]
"""Epoch that a member's ``chosen`` snapshot keeps, by id."""


def plan_packs(folder: RunFolder, members: Sequence[Member], size: int, one_seed: bool, keep_epochs: KeepEpochs | None = None) -> list[list[Member]]:
    """Packs that are still to be trained: those under way as they were cut, then new ones of the other members without a record.

    Args:
        folder: The run.
        members: All of it.
        size: Most members a new pack.
        one_seed: Whether a pack's members must share their seed, as a stream wants it.
        keep_epochs: Epochs chosen on folds; a member that kept another one is trained again.
    """
    todo = {member.id: member for member in members if not is_finished(folder.read_record(member.id), (keep_epochs or {}).get(member.id))}
    under_way = []
    for names in sorted(folder.packs_under_way(), key=len, reverse=True):  # two may share a member, if fewer seeds were asked for in between
        if all(name in todo for name in names):
            if names == {name: (keep_epochs or {}).get(name, 0) for name in names}:
                under_way.append([todo.pop(name) for name in names])
            else:  # folds chose another epoch since, of which that pack may have kept nothing
                folder.drop_state(names)
        elif all(name in todo or is_finished(folder.read_record(name)) for name in names):  # died between records and clean-up
            folder.drop_state(names)
    return under_way + partition(list(todo.values()), size, one_seed)


def is_finished(record: Mapping[str, Any] | None, keep_epoch: int | None = None) -> bool:
    """Whether a member needs no more training."""
    return record is not None and record["status"] != RUNNING and (keep_epoch is None or record.get("keep_epoch") == keep_epoch)


def partition(members: Sequence[Member], size: int, one_seed: bool = False) -> list[list[Member]]:
    """Share members out over packs of at most ``size``; members of one pack agree in `SHARED_SETTINGS` and train on the same frames."""
    alike: dict[tuple, list[Member]] = {}
    for member in members:
        settings = flatten(member.recipe)
        key = (*(settings[name] for name in SHARED_SETTINGS), member.fold, member.num_folds, settings["seed"] if one_seed else None)
        alike.setdefault(key, []).append(member)
    packs = []
    for group in alike.values():
        count = -(-len(group) // size)
        packs += [[group[k] for k in part] for part in np.array_split(np.arange(len(group)), count)]
    return packs


def run_pack(
    config: LearnConfig,
    dataset: Dataset,
    folder: RunFolder,
    members: Sequence[Member],
    keep_epochs: KeepEpochs | None = None,
    *,
    workers: Workers | None = None,
    threads: int = 0,
    save_heads: bool = True,
    save_every_s: float = 30.0,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[History], None] = lambda history: None,
) -> None:
    """Train members side by side, judge them, and record them in the run folder.

    Args:
        config: Data, device and threads; the recipe in it is not used.
        dataset: Of ``config``.
        folder: Where to leave everything.
        members: One pack.
        keep_epochs: Epochs chosen on folds.
        workers: Who trains together; only the first one writes.
        threads: Of this process; 0 is all cores.
        save_heads: Whether weights are kept.
        save_every_s: Seconds between saves of the state.
        on_step: Called after each step.
        on_epoch: Called after each epoch with the history so far.

    Raises:
        RaffectError: If the rows cannot be trained on, are not those the run began with, or the GPU is too small.
    """
    workers, device = workers or Workers(), pick_device(config.device)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    task, recipe = dataset.task, members[0].recipe
    require(
        dataset.fingerprint == folder.read_env()["fingerprint"], f"{dataset.facts['bank']} or {dataset.facts['labels']} has changed since {folder.path} began; name a new --out"
    )
    train, validation = split_rows(dataset, members[0])
    targets = targets_of(train, task)
    check_trainable(targets, task, recipe.batch_size, f"the training split of {dataset.facts['labels']}")
    spec = head_spec(recipe.head, train.dim, len(task.outputs))
    ids = [member.id for member in members]
    streams, state_path = config.stream == "always", folder.state_path(ids)
    if workers.rank == 0:
        folder.write_members({name: (keep_epochs or {}).get(name, 0) for name in ids})
    try:
        with ray_session(config.address) if streams else contextlib.nullcontext():
            judged = read_rows(validation, task, device)
            job = FitJob(
                recipes=[member.recipe for member in members],
                spec=spec,
                prior=loss_kind(task).count_prior(targets),
                train=RayStream(train, task, recipe.batch_size, recipe.seed) if streams else read_rows(train, task, device),
                validation=judged,
                device=device,
                workers=workers,
                keep_epochs=[keep_epochs.get(member.id, 0) for member in members] if keep_epochs else None,
                state_path=state_path,
                fingerprint=dataset.fingerprint,
                save_every_s=save_every_s,
            )
            fitted = fit(job, on_step=on_step, on_epoch=on_epoch)
        if workers.rank == 0:
            about = {"device": describe_device(device), "threads": torch.get_num_threads(), "num_workers": workers.size, "streamed": streams, "wall_s": sum(entry["wall_s"] for entry in fitted.history)}  # fmt: skip
            _record(dataset, folder, members, fitted, judged, validation.groups, about, save_heads and members[0].fold is None, keep_epochs or {})
            folder.drop_state(ids)
    except torch.OutOfMemoryError as error:
        raise RaffectError(f"out of GPU memory with {len(members)} heads of {spec.num_weights:,} weights; take fewer at a time (--num-seeds, --members-per-trial), a smaller --head.width, or --stream always") from error  # fmt: skip


def for_elsewhere(config: C, folder: RunFolder, device: str) -> C:
    """The configuration for processes with another working folder, on the device that Ray gives them."""
    return dataclasses.replace(config, bank=config.bank.absolute(), labels=config.labels.absolute(), out=folder.path, device=device)


def split_rows(dataset: Dataset, member: Member) -> tuple[FeatureIndex, FeatureIndex]:
    """Frames to train on and to judge on."""
    train = dataset.splits["train"]
    if member.fold is None:
        return train, dataset.splits["validation"]
    fold = dataset.fold_of_frames(member.num_folds)
    return train.select(fold != member.fold), train.select(fold == member.fold)


def describe_device(device: torch.device) -> str:
    """Name of the card, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _record(
    dataset: Dataset,
    folder: RunFolder,
    members: Sequence[Member],
    fitted: Fitted,
    judged: Samples,
    video_names: list[str],
    about: dict[str, Any],
    save_heads: bool,
    keep_epochs: KeepEpochs,
) -> None:
    """Write heads, and last the record, of every member."""
    task, kind = dataset.task, kind_of(dataset.task)
    counts = {name: count(loss_kind(task), fitted.heads(name), judged) for name in fitted.snapshots}
    for p, member in enumerate(members):
        kept = [name for name in SCORES if name in counts and fitted.snapshots[name].epoch[p]]
        scores = {
            name: {
                "epoch": int(fitted.snapshots[name].epoch[p]),
                **kind.score(counts[name][p].sum(0), task),
                "interval_95": bootstrap_videos(counts[name][p], kind, seed=0),
            }
            for name in kept
        }
        record = {
            "id": member.id, "task": task.to_json(), "recipe": flatten(member.recipe), "fold": member.fold, "num_folds": member.num_folds, "fingerprint": dataset.fingerprint, "incomplete": dataset.facts["incomplete"], "groups": dataset.facts["groups"],
            "status": "diverged" if fitted.diverged[p] else "done", "note": fitted.diverged[p] or "", "keep_epoch": keep_epochs.get(member.id), "pack_size": len(members), **about, "git_commit": git_commit(), "versions": versions(),
            "history": {name: [entry[name][p] for entry in fitted.history] for name in ("lr", "train_loss", score_name(task))},
            "scores": scores, "trivial": kind.chance(next(iter(counts.values()))[p].sum(0), task), "video_names": video_names, "videos": {name: counts[name][p].tolist() for name in kept},
        }  # fmt: skip
        if save_heads:
            for name in kept:
                _save_head(dataset, folder, member, fitted, name, p, record)
        folder.write_record(record)


def _save_head(dataset: Dataset, folder: RunFolder, member: Member, fitted: Fitted, name: str, p: int, record: dict[str, Any]) -> None:
    kept = fitted.snapshots[name]
    facts = dataset.facts
    about = {
        "task": facts["task"], "outputs": dataset.task.outputs, "member": member.id, "status": record["status"], "snapshot": name, "epoch": int(kept.epoch[p]), "recipe": record["recipe"],
        "encoder": facts["encoder"], "stamp": facts["stamp"], "data": {key: facts[key] for key in ("bank_digest", "labels_sha256", "edition", "synthetic", "train", "validation", "incomplete")},
        "validation": record["scores"][name], "trivial": record["trivial"], "device": record["device"], "threads": record["threads"], "versions": record["versions"], "git_commit": record["git_commit"],
    }  # fmt: skip
    save_head(folder.weights_path(member.id, name), fitted.spec, fitted.heads(name).state(p), about)
