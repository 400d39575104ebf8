"""The command line: one subcommand per stage.

A stage is imported only after its words were parsed, so that `--help` is instant.

Exit status: 0 done; 1 a check failed (`bank verify`, `doctor`); 2 bad input, with a message of one
line; 3 done, but too many frames were rejected; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Generator
from typing import Annotated, Any

import tyro

from raffect import config as c
from raffect.errors import RaffectError, as_one_line
from raffect.flags import read_flags
from raffect.leaving import last_act
from raffect.progress import stage
from raffect.several import name_joined_bank

_sub = tyro.conf.subcommand
BankCommand = (
    Annotated[c.BankInfoConfig, _sub("info")]
    | Annotated[c.BankRejectsConfig, _sub("rejects")]
    | Annotated[c.BankVerifyConfig, _sub("verify")]
    | Annotated[c.BankJoinConfig, _sub("join")]
    | Annotated[c.BankExportConfig, _sub("export")]
    | Annotated[c.BankImportConfig, _sub("import")]
)
ModelsCommand = (
    Annotated[c.ModelsListConfig, _sub("list")]
    | Annotated[c.ModelsPathConfig, _sub("path")]
    | Annotated[c.ModelsPullConfig, _sub("pull")]
    | Annotated[c.ModelsVerifyConfig, _sub("verify")]
)
COMMANDS: dict[str, tuple[Any, str]] = {
    "demo": (c.DemoConfig, "see all of it work in two minutes, without data, weights or GPU"),
    "doctor": (c.DoctorConfig, "check this machine; paste the output into an issue"),
    "synth": (c.SynthConfig, "draw a data set in the layout of a known one"),
    "prepare": (c.PrepareConfig, "a data set on disk -> manifest and labels"),
    "faces": (c.FacesConfig, "pictures and videos -> crops of faces, for extract"),
    "pack": (c.PackConfig, "loose frames -> Parquet, for network storage"),
    "extract": (
        c.ExtractConfig,
        "manifest -> bank of CLIP features, on this machine or a Ray cluster",
    ),
    "train": (c.TrainConfig, "bank + labels -> heads with CVaR and SAM, by a recipe"),
    "tune": (c.TuneConfig, "the same over a space of settings: the paper's Figure 2"),
    "postprocess": (c.PostprocessConfig, "window, thresholds and weights, chosen on folds"),
    "captions": (c.CaptionsConfig, "captions, or another bank -> targets that are vectors"),
    "zeroshot": (c.ZeroshotConfig, "bank + prompts -> heads made of texts, nothing is trained"),
    "import-emoclip": (c.ImportEmoclipConfig, "checkpoint of EmoCLIP's code -> head for zeroshot"),
    "learn-prompts": (c.LearnPromptsConfig, "bank + labels -> tokens of prompts, learnt"),
    "probe": (c.ProbeConfig, "bank + few labels -> prototypes and linear probes, against k"),
    "evaluate": (c.EvaluateConfig, "judge trained heads on a bank"),
    "robust": (c.RobustConfig, "judge heads on damaged copies of frames, against strength"),
    "compare": (c.CompareConfig, "encoders on your own data: scores, differences, costs"),
    "predict": (
        c.PredictConfig,
        "pictures, videos or a bank -> what heads answer: table, overlays, pages",
    ),
    "submit": (c.SubmitConfig, "predictions -> an entry of an ABAW challenge"),
    "report": (c.ReportConfig, "tables and figures of runs"),
    "bank": (
        BankCommand,
        "info | rejects | verify | join | export | import: look at a bank, prove it, share it",
    ),
    "models": (ModelsCommand, "list | path | pull | verify: encoders and their weights"),
}
_TORCH = "loading torch"
"""What takes the first seconds of commands that train or judge."""
DESCRIPTION = """\
raffect: frozen CLIP features and small robust heads for facial expressions and action units.

commands:
{commands}

`raffect COMMAND --help` explains one. `--debug` anywhere shows the traceback of an error. \
Start with `raffect demo`."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``raffect``; those of this process by default.

    Returns:
        The exit status.
    """
    # Words that are not of one command
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    name = " ".join(["raffect", *words[:1]])

    # The command; an error is one line, unless it is a fault of raffect
    try:
        with _flushed_output(), last_act(lambda line: _print_error(f"{name}: {line}")):
            return _run(words)
    except KeyboardInterrupt:
        kept = "what is finished is kept, the same command goes on from there"
        print(f"{name}: interrupted; {kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `raffect ... | head` has read all that it wants
        with contextlib.suppress(BrokenPipeError):
            _flush_output()
        return 0
    except Exception as error:
        with contextlib.suppress(OSError):
            _flush_output()
        line = _explain(error)
        if debug or line is None:
            raise
        _print_error(f"{name}: {line}")
        return 2


def _print_error(line: str) -> None:
    print(line, file=sys.stderr)


def _run(words: list[str]) -> int:
    """Run a command, or print what is not of one command."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        from raffect import __version__

        print(f"raffect {__version__}")
        return 0
    return _dispatch(words[0], words[1:])


@contextlib.contextmanager
def _flushed_output() -> Generator[None]:
    """Write out what a block has printed, and before its help ends the program."""
    try:
        yield
    except SystemExit:
        _flush_output()
        raise
    _flush_output()


def _flush_output() -> None:
    """Write out what was printed, while an error can still be explained.

    Raises:
        OSError: If the output takes no more, which it then is not given again; it names the output.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise OSError(error.errno, error.strerror, "the standard output") from error


def _explain(error: Exception) -> str | None:
    """One line for a user; None for an error that only a traceback explains."""
    if isinstance(error, RaffectError):
        return str(error)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        remedy = "check the path, its rights and the free space, or see --debug"
        return as_one_line(f"{name}{error.strerror or error}; {remedy}")
    from raffect.storage.paths import explain

    return explain(error)


def usage() -> str:
    """What `raffect --help` prints."""
    return DESCRIPTION.format(
        commands="\n".join(f"  {name:16}{text}" for name, (_, text) in COMMANDS.items())
    )


def parse(command: str, words: list[str]) -> Any:
    """The configuration that words after a command mean.

    Raises:
        RaffectError: If there is no such command or a value is out of range.
        SystemExit: After ``--help`` or a wrong flag, as argparse does.
    """
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RaffectError(f"no such command; {hint}`raffect --help` lists all")
    words, _ = name_joined_bank(command, words)
    return read_flags(command, COMMANDS[command][0], words)


def _dispatch(command: str, words: list[str]) -> int:
    """Parse the words of a command, run it, and print its result."""
    config = parse(command, words)
    _, several = name_joined_bank(command, words)
    if several is not None:
        print(several.join().short_line(), flush=True)
    runners = {
        # This machine
        "demo": _demo,
        "doctor": _doctor,
        # Data sets and banks
        "synth": _synth,
        "prepare": _prepare,
        "faces": _faces,
        "pack": _pack,
        "extract": _extract,
        "bank": _bank,
        "models": _models,
        # Heads and their results
        "train": _train,
        "tune": _tune,
        "postprocess": _postprocess,
        "captions": _captions,
        "zeroshot": _zeroshot,
        "import-emoclip": _import_emoclip,
        "learn-prompts": _learn_prompts,
        "probe": _probe,
        "evaluate": _evaluate,
        "robust": _robust,
        "compare": _compare,
        "predict": _predict,
        "submit": _submit,
        "report": _report,
    }
    return runners[command](config)


def _demo(config: c.DemoConfig) -> int:
    with stage(_TORCH):
        from raffect.pipelines.demo import demo

    demo(config, lambda line: print(line, flush=True))
    return 0


def _prepare(config: c.PrepareConfig) -> int:
    from raffect.datasets.prepare import prepare

    return _print(prepare(config).lines())


def _faces(config: c.FacesConfig) -> int:
    from raffect.extraction.find_faces import find_faces

    return _print(find_faces(config).lines())


def _pack(config: c.PackConfig) -> int:
    from raffect.extraction.pack import pack

    return _print(pack(config).lines())


def _train(config: c.TrainConfig) -> int:
    with stage(_TORCH):
        from raffect.training.official_folds import train_on_official_folds
        from raffect.training.train import train

    action = train_on_official_folds if config.folds == "official" else train
    return _print(action(config).lines())


def _tune(config: c.TuneConfig) -> int:
    with stage(_TORCH):
        from raffect.training.tune import tune

    return _print(tune(config).lines())


def _postprocess(config: c.PostprocessConfig) -> int:
    with stage(_TORCH):
        from raffect.evaluation.postprocess import postprocess

    return _print(postprocess(config).lines())


def _captions(config: c.CaptionsConfig) -> int:
    with stage(_TORCH):
        from raffect.language.captions import captions

    return _print(captions(config).lines())


def _zeroshot(config: c.ZeroshotConfig) -> int:
    with stage(_TORCH):
        from raffect.language.zeroshot import zeroshot

    return _print(zeroshot(config).lines())


def _import_emoclip(config: c.ImportEmoclipConfig) -> int:
    with stage(_TORCH):
        from raffect.language.import_emoclip import import_emoclip

    return _print(import_emoclip(config).lines())


def _learn_prompts(config: c.LearnPromptsConfig) -> int:
    with stage(_TORCH):
        from raffect.language.learn_prompts import learn_prompts

    return _print(learn_prompts(config).lines())


def _probe(config: c.ProbeConfig) -> int:
    with stage(_TORCH):
        from raffect.pipelines.probe import probe

    return _print(probe(config).lines())


def _evaluate(config: c.EvaluateConfig) -> int:
    with stage(_TORCH):
        from raffect.evaluation.evaluate import evaluate

    return _print(evaluate(config).lines())


def _robust(config: c.RobustConfig) -> int:
    with stage(_TORCH):
        from raffect.pipelines.robust import robust

    return _print(robust(config).lines())


def _compare(config: c.CompareConfig) -> int:
    with stage(_TORCH):
        from raffect.pipelines.compare import compare

    return _print(compare(config).lines())


def _predict(config: c.PredictConfig) -> int:
    with stage(_TORCH):
        from raffect.pipelines.predict_files import predict

    return _print(predict(config).lines())


def _submit(config: c.SubmitConfig) -> int:
    from raffect.predictions.challenge import submit

    return _print(submit(config).lines())


def _report(config: c.ReportConfig) -> int:
    with stage("loading matplotlib"):
        from raffect.reporting.report import report

    if config.predictions and config.labels:  # both are there with --gallery alone
        from raffect.reporting.gallery import write_gallery

        out = config.out or config.runs[0]
        arguments = (config.predictions, config.labels, config.images, config.split)
        _print(write_gallery(*arguments, out.absolute()).lines())
    options = {"judged": config.judged, "has_gallery": config.gallery}
    return _print(report(config.runs, config.out, **options).lines())


def _extract(config: c.ExtractConfig) -> int:
    if config.dry_run:
        from raffect.extraction.estimate import estimate

        return _print(estimate(config).lines())
    from raffect.extraction.extract import extract

    summary = extract(config)
    _print(summary.lines())

    # Too many rejects, or the next command
    if summary.reject_share > config.max_reject_share:
        print(
            f"raffect extract: {summary.reject_share:.2%} of the frames could not be read, "
            f"more than --max-reject-share {config.max_reject_share:.2%}; "
            f"`raffect bank rejects --bank {shlex.quote(str(config.bank))}` lists them",
            file=sys.stderr,
        )
        return 3
    if left := summary.shards_planned - summary.shards_done:
        print(f"next: the same command encodes the other {left} shards")
    else:
        print(f"next: raffect bank verify --bank {shlex.quote(str(config.bank))}")
    return 0


def _bank(config: Any) -> int:
    status = 0
    match config:
        case c.BankInfoConfig():
            from raffect.bank.commands import info

            facts = info(config)
            lines = [json.dumps(facts.to_json(), indent=1)] if config.json else facts.lines()
        case c.BankRejectsConfig():
            from raffect.bank.commands import rejects

            lines = rejects(config).lines()
        case c.BankVerifyConfig():
            from raffect.bank.commands import check

            report = check(config)
            lines, status = report.lines(), 0 if report.ok else 1
        case c.BankJoinConfig():
            from raffect.bank.join import join_banks

            lines = join_banks(config.banks, config.bank, config.how).lines()
        case c.BankExportConfig():
            from raffect.bank.export import export

            lines = export(config).lines()
        case c.BankImportConfig() if config.npy is not None:
            from raffect.bank.import_npy import import_npy

            lines = import_npy(config).lines()
        case _:
            from raffect.bank.import_released import import_released

            lines = import_released(config).lines()
    _print(lines)
    return status


def _models(config: Any) -> int:
    from raffect.encoders import catalogue as stage

    actions = {
        c.ModelsListConfig: stage.list_models,
        c.ModelsPathConfig: stage.path,
        c.ModelsPullConfig: stage.pull,
        c.ModelsVerifyConfig: stage.verify,
    }
    return _print(actions[type(config)](config).lines())


def _doctor(config: c.DoctorConfig) -> int:
    from raffect.pipelines.doctor import diagnose

    diagnosis = diagnose(config, lambda check: print(check.line(), flush=True))
    print(diagnosis.conclusion)
    return 0 if diagnosis.ok else 1


def _synth(config: c.SynthConfig) -> int:
    from raffect.datasets.affwild2.tasks import EXPRESSIONS
    from raffect.datasets.synthetic.course import contact_sheet
    from raffect.datasets.synthetic.tree import AFFWILD2, EDITION, SIZES, write_synthetic
    from raffect.progress import Progress

    # Faces and annotations
    frames = config.frames or SIZES[config.size]
    with Progress("synth", frames) as progress:
        counts = write_synthetic(
            config.out, frames, config.seed, progress=progress.advance, layout=config.layout
        )

    # A contact sheet, and a video
    if config.sheet:
        from PIL import Image

        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet(config.seed)).save(config.sheet, format="PNG")
        print(f"contact sheet: {config.sheet}, a row a subject, columns {', '.join(EXPRESSIONS)}")
    if config.video:
        from raffect.datasets.synthetic.video import write_video

        frames = len(write_video(config.video, seed=config.seed).face)
        print(f"video: {config.video}, {frames} frames; boxes: {config.video}.boxes.csv")

    # What was drawn, and the next command
    print(
        f"{counts['videos']} videos, {counts['lines']:,} lines, {counts['images']:,} images "
        f"in {config.out} (drawn faces)"
    )
    if config.layout != AFFWILD2:
        root = shlex.quote(str(config.out))
        print(f"next: raffect prepare --dataset auto --root {root} --out DATA")
        return 0
    images = shlex.quote(str(config.out / "cropped_aligned"))
    annotations = shlex.quote(str(config.out / EDITION))
    print(f"next: raffect prepare --images {images} --annotations {annotations} --out DATA")
    return 0


def _print(lines: list[str]) -> int:
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
