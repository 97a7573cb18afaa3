"""The body of every command: its help, its words, an error as one line."""

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from metaformer.config.compose import check_local_files
from metaformer.config.explain import USER_ERRORS, choice_called, explain, keys_of, whole_key
from metaformer.config.schema import GROUPS, Config
from metaformer.system.errors import ConfigError, nearest

RUN_ERRORS = (FloatingPointError, MemoryError)  # a run that diverges or does not fit; its failed.json has the traceback


@dataclass(frozen=True)
class Words:
    """The words of a command line, sorted."""

    own: dict[str, str] = field(default_factory=dict)  # of the command itself: run=FOLDER
    overrides: list[str] = field(default_factory=list)  # of the configuration: mixer=pooling
    plain: list[str] = field(default_factory=list)  # words without a `=`


def words(
    arguments: Sequence[str], *, own: Collection[str] = (), groups: Collection[str] | None = None, plain: str = ""
) -> Words:
    """Sort the words of a command line.

    Args:
        own: keys of the command; each may be given once.
        groups: the config groups that may be changed; None for all of them.
        plain: what words without a `=` are, for commands that take them.

    Raises:
        ConfigError: a word that the command does not know; it names what was expected.
    """
    found = Words()
    for word in arguments:
        key, equals, value = word.partition("=")
        group = key.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]
        if word in ("-m", "--multirun"):
            continue  # whether one or many is said by the words
        if key in own and equals:
            if key in found.own or not value:
                raise ConfigError(f"{key}: expected one value")
            found.own[key] = value
        elif not equals and not key.startswith("~"):
            if not plain or key.startswith("-"):
                hint = choice_called(word) or nearest(word, [f"{k}=" for k in own])
                raise ConfigError(f"{word}: expected key=value{f' or {plain}' if plain else ''}{hint}")
            found.plain.append(word)
        elif groups is not None and group not in groups:
            known = [*own, *groups]
            hint = whole_key(key, keys_of(groups)) or nearest(group, known)
            raise ConfigError(f"{group}: not of this command{hint}; expected {', '.join(known)}")
        elif groups is None and (hint := _own_meant(key, own)):
            raise ConfigError(f"{key}: no such key{hint}")
        else:
            found.overrides.append(word)
    return found


def _own_meant(key: str, own: Collection[str]) -> str:
    """`; did you mean 'sd'?` where an unknown key is nearest to one of the command."""
    nodes = {*GROUPS, *Config.__dataclass_fields__}
    if not key.isidentifier() or key in nodes or whole_key(key, keys_of(nodes)):
        return ""
    hint = nearest(key, [*own, *nodes])
    return "" if hint == nearest(key, nodes) else hint


def flag(own: Mapping[str, str], key: str) -> bool:
    """A word of the command that is true or false; false where it is not given."""
    if (word := own.get(key, "false")) not in ("true", "false"):
        raise ConfigError(f"{key}={word}: expected true or false")
    return word == "true"


def positive(key: str, text: str | None, what: str, below: float = float("inf")) -> float | None:
    """A number on the command line; None where it is not given."""
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = -1.0
    if value is not None and not 0 < value < below:
        limit = f" and below {below:g}" if below < float("inf") else ""
        raise ConfigError(f"{key}={text}: expected {what}, above 0{limit}")
    return value


def asks_for_help(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(arguments))


def print_help(doc: str | None, nodes: Collection[str] | None = None, overrides: Sequence[str] = ()) -> None:
    """Print what a command does, and the keys of the configuration that matter to it; by default those of a run.

    Args:
        overrides: whose values the keys have.
    """
    from metaformer.config.help import RUN_NODES, help_on

    nodes = RUN_NODES if nodes is None else nodes
    try:
        print(f"{doc}\n{help_on(overrides, nodes)}" if nodes else doc, flush=True)
    except BrokenPipeError:  # nobody reads on, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        raise SystemExit(1) from None


def explain_or_raise(error: Exception) -> None:
    """Print an error of the user's as one line and leave with status 2; with HYDRA_FULL_ERROR=1 let it go on."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"error: {explain(error)}", file=sys.stderr)
    raise SystemExit(2)


def answer(doc: str | None, action: Callable[[list[str]], None], keys: Collection[str] = ()) -> None:
    """The body of a command: its help, or `action` on its arguments, where an error of the user's is one line.

    Args:
        keys: the nodes of the configuration that matter to the command, for its help.
    """
    arguments = sys.argv[1:]
    try:
        if asks_for_help(arguments):
            return print_help(doc, keys)
        check_local_files()
        action(arguments)
    except USER_ERRORS as error:
        explain_or_raise(error)
