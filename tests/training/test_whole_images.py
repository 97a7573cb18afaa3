"""Images with masks that are not cut: seen in their own proportions, and judged at their own size."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex
from trained import CHOICES

from metaformer import evaluate as verb
from metaformer import predict
from metaformer.config.tasks import IGNORED
from metaformer.studies.points import resolve
from metaformer.studies.worker import run
from metaformer.training.evaluation import evaluate, restore
from metaformer.training.whole_images import WholePairs, WholeTransform

SHAPES = [(32, 32), (32, 48), (70, 40), (24, 24), (33, 57)]  # height and width
TINY = ("model=tiny_pyramid", "model.depths=[1,1]", "model.dims=[8,16]", "task.width=8", "recipe.label_smoothing=0")
WORDS = ("task=segmentation", "data=image_folder", "data.size=32", "data.classes=2", "data.ignore=0", "data.val=3",
         *TINY, "recipe.batch=4", "recipe.epochs=2", "recipe.warmup_epochs=0", "runtime.progress=false")  # fmt: skip


def scenes(root: Path, shapes: list[tuple[int, int]] = SHAPES) -> Path:
    """Dark discs on a bright ground, with numbers 1 and 2; the frame of one pixel is 0, no class."""
    random = np.random.default_rng(0)
    for split, count in (("training", 24), ("validation", 6)):
        for place in range(count):
            height, width = shapes[place % len(shapes)]
            y, x = np.mgrid[:height, :width]
            inside = np.hypot(y - random.uniform(8, height - 8), x - random.uniform(8, width - 8)) < 7
            pixels = np.where(inside, 60, 190)[..., None] + random.integers(-40, 40, (height, width, 3))
            mask = np.pad((1 + inside.astype(np.uint8))[1:-1, 1:-1], 1)
            for kind, content in (("images", pixels.astype(np.uint8)), ("annotations", mask)):
                (folder := root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / f"{place:02}.png")
    return root


def trained(root: Path, *words: str):
    return run(resolve(compose(*WORDS, f"data.root={root}", *words), CHOICES)[0])


def test_a_side_that_nothing_is_cut_of_is_as_large_as_there():
    seen = WholeTransform((32, 32), 8, torch.zeros(3), torch.ones(3))
    assert [seen.sides(*shape) for shape in SHAPES] == [(32, 32), (32, 48), (56, 32), (32, 32), (32, 56)]
    assert WholeTransform((32, 48), 8, torch.zeros(3), torch.ones(3)).sides(10, 10) == (48, 48)
    assert seen(Image.new("L", (40, 20))).shape == (3, 32, 64)
    grey = WholeTransform((32, 32), 8, torch.full((1,), 5.0), torch.full((1,), 2.0))
    assert grey(Image.new("RGB", (40, 20), (25, 25, 25))).unique().tolist() == [10.0]


def test_every_pixel_is_judged_at_the_size_of_its_mask(tmp_path, monkeypatch, capsys):
    root = scenes(tmp_path / "data")
    done = trained(root)
    file = done.folder / "weights.pt"
    whole, cut = (evaluate(done.result.config, file, whole=which) for which in (True, False))
    assert (whole.images, whole.images) == ({"val": 3, "test": 6}, cut.images)
    assert whole.metrics["test_mean_iou"] != cut.metrics["test_mean_iou"] > 0.6
    net, images = restore(done.result.config, file)
    seen = WholeTransform((32, 32), 8, images.mean, images.std)
    pairs = list(WholePairs(images.test, seen))
    assert sorted(mask.shape[1:] for _, mask in pairs) == sorted([*SHAPES, SHAPES[0]])
    scorer = MulticlassJaccardIndex(2, average="macro", ignore_index=IGNORED)
    for pixels, mask in pairs:
        with torch.no_grad():
            logits = torch.nn.functional.interpolate(net(pixels), mask.shape[1:], mode="bilinear")
        scorer.update(logits.argmax(1), mask.long())
    assert whole.metrics["test_mean_iou"] == pytest.approx(scorer.compute().item(), abs=1e-6)

    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={done.folder}", "whole=true"])
    verb.main()
    told = capsys.readouterr().out
    assert f"mean IoU {whole.metrics['test_mean_iou']:.2%}" in told
    assert "recorded" not in told
    for words, names in (([f"data.root={root}/images/validation"], "{:02}"), ([], "images/validation/{:02}")):
        out = Path("masks" if words else "of_the_test")
        monkeypatch.setattr(sys, "argv", ["predict", f"run={done.folder}", f"out={out}", *words])
        predict.main()
        found = {name.relative_to(out).as_posix() for name in out.rglob("*.png")}
        assert found == {names.format(place) + ".png" for place in range(6)}
        scorer.reset()
        for place in range(6):
            mask = torch.from_numpy(np.array(Image.open(root / f"annotations/validation/{place:02}.png")))[None]
            mask = torch.where(mask == 0, IGNORED, mask - 1)
            numbers = np.array(Image.open(out / f"{names.format(place)}.png"))
            assert set(np.unique(numbers)) <= {1, 2}  # nothing is left without a class
            scorer.update(torch.from_numpy(numbers).long()[None] - 1, mask.long())
        assert scorer.compute().item() == pytest.approx(whole.metrics["test_mean_iou"], abs=1e-4)
        with (out / "classes.csv").open(newline="") as lines:
            assert [row["number"] for row in csv.DictReader(lines)] == ["1", "2"]
    assert "batch indices" not in capsys.readouterr().err


def test_images_of_the_size_of_a_run_are_seen_as_they_are_without_it(tmp_path):
    done = trained(scenes(tmp_path / "data", [(32, 32)]), "recipe.epochs=1")
    whole, cut = (evaluate(done.result.config, done.folder / "weights.pt", whole=which) for which in (True, False))
    assert whole.metrics == pytest.approx(cut.metrics, rel=1e-5)


def test_what_cannot_be_seen_whole_is_refused_in_a_line(tmp_path, refusal, monkeypatch, capsys):
    root = scenes(tmp_path / "data")
    bound = trained(root, "mixer=global_filter", "recipe.epochs=1").folder
    capsys.readouterr()
    told = "whole=true: this network sees images of 32 x 32 pixels alone (ValueError: GlobalFilter was built for"
    assert told in refusal(verb, f"run={bound}", "whole=true")
    monkeypatch.setattr(sys, "argv", ["predict", f"run={bound}"])
    predict.main()
    assert "what is cut off of others has no class in their masks" in capsys.readouterr().err
    cut = [np.array(Image.open(f"masks/images/validation/{i:02}.png")) for i in range(6)]
    assert any((mask == 0).any() for mask in cut)
    assert sorted(mask.shape for mask in cut) == sorted([*SHAPES, SHAPES[0]])
    assert "expected true or false" in refusal(verb, f"run={bound}", "whole=1")
    assert "perhaps with whole=true, or weights=FILE" in refusal(verb, "weights=x.pth", "whole=true")
    assert "perhaps with whole=true, or weights=FILE" in refusal(verb, "whole=true")
    arrays = run(resolve(compose("task=segmentation", "data=fashion_mosaics", "data.train=64", *TINY, "recipe.epochs=1",
                                 "recipe.batch=32", "runtime.progress=false"), CHOICES)[0]).folder  # fmt: skip
    capsys.readouterr()
    told = "whole=true: data=fashion_mosaics has arrays, of which nothing is cut; leave it out"
    assert told in refusal(verb, f"run={arrays}", "whole=true")
    plain = run(resolve(compose("data=digits", "data.train=64", "recipe.batch=32", "recipe.epochs=1",
                                "runtime.progress=false"), CHOICES)[0]).folder  # fmt: skip
    capsys.readouterr()
    told = "whole=true: is for task=segmentation, and this run is one of task=classification"
    assert told in refusal(verb, f"run={plain}", "whole=true")
