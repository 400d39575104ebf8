"""Whether the pictures of a manifest are there, before hours are spent on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.datasets.frames import BadFrame, read_contents
from raffect.errors import RaffectError

_LOOKED_AT = 32


def require_pictures(frames: pa.Table, manifest: Path) -> None:
    """Read some pictures, evenly over all, of which at least one has to be there.

    Args:
        frames: Rows of ``manifest``.
        manifest: The file that an error names.

    Raises:
        RaffectError: If none of them can be read. Each would be a reject of every bank.
    """
    places = np.unique(np.linspace(0, len(frames) - 1, _LOOKED_AT).astype(int))
    rows = frames.take(pa.array(places))
    reasons = [found for found in read_contents(rows) if isinstance(found, BadFrame)]
    if len(reasons) == len(rows):
        first = f"{rows['root'][0].as_py()}/{rows['path'][0].as_py()}: {reasons[0]}"
        raise RaffectError(
            f"{manifest}: none of {len(rows)} of its pictures can be read (first {first}); put "
            "them back, or make the manifest again with `raffect prepare`"
        )
