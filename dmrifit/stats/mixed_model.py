"""Linear mixed model of a comparison: algorithm × parameter, patients as random intercepts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmrifit._optional import import_optional

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["mixed_model"]

# lbfgs, the library's first choice, steps out of the parameter space on most of our tables.
_METHODS = ("bfgs", "powell", "nm")
_FEW = "{n} patients have all values; {least} are needed"


def mixed_model(
    frame: pd.DataFrame, algorithms: Sequence[str], *, positive: bool, alpha: float
) -> list[dict[str, Any]]:
    """Fit value ~ algorithm * metric with a random intercept of the patient."""
    scale = "log" if positive else "raw"
    empty = {"kind": "test", "term": "", "scale": scale, "n": 0, "converged": False}
    usable = frame[np.isfinite(frame["value"])]
    if positive:
        usable = usable[usable["value"] > 0]
    notes = [f"{len(frame) - len(usable)} values without a logarithm or missing left out"] * (
        len(usable) < len(frame)
    )
    there, metrics = set(usable["algorithm"]), sorted(usable["metric"].unique())
    algorithms = [name for name in algorithms if name in there]
    n_patients = usable["patient"].nunique()
    if n_patients < 3:
        return [empty | {"reason": "; ".join([*notes, _FEW.format(n=n_patients, least=3)])}]
    if len(algorithms) < 2:
        return [empty | {"reason": "; ".join([*notes, f"{len(algorithms)} algorithm"])}]
    cells = usable.groupby(["algorithm", "metric"]).ngroups
    if cells < len(algorithms) * len(metrics):
        return [
            empty
            | {
                "reason": "; ".join(
                    [*notes, "an algorithm has no values of one of the parameters"]
                )
            }
        ]
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
        *(
            _wald(name, beta[columns], covariance[columns, columns]) | shared
            for name, columns, _ in terms
        ),
        *(
            row | shared
            for name, columns, levels in terms
            for row in _effects(name, levels, beta[columns], covariance[columns, columns], alpha)
        ),
        {"kind": "variance", "term": "patient", "estimate": between} | shared,
        {"kind": "variance", "term": "residual", "estimate": residual} | shared,
    ]


_Term = tuple[str, slice, list[tuple[str, NDArray[np.float64]]]]


def _design(
    frame: pd.DataFrame, algorithms: list[str], metrics: list[str]
) -> tuple[list[_Term], NDArray[np.float64]]:
    """
    Code the factors so that coefficients are deviations from the grand mean.

    A term is its name, its columns and, for each level, the contrast of the columns that is its
    effect.
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
    effects = [
        list(zip(algorithms, a[0], strict=True)),
        list(zip(metrics, m[0], strict=True)),
        crossed,
    ]
    names = ("algorithm", "metric", "algorithm:metric")
    terms = [
        (name, slice(edges[i], edges[i + 1]), levels)
        for i, (name, levels) in enumerate(zip(names, effects, strict=True), start=1)
        if edges[i + 1] > edges[i]
    ]
    return terms, np.concatenate(blocks, axis=1)


_Fitted = tuple[NDArray[np.float64], NDArray[np.float64], float, float, bool]


def _fit_mixed(value: NDArray, X: NDArray, patients: NDArray) -> tuple[_Fitted | None, list[str]]:
    """Fit by restricted likelihood; also return the reasons why a fit failed."""
    mixed = import_optional("statsmodels.regression.mixed_linear_model")
    plain = _fit_plain(value, X, patients)
    if plain is not None:
        return plain, ["the variance between patients is zero, so this is the least-squares fit"]
    trouble: list[str] = []
    fitted = None
    for method in _METHODS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = mixed.MixedLM(value, X, groups=patients).fit(reml=True, method=method)
                fitted = _numbers(found, X.shape[1])
            except (
                np.linalg.LinAlgError,
                ValueError,
                FloatingPointError,
                ZeroDivisionError,
            ) as error:
                trouble.append(f"{method} failed: {error}")
                continue
        said = [str(one.message).split("\n")[0] for one in caught]
        if fitted is not None and fitted[-1] and not said:
            return fitted, []
        trouble += said or [f"{method} did not converge"]
    return fitted, list(dict.fromkeys(trouble))


def _numbers(found: Any, k: int) -> _Fitted | None:
    """Take coefficients, their covariance and both variances out of a result."""
    beta, covariance = np.asarray(found.fe_params), np.asarray(found.cov_params())[:k, :k]
    between, residual = float(np.asarray(found.cov_re)[0, 0]), float(found.scale)
    if not (np.isfinite(beta).all() and np.isfinite(covariance).all() and np.isfinite(residual)):
        return None
    return beta, covariance, between, residual, bool(found.converged)


def _fit_plain(value: NDArray, X: NDArray, patients: NDArray) -> _Fitted | None:
    """
    Fit by least squares if the variance between patients is estimated as zero; None otherwise.

    There the restricted likelihood has its maximum at the edge of the parameter space, where the
    mixed model's own search ends in a singular matrix: in a balanced design when patients vary no
    more than the residual.
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
