"""Weights on images: those of a run, of timm and of the authors; classes go by their names."""

import re

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, compose
from PIL import Image
from timm.data import ImageNetInfo
from trained import go

from metaformer import evaluate as verb
from metaformer.config.schema import Config
from metaformer.data.images import load
from metaformer.models import weights, zoo
from metaformer.models.build import build
from metaformer.models.initial import initialize
from metaformer.runs.finished import changed
from metaformer.system.errors import ConfigError
from metaformer.training.evaluation import evaluate, evaluate_weights, kept_config


@pytest.fixture
def folder(tmp_path):
    """A folder for each of three classes, without splits."""
    random = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "images" / f"c{i % 3}").mkdir(parents=True, exist_ok=True)
        pixels = np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((50, 50, 1))).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / "images" / f"c{i % 3}" / f"{i}.png")
    return tmp_path / "images"


def seen_by_timm(net: torch.nn.Module, folder) -> list[torch.Tensor]:
    """The images of a folder through timm's own transform of its own model."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    return [transform(Image.open(file).convert("RGB")) for file in sorted(folder.rglob("*.png"))]


def predicted(net: torch.nn.Module, folder) -> list[tuple[int, int]]:
    """Label and prediction of each image by timm's own transform of its own model."""
    with torch.no_grad():
        found = [int(net(image[None]).argmax()) for image in seen_by_timm(net, folder)]
    return [(int(file.parent.name[1]), best) for file, best in zip(sorted(folder.rglob("*.png")), found, strict=True)]


def images_in(folder, *overrides: str) -> tuple[str, ...]:
    return ("data=image_folder", f"data.root={folder}", *overrides)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("poolformerv2_s12", ("model=zoo", "model.name=poolformerv2_s12")),
        ("test_vit", ("model=timm", "model.name=test_vit", "data.size=160")),  # half grey, half of deviation, bicubic
        ("test_convnext", ("model=timm", "model.name=test_convnext", "data.size=160")),  # a head of another name
        ("test_efficientnet", ("model=timm", "model.name=test_efficientnet", "data.size=160")),  # a classifier
    ],
)
def test_published_weights_are_seen_as_timm_sees_them(tmp_path, folder, name, words):
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=3).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        logits = torch.stack([theirs(image[None])[0] for image in seen_by_timm(theirs, folder)])
        theirs.get_classifier().bias.sub_(logits.mean(0))  # else some say one class, however they see the images
    assert len({found for _, found in predicted(theirs, folder)}) > 1
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    measured = evaluate_weights(str(tmp_path / "w.pth"), compose(*words, "mixer=builtin", *images_in(folder)))
    hits = np.mean([label == found for label, found in predicted(theirs, folder)])
    assert measured.metrics["test_accuracy"] == pytest.approx(hits)
    assert measured.metrics["test_top5"] == 1.0
    assert measured.images == {"test": 12}
    pretrained = theirs.pretrained_cfg
    assert (measured.crop_pct, measured.interpolation) == (pretrained["crop_pct"], pretrained["interpolation"])


def test_weights_that_do_not_fit_are_one_line(tmp_path, folder):
    torch.save(timm.create_model("poolformerv2_s12", num_classes=3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="data=digits: expected images to decode, like image_folder, since weights="):
        evaluate_weights(str(tmp_path / "w.pth"), compose("model=s12", "data=digits"))
    s12 = compose("model=s12", *images_in(folder))
    with pytest.raises(ConfigError, match="the weights are those of identityformer_s12, poolformerv2_s12"):
        evaluate_weights(str(tmp_path / "w.pth"), s12)
    weights.save(zoo.create("poolformer_s12", num_classes=0).state_dict(), tmp_path / "headless.pth")
    with pytest.raises(ConfigError, match=r"headless.pth: no classifier in it \(expected head.weight\)"):
        evaluate_weights(str(tmp_path / "headless.pth"), s12)
    torch.save(zoo.create("poolformer_s12").state_dict(), tmp_path / "k.pth")
    with pytest.raises(ConfigError, match="data: it has 3 classes, the weights 1000"):
        evaluate_weights(str(tmp_path / "k.pth"), s12)


def test_synsets_are_the_classes_of_imagenet(tmp_path, folder):
    """Three folders of ImageNet's thousand, in another order than its own: by name."""
    synsets = ImageNetInfo("imagenet-1k").label_names()
    places = [700, 5, 300]
    for i, place in enumerate(places):
        (folder / f"c{i}").rename(folder / synsets[place])
    torch.manual_seed(0)
    net = zoo.create("poolformer_s12")
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
        net.head.bias[300] = 5.0  # says 300 of everything
    torch.save(net.state_dict(), tmp_path / "k.pth")
    measured = evaluate_weights(str(tmp_path / "k.pth"), compose("model=s12", *images_in(folder), "data.size=64"))
    assert measured.metrics["test_accuracy"] == pytest.approx(1 / 3)


def test_colour_weights_on_grey_images(tmp_path, folder):
    """timm's rule: the filters of the three colours are added up, so that grey in colour looks the same."""
    torch.manual_seed(0)
    net = zoo.create("poolformer_s12", num_classes=3).eval()
    grey = zoo.create("poolformer_s12", num_classes=3, in_chans=1).eval()
    weights.load_into(grey, net.state_dict(), "w")
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), net(x.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)
    four = zoo.create("poolformer_s12", num_classes=3, in_chans=4)
    weights.load_into(four, net.state_dict(), "w")
    stem = net.state_dict()["stem.conv.weight"]
    torch.testing.assert_close(four.state_dict()["stem.conv.weight"], stem[:, [0, 1, 2, 0]] * 3 / 4)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    config = compose("model=s12", *images_in(folder, "data.channels=1", "data.size=64"))
    assert evaluate_weights(str(tmp_path / "w.pth"), config).images == {"test": 12}
    config = compose("model=s12")
    tuned = build(config.model, config.mixer, 0, shape=(1, 64, 64), classes=3)
    initialize(tuned, str(tmp_path / "w.pth"))
    torch.testing.assert_close(tuned.state_dict()["stem.conv.weight"], stem.sum(1, keepdim=True))


def test_the_weights_of_a_run_know_all_that_the_run_knows(tmp_path, capsys):
    run = go("mixer=attention").folder
    file = run / "weights.pt"
    config = kept_config(file)
    assert isinstance(config, Config)
    assert kept_config(__file__) is None
    lines = []
    for word in (f"run={run}", f"weights={file}"):
        verb.command([word, "runtime.threads=1"])
        lines.append(capsys.readouterr().out.replace(" (recorded", "\n").splitlines())
    assert [line for line in lines[0] if "images" in line] == lines[1]
    with pytest.raises(
        ConfigError, match=r"mixer\._target_=metaformer\.mixers\.Pooling: .*weights.pt was trained with"
    ):
        verb.command([f"weights={file}", "mixer=pooling"])
    for word, line in {
        "recipe.precision=bf16": f"recipe.precision: {file} has its own; expected keys of data and runtime",
        "seed=7": f"seed: {file} has its own; expected keys of data and runtime",
        "+mixer.foo=3": f"mixer.foo=3: {file} was trained with None",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(line)):
            verb.command([f"weights={file}", "mixer=attention", word])
    verb.command([f"weights={file}", "mixer=attention", "model=tiny"])


def test_classes_go_by_name(tmp_path, monkeypatch):
    """The labels of a set with the same classes in another order are those of the weights."""
    run = go().folder
    digits = load(compose(*TINY).data)
    turned = digits.named(digits.classes[::-1], "here")
    assert torch.equal(turned.test.labels, 9 - digits.test.labels)
    assert torch.equal(turned.named(digits.classes, "there").test.labels, digits.test.labels)
    few = digits.named([*digits.classes, "10"], "here")
    assert (few.classes[-1], int(few.test.labels.max())) == ("10", 9)
    with pytest.raises(ConfigError, match="its class 1 of 10 is '1', that of here is 'one' of 10"):
        digits.named(["0", "one", *digits.classes[2:]], "here")
    recorded = evaluate(compose(*TINY), run / "weights.pt").metrics["test_accuracy"]
    images = {name: part.images.numpy() for name, part in digits.splits().items()}
    for name, part in digits.splits().items():  # the same digits, whose names are given in another order
        images[f"{name}_labels"] = 9 - part.labels.numpy()
    np.savez(tmp_path / "d.npz", **images)
    (tmp_path / "turned_digits.py").write_text(
        "import numpy as np\n\n\n"
        "def load(file):\n"
        "    with np.load(file) as kept:\n"
        "        found = {s: (kept[s], kept[f'{s}_labels']) for s in ('train', 'val', 'test')}\n"
        "    return found | {'classes': list('9876543210')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = ("data=custom", "data._target_=turned_digits.load", f"+data.options.file={tmp_path / 'd.npz'}")
    kept = compose("recipe.epochs=2", *data, "+data.options.mine={a: 1, b: 2}")
    options = {"file": str(tmp_path / "d.npz"), "mine": {"a": 1, "b": 2}}
    assert changed(kept, [], "run").data.options == options
    assert changed(kept, ["+data.options.mine=3"], "run").data.options == {**options, "mine": 3}  # no other is lost
    again = evaluate(compose("recipe.epochs=2", "runtime.threads=1", *data), run / "weights.pt")
    assert again.metrics["test_accuracy"] == recorded
