"""How often the bench is wrong: coverage, false verdicts and power, simulated for other seeds and other test images.

    python experiments/coverage/simulate.py              # the tables of README.md, in minutes
    python experiments/coverage/simulate.py studies=300  # roughly, in seconds

Differences have parts as they are seen in the committed studies, in points from seed to seed and as the standard error
that the choice of the test images gives: 0.8 and 0.45, or 2.3 and 0.27.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from metaformer.analysis.inference import Crossed, moderated, over_seeds, over_seeds_and_images
from metaformer.analysis.interim_looks import looks_at
from metaformer.analysis.shares import variance_shares
from metaformer.analysis.stats import Scatter, holm
from metaformer.config.study_nodes import Analysis

IMAGES = 300
Parts = tuple[float, float, float]
CALM: Parts = (0.8, 7.8, 7.9)  # SD from seeds, images and what is left; 7.8 / sqrt(300) = 0.45
WILD: Parts = (2.3, 4.7, 7.9)
MARGIN, ALPHA = 2.0, 0.05
SCATTERS = ("alike", "unlike", "one x4", "reference x4")
SIZES = ((8, 1, 1), (1, 4, 1), (8, 4, 1), (8, 4, 2))  # of architectures, mixers and seeds: what each part has


def cell(random: np.random.Generator, n: int, scale: float = 1.0, parts: Parts = CALM) -> np.ndarray:
    """A cell's metric [seeds, images] about nothing; two cells differ with the SDs above."""
    s, i, r = (scale * sd / 2**0.5 for sd in parts)
    return random.normal(0, s, (n, 1)) + random.normal(0, i, IMAGES) + random.normal(0, r, (n, IMAGES))


def coverage(studies: int) -> None:
    print("| seeds | crossed interval | fixed-test-set t interval |\n| --- | ---: | ---: |")
    for n in (3, 5, 8, 16):
        random = np.random.default_rng(n)
        drawn = [cell(random, n) - cell(random, n) for _ in range(studies)]
        kinds = ([over_seeds_and_images(d) for d in drawn], [over_seeds(d.mean(1)) for d in drawn])
        held = [np.mean([abs(c.mean) <= c.half() for c in kind]) for kind in kinds]
        print(f"| {n} | {held[0]:.1%} | {held[1]:.1%} |")


def families(studies: int) -> None:
    """Five mixers against one reference, whose seeds scatter alike, unlike, or those of one four times as much."""
    kinds: dict[str, Callable[[Sequence[Crossed]], Sequence[Crossed]]] = {"own": list, "moderated": moderated}
    print("\n| parts | seeds | scatter | variance | intervals hold | false `different` | false `equivalent` | power |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name, parts in (("0.8, 0.45", CALM), ("2.3, 0.27", WILD)):
        for n in (3, 5):
            for words in SCATTERS:
                said: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
                random = np.random.default_rng(n)
                for _ in range(studies):
                    reference, *cells = (cell(random, n, scale, parts) for scale in _scales(random, words))
                    for kind, change in kinds.items():
                        said[kind].append(_rates([x - reference for x in cells], change, parts[0]))
                for kind, rows in said.items():
                    rates = " | ".join(f"{rate:.1%}" for rate in np.mean(rows, axis=0))
                    print(f"| {name} | {n} | {words} | {kind} | {rates} |")


def pairs(studies: int) -> None:
    """All pairs of six equal mixers, as for the claim and for ranks: they share cells."""
    print("\n| seeds | scatter | variance | intervals hold | false `different` | false `refuted` |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for n in (3, 5):
        for words in ("alike", "unlike", "one x4"):
            said: dict[str, list[list[float]]] = {"own": [], "moderated": []}
            random = np.random.default_rng(n)
            for _ in range(studies // 2):
                cells = [cell(random, n, scale, WILD) for scale in _scales(random, words)]
                found = [over_seeds_and_images(a - b) for a, b in combinations(cells, 2)]
                at_margin = [over_seeds_and_images(a - b + MARGIN) for a, b in combinations(cells, 2)]
                for kind in said:
                    both = [moderated(f, 5 * (n - 1)) if kind == "moderated" else f for f in (found, at_margin)]
                    held = float(np.mean([abs(c.mean) <= c.half() for c in both[0]]))
                    apart = min(holm([c.difference_p() for c in both[0]])) <= ALPHA
                    refuted = min(holm([c.beyond_p(MARGIN) for c in both[1]])) <= ALPHA
                    said[kind].append([held, apart, refuted])
            for kind, rows in said.items():
                rates = " | ".join(f"{rate:.1%}" for rate in np.mean(rows, axis=0))
                print(f"| {n} | {words} | {kind} | {rates} |")


def _scales(random: np.random.Generator, words: str) -> np.ndarray:
    """How much the seeds of six cells scatter, the reference first."""
    scales = np.exp(0.5 * random.normal(size=6)) if words == "unlike" else np.ones(6)
    if words in SCATTERS[2:]:
        scales[1 if words == "one x4" else 0] *= 4
    return scales


def _rates(
    differences: Sequence[np.ndarray], change: Callable[[Sequence[Crossed]], Sequence[Crossed]], scale: float
) -> list[float]:
    """Whether the intervals hold nothing; a false verdict of each kind in the family; the share of three SD found."""
    null, at_margin, far = (
        change([over_seeds_and_images(d + shift * scale) for d in differences]) for shift in (0.0, 2.5, 3.0)
    )
    held = float(np.mean([abs(c.mean) <= c.half() for c in null]))
    different = min(holm([c.difference_p() for c in null])) <= ALPHA
    equal = min(holm([c.equivalence_p(2.5 * scale) for c in at_margin])) <= ALPHA
    return [held, different, equal, float(np.mean(np.array(holm([c.difference_p() for c in far])) <= ALPHA))]


def looks(studies: int) -> None:
    print("\n| spending | looks | false `different` |\n| --- | --- | ---: |")
    for spending in ("obrien_fleming", "pocock"):
        analysis, random = Analysis(looks=[5, 8, 12, 16], spending=spending), np.random.default_rng(0)
        taken = looks_at(range(16), analysis)
        wrong = 0
        for _ in range(studies):
            d = cell(random, 16) - cell(random, 16)
            wrong += any(over_seeds_and_images(d[: len(k.seeds)]).difference_p() <= k.alpha for k in taken)
        print(f"| {spending} | 5, 8, 12, 16 seeds | {wrong / studies:.1%} |")
    wrong = sum(
        any(over_seeds(values[:k]).difference_p() <= ALPHA for k in (5, 8, 12, 16))
        for values in np.random.default_rng(1).normal(size=(studies, 16)).tolist()
    )
    print(f"| none: until it tells | 5, 8, 12, 16 seeds | {wrong / studies:.1%} |")


def power(studies: int) -> None:
    print("\n| seeds | true difference | equivalent: `plan` | simulated | different: `plan` | simulated |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    seed, image, rest = CALM
    scatter = Scatter((seed**2 + rest**2 / IMAGES) ** 0.5, image / IMAGES**0.5)
    for n in (3, 5, 8):
        for difference in (0.0, 1.5):
            random = np.random.default_rng(n)
            found = [over_seeds_and_images(cell(random, n) - cell(random, n) + difference) for _ in range(studies)]
            equal = np.mean([c.equivalence_p(MARGIN) <= ALPHA for c in found])
            different = np.mean([c.difference_p() <= ALPHA for c in found])
            planned = scatter.powers(n, MARGIN, ALPHA, difference)
            print(f"| {n} | {difference} | {planned[0]:.1%} | {equal:.1%} | {planned[1]:.1%} | {different:.1%} |")


def shares(studies: int) -> None:
    """Three architectures, six mixers; shares of 20, 45, 15 and 20%; cells whose seeds scatter alike and unlike."""
    truth, names = np.array([4.0, 9.0, 3.0, 4.0]), ["architecture", "mixer"]
    print("\n| seeds | part | bias in points | covered |\n| --- | --- | ---: | ---: |")
    for n in (3, 5, 8, 16):
        random, bias, held = np.random.default_rng(n), [], []
        for i in range(studies // 4):
            a, m, both = (_effect(random, *size) for size in ((3, 1), (1, 6), (3, 6)))
            sd = (1 + i % 2) ** random.normal(size=(3, 6))
            sd *= 2 / np.sqrt((sd**2).mean())
            values = (2 * a + 3 * m + 3**0.5 * both)[..., None] + sd[..., None] * random.normal(size=(3, 6, n))
            found = variance_shares(values, names)
            bias.append([c.share for c in found] - truth / 20)
            held.append([c.low <= t / 20 <= c.high for c, t in zip(found, truth, strict=True)])
        for name, b, h in zip([*names, "their interaction", "seed"], np.mean(bias, 0), np.mean(held, 0), strict=True):
            print(f"| {n} | {name} | {100 * b:+.1f} | {h:.1%} |")


def which(studies: int) -> None:
    """The rule of trained_architectures: eight architectures and four mixers, all drawn at random, two seeds."""
    print("\n| true share: architecture | mixer | interaction | seed | `architecture` | `mixer` | `undecided` |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for truth in ((20, 60), (60, 20), (5, 80), (80, 5), (40, 40)):
        random, said = np.random.default_rng(truth[0]), [0, 0, 0]
        parts = (*truth, 10, 90 - sum(truth))
        for _ in range(studies // 4):
            drawn = (random.normal(0, part**0.5, size) for part, size in zip(parts, SIZES, strict=True))
            (low, high), (lower, higher) = (c.levels for c in variance_shares(sum(drawn), ["a", "m"])[:2])
            said[0 if low > higher else 1 if lower > high else 2] += 1
        rates = " | ".join(f"{n / sum(said):.0%}" for n in said)
        print(f"| {' | '.join(f'{part}%' for part in parts)} | {rates} |")


def _effect(random: np.random.Generator, *size: int) -> np.ndarray:
    x = random.normal(size=size)
    for axis, levels in enumerate(size):
        x = x - x.mean(axis, keepdims=True) if levels > 1 else x
    return np.asarray(x / np.sqrt((x**2).mean()))


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[1:])
    number = int(given.get("studies", 4000))
    for simulation in (coverage, families, pairs, looks, power, shares, which):
        simulation(number)
