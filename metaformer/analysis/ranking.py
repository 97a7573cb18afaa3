"""How the levels of the study's factor rank in each setting and over all of them, like data sets, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from metaformer.analysis.comparison import Comparison


@dataclass(frozen=True)
class Place:
    """A rank, 1 for the best, or a mean of ranks, with the interval that holds for all levels and settings at once."""

    rank: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranked:
    """A level with its place in each setting."""

    level: str
    places: dict[str, Place]

    @property
    def over_all(self) -> Place:
        """The mean over the settings; its interval is as sure as those of the settings, which hold together."""
        places = self.places.values()
        return Place(mean(p.rank for p in places), mean(p.low for p in places), mean(p.high for p in places))


def ranking(pairs: Sequence[Comparison], adjusted: Sequence[float], alpha: float, *, higher: bool) -> list[Ranked]:
    """The levels by their mean rank over the settings; none where these are fewer than two, or have other levels.

    A level may be as good as all but those that are shown to be better: its rank is at least one more than these are,
    and at most one more than those that are not shown to be worse (Mohamad, Goeman and van Zwet 2022).

    Args:
        pairs: all pairs of levels within a setting.
        adjusted: their p values of no difference, corrected over all of them.
        higher: more of the metric is better.
    """
    settings: dict[str, dict[str, list[float]]] = {}  # for each level how many are better, surely better, surely worse
    for pair, p in zip(pairs, adjusted, strict=True):
        for cell, sign in zip(pair.cells, (1, -1), strict=True):
            counts = settings.setdefault(pair.setting, {}).setdefault(cell.levels[pair.factor], [0, 0, 0])
            ahead = sign * pair.crossed.mean * (1 if higher else -1)
            counts[0] += 1 if ahead < 0 else 0.5 if ahead == 0 else 0
            counts[1] += p <= alpha and ahead < 0
            counts[2] += p <= alpha and ahead > 0
    levels = {tuple(sorted(found)) for found in settings.values()}
    if len(settings) < 2 or len(levels) > 1:
        return []
    ranked = [
        Ranked(
            level,
            {
                setting: Place(1 + better, 1 + surely_better, len(found) - surely_worse)
                for setting, found in settings.items()
                for better, surely_better, surely_worse in [found[level]]
            },
        )
        for level in levels.pop()
    ]
    return sorted(ranked, key=lambda r: r.over_all.rank)
