"""Tests between algorithms: published values, independent references, properties."""

import itertools
import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from dmrifit import Evaluation
from dmrifit.predict.controls import CONTROLS
from dmrifit.stats import method_tests
from dmrifit.stats.method_tests import holm, rank_biserial, study_statistics

METRICS = ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")


def table_of(values, algorithms, *, metrics=("f",), **constants):
    """Make a table of scores from values[patient, algorithm] or values[patient, algorithm, metric]."""
    values = np.asarray(values, dtype=float)
    if values.ndim == 2:
        values = np.repeat(values[:, :, None], len(metrics), axis=2)
    keys = {"cohort": "c1", "strategy": "s2s", "train_on": "same", "n_train": 15, "repeat": 0, **constants}
    rows = [
        {**keys, "patient": f"p{i:02}", "algorithm": algorithm, "metric": metric}
        | {"dispersion": values[i, j, k], "bias": -values[i, j, k], "pearson": values[i, j, k]}
        for i in range(len(values))
        for j, algorithm in enumerate(algorithms)
        for k, metric in enumerate(metrics)
    ]
    return pd.DataFrame(rows)


def drawn(n, k, seed=0, spread=0.1):
    return 0.4 + np.random.default_rng(seed).normal(0, spread, (n, k))


def one(tables, name, **where):
    table = tables[name]
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize("seed", range(6))
def test_holm_is_that_of_another_library(seed):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(seed).beta(0.5, 5, 4 + seed).round(2)
    np.testing.assert_allclose(holm(p), multitest.multipletests(p, method="holm")[1])
    with_gap = [*p[:2], np.nan, *p[2:]]
    np.testing.assert_array_equal(np.delete(holm(with_gap), 2), holm(p))
    assert np.isnan(holm(with_gap)[2])


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_biserial_correlation_is_that_of_another_library(seed):
    pingouin = pytest.importorskip("pingouin")
    generator = np.random.default_rng(seed)
    a, b = generator.normal(0.4, 1, 14).round(1), generator.normal(0, 1, 14).round(1)
    value, low, high = rank_biserial(a, b)
    assert value == pytest.approx(pingouin.wilcoxon(a, b)["RBC"].iloc[0], abs=1e-12)
    assert low <= value <= high


def test_effects_are_rank_biserial_correlations_with_intervals_that_cover_as_often_as_they_say():
    # Differences 1, −2, 3, 0: ranks 1, 2, 3 of those that differ; (1 + 3 − 2) / 6.
    value, low, high = rank_biserial([1, 0, 3, 5], [0, 2, 0, 5])
    assert value == pytest.approx(2 / 6)
    assert -1 <= low <= value <= high <= 1
    assert rank_biserial([1, 1], [1, 1]) == (0.0, 0.0, 0.0)
    assert rank_biserial([2, 3, 4], [1, 1, 1]) == (1.0, 1.0, 1.0)
    assert np.isnan(rank_biserial([], [])).all()
    # Normal differences of mean m: P(d1 + d2 > 0) = Φ(√2 m), and the correlation is 2 P − 1.
    m, n = 0.5, 30
    truth = 2 * stats.norm.cdf(np.sqrt(2) * m) - 1
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(150):
        _, low, high = rank_biserial(generator.normal(m, 1, n), np.zeros(n), n_bootstrap=200)
        inside += low <= truth <= high
    assert 0.88 <= inside / 150 <= 0.99


def test_friedman_and_wilcoxon_are_those_of_scipy_on_the_means_of_patients():
    generator = np.random.default_rng(3)
    values = 0.4 + generator.normal(0, 0.1, (12, 4, len(METRICS))) + np.array([0, 0, 0.05, 0.15])[:, None]
    tables = study_statistics(table_of(values, "ABCD", metrics=METRICS))
    means = values[:, :, 1:].mean(axis=2)  # without S0
    reference = stats.friedmanchisquare(*means.T)
    row = one(tables, "friedman", metrics="all")
    assert (row["statistic"], row["p"]) == (pytest.approx(reference.statistic), pytest.approx(reference.pvalue))
    assert row["kendall_w"] == pytest.approx(reference.statistic / (12 * 3))
    assert (row["n_patients"], row["n_dropped"], row["n_algorithms"], row["reason"]) == (12, 0, 4, "")
    for i, j in itertools.combinations(range(4), 2):
        pair = one(tables, "pairs", metrics="all", a="ABCD"[i], b="ABCD"[j])
        expected = stats.wilcoxon(means[:, i], means[:, j])
        assert (pair["statistic"], pair["p"]) == (expected.statistic, pytest.approx(expected.pvalue))
        assert [pair["mean_a"], pair["mean_b"]] == pytest.approx([means[:, i].mean(), means[:, j].mean()])
    own = tables["pairs"].query("metrics == 'all'")
    assert own["p_holm"].tolist() == pytest.approx(holm(own["p"].tolist()))
    without = np.delete(values, [0, METRICS.index("T2v")], axis=2).mean(axis=2)
    expected = stats.friedmanchisquare(*without.T).pvalue
    assert one(tables, "friedman", metrics="without T2v")["p"] == pytest.approx(expected)


def test_equivalence_is_decided_against_the_stated_margin_or_a_tenth_of_the_median_index():
    pingouin = pytest.importorskip("pingouin")
    generator = np.random.default_rng(1)
    base = 0.4 + generator.normal(0, 0.05, 16)
    values = np.c_[base, base + generator.normal(0.0, 0.01, 16), base + 0.1 + generator.normal(0, 0.01, 16)]
    tables = study_statistics(table_of(values, "ABC"), margin=0.02)
    near, far = one(tables, "equivalence", a="A", b="B"), one(tables, "equivalence", a="A", b="C")
    assert (near["verdict"], far["verdict"]) == ("equivalent", "different")
    for pair, other in ((near, values[:, 1]), (far, values[:, 2])):
        reference = pingouin.tost(values[:, 0], other, bound=0.02, paired=True)
        assert pair["p"] == pytest.approx(next(iter(reference.filter(like="p").iloc[0])), abs=1e-9)
        assert pair["p"] == max(pair["p_lower"], pair["p_upper"])
        low, mean, high = pair[["mean_difference_low", "mean_difference", "mean_difference_high"]]
        assert low < mean < high
        # The interval of coverage 1 − 2 alpha lies within the margin exactly if the test says equivalent.
        assert (pair["verdict"] == "equivalent") == (max(-low, high) < 0.02)
    noisy = study_statistics(table_of(drawn(6, 3), "ABC"), margin=0.02)["equivalence"]
    assert (noisy["verdict"] == "undecided").all()
    values = drawn(10, 3)
    for index in ("dispersion", "bias"):
        found = study_statistics(table_of(values, "ABC"), index=index)["equivalence"]["margin"]
        np.testing.assert_allclose(found, 0.1 * np.median(values))


def test_ranks_and_cliques_tell_who_is_separated_by_the_published_critical_difference():
    # Demšar 2006, section 3.2.2: 4 classifiers on 14 data sets, critical difference 1.25 at 0.05.
    tables = study_statistics(table_of(drawn(14, 4), "ABCD"))
    assert tables["ranks"]["critical_difference"].iloc[0] == pytest.approx(1.25, abs=0.005)
    generator = np.random.default_rng(0)
    steps = np.array([0.0, 0.001, 0.5, 0.501, 1.0])
    values = 0.4 + steps + generator.normal(0, 0.01, (15, 5))
    tables = study_statistics(table_of(values, "ABCDE"))
    ranks = tables["ranks"].set_index("algorithm")["average_rank"]
    np.testing.assert_allclose(ranks, stats.rankdata(values, axis=1).mean(axis=0))
    p = tables["nemenyi"].set_index(["a", "b"])["p"]
    critical = tables["ranks"]["critical_difference"].iloc[0]
    for (a, b), value in p.items():
        assert (value <= 0.05) == (abs(ranks[a] - ranks[b]) >= critical)
    members = [set(names) for names in tables["cliques"]["algorithms"]]
    for clique in members:
        assert all(p[tuple(sorted(pair))] > 0.05 for pair in itertools.combinations(clique, 2))
        assert not any(clique < other for other in members)
    joined = {pair for clique in members for pair in itertools.combinations(sorted(clique), 2)}
    assert joined == {pair for pair, value in p.items() if value > 0.05}


def test_ranks_are_as_stable_as_resamples_of_the_patients_say():
    # A is best in 9 of 12 patients, B in the others; C is always the last.
    values = np.tile([0.1, 0.2, 0.9], (12, 1))
    values[:3, :2] = values[:3, 1::-1]
    values += 1e-6 * np.arange(12)[:, None]
    ranks = study_statistics(table_of(values, "ABC"), tables=["ranks"])["ranks"].set_index("algorithm")
    assert ranks["place"].to_dict() == {"A": 1, "B": 2, "C": 3}
    # A is first in a resample with at most half of its patients among the three.
    expected = stats.binom.cdf(6, 12, 3 / 12)
    assert ranks.loc["A", "share_first"] == pytest.approx(expected, abs=0.02)
    assert ranks.loc["C", ["place_low", "place_high", "share_first"]].tolist() == [3, 3, 0]
    assert ranks.loc["B", "place_low"] <= 2 == ranks.loc["B", "place_high"]
    turned = study_statistics(table_of(values[::-1], "ABC"), tables=["ranks"])["ranks"]
    pd.testing.assert_frame_equal(turned.set_index("algorithm"), ranks)


def test_algorithms_are_ranked_without_controls_in_the_given_order_the_best_first():
    values = drawn(8, 3, spread=0.001) + np.array([0, 0.1, 0.2])
    lowest = study_statistics(table_of(values, "ABC"))["ranks"].set_index("algorithm")["average_rank"]
    assert lowest.to_dict() == {"A": 1, "B": 2, "C": 3}
    for index in ("pearson", "pearson_independent", "skill", "skill_independent", "absolute_skill"):
        table = table_of(values - 0.5, "ABC").rename(columns={"pearson": index})
        highest = study_statistics(table, index=index)["ranks"].set_index("algorithm")["average_rank"]
        assert highest.to_dict() == {"A": 3, "B": 2, "C": 1}
    biases = study_statistics(table_of(-0.5 - values, "ABC"), index="bias")["ranks"].set_index("algorithm")["average_rank"]
    assert biases.to_dict() == {"A": 1, "B": 2, "C": 3}
    plain = table_of(drawn(8, 3), "ABC")
    controls = table_of(drawn(8, len(CONTROLS), seed=1, spread=1) + 5, CONTROLS)
    with_controls = pd.concat([controls, plain])
    evaluation = Evaluation(with_controls, pd.DataFrame(), {"settings": {"n_repeats": 2}})
    for name, table in evaluation.statistics().items():
        pd.testing.assert_frame_equal(table, study_statistics(plain)[name])
    table = table_of(drawn(8, 4), ["B", "LR", "A", "GBR"])
    patients = study_statistics(table, order=["GBR", "LR"], tables=["patients"])["patients"]
    assert list(dict.fromkeys(patients["algorithm"])) == ["GBR", "LR", "A", "B"]


def test_the_largest_training_size_is_tested_and_cohorts_strategies_and_ways_of_training_apart():
    values = drawn(6, 3)
    small = table_of(values + 5, "ABC", n_train=3)
    repeats = [table_of(values + shift, "ABC", repeat=i) for i, shift in enumerate((-0.01, 0.01))]
    tables = study_statistics(pd.concat([small, *repeats]), tables=["patients"])
    wide = tables["patients"].pivot_table(index="patient", columns="algorithm", values="value")
    np.testing.assert_allclose(wide.to_numpy(), values)
    cells = itertools.product(("c1", "c2"), ("s2s", "m2m"), ("same", "other"))
    parts = [
        table_of(drawn(5, 3, seed=i), "ABC", cohort=cohort, strategy=strategy, train_on=train_on)
        for i, (cohort, strategy, train_on) in enumerate(cells)
    ]
    whole = study_statistics(pd.concat(parts))
    assert len(whole["friedman"]) == 8
    alone = study_statistics(parts[3])
    keys = {"cohort": "c1", "strategy": "m2m", "train_on": "other", "metrics": "all"}
    pd.testing.assert_series_equal(
        one(whole, "friedman", **keys), one(alone, "friedman", metrics="all"), check_names=False
    )


def test_a_missing_value_leaves_out_what_is_missing_for_all_algorithms():
    values = np.repeat(drawn(6, 3)[:, :, None], 2, axis=2)
    values[:, :, 1] += 1
    values[0, 1, 1] = np.nan  # one parameter of one patient
    values[1, 2, :] = np.nan  # an algorithm failed for a patient
    table = table_of(values, "ABC", metrics=("f", "K"))
    tables = study_statistics(table)
    row = one(tables, "friedman", metrics="all")
    assert (row["n_patients"], row["n_dropped"]) == (5, 1)
    found = tables["patients"].pivot_table(index="patient", columns="algorithm", values="value")
    np.testing.assert_allclose(found.loc["p00"], values[0, :, 0])
    np.testing.assert_allclose(found.loc["p02"], values[2].mean(axis=1))
    assert "p01" not in found.index


def test_each_parameter_can_be_tested_for_itself():
    values = 0.4 + np.random.default_rng(2).normal(0, 0.1, (8, 3, 3))
    table = table_of(values, "ABC", metrics=("S0", "f", "Dt"))
    found = study_statistics(table, by_metric=True)["friedman"].set_index("metrics")["p"]
    assert set(found.index) == {"all", "f", "Dt"}
    assert found["Dt"] == pytest.approx(stats.friedmanchisquare(*values[:, :, 2].T).pvalue)
    chosen = study_statistics(table, metrics=["S0"])["friedman"]
    assert chosen["metrics"].tolist() == ["S0"]


DEGENERATE = {
    "one algorithm": (drawn(8, 1), "1 algorithm"),
    "two algorithms": (drawn(8, 2), "see pairs"),
    "two patients": (drawn(2, 3), "2 patients with all values; 3 are needed"),
    "one patient": (drawn(1, 3), "1 patient with all values; 3 are needed"),
    "equal columns": (np.repeat(drawn(8, 1), 3, axis=1), "equal values"),
    "all equal": (np.full((8, 3), 0.4), "equal values"),
    "all zero": (np.zeros((8, 3)), "equal values"),
    "an algorithm without values": (np.c_[drawn(8, 2), np.full(8, np.nan)], "no value of C"),
    "nothing": (np.full((8, 3), np.nan), "no value of A, B, C"),
    "values too alike": (0.4 + 1e-17 * drawn(8, 3), "equal values"),
}


@pytest.mark.parametrize("case", DEGENERATE, ids=str)
@pytest.mark.parametrize("index", ["dispersion", "bias", "abs_bias", "pearson"])
def test_what_cannot_be_tested_has_a_reason_and_no_warning(case, index):
    values, reason = DEGENERATE[case]
    tables = study_statistics(table_of(values, "ABC"[: values.shape[1]], metrics=("f", "K")), index=index)
    row = tables["friedman"].iloc[0]
    assert np.isnan(row["p"])
    assert reason in row["reason"]
    for name in ("pairs", "equivalence", "ranks", "nemenyi", "mixed"):
        p = tables[name]["p"] if "p" in tables[name] else tables[name]["average_rank"]
        assert (p.notna() | (tables[name]["reason"] != "")).all() or name == "mixed"
    assert (tables["mixed"]["reason"] != "").any() or len(tables["mixed"]) > 1


def test_equal_algorithms_are_equivalent_without_a_test_and_no_rows_make_empty_tables():
    tables = study_statistics(table_of(np.repeat(drawn(8, 1), 3, axis=1), "ABC"))
    assert (tables["equivalence"]["verdict"] == "equivalent").all()
    assert (tables["equivalence"]["reason"] == "all differences are equal: decided without a test").all()
    assert (tables["pairs"]["reason"] == "all differences are zero").all()
    assert (tables["pairs"]["rank_biserial"] == 0).all()
    apart = study_statistics(table_of(np.c_[drawn(8, 1), drawn(8, 1) + 0.5], "AB"))
    assert (apart["equivalence"]["verdict"] == "different").all()
    empty = table_of(drawn(3, 2), "AB").iloc[:0]
    assert all(len(table) == 0 for table in study_statistics(empty).values())


def test_a_missing_library_is_named_with_the_command_that_brings_it(monkeypatch):
    def absent(name):
        msg = f'{name} is not installed; to install it: pip install "dmrifit[stats]"'
        raise ImportError(msg)

    monkeypatch.setattr(method_tests, "import_optional", absent)
    table = table_of(drawn(4, 3), "ABC")
    with pytest.raises(ImportError, match=r"dmrifit\[stats\]"):
        study_statistics(table)
    assert len(study_statistics(table, tables=["friedman", "pairs"])["pairs"]) == 3


RANKED = ["friedman", "pairs", "equivalence"]
EFFECT = ["rank_biserial", "rank_biserial_low", "rank_biserial_high"]
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def studies(draw):
    n, k = draw(st.integers(3, 7)), draw(st.integers(2, 4))
    levels = st.integers(1, 9).map(lambda i: i / 10)
    values = draw(st.lists(st.lists(levels, min_size=k, max_size=k), min_size=n, max_size=n))
    return np.array(values)


@FEW
@given(studies(), st.randoms(use_true_random=False))
def test_order_and_names_of_patients_change_nothing(values, random):
    table = table_of(values, string.ascii_uppercase[: values.shape[1]], metrics=("f", "K"))
    names = sorted(set(table["patient"]))
    other = [f"q{i}" for i in range(len(names))]
    random.shuffle(other)
    order = list(range(len(table)))
    random.shuffle(order)
    changed = table.assign(patient=table["patient"].map(dict(zip(names, other, strict=True)))).iloc[order]
    tables = [*RANKED, "ranks", "nemenyi", "cliques"]
    first = study_statistics(table, n_bootstrap=20, tables=tables)
    second = study_statistics(changed, n_bootstrap=20, tables=tables)
    for name in tables:
        pd.testing.assert_frame_equal(first[name], second[name], check_exact=True)


@FEW
@given(studies())
def test_names_of_algorithms_change_nothing_but_the_names(values):
    k = values.shape[1]
    names, renamed = "ABCD"[:k], "ZYXW"[:k]
    first, second = (study_statistics(table_of(values, n), n_bootstrap=20, tables=RANKED) for n in (names, renamed))
    np.testing.assert_allclose(first["friedman"]["p"], second["friedman"]["p"], rtol=1e-9)
    back = dict(zip(renamed, names, strict=True))
    for table, columns in (("pairs", [*EFFECT, "p"]), ("equivalence", ["verdict"])):
        # Pairs are listed by name, so that a pair turns round with the names.
        other = second[table].assign(a=second[table]["a"].map(back), b=second[table]["b"].map(back))
        turned = other["a"] > other["b"]
        other.loc[turned, ["a", "b"]] = other.loc[turned, ["b", "a"]].to_numpy()
        if table == "pairs":
            other.loc[turned, EFFECT] = -other.loc[turned, [EFFECT[0], *EFFECT[:0:-1]]].to_numpy()
        rows = [one.set_index(["a", "b"]).sort_index()[columns] for one in (first[table], other)]
        pd.testing.assert_frame_equal(*rows, rtol=1e-6)


@FEW
@given(studies(), st.floats(0.1, 10))
def test_the_scale_of_an_index_does_not_matter(values, factor):
    first = study_statistics(table_of(values, "ABCD"[: values.shape[1]]), tables=RANKED)
    second = study_statistics(table_of(factor * values, "ABCD"[: values.shape[1]]), tables=RANKED)
    # Products can be tied or not by rounding; where they are, as here, p values are those of ranks.
    decided = first["equivalence"]["p"].notna() & second["equivalence"]["p"].notna()
    np.testing.assert_allclose(
        first["equivalence"]["p"][decided], second["equivalence"]["p"][decided], rtol=1e-6, atol=1e-12
    )
    np.testing.assert_allclose(second["equivalence"]["margin"], factor * first["equivalence"]["margin"], rtol=1e-12)
