"""No file of cluster/ opens Ray to others, or runs as root."""

from __future__ import annotations

import re

from tests.helpers.cluster_files import (
    LAUNCHERS,
    TEXTS,
    kubernetes_objects,
    launcher,
    ray_clusters,
    read,
)


def ray_start_lines() -> list[tuple[str, str]]:
    """Every command of every file that starts Ray, in one line."""
    launched = [
        (name, line)
        for name in LAUNCHERS
        for kind in ("head", "worker")
        for line in launcher(name)[f"{kind}_start_ray_commands"]
        if "ray start" in line
    ]
    script = re.sub(r"\\\n\s*", "", read("slurm/submit.sh"))
    started = [line for line in script.splitlines() if line.startswith("start_node ")]
    return launched + [("slurm/submit.sh", line) for line in started]


def test_no_file_binds_a_dashboard_beyond_loopback():
    heads = [line for _, line in ray_start_lines() if "--head" in line]
    assert len(heads) == 3
    assert all("--dashboard-host=127.0.0.1" in line for line in heads)
    open_to_others = r"0\.0\.0\.0|\[?::\]?:\d|dashboard-host[=: \"]+(?!127\.0\.0\.1)"
    for name in TEXTS:
        assert not re.search(open_to_others, read(name)), name


def test_kubernetes_lets_only_its_own_pods_and_the_operator_in():
    policy = next(part["spec"] for part in kubernetes_objects() if part["kind"] == "NetworkPolicy")
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": {}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert list(operator["from"][0]) == ["namespaceSelector"]


def test_every_file_that_starts_ray_has_token_authentication_on():
    for name in LAUNCHERS:
        lines = [line for file, line in ray_start_lines() if file == name]
        assert len(lines) == 2
        assert all(line.index("RAY_AUTH_MODE=token") < line.index("ray start") for line in lines)
    script = read("slurm/submit.sh")
    exported = script.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=")
    assert exported < script.index("\nstart_node")
    assert [cluster["authOptions"] for cluster in ray_clusters()] == [{"mode": "token"}] * 3


def test_pods_run_as_a_user_without_rights():
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for cluster in ray_clusters():
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
            template = group["template"]
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in template["spec"]["containers"]:
                assert container["securityContext"] == rights
