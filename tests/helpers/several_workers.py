"""Processes that train together, as workers of Ray Train do, without Ray."""

import socket

import torch
import torch.multiprocessing as mp


def run_workers(work, size, folder):
    """Run ``work(rank, folder)`` in so many processes of one group; it lies in a test's module."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_join_group, (size, port, work, folder), nprocs=size)


def _join_group(rank, size, port, work, folder):
    address = f"tcp://127.0.0.1:{port}"
    group = {"init_method": address, "rank": rank, "world_size": size}
    torch.distributed.init_process_group("gloo", **group)
    torch.set_num_threads(1)
    work(rank, folder)
    torch.distributed.destroy_process_group()
