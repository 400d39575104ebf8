"""What `chaos.py` disturbs: how each job is run, how far it is, and what must be true of it once it is finished."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

SHARD_ROWS = 64
EPOCHS = 12


class Extract:
    """A bank of drawn faces."""

    titles: ClassVar = {"worker": r"read_shard|commit_shard", "actor": "MapWorker"}
    signs, step = ("commits/*.json",), 0.02
    columns = (
        "rows lost",
        "rows doubled",
        "rows unknown",
        "shards whose bytes differ",
        "files that differ",
        "strangers among shards",
        "banks not verified",
    )

    def __init__(self, folder: Path, frames: int, seed: int) -> None:
        self.manifest = folder / "data" / "manifest.parquet"
        cli("synth", "--out", folder / "faces", "--frames", frames, "--seed", seed)
        edition = next(
            path
            for path in (folder / "faces").iterdir()
            if path.name != "cropped_aligned" and path.is_dir()
        )
        cli(
            "prepare",
            "--images",
            folder / "faces" / "cropped_aligned",
            "--annotations",
            edition,
            "--out",
            folder / "data",
        )
        table = pq.read_table(self.manifest, columns=["video", "frame"])
        self.wanted = keys_of(table)
        self.size = -(-len(table) // SHARD_ROWS)
        self.whole: dict[str, str] = {}

    def words(self, out: Path) -> list[str]:
        encoder = [
            "--encoder.model",
            "raffect-faces",
            "--encoder.weights",
            "embedded",
            "--gpus-per-actor",
            "0",
            "--num-actors",
            "2",
        ]
        return [
            "extract",
            "--manifest",
            str(self.manifest),
            "--bank",
            str(out),
            "--shard-rows",
            str(SHARD_ROWS),
            *encoder,
        ]

    def done(self, out: Path) -> dict[str, int]:
        """Finished shards and when their record was written."""
        return stamps(out / "commits")

    def reached(self, out: Path) -> float:
        """Share of the work that is done."""
        return len(self.done(out)) / self.size

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.whole = hashes(out, ("plan", "shards", "rejects", "commits"))

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished bank; read here by pyarrow alone, and by `verify`."""
        from raffect.bank.format import Bank
        from raffect.bank.verify import verify
        from raffect.datasets.manifest import read_manifest

        found = Counter()
        for path in sorted(
            [*(out / "shards").glob("*.parquet"), *(out / "rejects").glob("*.parquet")]
        ):
            with contextlib.suppress(
                pa.ArrowException, OSError
            ):  # a file that cannot be read has lost its rows
                found += keys_of(pq.read_table(path, columns=["video", "frame"]))
        here, extra = hashes(out, ("plan", "shards", "rejects", "commits")), found - self.wanted
        recorded = {
            name: sha
            for path in (out / "commits").glob("*.json")
            for name, (_, sha) in json.loads(path.read_text())["files"].items()
        }
        differ = {
            name
            for name in self.whole.keys() | here.keys()
            if self.whole.get(name) != here.get(name)
        } | {name for name, sha in recorded.items() if here.get(name) != sha}
        return Counter(
            {
                "rows lost": (self.wanted - found).total(),
                "rows doubled": sum(count for key, count in extra.items() if key in self.wanted),
                "rows unknown": sum(
                    count for key, count in extra.items() if key not in self.wanted
                ),
                "shards whose bytes differ": sum(name.startswith("shards/") for name in differ),
                "files that differ": sum(not name.startswith("shards/") for name in differ),
                "strangers among shards": sum(
                    not re.fullmatch(r"\d{6}\.parquet|\.tmp-.*", path.name)
                    for path in (out / "shards").iterdir()
                ),
                "banks not verified": int(
                    not verify(Bank(out), read_manifest(self.manifest)).complete
                ),
            }
        )


class Tune:
    """A sweep of small packs over a bank made first."""

    titles: ClassVar = {"actor": r"ImplicitFunc|run_trial"}
    signs, step = ("heads/*.json", "state/*", "ray/**/events*"), 0.1
    columns = (
        "members without a record",
        "members repeated",
        "heads that differ",
        "rows of heads.csv too few or too many",
    )
    settings = tuple(
        "tune paper --space loss.alpha=0.1:1:0.1 seed=0:3 --heads-per-trial 2 --epochs 6 --head.width 128 --device cpu --threads 1".split()
    )  # noqa: SIM905
    expected = 44

    def __init__(self, folder: Path, bank: Extract, address: str) -> None:
        self.bank, self.labels, self.size = folder / "bank", bank.manifest.parent, self.expected
        cli(*bank.words(self.bank), "--address", address)
        self.heads: dict[str, str] = {}

    def words(self, out: Path) -> list[str]:
        return [
            *self.settings,
            "--task",
            "expr",
            "--bank",
            str(self.bank),
            "--labels",
            str(self.labels),
            "--out",
            str(out),
        ]

    def done(self, out: Path) -> dict[str, int]:
        """Finished members and when their record was written."""
        return stamps(out / "heads")

    def reached(self, out: Path) -> float:
        """Share of the work that is done."""
        return len(self.done(out)) / self.size

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.heads = self._heads(out)
        if len(self.done(out)) != self.expected:
            raise SystemExit(
                f"expected {self.expected} members, the undisturbed run has {len(self.done(out))}"
            )

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished sweep."""
        here, names = self._heads(out), sorted(path.stem for path in (out / "heads").glob("*.json"))
        with (out / "heads.csv").open() as file:
            rows = Counter(row["id"] for row in csv.DictReader(file))
        return Counter(
            {
                "members without a record": self.expected - len(names),
                "heads that differ": sum(
                    self.heads.get(name) != here.get(name)
                    for name in self.heads.keys() | here.keys()
                ),
                "rows of heads.csv too few or too many": (rows - Counter(names)).total()
                + (Counter(names) - rows).total(),
            }
        )

    @staticmethod
    def _heads(out: Path) -> dict[str, str]:
        return {
            str(path.relative_to(out)): sha256(path)
            for path in (out / "weights").rglob("*.safetensors")
        }


class Train(Tune):
    """Two heads on two workers of Ray Train."""

    titles: ClassVar = {"worker": "TrainController", "actor": "RayTrainWorker"}
    settings = tuple(
        f"train paper --num-seeds 2 --num-workers 2 --epochs {EPOCHS} --head.width 128 --device cpu --threads 1".split()
    )
    expected = 2

    def reached(self, out: Path) -> float:
        """Share of the epochs that are trained."""
        try:
            return json.loads((out / "state" / "progress.json").read_text())[0] / EPOCHS
        except (OSError, ValueError):
            return super().reached(out)


def cli(*words: object) -> None:
    """A command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "raffect.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    if done.returncode:
        raise SystemExit(
            f"raffect {words[0]} failed with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def keys_of(table: pa.Table) -> Counter:
    return Counter(zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(out: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Every visible file of some folders."""
    return {
        str(path.relative_to(out)): sha256(path)
        for folder in folders
        for path in sorted((out / folder).glob("*"))
        if not path.name.startswith(".tmp-")
    }


def stamps(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found
