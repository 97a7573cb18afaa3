"""Variants measured in turns, and the table of their medians: what the scripts of this folder share.

Variants take turns within a round and the order rotates, so that a slow moment of the machine hits all of them. A
ratio is taken within each round. On a processor, work of one process can be timed by its CPU time (`--clock cpu`),
which other work on the machine disturbs less than the clock on the wall; on CUDA it is timed by events.
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path

import torch

from metaformer.system.files import as_csv, write
from metaformer.system.locks import held, own_folder
from metaformer.system.machine import processor

RESULTS = Path(__file__).with_name("results.csv")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = (
    *("script", "device", "threads", "clock", "torch", "what", "variant", "unit"),
    *("median", "low", "high", "ratio", "ratio_low", "ratio_high", "rounds"),
)
Row = dict[str, str]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def options(doc: str | None, *, rounds: int, clock: str = "wall", **more: int) -> argparse.Namespace:
    """The words of a command line: --rounds, --threads, --clock, --out, and whole numbers of the script's own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--clock", choices=[*CLOCKS], default=clock)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV whose rows of this script are replaced")
    parser.add_argument("--only", nargs="+", default=[], help="measure only what has one of these words in its title")
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def wanted(title: str, given: argparse.Namespace) -> bool:
    return not given.only or any(word in title for word in given.only)


def speed(work: Callable[[], object], amount: float, clock: str, repeats: int = 1) -> Callable[[], float]:
    """What gives, at each call, the `amount` that `work` does in a second."""

    def measured() -> float:
        if DEVICE == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        started = CLOCKS[clock]()
        for _ in range(repeats):
            work()
        seconds = CLOCKS[clock]() - started
        if DEVICE == "cuda":
            end.record()
            torch.cuda.synchronize()
            seconds = begin.elapsed_time(end) / 1e3
        return repeats * amount / seconds

    return measured


def in_turns(
    what: str, unit: str, variants: Mapping[str, Callable[[], float]], given: argparse.Namespace, *, warm: bool = True
) -> list[Row]:
    """A row for each variant: the median of its figures over the rounds, and of their ratios to the first variant's."""
    if warm:
        for variant in variants.values():
            variant()
    names, found = list(variants), {name: list[float]() for name in variants}
    for i in range(given.rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(variants[name]())
    rows = [_row(what, name, unit, values, found[names[0]], given) for name, values in found.items()]
    for row in rows:
        spread, ratios = f"[{row['low']}, {row['high']}]", f"{row['ratio']} [{row['ratio_low']}, {row['ratio_high']}]"
        print(f"{what:36} {row['variant']:32} {row['median']:>9} {spread} {unit}; ratio {ratios}", flush=True)
    return rows


def _row(
    what: str, variant: str, unit: str, values: Sequence[float], first: Sequence[float], given: argparse.Namespace
) -> Row:
    ratios = [value / base for value, base in zip(values, first, strict=True)]
    row = {"what": what, "variant": variant, "unit": unit, "rounds": str(len(values)), "clock": given.clock}
    row |= {"threads": str(given.threads), "torch": torch.__version__}
    for name, numbers in (("", values), ("ratio_", ratios)):
        row[f"{name}low"], row[f"{name}high"] = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
        row[name.rstrip("_") or "median"] = f"{statistics.median(numbers):.4g}"
    return row


def device() -> str:
    """The card, or the processor and how many cores of it there are."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"{processor()}, {os.cpu_count()} cores"


def heading(given: argparse.Namespace) -> None:
    """Print on what this is measured, and how busy the machine is."""
    load = os.getloadavg()[0]
    print(f"{device()}; {given.threads} threads; torch {torch.__version__}; {given.rounds} rounds; load {load:.1f}")


def keep(rows: Sequence[Row], script: str, out: Path) -> None:
    """Write the rows into the CSV, in place of what it has of the same script, device and title."""
    rows = [{"script": Path(script).stem, "device": device(), **row} for row in rows]
    fresh = {(row["script"], row["device"], row["what"]) for row in rows}
    with held(own_folder("speed") / "results.lock"):
        kept = list(csv.DictReader(StringIO(out.read_text()))) if out.exists() else []
        old = [row for row in kept if (row["script"], row["device"], row["what"]) not in fresh]
        every = sorted([*old, *rows], key=lambda row: row["script"])  # stable: within a script as measured
        write(out, as_csv([{column: row.get(column, "") for column in COLUMNS} for row in every]))
    print(f"written: {out}")
