"""Precision of protocols: the bound agrees with formulas, with the fit's spread, and known designs are found."""

import numpy as np
import pytest
from scipy.special import i0e, i1e

from dmrifit import (
    MODELS,
    Parameter,
    Protocol,
    SignalModel,
    fit_voxels,
    protocol_precision,
    rank_contrasts,
)
from dmrifit.engine.design.precision import largest_error, signal_jacobian
from dmrifit.simulate.tissues import tissue_table

T2IVIMK = MODELS["t2-ivim-kurtosis"]
TUMOR = tissue_table()["tissue"]["tumor"]
COHORT1 = Protocol.preset("cohort1")


def analytic_jacobian(parameters, protocol):
    """The derivatives of T2-IVIM-Kurtosis by hand."""
    s0, f, dv, t2v, dt, k, t2t = parameters
    b, te = protocol.b / 1000, protocol.te
    vascular, tissue = np.exp(-b * dv - te / t2v), np.exp(-b * dt + k * (b * dt) ** 2 / 6 - te / t2t)
    return np.stack(
        [
            f * vascular + (1 - f) * tissue,
            s0 * (vascular - tissue),
            -s0 * f * b * vascular,
            s0 * f * te / t2v**2 * vascular,
            s0 * (1 - f) * tissue * (-b + k * b**2 * dt / 3),
            s0 * (1 - f) * tissue * (b * dt) ** 2 / 6,
            s0 * (1 - f) * te / t2t**2 * tissue,
        ],
        axis=1,
    )


def deviations(table):
    return table.pivot(index="set", columns="parameter", values="sd")


def test_derivatives_agree_with_those_by_hand_and_the_bound_is_the_inverse_of_the_fisher_information():
    sets = np.array([TUMOR, TUMOR * [300, 2, 2, 1, 1.2, 0.5, 0.7]])
    numeric = signal_jacobian(T2IVIMK, sets, COHORT1)
    for one, expected in zip(numeric, (analytic_jacobian(row, COHORT1) for row in sets), strict=True):
        largest = np.abs(expected).max(axis=0)
        np.testing.assert_allclose(one / largest, expected / largest, atol=1e-9)
    jacobian = analytic_jacobian(TUMOR, COHORT1)
    expected = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian / 0.004**2)))
    table = protocol_precision(COHORT1, T2IVIMK, TUMOR, 0.004)
    np.testing.assert_allclose(table["sd"], expected, rtol=1e-5)
    np.testing.assert_allclose(table["cv"], expected / TUMOR, rtol=1e-5)
    assert table["parameter"].tolist() == list(T2IVIMK.names)
    assert table["unit"].tolist() == list(T2IVIMK.units)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("cohort1", (0.07, 0.56, 0.28, 1.02, 0.12, 0.24, 0.07)), ("cohort2", (0.05, 0.49, 0.32, 1.04, 0.13, 0.28, 0.06))],
)
def test_the_bound_of_a_tumor_is_that_of_an_independent_computation(preset, expected):
    """Coefficients of variation at SNR 60 in the tumor itself, found before with other code."""
    protocol = Protocol.preset(preset)
    sigma = T2IVIMK.signal(TUMOR, protocol)[0, 0] / 60
    table = protocol_precision(protocol, T2IVIMK, TUMOR, sigma)
    assert tuple(table["cv"].round(2)) == expected


@pytest.mark.parametrize(
    ("model", "parameters", "protocol", "sigma"),
    [
        ("adc", [1.0, 1.2], Protocol([0, 50, 100, 400, 900]), 0.01),
        ("kurtosis", [1.0, 1.2, 0.9], Protocol([0, 500, 1000, 1500, 2000]), 0.002),
        ("ivim", [1.0, 0.2, 30.0, 1.2], Protocol([0, 10, 20, 50, 100, 200, 400, 800]), 0.002),
        ("t2-ivim-kurtosis", [1.0, 0.3, 30.0, 200.0, 1.05, 0.9, 72.0], COHORT1, 5e-5),
    ],
)
def test_the_fit_spreads_as_the_bound_says(model, parameters, protocol, sigma):
    exact = MODELS[model].signal(parameters, protocol)
    noise = np.random.default_rng(0).standard_normal((4000, len(protocol)))
    result = fit_voxels(exact + sigma * noise, protocol, model, method="nlls", n_threads=1)
    assert not (result.at_low | result.at_high).any()
    spread = result.parameters.std(axis=0)
    bound = protocol_precision(protocol, model, parameters, sigma)["sd"].to_numpy()
    bias = result.parameters.mean(axis=0) - parameters
    assert (np.abs(bias) < 0.1 * bound).all()
    np.testing.assert_allclose(spread, bound, rtol=0.1)


def test_noise_and_repeats_scale_the_bound():
    table = protocol_precision(COHORT1, T2IVIMK, np.array([TUMOR, TUMOR]), [0.01, 0.02])
    sd = deviations(table)
    np.testing.assert_allclose(sd.loc[1], 2 * sd.loc[0])
    twice = Protocol(np.tile(COHORT1.b, 2), np.tile(COHORT1.te, 2))
    more = deviations(protocol_precision(twice, T2IVIMK, TUMOR, 0.01))
    np.testing.assert_allclose(more.loc[0] * np.sqrt(2), sd.loc[0], rtol=1e-7)


def test_names_stand_for_columns_and_what_measurements_do_not_determine_has_no_bound():
    by_name = {"S0": 1.0, "f": [0.1, 0.2], "Dv": 30, "Dt": [1.0, 1.1]}
    protocol = Protocol([0, 20, 50, 100, 400, 800])
    table = protocol_precision(protocol, "ivim", by_name, 0.01)
    rows = protocol_precision(protocol, "ivim", [[1, 0.1, 30, 1.0], [1, 0.2, 30, 1.1]], 0.01)
    np.testing.assert_array_equal(table["sd"], rows["sd"])
    one_te = Protocol([0, 20, 50, 100, 200, 400, 800, 1200, 1600], te=90)
    sd = protocol_precision(one_te, T2IVIMK, TUMOR, 0.01).set_index("parameter")["sd"]
    assert np.isinf(sd[["S0", "f", "T2v", "T2t"]]).all()
    assert np.isfinite(sd[["Dv", "Dt", "K"]]).all()
    no_b = Protocol([0, 0, 0], te=[60, 90, 120])
    sd = protocol_precision(no_b, T2IVIMK, TUMOR, 0.01).set_index("parameter")["sd"]
    assert np.isinf(sd).all()
    few = protocol_precision(Protocol([0, 1000]), "kurtosis", [1, 1, 1], 0.01).set_index("parameter")["sd"]
    assert few["S0"] == pytest.approx(0.01)
    assert np.isinf(few[["D", "K"]]).all()


def test_no_perfusion_leaves_its_diffusivity_unknown():
    table = protocol_precision(Protocol([0, 50, 100, 400, 800]), "ivim", [1, 0, 30, 1], 0.01).set_index("parameter")
    assert np.isinf(table.loc["Dv", "sd"])
    assert np.isfinite(table.loc["f", "sd"])
    assert np.isinf(table.loc["f", "cv"])


def test_what_is_known_helps_and_what_is_fixed_has_no_error():
    def sd(**options):
        table = protocol_precision(COHORT1, T2IVIMK, TUMOR, 0.004, **options)
        return table.set_index("parameter")["sd"]

    free, fixed = sd(), sd(fixed=["T2v"])
    assert fixed["T2v"] == 0
    assert fixed["f"] < 0.8 * free["f"]
    np.testing.assert_allclose(sd(prior={"T2v": 1e-6})["f"], fixed["f"], rtol=1e-5)
    np.testing.assert_allclose(sd(prior={"T2v": 1e6}), free, rtol=1e-4)
    np.testing.assert_allclose(sd(prior=[np.inf] * 7), free, rtol=1e-12)
    one_te = Protocol([0, 20, 50, 100, 200, 400, 800, 1200, 1600], te=90)
    known = protocol_precision(one_te, T2IVIMK, TUMOR, 0.01, fixed=["T2v", "T2t"])
    assert np.isfinite(known["sd"]).all()


def test_magnitudes_near_the_noise_hold_less_information_and_strong_ones_are_gaussian():
    """The variance of the score of Rician noise, by drawing."""
    rng = np.random.default_rng(0)
    one = Protocol([0], te=50)
    constant = SignalModel.from_expression("S0", [Parameter("S0", "signal", 0, np.inf)], name="constant")
    for snr in (0.5, 1.0, 2.0, 5.0, 11.9, 12.1, 30.0):
        magnitude = np.hypot(snr + rng.standard_normal(400_000), rng.standard_normal(400_000))
        score = magnitude * i1e(magnitude * snr) / i0e(magnitude * snr) - snr
        sd = protocol_precision(one, constant, [snr], 1.0, noise="rician")["sd"].iloc[0]
        assert sd == pytest.approx(1 / score.std(), rel=0.01)
    assert np.isinf(protocol_precision(one, constant, [0.0], 1.0, noise="rician")["sd"].iloc[0])
    def sd(sigma, noise):
        return protocol_precision(COHORT1, T2IVIMK, TUMOR, sigma, noise=noise)["sd"].to_numpy()

    np.testing.assert_allclose(sd(1e-4, "rician"), sd(1e-4, "gaussian"), rtol=1e-3)
    share = sd(0.05, "rician") / sd(0.05, "gaussian")
    assert (share > 1).all()
    assert share[T2IVIMK.names.index("K")] > 1.05  # it needs the weakest signals
    liver = T2IVIMK.signal(tissue_table()["tissue"]["liver"], COHORT1)[0, 0]
    orders = [rank_contrasts(COHORT1, T2IVIMK, TUMOR, liver / 8, noise=noise) for noise in ("gaussian", "rician")]
    place = [order.set_index("contrast").loc["S_b1600_TE120", "step"] for order in orders]
    assert place[1] > place[0]


def test_the_best_contrasts_are_the_known_b_value_beside_zero_and_a_long_echo_time_at_low_b():
    fine = Protocol(np.arange(0, 3001, 10))
    by_determinant = rank_contrasts(fine, "adc", [1, 1.0], 0.01, start=[0], criterion="D", n=1, prior=1e3)
    assert by_determinant["b"].iloc[1] == 1000  # 1/ADC
    by_variance = rank_contrasts(fine, "adc", [1, 0.8], 0.01, start=[0], n=1, fixed=[], prior=1e3)
    assert by_variance["b"].iloc[1] == pytest.approx(1109 / 0.8, abs=10)  # 1.109/ADC, for one image each
    liver = T2IVIMK.signal(tissue_table()["tissue"]["liver"], COHORT1)[0, 0]
    table = rank_contrasts(COHORT1, T2IVIMK, TUMOR, liver / 60, start=COHORT1.clinical(), n=3)
    assert table["contrast"].tolist()[:2] == ["start (5)", "S_b0_TE120"]
    assert table["te"].iloc[1] == 120
    assert table["b"].iloc[1] <= 100
    assert (np.diff(table["score"]) < 0).all()
    np.testing.assert_allclose(table["gain"].iloc[1:], -np.diff(table["score"]))
    assert table["cv_T2t"].iloc[1] < 0.3 * table["cv_T2t"].iloc[0]


@pytest.mark.parametrize("criterion", ["A", "D"])
def test_every_step_takes_what_the_bound_says(criterion):
    sets, prior = np.array([TUMOR, tissue_table()["tissue"]["liver"]]), {"T2v": 30.0}
    table = rank_contrasts(COHORT1, T2IVIMK, sets, 0.004, start=COHORT1.clinical(), criterion=criterion, prior=prior)
    taken = COHORT1.clinical().tolist()
    assert sorted(taken + table["index"].tolist()[1:]) == list(range(21))
    for row in table.iloc[1:4].itertuples():
        scores = {}
        for one in set(range(21)) - set(taken):
            protocol = COHORT1.take([*taken, one])
            if criterion == "A":
                weak = {name: 1.0 * value for name, value in zip(T2IVIMK.names, TUMOR, strict=True)} | prior
                other = {name: value for name, value in zip(T2IVIMK.names, sets[1], strict=True)} | prior
                cv = [
                    protocol_precision(protocol, T2IVIMK, values, 0.004, prior=known)["cv"]
                    for values, known in zip(sets, (weak, other), strict=True)
                ]
                scores[one] = np.mean(np.square(cv))
            else:
                scores[one] = np.mean([
                    -np.linalg.slogdet(
                        (relative := analytic_jacobian(values, protocol) * values / 0.004).T @ relative
                        + np.diag([1, 1, 1, (values[3] / 30) ** 2, 1, 1, 1])
                    )[1] / 7
                    for values in sets
                ])  # fmt: skip
        best = min(scores, key=scores.get)
        assert row[2] == best  # its index in the protocol
        assert row.score == pytest.approx(scores[best], rel=1e-4)
        taken.append(best)


SETS = {"protocol": COHORT1, "model": "t2-ivim-kurtosis", "parameters": TUMOR, "sigma": 0.01}


def test_no_prior_is_needed_where_the_start_determines_the_parameters():
    start = [i for i in range(21) if i not in (6, 20)]
    table = rank_contrasts(**SETS, prior=np.inf, start=start)
    bound = protocol_precision(**SETS)
    np.testing.assert_allclose(table.filter(like="cv_").iloc[-1], bound["cv"], rtol=1e-6)


def test_points_without_derivatives_and_protocols_that_a_model_cannot_be_fitted_to_have_no_bound():
    with pytest.raises(ValueError, match="no finite derivative with respect to T2t in set 1, where it is 0"):
        protocol_precision(**{**SETS, "parameters": np.array([TUMOR, [*TUMOR[:-1], 0.0]])})
    for function in (protocol_precision, rank_contrasts):
        with pytest.raises(ValueError, match=r"adc does not include relaxation.*93, 105, 120 ms; take the measurements"):
            function(COHORT1, "adc", [1.0, 1.0], 0.02)
        with pytest.raises(ValueError, match=r"t2 does not include diffusion.*b-values up to 1600 s/mm²; leave out all but"):
            function(COHORT1, "t2", [1.0, 80.0], 0.02)
    assert protocol_precision(COHORT1.take(range(7)), "adc", [1.0, 1.0], 0.02)["cv"].max() < 0.1


TISSUE = [1.0, 0.12, 20, 200, 1.2, 0.8, 80]


def advice(protocol, model, tissue, sigma, **options):
    table = protocol_precision(protocol, model, tissue, sigma, **options)
    return dict(zip(table["parameter"], table["advice"], strict=True))


def test_the_largest_error_is_that_of_the_kind_of_parameter():
    limits = {p.name: float(largest_error(p, v)) for p, v in zip(T2IVIMK.parameters, TISSUE, strict=True)}
    assert limits == {"S0": 0.5, "f": 0.05, "Dv": 10, "T2v": 100, "Dt": 0.6, "K": 0.3, "T2t": 40}
    adc = MODELS["adc"].parameters[1]
    np.testing.assert_array_equal(largest_error(adc, [0.0, 2.0]), [0.02, 1.0])
    # A value of 0 within the box is no reason for doubt.
    change = MODELS["t2-ivim-relative"].parameters[-1]
    assert (change.name, change.low, change.high) == ("dR2", -0.05, 0.05)
    np.testing.assert_allclose(largest_error(change, [0.0, 0.02]), [0.0025, 0.01])


def test_sentences_name_parameter_reason_and_remedy_as_averages_or_lower_b_values():
    sentences = advice(COHORT1, T2IVIMK, TISSUE, 1 / 100)
    assert sentences["T2v"] == (
        'T2v is not determined: SD 420 ms at 200 ms (150 to 250 ms searched); fix it (fixed={"T2v": VALUE}), or measure '
        "contrasts that are sensitive to T2v."
    )
    assert sentences["f"] == "f is uncertain: SD 0.15 at 0.12; average 9 voxels or repeats, or choose a simpler model."
    assert sentences["T2t"] == sentences["S0"] == ""
    assert advice(COHORT1, T2IVIMK, TISSUE, 1 / 100, fixed=("T2v",))["T2v"] == ""
    text = advice(COHORT1, T2IVIMK, TISSUE, 1 / 100)["f"]
    n = int(text.split("average ")[1].split()[0])
    assert advice(COHORT1, T2IVIMK, TISSUE, 1 / 100 / np.sqrt(n))["f"] == ""
    assert advice(COHORT1, T2IVIMK, TISSUE, 1 / 100 / np.sqrt(n - 1))["f"] != ""
    protocol = Protocol(np.arange(0, 2801, 200))
    assert "b·D = 8.4" in advice(protocol, "kurtosis", [1, 3.0, 0.0], 1 / 50)["K"]
    assert "above 1667 s/mm²" in advice(protocol, "kurtosis", [1, 3.0, 0.0], 1 / 50)["K"]
    at_cap = advice(protocol, "kurtosis", [1, 1.5, 1.0], 1 / 50)["K"]
    assert "turning point 3/K, which is at b = 2000 s/mm²" in at_cap
    assert set(advice(protocol, "kurtosis", [1, 0.8, 0.9], 1 / 50).values()) == {""}


@pytest.mark.parametrize("snr", [25, 300])
def test_the_plan_and_the_fit_say_the_same(snr):
    """Where the plan finds nothing wrong, neither does the fit, and the other way round."""
    protocol = Protocol([0, 10, 20, 40, 80, 150, 300, 500, 800])
    tissue = [100.0, 0.15, 20, 1.0]
    planned = advice(protocol, "ivim", tissue, 100 / snr)
    clean = MODELS["ivim"].signal([tissue], protocol)
    noise = np.random.default_rng(5).normal(0, 100 / snr, (400, len(protocol)))
    result = fit_voxels(clean + noise, protocol, "ivim", method="nlls")
    for j, name in enumerate(result.names):
        is_doubted = result.doubt[:, j].mean() > 0.5
        assert is_doubted == bool(planned[name]), name
