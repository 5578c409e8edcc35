"""The measures of drift against scipy and by hand, their false alarms on unshifted windows, and what they find."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from benchmarks.drift_windows import observe_categories, observe_numbers
from schemas.drift import FeatureSkew, SkewReport
from spark_jobs.drifting.statistics import Distribution, chance_of, design_effect, merged_cells, stability_index
from spark_jobs.drifting.verdicts import Limits, Observed, judge
from spark_jobs.jobs.drift import chance

LIMITS = Limits()
ANY_EFFECT = Limits(min_effect=1e-9)
"""Without a smallest effect the verdict is the test's alone."""


def measure(observed: Observed, name: str, limits: Limits = LIMITS):
    (column,) = judge([observed], limits)
    return next(measure for measure in column.measures if measure.name == name)


def test_the_stability_index_of_shares_by_hand():
    # (1/2 - 1/4) ln 2 + (1/2 - 3/4) ln(2/3) = ln(3) / 4
    assert stability_index(np.array([100.0, 300.0]), np.array([200.0, 200.0])) == pytest.approx(math.log(3) / 4)
    assert stability_index(np.array([50.0, 50.0]), np.array([500.0, 500.0])) == 0


@pytest.mark.parametrize("rows", [10_000, 100_000_000])
def test_the_stability_index_of_a_shift_is_the_same_at_any_number_of_rows(rows: int):
    # A cell that was empty holds 0.9 % of the rows: 0.009 ln(0.009 / 0.0001) and next to nothing elsewhere.
    before, now = np.array([0.5, 0.5, 0.0]) * rows, np.array([0.4955, 0.4955, 0.009]) * rows
    assert stability_index(before, now) == pytest.approx(0.0401, abs=1e-4)


def test_measures_of_numbers_of_few_values_are_scipys():
    random = np.random.default_rng(0)
    before, now = random.integers(0, 12, 900).astype(float), random.integers(2, 14, 700).astype(float)
    observed = observe_numbers("x", before, now)
    assert measure(observed, "kolmogorov_smirnov").value == pytest.approx(stats.ks_2samp(before, now).statistic)
    moved = stats.wasserstein_distance(before, now) / before.std()
    assert measure(observed, "wasserstein").value == pytest.approx(moved)
    assert measure(observed, "mean").value == pytest.approx((now.mean() - before.mean()) / before.std())


def test_measures_of_numbers_of_many_values_are_scipys_but_for_the_width_of_a_cell():
    random = np.random.default_rng(1)
    before, now = random.normal(size=20_000), random.normal(0.4, 1.3, 20_000)
    observed = observe_numbers("x", before, now)
    exact = stats.ks_2samp(before, now).statistic
    assert exact - 0.02 <= measure(observed, "kolmogorov_smirnov").value <= exact + 1e-12
    moved = stats.wasserstein_distance(before, now) / before.std()
    assert measure(observed, "wasserstein").value == pytest.approx(moved, rel=0.05)


def test_the_distance_of_categories_is_scipys():
    before, now = np.repeat([0, 1, 2], [200, 300, 500]), np.repeat([0, 1, 2], [100, 300, 600])
    found = measure(observe_categories("x", before, now), "jensen_shannon")
    assert found.value == pytest.approx(distance.jensenshannon([0.2, 0.3, 0.5], [0.1, 0.3, 0.6]))


def test_the_p_value_of_independent_rows_is_that_of_scipys_contingency_table():
    before, now = np.repeat([0, 1, 2], [200, 300, 500]), np.repeat([0, 1, 2], [150, 310, 540])
    table = stats.chi2_contingency([[200, 300, 500], [150, 310, 540]], correction=False)
    assert measure(observe_categories("x", before, now), "psi").p_value == pytest.approx(table.pvalue)


def test_small_cells_are_merged_until_a_chi_square_test_may_count_them():
    counts = np.array([[400.0, 300.0, 2.0, 3.0, 4.0]])
    category = Distribution(cells=("a", "b", "c", "d", "e"), reference=counts, current=counts)
    assert merged_cells(category) == [[0], [1], [2, 3, 4]]


def test_new_and_vanished_values_are_named():
    before, now = np.repeat([0, 1, 2], [400, 400, 200]), np.repeat([0, 1, 3], [400, 400, 200])
    (column,) = judge([observe_categories("x", before, now)], LIMITS)
    assert (column.new_values, column.vanished_values) == (("3",), ("2",))
    assert (column.num_new, column.num_vanished) == (1, 1)
    assert column.verdict == "drifted"
    unseen = next(measure for measure in column.measures if measure.name == "unseen_share")
    assert (unseen.value, unseen.exceeds) == (0.2, True)


def test_nulls_that_come_are_drift():
    random = np.random.default_rng(2)
    before, now = random.normal(size=3000), random.normal(size=3000)
    now[:600] = np.nan
    (column,) = judge([observe_numbers("x", before, now)], LIMITS)
    assert column.verdict == "drifted"
    assert column.figures["null_share"] == (0.0, 0.2)


def test_lists_that_went_empty_drifted_by_their_lengths():
    elements = Distribution(cells=("a", "b"), reference=np.array([[900.0, 900.0]]), current=np.zeros((1, 2)))
    lengths = Distribution(
        cells=("below 1", "1 and more", "null"),
        reference=np.array([[100.0, 800.0, 0.0]]),
        current=np.array([[900.0, 0.0, 0.0]]),
        centers=np.array([0.0, 2.25, np.nan]),
    )
    lists = Observed(column="x", of="feature", kind="list", values=elements, lengths=lengths)
    (column,) = judge([lists], LIMITS)
    assert column.verdict == "drifted"
    found = {measure.name: measure.value for measure in column.measures}
    assert found["length_kolmogorov_smirnov"] == pytest.approx(8 / 9)
    assert "psi" not in found
    (column,) = judge([replace(lists, lengths=None)], LIMITS)
    assert column.verdict == "not_enough_rows"


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_moments_that_overflow_are_left_out():
    random = np.random.default_rng(8)
    before, now = random.normal(size=1000) * 1e200, random.normal(size=1000) * 1e200
    (column,) = judge([observe_numbers("x", before, now)], LIMITS)
    assert column.verdict == "ok"
    assert "std" not in column.figures
    told = [measure.value for measure in column.measures]
    assert np.isfinite([*told, *(figure for sides in column.figures.values() for figure in sides)]).all()


@pytest.mark.parametrize("text", ["0", "1", "nan", "-0.1", "1e-300"])
def test_a_promise_that_no_test_can_keep_is_refused(text: str):
    with pytest.raises(ArgumentTypeError, match="no chance"):
        chance(text)


@pytest.mark.parametrize(("different", "compared"), [(1, 5), (3, 100), (4, 100), (100, 100), (120, 10_000)])
def test_a_share_is_at_least_what_scipys_interval_begins_with(different: int, compared: int):
    found = FeatureSkew(feature="x", compared=compared, different=different).least_share
    both_sides = stats.binomtest(different, compared).proportion_ci(confidence_level=0.9, method="wilsoncc")
    assert found == pytest.approx(both_sides.low)


def test_few_values_that_differ_by_chance_are_no_skew():
    features = [FeatureSkew(feature=name, compared=100, different=of) for name, of in (("a", 3), ("b", 4), ("c", 0))]
    report = SkewReport(
        created_at="", generation="", requests=100, tolerance=0, max_share=0.01, features=tuple(features)
    )
    # By the binomial distribution of 1 % of 100, three or more come in 8 % of samples, four or more in 2 %.
    assert report.skewed == ("b",)


def test_few_rows_get_no_verdict():
    random = np.random.default_rng(3)
    (column,) = judge([observe_numbers("x", random.normal(size=99), random.normal(5, 1, 4000))], LIMITS)
    assert column.verdict == "not_enough_rows"
    assert column.measures == ()


def test_both_chance_and_too_small_an_effect_keep_a_column_from_alarming():
    random = np.random.default_rng(4)
    few = measure(observe_numbers("x", random.normal(size=120), random.normal(size=120)), "psi")
    many = measure(observe_numbers("x", random.normal(size=300_000), random.normal(0.05, 1, 300_000)), "psi")
    assert few.threshold > LIMITS.min_effect
    assert many.p_value < 1e-9
    assert many.threshold == LIMITS.min_effect
    assert not many.exceeds


def windows(seed: int, users: int, rows: int, *, alike: float) -> tuple[list[Observed], list[Observed]]:
    """Five columns of two windows of one log, unshifted: by users, and with rows taken for independent.

    `alike` is the share of a row's variance that is its user's; the users of the windows overlap by half.
    """
    random = np.random.default_rng(seed)
    who = [start + random.integers(0, users, rows) for start in (0, users // 2)]
    by_user, as_rows = [], []
    for column in range(3):
        own = random.normal(size=2 * users)
        sides = [math.sqrt(alike) * own[side] + math.sqrt(1 - alike) * random.normal(size=rows) for side in who]
        by_user.append(observe_numbers(f"n{column}", sides[0], sides[1], users=(who[0], who[1])))
        as_rows.append(observe_numbers(f"n{column}", sides[0], sides[1]))
    for column in range(2):
        own = random.integers(0, 8, 2 * users)
        drawn = [np.where(random.random(rows) < alike, own[side], random.integers(0, 8, rows)) for side in who]
        by_user.append(observe_categories(f"c{column}", drawn[0], drawn[1], users=(who[0], who[1])))
        as_rows.append(observe_categories(f"c{column}", drawn[0], drawn[1]))
    return by_user, as_rows


def alarms(reports: list[list[Observed]], limits: Limits) -> int:
    return sum(any(column.verdict == "drifted" for column in judge(report, limits)) for report in reports)


def test_false_alarms_of_200_unshifted_windows_are_as_promised_where_rows_of_a_user_are_alike():
    pairs = [windows(seed, 400, 4000, alike=0.5) for seed in range(200)]
    most = stats.binom.isf(0.001, 200, LIMITS.false_alarms)
    assert alarms([by_user for by_user, _ in pairs], ANY_EFFECT) <= most
    # What the correction is for: the same tests on rows taken for independent.
    assert alarms([as_rows for _, as_rows in pairs], ANY_EFFECT) > 100


def test_false_alarms_of_200_unshifted_windows_are_as_promised_at_few_independent_rows():
    pairs = [windows(1000 + seed, 500, 250, alike=0.0) for seed in range(200)]
    most = stats.binom.isf(0.001, 200, LIMITS.false_alarms)
    assert alarms([as_rows for _, as_rows in pairs], ANY_EFFECT) <= most
    assert alarms([as_rows for _, as_rows in pairs], LIMITS) <= most


@pytest.mark.parametrize(("rows", "shift"), [(400, 0.8), (4000, 0.45)])
def test_planted_shifts_are_found_at_no_less_than_their_power(rows: int, shift: float):
    found = 0
    for seed in range(100):
        random = np.random.default_rng(5000 + seed)
        columns = [observe_numbers(f"n{i}", random.normal(size=rows), random.normal(size=rows)) for i in range(4)]
        columns.append(observe_numbers("moved", random.normal(size=rows), random.normal(shift, 1, rows)))
        found += "moved" in [column.column for column in judge(columns, LIMITS) if column.verdict == "drifted"]
    # What a z test of the same shift would find at the level of one of ten tests, less ten points for ten bins.
    power = stats.norm.cdf(shift * math.sqrt(rows / 2) - stats.norm.isf(0.05 / 10 / 2))
    assert found / 100 >= min(power, 0.99) - 0.1


def test_rows_of_users_that_are_alike_are_worth_fewer():
    random = np.random.default_rng(7)
    who = (random.integers(0, 500, 5000), random.integers(500, 1000, 5000))
    own = random.integers(0, 4, 1000)
    observed = observe_categories("x", own[who[0]], own[who[1]], users=who)
    # Ten rows a user, all the same: a Poisson number of rows of mean 10 is worth 1 + 10.
    effect = design_effect(observed.values.reference, observed.values.current)
    assert 6 < effect < 18
    independent = observe_categories("x", own[who[0]], own[who[1]])
    assert chance_of(independent.values.reference, independent.values.current).trace == 3
