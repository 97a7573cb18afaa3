"""Every configuration file composes, validates, and builds what it says."""

import csv

import pytest
import torch
from conftest import compose, repository
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from metaformer import config as cfg
from metaformer import data, zoo
from metaformer.identity import run_id
from metaformer.study import expand

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
        "data/timm": ["data.dataset=hfds/pets", "data.classes=7"],
        "recipe/finetune": [f"recipe.initialize_from={__file__}"],
    }
    config = compose(f"{group}={name}", *needed.get(file, []))
    channels, side, classes = data.shape(config["data"])
    side = max(side, 32) if "iso_s" in name else side
    with torch.device("meta"):
        net = zoo.from_config(config, channels, classes, (side, side)).eval()
    assert net(torch.zeros(2, channels, side, side, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_composes_for_each_of_its_runs(name):
    cfg.register()
    whole = cfg.compose([f"experiments={name}"])
    assert whole.study.name == name  # `_self_` does not have the last word
    assert whole.hydra.mode.name == "MULTIRUN"
    params = OmegaConf.to_container(whole.hydra.sweeper.params)
    parsed = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    assert all(override.is_sweep_override() for override in parsed)
    identities = set()
    for override in parsed:
        for value in override.sweep_string_iterator():
            identities.add(run_id(compose(f"experiments={name}", f"{override.get_key_element()}={value}")))
    assert len(identities) > 1


@pytest.mark.parametrize("name", STUDIES)
def test_committed_results_are_those_of_the_study(name):
    file = repository() / "experiments" / name / "results.csv"
    if not file.exists():
        pytest.skip("no results committed")
    planned = expand([f"experiments={name}"])
    if "fingerprint" not in planned[0].config["data"] and planned[0].config["data"]["name"] == "image_folder":
        pytest.skip("the ids carry a fingerprint of images that are not here")
    with file.open(newline="") as opened:
        recorded = {(row["cell"], row["seed"]): row["run"].rpartition("-")[2] for row in csv.DictReader(opened)}
    assert recorded == {(p.cell, str(p.config["seed"])): run_id(p.config) for p in planned}


def test_the_paper_model_is_s12():
    config = compose("model=s12")["model"]
    assert (config["depths"], config["dims"], config["layer_scale"]) == ([2, 2, 6, 2], [64, 128, 320, 512], 1e-5)
    assert config["drop_path"] == 0.1
