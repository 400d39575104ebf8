"""Trees of other data sets with tiny pictures, for tests that do not look at these."""

from __future__ import annotations

import csv
import functools
import io
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
from PIL import Image

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import read_task
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.layout import Layout
from raffect.datasets.synthetic.layouts import LAYOUTS
from raffect.errors import RaffectError
from raffect.storage.tables import read_metadata


def _tiny(kind: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 90, 90)).save(sink, format=kind)
    return sink.getvalue()


PIXELS = {".jpg": _tiny("JPEG"), ".png": _tiny("PNG")}


def write_tree(root: Path, layout: Layout) -> Path:
    """A layout on disk, with grey pictures."""
    for folder in {(root / path).parent for path in (*layout.files, *layout.pictures)}:
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in layout.files.items():
        (root / path).write_bytes(content)
    for path in layout.pictures:
        (root / path).write_bytes(PIXELS[Path(path).suffix])
    return root


def run(root: Path, out: Path, dataset: str, **settings):
    """Prepare and read the results: report, keys of the manifest, label tables, problems."""
    config = PrepareConfig(dataset=dataset, root=root, out=out, **settings)
    report = prepare(config)
    rows = read_manifest(report.manifest).to_pylist()
    manifest = {(row["video"], row["frame"]): row["path"] for row in rows}
    labels = {name: read_labels(file) for name, file in report.labels.items()}
    problems = list(csv.DictReader(report.problems_file.open()))
    return report, manifest, labels, problems


def edit(file: Path, old: str, new: str, encoding: str = "utf-8") -> None:
    """Replace a text that a file has once or more."""
    text = file.read_bytes().decode(encoding)
    assert old in text, f"{old!r} is not in {file}"
    file.write_bytes(text.replace(old, new, 1).encode(encoding))


def labels_of(table: pa.Table) -> dict[str, str | None]:
    """Video -> name of its class; None where it is unlabelled."""
    outputs = read_task(read_metadata(table)["task"], "test").outputs
    rows = zip(table["video"].to_pylist(), table["expression"].to_pylist(), strict=True)
    return {video: None if k < 0 else outputs[k] for video, k in rows}


@functools.cache
def plan_of(layout: str) -> Layout:
    """A small layout, drawn once."""
    return LAYOUTS[layout](20, 4)


def fuzz(layout: str, seed: int, folder: Path) -> int | None:
    """Damage a tree at random; no label that is read may be another one than was drawn.

    A sample whose lines and files are as they were drawn keeps its label. Of an array whose bytes
    have changed nothing is known: it may name another class.

    Returns:
        How many labels were kept; None if the tree was refused.
    """
    plan, rng = plan_of(layout), random.Random(seed)
    root = write_tree(folder / "tree", plan)
    for _ in range(rng.randint(1, 6)):
        damage(root, plan, rng)
    try:
        _, _, labels, problems = run(root, folder / "out", layout.removesuffix("-csv"))
    except RaffectError:
        return None
    assert isinstance(problems, list)
    changed = changed_text(root, plan)
    if layout == "disfa":
        return _kept_units(plan, labels["au"], changed, seed)
    drawn = {row["video"]: row["expression"] or None for row in plan.rows}
    kept = 0
    for task in labels.keys() - {"va"}:
        for video, found in labels_of(labels[task]).items():
            is_changed = video.rpartition("/")[2].encode() in changed
            assert is_changed or found == drawn[video], (layout, seed, video, found)
            if layout != "affectnet":
                assert found in (None, drawn.get(video)), (layout, seed, video, found)
            kept += not is_changed and found is not None
    return kept


def _kept_units(plan: Layout, table: pa.Table, changed: bytes, seed: int) -> int:
    """How many cells of DISFA were kept; those of a file that was not changed have to be."""
    drawn, kept = {(row["video"], row["frame"]): row for row in plan.rows}, 0
    for row in table.to_pylist():
        subject = row["video"].partition("_")[0]
        for unit in (name for name in row if name.startswith("AU")):
            expected = int(drawn[row["video"], row["frame"]][unit] >= 2)
            is_changed = f"{subject}_{unit.lower()}.txt".encode() in changed
            allowed = (-1, expected) if is_changed else (expected,)
            assert row[unit] in allowed, (seed, row, unit)
            kept += not is_changed
    return kept


def changed_text(root: Path, plan: Layout) -> bytes:
    """Names of the files that were changed or lost, and their lines that were."""
    parts = []
    for path, content in plan.files.items():
        now = (root / path).read_bytes() if (root / path).exists() else b""
        if now != content:
            before, after = (Counter(one.splitlines()) for one in (content, now))
            parts += [path.encode(), *(before - after), *(after - before)]
    return b"\n".join(parts)


def damage(root: Path, plan: Layout, rng: random.Random) -> None:
    """One thing that goes wrong on disks: of a list or an array, or of a picture."""
    pictures = [root / path for path in plan.pictures if (root / path).exists()]
    files = [root / path for path in plan.files if (root / path).exists()]
    if files and rng.random() < 0.6:
        damage_file(rng.choice(files), rng)
    elif pictures:
        damage_picture(rng.choice(pictures), rng)


def damage_picture(picture: Path, rng: random.Random) -> None:
    """A picture or all of its folder is lost, doubled, or beside a file of another kind."""
    match rng.randrange(4):
        case 0:
            picture.unlink()
        case 1:
            shutil.rmtree(picture.parent)
        case 2:
            shutil.copy(picture, picture.with_stem(f"{picture.stem} (1)"))
        case _:
            (picture.parent / "Thumbs.db").write_bytes(b"x")


def damage_file(file: Path, rng: random.Random) -> None:
    """A list or an array is lost, empty or cut off; lines are doubled or rubbish, bytes flipped."""
    content = file.read_bytes()
    lines = content.split(b"\n")
    line = rng.randrange(len(lines))
    is_text = file.suffix != ".npy"
    match rng.randrange(6):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(b"")
        case 2:  # the end is lost
            file.write_bytes(content[: rng.randrange(len(content) + 1)])
        case 3 if is_text:  # a line again
            file.write_bytes(b"\n".join([*lines[:-1], lines[line], b""]))
        case 4 if is_text:  # rubbish
            lines.insert(line, bytes(rng.randrange(33, 126) for _ in range(12)))
            file.write_bytes(b"\n".join(lines))
        case _ if not is_text and content:
            place = rng.randrange(len(content))
            flipped = content[place] ^ (1 << rng.randrange(8))
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
