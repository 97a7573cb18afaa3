import tomllib

from conftest import repository

from metaformer.system import errors
from metaformer.system.errors import install


def test_the_command_that_installs_an_extra_works_from_a_clone_and_from_a_wheel(monkeypatch, tmp_path):
    assert install("hub") == f"pip install -e '{repository()}[hub]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "metaformer" / "system" / "errors.py"))
    assert install("hub") == "pip install 'metaformer-bench[hub]'"


def test_every_extra_is_in_the_readme():
    extras = tomllib.loads((repository() / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (repository() / "README.md").read_text()
    assert [extra for extra in extras if f"\n| `{extra}` | " not in text] == []
