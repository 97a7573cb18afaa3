"""What cells cost: the comparators of the paper, isotropic models, and the command `cost`."""

import csv
import json

import pytest
from conftest import compose

from metaformer.studies.cell_cost import cost_of

SORTING = """
import torch

class Sorting(torch.nn.Module):
    def forward(self, x):
        return x.sort(2).values
"""


def test_comparators_of_the_paper_are_costed():
    known = {
        "deit_small_patch16_224": (22_050_664, 4.608),
        "resmlp_12_224": (15_350_872, 3.010),
        "mixer_b16_224": (59_880_472, 12.621),
    }
    for name, (params, macs) in known.items():
        cost = cost_of(compose("model=timm", f"model.name={name}", "mixer=builtin", "data=imagenet"))
        assert cost.params == params
        assert cost.macs / 1e9 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("mixer", ["attention", "spatial_mlp", "fourier", "pooling", "identity", "ppaa"])
def test_an_isotropic_model_takes_any_mixer(mixer):
    config = compose("model=iso_s", f"mixer={mixer}", "data=imagenet")
    cost = cost_of(config)
    if mixer == "attention":  # DeiT-S without its class token and the biases of q, k and v
        assert cost.params == 22_050_664 - 12 * 3 * 384 - 2 * 384
    assert 14e6 < cost.params < 23e6


def test_the_cost_command(cli, tmp_path):
    done = cli("cost", "-m", "model=s12", "mixer=identity,pooling,attention", "data=imagenet", "cost.out=cost.csv")
    assert done.returncode == 0, done.stderr
    assert "1,812,267,008" in done.stdout
    with (tmp_path / "cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == ["identity", "pooling", "attention"]
    assert rows[1]["params"] == "11915176"
    assert rows[1]["training_images_at_once"] == "64"

    done = cli(
        "cost", "cost.modules=true", "cost.throughput=true", "cost.out=cost.json", "cost.batch=4", "runtime.threads=1"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "cost.json").read_text())
    by_module = {row["module"]: row for row in rows}
    assert by_module[""]["training_images_s"] > 0
    stages = [by_module[f"stages.{i}"]["macs"] for i in range(4)]
    assert by_module[""]["macs"] == sum(stages) + by_module["stem"]["macs"] + by_module["head"]["macs"]
    assert by_module["head"]["params"] == 650

    cells = ("budget.target=1e5", "budget.by=mlp_ratio,width", "budget.tolerance=0.02")
    done = cli("cost", "-m", "budget=params", *cells, "recipe.freeze=stem", "cost.out=by.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "by.csv").open() as file:
        ratio, width = csv.DictReader(file)
    assert (ratio["dims"], width["mlp_ratio"]) == ("", "")
    assert float(ratio["mlp_ratio"]) > 0
    assert width["dims"].startswith("[")
    assert int(ratio["frozen"]) > 0

    (tmp_path / "sorting.py").write_text(SORTING)
    for arguments, message in {
        ("mixer=custom", "mixer._target_=sorting.Sorting"): "uses aten.sort: no formula",
        ("cost.out=x.txt",): "cost.out=x.txt: expected a file that ends in .csv or .json",
        ("mixer=poling",): "mixer=poling: no such choice; expected one of pooling",
        ("cost.module=true",): "cost.module: no such key; did you mean 'cost.modules'?",
    }.items():
        done = cli("cost", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
