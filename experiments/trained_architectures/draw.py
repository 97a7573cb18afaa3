"""Draws the eight architectures of experiments/trained_architectures and writes them as configuration files.

    python experiments/trained_architectures/draw.py

Each is drawn uniformly, without replacement, from all that these choices give and that have 200,000 to 350,000
parameters with pooling: one or two stages, the second with half as many tokens a side; 1 to 4 blocks in each; widths
that are multiples of 32, the second not below the first; patches that overlap or do not, in the stem and between stages
alike; GroupNorm or LayerNorm; an MLP ratio of 1, 2 or 4.
"""

from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer import MetaFormer, Pooling

HOW_MANY, SEED, PARAMETERS = 8, 0, range(200_000, 350_001)
WIDTHS, BLOCKS = range(32, 257, 32), range(1, 5)
PATCHES = {True: {"stem": [7, 4, 2], "downsample": [3, 2, 1]}, False: {"stem": [4, 4, 0], "downsample": [2, 2, 0]}}


def every() -> Iterator[dict[str, Any]]:
    """All choices, of any size, as the options of the `model` node."""
    shapes: list[tuple[list[int], list[int]]] = [([b], [w]) for b in BLOCKS for w in WIDTHS]
    shapes += [([a, b], [w, v]) for a, b, w, v in product(BLOCKS, BLOCKS, WIDTHS, WIDTHS) if w <= v]
    for (depths, dims), overlap, norm, ratio in product(shapes, (True, False), ("group", "layer"), (1, 2, 4)):
        position = [True, False][: len(dims)]
        yield {
            "depths": depths,
            "dims": dims,
            **PATCHES[overlap],
            "norm": norm,
            "mlp_ratio": ratio,
            "position": position,
        }


def parameters(options: dict[str, Any]) -> int:
    """Of the model with pooling, for 10 classes of images of 32 x 32."""
    with torch.device("meta"):
        net = MetaFormer(Pooling, **options, img_size=32, num_classes=10)
    return sum(p.numel() for p in net.parameters())


def texts() -> dict[str, str]:
    """The configuration files by their names, the same ones at each call."""
    listed, files = list(every()), {}
    shuffled = (listed[i] for i in np.random.default_rng(SEED).permutation(len(listed)))
    admissible = (options for options in shuffled if parameters(options) in PARAMETERS)
    for i, options in enumerate(islice(admissible, HOW_MANY), start=1):
        lines = "".join(f"  {key}: {str(value).lower()}\n" for key, value in options.items())
        files[f"a{i}.yaml"] = f"# @package _global_\n# {parameters(options):,} parameters with pooling\nmodel:\n{lines}"
    return files


if __name__ == "__main__":
    for name, content in texts().items():
        Path(__file__).with_name("architecture").joinpath(name).write_text(content)
