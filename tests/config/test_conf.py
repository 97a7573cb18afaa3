"""Every configuration file composes, validates, and builds what it says."""

import csv
import runpy
from pathlib import Path

import pytest
import torch
from conftest import compose, repository
from omegaconf import OmegaConf

from metaformer.config.compose import loader
from metaformer.config.hydra_internals import load, parsed, size_of
from metaformer.data.registry import check, fingerprint, shape
from metaformer.models.build import on_meta
from metaformer.studies.points import expand

CONF = repository() / "conf"
FILES = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.glob("*/*.yaml"))
STUDIES = sorted(p.stem for p in (repository() / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_conf_composes_and_builds(file):
    group, name = file.split("/")
    needed = {
        "mixer/custom": ["mixer._target_=torch.nn.Identity"],
        "mixer/builtin": ["model=zoo", "model.name=poolformer_s12"],
        "model/zoo": ["mixer=builtin", "model.name=poolformer_s12"],
        "model/timm": ["mixer=builtin", "model.name=resnet18"],
        "data/image_folder": ["data.classes=7"],
        "data/custom": ["data._target_=my_data.load", "data.classes=7"],
        "data/fashion_mosaics": ["task=segmentation"],
        "task/segmentation": ["data=fashion_mosaics"],
        "data/timm": ["data.dataset=torch/pets", "data.classes=7"],
        "data/hub": ["data.dataset=pets", "data.classes=7"],
        "data/table": ["data.classes=7"],
        "data/npz": ["data.classes=7"],
        "recipe/segformer": ["task=segmentation", "data=fashion_mosaics"],
        "recipe/semantic_fpn": ["task=segmentation", "data=fashion_mosaics"],
        "recipe/finetune": [f"recipe.initialize_from={__file__}"],
        "callbacks/device_stats": ["logger=steps"],
        "callbacks/learning_rate_monitor": ["logger=steps"],
        "callbacks/throughput": ["logger=steps"],
    }
    config = compose(f"{group}={name}", *needed.get(file, []))
    check(config.data, config.recipe, config.task)
    (channels, *sides), classes = shape(config.data)
    height, width = (max(side, 32) if "iso_s" in name else side for side in sides)
    net = on_meta(config.model, config.mixer, shape=(channels, height, width), classes=classes).eval()
    assert net(torch.zeros(2, channels, height, width, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_composes_and_its_committed_results_are_those_of_its_runs(name):
    if name == "shaken_or_stirred":  # its user makes these images, and trains these weights first
        files = [*(repository() / "experiments" / name).glob("images/*balanced.yaml")]
        weights = repository() / "experiments" / name / "stages" / "last_two.yaml"
        for file in [
            *(OmegaConf.load(file).data.root for file in files),
            OmegaConf.load(weights).recipe.initialize_from,
        ]:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).touch()
    whole = load(loader(), [f"experiments={name}"])
    assert whole.study.name == name  # `_self_` does not have the last word
    assert whole.hydra.mode.name == "MULTIRUN"
    results = repository() / "experiments" / name / "results.csv"
    known = results.exists() and name != "shaken_or_stirred"  # whose ids carry images and weights
    points = expand([f"experiments={name}"], fingerprint if known else lambda data: data.root)
    grid = [f"{key}={values}" for key, values in whole.hydra.sweeper.params.items()]
    assert all(override.is_sweep_override() for override in parsed(loader(), grid))
    assert len(points) == size_of(loader(), grid) > 1
    if known and (points[0].run.fingerprint or points[0].config.data.name != "image_folder"):  # whose images are absent
        with results.open(newline="") as opened:
            recorded = {(row["cell"], row["seed"]): row["run"].rpartition("-")[2] for row in csv.DictReader(opened)}
        assert recorded == {(point.cell, str(point.config.seed)): point.run.run_id for point in points}


def test_the_random_architectures_are_those_that_the_script_draws():
    folder = repository() / "experiments" / "trained_architectures"
    drawn = runpy.run_path(str(folder / "draw.py"))["texts"]()
    assert {file.name: file.read_text() for file in (folder / "architecture").iterdir()} == drawn
    sizes = [int(text.split()[4].replace(",", "")) for text in drawn.values()]
    assert all(200_000 <= size <= 350_000 for size in sizes), sizes


def test_the_paper_model_is_s12():
    model = compose("model=s12").model
    assert (model.depths, model.dims, model.layer_scale) == ([2, 2, 6, 2], [64, 128, 320, 512], 1e-5)
    assert model.drop_path == 0.1
