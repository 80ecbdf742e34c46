"""Synthetic patients: known truth, honest noise, streams that do not depend on each other."""

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes

from dmrifit import MODELS, Protocol, simulate_cohort
from dmrifit.phantoms import simulate_patient, tissue_table

MODEL = MODELS["t2-ivim-kurtosis"]
SMALL = (24, 24, 4)


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("cohort1", 3, shape=SMALL, random_state=5)


def test_a_patient_does_not_depend_on_how_many_others_there_are(cohort):
    more = simulate_cohort("cohort1", 5, shape=SMALL, random_state=5)
    for one, other in zip(cohort, more, strict=False):
        assert one.patient == other.patient
        assert one.signal.tobytes() == other.signal.tobytes()


def test_seeds_and_cohort_names_make_different_patients(cohort):
    other_seed = simulate_cohort("cohort1", 1, shape=SMALL, random_state=6).scans[0]
    other_name = simulate_cohort("cohort1", 1, shape=SMALL, name="elsewhere", random_state=5).scans[0]
    first = cohort.scans[0]
    for other in (other_seed, other_name, cohort.scans[1]):
        assert np.corrcoef(first.truth["K"][first.mask], other.truth["K"][first.mask])[0, 1] < 0.9


def test_noiseless_signals_away_from_edges_are_those_of_the_true_parameters():
    scan = simulate_patient(Protocol.preset("cohort2"), shape=SMALL, field=3.0, snr=np.inf, seed=1)
    parameters = np.stack([scan.truth[name][scan.mask] for name in MODEL.names], axis=1)
    expected = MODEL.signal(parameters, scan.protocol)
    error = np.abs(scan.signal[scan.mask] / expected - 1).max(axis=1)
    # Voxels of one tissue agree to single precision; the rest are mixtures, which have no exact parameters.
    assert np.mean(error < 1e-4) > 0.6
    assert np.median(error[error > 1e-4]) < 0.2


def test_true_parameters_lie_inside_the_bounds_of_the_fit_and_before_the_turn_of_the_cumulant(cohort):
    for scan in cohort:
        for parameter in MODEL.parameters[1:]:
            values = scan.truth[parameter.name][scan.mask]
            assert values.min() >= parameter.low * (1 - 1e-6)
            assert values.max() <= parameter.high * (1 + 1e-6)
        b = scan.protocol.b_ms_per_um2.max()
        assert (scan.truth["K"][scan.mask] * b * scan.truth["Dt"][scan.mask] < 3).all()


def test_background_noise_is_rayleigh_with_the_sigma_of_the_scan(cohort):
    for scan in cohort:
        background = np.concatenate(
            [scan.signal[i, j].ravel() for i in (0, 1, -2, -1) for j in (0, 1, -2, -1)]
        )
        assert np.median(background) == pytest.approx(scan.sigma * np.sqrt(2 * np.log(2)), rel=0.05)


def test_the_noise_follows_the_asked_signal_to_noise_ratio():
    quiet, loud = (simulate_cohort(n_patients=1, shape=SMALL, snr=snr, random_state=2) for snr in (60, 20))
    assert loud.scans[0].sigma == pytest.approx(3 * quiet.scans[0].sigma)


def test_every_patient_has_a_tumor_inside_the_body_even_in_small_images():
    for shape in ((12, 12, 2), (20, 30, 3)):
        for scan in simulate_cohort(n_patients=12, shape=shape, random_state=0):
            assert scan.lesion.any()
            assert not (scan.lesion & ~scan.mask).any()
            assert scan.shape == shape


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
    def correlation(latent_corr):
        scan = simulate_patient(Protocol.preset("cohort1"), snr=np.inf, latent_corr=latent_corr, seed=4)
        muscle = scan.mask & ~scan.lesion & (scan.truth["f"] < 0.08)
        return np.corrcoef(np.log(scan.truth["Dt"][muscle]), np.log(scan.truth["T2t"][muscle]))[0, 1]

    assert correlation(0.8) > correlation(0.0) + 0.3


def test_the_easy_preset_has_one_type_of_tumor_and_less_variation_between_patients():
    def spread(difficulty):
        scans = simulate_cohort(n_patients=16, shape=(16, 16, 2), difficulty=difficulty, random_state=0)
        return np.std([np.log(np.median(scan.truth["T2t"][scan.lesion])) for scan in scans])

    assert spread("easy") < 0.75 * spread("mixed")


def test_every_row_of_the_tissue_table_has_its_source():
    table = tissue_table()
    assert {"tissue", "tumor_type", "field", "variation", "latent", "limit"} == set(table)
    assert len(table["tumor_type"]) == 5
    with pytest.raises(ValueError, match="read-only"):
        table["tissue"]["liver"][0] = 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"difficulty": "hard"}, "mixed"),
        ({"n_patients": 0}, "at least one"),
        ({"shape": (8, 8, 1)}, "12, 12, 2"),
        ({"field": 7.0}, "1.5, 3"),
        ({"snr": -1.0}, "positive"),
        ({"latent_corr": 1.5}, "between 0 and 1"),
        ({"protocol": Protocol([0, 100])}, "echo times"),
        ({"protocol": "cohort3"}, "cohort1, cohort2"),
        ({"random_state": -1}, "negative"),
    ],
)
def test_impossible_cohorts_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_cohort(**{"n_patients": 1, "shape": SMALL, **arguments})
