"""What is set for a GPU, told by a device that is not there."""

import re
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import compose
from lightning import LightningDataModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.cudagraph_utils import format_default_skip_message, log_cudagraph_skip_and_bump_counter
from trained import equal, go

from metaformer.analysis.lint import RECORDED
from metaformer.config.schema import Recipe
from metaformer.data.images import load
from metaformer.data.module import ImageData
from metaformer.models.build import check_split
from metaformer.models.compiling import compiling
from metaformer.models.precision import deterministic
from metaformer.studies.cell_cost import step_seconds
from metaformer.system.errors import ConfigError
from metaformer.system.seeds import derive, seed_globals, seeded
from metaformer.tasks.build import build as learner
from metaformer.tasks.divergence import first_not_finite
from metaformer.training import callbacks, trainer
from metaformer.training.memory import forget_peak, more_parts, taken
from metaformer.training.stop_and_resume import Checkpoints, Saved, agreed, check_parts


@pytest.mark.parametrize("tf32", [False, True])
def test_products_and_convolutions_have_one_precision(monkeypatch, tf32):
    """cuDNN's own switch is on by default: a mixer of convolutions would be rounded and one of products would not."""
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    config = compose(f"runtime.tf32={str(tf32).lower()}", "runtime.accelerator=gpu")
    with pytest.raises(ConfigError, match=r"runtime\.accelerator=gpu"):
        trainer.make_trainer(config.runtime, config.recipe)
    assert said == ["high" if tf32 else "highest"]
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize(
    ("there", "accelerator", "device"), [(True, "auto", "cuda"), (True, "cpu", "cpu"), (False, "auto", "cpu")]
)
def test_the_average_of_the_weights_lives_where_they_do(monkeypatch, tmp_path, there, accelerator, device):
    made: list[object] = []

    class Average(EMAWeightAveraging):
        def __init__(self, device: str, decay: float) -> None:
            made.append(device)
            super().__init__(decay=decay)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(callbacks, "EMAWeightAveraging", Average)
    config = compose("recipe.ema=0.9", f"runtime.accelerator={accelerator}")
    callbacks.callbacks_of(tmp_path, config, {}, show=False)
    assert made == [device]


def test_all_devices_go_on_from_what_the_first_one_found():
    """Each for itself might see a checkpoint that another is about to remove."""
    of_the_first, calls = Saved(Path("last.ckpt"), 7, 3, 2), []

    class Launcher:
        def launch(self, function, trainer):
            calls.append("launch")
            return function()

    strategy = SimpleNamespace(
        launcher=Launcher(), setup_environment=lambda: calls.append("meet"), broadcast=lambda own: of_the_first
    )
    assert agreed(SimpleNamespace(strategy=strategy, world_size=2), None) is of_the_first
    assert calls == ["launch", "meet"]
    strategy.launcher = None  # of FSDP, where somebody else has started the processes
    assert agreed(SimpleNamespace(strategy=strategy, world_size=2), None) is of_the_first
    assert agreed(SimpleNamespace(strategy=strategy, world_size=1), None) is None


@pytest.mark.parametrize(("devices", "kind", "expected"), [(2, "cuda", [10, 20]), (2, "cpu", [*range(1, 22)]),
                                                           (1, "cuda", [*range(1, 22)])])  # fmt: skip
def test_several_gpus_agree_on_a_stop_every_tenth_step(monkeypatch, devices, kind, expected):
    seen, saver = [], Checkpoints(Path(), 15, {})
    monkeypatch.setattr(saver, "_agreed", lambda trainer: seen.append(trainer.global_step) or 0)
    for step in range(1, 22):
        trainer = SimpleNamespace(
            world_size=devices, strategy=SimpleNamespace(root_device=torch.device(kind)), global_step=step,
            accumulate_grad_batches=1, is_last_batch=False,
        )  # fmt: skip
        saver.on_train_batch_end(trainer, None, None, None, step - 1)
    assert seen == expected


def test_a_checkpoint_whose_parts_do_not_go_with_the_devices_of_today():
    """Before, 64 images in 4 parts on 3 devices were 60."""
    config = compose("recipe.batch=66", "runtime.devices=3")
    check_parts(Saved(Path("last.ckpt"), 7, 1, 2), config)
    with pytest.raises(ConfigError, match=r"last\.ckpt: was saved with 4 parts of a.*3 devices x 4 acc.*or remove"):
        check_parts(Saved(Path("last.ckpt"), 7, 1, 4), config)


def test_batch_norm_sees_a_whole_batch():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    one = compose()
    check_split(net, one, 1)
    together = replace(one, trainer={"sync_batchnorm": True}, runtime=replace(one.runtime, devices=4))
    check_split(net, together, 1)
    for config, parts in ((one, 2), (together, 2), (replace(together, trainer={}), 1)):
        with pytest.raises(ConfigError, match=r"0 is a BatchNorm, and each of \d parts"):
            check_split(net, config, parts)


def test_what_is_not_finite_is_found_in_a_compiled_network_too(monkeypatch):
    """Its compiled forward calls no hooks that came later."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[0].weight.data.fill_(float("nan"))
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda x: torch.zeros(()))
    with compiling(net, True):
        assert net(torch.ones(1, 2)).ndim == 0
        assert first_not_finite(net, torch.ones(1, 2)) == "0.weight"
    assert net(torch.ones(1, 2)).shape == (1, 2)


def test_each_cell_of_a_process_is_compiled_anew(monkeypatch):
    """Its seeds share what is compiled; cells that shared it would come to torch's limit of eight variants."""
    calls = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda call, **_: calls.append("compile") or call)
    for cell in ("pooling", "pooling", "attention", None, None, "pooling"):
        with compiling(torch.nn.Linear(1, 1), True, cell):
            calls.append(cell)
        with compiling(torch.nn.Linear(1, 1), False, cell):
            pass
    first = ["reset", "compile", "pooling"]
    alone = ["reset", "compile", None]
    assert calls == [*first, "compile", "pooling", "reset", "compile", "attention", *alone, *alone, *first]


def test_a_graph_is_a_mode_of_the_compiler_that_says_where_there_is_none(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append(options["options"]) or call)
    for graph in (False, True):
        with compiling(torch.nn.Linear(1, 1), True, graph=graph):
            pass
    reduced = torch._inductor.list_mode_options("reduce-overhead")
    assert asked == [None, reduced | {"triton.cudagraph_or_error": True}]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("mutated inputs (1 instances). Found from : \n   File 'mine.py', line 3, in forward\n    self.seen.add_(1)\n",
         "mutated inputs (1 instances): self.seen.add_(1)"),
        ("cpu device (primals_1)", "cpu device (primals_1)"),
    ],
)  # fmt: skip
def test_a_network_of_which_there_is_no_graph_is_an_error(monkeypatch, told, expected):
    def broken(call, **_):
        def run(*args):
            try:
                with torch._inductor.config.patch("triton.cudagraph_or_error", True):
                    log_cudagraph_skip_and_bump_counter(format_default_skip_message(told))
            except RuntimeError as error:
                raise BackendCompilerFailed(broken, error, None) from error

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=re.escape(f"no CUDA graph of this network ({expected}); without it")):
        go("recipe.epochs=1", "runtime.compile=true", "runtime.graph=true")


def test_a_gpu_that_is_too_small_says_how_much_a_run_takes(monkeypatch):
    forgotten, gib = [], 2**30
    assert taken(compose()) == ""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 20 * gib)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 19 * gib)
    words = "; it took 20.0 of the 80.0 GiB of the GPU, of which others have 60.0"
    assert taken(compose()) == words
    assert taken(compose("runtime.per_gpu=4")) == f"{words}: a runtime.per_gpu below 4 leaves it more"
    with pytest.raises(MemoryError, match=r"64 images on a device .* others have 60\.0; runtime\.accumulate=2 halves"):
        more_parts(compose(), 1)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: forgotten.append(name))
    held = type("Held", (), {})()  # like a Trainer and its parts, which hold the images of a run before
    held.itself = held
    weakref.finalize(held, forgotten.append, "held")
    del held
    forget_peak()
    assert forgotten == ["held", "empty_cache", "reset_peak_memory_stats"]


def test_what_is_kept_of_a_batch_is_no_memory_of_the_network():
    """Where a CUDA graph puts its outputs, the next batch overwrites them."""
    config, images = compose("data=digits"), load(compose("data=digits").data)
    module = learner(config, torch.nn.Flatten(), images, None)
    batch = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    logits, _ = module.keep(batch)
    assert logits.data_ptr() != batch[0].data_ptr()


def test_new_tensors_are_not_filled_before_they_are_written():
    go("recipe.epochs=1")
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_what_is_deterministic_within_is_as_it_was_after():
    def modes() -> list[bool]:
        filled = torch.utils.deterministic.fill_uninitialized_memory
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        return [torch.are_deterministic_algorithms_enabled(), warns, filled]

    before = modes()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with deterministic():
        assert modes() == [True, False, False]
    assert modes() == [True, True, True]
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(monkeypatch, capfd):
    def broken(call, **_):
        def run(*args):
            raise BackendCompilerFailed(broken, NotImplementedError("no kernel for it\nline 2"), None)

        return run

    plain = go("recipe.epochs=1", "runtime.runs=plain")
    monkeypatch.setattr(torch, "compile", broken)
    outcome = go("recipe.epochs=1", "runtime.compile=true")
    assert "cannot be compiled (NotImplementedError: no kernel for it); training it as it is" in capfd.readouterr().err
    assert (outcome.result.compiled, outcome.result.config.runtime.compile) == (False, True)
    assert RECORDED["runtime.compile"](outcome.result) is False
    assert equal(plain.folder, outcome.folder)
    assert 0 < step_seconds(outcome.result.config) < 1  # measured as it is trained


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_runs_on_a_gpu_only(monkeypatch, device):
    """Whoever asks torch for it on a machine with a GPU starts CUDA there, also for a run on the processor."""
    config = compose("recipe.scale=[0.5,1]", "recipe.crop=0", "data=digits")
    data = ImageData(load(config.data), config.recipe, 0)
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), max_epochs=1, global_rank=0, world_size=1,
        accumulate_grad_batches=1,
    )  # fmt: skip
    data.setup("fit")
    assert {stream.loader.pin_memory for stream in data.streams.values()} == {device == "cuda"}


def test_a_batch_is_sent_beside_what_a_gpu_computes(monkeypatch):
    """The step waits for it, and its memory stays until the step has read it. What is there already is not sent."""
    calls = []

    class Part:
        def __init__(self, device):
            self.device = torch.device(device)

        def record_stream(self, stream):
            calls.append(f"kept for {stream}")

    class Aside:
        def __init__(self, device):
            calls.append(f"a stream of {device}")

        def __enter__(self):
            calls.append("begun")

        def __exit__(self, *_):
            calls.append("ended")

    class Computing:
        def wait_stream(self, stream):
            calls.append(f"waits for {type(stream).__name__}")

        def __str__(self):
            return "computing"

    def sent(self, batch, device, dataloader_idx):
        calls.append("sent")
        return tuple(Part(device) for _ in batch)

    monkeypatch.setattr(torch.cuda, "Stream", Aside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Computing())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(LightningDataModule, "transfer_batch_to_device", sent)
    data, gpu = ImageData(load(compose("data=digits").data), Recipe(), 0), torch.device("cuda", 0)
    once = ["begun", "sent", "ended", "waits for Aside", "kept for computing", "kept for computing"]
    for _ in range(2):
        data.transfer_batch_to_device((Part("cpu"), Part("cpu")), gpu, 0)
    assert calls == ["a stream of cuda:0", *once, *once]
    calls.clear()
    data.transfer_batch_to_device((Part("cuda:0"), Part("cuda:0")), gpu, 0)
    data.transfer_batch_to_device((Part("cpu"), Part("cpu")), torch.device("cpu"), 0)
    assert calls == ["sent", "sent"]


def test_the_generators_of_both_devices_are_seeded(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with torch.random.fork_rng(devices=[]):
        seed_globals(3, "step", 4)
        drawn = torch.rand(5)
        assert seeded == [derive(3, "step", 4)]
        torch.manual_seed(derive(3, "step", 4))
        assert torch.equal(drawn, torch.rand(5))


def test_the_generator_of_a_mac_is_left_as_it_was(monkeypatch):
    state = [torch.tensor([1], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: state[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda own, device: state.append(own))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: state.append(torch.tensor([2], dtype=torch.uint8)))
    with seeded(0, "mixer"):
        assert state[-1] == 2
    assert state[-1] == 1
