"""Scores, intervals and comparisons agree with plain arithmetic and with repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.evals.aggregate import Leaf, summarise
from singalaut.evals.chrf import Chrf, chrf_score
from singalaut.evals.measure import (
    Corpus,
    Strata,
    holm,
    interval,
    p_value,
    point,
    pool,
    resample_weights,
    resampled,
    strata_of,
)

NAN = float("nan")


def leaf(
    task,
    values,
    strata,
    *,
    language="id",
    competency="nlu",
    group="",
    pooled=False,
    counted=True,
    chance=0.0,
):
    measure = strata_of(np.array(values, float), strata, chance)
    return Leaf(task, language, competency, group, pooled, counted, measure)


def test_the_score_is_the_mean_over_runs_of_means_over_strata():
    values = [[1, 0, 1, 1], [1, 1, 1, 0]]
    score, normalised = point(strata_of(np.array(values, float), ["a", "a", "b", "b"], 0.5))
    assert score == pytest.approx(np.mean([(0.5 + 1) / 2, (1 + 0.5) / 2]))
    assert normalised == pytest.approx(0.5)


def test_runs_below_chance_count_nothing_each():
    measure = strata_of(np.array([[0.0, 0.0], [1.0, 1.0]]), ["a", "b"], 0.5)
    assert point(measure) == (0.5, 0.5)  # not max(0, 0): each run is put on its scale


def test_answers_that_are_missing_are_left_out():
    measure = strata_of(np.array([[1.0, NAN, 0.0]]), ["a", "a", "b"])
    assert point(measure)[0] == 0.5
    gone = strata_of(np.array([[NAN, NAN, 1.0]]), ["a", "a", "b"])
    assert point(gone)[0] == 1.0
    assert np.isnan(point(strata_of(np.array([[NAN]]), ["a"]))[0])


def test_resamples_draw_as_many_of_a_stratum_as_it_has():
    strata = np.array([0, 0, 0, 1, 1])
    weights = resample_weights(strata, 200, 5, "task", "id")
    assert weights.shape == (200, 5)
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3:].sum(1) == 2).all()
    again = resample_weights(strata, 200, 5, "task", "id")
    np.testing.assert_array_equal(weights, again)
    assert (weights != resample_weights(strata, 200, 5, "task", "th")).any()


def test_intervals_have_the_width_of_repeated_experiments():
    generator = np.random.default_rng(0)
    size, runs = 300, 4
    chances = generator.beta(0.5, 0.5, size)
    drawn = [
        (generator.random((runs, size)) < generator.choice(chances, size)).mean()
        for _ in range(400)
    ]
    values = (generator.random((runs, size)) < generator.choice(chances, size)).astype(float)
    measure = strata_of(values, [""] * size)
    samples = resampled(measure, resample_weights(measure.strata, 2000, 1, "x"))
    low, high = interval(samples, point(measure)[0])
    assert (high - low) == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)
    assert low < point(measure)[0] < high
    # an interval that forgets that runs share their questions would be narrower
    naive = 2 * 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / values.size)
    assert (high - low) > 1.3 * naive


def test_corpus_scores_are_resampled_as_corpora():
    references = [["satu dua tiga"], ["empat lima"], ["enam tujuh delapan"]]
    statistics = Chrf(references).statistics(["satu dua", "empat lima", "enam"])[None]
    measure = Corpus(statistics)
    assert point(measure)[0] == pytest.approx(chrf_score(statistics[0].sum(0)) / 100)
    weights = np.array([[2, 1, 0], [0, 3, 0]], np.float32)
    wanted = [
        chrf_score(statistics[0][[0, 0, 1]].sum(0)),
        chrf_score(statistics[0][[1] * 3].sum(0)),
    ]
    np.testing.assert_allclose(resampled(measure, weights) * 100, wanted, rtol=1e-5)


def test_a_corpus_without_answers_has_no_score():
    one = Chrf([["satu dua tiga"], ["empat lima"]]).statistics(["satu dua", ""])
    run = Corpus(np.stack([one, np.zeros_like(one)])).by_run()
    assert run[0] > 0 and np.isnan(run[1])
    nothing = Corpus(np.zeros_like(one)[None])
    assert np.isnan(point(nothing)).all()
    assert np.isnan(resampled(nothing, np.ones((2, 2), np.float32))).all()
    empty = Chrf([["satu"]]).statistics([""])[None]
    assert point(Corpus(empty)) == (0.0, 0.0)  # an answer, though an empty one


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 0.5, NAN]), min_size=6, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_weights_of_one_each_give_the_score_itself(rows):
    measure = strata_of(np.array(rows), list("aabbcc"), 0.25)
    ones = np.ones((1, 6), np.float32)
    np.testing.assert_allclose(resampled(measure, ones), [point(measure)[1]], rtol=1e-5)


def test_pooled_tasks_are_one_set_of_questions():
    single = Strata(np.array([[1.0, 0.0]]), np.array([0, 1]), ("scalar", "presupposition"), 0.5)
    pair = Strata(np.array([[1.0, 1.0, 0.0]]), np.array([0, 0, 0]), ("scalar",), 0.5)
    together = pool([single, pair])
    assert together.names == ("scalar", "presupposition")
    assert point(together)[0] == pytest.approx((3 / 4 + 0) / 2)


def test_levels_are_means_of_means():
    leaves = [
        leaf("mt-a", [[0.4]], [""], competency="nlg", group="mt"),
        leaf("mt-b", [[0.8]], [""], competency="nlg", group="mt"),
        leaf("sum", [[0.2]], [""], competency="nlg"),
        leaf("sent", [[1.0, 0.0]], ["p", "n"], chance=0.5),
        leaf("extra", [[1.0]], [""], counted=False),
        leaf("sent", [[1.0]], [""], language="th"),
        leaf("lost", [[NAN]], [""], language="th"),
    ]
    summary = summarise(leaves, resamples=100, seed=1, expected={"th": ("sent", "lost", "qa")})
    indonesian = summary.languages["id"]
    assert indonesian.parts["nlg"].score == pytest.approx((0.6 + 0.2) / 2)
    assert indonesian.parts["nlg"].parts["mt"].score == pytest.approx(0.6)
    assert indonesian.parts["nlu"].score == 0
    assert indonesian.score == pytest.approx(0.2)
    assert summary.languages["th"].score == 1  # what has no answer is no zero
    assert summary.average.score == pytest.approx(0.6)
    assert summary.missing == {"th": ("lost", "qa")}
    only = summarise(leaves, resamples=100, seed=1, averaged=["id"])
    assert only.average.score == pytest.approx(0.2)


def test_linguistic_diagnostics_are_summed_as_published():
    """Phenomena pooled over both pragmatics tasks; minimal pairs a mean of phenomena."""
    diagnostics = {"competency": "ld", "chance": 0.5}
    leaves = [
        leaf("p1", [[1, 1, 0, 1]], ["s", "s", "s", "p"], group="prag", pooled=True, **diagnostics),
        leaf(
            "p2",
            [[1, 1, 1, 0, 1]],
            ["s", "s", "p", "p", "p"],
            group="prag",
            pooled=True,
            **diagnostics,
        ),
        leaf("mp", [[1, 1, 0, 1]], ["x", "x", "y", "y"], **diagnostics),
    ]
    tree = summarise(leaves, resamples=100, seed=1).languages["id"].parts["ld"]
    pragmatics = max((4 / 5 + 3 / 4) / 2 - 0.5, 0) / 0.5
    pairs = max((1 + 0.5) / 2 - 0.5, 0) / 0.5
    assert tree.parts["prag"].score == pytest.approx(pragmatics)
    assert tree.score == pytest.approx((pragmatics + pairs) / 2)
    apart = [leaf_.__class__(**{**leaf_.__dict__, "pooled": False}) for leaf_ in leaves]
    other = summarise(apart, resamples=100, seed=1).languages["id"].parts["ld"]
    assert other.score != pytest.approx(tree.score)


def test_p_values_are_two_sided_and_never_zero():
    assert p_value(np.array([1.0] * 1000)) == 1 / 1000
    assert p_value(np.zeros(10)) == 1
    assert p_value(np.array([1.0] * 95 + [-1.0] * 5)) == pytest.approx(0.1)
    generator = np.random.default_rng(3)
    rejected = 0
    for turn in range(200):  # no difference: about one in twenty is below 0.05
        both = generator.random((2, 1, 200)) < 0.6
        weights = resample_weights(np.zeros(200, np.int64), 400, turn, "x")
        samples = [resampled(strata_of(side.astype(float), [""] * 200), weights) for side in both]
        rejected += p_value(samples[1] - samples[0]) < 0.05
    assert 2 <= rejected <= 22


def test_holm_corrects_as_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
