"""No file of cluster/ opens Ray to others, or runs as root."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.helpers.cluster_files import (
    LAUNCHERS,
    ROOT,
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
    assert "(umask 077 && od " in script  # the token alone: workers would inherit it
    assert len(re.findall(r"^[^#\n]*umask", script, re.M)) == 1
    assert [cluster["authOptions"] for cluster in ray_clusters()] == [{"mode": "token"}] * 3


def test_pods_run_as_a_user_without_rights():
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for cluster in ray_clusters():
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
            template = group["template"]
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in template["spec"]["containers"]:
                assert container["securityContext"] == rights


def folder_commands() -> list[tuple[str, str]]:
    """What each command does before it starts Ray, for a folder ``$D``."""
    found = [
        (name, re.search(r"\{ mkdir .* &&(?= ray start)", line)[0].removesuffix("&&"))
        for name, line in ray_start_lines()
        if name in LAUNCHERS
    ]
    script = re.search(r"start_ray='(.*)&& exec ray start", read("slurm/submit.sh"))[1]
    return [*found, ("slurm/submit.sh", script.replace('"$0"', "$D"))]


@pytest.mark.parametrize("kind", ["none", "own", "link", "stranger"])
def test_rays_folder_is_a_private_one_of_the_user(tmp_path, kind):
    commands = folder_commands()
    assert len(commands) == 5
    for number, (name, command) in enumerate(commands):
        folder = tmp_path / f"raffect-{number}"
        if kind != "none":
            (target := tmp_path / f"target-{number}" if kind == "link" else folder).mkdir()
            target.chmod(0o777)
        if kind == "link":
            folder.symlink_to(target)
        if kind == "stranger":
            if os.geteuid() != 0:
                pytest.skip("only root may give a folder away")
            os.chown(folder, 12345, 12345)
        script = f"umask 022; D={folder}; {command} && echo starts"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        started = done.stdout == "starts\n"
        assert started == (kind in ("none", "own")), (name, done.stderr)
        if started:
            assert folder.stat().st_mode & 0o777 == 0o700


def test_ray_is_started_in_that_folder_and_reports_nothing_home():
    for name, line in ray_start_lines():
        if name in LAUNCHERS:
            assert "D=/tmp/raffect-$(id -u); " in line
            assert "--temp-dir=$D/ray" in line
            assert "--disable-usage-stats" in line
    script = read("slurm/submit.sh")
    assert "temp_dir=/tmp/raffect-$(id -u)-$SLURM_JOB_ID" in script
    assert '--temp-dir="$0/ray"' in script
    assert "--disable-usage-stats" in script
    assert "RAY_USAGE_STATS_ENABLED=0" in script
    assert "RAY_USAGE_STATS_ENABLED=0" in read("Dockerfile")
    off = {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}
    for cluster in ray_clusters():
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
            assert all(off in pod["env"] for pod in group["template"]["spec"]["containers"])


def test_every_text_makes_the_token_with_its_rights():
    texts = [read(name) for name in TEXTS] + [(ROOT / "docs" / "cluster.md").read_text()]
    lines = [line for text in texts for line in text.splitlines() if "token --generate >" in line]
    assert len(lines) >= 3
    assert all("(umask 077 && ray get-auth-token --generate > /dev/null)" in line for line in lines)
    notebook = (ROOT / "docs" / "notebooks" / "on_a_cluster.py").read_text()
    make = '["ray", "get-auth-token", "--generate"]\n    subprocess.run(make, umask=0o077, '
    assert notebook.count("--generate") == notebook.count(make) == 1
