"""Evaluate a finished run again, or weights from a file.

    python -m metaformer.evaluate run=runs/RUN [data=...] [runtime=...]
    python -m metaformer.evaluate weights=FILE [model=s12] [mixer=pooling] data=image_folder data.root=FOLDER

The weights.pt of a run knows its model, its classes and how it sees images. Classes are compared by their names; those
of other files are ImageNet's where the images are in folders named by its synsets (n01440764). FOLDER is like that of
training, or it has one folder for each class, and all images are tested.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from metaformer.cli import answer, words
from metaformer.config.compose import compose
from metaformer.config.metrics import METRICS
from metaformer.runs.finished import CHANGEABLE, changed, finished
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

        measured = evaluate(run.config, folder / "weights.pt")
    same, leading = run.config.data == run.result.config.data, run.config.task.leading
    recorded = {split: run.result.metrics[f"{split}_{leading}"] for split in measured.images}
    _tell(measured.metrics, measured.images, recorded if same else {})


def _weights(file: str, overrides: Sequence[str]) -> None:
    now = compose(overrides)
    from metaformer.training.evaluation import evaluate, evaluate_weights, kept_config

    kept = kept_config(file)
    if kept is not None:
        config = changed(kept, overrides, file)
        if config.data._target_ != now.data._target_:  # what somebody else's file names is not called
            told = f"its images are what data._target_={config.data._target_} returns"
            raise ConfigError(f"weights={file}: {told}; expected data=custom data._target_=... here, or run=FOLDER")
        measured = evaluate(config, Path(file))
        _tell(measured.metrics, measured.images)
        return
    measured = evaluate_weights(file, now)
    _tell(measured.metrics, measured.images)
    print(f"crop {measured.crop_pct}, {measured.interpolation}")


def _tell(metrics: Mapping[str, float], images: Mapping[str, int], recorded: Mapping[str, float] | None = None) -> None:
    """A line for each split: every metric, and the leading one as it was recorded where the images are the same."""
    for split, count in images.items():
        of_split = {name: metrics[f"{split}_{name}"] for name in METRICS if f"{split}_{name}" in metrics}
        told = [f"{METRICS[name].words} {METRICS[name].told(value)}" for name, value in of_split.items()]
        if (top5 := metrics.get(f"{split}_top5")) is not None:
            told.insert(1, f"top-5 {top5:.2%}")
        line = f"{split}: {', '.join(told)}, {count:,} images"
        print(line + (f" (recorded: {recorded[split]:.2%})" if recorded else ""))


def main() -> None:
    answer(__doc__, command, ("mixer", "model", "data", "runtime"))


if __name__ == "__main__":
    main()
