"""Cells that are matched to a budget: the nearest there is, and ordinary cells."""

import json
import os
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import HERE, TINY, compose
from torch import nn

from metaformer import cost
from metaformer.config.identity import content_of, run_id
from metaformer.config.schema import Config
from metaformer.mixers import Attention
from metaformer.models.cost import saved_bytes, throughput
from metaformer.studies import budget, cell_cost
from metaformer.studies.budget import matched
from metaformer.studies.points import expand
from metaformer.system import machine
from metaformer.system.errors import ConfigError


def with_model(config: Config, **changes) -> Config:
    return replace(config, model=replace(config.model, **changes))


def id_of(config: Config) -> str:
    return run_id(content_of(config, None))


def memory(*words: str) -> float:
    """Bytes of training a cell of pooling."""
    return cell_cost.rows_of("", compose("mixer=pooling", *words), {})[0]["fp32_training_gib"] * 2**30


def test_without_a_budget_nothing_changes():
    config = compose("mixer=attention")
    assert matched(config) == (config, None)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_the_nearest_of_all_ratios_is_found(kind):
    """Against a search through every one; only the number of hidden channels counts."""
    words = (
        "mixer=depthwise",
        "model=iso_ti",
        "model.depths=[1,1]",
        "model.dims=[24,24]",
        "model.position=[true,false]",
        f"budget={kind}",
    )
    config = compose(*words, "budget.by=mlp_ratio", "budget.tolerance=1e-9")
    _, match = matched(config)
    wanted = budget._cost(replace(config, mixer=compose("mixer=pooling").mixer))
    misses = [
        abs(budget._cost(with_model(config, mlp_ratio=(hidden + 0.01) / 24)) / wanted - 1)
        for hidden in range(1, 24 * 8)
    ]
    assert abs(match.error) == pytest.approx(min(misses))
    assert match.wanted == wanted


def test_the_nearest_of_all_depths_is_found():
    """Among all up to twice as deep: by proportion it is 2.6% off."""
    config = compose("mixer=sepconv", "model=s12", "data=imagenet", "budget=params", "budget.by=depth")
    _, match = matched(config)
    assert abs(match.error) < 0.01
    assert match.got == cell_cost.cost_of(with_model(config, depths=match.value)).params
    close = compose("mixer=sepconv", "model=s12", "data=imagenet", "budget=params", "budget.by=depth",
                    "budget.tolerance=1e-9")  # fmt: skip
    sizes = [8 * c * c + 11 * c + 4 * c * c + 2 * 49 * c + 2 for c in (64, 128, 320, 512)]
    _, nearest = matched(close)
    outside = match.got - sum(d * s for d, s in zip(match.value, sizes, strict=True))
    choices = product(range(1, 5), range(1, 5), range(1, 13), range(1, 5))
    totals = [outside + sum(d * s for d, s in zip(depths, sizes, strict=True)) for depths in choices]
    assert abs(nearest.error) == pytest.approx(min(abs(total / match.wanted - 1) for total in totals))


def test_widths_are_looked_for_beside_the_proportions_too():
    """[16, 48], as the proportions have it, is 4.6% off; whole heads leave few widths."""
    words = ["model.depths=[2,3]", "model.dims=[32,64]", "model.stem=[4,2,1]", "model.downsample=[3,2,1]"]
    config = compose("mixer=attention", "mixer.head_dim=8", "model.position=[true,false]", "budget=macs", *words)
    found, match = matched(config)
    assert found.model.dims == [24, 32]
    assert match.error == pytest.approx(-0.016, abs=5e-4)


def test_widths_keep_their_proportions_and_whole_heads():
    config = compose("mixer=attention", "model=s12", "data=imagenet", "mixer.head_dim=16", "budget=params")
    found, match = matched(config)
    dims = found.model.dims
    assert abs(match.error) < 0.01
    assert all(dim % 16 == 0 for dim in dims)
    scales = [dim / plain for dim, plain in zip(dims, config.model.dims, strict=True)]
    assert max(scales) - min(scales) < 16 / 64  # a step of the narrowest
    assert cell_cost.cost_of(found).params == match.got


def test_one_width_stays_one_width():
    found, match = matched(compose("mixer=sepconv", "model=iso_ti", "budget=macs"))
    assert len(set(found.model.dims)) == 1
    assert abs(match.error) < 0.01


def test_a_decoder_is_in_the_budget():
    words = ("task=segmentation", "data=fashion_mosaics", "model=tiny_pyramid", "mixer=attention")
    found, match = matched(compose(*words, "budget=params", "budget.target=9e5"))
    assert match.got == cell_cost.cost_of(found).params == pytest.approx(9e5, rel=0.03)
    without = cell_cost.cost_of(replace(found, task=compose().task)).params
    assert match.got > without


def test_the_target_is_untouched_and_a_number_will_do():
    config = compose("mixer=pooling", "budget=params")
    assert matched(config)[0].model == config.model
    found, match = matched(compose("mixer=pooling", "budget=params", "budget.target=2e5", "budget.by=mlp_ratio"))
    assert match.wanted == 2e5
    assert abs(cell_cost.cost_of(found).params / 2e5 - 1) < 0.01


def test_a_matched_cell_is_the_cell_that_one_would_have_typed():
    found, match = matched(compose("mixer=attention", "budget=params", "budget.by=mlp_ratio"))
    typed = compose("mixer=attention", f"model.mlp_ratio={found.model.mlp_ratio}")
    assert id_of(found) == id_of(typed)
    again = compose("mixer=attention", "budget=params", "budget.by=mlp_ratio", *match.overrides)
    assert id_of(again) == id_of(typed)
    assert matched(again)[1] is None


def test_every_stage_keeps_a_hidden_channel():
    config = compose("model.dims=[8,64,64,64]", "model=s12", "data=imagenet")
    ratios = [ratio for ladder, _ in budget._ladders(config.model, "mlp_ratio") for ratio in ladder]
    assert min(int(8 * ratio) for ratio in ratios) == 1
    assert sorted({int(64 * ratio) for ratio in ratios}) == list(range(8, 8 * 4 * 64))


def test_times_are_measured_once(monkeypatch):
    measured = []

    def step_seconds(config):
        measured.append(config.model.dims[0])
        return 1e-6 * (config.model.dims[0] + (16 if "Attention" in config.mixer["_target_"] else 0))

    monkeypatch.setattr(cell_cost, "step_seconds", step_seconds)
    config = compose("mixer=attention", "mixer.head_dim=2", "budget=time", "model=iso_ti")
    width = config.model.dims[0]
    found, match = matched(config)
    assert found.model.dims[0] == pytest.approx(width - 16, rel=0.05)
    assert "seconds for an image" in match.words
    budget._solve.cache_clear()
    count = len(measured)
    assert matched(config) == (found, match)
    assert matched(replace(config, recipe=replace(config.recipe, lr=1.0)))[1] == match
    assert len(measured) == count
    assert len(json.loads(Path("runs/budget.json").read_text())) == 1
    for change in (
        {"recipe": replace(config.recipe, precision="bf16")},
        {"runtime": replace(config.runtime, threads=4)},
        {"runtime": replace(config.runtime, compile=True)},
        {"recipe": replace(config.recipe, batch=32)},
    ):
        matched(replace(config, **change))
        assert len(measured) > count
        count = len(measured)
    budget._solve.cache_clear()
    monkeypatch.setattr(budget, "trains_on", lambda accelerator: "another device")
    matched(config)
    assert len(measured) > count
    Path("runs/budget.json").write_text("half {")
    budget._solve.cache_clear()
    with pytest.raises(ConfigError, match=r"runs/budget.json: cannot be read .*; remove it to measure the times again"):
        matched(config)


def test_times_of_a_gpu_are_measured_by_a_process_with_a_place_on_it(monkeypatch, tmp_path):
    """The process of a sweep has no place, and would keep the memory that it took there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # of a machine that has no such GPU: there it is the processor
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(budget, "solve", None)  # of this process, not of the other
    machine.gpus.cache_clear()
    try:
        words = ("mixer=pooling", "budget=time", "budget.target=pooling", "budget.tolerance=0.9", "data=digits")
        config = compose(*words, "recipe.batch=8")
        _, match = matched(config)
        assert match.value == config.model.dims
        assert [lock.name for lock in tmp_path.glob("metaformer-gpus-*/*.lock")] == ["7.0.lock"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
        assert machine.lacks_place("auto")
        assert not machine.lacks_place("cpu")
    finally:
        machine.gpus.cache_clear()


@pytest.mark.parametrize("accelerator", ["mps", "gpu"])
def test_no_time_is_measured_on_another_device(accelerator):
    with pytest.raises(ConfigError, match=f"runtime.accelerator={accelerator}: times are measured on a GPU of CUDA or"):
        cell_cost.step_seconds(compose(f"runtime.accelerator={accelerator}"))


def test_a_step_is_measured_as_a_run_computes_it(monkeypatch):
    seen = []

    class Seen(torch.nn.Conv2d):
        def forward(self, x):
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    before = torch.are_deterministic_algorithms_enabled()  # a run before in this process leaves it on
    throughput(Seen(1, 1, 1), torch.zeros(2, 1, 4, 4), "bf16")
    assert set(seen) == {(True, True)}
    assert torch.are_deterministic_algorithms_enabled() is before


def test_a_time_is_that_of_a_step_as_the_runs_have_it(monkeypatch):
    asked = []

    def throughput(config, batch, *, compiled):
        asked.append((batch, compiled))
        if batch > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0, 100.0

    monkeypatch.setattr(cell_cost, "throughput", throughput)
    words = ("recipe.batch=256", "runtime.devices=2", "runtime.accumulate=2", "runtime.compile=true")
    assert cell_cost.step_seconds(compose(*words)) == 0.01
    assert asked == [(64, True)]
    with pytest.raises(ConfigError, match=r"budget.target=pooling: 128 images at once do not fit into the memory here"):
        matched(compose("budget=time", "recipe.batch=128"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.by=depth"], "budget.by=depth: belongs to budget=params, budget=macs or budget=time"),
        (["budget=params", "budget.target=-3"], "budget.target=-3: expected a mixer, or a number above 0"),
        (["budget=params", "budget.target=poolin"], "mixer=poolin: no such choice; expected one of pooling"),
        (["budget=params", "budget.tolerance=2"], "budget.tolerance=2.0: expected a share"),
        (["budget=params", "budget.by=mlp_ratio", "model.channel_mlp=false"], "model.channel_mlp is false"),
        (["budget=params", "model=zoo", "model.name=poolformer_s12", "mixer=builtin"], "a published model is as it is"),
        (["budget=parms"], "budget=parms: no such choice; expected one of params"),
        (
            ["budget=params", "budget.target=1000", "budget.by=mlp_ratio"],
            "budget=params: 1,000 parameters cannot be met; the nearest is model.mlp_ratio=0.015625",
        ),
        (["budget=params", "mixer=attention", "budget.by=depth"], "cannot be met; the nearest is model.depths=[1, 1,"),
    ],
)
def test_a_bad_budget_gets_one_line(overrides, message, refusal):
    assert message in refusal(cost, *overrides)


def test_a_sweep_of_matched_cells(cli, tmp_path):
    words = ["-m", "mixer=pooling,attention", "seed=0,1", "budget=params", "budget.by=mlp_ratio", *TINY, HERE]
    done = cli("train", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    words_of_match = r"attention: model\.mlp_ratio=2\.0, 13\d,\d{3} parameters \(-0\.\d% of the budget\)"
    assert re.search(words_of_match, done.stdout)
    results = {p.parent.name[:3]: json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/result.json")}
    assert abs(results["att"]["params"] / results["poo"]["params"] - 1) < 0.01
    assert results["att"]["config"]["budget"]["match"] == "none"  # an ordinary cell
    done = cli("train", *words)
    assert "4 runs, 4 finished, 0 to do" in done.stdout


def test_a_budget_is_no_confound():
    points = expand(["mixer=pooling,attention", "budget=params", "budget.by=mlp_ratio"])
    assert points[0].config.study.analysis.tuned == ["model.mlp_ratio"]
    assert [point.match is not None for point in points] == [True, True]
    assert "budget.match=none" in points[1].overrides


def test_what_costs_show_before_anything_is_launched(cli):
    done = cli("cost", "mixer=spatial_mlp", "model=s12", "data=imagenet")
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if "spatial_mlp" in line).split()
    params, memory = int(row[1].replace(",", "")), float(row[-1])
    assert params == 11_915_176 + 2 * (3136**2 + 784**2 + 49**2) + 6 * 196**2
    assert memory > 16 * params / 2**30


def test_memory_is_that_of_weights_and_of_what_the_backward_pass_needs():
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    x = torch.randn(7, 10)
    assert saved_bytes(net, x) == 4 * 7 * (10 + 20)  # the input, and one activation that two layers share
    tokens, dim = 24**2, 64  # attention is fused: it keeps q, k and v, and no N x N weights
    assert saved_bytes(Attention(dim), torch.randn(1, dim, 24, 24)) < 4 * 8 * tokens * dim < 4 * tokens**2 * 2
    small, large = (memory(f"recipe.batch={batch}") for batch in (10, 20))
    weights = 16 * cell_cost.cost_of(compose("mixer=pooling")).params
    assert small - weights == (large - weights) / 2 > 0
    assert weights < memory("recipe.batch=20", "runtime.checkpoint_blocks=true") < large
    assert memory("recipe.batch=20", "recipe.freeze=stem") < large
