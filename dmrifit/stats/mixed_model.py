"""Linear mixed model of a comparison: algorithm × parameter, patients as random intercepts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dmrifit._optional import import_optional
from dmrifit._utils.counts import counted

# Share of the residual variance at which a search ends that would go to a variance of zero.
_NO_VARIANCE = 1e-6
_ESTIMATES = ("estimate", "standard_error", "low", "high", "p")


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
    problem = _problem(usable, algorithms, metrics)
    if problem:
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
    n_cells = usable.groupby(["algorithm", "metric"]).ngroups
    if n_cells < len(algorithms) * len(metrics):
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
