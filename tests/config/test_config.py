"""Nothing is silently ignored, and the run id changes with whatever changes the result."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import compose
from hydra.errors import ConfigCompositionException

from metaformer.config import named_code
from metaformer.config.compose import check_local_files
from metaformer.config.explain import CALLED_ELSEWHERE, explain
from metaformer.config.identity import cell_id, content_of, run_id, unlike
from metaformer.config.schema import Config, Model, Recipe, Runtime
from metaformer.config.validate import leaves
from metaformer.data.registry import check, fingerprint
from metaformer.models.metaformer import MetaFormer
from metaformer.system.errors import ConfigError


def content(config: Config) -> dict:
    return content_of(config, fingerprint(config.data))


def id_of(*overrides: str) -> str:
    return run_id(content(compose(*overrides)))


def error_of(*overrides: str) -> str:
    """The one line that these overrides get."""
    try:
        config = compose(*overrides)
        check(config.data, config.recipe, config.task)
    except ConfigError as error:
        line = str(error)
    except Exception as error:
        line = explain(error)
    else:
        pytest.fail(f"{overrides} were accepted")
    assert "\n" not in line
    return line


def test_the_names_of_other_libraries_lead_to_keys_that_exist():
    known = {path for path, _, _ in leaves(Config())}
    for key in CALLED_ELSEWHERE:
        assert key in known or key.startswith("recipe.optimizer_options."), key
    names = [name for called in CALLED_ELSEWHERE.values() for name in called]
    assert len(names) == len({*names})
    assert not {*names} & {path.rpartition(".")[2] for path in known}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mixer"], "mixer: expected key=value"),
        (["data.root=~/x"], "data.root=~/x: cannot be read; quote a value with special characters, twice: "),
        (["data.root=a [b]=ä"], "twice: 'data.root=\"a [b]=ä\"'"),
        (["seed=[1,2"], "seed=[1,2: cannot be read; expected brackets and quotes in pairs"),
        (["mixerr=pooling"], "mixerr: no such key; did you mean 'mixer'?"),
        (["lr=1e-3"], "lr: no such key; did you mean 'recipe.lr'?"),
        (["epochs=3"], "epochs: no such key; did you mean 'recipe.epochs'?"),
        (["recipe.learning_rate=1"], "recipe.learning_rate: no such key; did you mean 'recipe.lr'?"),
        (["batch_size=64"], "batch_size: no such key; did you mean 'recipe.batch'?"),
        (["max_epochs=3"], "max_epochs: no such key; did you mean 'recipe.epochs'?"),
        (["recipe.max_steps=3"], "recipe.max_steps: no such key; did you mean 'recipe.steps'?"),
        (["gradient_clip_val=1"], "gradient_clip_val: no such key; did you mean 'recipe.clip_grad'?"),
        (["momentum=0.8"], "momentum: no such key; did you mean 'recipe.optimizer_options.momentum'?"),
        (["pool_size=5"], "pool_size: no such key; did you mean 'mixer.pool_size'?"),
        (["dataroot=x"], "dataroot: no such key; did you mean 'data.root'?"),
        (["lrr=1"], "lrr: no such key; did you mean 'recipe.lr'?"),
        (["depth=[1,1,1,1]"], "depth: no such key; did you mean 'model.depths'?"),
        (["frobnicate=64"], "frobnicate: no such key; there are mixer, model,"),
        (["recipe.callbacks=x"], "recipe.callbacks: no such key; did you mean 'callbacks=early_stopping'?"),
        (["model.depths=[]", "model.dims=[]"], "model.depths=[]: expected at least one stage"),
        (["quickstart"], "quickstart: expected key=value; did you mean 'experiments=quickstart'?"),
        (
            ["study.analysis.contrasts={gap: {a: 1, b: -1}}"],
            "its keys are new ones; expected +study.analysis.contrasts=...",
        ),
        (["recpe.lr=3"], "recpe.lr: no such key; did you mean 'recipe.lr'?"),
        (["recipe.lrr=1"], "recipe.lrr: no such key; did you mean 'recipe.lr'?"),
        (["mixer.pool_sise=5"], "mixer.pool_sise: no such key; did you mean 'mixer.pool_size'?"),
        (["+typo=1"], "typo: no such key; there are mixer, model, data, "),
        (["data.size=3"], "data.size=3: data=fashion_small does not read it"),
        (["data.root=."], "data.root=.: data=fashion_small does not read it"),
        (["runtime.runs='~/x'"], "runtime.runs=~/x: expected the path of a folder, without ~, :: or ://"),
        (["runtime.runs=s3://x"], "runtime.runs=s3://x: expected the path of a folder, without ~, :: or ://"),
        (["runtime.runs=a::b"], "runtime.runs=a::b: expected the path of a folder, without ~, :: or ://"),
        (["runtime.packed=true"], "runtime.packed=true: belongs to a study, whose runs.npz it is (experiments=NAME)"),
        (["+mixer.scale=inf"], "mixer.scale=inf: expected a number between -2^63 and 2^63"),
        (["+mixer.of={a: [1, nan]}"], "mixer.of.a=[1, nan]: expected a number between -2^63 and 2^63"),
        (["recipe.optimizer_options.eps=nan"], "recipe.optimizer_options.eps=nan: expected a number between"),
        (
            ["callbacks=early_stopping", "+callbacks.early_stopping.divergence_threshold=inf"],
            "callbacks.early_stopping.divergence_threshold=inf: expected a number between",
        ),
        (
            ["callbacks=early_stopping", "debug=overfit"],
            "callbacks.early_stopping.monitor=val_loss: debug=overfit validates nothing; leave the callback out",
        ),
        (["runtime.graph=true"], "runtime.graph=true: belongs to runtime.compile=true"),
        (
            ["runtime.graph=true", "runtime.compile=true", "runtime.accelerator=mps"],
            "runtime.graph=true: is for a GPU of CUDA; here is runtime.accelerator=mps",
        ),
        (
            ["runtime.graph=true", "runtime.compile=true", "runtime.accumulate=auto"],
            "runtime.accumulate=auto: with runtime.graph=true the gradients of a part lie where those of the next one",
        ),
        (["logger.mode=offline"], "logger.mode=offline: belongs to logger=wandb"),
        (["logger.every=10"], "logger.every=10: belongs to logger=wandb"),
        (["logger=wandb", "logger.every=-1"], "logger.every=-1: expected at least 0"),
        (["logger.weights=true"], "logger.weights=True: belongs to logger=wandb"),
        (["logger=wandb", "logger.weights_limit=0"], "logger.weights_limit=0.0: expected above 0"),
        (["logger.project=mine"], "logger.project=mine: belongs to logger=wandb"),
        (["runtime.threads=0"], "runtime.threads=0: expected at least 1"),
        (["runtime.per_gpu=0"], "runtime.per_gpu=0: expected at least 1"),
        (["runtime.threads=-1"], "runtime.threads=-1: expected at least 1"),
        (["recipe.lr=nan"], "recipe.lr=nan: expected at least 0"),
        (["recipe.weight_decay=-1"], "recipe.weight_decay=-1.0: expected at least 0"),
        (["recipe.warmup_epochs=50"], "recipe.warmup_epochs=50.0: longer than recipe.epochs=4"),
        (["model.stem=[4,0,0]"], "model.stem=[4, 0, 0]: expected kernel, stride, padding"),
        (["study.name=../x"], "study.name=../x: expected letters"),
        (["study.analysis.margin=0"], "study.analysis.margin=0.0: expected a number above 0"),
        (["study.analysis.alpha=5"], "study.analysis.alpha=5.0: expected a small probability"),
        (["study.analysis.tolerance=-1"], "study.analysis.tolerance=-1.0: expected a share"),
        (
            ["study.analysis.tuned=[recipe.lrr]"],
            "study.analysis.tuned: recipe.lrr: is no key of the optimisation; expected one of recipe.lr, ",
        ),
        (
            ["study.analysis.tuned=[recipe.epochs]"],
            "study.analysis.tuned: recipe.epochs: is no key of the optimisation",
        ),
        (["study.analysis.looks=[8,5]"], "study.analysis.looks=[8, 5]: expected growing numbers of seeds"),
        (["study.analysis.looks=[2,5]"], "study.analysis.looks=[2, 5]: expected growing numbers of seeds"),
        (["study.analysis.spending=pocock"], "study.analysis.spending=pocock: is read with study.analysis.looks only"),
        (
            ["study.analysis.failed=chance", "study.analysis.metric=test_loss"],
            "study.analysis.failed=chance: a guess has an accuracy only; study.analysis.metric is test_loss",
        ),
        (["+study.analysis.contrasts.a=1"], "study.analysis.contrasts.a: expected the weights of cells"),
        (
            ["+study.analysis.contrasts.a={pooling: 1, identity: 1}"],
            "study.analysis.contrasts.a: expected two cells or more whose weights add up to 0",
        ),
        (["study.analysis.correction=bonferoni"], "study.analysis.correction=bonferoni: expected one of "),
        (["study.analysis.margn=1"], "study.analysis.margn: no such key; did you mean 'study.analysis.margin'?"),
        (["+sed=1"], "sed: no such key; did you mean 'seed'?"),
        (["++model.depth=3"], "model.depth: no such key; did you mean 'model.depths'?"),
        (["recipe.lr=abc"], "recipe.lr=abc: expected a float"),
        (["recipe.lr=null"], "recipe.lr=null: expected a float"),
        (["seed=abc"], "seed=abc: expected an integer"),
        (["seed=1.5"], "seed=1.5: expected an integer"),
        (["seed=-1"], "seed=-1: expected at least 0"),
        (["model.residual=maybe"], "model.residual=maybe: expected a boolean"),
        (["model.dims=[a,b]"], "model.dims[0]=a: expected an integer"),
        (["model.norm=grup"], "model.norm=grup: expected one of group, "),
        (["mixer=poling"], "mixer=poling: no such choice; expected one of pooling, "),
        (["experiments=quikstart"], "experiments=quikstart: no such choice; expected one of quickstart"),
        (["recipe=shrt"], "recipe=shrt: no such choice; expected one of short"),
        (["logger=[csv,wandbb]"], "logger=wandbb: no such choice; expected one of wandb, "),
        (["callbacks=[early_stoping]"], "callbacks=early_stoping: no such choice; expected one of early_stopping, "),
        (["recipe=null", "recipe.epochs=1"], "recipe=null: expected the name of a choice, one of "),
        (["experiments=null", "recipe.epochs=1"], "experiments=null: expected the name of a choice, one of "),
        (["+recipe.lr=1"], "+recipe.lr: there is such a key; expected recipe.lr=VALUE, without the +"),
        (["hydra.foo=1"], "hydra.foo: no such key; there are run, sweep"),
        (["recipe.flip=7"], "recipe.flip=7: expected true or false"),
        (["trainer.min_epochs=9"], "trainer.min_epochs=9: the recipe ends before; expected at most 4"),
        (["recipe.steps=9", "trainer.min_steps=10"], "trainer.min_steps=10: the recipe ends before; expected at"),
        (["model.dims=[8,8,8]"], "model.dims=[8, 8, 8]: expected 4 values, one for each of model.depths"),
        (["model.dims=[8,8,8,16]"], "expected one width, since model.downsample is null"),
        (["model.stem=[4,4]"], "model.stem=[4, 4]: expected kernel, stride, padding"),
        (["model.drop_path=1"], "model.drop_path=1.0: expected a rate from 0"),
        (["recipe.epochs=0"], "recipe.epochs=0: expected at least 1"),
        (["data=cifar10", "data.root=/no/such/folder"], "data.root=/no/such/folder: no such file or folder"),
        (["mixer=builtin"], "mixer=builtin: belongs to a published model (model=zoo or model=timm)"),
        (
            ["model=zoo", "model.name=caformer_s18"],
            "mixer: model.source=zoo brings its own mixers; expected mixer=builtin",
        ),
        (["model=timm", "mixer=builtin"], "model.name: expected the name of a model, since model.source=timm"),
        (
            ["model=timm", "mixer=builtin", "model.name=deit_tiny_patch16_224", "model.norm=layer"],
            "model.norm=layer: 'deit_tiny_patch16_224' has its own",
        ),
        (["recipe.initialize_from=w.pt"], "recipe.initialize_from=w.pt: no such file"),
        (["recipe.distill.alpha=0.1"], "recipe.distill.teacher: expected the name of a timm model"),
        (["recipe.distill.teacher=resnet18"], "recipe.distill.weights: expected a file"),
        (
            ["mixer=ppaa", "+mixer.pool_size=5"],
            "mixer.pool_size: the mixer differs by stage; expected one of mixer.stage1.pool_size, ",
        ),
        (["mixer=ppaa", "mixer.pool_size=5"], "mixer.pool_size: no such key; there are stage1, stage2, "),
        (["+mixer.stage1.pool_size=5"], "mixer.stage1: the mixer is the same in every stage"),
        (["mixer=ppaa", "model.depths=[1]", "model.dims=[64]"], "but the model has 1 stages"),
        (["mixer=custom"], "mixer._target_: has to be given"),
        (["data=custom"], "data._target_: expected the dotted path of a function that returns the images"),
        (["mixer=custom", "mixer._target_=Shift"], "mixer._target_=Shift: expected the dotted path of a class"),
    ],
)
def test_bad_input_gets_one_line(overrides, expected):
    assert expected in error_of(*overrides)


def test_the_nearest_choice_comes_first():
    line = error_of("mixer=atention")
    assert line.split("one of ")[1].startswith("attention, ")
    assert "pooling" in line


def test_options_of_a_mixer_and_of_one_stage_of_a_hybrid():
    assert compose("mixer=pooling", "mixer.pool_size=5").mixer["pool_size"] == 5
    hybrid = compose("mixer=ppaa", "mixer.stage1.pool_size=5").mixer
    assert [hybrid[f"stage{i}"].get("pool_size") for i in range(1, 5)] == [5, 3, None, None]


def test_local_mixers_and_studies_are_found():
    Path("mixer").mkdir()
    Path("mixer/my_shift.yaml").write_text("_target_: my_mixer.Shift\nstep: 2\n")
    Path("mixer/iapa.yaml").write_text(
        "defaults: [identity@stage1, attention@stage2, pooling@stage3, attention@stage4]\n"
    )
    Path("experiments").mkdir()
    Path("experiments/mine.yaml").write_text("# @package _global_\nstudy: {name: mine}\nseed: 3\n")
    assert compose("mixer=my_shift").mixer == {"_target_": "my_mixer.Shift", "step": 2}
    assert compose("mixer=iapa").mixer["stage1"] == {"_target_": "metaformer.mixers.Identity"}
    config = compose("experiments=mine")
    assert (config.study.name, config.seed) == ("mine", 3)


@pytest.mark.parametrize("name", ["mixer/pooling.yaml", "experiments/quickstart.yaml"])
def test_a_local_file_with_the_name_of_a_packaged_one_is_refused(name):
    Path(name).parent.mkdir()
    Path(name).write_text("{}")
    with pytest.raises(ConfigError, match=f"{name} has the name of a packaged file"):
        check_local_files()


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("recipe/mine.yaml", "lr: ???", "recipe.lr"),
        ("recipe/mine.yaml", "distill:\n  tau: ???", "recipe.distill.tau"),
        ("experiments/mine.yaml", "# @package _global_\nseed: ???", "seed"),
        ("experiments/mine.yaml", "# @package _global_\nmixer:\n  pool_size: ???", "mixer.pool_size"),
        (
            "experiments/mine.yaml",
            "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: ???",
            "hydra.sweeper.params.seed",
        ),
        ("mixer/mine.yaml", "defaults: [pooling]\npool_size: ???", "mixer.pool_size"),
        ("mixer/deep/mine.yaml", "defaults: [/mixer/pooling]\npool_size: ???", "mixer.pool_size"),
        (
            "callbacks/mine.yaml",
            "defaults: [early_stopping]\nearly_stopping:\n  patience: ???",
            "callbacks.early_stopping.patience",
        ),
        ("model/mine.yaml", "defaults: [tiny]\ndepths:\n- 1\n- ???", "model.depths.1"),
        ("mixer/mine.yaml", "defaults: [pooling, '???']\npool_size: 3", None),  # a choice that Hydra asks for
        ("mixer/mine.yaml", "_target_: a.B\nsize: ${mixer.other}", None),
        ("recipe/mine.yaml", "lr: 0.1 # ???", None),
        ("mixer/mine.yaml", "_target_: ???", None),  # there is no default: Hydra asks for it
        ("recipe/mine.yaml", "lr: [???", None),  # Hydra tells where it is chosen
    ],
)
def test_a_key_without_a_value_in_a_local_file_is_refused_where_a_default_would_stay(name, text, key):
    Path(name).parent.mkdir(parents=True)
    Path(name).write_text(text)
    expected = rf"{name}: {key}: \?\?\? does not replace the default; expected a value"
    with pytest.raises(ConfigError, match=expected) if key else nullcontext():
        check_local_files()


def test_a_folder_of_sweeps_in_a_local_file_is_tried():
    Path("experiments").mkdir()
    for place, error in (("found", None), ("/dev/null/x", "cannot be made"), ("null", "expected a folder")):
        Path("experiments/mine.yaml").write_text(f"# @package _global_\nhydra: {{sweep: {{dir: {place}}}}}")
        expected = f"experiments/mine.yaml: hydra.sweep.dir=(None|{place}): {error}"
        with pytest.raises(ConfigError, match=expected) if error else nullcontext():
            check_local_files()


def test_a_null_in_a_file_is_told_with_key_and_file():
    Path("experiments").mkdir()
    Path("experiments/mine.yaml").write_text("# @package _global_\nrecipe: { lr: null }")
    with pytest.raises(ConfigCompositionException) as refused:
        compose("experiments=mine")
    assert explain(refused.value) == "recipe.lr=null: expected a float (in experiments/mine.yaml)"


def test_golden_run_ids():
    """A change here orphans every finished run: raise TRAINING_VERSION and mean it."""

    def of(target: str, **changes) -> str:
        return run_id(content_of(Config(mixer={"_target_": f"metaformer.mixers.{target}"}, **changes), None))

    assert of("Pooling") == "c6341e8ff89c"
    assert of("Attention", seed=2, recipe=Recipe(lr=1e-3)) == "e181a3c5d856"
    assert of("Pooling", model=Model(norm="layer"), runtime=Runtime(threads=3)) == "d243474b4afd"


@pytest.mark.parametrize(
    "override",
    ["seed=1", "recipe.lr=1e-3", "recipe.precision=bf16", "model.act=relu", "mixer.pool_size=5", "data.train=100"],
)
def test_what_changes_the_result_changes_the_run_id(override):
    assert id_of(override) != id_of()


@pytest.mark.parametrize(
    "override",
    ["runtime.threads=2", "runtime.runs=elsewhere", "logger=wandb", "study.name=x", "data.root=.", "runtime=cpu"],
)
def test_what_does_not_change_the_result_leaves_the_run_id(override):
    assert id_of("data=cifar10", override) == id_of("data=cifar10")


def test_a_value_equal_to_the_default_is_no_difference():
    assert id_of("model.act=gelu") == id_of()
    assert id_of("++recipe.weight_decay=0.05") == id_of()


def test_the_cell_is_the_run_without_its_seed():
    a, b = content(compose("seed=0")), content(compose("seed=1"))
    assert cell_id(a) == cell_id(b) != cell_id(content(compose("mixer=identity")))
    assert run_id(a) != run_id(b)


def test_an_edited_mixer_is_a_new_run(monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    overrides = ("mixer=custom", "mixer._target_=edited_mixer.Shift")
    source = Path("edited_mixer.py")
    source.write_text("class Shift: ...\n")
    first = id_of(*overrides)
    assert id_of(*overrides) == first
    source.write_text("class Shift: pass\n")
    assert id_of(*overrides) != first


@pytest.mark.parametrize("edited", ["pack/shift.py", "helper.py"])
def test_code_that_a_mixer_is_made_of_counts_wherever_it_is(edited, monkeypatch):
    """A class that a package re-exports, and a file beside it that it imports."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("pack").mkdir()
    Path("pack/__init__.py").write_text("from .shift import Shift\n")
    Path("pack/shift.py").write_text("class Shift: ...\n")
    Path("alone.py").write_text("import helper\nclass Shift: ...\n")
    Path("helper.py").write_text("x = 1\n")
    target = "mixer._target_=" + ("pack.Shift" if "pack" in edited else "alone.Shift")
    first = id_of("mixer=custom", target)
    Path(edited).write_text(Path(edited).read_text() + "y = 2\n")
    assert id_of("mixer=custom", target) != first


def test_the_version_of_an_installed_library_counts(monkeypatch):
    overrides = ("mixer=custom", "mixer._target_=timm.layers.Attention")
    first = id_of(*overrides)
    monkeypatch.setattr(named_code, "version", lambda name: "0.0.0")
    assert id_of(*overrides) != first


def test_the_layer_that_an_adapter_wraps_counts_too(monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    overrides = ("mixer=custom", "mixer._target_=metaformer.mixers.AsTokens", "+mixer.layer=edited_layer.Layer")
    Path("edited_layer.py").write_text("class Layer: ...\n")
    first = id_of(*overrides)
    Path("edited_layer.py").write_text("class Layer: pass\n")
    assert id_of(*overrides) != first


def test_the_contents_of_a_file_of_weights_are_part_of_the_run_id_and_its_place_is_not():
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        Path(name).write_bytes(content)
    a, b, c = (id_of(f"recipe.initialize_from={name}.pt") for name in "abc")
    assert a == b != c
    assert id_of() not in (a, c)


def test_images_in_a_folder_are_part_of_the_run_id_and_their_place_is_not():
    for root in ("a", "b"):
        for split, label in (("train", "cat"), ("train", "dog"), ("test", "cat")):
            Path(root, split, label).mkdir(parents=True)
            Path(root, split, label, "1.png").write_bytes(f"123{split}{label}".encode())

    def of(root: str) -> str:
        return id_of("data=image_folder", f"data.root={root}")

    assert of("a") == of("b")
    Path("b/train/cat/1.png").write_bytes(b"124")
    assert of("a") != of("b")
    Path("b/train/cat/1.png").write_bytes(b"123traincat")
    assert of("a") == of("b")
    Path("b/train/cat/2.png").write_bytes(b"4")
    assert of("a") != of("b")


def test_every_model_option_is_an_argument_of_the_model():
    names = {f.name for f in fields(Model)} - {"source", "name", "crop_pct"}
    with torch.device("meta"):
        MetaFormer("identity", **{name: getattr(Model(), name) for name in names})  # refuses an option of no use


def test_no_torch_before_a_run():
    modules = ["config.schema", "config.validate", "config.compose", "studies.worker", "studies.sweeper"]
    modules += ["studies.points", "studies.progress", "studies.refusal", "analysis.stats"]
    modules += ["report", "plan", "train", "evaluate"]
    code = f"import sys\nfrom importlib import import_module\nfor name in {modules}:\n"
    code += "    import_module('metaformer.' + name)\n    assert 'torch' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_contents_of_the_weights_of_a_teacher_are_part_of_the_run_id_and_their_place_is_not():
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        Path(name).write_bytes(content)
    taught = "recipe.distill.teacher=resnet18"
    a, b, c = (id_of(taught, f"recipe.distill.weights={name}.pt") for name in "abc")
    assert a == b != c


def test_a_file_of_weights_that_is_written_anew_is_another_one():
    ids = []
    for content in (b"1", b"2"):
        Path("a.pt").write_bytes(content)
        os.utime("a.pt", ns=(len(ids), len(ids)))
        ids.append(id_of("recipe.initialize_from=a.pt"))
    assert ids[0] != ids[1]


def test_a_number_may_be_written_in_two_ways():
    assert id_of("mixer=afno", "mixer.sparsity=0") == id_of("mixer=afno", "mixer.sparsity=0.0")


def test_a_key_that_one_of_two_configurations_lacks_is_a_difference():
    assert unlike({"a": 1}, {"a": 1, "mixer.step": 2}, same_images=True) == {"mixer.step": (None, 2)}
    assert unlike({"a": 1, "mixer.step": 2}, {"a": 1}, same_images=True) == {"mixer.step": (2, None)}
    assert unlike({"a": 1}, {"a": 1, "recipe.new": None}, same_images=True) == {}
