"""Every command and snippet of the README and of the pages beside it, run as it is printed."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, blocks_of, repository, write_readme_files

from metaformer.config.schema import GROUPS, Config
from metaformer.config.validate import leaves

PAGES = {page: (repository() / page).read_text() for page in ("README.md", "experiments/README.md", "conf/README.md",
                                                              "metaformer/README.md", "docs/faq.md")}  # fmt: skip
README = PAGES["README.md"]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line and line[0] != "#"]
OURS = [line.rpartition(" && ")[2] for line in COMMANDS if "python -m metaformer." in line]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]


def shell(command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "WANDB_SILENT": "true"}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)


def test_the_readme_gives_two_commands():
    first, second = COMMANDS[:2]
    assert first.endswith("pip install -e . && python -m metaformer.train experiments=quickstart")
    assert second.endswith("pip install -e '.[dev]' && pytest")


@pytest.fixture
def readme_folder(tmp_path):
    """A folder with the files that the pages tell their reader to write."""
    write_readme_files(tmp_path)
    return tmp_path


@pytest.mark.pages
@pytest.mark.parametrize("command", [c for c in OURS if ".train" in c])
def test_commands_that_train(command, readme_folder):
    """With fewer images, epochs and seeds, so that they fit into a test."""
    small = " ".join(word for word in TINY if word.split("=")[0] not in command)
    if "experiments=" in command and "seed=" not in command:
        small += " seed=0"
    if "debug=" in command or "--help" in command:
        small = ""
    done = shell(f"{command} {small}")
    assert done.returncode == 0, done.stderr


@pytest.mark.pages
def test_the_other_commands(readme_folder):
    assert shell(f"python -m metaformer.train {' '.join(TINY)}").returncode == 0
    run = next(readme_folder.glob("runs/pooling-*")).relative_to(readme_folder)
    part = " ".join(["mixer=identity,pooling", "seed=0", *TINY])
    for study in ("quickstart", "mine"):
        assert shell(f"python -m metaformer.train experiments={study} {part}").returncode == 0
    for command in dict.fromkeys(c for c in OURS if ".train" not in c):
        done = shell(command.replace("runs/RUN", str(run)) + (f" {part}" if ".report" in command else ""))
        assert done.returncode == 0, done.stderr
    leftovers = [c for c in COMMANDS[2:] if "metaformer." not in c]
    assert leftovers == []


def test_the_console_command_is_the_same(readme_folder):
    done = shell("metaformer check pooling --dim 8 && metaformer --help")
    assert done.returncode == 0, done.stderr
    assert "keeps the contract" in done.stdout
    assert "what a study found" in done.stdout
    wrong = shell("metaformer trian")
    assert (wrong.returncode, wrong.stderr) == (2, "error: trian: no such verb; did you mean 'train'?\n")


def test_words_are_completed(readme_folder):
    line = next(text for kind, text in BLOCKS if kind == "text" and "install=bash" in text).strip()
    asked = 'COMP_LINE="metaformer train mixer=spa" metaformer -sc query=bash'
    done = shell(f"{line}; {asked}; COMP_LINE='metaformer train mixer=my' metaformer -sc query=bash")
    assert " ".join(done.stdout.split()) == (
        "mixer=spatial_gating mixer=spatial_mlp mixer=spatial_reduction mixer=my_shift"
    )


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets(snippet, readme_folder):
    (readme_folder / "snippet.py").write_text(snippet)
    done = shell("python snippet.py")
    assert done.returncode == 0, done.stderr


def test_the_custom_mixer_has_at_most_12_lines():
    mixer = next(snippet for snippet in SNIPPETS if snippet.startswith("# my_mixer.py"))
    assert len(mixer.strip().splitlines()) <= 12


TABLES = ["accuracy", "verdicts", "added", "variance", "ranks", "fairness", "exploratory", "rates", "recall"]
STUDIES = [path.parent.parent for path in sorted((repository() / "experiments").glob("*/tables/accuracy.md"))]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_what_a_study_says_is_what_it_found(folder):
    """Its table is in its README, its shares of the variance are those of its tables, its results are as written."""
    text = (folder / "README.md").read_text()
    assert (folder / "tables" / "accuracy.md").read_text() in text
    shares = (folder / "tables" / "variance.md").read_text() if (folder / "tables" / "variance.md").exists() else ""
    known = [[float(n) for n in found] for found in re.findall(r"([\d.]+)% \[([\d.]+), ([\d.]+)\]", shares)]
    for found in re.findall(r"(\d+)%\s+\[(\d+),\s(\d+)\]", text):
        assert any([float(n) for n in found] == pytest.approx(share, abs=0.56) for share in known), found
    launched = json.loads((folder / "launch.json").read_text())
    assert hashlib.sha256((folder / "results.csv").read_bytes()).hexdigest() == launched["results_sha256"]
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + len(launched["runs"])
    tables = {path.name for path in (folder / "tables").iterdir()}
    assert tables <= {f"{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")}  # no report writes others
    for target in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text):
        assert (folder / target).exists(), target


def test_the_table_is_that_of_the_study():
    assert (repository() / "experiments" / "quickstart" / "tables" / "accuracy.md").read_text() in README


OWN = {"check": ("dim", "resolution"), "dashboard": ("sync", "publish"), "evaluate": ("run", "weights", "whole"),
       "export": ("run", "format", "out"), "plan": ("sd", "from", "images", "throughput"), "predict": ("run", "out"),
       "probe": ("run", "publish"), "report": ("publish",)}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_the_text_have_keys_that_there_are(page):
    known = {*(key for key, _, _ in leaves(Config())), *GROUPS, "hydra/launcher", "hydra/sweeper"}
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for verb, words in re.findall(r"`python -m\s+metaformer\.(\w+)\s*([^`]*)`", text):
        for key in re.findall(r"([\w./]+)=", words):
            assert key in known or key in OWN.get(verb, ()), f"{verb} {key}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", PAGES[page]):
        file = (repository() / page).parent.joinpath(target) if target else repository() / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}, anchor


def test_the_pages_name_what_is_there():
    """Every room and group has its line, and every file that the list of places names exists."""
    package = repository() / "metaformer"
    code = PAGES["metaformer/README.md"]
    for room in (path.parent.name for path in package.glob("*/__init__.py")):
        assert f"| `{room}` |" in code
    named = re.findall(r"`(\w+/[\w/.]+\.py)`", code)
    assert len(named) > 25
    for name in named:
        assert (package / name).exists(), name
    for group in (path.name for path in (repository() / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        assert f"| `{group}` |" in PAGES["conf/README.md"], group
    assert len([line for line in code.splitlines() if line.startswith("| ")]) > 20
