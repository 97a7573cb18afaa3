"""A run on wandb, which may fail: the local files are the truth, and nothing is ever read back."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaformer.config.identity import unfolded
from metaformer.config.named_code import dotted_names
from metaformer.config.schema import Logger
from metaformer.config.validate import plain
from metaformer.runs.folder import Planned
from metaformer.runs.result import Measured, Result, history
from metaformer.runs.wandb_place import discard, mark
from metaformer.system.errors import ConfigError

MOST_CLASSES = 200  # whose recalls stand in the summary one by one


Pictures = Mapping[str, Sequence[tuple[Any, str]]]  # by name: images of PIL, or figures, with their captions


class Mirror:
    """A wandb run that can fail without ending the training."""

    def __init__(self, run: Any) -> None:
        self.run, self.failed = run, False

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Values at a step of the optimizer. wandb drops what a resumed run says of a step for a second time."""
        self.attempt(lambda: self.run.log(dict(row), step=step))

    def summarise(self, measured: Measured) -> None:
        self.attempt(lambda: self.run.summary.update(final(measured)))
        self.attempt(lambda: self.run.log(charts(measured)))

    def show(self, pictures: Callable[[], Pictures]) -> None:
        """What a function draws; one that cannot is no reason to lose a result."""
        self.attempt(lambda: self.run.log(shown(pictures())))

    def keep(self, weights: Path) -> None:
        """A file of weights as an artifact."""
        self.attempt(lambda: self.run.log_artifact(artifact(weights)))

    def attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever wandb or the network raises
            self.failed = True
            print(f"wandb: {type(error).__name__}: {error}; training goes on", file=sys.stderr)


def mixer_name(run: Planned | Result) -> str:
    """The mixer as it was chosen; of mixer=custom, which says nothing, the code that its node names."""
    choice = run.choices["mixer"]
    return choice if choice != "custom" else " ".join(dotted_names(run.config.mixer))


def wandb_identity(run: Planned | Result, name: str) -> dict[str, Any]:
    """Where a run stands on wandb: its id is that of the run, its group the cell, its tags the study and the mixer.

    No `=` in a tag: wandb-workspaces doubles it in a filter, which then finds nothing.

    Args:
        name: of the run's folder.
    """
    study = run.config.study.name
    names = {
        "mixer": mixer_name(run),
        "model": run.choices.get("model"),
        "data": run.config.data.name,
        "recipe": run.choices.get("recipe"),
        "cell": name.replace(f"-s{run.config.seed}-{run.run_id}", f"-{run.cell_id}"),
        "study": study,
        "run_id": run.run_id,  # where an agent runs it, wandb has an id of its own
    }
    return {
        "id": run.run_id,
        "name": name,
        "group": names["cell"],
        "tags": [*([study] if study else []), f"mixer:{mixer_name(run)}"],
        "config": unfolded(plain(run.config), "/") | names,  # wandb would take a dot in a key for a node
    }


def final(measured: Measured) -> dict[str, Any]:
    """What the summary of a run holds beside its last epoch."""
    values: dict[str, Any] = {f"final/{name}": value for name, value in measured.metrics.items()}
    if len(measured.recall) <= MOST_CLASSES:
        values |= {f"recall/{name}": value for name, value in measured.recall.items()}
    return values | {"params": measured.params, "macs": measured.macs, "seconds": measured.seconds}


def charts(measured: Measured) -> dict[str, Any]:
    """The confusion matrix, and a table of the classes with shares of the test images."""
    import wandb

    counts = measured.confusion
    taken, names = [sum(column) for column in zip(*counts, strict=True)], list(measured.recall)
    rows = [
        [name, sum(counts[i]), measured.recall[name], counts[i][i] / taken[i] if taken[i] else None]
        for i, name in enumerate(names)
    ]
    classes = wandb.Table(columns=["class", "images", "recall", "precision"], data=rows)
    return {"confusion": confusion(measured), "classes": classes}


def shown(pictures: Pictures) -> dict[str, Any]:
    """Pictures and their captions as wandb has them."""
    import wandb

    return {name: [wandb.Image(picture, caption=words) for picture, words in some] for name, some in pictures.items()}


def artifact(weights: Path) -> Any:
    """The weights.pt of a run, with the name of its folder."""
    import wandb

    made = wandb.Artifact(f"weights-{weights.parent.name}", type="model")
    made.add_file(str(weights))
    return made


def check_size(logger: Logger, size: float, what: str) -> None:
    """Refuse weights that are asked for as an artifact and too large for one. `size` in bytes."""
    if logger.weights and size > 1e6 * logger.weights_limit:
        raise ConfigError(
            f"logger.weights=true: {what} has {size / 1e6:.3g} MB of weights, more than "
            f"logger.weights_limit={logger.weights_limit:g}; raise it, or leave the weights here"
        )


def confusion(measured: Measured) -> Any:
    """wandb's own chart of a confusion matrix."""
    import wandb

    names, columns = list(measured.recall), ("Actual", "Predicted", "nPredictions")
    counts = [
        [names[i], names[j], n] for i, row in enumerate(measured.confusion) for j, n in enumerate(row) if n or i == j
    ]
    table = wandb.Table(columns=[*columns], data=counts)
    return wandb.plot_table("wandb/confusion_matrix/v1", table, {name: name for name in columns})


def start(logger: Logger, folder: Path, settings: Mapping[str, Any], **options: Any) -> Any:
    """A wandb run where the `logger` node of a configuration says; resumed where its id is known there.

    Args:
        folder: what wandb writes is in `wandb/` in it.
    """
    import wandb

    return wandb.init(
        project=logger.project,
        entity=logger.entity,
        mode=logger.mode,  # type: ignore[arg-type]
        dir=folder.resolve(),  # the process that writes may have been started elsewhere
        resume="allow",
        settings=wandb.Settings(init_timeout=60, **settings),
        **options,
    )


@contextlib.contextmanager
def wandb_run(planned: Planned, begun: int) -> Iterator[Mirror | None]:
    """A wandb run that is finished whatever happens; None where none is wanted or none can be had.

    What an earlier start wrote offline gives way to what its files say up to the step where the training goes on: a
    start that was killed has written of later steps, which are trained again, and one without wandb of none.

    Args:
        begun: that step.
    """
    config, folder = planned.config, planned.folder
    if not config.logger.wandb or config.debug.mode != "none":
        yield None
        return
    identity = wandb_identity(planned, folder.name)
    try:
        discard(folder)
        run = start(config.logger, folder, {}, **identity)
        for step, values in history(folder, until=begun) if begun else []:
            if step >= run.step:  # online the server has what came before
                run.log(values, step=step)
    except Exception as error:  # whatever wandb or the network raises
        print(f"wandb: {type(error).__name__}: {error}; training goes on without it", file=sys.stderr)
        yield None
        return
    mirror = Mirror(run)
    code = 1
    try:
        yield mirror
        code = 0
    finally:
        mirror.attempt(lambda: run.finish(exit_code=code))
        if code == 0 and not mirror.failed:
            mark(folder, config.logger, identity["tags"], ["weights"] if config.logger.weights else [])
