"""The annotations of a drawn data set as files of the multi-task challenge."""

from __future__ import annotations

from pathlib import Path

from raffect.datasets.synthetic.tree import EDITION, IMAGES, TASK_FOLDERS

HEADER = "image,valence,arousal,expression,aus"
SPLITS = {"Train_Set": "training_set", "Validation_Set": "validation_set"}


def write_mtl(tree: Path, out: Path) -> dict[str, list[str]]:
    """Write both files of the challenge; a video is in the split that EXPR has it in.

    Args:
        tree: A drawn data set, whose videos are part of every task.
        out: Folder of the files.

    Returns:
        The videos of each split.
    """
    # Lines of each video and task
    lines: dict[str, dict[str, list[str]]] = {}
    split_of = {}
    for task, folder in TASK_FOLDERS.items():
        for file in (tree / EDITION / folder).glob("*/*.txt"):
            lines.setdefault(file.stem, {})[task] = file.read_text().splitlines()[1:]
            if task == "expr":
                split_of[file.stem] = SPLITS[file.parent.name]

    # A line a frame that has an image
    videos: dict[str, list[str]] = {name: [] for name in SPLITS.values()}
    for video, split in sorted(split_of.items()):
        if lines[video].keys() == TASK_FOLDERS.keys():
            videos[split].append(video)
    out.mkdir(parents=True, exist_ok=True)
    for split, names in videos.items():
        rows = [HEADER]
        for video in names:
            own = [lines[video][task] for task in ("va", "expr", "au")]
            for number, cells in enumerate(zip(*own, strict=False), start=1):
                if (tree / IMAGES / video / f"{number:05d}.jpg").exists():
                    rows.append(f"{video}/{number:05d}.jpg,{','.join(cells)}")
        (out / f"{split}_annotations.txt").write_text("\n".join(rows) + "\n")
    return videos
