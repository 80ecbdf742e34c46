"""Rules of the claims about learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.claims.claim_board import Check, MissingEvidence
from benchmarks.claims.macarro.evidence import STRATEGIES, Evidence, lay_out, mean_over_patients
from benchmarks.claims.macarro.rules import COLUMNS, Rule

if TYPE_CHECKING:
    import pandas as pd

#: A learning curve must reach at least so many training patients; the study's ends at 15.
LONG_CURVE = 10


def levels_off(label: str) -> Rule:
    """Claim 7: an index falls up to N = 5 and stays at its last level from there."""

    def checks(evidence: Evidence) -> list[Check]:
        _require_strategies(evidence)
        curve = _curve(evidence, COLUMNS[label], "strategy", sizes=(1, 5))
        *late, last = (size for size in curve.index if size >= 5)
        result = []
        for strategy in STRATEGIES:
            values = curve[strategy].astype(float)
            fall = Check(
                f"{label} at N = 5", values[5], "<", values[1], strategy, "N = 1", margin="index"
            )
            result.append(fall)
            for size in late:
                quantity, against = f"{label} of N = {size}", f"N = {last}"
                result.append(
                    Check(
                        quantity,
                        values[size],
                        "=",
                        values[last],
                        strategy,
                        against,
                        margin="level",
                    )
                )
        return result

    return checks


def early(label: str) -> Rule:
    """Claim 8: mlNN is good at N = 2, by its own last level and by the other algorithms."""

    def checks(evidence: Evidence) -> list[Check]:
        _require_strategies(evidence)
        curve = _curve(evidence, COLUMNS[label], "strategy", "algorithm", sizes=(2,))
        last = curve.index.max()
        result = []
        for strategy in STRATEGIES:
            values = curve[strategy].dropna(axis=1, how="all")
            if "mlNN" not in values:
                raise MissingEvidence(f"mlNN in {strategy}")
            others = values.drop(columns="mlNN")
            if not others.shape[1]:
                raise MissingEvidence(f"other algorithms than mlNN in {strategy}")
            two, end = float(values.loc[2, "mlNN"]), float(values.loc[last, "mlNN"])
            middle = float(others.loc[2].median())
            quantity = f"{label} of mlNN at N = 2"
            against = "median of the other algorithms"
            result += [
                Check(
                    f"{quantity}, its own", two, "<=", end, strategy, f"N = {last}", margin="level"
                ),
                Check(quantity, two, "<=", middle, strategy, against, margin="index"),
            ]
        return result

    return checks


def mainly_dv(evidence: Evidence) -> list[Check]:
    """Claim 9: more than half of the variance of DI from N = 5 on is that of Dv."""
    _require_strategies(evidence)
    if "Dv" not in evidence.metrics or len(evidence.metrics) < 2:
        raise MissingEvidence("metric Dv beside another")
    curve = _curve(evidence, "dispersion", "strategy", "metric", sizes=(5,))
    curve = curve[curve.index >= 5]
    if len(curve) < 3:
        raise MissingEvidence(f"three training sizes from 5 on (there are {len(curve)})")
    result = []
    for strategy in STRATEGIES:
        variance = curve[strategy].var()
        total = float(variance.sum())
        share = float(variance["Dv"]) / total if total > 0 else np.nan
        quantity = "share of Dv in the variance of DI"
        result.append(Check(quantity, share, ">", 0.5, strategy, margin="share"))
    return result


def _curve(
    evidence: Evidence,
    column: str,
    *by: str,
    sizes: Sequence[int] = (),
) -> pd.DataFrame:
    """Give means by training size (rows), at the sizes that all cohorts have."""
    common = evidence.sizes
    absent = [size for size in sizes if size not in common]
    if absent or len(common) < 2 or max(common) < LONG_CURVE:
        needed = ", ".join(map(str, absent)) or f"{LONG_CURVE} or more"
        have = ", ".join(map(str, common))
        raise MissingEvidence(f"a learning curve with {needed} training patients (sizes: {have})")
    key = column, by
    if key not in evidence.curves:
        table = evidence.curve
        table = table[table["n_train"].isin(common)]
        evidence.curves[key] = lay_out(mean_over_patients(table, column, "n_train", *by), *by)
    return evidence.curves[key]


def _require_strategies(evidence: Evidence) -> None:
    absent = [strategy for strategy in STRATEGIES if not evidence.algorithms(strategy)]
    if absent:
        raise MissingEvidence(f"scores of {' and '.join(absent)}")
