"""Is this commit fit to be released? Checks it, builds it, and tries what was built.

    python scripts/release.py --out dist
    python scripts/release.py --resolution lowest-direct
    python scripts/release.py --resolution highest

The first form is what .github/workflows/release.yml runs before it publishes:

1. Git knows of no change that is not committed.
2. pyproject.toml, `raffect.__version__`, the newest section of CHANGELOG.md and CITATION.cff name
   one version and one date, as does `--tag`, if given. `--unreleased` allows a section without a
   date, to try the rest between releases.
3. `uv build` makes a source archive and, from that archive, a wheel.
4. The wheel holds the committed files of raffect/ and nothing else but its metadata; the archive
   holds committed files alone, and with them all that the wheel is built from.
5. The wheel is installed into an empty environment in a temporary folder; `raffect demo` runs
   there with no file of the checkout in reach, and has to end with a report.

The other forms prove the bounds in pyproject.toml: they install the lowest versions of every
direct dependency (of extras and of the development group too), or the newest of all, into an
environment of their own, and run the default tests there. Each downloads some 3 GB, which is why
CI leaves them out. Everything temporary is deleted. Needs git and uv. Exit status: 0, or 1 with one
line that says what is wrong and how to fix it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from raffect.errors import RaffectError, require

ROOT = Path(__file__).parents[1]
REQUIRED = (
    "raffect/py.typed",
    "raffect/recipes/paper.toml",
    "raffect/language/prompts/photo.toml",
    "raffect/reporting/templates/timeline.html",
    "raffect/encoders/embedded/raffect-faces.safetensors",
)
"""One file of each kind that a wheel cannot work without, should git have lost it."""
DIST_INFO = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
NOT_IN_GIT = {"PKG-INFO"}
"""What a source archive has beside committed files."""
UNRELEASED = "unreleased"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", default="", help="version that is published, with or without v")
    parser.add_argument(
        "--unreleased", action="store_true", help="a section without a date will do"
    )
    parser.add_argument("--out", type=Path, help="folder for the checked archive and wheel")
    parser.add_argument("--resolution", choices=("lowest-direct", "highest"), help="test bounds")
    options = parser.parse_args(words)
    try:
        if options.resolution:
            try_resolution(options.resolution)
        else:
            version = check_checkout(options.tag, options.unreleased)
            release(version, options.out)
    except RaffectError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


# What the checkout says


def check_checkout(tag: str, unreleased: bool) -> str:
    """The version, once nothing is uncommitted and all files agree on it."""
    changed = git("status", "--porcelain").splitlines()
    require(not changed, f"{len(changed)} files are not committed, such as {changed[:1]}; commit")
    version, date = agreed_version(ROOT)
    require(not tag or tag.removeprefix("v") == version, f"tag {tag}: pyproject.toml has {version}")
    what = f"CHANGELOG.md: {version} has no date; write `## {version} (YYYY-MM-DD)`"
    require(unreleased or date != UNRELEASED, what)
    print(
        f"version {version} ({date}): pyproject.toml, raffect, CHANGELOG.md and CITATION.cff agree"
    )
    return version


def agreed_version(root: Path) -> tuple[str, str]:
    """Version and date (or `UNRELEASED`) on which all four files of a checkout agree.

    Raises:
        RaffectError: If one of them names another version or date, or none.
    """
    version = read_project(root)["version"]
    in_module = _only(r'(?m)^__version__ = "(.+)"$', root / "raffect" / "__init__.py")
    section = _only(r"(?m)\A(?:(?!## ).*\n)*^## (.+)$", root / "CHANGELOG.md")
    match = re.fullmatch(rf"(\S+) \((\d{{4}}-\d\d-\d\d|{UNRELEASED})\)", section)
    what = f"CHANGELOG.md: newest section is `{section}`; expected `## VERSION (YYYY-MM-DD)`"
    require(match is not None, what)
    assert match
    in_changelog, date = match.groups()
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    named = {
        "raffect/__init__.py": in_module,
        "CHANGELOG.md": in_changelog,
        "CITATION.cff": str(citation.get("version")),
    }
    for file, found in named.items():
        require(found == version, f"{file}: version {found}, but {version} in pyproject.toml")
    cited = str(citation.get("date-released", UNRELEASED))
    what = f"CITATION.cff: date-released is {cited}, but {date} in CHANGELOG.md; write the same"
    require(cited == date, what)
    return version, date


def read_project(root: Path) -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def _only(pattern: str, file: Path) -> str:
    match = re.search(pattern, file.read_text())
    require(match is not None, f"{file.name}: nothing matches {pattern}")
    assert match
    return match.group(1)


# What was built


def release(version: str, out: Path | None) -> None:
    """Build, inspect and try; the two files go to ``out`` at the end alone."""
    committed = git("ls-files").splitlines()
    with tempfile.TemporaryDirectory(prefix="raffect-release-") as name:
        folder = Path(name).resolve()
        run("uv", "build", "--quiet", "--out-dir", folder / "dist", ROOT)
        archive, wheel = (_built(folder / "dist", form) for form in ("*.tar.gz", "*.whl"))
        check_wheel(names_in(wheel), committed, version)
        check_archive(names_in(archive), committed, version)
        print(f"{wheel.name}, {archive.name}: what is committed, whole")
        try_wheel(wheel, folder, version)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            for file in (archive, wheel):
                shutil.copy2(file, out)


def _built(folder: Path, form: str) -> Path:
    files = list(folder.glob(form))
    require(len(files) == 1, f"uv build made {len(files)} files {form}; expected one")
    return files[0]


def names_in(file: Path) -> list[str]:
    """Names of all that a wheel or a source archive holds."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return wheel.namelist()
    with tarfile.open(file) as archive:
        return archive.getnames()


def check_wheel(names: Iterable[str], committed: Iterable[str], version: str) -> None:
    """Refuse a wheel that is not the committed files of raffect/ and its metadata.

    Raises:
        RaffectError: Naming a file that is missing or too much.
    """
    files = {name for name in names if not name.endswith("/")}
    package = {name for name in committed if name.startswith("raffect/")}
    expected = package | {f"raffect-{version}.dist-info/{name}" for name in DIST_INFO}
    _require_same("wheel", files, expected)
    _require_same("wheel", files & set(REQUIRED), set(REQUIRED))


def check_archive(names: Iterable[str], committed: Iterable[str], version: str) -> None:
    """Refuse a source archive with a file that git does not know, or without a committed one.

    Raises:
        RaffectError: Naming such a file.
    """
    top = f"raffect-{version}/"
    files, outside = set(), set()
    for name in names:
        (files if name.startswith(top) else outside).add(name.removeprefix(top))
    outside.discard(top.rstrip("/"))
    require(not outside, f"archive: {sorted(outside)[:1]} lies outside {top}")
    folders = {str(parent) for name in files for parent in Path(name).parents}
    _require_same("archive", files - folders, set(committed) | NOT_IN_GIT)


def _require_same(what: str, found: set[str], expected: set[str]) -> None:
    missing, more = sorted(expected - found), sorted(found - expected)
    fix = "see [tool.hatch.build.targets] in pyproject.toml, and git"
    require(not missing, f"{what}: {len(missing)} files are missing, such as {missing[:1]}; {fix}")
    require(not more, f"{what}: {len(more)} files too many, such as {more[:1]}; {fix}")


# What it does


def try_wheel(wheel: Path, folder: Path, version: str) -> None:
    """Run the demo of a wheel in an empty environment, away from the checkout."""
    python = make_environment(folder / "environment")
    run("uv", "pip", "install", "--quiet", "--python", python, wheel)
    where = "import raffect; print(raffect.__file__)"
    home = Path(run(python, "-c", where, cwd=folder).strip())
    require(home.is_relative_to(folder), f"{home} was imported, not the wheel in {folder}")
    raffect = python.with_name("raffect")
    printed = run(raffect, "--version", cwd=folder)
    require(version in printed.split(), f"raffect --version prints {printed!r}; expected {version}")
    shown = run(raffect, "demo", cwd=folder, timeout=1800)
    report = folder / "raffect-demo" / "report.html"
    require("Done in" in shown and report.stat().st_size > 0, "the demo ended without a report")
    print("raffect demo:", next(line for line in shown.splitlines() if line.startswith("Done in")))


def try_resolution(resolution: str) -> None:
    """Run the default tests with the lowest, or the newest, versions that pyproject.toml allows.

    Raises:
        RaffectError: If no such versions exist together, or a test fails.
    """
    with tempfile.TemporaryDirectory(prefix="raffect-release-") as name:
        folder, python = Path(name), make_environment(Path(name) / "environment")
        groups = ["--all-extras", "--group", "dev", "--resolution", resolution]
        if resolution == "lowest-direct":
            # Else the newest fsspec, which is no direct dependency, takes s3fs with it
            bound = folder / "constraints.txt"
            (s3fs,) = read_project(ROOT)["optional-dependencies"]["s3"]
            bound.write_text(s3fs.replace(">=", "=="))
            groups += ["--constraint", str(bound)]
        pinned = folder / "requirements.txt"
        own = ("--python", python, "--quiet")
        run("uv", "pip", "compile", "pyproject.toml", *groups, *own, "-o", pinned, cwd=ROOT)
        run("uv", "pip", "install", *own, "-r", pinned)
        run("uv", "pip", "install", *own, "--no-deps", "--editable", ROOT)
        done = subprocess.run([python, "-m", "pytest"], cwd=ROOT, env=environment(), check=False)
        what = f"{resolution}: tests fail; raise the bound in pyproject.toml, or fix the code"
        require(done.returncode == 0, what)
        print(f"{resolution}: the default tests pass")


def make_environment(folder: Path) -> Path:
    """The interpreter of a new, empty environment; of this Python's version."""
    run("uv", "venv", "--quiet", "--python", sys.executable, folder)
    return folder / "bin" / "python"


def environment() -> dict[str, str]:
    """This process's environment without what leads Python to the checkout; uv compiles packages.

    Else every process of Ray would compile torch for itself, and Ray's 30 s to start be too short.
    """
    leads = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in leads}
    return kept | {"UV_COMPILE_BYTECODE": "1"}


def git(*words: str) -> str:
    return run("git", "-C", ROOT, *words)


def run(*words: str | Path, cwd: Path = ROOT, timeout: float | None = None) -> str:
    """What a command prints.

    Raises:
        RaffectError: If it fails, with the last line of its errors.
    """
    shown = " ".join(map(str, words))
    try:
        done = subprocess.run(
            list(map(str, words)),
            cwd=cwd,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RaffectError(f"`{shown}`: {error}") from error
    last = (done.stderr.strip() or "no error was printed").splitlines()[-1]
    require(done.returncode == 0, f"`{shown}` ended with status {done.returncode}: {last}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
