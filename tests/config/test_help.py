"""--help tells every key, from the schema alone."""

import importlib
import os
import re
import sys

import pytest

from metaformer.cli import print_help
from metaformer.config.help import _comment, help_on
from metaformer.config.schema import Config
from metaformer.config.validate import leaves


def test_every_key_is_told_with_its_value_its_kind_and_its_comment():
    told = help_on([])
    assert max(map(len, told.splitlines())) <= 120
    for path, field, _ in leaves(Config()):
        if path != "mixer":
            assert told.count(f"\n{path}=") == 1, path
        for choice in field.metadata.get("choices", ()):
            assert choice in re.split(r"\n(?! )", told.partition(f"\n{path}=")[2])[0], path  # of its own lines
    words = " ".join(told.split())
    assert "recipe.batch=64 an integer, at least 1: images per optimizer step, over all devices" in words
    assert (
        "recipe.ema=null a float or null, a decay between 0 and 1, like 0.9999, or null: Decay of the moving" in words
    )
    assert "model.norm=group group | layer | batch | none" in words  # a field that the node inherits
    assert "mixer.pool_size=3" in words


def test_values_are_those_of_the_words():
    assert "\nmodel.dims=[64, 128, 320, 512]  " in help_on(["model=s12"])


@pytest.mark.parametrize(
    ("verb", "shown", "hidden"),
    [
        ("train", "recipe.lr", "cost.batch"),
        ("cost", "cost.batch", "logger.mode"),
        ("evaluate", "data.root", "recipe.lr"),
        ("report", "study.analysis.margin", "recipe.lr"),
        ("dashboard", "logger.project", "data.root"),
    ],
)
def test_a_verb_tells_what_matters_to_it(verb, shown, hidden, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [verb, "--help"])
    importlib.import_module(f"metaformer.{verb}").main()
    told = capsys.readouterr().out
    assert f"\n{shown}=" in told
    assert f"\n{hidden}=" not in told


def test_every_key_has_a_description():
    assert [path for path, _, _ in leaves(Config()) if not _comment(path)] == []


def test_a_reader_that_leaves_is_no_traceback(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)  # as in `--help | head`
    with os.fdopen(writer, "w") as left, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", left)
        with pytest.raises(SystemExit):
            print_help("What it does.", ["recipe"])
        left.write("and nothing fails when Python ends")
