"""Check cluster/kuberay/ against KubeRay's own definitions; unknown fields are refused.

The definitions come from a cluster that has them, or from KubeRay's release:

    kubectl get crd rayclusters.ray.io rayjobs.ray.io -o yaml > crd.yaml
    python tests/helpers/against_crd.py crd.yaml cluster/kuberay/*.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

VALUES = ("type", "enum", "required", "pattern", "minimum", "maximum", "minItems", "format")
KEEP = (*VALUES, "allOf", "anyOf", "oneOf", "not")
"""Keywords of a CRD's schema that JSON schema has as well, with the same meaning."""


def main(argv: list[str]) -> int:
    """Print each problem; the exit status is 1 if there is one."""
    definitions = dict(read_definitions(Path(argv[0])))
    problems = [
        f"{file}: {problem}"
        for file in argv[1:]
        for manifest in read_objects(Path(file))
        for problem in find_problems(manifest, definitions)
    ]
    names = ", ".join(f"{version}/{kind}" for version, kind in definitions)
    print("\n".join(problems) or f"{len(argv) - 1} files are as {names} want them")
    return 1 if problems else 0


def find_problems(
    manifest: dict[str, Any], definitions: dict[tuple[str, str], dict[str, Any]]
) -> list[str]:
    """Faults of an object by its definition; none for kinds without one."""
    schema = definitions.get((manifest["apiVersion"], manifest["kind"]), {})
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(manifest)
    ]


def read_definitions(file: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """``(apiVersion, kind)`` and strict JSON schema of each version of each CRD in a file.

    The file holds definitions, or a list of them as kubectl prints it.
    """
    for item in read_objects(file):
        for crd in item.get("items", [item]):
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = tighten(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), schema


def tighten(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as JSON schema that refuses unknown fields.

    A Kubernetes server drops them without a message.
    """
    out = {key: schema[key] for key in KEEP if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        out["properties"] = {name: tighten(part) for name, part in schema["properties"].items()}
        out["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = tighten(schema["additionalProperties"])
    if "items" in schema:
        out["items"] = tighten(schema["items"])
    return out


def read_objects(file: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [part for part in yaml.safe_load_all(file.read_text()) if part]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
