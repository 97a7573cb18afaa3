"""Does a mixer keep the contract, and what does it do? A table of pass, fail and note, with a reason for each.

    python -m metaformer.check my_mixer.Shift [--dim 64] [--resolution 14x14] [option=value ...]

It leaves with 1 where a check failed, so that it can stand in a CI. In tests of your own:

    from metaformer.check import assert_mixer
    def test_shift(): assert_mixer(Shift, step=2)
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from metaformer import behaviour, conformance
from metaformer.config import answer
from metaformer.conformance import Broken, Case, Finding, Note, Size, line
from metaformer.factory import MixerFactory, from_config
from metaformer.schema import ConfigError
from metaformer.seeds import seeded

FIRST: tuple[Callable[[Case], str], ...] = (conformance.output,)  # without these the others mean nothing
CHECKS: tuple[Callable[[Case], str], ...] = (
    conformance.options,
    conformance.input_untouched,
    conformance.no_state,
    conformance.batch_independence,
    conformance.gradient,
    conformance.state_dict,
    conformance.moving,
    conformance.precision,
    conformance.memory_format,
    conformance.sizes,
    behaviour.scale,
    behaviour.token_mixing,
    behaviour.channel_mixing,
    behaviour.translation,
    behaviour.cost,
    behaviour.speed,
    behaviour.compiling,
    behaviour.exporting,
)


def check_mixer(factory: MixerFactory, dim: int = 64, resolution: Size = (14, 14)) -> list[Finding]:
    """Every check of a mixer: a class, or a `functools.partial` of one with its options."""
    case, findings = Case(factory, dim, resolution), []
    for check in (*FIRST, *CHECKS):
        name, status = check.__name__.replace("_", " "), "pass"
        try:
            with seeded(0, name), warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                warnings.simplefilter("ignore")
                reason = check(case)
        except (Broken, Note) as found:
            status, reason = "note" if isinstance(found, Note) else "fail", str(found)
        except Exception as error:
            status, reason = "fail", line(error)
        findings.append(Finding(name, status, reason))
        if status == "fail" and check in FIRST:
            break
    return findings


def assert_mixer(mixer: type[nn.Module], *, dim: int = 64, resolution: Size = (14, 14), **options: Any) -> None:
    """For a test: an AssertionError with every check that `mixer` fails, one a line."""
    failed = [f for f in check_mixer(partial(mixer, **options), dim, resolution) if f.status == "fail"]
    assert not failed, "\n".join(f"{f.check}: {f.reason}" for f in failed)


# ------------------------------------------------------------------ the command


def command(arguments: Sequence[str]) -> None:
    """Check the mixer that the command line names, show the table, leave with 1 where a check failed."""
    parser = _Parser(prog="python -m metaformer.check", add_help=False, allow_abbrev=False)
    parser.add_argument("mixer", nargs="?", default="")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--resolution", default="14x14")
    parser.add_argument("options", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    if "." not in given.mixer:
        named = given.mixer or "no mixer"
        raise ConfigError(f"{named}: expected the dotted path of a class, like metaformer.mixers.Pooling")
    factory = from_config({"_target_": given.mixer, **_options(given.options)}, 1)[0]
    if given.dim < 1:
        raise ConfigError(f"--dim {given.dim}: expected a number of channels")
    findings = check_mixer(factory, given.dim, _resolution(given.resolution))
    _show(findings)
    failed = [f.check for f in findings if f.status == "fail"]
    print(f"{given.mixer}: " + (f"fails {', '.join(failed)}" if failed else "keeps the contract"))
    if failed:
        raise SystemExit(1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; expected my_mixer.Shift [--dim 64] [--resolution 14x14] [option=value ...]")


def _options(words: Sequence[str]) -> Mapping[str, Any]:
    """Options as `train` reads them, dotted ones included."""
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word}: expected option=value")
    keys = [word.partition("=")[0] for word in words]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"{twice[0]}: given {keys.count(twice[0])} times")
    found = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _resolution(text: str) -> Size:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"--resolution {text}: expected height x width in tokens, like 14x14")
    return int(height), int(width)


def _show(findings: Sequence[Finding]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "", "reason", box=SIMPLE_HEAD)
    colours = {"pass": "green", "fail": "bold red", "note": "yellow"}
    for f in findings:
        table.add_row(f.check, f"[{colours[f.status]}]{f.status}[/]", f.reason.replace("[", "\\["))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
