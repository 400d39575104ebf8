"""`raffect predict VIDEO` on drawn videos of several lengths: seconds by stage, and memory.

    OMP_NUM_THREADS=1 python benchmarks/predict_video.py [--minutes 2 10]

A stage lasts from its line in the log of the command to the next one. Memory is the largest sum of
the proportional set sizes of the command and all processes below it, Ray's own included, looked at
every half second; "command" is that of the command's own process. Videos have 25 pictures of
320 x 240 a second, with a table of boxes, since no detector knows drawn faces.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from kill_predict import prepare
from processes import Sampler, pss_mb, tree
from tools import new_parser, print_header, print_machine, print_row, scratch

from raffect.datasets.synthetic.video import FPS, write_video


class Memory(Sampler):
    """The largest memory of a process, and of it with all below it, in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(0.5)
        self.pid, self.command_mb, self.all_mb = pid, 0.0, 0.0

    def look(self) -> None:
        own = pss_mb(self.pid)
        self.command_mb = max(self.command_mb, own)
        self.all_mb = max(self.all_mb, sum(pss_mb(pid) for pid in tree(self.pid)))


def predict(folder: Path, name: str) -> tuple[list[tuple[float, str]], Memory]:
    """Run the command; each line of its log with the second at which it came, and its memory."""
    words = ["predict", f"{name}.mp4", "--head", "expr", "--out", name, "--margin", "0"]
    words += ["--boxes", f"{name}.mp4.boxes.csv", "--allow-embedded"]
    begin, lines = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, "-m", "raffect", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with Memory(process.pid) as memory:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - begin, line.rstrip()))
        status = process.wait()
    if status:
        raise SystemExit("\n".join(text for _, text in lines))
    return [*lines, (time.monotonic() - begin, "end")], memory


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0])
    args = parser.parse_args()
    with scratch("predict-video") as folder:
        prepare(folder, 0, 0.0)
        logs = []
        print_header("video", "frames", "wall s", "frames/s", "command MB", "all processes MB")
        for minutes in args.minutes:
            name = f"minutes{minutes:g}"
            write_video(folder / f"{name}.mp4", minutes * 60)
            lines, memory = predict(folder, name)
            wall_s, frames = lines[-1][0], round(minutes * 60 * FPS)
            cells = f"{frames:,}", f"{wall_s:.0f}", f"{frames / wall_s:.0f}"
            peaks = f"{memory.command_mb:.0f}", f"{memory.all_mb:.0f}"
            print_row(f"{minutes:g} min", *cells, *peaks)
            logs.append(lines)
    for lines in logs:
        print()
        for moment, text in lines:
            print(f"{moment:7.1f} s  {' '.join(text.split())[:110]}")
    print_machine()


if __name__ == "__main__":
    main()
