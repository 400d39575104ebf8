"""What a job and an image bring along: the package and what it needs, no data."""

from __future__ import annotations

import fnmatch
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.helpers.cluster_files import ROOT, TEXTS, pyproject, read


def test_ray_accepts_the_runtime_environment():
    from ray.runtime_env import RuntimeEnv

    settings = yaml.safe_load(read("runtime-env.yaml"))
    assert set(settings) <= RuntimeEnv.known_fields
    assert RuntimeEnv(**settings)["env_vars"] == settings["env_vars"]


def test_rays_check_refuses_a_number_where_a_text_belongs():
    from ray.runtime_env import RuntimeEnv

    with pytest.raises(TypeError):
        RuntimeEnv(env_vars={"RAY_ENABLE_UV_RUN_RUNTIME_ENV": 0})


def packed(folder: Path, archive: Path) -> set[str]:
    """Names of the files that `ray job submit --working-dir folder` would upload."""
    from ray._private.runtime_env.packaging import create_package

    excludes = yaml.safe_load(read("runtime-env.yaml"))["excludes"]
    create_package(str(folder), archive, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(archive) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


def test_a_job_brings_the_package_and_jobs_and_neither_data_nor_environment(tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "raffect", folder / "raffect")
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    files = [path for path in folder.rglob("*") if path.is_file()]
    wanted = {
        path.relative_to(folder).as_posix() for path in files if "__pycache__" not in path.parts
    }
    tools = ".git/x .python/x hf/hub/x .venv/x tests/a.py docs/a.png slurm-1/auth_token"
    data = "data/manifest.parquet data/labels/a.txt images/a.jpg frames.zip expr_train_clip.h5"
    results = "bank/shards/0.parquet bank2/x runs/a/b.json raffect-demo/x"
    for name in f"{tools} {data} {results}".split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    # An unanchored `bank*` would leave these out.
    assert any(name.startswith("raffect/bank/") for name in wanted)
    assert packed(folder, tmp_path / "p.zip") == wanted
    assert (tmp_path / "p.zip").stat().st_size < 50e6


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of each instruction of the Dockerfile."""
    code = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(code))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(keyword, rest) for keyword, rest in lines]


def copies() -> list[str]:
    """Sources of COPY that come from this folder."""
    lines = [
        rest.split()
        for keyword, rest in instructions()
        if keyword == "COPY" and "--from=" not in rest
    ]
    return [word for words in lines for word in words[:-1] if not word.startswith("--")]


def ignored(path: str) -> bool:
    """Whether the Dockerfile.dockerignore leaves a file out.

    The last pattern that matches it or a parent decides.
    """
    is_ignored = False
    names = ["/".join(path.split("/")[: k + 1]) for k in range(path.count("/") + 1)]
    for line in read("Dockerfile.dockerignore").splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            kept = pattern.startswith("!")
            pattern = pattern.lstrip("!")
            patterns = [pattern, pattern.removeprefix("**/")]
            last = [name.rsplit("/", 1)[-1] for name in names] if pattern.startswith("**/") else []
            if any(fnmatch.fnmatch(name, p) for name in names + last for p in patterns):
                is_ignored = not kept
    return is_ignored


def test_image_copies_only_what_is_here_and_not_ignored():
    assert set(copies()) == {"pyproject.toml", "uv.lock", "README.md", "LICENSE", "raffect", "jobs"}
    for source in copies():
        assert (ROOT / source).exists()
        assert not ignored(source)
        assert not ignored(f"{source}/cli.py")
    data = ["data/manifest.parquet", "bank/shards/0.parquet", "weights.pt"]
    for name in [*data, ".venv/x", ".git/config", "raffect/__pycache__/x.pyc", "tests/a.py"]:
        assert ignored(name), name


def test_image_has_a_python_that_the_project_allows():
    from packaging.specifiers import SpecifierSet

    version = re.search(r"FROM python:(\d+\.\d+)", read("Dockerfile"))[1]
    assert SpecifierSet(pyproject()["project"]["requires-python"]).contains(f"{version}.0")
    assert f"--python {version}" in read("aws.yaml")


def test_image_and_machines_of_aws_have_the_same_uv():
    (version,) = re.findall(r"FROM ghcr.io/astral-sh/uv:([\d.]+) ", read("Dockerfile"))
    assert re.findall(r"https://astral.sh/uv/(\S*)install.sh", read("aws.yaml")) == [f"{version}/"]


def test_image_installs_from_the_lock_in_layers_and_runs_as_a_user():
    steps = [f"{keyword} {rest}" for keyword, rest in instructions()]
    parts = ["USER raffect", "UV_COMPILE_BYTECODE=1", "uv.lock ./", "--no-install-project"]
    parts.append("raffect raffect")
    order = [next(k for k, step in enumerate(steps) if part in step) for part in parts]
    assert order == sorted(order)
    assert [step for step in steps if step.startswith("USER")] == ["USER raffect"]
    assert all("--frozen" in step and "--no-dev" in step for step in steps if "uv sync" in step)


def test_extras_that_files_install_exist():
    extras = pyproject()["project"]["optional-dependencies"]
    for name in TEXTS:
        for found in re.findall(r"--extra (\w+)|raffect\[(\w+)\]", read(name)):
            assert (found[0] or found[1]) in extras, name
