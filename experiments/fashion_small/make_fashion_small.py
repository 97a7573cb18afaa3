"""Make fashion_small.npz from the four original files of Fashion-MNIST (raw or .gz): 8,000 / 2,000 / 3,000 images.

    python experiments/fashion_small/make_fashion_small.py FOLDER

Training and validation images come from the original training set, test images from the original test set; each
split holds the same number of every class, drawn once with a fixed seed.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

SPLITS = {"train": ("train", 800), "val": ("train", 200), "test": ("t10k", 300)}  # source, images of each class


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of bytes: a magic number whose last byte is the number of axes, their lengths, the data."""
    path = folder / name
    content = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    axes = content[3]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(content, ">i4", axes, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    taken = {source: np.array([], int) for source in ("train", "t10k")}
    for split, (source, per_class) in SPLITS.items():
        images = read_idx(folder, f"{source}-images-idx3-ubyte")
        labels = read_idx(folder, f"{source}-labels-idx1-ubyte")
        free = np.setdiff1d(np.arange(len(labels)), taken[source])
        rows = [random.choice(free[labels[free] == c], per_class, replace=False) for c in range(10)]
        index = np.sort(np.concatenate(rows))
        taken[source] = np.concatenate([taken[source], index])
        arrays |= {f"{split}_images": images[index], f"{split}_labels": labels[index]}
    target = Path(__file__).resolve().parents[2] / "metaformer" / "data" / "assets" / "fashion_small.npz"
    np.savez_compressed(target, **arrays)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
