"""The published models, number for number. LayerScale and norms are randomised before models are compared."""

import time

import pytest
import timm
import torch
from torch import nn

import metaformer
from metaformer import Attention, DepthwiseConv, MetaFormer, Pooling, SpatialMLP
from metaformer.models import weights, zoo
from metaformer.models.cost import count
from metaformer.system.errors import ConfigError

# trainable, frozen
PARAMETERS = {
    "poolformer_s12": (11_915_176, 0),
    "poolformer_s24": (21_388_968, 0),
    "poolformer_s36": (30_862_760, 0),
    "poolformer_m36": (56_172_520, 0),
    "poolformer_m48": (73_473_448, 0),
    "metaformer_id_s12": (11_915_176, 0),
    "metaformer_pppa_s12": (14_038_440, 0),
    "metaformer_ppaa_s12": (16_535_592, 0),
    "metaformer_pppf_s12": (11_919_978, 0),
    "metaformer_ppff_s12": (12_150_474, 0),
    "identityformer_s12": (11_891_712, 0),
    "identityformer_s24": (21_341_464, 0),
    "identityformer_s36": (30_791_216, 0),
    "identityformer_m36": (56_077_168, 0),
    "identityformer_m48": (73_346_056, 0),
    "randformer_s12": (11_891_712, 12_127_010 - 11_891_712),
    "randformer_s24": (21_341_464, 21_812_060 - 21_341_464),
    "randformer_s36": (30_791_216, 31_497_110 - 30_791_216),
    "randformer_m36": (56_077_168, 56_783_062 - 56_077_168),
    "randformer_m48": (73_346_056, 74_287_248 - 73_346_056),
    "poolformerv2_s12": (11_891_712, 0),
    "poolformerv2_s24": (21_341_464, 0),
    "poolformerv2_s36": (30_791_216, 0),
    "poolformerv2_m36": (56_077_168, 0),
    "poolformerv2_m48": (73_346_056, 0),
    "convformer_s18": (26_774_448, 0),
    "convformer_s36": (40_012_152, 0),
    "convformer_m36": (57_051_640, 0),
    "convformer_b36": (99_882_616, 0),
    "caformer_s18": (26_341_656, 0),
    "caformer_s36": (39_297_102, 0),
    "caformer_m36": (56_204_878, 0),
    "caformer_b36": (98_753_614, 0),
}
M48 = list(zip((8, 8, 24, 8), (3136, 784, 196, 49), (96, 192, 384, 768), strict=True))  # blocks, tokens, channels
POOLED_M48 = sum(blocks * tokens * channels for blocks, tokens, channels in M48)
NORMED_M48 = 2 * POOLED_M48 + 49 * 768  # two norms a block and the last, which the official counter counts
SMALL = {"depths": [1, 1, 2, 1], "dims": [32, 64, 96, 128]}


def randomise(net: nn.Module) -> nn.Module:
    """Scales and norms away from what they start with, so that every part of the model counts; in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.requires_grad and (p.ndim == 1 or "offset" in name):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (0 if "bias" in name else 1))
    return net.double().eval()


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    ("name", "macs"),
    [  # convolutions, matrix products and attention: what the official code counts, less its norms
        ("identityformer_s12", 1_812_269_568 - 5 * 512),
        ("identityformer_m48", 11_533_324_032 - 5 * 768),
        ("poolformerv2_s12", 1_812_269_568 - 5 * 512 + 9_257_472),
        ("poolformer_m48", 11_590_708_992 - 5 * NORMED_M48 + 9 * POOLED_M48),
    ],
)
def test_multiply_accumulates(name, macs):
    with torch.device("meta"):
        net = zoo.create(name)
    assert count(net, (3, 224, 224)).macs == macs


def test_every_published_model_is_here():
    assert set(PARAMETERS) == set(zoo.PUBLISHED)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        net = zoo.create(name)
    counts = [sum(p.numel() for p in net.parameters() if p.requires_grad is flag) for flag in (True, False)]
    assert tuple(counts) == PARAMETERS[name]


def test_m48_on_the_meta_device_is_quick():
    started = time.process_time()
    with torch.device("meta"):
        zoo.create("poolformer_m48")
    assert time.process_time() - started < 5  # below 1 s; with its weights it would be more


@pytest.mark.parametrize("name", ["poolformer_s12", "poolformer_s24", "poolformer_m36"])
def test_v1_features_are_timms_and_logits_are_the_official_order(name):
    theirs = randomise(timm.create_model(name))
    ours = zoo.create(name).double().eval()
    weights.load_into(ours, weights.to_ours(theirs.state_dict()), name)
    timms_order = zoo.create(name, head="pool_norm").double().eval()
    weights.load_into(timms_order, weights.to_ours(theirs.state_dict()), name)
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        features = theirs.forward_features(x)
        assert close(ours.forward_features(x), features) < 1e-12
        fc, norm = theirs.head.fc, theirs.head.norm
        official = fc(nn.functional.group_norm(features, 1, norm.weight, norm.bias, 1e-5).mean((2, 3)))
        assert close(ours(x), official) < 1e-12
        assert close(timms_order(x), theirs(x)) < 1e-10
        assert close(ours(x), theirs(x)) > 1e-3  # timm pools before it norms


@pytest.mark.parametrize(
    ("name", "fused"),
    [("poolformerv2_s12", True), ("convformer_s18", True), ("caformer_s18", True), ("caformer_s18", False)],
)
def test_v2_logits_are_timms(name, fused):
    timm.layers.set_fused_attn(fused)
    try:
        theirs = randomise(timm.create_model(name))
    finally:
        timm.layers.set_fused_attn(True)
    ours = zoo.create(name).double().eval()
    weights.load_into(ours, weights.to_ours(theirs.state_dict()), name)
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        if name != "poolformerv2_s12":
            assert close(ours(x), theirs(x)) < 1e-4
            ours.head.norm.eps = 1e-6  # timm's; the official code has PyTorch's 1e-5
        assert close(ours(x), theirs(x)) < 1e-10
        assert close(ours.forward_features(x), theirs.forward_features(x)) < 1e-10


@pytest.mark.parametrize("name", ["poolformer_s12", "convformer_s18", "caformer_s18"])
def test_ours_to_timm_and_back_is_bit_equal(name):
    ours = randomise(zoo.create(name)).float().state_dict()
    theirs = weights.to_timm(ours)
    model = timm.create_model(name)
    model.load_state_dict(theirs)
    back = zoo.create(name)
    weights.load_strictly(back, weights.to_ours(model.state_dict()), name)
    assert all(torch.equal(value, ours[key]) for key, value in back.state_dict().items())
    if name == "poolformer_s12":
        assert len(theirs) == 132


def test_stages_of_attention_with_biases_go_to_timm():
    """Its channel MLPs are linear layers there."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (32, 32, 64, 64)}
    ours = metaformer.MetaFormer("ppaa", **sizes, num_classes=3, head="pool_norm").state_dict()
    their = timm.models.metaformer
    theirs = their.MetaFormer(
        num_classes=3, token_mixers=[their.Pooling] * 2 + [their.Attention] * 2, mlp_act=nn.GELU, mlp_bias=True,
        norm_layers=their.GroupNorm1, downsample_norm=None, layer_scale_init_values=1e-5, res_scale_init_values=None,
        use_mlp_head=False, **sizes,
    )  # fmt: skip
    found = weights.to_timm(ours)
    kept = {key: value for key, value in theirs.state_dict().items() if ".blocks." in key}
    assert {key: value.shape for key, value in found.items() if key in kept} == {k: v.shape for k, v in kept.items()}
    assert torch.equal(found["stages.3.blocks.0.mlp.fc1.bias"], ours["stages.3.blocks.0.mlp.fc1.bias"])


@pytest.mark.parametrize(
    "name", ["poolformer_s12", "metaformer_ppaa_s12", "metaformer_pppa_s12", "metaformer_ppff_s12"]
)
def test_ours_to_the_official_names_and_back_is_bit_equal(name):
    ours = randomise(zoo.create(name)).float().state_dict()
    official = weights.to_official(ours)
    back = weights.to_ours(official)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    if name == "metaformer_ppaa_s12":
        assert "network.4.pos_embed" in official
        assert "network.5.0.token_mixer.qkv.weight" in official
        assert "network.6.proj.weight" in official
    if name == "metaformer_ppff_s12":
        assert "network.4.0.token_mixer.fc.weight" in official
    if name == "poolformer_s12":
        assert {"patch_embed.proj.weight", "network.0.0.layer_scale_1", "network.1.proj.bias", "norm.weight"} <= set(
            official
        )


def test_official_v2_names():
    """As the official code names them; its linear layers are 1x1 convolutions here."""
    ours = zoo.create("caformer_s18").state_dict()
    official = {}
    for key, value in weights.to_timm(ours).items():
        for pattern, replacement in (("stem.", "downsample_layers.0."), ("head.fc.", "head."), ("head.norm.", "norm.")):
            if key.startswith(pattern):
                key = key.replace(pattern, replacement)
                break
        key = key.replace("downsample_layers.0.norm", "downsample_layers.0.post_norm")
        for i in (1, 2, 3):
            key = key.replace(f"stages.{i}.downsample.norm", f"downsample_layers.{i}.pre_norm")
            key = key.replace(f"stages.{i}.downsample", f"downsample_layers.{i}")
        official[key.replace(".blocks.", ".")] = value.squeeze() if ".mlp." in key or ".pwconv" in key else value
    net = zoo.create("caformer_s18")
    weights.load_into(net, weights.to_ours(official), "x")
    assert all(torch.equal(value, ours[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth.tar", ".pth", ".safetensors"])
@pytest.mark.parametrize("names", [dict, weights.to_timm, weights.to_official])
def test_a_file_finds_its_architecture(tmp_path, suffix, names):
    net = randomise(zoo.create("metaformer_ppff_s12", num_classes=7)).float()
    file = tmp_path / f"weights{suffix}"
    state = names(net.state_dict())
    if suffix == ".pth.tar":  # as a training script leaves it
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        weights.save(state, file)
    loaded = metaformer.load(file)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values(), strict=True))


def test_an_architecture_without_weights_in_its_mixers_has_to_be_named(tmp_path):
    torch.save(zoo.create("poolformer_s12").state_dict(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="fits poolformer_s12, metaformer_id_s12: name one of them"):
        weights.load(tmp_path / "x.pth")
    assert isinstance(weights.load(tmp_path / "x.pth", "metaformer_id_s12").stages[0].blocks[0].mixer, nn.Identity)


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_bad_files_get_one_line_and_nothing_is_loaded(tmp_path, capsys):
    state = zoo.create("poolformer_s12").state_dict()
    good = tmp_path / "good.pth"
    torch.save(state, good)
    cases = {
        "evil.pth": lambda f: torch.save({"state_dict": state, "args": Evil()}, f),
        "cut.pth": lambda f: f.write_bytes(good.read_bytes()[:100_000]),
        "cut.safetensors": lambda f: f.write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        "text.pth": lambda f: f.write_text("hello"),
        "list.pth": lambda f: torch.save([1, 2], f),
    }
    for name, make in cases.items():
        make(tmp_path / name)
        with pytest.raises(ConfigError) as error:
            weights.load(tmp_path / name, "poolformer_s12")
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"no such file, nor a published model \(poolformer_s12"):
        weights.load("poolformer_s21")
    with pytest.raises(ConfigError, match=r"model.name=caformer_s19: no such published model; nearest: caformer_s18"):
        zoo.create("caformer_s19")


def test_weights_of_another_model_are_named_and_leave_the_model_alone():
    state = zoo.create("metaformer_ppaa_s12").state_dict()
    net = zoo.create("poolformer_s12")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ConfigError, match=r"25 unknown: .*; the weights are those of metaformer_ppaa_s12") as error:
        weights.load_into(net, state, "ppaa.pth")
    assert "ppaa.pth" in str(error.value)
    del state["head.bias"]
    state["stem.conv.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(
        ConfigError, match=r"1 missing: head.bias;.*1 of another shape: stem.conv.weight is \[64, 3, 3, 3\]"
    ):
        weights.load_into(net, state, "x")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_another_image_size_resizes_positions_and_refuses_matrices():
    mixers = [Pooling, Pooling, Attention, Attention]
    options = {**SMALL, "position": [False, False, True, False], "num_classes": 3}
    small = MetaFormer(mixers, img_size=64, **options)
    nn.init.normal_(small.stages[2].position.offset)
    large = MetaFormer(mixers, img_size=128, **options)
    resized = weights.resize(small.state_dict(), large, "x")
    assert resized["stages.2.position.offset"].shape == (1, 96, 8, 8)
    weights.load_strictly(large, resized, "x")
    fixed = MetaFormer(SpatialMLP, img_size=64, **SMALL)
    with pytest.raises(ConfigError, match="mixes 256 tokens and the model has 1024"):
        weights.resize(fixed.state_dict(), MetaFormer(SpatialMLP, img_size=128, **SMALL), "x")


# ------------------------------------------------------------------ in timm


def test_models_are_registered_and_nothing_of_timms_is_overwritten():
    assert timm.is_model("metaformer_s12")
    assert timm.is_model("randformer_m48")
    assert type(timm.create_model("poolformer_s12")).__module__ == "timm.models.metaformer"
    net = timm.create_model("metaformer_s12", mixer=DepthwiseConv, drop_path_rate=0.3, num_classes=5, in_chans=1)
    assert isinstance(net.stages[0].blocks[0].mixer, DepthwiseConv)
    assert net.stages[3].blocks[1].drop_path.drop_prob == pytest.approx(0.3)
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 5)
    assert net.pretrained_cfg["crop_pct"] == 0.9


def test_timms_interface():
    net = timm.create_model("metaformer_s12").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape == (1, 512, 7, 7)
        pre = net.forward_head(features, pre_logits=True)
        assert pre.shape == (1, 512)
        torch.testing.assert_close(net.get_classifier()(pre), net(x))
        net.reset_classifier(0)
        torch.testing.assert_close(net(x), pre)
        net.reset_classifier(10, "avg")
        assert net(x).shape == (1, 10)
        pyramid = timm.create_model("metaformer_s12", features_only=True)
        assert [tuple(f.shape[1:]) for f in pyramid(x)] == [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
        assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    with pytest.raises(ValueError, match="pools by 'avg'"):
        net.reset_classifier(10, "max")
    assert (net.num_features, net.head_hidden_size, net.in_chans, net.num_classes) == (512, 512, 3, 10)
    assert net.no_weight_decay() == set()
    assert (
        timm.create_model("caformer_s18", num_classes=0)(x).shape == zoo.create("caformer_s18", num_classes=0)(x).shape
    )


def test_gradient_checkpointing_changes_nothing():
    net = MetaFormer(Attention, **SMALL, num_classes=3, seed=0)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(x).sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_layer_decay_finds_every_block():
    from timm.optim import param_groups_layer_decay

    net = zoo.create("poolformer_s12")
    groups = param_groups_layer_decay(net, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == 132
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales[-1] == 1.0
    assert len(scales) >= 13  # stem, twelve blocks with their downsampling, head


# ------------------------------------------------------------------ the same numbers however it is run


@pytest.mark.parametrize("mixer", [Pooling, Attention, SpatialMLP])
def test_the_same_function_in_every_form(mixer):
    net = randomise(MetaFormer(mixer, **SMALL, num_classes=5, img_size=64, seed=0)).float()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = net(x)
        net = net.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        assert close(net(x), y) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert close(net(x).float(), y) < 0.05
        exported = torch.export.export(net, (x,)).module()
        assert close(exported(x), y) < 1e-5
        torch._dynamo.reset()
        net.compile(
            backend="aot_eager_decomp_partition"
        )  # without decomposition GroupNorm is traced with wrong strides
        assert close(net(x), y) < 1e-5
        assert not any("_orig_mod" in key for key in net.state_dict())


def test_timms_initialisation_is_an_option():
    net = MetaFormer(Pooling, init="timm", seed=0)
    theirs = timm.create_model("poolformer_s12")
    for ours, other in (
        (net.stem.conv, theirs.stem.conv),
        (net.stages[1].downsample.conv, theirs.stages[1].downsample.conv),
    ):
        assert ours.weight.std().item() == pytest.approx(other.weight.std().item(), rel=0.05)
        assert not ours.bias.any()


def test_res_scale_norms_and_biases_of_the_v2_family():
    with torch.device("meta"):
        net = zoo.create("caformer_s18")
    names = set(net.state_dict())
    assert {n.split(".")[1] for n in names if "res_scale" in n} == {"2", "3"}
    assert not [n for n in names if "layer_scale" in n]
    biases = {n for n in names if n.endswith(".bias") and n.startswith("stages")}
    assert biases
    assert all("downsample.conv" in n or ".act" in n for n in biases)  # StarReLU's is a number
    assert {"stem.post_norm.weight", "stages.1.downsample.pre_norm.weight", "head.fc2.weight"} <= names


def test_intermediates_are_those_of_timm():
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("poolformerv2_s12", num_classes=10).eval()
    ours = zoo.create("poolformerv2_s12", num_classes=10).eval()
    weights.load_into(ours, weights.to_ours(theirs.state_dict()), "timm")
    x = torch.randn(1, 3, 64, 64)
    for words in ({}, {"indices": [1, 2], "stop_early": True}, {"indices": 2}):
        (last, maps), (their_last, their_maps) = (net.forward_intermediates(x, **words) for net in (ours, theirs))
        assert [m.shape for m in maps] == [m.shape for m in their_maps]
        torch.testing.assert_close([last, *maps], [their_last, *their_maps], rtol=1e-4, atol=1e-5)
    assert len(ours.forward_intermediates(x, intermediates_only=True)) == 4
    with pytest.raises(ValueError, match="expected False and NCHW"):
        ours.forward_intermediates(x, norm=True)
