"""Fields of the schema with their choices and bounds, which `validate` checks."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """What a number, or each number of a list, may be. NaN and infinity are never allowed."""

    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf
    words: str = ""  # what is expected, where the bounds alone do not say it

    def allow(self, value: float) -> bool:
        inside = self.at_least <= value <= self.at_most and self.above < value < self.below
        return inside and math.isfinite(value)

    def __str__(self) -> str:
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return self.words or " and ".join(f"{word} {n:g}" for word, n in limits.items() if math.isfinite(n))


def choice(*allowed: str) -> Any:
    """A string field whose first value is the default and whose only other values are those listed."""
    return field(default=allowed[0], metadata={"choices": allowed})


def number(default: float | None, words: str = "", **bounds: float) -> Any:
    """A number field within bounds; None, where it is the default, is always allowed."""
    return field(default=default, metadata={"bounds": Bounds(words=words, **bounds)})


def share(default: float) -> Any:
    return number(default, "a share from 0 to 1", at_least=0, at_most=1)


def rate() -> Any:
    return number(None, "a rate from 0 up to, not including, 1", at_least=0, below=1)


def ints(*values: int, at_least: int = 1, at_most: int = 65_536) -> Any:
    return field(default_factory=lambda: list(values), metadata={"bounds": Bounds(at_least=at_least, at_most=at_most)})
