"""What workers of one run exchange, so that many give the result of one.

A worker alone exchanges nothing, at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from raffect.errors import RaffectError


@dataclass(frozen=True)
class Workers:
    """The processes that train heads together, through torch.distributed's default group.

    Attributes:
        rank: Number of this one.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Workers:
        """Those of the group that torch.distributed was started with."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, count: int) -> slice:
        """This worker's part of ``count`` rows, which must divide evenly."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up over the workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def require_same(self, number: int, what: str, device: torch.device) -> None:
        """Raise in every worker unless all of them have the same number.

        Raises:
            RaffectError: Names the numbers.
        """
        found = self.gather(torch.tensor([[number]], device=device))[0].tolist()
        if len(set(found)) > 1:
            numbers = ", ".join(map(str, found))
            storage = "put --out on storage that every node sees alike"
            remedy = f"{storage}, and give the same command again"
            raise RaffectError(f"workers see different {what}: {numbers}; {remedy}")

    def gather(self, tensor: Tensor) -> Tensor:
        """Join along dimension 1 in the order of ranks."""
        if self.size == 1:
            return tensor
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, 1)
