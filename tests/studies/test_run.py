"""One run: what it leaves, what it skips, how it fails, and that a resumed run equals an uninterrupted one."""

import json
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, compose, repository, result_of
from trained import equal, metrics, stop_at, weights

from metaformer.config.schema import Config, Logger
from metaformer.config.tasks import Task
from metaformer.config.validate import plain
from metaformer.data.images import load
from metaformer.mixers import Pooling
from metaformer.models import precision, zoo
from metaformer.models.build import build
from metaformer.runs.folder import Planned
from metaformer.runs.result import read_result, write_result
from metaformer.runs.wandb_place import absent, waiting
from metaformer.studies import refusal, worker
from metaformer.studies.points import resolve
from metaformer.studies.worker import Outcome, found, run
from metaformer.system import machine
from metaformer.system.errors import ConfigError, tell
from metaformer.system.seeds import derive
from metaformer.tasks.classification import Classifier
from metaformer.tasks.divergence import first_not_finite
from metaformer.tasks.optimization import make_optimizer
from metaformer.training import fit
from metaformer.training.debug import one_batch

CHOICES = {"mixer": "pooling", "model": "tiny", "data": "digits"}


def planned(*overrides: str) -> Planned:
    return resolve(compose(*TINY, *overrides), CHOICES)[0]


def go(*overrides: str) -> Outcome:
    return run(planned(*overrides))


def train_in(folder: str, config: Config) -> Outcome:
    return run(replace(resolve(config, CHOICES)[0], folder=Path(folder)))


def test_a_run_leaves_its_files_and_is_not_trained_twice(monkeypatch):
    outcome = go("seed=3")
    folder = outcome.folder
    assert outcome.status == "finished"
    assert folder == Path("runs") / f"pooling-tiny-digits-s3-{planned('seed=3').run_id}"
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "config.yaml", "metrics.csv", "predictions.npz", "result.json", "weights.pt"
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert result["config"] == plain(compose(*TINY, "seed=3"))
    assert read_result(folder) == outcome.result
    assert yaml.safe_load((folder / "config.yaml").read_text())["choices"] == CHOICES
    assert (result["seed"], result["threads"], result["epochs"]) == (3, 1, 2)
    assert result["params"] == sum(w.numel() for w in weights(folder).values())
    assert {"torch", "lightning", "timm", "numpy", "pillow"} <= set(result["versions"])
    stored = np.load(folder / "predictions.npz")
    assert (stored["predictions"] == stored["labels"]).mean() == pytest.approx(result["metrics"]["test_accuracy"])
    assert len(stored["labels"]) == 300
    assert [row["epoch"] for row in metrics(folder)] == ["1", "2"]

    monkeypatch.setattr(fit, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert go("seed=3").status == "found"
    assert go("seed=3", "runtime.accelerator=cpu", "study.name=other").status == "found"


def test_the_same_configuration_gives_the_same_bits_and_seed_0_is_a_seed():
    a, b = go("runtime.runs=a"), go("runtime.runs=b")
    assert equal(a.folder, b.folder)
    c = go("runtime.runs=c", "seed=1")
    assert metrics(c.folder) != metrics(a.folder)


def test_a_process_reads_the_images_of_many_runs_once(monkeypatch, tmp_path):
    """They are other ones where a file has changed, and the results are those of processes of their own."""
    read = []
    monkeypatch.setattr(fit, "load", lambda *a: read.append(a) or load(*a))
    draw = np.random.default_rng(0).integers
    for first in (0, 1):
        images = {f"{split}_images": draw(256, size=(150, 8, 8), dtype=np.uint8) for split in ("train", "test")}
        labels = {f"{split}_labels": np.arange(first, 150 + first) % 10 for split in ("train", "test")}
        np.savez(tmp_path / "mine.npz", **images, **labels)
        for seed in (0, 1):
            words = ("data=npz", f"data.root={tmp_path}/mine.npz", "data.size=8", "recipe.epochs=1")
            kept = go(*words, f"seed={seed}", "runtime.runs=kept").folder
        assert len(read) == 1 + first
    monkeypatch.setattr(worker, "_read", {})
    assert equal(kept, go(*words, f"seed={seed}", "runtime.runs=anew").folder)


def test_an_interrupted_run_resumes_to_the_same_bits(monkeypatch):
    overrides = ("recipe.epochs=3", "model.drop_path=0.2")
    whole = go(*overrides, "runtime.runs=whole").folder

    step = Classifier.training_step

    def break_in_the_second_epoch(self, batch):
        if self.global_step == 25:  # of 18 an epoch
            raise RuntimeError("the cable was pulled")
        return step(self, batch)

    monkeypatch.setattr(Classifier, "training_step", break_in_the_second_epoch)
    with pytest.raises(RuntimeError, match="the cable was pulled"):
        go(*overrides)
    folder = next(Path("runs").glob("*-*"))
    failed = json.loads((folder / "failed.json").read_text())
    assert failed["reason"] == "RuntimeError: the cable was pulled"
    assert "break_in_the_second_epoch" in failed["traceback"]
    assert (folder / "last.ckpt").exists()
    assert not (folder / "result.json").exists()
    steps = []
    monkeypatch.setattr(Classifier, "training_step", lambda self, b: (steps.append(self.global_step), step(self, b))[1])
    assert go(*overrides).status == "finished"
    assert steps[0] == 18  # from the end of the first epoch, not from the start
    assert equal(folder, whole)
    assert not (folder / "failed.json").exists()
    assert not (folder / "last.ckpt").exists()


def test_a_resumed_run_keeps_its_number_of_threads(monkeypatch):
    step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda self, b: 1 / 0 if self.global_step == 20 else step(self, b))
    with pytest.raises(ZeroDivisionError):
        go()
    monkeypatch.setattr(Classifier, "training_step", step)
    try:
        assert go("runtime.threads=2").result.threads == 1
    finally:
        torch.set_num_threads(1)


def test_force_trains_again():
    first = go()
    for name in ("rank1.log", "run.log"):
        (first.folder / name).write_text("of before")
    again = go("runtime.force=true")
    assert again.status == "finished"
    assert again.result.metrics == first.result.metrics
    assert (first.folder / "rank1.log").exists()  # another process of the run may be writing it by now
    assert not (first.folder / "run.log").exists()


def test_a_run_that_a_cluster_starts_again_is_not_forced(monkeypatch):
    monkeypatch.setattr(machine, "restarted", lambda: True)
    assert [go("recipe.epochs=1", "runtime.force=true").status for _ in range(2)] == ["finished", "found"]


def test_nobody_knows_whether_a_resumed_run_was_alone(monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=1)
        with pytest.raises(SystemExit):
            go("recipe.epochs=1")
    result = go("recipe.epochs=1").result
    assert (result.other_runs, result.other_cores) == (None, None)


def test_a_result_that_cannot_be_read_is_named():
    folder = go().folder
    (folder / "result.json").write_text('{"metrics": ')
    with pytest.raises(ConfigError, match=r"result\.json: cannot be read .*; remove it"):
        read_result(folder)


def test_the_learning_rate_warms_up_peaks_and_ends_at_its_least():
    seen = []
    config = compose(*TINY, "recipe.epochs=4", "recipe.lr=1e-2", "recipe.warmup_epochs=1")
    step = Classifier.training_step

    def watched(self, batch):
        seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", watched)
        folder = train_in("runs/x", config).folder
    assert len(seen) == 4 * 18
    assert seen[0] == pytest.approx(1e-6)
    assert seen[9] == pytest.approx(5e-3, rel=0.01)
    assert seen.index(max(seen)) == 17
    assert max(seen) == pytest.approx(1e-2 * 17 / 18, rel=1e-3)
    assert seen[18] == pytest.approx(1e-5 + (1e-2 - 1e-5) * (1 + 0.5**0.5) / 2)  # the cosine's clock ran all the while
    assert seen[-1] < 2e-5
    assert float(metrics(folder)[-1]["lr"]) == pytest.approx(seen[-1])  # of the last step


def test_every_step_seeds_the_global_generators_from_its_place():
    drawn = {}
    config = compose(*TINY, "recipe.epochs=1", "seed=5")
    step = Classifier.training_step

    def watched(self, batch):
        drawn[self.global_step] = (torch.rand(()).item(), np.random.rand(), random.random())
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", watched)
        train_in("runs/x", config)
    seed = derive(5, "step", 7)
    torch.manual_seed(seed)
    assert drawn[7] == (torch.rand(()).item(), np.random.RandomState(seed % 2**32).rand(), random.Random(seed).random())


def test_norms_biases_and_scales_do_not_decay():
    from timm.optim import param_groups_weight_decay

    expected = {
        "poolformer_s12": {0.0: (103, 39_656), 0.05: (29, 11_875_520)},
        "metaformer_ppaa_s12": {0.0: (111, 42_600), 0.05: (46, 16_492_992)},  # its position embedding decays
    }
    for name, wanted in expected.items():
        with torch.device("meta"):
            groups = param_groups_weight_decay(zoo.create(name), 0.05)
        assert {g["weight_decay"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups} == wanted
    module = Classifier(torch.nn.Conv2d(1, 1, 1), compose().recipe, classes=10, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        trainer = {"estimated_stepping_batches": 10, "max_epochs": 2, "max_steps": -1}
        patch.setattr(Classifier, "trainer", type("T", (), trainer))
        optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer).__name__ == "AdamW"
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0.0, 0.05]


class Scaled(torch.nn.Module):
    """Of two tables one does not decay."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kept, self.decays = (torch.nn.Parameter(torch.ones(1, dim, 1, 1)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kept * self.decays

    def no_weight_decay(self) -> set[str]:
        return {"kept"}


@pytest.mark.parametrize("segments", [False, True])
def test_a_mixer_says_what_of_it_does_not_decay(segments):
    task = Task("segmentation" if segments else "classification")
    model = compose("model=tiny_pyramid").model
    net = build(model, {"_target_": f"{__name__}.Scaled"}, 0, shape=(1, 32, 32), classes=3, task=task)
    optimizer = make_optimizer(net, compose("recipe.weight_decay=0.1").recipe, on_gpu=False)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decays = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    mixers = [name.rpartition(".")[0] for name in names.values() if name.endswith(".mixer.kept")]
    assert len(mixers) == sum(model.depths)
    assert not {f"{mixer}.kept" for mixer in mixers} & decays
    assert {f"{mixer}.decays" for mixer in mixers} <= decays


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"recipe\.optimizer=admw: not one of timm's; did you mean 'adamw'"):
        go("recipe.optimizer=admw")


def test_bf16():
    result = go("recipe.precision=bf16", "mixer=fourier").result
    assert result.metrics["train_loss"] < 2.3
    assert result.metrics["train_loss"] != go("mixer=fourier").result.metrics["train_loss"]


def test_frozen_parameters_stay_and_are_counted_apart():
    outcome = go("mixer=random")
    assert outcome.result.params - outcome.result.trainable == 4 * 4**2
    matrix = weights(outcome.folder)["stages.0.blocks.0.mixer.matrix"]
    torch.testing.assert_close(matrix.sum(1), torch.ones(4))


def test_debug_fast_and_overfit_leave_no_run_that_could_be_mistaken_for_one():
    fast = go("debug=fast")
    assert fast.folder == Path("runs/debug-fast")
    overfit = go("debug=overfit", "recipe.batch=32")
    assert overfit.result.metrics["train_accuracy"] == 1.0
    assert overfit.result.epochs < 200
    assert not list(Path("runs").glob("*-digits-*"))
    assert not Path("runs/ledger.jsonl").exists()  # which tells what was known before a study
    assert go("debug=fast").status == "finished"  # never found
    assert go("debug=fast", "mixer=identity").status == "finished"  # as another configuration in that folder


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_more_processes_than_devices_are_refused(monkeypatch, variable):
    """As torchrun and srun start them."""
    monkeypatch.setenv(variable, "2")
    with pytest.raises(
        ConfigError, match=rf"runtime.devices=1, runtime.nodes=1: expected as many processes, 1; {variable} says 2"
    ):
        go()
    assert not Path("runs").exists()


def test_debug_profile_is_a_table():
    table = go("debug=profile").shown
    assert any("conv" in cell for cell in table.columns[0]._cells)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixer=attention", "mixer.head_dim=24"], "dim=64 is not divisible by head_dim=24"),
        (["mixer=custom", "mixer._target_=torch.nn.AvgPool2d", "+mixer.kernel_size=2"],
         "mixer AvgPool2d at stages.0.blocks.0 returned [2, 64, 1, 1], expected [2, 64, 2, 2]"),
        (["mixer=custom", "mixer._target_=torch.nn.Softplus", "+mixer.beta=big"], "mixer.beta=big: expected float"),
        (["mixer=custom", "mixer._target_=torch.nn.GLU", "+mixer.dim=1"], "mixer.dim: GLU has no such option"),
        (["mixer=custom", "mixer._target_=torch.nn.Bilinear"], "Bilinear needs in1_features"),
        (["recipe.batch=5000"], "recipe.batch=5000: there are 1197 training images"),
        (["data.val=1", "study.analysis.metric=test_macro_auroc"],
         "study.analysis.metric=test_macro_auroc: is of two classes or more, and val has one alone"),
        (["model.stem=[16,16,0]"], "8x8 is too small for a patch of 16"),
        (["data.val=2000"], "data.val=2000: would leave no training image of some class"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_and_leaves_no_folder(overrides, message):
    with pytest.raises(ConfigError) as error:
        go(*overrides)
    assert message in str(error.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x[:, :1]", "returned [2, 1, 2, 2], expected [2, 64, 2, 2]"),
        ("return x, x", "returned tuple, expected [2, 64, 2, 2]"),
        ("return x.half()", "returned torch.float16, expected torch.float32"),
        ("return x.log()", "returned NaN or infinity, expected finite numbers"),
        ("return x.mul_(2)", "wrote to its input, expected that it is left as it was"),
        ("return x.view(-1, 64, 7, 7)", "fails on [2, 64, 2, 2]: RuntimeError: shape '[-1, 64, 7, 7]' is invalid"),
    ],
)
def test_a_mixer_that_breaks_the_contract_gets_one_line(body, message, monkeypatch):
    module = f"breaks{abs(hash(body))}"
    source = f"from torch import nn\nclass Mine(nn.Module):\n    def forward(self, x):\n        {body}\n"
    Path(f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(ConfigError) as error:
        go("mixer=custom", f"mixer._target_={module}.Mine")
    assert f"mixer Mine at stages.0.blocks.0 {message}" in str(error.value)
    assert not Path("runs").exists()


def test_wandb_gets_a_group_a_tag_an_id_and_every_epoch(monkeypatch):
    import wandb

    calls = {"log": []}

    class Fake:
        summary: dict = {}  # noqa: RUF012

        def log(self, row, step=None):
            calls["log"].append((step, row))

        def finish(self, exit_code):
            calls["exit"] = exit_code

    monkeypatch.setattr(wandb, "init", lambda **kwargs: calls.update(kwargs) or Fake())
    outcome = go("logger=wandb", "study.name=mine")
    folder, cell = outcome.folder, outcome.result.cell_id
    assert (calls["id"], calls["name"], calls["group"]) == (
        folder.name[-12:],
        folder.name,
        f"pooling-tiny-digits-{cell}",
    )
    assert (calls["tags"], calls["mode"], calls["exit"]) == (["mine", "mixer:pooling"], "online", 0)
    sent = calls["config"]
    assert [sent[key] for key in ("mixer", "model", "data", "cell", "study", "seed")] == [
        "pooling", "tiny", "digits", calls["group"], "mine", 0
    ]  # fmt: skip
    assert (sent["mixer/pool_size"], sent["recipe/epochs"], sent["recipe/distill/alpha"]) == (3, 2, 0.5)
    assert not any(isinstance(value, dict) or "." in key for key, value in sent.items())
    curve = [(step, row) for step, row in calls["log"] if "epoch" in row]
    last = next(row for _, row in calls["log"] if "confusion" in row)
    assert [(step, row["epoch"]) for step, row in curve] == [(18, 1), (36, 2)]
    assert {"val_accuracy", "val_macro_auroc", "val_calibration_error"} <= curve[0][1].keys()
    assert sum(n for _, _, n in last["confusion"].table.data) == 300
    assert Fake.summary["recall/7"] > 0
    assert json.loads((folder / "wandb.json").read_text())["tags"] == ["mine", "mixer:pooling"]
    assert Fake.summary["final/test_accuracy"] > 0


def test_wandb_that_fails_does_not_end_a_training(monkeypatch, capfd):
    import wandb

    class Broken:
        @property
        def summary(self):
            raise OSError("disk full")

        def log(self, row, step):
            raise ConnectionError("unreachable")

        def finish(self, exit_code):
            raise ConnectionError("unreachable")

    monkeypatch.setattr(wandb, "init", lambda **kwargs: Broken())
    outcome = go("logger=wandb")
    assert outcome.status == "finished"
    assert "wandb: ConnectionError: unreachable; training goes on" in capfd.readouterr().err
    assert not (outcome.folder / "wandb.json").exists()

    def no_login(**kwargs):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", no_login)
    assert go("logger=wandb", "seed=1").status == "finished"


def test_wandb_offline_for_real(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = go("logger=wandb", "logger.mode=offline").folder
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(waiting(folder)) == 1
    assert absent([folder], Logger(mode="offline")) == [folder]  # it is on no server yet


def test_the_embedded_set_can_be_learnt():
    """Not a ranking: pooling on a fifth of the images, far above chance."""
    config = compose("data.train=1600", "recipe.epochs=3", "runtime.threads=1", "runtime.progress=false")
    result = train_in("runs/x", config).result
    assert result.metrics["test_accuracy"] > 0.25


def test_the_repository_is_what_git_state_describes():
    from metaformer.system.version import git_state

    if not (repository() / ".git").exists():
        pytest.skip("not a checkout")
    assert len(git_state()["commit"]) == 40


DRAWS = ("identity", "attention", "random", "sepconv", "afno", "spatial_reduction")  # none, and more and more numbers


def test_every_mixer_sees_the_same_batches():
    seen = {}
    step = Classifier.training_step

    def watched(self, batch):
        seen.setdefault(run, []).append((batch[0].clone(), batch[1].clone()))
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", watched)
        for mixer in DRAWS:
            run = mixer
            go(f"mixer={mixer}", "recipe.crop=1")
    assert {len(batches) for batches in seen.values()} == {36}
    for mixer in DRAWS:
        for (x, y), (u, v) in zip(seen[mixer], seen["identity"], strict=True):
            assert torch.equal(x, u)
            assert torch.equal(y, v)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe.lr=0.5", r"recipe\.lr 0\.5, not 0\.008"),
        ("mixer.pool_size=7", r"mixer\.pool_size 7, not 3"),
        ("mixer=identity", r"mixer\._target_ metaformer\.mixers\.Identity, not metaformer\.mixers\.Pooling"),
        ("data.train=100", r"data\.train 100, not None"),
        ("seed=9", r"seed 9, not 0"),
    ],
)
def test_a_finished_run_of_another_configuration_under_the_same_id_is_refused(override, told):
    mine, other = planned(), compose(*TINY, override)
    mine.folder.mkdir(parents=True)
    write_result(mine.folder, result_of(0, 0.5, mine.run_id, config=other))
    with pytest.raises(ConfigError, match=rf"result\.json: is of another configuration \({told}\); remove it"):
        found(mine)
    with pytest.raises(ConfigError, match="is of another configuration"):
        run(mine)
    assert read_result(mine.folder).config == other


def test_what_does_not_count_for_the_result_may_differ_from_a_finished_run():
    mine, other = planned(), compose(*TINY, "runtime.threads=3", "study.name=other", "logger=wandb")
    assert found(mine) is None
    mine.folder.mkdir(parents=True)
    write_result(mine.folder, result_of(0, 0.5, mine.run_id, config=other))
    assert found(mine).config == other


def test_a_run_that_diverges_fails_and_says_where():
    with pytest.raises(
        FloatingPointError, match=r"diverged: loss is nan at step 2 \(epoch 1\), lr [\d.e+]+; first not"
    ):
        go("recipe.lr=1e18", "model.norm=none", "recipe.warmup_epochs=0")
    folder = next(Path("runs").glob("*-*"))
    assert "diverged" in json.loads((folder / "failed.json").read_text())["reason"]
    assert not (folder / "result.json").exists()


def test_the_layer_that_first_goes_wrong_is_named_and_the_last_good_checkpoint_kept(monkeypatch):
    monkeypatch.setattr(Pooling, "forward", breaks_at(25, Pooling.forward))
    where = r"epoch 2\), .*first not finite: the output of stages\.0\.blocks\.0\.mixer \(Pooling\)"
    with pytest.raises(FloatingPointError, match=where):
        go("recipe.epochs=3")
    folder = next(Path("runs").glob("*-*"))
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
    with torch.no_grad():
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        net[1].weight.fill_(float("nan"))
    assert first_not_finite(net, torch.ones(1, 2)) == "1.weight"


def breaks_at(step: int, forward):
    """A mixer that gives NaN from a training step on, in each of the tiny model's four blocks."""
    calls = 0

    def broken(self, x):
        nonlocal calls
        calls += self.training
        return forward(self, x) * (float("nan") if calls > 4 * step else 1.0)

    return broken


def test_a_damaged_checkpoint_is_named():
    folder = go().folder
    (folder / "result.json").unlink()
    (folder / "last.ckpt").write_bytes(b"half a checkpoint")
    with pytest.raises(ConfigError, match=r"last\.ckpt: cannot be read .*; remove it to train from the start"):
        go()


@pytest.mark.parametrize("content", ["[1]", "{}", "null", '{"metrics": {}}'])
def test_a_result_that_is_none_is_not_redone_unasked(content):
    folder = planned().folder
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content)
    with pytest.raises(ConfigError, match=r"result\.json: cannot be read"):
        go()


def test_overfitting_takes_every_class():
    config = compose(*TINY, "recipe.batch=20")
    part, recipe = one_batch(load(config.data), config.recipe)
    assert part.train.labels.bincount().tolist() == [2] * 10
    assert (recipe.epochs, recipe.label_smoothing) == (200, 0.0)
    whole = compose(*TINY, "recipe.batch=60", "data.train=60")  # all that there are
    assert len(one_batch(load(whole.data), whole.recipe)[0].train) == 60


@pytest.mark.parametrize(
    ("flags", "words", "warned"),
    [
        ("flags : sse2 avx2", ("recipe.precision=bf16",), True),
        ("flags : sse2 avx512f avx512_bf16", ("recipe.precision=bf16",), False),
        ("Features : asimd", ("recipe.precision=bf16",), False),
        ("flags : sse2 avx2", (), False),
    ],
)
def test_bf16_that_is_emulated_is_told(monkeypatch, tmp_path, capsys, flags, words, warned):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    caches = (machine.emulates_bf16, refusal._tell_of_bf16, tell)
    for kept in caches:
        kept.cache_clear()
    monkeypatch.setattr(precision, "bf16_factor", lambda: 12.34)
    for _ in range(2):
        refusal.warn(compose(*words, "runtime.accelerator=cpu"))
    for kept in caches:
        kept.cache_clear()
    told = capsys.readouterr().err
    assert told.count("takes 12 times as long as in fp32, measured here; set fp32") == warned


def test_what_is_rarely_meant_is_told_once_and_before_the_training(capsys):
    tell.cache_clear()
    for seed in (1, 2):
        go("data=digits", "data.val=8", "recipe.freeze=stem", "recipe.epochs=1", f"seed={seed}")
    told = capsys.readouterr().err
    assert told.count("note: recipe.freeze: what is frozen is random, as recipe.initialize_from=FILE is not set") == 1
    assert told.count("note: data=digits: val has no image of ") == 1
    refusal.refuse({"cell": compose(*TINY, "data.val=7")}, here=True)
    assert capsys.readouterr().err.startswith("note: data=digits: val has no image of ")
    refusal.warn(compose("recipe.freeze=none"), compose("mixer=attention"))
    assert capsys.readouterr().err == ""


def test_how_long_bf16_takes_is_measured(monkeypatch):
    taken = iter([[5.0, 3.0, 6.0], [0.5, 0.25, 0.5]])
    monkeypatch.setattr(precision.timeit, "repeat", lambda product, **_: (product(), next(taken))[1])
    assert precision.bf16_factor() == 12.0


def test_a_mixer_that_draws_in_evaluation_is_refused(tmp_path, monkeypatch):
    (tmp_path / "drawing.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Noise(nn.Module):\n    def forward(self, x):\n"
        "        return x + torch.randn_like(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    told = r"mixer Noise at stages.0.blocks.0 returned something else for the same input in evaluation; what it draws"
    with pytest.raises(ConfigError, match=told):
        go("mixer=custom", "mixer._target_=drawing.Noise")
    assert not Path("runs").exists()


def test_a_finished_run_whose_file_of_weights_has_moved_is_found():
    Path("w.pt").write_bytes(b"1")
    mine = planned("recipe.initialize_from=w.pt")
    moved = replace(mine.config, recipe=replace(mine.config.recipe, initialize_from="old/w.pt"))
    write_result(mine.folder, result_of(0, 0.5, mine.run_id, config=moved))
    assert found(mine).run_id == mine.run_id
