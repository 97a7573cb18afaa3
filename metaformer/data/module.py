"""The LightningDataModule, and timm's transforms for images that are read one at a time."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from PIL.Image import Image
from timm.data import auto_augment, create_transform
from torch import Tensor

from metaformer.config.schema import COLOURS, Recipe
from metaformer.config.validate import structure
from metaformer.data.batches import (
    EVAL_PHOTOS,
    WHOLE,
    Batch,
    Batches,
    EvalBatches,
    Read,
    Share,
    Stream,
    Transformed,
    of_steps,
    pass_generator,
    repeated,
)
from metaformer.data.images import Images
from metaformer.data.joint import TransformedPairs, joint_transform
from metaformer.data.lightning_progress import asks_every_epoch, done_batches
from metaformer.data.splits import Split
from metaformer.system.errors import ConfigError


def posterized(image: Image, bits_to_keep: int, **options: Any) -> Image:
    """timm's, but that an image of which no bit is kept is black; since Pillow 13 that was an error, in rare draws."""
    if bits_to_keep <= 0:
        return image.point([0] * 256 * len(image.getbands()))
    kept: Image = auto_augment.posterize(image, bits_to_keep, **options)
    return kept


auto_augment.NAME_TO_OP |= dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), posterized)


def normalisation(mean: Tensor, std: Tensor) -> dict[str, list[float]]:
    """As timm's transforms take it, from the mean and deviation of pixels from 0 to 255."""
    return {"mean": (mean / 255).tolist(), "std": (std / 255).tolist()}


def training_transform(recipe: Recipe, shape: tuple[int, int, int], pixels: Mapping[str, Any]) -> Any:
    """timm's: random resized crop, flip, auto-augment, erasing. `shape` is (channels, height, width)."""
    for key in ("auto_augment", "color_jitter"):
        if (value := getattr(recipe, key)) is not None and shape[0] != 3:
            raise ConfigError(f"recipe.{key}={value}: needs images in colour")
    jitter = recipe.color_jitter  # None is not timm's default, which is 0.4
    least, most = recipe.scale or (1.0, 1.0)
    try:
        return create_transform(
            shape,
            is_training=True,
            scale=(least, most),
            hflip=0.5 if recipe.flip else 0.0,
            color_jitter=tuple(jitter) if isinstance(jitter, list) else jitter,
            auto_augment=recipe.auto_augment,
            interpolation="random",
            re_prob=recipe.erasing,
            re_mode="pixel",
            **pixels,
        )
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"recipe.auto_augment={recipe.auto_augment}: timm does not know it ({type(error).__name__}: {error})"
        ) from error


def evaluation_transform(
    crop_pct: float, shape: tuple[int, int, int], pixels: Mapping[str, Any], interpolation: str
) -> Any:
    """timm's: resize and centre crop."""
    return create_transform(shape, is_training=False, interpolation=interpolation, crop_pct=crop_pct, **pixels)


def check_reading(data: Images, recipe: Recipe) -> None:
    """A ConfigError where images are read one at a time, and a recipe has no transform for them."""
    if recipe.scale is None and not isinstance(data.train, Split):
        raise ConfigError(
            "recipe.scale: expected a random resized crop, as in recipe=poolformer, since data.decode=always"
        )


class EachEpoch:
    """Training batches for a loop that has the loader and not the module: another epoch each time.

    A Trainer tells the epoch to what a loader has as its sampler; without that they follow each other.
    """

    def __init__(self, batches_of: Callable[[int], "Batches | Stream"]) -> None:
        self.batches_of, self.epoch = batches_of, 0

    @property
    def sampler(self) -> "EachEpoch":
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches_of(self.epoch))

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch  # when the first batch is asked for: a Trainer makes the iterator before it tells the epoch
        self.epoch += 1
        yield from self.batches_of(epoch)


class ImageData(L.LightningDataModule):
    """Batches of images [B, C, H, W] in fp32, normalised, and labels [B] int64 or masks [B, H, W] uint8.

    The training batches are a function of the seed and the epoch: the Trainer has to ask for them at every epoch. A
    loader that is taken out of the module has another epoch each time.

    Args:
        data: what `metaformer.data.images.load` returns.
        recipe: whose batch size and augmentation are used.
        augment: otherwise training images are shuffled and nothing else.
        crop_pct, interpolation: of the evaluation of photographs, where `recipe.scale` says that they are read one at
            a time; images with masks are evaluated as they are kept.
        workers: the number of processes that read them.

    Raises:
        ConfigError: a recipe that does not fit the images, and in `setup` a batch that is too large or that the devices
            cannot share, or a Trainer that would take the batches of one epoch for all.
    """

    def __init__(
        self,
        data: Images,
        recipe: Recipe | Mapping[str, Any],
        seed: int,
        *,
        augment: bool = True,
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        workers: int = 0,
    ) -> None:
        super().__init__()
        recipe = structure(Recipe, recipe, "recipe.") if isinstance(recipe, Mapping) else recipe
        self.data, self.recipe, self.seed, self.augment = data, recipe, seed, augment
        self.here = data  # where it is trained, once the Trainer has said that
        self.aside: torch.cuda.Stream | None = None  # in which batches are sent to a GPU
        self.streams: dict[str, Stream] = {}
        pixels = normalisation(data.mean, data.std)
        if (key := recipe.crops_by) and data.channels not in COLOURS:
            told = f"is for grey or colours, and the images have {data.channels} channels"
            raise ConfigError(f"recipe.{key}={getattr(recipe, key)}: {told}; expected null, with recipe.crop")
        if recipe.crops_by and data.masked:
            if augment:
                assert isinstance(data.train, Split)
                joint = joint_transform(recipe, data.shape, pixels, min(data.train.pixels.shape[1:3]))
                self.streams["train"] = Stream(TransformedPairs(data.train, joint, seed), workers)
        elif recipe.scale is not None:
            evaluation = evaluation_transform(crop_pct, data.shape, pixels, interpolation)
            training = training_transform(recipe, data.shape, pixels) if augment else evaluation
            for name, split in data.splits().items():
                dataset = Transformed(split, training if name == "train" else evaluation, seed)
                self.streams[name] = Stream(dataset, workers)

    def setup(self, stage: str) -> None:
        # Not where a loader is asked for: an error there leaves torch's DataLoader as Lightning changes it meanwhile
        if stage == "fit" and self.trainer and not asks_every_epoch(self.trainer):
            raise ConfigError(
                "Trainer(reload_dataloaders_every_n_epochs=1): expected with ImageData, which makes the batches of one "
                "epoch; the same ones would be trained on in every epoch"
            )
        check_reading(self.data, self.recipe)
        parts, batch, there = self.share.devices * self.share.accumulate, self.recipe.batch, len(self.data.train)
        if stage == "fit" and (batch > there or batch % parts):
            told = f"is for {parts} devices and accumulated parts, which do not divide it"
            raise ConfigError(f"recipe.batch={batch}: {told if batch <= there else f'there are {there} images'}")
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if "test" not in self.streams and self.here is self.data:
            self.here = self.data.on(device)
        for stream in self.streams.values():
            # not where there is a GPU: that would start CUDA for runs on a CPU too
            stream.loader.pin_memory = device.type == "cuda"

    def teardown(self, stage: str) -> None:
        # Trainer and data hold each other: worker processes would be there until the garbage is collected
        for stream in self.streams.values():
            stream.end()

    @property
    def share(self) -> Share:
        trainer = self.trainer
        return Share(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches) if trainer else WHOLE

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """On a GPU in a stream of its own, so that a batch is copied while the step before is computed."""
        if device.type != "cuda" or all(part.device == device for part in batch):
            sent: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
            return sent
        if self.aside is None:
            self.aside = torch.cuda.Stream(device)
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(self.aside):
            sent = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing.wait_stream(self.aside)
        for part in sent:
            part.record_stream(computing)  # its memory is not given away before the step has read it
        return sent

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch[0].contiguous(memory_format=torch.channels_last), batch[1]

    def train_dataloader(self) -> "Batches | Stream | EachEpoch":
        return self.batches_of(self.trainer.current_epoch) if self.trainer else EachEpoch(self.batches_of)

    def batches_of(self, epoch: int) -> Batches | Stream:
        """The batches to train on in an epoch."""
        batch, share, images = self.recipe.batch, self.share, len(self.data.train)
        passes, trainer = self.recipe.passes_of(epoch, images), self.trainer

        # Only known when the first batch is asked for: loaders are made before a run is restored. It does not hold this
        # module: a circle with the streams is left to the garbage collector, which waits 5 s for each of their workers
        def done() -> int:
            return done_batches(trainer) if trainer else 0

        if "train" in self.streams:
            batches: list[Read] = []
            for number, steps in passes:
                order = torch.randperm(images, generator=pass_generator(self.seed, number))
                order = of_steps(repeated(order, self.recipe.repeated_augmentation), steps, batch)
                batches += [(number, rows) for rows in share.of(order, batch)]
            return self.streams["train"].of(batches, done)
        crop, flip = (self.recipe.crop, self.recipe.flip) if self.augment else (0, False)
        return Batches(self.here, batch, seed=self.seed, passes=passes, crop=crop, flip=flip, share=share, done=done)

    def val_dataloader(self) -> "EvalBatches | Stream":
        return self._evaluation("val", self.here.val)

    def test_dataloader(self) -> "EvalBatches | Stream":
        return self._evaluation("test", self.here.test)

    def predict_dataloader(self) -> "EvalBatches | Stream":
        return self.test_dataloader()

    def _evaluation(self, name: str, split: Any) -> "EvalBatches | Stream":
        if name not in self.streams:
            return EvalBatches(self.here, split, self.share)
        return self.streams[name].of([(None, rows) for rows in self.share.evaluated(len(split), EVAL_PHOTOS)])
