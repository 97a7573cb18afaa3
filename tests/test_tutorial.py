"""The tutorial runs, cell by cell, and says what the committed one says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import repository

CELLS = json.loads((repository() / "docs" / "tutorial.ipynb").read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def said(cell: dict) -> str:
    """What a cell printed when the notebook was written."""
    return "".join(text for output in cell["outputs"] for text in output.get("text", []))


@pytest.mark.pages
def test_it_runs_and_ends_in_a_verdict():
    Path("tutorial.py").write_text("\n".join("".join(cell["source"]) for cell in CODE))
    done = subprocess.run([sys.executable, "tutorial.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = "".join(said(cell) for cell in CODE)
    # A machine with nothing else to do has a column of seconds too.
    without_numbers = [re.sub(r"[-+\d.,|:±\s]+", " ", text.replace(" s/run |", "")) for text in (done.stdout, kept)]
    rows = [re.findall(r"^\| (\w+) \| (\d) ", text, re.MULTILINE) for text in (done.stdout, kept)]
    assert rows[0] == rows[1] == [("identity", "3"), ("pooling", "3"), ("blur", "3")]
    assert without_numbers[0][:200] == without_numbers[1][:200]
    assert without_numbers[0][-60:] == without_numbers[1][-60:]  # what the trained network says


def test_all_cells_were_run_in_their_order():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert "verdict" in "".join(said(cell) for cell in CODE)
