"""Evaluate a finished run again, or weights from a file on a folder of images.

    python -m metaformer.evaluate run=runs/RUN [data=...] [runtime=...]
    python -m metaformer.evaluate weights=FILE model=s12 [mixer=pooling] data=image_folder data.root=FOLDER

FOLDER holds one folder for each class, or those in its `test` or `val`. Folders named by ImageNet's synsets (n01440764)
are matched with the 1,000 classes of ImageNet; others are taken in alphabetical order.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from metaformer.cli import answer, words
from metaformer.config.compose import compose
from metaformer.config.metrics import METRICS, metrics_of
from metaformer.runs.finished import CHANGEABLE, finished
from metaformer.system.errors import ConfigError
from metaformer.system.files import output_to


def command(arguments: Sequence[str]) -> None:
    """Evaluate what the command line names, a run or weights, and print it."""
    of_weights = any(word.startswith("weights=") for word in arguments)
    given = words(arguments, own=("run", "weights"), groups=None if of_weights else CHANGEABLE)
    if len(given.own) != 1:
        raise ConfigError("expected run=FOLDER, the folder of one finished run, or weights=FILE")
    if of_weights:
        _weights(given.own["weights"], given.overrides)
    else:
        _run(Path(given.own["run"]), given.overrides)


def _run(folder: Path, overrides: Sequence[str]) -> None:
    run = finished(folder, overrides)
    with output_to(Path(os.devnull)):
        from metaformer.training.evaluation import evaluate

        measured = evaluate(run)
    recorded, same = run.result, run.config.data == run.result.config.data
    for split in ("val", "test"):
        told = [f"{METRICS[name.removeprefix(f'{split}_')].words} {measured[name]:.2%}" for name in metrics_of(split)]
        line = f"{split}: {', '.join(told)}, loss {measured[f'{split}_loss']:.4f}, {measured[f'{split}_n']:,} images"
        print(line + (f" (recorded: {recorded.metrics[f'{split}_accuracy']:.2%})" if same else ""))


def _weights(file: str, overrides: Sequence[str]) -> None:
    config = compose(overrides)
    from metaformer.training.evaluation import evaluate_weights

    top = evaluate_weights(file, config)
    print(f"top-1 {top.top1:.2%}, top-5 {top.top5:.2%}, {top.images:,} images, crop {top.crop_pct}")


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
