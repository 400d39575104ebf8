"""Trees of other data sets with tiny pictures, for tests that do not look at these."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from PIL import Image

from raffect.config import PrepareConfig
from raffect.datasets.labels import read_labels
from raffect.datasets.manifest import read_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.layout import Layout


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
