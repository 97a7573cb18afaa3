"""Train one run, or with `-m` or `experiments=NAME` many: `python -m metaformer.train [overrides]`."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from metaformer import config, report, run, search, study


@hydra.main(config_path=str(config.conf_dir()), config_name="train", version_base="1.3")
def app(cfg: DictConfig) -> float | None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # of another sweeper than that of studies
        return search.trial(cfg)
    # Hydra prints a line of its own where a job raises; main() has a better one.
    try:
        outcome = run.job(cfg)
    except (*config.USER_ERRORS, *config.RUN_ERRORS) as error:
        FAILED.append(error)
        return None
    if outcome["status"] == "profiled":
        Console().print(outcome["table"])
    elif outcome["status"] == "drawn":
        print(outcome["picture"])
    elif outcome["status"] != "followed":
        report.print_run(outcome["status"], outcome["folder"], outcome["result"], Console())
    return None


FAILED: list[Exception] = []


def main() -> None:
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # the real exception arrives here, whether it is shown whole or not
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    # Hydra takes no overrides after a flag that stands between them.
    sys.argv[1:] = flags[:1] + [argument for argument in sys.argv[1:] if argument not in flags]
    config.register()
    study.register()
    try:
        config.check_local_files()
        app()
        if FAILED:
            raise FAILED[0]
    except (*config.USER_ERRORS, *config.RUN_ERRORS) as error:
        os.environ["HYDRA_FULL_ERROR"] = wanted or ""
        config.explain_or_raise(error)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, and the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    # By its own name, so that worker processes import the functions that they are sent.
    from metaformer.train import main as entry

    entry()
