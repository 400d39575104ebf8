"""Which shards going through a bank reads, and how many it keeps."""

from __future__ import annotations

import pytest

from raffect.bank.features import read_shard_features
from raffect.evaluation import scan


class ShardWatch:
    """Watches `raffect.evaluation.scan` from now on.

    Attributes:
        read: Numbers of the shards that were read, in order.
        most: Most shards that were kept at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[int] = []
        self.most = 0
        watch = self

        def count(bank, commit, dim):
            watch.read.append(commit.shard)
            return read_shard_features(bank, commit, dim)

        class Watched(scan._Shards):
            def gather(self, places):
                out = super().gather(places)
                watch.most = max(watch.most, len(self._open))
                return out

        monkeypatch.setattr(scan, "read_shard_features", count)
        monkeypatch.setattr(scan, "_Shards", Watched)
