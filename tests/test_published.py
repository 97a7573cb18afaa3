"""Published models and the paper's table in use: trained, fine-tuned, distilled, evaluated, costed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, compose, repository
from PIL import Image

from metaformer import study, weights, zoo
from metaformer.classifier import Classifier
from metaformer.cost import cost_of
from metaformer.evaluate import evaluate_weights
from metaformer.identity import cell_id
from metaformer.run import run_folder, train
from metaformer.schema import ConfigError

SORTING = """
import torch

class Sorting(torch.nn.Module):
    def forward(self, x):
        return x.sort(2).values
"""
CHOICES = {"mixer": "builtin", "model": "timm", "data": "digits"}
ROWS = sorted(path.stem for path in (repository() / "experiments" / "paper_table5").glob("*.yaml"))


def go(*overrides: str) -> dict:
    config = compose(*TINY, "recipe.epochs=1", *overrides)
    return train(config, CHOICES, run_folder(config, CHOICES))["result"]


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_table_5_are_the_papers(row):
    config = compose("experiments=paper_table5", f"+experiments/paper_table5={row}")
    cost, paper = cost_of(config), config["reference"]
    assert round(cost.trainable / 1e6, 1) == paper["params"]
    # The paper's counter has pooling for nothing; here it costs an addition for each element of its window.
    assert cost.macs / 1e9 == pytest.approx(paper["macs"], abs=0.1)
    exact = {
        "random": 33_048_778, "depthwise": 11_948_456, "no_norm": 11_900_840, "no_channel_mlp": 2_451_368,
        "pppa": 14_038_440, "ppaa": 16_535_592, "pppf": 11_919_978, "ppff": 12_150_474,
    }  # fmt: skip
    assert cost.params == exact.get(row, 11_915_176)


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_table_5_train_at_small_scale(row):
    small = ("model.depths=[1,1,1,1]", "model.dims=[32,32,64,64]", "recipe=short")
    result = go("experiments=paper_table5", f"+experiments/paper_table5={row}", *small, "data.classes=null")
    assert np.isfinite(result["metrics"]["train_loss"])


def test_the_study_has_every_row_once():
    planned = study.expand(["experiments=paper_table5"])
    assert [p.cell for p in planned] == [p.cell for p in planned if p.cell in ROWS]
    assert sorted(p.cell for p in planned) == ROWS
    assert len({cell_id(p.config) for p in planned}) == len(ROWS) == 18


def test_a_timm_model_under_the_same_recipe():
    result = go("model=timm", "model.name=test_resnet", "mixer=builtin", "model.drop_path=null")
    theirs = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    assert result["params"] == sum(p.numel() for p in theirs.parameters())
    assert result["macs"] > 0
    nearest = r"model.name=deit_smal_patch16_224: no such model of timm; nearest: deit_small_patch16_224"
    with pytest.raises(ConfigError, match=nearest):
        go("model=timm", "model.name=deit_smal_patch16_224", "mixer=builtin")


def test_a_model_of_the_zoo():
    result = go("model=zoo", "model.name=caformer_s18", "mixer=builtin", "data=fashion_small", "data.train=128")
    with torch.device("meta"):
        net = zoo.create("caformer_s18", in_chans=1, num_classes=10)
    assert result["params"] == sum(p.numel() for p in net.parameters())


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


@pytest.fixture
def teacher(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", in_chans=1, num_classes=10).state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_distillation_is_that_of_the_paper(teacher, mode):
    options = ("teacher=test_resnet", f"weights={teacher}", f"mode={mode}", "tau=3", "alpha=0.3")
    recipe = compose(*(f"recipe.distill.{option}" for option in options))["recipe"]
    taught, student = torch.randn(8, 10), torch.randn(8, 10)
    module = Classifier(torch.nn.Identity(), recipe, classes=10, seed=0, teacher=torch.nn.Identity())
    module.teacher = [lambda _: taught]
    loss = module._distillation(torch.zeros(8), student)
    if mode == "hard":
        expected = -student.log_softmax(1)[torch.arange(8), taught.argmax(1)].mean()
    else:
        p, q = (taught / 3).softmax(1), (student / 3).softmax(1)
        expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_a_student_with_and_without_a_distillation_token(teacher):
    distill = ("recipe.distill.teacher=test_resnet", f"recipe.distill.weights={teacher}")
    with_teacher = go(*distill)
    assert with_teacher["metrics"]["train_loss"] != go()["metrics"]["train_loss"]
    seen = []
    step = Classifier._distillation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "_distillation", lambda self, x, z: (seen.append(z), step(self, x, z))[1])
        name = "model.name=deit_tiny_distilled_patch16_224"
        result = go(*distill, "model=timm", name, "mixer=builtin", "data=fashion_small", "data.train=64")
    assert len(seen) == 1
    assert result["metrics"]["test_accuracy"] >= 0


def test_a_teacher_that_does_not_fit_is_named(teacher):
    with pytest.raises(ConfigError, match=r"recipe.distill.teacher=resnet18: RuntimeError: .*state_dict"):
        go("recipe.distill.teacher=resnet18", f"recipe.distill.weights={teacher}")


def test_fine_tuning_begins_with_the_weights_of_the_file(tmp_path):
    first = Path(go("data=fashion_small", "data.train=128", "recipe.lr=0")["name"])
    file = tmp_path / "runs" / first / "weights.pt"
    trained = weights.read(file)
    again = go("data=fashion_small", "data.train=128", f"recipe.initialize_from={file}", "recipe.lr=0",
               "recipe.warmup_lr=0", "recipe.min_lr=0", "seed=5")  # fmt: skip
    loaded = weights.read(tmp_path / "runs" / again["name"] / "weights.pt")
    assert all(torch.equal(loaded[key], trained[key]) for key in trained)

    net = zoo.from_config(compose("seed=1"), 1, 3, (28, 28))
    head = net.head.weight.clone()
    zoo.initialize(net, str(file))
    assert torch.equal(net.head.weight, head)
    assert torch.equal(net.stem.conv.weight, trained["stem.conv.weight"])
    with pytest.raises(ConfigError, match=r"weights\.pt: does not fit the model"):
        zoo.initialize(zoo.from_config(compose("model=iso_ti"), 1, 10, (28, 28)), str(file))


def test_published_weights_on_a_folder_of_images(tmp_path):
    """The accuracy that timm's own model and transform give."""
    torch.manual_seed(3)
    theirs = timm.create_model("poolformerv2_s12", num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    random = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "images" / f"c{i % 3}").mkdir(parents=True, exist_ok=True)
        pixels = np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((50, 50, 1))).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / "images" / f"c{i % 3}" / f"{i}.png")
    overrides = [
        "model=zoo",
        "model.name=poolformerv2_s12",
        "mixer=builtin",
        "data=image_folder",
        f"data.root={tmp_path / 'images'}",
    ]
    measured = evaluate_weights(str(tmp_path / "w.pth"), overrides)

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    hits = []
    for file in sorted((tmp_path / "images").rglob("*.png")):
        with torch.no_grad():
            logits = theirs(transform(Image.open(file).convert("RGB"))[None])
        hits.append(int(logits.argmax()) == int(file.parent.name[1]))
    assert measured == {"top1": pytest.approx(np.mean(hits)), "top5": 1.0, "n": 12, "crop_pct": 1.0}
    with pytest.raises(ConfigError, match="the weights are those of identityformer_s12, poolformerv2_s12"):
        evaluate_weights(str(tmp_path / "w.pth"), ["model=s12", *overrides[3:]])
    torch.save(zoo.create("poolformer_s12").state_dict(), tmp_path / "k.pth")
    weights.save(zoo.create("poolformer_s12", num_classes=0).state_dict(), tmp_path / "headless.pth")
    with pytest.raises(ConfigError, match=r"headless.pth: no classifier in it"):
        evaluate_weights(str(tmp_path / "headless.pth"), ["model=s12", *overrides[3:]])
    with pytest.raises(ConfigError, match="3 class folders, the weights 1000 classes"):
        evaluate_weights(str(tmp_path / "k.pth"), ["model=s12", *overrides[3:]])


def test_the_cost_command(cli, tmp_path):
    done = cli("cost", "-m", "model=s12", "mixer=identity,pooling,attention", "data=imagenet", "cost.out=cost.csv")
    assert done.returncode == 0, done.stderr
    assert "1,812,267,008" in done.stdout
    with (tmp_path / "cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == ["identity", "pooling", "attention"]
    assert rows[1]["params"] == "11915176"

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

    (tmp_path / "sorting.py").write_text(SORTING)
    for arguments, message in {
        ("mixer=custom", "mixer._target_=sorting.Sorting"): "uses aten.sort: no formula",
        ("cost.out=x.txt",): "cost.out=x.txt: expected a file that ends in .csv or .json",
        ("mixer=poling",): "mixer=poling: no such choice; expected one of pooling",
        ("cost.module=true",): "cost.module: no such key; did you mean 'modules'?",
    }.items():
        done = cli("cost", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
