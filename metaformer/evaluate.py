"""Evaluate a finished run again, or weights from a file.

    python -m metaformer.evaluate run=runs/RUN [data=...] [runtime=...]
    python -m metaformer.evaluate weights=FILE [model=s12] [mixer=pooling] data=image_folder data.root=FOLDER

The weights.pt of a run knows its model, its classes and how it sees images. Classes are compared by their names; those
of other files are ImageNet's where the images are in folders named by its synsets (n01440764). FOLDER is like that of
training, or it has one folder for each class, and all images are tested.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from metaformer.cli import answer, words
from metaformer.config.compose import compose
from metaformer.config.metrics import METRICS
from metaformer.runs.finished import CHANGEABLE, changed, finished
from metaformer.system.errors import ConfigError
from metaformer.system.machine import rank


def command(arguments: Sequence[str]) -> None:
    """Evaluate what the command line names, a run or weights, and print it."""
    of_weights = any(word.startswith("weights=") for word in arguments)
    given = words(arguments, own=("run", "weights"), groups=None if of_weights else CHANGEABLE)
    if len(given.own) != 1:
        raise ConfigError("expected run=FOLDER, the folder of one finished run, or weights=FILE")
    own, overrides = given.own, given.overrides
    lines = _weights(own["weights"], overrides) if of_weights else _run(Path(own["run"]), overrides)
    if rank() == 0:  # each device has evaluated its part, and knows the whole
        print("\n".join(lines))


def _run(folder: Path, overrides: Sequence[str]) -> list[str]:
    run = finished(folder, overrides)
    from metaformer.training.evaluation import evaluate

    measured = evaluate(run.config, folder / "weights.pt")
    same, leading = run.config.data == run.result.config.data, run.config.task.leading
    recorded = {split: run.result.metrics[f"{split}_{leading}"] for split in measured.images}
    return _told(measured.metrics, measured.images, recorded if same else {})


def _weights(file: str, overrides: Sequence[str]) -> list[str]:
    now = compose(overrides)
    from metaformer.training.evaluation import evaluate, evaluate_weights, kept_config

    kept = kept_config(file)
    if kept is not None:
        config = changed(kept, overrides, file)
        if config.data._target_ != now.data._target_:  # what somebody else's file names is not called
            told = f"its images are what data._target_={config.data._target_} returns"
            raise ConfigError(f"weights={file}: {told}; expected data=custom data._target_=... here, or run=FOLDER")
        measured = evaluate(config, Path(file))
        return _told(measured.metrics, measured.images, {})
    measured = evaluate_weights(file, now)
    seen = f"crop {measured.crop_pct}, {measured.interpolation}"
    return [*_told(measured.metrics, measured.images, {}), seen]


def _told(metrics: Mapping[str, float], images: Mapping[str, int], recorded: Mapping[str, float]) -> list[str]:
    """A line for each split: every metric, and the leading one as it was recorded where the images are the same."""
    lines = []
    for split, count in images.items():
        of_split = {name: metrics[f"{split}_{name}"] for name in METRICS if f"{split}_{name}" in metrics}
        told = [f"{METRICS[name].words} {METRICS[name].told(value)}" for name, value in of_split.items()]
        if (top5 := metrics.get(f"{split}_top5")) is not None:
            told.insert(1, f"top-5 {top5:.2%}")
        line = f"{split}: {', '.join(told)}, {count:,} images"
        lines.append(line + (f" (recorded: {recorded[split]:.2%})" if recorded else ""))
    return lines


def main() -> None:
    answer(__doc__, command, ("mixer", "model", "data", "runtime"))


if __name__ == "__main__":
    main()
