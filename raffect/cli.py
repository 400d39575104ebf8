"""The command line: one subcommand per stage.

A stage is imported only after its words were parsed, so that `--help` is instant.

Exit status: 0 done; 1 a check failed (`bank verify`, `doctor`); 2 bad input, with a message of one
line; 3 done, but too many frames were rejected; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Annotated, Any

import tyro

from raffect import config as c
from raffect.errors import RaffectError, as_one_line, did_you_mean
from raffect.flags import read_flags
from raffect.leaving import last_act
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
    "export": (c.ExportConfig, "heads -> safetensors, ONNX or pt2, with a model card"),
    "submit": (c.SubmitConfig, "predictions -> an entry of an ABAW challenge"),
    "report": (c.ReportConfig, "tables and figures of runs"),
    "bank": (
        BankCommand,
        "info | rejects | verify | join | export | import: look at a bank, prove it, share it",
    ),
    "models": (ModelsCommand, "list | path | pull | verify: encoders and their weights"),
}
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
        hint = did_you_mean(command, COMMANDS)
        raise RaffectError(f"no such command{hint}; `raffect --help` lists all")
    return read_flags(command, COMMANDS[command][0], words)


def _dispatch(command: str, words: list[str]) -> int:
    """Parse the words of a command, run it, and print its result."""
    config = parse(command, words)
    _, several = name_joined_bank(command, words)
    if several is not None:
        print(several.join().short_line(), flush=True)
    from raffect.commands import run

    return run(command, config)


if __name__ == "__main__":
    sys.exit(main())
