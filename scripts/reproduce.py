"""The paper's Table I and Figure 2 on your own copy of Aff-Wild2, by one command.

    python scripts/reproduce.py DATA WEIGHTS [--out reproduced] [--seeds 5] [--epochs N]

DATA is the folder that holds Aff-Wild2 as it comes: `cropped_aligned`,
`cropped_aligned_new_50_vids` and the annotations of one ABAW edition, nested as they may be.
WEIGHTS is the file with OpenAI's ViT-L/14 (`raffect models pull` fetches it, `raffect models path`
prints where it lies), the word `openai` for where raffect keeps it, or `embedded` for the small
encoder that comes with raffect, to try this on drawn faces (`raffect synth --out DATA`).

Stages, each a command of raffect that is printed and goes on where it stopped: prepare; extract;
train paper, released and erm on EXPR and AU (Table I); tune paper over alpha on EXPR (Figure 2);
report. Give the same command again after a stop: only what is missing is done. It ends in
OUT/reproduce_<yyyymm>.md, with configuration, versions, commit and fingerprints, and scores with
spread, interval and chance. The paper's .36 (EXPR) and .43 (AU) stand beside yours only where the
validation split is Aff-Wild2's own and whole; never beside drawn faces.

On one GPU extraction of 2.9 million frames is the longest part: `raffect extract --dry-run` says
how long. `--epochs` and `--seeds` other than the paper's 32 and 5 make it a trial run, which the
page says. Exit status: 0; else that of the stage that failed, or 2 for wrong words; 130
after Ctrl-C.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from raffect.config import EMBEDDED_MODEL
from raffect.errors import RaffectError, require
from raffect.provenance import describe_run
from raffect.recipe import Recipe
from raffect.runs.metrics_file import Metrics, SettingScores
from raffect.runs.spread import chance_text, settings_text, short
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record
from raffect.training.space import list_recipes

RECIPES, TASKS, FIGURE = ("paper", "released", "erm"), ("expr", "au"), "figure2"
SEEDS, EPOCHS = 5, 32
L14 = "ViT-L-14-quickgelu"
ALPHAS = "0.1:1:0.1"
PREPARED = Path("data/problems.csv")
"""What `raffect prepare` writes last, in the folder of all."""
SCORES = ("val-last ± sd (seeds)", "95 % over videos", "val-best (optimistic)")


@dataclass(frozen=True, kw_only=True)
class Settings(Record):
    """What OUT was made with: another run in it must ask for the same."""

    data: str
    weights: str
    seeds: int = SEEDS
    epochs: int | None = None
    alphas: str = ALPHAS

    @property
    def is_trial(self) -> bool:
        """Whether it is shorter than the paper's runs."""
        as_paper = (SEEDS, None, ALPHAS)
        return (self.seeds, self.epochs, self.alphas) != as_paper

    @property
    def text(self) -> str:
        """How many heads, for how long, and which alphas."""
        epochs = self.epochs or EPOCHS
        return f"{self.seeds} seed(s), {epochs} epoch(s), alpha {self.alphas} in Figure 2"

    @property
    def encoder(self) -> list[str]:
        """Words that name the encoder."""
        model = EMBEDDED_MODEL if self.weights == "embedded" else L14
        return ["--encoder.model", model, "--encoder.weights", self.weights]


@dataclass(frozen=True)
class Stage:
    """A command of raffect.

    Attributes:
        words: After ``raffect``.
        done: A file that is there once it is done; None if it must look.
        remedy: What to do where it fails.
    """

    words: list[str]
    done: Path | None = None
    remedy: str = "fix what it says"


def stages(settings: Settings, out: Path) -> list[Stage]:
    """All of them, in their order."""
    data, bank = out / "data", out / "bank"
    manifest = data / "manifest.parquet"
    prepare = ["prepare", "--root", settings.data, "--out", str(data)]
    extract = ["extract", "--manifest", str(manifest), "--bank", str(bank), *settings.encoder]
    whole = "bring images and annotations below DATA (flags of prepare are not taken here)"
    found = [Stage(prepare, out / PREPARED, whole), Stage(extract)]
    epochs = [] if settings.epochs is None else ["--epochs", str(settings.epochs)]
    for task in TASKS:
        common = ["--task", task, "--bank", str(bank), "--labels", str(data), *epochs]
        for recipe in RECIPES:
            own = ["--out", str(out / run_name(task, recipe)), "--num-seeds", str(settings.seeds)]
            found.append(Stage(["train", recipe, *common, *own]))
        if task == "expr":
            space = [f"loss.alpha={settings.alphas}", f"seed=0:{settings.seeds - 1}"]
            own = ["--out", str(out / FIGURE), "--space", *space]
            found.append(Stage(["tune", "paper", *common, *own]))
    runs = [str(out / name) for name in run_names()]
    return [*found, Stage(["report", "--runs", *runs, "--out", str(out / "report")])]


def run_name(task: str, recipe: str) -> str:
    """Folder of a run, below OUT."""
    return f"{task}-{recipe}"


def run_names() -> list[str]:
    """Folders of all runs, the sweep last."""
    return [*(run_name(task, recipe) for task in TASKS for recipe in RECIPES), FIGURE]


def run_stages(found: Sequence[Stage]) -> int:
    """Run what is not done; the status of the first that fails, or 0."""
    for number, stage in enumerate(found, 1):
        line = f"[{number}/{len(found)}] raffect {shlex.join(stage.words)}"
        if stage.done is not None and stage.done.exists():
            print(f"{line}\n    done already", flush=True)
            continue
        print(line, flush=True)
        command = [sys.executable, "-m", "raffect.cli", *stage.words]
        if status := subprocess.run(command, check=False).returncode:
            again = f"{stage.remedy} and give the same command again; what is done is kept"
            print(f"reproduce: stage {number} ended with status {status}; {again}", file=sys.stderr)
            return status
    return 0


# The page


def write_page(settings: Settings, out: Path) -> Path:
    """Scores of all runs and what made them; the page's path."""
    files = {name: out / name / "metrics.json" for name in run_names()}
    remedy = "delete its folder and give the same command again"
    runs = {
        name: Metrics.from_json(file.read_bytes(), file, remedy) for name, file in files.items()
    }
    first = runs[run_name("expr", "paper")]
    has_paper = all(runs[run_name(task, "paper")].data.published for task in TASKS)
    lines = [
        f"# Lin et al. 2024 repeated, {datetime.now(UTC):%B %Y}",
        "",
        *_warnings(settings, first, has_paper),
        *_facts(settings, runs),
        "",
        "## Table I",
        *_table(runs, has_paper),
        "",
        "## Figure 2: EXPR against alpha",
        *_figure(runs[FIGURE]),
    ]
    path = out / f"reproduce_{datetime.now(UTC):%Y%m}.md"
    write_atomic(path, ("\n".join(lines) + "\n").encode())
    return path


def _warnings(settings: Settings, first: Metrics, has_paper: bool) -> list[str]:
    """What the scores must not be taken for, before anything else."""
    found = []
    if settings.is_trial:
        found.append(f"**A trial run, not the paper's: {settings.text}.**")
    if first.data.caveat:
        found.append(f"**Caveat: {first.data.caveat}.**")
    if not has_paper:
        why = "images are drawn" if first.data.synthetic else "a validation split is not whole"
        found.append(f"The paper's scores are left out: {why}.")
    return [*found, ""] if found else []


def _facts(settings: Settings, runs: dict[str, Metrics]) -> list[str]:
    """Configuration, versions, commit, fingerprints."""
    run, data = describe_run(), runs[run_name("expr", "paper")].data
    (encoder,) = data.encoders
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    machine = f"{run.machine.system}, {run.machine.cores} cores"
    labels = {task: runs[run_name(task, "paper")].data.labels_sha256 for task in TASKS}
    commits = sorted({metrics.run.git_commit or "unknown" for metrics in runs.values()})
    return [
        f"- Configuration: {settings.text}; batch 32; labels of {data.edition}.",
        f"- Encoder: {encoder.model}, weights {encoder.weights}, {encoder.precision}; fingerprint "
        f"{encoder.weights_sha256}.",
        f"- Bank {data.bank_digest}; labels {', '.join(f'{k} {v}' for k, v in labels.items())}.",
        f"- Commit {', '.join(commits)}; {versions}; {machine}.",
        f"- Command: `{run.command_line('reproduce')}`",
    ]


def _table(runs: dict[str, Metrics], has_paper: bool) -> list[str]:
    titles = ["task", "recipe", *SCORES, "chance", *(["paper"] if has_paper else [])]
    rows = []
    for task in TASKS:
        for recipe in RECIPES:
            metrics = runs[run_name(task, recipe)]
            found = _scores(metrics.headline)
            paper = metrics.data.published.get("Lin et al. 2024")
            own = [short(paper) if recipe != "erm" else "-"] if has_paper else []
            rows.append([task.upper(), recipe, *found, chance_text(metrics.chance), *own])
    return _markdown(titles, rows)


def _figure(metrics: Metrics) -> list[str]:
    titles = ["setting", *SCORES]
    rows = []
    for setting in metrics.settings:
        mark = " (ERM)" if setting.erm else ""
        rows.append([f"{settings_text(setting.settings)}{mark}", *_scores(setting)])
    return [*_markdown(titles, rows), "", f"Chance {chance_text(metrics.chance)}."]


def _scores(setting: SettingScores) -> list[str]:
    """Three cells: the last epoch with its spread, its interval, and the best epoch."""
    last, best = setting.scores["last"], setting.scores["best"]
    spread = "(one seed)" if last.sd is None else f"± {short(last.sd)} ({last.heads})"
    ends = last.interval_95
    interval = f"[{short(ends[0])}, {short(ends[1])}]" if ends else "-"
    return [f"{short(last.mean)} {spread}", interval, short(best.mean)]


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table after an empty line."""
    shown = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return ["", shown[0], "|---" * len(titles) + "|", *shown[1:]]


# The command


def claim(settings: Settings, out: Path) -> None:
    """Note what a folder is made with, or refuse one that was made with something else.

    Until the data are prepared nothing is, and other words take the place of the earlier ones.
    """
    file = out / "reproduce.json"
    if file.exists() and (out / PREPARED).exists():
        found = Settings.from_json(file.read_bytes(), file, "name another --out")
        ours, theirs = vars(settings), vars(found)
        other = [f"{k} {theirs[k]}, not {ours[k]}" for k in ours if theirs[k] != ours[k]]
        what = f"--out {out}: was made with {'; '.join(other)}"
        require(not other, f"{what}; give the same words, or name another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, settings.to_bytes())


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of Aff-Wild2 as it comes")
    parser.add_argument("weights", metavar="WEIGHTS", help="file of ViT-L/14, openai, or embedded")
    parser.add_argument(
        "--out", type=Path, default=Path("reproduced"), help="folder for everything"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="heads of each setting")
    parser.add_argument("--epochs", type=int, help="a trial run with other epochs than the paper's")
    parser.add_argument("--alphas", default=ALPHAS, help="of Figure 2; FROM:TO:STEP or A,B,...")
    options = parser.parse_args(argv)
    require(options.data.is_dir(), f"{options.data}: no such folder; expected that of Aff-Wild2")
    require(options.seeds >= 1, f"--seeds {options.seeds}: expected 1 or more")
    is_some = options.epochs is None or options.epochs >= 1
    require(is_some, f"--epochs {options.epochs}: expected 1 or more")
    weights = options.weights
    if weights not in ("openai", "embedded"):
        require(Path(weights).is_file(), f"{weights}: no such file; see `raffect models pull`")
        weights = str(Path(weights).absolute())
    axes = [f"loss.alpha={options.alphas}"]
    list_recipes(Recipe(), axes, 0)  # a wrong one is refused now, not after days of encoding
    settings = Settings(
        **{"data": str(options.data.absolute()), "weights": weights, "seeds": options.seeds},
        **{"epochs": options.epochs, "alphas": options.alphas},
    )
    claim(settings, options.out)
    if status := run_stages(stages(settings, options.out)):
        return status
    print(f"wrote {write_page(settings, options.out)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RaffectError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"reproduce: {error.filename}: {error.strerror}; check the path", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # the stage has said so too
        print("reproduce: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
