"""`raffect doctor`: checks of an installation; every failing line ends with the fix.

The whole output can be pasted into an issue.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raffect.config import DoctorConfig, EncoderConfig
from raffect.encoders.timm_models import list_present
from raffect.encoders.weights import find_tag_file, list_tags, model_configs, resolve
from raffect.errors import RaffectError
from raffect.progress import format_bytes
from raffect.provenance import git_commit, versions

if TYPE_CHECKING:
    from raffect.pipelines.gpu_checks import Found

_MIN_FREE_BYTES = 10_000_000_000
_MIN_SHM_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was checked.
        ok: Whether it is right; None for a line of information.
        text: What was found, and the fix if it is not right.
    """

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
        ("weights", lambda: _check_weights(config.encoder)),
        ("data", lambda: _check_data(config.data)),
        ("bank", lambda: _check_bank(config.bank)),
    ]
    if config.start_ray:
        checks.append(("ray", _check_ray))
    if config.gpu:
        checks += _list_gpu_checks(config.encoder)
    for name, check in checks:
        try:
            yield from check()
        except RaffectError as error:
            yield Check(name, False, str(error))
        except Exception as error:  # any error at all is a line of the report
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Check(name, False, f"{reason}; please report it with this output")


def _check_python() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"
    yield Check("python", ok, text + ("" if ok else "; install Python 3.11 or newer"))


def _check_packages() -> Iterator[Check]:
    found = versions()
    missing = [name for name, version in found.items() if version == "missing"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    fix = f"; run `uv pip install {' '.join(missing)}`" if missing else ""
    yield Check("packages", not missing, text + fix)
    yield Check("commit", None, git_commit() or "not a git checkout")
    # torch stands for all packages: an installer compiles all of them or none.
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin and not Path(importlib.util.cache_from_source(spec.origin)).exists():
        cost = "every process of Ray then does again and takes twice as long to start"
        folder = str(Path(spec.origin).parents[1])
        command = shlex.join([sys.executable, "-m", "compileall", "-q", folder])
        text = f"packages are not compiled, which {cost}; run `{command}`"
        yield Check("bytecode", None, text)
    if sys.dont_write_bytecode:
        what = "PYTHONDONTWRITEBYTECODE is set: what is not compiled yet, every process compiles"
        yield Check("bytecode", None, f"{what} for itself at each start; unset it")


def _check_gpu() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = map(format_bytes, torch.cuda.mem_get_info(index))
            name = f"{index}: {torch.cuda.get_device_name(index)}"
            text = f"{name}, {free} free of {total}, CUDA {torch.version.cuda}"
            yield Check("gpu", True, text)
        return
    # A GPU that only the driver sees is a fault; a machine without a GPU is not.
    if shown := _gpus_of_driver():
        what = f"the driver shows {shown}, but torch {torch.__version__} cannot use it"
        fix = "install a torch build for CUDA that your driver supports (https://pytorch.org)"
        yield Check("gpu", False, f"{what}; {fix}")
    else:
        speed = "ViT-L/14 at about a frame a second and core"
        yield Check("gpu", None, f"none found; everything runs on the CPU, {speed}")


def _gpus_of_driver() -> str:
    """What NVIDIA's driver lists; empty without a driver or a GPU."""
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return ""
    done = subprocess.run([driver, "-L"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 and "GPU" in done.stdout else ""


def _list_gpu_checks(encoder: EncoderConfig) -> list[tuple[str, Callable[[], Iterator[Check]]]]:
    """Checks of ``--gpu``, each by its name; without a GPU one that fails."""
    import torch

    if not torch.cuda.is_available():
        return [("cuda", _lack_gpu)]
    from raffect.pipelines.gpu_checks import checks

    found = checks(encoder, torch.device("cuda"))
    return [(name, partial(_check_on_gpu, run)) for name, run in found.items()]


def _lack_gpu() -> Iterator[Check]:
    fix = "run it on a machine with a GPU and a torch build for CUDA, or leave --gpu out"
    yield Check("cuda", False, f"--gpu: torch sees no CUDA device here, nothing was checked; {fix}")


def _check_on_gpu(run: Callable[[], Iterator[Found]]) -> Iterator[Check]:
    for found in run():
        fix = "" if found.ok else "; please report it with this output"
        yield Check(found.name.split()[0], found.ok, found.line + fix)


def _check_disk() -> Iterator[Check]:
    for name, folder in (("here", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        need = "a bank of Aff-Wild2 takes 4.5 GB and Ray spills to the temporary folder"
        text, ok = f"{name} {folder}: {format_bytes(free)} free", free >= _MIN_FREE_BYTES
        yield Check("disk", ok, text if ok else f"{text}; {need}: make room")
    # A container has 64 MB of shared memory by default.
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        fix = "Ray hands pixels over there: start the container with --shm-size=4g"
        text, ok = f"{shm}: {format_bytes(free)} free", free >= _MIN_SHM_BYTES
        yield Check("shm", ok, text if ok else f"{text}; {fix}")


def _check_weights(encoder: EncoderConfig) -> Iterator[Check]:
    # The default encoder's are nobody's wish: where they are missing, another encoder may do.
    asked = encoder != EncoderConfig()
    try:
        source = resolve(encoder)
        where = f"at {source.file}" if source.file else "made on the spot"
        which = "encoder" if asked else "default encoder"
        yield Check("weights", True, f"{which}: {source.model} {source.name} {where}")
    except RaffectError as error:
        missing = str(error) if asked else f"default encoder: {error}"
        yield Check("weights", False if asked else None, missing)
    # Weights of any encoder, which need not be that one.
    here = [
        f"{model} {tag}"
        for model in model_configs()
        for tag in list_tags(model)
        if find_tag_file(model, tag)
    ]
    here += list_present()
    yield Check("weights", None, f"on this machine: {', '.join(here)}")


def _check_data(folder: Path | None) -> Iterator[Check]:
    if folder is None:
        yield Check("data", None, "not looked at; name the output of `raffect prepare` with --data")
        return
    from raffect.datasets.labels import read_labels
    from raffect.datasets.manifest import read_manifest
    from raffect.datasets.targets import is_targets_file
    from raffect.storage.paths import locate

    # The manifest, and whether the folders of its images are mounted.
    manifest = read_manifest(folder / "manifest.parquet")
    absent = [root for root in manifest["root"].unique().to_pylist() if not locate(root).exists()]
    roots = " and ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
    fix = "mount it, or run `raffect prepare` again"
    hint = f"; image root {roots} is not on this machine: {fix}" if absent else ""
    yield Check("data", not absent, f"{len(manifest):,} frames{hint}")
    files = (folder / "labels").glob("*.parquet")
    for path in sorted(file for file in files if not is_targets_file(file)):
        yield Check("labels", True, f"{path.stem}: {len(read_labels(path)):,} lines")


def _check_bank(folder: Path | None) -> Iterator[Check]:
    if folder is None:
        yield Check("bank", None, "not looked at; name one with --bank")
        return
    from raffect.bank.format import Bank
    from raffect.bank.inspect import describe_bank

    facts = describe_bank(Bank(folder))
    text = f"{facts.rows:,} features, {facts.rejects:,} rejects of {facts.planned:,}"
    fix = f"{facts.missing:,} are missing: run `raffect extract` again"
    yield Check("bank", facts.missing == 0, f"{text}; {fix}" if facts.missing else text)


def _check_ray() -> Iterator[Check]:
    from raffect.ray_session.session import ray_session

    start = time.perf_counter()
    with ray_session(None):
        import ray

        resources = ray.cluster_resources()
        answer = ray.get(ray.remote(lambda: 42).remote(), timeout=120)
    took = f"started, ran a task and stopped in {time.perf_counter() - start:.0f} s"
    cores = f"{resources.get('CPU', 0):g} logical CPUs, {resources.get('GPU', 0):g} GPUs"
    store = f"{format_bytes(resources.get('object_store_memory', 0))} object store"
    text = f"{took}; {cores}, {store}"
    yield Check("ray", answer == 42, text)
