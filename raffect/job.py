"""What jobs/*.py share: a command of the command line, and then one line of JSON for programs.

The last line of a job says how it ended, in words for the exit status (see `raffect.cli`), and
where its results are, so that nobody has to read pages of a cluster's log. After training and
sweeps the report is drawn as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from raffect import cli
from raffect.config import ExtractConfig, LearnConfig, PredictConfig
from raffect.leaving import STATUS, last_act

_STATUS = {0: "done", 2: "failed", 3: "too many frames rejected", 130: "interrupted"}


def run_job(command: str, words: list[str]) -> int:
    """Run ``raffect command words`` and print its result as the last line.

    Returns:
        The exit status of the command.
    """

    def end(line: str) -> None:
        error = f"raffect {command}: {line}"
        result = {"job": command, "status": _STATUS[STATUS], "exit": STATUS, "error": error}
        # On a line of its own: Ray may have begun one about its death and not ended it
        print(f"\n{json.dumps(result)}", flush=True)

    # The command, with a copy of its errors
    captured = io.StringIO()
    with contextlib.redirect_stderr(_Tee(sys.stderr, captured)), last_act(end):
        try:
            code = cli.main([command, *words])
        except SystemExit as stop:  # --help, or a flag that does not exist
            code = int(stop.code or 0) if isinstance(stop.code, int | None) else 2
        except Exception:  # a fault of raffect, or --debug
            traceback.print_exc()
            code = 1

    # How it ended, and its results or its error
    result: dict[str, Any] = {"job": command, "status": _STATUS.get(code, "failed"), "exit": code}
    if code in (0, 3) and not {"--help", "-h", "--dry-run"} & set(words):
        try:
            result |= describe(cli.parse(command, [word for word in words if word != "--debug"]))
        except Exception as error:  # the work itself is done
            result["not_described"] = f"{type(error).__name__}: {error}"
    elif code:
        result["error"] = _last_line(captured.getvalue())
    print(json.dumps(result), flush=True)
    return code


def _last_line(text: str) -> str:
    """The last line that is not empty, without the box that tyro draws around errors."""
    lines = [line.strip("│╭╮╰╯─ ") for line in text.partition("For full helptext")[0].splitlines()]
    return next((line for line in reversed(lines) if line), "")


def describe(config: Any) -> dict[str, Any]:
    """Where a finished job's results are and what they are, read from the files it left.

    Args:
        config: Of extract, predict, train or tune.
    """
    if isinstance(config, PredictConfig):
        return _describe_predictions(config)
    if isinstance(config, ExtractConfig):
        return _describe_extract(config.bank)
    assert isinstance(config, LearnConfig)
    return _describe_run(config.out)


def _describe_predictions(config: PredictConfig) -> dict[str, Any]:
    from raffect.predictions.table import read_facts

    table = config.out if config.bank else config.out / "predictions.parquet"
    facts = read_facts(table)
    page = {} if config.bank else {"index": str(config.out.absolute() / "index.html")}
    caveat = "; ".join(facts.caveats)
    return {"predictions": str(table.absolute()), **page, "model": facts.model, "caveat": caveat}


def _describe_extract(path: Path) -> dict[str, Any]:
    from raffect.bank.format import Bank
    from raffect.bank.inspect import describe_bank

    facts = describe_bank(Bank(path))
    names = ("bank", "planned", "rows", "rejects", "shards", "bytes", "digest")
    return {name: value for name, value in facts.to_json().items() if name in names} | {
        "caveat": facts.caveat
    }


def _describe_run(folder: Path) -> dict[str, Any]:
    from raffect.reporting.report import report
    from raffect.runs.metrics_file import Metrics

    # The report
    result: dict[str, Any] = {"run": str(folder.absolute())}
    try:
        result["report"] = str(report((folder,), None).html)
    except Exception as error:  # the heads are complete without a report
        result["report_failed"] = str(error)

    # Scores
    file = folder / "metrics.json"
    metrics = Metrics.from_json(file.read_bytes(), file, "give the same command again")
    found = {"chance": metrics.chance.to_json(), "headline": metrics.headline.to_json()}
    return result | found | {"caveat": metrics.data.caveat}


class _Tee(io.TextIOBase):
    """Writes to two streams."""

    def __init__(self, *streams: Any) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()

    def fileno(self) -> int:
        return self._streams[0].fileno()

    def isatty(self) -> bool:
        return self._streams[0].isatty()
