"""Whether cells are comparable: what they differ in beside what is compared. Every seed's configuration is read."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from metaformer.analysis.cells import Cell, with_runs
from metaformer.config.identity import unlike
from metaformer.config.schema import GROUPS
from metaformer.config.study_nodes import Analysis, Study
from metaformer.runs.result import Result

# What is recorded of a run beside its configuration. Runtime keys change a result no more than rounding does, but in
# one arm only they are a difference that is not the factor; parts of a batch mix their images among themselves
RECORDED: dict[str, Callable[[Result], object]] = {
    "device": lambda run: run.device,
    "devices": lambda run: run.devices,
    "runtime.accumulate": lambda run: run.accumulate,
    "runtime.tf32": lambda run: run.config.runtime.tf32,
    "runtime.compile": lambda run: run.config.runtime.compile if run.compiled is None else run.compiled,
    "runtime.graph": lambda run: run.config.runtime.graph and run.compiled,
    "trained epochs": lambda run: _of(run.epochs, run.config.recipe.epochs_on(run.images)),
    "trained images": lambda run: None if run.config.data.train else run.images,
    "Python": lambda run: run.python,
    "version of the training code": lambda run: run.training_version,
}


IMAGES = "data.fingerprint"  # of the images, among the settings


def _of(count: int, planned: int) -> str:
    return "all" if count == planned else f"{count} of {planned}"


def confounds(a: Cell, b: Cell, factor: str, study: Study) -> list[str]:
    """What two cells differ in beside the factor: configuration, images, cost beyond the tolerance, code, machine."""
    if not a.runs or not b.runs:
        return []
    common = sorted(a.runs.keys() & b.runs.keys())
    pairs = [(seed, seed) for seed in common] or [(min(a.runs), min(b.runs))]
    found = [line for mine, other in pairs for line in _beside(a, mine, b, other, [factor], study)]
    if any(not np.array_equal(a.labels[seed], b.labels[seed]) for seed in a.labels.keys() & b.labels.keys()):
        found.append("other labels of the test images")
    for cell in (a, b):
        found += [f"the seeds of {cell.name}: {line}" for line in _within(cell, study)]
    to_reference = b.levels.get(factor) == study.reference
    return list(dict.fromkeys([*found, *costs(a, b, study.analysis, to_reference=to_reference)]))


def of_grid(cells: Sequence[Cell], factors: Sequence[str], study: Study) -> list[str]:
    """What the cells of a whole grid differ in beside its factors."""
    found, own, first = list[str](), _of_variants(cells, factors, study), dict[int, Cell]()
    for cell in cells:
        for seed in sorted(cell.runs):
            found += _beside(first.setdefault(seed, cell), seed, cell, seed, factors, study, own)
    return list(dict.fromkeys(found))


def _of_variants(cells: Sequence[Cell], factors: Sequence[str], study: Study) -> set[str]:
    """What files of named variants set, as of a folder `images`: the keys that change with that factor and no other.

    Variants of what is compared are not meant: a mixer whose file sets a rate of its own is not a mixer alone.
    """
    finished = with_runs(cells)
    settings = [{**cell.settings[min(cell.runs)], IMAGES: cell.first.fingerprint} for cell in finished]
    keys, found = {key for own in settings for key in own}, set[str]()
    for factor in factors:
        if factor in (*GROUPS, study.name, study.analysis.factor) or any(_is_key(key, factor) for key in keys):
            continue
        firsts: dict[str, Mapping[str, object]] = {}
        others = set[str]()
        for cell, own in zip(finished, settings, strict=True):
            others |= unlike(firsts.setdefault(cell.levels[factor], own), own, same_images=False).keys()
        found |= keys - others
    return found


def _beside(
    a: Cell, mine: int, b: Cell, other: int, factors: Sequence[str], study: Study, own: Collection[str] = ()
) -> list[str]:
    """What the run of one cell at a seed differs in from that of another beside the factors and keys of their own."""
    one, two = a.runs[mine], b.runs[other]
    same_images = one.fingerprint is not None and one.fingerprint == two.fingerprint
    found = unlike(a.settings[mine], b.settings[other], same_images=same_images)
    keys = [key for key in found if key != "seed" and key not in study.analysis.tuned and key not in own]
    odd = [key for key in keys if not any(_belongs(key, factor, keys, study.name) for factor in factors)]
    lines = [f"{key} ({found[key][0]} against {found[key][1]})" for key in odd]
    if "data" not in factors and IMAGES not in own:
        lines += ["other images"] if one.fingerprint != two.fingerprint else []
    for name, read in RECORDED.items():
        meant = name == "trained images" and (factors == ["data"] or IMAGES in own)
        if read(one) != read(two) and not meant:
            lines.append(f"{name} ({read(one)} against {read(two)})")
    libraries = [
        f"{name} ({one.versions.get(name)} against {two.versions.get(name)})"
        for name in {**one.versions, **two.versions}
        if one.versions.get(name) != two.versions.get(name)
    ]
    return [*lines, *libraries]


def _within(cell: Cell, study: Study) -> list[str]:
    """What the runs of one cell differ in beside their seeds."""
    first = min(cell.runs)
    return list(dict.fromkeys(line for seed in cell.runs for line in _beside(cell, first, cell, seed, [], study)))


def within(difference: float, tolerance: float) -> bool:
    """Whether a cost that differs by a share of the other counts as the same."""
    return abs(difference) <= tolerance * (1 + 1e-9)  # 1.1 - 1 is more than 0.1


def costs(a: Cell, b: Cell, analysis: Analysis, *, to_reference: bool = False) -> list[str]:
    """Parameters and MACs that differ by more than the tolerance: of the reference's, or else of the larger ones."""
    if analysis.tolerance is None:
        return []
    found, both = [], {"parameters": (a.first.params, b.first.params), "MACs": (a.first.macs, b.first.macs)}
    for name, (one, two) in both.items():
        if one is None or two is None:
            found.append(f"{name} not counted")
        elif not within((one - two) / (two if to_reference else max(one, two)), analysis.tolerance):
            found.append(f"{name} {one / two - 1:+.0%} (tolerance {100 * analysis.tolerance:.4g}%)")
    return found


def _belongs(key: str, factor: str, differing: Sequence[str], study: str | None) -> bool:
    """Whether a key that differs is what the factor varies.

    A factor is a config group (`mixer`), a key (`norm` of model.norm), a folder of named variants of the model, or,
    with the name of the study, a list of rows that may change one thing each.
    """
    if factor in GROUPS:
        return key.split(".")[0] == factor
    own = [k for k in differing if _is_key(k, factor)]
    if own:
        return key in own
    if factor == study:
        return len({"mixer" if k.startswith("mixer.") else k for k in differing}) == 1
    return key.startswith("model.")


def _is_key(key: str, factor: str) -> bool:
    return key == factor or key.endswith(f".{factor}")


def notes(cells: Sequence[Cell], analysis: Analysis) -> list[str]:
    """What a reader should know of cells that are compared all the same."""
    found = []
    for cell in cells:
        if cell.failed and analysis.failed == "chance":
            seeds = ", ".join(map(str, sorted(cell.failed)))
            found.append(f"{cell.name} failed at seed {seeds} and counts as a guess there")
        if cell.collapsed:
            found.append(f"{cell.name} is at chance at seed {', '.join(map(str, cell.collapsed))}")
    threads = {run.threads for cell in cells for run in cell.runs.values()}
    return [*found, *(["trained with different numbers of threads"] if len(threads) > 1 else [])]
