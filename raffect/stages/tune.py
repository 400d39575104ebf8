"""`raffect tune`: a space of settings becomes members, members become packs, and Ray Tune spreads packs over the machine or cluster.

What is finished is found by our own records, one a member, not by Tune's snapshot: the same command after a killed driver
trains only members without a record, and packs that were under way go on from their saved state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from raffect.config import TuneConfig
from raffect.data.storage import is_remote
from raffect.errors import RaffectError
from raffect.metrics.kinds import kind_of
from raffect.model.fit import score_name
from raffect.model.snapshots import History
from raffect.recipe import Recipe, flatten, plain, require
from raffect.stages.dataset import Dataset, open_dataset
from raffect.stages.members import KeepEpochs, for_elsewhere, is_finished, plan_packs, run_pack
from raffect.stages.progress import Progress
from raffect.stages.runs import Member, RunFolder
from raffect.stages.runtime import cluster_gpus, last_line, ray_session, ray_storage
from raffect.stages.scores import RUNNING, STOPPED, choose_epoch
from raffect.stages.space import PLAIN_ERM, add_baseline, list_recipes, read_space
from raffect.stages.stream import decide_stream
from raffect.stages.trackers import build_trackers, require_trackers
from raffect.stages.train import check_before, count_steps, epoch_note, fold_members
from raffect.stages.verdict import conclude_sweep
from raffect.stages.watch import ended_packs, watched

_CPU_PACK, _GPU_PACK = 8, 64
_MAX_FAILURES = 3
"""How often a trial begins again, from the pack's saved state, when its process or node dies. What raffect refuses is no failure to Ray."""


def tune(config: TuneConfig) -> list[str]:
    """Train, judge and record every member of a space.

    Returns:
        The scores, for people.

    Raises:
        RaffectError: If the data or settings do not allow it, or a trial failed.
    """
    require_trackers(config.track, is_remote(config.out))
    list_recipes(plain(config), config.space, config.samples)  # a space that makes no sense is said before anything is read
    dataset = open_dataset(config.bank, config.labels, config.task, allow_incomplete=config.allow_incomplete)
    device, share = ("cpu", 1.0) if config.gpus_per_trial == 0 else (config.device, config.gpus_per_trial or 1.0)
    stream = RunFolder(config.out).recorded_stream(config.stream) or decide_stream(config.stream, dataset.splits["train"], device, share)
    config = dataclasses.replace(config, task=dataset.task.name, stream=stream)
    recipes = list_recipes(plain(config), config.space, config.samples)
    recipes = add_baseline(recipes) if config.baseline else recipes
    for batch_size, loss in dict.fromkeys((recipe.batch_size, recipe.loss) for recipe in recipes):
        check_before(dataclasses.replace(config, batch_size=batch_size, loss=loss), dataset)
    folder = RunFolder.create(config, dataset)
    _require_heads(config, folder, recipes)
    keep: dict[str, int] = {}
    if config.select == "folds":
        members = fold_members(recipes, config.folds)
        _sweep(config, dataset, folder, members, None, "folds")
        records = {member.id: folder.read_record(member.id) for member in members}
        for group in _alike(recipes):
            found = [record for member in fold_members(group, config.folds) if (record := records[member.id])]
            keep |= {Member(recipe).id: choose_epoch(found)[0] for recipe in group}
    members = [Member(recipe) for recipe in recipes]
    _change_scheduler(config, folder, members)
    _sweep(config, dataset, folder, members, keep, "tune")
    return conclude_sweep(config, dataset, folder, [record for member in members if (record := folder.read_record(member.id))])


def _require_heads(config: TuneConfig, folder: RunFolder, recipes: Sequence[Recipe]) -> None:
    """Refuse to want weights of heads that are finished without them."""
    records = [record for recipe in recipes if (record := folder.read_record(Member(recipe).id))]
    bare = [r for r in records if r["status"] == "done" and not (folder.weights_path(r["id"], "last") / "config.json").exists()]
    require(
        not (config.save_heads and bare),
        f"--out {config.out}: {len(bare)} finished heads were trained with --no-save-heads; give it again, or name another --out to train them with weights",
    )


def _change_scheduler(config: TuneConfig, folder: RunFolder, members: Sequence[Member]) -> None:
    """Without a scheduler heads that one has stopped are to be trained; with one, which judges heads singly, packs under way begin again."""
    if config.scheduler == "none":
        for member in members:
            if (record := folder.read_record(member.id)) and record["status"] == STOPPED:
                folder.forget_record(member.id)
    else:
        for names in folder.packs_under_way():
            if len(names) > 1:
                folder.drop_state(names)


def _alike(recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """Recipes that differ in their seed alone."""
    groups: dict[Recipe, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(dataclasses.replace(recipe, seed=0), []).append(recipe)
    return list(groups.values())


def _sweep(config: TuneConfig, dataset: Dataset, folder: RunFolder, members: list[Member], keep: KeepEpochs | None, label: str) -> None:
    """Train the members that have no record, as packs on Ray Tune."""

    def unfinished() -> list[Member]:
        return [member for member in members if not is_finished(folder.read_record(member.id), (keep or {}).get(member.id))]

    if not unfinished():
        return
    with ray_session(config.address):
        slots, resources = _place_trials(config)
        size = _pack_size(config, len(members), slots, on_gpu=bool(resources.get("gpu")))
        packs = plan_packs(folder, members, size, config.stream == "always", keep)
        failures = _run_trials(config, dataset, folder, packs, keep, resources, slots, label)
    if left := unfinished():
        why = next(iter(failures), "see the trials' logs in " + str(folder.path / "ray"))
        raise RaffectError(f"{len(left)} of {len(members)} members are not finished: {why}; finished ones are kept, the same command trains the others")


def _place_trials(config: TuneConfig) -> tuple[int, dict[str, float]]:
    """Trials at a time, and what each takes."""
    import ray

    gpus = cluster_gpus() if config.device != "cpu" or config.gpus_per_trial else 0.0
    share = config.gpus_per_trial if config.gpus_per_trial is not None else (1.0 if gpus else 0.0)
    require(config.device != "cuda" or share > 0, "--device cuda: Ray sees no GPU, or --gpus-per-trial is 0; start Ray where the GPUs are, or use --device cpu")
    require(share <= gpus, f"--gpus-per-trial {share:g}: Ray sees {gpus:g} GPUs; use 0 for the CPU, or start Ray where the GPUs are")
    on_cluster = bool(config.address or os.environ.get("RAY_ADDRESS"))
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]] if on_cluster else [os.cpu_count() or 1]
    require(config.cpus_per_trial <= max(nodes), f"--cpus-per-trial {config.cpus_per_trial}: no machine has more than {max(nodes)} cores")
    readers = 1 if config.stream == "always" and sum(nodes) > 1 else 0  # what trials leave to Ray Data
    slots = max(1, (sum(nodes) - readers) // config.cpus_per_trial)
    return (min(int(gpus / share), slots), {"cpu": config.cpus_per_trial, "gpu": share}) if share else (slots, {"cpu": config.cpus_per_trial})


def _pack_size(config: TuneConfig, num_members: int, slots: int, on_gpu: bool) -> int:
    if config.members_per_trial != "auto":
        return config.members_per_trial
    return max(1, min(-(-num_members // slots), _GPU_PACK if on_gpu else _CPU_PACK))


def _run_trials(
    config: TuneConfig, dataset: Dataset, folder: RunFolder, packs: list[list[Member]], keep: KeepEpochs | None, resources: dict[str, float], slots: int, label: str
) -> list[str]:
    """Run packs as trials; returns why some failed."""
    # Tune's own handler would end a sweep at Ctrl-C as if it were finished.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1")
    from ray import tune as ray_tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # each death of a trial as a page of traceback; what matters of it is in our own line
    settings = for_elsewhere(config, folder, config.device if resources.get("gpu") else "cpu")
    job = {"config": settings, "packs": packs, "keep": dict(keep or {}), "axes": list(read_space(config.space)), "task": dataset.task}
    with Progress(label, sum(count_steps(dataset, pack) for pack in packs), "head-steps") as progress, watched(progress, packs) as watch:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(run_trial, job=job), resources),
            param_space={"pack": ray_tune.grid_search(list(range(len(packs))))},
            tune_config=ray_tune.TuneConfig(metric=score_name(dataset.task), mode="max", max_concurrent_trials=slots, reuse_actors=True, scheduler=_build_scheduler(config, packs)),
            run_config=ray_tune.RunConfig(
                name=f"{label}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", **ray_storage(folder.path / "ray"), verbose=0, callbacks=[watch, *build_trackers(config, folder)],
                failure_config=ray_tune.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # Tune's banner
            results = tuner.fit()
        ended = ended_packs(watch.name)
    failures = [f"a trial died {1 + _MAX_FAILURES} times ({last_line(error)})" for error in results.errors]
    failures += [result.metrics["failure"] for result in results if result.metrics and result.metrics.get("failure")]
    if config.scheduler == "asha" and not failures:
        _mark_stopped(folder, ended)
    return failures


def run_trial(trial: dict[str, Any], job: dict[str, Any]) -> None:
    """One trial: train a pack and report each epoch; safe to run again at any time."""
    from ray import tune as ray_tune

    config, members = job["config"], job["packs"][trial["pack"]]
    folder, score = RunFolder(config.out), score_name(job["task"])

    def report(history: History) -> None:
        entry = history[-1]
        scores, losses = ([value for value in entry[name] if value is not None] for name in (score, "train_loss"))
        heads = {_axis_text(member, job["axes"]): value for member, value in zip(members, entry[score], strict=True) if value is not None}
        found = {name: entry[name] for name in ("epoch", "steps", "wall_s")} | {score: sum(scores) / max(len(scores), 1), "note": epoch_note(history, job["task"]), "head": heads}
        ray_tune.report(found | ({"train_loss": sum(losses) / len(losses)} if losses else {}))

    seen: History = []

    def on_epoch(history: History) -> None:
        seen[:] = history
        if len(history) == members[0].recipe.epochs:  # a scheduler may end a trial at any report, and this one is all but on record
            return
        if config.scheduler != "none":
            folder.write_record(_unfinished_record(dataset, members[0], history))
        report(history)

    try:
        dataset = open_dataset(config.bank, config.labels, config.task, allow_incomplete=config.allow_incomplete)
        run_pack(config, dataset, folder, members, job["keep"] or None, threads=config.threads or config.cpus_per_trial, save_heads=config.save_heads, on_epoch=on_epoch)
    except RaffectError as error:  # trying again would not help, so it is no failure in Ray's sense
        ray_tune.report({"failure": str(error), score: 0.0, "epoch": 0})
    else:
        if len(seen) == members[0].recipe.epochs:
            report(seen)


def _axis_text(member: Member, axes: Sequence[str]) -> str:
    settings = flatten(member.recipe)
    names = [*axes, *(name for name in (*PLAIN_ERM, "seed") if name not in axes)]
    return "_".join(f"{name.rpartition('.')[2]}-{settings[name]}" for name in names)  # MLflow takes few characters in names


def _unfinished_record(dataset: Dataset, member: Member, history: History) -> dict[str, Any]:
    """What is known of a head that a scheduler may stop at any epoch."""
    key, name = kind_of(dataset.task).key, score_name(dataset.task)
    curve = [entry[name][0] for entry in history]
    sound = [(value, k + 1) for k, value in enumerate(curve) if value is not None]
    scores = {"last": {"epoch": sound[-1][1], key: sound[-1][0]}, "best": {"epoch": max(sound)[1], key: max(sound)[0]}} if sound else {}
    return {
        "id": member.id, "task": dataset.task.to_json(), "recipe": flatten(member.recipe), "fold": None, "num_folds": 0, "fingerprint": dataset.fingerprint, "status": RUNNING,
        "note": f"after epoch {len(history)}", "keep_epoch": None, "pack_size": 1, "wall_s": sum(entry["wall_s"] for entry in history),
        "history": {name: [entry[name][0] for entry in history] for name in ("lr", "train_loss", name)},
        "scores": scores, "trivial": {"answer": "not judged", key: None}, "video_names": [], "videos": {},
    }  # fmt: skip


def _mark_stopped(folder: RunFolder, packs: list[list[Member]]) -> None:
    """Trials of these packs have ended: what is still running on record was stopped by the scheduler."""
    for member in (member for pack in packs for member in pack):
        record = folder.read_record(member.id)
        if record is not None and record["status"] == RUNNING:
            folder.write_record(record | {"status": STOPPED, "note": f"stopped by ASHA {record['note']}"})
            folder.drop_state([member.id])


def _build_scheduler(config: TuneConfig, packs: list[list[Member]]) -> Any:
    if config.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    epochs = max(member.recipe.epochs for pack in packs for member in pack)  # it ends whatever reaches its limit
    return ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=max(1, epochs // 8), reduction_factor=3)
