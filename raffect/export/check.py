"""An exported file, run by its users' runtime, against what raffect predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from raffect.errors import RaffectError
from raffect.export.records import Agreement

TOLERANCE = {"features": 1e-5, "pixels": 2e-3}
"""Largest accepted difference of a probability, or of a value beside the largest value, by input.

Heads differ by the rounding of float32 alone. Behind an encoder, whose sums another runtime takes
in another order, a feature can fall on the other side of a step of float16.
"""
DECISIONS = 0.02
"""Largest accepted share of decisions that differ: scores this close to a threshold are rare."""
_AT_ONCE = 32
"""Pictures that are run at once."""


def compare(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    given: np.ndarray,
    expected: Mapping[str, np.ndarray],
    *,
    runtime: str,
    source: str,
) -> Agreement:
    """Run a file on samples and compare.

    Args:
        run: Runs the file.
        given: What it reads: float32 features, or uint8 pictures.
        expected: What raffect predicts, by output.
        runtime: What runs the file.
        source: What the samples are.

    Raises:
        RaffectError: If outputs are of another shape, not finite, or too far off, or if decisions
            differ more often than scores near a threshold explain.
    """
    is_pixels = given.dtype == np.uint8
    tolerance = TOLERANCE["pixels" if is_pixels else "features"]
    # The last part may have any size, so that the number of samples is seen to be free
    step = _AT_ONCE if is_pixels else max(1, len(given) - 1)
    parts = [run(given[start : start + step]) for start in range(0, len(given), step)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in expected}
    difference, decided_otherwise = {}, {}
    for name, values in expected.items():
        shapes = found[name].shape, values.shape
        if shapes[0] != shapes[1]:
            raise RaffectError(f"{name}: {runtime} gives {shapes[0]}, raffect {shapes[1]}; a bug")
        if values.dtype.kind != "f":
            differ = found[name] != values
            decided_otherwise[name] = int(differ.sum())
            if differ.mean() > DECISIONS:
                raise RaffectError(
                    f"{name}: {runtime} decides {differ.sum():,} of {differ.size:,} otherwise than "
                    f"raffect on {source}; nothing was written: this is a bug, please report it"
                )
            continue
        scale = max(1.0, float(np.abs(values).max(initial=0)))
        difference[name] = float(np.abs(found[name] - values).max(initial=0)) / scale
        if not difference[name] <= tolerance:  # NaN is neither
            raise RaffectError(
                f"{name}: {runtime} differs from raffect by {difference[name]:.1e} on {source}, "
                f"and at most {tolerance:.0e} is accepted; nothing was written: use another "
                "--format, or another version of the packages"
            )
    return Agreement(
        runtime=runtime,
        samples=len(given),
        source=source,
        tolerance=tolerance,
        difference=difference,
        decided_otherwise=decided_otherwise,
    )
