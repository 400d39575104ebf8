"""cluster/onprem.yaml and aws.yaml, by Ray's own code, without a machine."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from tests.helpers.cluster_files import (
    LAUNCHERS,
    ROOT,
    TEXTS,
    head_comment,
    launcher,
    pyproject,
    ray_clusters,
    read,
)


def check_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it touches a machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_pass_rays_own_schema(name):
    prepared = check_launcher(launcher(name))
    # Not the defaults, which open the dashboard
    assert prepared["head_start_ray_commands"] == launcher(name)["head_start_ray_commands"]


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    "change", [{"idle_timeout_minute": 10}, {"setup_commands": "one string"}, {"cluster_name": 3}]
)
def test_rays_own_schema_refuses_a_typo_and_a_wrong_type(name, change):
    import jsonschema

    with pytest.raises((jsonschema.ValidationError, TypeError)):
        check_launcher(launcher(name) | change)


def test_aws_head_has_no_gpu_and_gpu_machines_come_from_the_spot_market_and_leave():
    config = check_launcher(launcher("aws.yaml"))
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert not config["provider"]["cache_stopped_nodes"]
    for node in (head, gpu):
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100


def test_aws_machines_reach_the_bucket_by_role_and_no_key_is_in_a_file():
    for node in launcher("aws.yaml")["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]
    key = r"AKIA[0-9A-Z]{16}|aws_secret_access_key\s*[:=]|PRIVATE KEY"
    for name in TEXTS:
        assert not re.search(key, read(name)), name


def test_what_aws_copies_to_its_machines_is_here_and_is_all_that_uv_needs():
    mounts = launcher("aws.yaml")["file_mounts"]
    local = {remote: source for remote, source in mounts.items() if not source.startswith("~")}
    assert all((ROOT / source).exists() for source in local.values())
    assert {"pyproject.toml", "uv.lock", "raffect", pyproject()["project"]["readme"]} <= set(
        local.values()
    )
    assert all(remote == f"~/raffect/{source}" for remote, source in local.items())


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_bring_the_token_and_close_it(name):
    config = launcher(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])


def test_placeholders_are_few_and_named_in_the_head_comment():
    for name, placeholders in {
        "onprem.yaml": {"HEAD_IP", "WORKER_IP_1", "WORKER_IP_2", "SSH_USER"},
        "aws.yaml": {"RAFFECT_HEAD", "RAFFECT_WORKER"},
    }.items():
        config = launcher(name)
        parts = [config["provider"], config["auth"], config.get("available_node_types", {})]
        values = re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", json.dumps(parts))
        assert set(values) == placeholders, name
        for word in placeholders:
            assert word.rstrip("012_") in head_comment(name), (name, word)


def test_accelerators_are_called_what_ray_calls_them():
    from ray._private.accelerators.nvidia_gpu import NVIDIA_GPU_NAME_PATTERN
    from ray.util import accelerators

    labels = [
        node["labels"]["ray.io/accelerator-type"]
        for node in launcher("aws.yaml")["available_node_types"].values()
        if "labels" in node
    ]
    assert labels == ["L40S"]
    known = {value for name, value in vars(accelerators).items() if name.isupper()}
    assert set(labels) <= known | {"L40S"}
    # Ray derives the name from the driver's; the GPU operator's label is that name with hyphens.
    for product, label in (("NVIDIA RTX A6000", "RTX-A6000"), ("NVIDIA L40S", "L40S")):
        assert NVIDIA_GPU_NAME_PATTERN.match(product)[1].replace(" ", "-") == label
    pods = [cluster["workerGroupSpecs"][0]["template"]["spec"] for cluster in ray_clusters()]
    products = {pod["nodeSelector"]["nvidia.com/gpu.product"] for pod in pods}
    assert products == {"NVIDIA RTX A6000".replace(" ", "-")}
