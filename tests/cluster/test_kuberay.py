"""cluster/kuberay/ against schemas, and what it promises."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.helpers import against_crd
from tests.helpers.cluster_files import CLUSTER, KUBERAY, ROOT, kubernetes_objects, ray_clusters

KUBERNETES = Draft202012Validator(
    yaml.safe_load((Path(__file__).parent / "kubernetes.schema.yaml").read_text())
)


def problems(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in KUBERNETES.iter_errors(manifest)]


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_files_have_known_fields_of_the_right_type(name):
    for manifest in against_crd.read_objects(CLUSTER / "kuberay" / name):
        assert not problems(manifest)


@pytest.mark.parametrize(
    "path",
    [
        ("spec",),
        ("spec", "rayClusterSpec"),
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0),
    ],
)
def test_a_field_that_does_not_exist_is_refused_at_every_depth(path):
    manifest = copy.deepcopy(
        next(part for part in kubernetes_objects() if part["kind"] == "RayJob")
    )
    assert not problems(manifest)
    part = manifest
    for key in path:
        part = part[key]
    part["backofLimit"] = 1
    assert problems(manifest)


CLUSTER_SPEC = ("rayClusterSpec",)
WORKERS = (*CLUSTER_SPEC, "workerGroupSpecs", 0)
POD = (*WORKERS, "template", "spec")
LIMITS = (*POD, "containers", 0, "resources", "limits")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backoffLimit",), "5"),
        ((*CLUSTER_SPEC, "rayVersion"), 2.6),
        ((*WORKERS, "replicas"), -1),
        ((*CLUSTER_SPEC, "authOptions", "mode"), "off"),
        ((*CLUSTER_SPEC, "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ((*LIMITS, "memory"), "32 GB"),
        ((*POD, "securityContext", "runAsUser"), 0),
    ],
)
def test_a_wrong_type_or_value_is_refused(path, value):
    manifest = copy.deepcopy(
        next(part for part in kubernetes_objects() if part["kind"] == "RayJob")
    )
    part = manifest["spec"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert problems(manifest)


def made_up_crd(tmp_path: Path) -> Path:
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {"size": {"type": "integer"}, "port": {"x-kubernetes-int-or-string": True}},
    }
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
        },
    }
    crd = {
        "spec": {
            "group": "x.io",
            "names": {"kind": "Thing"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
        }
    }
    file = tmp_path / "crd.yaml"
    file.write_text(yaml.safe_dump({"items": [crd]}))
    return file


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"size": 1}, 0),
        ({"size": 1, "port": "http"}, 0),
        ({"size": "1"}, 1),
        ({"size": 1, "sise": 1}, 1),
        ({}, 1),
        ({"size": 1, "port": []}, 1),
    ],
)
def test_the_check_against_a_published_crd_refuses_what_a_server_would_drop(tmp_path, spec, status):
    thing = {"apiVersion": "x.io/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec}
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump(thing))
    assert against_crd.main([str(made_up_crd(tmp_path)), str(tmp_path / "thing.yaml")]) == status


def test_each_gpu_pod_has_one_a6000_shared_memory_and_the_shared_volume():
    assert len(ray_clusters()) == 3
    for cluster in ray_clusters():
        pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
        container = pod["containers"][0]
        for amounts in (container["resources"]["limits"], container["resources"]["requests"]):
            assert amounts["nvidia.com/gpu"] == "1"
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-RTX-A6000"}
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
            spec = group["template"]["spec"]
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            places = spec["containers"][0]["volumeMounts"]
            mounts = {place["mountPath"]: volumes[place["name"]] for place in places}
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
            assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == "raffect-data"
        store = int(cluster["workerGroupSpecs"][0]["rayStartParams"]["object-store-memory"])
        shared_gib = int(mounts["/dev/shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert shared_gib == 8
        assert store < shared_gib * 2**30


def test_the_claimed_volume_exists_and_is_writable_from_many_nodes():
    claims = {
        part["metadata"]["name"]: part
        for part in kubernetes_objects()
        if part["kind"] == "PersistentVolumeClaim"
    }
    assert claims["raffect-data"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_jobs_are_tried_again_and_clean_up_after_themselves():
    jobs = [part["spec"] for part in kubernetes_objects() if part["kind"] == "RayJob"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["backoffLimit"] >= 1
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] > 0


def test_manifests_ask_for_the_ray_that_the_lock_file_installs():
    locked = next(
        package["version"]
        for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]
        if package["name"] == "ray"
    )
    assert {cluster["rayVersion"] for cluster in ray_clusters()} == {locked}
