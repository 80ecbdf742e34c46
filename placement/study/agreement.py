"""Agreement between raters or measurements of the same targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from dmrifit._utils.counts import counted

ICC_FORMS = ("ICC(1,1)", "ICC(2,1)", "ICC(3,1)")

_TAIL = 0.025  # outside each end of an interval
_CORRELATION = ("value", "low", "high", "statistic", "df1", "df2", "p")
_LIMITS = (
    *("sd", "lower", "upper", "bias_low", "bias_high"),
    *("lower_low", "lower_high", "upper_low", "upper_high", "slope", "slope_p"),
)


def icc(ratings: ArrayLike, form: str = "ICC(2,1)") -> dict[str, Any]:
    """
    Compute an intraclass correlation of single ratings, with an interval of 95%.

    Gives ``form``, ``value``, ``low`` and ``high``, an F test of no correlation (``statistic``,
    ``df1``, ``df2``, ``p``), ``n`` (targets) and ``reason``, why numbers are NaN.

    Shapes: `ratings` (n_targets, n_raters).

    References
    ----------
    Shrout and Fleiss, Psychol Bull 86:420–428, 1979.
    """
    x = np.asarray(ratings, dtype=np.float64)
    x = x[~np.isnan(x).any(axis=1)]
    n, k = x.shape
    scale = np.abs(x).max(initial=0)
    row: dict[str, Any] = {"form": form, **dict.fromkeys(_CORRELATION, np.nan), "n": n}
    if n < 2 or k < 2:
        counts = f"{counted(n, 'complete target')} and {counted(k, 'rater')}"
        return row | {"reason": f"{counts}; two of each are needed"}
    # Rounding leaves no exact zeros; what is this small against the ratings is no variation.
    if np.ptp(x) <= 1e-12 * scale or scale == 0:
        return row | {"reason": "all ratings are equal"}
    # Correlations do not change by it, and squares of large ratings lose no digits.
    x = (x - x.mean()) / scale
    between = k * x.mean(axis=1).var(ddof=1)
    raters = n * x.mean(axis=0).var(ddof=1)
    if form == "ICC(1,1)":
        df2, error = n * (k - 1), x.var(axis=1, ddof=1).mean()
    else:
        df2 = (n - 1) * (k - 1)
        error = ((x - x.mean(axis=1, keepdims=True) - x.mean(axis=0)) ** 2).sum() / df2
    # Ratings have the scale 1 here; less than this is rounding.
    error = error if error > 1e-24 else 0.0
    whole = between + (k - 1) * error
    if form == "ICC(2,1)":
        whole += k * (raters - error) / n
        if whole <= 1e-12 * error:
            return row | {"reason": "neither targets nor raters vary on average"}
    elif whole == 0:
        return row | {"reason": "targets do not vary"}
    value = (between - error) / whole
    df1 = n - 1
    # An infinite statistic has p = 0.
    statistic = between / error if error > 0 else np.inf
    if form == "ICC(2,1)":
        low, high = _icc2_interval(between, raters, error, value, n, k)
        # The degrees of freedom are approximate: where few are left, the interval can miss the
        # estimate.
        low, high = min(low, value), max(high, value)
    elif error == 0:
        low = high = 1.0
    else:
        lower = statistic / stats.f.ppf(1 - _TAIL, df1, df2)
        upper = statistic * stats.f.ppf(1 - _TAIL, df2, df1)
        low, high = (lower - 1) / (lower + k - 1), (upper - 1) / (upper + k - 1)
    p = stats.f.sf(statistic, df1, df2)
    numbers = map(float, (value, low, high, statistic, df1, df2, p))
    return row | dict(zip(_CORRELATION, numbers, strict=True)) | {"reason": ""}


def _icc2_interval(
    between: float, raters: float, error: float, value: float, n: int, k: int
) -> tuple[float, float]:
    """Compute the 95% interval of ICC(2,1) by Satterthwaite's degrees of freedom."""
    if error == 0 and raters == 0:
        return 1.0, 1.0
    # Without an error only raters differ: the degrees of freedom are theirs.
    v = float(k - 1)
    if error > 0:
        ratio = raters / error
        weight = n * (1 + (k - 1) * value) - k * value
        v *= (n - 1) * (k * value * ratio + weight) ** 2
        v /= (n - 1) * k**2 * value**2 * ratio**2 + weight**2
    with np.errstate(all="ignore"):
        # Next to no degrees of freedom leave the quantile without bound; the interval has a limit
        # there.
        v = max(v, 1e-3)
        f_low = stats.f.ppf(1 - _TAIL, n - 1, v)
        f_high = stats.f.ppf(1 - _TAIL, v, n - 1)
    spread = k * raters + (k * n - k - n) * error
    low = n * (between / f_low - error) / (spread + n * between / f_low)
    if not np.isfinite(f_high):
        return low, 1.0 if between > 0 else low
    return low, n * (f_high * between - error) / (spread + n * f_high * between)


def bland_altman(a: ArrayLike, b: ArrayLike) -> dict[str, Any]:
    """
    Compute bias and limits of agreement of a − b, paired by target, with intervals of 95%.

    Gives ``n``, ``bias``, ``sd`` (of the differences), ``lower`` and ``upper``, all in the unit of
    the measurements, then bias and limits with ``…_low`` and ``…_high``, and ``reason``, why
    numbers are NaN; ``slope`` of the difference over the mean, with its ``slope_p``, tells whether
    methods differ more in large targets, which limits alone do not.

    References
    ----------
    Bland and Altman, Lancet 327:307–310, 1986; Stat Methods Med Res 8:135–160, 1999.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    usable = ~(np.isnan(first) | np.isnan(second))
    difference, mean = (first - second)[usable], (first + second)[usable] / 2
    n = len(difference)
    row: dict[str, Any] = {"n": n, "bias": float(difference.mean()) if n else np.nan}
    row |= dict.fromkeys(_LIMITS, np.nan)
    if n < 2:
        return row | {"reason": f"{counted(n, 'pair')}; two are needed"}
    row["sd"] = sd = float(difference.std(ddof=1))
    row["lower"], row["upper"] = row["bias"] - 1.96 * sd, row["bias"] + 1.96 * sd
    t = stats.t.ppf(1 - _TAIL, n - 1)
    for name in ("bias", "lower", "upper"):
        further = 0 if name == "bias" else 1.96**2 / (2 * (n - 1))
        width = t * sd * np.sqrt(1 / n + further)
        row[f"{name}_low"], row[f"{name}_high"] = row[name] - width, row[name] + width
    if n > 2 and np.ptp(mean) > 0:
        line = stats.linregress(mean, difference)
        row["slope"], row["slope_p"] = float(line.slope), float(line.pvalue)
    return row | {"reason": ""}
