"""Damage pictures and videos by the thousand, and measure `raffect faces`.

    uv run python benchmarks/faces.py mutate --cases 2000 --seed 0
    uv run python benchmarks/faces.py speed --minutes 2
    uv run python benchmarks/faces.py haar --photographs FOLDER

`mutate`: each case is a picture or a video with bytes changed, cut off, doubled or moved. It must
end in one status within ``--limit`` seconds. `speed`: seconds by stage and peak memory of one
process on a drawn video. `haar`: hits and false boxes on pictures of scikit-image, and on others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from raffect.config import FacesConfig
from raffect.extraction.find_faces import choose_settings
from raffect.faces import parts, work
from raffect.faces.detectors import load_detector
from raffect.faces.inputs import add_inputs, list_inputs
from raffect.faces.pictures import read_picture
from raffect.faces.plan import FacePlan, finished_units
from raffect.faces.tracks import overlap
from raffect.faces.video import decode_frames, scan_video
from tests.helpers.videos import moving_faces, write_video

STATUSES = {"ok", "no_face", "damaged", "unreadable"}


# Damaged files


def make_seeds(folder: Path) -> list[Path]:
    """Small whole files of many kinds."""
    pictures, _ = moving_faces(24, 96, 64, people=1, side=32)
    kinds = {"a.mp4": "libx264", "b.mkv": "libx264", "c.avi": "mpeg4", "d.webm": "libvpx"}
    kinds |= {"e.ts": "libx264", "f.mov": "mpeg4", "g.mpg": "mpeg2video", "h.flv": "libx264"}
    for name, codec in kinds.items():
        write_video(folder / name, pictures, codec)
    frames = [Image.fromarray(picture) for picture in pictures]
    frames[0].save(folder / "i.gif", save_all=True, append_images=frames[1:], duration=40)
    for name in ("j.jpg", "k.png", "l.webp", "m.bmp", "n.tiff"):
        frames[0].save(folder / name)
    frames[0].convert("CMYK").save(folder / "o.jpg")
    frames[0].convert("RGBA").save(folder / "p.png")
    return sorted(folder.iterdir())


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A file with a few faults."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not out:
            break
        place = rng.randrange(len(out))
        # Headers are where faults have most consequences.
        if rng.random() < 0.4:
            place = rng.randrange(min(len(out), 400))
        length = rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(7):
            case 0:
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[place : place + length] = rng.randbytes(length)
            case 2:
                del out[place:]
            case 3:
                del out[place : place + length]
            case 4:
                out[place:place] = out[place : place + length]
            case 5:
                extreme = rng.choice((b"\0", b"\xff", b"\x7f\xff", b"\x80\0"))
                out[place : place + 4] = (extreme * 4)[:4]
            case _:
                other = rng.randrange(len(out))
                out[place : place + length] = out[other : other + length]
    return bytes(out)


def run_case(name: str, content: bytes, folder: Path) -> str:
    """The status in which a file ends; a traceback where it ends in none."""
    file = folder / name
    file.write_bytes(content)
    out = folder / "out"
    try:
        inputs = add_inputs(out, list_inputs([file]).files)
        plan = FacePlan(out, inputs, choose_settings(FacesConfig(inputs=(file,), out=out))[0])
        for step in (plan.scans, lambda: plan.parts()[0], plan.joins):
            for task in step():
                work.run_task(out, task)
        (unit,) = finished_units(out, inputs)
        (facts,) = unit.inputs
    except Exception:
        return traceback.format_exc()
    return facts.status if facts.problem.isprintable() else f"no clear status: {facts}"


def be_child(jobs: multiprocessing.Queue, answers: multiprocessing.Queue) -> None:
    """Run cases until there are no more, without waiting for the disk."""
    import os

    os.fsync = lambda handle: None
    while (job := jobs.get()) is not None:
        name, content = job
        with tempfile.TemporaryDirectory(prefix="mutated-") as folder:
            answers.put(run_case(name, content, Path(folder)))


class Child:
    """A process that runs cases, and is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.jobs, self.answers = context.Queue(), context.Queue()
        self.process = context.Process(target=be_child, args=(self.jobs, self.answers), daemon=True)
        self.process.start()
        self.is_warm = False

    def run(self, name: str, content: bytes, limit_s: float) -> tuple[str, float]:
        """The status of a case, and its seconds."""
        begin, patience = time.monotonic(), limit_s if self.is_warm else limit_s + 60
        self.jobs.put((name, content))
        while time.monotonic() - begin < patience:
            if not self.answers.empty():
                answer = self.answers.get()
                seconds = time.monotonic() - begin if self.is_warm else 0.0
                self.is_warm = True
                return answer, seconds
            if not self.process.is_alive():
                status = self.process.exitcode
                self._start()
                return f"process died with status {status}", time.monotonic() - begin
            time.sleep(0.001)
        self.process.kill()
        self._start()
        return f"hang of more than {limit_s:g} s", time.monotonic() - begin

    def close(self) -> None:
        self.jobs.put(None)
        self.process.join(10)


def run_mutations(cases: int, seed: int, limit_s: float, keep: Path | None) -> int:
    """Damage files; how many ended in no clear status."""
    counts: Counter[tuple[str, str]] = Counter()
    slowest, faults, child = 0.0, 0, Child()
    with tempfile.TemporaryDirectory() as folder:
        seeds = make_seeds(Path(folder))
        for case in range(cases):
            file = seeds[case % len(seeds)]
            content = mutate(file.read_bytes(), random.Random(f"{seed}/{case}"))
            status, seconds = child.run(file.name, content, limit_s)
            slowest = max(slowest, seconds)
            is_fault = status not in STATUSES
            if is_fault:
                faults += 1
                print(f"case {case} ({file.name}, {seconds:.1f} s): {status}", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{case}-{file.name}").write_bytes(content)
            counts[file.suffix, "fault" if is_fault else status] += 1
    child.close()
    columns = [*sorted(STATUSES), "fault"]
    print(f"| file | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for suffix in sorted({suffix for suffix, _ in counts}):
        cells = [str(counts[suffix, column]) for column in columns]
        print(f"| {suffix} | {' | '.join(cells)} |")
    print(f"\n{cases} files with seed {seed}: {faults} faults; the slowest took {slowest:.2f} s")
    return faults


# Speed


def run_speed(minutes: float, width: int, height: int) -> None:
    """Seconds by stage and peak memory on a drawn video at 25 frames a second."""
    with tempfile.TemporaryDirectory() as name:
        folder, frames = Path(name), round(minutes * 60 * 25)
        # A loop of a few pictures, so that drawing takes no time; encoded once, copied after that
        pictures, _ = moving_faces(250, width, height, people=2, side=height // 2)
        write_video(folder / "clip.mp4", (pictures * (frames // 250 + 1))[:frames], gop=125)
        config = FacesConfig(inputs=(folder / "clip.mp4",), out=folder / "out")
        settings = choose_settings(config)[0]
        seconds: Counter[str] = Counter()
        begin = time.perf_counter()
        plan = FacePlan(folder / "out", add_inputs(folder / "out", config.inputs), settings)
        for step in (plan.scans, lambda: plan.parts()[0], plan.joins):
            for task in step():
                start = time.perf_counter()
                work.run_task(folder / "out", task)
                seconds[task.kind] += time.perf_counter() - start
        total = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        # Its stages apart, on the first ten seconds
        scan = scan_video(config.inputs[0])
        start = time.perf_counter()
        decoded = list(decode_frames(config.inputs[0], scan, 1, 251))
        decode_s = (time.perf_counter() - start) / len(decoded)
        detector = load_detector(settings, config.inputs[0])
        start = time.perf_counter()
        found = [detector.detect(rgb, frame) for frame, rgb in decoded[:50]]
        detect_s = (time.perf_counter() - start) / 50
        start = time.perf_counter()
        for (_, rgb), rows in zip(decoded, found, strict=False):
            for row in rows:
                parts.encode(parts.cut_out(rgb, row, settings.margin))
        crop_s = (time.perf_counter() - start) / max(1, sum(map(len, found)))
    print("| stage | frames/s |\n|---|---|")
    for kind in ("scan", "part", "join"):
        print(f"| {kind} | {frames / seconds[kind]:,.0f} |")
    print(f"| decode | {1 / decode_s:,.0f} |\n| detect (one frame) | {1 / detect_s:,.0f} |")
    print(f"| crop and encode (one face) | {1 / crop_s:,.0f} |")
    what = f"{frames:,} frames of {width}x{height} in {total:.1f} s, one process"
    print(f"\n{what}: {frames / total:,.0f} frames/s; peak memory {peak:,.0f} MB")


# Haar


def run_haar(photographs: Path | None) -> None:
    """Hits and false boxes of the detector whose weights come with OpenCV."""
    from skimage import data

    settings = choose_settings(FacesConfig(inputs=(Path("a"),), out=Path("o"), min_face=30))[0]
    detector = load_detector(settings, Path())
    print("| pictures | number | found | false boxes |\n|---|---|---|---|")
    found = detector.detect(data.astronaut(), 1)
    hits = int((overlap(found, np.array([[177.0, 66, 95, 95]])) > 0.5).sum())
    print(f"| astronaut | 1 | {hits} | {len(found) - hits} |")
    small = np.load(Path(data.__file__).parent / "lfw_subset.npy")
    counts = [len(detector.detect(enlarge(face), 1)) for face in small]
    faces = counts[:100]
    hits = sum(map(bool, faces))
    print(f"| lfw_subset, faces of 25 px enlarged | 100 | {hits} | {sum(faces) - hits} |")
    print(f"| lfw_subset, patches without | 100 | - | {sum(counts[100:])} |")
    others = (
        "brick camera chelsea coffee coins grass gravel hubble_deep_field moon page rocket text"
    )
    shown = [np.asarray(Image.fromarray(getattr(data, n)()).convert("RGB")) for n in others.split()]
    print(
        f"| without a face | {len(shown)} | - | {sum(len(detector.detect(s, 1)) for s in shown)} |"
    )
    if photographs is not None:
        files = list_inputs([photographs]).files
        counts = [len(detector.detect(pad(read_picture(file)), 1)) for file in files]
        more = sum(max(0, count - 1) for count in counts)
        print(f"| {photographs.name} | {len(files)} | {sum(map(bool, counts))} | {more} |")


def enlarge(face: np.ndarray) -> np.ndarray:
    """A small grey photograph at four times its size, on grey."""
    return pad(np.repeat((face * 255).astype(np.uint8)[..., None], 3, 2), 100)


def pad(picture: np.ndarray, side: int | None = None) -> np.ndarray:
    """A picture with grey around it; a cascade finds no face that touches the border."""
    image = Image.fromarray(picture)
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    border = max(image.size) // 5
    size = image.width + 2 * border, image.height + 2 * border
    out = Image.new("RGB", size, (128, 128, 128))
    out.paste(image, (border, border))
    return np.asarray(out)


def main() -> int:
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True)
    damage = commands.add_parser("mutate")
    damage.add_argument("--cases", type=int, default=2000)
    damage.add_argument("--seed", type=int, default=0)
    damage.add_argument("--limit", type=float, default=10.0, help="seconds of a case")
    damage.add_argument("--keep", type=Path, help="folder for files that end in no clear status")
    speed = commands.add_parser("speed")
    speed.add_argument("--minutes", type=float, default=2.0)
    speed.add_argument("--width", type=int, default=640)
    speed.add_argument("--height", type=int, default=360)
    haar = commands.add_parser("haar")
    haar.add_argument("--photographs", type=Path)
    args = parser.parse_args()
    if args.command == "mutate":
        return int(run_mutations(args.cases, args.seed, args.limit, args.keep) > 0)
    if args.command == "speed":
        run_speed(args.minutes, args.width, args.height)
    else:
        run_haar(args.photographs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
