"""What a user is told: of a mistake one line, with the nearest valid choice, or a note."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path


class ConfigError(ValueError):
    """What the user wrote cannot be run; the message is one line that names the key and the nearest valid choice."""


@cache
def tell(line: str) -> None:
    """Print a note to the user, once in each process."""
    print(f"note: {line}", file=sys.stderr)


def in_a_line(error: BaseException, most: int | None = 200) -> str:
    """The kind of an error of some library, and so many characters of its message, which may have many lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"


def few(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, with `, ...` where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def install(extra: str) -> str:
    """The command that installs an extra, from whatever folder: in a checkout that one, which no registry has."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").exists():
        return f"pip install -e '{checkout}[{extra}]'"
    return f"pip install 'metaformer-bench[{extra}]'"


def nearest(word: str, words: Iterable[str], before: str = "") -> str:
    """`; did you mean 'x'?` for the closest of `words`, with what stands before each of them, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean '{before}{close[0]}'?" if close else ""


def by_closeness(word: str, words: Iterable[str]) -> list[str]:
    return sorted(words, key=lambda w: -difflib.SequenceMatcher(None, word, w).ratio())
