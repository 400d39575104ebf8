"""Settings of the commands that judge and show heads."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import Positional

from raffect.config.common import require_local
from raffect.errors import require

CorruptionName = Literal["blur", "noise", "brightness", "jpeg", "occlusion", "low-resolution"]
CORRUPTION_NAMES: tuple[CorruptionName, ...] = get_args(CorruptionName)
_FOR_INPUTS = ("weights", "style", "boxes", "detector_model", "labels")
"""Settings of predict that would do nothing with a bank."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score trained heads on a bank.

    Example: `raffect evaluate --run runs/expr --bank bank --labels data`
    """

    run: tuple[Path, ...]
    """Run folders of train or tune, or folders of one head each; several if they are of several
    tasks. Expressions, action units and valence with arousal together also have the sum of their
    scores, which is that of ABAW's multi-task challenge."""
    bank: Path
    """Bank made by the encoder that the heads were trained on. Several, as --bank A B, are joined:
    one behind another, or with --how average their mean."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    split: Literal["train", "validation", "test"] = "validation"
    """Frames to score on; test where the labels have such a split, as those of a table, a folder or
    `raffect bank import` may."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head: last epoch, best on validation, or the cross-validated epoch."""
    postprocess: str = "auto"
    """Decision rules of `raffect postprocess`, whose scores stand beside those of single heads:
    auto takes decision_rules.json of the run; none; or a file of rules."""
    classes: Literal["same", "common"] = "same"
    """Outputs that heads are judged on. same: labels must have exactly those of the heads. common:
    those that both have, by name, so that heads of one data set are judged on another one: a head
    answers common classes alone, and frames of other classes are left out, and counted."""
    allow_incomplete: bool = False
    """Score on a bank that lacks planned frames (not extracted yet, or damaged). Every score is
    then marked as such."""
    out: Path | None = None
    """Also write metrics.json and per_group.csv to this folder, of several tasks to a folder of
    each in it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        _accept_one(self, "run")
        require(bool(self.run), "--run: expected one run folder or more")
        require(
            self.classes == "same" or self.postprocess in ("auto", "none"),
            f"--postprocess {self.postprocess}: decision rules are for all classes of the heads; "
            "leave it out with --classes common",
        )


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """Judge heads of several runs on damaged copies of frames: score against strength of damage,
    beside plain ERM on the same videos. Run it again after any stop: it works on what is missing.

    Example: `raffect robust --manifest data --labels data --run runs/erm runs/cvar --out robust`
    """

    manifest: Path
    """manifest.parquet of `raffect prepare` or `raffect pack`, or the folder that holds it."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote."""
    run: tuple[Path, ...]
    """Run folders of train or tune, or folders of one head each, all of one task and encoder; of a
    sweep its main setting. One of plain ERM is what the others are compared with."""
    out: Path
    """Folder for scores, the figure and banks of the copies."""
    corruptions: tuple[CorruptionName, ...] = CORRUPTION_NAMES
    """Kinds of damage."""
    strengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Strengths from 1 to 5; frames without damage are always judged as well."""
    split: Literal["train", "validation", "test"] = "validation"
    """Whose frames."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head: last epoch, best on validation, or the cross-validated epoch."""
    weights: str = ""
    """File or tag of the encoder's weights; by default as the heads name them. They must be those
    that made the bank of the heads."""
    seed: int = 0
    """Of noise and of the place of occlusions."""
    keep_banks: bool = True
    """Keep the banks of the copies, so that another run can be added without encoding."""
    allow_embedded: bool = False
    """Let the embedded encoder, which only knows drawn faces, encode other images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    address: str | None = None
    """Ray cluster: auto or an address. Without it Ray starts on this machine alone."""

    def __post_init__(self) -> None:
        _accept_one(self, "run")
        require(bool(self.run), "--run: expected one run folder or more")
        require(bool(self.corruptions), "--corruptions: expected one or more")
        for name in self.corruptions:
            expected = ", ".join(CORRUPTION_NAMES)
            require(name in CORRUPTION_NAMES, f"--corruptions {name}: expected some of {expected}")
        require(
            bool(self.strengths) and all(1 <= strength <= 5 for strength in self.strengths),
            f"--strengths {' '.join(map(str, self.strengths))}: expected numbers from 1 to 5",
        )
        require(self.seed >= 0, f"--seed {self.seed}: expected 0 or more")
        require_local(self, "out")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw tables and figures of one run or several: report.md, and report.html for a browser.

    Example: `raffect report --runs runs/figure2 runs/expr --out report`
    """

    runs: tuple[Path, ...]
    """Run folders of train and tune."""
    out: Path | None = None
    """Folder for the report; by default that of the first run."""
    judged: tuple[Path, ...] = ()
    """Folders of `raffect evaluate --out`, in which heads of these runs were judged on other data
    sets: a matrix, rows trained on and columns judged on, with each run's own validation split."""
    gallery: bool = False
    """Also write gallery.html: for each class, label and value the frames with the highest loss, to
    find wrong labels. It holds pictures of faces; nothing else that report writes does."""
    predictions: Path | None = None
    """For the gallery: table of `raffect predict --bank` on the bank of the labels."""
    labels: Path | None = None
    """For the gallery: the folder that `raffect prepare` wrote, or one of its label tables."""
    images: tuple[Path, ...] = ()
    """For the gallery: image roots as `raffect prepare` takes them, or the folder of a manifest."""
    split: Literal["train", "validation", "test"] = "validation"
    """For the gallery: whose frames."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "--runs: expected one run folder or more")
        given = {
            "predictions": self.predictions is not None,
            "labels": self.labels is not None,
            "images": bool(self.images),
        }
        for name, is_given in given.items():
            require(is_given or not self.gallery, f"--gallery: expected --{name} beside it")
            require(self.gallery or not is_given, f"--{name}: is for the gallery; add --gallery")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predict faces in pictures and videos: a table, and per video an overlay and a page to look
    at. Or predict every frame of a bank, labelled or not: a table alone. Run it again after any
    stop: it works on what is missing.

    Example: `raffect predict clip.mp4 photos --head runs/expr runs/au --out predictions`

    Or: `raffect predict --bank bank --head runs/expr --out predictions.parquet`
    """

    inputs: Positional[tuple[Path, ...]] = ()
    """Pictures, videos, folders of both at any depth, or patterns such as clips/*.mp4. A name that
    begins with - needs ./ in front."""
    head: tuple[Path, ...]
    """Run folders of train or tune, or folders of one head each; of a sweep its main setting.
    Probabilities of all heads of a task are averaged; heads of several tasks make one table."""
    out: Path
    """Of inputs the folder to write; of a bank the table, .parquet or .csv, whose rows are sorted
    by video, then frame."""
    bank: Path | None = None
    """Bank made by the encoder that the heads were trained on, in place of inputs. Several, as
    --bank A B, are joined as the heads' was; --how average for their mean."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head: last epoch, best on validation, or the cross-validated epoch."""
    postprocess: str = "auto"
    """Decision rules of `raffect postprocess`: auto applies decision_rules.json of a run where its
    heads are those that predict; none applies no rules; or a file of rules for its task."""
    allow_incomplete: bool = False
    """Predict on a bank that lacks planned frames (not extracted yet, or damaged). They have no
    row, and the table says so."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    weights: str = ""
    """Weights of the encoder for inputs: a tag or a file; by default those that the heads name."""
    allow_embedded: bool = False
    """Let heads of the embedded encoder, which only knows drawn faces, predict inputs."""
    style: Literal["plain", "openface"] = "plain"
    """Columns of the CSV files: those of the table, or OpenFace's (frame, face_id, timestamp,
    confidence, success, AU01_c ...)."""
    overlay: bool = True
    """Draw an overlay of each input."""
    keep: bool = False
    """Keep the scratch folder with the crops of faces and their features."""
    detector: Literal["auto", "boxes", "yunet", "haar", "none"] = "auto"
    """How faces are found, as in `raffect faces`."""
    boxes: Path | None = None
    """CSV or Parquet file with boxes that another tool found; see `raffect faces --help`."""
    detector_model: Path | None = None
    """ONNX file of YuNet."""
    every: int = 5
    """Detect in each n-th frame of a video, and follow faces in between."""
    margin: float = 0.13
    """Border around a box on each side, as a share of its longer side."""
    labels: Path | None = None
    """Labels to show beside predictions: the folder that `raffect prepare` wrote. Its videos are
    named as inputs are, without folder and ending."""
    address: str | None = None
    """Ray cluster for inputs: auto or an address; it must see inputs and --out under the same
    paths. Without it Ray starts on this machine alone."""

    def __post_init__(self) -> None:
        _accept_one(self, "head")
        require(bool(self.head), "--head: expected one run folder, or folder of a head, or more")
        if self.bank is not None:
            require(not self.inputs, "--bank: expected no inputs beside it")
            _require_unchanged(self, _FOR_INPUTS, "is for inputs; leave it out with --bank")
            require_table("out", self.out)
            require_local(self, "out")
            return
        require(bool(self.inputs), "expected a picture, video, folder or pattern, or --bank BANK")
        require_local(self, "inputs", "out", "boxes", "detector_model", "labels")
        is_table = self.out.suffix in (".parquet", ".csv")
        require(not is_table, f"--out {self.out}: expected a folder where there are inputs")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Write an entry of an ABAW challenge: exactly the rows that the organisers list.

    Example: `raffect submit --template EXPR_example.txt --predictions predictions.parquet
    --out EXPR.txt`
    """

    template: Path
    """The organisers' example file of editions 6 to 10 or of the multi-task challenge; for editions
    1 to 5 their folder of one file a video, or a list of videos (name,frames a line)."""
    predictions: Path
    """Table of `raffect predict` that holds the template's videos."""
    out: Path
    """File to write, or for a file a video the folder. FILE.filled.csv beside it lists the frames
    that were filled in."""
    task: str = ""
    """Which task of the table a list of videos is for; other templates say it themselves."""
    postprocess: str = "auto"
    """Decision rules: auto applies those that the table was made with; none applies no rules; or a
    file of `raffect postprocess` for its task. The table holds averages of heads and means over
    windows: other rules must be of the same heads and weights, and of the same windows unless the
    table has none yet."""

    def __post_init__(self) -> None:
        require_table("predictions", self.predictions)
        require_local(self, "template", "predictions", "out")


def _accept_one(config: EvaluateConfig | PredictConfig | RobustConfig, name: str) -> None:
    """Make a single path, as earlier versions took it in Python, a tuple of one."""
    if isinstance(path := getattr(config, name), Path):
        object.__setattr__(config, name, (path,))


def _require_unchanged(config: PredictConfig, names: tuple[str, ...], why: str) -> None:
    """Refuse settings that are not at their default.

    Raises:
        RaffectError: Names the first one.
    """
    for field in fields(config):
        is_default = getattr(config, field.name) == field.default
        flag = f"--{field.name.replace('_', '-')}"
        require(field.name not in names or is_default, f"{flag}: {why}")


def require_table(name: str, path: Path) -> None:
    """Refuse a file that is neither Parquet nor CSV by its name.

    Raises:
        RaffectError: Names the setting.
    """
    require(
        path.suffix in (".parquet", ".csv"),
        f"--{name} {path}: expected a name that ends in .parquet or .csv",
    )


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """Choose how heads decide: ensemble weights, a window over frames, thresholds of labels or
    biases of classes. Writes decision_rules.json, which evaluate and predict apply, and
    postprocess.json, which report shows.

    Example: `raffect postprocess --run runs/expr`

    Or: `raffect postprocess --run runs/vit_b runs/vit_l --out runs/both`
    """

    run: tuple[Path, ...]
    """Run folders of one task; heads of all of them make one ensemble."""
    on: Literal["folds", "validation"] = "folds"
    """Choose on what heads of folds predict for their held-out fold of the training split, which
    runs with --select cv keep; or on the validation split, where scores are then optimistic."""
    heads: Literal["main", "all"] = "main"
    """Heads to choose from: those of each run's main setting, or of all settings of a sweep,
    which `evaluate` and `predict --head RUN` then find."""
    per_output: bool = False
    """Give each label or value a window of its own; classes share one."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each head the rules are for. Folds keep predictions of their last epoch
    alone."""
    bank: Path | None = None
    """Bank for --on validation; by default the one that each run was trained on."""
    labels: Path | None = None
    """Labels for --on validation; by default those that each run was trained on."""
    allow_incomplete: bool = False
    """With --on validation, take a bank that lacks planned frames. Every score is then marked."""
    out: Path | None = None
    """Folder for both files; by default that of the first run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute with --on validation."""

    def __post_init__(self) -> None:
        require(bool(self.run), "--run: expected one run folder or more")
        for name in ("bank", "labels"):
            require(
                getattr(self, name) is None or self.on == "validation",
                f"--{name}: is read with --on validation alone; leave it out",
            )
