"""What people bring to Lightning: what is refused, and what is part of the identity."""

import inspect
from pathlib import Path

import lightning as L
import pytest
from conftest import compose
from hydra.errors import HydraException

from metaformer.config import extensions
from metaformer.config.explain import explain
from metaformer.config.extensions import FIXED, HARMLESS, TRAINER_FLAGS
from metaformer.config.identity import content_of, flat, run_id
from metaformer.system.errors import ConfigError

FLAGS = inspect.signature(L.Trainer.__init__).parameters.keys() - {"self"}
SETTABLE = FLAGS - TRAINER_FLAGS.keys() - FIXED.keys()


def id_of(*words: str) -> str:
    return run_id(content_of(compose(*words), None))


def test_the_flags_read_in_the_source_are_those_of_the_signature():
    assert extensions._annotations().keys() == FLAGS
    assert {*TRAINER_FLAGS, *FIXED, *HARMLESS} <= FLAGS
    assert len([*TRAINER_FLAGS, *FIXED, *HARMLESS]) == len({*TRAINER_FLAGS, *FIXED, *HARMLESS})
    for flag in SETTABLE:
        assert any(kind in extensions._annotations()[flag] for kind in extensions.KINDS), flag


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trainer.limit_train_batchs=1", "no such flag; did you mean 'limit_train_batches'?"),
        ("trainer.max_epochs=3", "trainer.max_epochs: the bench sets it; expected recipe.epochs"),
        ("trainer.precision=16", "trainer.precision: the bench sets it; expected recipe.precision"),
        ("trainer.deterministic=false", "trainer.deterministic: the bench sets it: the same configuration gives"),
        ("trainer.limit_train_batches=many", "trainer.limit_train_batches=many: expected int or float or null"),
        ("trainer.limit_train_batches=true", "trainer.limit_train_batches=True: expected int or float or null"),
        ("trainer.limit_train_batches=0", "expected a number of batches from 1, or a share below 1"),
        ("trainer.limit_train_batches=1.0", "expected a number of batches from 1, or a share below 1"),
        ("trainer.detect_anomaly=1", "trainer.detect_anomaly=1: expected bool"),
        ("trainer.sync_batchnorm=null", "trainer.sync_batchnorm=None: expected bool"),
        ("trainer.max_time=5", "trainer.max_time=5: expected str or dict or null"),
        ("trainer.profiler=simple", "trainer.profiler: the bench sets it; expected debug=profile"),
        ("trainer.gradient_clip_algorithm=value", "is read with recipe.clip_grad only"),
        ("trainer.log_every_n_steps=5", "is read by Lightning's loggers only, like logger=tensorboard"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: expected at least 1"),
    ],
)
def test_a_flag_that_cannot_be_set_gets_one_line(word, line):
    with pytest.raises(ConfigError, match=r"^trainer\.") as refused:
        compose(word)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_flag_that_can_change_a_result_is_in_the_id_and_others_are_not():
    assert id_of("trainer.inference_mode=true", "trainer.detect_anomaly=true") == id_of()
    assert len({id_of(), id_of("trainer.limit_train_batches=2"), id_of("trainer.limit_train_batches=3")}) == 3
    limited = flat(compose("trainer.limit_train_batches=2", "trainer.detect_anomaly=true"))
    assert limited == {**flat(compose()), "trainer.limit_train_batches": 2}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["callbacks=early_stoping"], "callbacks=early_stoping: no such choice; expected one of early_stopping, "),
        (["callbacks.early_stopping.patience=5"], "callbacks.early_stopping: expected _target_, the dotted path of a"),
        (
            ["callbacks=early_stopping", "callbacks.early_stoping.patience=5"],
            "callbacks=early_stoping) or by hand; did you mean 'early_stopping'?",
        ),
        (["callbacks.mine=5"], "callbacks.mine: expected _target_"),
        (["logger.lightning.mine._target_=Mine"], "logger.lightning.mine: expected _target_"),
        (["callbacks=learning_rate_monitor"], "callbacks.learning_rate_monitor: tells Lightning's loggers only"),
        (["callbacks=throughput", "logger=wandb"], "callbacks.throughput: tells Lightning's loggers only"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_acuracy"],
            "callbacks.early_stopping.monitor=val_acuracy: expected one of val_accuracy, ",
        ),
    ],
)
def test_a_callback_or_logger_that_cannot_be_gets_one_line(words, line):
    with pytest.raises((ConfigError, HydraException)) as refused:
        compose(*words)
    assert line in explain(refused.value)


def test_a_callback_that_can_change_a_result_is_in_the_id_with_its_code_and_onlookers_are_not():
    assert id_of("callbacks=[learning_rate_monitor,throughput]", "logger=[steps,wandb]") == id_of()
    stopping = id_of("callbacks=[early_stopping,rich_model_summary]")
    assert len({id_of(), stopping, id_of("callbacks=early_stopping", "callbacks.early_stopping.patience=5")}) == 3
    assert stopping == id_of("callbacks=early_stopping")
    Path("my_callback.py").write_text("class Mine: pass\n")
    mine = id_of("callbacks.mine._target_=my_callback.Mine")
    assert mine != id_of()
    Path("my_callback.py").write_text("class Mine: lr = 0\n")
    assert mine != id_of("callbacks.mine._target_=my_callback.Mine")


def test_loggers_are_chosen_together_in_any_order_and_the_keys_of_wandb_stay():
    for words in ("[steps,wandb,tensorboard]", "[tensorboard,wandb,csv,steps]"):
        logger = compose(f"logger={words}", "logger.mode=offline", "logger.lightning.steps.name=mine").logger
        assert (logger.wandb, logger.mode, {*logger.lightning}) == (True, "offline", {"steps", "tensorboard"})
        assert logger.lightning["steps"]["name"] == "mine"
    assert not compose("logger=csv").logger.lightning
