"""What is said and refused before a launch. Imports torch only where something is to be trained."""

import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from metaformer.config.schema import Config
from metaformer.system import machine
from metaformer.system.errors import ConfigError
from metaformer.system.files import output_to


def refuse(cells: Mapping[str, Config], *, here: bool) -> None:
    """Prepare each cell once before any run starts: what cannot work is refused, and leaves no folder.

    Args:
        here: they are to train on the devices of this machine.
    """
    if not cells:
        return  # without torch: a study that is finished is only reported
    before, images = "", None  # of the cell before: there is room for one data set
    with output_to(Path(os.devnull)):
        from metaformer.training.fit import prepare

        for cell, config in sorted(cells.items(), key=lambda named: repr(named[1].data)):
            try:
                images = images if repr(config.data) == before else None
                before, images = repr(config.data), prepare(config, images, here=here).images
            except ConfigError as error:
                raise ConfigError(f"{error} (cell {cell})") from error


def warn_of_bf16(*configs: Config) -> None:
    """Say once what a precision costs that the processor has to emulate, before anything trains."""
    accelerators = {config.runtime.accelerator for config in configs if config.recipe.precision == "bf16"}
    if "cpu" in accelerators or ("auto" in accelerators and not machine.gpus()):
        _tell_of_bf16()


@cache
def _tell_of_bf16() -> None:
    if machine.emulates_bf16():
        from metaformer.models.precision import bf16_factor

        words = f"a product of matrices takes {bf16_factor():.2g} times as long as in fp32, measured here"
        print(f"note: recipe.precision=bf16: this processor emulates it: {words}; set fp32", file=sys.stderr)
