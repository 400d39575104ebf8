"""Settings of the commands that work with texts or few labels on a bank."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raffect.config.common import MayChange, require_local
from raffect.config.learn import TrainConfig
from raffect.errors import RaffectError, require
from raffect.recipe import HeadConfig, LossConfig, SamConfig

_SOURCES = ("table", "from_labels", "teacher")
"""Settings of `CaptionsConfig` of which each names what captions come from."""


@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig:
    """Recognise classes or labels by texts alone: every prompt set becomes a head of a run folder,
    which evaluate and report take like any other. Nothing is trained. With --head texts are
    compared with what heads that were trained on captions make of features.

    Example: `raffect zeroshot --task expr --bank bank --labels data --prompts all --out
    runs/zeroshot`

    Or: `raffect zeroshot --task au --bank bank --labels data --prompts facs mine.toml --out
    runs/zeroshot-au`

    Or: `raffect zeroshot --task expr --bank bank --labels data --head runs/emoclip --out
    runs/emoclip-expr`
    """

    bank: Path
    """Bank of `raffect extract`, of a CLIP model. Several views of it, as --bank A B --how average,
    are averaged."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote; a table with
    video, start and end instead of frame is judged clip by clip."""
    out: Path
    """Run folder, a new one."""
    prompts: tuple[str, ...] = ("all",)
    """Prompt sets: TOML files, names of those that ship with raffect, or all of these that have the
    classes (docs/language.md)."""
    head: tuple[Path, ...] = ()
    """Runs of `raffect train` or tune on captions, or folders of single heads: texts are compared
    with their vectors, and with plain features beside them. Of a sweep its main setting; heads that
    were trained without one class each (--leave-out) are judged on that class."""
    epoch: Literal["last", "best", "cv"] = "last"
    """Which snapshot of each of these heads: last epoch, best on validation, or the cross-validated
    epoch."""
    task: str = ""
    """Name of the label table, such as expr or au; needed where --labels holds several."""
    ensemble: tuple[Literal["vectors", "logits"], ...] = ("vectors",)
    """How prompts of a class go together: the mean of their vectors, divided by its norm as in
    open_clip, or the mean of their logits; both are compared if both are given."""
    other: Literal["never", "threshold"] = "never"
    """When a class without prompts (Other) is predicted: never, or below a threshold on the largest
    similarity, which is chosen on the training split."""
    against: Literal["rest", "mean"] = "rest"
    """What a label such as AU12 is compared with: texts of a face at rest, or the mean of the texts
    of all other labels."""
    select: Literal["cv", "none"] = "cv"
    """cv: the prompt set is chosen on held-out folds of the training split. none: needs no training
    split, and chooses nothing."""
    folds: int = 5
    """Folds of whole videos for --select cv."""
    weights: str = ""
    """File or tag of the encoder's weights; by default as the bank names them. They must be those
    that made the bank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compare features with texts."""
    allow_incomplete: bool = False
    """Judge on a bank that lacks planned frames. Every score is then marked as such."""

    def __post_init__(self) -> None:
        require(bool(self.prompts), "--prompts: expected all, or one prompt set or more")
        require(bool(self.ensemble), "--ensemble: expected vectors, logits or both")
        require(2 <= self.folds <= 100, f"--folds {self.folds}: expected 2 to 100")
        require(
            self.other == "never" or self.select == "cv",
            "--other threshold: is chosen on the training split; leave --select none out",
        )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Learn from few labels on frozen features: nearest prototypes, prototypes that start from
    texts, logistic regression; ridge regression for numbers. One frame a class of k groups (videos,
    subjects), many draws.

    Example: `raffect probe --task expr --bank bank --labels data --out probe --prompts facs`

    Or: `raffect probe --task va --bank bank --labels data --out probe-va --shots 2 4 8 16`
    """

    bank: Path
    """Bank of `raffect extract`. Several, as --bank A B, are joined: one behind another, or with
    --how average their mean."""
    labels: Path
    """labels/<task>.parquet of `raffect prepare`, or the folder that prepare wrote; or a table of
    clips."""
    out: Path
    """Folder for scores and the figure."""
    task: str = ""
    """Name of the label table, such as expr, au or va; needed where --labels holds several."""
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers k of training frames a class; each is of another video or other group."""
    num_seeds: int = 10
    """Draws of these frames."""
    all_frames: bool = True
    """Also learn from all training frames, or as many as --most-frames."""
    most_frames: int = 5000
    """Most training frames for --all-frames, drawn at random."""
    prompts: str = ""
    """Prompt set (see `raffect zeroshot`): adds zero-shot as k = 0, and prototypes that start from
    its texts."""
    text_shots: float = 4.0
    """As how many frames of its class a text counts in such a prototype."""
    weights: str = ""
    """File or tag of the encoder's weights, for --prompts; by default as the bank names them."""
    folds: int = 5
    """Most folds of whole groups on which regularisation is chosen."""
    allow_incomplete: bool = False
    """Work on a bank that lacks planned frames. Every score is then marked as such."""

    def __post_init__(self) -> None:
        require(
            bool(self.shots) and all(1 <= k <= 10_000 for k in self.shots),
            f"--shots {' '.join(map(str, self.shots))}: expected numbers from 1 to 10000",
        )
        require(1 <= self.num_seeds <= 1000, f"--num-seeds {self.num_seeds}: expected 1 to 1000")
        require(self.most_frames >= 2, f"--most-frames {self.most_frames}: expected 2 or more")
        require(0 < self.text_shots < 1e6, f"--text-shots {self.text_shots}: expected more than 0")
        require(2 <= self.folds <= 100, f"--folds {self.folds}: expected 2 to 100")


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """Make a label table whose targets are vectors, for heads such as EmoCLIP's and Exp-CLIP's:
    vectors of captions of your own, of captions made from labels such as action units, of
    descriptions of classes, or of another bank, a teacher. Training then needs no text.

    Example: `raffect captions --bank bank --from-labels data/labels/au.parquet --out
    captions.parquet`

    Or: `raffect captions --bank bank --table captions.csv --labels data/labels/expr.parquet --out
    mine.parquet`

    Or: `raffect captions --bank bank --teacher bank2 --labels data/labels/expr.parquet --out
    teacher.parquet`
    """

    bank: Path
    """Bank of `raffect extract`; its weights also encode the captions, so it is of a CLIP model."""
    out: Path
    """Label table to write, such as captions.parquet; its name is that of the task. Vectors lie
    beside it in captions.targets.parquet, with the texts of your captions: mind their licence
    before you hand that file on."""
    table: Path | None = None
    """Captions of your own: a CSV, TSV or Parquet file with columns video and caption; start and
    end, or frame (without them a caption is of the whole video); perhaps split and group."""
    from_labels: Path | None = None
    """Label table of `raffect prepare` to make captions from: of labels such as action units (a
    sentence that names the active ones), or of classes (the description of a row's class)."""
    teacher: Path | None = None
    """Bank whose vectors are the targets, of the same videos and frame numbers as those in
    --labels."""
    labels: Path | None = None
    """Label table that says which split each video belongs to; for --teacher also which frames or
    clips are the rows."""
    not_in: tuple[str, ...] = ()
    """Label tables whose validation and test videos are left out of training (_left and _right do
    not count), or others: all other tables of classes or labels in the folder of --from-labels or
    --labels; or none. By default others, but none for descriptions of classes, which are judged
    on their own table."""
    prompts: tuple[str, ...] = ("facs",)
    """Prompt sets with the phrases for --from-labels (see `raffect zeroshot`); of labels several
    sets may be given, and each caption is made with one of them."""
    templates: tuple[str, ...] = ()
    """Sentences with {} instead of those in the prompt sets, such as "a face with {}". Each
    caption of labels has one of them, drawn by --seed; a class has the mean of all."""
    clips: Literal["rows", "runs", "stretches"] = "rows"
    """What one caption of --from-labels is of: a row of the table; a run of frames with the same
    labels; or a stretch of --clip-frames frames, with what is active in at least half of those
    labelled."""
    clip_frames: int = 32
    """Frames of a stretch."""
    encoding: str = "utf-8"
    """Of a CSV or TSV file, such as utf-8 or gbk."""
    truncate: bool = False
    """Cut captions with more tokens than the model reads, as EmoCLIP does; otherwise they are an
    error."""
    validation_share: float = 0.2
    """Share of groups (videos) that is held out for validation where --table has no split for
    it."""
    seed: int = 0
    """Templates, phrases, the validation share and the order of targets follow from it."""
    weights: str = ""
    """File or tag of the encoder's weights; by default as the bank names them. They must be those
    that made the bank."""

    def __post_init__(self) -> None:
        # One source, and what goes with it
        sources = [name for name in _SOURCES if getattr(self, name) is not None]
        given = " and ".join(f"--{name.replace('_', '-')}" for name in sources) or "none"
        expected = "expected one of --table, --from-labels and --teacher"
        require(len(sources) == 1, f"captions of {given}: {expected}")
        require(
            self.teacher is None or self.labels is not None,
            "--teacher: needs --labels, the table of the frames or clips to learn from",
        )
        require(
            self.from_labels is None or self.labels is None,
            "--labels: goes with --table or --teacher; --from-labels has splits of its own",
        )
        require(
            self.clips == "rows" or self.from_labels is not None,
            f"--clips {self.clips}: makes clips of --from-labels alone",
        )

        # Values
        name = self.out.name
        require(
            bool(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}\.parquet", name)),
            f"--out {name}: expected a file such as captions.parquet, a short name of lower-case "
            "letters, digits, - and _",
        )
        require(bool(self.prompts), "--prompts: expected one prompt set or more")
        require(
            1 <= self.clip_frames <= 100_000,
            f"--clip-frames {self.clip_frames}: expected 1 to 100000",
        )
        require(
            0 < self.validation_share < 1,
            f"--validation-share {self.validation_share}: expected more than 0, less than 1",
        )
        require(0 <= self.seed < 1 << 32, f"--seed {self.seed}: expected 0 or more, less than 2^32")
        words = [word for word in self.not_in if word in ("others", "none")]
        require(
            not words or len(self.not_in) == 1,
            f"--not-in {' '.join(self.not_in)}: expected others, none, or label tables",
        )
        try:
            "a".encode(self.encoding)
        except (LookupError, UnicodeError) as error:
            what = f"--encoding {self.encoding[:40]}: no encoding of text"
            raise RaffectError(f"{what}; expected one such as utf-8 or gbk") from error
        require_local(self, "table")


@dataclass(frozen=True, kw_only=True)
class ImportEmoclipConfig:
    """Make a head of a checkpoint of EmoCLIP's released code, to be used by `raffect zeroshot
    --head`. Only tensors are read; code in the file is refused. A checkpoint does not say how it
    was trained, and neither does the head.

    Example: `raffect import-emoclip --file 4.pth --bank bank --out emoclip-4`
    """

    file: Path
    """Checkpoint of the released code: a state dict, with CLIP's own towers in it or without."""
    bank: Path
    """Bank of the encoder that it was trained with, ViT-B/32 in the released code; where the file
    has its image tower, it must be the bank's."""
    out: Path
    """Folder of the head, a new one."""
    window: int = 32
    """Features that the head is given of a clip, evenly spread; 32 in the released code."""

    def __post_init__(self) -> None:
        require_local(self, "file", "out")
        require(1 <= self.window <= 1023, f"--window {self.window}: expected 1 to 1023")


@dataclass(frozen=True, kw_only=True)
class LearnPromptsConfig(TrainConfig):
    """Learn vectors of prompt tokens for classes or labels, with both towers frozen (CoOp; the
    first stage of CLIPER): a run folder like that of train, compared with hand-written prompts.

    Example: `raffect learn-prompts --task expr --bank bank --labels data --out runs/prompts
    --num-seeds 3`

    Or: `raffect learn-prompts --task expr --bank bank --labels data --out runs/coop
    --head.descriptors 1 --head.tokens 16 --class-names names --select cv`
    """

    epochs: int = 16
    """Passes over the training split."""
    head: HeadConfig = field(
        default_factory=lambda: HeadConfig(kind="prompts", normalise="l2", dropout=0.0)
    )
    loss: LossConfig = field(default_factory=lambda: LossConfig(alpha=1.0))
    sam: SamConfig = field(default_factory=lambda: SamConfig(rho=0.0))
    start: str = ""
    """Prompt set (see `raffect zeroshot`) whose words the tokens start from; without one they are
    drawn. A class that it does not describe, or has fewer prompts than --head.descriptors for,
    starts from drawn tokens there."""
    class_names: str = ""
    """Prompt set whose prompts stand, fixed, behind the learnt tokens: names for CoOp, descriptions
    for DFER-CLIP's. A class that it does not describe has its own name there."""
    prompts: tuple[str, ...] = ("all",)
    """Hand-written prompt sets to compare with, as `raffect zeroshot` takes them: the one that is
    best on folds of the training split is judged on the same frames. With none nothing is
    compared."""
    weights: MayChange[str] = ""
    """File or tag of the encoder's weights; by default as the bank names them. They must be those
    that made the bank."""

    @classmethod
    def _learns_prompts(cls) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_workers == 1,
            f"--num-workers {self.num_workers}: prompts are learnt in one process; leave it out",
        )
        require(
            self.stream != "always",
            "--stream always: prompts are learnt on features in memory; leave it out",
        )
        require(
            self.folds != "official",
            "--folds official: is for `raffect train`; give a number of folds",
        )
        require(
            not self.leave_out and not self.loss.leave_out,
            "--leave-out: tokens of a class are learnt from its own frames; leave it out",
        )
        require(
            self.head.tokens > 0 or bool(self.start),
            "--head.tokens 0: as many as the prompts of --start have; name one, or expected 1 or "
            "more",
        )
