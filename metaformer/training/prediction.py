"""What a trained network says of images: of each its class and probabilities, or the class of each of its pixels."""

import csv
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import ImageChops
from PIL.Image import Image
from torch import Tensor

from metaformer.config.schema import COLOURS, Config, Data
from metaformer.config.tasks import IGNORED
from metaformer.data.batches import EVAL_LOGITS, EVAL_PHOTOS
from metaformer.data.decoding import decode, unfit
from metaformer.data.images import load as load_images
from metaformer.data.pixel_labels import numbers_of, picture_of
from metaformer.data.readers.folder import images_below
from metaformer.data.splits import Split
from metaformer.models.decoders import resized
from metaformer.system.errors import ConfigError, tell
from metaformer.system.files import as_csv, replacing, write
from metaformer.tasks.classification import Classifier
from metaformer.tasks.learner import Learner
from metaformer.tasks.segmentation import Segmenter
from metaformer.training.restored import Trained, Transform, load_run
from metaformer.training.trainer import NOISE, make_trainer
from metaformer.training.whole_images import WholeSegmenter, WholeTransform, in_turn, whole_transform, why_not_whole


@dataclass(frozen=True)
class Pictures:
    """Images by their places, read when they are asked for, in batches [B, C, H, W] as a network sees them."""

    names: Sequence[str]
    read: Callable[[int], Image | np.ndarray]
    transform: Callable[[Any], Tensor]
    batch: int = EVAL_PHOTOS
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # width and height of those that were read

    def __len__(self) -> int:
        return -(-len(self.names) // self.batch)

    def __iter__(self) -> Iterator[Tensor]:
        for images in in_turn(self._seen, len(self.names), self.batch):
            yield torch.stack(images).contiguous(memory_format=torch.channels_last)

    def _seen(self, place: int) -> Tensor:
        image = self.read(place)
        self.sizes[place] = image.size if isinstance(image, Image) else (image.shape[1], image.shape[0])
        return self.transform(image)


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
    trained = load_run(run)
    pictures = _pictures(config, trained, folder=folder)
    module = Classifier(trained.net, config.recipe, classes=len(trained.classes), seed=config.seed)
    probabilities = torch.cat(_run_over(pictures, module, config)).cpu()
    return Predicted(pictures.names, trained.classes, probabilities)


class MaskWriter(BasePredictionWriter):
    """Writes the mask of each image as soon as its batch is done, as large as the image.

    Where images are not seen whole but cut about the middle, what of them the network does not see has no class.
    """

    def __init__(self, pictures: Pictures, files: Sequence[Path], data: Data) -> None:
        super().__init__("batch")
        self.pictures, self.files, self.data = pictures, files, data
        self.whole = isinstance(pictures.transform, WholeTransform)

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, *where: Any
    ) -> None:
        first = where[2] * self.pictures.batch
        if self.whole:
            prediction = resized(prediction, self.pictures.sizes[first][::-1])
        for place, labels in enumerate(prediction.argmax(1).to(torch.uint8).cpu().numpy(), first):
            numbers = numbers_of(unfit(labels, self.pictures.sizes[place][::-1], IGNORED), self.data)
            with replacing(self.files[place]) as part:
                picture_of(numbers).save(part, format="png")


def segment(run: Path, config: Config, out: Path, *, folder: bool) -> int:
    """Write the mask of each image as `out`/NAME.png, and the numbers of the classes beside them; how many there are.

    Masks have the numbers that those of the run had, so that a network can be trained on them.

    Arguments are those of `predict`.

    Raises:
        ConfigError: there is no image, one cannot be read, or two would have the same mask; it names the file.
    """
    trained = load_run(run)
    pictures, data = _pictures(config, trained, folder=folder), trained.config.data
    kind = Segmenter
    if trained.shape[0] in COLOURS:
        seen = whole_transform(trained.net, trained.shape[1:], trained.transform.mean, trained.transform.std)
        if reason := why_not_whole(trained.net, seen):
            tell(f"{reason}: what is cut off of others has no class in their masks")
        else:
            pictures, kind = replace(pictures, transform=seen, batch=1), WholeSegmenter
    files: dict[Path, str] = {}
    for name in pictures.names:
        if (file := out / Path(name).with_suffix(".png")) in files:
            told = f"{files[file]} and {name} would have the same mask, {file}"
            raise ConfigError(f"data.root={config.data.root}: {told}")
        files[file] = name
    module = kind(trained.net, config.recipe, classes=len(trained.classes), seed=config.seed)
    _run_over(pictures, module, config, callbacks=[MaskWriter(pictures, list(files), data)])
    numbers = numbers_of(np.arange(len(trained.classes), dtype=np.uint8), data).tolist()
    rows = [{"number": number, "class": name} for number, name in zip(numbers, trained.classes, strict=True)]
    write(out / "classes.csv", as_csv(rows))
    return len(files)


def _run_over(
    pictures: Pictures, module: Learner, config: Config, callbacks: Sequence[L.Callback] = ()
) -> list[Tensor]:
    """The predictions of each batch, on the device of the command line; none where callbacks take them."""
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    options: dict[str, Any] = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "callbacks": list(callbacks),
    }
    trainer = make_trainer(config.runtime, config.recipe, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOISE)
        batches = trainer.predict(module, dataloaders=pictures, return_predictions=not callbacks)
    return [batch for batch in batches or [] if isinstance(batch, Tensor)]


def _pictures(config: Config, trained: Trained, *, folder: bool) -> Pictures:
    """What is predicted, in batches whose logits fit into memory."""
    logits = len(trained.classes) * trained.shape[1] * trained.shape[2] if trained.config.task.segments else 1
    batch = max(1, min(EVAL_PHOTOS, EVAL_LOGITS // logits))
    return _below(config, trained, batch) if folder else _tested(config, trained, batch)


def _below(config: Config, trained: Trained, batch: int) -> Pictures:
    """The images of a folder, by their paths in it."""
    if trained.shape[0] not in COLOURS:
        told = f"this run was trained on images of {trained.shape[0]} channels, which no file of an image has"
        raise ConfigError(f"data.root={config.data.root}: {told}; leave it out for the test images")
    files = images_below(config.data)
    data = replace(trained.transform.data, range=config.data.range)
    names = [inside or name for inside, name in zip(_inside(config.data, files.names), files.names, strict=True)]
    grey = trained.shape[0] == 1 and trained.config.data.channels is None  # as they were, not as somebody wanted them
    decoded = replace(data, channels=3) if grey else data

    def read(place: int) -> Image:
        image = decode(files.read(place), files.names[place], decoded)
        if grey and any(ImageChops.difference(image.getchannel(0), image.getchannel(i)).getbbox() for i in (1, 2)):
            told = "has colours; this run was trained on grey images, and sees only such"
            raise ConfigError(f"{files.names[place]}: {told}")
        return image

    return Pictures(names, read, _of_decoded(trained), batch)


def _tested(config: Config, trained: Trained, batch: int) -> Pictures:
    """The test images of the run, by their files below `data.root`, or else by their places."""
    images = load_images(config.data, config.runtime.cache, training=False).test
    read = images.array if isinstance(images, Split) and trained.shape[0] not in COLOURS else images.read
    if isinstance(images, Split) and images.uncut is not None:
        read = images.uncut[0].read
    found = _inside(config.data, map(images.name, range(len(images))))
    names = [name or f"test/{row}" for row, name in enumerate(found)]
    return Pictures(names, read, _of_decoded(trained), batch)


def _inside(data: Data, files: Iterable[str | None]) -> Iterator[str | None]:
    """The path of each file in `data.root`; None where it is none that can be found there."""
    root = Path(str(data.root)).expanduser()
    folder = root if root.is_dir() else root.parent
    for file in files:
        if data.root is None or file is None or not Path(file).is_relative_to(folder) or not Path(file).exists():
            yield None
        else:  # not all of them can be written
            yield Path(file).relative_to(folder).as_posix().encode(errors="replace").decode()


def _of_decoded(trained: Trained) -> Transform:
    """How a network sees images that have eight bits a channel already."""
    return replace(trained.transform, data=replace(trained.transform.data, range=None))


def encoded(predicted: Predicted, kind: str) -> bytes:
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
