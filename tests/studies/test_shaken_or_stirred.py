"""A published study of mixers as a folder of YAML: its images, and how its factors make a mixer for each stage."""

import runpy
import sys

import numpy as np
import pytest
from conftest import compose, repository
from PIL import Image

from metaformer.data.images import load

STUDY = repository() / "experiments" / "shaken_or_stirred"


def test_no_two_files_have_an_image_in_common(tmp_path, monkeypatch):
    for split, count in {"train": 12, "test": 6}.items():
        for label in range(10):
            folder = tmp_path / "cifar" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                value = np.array([number, label, split == "test"], np.uint8)
                Image.fromarray(np.broadcast_to(value, (32, 32, 3)).copy()).save(folder / f"{number:04}.png")
    script = runpy.run_path(str(STUDY / "make_images.py"))
    assert max(script["LONG_TAIL"]) == 20 * min(script["LONG_TAIL"])
    counts = {
        "pretraining": {"train": [4] * 10, "val": [1] * 10, "test": [2] * 10},
        "imbalanced": {"train": [*range(5, 0, -1), *range(1, 6)], "val": [1] * 10, "test": [3] * 10},
    }
    main = script["main"]
    main.__globals__["COUNTS"] = counts
    monkeypatch.setattr(sys, "argv", ["make_images.py", str(tmp_path / "cifar")])
    main()
    seen = []
    for name, splits in counts.items():
        file = tmp_path / "data" / "shaken_or_stirred" / f"{name}.npz"
        with np.load(file) as arrays:
            for split, wanted in splits.items():
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
                assert np.bincount(labels).tolist() == wanted
                assert images[:, 0, 0, 1].tolist() == labels.tolist()
                assert (images[..., 2] == (split == "test")).all()
                seen += [tuple(image[0, 0]) for image in images]
        read = load(compose("data=npz", f"data.root={file}", "data.size=32").data)
        assert read.class_counts.tolist() == splits["train"]
    assert len(seen) == len(set(seen))


def pooling(size: int) -> dict:
    return {"_target_": "metaformer.mixers.Pooling", "pool_size": size}


@pytest.mark.parametrize(("stages", "first"), [("all", 5), ("last_two", 3)])
def test_a_mixer_is_in_all_stages_or_in_the_last_two(stages, first, tmp_path):
    (tmp_path / "weights.pt").touch()
    factors = ("images=garments", f"stages={stages}", "mixer=pooling_5")
    words = [f"+experiments/shaken_or_stirred/{factor}" for factor in factors]
    if stages == "last_two":
        words.append("recipe.initialize_from=weights.pt")
    mixer = compose("mixer=by_stage", *words).mixer
    assert [mixer[f"stage{i}"] for i in range(1, 5)] == [pooling(first)] * 2 + [pooling(5)] * 2
