"""How much of alpha each planned look at a growing number of seeds may spend (Lan and DeMets 1983)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metaformer.config.study_nodes import Analysis


@dataclass(frozen=True)
class Look:
    """A time at which verdicts are taken."""

    seeds: tuple[int, ...]
    alpha: float  # of the verdicts of this look


def spent(share: float, analysis: Analysis) -> float:
    """The alpha that is spent when this share of the planned seeds has been looked at."""
    from scipy import special

    if share >= 1:
        return analysis.alpha
    if analysis.spending == "pocock":
        return analysis.alpha * math.log(1 + (math.e - 1) * share)
    return float(2 * special.ndtr(special.ndtri(analysis.alpha / 2) / math.sqrt(share)))


def looks_at(seeds: Sequence[int], analysis: Analysis) -> list[Look]:
    """The looks that so many seeds allow: one at all of them, where none are planned.

    Each look has what is spent at it and not before. The sum of these is alpha, so that a family has a false verdict
    at any of the looks with alpha at the most, however the looks hang together (they share seeds and images).
    """
    ordered = sorted(seeds)
    if analysis.looks is None:
        return [Look(tuple(ordered), analysis.alpha)]
    found, before = [], 0.0
    for n in analysis.looks:
        now = spent(n / analysis.looks[-1], analysis)
        if n <= len(ordered):
            found.append(Look(tuple(ordered[:n]), now - before))
        before = now
    return found
