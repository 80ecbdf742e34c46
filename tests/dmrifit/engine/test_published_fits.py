"""
Fits against figures that others published: IVIM signals and results of OSIPI, white matter of a challenge.

OSIPI's files give noisy signals of several tissues with their truth, and mean and standard deviation of 300
fits by each of 19 algorithms. Where a test repeats that experiment, its signals are synthetic: the same
truth, b-values and noise, drawn anew.
"""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit, least_squares
from scipy.stats import chi2

from dmrifit import MODELS, FitStatus, Protocol, fit_voxels

IVIM, T2IK = MODELS["ivim"], MODELS["t2-ivim-kurtosis"]
SETS = ["generic", "generic_one", "generic_two", "generic_three", "generic_four", "generic_DL", "generic_brain"]
MM2_PER_S = 1e3  # µm²/ms


@pytest.mark.parametrize("name", SETS)
def test_osipis_signals_return_their_truth_within_the_noise(data_dir, name):
    cases = json.loads((data_dir / "osipi_ivim" / f"{name}.json").read_text())
    protocol = Protocol(cases.pop("config")["bvalues"])
    bounds = {"f": (0, 1), "Dv": (2, 1000), "Dt": (0, 10)}
    n_compared = 0
    for tissue, case in cases.items():
        signals = np.array([case["data"]])
        truth = np.array([1.0, case["f"], case["Dp"] * MM2_PER_S, case["D"] * MM2_PER_S])
        result = fit_voxels(signals, protocol, "ivim", method="nlls", bounds=bounds)
        assert result.status[0] in (FitStatus.CONVERGED, FitStatus.AT_BOUND), tissue
        left = result.cost[0] / case["noise"] ** 2
        at_truth = ((signals - IVIM.signal([truth], protocol)) ** 2).sum() / case["noise"] ** 2
        assert left <= at_truth, tissue
        # Four parameters of many measurements: what is left is noise.
        assert left <= chi2.ppf(0.9999, len(protocol)), tissue
        if 0 < case["f"] < 1:  # a single component says nothing about the other's diffusivity
            free = len(protocol) - 4
            errors = result.standard_errors[0] * case["noise"] / np.sqrt(result.cost[0] / free)
            away = np.abs(result.parameters[0] - truth) / errors
            identified = np.isfinite(away) & (errors < 0.3 * truth)
            assert (away[identified] < 4.5).all(), (tissue, away)
            n_compared += identified.sum()
    assert n_compared >= 3


@pytest.fixture(scope="module")
def published(data_dir):
    """Give OSIPI's table of results, in the units of the fits, and the b-values they were made with."""
    folder = data_dir / "osipi_ivim"
    table = pd.read_csv(folder / "reference_output.csv")
    for column in ("Dp", "D", "Dp_mu", "D_mu", "Dp_std", "D_std"):
        table[column] *= MM2_PER_S
    b = json.loads((folder / "generic.json").read_text())["config"]["bvalues"]
    return table, Protocol(b)


def repeat(row, protocol, n, rng):
    """Synthetic signals of one tissue as in the published experiment: Gaussian noise of 1/SNR, S0 = 1."""
    clean = IVIM.signal([[1, row.f, row.Dp, row.D]], protocol)
    # A noise that would make a magnitude negative is turned round.
    return np.abs(clean + rng.normal(scale=1 / row.SNR, size=(n, len(protocol))))


# The entries that fit all parameters at once by bounded least squares from Python, and their default boxes.
BOUNDED = {
    "OGC_AmsterdamUMC_biexp": {"S0": (0.7, 1.3), "f": (0, 1), "Dv": (5, 200), "Dt": (0, 5)},
    "IAR_LU_biexp": {"S0": (0, np.inf), "f": (0, 1), "Dv": (5, 100), "Dt": (0, 4)},
}


@pytest.mark.parametrize("snr", [30, 50, 100])
@pytest.mark.parametrize("algorithm", BOUNDED)
def test_bias_and_spread_are_those_of_bounded_least_squares(published, algorithm, snr):
    table, protocol = published
    rng = np.random.default_rng([20261180, snr, len(algorithm)])
    rows = table[(table.Algorithm == algorithm) & table.SNR.eq(snr)]
    assert len(rows) == 14
    n_compared = 0
    for row in rows.itertuples():
        result = fit_voxels(repeat(row, protocol, 4000, rng), protocol, "ivim", method="nlls", bounds=BOUNDED[algorithm])
        for name, column in (("f", "f"), ("Dt", "D"), ("Dv", "Dp")):
            # Without perfusion Dv is nothing but where a search stops, and with much noise and diffusivities
            # that lie close together (kidney) it depends on the start: see the next test.
            if name == "Dv" and (row.f == 0 or (snr == 30 and "cortex" in row.Region)):
                continue
            groups = rng.choice(result[name], (1000, 300))  # experiments of 300 fits, as theirs was one
            for values, theirs in (
                (groups.mean(axis=1), getattr(row, f"{column}_mu")),
                (groups.std(axis=1), getattr(row, f"{column}_std")),
            ):
                middle, spread = values.mean(), values.std()
                assert abs(theirs - middle) < 5 * spread, (row.Region, name, theirs, middle, spread)
                n_compared += 1
    assert n_compared >= 2 * (14 * 3 - 1 - 2)


def test_where_they_differ_the_published_search_stopped_before_the_best_fit(published):
    table, protocol = published
    row = next(
        table[
            (table.Algorithm == "OGC_AmsterdamUMC_biexp") & (table.SNR == 30) & (table.Region == "Left kidney cortex")
        ].itertuples()
    )
    signals = repeat(row, protocol, 400, np.random.default_rng(20261182))
    box = BOUNDED[row.Algorithm]
    ours = fit_voxels(signals, protocol, "ivim", method="nlls", bounds=box)

    # The published search: from one point, D, f and D* in steps of 1e-3, 0.1 and 0.1 mm²/s.
    def signal(b, d, f, dp, s0):
        return s0 * (0.1 * f * np.exp(-b * 0.1 * dp) + (1 - 0.1 * f) * np.exp(-b * 1e-3 * d))

    steps = [
        curve_fit(signal, protocol.b, s, p0=[1, 1, 0.1, 1], bounds=([0, 0, 0.05, 0.7], [5, 10, 2, 1.3]))[0]
        for s in signals
    ]
    theirs = np.array(steps)[:, [3, 1, 2, 0]] * [1, 0.1, 100, 1]
    cost = ((IVIM.signal(theirs, protocol) - signals) ** 2).sum(axis=1)
    assert theirs[:, 2].mean() == pytest.approx(row.Dp_mu, abs=5 * row.Dp_std / np.sqrt(300))
    # S0 is bounded in multiples of the largest signal here and absolutely there: a little room for that.
    assert (ours.cost <= cost * (1 + 1e-4)).mean() > 0.99
    stopped = ours.cost < cost * (1 - 1e-4)
    assert 0.03 < stopped.mean() < 0.15
    assert np.median(theirs[stopped, 2]) < 20 < np.median(ours["Dv"][stopped])
    assert ours["Dv"][~stopped].mean() == pytest.approx(theirs[~stopped, 2].mean(), rel=0.02)


@pytest.mark.parametrize("snr", [30, 50, 100])
def test_the_segmented_fit_is_in_the_better_half_of_published_algorithms(published, snr):
    table, protocol = published
    rng = np.random.default_rng([20261181, snr])
    theirs = table[table.SNR.eq(snr)]
    tissues = theirs.drop_duplicates("Region")
    assert (theirs.Algorithm.nunique(), len(tissues)) == (19, 14)
    squares = {"f": [], "D": []}
    for row in tissues.itertuples():
        result = fit_voxels(repeat(row, protocol, 1500, rng), protocol, "ivim", method="segmented")
        squares["f"].append(np.mean((result["f"] - row.f) ** 2))
        squares["D"].append(np.mean((result["Dt"] - row.D) ** 2) / row.D**2)
    for name, ours in squares.items():
        square = (theirs[f"{name}_mu"] - theirs[name]) ** 2 + theirs[f"{name}_std"] ** 2
        if name == "D":
            square = square / theirs.D**2
        errors = np.sqrt(square).groupby(theirs.Algorithm).mean()
        n_better = int((errors < np.sqrt(ours).mean()).sum())
        assert n_better < 19 / 2, (name, np.sqrt(ours).mean(), errors.sort_values())


@pytest.fixture(scope="module")
def genu(data_dir):
    """Give the readings of six voxels of the genu, and echo times and b-values of their rows."""
    table = pd.read_csv(data_dir / "isbi2015_wm_genu" / "genu_table.csv")
    voxels = [f"vox{i}" for i in range(1, 7)]
    return table.assign(te=(1e3 * table.TE_s).round(3), b=table.b_s_per_mm2.round()), voxels


@pytest.fixture(scope="module")
def powder(genu):
    """Average the readings over directions, for every b up to 3000 s/mm² and echo time."""
    table, voxels = genu
    mean = table[table.b <= 3000].groupby(["b", "te"])[voxels].mean()
    b, te = (mean.index.get_level_values(name).to_numpy(float) for name in ("b", "te"))
    return mean.to_numpy().T, Protocol(b, te)


def test_t2_of_readings_without_weighting_is_the_published_one(genu):
    table, voxels = genu
    plain = table[table.b == 0]
    design = np.stack([np.ones(len(plain)), -plain.te], axis=1)
    rate = np.linalg.lstsq(design, np.log(plain[voxels]), rcond=None)[0][1]
    np.testing.assert_allclose(1 / rate, [56.51, 54.0, 55.23, 51.72, 57.27, 54.92], atol=0.006)


def test_no_start_of_scipy_fits_real_white_matter_better(powder):
    signals, protocol = powder
    result = fit_voxels(signals, protocol, T2IK)
    rng = np.random.default_rng(20261183)
    low, high = np.array(T2IK.bounds).T
    for measured, ours in zip(signals, result.cost, strict=True):
        top = measured.max()
        best = min(
            least_squares(
                lambda p, m=measured / top: T2IK.signal(p, protocol)[0] - m,
                rng.uniform(low, np.minimum(high, [12, 1, 100, 250, 3, 2, 140])),
                bounds=(low, high),
                x_scale=[3, 0.2, 20, 200, 1, 1, 70],
                xtol=1e-12,
                ftol=1e-12,
                gtol=1e-12,
            ).cost
            for _ in range(8)
        )
        assert ours <= 2 * best * top**2 * (1 + 1e-6)


def test_real_white_matter_has_the_values_of_the_literature(powder):
    signals, protocol = powder
    result = fit_voxels(signals, protocol, T2IK)
    # With next to no perfusion Dv is a flat valley, along which a search may run out of iterations.
    assert (result.status != FitStatus.NOT_FITTED).all()
    # T2 of water in axons at 3 T is 50 to 110 ms, that outside them less (McKinnon and Jensen, Magn Reson
    # Med 81:2985–2994, 2019); the readings without weighting say 52 to 57 ms.
    assert ((result["T2t"] > 48) & (result["T2t"] < 65)).all()
    # In the corpus callosum mean diffusivity is about 0.7 µm²/ms and mean kurtosis about 1.4 (Lätt et al.,
    # J Magn Reson Imaging 37:610–618, 2013); the fit reads a little more of both from an average over
    # directions of anisotropic tissue.
    assert ((result["Dt"] > 0.6) & (result["Dt"] < 1.1)).all()
    assert ((result["K"] > 1.0) & (result["K"] < 1.6)).all()
    # Perfusion of white matter is a few percent at most.
    assert (result["f"] < 0.05).all()
    residual = np.sqrt(result.cost / len(protocol)) / signals.max(axis=1)
    assert (residual < 0.025).all()  # readings at one echo time differ by 1 to 7 %
