"""Classes and probabilities of images by a trained network, as a table: a row for each image."""

import csv
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from metaformer.config.schema import Config
from metaformer.data.batches import EVAL_PHOTOS
from metaformer.data.decoding import decode
from metaformer.data.images import load as load_images
from metaformer.data.readers.folder import images_below
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.training.restored import Trained, load
from metaformer.training.trainer import QUIET, make_trainer


@dataclass(frozen=True)
class Pictures:
    """Images by their places, read when they are asked for, in batches [B, C, H, W] as a network sees them."""

    names: Sequence[str]
    read: Callable[[int], Image]
    transform: Callable[[Image], Tensor]

    def __len__(self) -> int:
        return -(-len(self.names) // EVAL_PHOTOS)

    def __iter__(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.names), EVAL_PHOTOS):
                batch = range(start, min(start + EVAL_PHOTOS, len(self.names)))
                seen = list(pool.map(lambda place: self.transform(self.read(place)), batch))
                yield torch.stack(seen).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Predicted:
    """Probabilities [N, classes] fp32 of the images that `names` lists."""

    names: Sequence[str]
    classes: list[str]
    probabilities: Tensor

    def table(self) -> dict[str, list[str] | list[float]]:
        """The columns: `file`, `class`, and `p_CLASS` with the probability of each class."""
        best = [self.classes[place] for place in self.probabilities.argmax(1).tolist()]
        of_class = zip(self.classes, self.probabilities.T.tolist(), strict=True)
        return {"file": list(self.names), "class": best, **{f"p_{name}": column for name, column in of_class}}


def predict(run: Path, config: Config, *, folder: bool) -> Predicted:
    """What a finished run says of images.

    Args:
        run: its folder.
        config: its configuration, with the data and the runtime of today.
        folder: the images are all those below `config.data.root`, in the order of their paths; otherwise the test
            images of the run, in the order of its predictions.npz.

    Raises:
        ConfigError: there is no image, or one cannot be read; it names the file.
    """
    trained = load(run)
    assert isinstance(trained, Trained)
    if trained.config.task.segments:
        raise ConfigError(f"run={run}: is of segmentation; expected a classifier (metaformer.load gives its network)")
    pictures = _below(config, trained) if folder else _tested(config, trained)
    module = Classifier(trained.net, config.recipe, classes=len(trained.classes), seed=config.seed)
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    alone = replace(config.runtime, devices=1, nodes=1)
    trainer = make_trainer(alone, config.recipe, enable_checkpointing=False, enable_progress_bar=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=QUIET)
        batches = trainer.predict(module, dataloaders=pictures)
    assert batches is not None
    return Predicted(pictures.names, trained.classes, torch.cat([b for b in batches if isinstance(b, Tensor)]).cpu())


def _below(config: Config, trained: Trained) -> Pictures:
    """The images of a folder, by their paths in it."""
    files = images_below(config.data)
    seen = replace(trained.transform, data=replace(trained.transform.data, range=config.data.range))
    root = Path(str(config.data.root)).expanduser()
    inside = [path.relative_to(root if root.is_dir() else root.parent) for path in map(Path, files.names)]
    names = [path.as_posix().encode(errors="replace").decode() for path in inside]  # not all of them can be written
    return Pictures(names, lambda place: decode(files.read(place), files.names[place], seen.data), seen)


def _tested(config: Config, trained: Trained) -> Pictures:
    """The test images of the run, by their places."""
    images = load_images(config.data, config.runtime.cache, training=False).test
    return Pictures([f"test/{row}" for row in range(len(images))], images.read, trained.transform)


def written(predicted: Predicted, kind: str) -> bytes:
    """The table as a file of that kind, `.csv` or `.parquet`, which needs pyarrow."""
    table = predicted.table()
    if kind == ".parquet":
        import pyarrow as arrow
        from pyarrow import parquet

        file = io.BytesIO()
        parquet.write_table(arrow.table(table), file)
        return file.getvalue()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue().encode()
