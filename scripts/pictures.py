"""Every picture of README.md, CONTRIBUTING.md and docs/, by one command, so that none is stale.

    uv run python scripts/pictures.py [--only NAME ...] [--work runs/pictures]

Pictures show drawn faces, and say so. Runs behind them lie in --work, are of fixed seeds, and go on
after a stop; what is finished there is not run again, so delete the folder after a change of what
is computed. From nothing all take about half an hour on 2 idle cores, most of it compare, robust
and figure2; pictures of the demo take 3 minutes. Pages are taken in Debian's Chromium (`apt-get
install chromium`). docs/pictures.json records which command and commit made each file.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from first_screen import draw_expressions, draw_first_screen
from PIL import Image

from raffect.errors import RaffectError, require
from raffect.provenance import git_commit
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record

ROOT = Path(__file__).parents[1]
DOCS, RECORD = ROOT / "docs", ROOT / "docs" / "pictures.json"
DESKTOP, HALF, PHONE = (1280, 860), (720, 800), (390, 780)
"""Width and height of a browser's window."""
MOST_BYTES, COLORS = 160_000, 256
FRAMES, SEEDS = 20_000, "seed=0:2"
"""Of Figure 2; the demo, compare and robust have sizes of their own."""


@dataclass(frozen=True)
class Picture:
    """How a picture is made.

    Attributes:
        make: Draws it, from runs in a work folder that it makes if they are not there.
        shows: What it shows, and of how much.
    """

    make: Callable[[Path], Image.Image]
    shows: str


@dataclass(frozen=True, kw_only=True)
class Made(Record):
    """What made a picture.

    Attributes:
        shows: What it shows, and of how much.
        command: That made it.
        git_commit: Of the checkout when it was made.
        time: ISO 8601 in UTC.
        sha256: Of the file, so that a picture from elsewhere is noticed.
    """

    shows: str
    command: str
    git_commit: str | None
    time: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Pictures(Record):
    """The record of all pictures, by name."""

    pictures: dict[str, Made]


def read_pictures() -> dict[str, Made]:
    """What is recorded of each picture."""
    return dict(Pictures.from_json(RECORD.read_bytes(), RECORD, "make all pictures").pictures)


# Runs that pictures are of


def run_demo(work: Path) -> Path:
    """`raffect demo`, which most pictures are of; its folder."""
    out = work / "demo"
    if not (out / "predictions" / "index.html").exists():
        _raffect("demo", "--out", out)
    return out


def run_benchmark(work: Path, name: str) -> Image.Image:
    """The figure of a benchmark of 4,000 frames."""
    out = work / name
    file = out / name / f"{name}.png"
    if not file.exists():
        _run(ROOT / "benchmarks" / f"{name}.py", "--frames", 4000, "--out", out)
    return _open(file)


def run_figure2(work: Path) -> Image.Image:
    """Figure 2 on many frames, 8 epochs instead of 32."""
    out = work / "figure2"
    faces, data, bank, sweep = (out / name for name in ("faces", "data", "bank", "sweep"))
    if not (sweep / "metrics.json").exists():
        _raffect("synth", "--out", faces, "--frames", FRAMES)
        annotations = faces / "8th_ABAW_Annotations"
        images = faces / "cropped_aligned"
        _raffect("prepare", "--images", images, "--annotations", annotations, "--out", data)
        encoder = ("--encoder.model", "raffect-faces")
        _raffect("extract", "--manifest", data, "--bank", bank, *encoder, "--join")
        inputs = ("--task", "expr", "--bank", bank, "--labels", data, "--out", sweep)
        _raffect("tune", "paper", *inputs, "--space", "loss.alpha=0.1:1:0.1", SEEDS, "--epochs", 8)
    _raffect("report", "--runs", sweep, "--out", out / "report")
    (file,) = (out / "report" / "plots").glob("*-alpha.png")
    return _open(file)


# Pictures of the demo


def draw_alpha(work: Path) -> Image.Image:
    """The curve of the demo's report, which is drawn anew."""
    demo, out = run_demo(work), work / "report"
    _raffect("report", "--runs", demo / "expr-alpha", demo / "au", "--out", out)
    return _open(out / "plots" / "expr-alpha-alpha.png")


def draw_overlay(work: Path) -> Image.Image:
    """A frame of the demo's overlay."""
    from raffect.faces.video import decode_frames, scan_video

    video = run_demo(work) / "predictions" / "overlay" / "clip.mp4"
    _, frame = next(decode_frames(video, scan_video(video), 125, 126))
    return Image.fromarray(frame)


def draw_timeline(size: tuple[int, int]) -> Callable[[Path], Image.Image]:
    """The page of the demo's video, its player in the middle of it, in a window of some size."""
    return lambda work: take(run_demo(work) / "predictions" / "pages" / "clip.html", size)


def draw_gallery(work: Path) -> Image.Image:
    """The frames of the demo that cost its heads most."""
    from raffect.reporting.gallery import write_gallery

    demo, out = run_demo(work), work / "gallery"
    out.mkdir(exist_ok=True)
    images = (demo / "faces" / "cropped_aligned",)
    gallery = write_gallery(demo / "bank.parquet", demo / "data", images, "validation", out)
    return take(gallery.html, HALF)


def draw_site(name: str, size: tuple[int, int], heading: str = "") -> Callable[[Path], Image.Image]:
    """A page of the documentation site, which is built anew; from a heading on."""

    def draw(_: Path) -> Image.Image:
        _run(ROOT / "scripts" / "build_site.py")
        return take(ROOT / "build" / "site" / name / "index.html", size, heading)

    return draw


def draw_notebook(work: Path) -> Image.Image:
    """What a notebook predicts, as the site shows it once it was executed."""
    _run(ROOT / "scripts" / "notebooks.py", "first_look")
    return draw_site("notebooks/first_look", HALF, "pictures")(work)


def take(page: Path, size: tuple[int, int], heading: str = "") -> Image.Image:
    """The first screen of a page, or the one that begins with a heading."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
        tab.goto(f"{page.absolute().as_uri()}#{heading}")
        if chart := tab.query_selector("svg.ribbon"):
            box = chart.bounding_box()
            assert box is not None
            tab.mouse.click(box["x"] + 0.62 * box["width"], box["y"] + 5)
            tab.wait_for_timeout(1500)
        return Image.open(BytesIO(tab.screenshot()))


PICTURES = {
    "expressions": Picture(lambda _: draw_expressions(), "drawn faces, one of each expression"),
    "first_screen": Picture(
        lambda work: draw_first_screen(run_demo(work)),
        "raffect demo: a frame of each expression, drawn by lot, and the sweep of alpha",
    ),
    "figure2_demo": Picture(draw_alpha, "raffect demo: the sweep of alpha in its report"),
    "overlay": Picture(draw_overlay, "raffect demo: frame 125 of the overlay of its video"),
    "timeline": Picture(draw_timeline(DESKTOP), "raffect demo: the page of its video"),
    "timeline_phone": Picture(
        draw_timeline(PHONE), "raffect demo: the page of its video on a phone"
    ),
    "gallery": Picture(draw_gallery, "raffect demo: validation frames with the highest loss"),
    "site_desktop": Picture(
        draw_site("commands/train", DESKTOP), "the documentation site: a command's reference"
    ),
    "site_phone": Picture(
        draw_site("tutorial", PHONE), "the documentation site on a phone: the tutorial"
    ),
    "notebook": Picture(draw_notebook, "the documentation site: an executed notebook"),
    "compare_drawn": Picture(
        lambda work: run_benchmark(work, "compare"), "benchmarks/compare.py --frames 4000"
    ),
    "robust_drawn": Picture(
        lambda work: run_benchmark(work, "robust"), "benchmarks/robust.py --frames 4000"
    ),
    "figure2_drawn": Picture(
        run_figure2, f"raffect tune paper, {FRAMES:,} drawn frames, 3 seeds, 8 epochs"
    ),
}


def save(image: Image.Image, out: Path) -> None:
    """Write a small PNG: few colors, and fewer pixels until it is small enough."""
    image = image.convert("RGB")
    while True:
        file = BytesIO()
        few = image.quantize(COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(file, format="PNG", optimize=True)
        if len(file.getvalue()) < MOST_BYTES:
            write_atomic(out, file.getvalue())
            return
        image = image.resize((image.width * 9 // 10, image.height * 9 // 10))


def make(names: Sequence[str], work: Path) -> None:
    """Make pictures, and record each as soon as it is there."""
    work.mkdir(parents=True, exist_ok=True)
    commit = git_commit()  # before a picture changes
    for name in names:
        out = DOCS / f"{name}.png"
        save(PICTURES[name].make(work), out)
        made = Made(
            shows=PICTURES[name].shows,
            command=f"python scripts/pictures.py --only {name}",
            git_commit=commit,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        )
        known = read_pictures() if RECORD.exists() else {}
        found = {key: value for key, value in (known | {name: made}).items() if key in PICTURES}
        write_atomic(RECORD, Pictures(pictures=dict(sorted(found.items()))).to_bytes())
        print(f"{out.relative_to(ROOT)}: {out.stat().st_size:,} bytes", flush=True)


def _open(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.copy()


def _raffect(*words: object) -> None:
    _run("-m", "raffect", *words)


def _run(*words: object) -> None:
    command = [sys.executable, *map(str, words)]
    if status := subprocess.run(command, check=False).returncode:
        raise RaffectError(f"{' '.join(command)}: ended with status {status}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", default=list(PICTURES), metavar="NAME")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pictures")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in PICTURES]
    require(not unknown, f"--only {' '.join(unknown)}: expected some of {', '.join(PICTURES)}")
    make(arguments.only, arguments.work.absolute())


if __name__ == "__main__":
    main()
