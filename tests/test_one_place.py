"""One fact, one place: a mixer and a data set from outside, a metric and an option of the block by one line each."""

import shutil
from pathlib import Path

import pytest
from conftest import repository

METRIC = '"top3": Metric("top-3 accuracy", "torchmetrics.classification.MulticlassAccuracy", {"top_k": 3}),'
EDITS = {  # file of the package: what is found, and what is put there instead
    "config/metrics.py": ("METRICS = {\n", f"METRICS = {{\n    {METRIC}\n"),
    "config/schema.py": ("    norm_eps: float", "    widen: float = number(1.0, above=0)\n    norm_eps: float"),
    "models/block.py": ("ChannelMLP(dim, o.mlp_ratio,", "ChannelMLP(dim, o.mlp_ratio * o.widen,"),
}  # fmt: skip
FILES = {
    "mixer/flip.yaml": "_target_: my_flip.Flip\n",
    "my_flip.py": "from torch import nn\nclass Flip(nn.Module):\n    def forward(self, x): return x.flip(3) - x\n",
    "data/noise.yaml": "name: custom\n_target_: my_noise.load\nval: 60\nsize: 8\nclasses: 4\n",
    "my_noise.py": "import numpy as np\ndef load():\n    r = np.random.default_rng(0)\n    make = lambda n: "
                   "(r.integers(256, size=(n, 8, 8, 3), dtype=np.uint8), r.integers(4, size=n))\n"
                   "    return {'train': make(240), 'test': make(80)}\n",
    "experiments/mine.yaml": "# @package _global_\ndefaults: [override /data: noise]\nhydra: {mode: MULTIRUN, "
                             "launcher: {n_jobs: 1}, sweeper: {params: {mixer: 'pooling,flip', seed: '0,1'}}}\n"
                             "recipe: {epochs: 1, warmup_epochs: 0}\n"
                             "study: {name: mine, analysis: {metric: test_top3, tolerance: null}}\n",
}  # fmt: skip


@pytest.fixture
def edited(tmp_path, cli, monkeypatch):
    """Runs a verb of an edited copy of the package, in a folder with a mixer, a data set and a study."""
    site = tmp_path / "site"
    for part in ("metaformer", "conf", "experiments"):
        shutil.copytree(
            repository() / part, site / part, ignore=shutil.ignore_patterns("__pycache__", "*.svg", "*.png")
        )
    for name, (old, new) in EDITS.items():
        file = site / "metaformer" / name
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new))
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return cli


def test_each_is_seen_in_help_in_validation_in_cost_and_in_a_report(edited):
    told = edited("train", "--help").stdout
    groups = {line.partition(": ")[0]: line for line in told.replace("\n    ", " ").splitlines() if ": " in line}
    assert "flip" in groups["mixer"].split(": ")[1].split(", ")
    assert "noise" in groups["data"].split(": ")[1].split(", ")
    assert "model.widen=1.0  " in told

    refused = {
        "mixer=flop": "mixer=flop: no such choice; expected one of flip",
        "data=noize": "data=noize: no such choice; expected one of noise",
        "model.widen=0": "model.widen=0.0: expected above 0",
        "study.analysis.metric=test_top4": "study.analysis.metric=test_top4: expected one of test_top3",
    }
    for word, line in refused.items():
        assert line in edited("train", word).stderr

    done = edited("cost", "-m", "mixer=pooling,flip", "data=noise", "model.widen=1,2")
    assert done.returncode == 0, done.stderr
    counted = {row.split("widen")[0].strip(): row for row in done.stdout.splitlines() if "widen=" in row}
    assert set(counted) == {"pooling", "flip"}
    params = {row.split()[1]: row.split()[2] for row in done.stdout.splitlines() if "flip widen=" in row}
    assert params["widen=1"] != params["widen=2"]

    done = edited("train", "experiments=mine", "runtime.threads=1", "runtime.progress=false")
    assert done.returncode == 0, done.stderr
    page = Path("runs/reports/mine/report.html").read_text()
    assert "Metric: test_top3" in page
    assert "test top-3 accuracy in %" in page
    assert "flip" in page
