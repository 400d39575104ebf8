"""Pictures of what `raffect predict` and `raffect report --gallery` write, for docs/.

    uv run python scripts/screenshots.py docs

Faces are drawn and predictions are made up, which every picture says. Needs Debian's Chromium
(`apt-get install chromium`). Pages are taken at the width of a desktop and of a phone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, sync_playwright

from raffect.config import PrepareConfig
from raffect.datasets.manifest import read_manifest
from raffect.datasets.prepare import prepare
from raffect.datasets.synthetic.tree import EDITION, write_synthetic
from raffect.faces.video import decode_frames, scan_video
from raffect.predictions.columns import as_table
from raffect.predictions.table import write_predictions
from raffect.reporting.course import read_course
from raffect.reporting.gallery import write_gallery
from raffect.reporting.index import Entry, draw_preview, write_index
from raffect.reporting.overlay import draw_overlay
from raffect.reporting.timeline import write_timeline
from raffect.reporting.truth import Truth
from tests.helpers.scenes import (
    TASKS,
    decide,
    draw_people,
    draw_scene,
    facts_of,
    predict_scene,
)
from tests.helpers.videos import write_video

CAVEATS = ("drawn faces", "predictions made up for this picture")
WIDTHS = {"": (1280, 860), "_phone": (390, 780)}
FRAMES, MOST_BYTES = 200, 150_000


def main(out: Path) -> None:
    """Make all pages in a temporary folder, and their pictures in ``out``."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        overlay = make_timeline(folder)
        make_gallery(folder)
        frames = decode_frames(overlay, scan_video(overlay), 90, 91)
        save(Image.fromarray(next(frames)[1]), out / "overlay.png")
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for page in ("timeline", "gallery", "index"):
            for suffix, size in WIDTHS.items():
                take(browser, folder / f"{page}.html", size, out / f"{page}{suffix}.png")
        browser.close()


def make_timeline(folder: Path) -> Path:
    """Overlay, timeline and list of a video of two people."""
    people = draw_people(FRAMES, 2)
    rows, facts = predict_scene(people, "two people.mp4"), facts_of(caveats=CAVEATS)
    source = write_video(folder / "two people.mp4", draw_scene(people), sound="aac")
    done = draw_overlay(source, rows, facts, folder / "overlay.mp4")
    course = read_course(rows, TASKS, source.name)
    links = {"all inputs": "index.html"}
    page = folder / "timeline.html"
    write_timeline(course, facts, page, video=done.path.name, links=links)
    draw_preview(course, done.picture).save(folder / "preview.jpg")
    entry = Entry(
        name=source.name,
        about=f"{course.frames} frames, {len(course.faces)} faces",
        page=page.name,
        preview="preview.jpg",
        links={"overlay": done.path.name},
    )
    write_index([entry], facts, f"model {facts.model}", folder / "index.html")
    return done.path


def make_gallery(folder: Path) -> None:
    """A gallery of a drawn data set, predicted by its labels and noise."""
    write_synthetic(folder / "faces", 1200, seed=3, workers=1)
    images = folder / "faces" / "cropped_aligned"
    config = PrepareConfig(
        images=(images,), annotations=folder / "faces" / EDITION, out=folder / "data"
    )
    prepare(config)
    manifest, rng = read_manifest(folder / "data"), np.random.default_rng(0)
    video, frame = manifest["video"].cast(pa.string()), manifest["frame"]
    truth, predicted = Truth(folder / "data", TASKS), {}
    for task in TASKS:
        labels = np.nan_to_num(truth.of(task, video, frame))
        if task.kind == "multiclass":
            noisy = 3 * np.eye(8)[labels[:, 0].astype(int)] + rng.normal(0, 1.3, (len(labels), 8))
            scores = np.exp(noisy) / np.exp(noisy).sum(1, keepdims=True)
        else:
            low = task.limits[0] if task.limits else 0.01
            scores = np.clip(0.8 * labels + rng.normal(0.1, 0.2, labels.shape), low, 0.99)
        predicted[task.name] = decide(task, scores)
    facts = facts_of(caveats=CAVEATS)
    frames = pa.table({"video": video, "frame": frame, "status": pa.repeat("ok", len(frame))})
    with write_predictions(folder / "p.parquet", facts) as writer:
        writer.write(as_table(frames, predicted, TASKS, facts.model))
    write_gallery(folder / "p.parquet", folder / "data", (images,), "validation", folder)


def take(browser: Browser, page: Path, size: tuple[int, int], out: Path) -> None:
    """A picture of the first screen of a page, its player in the middle of the video."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    tab = context.new_page()
    tab.goto(page.as_uri())
    if chart := tab.query_selector("svg.ribbon"):
        box = chart.bounding_box()
        assert box is not None
        tab.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 5)
        tab.wait_for_timeout(1500)
    tab.screenshot(path=out)
    context.close()
    with Image.open(out) as image:
        save(image.copy(), out)


def save(image: Image.Image, out: Path) -> None:
    """Write a small PNG: few colors, and fewer pixels until it is small enough."""
    image = image.convert("RGB")
    while True:
        image.quantize(96, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size < MOST_BYTES:
            return
        image = image.resize((image.width * 9 // 10, image.height * 9 // 10))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
