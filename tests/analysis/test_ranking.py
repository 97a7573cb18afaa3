from types import SimpleNamespace

from conftest import runs_of, study

from metaformer.analysis.ranking import Place, ranking
from metaformer.analysis.tables import rank_table
from metaformer.analysis.verdict import judge

STEP = (0.0, 0.003, -0.002)  # of the seeds
LEVELS = {"attention": 0.9, "pooling": 0.7, "depthwise": 0.701}
SWAPPED = {"attention": 0.4, "pooling": 0.6, "depthwise": 0.8}


def accuracies(mean, scatter):
    return [mean + step + other for step, other in zip(STEP, scatter, strict=True)]


def runs():
    """Two settings: in one attention leads and two are level; in the other all differ, in another order."""
    scatter = {"attention": (0, 0.001, 0), "pooling": (0.001, 0, 0), "depthwise": (0, 0, 0.002)}
    cells = {f"few_{level}": accuracies(mean, scatter[level]) for level, mean in LEVELS.items()}
    cells |= {f"many_{level}": accuracies(mean, scatter[level]) for level, mean in SWAPPED.items()}
    return runs_of(**cells)


def pair(setting, first, second, difference):
    cells = [SimpleNamespace(levels={"mixer": level}) for level in (first, second)]
    return SimpleNamespace(setting=setting, factor="mixer", cells=cells, crossed=SimpleNamespace(mean=difference))


def test_a_rank_is_open_between_what_is_surely_better_and_what_is_not_surely_worse():
    pairs = [pair("one", "a", "b", 3.0), pair("one", "a", "c", 2.0), pair("one", "b", "c", -1.0)]
    pairs += [pair("two", "a", "b", 0.0), pair("two", "a", "c", 1.0), pair("two", "b", "c", 1.0)]
    found = {r.level: r for r in ranking(pairs, [0.01, 0.2, 0.2, 1.0, 0.04, 0.06], 0.05, higher=True)}
    assert found["a"].places == {"one": Place(1, 1, 2), "two": Place(1.5, 1, 2)}
    assert found["b"].places == {"one": Place(3, 2, 3), "two": Place(1.5, 1, 3)}
    assert found["c"].places == {"one": Place(2, 1, 3), "two": Place(3, 2, 3)}
    assert found["a"].over_all == Place(1.25, 1, 2)
    assert list(found) == ["a", "b", "c"]


def test_where_less_is_better():
    pairs = [pair(setting, "a", "b", 1.0) for setting in ("one", "two")]
    found = ranking(pairs, [0.01, 0.01], 0.05, higher=False)
    assert [(r.level, r.over_all) for r in found] == [("b", Place(1, 1, 1)), ("a", Place(2, 2, 2))]


def test_one_setting_or_other_levels_have_no_ranking():
    assert ranking([], [], 0.05, higher=True) == []
    assert ranking([pair("one", "a", "b", 1.0)], [0.01], 0.05, higher=True) == []
    other = [pair("one", "a", "b", 1.0), pair("two", "a", "c", 1.0)]
    assert ranking(other, [0.01, 0.01], 0.05, higher=True) == []


def test_the_ranks_of_a_study():
    asked = study()
    table = rank_table(judge(asked, runs()), asked.analysis)
    assert table.header == ["mixer", "mean rank of 3", "few", "many"]
    assert table.lines == [
        ["depthwise", "1.5 [1.5, 2.0]", "2 [2, 3]", "1 [1, 1]"],
        ["attention", "2.0 [2.0, 2.0]", "1 [1, 1]", "3 [3, 3]"],
        ["pooling", "2.5 [2.0, 2.5]", "3 [2, 3]", "2 [2, 2]"],
    ]
    assert rank_table(judge(asked, runs()[:9]), asked.analysis).lines == []
