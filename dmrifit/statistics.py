"""Tests between algorithms with the patient as the unit, and agreement between raters."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CONTROLS",
    "ICC_FORMS",
    "ICCResult",
    "LimitsOfAgreement",
    "bland_altman",
    "holm",
    "icc",
    "patient_scores",
    "rank_biserial",
    "study_statistics",
]

#: Rows of a comparison that are no algorithms; no test between algorithms sees them.
CONTROLS = ("constant", "shuffled", "perfect")

ICC_FORMS = ("ICC(1,1)", "ICC(2,1)", "ICC(3,1)")

#: The share of an index's typical size that counts as no difference; see `study_statistics`.
MARGIN_SHARE = 0.1

#: S0 scales with the scanner's gain: it is no property of the tissue.
_NO_TISSUE = ("S0",)
#: Its reference mostly sits at a bound, so summaries are given without it too.
_AT_BOUND = "T2v"
_KEYS = ["cohort", "strategy", "train_on", "metrics"]
_TEXT = ("cohort", "patient", "strategy", "algorithm", "train_on", "metric")
_HIGHER_IS_BETTER = ("pearson", "spearman")
_SIGNED = ("bias", *_HIGHER_IS_BETTER)
# What each optional library is needed for.
_LIBRARIES = {"statsmodels": {"equivalence", "mixed"}, "scikit_posthocs": {"ranks", "nemenyi", "cliques"}}
_FEW = "{n} patients have all values; {least} are needed"


# Tests between algorithms -------------------------------------------------------------------------------------------


def study_statistics(
    scores: pd.DataFrame,
    *,
    index: str = "dispersion",
    margin: float | None = None,
    alpha: float = 0.05,
    metrics: Sequence[str] | None = None,
    by_metric: bool = False,
    tables: Sequence[str] | None = None,
    n_bootstrap: int = 2000,
    random_state: int = 0,
) -> dict[str, pd.DataFrame]:
    """
    Test whether algorithms differ, with patients as the unit.

    Each patient enters with one number for each algorithm (see `patient_scores`): the index, averaged
    over parameters and repeats, at the largest number of training patients. Cohorts, strategies and ways
    of training are tested apart; controls (`CONTROLS`) are no algorithms and enter no test.

    Parameters
    ----------
    scores : DataFrame
        ``Evaluation.scores``.
    index : str, default="dispersion"
        Column of `scores`, or ``"abs_"`` and a column for its magnitude: ``"abs_bias"``.
    margin : float, optional
        Largest difference of the mean index that counts as none, on the index's own scale. By default
        10 % of the median of the index's magnitude over patients and algorithms. The letter tests for
        differences only and names no margin. Ten percent is less than what it calls a substantial
        difference between strategies, and is the tolerance within which its learning curves are read as
        level; so "equivalent" says that the choice between two algorithms matters less than either.
    alpha : float, default=0.05
        Level of all tests and of the confidence intervals, which cover ``1 - alpha``.
    metrics : sequence of str, optional
        Parameters to average over. By default two groups: all but S0, which is no property of the
        tissue, and the same without T2v, whose reference mostly sits at a bound.
    by_metric : bool, default=False
        Test each parameter for itself too.
    tables : sequence of str, optional
        Make these of the tables below only; by default all.
    n_bootstrap : int, default=2000
        Resamples of the patients for the intervals of effect sizes.
    random_state : int, default=0
        Seed of the resamples.

    Returns
    -------
    dict of str to DataFrame
        Tables, each with the keys ``cohort``, ``strategy``, ``train_on`` and ``metrics`` (the group of
        parameters, or one of them), and a column ``reason``, which says why a number is NaN or how it was
        come by, and is empty otherwise:

        ``patients``: the number of each ``patient`` and ``algorithm`` (``value``).
        ``friedman``: Friedman's test: ``n_patients`` (with values of all algorithms), ``n_dropped`` (those
        without), ``n_algorithms``, ``statistic``, ``p``, ``kendall_w`` (effect size, 0 to 1).
        ``pairs``: for each two algorithms ``a`` and ``b`` their ``mean_a``, ``mean_b``, the median
        ``difference`` a − b, Wilcoxon's signed-rank ``statistic`` and ``p``, ``p_holm`` (over the pairs of a
        group), and the ``rank_biserial`` correlation with its bootstrap interval ``low`` … ``high``.
        ``equivalence``: two one-sided paired t tests: mean ``difference``, its interval ``low`` … ``high``
        of coverage 1 − 2 alpha, ``margin``, ``p_lower``, ``p_upper``, ``p`` (the larger), ``p_different``
        (paired t test, Holm over pairs) and ``verdict``: equivalent, different or undecided.
        "All are equivalent" needs every pair, so p values need no correction for that claim.
        ``ranks``: ``average_rank`` of each ``algorithm`` (1 is best: lowest, or highest for correlations)
        and ``critical_difference`` (Nemenyi).
        ``nemenyi``: ``p`` for each two algorithms.
        ``cliques``: ``clique`` (number), ``algorithms`` (tuple), ``low`` and ``high`` (average ranks): the
        bars of a critical-difference diagram.
        ``mixed``: linear mixed model of the index, with a random intercept of the patient. Its logarithm is
        modeled where the index is positive by nature (column ``scale``: log, or raw). ``kind`` "test" are
        Wald tests of ``term`` algorithm, metric and algorithm:metric (``statistic`` chi², ``df``, ``p``);
        ``kind`` "effect" are deviations from the grand mean (``estimate``, ``standard_error``, ``low``,
        ``high``, ``p``); ``kind`` "variance" those of patients and of the residual. ``converged`` tells
        whether the fit did.

    Raises
    ------
    ValueError
        If the index is no column, a parameter or table is unknown, or margin or level are out of range.
    ImportError
        If a table needs statsmodels or scikit-posthocs (extra ``stats``) and they are not installed.

    References
    ----------
    Demšar, J Mach Learn Res 7:1–30, 2006 (Friedman, Nemenyi, critical differences); Holm, Scand J Stat
    6:65–70, 1979; Kerby, Compr Psychol 3:11.IT.3.1, 2014 (rank-biserial); Schuirmann, J Pharmacokinet
    Biopharm 15:657–680, 1987 (two one-sided tests).
    """
    import pandas as pd

    if margin is not None and not margin > 0:
        msg = f"margin must be above 0, not {margin}: no two algorithms are equal to the last bit"
        raise ValueError(msg)
    if not 0 < alpha < 0.5:
        msg = f"alpha must lie between 0 and 0.5, not {alpha}"
        raise ValueError(msg)
    if n_bootstrap < 1:
        msg = f"n_bootstrap must be at least 1, not {n_bootstrap}"
        raise ValueError(msg)
    wanted = list(_COLUMNS) if tables is None else list(tables)
    unknown = [name for name in wanted if name not in _COLUMNS]
    if unknown:
        msg = f"tables must be some of {', '.join(_COLUMNS)}, not {', '.join(map(str, unknown))}"
        raise ValueError(msg)
    for library, needing in _LIBRARIES.items():
        if needing & set(wanted):
            import_optional(library)
    table = _indexed(scores, index)
    groups = _metric_groups(table, metrics, by_metric)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _COLUMNS}
    for keys, frame in _groups(table, groups):
        wide, n_dropped = _complete(frame)
        if "patients" in wanted:
            long = wide.reset_index().melt(id_vars="patient", value_name="value")
            rows["patients"] += [keys | row for row in long.to_dict("records")]
        # Neither the order nor the names of patients may move a bit of the results.
        values = wide.to_numpy()
        values = values[np.lexsort(values.T)] if values.size else values
        names = list(wide.columns)
        nothing = _nothing(frame) if not len(values) else ""
        if "friedman" in wanted:
            rows["friedman"].append({**keys, **_friedman(values, nothing), "n_dropped": n_dropped})
        if "pairs" in wanted:
            rows["pairs"] += [keys | row for row in _pairs(values, names, alpha, n_bootstrap, random_state, nothing)]
        if "equivalence" in wanted:
            width = margin if margin is not None else MARGIN_SHARE * _typical(values)
            rows["equivalence"] += [keys | row for row in _equivalence(values, names, width, alpha, nothing)]
        if {"ranks", "nemenyi", "cliques"} & set(wanted):
            higher = index.startswith(_HIGHER_IS_BETTER)
            for name, found in zip(
                ("ranks", "nemenyi", "cliques"), _nemenyi(values, names, alpha, higher, nothing), strict=True
            ):
                rows[name] += [keys | row for row in found]
        if "mixed" in wanted:
            rows["mixed"] += [keys | row for row in _mixed(frame, not index.startswith(_SIGNED), alpha)]
    return {name: pd.DataFrame(rows[name], columns=[*_KEYS, *_COLUMNS[name]]) for name in wanted}


def patient_scores(
    scores: pd.DataFrame,
    *,
    index: str = "dispersion",
    metrics: Sequence[str] | None = None,
) -> pd.DataFrame:
    """
    Summarize a comparison to one number for each patient and algorithm.

    Parameters
    ----------
    scores : DataFrame
        ``Evaluation.scores``.
    index : str, default="dispersion"
        Column of `scores`, or ``"abs_"`` and a column for its magnitude.
    metrics : sequence of str, optional
        Parameters to average over; by default all but S0.

    Returns
    -------
    DataFrame
        ``cohort``, ``strategy``, ``train_on``, ``patient``, ``algorithm``, ``value``: the mean over repeats,
        then over parameters, at the patient's largest number of training patients. A parameter that has no
        value of one algorithm in a patient is left out for all algorithms of that patient, so that means are
        over the same parameters; patients without any are left out. Controls are left out.

    Raises
    ------
    ValueError
        If the index is no column or a parameter is unknown.
    """
    import pandas as pd

    table = _indexed(scores, index)
    groups = _metric_groups(table, metrics, by_metric=False)
    first = next(iter(groups))
    pieces = []
    for keys, frame in _groups(table, {first: groups[first]}):
        wide, _ = _complete(frame)
        long = wide.reset_index().melt(id_vars="patient", var_name="algorithm", value_name="value")
        pieces.append(long.assign(**{key: keys[key] for key in _KEYS[:3]}))
    columns = [*_KEYS[:3], "patient", "algorithm", "value"]
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def rank_biserial(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    random_state: int = 0,
) -> tuple[float, float, float]:
    """
    Compute the paired rank-biserial correlation with a bootstrap interval.

    Parameters
    ----------
    a, b : array_like of shape (n_patients,)
        Paired values.
    confidence : float, default=0.95
        Coverage of the interval.
    n_bootstrap : int, default=2000
        Resamples of the patients; percentiles of their values make the interval.
    random_state : int, default=0
        Seed of the resamples.

    Returns
    -------
    value, low, high : float
        The sum of ranks that favor a > b minus that of a < b, as a share of both: 1 where a is larger in
        every patient, −1 where b is; 0 where no pair differs. Pairs without a difference have no rank.
        NaN without any finite pair.

    Raises
    ------
    ValueError
        If the lengths differ.

    References
    ----------
    Kerby, Compr Psychol 3:11.IT.3.1, 2014.
    """
    a, b = _paired(a, b)
    difference = np.sort(a - b)
    if not len(difference):
        return np.nan, np.nan, np.nan
    # Exchanging a and b has to mirror the interval, so resamples are drawn for one of the two orders.
    mirrored = np.sort(-difference)
    turned = tuple(difference) < tuple(mirrored)
    if turned:
        difference = mirrored
    generator = np.random.default_rng(random_state)
    drawn = difference[generator.integers(0, len(difference), (n_bootstrap, len(difference)))]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(_signed_rank_share(drawn), [tail, 100 - tail])
    if np.array_equal(difference, np.sort(-difference)):
        low, high = (low - high) / 2, (high - low) / 2
    value = _signed_rank_share(difference[None])[0]
    return (float(-value), float(-high), float(-low)) if turned else (float(value), float(low), float(high))


def _signed_rank_share(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide sums of signed ranks by sums of ranks, row by row; zeros have no rank."""
    from scipy.stats import rankdata

    # Zeros get the lowest ranks; taking their number off leaves the ranks among the others.
    zeros = (difference == 0).sum(axis=1, keepdims=True)
    ranks = np.where(difference == 0, 0.0, rankdata(np.abs(difference), axis=1) - zeros)
    total = ranks.sum(axis=1)
    return (ranks * np.sign(difference)).sum(axis=1) / np.where(total > 0, total, 1.0)


# Agreement ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ICCResult:
    """
    An intraclass correlation with its interval.

    Attributes
    ----------
    form : str
        One of `ICC_FORMS`.
    value : float
        The correlation.
    low, high : float
        Confidence interval.
    statistic, df1, df2, p : float
        F test of no correlation.
    n_targets, n_raters : int
        What it was computed from.
    reason : str
        Why numbers are NaN; empty otherwise.
    """

    form: str
    value: float
    low: float
    high: float
    statistic: float
    df1: float
    df2: float
    p: float
    n_targets: int
    n_raters: int
    reason: str = ""


def icc(ratings: ArrayLike, form: str = "ICC(2,1)", *, confidence: float = 0.95) -> ICCResult:
    """
    Compute an intraclass correlation of single ratings.

    Parameters
    ----------
    ratings : array_like of shape (n_targets, n_raters)
        One row for each target; rows with a NaN are left out.
    form : {"ICC(1,1)", "ICC(2,1)", "ICC(3,1)"}, default="ICC(2,1)"
        (1,1): each target has raters of its own. (2,1): the raters, drawn from many, rate all targets, and
        differences between raters count as disagreement. (3,1): these raters only; their mean
        differences do not count (consistency).
    confidence : float, default=0.95
        Coverage of the interval, which follows from the F distribution.

    Returns
    -------
    ICCResult
        NaN, with a reason, for fewer than two targets or raters or if nothing varies.

    Raises
    ------
    ValueError
        If the form is unknown, the ratings are no table, or one of them is infinite.

    References
    ----------
    Shrout and Fleiss, Psychol Bull 86:420–428, 1979.
    """
    from scipy.stats import f as f_distribution

    if form not in ICC_FORMS:
        msg = f"form must be one of {', '.join(ICC_FORMS)}, not {form!r}"
        raise ValueError(msg)
    _check_confidence(confidence)
    x = np.asarray(ratings, dtype=np.float64)
    if x.ndim != 2:
        msg = f"ratings need one row per target and one column per rater, not shape {x.shape}"
        raise ValueError(msg)
    if np.isinf(x).any():
        msg = "ratings must be finite or NaN; one of them is infinite"
        raise ValueError(msg)
    x = x[~np.isnan(x).any(axis=1)]
    n, k = x.shape
    if n < 2 or k < 2:
        return _no_icc(form, n, k, f"{n} complete targets and {k} raters; two of each are needed")
    scale = np.abs(x).max()
    # Rounding leaves no exact zeros; what is this small against the ratings is no variation.
    if np.ptp(x) <= 1e-12 * scale or scale == 0:
        return _no_icc(form, n, k, "all ratings are equal")
    x = (x - x.mean()) / scale
    between = k * x.mean(axis=1).var(ddof=1)
    within = x.var(axis=1, ddof=1).mean()
    raters = n * x.mean(axis=0).var(ddof=1)
    residual = ((x - x.mean(axis=1, keepdims=True) - x.mean(axis=0)) ** 2).sum() / ((n - 1) * (k - 1))
    within, residual = (v if v > 1e-24 else 0.0 for v in (within, residual))
    error, df2 = (within, n * (k - 1)) if form == "ICC(1,1)" else (residual, (n - 1) * (k - 1))
    df1 = n - 1
    tail = (1 - confidence) / 2
    if form == "ICC(2,1)":
        value = (between - error) / (between + (k - 1) * error + k * (raters - error) / n)
    elif between + (k - 1) * error == 0:
        return _no_icc(form, n, k, "targets do not vary")
    else:
        value = (between - error) / (between + (k - 1) * error)
    statistic = between / error if error > 0 else np.inf
    p = float(f_distribution.sf(statistic, df1, df2)) if error > 0 else 0.0
    if form == "ICC(2,1)":
        low, high = _icc2_interval(between, raters, error, value, n, k, tail)
        # The degrees of freedom are approximate: where few are left, the interval can miss the estimate.
        low, high = min(low, value), max(high, value)
    elif error == 0:
        low = high = 1.0
    else:
        lower = statistic / f_distribution.ppf(1 - tail, df1, df2)
        upper = statistic * f_distribution.ppf(1 - tail, df2, df1)
        low, high = (lower - 1) / (lower + k - 1), (upper - 1) / (upper + k - 1)
    return ICCResult(form, float(value), float(low), float(high), float(statistic), float(df1), float(df2), p, n, k)


def _icc2_interval(
    between: float, raters: float, error: float, value: float, n: int, k: int, tail: float
) -> tuple[float, float]:
    """Interval of ICC(2,1) by Satterthwaite's degrees of freedom."""
    from scipy.stats import f as f_distribution

    if error == 0 and raters == 0:
        return 1.0, 1.0
    if error == 0:
        # Only raters differ: the degrees of freedom are theirs.
        v = float(k - 1)
    else:
        ratio = raters / error
        rest = n * (1 + (k - 1) * value) - k * value
        v = (k - 1) * (n - 1) * (k * value * ratio + rest) ** 2
        v /= (n - 1) * k**2 * value**2 * ratio**2 + rest**2
    with np.errstate(all="ignore"):
        # Next to no degrees of freedom leave the quantile without bound; the interval has a limit there.
        v = max(v, 1e-3)
        f_low, f_high = f_distribution.ppf(1 - tail, n - 1, v), f_distribution.ppf(1 - tail, v, n - 1)
    spread = k * raters + (k * n - k - n) * error
    low = n * (between / f_low - error) / (spread + n * between / f_low)
    if not np.isfinite(f_high):
        return low, 1.0 if between > 0 else low
    return low, n * (f_high * between - error) / (spread + n * f_high * between)


def _no_icc(form: str, n: int, k: int, reason: str) -> ICCResult:
    nan = float("nan")
    return ICCResult(form, nan, nan, nan, nan, nan, nan, nan, n, k, reason)


@dataclass(frozen=True)
class LimitsOfAgreement:
    """
    Bland and Altman's bias and limits of agreement, in the unit of the measurements.

    Attributes
    ----------
    bias : float
        Mean difference.
    sd : float
        Standard deviation of the differences.
    lower, upper : float
        Limits of agreement.
    bias_interval, lower_interval, upper_interval : tuple of float
        Confidence intervals of the three.
    n : int
        Pairs.
    reason : str
        Why numbers are NaN; empty otherwise.
    """

    bias: float
    sd: float
    lower: float
    upper: float
    bias_interval: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]
    n: int
    reason: str = ""


def bland_altman(a: ArrayLike, b: ArrayLike, *, agreement: float = 1.96, confidence: float = 0.95) -> LimitsOfAgreement:
    """
    Compute how far two measurements of the same targets lie apart.

    Parameters
    ----------
    a, b : array_like of shape (n,)
        Paired measurements in one unit; pairs with a NaN are left out.
    agreement : float, default=1.96
        Standard deviations from the bias to a limit.
    confidence : float, default=0.95
        Coverage of the intervals (t distribution; the variance of a limit is that of the bias plus
        ``agreement² sd² / (2 (n − 1))``).

    Returns
    -------
    LimitsOfAgreement
        Of a − b.

    Raises
    ------
    ValueError
        If the lengths differ or a measurement is infinite.

    References
    ----------
    Bland and Altman, Lancet 327:307–310, 1986; Stat Methods Med Res 8:135–160, 1999.
    """
    from scipy.stats import t as t_distribution

    _check_confidence(confidence)
    a, b = _paired(a, b)
    n, nan = len(a), float("nan")
    if n < 2:
        bias = float(np.mean(a - b)) if n else nan
        none = (nan, nan)
        return LimitsOfAgreement(bias, nan, nan, nan, none, none, none, n, f"{n} pairs; two are needed")
    difference = a - b
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    t = t_distribution.ppf((1 + confidence) / 2, n - 1)
    own = t * sd / np.sqrt(n)
    limit = t * sd * np.sqrt(1 / n + agreement**2 / (2 * (n - 1)))
    lower, upper = bias - agreement * sd, bias + agreement * sd
    around, lowest, highest = (
        (float(x - w), float(x + w)) for x, w in ((bias, own), (lower, limit), (upper, limit))
    )
    return LimitsOfAgreement(bias, sd, float(lower), float(upper), around, lowest, highest, n)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        msg = f"paired values need one length, not shapes {a.shape} and {b.shape}"
        raise ValueError(msg)
    if np.isinf(a).any() or np.isinf(b).any():
        msg = "paired values must be finite or NaN; one of them is infinite"
        raise ValueError(msg)
    usable = ~(np.isnan(a) | np.isnan(b))
    return a[usable], b[usable]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        msg = f"confidence must lie between 0 and 1, not {confidence}"
        raise ValueError(msg)


# What the tests are made of -----------------------------------------------------------------------------------------


def _indexed(scores: pd.DataFrame, index: str) -> pd.DataFrame:
    """Give the rows of algorithms with the index as ``value``, sorted."""
    column = index.removeprefix("abs_")
    needed = ["cohort", "patient", "strategy", "algorithm", "train_on", "n_train", "repeat", "metric"]
    missing = [name for name in needed if name not in scores.columns]
    if missing:
        msg = f"scores have no column {', '.join(missing)}; give the table Evaluation.scores"
        raise ValueError(msg)
    if column not in scores.columns or column in needed or scores[column].dtype.kind not in "fiu":
        numbers = [name for name in scores.columns if scores[name].dtype.kind == "f"]
        msg = f"index must be a number of the scores ({', '.join(numbers)}) or 'abs_' and one of them, not {index!r}"
        raise ValueError(msg)
    value = scores[column].abs() if index.startswith("abs_") else scores[column]
    table = scores[needed].astype(dict.fromkeys(_TEXT, str)).assign(value=value.astype(float))
    table = table[~table["algorithm"].isin(CONTROLS) & (table["metric"] != "")]
    return table.sort_values([*needed, "value"], ignore_index=True)


def _metric_groups(table: pd.DataFrame, metrics: Sequence[str] | None, by_metric: bool) -> dict[str, list[str]]:
    known = list(dict.fromkeys(table["metric"]))
    if metrics is not None:
        metrics = [metrics] if isinstance(metrics, str) else list(metrics)
        unknown = [name for name in metrics if name not in known]
        if unknown or not metrics:
            msg = f"metrics must name some of {', '.join(known) or 'none'}, not {', '.join(unknown) or 'nothing'}"
            raise ValueError(msg)
        groups = {", ".join(metrics): metrics}
        chosen = metrics
    else:
        chosen = [name for name in known if name not in _NO_TISSUE] or known
        groups = {"all": chosen}
        rest = [name for name in chosen if name != _AT_BOUND]
        if rest and rest != chosen:
            groups[f"without {_AT_BOUND}"] = rest
    if by_metric:
        groups |= {name: [name] for name in chosen}
    return groups


def _groups(table: pd.DataFrame, groups: dict[str, list[str]]) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield cohort, strategy, way of training and parameters; their rows at the largest training size."""
    for (cohort, strategy, train_on), part in table.groupby(_KEYS[:3], sort=True):
        largest = part.groupby("patient")["n_train"].transform("max")
        part = part[part["n_train"] == largest]
        means = part.groupby(["patient", "algorithm", "metric"], as_index=False)["value"].mean()
        for name, metrics in groups.items():
            keys = {"cohort": cohort, "strategy": strategy, "train_on": train_on, "metrics": name}
            yield keys, means[means["metric"].isin(metrics)]


def _complete(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Give patients × algorithms, averaged over the parameters that all algorithms have; count the dropped."""
    n_algorithms = frame["algorithm"].nunique()
    finite = frame[np.isfinite(frame["value"])]
    counts = finite.groupby(["patient", "metric"])["algorithm"].transform("nunique")
    wide = finite[counts == n_algorithms].pivot_table(index="patient", columns="algorithm", values="value")
    wide = wide[_ordered(wide.columns)]
    return wide, frame["patient"].nunique() - len(wide)


def _ordered(names: Sequence[str]) -> list[str]:
    """Order algorithms: those of the study as the study names them, then others by name."""
    from dmrifit.algorithms import ALGORITHMS

    known = {name: i for i, name in enumerate(ALGORITHMS)}
    return sorted(names, key=lambda name: (known.get(name, len(known)), name))


def _typical(values: NDArray[np.float64]) -> float:
    return float(np.median(np.abs(values))) if values.size else float("nan")


def _nothing(frame: pd.DataFrame) -> str:
    """Say why no patient is left."""
    whole = frame.groupby("algorithm")["value"].apply(lambda column: np.isfinite(column).any())
    never = [name for name in _ordered(list(whole.index)) if not whole[name]]
    if never:
        return f"no value of {', '.join(never)}"
    return "no patient has values of all algorithms"


def _friedman(values: NDArray[np.float64], nothing: str) -> dict[str, Any]:
    from scipy.stats import friedmanchisquare

    n, k = values.shape
    row = {"n_patients": n, "n_algorithms": k, "statistic": np.nan, "p": np.nan, "kendall_w": np.nan}
    reason = nothing
    if not reason and k < 3:
        reason = f"{k} algorithm{'s' * (k > 1)}; Friedman's test needs three" + "; see pairs" * (k == 2)
    elif not reason and n < 3:
        reason = _FEW.format(n=n, least=3)
    elif not reason and (values == values[:, :1]).all():
        reason = "all algorithms have equal values"
    if not reason:
        statistic, p = friedmanchisquare(*values.T)
        row |= {"statistic": float(statistic), "p": float(p), "kendall_w": float(statistic / (n * (k - 1)))}
    return row | {"reason": reason}


def _pairs(
    values: NDArray[np.float64], names: list[str], alpha: float, n_bootstrap: int, seed: int, nothing: str
) -> list[dict[str, Any]]:
    from scipy.stats import wilcoxon

    rows = []
    for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
        x, y = values[:, i], values[:, j]
        n = len(x)
        row: dict[str, Any] = {"a": a, "b": b, "n_patients": n, "statistic": np.nan, "p": np.nan, "reason": nothing}
        row |= {"mean_a": _mean(x), "mean_b": _mean(y), "difference": float(np.median(x - y)) if n else np.nan}
        share, low, high = rank_biserial(x, y, confidence=1 - alpha, n_bootstrap=n_bootstrap, random_state=seed)
        row |= {"rank_biserial": share, "low": low, "high": high}
        if not nothing and n < 3:
            row["reason"] = _FEW.format(n=n, least=3)
        elif not nothing and (x == y).all():
            row["reason"] = "all differences are zero"
        elif not nothing:
            with warnings.catch_warnings():
                # Few pairs with ties: the p value is approximate, which is what can be had.
                warnings.simplefilter("ignore")
                test = wilcoxon(x, y)
            row |= {"statistic": float(test.statistic), "p": float(test.pvalue)}
        rows.append(row)
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def holm(p: Sequence[float]) -> list[float]:
    """
    Correct p values of several tests by Holm's steps.

    Parameters
    ----------
    p : sequence of float
        NaN, no test, stays NaN and counts for nothing.

    Returns
    -------
    list of float
        Corrected values, in the same order.

    References
    ----------
    Holm, Scand J Stat 6:65–70, 1979.
    """
    given = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(given), np.nan)
    order = np.argsort(given)[: int(np.isfinite(given).sum())]
    # statsmodels has this too, but collects garbage at every call, which takes longer than all tests.
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]


def _equivalence(
    values: NDArray[np.float64], names: list[str], margin: float, alpha: float, nothing: str
) -> list[dict[str, Any]]:
    from scipy.stats import t as t_distribution
    from scipy.stats import ttest_rel

    weightstats = import_optional("statsmodels.stats.weightstats")
    rows = []
    for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
        difference = values[:, i] - values[:, j]
        n = len(difference)
        mean = _mean(difference)
        row: dict[str, Any] = {"a": a, "b": b, "n_patients": n, "difference": mean, "margin": margin}
        row |= dict.fromkeys(("low", "high", "p_lower", "p_upper", "p", "p_different"), np.nan)
        row |= {"verdict": "undecided", "reason": nothing}
        rows.append(row)
        if nothing:
            continue
        if not margin > 0:
            row["reason"] = "the index is zero, and so is a margin relative to it; state a margin"
        elif n < 3:
            row["reason"] = _FEW.format(n=n, least=3)
        elif np.ptp(difference) <= 1e-12 * np.abs(values[:, [i, j]]).max():
            row |= {"low": mean, "high": mean, "verdict": "equivalent" if abs(mean) < margin else "different"}
            row["reason"] = "all differences are equal: decided without a test"
        else:
            spread = difference.std(ddof=1) / np.sqrt(n) * t_distribution.ppf(1 - alpha, n - 1)
            p, lower, upper = weightstats.ttost_paired(values[:, i], values[:, j], -margin, margin)
            row |= {"low": mean - spread, "high": mean + spread, "p": float(p)}
            row |= {"p_lower": float(lower[1]), "p_upper": float(upper[1])}
            row["p_different"] = float(ttest_rel(values[:, i], values[:, j]).pvalue)
    for row, p in zip(rows, holm([row["p_different"] for row in rows]), strict=True):
        row["p_different"] = p
        if row["p"] <= alpha:
            row["verdict"] = "equivalent"
        elif p <= alpha:
            row["verdict"] = "different"
    return rows


def _nemenyi(
    values: NDArray[np.float64], names: list[str], alpha: float, higher_is_better: bool, nothing: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Average ranks, p values of pairs, and the groups that no p value separates."""
    from scipy.stats import rankdata, studentized_range

    n, k = values.shape
    reason = nothing
    if not reason and k < 2:
        reason = "one algorithm"
    elif not reason and n < 3:
        reason = _FEW.format(n=n, least=3)
    if reason:
        ranks = [
            {"algorithm": name, "average_rank": np.nan, "critical_difference": np.nan, "n_patients": n}
            for name in names
        ]
        pairs = [{"a": a, "b": b, "p": np.nan} for a, b in itertools.combinations(names, 2)]
        return [row | {"reason": reason} for row in ranks], [row | {"reason": reason} for row in pairs], []
    posthocs = import_optional("scikit_posthocs")
    ranked = -values if higher_is_better else values
    average = rankdata(ranked, axis=1).mean(axis=0)
    critical = float(studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * n)))
    p = posthocs.posthoc_nemenyi_friedman(ranked).to_numpy()
    ranks = [
        {"algorithm": name, "average_rank": float(r), "critical_difference": critical, "n_patients": n, "reason": ""}
        for name, r in zip(names, average, strict=True)
    ]
    pairs = [
        {"a": names[i], "b": names[j], "p": float(p[i, j]), "reason": ""}
        for i, j in itertools.combinations(range(k), 2)
    ]
    order = np.argsort(average, kind="stable")
    spans: list[tuple[int, int]] = []
    for first in range(k):
        # Ranks are on a line, so the farthest that is not separated from the first spans a clique.
        last = max(other for other in range(first, k) if p[order[first], order[other]] > alpha)
        if last > first and not any(low <= first and last <= high for low, high in spans):
            spans.append((first, last))
    cliques = [
        {
            "clique": number,
            "algorithms": tuple(names[i] for i in order[low : high + 1]),
            "low": float(average[order[low]]),
            "high": float(average[order[high]]),
            "reason": "",
        }
        for number, (low, high) in enumerate(spans, start=1)
    ]
    return ranks, pairs, cliques


def _mixed(frame: pd.DataFrame, positive: bool, alpha: float) -> list[dict[str, Any]]:
    """Fit value ~ algorithm * metric with a random intercept of the patient."""
    scale = "log" if positive else "raw"
    empty = {"kind": "test", "term": "", "scale": scale, "n": 0, "converged": False}
    usable = frame[np.isfinite(frame["value"])]
    if positive:
        usable = usable[usable["value"] > 0]
    notes = [f"{len(frame) - len(usable)} values without a logarithm or missing left out"] * (len(usable) < len(frame))
    algorithms, metrics = _ordered(usable["algorithm"].unique()), sorted(usable["metric"].unique())
    n_patients = usable["patient"].nunique()
    if n_patients < 3:
        return [empty | {"reason": "; ".join([*notes, _FEW.format(n=n_patients, least=3)])}]
    if len(algorithms) < 2:
        return [empty | {"reason": "; ".join([*notes, f"{len(algorithms)} algorithm"])}]
    cells = usable.groupby(["algorithm", "metric"]).ngroups
    if cells < len(algorithms) * len(metrics):
        return [empty | {"reason": "; ".join([*notes, "an algorithm has no values of one of the parameters"])}]
    value = np.log(usable["value"].to_numpy()) if positive else usable["value"].to_numpy()
    if np.ptp(value) <= 1e-12 * max(1.0, float(np.abs(value).max())):
        return [empty | {"reason": "; ".join([*notes, "all values are equal"])}]
    terms, X = _design(usable, algorithms, metrics)
    fitted, trouble = _fit_mixed(value, X, usable["patient"].to_numpy())
    notes += trouble
    if fitted is None:
        return [empty | {"n": len(value), "reason": "; ".join(notes)}]
    beta, covariance, between, residual, converged = fitted
    shared = {"scale": scale, "n": len(value), "converged": converged, "reason": "; ".join(notes)}
    return [
        *(_wald(name, beta[columns], covariance[columns, columns]) | shared for name, columns, _ in terms),
        *(
            row | shared
            for name, columns, levels in terms
            for row in _effects(name, levels, beta[columns], covariance[columns, columns], alpha)
        ),
        {"kind": "variance", "term": "patient", "estimate": between} | shared,
        {"kind": "variance", "term": "residual", "estimate": residual} | shared,
    ]


_Term = tuple[str, slice, list[tuple[str, NDArray[np.float64]]]]


def _design(frame: pd.DataFrame, algorithms: list[str], metrics: list[str]) -> tuple[list[_Term], NDArray[np.float64]]:
    """
    Code the factors so that coefficients are deviations from the grand mean.

    A term is its name, its columns and, for each level, the contrast of the columns that is its effect.
    """
    coded = {}
    for name, levels in (("algorithm", algorithms), ("metric", metrics)):
        coding = np.vstack([np.eye(len(levels) - 1), -np.ones((1, len(levels) - 1))])
        position = {level: i for i, level in enumerate(levels)}
        coded[name] = (coding, coding[[position[level] for level in frame[name]]])
    a, m = coded["algorithm"], coded["metric"]
    both = (a[1][:, :, None] * m[1][:, None, :]).reshape(len(frame), -1)
    blocks = [np.ones((len(frame), 1)), a[1], m[1], both]
    edges = np.cumsum([0, *(block.shape[1] for block in blocks)])
    crossed = [
        (f"{x}:{y}", np.outer(a[0][i], m[0][j]).ravel())
        for i, x in enumerate(algorithms)
        for j, y in enumerate(metrics)
    ]
    effects = [list(zip(algorithms, a[0], strict=True)), list(zip(metrics, m[0], strict=True)), crossed]
    names = ("algorithm", "metric", "algorithm:metric")
    terms = [
        (name, slice(edges[i], edges[i + 1]), levels)
        for i, (name, levels) in enumerate(zip(names, effects, strict=True), start=1)
        if edges[i + 1] > edges[i]
    ]
    return terms, np.concatenate(blocks, axis=1)


_Fitted = tuple[NDArray[np.float64], NDArray[np.float64], float, float, bool]


def _fit_mixed(value: NDArray, X: NDArray, patients: NDArray) -> tuple[_Fitted | None, list[str]]:
    """Fit by restricted likelihood; give coefficients, covariance, the variances, and what went wrong."""
    mixed = import_optional("statsmodels.regression.mixed_linear_model")
    plain = _fit_plain(value, X, patients)
    if plain is not None:
        return plain, ["the variance between patients is zero, so this is the least-squares fit"]
    k = X.shape[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = mixed.MixedLM(value, X, groups=patients).fit(reml=True, method=["lbfgs", "powell"])
            beta, covariance = np.asarray(result.fe_params), np.asarray(result.cov_params())[:k, :k]
            between, residual = float(np.asarray(result.cov_re)[0, 0]), float(result.scale)
            converged = bool(result.converged)
        except (np.linalg.LinAlgError, ValueError, FloatingPointError, ZeroDivisionError) as error:
            return None, [f"the fit failed: {error}"]
    said = list(dict.fromkeys(str(one.message).split("\n")[0] for one in caught))
    if not (np.isfinite(beta).all() and np.isfinite(covariance).all() and np.isfinite(residual)):
        return None, [*said, "the fit gave no finite numbers"]
    if not (converged or said):
        said = ["the fit did not converge"]
    return (beta, covariance, between, residual, converged), said


def _fit_plain(value: NDArray, X: NDArray, patients: NDArray) -> _Fitted | None:
    """
    Fit by least squares if the variance between patients is estimated as zero; None otherwise.

    There the restricted likelihood has its maximum at the edge of the parameter space, where the mixed
    model's own search ends in a singular matrix: in a balanced design when patients vary no more than
    the residual.
    """
    names, group = np.unique(patients, return_inverse=True)
    counts = np.bincount(group)
    df = len(value) - X.shape[1] - (len(names) - 1)
    if len(set(counts)) > 1 or df < 1:
        return None
    beta, *_ = np.linalg.lstsq(X, value, rcond=None)
    rest = value - X @ beta
    means = np.bincount(group, rest) / counts
    between = counts[0] * float((means**2).sum()) / (len(names) - 1)
    within = float(((rest - means[group]) ** 2).sum()) / df
    if between > within:
        return None
    residual = float(rest @ rest) / (len(value) - X.shape[1])
    return beta, residual * np.linalg.inv(X.T @ X), 0.0, residual, True


def _wald(name: str, beta: NDArray, covariance: NDArray) -> dict[str, Any]:
    from scipy.stats import chi2

    statistic = float(beta @ np.linalg.pinv(covariance) @ beta)
    return {
        "kind": "test",
        "term": name,
        "statistic": statistic,
        "df": len(beta),
        "p": float(chi2.sf(statistic, len(beta))),
    }


def _effects(
    name: str, levels: list[tuple[str, NDArray]], beta: NDArray, covariance: NDArray, alpha: float
) -> Iterator[dict[str, Any]]:
    from scipy.stats import norm

    width = norm.ppf(1 - alpha / 2)
    for level, contrast in levels:
        estimate = float(contrast @ beta)
        error = float(np.sqrt(max(contrast @ covariance @ contrast, 0.0)))
        p = float(2 * norm.sf(abs(estimate) / error)) if error > 0 else np.nan
        yield {
            "kind": "effect",
            "term": f"{name}[{level}]",
            "estimate": estimate,
            "standard_error": error,
            "low": estimate - width * error,
            "high": estimate + width * error,
            "p": p,
        }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


_COLUMNS = {
    "patients": ["patient", "algorithm", "value"],
    "friedman": ["n_patients", "n_dropped", "n_algorithms", "statistic", "p", "kendall_w", "reason"],
    "pairs": [
        *("a", "b", "n_patients", "mean_a", "mean_b", "difference", "statistic", "p", "p_holm"),
        *("rank_biserial", "low", "high", "reason"),
    ],
    "equivalence": [
        *("a", "b", "n_patients", "difference", "low", "high", "margin", "p_lower", "p_upper", "p"),
        *("p_different", "verdict", "reason"),
    ],
    "ranks": ["algorithm", "average_rank", "critical_difference", "n_patients", "reason"],
    "nemenyi": ["a", "b", "p", "reason"],
    "cliques": ["clique", "algorithms", "low", "high", "reason"],
    "mixed": [
        *("kind", "term", "scale", "estimate", "standard_error", "low", "high", "statistic", "df", "p"),
        *("n", "converged", "reason"),
    ],
}
