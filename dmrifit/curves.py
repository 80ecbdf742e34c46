"""The rules that decide what the study claims of learning curves, and what their outcome comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dmrifit.boards import Check, MissingEvidence, format_number
from dmrifit.evidence import Evidence, drop_metrics, lay_out, mean_over_patients
from dmrifit.rules import BOTH, Rule

if TYPE_CHECKING:
    import pandas as pd

#: Share of the final level within which a learning curve counts as level.
LEVEL = 0.1
#: A learning curve must reach at least so many training patients; the study's ends at 15.
LONG_CURVE = 10


def _curve(e: Evidence, column: str, *by: str, without: Sequence[str] = (), sizes: Sequence[int] = ()) -> pd.DataFrame:
    """Give means by training size (rows), at the sizes that all cohorts have."""
    common = e.sizes
    absent = [size for size in sizes if size not in common]
    if absent or len(common) < 2 or max(common) < LONG_CURVE:
        wanted = ", ".join(map(str, absent)) or f"{LONG_CURVE} or more"
        msg = f"a learning curve with {wanted} training patients (sizes: {', '.join(map(str, common))})"
        raise MissingEvidence(msg)
    key = column, by, tuple(without)
    if key not in e.curves:
        table = drop_metrics(e.curve, without)
        means = mean_over_patients(table[table["n_train"].isin(common)], column, "n_train", *by)
        e.curves[key] = lay_out(means, *by)
    return e.curves[key]


def _strategies(e: Evidence, wanted: Sequence[str]) -> None:
    absent = [name for name in wanted if not e.algorithms(name)]
    if absent:
        msg = f"scores of {' and '.join(absent)}"
        raise MissingEvidence(msg)


def levels_off(
    columns: Mapping[str, str],
    strategies: Sequence[str] = ("s2s", "m2m"),
    *,
    without: Sequence[str] = (),
    fall: float = 0.0,
) -> Rule:
    """Give the rule that indices fall up to N = 5 and stay within 10 % of the last from there."""

    def checks(e: Evidence) -> list[Check]:
        _strategies(e, strategies)
        found = []
        for label, column in columns.items():
            curve = _curve(e, column, "strategy", without=without, sizes=(1, 5))
            last = curve.index.max()
            for strategy in strategies:
                values = curve[strategy]
                away = float((values[values.index >= 5] / values[last] - 1).abs().max()) if values[last] else np.nan
                one, five = float(values[1]), float(values[5])
                limit = one if not fall else one / (1 + fall)
                against = "N = 1" if not fall else f"N = 1, less {fall:.0%}"
                found.append(Check(f"{label} at N = 5", five, "<", limit, strategy, against))
                found.append(Check(f"{label} largest change from N = 5 to {last}", away, "<=", LEVEL, strategy))
        return found

    return checks


def explain_7(runs: Sequence[Evidence]) -> str:
    """List the curves, and the metric that is least level."""
    parts = []
    for label, column in BOTH.items():
        curves = [_curve(e, column, "strategy", "metric", sizes=(1, 5)) for e in runs]
        mean = sum(curves[1:], curves[0]) / len(curves)
        last = mean.index.max()
        for strategy in sorted(set(mean.columns.get_level_values(0)), reverse=True):
            own = mean[strategy]
            line = ", ".join(f"{size}: {format_number(v)}" for size, v in own.mean(axis=1).items())
            late = (own[own.index >= 5] / own.loc[last] - 1).abs().max()
            least = f"least level from N = 5: {late.idxmax()} ({late.max():.0%})"
            parts.append(f"{label} of {strategy} by N: {line}; {least}")
    return "; ".join(parts)


def early(strategies: Sequence[str], *, own: bool = True, others: bool = True) -> Rule:
    """Give the rule that mlNN is good at N = 2, by its own last level and by the other algorithms."""

    def checks(e: Evidence) -> list[Check]:
        _strategies(e, strategies)
        found = []
        for label, column in BOTH.items():
            curve = _curve(e, column, "strategy", "algorithm", sizes=(2,))
            last = curve.index.max()
            for strategy in strategies:
                values = curve[strategy].dropna(axis=1, how="all")
                if "mlNN" not in values:
                    msg = f"mlNN in {strategy}"
                    raise MissingEvidence(msg)
                two, end = float(values.loc[2, "mlNN"]), float(values.loc[last, "mlNN"])
                if own:
                    change = two / end - 1 if end else np.nan
                    found.append(Check(f"{label} of mlNN at N = 2 above N = {last}", change, "<=", LEVEL, strategy))
                rest = values.drop(columns="mlNN")
                if others:
                    if not rest.shape[1]:
                        msg = f"other algorithms than mlNN in {strategy}"
                        raise MissingEvidence(msg)
                    middle = float(rest.loc[2].median())
                    what = "median of the other algorithms"
                    found.append(Check(f"{label} of mlNN at N = 2", two, "<=", middle, strategy, what))
        return found

    return checks


def explain_8(runs: Sequence[Evidence]) -> str:
    """Give the place of mlNN among the algorithms at N = 2."""
    parts = []
    for label, column in BOTH.items():
        curves = [_curve(e, column, "strategy", "algorithm", sizes=(2,)) for e in runs]
        mean = sum(curves[1:], curves[0]) / len(curves)
        for strategy in sorted(set(mean.columns.get_level_values(0)), reverse=True):
            at_two = mean[strategy].dropna(axis=1, how="all").loc[2].sort_values()
            if "mlNN" in at_two:
                place = list(at_two.index).index("mlNN") + 1
                best = at_two.index[0]
                parts.append(
                    f"{label} of {strategy} at N = 2: mlNN is number {place} of {len(at_two)} "
                    f"({format_number(at_two['mlNN'])}; lowest {best} {format_number(at_two.iloc[0])})"
                )
    return "; ".join(parts)


def _fluctuation(e: Evidence, strategy: str | None, without: Sequence[str] = ()) -> pd.DataFrame:
    """DI by training size from 5 on (rows) and metric (columns)."""
    by = ("strategy", "metric")
    curve = _curve(e, "dispersion", *by, without=without, sizes=(5,))
    curve = curve[curve.index >= 5]
    if len(curve) < 3:
        msg = f"three training sizes from 5 on (there are {len(curve)})"
        raise MissingEvidence(msg)
    return curve[strategy] if strategy else curve.T.groupby(level="metric", observed=True).mean().T


def mainly_dv(rule: str, strategies: Sequence[str | None] = ("s2s", "m2m"), without: Sequence[str] = ()) -> Rule:
    """Give the rule that the changes of DI from N = 5 on are mainly those of Dv."""

    def checks(e: Evidence) -> list[Check]:
        _strategies(e, [name for name in strategies if name])
        if "Dv" not in e.metrics or len(e.metrics) < 2:
            msg = "metric Dv beside another"
            raise MissingEvidence(msg)
        found = []
        for strategy in strategies:
            curve = _fluctuation(e, strategy, without)
            place = strategy or ""
            if rule == "range":
                size = curve.max() - curve.min()
                other = size.drop("Dv")
                largest = float(other.max())
                found.append(Check("range of DI of Dv", float(size["Dv"]), ">", largest, place, str(other.idxmax())))
            else:
                found.append(Check(f"share of Dv in the {rule} of DI", _share_of_dv(curve, rule), ">", 0.5, place))
        return found

    return checks


def _share_of_dv(curve: pd.DataFrame, rule: str) -> float:
    total = curve.mean(axis=1)
    covariance = rule == "variance of the mean"
    parts = curve.apply(lambda column: np.cov(column, total)[0, 1]) if covariance else curve.var()
    whole = float(parts.sum())
    return float(parts["Dv"]) / whole if whole > 0 else float("nan")


def explain_9(runs: Sequence[Evidence]) -> str:
    """List the shares of all metrics."""
    parts = []
    for strategy in ("s2s", "m2m"):
        curves = [_fluctuation(e, strategy) for e in runs if e.algorithms(strategy)]
        if not curves:
            continue
        share = sum(c.var() / c.var().sum() for c in curves if c.var().sum() > 0)
        size = sum(c.max() - c.min() for c in curves) / len(curves)
        if isinstance(share, int):
            continue
        share = (share / share.sum()).sort_values(ascending=False)
        listed = ", ".join(f"{name} {value:.0%} ({format_number(size[name])})" for name, value in share.items())
        parts.append(f"{strategy}: share of the variance (range) of DI over N by metric: {listed}")
    return "; ".join(parts)
