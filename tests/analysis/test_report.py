import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import on_disk, repository, result_of, runs_of, study
from rich.console import Console

from metaformer.analysis import figures, methods, page, tables
from metaformer.analysis.per_class import confusion
from metaformer.analysis.segmented import _palette, predictions
from metaformer.analysis.text_table import Table, percent
from metaformer.analysis.verdict import judge
from metaformer.config.schema import Data, Reference
from metaformer.config.study_nodes import Study
from metaformer.runs import launch
from metaformer.runs.answers import Examples, PixelAnswers
from metaformer.runs.launch import Entry, Launch, Run, Stage
from metaformer.runs.packed import gather
from metaformer.runs.report_folder import report_folder

BASE = [0.70, 0.74, 0.72]
YAML = """\
# @package _global_
hydra: { mode: MULTIRUN, launcher: { n_jobs: 1 }, sweeper: { params: { mixer: "pooling,identity", seed: "0,1,2" } } }
data: { name: digits, val: 300 }
recipe: { epochs: 1 }
runtime: { threads: 1 }
study: { name: mine, question: "Which <one>?", reference: pooling, analysis: { margin: 3.0 } }
"""


def summarised(runs, *, whole=True, **analysis) -> str:
    """What is printed; a whole study is published."""
    console = Console(record=True, width=140)
    folder = launch.study_folder("mine") if whole else Path("runs/reports/part")
    page.summarise(study(**analysis), runs, console, folder, whole=whole)
    return console.export_text()


@pytest.fixture
def finished(tmp_path):
    """Runs on disk, with a launch that lists them, one of them not finished."""
    runs = runs_of(pooling=BASE, identity=[0.60, 0.66, 0.62], attention=[0.71, 0.74])
    listed = on_disk(runs, tmp_path / "runs")
    listed.append(replace(listed[-1], seed=2, run_id="nowhere"))
    stages = [Stage("2026-01-01T00:00:00+00:00", launch.analysis_of(study()), {"n": len(listed), "ids": "x"})]
    launch.save(Launch("mine", stages, source=launch.source_of("mine"), runs=listed))
    return launch.collect(listed, tmp_path / "runs")


def test_accuracy_table():
    verdicts = judge(study(), runs_of(pooling=[0.7, 0.8, 0.75], identity=[0.7, 0.72, 0.74, 0.9]))
    lines = tables.accuracy_table(verdicts, study()).lines
    assert lines[0][:6] == ["pooling", "3", "75.00 ± 12.42", "75.00 ± 12.42", "", ""]
    assert lines[1][4:6] == ["-3.00 ± 10.83 (n = 3)", "no verdict"]  # one has more seeds than the other
    assert lines[1][6:] == ["1,000", "2.00M"]


def test_an_interval_of_a_small_alpha_is_not_one_of_a_hundred_percent():
    small = study(alpha=0.0025)
    table = tables.verdict_table(
        judge(small, runs_of(pooling=[0.7, 0.8, 0.75], identity=[0.7, 0.72, 0.74])), small.analysis
    )
    assert "99.5% interval" in table.header


def test_a_table_in_latex():
    table = Table(["cell", "a_b"], [["x & y", "-1.50 ± 0.2"], ["`z`", "<0.001"]], "100% of {it}", ("cell",))
    text = table.latex()
    assert r"x \& y & $-$1.50 $\pm$ 0.2 \\" in text
    assert r"\texttt{z} & $<$0.001 \\" in text
    assert r"\caption{100\% of \{it\}}" in text
    assert r"cell & a\_b \\" in text


@pytest.mark.parametrize("cells", [2, 3])
def test_a_confusion_matrix_has_its_first_class_on_top(cells):
    named = dict.fromkeys(("pooling", "identity", "attention")[:cells], BASE)
    axes = confusion(judge(study(), runs_of(**named)).cells).axes[0]
    assert axes.yaxis_inverted()
    extents = [image.get_extent() for image in axes.images]
    assert extents == pytest.approx(np.array([(2.2 * i, 2.2 * i + 2, 2, 0) for i in range(cells)]))
    assert [(t.get_text(), t.get_position()[1]) for t in axes.get_yticklabels()] == [("cat", 0.5), ("dog", 1.5)]


def test_files_of_a_study(tmp_path, finished):
    said = summarised(finished)
    folder = tmp_path / "experiments" / "mine"
    assert "written: experiments/mine/report.html" in said
    assert "left out, not started: attention (seed 2)" in said
    with (folder / "results.csv").open() as file:
        assert [row["test_accuracy"] for row in csv.DictReader(file)][:4] == ["0.7", "0.74", "0.72", "0.6"]
    assert {p.name for p in (folder / "figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("accuracy", "differences", "variance", "cost", "curves", "confusion")
        for kind in ("pdf", "png", "svg")
    }
    assert {p.name for p in (folder / "tables").iterdir()} == {
        f"{name}.{kind}"
        for name in ("accuracy", "verdicts", "variance", "fairness", "exploratory", "recall")
        for kind in ("csv", "md", "tex")
    }
    assert (folder / "tables" / "accuracy.md").read_text().startswith("| cell | n | val | test | minus pooling |")
    assert r"\toprule" in (folder / "tables" / "accuracy.tex").read_text()
    assert (folder / "figures" / "accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".html"}
    summarised(finished)
    assert {p: p.read_bytes() for p in before} == before


def test_the_page_is_self_contained_and_says_it_all(tmp_path, finished):
    summarised(finished)
    page = (tmp_path / "experiments" / "mine" / "report.html").read_text()
    urls = set(re.findall(r'(?:href|src|url)[=(]"?([^")>\s]+)', page))
    assert {u for u in urls if not u.startswith(("#", "data:image/png;base64,"))} == set()
    assert "<script" not in page
    assert page.count("<svg") == 7
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for words in (
        "left out, not started: attention (seed 2)",
        "Fixed at the first launch, 2026-01-01T00:00:00+00:00, before the first of its runs was known",
        "not changed since",
        "Differences within ±1 points count as negligible",
        "Of the variance in test accuracy over these levels (mixer: pooling, identity, attention) and 2 seeds",
        "All mixers but identity (attention, pooling) are equivalent to each other within ±1 points",
        "Each cell was trained with",
        "attention has 2 of 3 planned seeds",
        "<td>run-pooling0</td>",
        "python -m metaformer.train experiments=mine",
    ):
        assert words in page, words


def test_figures_of_the_paper_stand_beside_imagenet_results_only(tmp_path):
    runs = runs_of(pooling=BASE, identity=[0.6, 0.66, 0.62])
    paper = Reference(params=11.9, macs=1.8, top1=77.2)
    for data, grey in ((Data(name="digits"), 0), (Data(name="image_folder", classes=1000), 4)):
        configs = [replace(run.result.config, data=data, reference=paper) for run in runs]
        changed = [replace(r, result=replace(r.result, config=c)) for r, c in zip(runs, configs, strict=True)]
        figure = figures.cost(judge(study(), changed), "test_accuracy", "mixer")
        points = [line for axes in figure.axes for line in axes.lines if line.get_color() == "#aaaaaa"]
        assert len(points) == grey
    assert [line.get_xydata().tolist() for line in points[:2]] == [[[11900.0, 77.2]]] * 2


def test_an_analysis_that_changed_after_the_first_run_is_told(finished):
    launched = launch.read_launch("mine")
    (first,) = launched.analyses
    late = replace(first, time="2026-01-03T00:00:00+00:00", analysis=launch.analysis_of(study(margin=2.0)))
    launched = replace(launched, analyses=[first, late])
    said, caution = methods.history(study(margin=2.0), launched, finished)
    assert "CHANGED 2026-01-03T00:00:00+00:00, after the first run ended: margin 1.0 -> 2.0" in said
    assert caution
    assert "CHANGED now" in methods.history(study(margin=2.0, alpha=0.1), launched, finished)[0]
    assert "never launched" in methods.history(study(), None, finished)[0]
    launched = replace(launched, analyses=[replace(late, runs={"n": n, "ids": n}) for n in (9, 15)])
    said = methods.history(study(margin=2.0), launched, finished)[0]
    assert "when 8 of 9 runs were known already" in said
    assert "9 -> 15 runs" in said


def test_results_changed_by_hand_are_noticed_and_kept(tmp_path, finished):
    summarised(finished)
    results = tmp_path / "experiments" / "mine" / "results.csv"
    honest = results.read_text()
    results.write_text(honest.replace("0.74", "0.94"))
    assert "results.csv was changed by hand" in summarised(finished)
    assert results.read_text() == honest
    assert "0.94" in results.with_name("results.edited.csv").read_text()
    assert "changed by hand" not in summarised(finished)


def test_what_an_earlier_report_said_is_not_left_behind(tmp_path, finished):
    summarised(finished)
    tables_left = tmp_path / "experiments" / "mine" / "tables"
    assert (tables_left / "variance.md").exists()
    lost = [replace(r, result=None, problem="not finished") if r.seed else r for r in finished]
    summarised(lost)
    assert not (tables_left / "variance.md").exists()
    assert "has 1 of 3 planned seeds" in (tables_left / "verdicts.md").read_text()


def test_a_part_of_a_study_has_a_report_of_its_own(tmp_path):
    runs = runs_of(pooling=BASE, identity=[0.6, 0.65])
    assert "written: runs/reports/part/report.html" in summarised(runs, whole=False)
    assert not (tmp_path / "experiments").exists()
    page = (tmp_path / "runs/reports/part/report.html").read_text()
    assert "This is a part of a study, or a sweep that is none" in page
    assert "2 seeds" in page


def test_reports_that_are_not_published_have_a_folder_by_their_words():
    folder = report_folder
    assert folder(Path("runs"), "mine", []) == Path("runs/reports/mine")
    assert folder(Path("r"), None, ["mixer=a,b", "+x/y=[1, 2]"]) == Path("r/reports/mixer=a,b_x_y=_1,_2_")
    long = [folder(Path("r"), "mine", ["x" * 300 + end]).name for end in "ab"]
    assert len({*long}) == 2
    assert max(map(len, long)) < 110


@pytest.mark.parametrize("classes", [2, 11, 21, 60])
def test_each_class_has_a_colour_of_its_own(classes):
    colours = _palette(classes).colors
    assert len(colours) == len(set(colours)) == classes + 1  # and that of no class


def test_nothing_finished(tmp_path):
    listed = [Entry("pooling", {"mixer": "pooling"}, "pooling", 0, "none")]
    assert "nothing to report" in summarised(launch.collect(listed, tmp_path))


def test_a_sweep_of_anything_has_a_table():
    runs = runs_of(pooling=BASE)
    runs = [replace(r, cell=f"lr={r.seed}", levels={"lr": f"0.{r.seed + 1}"}, seed=0) for r in runs]
    assert "lr=2" in summarised(runs, whole=False)


def test_the_page_of_a_sweep_says_what_is_compared_and_with_what_it_was_made(tmp_path):
    runs = runs_of(pooling=BASE[:1], identity=[0.6])
    console = Console(record=True, width=140)
    page.summarise(Study(), runs, console, tmp_path / "r", whole=False, command="python -m x mixer=pooling,identity")
    assert "no verdict (1 seed: it takes 3): identity -10.0" in console.export_text()
    found = (tmp_path / "r/report.html").read_text()
    for words in ("<h1>Mixer: pooling, identity</h1>", "a sweep &middot;", "<code>python -m x mixer=pooling,identity<"):
        assert words in found


def test_a_best_rate_at_the_edge_is_flagged(tmp_path):
    runs = runs_of(**{f"{rate}_{mixer}": [0.5 + 0.1 * rate] for rate in (1, 2, 3) for mixer in ("x", "pooling")})
    runs = [replace(r, levels={"lr": r.levels["architecture"], "mixer": r.mixer}) for r in runs]
    table = tables.rate_table(judge(study(), runs), study().analysis)
    assert table.lines[0][0:2] == ["x", "3"]
    assert "edge" in table.lines[0][-1]
    alone = [replace(r, cell=r.levels["lr"], levels={"lr": r.levels["lr"]}) for r in runs if r.mixer == "x"]
    by_rate = tables.rate_table(judge(study(factor="lr"), alone), study().analysis)
    assert [line[:2] for line in by_rate.lines] == [["all", "3"]]
    summarised(runs)
    assert (tmp_path / "experiments" / "mine" / "figures" / "rates.svg").exists()


def test_the_command(tmp_path, cli):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(YAML)
    nothing = cli("report", "experiments=mine")
    assert nothing.returncode == 1
    assert "nothing to report" in nothing.stdout
    done = cli("train", "experiments=mine", "runtime.progress=false")
    assert done.returncode == 0, done.stderr
    published, page = tmp_path / "experiments" / "mine", tmp_path / "runs" / "reports" / "mine" / "report.html"
    assert "Which &lt;one&gt;?" in page.read_text()
    assert [path.name for path in published.iterdir()] == ["launch.json"]
    page.unlink()
    again = cli("report", "experiments=mine")
    assert again.returncode == 0, again.stderr
    assert "written: runs/reports/mine/report.html" in again.stdout
    assert "within ±3 points" in page.read_text()
    assert [path.name for path in published.iterdir()] == ["launch.json"]
    assert cli("report", "experiments=mine", "publish=true").returncode == 0
    assert {"results.csv", "runs.npz", "report.html"} < {path.name for path in published.iterdir()}
    results = page.with_name("results.csv").read_text()
    shutil.rmtree(tmp_path / "runs")  # as in a clone
    packed = cli("train", "experiments=mine", "runtime.packed=true", "runtime.progress=false")
    assert ", 0 to do" in packed.stdout
    assert not list((tmp_path / "runs").glob("*/result.json"))
    assert page.with_name("results.csv").read_text() == results
    part = cli("train", "experiments=mine", "seed=0", "runtime.packed=true", "runtime.progress=false")
    assert "2 runs, 2 finished, 0 to do" in part.stdout
    narrowed = cli("report", "experiments=mine", "seed=0,1", "publish=true")
    assert "publish=true: a whole study is published, without other words" in narrowed.stderr
    assert "publish=yes: expected true or false" in cli("report", "experiments=mine", "publish=yes").stderr
    unknown = cli("report", "experiments=mne")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "expected experiments=NAME" in cli("report").stderr


def test_two_hundred_runs_take_seconds_and_no_torch(tmp_path):
    random = __import__("numpy").random.default_rng(0)
    cells = {f"{a}_{m}": list(random.uniform(0.7, 0.9, 5)) for a in "abcde" for m in ("pooling", *map(str, range(7)))}
    listed = on_disk(runs_of(**cells), tmp_path / "runs", images=3000)
    assert len(listed) == 200
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(YAML)
    stages = [Stage("2026-01-01T00:00:00+00:00", launch.analysis_of(study()), {"n": len(listed), "ids": "x"})]
    launch.save(Launch("mine", stages, source=launch.source_of("mine"), runs=listed))
    code = "import sys; from metaformer import report; report.report(['experiments=mine'])"
    code += "; assert 'torch' not in sys.modules"
    code += "; import time; print('seconds', time.process_time())"  # its own: tests share the machine
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/reports/mine/report.html").exists()
    assert float(done.stdout.split()[-1]) < 10  # 4-5 s on a quiet machine


def test_time_is_told_only_where_every_run_was_alone():
    def told(cores: float) -> tuple[bool, bool]:
        runs = runs_of(pooling=[0.7, 0.8, 0.75], identity=[0.7, 0.72, 0.74])
        first = replace(runs[0], result=replace(runs[0].result, other_runs=0, other_cores=cores))
        others = [replace(run, result=replace(run.result, other_runs=0, other_cores=0.0)) for run in runs[1:]]
        made = tables.all_tables(study(), judge(study(), [first, *others]))
        accuracy, fairness = made["accuracy"], made["fairness"]
        assert all(len(line) == len(table.header) for table in (accuracy, fairness) for line in table.lines)
        assert ("s/run: measured alone" in accuracy.caption) != ("Times of training are no cost" in fairness.caption)
        return accuracy.header[-1] == "s/run", fairness.header[-1] == "time"

    assert told(0.1) == (True, True)
    assert told(0.9) == (False, False)


def test_a_table_says_of_what_its_intervals_are(tmp_path):
    runs = runs_of(pooling=[0.7, 0.8, 0.75], identity=[0.7, 0.72, 0.74])

    def caption(runs: list[Run]) -> str:
        return tables.all_tables(study(), judge(study(), runs))["accuracy"].caption

    assert "other images" not in caption(runs)
    on_disk(runs, tmp_path)
    kept = [replace(run, folder=tmp_path / run.result.name) for run in runs]
    assert "for other seeds and other images, but for val, which is for other seeds alone" in caption(kept)


def test_names_with_characters_of_other_languages():
    table = Table(["a|b", "[x]"], [["c|d", "1"], ["[2,2]", "2"]], "[y]")
    assert table.markdown().splitlines()[0] == "| a\\|b | [x] |"
    assert "{}[2,2] & 2" in table.latex()
    console = Console(record=True, width=80)
    console.print(table.rich())
    assert {"[x]", "[y]", "[2,2]"} <= set(console.export_text().split())


def test_confidences_close_to_all_are_not_all():
    assert list(map(percent, (0.95, 0.9986, 0.99964, 1 - 1e-9))) == ["95.0%", "99.9%", "99.96%", "100.000000%"]


def test_nothing_but_baselines_is_nothing_to_report(tmp_path):
    runs = runs_of(resnet=BASE)
    said = summarised(runs, whole=False, baselines=["resnet"])
    assert "nothing to report" in said


def test_sentences_about_what_was_not_done(finished):
    alone = judge(study(alpha=0.2, correction="none"), runs_of(x=BASE))
    said = methods.methods(alone, study(alpha=0.2, correction="none"))
    assert "was trained with 3 seeds" in said
    assert "compared with" not in said
    assert "in simulations" not in methods.analysis_words(study(alpha=0.2, correction="none"))
    assert "in simulations" in methods.analysis_words(study())
    whole = judge(study(), runs_of(pooling=BASE, identity=BASE, attention=[0.71, 0.74, 0.7]))
    assert "That all mixers but identity are equivalent" in methods.methods(whole, study())


def test_pictures_of_predictions_stand_below_their_own_images():
    def run_on(images: str, few: int, grey: int) -> Run:
        shown = Examples(np.ones((few, 8, 8), int), np.full((few, 8, 8, 1), grey, np.uint8), np.zeros((few, 8, 8), int))
        answers = PixelAnswers(np.ones((few, 2, 3), int), np.ones(few), shown)
        result = replace(result_of(0, 0.5, images, fingerprint=images), recall={"ground": 0.5, "shirt": 0.5})
        return Run(f"{images} pooling", {"data": images}, "pooling", 0, images, None, result, packed=answers)

    figure = predictions([run_on("a", 3, 50), run_on("b", 2, 200)])
    rows = np.array(figure.axes).reshape(6, 3)
    assert [row[0].get_ylabel().replace("\n", " ") for row in rows] == [
        "image", "mask", "a pooling", "image", "mask", "b pooling",
    ]  # fmt: skip
    assert [row[0].images[0].get_array().max() for row in rows] == [50, 0, 1, 200, 0, 1]
    assert [[len(axes.images) for axes in row] for row in rows] == [[1, 1, 1]] * 3 + [[1, 1, 0]] * 3


PUBLISHED = sorted(path.parent.name for path in (repository() / "experiments").glob("*/report.html"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tables_of_a_study_are_what_its_packed_runs_give(name, monkeypatch):
    monkeypatch.chdir(repository())
    launched = launch.read_launch(name)
    study = launched.analyses[-1].study(name)
    verdicts = judge(study, gather(name, launched.runs, Path("nowhere")), launched.planned_seeds)
    made = {table: text.markdown() for table, text in tables.all_tables(study, verdicts).items() if text.lines}
    folder = launch.study_folder(name) / "tables"
    assert made
    assert {table: (folder / f"{table}.md").read_text() for table in made} == made
