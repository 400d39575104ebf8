"""`raffect doctor`: did I install it right? Every failing line ends with the fix.

The whole can be pasted into an issue.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raffect.config import DoctorConfig, EncoderConfig
from raffect.encoders.weights import find_tag_file, list_tags, model_configs, resolve
from raffect.errors import RaffectError
from raffect.progress import format_bytes
from raffect.provenance import git_commit, versions

_MIN_FREE_BYTES = 10_000_000_000


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is right (None: for information), and what to know or fix."""

    name: str
    ok: bool | None
    text: str

    def line(self) -> str:
        """The line as printed."""
        mark = {True: "ok  ", False: "FAIL", None: "note"}[self.ok]
        return f"{mark} {self.name:10} {self.text}"


@dataclass(frozen=True)
class Diagnosis:
    """All checks, in order."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Those that failed."""
        return tuple(check for check in self.checks if check.ok is False)

    @property
    def ok(self) -> bool:
        """Whether none failed."""
        return not self.failed

    @property
    def conclusion(self) -> str:
        """The last line."""
        return f"{len(self.failed)} check(s) failed" if self.failed else "all is well"

    def lines(self) -> list[str]:
        """A line a check, and the conclusion."""
        return [*(check.line() for check in self.checks), self.conclusion]


def diagnose(
    config: DoctorConfig, on_check: Callable[[Check], None] = lambda check: None
) -> Diagnosis:
    """Run every check; a check that breaks is a failing line, never a traceback.

    Args:
        config: What to look at.
        on_check: Called with each check as soon as it is done.
    """
    checks = []
    for check in _run_checks(config):
        on_check(check)
        checks.append(check)
    return Diagnosis(tuple(checks))


def _run_checks(config: DoctorConfig) -> Iterator[Check]:
    checks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _check_python),
        ("packages", _check_packages),
        ("gpu", _check_gpu),
        ("disk", _check_disk),
        ("weights", _check_weights),
        ("data", lambda: _check_data(config.data)),
        ("bank", lambda: _check_bank(config.bank)),
    ]
    if config.start_ray:
        checks.append(("ray", _check_ray))
    for name, check in checks:
        try:
            yield from check()
        except RaffectError as error:
            yield Check(name, False, str(error))
        except Exception as error:  # a doctor reports whatever it meets
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Check(name, False, f"{reason}; please report it with this output")


def _check_python() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    yield Check(
        "python",
        ok,
        f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"
        + ("" if ok else "; install Python 3.11 or newer"),
    )


def _check_packages() -> Iterator[Check]:
    found = versions()
    missing = [name for name, version in found.items() if version == "missing"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Check(
        "packages",
        not missing,
        text + (f"; run `pip install {' '.join(missing)}`" if missing else ""),
    )
    yield Check("commit", None, git_commit() or "not a git checkout")
    if (
        (spec := importlib.util.find_spec("torch"))
        and spec.origin
        and not Path(importlib.util.cache_from_source(spec.origin)).exists()
    ):
        packages = Path(spec.origin).parents[1]
        yield Check(
            "bytecode",
            None,
            f"packages are not compiled, which every process of Ray then does again and takes twice as long to start; run `{sys.executable} -m compileall -q {packages}`",
        )


def _check_gpu() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield Check(
                "gpu",
                True,
                f"{index}: {torch.cuda.get_device_name(index)}, {format_bytes(free)} free of {format_bytes(total)}, CUDA {torch.version.cuda}",
            )
        return
    driver = shutil.which("nvidia-smi")
    if (
        driver
        and (
            done := subprocess.run([driver, "-L"], capture_output=True, text=True, check=False)
        ).returncode
        == 0
        and "GPU" in done.stdout
    ):
        yield Check(
            "gpu",
            False,
            f"the driver shows {done.stdout.strip()}, but torch {torch.__version__} cannot use it; install a torch build for CUDA that your driver supports (https://pytorch.org)",
        )
    else:
        yield Check(
            "gpu",
            None,
            "none found; everything runs on the CPU, ViT-L/14 at about a frame a second and core",
        )


def _check_disk() -> Iterator[Check]:
    for name, folder in (("here", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        ok = free >= _MIN_FREE_BYTES
        yield Check(
            "disk",
            ok,
            f"{name} {folder}: {format_bytes(free)} free"
            + (
                ""
                if ok
                else "; a bank of Aff-Wild2 takes 4.5 GB and Ray spills to the temporary folder: make room"
            ),
        )
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        ok = free >= 1_000_000_000
        yield Check(
            "shm",
            ok,
            f"{shm}: {format_bytes(free)} free"
            + (
                ""
                if ok
                else "; Ray hands pixels over there: start the container with --shm-size=4g"
            ),
        )


def _check_weights() -> Iterator[Check]:
    try:
        source = resolve(EncoderConfig())
        yield Check(
            "weights", True, f"default encoder: {source.model} {source.name} at {source.file}"
        )
    except RaffectError as error:
        yield Check("weights", False, str(error))
    here = [
        f"{model} {tag}"
        for model in model_configs()
        for tag in list_tags(model)
        if find_tag_file(model, tag)
    ]
    yield Check("weights", None, f"on this machine: {', '.join(here)}")


def _check_data(folder: Path | None) -> Iterator[Check]:
    if folder is None:
        yield Check("data", None, "not looked at; name the output of `raffect prepare` with --data")
        return
    from raffect.datasets.labels import read_labels
    from raffect.datasets.manifest import read_manifest
    from raffect.storage.paths import locate

    manifest = read_manifest(folder / "manifest.parquet")
    absent = [root for root in manifest["root"].unique().to_pylist() if not locate(root).exists()]
    hint = f"; image root {' and '.join(absent[:3])}{' ...' if len(absent) > 3 else ''} is not on this machine: mount it, or run `raffect prepare` again"
    yield Check("data", not absent, f"{len(manifest):,} frames" + (hint if absent else ""))
    for path in sorted((folder / "labels").glob("*.parquet")):
        yield Check("labels", True, f"{path.stem}: {len(read_labels(path)):,} lines")


def _check_bank(folder: Path | None) -> Iterator[Check]:
    if folder is None:
        yield Check("bank", None, "not looked at; name one with --bank")
        return
    from raffect.bank.format import Bank
    from raffect.bank.inspect import describe_bank

    facts = describe_bank(Bank(folder))
    missing = (
        f"; {facts.missing:,} are missing: run `raffect extract` again" if facts.missing else ""
    )
    counts = f"{facts.rows:,} features, {facts.rejects:,} rejects of {facts.planned:,}"
    yield Check("bank", facts.missing == 0, counts + missing)


def _check_ray() -> Iterator[Check]:
    from raffect.ray_session import ray_session

    start = time.perf_counter()
    with ray_session(None):
        import ray

        resources = ray.cluster_resources()
        answer = ray.get(ray.remote(lambda: 42).remote(), timeout=120)
    text = f"started, ran a task and stopped in {time.perf_counter() - start:.0f} s; {resources.get('CPU', 0):g} logical CPUs, {resources.get('GPU', 0):g} GPUs, {format_bytes(resources.get('object_store_memory', 0))} object store"
    yield Check("ray", answer == 42, text)
