"""Foreign code is part of the run id, in whatever form it is named and imported; the package's own is not."""

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import compose

from metaformer.config.identity import content_of, run_id
from metaformer.config.named_code import hashes_of_code

LAYER = "from torch import nn\nclass Mine(nn.Identity): ...\n"


def edited(target: str, file: str, **options: object) -> bool:
    """Whether another line in a file changes the hash of the code that a mixer node names."""
    before = hashes_of_code({"_target_": target, **options})
    assert before
    Path(file).write_text(Path(file).read_text() + "x = 1\n")
    return hashes_of_code({"_target_": target, **options}) != before


@pytest.mark.parametrize(
    ("importing", "file"),
    [
        ("import helper", "helper.py"),
        ("import os, helper", "helper.py"),
        ("import os as o, helper as h", "helper.py"),
        ("from helper import x", "helper.py"),
        ("from folder.part import x", "folder/part.py"),  # a folder without __init__.py
        ("from folder import part", "folder/part.py"),
        ("import folder.part", "folder/part.py"),
        ("import folder.inner.deep", "folder/inner/deep.py"),
        ("from package import thing", "package/thing.py"),
        ("import package.thing", "package/__init__.py"),
        ("from package import again", "package/thing.py"),  # which __init__ takes from there
        ("def f():\n    import helper", "helper.py"),
        ("try:\n    import helper\nexcept ImportError:\n    pass", "helper.py"),
        ("import first", "second.py"),  # which the first imports
    ],
)
def test_what_a_mixers_file_imports_counts(importing, file):
    files = {
        "helper.py": "x = 1\n", "folder/part.py": "x = 1\n", "folder/inner/deep.py": "x = 1\n",
        "package/__init__.py": "from .thing import again\n", "package/thing.py": "again = 1\n",
        "first.py": "import second\n", "second.py": "x = 1\n", "other.py": "x = 1\n",
        "mine.py": f"{importing}\n{LAYER}",
    }  # fmt: skip
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    assert edited("mine.Mine", file)
    assert not edited("mine.Mine", "other.py")


def test_a_mixer_in_a_folder_and_its_relative_imports_count():
    for name, text in {"lab/mine.py": f"from .tools import x\n{LAYER}", "lab/tools.py": "x = 1\n"}.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    assert edited("lab.mine.Mine", "lab/mine.py")
    assert edited("lab.mine.Mine", "lab/tools.py")


def test_options_that_name_code_count_at_any_depth():
    Path("layers.py").write_text(LAYER)
    assert edited("metaformer.mixers.AsTokens", "layers.py", layer="layers.Mine")
    assert edited("torch.nn.Identity", "layers.py", options={"parts": [{"_target_": "layers.Mine"}]})


def test_libraries_count_by_their_version_and_the_package_by_none():
    found = hashes_of_code(
        {"_target_": "metaformer.mixers.AsTokens", "layer": "timm.layers.Attention", "path": "math.pi"}
    )
    assert list(found) == ["timm.layers.Attention"]
    assert found["timm.layers.Attention"].startswith("timm ")


def test_nothing_is_run_to_find_the_code():
    Path("loud.py").write_text(f"raise SystemExit('run')\n{LAYER}")
    assert edited("loud.Mine", "loud.py")
    Path("broken.py").write_text("def (:\n")
    assert edited("broken.Mine", "broken.py")


def test_an_option_is_one_number_however_it_is_written():
    one, other, third = (
        run_id(content_of(compose("mixer=afno", f"mixer.sparsity={n}"), None)) for n in ("0", "0.0", "1")
    )
    assert one == other != third


def test_the_code_of_an_editable_install_counts(monkeypatch, tmp_path):
    """Some of these are in no folder of sys.path: a finder knows where they are."""
    place = tmp_path / "elsewhere" / "mine_editable"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    (place / "layers.py").write_text(LAYER)

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "mine_editable":
                file = place / "__init__.py"
                return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(place)])
            return None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert edited("mine_editable.layers.Mine", str(place / "layers.py"))
    assert "mine_editable" not in sys.modules


def test_a_folder_that_looks_like_a_name_is_no_code():
    Path("images").mkdir()
    assert hashes_of_code({"file": "images.npz"}) == {}
