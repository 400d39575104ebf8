"""How often 95 % intervals over videos hold the score on all videos there are.

    uv run python benchmarks/coverage.py --draws 2000

Made-up populations with known scores (populations.py); for 13, 40 and 70 videos the coverage and
median width of raffect's interval, on which side the truth was missed, the same of the paired
interval of a difference of two heads, and of a bootstrap over videos (what raffect printed until
November 2026: 1,000 draws, classes that a draw lost left out of its mean, moved back to the score).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from populations import POPULATIONS, Population
from tools import new_parser, print_header, print_machine, print_row

from raffect.metrics.f1 import f1_scores, one_against_rest
from raffect.metrics.intervals import Interval, difference_interval, score_interval
from raffect.metrics.task_kinds import KINDS, Kind


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="of the videos")
    parser.add_argument("--bootstraps", type=int, default=400, help="of them with a bootstrap too")
    parser.add_argument("--videos", type=int, nargs="+", default=[13, 40, 70])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    columns = ("covers", "misses: truth above", "width", "difference covers", "bootstrap covers")
    print_header("population", "true score", "videos", *columns, "width, times the bootstrap's")
    for population in POPULATIONS:
        for videos in options.videos:
            rng = np.random.default_rng([options.seed, videos])
            drawn = [population.draw(videos, rng) for _ in range(options.draws)]
            print_row(*_describe(population, videos, drawn, options.bootstraps))
    print_machine()


def _describe(
    population: Population, videos: int, drawn: Sequence[np.ndarray], bootstraps: int
) -> list[str]:
    """One row of the table."""
    # Intervals of the first head, and of the difference of both
    kind, (truth, other) = population.kind, population.truth
    ours = [score_interval(first, kind) for first, _ in drawn]
    differences = [difference_interval(second, first, kind)[1] for first, second in drawn]
    theirs = [bootstrap(first, kind, seed) for seed, (first, _) in enumerate(drawn[:bootstraps])]

    # How they do; widths on the same draws
    above = np.mean([high < truth for _, high in ours])
    factor = width(ours[:bootstraps]) / width(theirs)
    return [
        population.name,
        f"{truth:.3f}",
        str(videos),
        f"{coverage(ours, truth):.3f}",
        f"{above:.3f}",
        f"{width(ours):.3f}",
        f"{coverage(differences, other - truth):.3f}",
        f"{coverage(theirs, truth):.3f}",
        f"{factor:.2f}",
    ]


def coverage(intervals: Sequence[Interval], truth: float) -> float:
    """Share of intervals that hold the truth."""
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def width(intervals: Sequence[Interval]) -> float:
    """Median width."""
    return float(np.median([high - low for low, high in intervals]))


def bootstrap(statistics: np.ndarray, kind: Kind, seed: int, draws: int = 1000) -> Interval:
    """Interval of the score of one head by a bootstrap over videos, shape (videos, A, B)."""
    # How often each draw takes each video, and the score of that sum of statistics
    videos = len(statistics)
    taken = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), draws)
    sums = np.einsum("dv,vab->dab", taken, statistics, optimize=True)
    scores = kind.headline(sums)
    if kind is not KINDS["regression"]:
        counts = one_against_rest(sums) if kind is KINDS["multiclass"] else sums
        shown = counts[..., 0] + counts[..., 2] > 0
        shown_classes = np.maximum((shown | ~shown.any(0)).sum(-1), 1)
        scores = (f1_scores(counts) * shown).sum(-1) / shown_classes

    # Quantiles, moved so that the draws have the mean of the score
    lift = scores.mean() - kind.headline(statistics.sum(0))
    low, high = np.clip(np.quantile(scores, (0.025, 0.975)) - lift, kind.lowest, 1)
    return float(low), float(high)


if __name__ == "__main__":
    main()
