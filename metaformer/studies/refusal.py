"""What is said and refused before a launch. Imports torch only where something is to be trained."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from metaformer.config.schema import Config
from metaformer.system import machine
from metaformer.system.errors import ConfigError, tell
from metaformer.system.files import output_to


def refuse(cells: Mapping[str, Config], *, here: bool) -> None:
    """Prepare each cell once before any run starts: what cannot work is refused, and leaves no folder.

    Args:
        here: they are to train on the devices of this machine.
    """
    if not cells:
        return  # without torch: a study that is finished is only reported
    before, images, notes = "", None, list[str]()  # of the cell before: there is room for one data set
    with output_to(Path(os.devnull)):
        from metaformer.training.fit import prepare

        for cell, config in sorted(cells.items(), key=lambda named: repr(named[1].data)):
            try:
                images = images if repr(config.data) == before else None
                before, images = repr(config.data), prepare(config, images, here=here).images
                notes += images.notes
            except ConfigError as error:
                raise ConfigError(f"{error} (cell {cell})") from error
    for note in notes:
        tell(note)


def warn(*configs: Config) -> None:
    """Say once, before anything trains, what is rarely meant, and what a precision costs that has to be emulated."""
    if any(config.recipe.freeze != "none" and config.recipe.initialize_from is None for config in configs):
        tell("recipe.freeze: what is frozen is random, as recipe.initialize_from=FILE is not set")
    accelerators = {config.runtime.accelerator for config in configs if config.recipe.precision == "bf16"}
    if "cpu" in accelerators or ("auto" in accelerators and not machine.gpus()):
        _tell_of_bf16()


@cache
def _tell_of_bf16() -> None:
    if machine.emulates_bf16():
        from metaformer.models.precision import bf16_factor

        words = f"a product of matrices takes {bf16_factor():.2g} times as long as in fp32, measured here"
        tell(f"recipe.precision=bf16: this processor emulates it: {words}; set fp32")
