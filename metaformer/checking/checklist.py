"""Every check of a mixer, one after the other: the contract, then what it does."""

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from metaformer.checking import behaviour, contract
from metaformer.checking.contract import Broken, Case, Finding, Note, Size, line
from metaformer.mixers.factory import MixerFactory
from metaformer.system.seeds import seeded

FIRST: tuple[Callable[[Case], str], ...] = (contract.output,)  # without these the others mean nothing
CHECKS: tuple[Callable[[Case], str], ...] = (
    contract.options,
    contract.input_untouched,
    contract.no_state,
    contract.batch_independence,
    contract.gradient,
    contract.state_dict,
    contract.moving,
    contract.precision,
    contract.memory_format,
    contract.sizes,
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


def show(findings: Sequence[Finding]) -> None:
    table = Table("check", "", "reason", box=SIMPLE_HEAD)
    colours = {"pass": "green", "fail": "bold red", "note": "yellow"}
    for f in findings:
        table.add_row(f.check, f"[{colours[f.status]}]{f.status}[/]", f.reason.replace("[", "\\["))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
