"""Rows that get a caption each, on their way to a label table; whatever is left out is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from raffect.datasets.labels import is_of_clips
from raffect.errors import require
from raffect.storage.records import Record


@dataclass(frozen=True, kw_only=True)
class LeftOut(Record):
    """Rows that were left out for one reason.

    Attributes:
        what: The reason.
        rows: How many.
        videos: Of how many videos.
        first: The first of them.
    """

    what: str
    rows: Annotated[int, Ge(1)]
    videos: Annotated[int, Ge(1)]
    first: str

    def text(self) -> str:
        """As part of a line."""
        rows, videos = self.rows, self.videos
        sizes = f"{rows:,} row{'s' * (rows > 1)} of {videos:,} video{'s' * (videos > 1)}"
        return f"{sizes}: {self.what} (first: {self.first})"


@dataclass(frozen=True)
class Captioned:
    """N rows of a label table in the making.

    Attributes:
        table: ``video``; ``frame``, or ``start`` and ``end``; perhaps ``split`` and ``group``;
            ``target``, a number of one of ``texts``; ``class`` where texts are of classes; and
            ``line`` where rows are those of a file.
        where: The file they are from, for errors.
        texts: Captions, each once.
        left_out: What was left out so far.
    """

    table: pa.Table
    where: str
    texts: Sequence[str] = ()
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def without(self, wrong: np.ndarray, what: str) -> Captioned:
        """The same without some rows, which are counted.

        Args:
            wrong: Mask of shape (N,).
            what: Why.

        Raises:
            RaffectError: If no row is left; the message has all that was left out.
        """
        if not wrong.any():
            return self
        gone = self.table.filter(pa.array(wrong))
        videos, first = len(gone["video"].unique()), self._name(int(wrong.argmax()))
        found = LeftOut(what=what, rows=len(gone), videos=videos, first=first)
        kept = self.table.filter(pa.array(~wrong))
        rest = replace(self, table=kept, left_out=(*self.left_out, found))
        require(len(kept) > 0, f"{self.where}: no row is left to learn from: {rest.reasons}")
        return rest

    @property
    def reasons(self) -> str:
        """All that was left out so far, to stand in an error."""
        return "; ".join(part.text() for part in self.left_out)

    def _name(self, row: int) -> str:
        """``line 12``, or ``video1 frame 3``."""
        cells = self.table.slice(row, 1).to_pylist()[0]
        if "line" in cells:
            return f"line {cells['line']}"
        frames = f"{cells['start']}-{cells['end']}" if "start" in cells else f"{cells['frame']}"
        return f"{cells['video']} frame {frames}"


def ends_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """First and last frame of each row, int64, shape (N,)."""
    names = ("start", "end") if is_of_clips(table) else ("frame", "frame")
    first, last = (table[name].to_numpy().astype(np.int64) for name in names)
    return first, last
