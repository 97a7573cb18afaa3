"""Trained mixers beside each other: tables, and what stands out in words."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from metaformer.analysis.inference import mean_interval
from metaformer.analysis.stats import Estimate, cka
from metaformer.analysis.text_table import Table, plus_minus
from metaformer.probing.kept import CKA_IMAGES, Probed

Cells = Mapping[str, Mapping[int, Probed]]  # by name, then by seed
STAGE_COLUMNS = {  # by key of a stage's numbers
    "rank": "effective rank",
    "entropy": "entropy",
    "distance": "distance",
    "norm": "spectral norm",
    "branch": "branch / skip",
    "half": "half of the field, %",
    "beyond": "beyond patches, %",
}


PERCENT = ("half", "beyond")
STAGE_CAPTION = (
    "Means over the blocks of a stage; mean over n seeds ± half of the 95% t interval. Effective rank of the mixing "
    "matrix, whose entries are sizes (exp of the entropy of its singular values: how many patterns its rows have); "
    "entropy of its rows (0: one token, 1: all alike); mean distance in tokens over which it mixes; spectral norm of "
    "the mixer's Jacobian; norm of the branch over that of the skip path. Receptive field of the token in the middle: "
    "the share of pixels that brings half of its response to noise on every pixel, and the share of that response from "
    "beyond what stem and downsampling reach."
)


def first(seeds: Mapping[int, Probed]) -> Probed:
    """Of the first seed, which stands for the others where there is one picture or a count."""
    return seeds[min(seeds)]


def stage_table(cells: Cells) -> Table:
    lines = []
    for name, seeds in cells.items():
        for i in range(len(first(seeds).numbers)):
            values = []
            for key in STAGE_COLUMNS:
                scale = 100 if key in PERCENT else 1
                values.append(_cell([scale * p.numbers[i][key] for p in seeds.values()]))
            lines.append([name, str(i + 1), str(len(seeds)), *values])
    return Table(["mixer", "stage", "n", *STAGE_COLUMNS.values()], lines, STAGE_CAPTION)


def _cell(values: Sequence[float]) -> str:
    return "" if any(map(math.isnan, values)) else plus_minus(mean_interval(values))


def losses(seeds: Mapping[int, Probed], stage: int, instead: str) -> Estimate:
    """What surgery on a stage changes in accuracy, in points, paired by seed."""
    return mean_interval([100 * (p.surgery[stage][instead] - p.accuracy) for p in seeds.values()])


def surgery_table(cells: Cells) -> Table:
    lines, instead = [], instead_of(cells)
    for name, seeds in cells.items():
        whole = plus_minus(mean_interval([100 * p.accuracy for p in seeds.values()]))
        for i in range(len(first(seeds).surgery)):
            changes = [plus_minus(losses(seeds, i, kind), "+") for kind in instead]
            lines.append([name, str(i + 1), str(len(seeds)), whole, *changes])
    caption = (
        "Validation accuracy in %, and its change in points where every mixer of a stage is replaced in the trained "
        "model; nothing is trained again. Mean over n seeds ± half of the 95% t interval."
    )
    return Table(["mixer", "stage", "n", "whole", *(f"{kind} instead" for kind in instead)], lines, caption)


def instead_of(cells: Cells) -> list[str]:
    """What surgery puts in the place of a mixer."""
    return list(first(next(iter(cells.values()))).surgery[0])


def similarity(one: Mapping[int, Probed], other: Mapping[int, Probed], stage: int) -> Estimate:
    """CKA of two cells at the seeds that both have; of a cell with itself between every two of its seeds.

    The interval is Student's over the seeds; within a cell that of the jackknife, since every seed is in many pairs.
    """
    if one is not other:
        return mean_interval([_cka(one[seed], other[seed], stage) for seed in sorted(one.keys() & other.keys())])
    pairs = {(a, b): _cka(one[a], one[b], stage) for a, b in combinations(sorted(one), 2)}
    n, mean = len(one), float(np.mean(list(pairs.values()))) if pairs else math.nan
    if n < 3:
        return Estimate(mean, math.nan, math.nan, n)
    without = [np.mean([value for pair, value in pairs.items() if seed not in pair]) for seed in one]
    return mean_interval([float(n * mean - (n - 1) * w) for w in without])


def _cka(one: Probed, other: Probed, stage: int) -> float:
    return cka(*(p.grams[stage].astype(np.float64) for p in (one, other)))


def similarities(cells: Cells) -> list[dict[tuple[str, str], Estimate]]:
    """CKA by stage and pair, cells with themselves included; of the stages that all have."""
    stages = min(len(p.grams) for seeds in cells.values() for p in seeds.values())
    names = list(cells)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    return [{(a, b): similarity(cells[a], cells[b], i) for a, b in pairs} for i in range(stages)]


def cka_table(found: Sequence[Mapping[tuple[str, str], Estimate]]) -> Table:
    lines = [
        [a if a == b else f"{a} and {b}", str(i + 1), str(e.n), plus_minus(e)]
        for i, pairs in enumerate(found)
        for (a, b), e in pairs.items()
        if not math.isnan(e.mean)
    ]
    caption = (
        f"Linear CKA of the features of {CKA_IMAGES} validation images at most, after each stage: two mixers at the "
        "same seed, a mixer with itself at other seeds. Mean ± half of the 95% interval over n seeds. 1: the same up "
        "to rotation and scale."
    )
    return Table(["mixers", "stage", "n", "CKA"], lines, caption)


def sentences(cells: Cells, found: Sequence[Mapping[tuple[str, str], Estimate]]) -> list[str]:
    """What stands out, in words that hold whatever was found."""
    said = []
    across = {pair: e for pair, e in found[-1].items() if pair[0] != pair[1] and not math.isnan(e.mean)}
    within = {pair[0]: e for pair, e in found[-1].items() if pair[0] == pair[1] and not math.isnan(e.mean)}
    if across:
        closest, farthest = (choose(across, key=lambda pair: across[pair].mean) for choose in (max, min))
        line = "Features after the last stage, at the same seed: CKA from "
        line += f"{_pair(farthest, across)} to {_pair(closest, across)}"
        if within:
            own = [e.mean for e in within.values()]
            line += f"; one mixer at two seeds: {min(own):.2f} to {max(own):.2f}"
        said.append(f"{line}.")
    for name, seeds in cells.items():
        if all(n["distance"] == 0 for p in seeds.values() for n in p.numbers):
            e = mean_interval([100 * p.numbers[-1]["beyond"] for p in seeds.values()])
            if not e.mean > 0:
                continue  # where no norm spans the tokens
            said.append(
                f"{name} mixes no tokens, and yet {_words(e)}% of what a token after the last stage responds to lies "
                "beyond the pixels that stem and downsampling bring it: the statistics of the norm."
            )
    lost = {
        (name, i): losses(seeds, i, "identity")
        for name, seeds in cells.items()
        for i in range(len(first(seeds).surgery))
        if any(p.surgery[i]["identity"] != p.accuracy for p in seeds.values())  # not identity in its own place
    }
    if lost:
        most, least = (choose(lost, key=lambda key: lost[key].mean) for choose in (min, max))
        said.append(
            f"Identity in the place of a stage's mixers costs {most[0]} most (stage {most[1] + 1}: "
            f"{_words(lost[most], '+')} points), and {least[0]} least (stage {least[1] + 1}: "
            f"{_words(lost[least], '+')})."
        )
    return said


def _pair(pair: tuple[str, str], among: Mapping[tuple[str, str], Estimate]) -> str:
    return f"{_words(among[pair], '', 2)} ({pair[0]} and {pair[1]})"


def _words(e: Estimate, sign: str = "", decimals: int = 1) -> str:
    mean = f"{e.mean:{sign}.{decimals}f}"
    return mean if math.isnan(e.low) else f"{mean} [{e.low:{sign}.{decimals}f}, {e.high:{sign}.{decimals}f}]"
