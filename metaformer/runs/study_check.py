"""What is refused of how a study is to be judged, before any of its runs, and what is left out of a part of it."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace

from metaformer.config.study_nodes import Analysis, Study
from metaformer.runs.launch import Entry
from metaformer.system.errors import ConfigError, by_closeness


def check_study(study: Study, listed: Sequence[Entry], asked: Collection[str] | None = None) -> Study:
    """A study as its runs can be judged; a ConfigError where its reference or factor is none of its own.

    Args:
        asked: of a part of a study, or of a sweep, the keys that its words set: its other keys are of no part, and
            contrasts of cells that are not in it are left out, with a note.
    """
    analysis, factors = study.analysis, list(listed[0].levels)
    factor = analysis.factor

    def counts(key: str) -> bool:
        return asked is None or any(word == key or word.startswith(f"{key}.") for word in asked)

    if factor not in factors:
        if not counts("study.analysis.factor"):
            return study
        expected = ", ".join(by_closeness(factor, factors))
        raise ConfigError(f"study.analysis.factor={factor}: expected a factor of the study, one of {expected}")
    levels = {entry.levels[factor] for entry in listed}
    if study.reference not in levels and counts("study.reference"):
        expected = ", ".join(by_closeness(study.reference, levels))
        raise ConfigError(f"study.reference={study.reference}: expected a {factor} of the study, one of {expected}")
    for key, there in (("baselines", levels - {study.reference}), ("claim_without", levels)):
        named: list[str] = getattr(analysis, key)
        if named == getattr(Analysis(), key) or not counts(f"study.analysis.{key}"):
            continue
        for level in named:
            if level not in there:
                expected = ", ".join(by_closeness(level, there))
                raise ConfigError(f"study.analysis.{key}: {level}: expected a {factor} of the study, of {expected}")
    cells = {e.cell for e in listed if e.levels.get(factor) not in analysis.baselines}
    if counts("study.analysis.contrasts"):
        check_contrasts(analysis, cells)
        return study
    kept = {name: weights for name, weights in analysis.contrasts.items() if set(weights) <= cells}
    for name, weights in analysis.contrasts.items():
        absent = next((cell for cell in weights if cell not in cells), None)
        if absent is None:
            continue
        told = f"left out, for there is no cell '{absent}' here; nearest: {', '.join(by_closeness(absent, cells)[:3])}"
        print(f"note: study.analysis.contrasts.{name}: {told}", file=sys.stderr)
    return replace(study, analysis=replace(analysis, contrasts=kept))


def check_contrasts(analysis: Analysis, cells: Collection[str]) -> None:
    """Refuse a contrast of cells that are none of the study."""
    for name, weights in analysis.contrasts.items():
        for cell in weights:
            if cell not in cells:
                expected = ", ".join(by_closeness(cell, cells)[:5])
                raise ConfigError(
                    f"study.analysis.contrasts.{name}: {cell}: is no cell to compare; nearest: {expected}"
                )
