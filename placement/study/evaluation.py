"""Comparison of placements with those of experts: the tables of the study."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dmrifit._utils.checks import check_own_names, check_word, check_words, errors_about
from dmrifit._utils.counts import counted
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.stats.method_tests import pair_tests, rank_biserial
from dmrifit.stats.patient_summary import in_parts
from placement.box.voxel import MM3_PER_ML, Voxel, warn_of_empty
from placement.search.objective import tumor_fraction
from placement.search.scene import Scene

__all__ = ["evaluate_placements"]

#: The row of the experts.
EXPERTS = "experts"
_SINGLE = "single experts"
#: Rows that no method should fall short of.
CONTROLS = ("centroid box", "random box")
#: Measures of each case, and what a reader sees of them.
MEASURES = {
    **{"f_tumor": "part that is tumor", "volume": "volume, mL"},
    **{"dice_closest": "Dice (closest expert)", "dice_mean": "mean Dice"},
    **{"dice_fair": "Dice (all but one expert)", "rotated_axes": "rotated axes"},
    **{"rotated_angles": "rotated angles", "difference": "volume − experts', mL"},
}

#: Values are equal but for rounding where they differ by less than this fraction.
LEVEL = 1e-12

#: Intraclass correlations of single ratings.
ICC_FORMS = ("ICC(1,1)", "ICC(2,1)", "ICC(3,1)")

_TESTED = ("dice_mean", "volume", "f_tumor")
_ANOVA_TESTS = ("one-way ANOVA", "repeated-measures ANOVA", "Friedman")
_ONE_WAY, _REPEATED, _FRIEDMAN = _ANOVA_TESTS
#: Names of two raters and their volumes in mL of all cases.
_Pair: TypeAlias = tuple[tuple[str, NDArray[np.float64]], tuple[str, NDArray[np.float64]]]
#: Agreement of two measurements, of shape (n_targets, 2).
_Agreement: TypeAlias = Callable[[NDArray[np.float64]], dict[str, Any]]
_PAIR_COLUMNS = ("t", "t_p", "wilcoxon", "wilcoxon_p", "rank_biserial", "low", "high")
_COMPARED = ("dice_closest", "dice_mean", "dice_fair", "difference")
_TAIL = 0.025  # outside each end of an interval
_EXACT_PAIRS = 8  # at most, of which all orders are tried
_CORRELATION = ("value", "low", "high", "statistic", "df1", "df2", "p")
_LIMITS = (
    *("sd", "lower", "upper", "bias_low", "bias_high"),
    *("lower_low", "lower_high", "upper_low", "upper_high", "slope", "slope_p"),
)


def evaluate_placements(
    scenes: Sequence[Scene],
    experts: ArrayLike,
    placements: Mapping[str, Any],
    *,
    folds: ArrayLike | None = None,
    seconds: Mapping[str, ArrayLike] | None = None,
    controls: bool = True,
    random_state: RandomState = 0,
) -> dict[str, pd.DataFrame]:
    """
    Compare placements with those of experts, by the tests of the study and by paired ones.

    Parameters
    ----------
    scenes : sequence of Scene
        The cases.
    experts : array_like of shape (n_cases, n_experts, 9)
        Experts' boxes as `Voxel.as_array` gives them; NaN where an expert placed none.
    placements : mapping of str to array_like of shape (n_cases, 9) or sequence of Voxel
        Boxes by the name of the method; NaN where it gave none.
    folds : array_like of int, shape (n_cases,), default=None
        In which fold each case was held out, from 1. The summary then has the parts "fold 1",
        which the study chose its settings on, and "other folds", too.
    seconds : mapping of str to array_like of shape (n_cases,), default=None
        How long a method took for each case.
    controls : bool, default=True
        Whether the rows of `CONTROLS` are added; see `control_placements`.
    random_state : int, RandomState or None, default=0
        Seed of the random box.

    Returns
    -------
    dict of str to DataFrame
        ``"cases"``: a row for each case and method with ``case``, ``name``, ``fold``,
        ``tumor_volume`` (mL), ``method``, ``seconds`` and `MEASURES`: part of the box that is
        tumor, volume (mL), Dice with the closest expert, the mean over experts, the fair one,
        turned axes (invariant, and the study's count of angles) and volume minus the experts' mean
        (mL). ``dice_fair`` is the mean, over leaving one expert out, of the closest of the others,
        for experts and methods alike: the closest of two experts is a maximum of two, an expert
        has only one other. For experts, measures are means over them, Dice is between them, and
        the difference is that of the first two. ``"summary"``: ``part``, ``method``, ``measure``,
        ``n``, ``mean``, ``sd``, ``median``; the method "single experts" pools their boxes.
        ``"icc"``: of volumes, ``method`` with ``against`` each expert in every form, with
        interval. ``"bland_altman"``: of volumes, against each expert and the mean of experts, with
        intervals, and the slope of the difference over the mean. ``"anova"``: one-way, as
        published, repeated-measures and Friedman's, over experts and methods, for mean Dice,
        volume and f_tumor. The same cases are in every group, so the one-way test is not the right
        one. ``"paired"``: for two groups at a time, paired t and Wilcoxon tests, Holm's correction
        of the latter, and the rank-biserial correlation with interval. ``"correlations"``: of
        tumor volume with the first five measures and the absolute difference, Pearson (with
        interval) and Spearman.

    Raises
    ------
    ValueError
        If a scene is no Scene, numbers of cases differ, a box is not possible, no expert placed
        any, a fold is below 1, or there is no method.

    References
    ----------
    Lee et al., MICCAI 2024, table 1 and figures; Shrout and Fleiss, Psychol Bull 86:420–428, 1979;
    Bland and Altman, Lancet 327:307–310, 1986.
    """
    for i, scene in enumerate(scenes):
        if not isinstance(scene, Scene):
            raise ValueError(
                f"scenes must be a sequence of Scene; case {i} is a {type(scene).__name__}"
            )
    raters = _expert_boxes(experts, len(scenes))
    placed = _by_case(raters)
    if not any(placed):
        raise ValueError(
            "there is nothing to compare with: no expert placed a box in the "
            f"{counted(len(scenes), 'scene')}"
        )
    reserved = (EXPERTS, _SINGLE, *(CONTROLS if controls else ()))
    check_own_names("placements", placements, reserved)
    boxes = dict(placements)
    if controls:
        boxes |= control_placements(scenes, experts, random_state=random_state)
    methods = {name: _boxes(value, len(scenes), name) for name, value in boxes.items()}
    held_out = _fold_numbers(folds, len(scenes))
    times = {name: _times(value, len(scenes), name) for name, value in (seconds or {}).items()}
    check_words("the methods of seconds", times, methods)
    rows = []
    single_rows = []
    for i, scene in enumerate(scenes):
        keys: dict[str, Any] = {"case": i, "name": scene.name, "fold": int(held_out[i])}
        keys["tumor_volume"] = scene.tumor_volume
        measures = _expert_measures(placed[i], scene)
        rows.append({**keys, "method": EXPERTS, "seconds": np.nan, **measures})
        # One box a row: means over experts vary less than a single expert does.
        for box in placed[i]:
            single_rows.append({**keys, "method": _SINGLE, **_box_measures(box, scene)})
        for name, method_boxes in methods.items():
            took = times[name][i] if name in times else np.nan
            measures = _measures(method_boxes[i], placed[i], scene)
            rows.append({**keys, "method": name, "seconds": took, **measures})
    warn_of_empty([str(row["name"]) for row in single_rows if row["f_tumor"] == 0])
    cases = pd.DataFrame(rows)
    pooled = pd.concat([cases, pd.DataFrame(single_rows)], ignore_index=True)
    by_method = {name: _volumes(method_boxes) for name, method_boxes in methods.items()}
    by_expert = {name: _volumes(expert_boxes) for name, expert_boxes in raters.items()}
    pairs = [
        *itertools.combinations(by_expert.items(), 2),
        *itertools.product(by_method.items(), by_expert.items()),
    ]
    mean = pd.DataFrame(by_expert).mean(axis=1).to_numpy()
    with_mean = [(method, ("mean of experts", mean)) for method in by_method.items()]
    # Controls differ from everything, which would decide each test of all groups.
    groups = [EXPERTS, *(name for name in methods if name not in CONTROLS)]
    return {
        "cases": cases,
        "summary": _summary(pooled, folds is not None),
        "icc": _pair_table(pairs, [partial(icc, form=form) for form in ICC_FORMS]),
        "bland_altman": _pair_table([*pairs, *with_mean], [lambda pair: bland_altman(*pair.T)]),
        "anova": _anova_table(cases, groups),
        "paired": _paired_table(cases, groups),
        "correlations": _correlation_table(cases),
    }


def control_placements(
    scenes: Sequence[Scene], experts: ArrayLike, *, random_state: RandomState = 0
) -> dict[str, NDArray[np.float64]]:
    """Place controls (n_cases, 9): cubes at the centroid, experts' boxes anywhere in the tumor."""
    seed = Seed(random_state)
    placed = _by_case(_expert_boxes(experts, len(scenes)))
    volumes = [box.volume for box in itertools.chain.from_iterable(placed)]
    # As large as experts' boxes are, so that a control differs by its place only.
    side = (np.mean(volumes) * MM3_PER_ML) ** (1 / 3)
    centered = np.empty((len(scenes), 9))
    scattered = np.empty((len(scenes), 9))
    for i, stored_scene in enumerate(scenes):
        # Random draws count image voxels, whose order must not depend on the storage.
        scene = stored_scene.canonical
        # A box of another case, if there is one, so that the case's own experts give nothing away.
        donors = [*itertools.chain.from_iterable(placed[:i] + placed[i + 1 :])] or placed[i]
        centered[i] = [*scene.centroid, side, side, side, 0, 0, 0]
        # A stream of each case, so that leaving one out does not move the others' boxes.
        rng = seed.rng("random box", i)
        donor = donors[rng.integers(len(donors))]
        weights = scene.occupancy.ravel().astype(np.float64)
        drawn = rng.choice(len(weights), p=weights / weights.sum())
        index = np.array(np.unravel_index(drawn, scene.occupancy.shape)) + np.array(scene.origin)
        center = scene.affine[:3, :3] @ index + scene.affine[:3, 3]
        scattered[i] = [*center, *donor.size, *donor.angles]
    return dict(zip(CONTROLS, (centered, scattered), strict=True))


def format_summary(tables: Mapping[str, pd.DataFrame], *, part: str = "all") -> pd.DataFrame:
    """Format the summary as the study's table 1, with a row for each method."""
    summary = tables["summary"]
    check_word("part", part, summary["part"].unique())
    rows = summary[summary["part"] == part]
    cells = []
    for mean, sd, n in zip(rows["mean"], rows["sd"], rows["n"], strict=True):
        cells.append(f"{mean:z.2f} ± {sd:.2f}" if n else "–")
    wide = rows.assign(text=cells).pivot_table(
        index="method", columns="measure", values="text", aggfunc="first", sort=False
    )
    return wide[[name for name in (*MEASURES, "seconds") if name in wide.columns]].fillna("–")


# Measures of one case ----------------------------------------------------------------------------


def _box_measures(box: Voxel, scene: Scene) -> dict[str, float]:
    """Measure a box without comparing it with another."""
    return {
        "f_tumor": tumor_fraction(box, scene),
        "volume": box.volume,
        "rotated_axes": float(box.rotated_axes),
        "rotated_angles": float(box.canonical().rotated_angles),
    }


def _measures(box: Voxel | None, experts: list[Voxel], scene: Scene) -> dict[str, float]:
    """Measure a box of a method against the experts of its case; NaN where there is no box."""
    if box is None:
        return dict.fromkeys(MEASURES, float("nan"))
    measures = _box_measures(box, scene) | dict.fromkeys(_COMPARED, np.nan)
    dice = [box.dice(expert) for expert in experts]
    if dice:
        measures["dice_closest"] = max(dice)
        measures["dice_mean"] = float(np.mean(dice))
        measures["difference"] = box.volume - float(np.mean([e.volume for e in experts]))
    if len(dice) > 1:
        # An expert's box is compared with the other experts only, a method's with one box more,
        # which makes it closer to the closest: leave each expert out in turn, and average.
        closest = [max(dice[:j] + dice[j + 1 :]) for j in range(len(dice))]
        measures["dice_fair"] = float(np.mean(closest))
    return measures


def _expert_measures(experts: list[Voxel], scene: Scene) -> dict[str, float]:
    """Average measures over the experts of a case, each compared with the others."""
    if not experts:
        return dict.fromkeys(MEASURES, float("nan"))
    rows = [_measures(e, experts[:j] + experts[j + 1 :], scene) for j, e in enumerate(experts)]
    measures: dict[str, float] = pd.DataFrame(rows).mean().to_dict()
    # The closest of the other experts is the fair comparison, too: none is left out twice.
    measures["dice_fair"] = measures["dice_closest"]
    if len(experts) > 1:
        # The study compared its two experts; further ones have no counterpart.
        measures["difference"] = experts[0].volume - experts[1].volume
    return measures


# Tables ------------------------------------------------------------------------------------------


def _summary(boxes: pd.DataFrame, has_folds: bool) -> pd.DataFrame:
    parts: dict[str, Any] = {"all": slice(None)}
    if has_folds:
        parts |= {"fold 1": boxes["fold"] == 1, "other folds": boxes["fold"] != 1}
    keys = ["part", "method"]
    rows = in_parts(boxes, parts).reset_index(drop=True)
    # By row, then by measure.
    long = rows.melt(keys, [*MEASURES, "seconds"], "measure", ignore_index=False)
    values = long.sort_index(kind="stable").groupby([*keys, "measure"], sort=False)["value"]
    table = values.agg(n="count", mean="mean", sd="std", median="median").reset_index()
    # The volume of a control is the mean of experts: their difference is 0, but for rounding.
    table["mean"] = table["mean"].round(12) + 0.0
    is_optional = (table["measure"] == "seconds") | (table["method"] == _SINGLE)
    return table[(table["n"] > 0) | ~is_optional].reset_index(drop=True)


def _pair_table(pairs: Iterable[_Pair], agreements: Iterable[_Agreement]) -> pd.DataFrame:
    """Measure how volumes of each two raters agree."""
    rows = []
    for ((name, a), (against, b)), agreement in itertools.product(pairs, agreements):
        row = {"method": name, "against": against, "measure": "volume"}
        rows.append(row | agreement(np.stack([a, b], axis=1)))
    return pd.DataFrame(rows)


def _wide(cases: pd.DataFrame, measure: str, groups: Sequence[str]) -> pd.DataFrame:
    """Tabulate a measure, cases by groups."""
    wide = cases.pivot_table(index="case", columns="method", values=measure, dropna=False)
    return wide.reindex(columns=list(groups))


def _anova_table(cases: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Test each measure for differences among methods; a test that cannot be made has a reason."""
    rows = []
    for measure, test in itertools.product(_TESTED, _ANOVA_TESTS):
        values = _wide(cases, measure, groups).dropna().to_numpy()
        reason = _untestable(test, values)
        row = {"measure": measure, "groups": ", ".join(groups), "n": len(values), "test": test}
        row |= {} if reason else _anova(test, values)
        rows.append({**row, "reason": reason})
    columns = ["measure", "groups", "n", "test", "statistic", "df1", "df2", "p", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _untestable(test: str, values: NDArray[np.float64]) -> str:
    """Say why methods (columns) cannot be tested over cases (rows); empty where they can."""
    n_cases, n_methods = values.shape
    if n_cases < 3:
        return f"{counted(n_cases, 'case')}; three are needed"
    if _is_level(values).all():
        return "the value is the same in all cases and groups"
    if test == _FRIEDMAN and n_methods <= 2:
        return "two groups; see the paired tests"
    # Tests of differences within cases are undefined where the groups agree in each case.
    if test != _ONE_WAY and _is_level(values, axis=1).all():
        return "the groups are alike in every case"
    return ""


def _anova(test: str, x: NDArray[np.float64]) -> dict[str, float]:
    """Test whether methods (columns) differ over cases (rows)."""
    n_cases, n_methods = x.shape
    df1, df2 = n_methods - 1.0, np.nan
    if test == _REPEATED:
        df2 = df1 * (n_cases - 1)
        residuals = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
        statistic = n_cases * x.mean(axis=0).var(ddof=1) / ((residuals**2).sum() / df2)
        p = stats.f.sf(statistic, df1, df2)
    elif test == _ONE_WAY:
        statistic, p = stats.f_oneway(*x.T)
        df2 = n_methods * (n_cases - 1)
    else:
        statistic, p = stats.friedmanchisquare(*x.T)
    return {"statistic": float(statistic), "df1": df1, "df2": df2, "p": float(p)}


def _is_level(values: NDArray[np.float64], axis: int | None = None) -> NDArray[np.bool_]:
    """Test where values differ by rounding errors only."""
    return np.asarray(np.ptp(values, axis=axis) <= LEVEL * np.abs(values).max(axis=axis))


def _paired_table(cases: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    tables = []
    for measure in ("dice_closest", *_TESTED, "dice_fair"):
        # The pairs of groups in one measure are a family of tests.
        family = pair_tests(_wide(cases, measure, groups), _paired, "wilcoxon_p", "holm_p")
        tables += [{"measure": measure, **row} for row in family]
    return pd.DataFrame(tables)


def _paired(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    """Test whether the values of two groups differ in the same cases."""
    row: dict[str, Any] = {"n": len(x), "difference": float(np.mean(x - y)) if len(x) else np.nan}
    row |= dict.fromkeys(_PAIR_COLUMNS, np.nan)
    few = f"{counted(len(x), 'case')}; three are needed"
    row["reason"] = few if len(x) < 3 else "the difference is the same in all cases"
    if len(x) > 2 and np.ptp(x - y) > 1e-12:
        row["t"], row["t_p"] = map(float, stats.ttest_rel(x, y))
        row["wilcoxon"], row["wilcoxon_p"] = map(float, stats.wilcoxon(x, y))
        row["rank_biserial"], row["low"], row["high"] = rank_biserial(x, y, n_bootstrap=500)
        row["reason"] = ""
    return row


def _correlation_table(cases: pd.DataFrame) -> pd.DataFrame:
    rows = []
    tables = cases.assign(absolute_difference=cases["difference"].abs())
    for method, method_rows in tables.groupby("method", sort=False):
        for measure in (*list(MEASURES)[:5], "absolute_difference"):
            pair = method_rows[["tumor_volume", measure]].dropna().to_numpy()
            row = {"method": method, "measure": measure, "n": len(pair)}
            row |= dict.fromkeys(("pearson", "low", "high", "p", "spearman", "spearman_p"), np.nan)
            if len(pair) > 3 and (np.ptp(pair, axis=0) > 1e-12).all():
                linear = stats.pearsonr(*pair.T)
                row["pearson"], row["p"] = float(linear.statistic), float(linear.pvalue)
                row["low"], row["high"] = map(float, linear.confidence_interval(0.95))
                row["spearman"], row["spearman_p"] = rank_correlation(*pair.T)
            rows.append(row)
    return pd.DataFrame(rows)


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Compute Spearman's correlation and its two-sided p value, exact for few pairs."""
    correlation, p = stats.spearmanr(x, y)
    if len(x) <= _EXACT_PAIRS:
        # The t distribution gives p = 0 for ranks in one order, however few they are.
        first, second = stats.rankdata([x, y], axis=1)
        test = partial(stats.permutation_test, permutation_type="pairings", n_resamples=np.inf)
        p = test((first,), lambda ranks, axis: ranks @ second, vectorized=True).pvalue
    return float(correlation), float(p)


# Agreement between raters or measurements of the same targets ------------------------------------


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
    value = (between - error) / whole if abs(between - error) > LEVEL * whole else 0.0
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
    methods differ more in large targets, which limits alone do not; NaN where a method's
    measurements do not vary.

    References
    ----------
    Bland and Altman, Lancet 327:307–310, 1986; Stat Methods Med Res 8:135–160, 1999.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    usable = ~(np.isnan(first) | np.isnan(second))
    first, second = first[usable], second[usable]
    difference, mean = first - second, (first + second) / 2
    n = len(difference)
    row: dict[str, Any] = {"n": n, "bias": float(difference.mean()) if n else np.nan}
    # Rounding leaves no exact zeros.
    if abs(row["bias"]) <= LEVEL * np.abs(difference).max(initial=0):
        row["bias"] = 0.0
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
    # Where one method does not vary, the slope is 2 or −2 whatever the other one measured.
    if n < 3 or any(_is_level(values) for values in (first, second, mean)):
        return row | {"reason": "no slope: it needs three pairs, and methods and means that vary"}
    line = stats.linregress(mean, difference)
    return row | {"slope": float(line.slope), "slope_p": float(line.pvalue), "reason": ""}


# Checks of the input -----------------------------------------------------------------------------


def _boxes(value: Any, n: int, name: str) -> list[Voxel | None]:
    items = list(value)
    if len(items) != n:
        raise ValueError(
            f"{name}: {counted(len(items), 'box', 'boxes')} for {counted(n, 'scene')}"
        )
    boxes = []
    for i, item in enumerate(items):
        with errors_about(f"{name}, case {i}"):
            boxes.append(_box(item))
    return boxes


def _box(item: Any) -> Voxel | None:
    if item is None or isinstance(item, Voxel):
        return item
    numbers = np.asarray(item, dtype=np.float64)
    is_missing = numbers.shape == (9,) and np.isnan(numbers).all()
    return None if is_missing else Voxel.from_array(numbers)


def _volumes(boxes: Sequence[Voxel | None]) -> NDArray[np.float64]:
    return np.array([np.nan if box is None else box.volume for box in boxes])


def _expert_boxes(experts: ArrayLike, n: int) -> dict[str, list[Voxel | None]]:
    """Give the boxes of each expert, a box or None for each case."""
    array = np.asarray(experts, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] != n or array.shape[2] != 9:
        raise ValueError(f"experts' boxes need the shape ({n}, n_experts, 9), not {array.shape}")
    names = [f"expert {j + 1}" for j in range(array.shape[1])]
    return {name: _boxes(array[:, j], n, name) for j, name in enumerate(names)}


def _by_case(raters: Mapping[str, Sequence[Voxel | None]]) -> list[list[Voxel]]:
    """Collect the boxes that experts placed in each case."""
    return [
        [box for box in boxes if box is not None] for boxes in zip(*raters.values(), strict=True)
    ]


def _fold_numbers(folds: ArrayLike | None, n: int) -> NDArray[np.intp]:
    if folds is None:
        return np.zeros(n, dtype=np.intp)
    numbers = np.asarray(folds)
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu" or (numbers < 1).any():
        raise ValueError(
            f"folds need one whole number from 1 on for each of {counted(n, 'scene')}, not "
            f"{numbers.tolist()!r:.80}"
        )
    return numbers.astype(np.intp)


def _times(value: ArrayLike, n: int, name: str) -> NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (n,)):
        raise ValueError(f"seconds of {name}: give one, or {n}, not shape {array.shape}")
    return np.broadcast_to(array, (n,))
