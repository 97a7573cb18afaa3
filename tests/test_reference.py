"""The reference is that of the code, and says something of every name."""

import re
import runpy

from conftest import repository

import metaformer

FILE = repository() / "docs" / "reference.md"


def test_it_is_up_to_date():
    made = runpy.run_path(str(repository() / "docs" / "reference.py"))["reference"]()
    assert made == FILE.read_text(), "run python docs/reference.py"


def test_it_has_every_name_and_every_choice():
    text = FILE.read_text()
    for name in metaformer.__all__:
        assert re.search(rf"^### `metaformer\.{name}`\n\n```text\n.+", text, re.MULTILINE), name
    for group in ("mixer", "model", "data", "recipe"):
        for file in (repository() / "conf" / group).glob("*.yaml"):
            assert f"[`{file.stem}`](../conf/{group}/{file.name})" in text
    assert "| `recipe.lr` | `float` | `0.002`; `0.008` | at least 0 |" in text
    assert "| `runtime.per_gpu` | `int` | `1` | at least 1 and at most 1024 | runs at once on each GPU" in text
