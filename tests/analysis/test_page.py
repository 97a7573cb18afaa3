"""The pages of a report: their structure, their colours, and how a browser lays them out."""

import re
from dataclasses import replace
from itertools import combinations

import pytest
from browser import CHROMIUM, seen
from conftest import runs_of, study
from rich.console import Console

from metaformer.analysis import figures, header, page, sentences, training_figures
from metaformer.analysis.captions import PROBES, captions
from metaformer.analysis.colours import COLOURS, level_colours, on_page
from metaformer.analysis.text_table import Table
from metaformer.analysis.verdict import DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, decisive, judge
from metaformer.config.schema import Data
from metaformer.config.tasks import Task
from metaformer.runs.launch import Run

LONG = "block-with-quite-a-long-name"
TEXT = '<text x="9" y="20" style="font-size: 9px">a map</text>'
SVG = f'<svg width="518pt" height="200pt" viewBox="0 0 518 200">{TEXT}</svg>'


def many_runs():
    """Two settings of four mixers and ten classes; a cell is at chance, and the names of a setting are long."""
    means = {"pooling": 0.7, "identity": 0.09, "attention": 0.71, "spatial": 0.8}
    cells = {
        f"{place}_{mixer}": [mean, mean + 0.04, mean + 0.02, mean + 0.03]
        for place in ("full", LONG)
        for mixer, mean in means.items()
    }
    classes = [f"class {i}" for i in range(10)]
    grid = [[30 if i == j else 1 for j in range(10)] for i in range(10)]
    changes = {"recall": dict.fromkeys(classes, 0.7), "confusion": grid}
    return [replace(r, result=replace(r.result, **changes)) for r in runs_of(**cells)]


@pytest.fixture
def report(tmp_path) -> str:
    """The page of a study with everything on it."""
    probes = tmp_path / "experiments" / "mine" / "probes"
    probes.mkdir(parents=True)
    (probes / "full-probes.html").write_text("")
    for name in PROBES:
        (probes / f"full-{name}.svg").write_text(f"<?xml?>{SVG}")
    folder = tmp_path / "experiments" / "mine"
    page.summarise(study(), many_runs(), Console(record=True, width=140, quiet=True), folder, whole=True)
    return (folder / "report.html").read_text()


@pytest.fixture
def probe() -> str:
    """The page of a comparison of trained mixers."""
    table = Table(["cell", "stage", *(f"number {i}" for i in range(9))], [[LONG, *["0.1234"] * 10]] * 3, "A `caption`.")
    return page.template("probe.html").render(
        title="mine", setting="full", counts="3 cells", written="today", headline=["One sentence."], captions=PROBES,
        figures=dict.fromkeys(PROBES, on_page(SVG, recolour=False)), command="python -m metaformer.probe x",
        tables={"stages": table, "surgery": table, "cka": table},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["report", "probe"])
def test_links_and_captions(name, request):
    html = request.getfixturevalue(name)
    links = re.findall(r'href="([^"]*)"', re.sub(r'xlink:href="(#|data:)[^"]*"', "", html))
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(links) > 4
    assert {link for link in links if not link.startswith("#")} == set()
    assert {link[1:] for link in links} <= set(ids)
    assert len(ids) == len(set(ids))
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html) == []
    pictures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(pictures) == html.count("<svg") + html.count("<img") > 0
    for picture in pictures:
        assert re.search(r'(role="img" aria-label|<img alt)="[^"]{5,}"', picture)
        assert re.search(r"<figcaption>(<strong>.*?</strong>)?[^<]{20,}", picture), picture[-300:]
    assert "`" not in html


def test_the_head_says_what_was_trained(report):
    first = report[: report.index("<nav")]
    for words in ("<h1>Which?</h1>", "of the variance come", "Each cell minus pooling"):
        assert words in first
    for words in ("<dt>Data</dt><dd>", "100 to train, 390 to test, of 10 classes", "<dt>Epochs</dt><dd>5</dd>",
                  "4 (0, 1, 2, 3)", "8 cells", 'aria-label="The stages', "learning rate 0.002"):  # fmt: skip
        assert words in report, words


def test_the_head_counts_steps_where_the_recipe_does():
    (cell,) = judge(study(), runs_of(pooling=[0.7, 0.72, 0.71])).cells
    recipe = replace(cell.first.config.recipe, steps=500, epochs=4, warmup_epochs=1)
    runs = {seed: replace(run, config=replace(run.config, recipe=recipe)) for seed, run in cell.runs.items()}
    told = header.facts(study(), [replace(cell, runs=runs)])
    assert told["Epochs"].endswith(" (500 steps)")
    assert "25% of the steps for warm-up" in told["Recipe"]


def test_a_model_is_drawn_as_it_is():
    runs = runs_of(pooling=[0.7, 0.72, 0.71], identity=[0.6, 0.61, 0.63])
    model = replace(runs[0].result.config.model, depths=[2, 3], dims=[64, 96], stem=[7, 4, 2], downsample=[3, 2, 1])
    config = replace(runs[0].result.config, model=model, data=Data(name="cifar10"))
    runs = [replace(r, result=replace(r.result, config=replace(config, seed=r.seed))) for r in runs]
    (drawn,) = header.drawings(study(), judge(study(), runs).cells)
    assert drawn.image == (32, 32)
    assert list(drawn.stages) == [header.Stage("7 / 4", (8, 8), 64, 2), header.Stage("3 / 2", (4, 4), 96, 3)]


def test_one_sentence_answers():
    runs = runs_of(pooling=[0.70, 0.71, 0.72], identity=[0.50, 0.51, 0.525], attention=[0.80, 0.81, 0.825])
    said = sentences.answer(judge(study(), runs), study())
    assert said.startswith("That all mixers but identity are equivalent within ±1 points is refuted; ")
    assert said.endswith("the largest difference is identity - pooling -19.8 points, different.")


def test_the_first_figure_fits_a_screen_unless_its_rows_would_be_too_small_to_read(tmp_path):
    for mixers, fits in ((25, True), (26, False)):
        own = study()
        runs = runs_of(pooling=[0.7, 0.72, 0.71], **{f"m{i}": [0.7, 0.71, 0.73 + i / 1000] for i in range(1, mixers)})
        written = page.write_files(own, judge(own, runs), runs, Console(), tmp_path, whole=False).read_text()
        assert ('<div class="wide narrow first"' in written) is fits


def test_effects_that_are_nothing_are_counted_and_not_listed():
    runs = many_runs()
    verdicts = judge(study(), runs)
    shares = [
        replace(c, share=share) for c, share in zip(verdicts.shares.everything, (0.9, 0.004, 0.001, 0.1), strict=True)
    ]
    changed = replace(verdicts, shares=replace(verdicts.shares, everything=shares))
    names = [c.name for c in shares]
    told = sentences.answer(changed, study())
    assert told.endswith(f"; of the variance come 90% from {names[0]}, less than 1% from each of the 2 others.")


def test_an_interval_is_drawn_as_its_verdict_was_reached():
    """The 95% interval of `b` leaves zero out, Holm's correction does not: its line has zero in it."""
    runs = runs_of(
        pooling=[0.70, 0.70, 0.70, 0.70],
        a=[0.80, 0.81, 0.82, 0.80],
        b=[0.720, 0.735, 0.711, 0.724],
        c=[0.700, 0.702, 0.698, 0.701],
        d=[0.70, 0.75, 0.66, 0.72],
        e=[0.731, 0.736, 0.702, 0.722],
    )
    study_ = study(variance="own")
    verdicts = judge(study_, runs)
    found = {c.level: c for c in verdicts.confirmatory}
    assert {level: c.verdict for level, c in found.items()} == {
        "a": DIFFERENT, "b": INCONCLUSIVE, "c": EQUIVALENT, "d": INCONCLUSIVE, "e": INCONCLUSIVE,
    }  # fmt: skip
    assert found["b"].difference.low > 0
    for c in found.values():
        interval, confidence = decisive(c)
        zero = interval.low <= 0 <= interval.high
        assert zero == (c.verdict != DIFFERENT), c.level
        if c.verdict != DIFFERENT:
            assert (interval.low > -1 and interval.high < 1) == (c.verdict == EQUIVALENT)
        assert 0.9 <= confidence < 1
    figure = figures.differences(verdicts.confirmatory, study_.analysis, "pooling")
    drawn = [tuple(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 2][1:]
    assert drawn == [(i.low, i.high) for i in (decisive(c)[0] for c in verdicts.confirmatory)]
    assert "Their confidence is 9" in captions(study_, verdicts)["differences"].text


def test_without_a_verdict_an_interval_is_dotted():
    verdicts = judge(study(), runs_of(pooling=[0.7, 0.8], a=[0.8, 0.91]))
    assert verdicts.confirmatory[0].verdict == NONE
    figure = figures.differences(verdicts.confirmatory, study().analysis, "pooling")
    assert [line.get_linestyle() for line in figure.axes[0].lines[1:]] == [":", ":"]
    assert "without a verdict" in captions(study(), verdicts)["differences"].text


def test_a_cell_at_chance_is_marked():
    assert "†" not in captions(study(), judge(study(), runs_of(pooling=[0.7, 0.72, 0.71])))["accuracy"].text
    runs = runs_of(pooling=[0.70, 0.71, 0.72], identity=[0.50, 0.71, 0.72])
    verdicts = judge(study(), runs)
    told = captions(study(), verdicts)["accuracy"].text
    assert "†: a run of it, or of its reference, ended at chance" in told
    figure = figures.accuracy(verdicts.cells, "test_accuracy", "mixer", "pooling")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["pooling", "identity †"]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_one_colour_for_one_meaning(scheme):
    colours = {name: pair[scheme] for name, pair in COLOURS.items()}
    data = [name for name in colours if name not in ("ink", "paper", "quiet", "line")]
    apart = {
        (a, b): sum(abs(int(colours[a][i : i + 2], 16) - int(colours[b][i : i + 2], 16)) for i in (1, 3, 5))
        for a, b in combinations(data, 2)
    }
    assert {pair: far for pair, far in apart.items() if far < 40} == {}
    paper = luminance(colours["paper"])

    def contrast(name: str) -> float:
        low, high = sorted([luminance(colours[name]), paper])
        return (high + 0.05) / (low + 0.05)

    for name in data:
        assert contrast(name) > (1.5 if name in ("fewer", "published") else 2.9), name
    for name in ("ink", "quiet", "equivalent", "different", "inconclusive"):
        assert contrast(name) > 4.5, name


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report", "probe"])
def test_it_fits_a_desktop_and_a_phone(name, dark, request, tmp_path):
    found = seen(request.getfixturevalue(name), tmp_path, (1280, 390), dark=dark)
    for width, one in found.items():
        assert one["page"] <= width
        assert one["texts"] > 20
        assert (one["beyond"], one["without_cue"], one["faint"]) == ([], [], [])
    assert found[1280]["scrolls"] == []


@pytest.mark.parametrize(("task", "last"), [("classification", "head"), ("segmentation", "decoder")])
def test_the_drawing_of_a_model_ends_in_what_it_has(task, last):
    (cell,) = judge(study(), runs_of(pooling=[0.7, 0.72, 0.71])).cells
    runs = {seed: replace(run, config=replace(run.config, task=Task(task))) for seed, run in cell.runs.items()}
    (drawn,) = header.drawings(study(), [replace(cell, runs=runs)])
    assert drawn.last == last
    assert f">{last}</text>" in page.template("macros.html").module.stages(drawn)


def test_the_size_of_images_is_known_of_a_side_and_of_two():
    assert header._shape(Data(name="image_folder", size=[224, 128])) == (3, 224, 128)
    assert header._shape(Data(name="image_folder", size=64, channels=1)) == (1, 64, 64)


def test_a_curve_has_the_epochs_that_were_validated():
    rows = [{"epoch": "1", "val_accuracy": ""}, {"epoch": "2", "val_accuracy": "0.5"}]
    runs = [replace(run, curve=rows) for run in runs_of(pooling=[0.7, 0.8])]
    drawn = training_figures.curves(runs, judge(study(), runs).cells, "val_accuracy", "mixer")
    (line,) = drawn.axes[0].lines
    assert line.get_xydata().tolist() == [[2, 50]]


def trained_longer() -> list[Run]:
    """Three mixers after 6, 24 and 96 epochs, three seeds each."""
    gaps = {"pooling": (0, 0, 0), "identity": (-1, -3, -6), "depthwise": (5, 4, 2)}
    cells = {
        f"{epochs}_{mixer}": [0.6 + (10 * i + gap[i] + seed / 4) / 100 for seed in range(3)]
        for mixer, gap in gaps.items()
        for i, epochs in enumerate((6, 24, 96))
    }
    return [replace(r, levels={"epochs": r.levels["architecture"], "mixer": r.mixer}) for r in runs_of(**cells)]


def test_gaps_are_drawn_along_a_number():
    verdicts = judge(study(), trained_longer())
    figure = training_figures.gaps(verdicts, study().analysis, "pooling")
    axes = figure.axes[0]
    found = {}
    for bars in axes.containers:
        line = bars.lines[0]
        found[bars.get_label()] = (line.get_xdata().tolist(), line.get_ydata().tolist())
    assert found.keys() == {"identity", "depthwise"}
    for name, expected in (("identity", [-1, -3, -6]), ("depthwise", [5, 4, 2])):
        assert found[name][0] == pytest.approx([6, 24, 96], rel=0.05)
        assert found[name][1] == pytest.approx(expected)
    assert axes.get_xlabel() == "epochs"
    colours = level_colours(["pooling", "identity", "depthwise"])  # in the order of the cells, as in all figures
    assert {bars.get_label(): bars.lines[0].get_color() for bars in axes.containers} == {
        name: colours[name] for name in ("identity", "depthwise")
    }
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["6", "24", "96"]
    assert "along the other factor" in captions(study(), verdicts)["gaps"].text


@pytest.mark.parametrize("names", [("short", "long", "longer"), ("6", "6", "6"), ("-1", "nan", "inf")])
def test_gaps_along_names_are_not_drawn(names):
    to = dict(zip(("6", "24", "96"), names, strict=True))
    runs = [replace(r, levels=r.levels | {"epochs": to[r.levels["epochs"]]}) for r in trained_longer()]
    assert training_figures.gaps(judge(study(), runs), study().analysis, "pooling") is None


@pytest.mark.parametrize(("mixers", "again"), [(10, False), (11, True)])
def test_colours_that_start_again_are_told(mixers, again):
    verdicts = judge(study(), runs_of(pooling=[0.7, 0.8], **{f"m{i}": [0.7, 0.8] for i in range(mixers - 1)}))
    assert ("start again after ten" in captions(study(), verdicts)["accuracy"].text) == again
