"""The classes of images or of their pixels, as a finished run predicts them.

    python -m metaformer.predict run=runs/RUN [data.root=FOLDER] [out=predictions.csv] [runtime=...]
    python -m metaformer.predict run=runs/RUN [data.root=FOLDER] [out=masks] [runtime=...]   # of task=segmentation

The table has a row for each image: `file`, `class`, and in `p_CLASS` the probability of each class. It is written as
.csv or .parquet (extra `hub`). With task=segmentation `out` is a folder, which gets a mask for each image: a PNG of the
size of the image, with the numbers that the masks of the run have, as classes.csv beside them says. Images are seen
whole, or cut about the middle where the network is for one size, as with mixer=spatial_mlp.

All images in FOLDER and below are taken, in the order of their paths, or the one image that it is. They are brought to
size and channels of the run, but colours are refused where its own images had none; 32 bits need data.range=[low,high].
Without a FOLDER: the test images, in the order of predictions.npz, by their files, or test/0, test/1, ... without such.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from metaformer.cli import answer, words
from metaformer.config.compose import key_of
from metaformer.runs.finished import CHANGEABLE, finished
from metaformer.system.errors import ConfigError, install, nearest
from metaformer.system.files import write

DATA, TABLES = ("data.root", "data.range"), (".csv", ".parquet")  # all else of the images is as the run saw its own


def command(arguments: Sequence[str]) -> None:
    """Predict what the command line names and write the table."""
    given = words(arguments, own=("run", "out"), groups=CHANGEABLE)
    if "run" not in given.own:
        raise ConfigError("expected run=FOLDER, the folder of one finished run")
    for key in (keys := [key_of(override) for override in given.overrides]):
        if key.partition(".")[0] == "data" and key not in DATA:
            hint = nearest(key, DATA) or f"; expected {' or '.join(DATA)}"
            raise ConfigError(f"{key}: the images are seen as the run saw its own{hint}")
    run = finished(Path(given.own["run"]), given.overrides)
    if run.config.runtime.processes > 1:
        raise ConfigError("runtime.devices, runtime.nodes: expected 1 of each, as one device predicts")
    segments, folder = run.config.task.segments, "data.root" in keys
    out = _folder(given.own.get("out", "masks")) if segments else _table(given.own.get("out", "predictions.csv"))
    from metaformer.training.prediction import encoded, predict, segment

    if segments:
        count, what = segment(run.folder, run.config, out, folder=folder), "mask"
    else:
        predicted = predict(run.folder, run.config, folder=folder)
        count, what = len(predicted.names), "image"
        write(out, encoded(predicted, out.suffix))
    print(f"written: {out}, {count:,} {what}{'s' * (count != 1)}")


def _folder(name: str) -> Path:
    """Where masks go; a ConfigError where there is something already, or where a table would."""
    out = Path(name).expanduser()
    if out.suffix in TABLES or out.is_file() or (out.is_dir() and any(out.iterdir())):
        told = "is there already" if out.exists() else "task=segmentation writes no table"
        raise ConfigError(f"out={name}: {told}; expected a new or an empty folder for the masks")
    return out


def _table(name: str) -> Path:
    """Where the table goes; a ConfigError where it could not be written."""
    out = Path(name).expanduser()
    if out.suffix not in TABLES or out.is_dir():
        raise ConfigError(f"out={name}: expected a file that ends in {' or '.join(TABLES)}")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(f"out={name}: parquet needs {install('hub')}")
    if not out.parent.is_dir():
        raise ConfigError(f"out={name}: {out.parent} is no folder")
    return out


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
