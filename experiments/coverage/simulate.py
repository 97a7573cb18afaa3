"""How often the bench is wrong: coverage, false verdicts and power, simulated for other seeds and other test images.

    python experiments/coverage/simulate.py              # the tables of README.md, in minutes
    python experiments/coverage/simulate.py studies=300  # roughly, in seconds

Differences have the parts that are seen in the committed studies: 0.8 points from seed to seed, a standard error of
0.45 points from the choice of the test images, as much again from what is left.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np

from metaformer.analysis.crossed import Crossed, moderated, over_seeds, over_seeds_and_images
from metaformer.analysis.looks import looks_at
from metaformer.analysis.shares import variance_shares
from metaformer.analysis.stats import Scatter, holm
from metaformer.config.schema import Analysis

IMAGES = 300
SEED, IMAGE, REST = 0.8, 7.8, 7.9  # SD; 7.8 / sqrt(300) = 0.45
MARGIN, ALPHA = 2.0, 0.05


def cell(random: np.random.Generator, n: int, scale: float = 1.0, half: float = 0.5**0.5) -> np.ndarray:
    """A cell's metric [seeds, images] about nothing; two cells differ with the SDs above."""
    s, i, r = (scale * half * sd for sd in (SEED, IMAGE, REST))
    return random.normal(0, s, (n, 1)) + random.normal(0, i, IMAGES) + random.normal(0, r, (n, IMAGES))


def coverage(studies: int) -> None:
    print("| seeds | crossed interval | fixed-test-set t interval |\n| --- | ---: | ---: |")
    for n in (3, 5, 8, 16):
        random = np.random.default_rng(n)
        found = [over_seeds_and_images(cell(random, n) - cell(random, n)) for _ in range(studies)]
        held = [
            np.mean([abs(c.mean) <= c.half() for c in kind]) for kind in (found, [c.on_these_images for c in found])
        ]
        print(f"| {n} | {held[0]:.1%} | {held[1]:.1%} |")


def families(studies: int) -> None:
    """Five mixers against one reference; scales of the cells: alike, or log-normal."""
    kinds: dict[str, Callable[[Sequence[Crossed]], Sequence[Crossed]]] = {"own": list, "moderated": moderated}
    print(
        "\n| seeds | cells scatter | variance | false `different` | false `equivalent` | "
        "power, 1.5 points | false claim shown |\n| --- | --- | --- | ---: | ---: | ---: | ---: |"
    )
    for n in (3, 5, 8):
        for words, spread in (("alike", 0.0), ("unlike (SD of the log 0.5)", 0.5)):
            said: dict[str, list[list[bool]]] = {kind: [] for kind in kinds}
            random = np.random.default_rng(n)
            for _ in range(studies):
                scales = np.exp(spread * random.normal(size=6))
                reference, *cells = (cell(random, n, scale) for scale in scales)
                for kind, change in kinds.items():
                    at = {
                        shift: change([over_seeds_and_images(x - reference + shift) for x in cells])
                        for shift in (0.0, MARGIN, 1.5)
                    }
                    different = min(holm([c.difference_p() for c in at[0.0]])) <= ALPHA
                    equal = [c.equivalence_p(MARGIN) for c in at[MARGIN]]
                    power = np.mean(np.array(holm([c.difference_p() for c in at[1.5]])) <= ALPHA)
                    said[kind].append([different, min(holm(equal)) <= ALPHA, power, max(equal) <= ALPHA])
            for kind, rows in said.items():
                rates = " | ".join(f"{rate:.1%}" for rate in np.mean(rows, axis=0))
                print(f"| {n} | {words} | {kind} | {rates} |")


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
    scatter = Scatter((SEED**2 + REST**2 / IMAGES) ** 0.5, IMAGE / IMAGES**0.5)
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


def _effect(random: np.random.Generator, *size: int) -> np.ndarray:
    x = random.normal(size=size)
    for axis, levels in enumerate(size):
        x = x - x.mean(axis, keepdims=True) if levels > 1 else x
    return np.asarray(x / np.sqrt((x**2).mean()))


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[1:])
    number = int(given.get("studies", 4000))
    for simulation in (coverage, families, looks, power, shares):
        simulation(number)
