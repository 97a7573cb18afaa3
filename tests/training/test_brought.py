"""Callbacks and loggers that a configuration brings."""

import copy
import csv
import sys
from pathlib import Path

import pytest
from conftest import TINY, compose
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from metaformer.config.compose import names_in
from metaformer.config.explain import USER_ERRORS, explain
from metaformer.runs.result import read_curve
from metaformer.studies.points import resolve
from metaformer.studies.worker import run
from metaformer.system.errors import ConfigError
from metaformer.training import trainer
from metaformer.training.callbacks import brought_callbacks
from metaformer.training.fit import prepare
from metaformer.training.loggers import Guarded

CHOICES = {"mixer": "pooling", "model": "tiny"}
SHORT = [*TINY, "data.train=192", "recipe.batch=32", "recipe.warmup_epochs=0"]  # 6 steps an epoch
MINE = """
import lightning as L
from lightning.pytorch.loggers import Logger

SEEN = []

class Last(L.Callback):
    def __init__(self, lr: float = 0.1):
        self.lr = lr
    def on_train_end(self, trainer, module):
        SEEN.append((self.lr, trainer.global_step))

class Fails(Logger):
    name, version = "fails", 0
    def __init__(self, save_dir, after: int = 2):
        super().__init__()
        self.after, self.dir = after, save_dir
    def log_hyperparams(self, params):
        SEEN.append(params)
    def log_metrics(self, metrics, step=None):
        SEEN.append((step, metrics))
        if len(SEEN) > self.after:
            raise OSError("no space left\\nfor logs")

class Refuses(Logger):
    name, version = "refuses", 0
    def __init__(self):
        raise ValueError("no key of the server")
    def log_hyperparams(self, params): pass
    def log_metrics(self, metrics, step=None): pass

def number(): return 5
"""


@pytest.fixture
def mine(monkeypatch):
    Path("my_things.py").write_text(MINE)
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "my_things", raising=False)
    import my_things

    return my_things


def trained(*words: str):
    return run(resolve(compose(*SHORT, *words), CHOICES)[0])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_steps_are_logged_beside_the_curve_and_change_nothing(mine):
    plain = trained()
    logged = trained(
        "logger=[csv,steps]", "trainer.log_every_n_steps=2", "callbacks=[learning_rate_monitor,throughput]",
        "runtime.runs=logged", "callbacks.throughput.window_size=3",
    )  # fmt: skip
    assert (plain.name, plain.result.metrics) == (logged.name, logged.result.metrics)
    rows = rows_of(logged.folder / "steps/version_0/metrics.csv")
    steps = {int(row["step"]): row for row in rows if row["train_loss_step"]}
    assert list(steps) == [1, 3, 5, 7, 9, 11]  # from 0, as Lightning counts: the monitor's rate is in the same row
    assert all(row["lr-AdamW/pg1"] == row["lr"] for row in rows if row["train_loss_step"] and row["lr-AdamW/pg1"])
    assert all(float(row["lr"]) > 0 for row in steps.values())
    curve = read_curve(logged.folder)
    for epoch in (1, 2):  # three of six steps: near their mean
        own = [float(steps[step]["train_loss_step"]) for step in steps if step // 6 == epoch - 1]
        assert sum(own) / 3 == pytest.approx(float(curve[epoch - 1]["train_loss"]), rel=0.2)
    names = {name for row in rows for name, value in row.items() if value}
    assert {"val_accuracy", "test_accuracy", "lr-AdamW/pg1", "train/device/batches_per_sec"} <= names, names
    assert "batch: 32" in (logged.folder / "steps/version_0/hparams.yaml").read_text()


def test_the_loss_of_a_step_is_that_of_all_its_parts(mine):
    for parts in (1, 2):
        trained("logger=steps", "trainer.log_every_n_steps=1", f"runtime.accumulate={parts}", f"runtime.runs=r{parts}")
    one, two = (next(Path(f"r{parts}").glob("*/steps/version_0/metrics.csv")) for parts in (1, 2))
    losses = [[row["train_loss_step"] for row in rows_of(path) if row["train_loss_step"]] for path in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 12
    assert [float(x) for x in losses[0]] == pytest.approx([float(x) for x in losses[1]], rel=1e-3)


@pytest.mark.parametrize(("limit", "steps"), [("4", "4"), ("0.7", "4"), ("1", "1")])  # of 6
def test_a_limit_counts_batches_however_many_parts_they_have(limit, steps):
    words = ("recipe.epochs=1", f"trainer.limit_train_batches={limit}")
    one, two = (trained(*words, f"runtime.accumulate={parts}", f"runtime.runs=r{parts}") for parts in (1, 2))
    assert one.result.run_id == two.result.run_id
    assert {read_curve(run.folder)[-1]["step"] for run in (one, two)} == {steps}


def test_a_logger_that_fails_is_told_once_and_training_goes_on(mine, capsys):
    words = ("trainer.log_every_n_steps=1", "logger.lightning.mine._target_=my_things.Fails")
    done = trained("logger=steps", *words, "callbacks.mine={_target_: my_things.Last, lr: 3}")
    said = capsys.readouterr().err
    assert said.count("logger.lightning.mine: OSError: no space left for logs; training goes on without it") == 1
    assert mine.SEEN[0]["mixer"] == "pooling"
    assert [seen[0] for seen in mine.SEEN[1:3]] == [0, 1]  # the second one raised; the last is the callback's own lr
    assert mine.SEEN[-1] == (3, 12)
    assert done.status == "finished"
    assert len(rows_of(done.folder / "steps/version_0/metrics.csv")) > 12  # the other logger went on


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["callbacks.a._target_=no_such.Thing"], "callbacks.a._target_=no_such.Thing: cannot import 'no_such' (Mod"),
        (["callbacks.a._target_=my_things.Lost"], "'my_things' has no 'Lost'; did you mean 'Last'?"),
        (["callbacks.a={_target_: my_things.Last, lrr: 1}"], "callbacks.a.lrr: Last has no such option; did you"),
        (["callbacks.a={_target_: my_things.Last, lr: x}"], "callbacks.a.lr=x: expected float"),
        (["callbacks.a._target_=my_things.number"], "expected a lightning.pytorch.callbacks.callback.Callback; it"),
        (["callbacks.a._target_=my_things.SEEN"], "callbacks.a._target_=my_things.SEEN: expected a class"),
        (["logger.lightning.a._target_=my_things.Last"], "expected a lightning.pytorch.loggers.logger.Logger; it"),
        (
            ["logger.lightning.a._target_=my_things.Refuses"],
            "logger.lightning.a: my_things.Refuses cannot be built (ValueError: no key of the server)",
        ),
        (["trainer.max_time=soon"], "trainer.max_time=soon: "),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_before_anything_is_written(mine, words, line):
    before = {*Path().rglob("*")}
    with pytest.raises(ConfigError) as refused:
        prepare(compose(*SHORT, *words))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path for path in Path().rglob("*") if "__pycache__" not in str(path)} <= before


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_installed_is_named(monkeypatch, name):
    """After the options of the file have been found good."""
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(ConfigError, match=rf"lightning\.{name}: .* cannot be built \(ModuleNotFoundError: "):
        prepare(compose(*SHORT, f"logger={name}"))


def test_every_callback_of_the_package_can_be_built_beside_the_others():
    names = [name for name in names_in("callbacks") if name != "none"]
    brought = brought_callbacks(compose("logger=steps", f"callbacks=[{','.join(names)}]"))
    assert len(brought) == len(names) == 5
    found = trained("logger=steps", f"callbacks=[{','.join(names)}]", "trainer.log_every_n_steps=1")
    assert found.status == "finished"
    log = rows_of(found.folder / "steps/version_0/metrics.csv")
    assert any(name.startswith("DeviceStatsMonitor.on_train_batch_start/cpu_percent") for name in log[0])


def test_a_run_that_a_callback_stopped_is_not_trained_on_when_it_goes_on(mine, monkeypatch):
    """It was killed after its last checkpoint and before its result."""
    words = ("recipe.epochs=5", "callbacks=early_stopping", "callbacks.early_stopping.monitor=train_loss",
             "callbacks.early_stopping.mode=max", "callbacks.early_stopping.patience=1")  # fmt: skip
    whole = trained(*words, "runtime.runs=whole")
    assert 1 < whole.result.epochs < 5
    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.test", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(*words)
    again = trained(*words)
    assert (again.result.epochs, again.result.metrics) == (whole.result.epochs, whole.result.metrics)


def test_tensorboard_has_settings_steps_epochs_and_how_good_they_were():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    done = trained("recipe.epochs=2", "logger=tensorboard", "trainer.log_every_n_steps=1")
    events = EventAccumulator(str(done.folder / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train_loss_step")]
    assert steps == list(range(len(steps)))
    curve = [float(row["val_accuracy"]) for row in rows_of(done.folder / "metrics.csv")]
    assert [event.value for event in events.Scalars("val_accuracy")] == pytest.approx(curve)
    (best,) = events.Scalars("hp_metric")
    assert best.value == pytest.approx(curve[-1])
    assert "mixer: pooling\n" in (done.folder / "tensorboard" / "hparams.yaml").read_text()
    (told,) = (
        found.session_start_info.hparams
        for content in events.summary_metadata.values()
        if content.plugin_data.plugin_name == "hparams"
        and (found := HParamsPluginData.FromString(content.plugin_data.content)).HasField("session_start_info")
    )
    assert (told["mixer"].string_value, told["recipe.batch"].number_value) == ("pooling", 32)


def test_mlflow_has_the_run(monkeypatch):
    pytest.importorskip("mlflow")
    import sqlite3

    from trained import go

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = go("recipe.epochs=1", "logger=mlflow", "trainer.log_every_n_steps=5")
    runs = sqlite3.connect("mlflow.db").execute("select name, status from runs").fetchall()
    assert runs == [(done.folder.name, "FINISHED")]


def test_a_flag_is_blamed_by_its_name_and_not_by_a_number_that_it_shares(monkeypatch):
    def refuse(**_):
        raise MisconfigurationException("You requested gpu: [0, 1]")

    monkeypatch.setattr(trainer.L, "Trainer", refuse)
    config = compose("trainer.limit_train_batches=1")
    with pytest.raises(ConfigError, match=r"^runtime\.accelerator=auto, runtime\.devices=1: You requested"):
        trainer.make_trainer(config.runtime, config.recipe, config.trainer)


@pytest.mark.parametrize(
    ("group", "content", "told"),
    [
        ("callbacks", "_target_: mine.Mine", "callbacks._target_: expected it below a name, as in `mine: {_targ"),
        ("logger", "_target_: mine.Mine", "logger._target_: expected it below a name, as in `lightning: {min"),
    ],
)
def test_a_file_without_a_name_is_told_how_it_looks(group, content, told):
    Path(group).mkdir()
    Path(group, "mine.yaml").write_text(content)
    with pytest.raises(USER_ERRORS) as error:
        compose(f"{group}=mine")
    assert told in explain(error.value)


def test_a_callback_watches_a_metric_of_the_task():
    with pytest.raises(ConfigError) as error:
        compose("callbacks=early_stopping", "callbacks.early_stopping.monitor=val_mean_iou")
    assert "callbacks.early_stopping.monitor=val_mean_iou: expected one of " in str(error.value)
    assert "val_pixel_accuracy" not in str(error.value)


def test_a_guarded_logger_can_be_copied(tmp_path):
    logger = Guarded(CSVLogger(tmp_path), "logger.csv")
    assert copy.deepcopy(logger).save_dir == logger.save_dir
