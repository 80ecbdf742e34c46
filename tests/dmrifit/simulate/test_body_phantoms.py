"""Synthetic patients: known truth, honest noise, streams that do not depend on each other."""

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from dmrifit import MODELS, Protocol, fit_voxels, simulate_cohort

MODEL = MODELS["t2-ivim-kurtosis"]
SMALL = 24, 24, 4


def simulate_patient(protocol, *, seed, **options):
    return simulate_cohort(protocol, 1, random_state=seed, **options).scans[0]


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 3, shape=SMALL, random_state=5)


def test_a_patient_keeps_its_name_and_drawn_voxels_in_a_cohort_of_hundreds():
    options = {"shape": (12, 12, 2), "random_state": 0}
    few, many = simulate_cohort("cohort1", 2, **options), simulate_cohort("cohort1", 101, **options)
    assert many.patients[:2] == few.patients
    assert many.patients[98:] == ("cohort1p99", "cohort1p100", "cohort1p101")
    drawn = [cohort.arrays(mask="body", max_voxels=3, random_state=0).X[:6] for cohort in (few, many)]
    np.testing.assert_array_equal(*drawn)


def test_a_preset_is_the_same_by_name_and_as_a_protocol():
    preset = Protocol.preset("cohort2")
    by_name, as_protocol = (simulate_cohort(one, 1, shape=SMALL, random_state=0) for one in ("cohort2", preset))
    assert as_protocol.simulation == by_name.simulation
    np.testing.assert_array_equal(as_protocol.scans[0].signal, by_name.scans[0].signal)
    unnamed = simulate_cohort(Protocol(preset.b, preset.te), 1, shape=SMALL, random_state=0)
    assert unnamed.simulation["field"] == 3.0
    assert simulate_cohort(preset, 1, shape=SMALL, field=1.5).simulation["field"] == 1.5
    assert simulate_cohort(preset.take(range(20)), 1, shape=SMALL).simulation["field"] == 1.5


def test_patients_do_not_depend_on_the_number_of_processes(cohort):
    parallel = simulate_cohort("cohort1", 3, shape=SMALL, n_jobs=2, random_state=5)
    assert parallel.simulation == cohort.simulation
    for one, other in zip(cohort, parallel, strict=True):
        assert one.signal.tobytes() == other.signal.tobytes()
        assert one.mask.tobytes() == other.mask.tobytes()
        assert one.truth["T2t"].tobytes() == other.truth["T2t"].tobytes()
        assert one.sigma == other.sigma


def test_seeds_and_cohort_names_make_different_patients_and_ingredients_leave_the_others_as_drawn(cohort):
    changed = simulate_cohort("cohort1", 1, shape=SMALL, gain_variation=0, artifacts=("shift",), snr=90, random_state=5)
    one, other = cohort.scans[0], changed.scans[0]
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.truth["K"], other.truth["K"])
    assert not np.array_equal(one.truth["S0"], other.truth["S0"])
    other_seed = simulate_cohort("cohort1", 1, shape=SMALL, random_state=6).scans[0]
    other_name = simulate_cohort("cohort1", 1, shape=SMALL, name="elsewhere", random_state=5).scans[0]
    first = cohort.scans[0]
    for other in (other_seed, other_name, cohort.scans[1]):
        assert np.corrcoef(first.truth["K"][first.mask], other.truth["K"][first.mask])[0, 1] < 0.9


def test_noiseless_signals_are_those_of_the_true_parameters_and_fits_give_them_back():
    scan = simulate_patient("cohort2", shape=SMALL, template="abdomen", snr=np.inf, seed=1)
    parameters = np.stack([scan.truth[name][scan.mask] for name in MODEL.names], axis=1)
    expected = MODEL.signal(parameters, scan.protocol)
    error = np.abs(scan.signal[scan.mask] / expected - 1).max(axis=1)
    # Voxels of one tissue agree to single precision; the rest are mixtures, which have no exact parameters.
    assert np.mean(error < 1e-4) > 0.6
    assert np.median(error[error > 1e-4]) < 0.2
    scan = simulate_patient("cohort1", shape=(32, 32, 4), template="abdomen", snr=np.inf, seed=11)
    truth = np.stack([scan.truth[name][scan.mask] for name in MODEL.names], axis=1).astype(float)
    exact = MODEL.signal(truth, scan.protocol)
    of_one_tissue = np.abs(scan.signal[scan.mask] / exact - 1).max(axis=1) < 1e-5
    assert of_one_tissue.sum() > 500
    # Images are stored in single precision, so the fit is to the signals of the true maps in double precision.
    truth = truth[of_one_tissue]
    result = fit_voxels(exact[of_one_tissue], scan.protocol, MODEL, n_threads=1)
    low, high = np.array(MODEL.bounds).T
    inside = (truth > low * 1.001) & (truth < high * 0.999) | (np.arange(7) == 0)
    error = np.abs(result.parameters / truth - 1)[inside.all(axis=1)]
    assert len(error) > 400
    assert error.max() < 1e-6


def test_true_parameters_lie_inside_the_bounds_of_the_fit_and_before_the_turn_of_the_cumulant(cohort):
    for scan in cohort:
        for parameter in MODEL.parameters[1:]:
            values = scan.truth[parameter.name][scan.mask]
            assert values.min() >= parameter.low * (1 - 1e-6)
            assert values.max() <= parameter.high * (1 + 1e-6)
        b = scan.protocol.b_ms_per_um2.max()
        assert (scan.truth["K"][scan.mask] * b * scan.truth["Dt"][scan.mask] < 3).all()


def test_noise_is_rayleigh_with_the_sigma_of_the_scan_and_follows_the_asked_snr(cohort):
    for scan in cohort:
        background = np.concatenate([scan.signal[i, j].ravel() for i in (0, 1, -2, -1) for j in (0, 1, -2, -1)])
        assert np.median(background) == pytest.approx(scan.sigma * np.sqrt(2 * np.log(2)), rel=0.05)
    quiet, loud = (simulate_cohort(n_patients=1, shape=SMALL, snr=snr, random_state=2) for snr in (60, 20))
    assert loud.scans[0].sigma == pytest.approx(3 * quiet.scans[0].sigma)


def test_dead_cores_belong_to_the_tumor():
    scans = simulate_cohort(n_patients=6, random_state=0)
    for scan in scans:
        for z in range(scan.shape[2]):
            np.testing.assert_array_equal(scan.lesion[:, :, z], binary_fill_holes(scan.lesion[:, :, z]))


def test_a_stronger_field_shortens_t2_and_leaves_diffusion_alone():
    protocol = Protocol.preset("cohort1")
    low, high = (
        simulate_cohort(protocol, 1, shape=SMALL, field=field, difficulty="easy", random_state=3).scans[0]
        for field in (1.5, 3.0)
    )
    ratio = high.truth["T2t"][low.mask] / low.truth["T2t"][low.mask]
    assert np.median(ratio) == pytest.approx(0.84, abs=0.01)
    np.testing.assert_allclose(high.truth["Dt"][low.mask], low.truth["Dt"][low.mask], rtol=0.05)


def test_latent_textures_move_parameters_together_only_when_asked():
    def correlations(latent_corr):
        options = {"template": "abdomen", "snr": np.inf, "latent_corr": latent_corr, "random_state": 0}
        values = []
        for scan in simulate_cohort("cohort1", 8, **options).scans:
            muscle = scan.mask & ~scan.lesion & (scan.truth["f"] < 0.08)
            values.append(np.corrcoef(np.log(scan.truth["Dt"][muscle]), np.log(scan.truth["T2t"][muscle]))[0, 1])
        return np.array(values)

    more = correlations(0.8) - correlations(0.0)
    assert (more > 0).all()
    assert more.mean() > 0.3


def test_the_easy_preset_has_one_type_of_tumor_and_less_variation_between_patients():
    def spread(difficulty):
        scans = simulate_cohort(n_patients=16, shape=(16, 16, 2), difficulty=difficulty, random_state=0)
        return np.std([np.log(np.median(scan.truth["T2t"][scan.lesion])) for scan in scans])

    assert spread("easy") < 0.75 * spread("mixed")


def test_a_pelvis_has_urine_and_marrow_and_no_liver_and_the_noise_of_an_abdomen():
    scan = simulate_patient("cohort1", template="pelvis", difficulty="easy", seed=1)
    truth = {name: values[scan.mask] for name, values in scan.truth.items()}
    assert np.mean((truth["Dt"] > 2) & (truth["T2t"] > 120)) > 0.01  # the bladder
    assert np.mean((truth["Dt"] < 0.8) & (truth["S0"] < 0.7 * np.median(truth["S0"]))) > 0.01  # marrow
    assert np.mean(truth["Dv"] > 50) < 0.01
    def sigma(template):
        cohort = simulate_cohort(n_patients=30, shape=(16, 16, 2), template=template, gain_variation=0, random_state=1)
        return np.median([scan.sigma for scan in cohort])

    assert sigma("pelvis") == pytest.approx(sigma("abdomen"), rel=0.1)


def test_the_gain_varies_as_asked_and_changes_nothing_else():
    def gains(variation):
        cohort = simulate_cohort(
            n_patients=60, shape=(12, 12, 2), difficulty="easy", gain_variation=variation, random_state=2
        )
        return np.array([scan.sigma for scan in cohort])

    none, some = gains(0.0), gains(1.0)
    assert np.std(np.log(some / none)) == pytest.approx(np.sqrt(np.log(2)), rel=0.2)
    assert np.std(np.log(none)) < 0.3


def test_a_cohort_knows_how_it_was_made():
    cohort = simulate_cohort(
        "cohort2", 2, shape=SMALL, snr=np.inf, artifacts=("gibbs",), template="pelvis", random_state=9
    )
    made = cohort.simulation
    expected = {
        "difficulty": "mixed", "template": "pelvis", "snr": None, "field": 3.0, "latent_corr": 0.6, "seed": 9,
        "gain_variation": 0.25, "artifacts": {"gibbs": 0.2}, "shape": list(SMALL), "patient_variation": 2.0,
        "truth": "formula",
    }  # fmt: skip
    assert {key: made[key] for key in expected} == expected
    assert set(made["patients"]) == set(cohort.patients)
    assert len(made["tumor_types"]) == 5


@pytest.fixture(scope="module")
def walked():
    """A patient without noise, by the formula and by random walks."""
    options = {"shape": (32, 32, 4), "template": "abdomen", "snr": np.inf, "random_state": 5}
    return [simulate_cohort("cohort1", 1, truth=truth, **options) for truth in ("formula", "walk")]


def test_walks_make_the_same_patient_with_other_signals(walked):
    by_formula, by_walk = (cohort.scans[0] for cohort in walked)
    assert [cohort.simulation["truth"] for cohort in walked] == ["formula", "walk"]
    np.testing.assert_array_equal(by_walk.lesion, by_formula.lesion)
    for name in MODEL.names:
        same = by_walk.truth[name] == by_formula.truth[name]
        # K alone is limited to what was walked.
        assert same[by_walk.mask].mean() > (0.97 if name == "K" else 0.9999)
    assert not (by_walk.truth["K"] > by_formula.truth["K"] * (1 + 1e-6)).any()
    change = by_walk.signal[by_walk.mask] / by_formula.signal[by_walk.mask] - 1
    assert 0.005 < np.median(np.abs(change)) < 0.1
    assert np.abs(change[:, 0]).max() < 0.05  # b = 0


def test_fits_to_walks_find_f_dt_and_t2t_and_too_little_kurtosis(walked):
    scan = walked[1].scans[0]
    truth = {name: values[scan.lesion] for name, values in scan.truth.items()}
    result = fit_voxels(scan.signal[scan.lesion].astype(float), scan.protocol, MODEL, n_threads=1)
    bias = {name: np.median(result[name] / truth[name] - 1) for name in MODEL.names}
    assert abs(bias["f"]) < 0.25
    assert abs(bias["Dt"]) < 0.12
    assert abs(bias["T2t"]) < 0.04
    assert -0.4 < bias["K"] < 0
