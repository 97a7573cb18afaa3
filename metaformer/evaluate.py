"""Evaluate a finished run again, or weights from a file.

    python -m metaformer.evaluate run=runs/RUN [data=...] [runtime=...]
    python -m metaformer.evaluate run=runs/RUN whole=true       # of task=segmentation: images that are not cut
    python -m metaformer.evaluate weights=FILE [model=s12] [mixer=pooling] data=image_folder data.root=FOLDER

The weights.pt of a run knows its model, its classes and how it sees images. Classes are compared by their names; those
of other files are ImageNet's where the images are in folders named by its synsets (n01440764). FOLDER is like that of
training, or it has one folder for each class, and all images are tested.

With whole=true images with masks are not cut to data.size: each is seen in its own proportions, as large as there, and
every pixel of its mask is judged, as in published results.
"""

from collections.abc import Sequence
from pathlib import Path

from metaformer.cli import answer, flag, words
from metaformer.config.compose import compose
from metaformer.runs.finished import CHANGEABLE, changed, finished
from metaformer.system.errors import ConfigError
from metaformer.system.machine import rank


def command(arguments: Sequence[str]) -> None:
    """Evaluate a run or weights, and print it."""
    of_weights = any(word.startswith("weights=") for word in arguments)
    given = words(arguments, own=("run", "weights", "whole"), groups=None if of_weights else CHANGEABLE)
    own, whole = given.own, flag(given.own, "whole")
    if ("run" in own) == of_weights or (whole and of_weights):
        raise ConfigError("expected run=FOLDER, of one finished run, perhaps with whole=true, or weights=FILE")
    if of_weights:
        lines = _weights(own["weights"], given.overrides)
    else:
        lines = _run(Path(own["run"]), given.overrides, whole=whole)
    if rank() == 0:  # each device has evaluated its part, and knows the whole
        print("\n".join(lines))


def _run(folder: Path, overrides: Sequence[str], *, whole: bool) -> list[str]:
    run = finished(folder, overrides)
    from metaformer.training.evaluation import evaluate

    measured = evaluate(run.config, folder / "weights.pt", whole=whole)
    same, leading = run.config.data == run.result.config.data and not whole, run.config.task.leading
    recorded = {split: run.result.metrics[f"{split}_{leading}"] for split in measured.images}
    return measured.lines(recorded if same else {})


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
        return measured.lines()
    measured = evaluate_weights(file, now)
    seen = f"crop {measured.crop_pct}, {measured.interpolation}"
    return [*measured.lines(), seen]


def main() -> None:
    answer(__doc__, command, ("mixer", "model", "data", "runtime"))


if __name__ == "__main__":
    main()
