"""The files of cluster/ for its tests: as text, and parsed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import against_crd

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("onprem.yaml", "aws.yaml")
KUBERAY = sorted(path.name for path in (CLUSTER / "kuberay").glob("*.yaml"))
TEXTS = sorted(
    path.relative_to(CLUSTER).as_posix()
    for path in CLUSTER.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


def read(name: str) -> str:
    return (CLUSTER / name).read_text()


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load(read(name))


def kubernetes_objects() -> list[dict[str, Any]]:
    return [
        part for name in KUBERAY for part in against_crd.read_objects(CLUSTER / "kuberay" / name)
    ]


def ray_clusters() -> list[dict[str, Any]]:
    """The cluster of each RayCluster and RayJob."""
    kinds = ("RayCluster", "RayJob")
    specs = [part["spec"] for part in kubernetes_objects() if part["kind"] in kinds]
    return [spec.get("rayClusterSpec", spec) for spec in specs]


def head_comment(name: str) -> str:
    """The comment or docstring a file begins with, without its marks."""
    text = read(name)
    if name.endswith(".py"):
        return text.split('"""')[1]
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip() if not line.startswith("#!") else "")
    return "\n".join(lines)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
