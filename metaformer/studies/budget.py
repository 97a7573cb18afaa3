"""Fair budgets: a cell is changed in width, MLP ratio or depth until it costs what its target does.

    python -m metaformer.cost -m mixer=pooling,attention budget=params budget.by=mlp_ratio

What comes out is an ordinary cell: the value that was found is part of its run id, the way to it is not. Imports torch
only where there is a budget.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from metaformer.config.compose import mixer_named
from metaformer.config.named_code import hashes_of_code
from metaformer.config.schema import Config, Model
from metaformer.config.study_nodes import BUDGET_KEYS
from metaformer.config.validate import plain, structure
from metaformer.system import locks
from metaformer.system.errors import ConfigError
from metaformer.system.files import write
from metaformer.system.machine import lacks_place, take, trains_on
from metaformer.system.orphans import first_of_workers

FAR = 0.1  # a cell that misses its target by more is not matched by anybody's standard
UNITS = {"params": "parameters", "macs": "MACs", "time": "seconds for an image"}


@dataclass(frozen=True)
class Match:
    """A cell that was matched to a budget: `model.<key>` became `value`, and its cost `got` for `wanted`."""

    kind: str  # params, macs or time
    key: str
    value: Any
    got: float
    wanted: float
    tolerance: float

    @property
    def error(self) -> float:
        return self.got / self.wanted - 1

    @property
    def overrides(self) -> list[str]:
        """What makes this cell of an unmatched one, on a command line."""
        return ["budget.match=none", "budget.target=null", "budget.by=width", "budget.tolerance=0.01",
                f"model.{self.key}={json.dumps(self.value)}"]  # fmt: skip

    @property
    def columns(self) -> dict[str, str]:
        """The same in a table of costs."""
        return {self.key: str(self.value), "off_budget": f"{self.error:+.1%}"}

    @property
    def words(self) -> str:
        miss = "" if abs(self.error) <= self.tolerance else f", the nearest to within {self.tolerance:.0%}"
        got = f"{self.got:,.0f}" if self.kind != "time" else f"{self.got:.2e}"
        return f"model.{self.key}={self.value}, {got} {UNITS[self.kind]} ({self.error:+.1%} of the budget{miss})"


def matched(config: Config) -> tuple[Config, Match | None]:
    """A validated configuration that meets its budget, and how; itself and None where it has no budget.

    Raises:
        ConfigError: nothing comes near; it says what comes nearest.
    """
    budget = config.budget
    if budget.match == "none":
        return config, None
    target = config.study.reference if budget.target is None else budget.target
    # What the cost depends on, so that the seeds of a cell share the solution.
    whole = plain(config)
    nodes = {key: whole[key] for key in ("model", "mixer", "data", "task", "recipe", "runtime", "cost", "budget")}
    match = _solve(json.dumps({**nodes, "budget": {**nodes["budget"], "target": target}}, sort_keys=True))
    return replace(config, model=replace(config.model, **{match.key: match.value})), match


@cache
def _solve(content: str) -> Match:
    """The solution for a cell, given as JSON; of times the one that was written down."""
    config = structure(Config, json.loads(content))
    if config.budget.match != "time":
        return solve(config, _cost)
    # A second measurement would give other widths, and with them other runs: what was measured once is kept.
    place = {key: node for key, node in json.loads(content).items() if key not in ("task", "recipe", "runtime", "cost")}
    place |= {key: getattr(config.runtime, key) for key in ("accelerator", "threads", "compile", "tf32")}
    place |= {"device": trains_on(config.runtime.accelerator), "batch": config.batch_at_once}
    place |= {key: value for key, value in _rare(config).items() if value}  # older files do not have them
    place |= {"precision": config.recipe.precision, "code": hashes_of_code(config.mixer)}
    key = hashlib.sha256(json.dumps(place, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(config.runtime.runs) / "budget.json"
    if key in (known := _measured(path)):
        return Match(**known[key])
    match = _timed(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(path.with_name(".budget.lock")):  # another command may have measured it meanwhile
        known = {key: vars(match), **_measured(path)}
        write(path, json.dumps(known, indent=1))
    return Match(**known[key])


def _rare(config: Config) -> dict[str, Any]:
    """What else the time of a step depends on, and most cells do not have."""
    return {
        **{key: getattr(config.runtime, key) for key in ("graph", "checkpoint_blocks")},
        "freeze": config.recipe.freeze if config.recipe.freeze != "none" else None,
        "task": plain(config)["task"] if config.task.segments else None,
    }


def _timed(config: Config) -> Match:
    """The solution by times; on a GPU by a process that has a place there, and gives its memory back when it ends."""
    if not lacks_place(config.runtime.accelerator):
        return solve(config, _cost)
    from joblib.externals.loky import ProcessPoolExecutor  # as the runs of a sweep have it

    with ProcessPoolExecutor(1, **first_of_workers()) as pool:
        found: Match = pool.submit(_in_place, config).result()
    return found


def _in_place(config: Config) -> Match:
    take(config.runtime.accelerator, config.runtime.per_gpu)
    return solve(config, _cost)


def _measured(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it to measure the times again") from error


def solve(config: Config, cost: Callable[[Config], float]) -> Match:
    """The value of the key that the budget changes with which the cell costs what its target does.

    Bisects coarse candidates, then finer ones, until one is within the tolerance; then looks round what was found. Of
    several within the tolerance it is that which keeps the proportions; if there is none, the nearest of all.
    """
    budget, key = config.budget, BUDGET_KEYS[config.budget.by]
    target = budget.target
    wanted = cost(replace(config, mixer=_node(target, Path.cwd()))) if isinstance(target, str) else float(target)
    if math.isinf(wanted):
        raise ConfigError(
            f"budget.target={target}: {config.batch_at_once} images at once do not fit into the memory here"
        )
    plain_value = getattr(config.model, key)

    @cache
    def price(value: str) -> float | None:
        """What the cell costs with this value; None where its mixer refuses it, like a width without whole heads."""
        try:
            return cost(replace(config, model=replace(config.model, **{key: json.loads(value)})))
        except ConfigError as error:
            if isinstance(error.__cause__, ValueError):  # of a constructor
                return None
            raise

    def miss(value: str) -> float:
        got = price(value)
        return math.inf if got is None else abs(got / wanted - 1)

    def rank(value: str) -> tuple[float, float, float]:
        return max(miss(value), budget.tolerance), _spread(json.loads(value), plain_value), miss(value)

    best, found = json.dumps(plain_value), []
    for candidates, step in _ladders(config.model, budget.by):
        if miss(best) > budget.tolerance:
            tried = [json.dumps(value) for value in candidates]
            found.append((min(_bisect(tried, price, wanted), key=rank, default=best), step))
            best = min(best, found[-1][0], key=rank)
    if miss(best) > budget.tolerance:
        near = [json.dumps(v) for value, step in found for v in _around(json.loads(value), step)]
        if budget.by == "depth":
            near = [json.dumps(_depths(config.model.depths, price, wanted, budget.tolerance))]
        best = min([best, *near], key=rank)
    if (got := price(best)) is None:
        raise ConfigError(f"budget.by={budget.by}: the mixer fits no value of model.{key}")
    match = Match(budget.match, key, json.loads(best), got, wanted, budget.tolerance)
    if abs(match.error) > max(FAR, budget.tolerance):
        others = ", ".join(f"budget.by={by}" for by in BUDGET_KEYS if by != budget.by)
        raise ConfigError(
            f"budget={budget.match}: {wanted:,.7g} {UNITS[budget.match]} cannot be met; the nearest is "
            f"{match.words}; try {others}"
        )
    return match


def _bisect(candidates: Sequence[str], price: Callable[[str], float | None], wanted: float) -> Iterator[str]:
    """The candidates that a bisection looks at; they get dearer from first to last, and some have no price."""
    low, high = 0, len(candidates) - 1
    while low <= high:
        middle = (low + high) // 2
        at = next((i for i in range(middle, high + 1) if price(candidates[i]) is not None), None)
        if at is None:
            high = middle - 1
            continue
        yield candidates[at]
        if (price(candidates[at]) or 0) < wanted:
            low = at + 1
        else:
            high = middle - 1


def _spread(value: Any, plain: Any) -> float:
    """How far the sizes of the stages are from the proportions that they had: 1 for the same."""
    scales = [new / old for new, old in zip(value, plain, strict=True)] if isinstance(value, list) else [1]
    return max(scales) / min(scales)


def _depths(plain: list[int], price: Callable[[str], float | None], wanted: float, tolerance: float) -> list[int]:
    """The best of all depths up to twice as deep: every block of a stage costs the same."""
    ones = [1] * len(plain)
    deeper = [[1 + (i == j) for j in range(len(plain))] for i in range(len(plain))]
    base, *more = (price(json.dumps(depths)) or 0.0 for depths in (ones, *deeper))

    def rank(depths: list[int]) -> tuple[float, float]:
        got = base + sum((depth - 1) * (m - base) for depth, m in zip(depths, more, strict=True))
        return max(abs(got / wanted - 1), tolerance), _spread(depths, plain)

    return min(map(list, product(*(range(1, 2 * depth + 1) for depth in plain))), key=rank)


def _around(value: Any, step: int) -> Iterator[list[int]]:
    """Every other value in which no stage differs by more than a step; none where there is no step for each stage."""
    if step:
        for moves in product((0, -step, step), repeat=len(value)):
            moved = [size + move for size, move in zip(value, moves, strict=True)]
            if any(moves) and min(moved) > 0:
                yield moved


def _ladders(model: Model, by: str) -> Iterator[tuple[list[Any], int]]:
    """Candidates for the key, from small to large, in steps that computers like and then in ever finer ones; with the
    step of a stage, 0 where stages do not differ."""
    if by == "depth":
        yield list(_steps(model.depths, 1, together=False)), 0
    elif by == "width":
        together = model.downsample is None
        for multiple in (32, 16, 8, 4, 2, 1):
            yield list(_steps(model.dims, multiple, together=together)), 0 if together else multiple
    else:
        widest = max(model.dims)
        for multiple in (8, 1):
            hidden = range(multiple, int(8 * widest * model.mlp_ratio), multiple)
            least = widest / min(model.dims)  # every stage has one hidden channel at least
            yield [math.ceil(h / widest * 1e6) / 1e6 for h in hidden if h >= least], 0


def _steps(values: Sequence[int], multiple: int, *, together: bool) -> Iterator[list[int]]:
    """From an eighth to eight times `values`, in proportion, each a multiple; one of them grows at a time, late ones
    first, or all `together`."""
    events = []
    for i, value in enumerate(values):
        for n in range(1, 8 * value // multiple + 1):
            events.append(((n - 0.5) * multiple / value, -i, n * multiple))
    current = [0] * len(values)
    for scale, i, grown in sorted(events):
        current[-i] = grown
        if together:
            current = [grown] * len(values)
        if scale > 0.125 and min(current) > 0 and (not together or i == 0):
            yield list(current)


@cache
def _node(mixer: str, _here: Path) -> Any:
    """`mixer_named`, which composes, once for all cells of a grid; files of the working directory count too."""
    return mixer_named(mixer)


def _cost(config: Config) -> float:
    """What a cell costs in the unit of its budget."""
    from metaformer.studies import cell_cost

    if config.budget.match == "time":
        return cell_cost.step_seconds(config)
    if config.budget.match == "params":
        return float(cell_cost.params(config))
    return float(cell_cost.macs(config))
