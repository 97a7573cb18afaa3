"""How fast images are read and augmented, beside torchvision's DataLoader and timm's loader, and which decoder is fast.

    python experiments/speed/data.py
    python experiments/speed/data.py --rounds 1 --images 16 --photographs 8

All in one process and one thread: images per second and core. The photographs are made here, of noise that is smooth
at several scales, of 500 x 375 pixels (ImageNet's usual size) and of 1600 x 1200, as JPEG of quality 90.
"""

import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rounds import Row, heading, in_turns, keep, options, speed, wanted
from timm.data import ImageDataset, create_loader
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from metaformer.config.compose import compose
from metaformer.config.schema import Data
from metaformer.data.batches import Batches
from metaformer.data.decoding import decode, fit
from metaformer.data.images import Images, load
from metaformer.data.module import ImageData

SIDE = 224
WANTED = Data(size=SIDE, channels=3)


class PILImages(torch.utils.data.Dataset):
    """What a DataLoader of torchvision's habits reads: PIL images in memory, and a transform of each."""

    def __init__(self, data: Images, transform: Callable) -> None:
        self.images = [transforms.functional.to_pil_image(image.squeeze(-1).numpy()) for image in data.train.images]
        self.labels, self.transform = data.train.labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def drain(batches: Iterable[object]) -> Callable[[], None]:
    def work() -> None:
        for _ in batches:
            pass

    return work


def in_memory(count: int) -> dict[str, Callable[[], None]]:
    """One epoch of small grey images with crop and flip."""
    data = load(Data(name="fashion_small", train=count))
    mean, std = (value / 255 for value in (data.mean, data.std))
    steps = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    augment = transforms.Compose([*steps, transforms.Normalize(mean, std)])
    loader = torch.utils.data.DataLoader(PILImages(data, augment), batch_size=64, shuffle=True)
    own = Batches(data, 64, seed=0, passes=[(0, range(count // 64))], crop=2, flip=True)
    return {"torchvision, PIL in a DataLoader": drain(loader), "metaformer, a gather for a batch": drain(own)}


def photograph(random: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG that has detail at all scales, as photographs have."""
    pixels = np.zeros((height, width, 3))
    for scale in (4, 8, 16, 32, 64, 128):
        coarse = random.normal(size=(height // scale + 2, width // scale + 2, 3))
        coarse -= coarse.min()
        noise = Image.fromarray((255 * coarse / coarse.max()).astype(np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(image) * scale**0.5
    file = io.BytesIO()
    Image.fromarray((255 * pixels / pixels.max()).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def pillow(content: bytes) -> Image.Image:
    return fit(decode(content, "x.jpg", WANTED), (SIDE, SIDE))


def draft(content: bytes, least: int = SIDE) -> Image.Image:
    """Decoded at a half, a quarter or an eighth of its size, as long as that is not below `least` pixels."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (least, least))
    return fit(image.convert("RGB"), (SIDE, SIDE))


def torchvision(content: bytes) -> Image.Image:
    pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return fit(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (SIDE, SIDE))


DECODERS: dict[str, Callable[[bytes], Image.Image]] = {
    "Pillow, as here": pillow,
    "Pillow, draft": draft,
    "Pillow, draft at half the side": lambda content: draft(content, SIDE // 2),
    "torchvision.io.decode_jpeg": torchvision,
}


def all_of(decoder: Callable[[bytes], Image.Image], contents: Sequence[bytes]) -> None:
    for content in contents:
        decoder(content)


def difference(contents: Sequence[bytes], decoder: Callable[[bytes], Image.Image]) -> float:
    """The root mean square of the differences from Pillow's whole decoding, in grey levels of 255."""
    squares = [(np.asarray(decoder(c), float) - np.asarray(pillow(c), float)) ** 2 for c in contents]
    return float(np.mean(squares)) ** 0.5


def pipelines(folder: Path, contents: Sequence[bytes]) -> dict[str, Callable[[], None]]:
    """One epoch of random resized crops and flips from files, in the main process."""
    for i, content in enumerate(contents):
        for split in ("train", "val", "test"):
            if split == "train" or i < 8:
                place = folder / split / f"class{i % 4}" / f"{split}{i}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content + split.encode())
    batch = min(16, len(contents))
    loader = create_loader(
        ImageDataset(str(folder / "train")), (3, SIDE, SIDE), batch, is_training=True, num_workers=0,
        use_prefetcher=False, interpolation="random", hflip=0.5, color_jitter=None, persistent_workers=False,
    )  # fmt: skip
    words = ["data=image_folder", f'data.root="{folder}"', f"data.size={SIDE}", f"recipe.batch={batch}"]
    crops = ["recipe.scale=[0.08,1.0]", "recipe.flip=true", "data.decode=always", "data.classes=4"]
    config = compose([*words, *crops])
    images = load(config.data, str(folder / "cache"))
    own = ImageData(images, config.recipe, seed=0, workers=0).train_dataloader()
    return {"timm's loader": drain(loader), "metaformer, data.decode=always": drain(own)}


def main() -> None:
    given = options(__doc__, rounds=7, clock="cpu", images=2048, photographs=32)
    heading(given)
    rows: list[Row] = []
    if wanted(what := "28 px in memory, crop and flip", given):
        works = in_memory(given.images)
        rows += in_turns(what, "images/s", {k: speed(w, given.images, given.clock) for k, w in works.items()}, given)
    random = np.random.default_rng(0)
    for width, height in ((500, 375), (1600, 1200)):
        what = f"JPEG of {width} x {height} to {SIDE} px"
        if not wanted(what, given):
            continue
        contents = [photograph(random, width, height) for _ in range(given.photographs)]
        works = {name: partial(all_of, decoder, contents) for name, decoder in DECODERS.items()}
        figures = {name: speed(work, len(contents), given.clock) for name, work in works.items()}
        rows += in_turns(what, "images/s", figures, given)
        for name, decoder in DECODERS.items():
            print(f"{what}: {name}: {difference(contents[:8], decoder):.2f} grey levels from Pillow's")
        if width == 500:
            with tempfile.TemporaryDirectory() as folder:
                works = pipelines(Path(folder), contents)
                what = f"JPEG of {width} x {height}, random resized crop and flip"
                figures = {name: speed(work, len(contents), given.clock) for name, work in works.items()}
                rows += in_turns(what, "images/s", figures, given)
    keep(rows, __file__, given.out)


if __name__ == "__main__":
    main()
