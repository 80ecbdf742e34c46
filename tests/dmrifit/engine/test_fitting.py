"""Fits: known truth, scipy and dipy as references, options, bad input."""

import functools
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit, least_squares, minimize

import dmrifit
from dmrifit import MODELS, FitStatus, Protocol, SignalModel

# Nonlinear least squares in one step, also of models with another default.
fit_voxels = functools.partial(dmrifit.fit_voxels, method="nlls")

DIFFUSION = Protocol([0, 30, 60, 100, 200, 400, 600, 900, 1200])
RELAXATION = Protocol.preset("cohort1")
ECHOES = Protocol(np.tile(DIFFUSION.b, 3), np.repeat([45.0, 80.0, 120.0], len(DIFFUSION)))
TIMES = Protocol(np.zeros(6), te=[20, 40, 60, 90, 130, 180])
PROTOCOLS = {"t2": TIMES, "t2-adc": ECHOES, "t2-ivim-kurtosis": RELAXATION, "t2-ivim-relative": ECHOES}

# Ranges well inside the default bounds.
TRUTH = {
    "adc": {"S0": (20, 900), "ADC": (0.3, 3.0)},
    "t2": {"S0": (20, 900), "T2": (30, 150)},
    "t2-adc": {"S0": (20, 900), "ADC": (0.3, 2.0), "T2": (40, 150)},
    "kurtosis": {"S0": (20, 900), "D": (0.5, 2.0), "K": (0.2, 1.2)},
    "ivim": {"S0": (20, 900), "f": (0.08, 0.4), "Dv": (8, 60), "Dt": (0.4, 2.0)},
    "t2-ivim-kurtosis": {
        "S0": (20, 900),
        "f": (0.08, 0.35),
        "Dv": (8, 50),
        "T2v": (160, 240),
        "Dt": (0.5, 1.6),
        "K": (0.3, 1.1),
        "T2t": (40, 110),
    },
    "t2-ivim-relative": {"S0": (20, 900), "f": (0.08, 0.35), "Dv": (8, 50), "Dt": (0.5, 1.6), "dR2": (-0.015, -0.004)},
}


def protocol_of(name):
    return PROTOCOLS.get(name, DIFFUSION)


def draw(name, n, seed):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(low, high, n) for low, high in TRUTH[name].values()])


def noisy(name, n, seed, snr=40.0):
    """Synthetic Rician signals; returns signals, true parameters and each voxel's sigma."""
    rng = np.random.default_rng([seed, 1])
    truth = draw(name, n, seed)
    signals = MODELS[name].signal(truth, protocol_of(name))
    sigma = signals[:, :1] / snr
    real, imaginary = rng.normal(size=(2, *signals.shape)) * sigma
    return np.hypot(signals + real, imaginary), truth, sigma[:, 0]


def box(model, top):
    low, high = np.array(model.bounds).T
    unit = np.where([parameter.is_amplitude for parameter in model.parameters], top, 1.0)
    return low * unit, high * unit


def sum_of_squares(model, parameters, protocol, signals, sigma=0.0):
    predicted = model.signal(parameters, protocol)
    return np.nansum((signals - np.sqrt(predicted**2 + np.pi / 2 * np.square(sigma))) ** 2, axis=1)


@pytest.mark.parametrize("name", list(MODELS))
def test_noiseless_signals_return_their_parameters_and_the_cost_is_that_of_them(name):
    truth = draw(name, 3000, seed=810)
    result = fit_voxels(MODELS[name].signal(truth, protocol_of(name)), protocol_of(name), name)
    np.testing.assert_allclose(result.parameters, truth, rtol=1e-6)
    assert (result.status == FitStatus.CONVERGED).all()
    assert (result.cost < 1e-18 * truth[:, 0] ** 2).all()
    signals, _, sigma = noisy(name, 2000, seed=811)
    for noise in (None, sigma):
        result = fit_voxels(signals, protocol_of(name), name, sigma=noise)
        recomputed = sum_of_squares(
            MODELS[name], result.parameters, protocol_of(name), signals, 0.0 if noise is None else noise[:, None]
        )
        # The last step, which promises 1e-8 of the cost, is taken without another look at it.
        np.testing.assert_allclose(result.cost, recomputed, rtol=1e-8)


@pytest.mark.parametrize("name", list(MODELS))
def test_no_start_of_scipy_finds_a_better_fit(name):
    model, protocol = MODELS[name], protocol_of(name)
    n = 40
    signals, truth, _ = noisy(name, n, seed=812)
    result = fit_voxels(signals, protocol, model)
    rng = np.random.default_rng(813)
    excess = np.empty(n)
    for i in range(n):
        low, high = box(model, signals[i].max())
        best = np.inf
        for start in [truth[i], *draw(name, 5, rng.integers(2**31))]:
            start = np.clip(start, low + 1e-6, np.minimum(high, 1e6) - 1e-6)
            fit = least_squares(
                lambda x, i=i: model.signal(x, protocol)[0] - signals[i],
                start,
                bounds=(low, high),
                x_scale=np.maximum(np.abs(start), 1e-3),
                xtol=1e-12,
                ftol=1e-12,
                gtol=1e-12,
            )
            best = min(best, 2 * fit.cost)
        excess[i] = result.cost[i] / best - 1
    assert (excess < 1e-6).mean() >= 0.95
    assert excess.max() < 0.02


@pytest.mark.parametrize("name", list(MODELS))
def test_standard_errors_are_those_of_curve_fit(name):
    model, protocol = MODELS[name], protocol_of(name)
    signals, _, _ = noisy(name, 300, seed=814, snr=400)
    result = fit_voxels(signals, protocol, model)
    inside = np.flatnonzero(result.status == FitStatus.CONVERGED)[:15]
    assert len(inside) == 15
    for i in inside:
        # A curve_fit that stands at the solution returns the covariance of J there.
        scale = np.abs(result.parameters[i])
        _, covariance = curve_fit(
            lambda _, *x, scale=scale: model.signal(scale * x, protocol)[0],
            None,
            signals[i],
            p0=np.ones(len(scale)),
            maxfev=10000,
        )
        np.testing.assert_allclose(result.standard_errors[i], scale * np.sqrt(np.diag(covariance)), rtol=2e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what dipy says about its own starts and bounds
def test_fits_of_dipys_ivim_are_never_better():
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import IvimModel

    b = np.array([0, 10, 20, 40, 80, 120, 200, 400, 600, 800.0])
    protocol = Protocol(b)
    rng = np.random.default_rng(817)
    truth = np.column_stack(
        [np.full(30, 1000.0), rng.uniform(0.1, 0.3, 30), rng.uniform(10, 60, 30), rng.uniform(0.6, 1.6, 30)]
    )
    signals = MODELS["ivim"].signal(truth, protocol) + rng.normal(scale=8, size=(30, len(b)))
    table = gradient_table(b, bvecs=np.tile([1.0, 0, 0], (len(b), 1)), b0_threshold=0)
    with np.errstate(all="ignore"):
        theirs = IvimModel(table, fit_method="trr").fit(signals).model_params
    result = fit_voxels(signals, protocol, "ivim", bounds={"f": (0, 1), "Dv": (0.5, 500), "Dt": (0, 5)})
    in_our_units = theirs[:, [0, 1, 2, 3]] * [1, 1, 1e3, 1e3]
    their_cost = sum_of_squares(MODELS["ivim"], in_our_units, protocol, signals)
    assert (result.cost <= their_cost * (1 + 1e-8)).all()
    same = result.cost > their_cost * (1 - 1e-3)
    assert same.sum() >= 5
    np.testing.assert_allclose(result["Dt"][same], in_our_units[same, 3], rtol=0.02)


def test_the_adc_of_real_trace_images_is_dipys_mean_diffusivity(data_dir):
    import nibabel
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    from dmrifit import average_directions

    folder = data_dir / "dipy_small_dwi"
    protocol = Protocol.read(folder / "small_64D.bval", 90, folder / "small_64D.bvec")
    signals = nibabel.load(folder / "small_64D.nii").get_fdata().reshape(-1, 65)
    tensor = TensorModel(gradient_table(protocol.b, bvecs=protocol.directions), fit_method="LS").fit(signals)
    averaged, contrasts = average_directions(signals, protocol)
    result = fit_voxels(averaged, contrasts, "adc")
    tissue = (result.status == FitStatus.CONVERGED) & (tensor.md > 2e-4)
    assert tissue.sum() > 800
    assert np.median(np.abs(result["ADC"][tissue] / (1e3 * tensor.md[tissue]) - 1)) < 0.02


def test_an_expression_fits_as_the_built_in_model():
    signals, _, _ = noisy("t2-ivim-kurtosis", 300, seed=818)
    built_in = MODELS["t2-ivim-kurtosis"]
    mine = SignalModel.from_expression(
        "S0*f*exp(-te/T2v)*exp(-Dv*b) + S0*(1 - f)*exp(-te/T2t - b*Dt + (K/6)*b**2*Dt**2)",
        built_in.parameters,
        name="mine",
    )
    one, two = fit_voxels(signals, RELAXATION, built_in), fit_voxels(signals, RELAXATION, mine)
    np.testing.assert_allclose(
        mine.signal(one.parameters, RELAXATION), built_in.signal(one.parameters, RELAXATION), rtol=1e-12
    )
    close = np.abs(two.cost / one.cost - 1) < 1e-6
    assert close.mean() > 0.98


def test_starts_that_disagree_are_told():
    signals, _, _ = noisy("t2-ivim-kurtosis", 20000, seed=832, snr=25)
    result = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis")
    told = result.starts_disagree
    assert 8 <= told.sum() < 200
    assert not fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", n_starts=1).starts_disagree.any()
    # What is told is true: fits that are kept to a part of the ranges find another place as good.
    parts = [
        fit_voxels(signals[told], RELAXATION, "t2-ivim-kurtosis", bounds={"Dv": fast, "Dt": slow}, n_starts=3)
        for fast in itertools.pairwise(np.geomspace(4, 100, 15))
        for slow in ((0.2, 0.7), (0.7, 1.4), (1.4, 3))
    ]
    found = result.parameters[told]
    as_good = np.stack([part.cost <= 1.0101 * result.cost[told] for part in parts], axis=1)
    apart = [(np.abs(part.parameters - found) > 0.1 * np.abs(found) + 0.01).any(axis=1) for part in parts]
    assert (as_good & np.stack(apart, axis=1)).any(axis=1).all()


def test_parameters_that_cannot_be_told_apart_are_told():
    # One exponential is all there is, so nothing is known of the second one.
    signals = MODELS["adc"].signal([[100.0, 1.3]], DIFFUSION)
    result = fit_voxels(signals, DIFFUSION, "ivim")
    assert result["f"][0] < 1e-12
    assert result.doubt[0].tolist() == [False, False, True, False]
    assert np.isinf(result.standard_errors[0, result.names.index("Dv")])
    assert not fit_voxels(signals, DIFFUSION, "adc").doubt.any()


def test_the_published_bounds_of_s0_cut_off_short_t2():
    truth = np.array([[1.0, 0.02, 20.0, 200.0, 1.0, 0.5, 22.0]])
    signals = MODELS["t2-ivim-kurtosis"].signal(truth, RELAXATION)
    default = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis")
    published = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", bounds="published")
    np.testing.assert_allclose(default.parameters, truth, rtol=1e-5)
    assert signals.max() < 1 / 12
    assert published["S0"][0] == pytest.approx(12 * signals.max(), rel=1e-12)
    assert published.at_high[0, 0]
    assert published["T2t"][0] > 25
    assert published.bounds[0] == (0.8, 12)


def test_parameters_keep_to_the_bounds_and_the_result_says_where_they_touch():
    signals, _, _ = noisy("t2-ivim-kurtosis", 1500, seed=819, snr=25)
    bounds = {"Dv": (15.0, 30.0), "K": (0.5, 0.9), "T2t": (50, 60)}
    result = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", bounds=bounds)
    for name, (low, high) in bounds.items():
        j = result.names.index(name)
        values = result[name]
        assert ((values >= low) & (values <= high)).all()
        np.testing.assert_array_equal(values == low, result.at_low[:, j])
        np.testing.assert_array_equal(values == high, result.at_high[:, j])
        assert result.at_low[:, j].any()
        assert result.at_high[:, j].any()
    touching = (result.at_low | result.at_high).any(axis=1)
    np.testing.assert_array_equal(touching & (result.status != 2), result.status == FitStatus.AT_BOUND)
    assert np.isnan(result.standard_errors[result.at_low | result.at_high]).all()
    signals, _, _ = noisy("ivim", 50, seed=821)
    result = fit_voxels(signals, DIFFUSION, "ivim", bounds={"Dv": (30, 30)})
    assert (result["Dv"] == 30).all()


def test_fixed_parameters_stay_and_the_rest_is_fitted():
    signals, truth, _ = noisy("t2-ivim-kurtosis", 200, seed=820)
    fixed = {"T2v": 200.0, "K": truth[:, 5], "S0": truth[:, 0]}
    result = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", fixed=fixed)
    for name, value in fixed.items():
        np.testing.assert_allclose(result[name], np.broadcast_to(value, 200), rtol=1e-12)
        j = result.names.index(name)
        assert np.isnan(result.standard_errors[:, j]).all()
        assert not (result.at_low[:, j] | result.at_high[:, j]).any()
    free = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis")
    assert (result.cost >= free.cost * (1 - 1e-6)).mean() > 0.99
    i = int(np.flatnonzero(result.status == FitStatus.CONVERGED)[0])
    names = ["f", "Dv", "Dt", "T2t"]
    at = [result.names.index(name) for name in names]

    def residual(x):
        full = result.parameters[i].copy()
        full[at] = x
        return MODELS["t2-ivim-kurtosis"].signal(full, RELAXATION)[0] - signals[i]

    low, high = np.array(MODELS["t2-ivim-kurtosis"].bounds)[at].T
    theirs = least_squares(residual, truth[i, at], bounds=(low, high), x_scale=truth[i, at], xtol=1e-12, ftol=1e-12)
    assert result.cost[i] == pytest.approx(2 * theirs.cost, rel=1e-6)


def test_the_monotonic_bound_keeps_the_signal_falling_and_is_optimal():
    signals, _, _ = noisy("kurtosis", 60, seed=822, snr=12)
    protocol, model, b_max = DIFFUSION, MODELS["kurtosis"], DIFFUSION.b.max() / 1000
    free = fit_voxels(signals, protocol, model, bounds={"K": (0, 5)})
    result = fit_voxels(signals, protocol, model, bounds={"K": (0, "monotonic")})
    limit = 3 / (b_max * result["D"])
    assert (result["K"] <= limit * (1 + 1e-9)).all()
    held = np.isclose(result["K"], limit, rtol=1e-6)
    assert held.sum() >= 3
    assert (free["K"][held] > 3 / (b_max * free["D"][held])).all()
    assert result.at_high[held, 2].all()
    assert (result.status[held] == FitStatus.AT_BOUND).all()
    inside = ~held & (result.status == FitStatus.CONVERGED)
    assert inside.sum() > 5
    np.testing.assert_allclose(result.standard_errors[inside], free.standard_errors[inside], rtol=1e-3)
    np.testing.assert_allclose(
        result.cost[~held & (result["K"] < limit)], free.cost[~held & (result["K"] < limit)], rtol=1e-6
    )
    for i in np.flatnonzero(held)[:5]:
        scale = np.array([signals[i].max(), 1, 1])
        best = min(
            minimize(
                lambda x, i=i, scale=scale: (
                    sum_of_squares(model, x * scale, protocol, signals[i : i + 1])[0] / scale[0] ** 2
                ),
                start,
                bounds=[(0, 10), (0, 10), (0, 5)],
                constraints={"type": "ineq", "fun": lambda x: 3 - x[2] * b_max * x[1]},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            ).fun
            for start in ([1, 1, 0.5], [1, 0.5, 1.5], [1, 2, 0.2])
        )
        assert result.cost[i] / signals[i].max() ** 2 <= best * (1 + 1e-5)


def test_the_noise_floor_is_part_of_the_model():
    model = MODELS["adc"]
    truth = np.column_stack([np.full(500, 100.0), np.full(500, 2.5)])
    protocol = Protocol([0, 200, 500, 1000, 1500, 2000])
    rng = np.random.default_rng(823)
    clean = model.signal(truth, protocol)
    signals = np.hypot(clean + rng.normal(scale=8, size=clean.shape), rng.normal(scale=8, size=clean.shape))
    without, floored = fit_voxels(signals, protocol, model), fit_voxels(signals, protocol, model, sigma=8.0)
    assert abs(np.median(floored["ADC"]) - 2.5) < 0.5 * abs(np.median(without["ADC"]) - 2.5)
    per_voxel = fit_voxels(signals, protocol, model, sigma=np.full(500, 8.0))
    np.testing.assert_array_equal(per_voxel.parameters, floored.parameters)


def test_regularization_minimizes_the_published_sum():
    signals, truth, _ = noisy("ivim", 12, seed=824)
    model, weight = MODELS["ivim"], 3e-3
    low, high = np.array(model.bounds).T
    result = fit_voxels(signals, DIFFUSION, model, regularization=weight)
    plain = fit_voxels(signals, DIFFUSION, model)
    assert (result.cost > plain.cost).all()
    np.testing.assert_allclose(result.cost, sum_of_squares(model, result.parameters, DIFFUSION, signals), rtol=1e-9)

    def objective(parameters, signal):
        top = signal.max()
        cost = sum_of_squares(model, parameters, DIFFUSION, signal[None])[0] / top**2
        return cost + weight * np.sum(((parameters[1:] - low[1:]) / (high[1:] - low[1:])) ** 2)

    for i in range(12):
        scale = truth[i]
        best = minimize(
            lambda x, i=i, scale=scale: objective(x * scale, signals[i]),
            result.parameters[i] / scale * 1.02,
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 5000, "maxfev": 5000},
        )
        inside = (best.x * scale >= low).all() and (best.x * scale <= high).all()
        assert not inside or objective(result.parameters[i], signals[i]) <= best.fun * (1 + 1e-6)


@pytest.mark.parametrize(
    "voxel",
    [
        *([value] * 9 for value in (0, np.nan, 7, np.inf)),
        [7, 7, 7, 7, np.nan, 7, 7, 7, 7],
        *([9, 8, 7, *[np.nan] * 6], [-3, -4, -5, -6, -7, -8, -9, -10, -11]),
    ],
)
def test_a_voxel_without_usable_signal_is_not_fitted(voxel):
    good, _, _ = noisy("ivim", 40, seed=826)
    signals = np.insert(good, 17, voxel, axis=0)
    result = fit_voxels(signals, DIFFUSION, "ivim")
    assert result.status[17] == FitStatus.NOT_FITTED
    assert np.isnan(result.parameters[17]).all()
    assert np.isnan(result.standard_errors[17]).all()
    assert np.isnan(result.cost[17])
    assert result.n_iter[17] == 0
    alone = fit_voxels(good, DIFFUSION, "ivim")
    np.testing.assert_array_equal(np.delete(result.parameters, 17, axis=0), alone.parameters)


def test_bits_do_not_depend_on_threads_neighbors_order_or_a_fit_beside():
    signals, _, sigma = noisy("t2-ivim-kurtosis", 9001, seed=827, snr=20)
    signals[::97, 3] = np.nan
    signals[::101] = 0.0
    whole = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", sigma=sigma, n_threads=1)
    threaded = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", sigma=sigma, n_threads=3)
    order = np.random.default_rng(828).permutation(9001)
    shuffled = fit_voxels(signals[order], RELAXATION, "t2-ivim-kurtosis", sigma=sigma[order])
    some = fit_voxels(signals[700:771], RELAXATION, "t2-ivim-kurtosis", sigma=sigma[700:771])
    for field in ("parameters", "standard_errors", "cost", "status", "n_iter", "at_low", "at_high"):
        expected = getattr(whole, field)
        np.testing.assert_array_equal(getattr(threaded, field), expected)
        np.testing.assert_array_equal(getattr(shuffled, field), expected[order])
        np.testing.assert_array_equal(getattr(some, field), expected[700:771])
    signals, _, _ = noisy("ivim", 5000, seed=829)
    expected = fit_voxels(signals, DIFFUSION, "ivim")
    results = [None, None]

    def fit(i):
        results[i] = fit_voxels(signals, DIFFUSION, "ivim")

    threads = [threading.Thread(target=fit, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result.parameters, expected.parameters)


@settings(max_examples=40)
@given(factor=st.floats(1e-6, 1e6), seed=st.integers(0, 2**31))
def test_the_fit_scales_with_the_signal(factor, seed):
    signals, _, _ = noisy("ivim", 8, seed=seed)
    one, two = fit_voxels(signals, DIFFUSION, "ivim"), fit_voxels(signals * factor, DIFFUSION, "ivim")
    np.testing.assert_allclose(two["S0"], one["S0"] * factor, rtol=1e-4)
    np.testing.assert_allclose(two.cost, one.cost * factor**2, rtol=1e-6)


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 1e-320, 1e300])), min_size=9, max_size=9),
        min_size=1,
        max_size=5,
    )
)
def test_any_numbers_at_all_give_a_fit_or_nan(rows):
    result = fit_voxels(np.array(rows), DIFFUSION, "ivim")
    fitted = result.status != FitStatus.NOT_FITTED
    assert np.isfinite(result.parameters[fitted]).all()
    assert np.isnan(result.parameters[~fitted]).all()
    low, high = np.array(MODELS["ivim"].bounds).T
    assert (result.parameters[fitted] >= low).all()
    assert (result.parameters[fitted] <= high).all()


def test_integers_single_precision_read_only_arrays_and_no_voxels_are_taken():
    signals = np.rint(noisy("adc", 30, seed=830)[0])
    expected = fit_voxels(signals, DIFFUSION, "adc").parameters
    for kind in (np.uint16, np.int32, np.float32):
        np.testing.assert_array_equal(fit_voxels(signals.astype(kind), DIFFUSION, "adc").parameters, expected)
    strided = np.asfortranarray(signals)
    strided.flags.writeable = False
    np.testing.assert_array_equal(fit_voxels(strided, DIFFUSION, "adc").parameters, expected)
    result = fit_voxels(np.empty((0, 9)), DIFFUSION, "adc")
    assert result.parameters.shape == (0, 2)
    assert len(result) == 0
    assert fit_voxels(np.empty((0, 9)), DIFFUSION, "ivim", method="segmented").threshold == 150


def test_values_fixed_for_each_voxel_are_its_own_whatever_stands_beside():
    signals, truth, _ = noisy("t2-ivim-kurtosis", 300, seed=837)
    signals[[5, 90]] = 0.0
    fixed = {"Dt": truth[:, 4], "S0": truth[:, 0]}
    result = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", fixed=fixed)
    fitted = result.status != FitStatus.NOT_FITTED
    assert (~fitted).sum() == 2
    for name, values in fixed.items():
        np.testing.assert_allclose(result[name][fitted], values[fitted], rtol=1e-12)
    some = np.random.default_rng(838).permutation(300)[:40]
    again = fit_voxels(
        signals[some], RELAXATION, "t2-ivim-kurtosis", fixed={name: values[some] for name, values in fixed.items()}
    )
    np.testing.assert_array_equal(again.parameters, result.parameters[some])
    one = fit_voxels(signals[:1], RELAXATION, "t2-ivim-kurtosis", fixed={name: v[:1] for name, v in fixed.items()})
    np.testing.assert_array_equal(one.parameters, result.parameters[:1])


def test_parameters_may_be_negative_where_the_user_says_so():
    signals, _, _ = noisy("t2-ivim-kurtosis", 40, seed=839)
    for options in ({"fixed": {"K": -3.0}}, {"bounds": {"K": (-5, -1)}}, {"fixed": {"Dt": -1.0}}):
        result = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", **options)
        assert np.isfinite(result.parameters).all()
        recomputed = sum_of_squares(MODELS["t2-ivim-kurtosis"], result.parameters, RELAXATION, signals)
        # The last step, which promises 1e-8 of the cost, is taken without another look at it.
        np.testing.assert_allclose(result.cost, recomputed, rtol=1e-8)


def test_a_model_that_overflows_everywhere_fits_nothing():
    signals, _, _ = noisy("t2-ivim-kurtosis", 60, seed=843)
    fixed = {"Dt": 30.0, "K": 5.0}
    result = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", fixed=fixed)
    assert (result.status == FitStatus.NOT_FITTED).all()
    assert np.isnan(result.parameters).all()
    assert np.isnan(result.cost).all()


@pytest.mark.parametrize("bounds", [{"T2v": (0, np.inf)}, {"T2t": (0, np.inf)}, {"Dv": (0, np.inf)}])
def test_wider_bounds_never_fit_much_worse(bounds):
    signals, _, _ = noisy("t2-ivim-kurtosis", 400, seed=844)
    narrow = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis")
    wide = fit_voxels(signals, RELAXATION, "t2-ivim-kurtosis", bounds=bounds)
    assert (wide.cost <= narrow.cost * (1 + 1e-3)).mean() > 0.97
