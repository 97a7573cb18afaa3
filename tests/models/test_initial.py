"""Weights that training starts from: exactly those of the file where they are taken, those of the seed elsewhere."""

import json
from functools import partial

import pytest
import timm
import torch
from conftest import compose
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn
from trained import go
from trained import weights as weights_of

from metaformer.config.schema import Model
from metaformer.config.tasks import Task
from metaformer.models import weights, zoo
from metaformer.models.build import build
from metaformer.models.initial import initialize
from metaformer.models.metaformer import MetaFormer
from metaformer.system.errors import ConfigError

SMALL = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16], "num_classes": 4, "img_size": 64}


def small(mixer, seed: int, **options) -> MetaFormer:
    return MetaFormer(mixer, **{**SMALL, "seed": seed, **options})


def in_file(tmp_path, net: nn.Module) -> str:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def same(net: nn.Module, other: dict[str, torch.Tensor], *parts: str) -> bool:
    """Whether the tensors of a part of a network are those of another, bit for bit."""
    own = {key: value for key, value in net.state_dict().items() if key.startswith(parts)}
    return bool(own) and all(torch.equal(value, other[key].reshape(value.shape)) for key, value in own.items())


def test_the_first_stages_of_timms_weights_and_the_rest_of_the_seed(tmp_path):
    theirs = timm.create_model("caformer_s18", num_classes=7)
    with torch.no_grad():
        [p.add_(torch.randn_like(p)) for p in theirs.parameters()]
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = weights.to_ours(theirs.state_dict())
    net, seeds = (zoo.create("caformer_s18", num_classes=3, img_size=64, seed=1) for _ in range(2))
    told = initialize(net, str(tmp_path / "w.pth"), 2)
    assert same(net, ours, "stem.", "stages.0.", "stages.1.")
    assert same(net, seeds.state_dict(), "stages.2.", "stages.3.", "norm.", "head.")
    new = ["stages.2", "stages.3", "norm", "head"]
    assert told == {"taken": ["stem", "stages.0", "stages.1"], "adapted": [], "new": new, "left": []}


def test_the_first_stages_of_the_official_weights(tmp_path):
    source = zoo.create("poolformer_s12", num_classes=5, seed=2)
    torch.save(weights.to_official(source.state_dict()), tmp_path / "w.pth")
    net = zoo.create("poolformer_s12", num_classes=3, seed=1)
    told = initialize(net, str(tmp_path / "w.pth"), 1)
    assert same(net, source.state_dict(), "stem.", "stages.0.")
    assert told["taken"] == ["stem", "stages.0"]
    assert not torch.equal(net.stages[1].downsample.conv.weight, source.stages[1].downsample.conv.weight)


def test_a_mixer_that_differs_is_new_and_what_is_round_it_is_taken(tmp_path):
    options = {"position": [True] * 4, "dims": [32] * 4}
    source = small("attention", 2, head="pool_norm", **options)
    file = in_file(tmp_path, source)
    for mixer in ("sepconv", "pooling"):
        net, seeds = (small(mixer, 1, **options) for _ in range(2))
        told = initialize(net, file, 2)
        assert same(net, source.state_dict(), "stem.", "stages.1.downsample.", "stages.1.position.")
        assert same(net, source.state_dict(), "stages.1.blocks.0.mlp.", "stages.1.blocks.0.norm1.")
        assert mixer == "pooling" or same(net, seeds.state_dict(), "stages.0.blocks.0.mixer.", "stages.2.")
        assert ("stages.0.blocks.0.mixer" in told["new"]) == (mixer == "sepconv")
        assert told["left"] == ["stages.0.blocks.0.mixer", "stages.1.blocks.0.mixer"]


def test_attention_to_the_neighbourhood_goes_on_from_global_attention(tmp_path):
    source = small("attention", 2, dims=[32] * 4)
    net = small("neighbourhood_attention", 1, dims=[32] * 4)
    told = initialize(net, in_file(tmp_path, source), 2)
    assert same(net, source.state_dict(), "stages.0.blocks.0.mixer.", "stages.1.blocks.0.mixer.")
    assert told["taken"] == ["stem", "stages.0", "stages.1"]


def test_a_half_of_a_mixer_is_not_taken(tmp_path):
    """Attention has two matrices; where the file has one of them alone, both are new."""
    source = small("attention", 2, dims=[32] * 4).state_dict()
    torch.save({key: value for key, value in source.items() if "mixer.qkv" not in key}, tmp_path / "w.pth")
    net, seeds = (small("attention", 1, dims=[32] * 4) for _ in range(2))
    told = initialize(net, str(tmp_path / "w.pth"), 1)
    assert same(net, seeds.state_dict(), "stages.0.blocks.0.mixer.")
    assert (told["new"][0], told["left"]) == ("stages.0.blocks.0.mixer", ["stages.0.blocks.0.mixer"])


def test_another_size_and_other_channels_are_adapted(tmp_path):
    source = small("random", 2, position=[True] * 4)
    nn.init.normal_(source.stages[0].position.offset)
    net = small("random", 1, position=[True] * 4, img_size=(128, 128), in_chans=1)
    told = initialize(net, in_file(tmp_path, source), 2)
    stem = source.state_dict()["stem.conv.weight"]
    torch.testing.assert_close(net.stem.conv.weight, stem.sum(1, keepdim=True), rtol=0, atol=1e-6)
    spot, grown = source.stages[0].position.offset, net.stages[0].position.offset
    expected = nn.functional.interpolate(spot, (32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(grown, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(net.stages[0].blocks[0].mixer.matrix.sum(1), torch.ones(32 * 32), rtol=0, atol=1e-3)
    names = [f"stages.{i}.{what}" for i in (0, 1) for what in ("position", "blocks.0.mixer")]
    assert told["adapted"] == ["stem.conv.weight", *names]
    assert "stem.conv.bias" in told["taken"]


def larger(values: torch.Tensor, side: int) -> torch.Tensor:
    """Values [N] of the places of a square map at those of a larger one."""
    old = round(len(values) ** 0.5)
    return nn.functional.interpolate(
        values.view(1, 1, old, old), (side, side), mode="bicubic", antialias=True
    ).flatten()


def test_a_matrix_over_places_is_adapted_along_both_of_its_axes(tmp_path):
    """A matrix `a b^T` becomes that of the larger maps of a and b, a quarter as strong: four times as many add up."""
    a, b = torch.randn(2, 256)
    for mixer, matrix in (("spatial_mlp", "mlp.weight"), ("spatial_gating", "gate.proj.weight")):
        source, net = small(mixer, 2, channel_mlp=False), small(mixer, 1, channel_mlp=False, img_size=128)
        with torch.no_grad():
            source.stages[0].blocks[0].mixer.get_parameter(matrix).copy_(torch.outer(a, b))
        told = initialize(net, in_file(tmp_path, source), 4)
        adapted = net.stages[0].blocks[0].mixer.get_parameter(matrix)
        torch.testing.assert_close(adapted, torch.outer(larger(a, 32), larger(b, 32)) / 4, rtol=0, atol=1e-5)
        assert any("mixer" in name for name in told["adapted"])
        assert told["new"] == ["norm", "head"]


def test_what_is_added_to_each_place_is_adapted_too(tmp_path):
    source, net = small("spatial_gating", 2), small("spatial_gating", 1, img_size=128)
    bias = nn.init.normal_(source.stages[0].blocks[0].mixer.gate.proj.bias)
    initialize(net, in_file(tmp_path, source), 1)
    adapted = net.stages[0].blocks[0].mixer.gate.proj.bias
    torch.testing.assert_close(adapted, larger(bias, 32), rtol=0, atol=1e-6)


def test_a_map_of_other_proportions_is_new(tmp_path):
    net = small("random", 1, img_size=(64, 128))
    told = initialize(net, in_file(tmp_path, small("random", 2)), 1)
    assert "stages.0.blocks.0.mixer" in told["new"]


def test_the_head_of_two_layers_keeps_its_first_for_other_classes(tmp_path):
    """As timm does, whose classifier of these models is `head.fc.fc2`."""
    source = zoo.create("caformer_s18", num_classes=7, img_size=64, seed=2)
    net, seeds = (zoo.create("caformer_s18", num_classes=3, img_size=64, seed=1) for _ in range(2))
    told = initialize(net, in_file(tmp_path, source))
    assert same(net, source.state_dict(), "stem.", "stages.", "norm.", "head.fc1.", "head.norm.")
    assert same(net, seeds.state_dict(), "head.fc2.")
    assert (told["new"], told["left"]) == (["head.fc2"], ["head.fc2"])


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        (5, {}, "recipe.initialize_stages=5: the model has 4 stages"),
        (1, {"dims": [12, 16, 16, 16]}, r"fits stem: stem.conv.weight is \[8, 3, 7, 7\], expected \[12, 3, 7, 7\]"),
        (2, {"dims": [8, 12, 16, 16]}, r"nothing in .*w.pth fits stages.1: stages.1.downsample.conv.weight is"),
    ],
)
def test_stages_that_cannot_be_taken_are_refused(stages, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        initialize(small("pooling", 1, **options), in_file(tmp_path, small("pooling", 2)), stages)


def test_a_stem_for_grey_images_is_none_for_colour_and_its_bias_is_not_taken_alone(tmp_path):
    source = in_file(tmp_path, small("pooling", 2, in_chans=1))
    line = r"nothing in .*w\.pth fits stem: stem\.conv\.weight is \[8, 1, 7, 7\], expected \[8, 3, 7, 7\]"
    with pytest.raises(ConfigError, match=line):
        initialize(small("pooling", 1), source, 1)


def test_a_file_that_is_none_is_told_by_the_key_that_names_it(tmp_path):
    (tmp_path / "w.pth").write_text("nothing")
    with pytest.raises(ConfigError, match=r"^recipe\.initialize_from=.*w\.pth: cannot be read"):
        initialize(small("pooling", 1), str(tmp_path / "w.pth"))


def test_weights_that_are_not_finite_are_named(tmp_path):
    net = small("pooling", 2)
    net.stages[0].blocks[0].mlp.fc1.weight.data[0] = float("nan")
    with pytest.raises(
        ConfigError, match=r"initialize_from=.*: stages\.0\.blocks\.0\.mlp\.fc1\.weight has values that are"
    ):
        initialize(small("pooling", 1), in_file(tmp_path, net), 1)


def test_stages_need_a_file_and_a_model_of_this_package(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe.initialize_stages=2: belongs to recipe.initialize_from=FILE"):
        compose("recipe.initialize_stages=2")
    theirs = timm.create_model("test_resnet")
    with pytest.raises(ConfigError, match=r"recipe.initialize_stages=2: is for a model of this package"):
        initialize(theirs, in_file(tmp_path, theirs), 2)


def segmenter(model: Model, seed: int, *, channels: int = 3, classes: int = 5) -> nn.Module:
    mixer = {"_target_": "builtin" if model.source == "timm" else "metaformer.mixers.Pooling"}
    task = Task("segmentation", "mlp", width=8)
    return build(model, mixer, seed, shape=(channels, 64, 64), classes=classes, task=task)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "levit_128s", "fastvit_t8"])
def test_an_encoder_of_timm_goes_on_from_weights_of_classification(name, tmp_path):
    """Its maps have the numbers of the classifier's, also where timm gives its modules other names."""
    source = timm.create_model(name, num_classes=7, img_size=64) if "levit" in name else timm.create_model(name)
    net, grey = (segmenter(Model(source="timm", name=name), 1, channels=channels) for channels in (3, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    told, image = initialize(net, in_file(tmp_path, source)), torch.randn(1, 3, 64, 64)
    _, maps = source.eval().forward_intermediates(image)
    found = net.encoder.eval()(image)
    for one in found[-2:]:
        assert any(one.shape == theirs.shape and torch.equal(one, theirs) for theirs in maps)
    assert same(net, before, "decoder.", "classifier.")
    assert told["new"] == ["decoder", "classifier"]
    assert told["left"]
    assert initialize(grey, in_file(tmp_path, source))["adapted"]
    grey_image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(grey.encoder.eval()(grey_image)[-1], net.encoder(grey_image.expand(-1, 3, -1, -1))[-1])


def test_weights_that_are_not_those_of_the_encoder_are_refused(tmp_path):
    file = in_file(tmp_path, timm.create_model("test_vit"))
    with pytest.raises(ConfigError, match=r"^recipe.initialize_from=.*: does not fit the model \(\d+ missing: "):
        initialize(segmenter(Model(source="timm", name="test_resnet"), 1), file)
    with pytest.raises(ConfigError, match=r"recipe.initialize_stages=2: is for a model of this package"):
        initialize(segmenter(Model(source="timm", name="test_resnet"), 1), file, 2)


def test_the_stem_alone_of_a_classifier_is_taken_for_an_encoder(tmp_path):
    words = ("model=tiny_pyramid", "model.depths=[1,1]", "model.dims=[8,16]")
    model = compose(*words).model
    made = {"mixer": {"_target_": "metaformer.mixers.Pooling"}, "seed": 1, "shape": (1, 64, 64), "classes": 11}
    torch.save({"state_dict": build(model, **made).state_dict()}, tmp_path / "a.pt")
    task = compose(*words, "task=segmentation", "data=fashion_mosaics").task
    for stages, taken in ((0, ["stem"]), (None, ["stem", "stages"])):
        told = initialize(build(model, **made | {"seed": 2}, task=task), str(tmp_path / "a.pt"), stages)
        assert [part.removeprefix("encoder.net.") for part in told["taken"]] == taken


@pytest.mark.parametrize("model", [Model(depths=[1, 1], dims=[8, 16]), Model(source="timm", name="test_resnet")])
def test_weights_of_segmentation_go_on_with_other_classes_and_channels(model, tmp_path):
    source, net = segmenter(model, 2), segmenter(model, 1, channels=1, classes=3)
    own = {key: value.clone() for key, value in net.state_dict().items()}
    told = initialize(net, in_file(tmp_path, source))
    assert same(net, own, "classifier.")
    assert same(net, source.state_dict(), "decoder.")
    (adapted,) = told["adapted"]
    assert net.get_parameter(f"{adapted}" if adapted.endswith("weight") else f"{adapted}.weight").shape[1] == 1
    assert told["new"] == ["classifier"]
    assert told["taken"][-1] == "decoder"
    with pytest.raises(ConfigError, match=r"recipe.initialize_stages=1: "):
        initialize(net, in_file(tmp_path, source), 1)


def test_a_run_says_once_and_records_what_it_started_from(capsys):
    first = go("recipe.epochs=1", "data.train=128").folder / "weights.pt"
    capsys.readouterr()
    still = ("recipe.lr=0", "recipe.warmup_lr=0", "recipe.min_lr=0", "recipe.epochs=1", "data.train=128")
    outcome = go(*still, "seed=5", "mixer=attention", f"recipe.initialize_from={first}", "recipe.initialize_stages=1")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("recipe.initialize_from=")]
    told = json.loads((outcome.folder / "result.json").read_text())["initialized"]
    assert len(said) == 1
    assert f"{first}: taken {', '.join(told['taken'])}; new {', '.join(told['new'])}" in said[0]
    source, now = torch.load(first, weights_only=True)["state_dict"], weights_of(outcome.folder)
    taken = [key for key in now if any(key == n or key.startswith(f"{n}.") for n in told["taken"])]
    assert taken
    assert all(torch.equal(now[key], source[key]) for key in taken)


def test_a_classifier_that_the_file_does_not_have_is_new(tmp_path):
    for make in (partial(timm.create_model, "test_resnet"), partial(small, "pooling", 2)):
        headless, net = make(num_classes=0), make(num_classes=4)
        first = {key: value.clone() for key, value in net.state_dict().items()}
        told = initialize(net, in_file(tmp_path, headless))
        new = [key for key in first if key not in headless.state_dict()]
        assert len(told["new"]) == 1
        assert all(key.startswith(told["new"][0]) and torch.equal(net.state_dict()[key], first[key]) for key in new)
        assert same(net, headless.state_dict(), "stem", "stages", "conv1", "layer")


def test_the_positions_of_a_model_of_timm_are_resized_as_timm_does_it(tmp_path):
    theirs, net = (timm.create_model("test_vit", num_classes=4, img_size=size) for size in (64, 32))
    told = initialize(net, in_file(tmp_path, theirs))
    assert told["adapted"] == ["pos_embed"]
    expected = checkpoint_filter_fn(theirs.state_dict(), net)["pos_embed"]
    assert torch.equal(net.pos_embed, expected)
    assert same(net, theirs.state_dict(), "blocks.", "head.", "patch_embed.")


def test_what_does_not_fit_as_a_whole_names_the_way_to_take_a_part(tmp_path):
    with pytest.raises(ConfigError, match=r"missing: .*; recipe.initialize_stages=N takes what fits of the first N"):
        initialize(small("depthwise", 1), in_file(tmp_path, small("pooling", 2)))


def test_a_mixer_whose_shapes_do_not_tell_its_options_is_told():
    first = go("recipe.epochs=1", "data.train=128", "mixer=attention").folder / "weights.pt"
    words = ("recipe.epochs=1", "data.train=128", f"recipe.initialize_from={first}", "seed=2")
    other = go(*words, "mixer=attention", "mixer.head_dim=16").result.initialized
    assert other["unlike the file"] == ["mixer.head_dim (32 there)"]
    other = go(*words, "mixer=pooling", "recipe.initialize_stages=1").result.initialized
    assert other["unlike the file"] == ["mixer._target_ (metaformer.mixers.Attention there)"]


def test_a_folder_is_no_file_of_weights():
    folder = go("recipe.epochs=1", "data.train=128").folder
    with pytest.raises(ConfigError, match=rf"^recipe.initialize_from={folder}: is a folder; expected {folder}/weights"):
        compose(f"recipe.initialize_from={folder}")
    (folder / "weights.pt").unlink()
    with pytest.raises(ConfigError, match=r"is a folder; expected a file of weights$"):
        compose(f"recipe.initialize_from={folder}")


def test_a_model_whose_shapes_do_not_tell_its_norm_is_told(capsys):
    first = go("recipe.epochs=1", "data.train=128").folder / "weights.pt"
    words = ("recipe.epochs=1", "data.train=128", f"recipe.initialize_from={first}")
    assert "unlike the file" not in go(*words, "seed=2").result.initialized
    outcome = go(*words, "model.norm=layer", "model.act=relu", "seed=2")
    assert outcome.result.initialized["unlike the file"] == ["model.norm (group there)", "model.act (gelu there)"]
    assert "unlike the file model.norm (group there), model.act (gelu there)" in capsys.readouterr().out
