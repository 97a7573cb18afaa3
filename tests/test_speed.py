"""The scripts of experiments/speed run, with the smallest sizes that say something."""

import csv
import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import repository

SPEED = repository() / "experiments" / "speed"


@pytest.fixture
def rounds(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED))
    spec = importlib.util.spec_from_file_location("rounds", SPEED / "rounds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ran(script: str, out: Path, *words: str) -> list[dict[str, str]]:
    line = [sys.executable, SPEED / script, "--rounds", "1", "--out", out, *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.pages
@pytest.mark.parametrize(
    ("script", "words", "variants"),
    [
        ("step.py", ["--only", "quickstart", "--roofline", "1"], {"timm, fp32", "metaformer, fp32"}),
        ("allocator.py", ["--only", "quickstart"], {"given back", "kept"}),
        (
            "overhead.py",
            ["--steps", "3", "--batch", "16"],
            {"bare loop", "Lightning and nothing else", "Trainer of the bench"},
        ),
        ("data.py", ["--images", "128", "--photographs", "4", "--only", "28", "500"], {"Pillow, as here"}),
        (
            "study.py",
            ["--mixers", "1", "--train", "128", "--epochs", "1", "--only", "mixers"],
            {"metaformer", "in the template's habits"},
        ),
        ("commands.py", ["--runs", "20"], {"train --help", "plan", "a look while they train"}),
    ],
)
def test_each_script_measures_in_seconds(tmp_path, script, words, variants):
    rows = ran(script, tmp_path / "results.csv", *words)
    assert variants <= {row["variant"] for row in rows}
    assert all(float(row["median"]) > 0 and row["device"] and row["script"] == script[:-3] for row in rows)


def test_medians_ranges_and_ratios_within_a_round(rounds):
    """The second variant is twice the first in each round, though the rounds differ by a factor of three."""
    figures = {"first": iter([1, 1, 2, 3]), "second": iter([9, 2, 4, 6])}  # one before the rounds, which does not count
    given = Namespace(rounds=3, clock="wall", threads=1)
    first, second = rounds.in_turns("x", "y", {name: (lambda v=v: next(v)) for name, v in figures.items()}, given)
    assert (first["median"], first["low"], first["high"]) == ("2", "1", "3")
    assert (second["median"], second["ratio"], second["ratio_low"], second["ratio_high"]) == ("4", "2", "2", "2")


def test_the_rows_of_a_title_are_replaced_and_others_kept(rounds, tmp_path):
    out = tmp_path / "results.csv"
    rounds.keep([{"what": "a", "variant": "1"}, {"what": "b", "variant": "1"}], "one.py", out)
    rounds.keep([{"what": "a", "variant": "2"}], "one.py", out)
    rounds.keep([{"what": "a", "variant": "3"}], "two.py", out)
    with out.open(newline="") as file:
        found = [(row["script"], row["what"], row["variant"]) for row in csv.DictReader(file)]
    assert found == [("one", "b", "1"), ("one", "a", "2"), ("two", "a", "3")]


def test_the_bytes_that_a_step_moves(rounds):
    import step  # by the path of `rounds`

    x, y = torch.zeros(10), torch.zeros(10)
    assert step.traffic(lambda: torch.add(x, y)) == 3 * 40
    assert step.traffic(lambda: x.view(2, 5)) == 0


def test_the_models_of_timm_have_as_many_parameters(rounds):
    import step

    for size, (own, channels, _, side) in step.SIZES.items():
        theirs = step.timm_model(channels=channels, **own)
        ours = step.MetaFormer(step.Pooling, in_chans=channels, img_size=side, **own)
        counts = [sum(p.numel() for p in net.parameters()) for net in (theirs, ours)]
        assert counts[0] == counts[1], size
