"""The house: its floors, its sizes, and that every verb answers without torch."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib

import pytest
from conftest import repository

PACKAGE = repository() / "metaformer"
VERBS = ("train", "evaluate", "predict", "export", "check", "cost", "plan", "report", "probe", "dashboard")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def test_imports_go_down_only():
    done = subprocess.run(["lint-imports", "--no-cache"], cwd=repository(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


def test_the_top_shows_verbs_and_rooms_only():
    files = {path.name for path in PACKAGE.glob("*") if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "cli.py", "README.md", "py.typed", *(f"{verb}.py" for verb in VERBS)}


def test_files_and_functions_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lines.values()) <= 300
    assert max(lines[PACKAGE / f"{verb}.py"] for verb in VERBS) <= 80
    functions = [
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert max(functions) <= 60
    assert statistics.median(functions) <= 12


def test_no_two_modules_differ_in_a_letter():
    """But for a verb and its room, and files of one name in two rooms."""
    names = sorted({path.stem for path in FILES} - {"__init__", "__main__"})
    close = [(a, b) for a in names for b in names if a < b and (b in (f"{a}s", f"{a}ing") or len(a) == len(b) > 4)
             and sum(x != y for x, y in zip(a, b, strict=False)) <= 1]  # fmt: skip
    assert close == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_no_torch(verb):
    code = (
        f"import runpy, sys; sys.argv = ['{verb}', '--help']\nrunpy.run_module('metaformer.{verb}', None, '__main__')"
    )
    code += "\nassert not {'torch', 'lightning', 'timm'} & set(sys.modules), 'it loads torch'"
    # Of the process alone, since tests share the machine; it is 0.2-0.6 s.
    code += "\nimport time\nassert time.process_time() < 2, f'it takes {time.process_time():.1f} s of a processor'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m metaformer.{verb} " in done.stdout


def test_every_room_is_a_layer_of_the_contract():
    contract = tomllib.loads((repository() / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    rooms = {f"metaformer.{path.name}" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= named


def test_private_interfaces_of_libraries_are_used_in_one_file_each():
    allowed = {
        "hydra._internal": "config/hydra_internals.py",
        "torch._subclasses": "models/cost.py",
        "torch.utils._python_dispatch": "models/cost.py",
        "_compiled_call_impl": "models/compiling.py",
        "fit_loop": "data/lightning_progress.py",
    }
    for word, home in allowed.items():
        users = {path.relative_to(PACKAGE).as_posix() for path in FILES if word in path.read_text()}
        assert users == {home}, word


def test_no_configuration_is_read_by_string_subscripts():
    import re

    pattern = re.compile(r"\b(?:config|cfg|recipe|runtime|study|analysis|data|model|logger)\[\"")
    found = [path.name for path in FILES if pattern.search(path.read_text())]
    assert found == []


def test_the_picture_of_the_rooms_can_be_drawn(tmp_path):
    script = (
        (repository() / "docs" / "draw_rooms.py")
        .read_text()
        .replace("ROOT = Path(__file__).resolve().parent.parent", f"ROOT = Path({str(repository())!r})")
    )
    (tmp_path / "draw.py").write_text(
        script.replace('ROOT / "docs" / "rooms.svg"', f"Path({str(tmp_path)!r}) / 'rooms.svg'")
    )
    subprocess.run([sys.executable, tmp_path / "draw.py"], check=True, capture_output=True)
    pictures = (tmp_path / "rooms.svg", repository() / "docs" / "rooms.svg")
    drawn, kept = (re.findall(r"[a-z_]+", " ".join(re.findall(r">([^<>\n]+)</text>", p.read_text()))) for p in pictures)
    assert "studies" in drawn
    assert drawn == kept, "python docs/draw_rooms.py"
