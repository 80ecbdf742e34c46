"""Tests between algorithms with the patient as the unit."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_number, check_words
from dmrifit._utils.counts import counted
from dmrifit.stats.metrics import AT_BOUND, NO_TISSUE, RANKING_METRIC, MapMetric, metric_of
from dmrifit.stats.patient_summary import patient_draws

#: Equivalence margin without a given one, as a share of the median magnitude of the index.
MARGIN_SHARE = 0.1

_KEYS = ["cohort", "strategy", "train_on", "metrics"]
_NEEDED = ["cohort", "patient", "strategy", "algorithm", "train_on", "n_train", "repeat", "metric"]
_RANK_TABLES = ("ranks", "nemenyi", "cliques")
# Place by average rank, its interval over resamples of patients, and how often it is the first.
_PLACES = ("average_rank", "place", "place_low", "place_high", "share_first")
# Share of the residual variance at which a search ends that would go to a variance of zero.
_NO_VARIANCE = 1e-6
_ESTIMATES = ("estimate", "standard_error", "low", "high", "p")
_EFFECT = ("rank_biserial", "rank_biserial_low", "rank_biserial_high")
_MEAN_ENDS = ("mean_difference_low", "mean_difference_high")


# Tests between algorithms ------------------------------------------------------------------------


def study_statistics(
    scores: pd.DataFrame,
    *,
    order: Sequence[str] = (),
    index: str = RANKING_METRIC,
    margin: float | None = None,
    alpha: float = 0.05,
    metrics: Sequence[str] | None = None,
    by_metric: bool = False,
    tables: Sequence[str] | None = None,
    n_bootstrap: int = 2000,
) -> dict[str, pd.DataFrame]:
    """
    Test whether algorithms differ, with patients as the unit.

    Each patient enters with one number for each algorithm: the index, averaged over parameters and
    repeats, at the largest number of training patients. Cohorts, strategies and ways of training
    are tested apart. `Evaluation.statistics` describes the options and the tables.

    References
    ----------
    Demšar, J Mach Learn Res 7:1–30, 2006 (Friedman, Nemenyi, critical differences); Holm, Scand J
    Stat 6:65–70, 1979; Kerby, Compr Psychol 3:11.IT.3.1, 2014 (rank-biserial); Schuirmann, J
    Pharmacokinet Biopharm 15:657–680, 1987 (two one-sided tests); Wiesenfarth et al., Sci Rep
    11:2369, 2021 (stability of ranks).
    """
    # No two algorithms are equal to the last bit.
    check_number("margin", 1.0 if margin is None else margin, above=0)
    check_number("alpha", alpha, above=0, below=0.5)
    check_number("n_bootstrap", n_bootstrap, least=1, whole=True)
    names_of_tables = list(_COLUMNS) if tables is None else list(tables)
    check_words("tables", names_of_tables, _COLUMNS)
    table = _indexed(scores, index)
    # Magnitudes ("abs_…") are of no metric: lower is better and none is negative.
    metric = metric_of(index)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names_of_tables}
    groups = _metric_groups(table, metrics, by_metric)
    study_keys = _KEYS[:3]
    largest = table.groupby([*study_keys, "patient"])["n_train"].transform("max")
    # Repeats of one patient are not independent: each patient counts once.
    by = [*study_keys, "patient", "algorithm", "metric"]
    means = table[table["n_train"] == largest].groupby(by, as_index=False)["value"].mean()
    for key, of_study in means.groupby(study_keys, sort=True):
        for name_of_group, group_metrics in groups.items():
            keys = dict(zip(_KEYS, (*key, name_of_group), strict=True))
            frame = of_study[of_study["metric"].isin(group_metrics)]
            found = sorted(set(frame["algorithm"]))
            algorithms = [name for name in dict.fromkeys([*order, *found]) if name in found]
            group = _Group(frame, algorithms, metric, alpha, margin, n_bootstrap)
            for filled_tables, test in _TESTS.items():
                if not rows.keys().isdisjoint(filled_tables):
                    for name, row in test(group):
                        rows.setdefault(name, []).append(keys | row)
    return {
        name: pd.DataFrame(rows[name], columns=[*_KEYS, *_COLUMNS[name]])
        for name in names_of_tables
    }


def rank_biserial(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, n_bootstrap: int = 2000
) -> tuple[float, float, float]:
    """
    Compute the paired rank-biserial correlation with a bootstrap interval.

    References
    ----------
    Kerby, Compr Psychol 3:11.IT.3.1, 2014.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not len(a):
        return np.nan, np.nan, np.nan
    drawn = np.random.default_rng(0).integers(0, len(a), (-(-n_bootstrap // 2), len(a)))
    # Half of the resamples for each order of a and b: exchanging them has to mirror the interval.
    resamples = [sign * _signed_rank_share(np.sort(sign * (a - b))[drawn]) for sign in (1.0, -1.0)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resamples, [tail, 100 - tail])
    return float(_signed_rank_share((a - b)[None])[0]), float(low), float(high)


def _signed_rank_share(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide sums of signed ranks by sums of ranks, row by row; zeros have no rank."""
    # Zeros get the lowest ranks; taking their number off leaves the ranks among the others.
    zeros = (difference == 0).sum(axis=1, keepdims=True)
    ranks = np.where(difference == 0, 0.0, rankdata(np.abs(difference), axis=1) - zeros)
    total = ranks.sum(axis=1)
    return (ranks * np.sign(difference)).sum(axis=1) / np.where(total > 0, total, 1.0)


# Tables and rows of the tests --------------------------------------------------------------------


def _indexed(scores: pd.DataFrame, index: str) -> pd.DataFrame:
    """Give the rows of algorithms with the index as ``value``, sorted."""
    column = index.removeprefix("abs_")
    missing = [name for name in _NEEDED if name not in scores.columns]
    if missing:
        raise ValueError(
            f"scores have no column {', '.join(missing)}; give the table Evaluation.scores"
        )
    if column not in scores.columns or column in _NEEDED or scores[column].dtype.kind not in "fiu":
        numbers = [name for name in scores.columns if scores[name].dtype.kind == "f"]
        raise ValueError(
            f"index must be a number of the scores ({', '.join(numbers)}) or 'abs_' and one of "
            f"them, not {index!r}"
        )
    value = scores[column].abs() if index.startswith("abs_") else scores[column]
    table = scores[_NEEDED].assign(value=value.astype(float))
    texts = [name for name in _NEEDED if name not in ("n_train", "repeat")]
    table[texts] = table[texts].astype(str)
    return table[table["metric"] != ""].sort_values([*_NEEDED, "value"], ignore_index=True)


def _metric_groups(
    table: pd.DataFrame, metrics: Sequence[str] | None, by_metric: bool
) -> dict[str, list[str]]:
    names = list(dict.fromkeys(table["metric"]))
    if metrics is not None:
        metrics = [metrics] if isinstance(metrics, str) else list(metrics)
        check_words("metrics", metrics, names, least=1)
        groups = {", ".join(metrics): metrics}
    else:
        metrics = [name for name in names if name not in NO_TISSUE] or names
        groups = {"all": metrics}
        inside_bounds = [name for name in metrics if name != AT_BOUND]
        if inside_bounds and inside_bounds != metrics:
            groups[f"without {AT_BOUND}"] = inside_bounds
    if by_metric:
        groups |= {name: [name] for name in metrics}
    return groups


@dataclass(frozen=True, eq=False)
class _Group:
    """The values that are tested together, and how."""

    frame: pd.DataFrame  # the value of each patient, algorithm and metric
    algorithms: list[str]
    metric: MapMetric | None
    alpha: float
    margin: float | None
    n_bootstrap: int

    @cached_property
    def finite(self) -> pd.DataFrame:
        return self.frame[np.isfinite(self.frame["value"])]

    @cached_property
    def wide(self) -> pd.DataFrame:
        """Average parameters that all algorithms have, patients × algorithms."""
        # Means over other sets of parameters would not be comparable.
        counts = self.finite.groupby(["patient", "metric"])["algorithm"].transform("nunique")
        wide = self.finite[counts == len(self.algorithms)].pivot_table(
            index="patient", columns="algorithm", values="value"
        )
        wide = wide[[name for name in self.algorithms if name in wide]]
        # Neither the order nor the names of patients may move a bit of the results.
        return wide.iloc[np.lexsort(wide.to_numpy().T)] if wide.size else wide

    @property
    def scores(self) -> NDArray[np.float64]:
        return self.wide.to_numpy()

    @property
    def reason(self) -> str:
        """Why there is no value at all."""
        if len(self.wide):
            return ""
        with_values = set(self.finite["algorithm"])
        empty = [name for name in self.algorithms if name not in with_values]
        if empty:
            return f"no value of {', '.join(empty)}"
        return "no patient has values of all algorithms"

    @property
    def too_few(self) -> str:
        """Why a test of these patients has no result; empty where it has one."""
        n = len(self.wide)
        if self.reason or n >= 3:
            return self.reason
        return f"{counted(n, 'patient')} with all values; 3 are needed"


# Names of tables with their rows.
_Rows: TypeAlias = Iterator[tuple[str, dict[str, Any]]]


def _patients(group: _Group) -> _Rows:
    long = group.wide.sort_index().reset_index().melt(id_vars="patient", value_name="value")
    return (("patients", row) for row in long.to_dict("records"))


def _mixed(group: _Group) -> _Rows:
    positive = group.metric is None or not group.metric.signed
    rows = mixed_model(group.frame, group.algorithms, positive=positive, alpha=group.alpha)
    return (("mixed", row) for row in rows)


def _friedman(group: _Group) -> _Rows:
    n, k = group.scores.shape
    reason = group.reason
    if not reason and k < 3:
        see = "; see pairs" if k == 2 else ""
        reason = f"{counted(k, 'algorithm')}; Friedman's test needs three{see}"
    reason = reason or group.too_few
    if not reason and (group.scores == group.scores[:, :1]).all():
        reason = "all algorithms have equal values"
    row: dict[str, Any] = {"n_patients": n, "n_algorithms": k, "reason": reason}
    row["n_dropped"] = group.frame["patient"].nunique() - n
    if not reason:
        row["statistic"], row["p"] = map(float, friedmanchisquare(*group.scores.T))
        row["kendall_w"] = row["statistic"] / (n * (k - 1))
    yield "friedman", row


def pair_tests(
    wide: pd.DataFrame,
    test: Callable[[NDArray[np.float64], NDArray[np.float64]], dict[str, Any]],
    p: str = "p",
    corrected: str = "p_holm",
) -> list[dict[str, Any]]:
    """
    Test each two methods (columns) with the scores of the patients (rows) that have both.

    `test` gives a row with a p value, which is corrected for all pairs by Holm's steps.
    """
    rows = []
    for a, b in itertools.combinations(wide.columns, 2):
        x, y = wide[[a, b]].dropna().to_numpy(np.float64).T
        rows.append({"a": a, "b": b, **test(x, y)})
    p_values = holm([row[p] for row in rows])
    return [row | {corrected: value} for row, value in zip(rows, p_values, strict=True)]


def _pairs(group: _Group) -> _Rows:
    def test(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
        effect = rank_biserial(x, y, confidence=1 - group.alpha, n_bootstrap=group.n_bootstrap)
        row: dict[str, Any] = dict(zip(_EFFECT, effect, strict=True))
        row |= {"n_patients": len(x), "p": np.nan, "reason": group.too_few}
        if len(x):
            row |= {"mean_a": x.mean(), "mean_b": y.mean(), "median_difference": np.median(x - y)}
        if not row["reason"] and (x == y).all():
            row["reason"] = "all differences are zero"
        elif not row["reason"]:
            row["statistic"], row["p"] = signed_rank(x, y)
        return row

    return (("pairs", row) for row in pair_tests(group.wide, test))


def signed_rank(x: ArrayLike, y: ArrayLike, alternative: str = "two-sided") -> tuple[float, float]:
    """Give statistic and p value of Wilcoxon's signed-rank test; NaN of one pair or equal ones."""
    if np.size(x) < 2:
        return np.nan, np.nan
    with warnings.catch_warnings():
        # Exact up to 50 pairs, with ties up to 13; above, ties leave an approximate p value.
        warnings.simplefilter("ignore")
        test = wilcoxon(x, y, alternative=alternative)
    return float(test.statistic), float(test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """
    Correct p values of several tests by Holm's steps.

    References
    ----------
    Holm, Scand J Stat 6:65–70, 1979.
    """
    # statsmodels has this too, but collects garbage at every call, which takes longer than all
    # tests.
    ordered = pd.Series(p, dtype=np.float64).dropna().sort_values(kind="stable")
    steps = ordered * np.arange(len(ordered), 0, -1)
    return [float(x) for x in steps.cummax().clip(upper=1.0).reindex(range(len(p)))]


def _equivalence(group: _Group) -> _Rows:
    weightstats = import_optional("statsmodels.stats.weightstats")
    margin, reason = group.margin, group.reason
    if margin is None:
        margin = np.nan if reason else MARGIN_SHARE * float(np.median(np.abs(group.scores)))
    if not reason and not margin > 0:
        reason = "the index is zero, and so is a margin relative to it; state a margin"
    reason = reason or group.too_few

    def test(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
        difference = x - y
        mean = difference.mean() if len(x) else np.nan
        row: dict[str, Any] = {"n_patients": len(x), "mean_difference": mean, "margin": margin}
        row |= {"p": np.nan, "p_different": np.nan, "verdict": "undecided", "reason": reason}
        if reason:
            return row
        # A t test divides by the spread of the differences.
        if np.ptp(difference) <= 1e-12 * max(np.abs(x).max(), np.abs(y).max()):
            row |= dict.fromkeys(_MEAN_ENDS, mean)
            row["verdict"] = "equivalent" if abs(mean) < margin else "different"
            row["reason"] = "all differences are equal: decided without a test"
            return row
        tests = weightstats.DescrStatsW(difference)
        row["p"], (_, row["p_lower"], _), (_, row["p_upper"], _) = tests.ttost_mean(
            -margin, margin
        )
        row |= dict(zip(_MEAN_ENDS, tests.tconfint_mean(2 * group.alpha), strict=True))
        row["p_different"] = tests.ttest_mean(0)[1]
        return row

    for row in pair_tests(group.wide, test, "p_different", "p_different"):
        if row["p"] <= group.alpha:
            row["verdict"] = "equivalent"
        elif row["p_different"] <= group.alpha:
            row["verdict"] = "different"
        yield "equivalence", row


def _nemenyi(group: _Group) -> _Rows:
    """Rank algorithms; yield average ranks, p values of pairs, and groups that none separates."""
    n, k = group.scores.shape
    names = list(group.wide.columns)
    reason = group.reason or ("one algorithm" if k < 2 else group.too_few)
    critical, p, places = np.nan, np.full((k, k), np.nan), np.full((5, k), np.nan)
    if not reason:
        posthocs = import_optional("scikit_posthocs")
        better = "lower" if group.metric is None else group.metric.better
        ranked = {"higher": -group.scores, "nearer zero": np.abs(group.scores)}.get(
            better, group.scores
        )
        places = _places(rankdata(ranked, axis=1), 1 - group.alpha, group.n_bootstrap)
        quantile = studentized_range.ppf(1 - group.alpha, k, np.inf) / np.sqrt(2)
        critical = float(quantile * np.sqrt(k * (k + 1) / (6 * n)))
        p = posthocs.posthoc_nemenyi_friedman(ranked).to_numpy()
    shared = {"critical_difference": critical, "n_patients": n, "reason": reason}
    for name, numbers in zip(names, places.T, strict=True):
        yield "ranks", {"algorithm": name, **dict(zip(_PLACES, numbers, strict=True)), **shared}
    for i, j in itertools.combinations(range(k), 2):
        yield "nemenyi", {"a": names[i], "b": names[j], "p": p[i, j], "reason": reason}
    if reason:
        return
    order = np.argsort(places[0], kind="stable")
    # Ranks are on a line, so the farthest that is not separated from the first spans a clique,
    # unless an earlier one holds it.
    is_apart = p[np.ix_(order, order)] <= group.alpha
    lasts = [np.flatnonzero(~row)[-1] for row in is_apart]
    n_cliques = 0
    for first, last in enumerate(lasts):
        if last > max([first, *lasts[:first]]):
            n_cliques += 1
            members = order[first : last + 1]
            low, high = places[0, members[[0, -1]]]
            row = {"clique": n_cliques, "low": low, "high": high, "reason": ""}
            yield "cliques", row | {"algorithms": tuple(names[i] for i in members)}


def _places(ranks: NDArray[np.float64], level: float, n_bootstrap: int) -> NDArray[np.float64]:
    """
    Rank algorithms by their average ranks, and again in resamples of the patients.

    Shapes: `ranks` (n_patients, n_algorithms); returns the columns `_PLACES`, (5, n_algorithms).
    """
    # How often each patient is in each resample; the first row is the patients themselves.
    draws = patient_draws(len(ranks), n_bootstrap, 0)[1:]
    # Sums of ranks are multiples of 1/2, so that equal sums are equal to the last bit.
    places = rankdata(draws @ ranks, method="min", axis=1)
    tail = 50 * (1 - level)
    # Interpolated, a percentile could be a place that no resample has.
    low, high = np.percentile(places, [tail, 100 - tail], axis=0, method="nearest")
    average = ranks.mean(axis=0)
    place = rankdata(average, method="min")
    return np.array([average, place, low, high, (places == 1).mean(axis=0)])


# Mixed model -------------------------------------------------------------------------------------


def mixed_model(
    frame: pd.DataFrame, algorithms: Sequence[str], *, positive: bool, alpha: float
) -> list[dict[str, Any]]:
    """Fit value ~ algorithm * metric with a random intercept of the patient."""
    usable = frame[np.isfinite(frame["value"])].reset_index(drop=True)
    if positive:
        # Errors vary by factors between parameters; logarithms give residuals of one spread.
        usable = usable[usable["value"] > 0].reset_index(drop=True)
        usable["value"] = np.log(usable["value"])
    notes = []
    if len(usable) < len(frame):
        n_dropped = len(frame) - len(usable)
        notes.append(f"{counted(n_dropped, 'value')} without a logarithm or missing left out")
    algorithms_with_values = set(usable["algorithm"])
    algorithms = [name for name in algorithms if name in algorithms_with_values]
    metrics = sorted(usable["metric"].unique())
    scale = "log" if positive else "raw"
    empty = {"kind": "test", "term": "", "scale": scale, "n": 0, "converged": False}
    if problem := _problem(usable, algorithms, metrics):
        return [empty | {"reason": "; ".join([*notes, problem])}]
    # Names of users stay in the columns: the formula holds none of them.
    table = usable.assign(
        algorithm=pd.Categorical(usable["algorithm"], algorithms),
        metric=pd.Categorical(usable["metric"], metrics),
    )
    # Sum coding, so that coefficients are deviations from the grand mean.
    formula = "value ~ C(algorithm, Sum)"
    if len(metrics) > 1:
        formula += " * C(metric, Sum)"
    result, problems = _fit(formula, table)
    notes += problems
    if result is None:
        return [empty | {"n": len(table), "reason": "; ".join(notes)}]
    between = float(np.asarray(result.cov_re)[0, 0])
    rows = [
        *_term_tests(result),
        *_effects(result, table, alpha),
        {"kind": "variance", "term": "patient", "estimate": between},
        {"kind": "variance", "term": "residual", "estimate": float(result.scale)},
    ]
    shared = {"scale": scale, "n": len(table), "converged": bool(result.converged)}
    return [row | shared | {"reason": "; ".join(notes)} for row in rows]


def _problem(usable: pd.DataFrame, algorithms: Sequence[str], metrics: Sequence[str]) -> str:
    """Say why no model can be fitted; empty if one can."""
    values = usable["value"].to_numpy()
    n_patients = usable["patient"].nunique()
    if n_patients < 3:
        return f"{counted(n_patients, 'patient')} with all values; 3 are needed"
    if len(algorithms) < 2:
        return f"{len(algorithms)} algorithm"
    if usable.groupby(["algorithm", "metric"]).ngroups < len(algorithms) * len(metrics):
        return "an algorithm has no values of one of the parameters"
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return "all values are equal"
    return ""


def _fit(formula: str, table: pd.DataFrame) -> tuple[Any, list[str]]:
    """Fit by restricted likelihood; return the result, None without one, and what went wrong."""
    models = import_optional("statsmodels.formula.api")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Other optimizers step out of the parameter space where patients hardly vary.
            result = models.mixedlm(formula, table, groups=table["patient"]).fit(method="powell")
            # Fixed effects come first; after them the variance of patients may be at its bound.
            k = len(result.fe_params)
            covariance = np.asarray(result.cov_params())[:k, :k]
        except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
            return None, [f"the fit failed: {error}"]
    if not (np.isfinite(result.fe_params).all() and np.isfinite(covariance).all()):
        return None, ["the fit failed: the values vary too little to estimate errors"]
    # Gradients at the edge of the parameter space are not zero, and need not be.
    if float(np.asarray(result.cov_re)[0, 0]) < _NO_VARIANCE * result.scale:
        return result, ["the variance between patients is zero"]
    return result, list(dict.fromkeys(str(warning.message) for warning in caught))


def _term_tests(result: Any) -> Iterator[dict[str, Any]]:
    """Test by Wald's statistic whether all effects of a term are zero."""
    with warnings.catch_warnings():
        # Too few values leave a covariance without full rank; its degrees of freedom say so.
        warnings.simplefilter("ignore")
        tests = result.wald_test_terms(scalar=True).table.to_dict("records")
    # The first is the test of the grand mean.
    for term, test in zip(("algorithm", "metric", "algorithm:metric"), tests[1:], strict=False):
        row = {"kind": "test", "term": term, "df": int(test["df_constraint"])}
        yield row | {"statistic": float(test["statistic"]), "p": float(test["pvalue"])}


def _effects(result: Any, table: pd.DataFrame, alpha: float) -> Iterator[dict[str, Any]]:
    """Estimate the deviation of every level of a term from the grand mean."""
    algorithms, metrics = (list(table[name].cat.categories) for name in ("algorithm", "metric"))
    # The rows of the design of all cells, (n_algorithms, n_metrics, n_coefficients).
    row_of_cell = table.reset_index().groupby(["algorithm", "metric"], observed=True)["index"]
    cells = result.model.exog[row_of_cell.first()].reshape(len(algorithms), len(metrics), -1)
    of_algorithms = cells.mean(axis=1) - cells.mean(axis=(0, 1))
    terms = {"algorithm": (algorithms, of_algorithms)}
    if len(metrics) > 1:
        terms["metric"] = metrics, cells.mean(axis=0) - cells.mean(axis=(0, 1))
        crossed = cells - cells.mean(axis=0) - of_algorithms[:, None]
        names = [f"{algorithm}:{metric}" for algorithm in algorithms for metric in metrics]
        terms["algorithm:metric"] = names, crossed.reshape(len(names), -1)
    for term, (levels, contrasts) in terms.items():
        test = result.t_test(contrasts)
        low, high = test.conf_int(alpha).T
        columns = zip(levels, test.effect, test.sd, low, high, test.pvalue, strict=True)
        for level, *numbers in columns:
            estimates = dict(zip(_ESTIMATES, map(float, numbers), strict=True))
            yield {"kind": "effect", "term": f"{term}[{level}]", **estimates}


# By the tables that a test fills.
_TESTS = {
    ("patients",): _patients,
    ("friedman",): _friedman,
    ("pairs",): _pairs,
    ("equivalence",): _equivalence,
    _RANK_TABLES: _nemenyi,
    ("mixed",): _mixed,
}

_COLUMNS = {
    "patients": ["patient", "algorithm", "value"],
    "friedman": [
        "n_patients", "n_dropped", "n_algorithms", "statistic", "p", "kendall_w", "reason",
    ],
    "pairs": [
        "a", "b", "n_patients", "mean_a", "mean_b", "median_difference", "statistic", "p",
        "p_holm", *_EFFECT, "reason",
    ],
    "equivalence": [
        "a", "b", "n_patients", "mean_difference", *_MEAN_ENDS, "margin", "p_lower", "p_upper",
        "p", "p_different", "verdict", "reason",
    ],
    "ranks": [
        "algorithm", "average_rank", "critical_difference", *_PLACES[1:], "n_patients", "reason",
    ],
    "nemenyi": ["a", "b", "p", "reason"],
    "cliques": ["clique", "algorithms", "low", "high", "reason"],
    "mixed": [
        "kind", "term", "scale", "estimate", "standard_error", "low", "high", "statistic", "df",
        "p", "n", "converged", "reason",
    ],
}  # fmt: skip
