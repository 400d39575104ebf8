#!/usr/bin/env bash
# Ray on the nodes of a Slurm job, and one raffect job on it. From the repository's root, with its .venv (`uv sync`):
#
#   sbatch --nodes=4 cluster/slurm/submit.sh jobs/extract.py --join --device cuda --manifest /shared/data/manifest.parquet --bank /shared/bank
#   sbatch --nodes=2 cluster/slurm/submit.sh jobs/tune.py paper --device cuda --task expr --bank /shared/bank --labels /shared/data --out /shared/runs/figure2
#
# Flags of sbatch win over the lines below. Slurm queues a job again that was preempted or lost a node; after the time limit give the
# same command. Both go on where it stopped; with --join an extract also does so at once on another node, where it cannot know whether
# the one before is dead (without, it ends with status 2 within 10 minutes of a kill). Logs of Ray and the job's token are in slurm-<job>/ beside slurm-<job>.out.
#
# RAFFECT_VENV (.venv), RAFFECT_HEAD_IP (first address of the first node), RAFFECT_WAIT_S (300) and
# RAFFECT_OBJECT_STORE_BYTES (8e9 a node) may be set before sbatch.

#SBATCH --job-name=raffect
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --mem=96G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@90

set -euo pipefail

die() {
    echo "submit.sh: $*" >&2
    exit 1
}

[[ -n "${SLURM_JOB_ID:-}" ]] || die "not in a Slurm job; start it with sbatch"
(($# > 0)) || die "no script; expected e.g. jobs/extract.py and its flags"
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="${RAFFECT_VENV:-$PWD/.venv}/bin:$PATH"
command -v ray >/dev/null || die "no ray on PATH; run uv sync in $PWD or set RAFFECT_VENV"

job_dir=$PWD/slurm-$SLURM_JOB_ID
temp_dir=/tmp/raffect-$(id -u)-$SLURM_JOB_ID # on each node; short, since names of sockets are limited to 107 bytes
wait_s=${RAFFECT_WAIT_S:-300}
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
((${#nodes[@]} > 0)) || die "scontrol named no nodes for $SLURM_JOB_NODELIST"
# Twenty ports of its own, below those the system gives out (32768 on), so that two jobs on one node do not meet.
port=$((20000 + SLURM_JOB_ID % 600 * 20))
# This script runs on the first node.
head_ip=${RAFFECT_HEAD_IP:-$(hostname -I | awk '{print $1}')}

# Ray's ports hear every machine of the network: only processes of this job know its token.
# A umask for this one file alone: with it the workers would write banks and runs that colleagues cannot read.
mkdir -p "$job_dir"
chmod 700 "$job_dir"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$job_dir/auth_token RAY_USAGE_STATS_ENABLED=0
rm -f "$RAY_AUTH_TOKEN_PATH"
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
unset RAY_AUTH_TOKEN
# srun reads these of sbatch's flags: the environment must reach the nodes, and a total of GPUs is not one node's.
unset SLURM_GPUS
export SLURM_EXPORT_ENV=ALL

steps=()  # one srun a node
driver='' # what counts the nodes, then the job

# SIGTERM to the processes given, SIGKILL to those still there 45 s later (the driver takes its time; srun kills its step at once).
# shellcheck disable=SC2329 # called by clean_up
end_processes() {
    (($# > 0)) || return 0
    kill -TERM "$@" 2>/dev/null || true
    for ((k = 0; k < 450; k++)); do
        kill -0 "$@" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$@" 2>/dev/null || true
}

# Not `ray stop`, which would end every Ray of this user on the node, other jobs' too.
# shellcheck disable=SC2329 # called by the trap below
clean_up() {
    local status=$?
    trap '' TERM INT
    [[ -z $driver ]] || end_processes "$driver"
    ((${#steps[@]} == 0)) || end_processes "${steps[@]}"
    srun --overlap --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 rm -rf "$temp_dir" || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
    exit "$status"
}
trap clean_up EXIT
trap 'echo "submit.sh: told to stop; what is finished is kept, the same command goes on" >&2; exit 143' TERM INT

# Ray opens its own folder to everyone, so it lies in one that only this user can enter. A job that is queued again may find its own.
# shellcheck disable=SC2016 # expanded on the node
start_ray='{ mkdir -m 700 "$0" || test -O "$0" -a ! -L "$0"; } && chmod 700 "$0" && exec ray start --block --temp-dir="$0/ray" "$@"'

start_node() { # INDEX NAME FLAGS...
    local index=$1 name=$2
    shift 2
    srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$name" \
        bash -c "$start_ray" "$temp_dir" --num-cpus="$cpus" --object-store-memory="${RAFFECT_OBJECT_STORE_BYTES:-8000000000}" \
        --dashboard-agent-listen-port=$((port + 3 + index % 17)) --min-worker-port=0 --max-worker-port=0 --disable-usage-stats "$@" >"$job_dir/ray-$name.log" 2>&1 &
    steps+=("$!")
}

# shellcheck disable=SC2016 # Python, not shell
count_nodes='
import socket, sys, time
address, wanted, limit_s, names = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
host, _, port = address.rpartition(":")
end, alive = time.monotonic() + limit_s, []
while time.monotonic() < end:
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        import ray
        if not ray.is_initialized():
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
        if len(alive) >= wanted:
            sys.exit(0)
    except (OSError, RuntimeError, ValueError):
        pass
    time.sleep(0.5)
sys.exit("submit.sh: %d of %d nodes joined in %g s (%s of %s)" % (len(alive), wanted, limit_s, ", ".join(alive) or "none", ", ".join(names)))
'

wait_until_joined() { # COUNT
    local status=0
    python -c "$count_nodes" "$RAY_ADDRESS" "$1" "$wait_s" "${nodes[@]}" &
    driver=$!
    wait -n || status=$? # whichever ends first: this, or a node that could not start
    if kill -0 "$driver" 2>/dev/null; then
        tail -n 20 "$job_dir"/ray-*.log >&2
        die "a Ray node ended before all had joined; the end of its log is above (Ray gives a node 30 s: after a cold start, submit again)"
    fi
    driver=''
    ((status == 0)) || die "not all nodes joined; see $job_dir/ray-*.log, or raise RAFFECT_WAIT_S"
}

export RAY_ADDRESS=$head_ip:$port
echo "submit.sh: Ray at $RAY_ADDRESS on ${nodes[*]}, dashboard on port $((port + 1)) of ${nodes[0]} (loopback), logs in $job_dir"
start_node 0 "${nodes[0]}" --head --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2))
wait_until_joined 1 # a worker that finds no head gives up
for ((k = 1; k < ${#nodes[@]}; k++)); do
    start_node "$k" "${nodes[k]}" --address="$RAY_ADDRESS"
done
((${#nodes[@]} == 1)) || wait_until_joined "${#nodes[@]}"

python "$@" &
driver=$!
status=0
wait "$driver" || status=$?
driver=''
exit "$status"
