"""Make three files of images from CIFAR-10 (train/<class>/ and test/<class>/), of which no two have an image in common.

    python experiments/shaken_or_stirred/make_images.py FOLDER

They go to data/shaken_or_stirred: `pretraining.npz` for the weights of two stages, `balanced.npz`, and
`imbalanced.npz`, whose largest class has 20 times as many images to train with as its smallest one. The arrays have the
names that MedMNIST gives them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

LONG_TAIL = [round(1000 * 20 ** (-place / 9)) for place in range(10)]
COUNTS: dict[str, dict[str, list[int]]] = {  # images of each class
    "pretraining": {"train": [2000] * 10, "val": [100] * 10, "test": [100] * 10},
    "balanced": {"train": [500] * 10, "val": [100] * 10, "test": [300] * 10},
    "imbalanced": {"train": LONG_TAIL, "val": [100] * 10, "test": [300] * 10},
}


def read(folder: Path) -> list[np.ndarray]:
    """The images of each class [N, 32, 32, 3], in an order drawn once."""
    random, classes = np.random.default_rng(0), []
    for place in sorted(place for place in folder.iterdir() if place.is_dir()):
        files = sorted(place.iterdir())
        classes.append(np.stack([np.asarray(Image.open(files[row])) for row in random.permutation(len(files))]))
    return classes


def take(classes: Sequence[np.ndarray], used: Sequence[int], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The next images of each class after those that are used, and their labels."""
    taken = [images[first : first + n] for images, first, n in zip(classes, used, counts, strict=True)]
    return np.concatenate(taken), np.repeat(np.arange(len(counts)), counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    source = parser.parse_args().folder
    target = Path("data/shaken_or_stirred")
    target.mkdir(parents=True, exist_ok=True)
    classes = {split: read(source / split) for split in ("train", "test")}
    used = {split: [0] * 10 for split in classes}
    for name, splits in COUNTS.items():
        arrays: dict[str, np.ndarray] = {}
        for split, counts in splits.items():
            of = "test" if split == "test" else "train"
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = take(classes[of], used[of], counts)
            used[of] = [before + n for before, n in zip(used[of], counts, strict=True)]
        file = target / f"{name}.npz"
        np.savez_compressed(file, **arrays)
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
