"""Train one run, or many with -m or with experiments=NAME. Any key of the configuration is set with key=value.

    python -m metaformer.train mixer=attention seed=1 recipe.lr=1e-3
    python -m metaformer.train -m mixer=pooling,attention seed=0,1,2
    python -m metaformer.train experiments=quickstart

--hydra-help lists the flags; --cfg job shows the configuration of some overrides.
"""

import os
import sys
from contextlib import nullcontext

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from metaformer.cli import RUN_ERRORS, asks_for_help, explain_or_raise, print_help
from metaformer.config.compose import check_command, check_local_files, conf_dir, register
from metaformer.config.explain import USER_ERRORS
from metaformer.system.machine import rank

FAILED: list[Exception] = []


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
def app(cfg: DictConfig) -> float | None:
    from metaformer.studies import search, worker

    if HydraConfig.get().mode == RunMode.MULTIRUN:  # of another sweeper than that of studies
        return search.trial(cfg)
    # Hydra prints a line of its own where a job raises; main() has a better one.
    try:
        outcome = worker.job(cfg)
    except (*USER_ERRORS, *RUN_ERRORS) as error:
        FAILED.append(error)
        return None
    if outcome.shown is not None:
        Console().print(outcome.shown, soft_wrap=isinstance(outcome.shown, os.PathLike))
    elif outcome.result is not None:
        Console().print(f"[bold]{outcome.status}[/] {outcome.result}", highlight=False, soft_wrap=True)
        print(outcome.folder)
    return None


def main() -> None:
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # the real exception arrives here, whether it is shown whole or not
    many = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    # Hydra takes no overrides after a flag that stands between them.
    sys.argv[1:] = many[:1] + [argument for argument in sys.argv[1:] if argument not in many]
    register()
    try:
        check_local_files()
        if asks_for_help(sys.argv):  # Hydra's own takes twice as long, for groups that it does not show
            return print_help(__doc__, overrides=[word for word in sys.argv[1:] if word[:1] != "-"])
        # Lightning adds words of its own for the others that train a run with this process
        checked = check_command(sys.argv[1:]) if rank() == 0 else nullcontext()
        from metaformer.studies import sweeper  # a third of the time that --help or a refused word would take

        sweeper.register()
        with checked:
            app()
        if FAILED:
            raise FAILED[0]
    except (*USER_ERRORS, *RUN_ERRORS) as error:
        os.environ["HYDRA_FULL_ERROR"] = wanted or ""
        explain_or_raise(error)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, and the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    # By its own name, so that worker processes import the functions that they are sent.
    from metaformer.train import main as entry

    entry()
