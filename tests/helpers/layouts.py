"""Trees of other data sets with tiny pictures, for tests that do not look at these."""

from __future__ import annotations

import csv
import io
import random
import shutil
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


def fuzz(layout: str, seed: int, folder: Path) -> bool:
    """Damage a tree at random; every label that is read must be the one that was drawn.

    Returns:
        Whether it was read, not refused.
    """
    plan, rng = LAYOUTS[layout](20, 4), random.Random(seed)
    root = write_tree(folder / "tree", plan)
    for _ in range(rng.randint(1, 6)):
        damage(root, plan, rng)
    try:
        _, _, labels, problems = run(root, folder / "out", layout.removesuffix("-csv"))
    except RaffectError:
        return False
    assert isinstance(problems, list)
    if layout != "disfa":
        drawn = {row["video"]: row["expression"] or None for row in plan.rows}
        for task in labels.keys() - {"va"}:
            for video, found in labels_of(labels[task]).items():
                assert found in (None, drawn.get(video)), (layout, seed, video)
        return True
    drawn = {(row["video"], row["frame"]): row for row in plan.rows}
    for row in labels["au"].to_pylist():
        for unit in (name for name in row if name.startswith("AU")):
            expected = int(drawn[row["video"], row["frame"]][unit] >= 2)
            assert row[unit] in (-1, expected), (layout, seed, row)
    return True


def damage(root: Path, plan: Layout, rng: random.Random) -> None:
    """One thing that goes wrong on disks: of a list, or of a picture."""
    files = [root / path for path in plan.files if (root / path).exists()]
    pictures = [root / path for path in plan.pictures if (root / path).exists()]
    if not files or not pictures:
        return
    file, picture = rng.choice(files), rng.choice(pictures)
    lines = file.read_bytes().split(b"\n")
    line = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            picture.unlink()
        case 1:
            shutil.rmtree(picture.parent)
        case 2:
            file.unlink()
        case 3 if file.suffix != ".npy":  # a line again
            file.write_bytes(b"\n".join([*lines[:-1], lines[line], b""]))
        case 4 if file.suffix != ".npy":  # the end of a file is lost
            content = file.read_bytes()
            file.write_bytes(content[: rng.randrange(len(content) + 1)])
        case 5 if file.suffix != ".npy":  # rubbish
            lines.insert(line, bytes(rng.randrange(33, 126) for _ in range(12)))
            file.write_bytes(b"\n".join(lines))
        case 6:
            (picture.parent / "Thumbs.db").write_bytes(b"x")
        case _:
            file.write_bytes(b"")
