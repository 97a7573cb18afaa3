from dataclasses import replace

import numpy as np
import pytest
from conftest import result_of, runs_of, study
from scipy import stats

from metaformer.analysis import comparison, figures, inference, sentences, stages
from metaformer.analysis.inference import over_seeds
from metaformer.analysis.interim_looks import Look, looks_at
from metaformer.analysis.sentences import headline
from metaformer.analysis.stats import holm
from metaformer.analysis.tables import accuracy_table
from metaformer.analysis.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, judge
from metaformer.config.schema import Data
from metaformer.runs.answers import Answers
from metaformer.runs.launch import Run
from metaformer.runs.result import Result
from metaformer.system.errors import ConfigError

BASE = [0.80, 0.82, 0.81, 0.83, 0.79]


def shifted(by: float, noise: float, seed: int = 0) -> list[float]:
    """BASE plus a difference whose mean over the seeds is exactly `by`, in points."""
    wobble = np.random.default_rng(seed).normal(size=len(BASE))
    wobble = noise * (wobble - wobble.mean()) / wobble.std(ddof=1)
    return [value + (by + w) / 100 for value, w in zip(BASE, wobble, strict=True)]


def with_options(result: Result, **options) -> Result:
    """The same with options of its mixer."""
    return replace(result, config=replace(result.config, mixer={**result.config.mixer, **options}))


def by_level(comparisons) -> dict:
    return {c.level: c for c in comparisons}


def test_the_four_verdicts():
    found = by_level(
        judge(
            study(variance="own"),
            runs_of(
                pooling=BASE,
                same=shifted(0.05, 0.2),
                better=shifted(5, 0.5),
                less=shifted(0.5, 0.05),
                unclear=shifted(1, 2),
            ),
        ).confirmatory
    )
    assert {level: c.verdict for level, c in found.items()} == {
        "same": EQUIVALENT, "better": DIFFERENT, "less": BOTH, "unclear": INCONCLUSIVE,
    }  # fmt: skip
    assert found["better"].difference.mean == pytest.approx(5)
    low, high = stats.t.interval(0.9, 4, 5, 0.5 / np.sqrt(5))
    tost = found["better"].tost_interval(0.05)
    assert (tost.low, tost.high) == pytest.approx((low, high))
    narrow = by_level(judge(study(alpha=0.01), runs_of(pooling=BASE, better=shifted(5, 0.5))).confirmatory)["better"]
    assert narrow.tost_interval(0.01).low == pytest.approx(stats.t.interval(0.98, 4, 5, 0.5 / np.sqrt(5))[0])
    low, high = found["unclear"].seeds_needed
    assert 5 < low < high
    assert found["same"].seeds_needed is None


def test_p_values_are_adjusted_within_a_setting_and_not_over_settings():
    runs = runs_of(a_pooling=BASE, a_x=shifted(1, 1), a_y=shifted(2, 1, 1), b_pooling=BASE, b_x=shifted(1, 1))
    found = {c.name: c for c in judge(study(margin=1.5, variance="own"), runs).confirmatory}
    differences = [
        [100 * (m - r) for m, r in zip(shifted(by, 1, seed), BASE, strict=True)] for by, seed in ((1, 0), (2, 1))
    ]
    raw = [over_seeds(d).difference_p() for d in differences]
    assert [found[f"a {level} - pooling"].p_difference for level in "xy"] == pytest.approx(holm(raw))
    assert found["b x - pooling"].p_difference == pytest.approx(raw[0])
    assert found["b x - pooling"].p_equivalence == pytest.approx(over_seeds(differences[0]).equivalence_p(1.5))
    uncorrected = {c.name: c for c in judge(study(margin=1.5, correction="none", variance="own"), runs).confirmatory}
    assert uncorrected["a y - pooling"].p_difference == pytest.approx(raw[1])


def test_other_pairs_are_exploratory():
    runs = runs_of(a_pooling=BASE, a_x=shifted(1, 1), a_y=shifted(2, 1, 1), b_pooling=BASE, b_x=shifted(1, 1))
    found = judge(study(), runs)
    assert {c.name for c in found.confirmatory} == {"a x - pooling", "a y - pooling", "b x - pooling"}
    assert {(c.name, c.factor) for c in found.exploratory} == {
        ("a x - y", "mixer"), ("pooling a - b", "architecture"), ("x a - b", "architecture"),
    }  # fmt: skip
    assert all(c.verdict == "" for c in found.exploratory)
    (pair,) = [c for c in found.exploratory if c.factor == "mixer"]
    d = [100 * (m - r) for m, r in zip(shifted(1, 1), shifted(2, 1, 1), strict=True)]
    assert pair.p_difference == pytest.approx(over_seeds(d).difference_p())
    assert not any(c.confounds for c in found.exploratory)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"norm": "layer"}}, "model.norm (layer against group)"),
        ({"model": {"position": [True]}}, "model.position"),
        ({"recipe": {"optimizer": "lamb"}}, "recipe.optimizer"),
        ({"recipe": {"batch": 32}}, "recipe.batch"),
        ({"recipe": {"epochs": 9}}, "recipe.epochs"),
        ({"recipe": {"precision": "bf16"}}, "recipe.precision"),
        ({"fingerprint": "f"}, "other images"),
        ({"params": 1200}, "parameters +20% (tolerance 10%)"),
        ({"macs": 1_000_000}, "MACs -50% (tolerance 10%)"),
        ({"macs": None}, "MACs not counted"),
        ({"training_version": 2}, "version of the training code (2 against 1)"),
        ({"versions": {"torch": "3"}}, "torch (3 against 2)"),
        ({"device": "H100"}, "device (H100 against cpu)"),
        ({"accumulate": 4}, "runtime.accumulate (4 against 1)"),
        ({"devices": 2}, "devices (2 against 1)"),
        ({"python": "3.13"}, "Python (3.13 against 3.11)"),
        ({"epochs": 3}, "trained epochs (3 of 5 against all)"),
        ({"images": 99}, "trained images (99 against 100)"),
        ({"runtime": {"tf32": True}}, "runtime.tf32 (True against False)"),
        ({"runtime": {"compile": True}}, "runtime.compile (True against False)"),
    ],
)
def test_a_confound_takes_the_verdict_away(change, words):
    runs = runs_of(pooling=BASE, x=shifted(5, 0.5))
    runs = [
        replace(r, result=result_of(r.seed, r.result.metrics["test_accuracy"], r.run_id, **change))
        if r.mixer == "x"
        else r
        for r in runs
    ]
    (found,) = judge(study(), runs).confirmatory
    assert found.verdict == NONE
    assert any(words in confound for confound in found.confounds)
    assert words in found.notes[0]


def test_tuned_keys_and_machine_paths_are_no_confound():
    changed = []
    for run in runs_of(pooling=BASE, x=shifted(5, 0.5)):
        result = result_of(run.seed, run.result.metrics["test_accuracy"], recipe={"lr": run.seed})
        config = replace(result.config, data=Data(root=run.mixer))
        changed.append(replace(run, result=replace(result, config=config)))
    assert by_level(judge(study(tuned=["recipe.lr"]), changed).confirmatory)["x"].verdict == DIFFERENT


def test_a_key_as_factor_allows_that_key_and_a_row_of_a_list_one_thing():
    def run(cell, factor, options=None, **changes):
        results = [result_of(seed, 0.7 + 0.01 * seed * len(cell), **changes) for seed in (0, 1)]
        results = [with_options(result, **options or {}) for result in results]
        return [Run(cell, {factor: cell}, "pooling", r.seed, "", None, r) for r in results]

    norm = replace(study(factor="norm"), reference="base")
    (clean,) = judge(norm, run("base", "norm") + run("layer", "norm", model={"norm": "layer"})).confirmatory
    assert clean.confounds == []
    two_keys = {"norm": "layer", "act": "relu"}
    (both,) = judge(norm, run("base", "norm") + run("layer", "norm", model=two_keys)).confirmatory
    assert both.confounds == ["model.act (relu against gelu)"]
    rows = replace(study(factor="mine"), reference="base")
    other = run("hybrid", "mine", mixer="y", options={"pool_size": 3})
    (mixer,) = judge(rows, run("base", "mine") + other).confirmatory
    assert mixer.confounds == []
    relu = {"act": "relu"}
    (one,) = judge(rows, run("base", "mine") + run("relu", "mine", model=relu)).confirmatory
    assert one.confounds == []
    (two,) = judge(rows, run("base", "mine") + run("relu", "mine", model=relu, recipe={"lr": 1})).confirmatory
    assert len(two.confounds) == 2


def test_one_seed_gives_no_verdict_and_says_why():
    (found,) = judge(study(), runs_of(pooling=[0.8], x=[0.9])).confirmatory
    assert found.verdict == NONE
    assert "1 seed: it takes 3" in found.notes


def test_a_planned_seed_that_is_missing_leaves_no_verdict():
    """Else a study could be judged after each seed, or a run removed that did not please."""
    (found,) = judge(study(), runs_of(pooling=BASE, x=shifted(5, 0.5)[:4])).confirmatory
    assert found.crossed.seeds == 4  # the estimate is shown
    assert (found.verdict, found.notes) == (NONE, ["x has 4 of 5 planned seeds"])
    runs = [r for r in runs_of(pooling=BASE, x=shifted(5, 0.5)) if r.seed != 3]
    assert judge(study(), runs).confirmatory[0].verdict == DIFFERENT  # four were planned
    found = judge(study(), runs, planned=range(5)).confirmatory[0]  # five were, and one is not even listed
    assert found.notes == ["x has 4 of 5 planned seeds; pooling has 4 of 5 planned seeds"]
    odd = [
        replace(r, result=None, problem="test_loss is nan") if r.seed == 3 else r for r in runs_of(pooling=BASE, x=BASE)
    ]
    assert judge(study(), odd).confirmatory[0].verdict == NONE


def test_no_variance_between_seeds_gives_no_verdict():
    (found,) = judge(study(), runs_of(pooling=[0.8, 0.8, 0.8], x=[0.8, 0.8, 0.8])).confirmatory
    assert found.verdict == NONE
    assert "no variance" in found.notes[0]


def test_what_cannot_be_tested_counts_in_its_family():
    alone = by_level(judge(study(), runs_of(pooling=BASE, x=shifted(1, 1))).confirmatory)["x"]
    beside = by_level(judge(study(), runs_of(pooling=BASE, x=shifted(1, 1), y=[0.5])).confirmatory)
    assert beside["x"].p_difference == pytest.approx(2 * alone.p_difference)
    assert beside["y"].verdict == NONE


def test_the_metric_is_that_of_the_analysis():
    runs = runs_of(pooling=BASE, x=BASE)
    for run in runs:
        run.result.metrics["val_accuracy"] = 0.5 + 0.01 * run.seed + 0.1 * (run.mixer == "x")
    (found,) = judge(study(metric="val_accuracy"), runs).confirmatory
    assert found.difference.mean == pytest.approx(10)


def test_shares_need_the_whole_grid():
    whole = runs_of(a_pooling=BASE, a_identity=shifted(-5, 1), a_x=shifted(1, 1),
                    b_pooling=shifted(8, 1), b_identity=shifted(2, 1, 1), b_x=shifted(9, 1, 2))  # fmt: skip
    shares = judge(study(), whole).shares
    assert [c.name for c in shares.everything] == [
        "architecture", "mixer", "architecture x mixer", "seed",
    ]  # fmt: skip
    assert shares.everything[0].share > 0.5
    assert shares.without_identity[1].share < shares.everything[1].share
    partial = judge(study(), [run for run in whole if run.cell != "b x"]).shares
    assert "not a full grid" in partial.reason
    one = judge(study(), [run for run in whole if run.seed == 0]).shares
    assert "two seeds" in one.reason


def test_what_has_no_finished_run_counts_in_its_family_and_has_a_reason():
    """A mixer that failed on all seeds must not make the others significant."""
    runs = runs_of(a_pooling=BASE, a_x=shifted(1, 1), a_y=BASE, b_pooling=BASE, b_x=BASE)
    lost = [replace(r, result=None, problem="not finished") if r.cell in ("a y", "b pooling") else r for r in runs]
    found = {c.name: c for c in judge(study(), lost).confirmatory}
    alone = judge(study(), [r for r in lost if r.cell in ("a pooling", "a x")]).confirmatory[0]
    assert found["a x - pooling"].p_difference == pytest.approx(2 * alone.p_difference)
    assert (found["a y - pooling"].verdict, found["a y - pooling"].notes) == (NONE, ["no finished run of a y"])
    assert found["b x - pooling"].notes == ["no finished run of b pooling"]
    apart = runs_of(pooling=BASE, x=BASE)
    apart = [r for r in apart if (r.seed < 2) == (r.mixer == "x")]
    (none,) = judge(study(), apart).confirmatory
    assert none.notes == ["x has 2 of 5 planned seeds; pooling has 3 of 5 planned seeds"]


def test_an_option_of_the_mixer_as_factor():
    def run(size: int, **changes):
        results = [result_of(seed, 0.7 + 0.01 * seed * size, **changes) for seed in (0, 1)]
        results = [with_options(result, pool_size=size) for result in results]
        return [Run(f"pool_size={size}", {"pool_size": str(size)}, "pooling", r.seed, "", None, r) for r in results]

    sizes = replace(study(factor="pool_size"), reference="3")
    (clean,) = judge(sizes, run(3) + run(5)).confirmatory
    assert clean.confounds == []
    (both,) = judge(sizes, run(3) + run(5, mixer="other")).confirmatory
    assert both.confounds == ["mixer._target_ (other against x)"]


def test_times_of_two_devices_are_not_compared():
    runs = runs_of(pooling=BASE, x=shifted(1, 1))
    assert judge(study(), runs).confirmatory[0].ratio("seconds") == 1
    moved = [replace(r, result=replace(r.result, device=r.mixer)) for r in runs]
    assert judge(study(), moved).confirmatory[0].ratio("seconds") is None


def test_matched_views():
    runs = runs_of(pooling=BASE, x=shifted(1, 1))
    runs = [replace(r, result=replace(r.result, params=1300 if r.mixer == "x" else 1000)) for r in runs]
    analysis = study(tolerance=None).analysis
    (found,) = judge(study(tolerance=None), runs).confirmatory
    assert found.verdict != NONE
    assert not comparison.matched(found, "params", analysis)
    assert comparison.matched(found, "macs", analysis)


# ------------------------------------------------------------------ failures, claims, contrasts, looks, added seeds


def failed(runs: list[Run], cell: str, seed: int) -> list[Run]:
    return [
        replace(r, result=None, problem="failed: diverged: loss is nan") if (r.cell, r.seed) == (cell, seed) else r
        for r in runs
    ]


def test_a_run_that_failed_leaves_its_cell_without_a_verdict():
    """The others are equivalent to the last digit: a failure must not make a mixer look better."""
    runs = failed(runs_of(pooling=BASE, x=shifted(0.05, 0.2)), "x", 3)
    found = judge(study(), runs)
    assert found.confirmatory[0].verdict == NONE
    assert found.confirmatory[0].notes[0] == "a run failed: x (seed 3)"
    assert "failed" in found.shares.reason
    (guessed,) = judge(study(failed="chance"), runs).confirmatory
    assert guessed.verdict == INCONCLUSIVE
    everything = [replace(r, result=None, problem="failed: x") if r.cell == "x" else r for r in runs]
    lost = judge(study(), everything)
    assert "runs of x failed" in lost.shares.reason
    assert sentences.failures(lost) == ["x: 5 of 5 runs failed (x)."]
    assert guessed.crossed.seeds == 5
    assert guessed.difference.mean == pytest.approx(-6, abs=1)  # one of five is a guess between two classes
    assert "x failed at seed 3 and counts as a guess there" in guessed.notes


def test_a_collapsed_run_is_counted_and_told():
    runs = runs_of(pooling=BASE, x=[*shifted(0, 0.2)[:4], 0.5])
    (found,) = judge(study(), runs).confirmatory
    assert "x is at chance at seed 4" in found.notes
    assert judge(study(), runs).cells[1].collapsed == [4]


def test_two_seeds_give_no_verdict():
    (found,) = judge(study(), runs_of(pooling=BASE[:2], x=BASE[1:3])).confirmatory
    assert (found.verdict, found.notes[0]) == (NONE, "2 seeds: it takes 3")


def test_the_lint_reads_every_seed():
    """The first seeds are alike; a later one was trained otherwise."""
    runs = runs_of(pooling=BASE, x=shifted(5, 0.5))
    odd = result_of(3, 0.9, "x3", mixer="x", recipe={"batch": 32})
    runs = [replace(r, result=odd) if (r.cell, r.seed) == ("x", 3) else r for r in runs]
    (found,) = judge(study(), runs).confirmatory
    assert found.verdict == NONE
    assert any("recipe.batch" in line for line in found.confounds)
    assert any(line.startswith("the seeds of x: recipe.batch") for line in found.confounds)


def test_the_shares_are_linted_too():
    runs = runs_of(pooling=BASE, x=shifted(1, 1), y=shifted(2, 1, 1))
    moved = [replace(r, result=replace(r.result, accumulate=4)) if r.cell == "y" else r for r in runs]
    assert "runtime.accumulate" in judge(study(), moved).shares.reason


def test_other_labels_of_the_test_images_are_a_confound():
    runs = runs_of(pooling=BASE, x=shifted(5, 0.5))
    labels = np.repeat([0, 1], 50)
    answers = {r.run_id: Answers(labels, labels[::-1] if r.mixer == "x" else labels) for r in runs}
    (found,) = judge(study(), [replace(r, packed=answers[r.run_id]) for r in runs]).confirmatory
    assert "other labels of the test images" in found.confounds


def answered(runs: list[Run], images: int = 400) -> list[Run]:
    """The same with predictions, of which those of one seed are right for the same images in all cells."""
    labels, packed = np.zeros(images, int), []
    for run in runs:
        right = round(images * run.result.metrics["test_accuracy"])
        hard = np.random.default_rng(7).permutation(images)  # which images are hard
        predictions = np.ones(images, int)
        predictions[hard[:right]] = 0
        packed.append(replace(run, packed=Answers(predictions, labels)))
    return packed


def test_verdicts_are_for_other_images_where_predictions_are_kept():
    runs = runs_of(pooling=BASE, x=shifted(3, 0.1))
    (fixed,) = judge(study(variance="own"), runs).confirmatory
    (crossed,) = judge(study(variance="own"), answered(runs)).confirmatory
    assert (fixed.crossed.images, crossed.crossed.images) == (0, 400)
    assert crossed.fixed.estimate() == fixed.difference
    assert crossed.difference.low < fixed.difference.low
    assert crossed.difference.mean == pytest.approx(fixed.difference.mean, abs=1e-9)
    by_val = judge(study(variance="own", metric="val_accuracy"), answered(runs)).confirmatory[0]
    assert by_val.crossed.images == 0


def test_the_claim_is_an_intersection_union_test():
    equal = {f"flat_{name}": shifted(0, 0.1, i) for i, name in enumerate(("pooling", "x", "y"))}
    (claim,) = judge(study(), runs_of(**equal, flat_identity=shifted(-9, 0.1, 5))).claims
    assert (claim.outcome, claim.levels) == ("shown", ["x", "pooling", "y"])
    assert claim.p < 0.05
    other = runs_of(**equal, deep_pooling=BASE, deep_x=shifted(5, 0.3), deep_y=shifted(0.6, 1, 2))
    flat, deep = judge(study(), other).claims
    assert (flat.outcome, deep.outcome) == ("shown", "refuted")
    assert "deep x - pooling" in {c.name for c in deep.by}
    fewer = [r for r in other if r.cell != "deep y"]
    said = sentences.headline(judge(study(), fewer), study())[0]
    assert "flat SHOWN" in said
    assert "deep (x, pooling) REFUTED" in said
    (unclear,) = judge(study(), runs_of(pooling=BASE, x=shifted(0.8, 1.5))).claims
    assert unclear.outcome == "not shown"
    (with_identity,) = judge(study(claim_without=[]), runs_of(pooling=BASE, identity=shifted(-9, 0.1))).claims
    assert with_identity.outcome == "refuted"


def test_two_names_of_one_network_do_not_keep_a_claim_from_being_shown():
    """As a window of attention that is as large as the map, and attention: they say the same of every image."""
    values = {"pooling": BASE, "x": shifted(0, 0.1, 1), "same": shifted(0, 0.1, 1)}
    (claim,) = judge(study(), answered(runs_of(**values))).claims
    assert claim.outcome == "shown"
    (found,) = judge(study(), answered(runs_of(pooling=BASE, same=BASE))).confirmatory
    assert found.verdict == NONE  # there is nothing to test
    assert "two names of one network" in found.notes[0]
    (few,) = judge(study(), answered(runs_of(pooling=BASE[:2], same=BASE[:2]))).claims
    assert few.outcome == "not shown"  # two seeds show nothing, of one network either
    (unknown,) = judge(study(), runs_of(**values)).claims  # without their predictions nobody knows
    assert unknown.outcome == "not shown"


def test_a_contrast_is_tested_like_a_comparison():
    runs = runs_of(layer_pooling=BASE, layer_identity=shifted(-5, 0.2), group_pooling=BASE,
                   group_identity=shifted(-1, 0.2, 1))  # fmt: skip
    weights = {"layer identity": 1, "layer pooling": -1, "group identity": -1, "group pooling": 1}
    found = judge(study(contrasts={"norm_for_identity": weights}), runs)
    (contrast,) = found.contrasts
    assert contrast.difference.mean == pytest.approx(-4)
    assert contrast.verdict == DIFFERENT
    assert contrast in found.tested
    assert contrast.crossed.df == 4  # its own variance, which is of another size than that of a pair
    without = judge(study(), runs).confirmatory[0]
    assert found.confirmatory[0].p_difference == without.p_difference
    costly = [replace(r, result=replace(r.result, params=2000)) if r.cell == "layer identity" else r for r in runs]
    assert judge(study(contrasts={"a": weights}), costly).contrasts[0].verdict == NONE
    with pytest.raises(ConfigError, match=r"contrasts\.a: group pooling: is no cell to compare"):
        judge(study(contrasts={"a": weights}), [r for r in runs if r.cell != "group pooling"])
    both = judge(study(contrasts={"a": weights, "b": weights}, variance="own"), runs).contrasts
    single = judge(study(contrasts={"a": weights}, variance="own"), runs).contrasts[0]
    assert both[0].p_difference == pytest.approx(2 * single.p_difference)  # a family of their own


def test_one_correction_over_the_study():
    runs = runs_of(a_pooling=BASE, a_x=shifted(1, 1), b_pooling=BASE, b_x=shifted(1, 1))
    once = judge(study(variance="own"), runs).confirmatory[0]
    twice = judge(study(variance="own", correction="holm_study"), runs).confirmatory[0]
    assert twice.p_difference == pytest.approx(2 * once.p_difference)


def test_looks_spend_alpha_and_a_verdict_of_an_early_one_stays():
    more = [*BASE, 0.80, 0.81, 0.82, 0.80]
    wobble = [0.1, -0.1, 0.05, 0, -0.05, 0.1, 0, -0.1, 0]
    x = [value + (5 + w) / 100 for value, w in zip(more, wobble, strict=True)]
    options = {"looks": [5, 8, 12], "variance": "own"}
    early = judge(study(**options), runs_of(pooling=more[:4], x=x[:4]))
    assert (early.looks, early.confirmatory[0].verdict) == ([], NONE)
    assert early.confirmatory[0].notes == ["the first look is at 5 seeds"]
    assert early.claims[0].outcome == "not shown"
    found = judge(study(**options), runs_of(pooling=more, x=x))
    assert [len(look.seeds) for look in found.looks] == [5, 8]
    assert found.confirmatory[0].verdict == DIFFERENT
    assert found.confirmatory[0].crossed.seeds == 5  # the look that decided, with its estimate
    assert found.shares.seeds == 8  # the ninth waits for the third look
    part = judge(study(**options), runs_of(pooling=more, x=x, y=[*BASE[:4], *more[4:7]][:7])).confirmatory
    assert [c.crossed.seeds for c in part if c.level == "y"] == [7]  # what lacks a seed of the second look
    assert [c.notes for c in part if c.level == "y"] == [["y has 7 of 8 planned seeds"]]


def test_seeds_that_were_not_planned_count_for_no_verdict():
    more = [*BASE, 0.80, 0.81]
    x = [*shifted(1, 1), 0.9, 0.9]
    planned = judge(study(), runs_of(pooling=BASE, x=x[:5])).confirmatory[0]
    found = judge(study(), failed(runs_of(pooling=more, x=x), "x", 6), planned=[0, 1, 2, 3, 4])
    assert found.confirmatory[0].p_difference == planned.p_difference
    assert found.added[0].crossed.seeds == 6  # one of the added ones failed, which takes no verdict away
    assert found.shares.seeds == 5
    late = judge(study(looks=[5, 7]), runs_of(pooling=more, x=x), planned=[0, 1, 2, 3, 4])
    assert [len(look.seeds) for look in late.looks] == [5]  # looks that nobody planned buy no second one
    assert np.isnan(found.added[0].p_difference)


def test_a_metric_that_the_runs_do_not_have_is_named():
    runs = runs_of(pooling=BASE, x=BASE)
    for run in runs:
        run.result.metrics.pop("test_macro_f1")
    with pytest.raises(ConfigError, match=r"study.analysis.metric=test_macro_f1: run-pooling0 has none; expected one"):
        judge(study(metric="test_macro_f1"), runs)


def test_a_baseline_is_shown_and_part_of_nothing():
    cells = {"pooling": BASE, "identity": shifted(-9, 0.1), "attention": shifted(0.1, 0.1)}
    without = judge(study(), runs_of(**cells))
    found = judge(study(baselines=["resnet"]), runs_of(**cells, resnet=shifted(20, 0.3)))
    assert [cell.name for cell in found.baselines] == ["resnet"]
    assert [cell.name for cell in found.cells] == [cell.name for cell in without.cells]
    assert [(c.name, c.verdict, c.p_difference) for c in found.confirmatory] == [
        (c.name, c.verdict, c.p_difference) for c in without.confirmatory
    ]
    assert found.shares == without.shares
    assert [claim.levels for claim in found.claims] == [claim.levels for claim in without.claims]
    rows = {row[0]: row for row in accuracy_table(found, study(baselines=["resnet"])).lines}
    assert rows["resnet"][5] == "baseline"
    assert "Of another kind, and part of no comparison: resnet" in headline(found, study(baselines=["resnet"]))[-1]
    figure = figures.accuracy(found.cells, "test_accuracy", "mixer", "pooling", found.baselines)
    assert any(text.get_text() == " resnet" for text in figure.axes[0].texts)
    (dashed,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert list(dashed.get_ydata()) == pytest.approx([-3.4, -0.6])  # along the rows of its setting, and no others


def of_two_sets(rate: float | None = None, **by_images: dict) -> list[Run]:
    """A full grid of images and mixers, where each set of images has a recipe of its own.

    `rate` is that of attention on many images alone.
    """
    runs = []
    for images, recipe in by_images.items():
        for mixer, mean in {"pooling": 0.7, "attention": 0.72}.items():
            for seed, accuracy in enumerate(shifted(mean, 0.01, len(runs))):
                own = {**recipe, "lr": rate} if rate and (images, mixer) == ("many", "attention") else recipe
                result = result_of(seed, accuracy, f"{images}{mixer}{seed}", mixer=mixer, recipe=own)
                levels = {"images": images, "mixer": mixer}
                runs.append(Run(f"{images} {mixer}", levels, mixer, seed, result.run_id, None, result))
    return runs


CONTRAST = {"data": {"many attention": 1, "many pooling": -1, "few attention": -1, "few pooling": 1}}


def test_named_variants_may_set_several_keys_that_change_with_them_alone():
    recipes = {"few": {"epochs": 36, "warmup_epochs": 4.5}, "many": {"epochs": 4, "warmup_epochs": 0.5}}
    verdicts = judge(study(contrasts=CONTRAST), of_two_sets(**recipes))
    assert [c.name for c in verdicts.shares.everything][:2] == ["images", "mixer"]
    assert verdicts.contrasts[0].verdict != NONE
    verdicts = judge(study(contrasts=CONTRAST), of_two_sets(rate=0.1, **recipes))
    assert verdicts.shares.reason == "the cells differ in more than the factors: recipe.lr (0.002 against 0.1)"
    assert verdicts.contrasts[0].confounds == ["recipe.lr (0.002 against 0.1)"]


def test_several_contrasts_are_answered_by_their_verdicts():
    recipes = {"few": {"epochs": 36}, "many": {"epochs": 4}}
    other = {"same": {"many attention": 1, "few attention": -1}, "again": {"many pooling": 1, "few pooling": -1}}
    asked = study(contrasts={**CONTRAST, **other}, margin=3.0)
    verdicts = judge(asked, of_two_sets(**recipes))
    verdicts = replace(
        verdicts,
        contrasts=[
            replace(c, verdict=v)
            for c, v in zip(verdicts.contrasts, (EQUIVALENT, INCONCLUSIVE, INCONCLUSIVE), strict=True)
        ],
    )
    said = sentences.answer(verdicts, asked)
    assert said.startswith(
        "Of 3 contrasts 1 is equivalent (data), 2 are inconclusive (same and again); of the variance"
    )


def test_a_cell_of_which_every_run_failed_has_no_settings():
    """It counts as a guess, and says nothing of what the variants set."""
    runs = of_two_sets(few={"epochs": 36}, many={"epochs": 4})
    runs = [replace(r, result=None, problem="failed: x") if r.cell == "many attention" else r for r in runs]
    found = judge(study(contrasts=CONTRAST, failed="chance"), runs)
    assert [c.name for c in found.shares.everything][:2] == ["images", "mixer"]
    assert found.contrasts[0].confounds == []


def test_variants_of_what_is_compared_may_not():
    runs = [
        replace(run, levels={"block": run.cell})
        for cell, lr in {"full": 0.002, "bare": 0.1}.items()
        for run in runs_of(pooling=shifted(0.7, 0.01))
        for run in [replace(run, cell=cell, result=result_of(run.seed, 0.7, cell, recipe={"lr": lr}))]
    ]
    verdicts = judge(replace(study(factor="block"), reference="full"), runs)
    assert [c.confounds for c in verdicts.confirmatory] == [["recipe.lr (0.1 against 0.002)"]]
    assert "recipe.lr" in verdicts.shares.reason


# ------------------------------------------------------------------ several data sets, small margins, cells of guesses


def on_images(name: str, images: int, values: list[float], data: str) -> list[Run]:
    """Runs of a cell `DATA MIXER` whose networks find a set of images hard that hangs on the cell."""
    mixer, made = name.partition(" ")[2], []
    hard = np.random.default_rng(sum(map(ord, name))).permutation(images)
    for seed, value in enumerate(values):
        right = round(images * value)
        predictions = np.ones(images, int)
        predictions[hard[:right]] = 0
        result = result_of(seed, right / images, f"{data}{mixer}{seed}", mixer=mixer, fingerprint=data)
        result = replace(result, config=replace(result.config, data=Data(name=data, root=None)))
        answers = Answers(predictions, np.zeros(images, int))
        made.append(Run(name, {"data": data, "mixer": mixer}, mixer, seed, result.run_id, None, result, packed=answers))
    return made


def test_a_contrast_over_sets_of_other_sizes_has_the_variance_of_their_images():
    better = [value + 0.01 for value in BASE]
    halves = []
    for images in (400, 401):
        sizes = {"a": 400, "b": images}
        cells = {f"{d} {m}": (d, v) for d in sizes for m, v in (("pooling", BASE), ("x", better))}
        runs = [run for name, (d, v) in cells.items() for run in on_images(name, sizes[d], v, d)]
        weights = {"a x": 1, "a pooling": -1, "b x": -1, "b pooling": 1}
        (gap,) = judge(study(contrasts={"gap": weights}), runs).contrasts
        halves.append(gap.crossed.half())
    assert gap.crossed.images == 801
    assert gap.crossed.by_image > 0
    assert halves[1] == pytest.approx(halves[0], rel=0.15)


def test_beyond_the_margin_has_its_alpha_where_the_margin_is_small():
    random = np.random.default_rng(0)
    found = [over_seeds(random.normal(0.05, 2.3, 5).tolist()).beyond_p(0.05) for _ in range(3000)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.012)


def test_costs_are_compared_in_either_order():
    def params_of(**counts: int) -> list[Run]:
        runs = runs_of(**{name: shifted(0.1, 0.2, i) for i, name in enumerate(counts)})
        return [replace(run, result=replace(run.result, params=counts[run.cell])) for run in runs]

    options = {"tolerance": 0.1, "claim_without": []}
    for counts in ({"pooling": 1050, "z": 1000, "y": 1105}, {"pooling": 1050, "y": 1105, "z": 1000}):
        (claim,) = judge(study(**options), params_of(**counts)).claims
        assert claim.outcome == "shown"
    (exact,) = judge(study(**options), params_of(pooling=1000, x=1100)).confirmatory
    assert not exact.confounds
    (more,) = judge(study(**options), params_of(pooling=1000, x=1101)).confirmatory
    assert more.confounds == ["parameters +10% (tolerance 10%)"]


def test_the_claim_is_corrected_as_the_study_is():
    cells = {f"s{i}_{m}": [v + d for v in BASE] for i in range(8) for m, d in (("pooling", 0.0), ("x", 0.0))}
    cells["s0_x"] = shifted(1.85, 0.62)  # beyond the margin of one point for one setting, and not for eight of them
    outcomes = {}
    for correction in ("holm", "holm_study"):
        claims = judge(study(correction=correction, margin=1.0, variance="own"), runs_of(**cells)).claims
        outcomes[correction] = claims[0].outcome
    assert outcomes == {"holm": "refuted", "holm_study": "not shown"}


def test_a_network_that_finds_rare_classes_is_not_at_chance():
    runs = runs_of(pooling=BASE, x=BASE)
    balanced, one_class = [[850, 150], [20, 80]], [[1000, 0], [100, 0]]
    for confusion, at_chance in ((balanced, False), (one_class, True)):
        accuracy = np.trace(confusion) / np.sum(confusion)
        changed = [replace(run.result, confusion=confusion, metrics={**run.result.metrics, "test_accuracy": accuracy})
                   for run in runs]  # fmt: skip
        found = judge(study(), [replace(run, result=result) for run, result in zip(runs, changed, strict=True)])
        assert [bool(cell.collapsed) for cell in found.cells] == [at_chance] * 2


def lost(name: str, mixer: str, seeds: int = 3) -> list[Run]:
    return [Run(name, {"mixer": mixer}, mixer, seed, f"{name}{seed}", None, None, "failed: loss is inf")
            for seed in range(seeds)]  # fmt: skip


def test_a_cell_without_a_run_may_count_as_a_guess():
    runs = [*lost("bad", "bad"), *runs_of(pooling=BASE[:3], odd=BASE[:3])]
    found = judge(study(failed="chance"), runs)
    assert [cell.name for cell in found.cells] == ["bad", "pooling", "odd"]
    table = accuracy_table(found, study(failed="chance"))
    assert table.lines[0][:2] == ["bad", "3"]
    assert table.lines[0][-2:] == ["", ""]
    figures.cost(found, "test_accuracy", "mixer")
    odd = [replace(run, result=with_optimizer(run.result, "lamb")) if run.cell == "odd" else run for run in runs]
    assert "recipe.optimizer" in judge(study(failed="chance"), odd).shares.reason


def with_optimizer(result: Result, optimizer: str) -> Result:
    recipe = replace(result.config.recipe, optimizer=optimizer)
    return replace(result, config=replace(result.config, recipe=recipe))


def test_the_column_of_validation_counts_guesses_where_it_is_the_metric():
    runs = runs_of(pooling=BASE[:3], x=[0.83, 0.83])
    runs.append(replace(lost("x", "x")[2], seed=2))
    chosen = study(failed="chance", metric="val_accuracy")
    found = accuracy_table(judge(chosen, runs), chosen)
    assert {line[0]: line[2].split()[0] for line in found.lines}["x"] == f"{(83 + 83 + 50) / 3:.2f}"


def with_lamb(runs: list[Run]) -> list[Run]:
    """The same with an optimizer of their own, so that they are not comparable with others."""
    return [replace(run, result=with_optimizer(run.result, "lamb")) for run in runs]


def test_an_early_look_judges_at_its_own_alpha():
    """Which is 0.0024 at 5 of 12 seeds: what 0.05 would decide is open there."""
    options = {"looks": [5, 8, 12], "variance": "own"}
    found = judge(study(**options), runs_of(pooling=BASE, x=shifted(1.6, 0.6)))
    (look,), (apart,) = found.looks, found.confirmatory
    assert look.alpha < apart.p_difference < 0.05
    assert (apart.verdict, apart.levels, found.claims[0].outcome) == (INCONCLUSIVE, (look.alpha,) * 2, "not shown")
    assert judge(study(variance="own"), runs_of(pooling=BASE, x=shifted(1.6, 0.6))).claims[0].outcome == "refuted"
    equal = judge(study(**options), runs_of(pooling=BASE, x=shifted(0.05, 0.6)))
    assert look.alpha < equal.claims[0].p < 0.05
    assert (equal.confirmatory[0].verdict, equal.claims[0].outcome) == (INCONCLUSIVE, "not shown")


def test_seeds_beyond_the_last_look_count_for_no_verdict():
    more, x = [*BASE, 0.80, 0.81], [*shifted(1, 1), 0.9, 0.9]
    found = judge(study(looks=[3, 5], variance="own"), runs_of(pooling=more, x=x))
    assert found.confirmatory[0].crossed.seeds == 5
    assert [pair.crossed.seeds for pair in found.added] == [7]


def test_a_claim_that_an_early_look_shows_stays_shown():
    more = [*BASE, 0.80, 0.81, 0.82]
    x = [*shifted(0, 0.1), *(value + 0.05 for value in more[5:])]
    found = judge(study(looks=[5, 8], variance="own"), runs_of(pooling=more, x=x))
    assert [len(look.seeds) for look in found.looks] == [5, 8]
    assert found.claims[0].outcome == "shown"


def test_one_correction_over_the_study_counts_its_contrasts():
    options = {"variance": "own", "correction": "holm_study"}
    runs = runs_of(pooling=BASE, x=shifted(1, 1))
    (alone,) = judge(study(**options), runs).tested
    beside = judge(study(**options, contrasts={"same": {"x": 1, "pooling": -1}}), runs).tested
    assert [t.p_difference for t in beside] == pytest.approx([2 * alone.p_difference] * 2)


def test_the_seeds_that_would_tell_are_for_the_family_and_for_other_images():
    runs, own = runs_of(pooling=BASE, x=shifted(1, 2)), study(variance="own")
    (alone,) = judge(own, runs).confirmatory
    beside = by_level(judge(own, [*runs, *runs_of(y=shifted(1, 2, 1))]).confirmatory)["x"]
    assert beside.seeds_needed[0] > alone.seeds_needed[0]
    (crossed,) = judge(own, answered(runs)).confirmatory
    assert crossed.crossed.by_image > 0
    assert crossed.seeds_needed != alone.seeds_needed


def test_ranks_are_corrected_over_all_pairs_and_open_where_nothing_can_be_tested():
    def intervals(x: list[float], change=lambda runs: runs) -> set[tuple[float, float]]:
        runs = [*runs_of(a_pooling=BASE, b_pooling=BASE), *change(runs_of(a_x=x, b_x=x))]
        ranks = judge(study(variance="own"), runs).ranks
        return {(place.low, place.high) for ranked in ranks for place in ranked.places.values()}

    assert intervals(shifted(9, 1)) == {(1, 1), (2, 2)}
    assert intervals(shifted(1.5, 1)) == {(1, 2)}  # p = 0.029 each, 0.057 of two
    assert intervals(shifted(9, 1), with_lamb) == {(1, 2)}


def test_a_pair_that_is_not_comparable_refutes_no_claim_and_has_no_p():
    found = judge(study(), [*runs_of(pooling=BASE, y=shifted(0, 0.1)), *with_lamb(runs_of(x=shifted(9, 0.1, 1)))])
    assert found.claims[0].outcome == "not shown"
    (pair,) = found.exploratory
    assert pair.confounds
    assert np.isnan(pair.p_difference)


def test_variances_know_of_each_other_up_to_five_seeds_and_where_they_are_tested():
    cells = {"pooling": BASE, "x": shifted(1, 1), "y": shifted(2, 0.2, 1)}
    few = judge(study(), runs_of(**cells)).confirmatory
    assert any(c.crossed != over_seeds(c.differences) for c in few)
    six = judge(study(), runs_of(**{name: [*values, 0.8] for name, values in cells.items()})).confirmatory
    assert all(c.crossed == over_seeds(c.differences) for c in six)
    odd = with_lamb(runs_of(z=shifted(0, 9, 2)))
    beside = by_level(judge(study(), [*runs_of(**cells), *odd]).confirmatory)
    assert [beside[c.level].crossed for c in few] == [c.crossed for c in few]


def test_pairs_have_no_more_degrees_of_freedom_than_their_cells(monkeypatch):
    """Of alike variances: 4 cells of 5 seeds have 12, and their 6 pairs have no more."""
    monkeypatch.setattr(inference, "_prior", lambda *_: (100.0, np.inf))
    cells = {"pooling": BASE, **{name: shifted(i, 1, i) for i, name in enumerate("xyz")}}
    stage = stages.stage_of(Look((0, 1, 2, 3, 4), 0.05), judge(study(), runs_of(**cells)).cells, study())
    assert [c.crossed.df for c in stage.claimed] == [12.0] * 6
    assert [t.crossed.df for t in stage.tested] == [12.0] * 3
    assert [t.crossed.df for t in stage.own] == [4] * 3


def test_a_verdict_that_hangs_on_the_variance_of_others_has_a_note():
    alike = {name: shifted(9, 0.5, i) for i, name in enumerate("uvwx")}
    runs = runs_of(pooling=BASE, y=shifted(0.57, 0.48, 9), **alike)
    (found, own) = (by_level(judge(study(variance=kind), runs).confirmatory)["y"] for kind in ("moderated", "own"))
    assert found.verdict != own.verdict
    assert list(found.notes) == [f"{own.verdict} with its own variance"]
    assert not own.notes
    assert not by_level(judge(study(variance="moderated"), runs).confirmatory)["u"].notes


def test_the_seeds_that_would_tell_are_for_the_alpha_of_the_last_look():
    runs = runs_of(pooling=BASE, x=shifted(1, 2))
    (plain,), (looked,) = (
        judge(study(variance="own", **options), runs).confirmatory for options in ({}, {"looks": [5, 8, 12]})
    )
    assert plain.seeds_needed == (19, 121)
    last = looks_at(range(12), study(looks=[5, 8, 12]).analysis)[-1].alpha
    assert looked.levels[0] < last < 0.05
    (expected,) = judge(study(variance="own", alpha=last), runs).confirmatory
    assert looked.seeds_needed == expected.seeds_needed != plain.seeds_needed


def test_a_guess_is_one_of_the_classes_of_its_own_data():
    runs = [run for data in "ab" for run in on_images(f"{data} pooling", 400, BASE[:3], data)]
    four = dict.fromkeys("wxyz", 0.5)
    runs = [replace(r, result=replace(r.result, recall=four)) if r.levels["data"] == "b" else r for r in runs]
    levels = {"data": "b", "mixer": "x"}
    runs += [Run("b x", levels, "x", seed, f"bx{seed}", None, None, "failed: loss is inf") for seed in range(3)]
    cells = {cell.name: cell for cell in judge(study(failed="chance"), runs).cells}
    assert set(cells["b x"].values.values()) == {25.0}


def test_what_images_give_has_the_mean_that_was_recorded():
    for cell in judge(study(), answered(runs_of(pooling=BASE, x=shifted(1, 1)), images=333)).cells:
        assert {seed: terms.mean() for seed, terms in cell.terms.items()} == pytest.approx(dict(cell.values))


@pytest.mark.parametrize(("times", "collapsed"), [(1, True), (10, False)])
def test_chance_is_what_so_many_images_cannot_tell_from_it(times, collapsed):
    confusion = [[60 * times, 40 * times], [45 * times, 55 * times]]
    runs = [replace(r, result=replace(r.result, confusion=confusion)) for r in runs_of(pooling=[0.575], x=[0.575])]
    assert [bool(cell.collapsed) for cell in judge(study(), runs).cells] == [collapsed] * 2


def test_times_with_other_threads_are_not_compared():
    runs = runs_of(pooling=BASE, x=shifted(1, 1))
    other = [replace(r, result=replace(r.result, threads=1 + (r.mixer == "x"))) for r in runs]
    assert judge(study(), other).confirmatory[0].ratio("seconds") is None
