"""What a GPU has to do. Skipped where there is none; two GPUs for the last ones."""

import signal
import warnings
from pathlib import Path

import pytest
import torch
from conftest import MIXERS, TINY, compose, configured
from test_devices import compare
from torch.optim.swa_utils import AveragedModel
from trained import equal, go, steps_of, stop_at

from metaformer.data import batches
from metaformer.data.batches import Batches
from metaformer.data.images import load
from metaformer.mixers import NeighbourhoodAttention
from metaformer.probing import selection
from metaformer.runs.finished import finished
from metaformer.studies import cell_cost
from metaformer.tasks.classification import Classifier
from metaformer.tasks.segmentation import Segmenter
from metaformer.training.evaluation import evaluate

pytestmark = pytest.mark.gpu
GPU = ("runtime.accelerator=gpu", "recipe.epochs=1")
EVERYTHING = (
    *("recipe.ema=0.9", "recipe.mixup=0.4", "recipe.cutmix=1.0", "recipe.flip=true", "model.drop_path=0.2"),
    *("recipe.clip_grad=1.0", "recipe.epochs=2"),
)
PHOTOS = ("recipe.scale=[0.5,1]", "recipe.crop=0")  # read one at a time, in pinned memory
two_gpus = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="there is one GPU here, and it takes two")


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here (torch.cuda.is_available)")


@pytest.mark.parametrize(
    ("words", "within"),
    [
        ([], 0.02),
        (["runtime.tf32=true"], 0.2),
        (["recipe.precision=bf16"], 0.2),
        (["recipe.precision=fp16"], 0.2),
        (["runtime.compile=true"], 0.02),
        (["runtime.compile=true", "runtime.graph=true"], 0.02),
        (["runtime.compile=true", "runtime.tf32=true", "recipe.precision=bf16"], 0.2),
    ],
)
def test_a_run_ends_near_that_of_a_processor(words, within):
    plain = go("runtime.accelerator=cpu", "recipe.epochs=1", "runtime.runs=plain")
    result = go(*GPU, *words).result
    assert result.device == torch.cuda.get_device_name()
    assert result.versions["cuda"] == torch.version.cuda
    assert result.compiled is ("runtime.compile=true" in words)
    assert result.metrics["test_loss"] == pytest.approx(plain.result.metrics["test_loss"], abs=within)


@pytest.mark.parametrize("words", [[], PHOTOS, ["recipe.precision=bf16"], ["recipe.precision=fp16"]])
def test_the_same_run_has_the_same_bits_also_after_a_stop(monkeypatch, words):
    whole = go(*GPU, *EVERYTHING, *words, "runtime.runs=whole").folder
    again = go(*GPU, *EVERYTHING, *words, "runtime.runs=again").folder
    assert equal(whole, again)
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=7)
        with pytest.raises(SystemExit):
            go(*GPU, *EVERYTHING, *words)
    seen = steps_of(monkeypatch)
    assert equal(whole, go(*GPU, *EVERYTHING, *words).folder)
    assert seen[0] == 8


@pytest.mark.parametrize("words", [[], PHOTOS, ["recipe.precision=bf16", "recipe.clip_grad=1.0", "recipe.mixup=0.4"]])
def test_no_value_comes_back_between_two_steps(monkeypatch, words):
    """Nor while a batch is made. torch warns of every such wait, or raises."""
    modes = []

    def begin(self, batch, batch_idx):
        modes.append("default" if self.trainer.is_last_batch else "error")
        torch.cuda.set_sync_debug_mode(modes[-1])
        seeded(self, batch, batch_idx)

    seeded = Classifier.on_train_batch_start
    monkeypatch.setattr(Classifier, "on_train_batch_start", begin)
    try:
        go(*GPU, *words)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert modes == 17 * ["error"] + ["default"]


def test_batches_made_on_the_gpu_are_those_of_a_processor():
    images = load(compose("data=digits").data)
    there = images.on(torch.device("cuda"))
    assert there.train.pixels.is_cuda
    for crop, flip in ((0, False), (2, True)):
        options = {"seed": 3, "passes": [(1, range(len(images.train) // 64))], "crop": crop, "flip": flip}
        both = [list(Batches(data, 64, **options)) for data in (images, there)]
        for (x, y), (mine, labels) in zip(*both, strict=True):
            assert torch.equal(y, labels.cpu())
            assert torch.allclose(x, mine.cpu(), rtol=0, atol=1e-6)


def test_the_average_of_the_weights_is_on_the_gpu(monkeypatch):
    seen = set()
    update = AveragedModel.update_parameters

    def watch(average, model):
        seen.add(next(average.module.parameters()).device.type)
        update(average, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", watch)
    go(*GPU, "recipe.ema=0.9")
    assert seen == {"cuda"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_clipped_before_a_fused_optimizer(monkeypatch, precision):
    fused = []
    monkeypatch.setattr(
        Classifier, "on_train_end", lambda self: fused.append(self.trainer.optimizers[0].param_groups[0].get("fused"))
    )
    words = ("recipe.clip_grad=0.1", f"recipe.precision={precision}")
    assert go(*GPU, *words).status == "finished"
    assert bool(fused[0]) is (precision == "fp32")


def test_a_graph_keeps_what_several_batches_say(monkeypatch):
    """The next batch is written where the outputs of a graph are."""
    monkeypatch.setattr(batches, "EVAL_BATCH", 100)
    words = (*GPU, "runtime.compile=true")
    metrics = [go(*words, *own).result.metrics for own in ((), ("runtime.graph=true", "runtime.runs=graph"))]
    assert metrics[1]["val_loss"] == pytest.approx(metrics[0]["val_loss"], abs=1e-3)


def test_the_norm_that_is_told_in_fp16_is_that_of_the_gradients(monkeypatch):
    norms = []
    monkeypatch.setattr(Classifier, "on_before_optimizer_step", lambda self, optimizer: norms.append(norm(self)))

    def norm(module):
        return float(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))

    for precision in ("fp32", "fp16"):
        go(*GPU, f"recipe.precision={precision}")
    assert norms[-1] == pytest.approx(norms[len(norms) // 2 - 1], rel=0.2)


MASKS = ("task=segmentation", "data=fashion_mosaics", "data.train=192", "model=tiny_pyramid")


@pytest.mark.parametrize("words", [(), ("task.dice=0.3", "recipe.precision=bf16")])
def test_segmentation_has_the_same_bits_also_after_a_stop(monkeypatch, words):
    whole = go(*GPU, *MASKS, *words, "runtime.runs=whole").folder
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=2, kind=Segmenter)  # of 3
        with pytest.raises(SystemExit):
            go(*GPU, *MASKS, *words)
    assert equal(whole, go(*GPU, *MASKS, *words).folder)


@pytest.mark.parametrize("size", [9, 14])
def test_neighbourhood_attention_has_a_kernel_for_each_shape(size):
    """More shapes than torch compiles by itself; equal to what a processor computes under a mask."""
    mixer = NeighbourhoodAttention(32, kernel_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(1, 11):
            x = torch.randn(n, 32, size, size)
            expected = mixer.cpu()(x)
            torch.testing.assert_close(mixer.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_trains_in_deterministic_mode(mixer):
    """torch raises at an op that has no deterministic form on a GPU."""
    words = (*GPU, f"mixer={mixer}", "data.train=192")
    assert equal(go(*words).folder, go(*words, "runtime.runs=again").folder)


def test_several_runs_on_a_gpu_are_those_that_have_one_for_themselves(cli, tmp_path):
    words = (*TINY, *GPU, "-m", "mixer=identity,pooling", "seed=0,1")
    for folder, at_once in (("alone", 1), ("together", 4)):
        done = cli("train", *words, f"runtime.per_gpu={at_once}", f"runtime.runs={folder}")
        assert done.returncode == 0, done.stderr
    alone = [path.parent for path in tmp_path.glob("alone/*/result.json")]
    assert len(alone) == 4
    assert all(equal(run, tmp_path / "together" / run.name) for run in alone)


def test_what_looks_at_a_trained_network_does_so_on_the_gpu():
    run = go(*GPU)
    measured = evaluate(run.result.config, run.folder / "weights.pt")
    assert measured.metrics["test_accuracy"] == pytest.approx(run.result.metrics["test_accuracy"], abs=0.01)
    probed = selection.probe(finished(run.folder, []), 1)
    assert probed.accuracy == pytest.approx(run.result.metrics["val_accuracy"], abs=0.01)


def test_a_profile_is_that_of_the_gpu():
    assert torch.cuda.get_device_name() in go(*GPU, "debug=profile").shown.title
    assert torch.cuda.get_device_name() in go(*GPU, *MASKS, "debug=profile").shown.title  # whose loss is over pixels


@pytest.mark.parametrize("mixer", ["neighbourhood_attention", "state_space"])
def test_a_mixer_with_a_kernel_is_compiled_whole(mixer):
    net = configured(mixer, 32, (14, 14)).cuda()
    x = torch.randn(2, 32, 14, 14, device="cuda")
    for train in (True, False):
        with torch.set_grad_enabled(train):
            assert torch._dynamo.explain(net.train(train))(x).graph_break_count == 0


def test_costs_are_measured_on_the_gpu(cli):
    words = ("data=digits", "runtime.accelerator=gpu")
    done = cli("cost", *words, "cost.throughput=true")
    assert done.returncode == 0, done.stderr
    for compiled in ("false", "true"):  # as budget=time measures it
        torch.cuda.reset_peak_memory_stats()
        assert 0 < cell_cost.step_seconds(compose(*words, f"runtime.compile={compiled}")) < 1
        assert torch.cuda.max_memory_allocated() > 0
    timed = cli("cost", "-m", *words, "mixer=pooling,identity", "budget=time", "budget.target=pooling")
    assert timed.returncode == 0, timed.stderr  # by a process of its own, with a place on the GPU


@two_gpus
def test_two_gpus_are_one_up_to_rounding(cli, tmp_path):
    for words in ((), ("runtime.devices=2", "runtime.runs=two")):
        done = cli("train", *TINY, "runtime.accelerator=gpu", *words)
        assert done.returncode == 0, done.stderr
    compare(tmp_path)


@two_gpus
def test_weights_in_parts_on_two_gpus(cli, tmp_path):
    words = (*TINY, "runtime.accelerator=gpu", "recipe.clip_grad=0.5", "recipe.select=best")
    for own in ((), ("runtime.devices=2", "runtime.strategy=fsdp", "runtime.runs=two")):
        done = cli("train", *words, *own)
        assert done.returncode == 0, done.stderr
    saved = torch.load(next(tmp_path.glob("two/*/weights.pt")), weights_only=True)
    assert {value.device.type for value in saved["state_dict"].values()} == {"cpu"}
    compare(tmp_path)


@two_gpus
def test_batch_norm_on_two_gpus(cli, tmp_path):
    words = (*TINY, *GPU, "model.norm=batch", "runtime.devices=2")
    done = cli("train", *words)
    assert done.returncode == 2, done.stderr
    assert "is a BatchNorm" in done.stderr
    done = cli("train", *words, "trainer.sync_batchnorm=true")
    assert done.returncode == 0, done.stderr
    assert len(list(Path(tmp_path).glob("runs/*/result.json"))) == 1
