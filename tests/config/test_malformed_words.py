"""Malformed words, drawn at random: each gets one line that names its key, and nobody a traceback.

METAFORMER_SEED=N draws others.
"""

import copy
import os
import random
import sys
from collections.abc import Callable
from importlib import import_module

import pytest
from conftest import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from metaformer.config.compose import check_words, config_of, loader
from metaformer.config.explain import USER_ERRORS, explain
from metaformer.config.hydra_internals import load, parsed
from metaformer.config.kinds import fits
from metaformer.config.schema import GROUPS, Config
from metaformer.config.validate import leaves
from metaformer.data.registry import check

SEED = int(os.environ.get("METAFORMER_SEED", "0"))  # a fixed one, so that a change of the code alone decides
VALUES = ["", "null", "-1", "0", "1e400", "nan", "-inf", "abc", "[]", "[1,2]", "[a,b]", "{a: 1}", "true", "'", "[",
          "0.5", "???", "${x}", "${seed}", "..", "99999999999999999999999", "-0.5", "''", "[null]", "[[1]]", "{}",
          "range(0,0)", "1,2", "' '", "'\t'", "1e18", "~", "a b", "=", "${oc.env:NO}", "${x", "0x", "1_0"]  # fmt: skip
FORMS = ["{key}={value}", "+{key}={value}", "++{key}={value}", "~{key}", "~{key}={value}", "{key}", "{key}:{value}"]
KEYS = [path for path, _, _ in leaves(Config())]
NODES = sorted({path.rpartition(".")[0] for path in KEYS} - {"", *GROUPS})


@pytest.fixture(scope="module")
def composed():
    return load(loader(), [], multirun=True)


def config_with(composed, word: str) -> Config:
    """As `compose` does it, but that files which no word changes are not read again."""
    check_words([word])
    overrides = parsed(loader(), [word])
    if overrides[0].key_or_group in GROUPS or overrides[0].is_sweep_override():
        return compose(word)
    cfg = copy.deepcopy(composed)
    ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)
    return config_of(cfg)


def draw(keys: list[str], count: int) -> list[str]:
    """A form and a value for each key, and `count` more."""
    source = random.Random(SEED)
    drawn = [*keys, *source.choices(keys, k=count)]
    weights = [len(FORMS), *[1] * (len(FORMS) - 1)]
    return [source.choices(FORMS, weights)[0].format(key=key, value=source.choice(VALUES)) for key in drawn]


def judge(word: str, attempt: Callable[[str], Config]) -> str:
    """What is wrong with how a word was answered, or nothing."""
    try:
        config = attempt(word)
        check(config.data, config.recipe, config.task)
    except USER_ERRORS as error:
        line = explain(error)
    except Exception as error:
        return f"{word!r}: {type(error).__name__}: {error}"
    else:
        wrong = [f"{key}={value!r}" for key, field, value in leaves(config) if not fits(value, field.type)]
        return f"{word!r}: accepted, though {wrong[0]}" if wrong else ""
    key = word.lstrip("+~").partition("=")[0].partition(":")[0]
    parent, _, last = key.rpartition(".")
    named = last in line or (parent and parent in line.partition(":")[0])
    return "" if named and "\n" not in line and len(line) < 1500 else f"{word!r}: {line!r}"


def test_words_of_every_key(composed):
    print(f"METAFORMER_SEED={SEED}")
    faults = [told for word in draw([*KEYS, *NODES], 100) if (told := judge(word, lambda w: config_with(composed, w)))]
    assert not faults, "\n".join(faults)


def test_words_of_every_group():
    print(f"METAFORMER_SEED={SEED}")
    faults = [told for word in draw([*GROUPS, "hydra/launcher", "hydra/sweeper"], 5) if (told := judge(word, compose))]
    assert not faults, "\n".join(faults)


OWN = {
    "evaluate": ["run", "weights"], "check": ["mixer", "dim", "resolution"], "cost": ["cost.out"],
    "plan": ["sd", "from", "images", "throughput"], "report": ["experiments"], "probe": ["out", "experiments", "run"],
    "dashboard": ["experiments", "logger.project", "sync"],
}  # fmt: skip


@pytest.mark.parametrize("verb", OWN)
def test_words_of_every_verb(verb, capsys, monkeypatch):
    """One line and status 2, or where it is accepted after all another status of the verb's, and no traceback."""
    print(f"METAFORMER_SEED={SEED}")
    for word in draw([*OWN[verb], "recipe.lr", "seed"], 3):
        monkeypatch.setattr(sys, "argv", [verb, *word.split()])
        capsys.readouterr()  # what an accepted word before has said
        try:
            import_module(f"metaformer.{verb}").main()
        except SystemExit as left:
            line = capsys.readouterr().err
            if left.code == 2 and not (line.startswith("error: ") and line.count("\n") == 1):
                pytest.fail(f"{verb} {word!r}: {line}")
        except Exception as error:
            pytest.fail(f"{verb} {word!r}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["~recipe"], "~recipe: it cannot be deleted; expected recipe=VALUE"),
        (["model.dims.foo=1"], "model.dims.foo: there are no keys below model.dims; expected model.dims=VALUE, a list"),
        (["+recipe.scale.x=3"], "recipe.scale.x: there are no keys below recipe.scale"),
        (["recipe.scale.0=3"], "recipe.scale.0: there are no keys below recipe.scale"),
        (["recipe.lr.x=3"], "recipe.lr.x: there are no keys below recipe.lr; expected recipe.lr=VALUE, a float"),
        (["model.dims.7=3"], "model.dims[7]: the list is shorter than that"),
        (["~recipe.lr"], "~recipe.lr: it cannot be deleted"),
        (["recipe=null"], "recipe=null: expected the name of a choice, one of caformer"),
        (["mixer=${seed}"], "mixer=${seed}: expected the name of a choice"),
        (["=5"], "=5: expected key=value"),
        (["mixer=pooling,identity"], "mixer=pooling,identity: several values are a sweep, which needs -m"),
        (["-m", "seed=range(0,0)"], "seed=range(0,0): expected a value at least"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: no run is there; runtime.runs=FOLDER says where they go"),
        (["-m", "seed=0,1", "hydra.sweep.dir=/dev/null/x"], "hydra.sweep.dir=/dev/null/x: cannot be made (Not a direc"),
        (["-m", "seed=0,1", "hydra.sweep.dir=null"], "hydra.sweep.dir=null: expected a folder"),
        (["-m", "seed=range(0,1000000000)"], "1,000,000,000 runs: more than runtime.most_runs=10000; set it higher"),
        (["hydra/sweeper=basic"], "hydra/sweeper=basic: expected study, which is what -m has, or search"),
        (["-m", "study.analysis.factor=foo", "seed=0,1"], "study.analysis.factor=foo: expected a factor of the study"),
        (["-m", "study.reference=foo", "seed=0,1"], "study.reference=foo: expected a mixer of the study"),
    ],
)
def test_the_real_command(words, expected, cli, tmp_path):
    done = cli("train", *words)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert expected in done.stderr
    assert list(tmp_path.iterdir()) == []
