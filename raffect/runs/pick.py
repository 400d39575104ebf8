"""Which heads are used: those of a run's main setting, or the ones that were named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raffect.errors import RaffectError
from raffect.heads.checkpoint import HeadCard, read_card
from raffect.metrics.scores import Snapshot
from raffect.recipe import Recipe
from raffect.runs import first_format
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.main_setting import choose_main_setting
from raffect.runs.spread import finished, group_by_settings, settings_text, varying


@dataclass(frozen=True)
class PickedHead:
    """One head on disk.

    Attributes:
        folder: Its folder.
        card: What it is.
        run: The folder that was named: of its run, or its own.
    """

    folder: Path
    card: HeadCard
    run: Path

    @property
    def recipe(self) -> Recipe:
        """Its settings."""
        return self.card.recipe


def find_heads(path: Path, snapshot: Snapshot) -> list[Path]:
    """Folders of the heads of a run, or the one head that ``path`` is.

    Raises:
        RaffectError: If there is no head.
    """
    # One head, even if one of its files is missing: reading it says which
    if (path / "head.safetensors").exists() or (path / "config.json").exists():
        return [path]

    # A run; the first run folders had other names of snapshots
    older = [old for old, new in first_format.SNAPSHOTS.items() if new == snapshot != old]
    names = [snapshot, *older]
    # Of a head that has both, the one by today's name is the younger
    by_head = {
        folder.parent: folder
        for name in reversed(names)
        for folder in path.glob(f"weights/*/{name}")
    }
    found = sorted(by_head.values())
    if not found:
        hint = "; `cv` is there after --select cv only" if snapshot == "cv" else ""
        if folds := sorted(file.parent for file in path.glob("fold-*/env.json")):
            hint = f"; it holds official folds: name those, such as {folds[0]}"
        raise RaffectError(
            f"{path}: no head in weights/*/{snapshot}; expected the --out of `raffect train` or "
            f"`raffect tune` (with --save-heads), or the folder of one head, such as "
            f"RUN/weights/<head>/{snapshot}{hint}"
        )
    return found


def pick_heads(paths: Sequence[Path], snapshot: Snapshot) -> tuple[list[PickedHead], list[str]]:
    """The heads of runs that predict: of each run those of its main setting.

    Heads that diverged are left out, but for one that is named alone. A head that is named twice
    counts once.

    Args:
        paths: Run folders, or folders of one head.
        snapshot: Which one of each head of a run.

    Returns:
        The heads in order, and notes on what was left out and why.

    Raises:
        RaffectError: If a path has no head, or every one of it diverged.
    """
    heads: dict[str, PickedHead] = {}
    notes: list[str] = []
    for path in paths:
        found = sound_heads(path, snapshot, notes, "predicts")
        for head in main_heads(path, found, notes):
            heads.setdefault(head.card.sha256, head)
    return list(heads.values()), notes


def sound_heads(path: Path, snapshot: Snapshot, notes: list[str], verb: str) -> list[PickedHead]:
    """Heads of a path without those that diverged, but for one that was named alone.

    Args:
        path: A run folder, or the folder of one head.
        snapshot: Which one of each head of a run.
        notes: Gets a line for each head that diverged.
        verb: What the last sound epoch of a head that was named alone does: ``predicts``.

    Raises:
        RaffectError: If there is no head, or every one diverged.
    """
    heads = [PickedHead(folder, read_card(folder), path) for folder in find_heads(path, snapshot)]
    sound = [head for head in heads if head.card.status == "done"]
    if len(heads) == 1 and not sound:
        notes.append(f"note: {path} diverged; its last sound epoch {verb}")
        return heads
    lost = [head for head in heads if head.card.status != "done"]
    notes += [f"left out: {head.folder}, which diverged" for head in lost]
    if not sound:
        raise RaffectError(
            f"{path}: every head diverged; train again with a smaller optim.lr or sam.rho"
        )
    return sound


def main_heads(path: Path, heads: list[PickedHead], notes: list[str]) -> list[PickedHead]:
    """Heads of the setting that stands for a run.

    Args:
        path: The run folder, or the folder of one head.
        heads: Its sound heads.
        notes: Gets a line on the choice, if there was one.

    Raises:
        RaffectError: If records or heads of that setting are missing.
    """
    groups = group_by_settings(heads)
    if len(groups) == 1:
        return heads

    # The setting that reports show
    folder = RunFolder(path)
    records = folder.read_records()
    by_settings = group_by_settings(finished(records))
    if not by_settings:
        raise RaffectError(
            f"{path}: has heads of {len(groups)} settings and no record of them in heads/; name "
            "the folders of single heads, RUN/weights/<head>/last"
        )
    selected = select_by_cv(folder, by_settings, records)
    main = choose_main_setting(folder, by_settings, selected)
    names = {record.id for record in main.heads}
    chosen = [head for head in heads if head.card.id in names]
    settings = main.heads[0].settings
    shown = settings_text({name: settings[name] for name in varying(by_settings)})
    if not chosen:
        raise RaffectError(
            f"{path}: its main setting, {shown}, has no head in weights/; name the folders of "
            "single heads, or sweep again with --save-heads"
        )
    notes.append(f"{path}: {len(chosen)} head(s) of {shown}: {main.why}")
    return chosen
