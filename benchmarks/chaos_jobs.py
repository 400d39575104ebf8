"""The jobs that `chaos.py` disturbs: how each is run, how far it is, how its result is checked."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from tools import flags

SHARD_ROWS = 64
EPOCHS = 12
STABLE = ("plan", "shards", "rejects", "commits")
"""Folders of a bank whose bytes must not depend on what happened on the way."""


class Job:
    """What the jobs share."""

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished folder, by name."""
        raise NotImplementedError

    def close(self, out: Path, broken: Counter) -> str:
        """Delete a finished folder, add what is wrong with it to ``broken``; a line about it."""
        found = self.check(out)
        broken += found
        shutil.rmtree(out)
        faults = ", ".join(f"{name} {count}" for name, count in found.items() if count)
        return f"finished {out.name}: {faults or 'as undisturbed'}"


class Extract(Job):
    """A bank of drawn faces."""

    titles: ClassVar = {"worker": r"read_shard|commit_shard", "actor": "MapWorker"}
    signs, step, writers = ("commits/*.json",), 0.02, 1
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
        # Drawn faces
        faces, data = folder / "faces", folder / "data"
        cli("synth", *flags(out=faces, frames=frames, seed=seed))
        images = faces / "cropped_aligned"
        edition = next(path for path in faces.iterdir() if path != images and path.is_dir())
        cli("prepare", *flags(images=images, annotations=edition, out=data))

        # What a finished bank must hold
        self.manifest = data / "manifest.parquet"
        table = pq.read_table(self.manifest, columns=["video", "frame"])
        self.wanted = keys_of(table)
        self.size = -(-len(table) // SHARD_ROWS)
        self.whole: dict[str, str] = {}

    def words(self, out: Path) -> list[str]:
        """The command."""
        data = flags(manifest=self.manifest, bank=out, shard_rows=SHARD_ROWS)
        encoder = ["--encoder.model", "raffect-faces", "--encoder.weights", "embedded"]
        return ["extract", *data, *encoder, *flags(gpus_per_actor=0, num_actors=2)]

    def done(self, out: Path) -> dict[str, int]:
        """Finished shards and when their record was written."""
        return times_of(out / "commits")

    def reached(self, out: Path) -> float:
        """Share of the work that is done."""
        return len(self.done(out)) / self.size

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.whole = hashes(out, STABLE)

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished bank; read here by pyarrow alone, and by `verify`."""
        from raffect.bank.format import Bank
        from raffect.bank.verify import verify
        from raffect.datasets.manifest import read_manifest

        found = read_keys(out)
        extra = found - self.wanted
        differ = self._different_files(out)
        shards = [path.name for path in (out / "shards").iterdir()]
        verified = verify(Bank(out), read_manifest(self.manifest)).complete
        counts = {
            "rows lost": (self.wanted - found).total(),
            "rows doubled": sum(count for key, count in extra.items() if key in self.wanted),
            "rows unknown": sum(count for key, count in extra.items() if key not in self.wanted),
            "shards whose bytes differ": sum(name.startswith("shards/") for name in differ),
            "files that differ": sum(not name.startswith("shards/") for name in differ),
            "strangers among shards": sum(not is_shard(name) for name in shards),
            "banks not verified": int(not verified),
        }
        return Counter(counts)

    def _different_files(self, out: Path) -> set[str]:
        """Files that are not those of the undisturbed run, or not what a commit record names."""
        here, names = hashes(out, STABLE), set()
        for name in self.whole.keys() | here.keys():
            if self.whole.get(name) != here.get(name):
                names.add(name)
        for path in (out / "commits").glob("*.json"):
            for name, (_, sha) in json.loads(path.read_text())["files"].items():
                if here.get(name) != sha:
                    names.add(name)
        return names


class Writers(Extract):
    """Two runs at once that write one bank."""

    writers = 2

    def words(self, out: Path) -> list[str]:
        """The command."""
        return [*super().words(out), "--join"]


class WritersInStore(Writers):
    """Two runs at once that write one bank in an object store."""

    bucket = "s3://faces"

    def words(self, out: Path) -> list[str]:
        """The command."""
        words = super().words(out)
        words[words.index("--bank") + 1] = f"{self.bucket}/{out.name}"
        return words

    def done(self, out: Path) -> dict[str, int]:
        """Finished shards; their times are not asked for."""
        from raffect.storage.paths import list_sizes, locate

        return dict.fromkeys(list_sizes(locate(f"{self.bucket}/{out.name}/commits")), 0)

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self._download(out)
        super().learn(out)

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished bank."""
        self._download(out)
        return super().check(out)

    def _download(self, out: Path) -> None:
        from raffect.storage.paths import locate

        bank = locate(f"{self.bucket}/{out.name}")
        bank.fs.get(bank.path, str(out), recursive=True)
        for folder in ("shards", "rejects", "commits", "plan"):  # a store has no empty ones
            (out / folder).mkdir(exist_ok=True)


class Tune(Job):
    """A sweep of small batches of heads over a bank made first."""

    titles: ClassVar = {"actor": r"ImplicitFunc|run_trial"}
    writers = 1
    signs, step = ("heads/*.json", "state/*", "ray/**/events*"), 0.1
    columns = (
        "heads without a record",
        "heads repeated",
        "heads that differ",
        "rows of heads.csv too few or too many",
    )
    settings: ClassVar = [
        *("tune", "paper", "--space", "loss.alpha=0.1:1:0.1", "seed=0:3"),
        *flags(heads_per_trial=2, epochs=6, device="cpu", threads=1),
        *("--head.width", "128"),
    ]
    expected = 44
    """10 alphas and plain ERM, with 4 seeds each."""

    def __init__(self, folder: Path, bank: Extract, address: str | None = None) -> None:
        self.bank, self.labels, self.size = folder / "bank", bank.manifest.parent, self.expected
        cli(*bank.words(self.bank), *(["--address", address] if address else []))
        self.heads: dict[str, str] = {}

    def words(self, out: Path) -> list[str]:
        """The command."""
        return [*self.settings, *flags(task="expr", bank=self.bank, labels=self.labels, out=out)]

    def done(self, out: Path) -> dict[str, int]:
        """Finished heads and when their record was written."""
        return times_of(out / "heads")

    def reached(self, out: Path) -> float:
        """Share of the work that is done."""
        return len(self.done(out)) / self.size

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.heads, found = self._heads(out), len(self.done(out))
        if found != self.expected:
            raise SystemExit(f"expected {self.expected} heads, the undisturbed run has {found}")

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished sweep."""
        # Records, and rows of the table
        names = Counter(path.stem for path in (out / "heads").glob("*.json"))
        with (out / "heads.csv").open() as file:
            rows = Counter(row["id"] for row in csv.DictReader(file))
        # Weights
        here = self._heads(out)
        files = self.heads.keys() | here.keys()
        counts = {
            "heads without a record": self.expected - len(names),
            "heads that differ": sum(self.heads.get(name) != here.get(name) for name in files),
            "rows of heads.csv too few or too many": ((rows - names) + (names - rows)).total(),
        }
        return Counter(counts)

    def _heads(self, out: Path) -> dict[str, str]:
        files = (out / "weights").rglob("*.safetensors")
        return {str(path.relative_to(out)): sha256(path) for path in files}


class Sweep(Tune):
    """A smaller sweep, for runs that each start Ray."""

    settings: ClassVar = [
        *("tune", "paper", "--space", "loss.alpha=0.5:1:0.5", "seed=0:3"),
        *flags(heads_per_trial=2, epochs=6, device="cpu", threads=1),
        *("--head.width", "128"),
    ]
    expected = 12
    """2 alphas and plain ERM, with 4 seeds each."""


class Asha(Sweep):
    """The same under a scheduler, which may stop other heads in another run."""

    settings: ClassVar = [
        *("tune", "paper", "--space", "loss.alpha=0.5:1:0.5", "seed=0:3"),
        *flags(scheduler="asha", heads_per_trial=1, epochs=6, device="cpu", threads=1),
        *("--head.width", "128"),
    ]
    columns = (*Tune.columns, "heads neither done nor stopped")

    def done(self, out: Path) -> dict[str, int]:
        """Finished heads and when their record was written."""
        ended = {name for name, status in self._status(out).items() if status == "done"}
        return {name: time for name, time in super().done(out).items() if name in ended}

    def learn(self, out: Path) -> None:
        """Take a run as the undisturbed one."""
        self.heads = self._heads(out)

    def check(self, out: Path) -> Counter:
        """What is wrong with a finished sweep; heads that both runs finished must be the same."""
        found, here = super().check(out), self._heads(out)
        both = self.heads.keys() & here.keys()
        found["heads that differ"] = sum(self.heads[name] != here[name] for name in both)
        ended = [status in ("done", "stopped") for status in self._status(out).values()]
        return found + Counter({"heads neither done nor stopped": ended.count(False)})

    def _heads(self, out: Path) -> dict[str, str]:
        done = {name.removesuffix(".json") for name in self.done(out)}
        return {
            name: sha for name, sha in super()._heads(out).items() if Path(name).parts[1] in done
        }

    @staticmethod
    def _status(out: Path) -> dict[str, str]:
        files = (out / "heads").glob("*.json")
        return {file.name: json.loads(file.read_text())["status"] for file in files}


class Train(Tune):
    """Two heads on two workers of Ray Train."""

    titles: ClassVar = {"worker": "TrainController", "actor": "RayTrainWorker"}
    settings: ClassVar = [
        *("train", "paper", "--head.width", "128"),
        *flags(num_seeds=2, num_workers=2, epochs=EPOCHS, device="cpu", threads=1),
    ]
    expected = 2

    def reached(self, out: Path) -> float:
        """Share of the epochs that are trained."""
        try:
            return json.loads((out / "state" / "progress.json").read_text())["epoch"] / EPOCHS
        except (OSError, ValueError):
            return super().reached(out)


def cli(*words: object) -> None:
    """A command that must succeed."""
    command = [sys.executable, "-m", "raffect.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        failed = f"raffect {words[0]} failed with status {done.returncode}"
        raise SystemExit(f"{failed}:\n{done.stdout}{done.stderr}")


def keys_of(table: pa.Table) -> Counter:
    """How often each (video, frame) stands in a table."""
    return Counter(zip(table["video"].to_pylist(), table["frame"].to_pylist(), strict=True))


def read_keys(bank: Path) -> Counter:
    """Keys of all shards and rejects; a file that cannot be read has lost its rows."""
    found = Counter()
    for folder in ("shards", "rejects"):
        for path in sorted((bank / folder).glob("*.parquet")):
            with contextlib.suppress(pa.ArrowException, OSError):
                found += keys_of(pq.read_table(path, columns=["video", "frame"]))
    return found


def is_shard(name: str) -> bool:
    """Whether a file of this name may lie among shards."""
    return re.fullmatch(r"\d{6}(-[0-9a-f]{8})?\.parquet|\.tmp-.*", name) is not None


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(out: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Every visible file of some folders."""
    files = [path for folder in folders for path in sorted((out / folder).glob("*"))]
    visible = [path for path in files if not path.name.startswith(".tmp-")]
    return {str(path.relative_to(out)): sha256(path) for path in visible}


def times_of(folder: Path) -> dict[str, int]:
    """When each record of a folder was written, in nanoseconds."""
    found = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found
