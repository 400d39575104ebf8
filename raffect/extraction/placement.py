"""Where encoders run: GPUs, actors and CPU threads of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raffect.bank.format import Bank
from raffect.config import ExtractConfig, count_cores
from raffect.errors import RaffectError
from raffect.ray_session.session import cluster_gpus, node_resources


@dataclass(frozen=True)
class Placement:
    """Where encoders run.

    Attributes:
        actors: Number of actors at a time.
        gpus_per_actor: GPUs that each actor holds.
        device: ``cuda`` or ``cpu``.
        threads: CPU threads of each actor.
        may_grow: Whether to begin with the actors that there is room for, and to add others as a
            cluster grows.
    """

    actors: int
    gpus_per_actor: float
    device: str
    threads: int
    may_grow: bool


def place_encoders(config: ExtractConfig, num_shards: int, threads: int | None = None) -> Placement:
    """Distribute the cluster's GPUs, or the CPU, among encoders.

    Args:
        config: See `ExtractConfig`.
        num_shards: Shards that are to be encoded.
        threads: CPU threads of each encoder, as of `choose_threads`; None if it is for this
            run to decide.

    Raises:
        RaffectError: If more is asked for than there is.
    """
    # GPUs of an actor
    gpus = cluster_gpus()
    share = config.gpus_per_actor
    if share is None:
        share = 1.0 if gpus and config.device != "cpu" else 0.0
    _require_gpus(config, share, gpus)
    # Actors
    on_cluster = bool(config.address or os.environ.get("RAY_ADDRESS"))
    if config.num_actors * share > gpus and not on_cluster:  # a cluster may grow
        what = f"--num-actors {config.num_actors} with --gpus-per-actor {share:g}"
        remedy = "ask for fewer actors or a smaller share"
        raise RaffectError(f"{what}: Ray sees {gpus:g} GPUs; {remedy}")
    actors = config.num_actors or (max(1, int(gpus / share)) if share else 1)
    # Our own Ray is given more CPUs than there are.
    nodes = node_resources() if on_cluster else [{"CPU": count_cores(), "GPU": gpus}]
    return Placement(
        actors=min(actors, num_shards),
        gpus_per_actor=share,
        device="cuda" if share and config.device != "cpu" else "cpu",
        # Even if there are fewer shards than actors: on a CPU the number of threads changes the
        # last bits of a feature.
        threads=threads or share_cores(actors, share, nodes),
        may_grow=on_cluster,
    )


def choose_threads(config: ExtractConfig, bank: Bank) -> int | None:
    """CPU threads of each encoder: those of the bank, or ``--threads``; None leaves it to a run.

    Raises:
        RaffectError: If ``--threads`` differs from the bank's.
    """
    known = bank.read_threads()
    if known and config.threads not in (None, known):
        raise RaffectError(
            f"--threads {config.threads}: {bank.path} was made with {known}, and vectors depend on "
            "it; leave the option out or use a new --bank"
        )
    return known or config.threads


def share_cores(actors: int, gpus_per_actor: float, nodes: Sequence[Mapping[str, float]]) -> int:
    """CPU threads of each encoder in a new bank: cores of the smallest node / encoders on it.

    Args:
        actors: Encoders side by side, which Ray spreads over nodes.
        gpus_per_actor: GPUs that each of them holds; nodes without have no encoder then.
        nodes: ``CPU`` and ``GPU`` of each node.
    """
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    able = [node for node in able if node.get("GPU", 0) >= gpus_per_actor]
    shares = []
    for node in able:
        most = int(node["GPU"] / gpus_per_actor) if gpus_per_actor else -(-actors // len(able))
        shares.append(int(node["CPU"]) // min(most, actors))
    return max(1, min(shares, default=1))


def _require_gpus(config: ExtractConfig, share: float, gpus: float) -> None:
    """Refuse an actor that no GPU can hold, or no GPU where one is asked for."""
    if config.device == "cuda" and not share:
        remedy = "start Ray where the GPUs are, or use --device cpu"
        raise RaffectError(f"--device cuda: Ray sees no GPU; {remedy}")
    if share > gpus:
        remedy = "use --gpus-per-actor 0 for the CPU, or start Ray where the GPUs are"
        raise RaffectError(f"--gpus-per-actor {share:g}: Ray sees {gpus:g} GPUs; {remedy}")
