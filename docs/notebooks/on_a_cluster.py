# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A run on a cluster
# The same calls run on this machine and on a Ray cluster. Here a cluster of one machine is started,
# features are extracted on it from this notebook, and a sweep is submitted to it as a job. What to
# change for Slurm, Kubernetes or your own machines stands at the end.
#
# Faces are **drawn**, and the encoder is the small one that ships with raffect: scores here say
# nothing about photographs.

# %%
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import yaml

import raffect

folder = Path("drawn").absolute()  # the notebooks share it: what one has made another finds
checkout = Path(raffect.__file__).parents[1]

# %% [markdown]
# ## The cluster
# Whoever reaches a Ray cluster without a token can run anything as you, so the token comes first.
# On machines of your own `ray start --head` and `ray start --address HEAD:6379` take the place of
# this cell, and every machine has the same token. Ray reads the environment when it is imported.

# %%
private = Path(f"/tmp/raffect-{os.getuid()}")  # Ray's own folder, /tmp/ray, is open to everyone
private.mkdir(mode=0o700, exist_ok=True)
assert private.lstat().st_uid == os.getuid(), f"{private} is somebody else's: delete it"
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TMPDIR": str(private),
}
if not (Path.home() / ".ray" / "auth_token").exists():
    make = ["ray", "get-auth-token", "--generate"]
    subprocess.run(make, umask=0o077, check=True, stdout=subprocess.DEVNULL)  # for your eyes alone

import ray
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

# Free ports: by default the process that runs jobs takes one that another Ray here may hold
ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
machine = {"num_cpus": 4, "object_store_memory": 400_000_000}
cluster = Cluster(
    initialize_head=True, head_node_args={"include_dashboard": True, **ports, **machine}
)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
print(ray.cluster_resources().get("CPU"), "cores,", ray.cluster_resources().get("GPU", 0), "GPUs")

# %% [markdown]
# ## Features
# Every machine has to see the frames, the bank and the labels under the same paths: a shared file
# system, or `s3://`.
#
# `address="auto"` joins the cluster of this machine; `extract` then has an encoder on each of its
# GPUs, here on the CPU.

# %%
raffect.write_synthetic(folder / "faces", num_frames=1000, seed=0)
prepared = raffect.prepare(
    raffect.PrepareConfig(
        images=(folder / "faces" / "cropped_aligned",),
        annotations=folder / "faces" / "8th_ABAW_Annotations",
        out=folder / "data",
    )
)
encoded = raffect.extract(
    raffect.ExtractConfig(
        manifest=prepared.manifest,
        bank=folder / "cluster-bank",
        encoder=raffect.EncoderConfig(model="raffect-faces"),
        shard_rows=256,
        address="auto",
    )
)
print("\n".join(encoded.lines()))

# %% [markdown]
# ## A sweep as a job
# A job runs on the cluster, whether this notebook lives or not. In a shell it is
# ```bash
# ray job submit --working-dir . --runtime-env cluster/runtime-env.yaml -- \
#     python jobs/tune.py paper --task expr --bank BANK --labels DATA --out RUN
# ```
# which uploads the checkout; `runtime-env.yaml` says what of it stays behind. The same from Python,
# for a cluster whose machines see this checkout, as this one does, so that nothing is uploaded:

# %%
environment = yaml.safe_load((checkout / "cluster" / "runtime-env.yaml").read_text())
environment.pop("excludes")
client = JobSubmissionClient(f"http://{cluster.webui_url}")
words = [
    *("--task", "expr", "--bank", str(folder / "cluster-bank"), "--labels", str(folder / "data")),
    *("--out", str(folder / "cluster-sweep"), "--epochs", "4"),
    *("--space", "loss.alpha=0.3,1", "seed=0:1"),
]


def submit(entrypoint, patience_s=120):
    """Submit a job. A cluster that has just started takes none for some seconds."""
    limit = time.monotonic() + patience_s
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:  # Ray has no class of its own for it
            if "No available agent" not in str(error) or time.monotonic() > limit:
                raise


job = submit(shlex.join([sys.executable, str(checkout / "jobs" / "tune.py"), "paper", *words]))
while not (status := client.get_job_status(job)).is_terminal():
    time.sleep(1)
log = client.get_job_logs(job)
print(log)
assert status == JobStatus.SUCCEEDED, status

# %% [markdown]
# The last line of a job is JSON, for programs:

# %%
result = json.loads(log.strip().splitlines()[-1])
score, chance = result["headline"]["scores"]["last"], result["chance"]
low, high = score["interval_95"]
print("run     ", Path(result["run"]).name)
print("setting ", result["headline"]["settings"])
print(f"macro F1 {score['mean']:.3f}, 95 % over videos [{low:.3f}, {high:.3f}]")
print(f"chance   {chance['prior']:.3f} by the class shares, {chance['majority']:.3f}", end=" ")
print(chance["answer"])
print("caveat  ", result["caveat"])

# %% [markdown]
# What a stop costs is what was under way: the same job again goes on, or, as here, has nothing to
# do.

# %% [markdown]
# ## What to change
# | you have | what runs a job there |
# |---|---|
# | Slurm | `sbatch --nodes=1 --gpus-per-node=4 cluster/slurm/submit.sh jobs/tune.py paper ...` |
# | Kubernetes | KubeRay: `kubectl -n raffect apply -f cluster/kuberay/rayjob-tune.yaml` |
# | machines to SSH into | `ray up -y cluster/onprem.yaml`, then `ray job submit` as above |
# | AWS | `ray up -y cluster/aws.yaml`, then the same, with paths in `s3://` |
#
# In each: `--device cuda`, so that a run without GPUs ends with one line instead of going on on
# CPUs; paths that all machines see; and CLIP's weights where they see them (`raffect models pull`),
# since a job never fetches them. `cluster/README.md` has every command.

# %%
client.delete_job(job)
ray.shutdown()
cluster.shutdown()
