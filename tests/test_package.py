"""The wheel carries the configuration and the studies, and runs elsewhere."""

import configparser
import subprocess
import sys
import zipfile

import pytest
from conftest import HERE, TINY, repository, write_readme_files


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, repository()]
    subprocess.run([*pip, *build], check=True)
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder


def test_what_the_wheel_holds(installed):
    wheel = zipfile.ZipFile(next(installed.glob("*.whl")))
    names = set(wheel.namelist())
    assert {
        "metaformer/conf/train.yaml",
        "metaformer/conf/mixer/ppaa.yaml",
        "metaformer/conf/hydra/sweeper/study.yaml",
    } <= names
    assert {"metaformer/experiments/quickstart.yaml", "metaformer/data/assets/fashion_small.npz"} <= names
    assert {"metaformer/analysis/templates/report.html", "metaformer/py.typed"} <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode())
    assert scripts["console_scripts"]["metaformer"] == "metaformer.__main__:main"
    assert not [n for n in names if n.startswith(("tests", "conf", "experiments")) or n.endswith((".png", ".csv"))]


def test_it_runs_from_another_folder_and_writes_there(installed, tmp_path, cli, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(installed / "site"))
    where = [sys.executable, "-c", "import metaformer; print(metaformer.__file__)"]
    where = subprocess.run(where, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(installed / "site"))
    write_readme_files(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert {"my_mixer.py", "mixer"} <= before
    done = cli("train", "experiments=quickstart", "mixer=pooling,my_shift", "seed=0", *TINY, HERE)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 0 finished, 2 to do" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == before | {"runs"}
    (run,) = tmp_path.glob("runs/my_shift-*")
    done = cli("probe", str(run), "runtime.threads=1")  # its pages are in the wheel
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "reports" / run.name / "probes" / "probes.html").exists()
    assert {path.name for path in tmp_path.iterdir()} == before | {"runs"}


def test_names_are_imported_when_they_are_used():
    import metaformer

    assert metaformer.Pooling.__module__ == "metaformer.mixers.pooling"
    assert set(dir(metaformer)) >= {"MetaFormer", "MetaFormerBlock", "Attention"}
    assert all(getattr(metaformer, name) for name in metaformer.__all__)
    assert {*metaformer.__all__} >= {*metaformer.mixers.__all__} - {"to_map", "to_tokens"}
    with pytest.raises(AttributeError, match="no attribute 'Poling'"):
        _ = metaformer.Poling


@pytest.mark.parametrize("imports", ["import timm, metaformer", "import metaformer, timm, metaformer.models"])
def test_models_are_those_of_timm_as_soon_as_both_are_there(imports):
    code = f"{imports}; print(type(timm.create_model('metaformer_s12', mixer='pooling')).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "MetaFormer\n", done.stderr


def test_the_package_alone_is_light():
    code = "import sys, metaformer; print({'torch', 'timm', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
