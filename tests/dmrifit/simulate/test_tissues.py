"""What synthetic patients are made of."""

import numpy as np
import pytest

from dmrifit import MODELS, Protocol
from dmrifit.simulate.tissues import (
    draw_means,
    draw_textures,
    limited,
    log_sd,
    smooth_field,
    tissue_table,
)

NAMES = MODELS["t2-ivim-kurtosis"].names
SHAPE = 40, 44, 36


def test_numbers_of_patients_have_the_order_of_the_model_and_means_and_variation_of_the_table():
    assert NAMES == ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
    np.testing.assert_array_equal(tissue_table()["tissue"]["liver"], [1.0, 0.22, 65, 200, 1.05, 0.75, 45])
    np.testing.assert_array_equal(tissue_table()["field"]["3"], [1, 1, 1, 0.9, 1, 1, 0.84])
    means, tumor_type = draw_means(3.0, ["melanoma-like"], 0.0, np.random.default_rng(0))
    assert tumor_type == "melanoma-like"
    assert set(means) == set(tissue_table()["tissue"])
    np.testing.assert_allclose(means["kidney"], [1.2, 0.18, 30, 180, 1.9, 0.5, 71.4])
    np.testing.assert_allclose(means["tumor"], [1.1, 0.12, 30, 180, 1.05 * 0.75, 0.9 * 1.25, 72 * 0.8 * 0.84])
    rng = np.random.default_rng(0)
    drawn = [draw_means(1.5, ["mucinous", "fibrous"], 2.0, rng) for _ in range(1500)]
    livers = np.array([means["liver"] for means, _ in drawn])
    variation = np.array([0.05, 0.15, 0.20, 0.04, 0.06, 0.10, 0.08])
    np.testing.assert_allclose(np.median(livers, axis=0), [1.0, 0.22, 65, 200, 1.05, 0.75, 45], rtol=0.05)
    np.testing.assert_allclose(np.log(livers).std(axis=0), np.sqrt(np.log(1 + (2 * variation) ** 2)), rtol=0.08)
    types = [tumor_type for _, tumor_type in drawn]
    assert 650 < types.count("mucinous") < 850


def test_the_spread_of_a_logarithm_is_that_of_a_log_normal_variable():
    draws = np.exp(float(log_sd(0.5)) * np.random.default_rng(0).normal(size=400_000))
    assert draws.std() / draws.mean() == pytest.approx(0.5, rel=0.02)
    np.testing.assert_allclose(log_sd(np.array([0.0, 1.0])), [0, np.sqrt(np.log(2))])


@pytest.mark.parametrize("smoothing", [(2.0, 2.0, 2.0), (4.0, 1.0, 2.0)])
def test_a_smooth_field_has_the_width_of_its_smoothing(smoothing):
    field = smooth_field(SHAPE, smoothing, np.random.default_rng(3))
    assert field.mean() == pytest.approx(0, abs=1e-12)
    assert field.std() == pytest.approx(1)
    field = field.reshape(SHAPE)
    # White noise smoothed by a Gaussian of width s is correlated by exp(−d²/4s²) at a distance d.
    for axis, width in enumerate(smoothing):
        correlation = (field * np.roll(field, 2, axis)).mean()
        assert correlation == pytest.approx(np.exp(-4 / (4 * width**2)), abs=0.1)


def textures(latent_corr, seed=0):
    return np.log(draw_textures(SHAPE, (3.0, 3.0, 6.0), latent_corr, np.random.default_rng(seed)))


def test_textures_vary_by_the_coefficients_of_the_table_and_are_as_coarse_as_their_grain():
    logs = textures(0.0)
    variation = np.array([0.08, 0.25, 0.35, 0.06, 0.12, 0.18, 0.10])
    np.testing.assert_allclose(logs.std(axis=0), np.sqrt(np.log(1 + variation**2)), rtol=1e-6)
    np.testing.assert_allclose(np.exp(np.median(logs, axis=0)), 1, atol=0.06)
    assert np.abs(np.corrcoef(logs.T) - np.eye(7)).max() < 0.2
    # Smoothed by 5 mm, which is 5/3 of a voxel in the plane and 5/6 across.
    logs = textures(0.0)[:, 0].reshape(SHAPE)
    logs = (logs - logs.mean()) / logs.std()
    for axis, width in enumerate((5 / 3, 5 / 3, 5 / 6)):
        assert (logs * np.roll(logs, 1, axis)).mean() == pytest.approx(np.exp(-1 / (4 * width**2)), abs=0.06)


def test_cellularity_and_vascularity_move_their_parameters_together():
    correlation = np.corrcoef(textures(1.0).T)
    f, dv, dt, k, t2t = (NAMES.index(name) for name in ("f", "Dv", "Dt", "K", "T2t"))
    for pair, sign in {(f, dv): 1, (dt, k): -1, (dt, t2t): 1, (k, t2t): -1}.items():
        assert correlation[pair] == pytest.approx(sign)
    assert abs(correlation[f, dt]) < 0.2
    assert abs(correlation[NAMES.index("S0"), NAMES.index("T2v")]) < 0.2
    half = np.corrcoef(textures(0.5).T)
    assert half[dt, k] == pytest.approx(-0.5, abs=0.15)


def test_parameters_are_kept_inside_the_limits_and_before_the_turn_of_the_cumulant():
    rows = np.array([[1, 0.1, 20, 200, 1.0, 0.7, 70], [20, 0.95, 1, 100, 3.5, 2.9, 200], [0, 0, 500, 300, 0.1, 0, 1]])
    weak = limited(rows, Protocol([0, 500], te=80))
    np.testing.assert_array_equal(weak[0], rows[0])
    # With b up to 1.6 ms/µm², K stays below 0.9 · 3/(1.6·Dt).
    np.testing.assert_allclose(weak[1], [10, 0.9, 4, 150, 3, 2.7 / (1.6 * 3), 140])
    np.testing.assert_allclose(weak[2], [0.1, 0.005, 100, 250, 0.2, 0.05, 20])
    strong = limited(rows, Protocol([0, 3000], te=80))
    assert strong[1, 5] == pytest.approx(2.7 / (3 * 3))
    assert rows[1, 0] == 20
