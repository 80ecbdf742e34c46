"""The mixed model of a comparison: known effects, analysis of variance, another library."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM

from dmrifit.stats.method_tests import mixed_model

METRICS = ("f", "Dv", "T2v", "Dt", "K", "T2t")


def frame_of(values, algorithms="ABC", metrics=("f", "Dv")):
    """Make rows from values[patient, algorithm, metric]."""
    rows = []
    for (i, j, k), value in np.ndenumerate(np.asarray(values, float)):
        rows.append((f"p{i:02}", algorithms[j], metrics[k], value))
    return pd.DataFrame(rows, columns=["patient", "algorithm", "metric", "value"])


def fitted(values, algorithms="ABC", metrics=("f", "Dv"), *, positive=True, alpha=0.05):
    """Fit the model and give its rows by term."""
    frame = frame_of(values, algorithms, metrics)
    rows = mixed_model(frame, list(algorithms), positive=positive, alpha=alpha)
    return pd.DataFrame(rows).set_index("term")


def logarithms(seed, n_patients=12, between=0.3, within=0.2):
    generator = np.random.default_rng(seed)
    patients = generator.normal(0, between, (n_patients, 1, 1))
    return patients + generator.normal(0, within, (n_patients, 3, 2))


def test_the_mixed_model_finds_the_effects_that_were_put_in():
    generator = np.random.default_rng(5)
    effects = {"A": -0.2, "B": 0.05, "C": 0.15}
    levels = {"f": 0.5, "Dv": -0.5}
    patient = generator.normal(0, 0.3, (40, 1, 1))
    log = patient + np.array([*effects.values()])[None, :, None] + np.array([*levels.values()])
    log = log + generator.normal(0, 0.1, log.shape)
    mixed = fitted(np.exp(log))
    assert mixed["converged"].all()
    assert (mixed["scale"] == "log").all()
    assert (mixed["n"] == 240).all()
    for name, truth in effects.items():
        row = mixed.loc[f"algorithm[{name}]"]
        assert row["estimate"] == pytest.approx(truth, abs=0.03)
        assert row["low"] < truth < row["high"]
    assert mixed.loc["metric[f]", "estimate"] == pytest.approx(0.5, abs=0.03)
    assert mixed.loc["algorithm", "p"] < 1e-6
    assert mixed.loc["algorithm:metric", "p"] > 1e-3
    assert mixed.loc["patient", "estimate"] == pytest.approx(0.09, rel=0.5)
    assert mixed.loc["residual", "estimate"] == pytest.approx(0.01, rel=0.3)


def test_the_mixed_model_is_that_of_a_formula():
    formula = pytest.importorskip("statsmodels.formula.api")
    log = logarithms(6)
    mixed = fitted(np.exp(log))
    table = frame_of(log).rename(columns={"value": "y"})
    reference = formula.mixedlm("y ~ C(algorithm, Sum) * C(metric, Sum)", table, groups=table["patient"]).fit()
    row = mixed.loc["algorithm[A]"]
    assert row["estimate"] == pytest.approx(reference.fe_params.iloc[1], abs=1e-5)
    assert row["standard_error"] == pytest.approx(reference.bse_fe.iloc[1], rel=1e-3)
    assert row["p"] == pytest.approx(reference.pvalues.iloc[1], rel=1e-2)
    between = float(reference.cov_re.iloc[0, 0])
    assert mixed.loc["patient", "estimate"] == pytest.approx(between, rel=1e-2)


def test_effects_add_up_to_zero_with_free_effects_as_degrees_of_freedom_and_normal_intervals():
    mixed = fitted(np.exp(logarithms(7)))["estimate"]
    assert mixed[[f"algorithm[{name}]" for name in "ABC"]].sum() == pytest.approx(0, abs=1e-12)
    for name in "ABC":
        crossed = mixed[[f"algorithm:metric[{name}:{metric}]" for metric in ("f", "Dv")]]
        assert crossed.sum() == pytest.approx(0, abs=1e-12)
    mixed = fitted(np.exp(logarithms(8)))
    terms = ["algorithm", "metric", "algorithm:metric"]
    assert mixed.loc[terms, "df"].tolist() == [2, 1, 2]
    # With one degree of freedom Wald's statistic is the square of the effect over its error.
    row = mixed.loc["metric[f]"]
    square = (row["estimate"] / row["standard_error"]) ** 2
    assert mixed.loc["metric", "statistic"] == pytest.approx(square)
    assert mixed.loc["metric", "p"] == pytest.approx(row["p"])
    log = logarithms(9)
    for alpha, quantile in ((0.05, 1.959964), (0.1, 1.644854)):
        mixed = fitted(np.exp(log), alpha=alpha)
        effects = mixed[mixed["kind"] == "effect"]
        width = (effects["high"] - effects["low"]) / (2 * effects["standard_error"])
        np.testing.assert_allclose(width.to_numpy(float), quantile, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [5, 16])
def test_the_mixed_model_has_the_variances_of_an_analysis_of_variance(seed, n):
    generator = np.random.default_rng(seed)
    log = generator.normal(0, 0.3, (n, 1, 1)) + generator.normal(0, 0.3, (n, 3, 6))
    log = log + generator.normal(0, 0.5, 6)
    mixed = fitted(np.exp(log), metrics=METRICS)
    assert mixed["converged"].all()
    assert (mixed["reason"] == "").all()
    # In a balanced design the restricted likelihood has its maximum there, if it is inside.
    residuals = log - log.mean(axis=0)
    patients = residuals.mean(axis=(1, 2))
    residual = ((residuals - patients[:, None, None]) ** 2).sum() / ((18 - 1) * (n - 1))
    between = 18 * (patients**2).sum() / (n - 1)
    assert mixed.loc["residual", "estimate"] == pytest.approx(residual, rel=1e-3)
    assert mixed.loc["patient", "estimate"] == pytest.approx((between - residual) / 18, rel=1e-2)
    effect = log[:, :, 0].mean() - log.mean()
    assert mixed.loc["metric[f]", "estimate"] == pytest.approx(effect, abs=1e-9)


def test_values_without_a_logarithm_are_left_out_and_counted():
    values = np.exp(logarithms(11))
    values[0, 0, 0], values[1, 1, 1], values[2, 2, 0] = 0.0, -1.0, np.nan
    mixed = fitted(values)
    assert (mixed["n"] == 72 - 3).all()
    assert mixed["reason"].str.startswith("3 values without a logarithm or missing left out").all()
    # On the raw scale values of either sign are modeled as they are.
    values = logarithms(10)
    mixed = fitted(values, positive=False)
    assert (mixed["scale"] == "raw").all()
    assert mixed.loc["algorithm[B]", "estimate"] == pytest.approx(values[:, 1].mean() - values.mean(), abs=1e-9)


def test_a_mixed_model_that_cannot_be_fitted_is_a_row(monkeypatch):
    def fails(self, **options):
        msg = "Singular matrix"
        raise np.linalg.LinAlgError(msg)

    monkeypatch.setattr(MixedLM, "fit", fails)
    mixed = fitted(np.exp(logarithms(0, 6, 1.0, 0.1)))
    assert mixed["converged"].tolist() == [False]
    assert mixed["n"].tolist() == [36]
    assert "Singular matrix" in mixed["reason"].iloc[0]


def test_without_variance_between_patients_the_mixed_model_is_least_squares_and_says_so():
    log = np.random.default_rng(7).normal(0, 0.2, (10, 3, 2))
    log -= log.mean(axis=(1, 2), keepdims=True)
    mixed = fitted(np.exp(log))
    assert mixed["reason"].str.contains("variance between patients is zero").all()
    assert mixed.loc["patient", "estimate"] == pytest.approx(0, abs=1e-6)
    effect = log[:, 0].mean() - log.mean()
    assert mixed.loc["algorithm[A]", "estimate"] == pytest.approx(effect)
    residual = ((log - log.mean(axis=0)) ** 2).sum() / (log.size - 6)
    assert mixed.loc["residual", "estimate"] == pytest.approx(residual)


WITHOUT_CELL = np.exp(logarithms(12))
WITHOUT_CELL[:, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("values", "algorithms", "reason"),
    [
        (np.exp(logarithms(1, 2)), "ABC", "2 patients with all values; 3 are needed"),
        (np.exp(logarithms(1))[:, :1], "A", "1 algorithm"), (np.full((5, 3, 2), 0.4), "ABC", "all values are equal"),
        (WITHOUT_CELL, "ABC", "no values of one of the parameters"),
        (np.tile([[[0.5, 0.5], [1, 1], [1, 1]]], (6, 1, 1)), "ABC", "the fit failed: "),
    ],
)
def test_tables_that_no_model_fits_are_a_row_with_the_reason(values, algorithms, reason):
    mixed = fitted(values, algorithms)
    assert len(mixed) == 1
    assert not mixed["converged"].any()
    assert reason in mixed["reason"].iloc[0]
