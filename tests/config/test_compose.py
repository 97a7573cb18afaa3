"""The seeds of a cell share one composition; every point is what Hydra makes of it whole."""

from pathlib import Path

import pytest

from metaformer.config.compose import choices_of, config_of, names_in
from metaformer.config.explain import explain
from metaformer.studies import points
from metaformer.studies.points import expand
from metaformer.system.errors import ConfigError

ROWS = """
# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {+experiments/rows: "a,b,c", seed: "0,1"}}}
study: {name: rows}
"""


class HydraAlone:
    """What `points.Cells` stands for."""

    def __init__(self, loader, cfg, identify):
        self.loader, self.cfg, self.identify = loader, cfg, identify

    def run_of(self, point):
        composed = self.loader.load_sweep_config(self.cfg, list(point))
        config = config_of(composed)
        points._check_point(config)
        return points.resolve(config, choices_of(composed.hydra), identify=self.identify)


def outcome_of(arguments):
    try:
        return expand(arguments)
    except ConfigError as error:
        return str(error)
    except Exception as error:
        return explain(error)


GRIDS = [
    ["mixer=pooling,ppaa", "recipe.lr=1e-3,2e-3,1", "seed=range(2)"],
    ["seed=0,1", "recipe.lr=1e-3,2e-3", "mixer=pooling,attention", "model=tiny,iso_ti"],  # values before files
    ["mixer=ppaa,pppa", "mixer.stage1.pool_size=3,5"],
    ["mixer=spatial_mlp", "mixer.hidden=null,8", "recipe.crop=0,2", "model.position=null,[true,false,false,false]"],
    ["mixer=custom", "mixer._target_=torch.nn.Identity", "+mixer.inplace=true,false", "recipe.optimizer=adamw,'sgd'"],
    ["mixer=custom", "mixer._target_=a.B", "++mixer.p=a,null,1.5", "+mixer.o={x: 1},{y: [2, z]}"],
    ["recipe={lr: 1e-3},{lr: 2e-3}", "recipe.weight_decay=0,0.1"],  # a dict is a value, though the key is a group
    ["recipe.weight_decay=0.1,0.2", "recipe={weight_decay: 0.3}"],  # and the last value counts
    ["recipe.lr=0.1,0.2", "++recipe.lr=0.3"],
    ["seed=0,1", "++seed=3"],
    ["++seed=3", "seed=0,1"],
    ["seed=1,2", "recipe.epochs=${seed}", "recipe.warmup_epochs=0"],
    ["++recipe.lr=0.3", "recipe.lr=0.1,0.2"],
    ["mixer.pool_size=3,5", "+mixer={pool_size: 7}"],
    ["seed=1,2", "recipe.weight_decay=${seed}"],
    ["recipe.lr=${recipe.min_lr},${recipe.warmup_lr}", "recipe.min_lr=1e-4,1e-5"],
    ["recipe.lr=${recipe.min_lr}", "recipe.min_lr=1e-4,1e-5"],
    ["recipe.lr=${recipe.min_lr}", "recipe=short,poolformer", "seed=0,1"],
    ["study.question='a, b','c=d'", "data=digits", "data.val=100,200"],
    ["experiments=rows"],
    ["experiments=rows", "recipe.lr=1e-4,2e-4", "mixer=identity,pooling"],
    ["experiments=quickstart", "seed=0", "data=digits"],
    ["experiments=asks", "mixer=pooling,identity"],  # a recipe that is named after the mixer
    ["experiments=adds", "mixer=pooling,max_pooling"],  # to whatever mixer there is
    ["mixer=pooling,here,pppf,by_stage", "seed=0,1"],  # a file of one's own, and one that is made of others
    ["mixer=pooling,attention", "+mixer@mixer.other=identity"],
    ["mixer=custom,pooling", "mixer._target_=torch.nn.Identity"],
]
REFUSED = [
    ["mixer=pooling,identity", "mixer.pool_size=5"],
    ["seed=0,1", "recipe.lrr=1"],
    ["recipe.lr=1e-3,x"],
    ["seed=0,x"],
    ["seed=1.5,2"],
    ["+recipe.new=1,2"],
    ["mixer=pooling", "mixer.stage1.pool_size=3,5"],
    ["foo.bar=1,2"],
    ["hydra.x=1,2"],
    ["experiments=rows", "+experiments/rows=a,d"],
    ["mixer=pooling,poling"],
]


@pytest.mark.parametrize("arguments", [*GRIDS, *REFUSED], ids=" ".join)
def test_a_shared_composition_is_that_of_hydra(arguments, monkeypatch):
    Path("experiments/rows").mkdir(parents=True)
    Path("experiments/rows.yaml").write_text(ROWS)
    asks = "defaults: [override /recipe: 'of_${mixer}']"
    for name, text in {"asks": asks, "adds": "mixer: {pool_size: 5}"}.items():
        Path(f"experiments/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    for folder in ("recipe", "mixer"):
        Path(folder).mkdir()
    for mixer, lr in (("pooling", 0.01), ("identity", 0.02)):
        Path(f"recipe/of_{mixer}.yaml").write_text(f"defaults: [short]\nlr: {lr}\n")
    Path("mixer/here.yaml").write_text("_target_: torch.nn.Identity\n")
    for name, text in {"a": "mixer: {pool_size: 5}", "b": "recipe: {lr: 1}", "c": "seed: 7"}.items():
        Path(f"experiments/rows/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    fast = outcome_of(arguments)
    monkeypatch.setattr(points, "Cells", HydraAlone)
    whole = outcome_of(arguments)
    assert fast == whole
    assert isinstance(fast, str) == (arguments in REFUSED), fast
    if arguments in GRIDS:
        assert [repr(run.config) for run in fast] == [repr(run.config) for run in whole]  # 1 is not 1.0


def test_an_interpolation_is_resolved_for_each_run():
    runs = expand(["seed=1,2", "recipe.weight_decay=${seed}", "recipe.lr=${recipe.min_lr}", "recipe.min_lr=1e-4,1e-5"])
    recipes = [run.config.recipe for run in runs]
    assert [(run.config.seed, recipe.weight_decay) for run, recipe in zip(runs, recipes, strict=True)] == [
        (1, 1.0), (1, 1.0), (2, 2.0), (2, 2.0),
    ]  # fmt: skip
    assert [recipe.lr for recipe in recipes] == [1e-4, 1e-5, 1e-4, 1e-5]


def test_a_choice_that_is_not_there_is_answered_with_all_that_are_and_no_other():
    told = outcome_of(["mixer=polling", "seed=0,1"])
    assert sorted(told.partition("expected one of ")[2].split(", ")) == names_in("mixer")
