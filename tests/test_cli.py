"""The command line as a user meets it: statuses, one-line errors, help, a frozen set of flags.

Flags and files that documents mention exist.
"""

import ast
import dataclasses
import os
import re
import runpy
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import tyro

import raffect
from raffect import commands
from raffect.bank.format import Bank
from raffect.cli import COMMANDS, main, parse, usage
from raffect.config import BankVerifyConfig, EncoderConfig, ExtractConfig, SynthConfig
from tests.helpers.banks import IDENTITY
from tests.helpers.commands import error_line
from tests.helpers.flags import FLAGS

ROOT = Path(__file__).parents[1]
POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_set_of_flags_is_frozen(command):
    assert flags_of(command) == FLAGS[command]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("bank", "models")])
def test_help_explains_every_flag(command, capsys):
    with pytest.raises(SystemExit):
        parse(command, ["--help"])
    text = capsys.readouterr().out
    for flag in FLAGS[command]:
        assert re.search(rf"{re.escape(flag)}\b", text), flag


def test_help_of_a_setting_is_one_paragraph_however_its_source_is_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse("tune", ["--help"])
    text = capsys.readouterr().out
    assert "the epoch (and, in a sweep, the settings) are cross-validated on folds" in text
    assert "near 0 only the worst frame counts." in text


def test_flags_become_configurations():
    words = "--manifest m --bank b --encoder.weights random:3 --limit 7"
    config = parse("extract", words.split())
    assert isinstance(config, ExtractConfig)
    assert (config.encoder.model, config.encoder.weights) == ("ViT-L-14-quickgelu", "random:3")
    assert (config.limit, config.max_reject_share) == (7, 0.01)
    repair = BankVerifyConfig(bank=Path("b"), repair=True)
    assert parse("bank", ["verify", "--bank", "b", "--repair"]) == repair
    tiny = SynthConfig(out=Path("x"), size="tiny")
    assert parse("synth", ["--out", "x", "--size", "tiny"]) == tiny


@pytest.mark.parametrize(
    ("command", "once", "several"),
    [
        ("predict", "a.mp4 --head x y z --out o", "a.mp4 --head x --head=y --out o --head z"),
        ("bank", "join --banks a b c --bank j", "join --banks a --bank j --banks b c"),
        ("report", "--runs a b --out o", "--runs=a --runs=b --out o"),
    ],
)
def test_a_flag_that_comes_several_times_has_the_values_of_all(command, once, several):
    assert parse(command, several.split()) == parse(command, once.split())


EXTRACT = "extract --manifest m --bank b"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("extrct", "did you mean extract"),
        (f"{EXTRACT} --limit 0", "--limit 0: expected"),
        (f"{EXTRACT} --max-reject-share 2", "--max-reject-share 2.0"),
        (f"{EXTRACT} --gpus-per-actor 1.5", "--gpus-per-actor 1.5"),
        (EXTRACT, "no such manifest; make it with `raffect prepare`"),
        ("prepare --images gone --annotations gone --out x", "--images gone: no such folder"),
        ("bank info --bank gone", "no bank there"),
        ("bank verify --bank gone", "no bank there"),
        ("bank rejects --bank gone", "no bank there"),
        ("synth --out x --frames 3", "--frames 3: expected 200 or more"),
        ("models path --encoder.model nope", "no such model"),
    ],
)
def test_bad_input_is_one_line_and_status_two(line, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    error = error_line(capsys.readouterr().err)
    assert match in error
    assert error.startswith(f"raffect {line.split()[0]}: ")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    with pytest.raises(raffect.RaffectError):
        main(["bank", "info", "--bank", "gone", "--debug"])


def test_system_errors_name_the_path(capsys, monkeypatch):
    def refuse(config):
        raise PermissionError(13, "Permission denied", "/root/x")

    monkeypatch.setitem(commands._OTHERS, "models", refuse)
    assert main(["models", "list"]) == 2
    assert "/root/x: Permission denied" in capsys.readouterr().err


def test_interrupted_work_says_that_it_goes_on(capsys, monkeypatch):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands._OTHERS, "models", stop)
    assert main(["models", "list"]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_usage_lists_every_command_and_no_words_are_an_error(capsys):
    assert all(f"  {name}" in usage() for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert raffect.__version__ in capsys.readouterr().out


def test_paths_are_printed_as_they_were_typed_and_lead_to_the_same_place(
    capsys, monkeypatch, tmp_path
):
    """A relative path stays one; others, and what only begins alike, are left alone."""
    monkeypatch.chdir(tmp_path)
    typed = {"manifest": Path("my data/m.parquet"), "bank": Path("../bank")}
    here = Path.cwd()
    lines = [
        f"wrote {here}/../bank: 3 shards",
        f"next: raffect bank verify --bank {here}/../bank --manifest '{here}/my data/m.parquet'",
        f"{here}/../bank2, /other{here}/../bank and {here}/elsewhere",
    ]
    commands._print(lines, ExtractConfig(**typed))
    assert capsys.readouterr().out.splitlines() == [
        "wrote ../bank: 3 shards",
        "next: raffect bank verify --bank ../bank --manifest 'my data/m.parquet'",
        lines[2],
    ]
    commands._print([f"wrote {here}/-x"], ExtractConfig(manifest=Path("m"), bank=Path("-x")))
    assert capsys.readouterr().out == f"wrote {here}/-x\n", "-x would be a flag"


def run(*words, **options):
    """`python -m raffect` in a process of its own."""
    command = [sys.executable, "-m", "raffect", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["bank", "verify", "--help"], ["models", "list"]])
def test_an_output_that_takes_no_more_is_one_line(words, unbuffered):
    with open("/dev/full", "w") as full:
        done = run(*words, stdout=full, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_reader_that_has_read_enough_is_no_error():
    program = f"{sys.executable} -m raffect models list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_raffect_is_raffect():
    done = run("-V", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, f"raffect {raffect.__version__}\n")


@pytest.mark.parametrize("words", ["train", "bank", "bank verify", "models pull"])
def test_help_of_a_command_is_the_commands_own_help(words, capsys):
    shown = []
    for line in (f"help {words}", f"{words} --help"):
        with pytest.raises(SystemExit):
            main(line.split())
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert f"usage: raffect {words}" in shown[0]
    assert main(["help", "trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err


def commands_with_flags():
    """Every command that takes flags, with its configuration."""
    for command, (kind, _) in COMMANDS.items():
        if isinstance(kind, type):
            yield command, kind
            continue
        for part in typing.get_args(kind):
            _, mark = typing.get_args(part)
            yield f"{command} {mark.name}", typing.get_args(part)[0]


@pytest.mark.parametrize(("words", "kind"), commands_with_flags())
def test_the_help_of_every_command_has_examples_that_are_right(words, kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command, *rest = words.split()
    with pytest.raises(SystemExit):
        parse(command, [*rest, "--help"])
    examples = re.findall(r"(?:Example|Or): `(raffect [^`\n]+)`", capsys.readouterr().out)
    assert examples
    for example in examples:
        _, *found = shlex.split(example)
        assert " ".join(found).startswith(words)
        assert isinstance(parse(found[0], found[1:]), kind)


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize(
    ("line", "recipe"),
    [
        ("--task expr paper --bank b --labels l --out o", "paper"),
        ("--bank b --labels l --out o erm", "erm"),
        ("--no-compile released --bank b --labels l --out o", "released"),
        ("--sam.independent-dropout weighted", "weighted"),
        ("--bank b --labels l --out o mine.toml", "mine.toml"),
        ("--bank=b paper", "paper"),
    ],
)
def test_a_recipe_behind_flags_is_told_that_it_comes_first(command, line, recipe, capsys):
    assert main([command, *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raffect {command}: {recipe}: a recipe comes first, before all flags")
    assert f"`raffect {command} {recipe} ...`" in error


def test_a_folder_may_be_called_as_a_recipe_is():
    config = parse(
        "train", ["paper", "--bank", "paper", "--labels", "erm", "--out", "released.toml"]
    )
    assert (config.bank, config.labels, config.out) == (
        Path("paper"),
        Path("erm"),
        Path("released.toml"),
    )


def test_the_embedded_encoder_implies_its_own_weights_and_no_other():
    embedded = parse("models", ["path", "--encoder.model", "raffect-faces"]).encoder
    assert embedded == EncoderConfig(model="raffect-faces", weights="embedded")
    random = parse(
        "models", ["path", "--encoder.model", "raffect-faces", "--encoder.weights", "random:1"]
    )
    assert random.encoder.weights == "random:1"
    assert EncoderConfig(model="ViT-B-32").weights == "openai"


def values_of_shown_commands(file):
    """What f-strings of a module put behind the flags of raffect's commands."""
    for node in ast.walk(ast.parse(file.read_text())):
        text = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.FormattedValue):
                if re.search(r"raffect [a-z]+ [^`:;]*--[a-z.-]+ $", text):
                    yield node.lineno, ast.unparse(part.value)
                text += "VALUE"
            else:
                text += part.value


def test_every_command_that_a_message_shows_quotes_its_paths():
    count = 0
    for file in sorted((ROOT / "raffect").rglob("*.py")):
        for line, value in values_of_shown_commands(file):
            quoted = value.startswith("shlex.") or f"{value} = shlex." in file.read_text()
            assert quoted or value.isupper(), f"{file}:{line}: {value}"
            count += 1
    assert count >= 6


def test_hints_of_a_folder_with_spaces_can_be_given_to_a_shell(tmp_path, capsys):
    assert main(["bank", "info", "--bank", str(tmp_path / "my bank")]) == 2
    (hint,) = re.findall(r"`raffect (.*)`", capsys.readouterr().err)
    command, *words = shlex.split(hint)
    assert parse(command, words).bank == tmp_path / "my bank"


def test_public_names_are_there():
    for name in raffect.__all__:
        assert getattr(raffect, name) is not None
    with pytest.raises(AttributeError):
        raffect.nothing


LEARN_FROM_NOTHING = "paper --task expr --bank gone --labels l --out o"


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("extract", "--manifest m --bank b", "m: no such manifest; make it with `raffect prepare`"),
        ("train", LEARN_FROM_NOTHING, "gone: no bank there"),
        ("tune", LEARN_FROM_NOTHING, "gone: no bank there"),
        ("predict", "a.mp4 --head gone --out o", "gone: no such run folder or head"),
    ],
)
def test_the_job_scripts_take_the_words_of_their_commands(
    command, words, message, monkeypatch, capsys
):
    """In this process: tests of whole jobs start them as Ray does."""
    script = ROOT / "jobs" / f"{command}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words.split()])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    monkeypatch.chdir(script.parent)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 2
    *stages, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"raffect {command}: {message}")
    assert all(line.startswith("loading torch") for line in stages)  # on a slow machine


def test_inputs_that_are_not_there_are_refused_before_torch_is_loaded(tmp_path):
    Bank(tmp_path / "bank").claim(IDENTITY)
    bank = f"--bank {tmp_path / 'bank'}"
    cases = {
        "train paper --bank gone --labels l --out o": "gone: no bank there; make one with ",
        f"train paper {bank} --labels gone --out o": "gone: no such label table; make it with ",
        f"evaluate {bank} --labels . --run . gone": "gone: no such run folder; make it with ",
        "predict a.mp4 --head gone --out o": "gone: no such run folder or head; make it with ",
        "robust --run gone --labels . --manifest m --out o": "gone: no such run folder; make it ",
    }
    code = (
        "import sys\nfrom raffect.cli import main\n"
        f"print([main(words.split()) for words in {list(cases)!r}], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == f"{[2] * len(cases)} False", done.stderr
    for line, message in zip(done.stderr.splitlines(), cases.values(), strict=True):
        assert f": {message}" in line


def test_documents_mention_only_flags_and_files_that_exist():
    known = {flag for command in COMMANDS for flag in flags_of(command)}
    known |= {"--debug", "--version", "--help"}
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = file.read_text()
        for line in re.findall(rf"raffect (?:{'|'.join(COMMANDS)})[^`\n]*", text):
            for flag in re.findall(r"(?<!\S)--[a-z][a-z.-]+", line):
                assert flag in known, f"{file.name} mentions {flag}"
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


def flags_of(command: str) -> set[str]:
    flags, pending = set(), [(COMMANDS[command][0], "")]
    while pending:
        kind, prefix = pending.pop()
        if not isinstance(kind, type):  # a union of subcommands
            pending += [(part, prefix) for part in typing.get_args(kind)]
        elif dataclasses.is_dataclass(kind):
            marked = typing.get_type_hints(kind, include_extras=True)
            for name, hint in typing.get_type_hints(kind).items():
                if POSITIONAL in getattr(marked[name], "__metadata__", ()):
                    continue
                if dataclasses.is_dataclass(hint):
                    pending.append((hint, f"{prefix}{name}."))
                else:
                    flags.add(f"--{prefix}{name}".replace("_", "-"))
    return flags
