"""The split of each row of captions: its own, that of its video in a label table, or dealt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.datasets.imported import deal_split
from raffect.errors import require
from raffect.language.captions.captioned import Captioned
from raffect.language.leaks import base_of, is_split
from raffect.storage.keys import encode_video, of_each_name


def splits_from(found: Captioned, labels: pa.Table, file: Path) -> Captioned:
    """Give each row the split, and the group, that its video has in a label table.

    Rows of videos that the table does not have are left out.

    Args:
        found: Rows; those with splits of their own keep them.
        labels: The label table.
        file: Where it is, for errors.

    Raises:
        RaffectError: If a video is in two splits there, or no row is left.
    """
    names = [name for name in ("split", "group") if name in labels.column_names]
    wanted = [name for name in names if name not in found.table.column_names]
    if "split" not in wanted:
        return found

    # What each video has there
    pairs = pa.table({name: labels[name].cast(pa.string()) for name in ("video", *wanted)})
    pairs = pairs.group_by(["video", *wanted]).aggregate([]).to_pylist()
    known = {row["video"]: row for row in pairs}
    twice = len(pairs) - len(known)
    what = f"{twice} videos have two splits or groups, so that theirs cannot be taken from it"
    require(not twice, f"--labels {file}: {what}; add a column split to --table")

    # Rows of these videos
    has = of_each_name(found.table["video"], lambda name: name in known, bool)
    found = found.without(~has, f"videos without a split in {file.name}")
    video, table = encode_video(found.table["video"]), found.table
    for name in wanted:
        cells = [known.get(one, {}).get(name) for one in video.dictionary.to_pylist()]
        table = table.append_column(name, pa.array(cells, pa.string()).take(video.indices))
    return replace(found, table=table)


def require_both_splits(found: Captioned, share: float, seed: int) -> tuple[Captioned, str]:
    """Hold whole groups out for validation where no row validates yet.

    Args:
        found: Rows, with splits or not.
        share: About this share of the groups is held out.
        seed: Another seed holds out others.

    Returns:
        Rows with splits, and how they got them, empty where they had them.

    Raises:
        RaffectError: If no row trains, or none validates.
    """
    table, how = found.table, ""
    if "split" not in table.column_names:
        table = table.append_column("split", pa.array(["train"] * len(table)))
    before = f"; left out before: {found.reasons}" if found.left_out else ""
    require(
        bool(is_split(table, "train").any()),
        f"{found.where}: no row trains; expected a split train{before}",
    )
    if not is_split(table, "validation").any():
        # Of two people in a video one must not be held out while the other one trains
        name = "group" if "group" in table.column_names else "video"
        groups = table[name].to_pylist()
        if name == "video":
            groups = list(map(base_of, groups))
        dealt = deal_split(groups, share, seed)
        split = np.where(is_split(table, "train"), dealt, table["split"].to_pylist())
        table = table.set_column(table.column_names.index("split"), "split", pa.array(split))
        how = f"dealt by {name}, {share:g} held out for validation"
        for one in ("train", "validation"):
            require(
                bool(is_split(table, one).any()),
                f"{found.where}: --validation-share {share:g} of its {name}s leaves none for "
                f"{one}; take another share or --seed, or give splits{before}",
            )
    return replace(found, table=table), how
