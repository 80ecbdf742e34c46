"""Voxels of a comparison: read, scaled, fitted and described once, for training and for tests."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from dmrifit.cohort.cohort import Cohort
from dmrifit.cohort.scan import Scan
from dmrifit.engine.fitting import fit_voxels
from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.predict.strategies import SignalToSignal
from dmrifit.study.contestants import Entrant, View
from dmrifit.study.study_folder import Settings
from dmrifit.study.voxel_bank import Bank, Stack, _anatomy

ADC = MODELS["adc"]
FULL = Protocol([0, 50, 100, 400, 900, 1500])
CLINICAL = FULL.take([0, 1, 2, 3, 4])
VIEW = View(CLINICAL, FULL, None, ADC)
GRID = 4, 3, 2
AFFINE = np.diag([2.0, 2, 4, 1])


def make_scan(patient, seed, *, gain=100.0, protocol=FULL, spoil=None, with_lesion=True, with_truth=False):
    """Make a noiseless scan of 23 body voxels, of which six are a lesion."""
    rng = np.random.default_rng(seed)
    parameters = np.column_stack([gain * rng.uniform(0.5, 1.5, 24), rng.uniform(0.5, 2.5, 24)])
    signal = ADC.signal(parameters, protocol).reshape(*GRID, len(protocol))
    body = np.ones(GRID, bool)
    body[0, 0, 0] = False
    lesion = np.zeros(GRID, bool)
    lesion[1:, 1:, 1] = True
    if spoil is not None:
        spoil(signal)
    truth = {name: parameters[:, i].reshape(GRID) for i, name in enumerate(ADC.names)}
    options = {"lesion": lesion if with_lesion else None, "truth": truth if with_truth else None}
    return Scan(patient, signal, protocol, body, AFFINE, **options)


def make_bank(cohorts, *, views=(VIEW,), seen=None, lent=None, **options):
    named = {cohort.name: cohort for cohort in cohorts}
    everywhere = dict.fromkeys(named, views)
    return Bank(named, seen or everywhere, lent or everywhere, Settings(cohorts={}, train_on=[], **options))


def entrant(estimator, name="x s2s"):
    return Entrant.of(name, estimator, kept=False, example=FULL)


class Own(BaseEstimator):
    """An estimator of a user's own, which sees signals as they are."""

    def __init__(self, model="adc"):
        self.model = model

    def fit(self, X, Y):
        return self

    predict = predict_maps = fit


@pytest.fixture(scope="module")
def scans():
    return [make_scan(f"p{i}", i, gain=10.0**i) for i in range(3)]


@pytest.fixture(scope="module")
def bank(scans):
    return make_bank([Cohort(scans, "A")])


def test_lesions_are_tested_whole_on_the_scale_of_each_patient(bank, scans):
    for scan, test in zip(scans, bank.tests(VIEW, ["p0", "p1", "p2"]), strict=True):
        unit = np.percentile(scan.signal[scan.mask][:, 0], 95)
        expected = scan.signal[scan.lesion] / unit
        assert (test.cohort, test.patient, test.shape) == ("A", scan.patient, GRID)
        np.testing.assert_allclose(test.Y, expected)
        np.testing.assert_allclose(test.X, expected[:, :5])
        np.testing.assert_array_equal(test.index[:, 1:], np.argwhere(scan.lesion))
        np.testing.assert_array_equal(test.affine, AFFINE)
        assert test.shown.all()


def test_the_share_at_a_bound_counts_fitted_voxels():
    def spoil(signal):
        # Rising signals give ADC at its lower bound; without signal nothing is fitted.
        signal[1, 1, 1] = signal[2, 1, 1] = np.linspace(50, 70, 6)
        signal[3, 1, 1] = 0.0

    bank = make_bank([Cohort([make_scan("p", 0, spoil=spoil), make_scan("q", 1)], "A")])
    (test,) = bank.tests(VIEW, ["p"])
    assert ADC.parameters[1].low == 0
    np.testing.assert_allclose(test.at_bound, [0, 2 / 5])


def test_the_truth_stands_on_the_scale_of_the_signals_and_belongs_to_its_model():
    scans = [make_scan(name, i, with_truth=True) for i, name in enumerate("pq")]
    kurtosis = View(CLINICAL, FULL, None, MODELS["kurtosis"])
    bank = make_bank([Cohort(scans, "A")], views=(VIEW, kurtosis))
    (test,) = bank.tests(VIEW, ["p"])
    unit = np.percentile(scans[0].signal[scans[0].mask][:, 0], 95)
    np.testing.assert_allclose(test.truth[:, 0], scans[0].truth["S0"][scans[0].lesion] / unit)
    np.testing.assert_allclose(test.truth[:, 1], scans[0].truth["ADC"][scans[0].lesion])
    assert bank.tests(kurtosis, ["p"])[0].truth is None


def test_an_estimator_of_a_users_own_sees_signals_as_they_are():
    voxels = {}
    for i, name in enumerate("pq"):
        X, Y = np.full((2 + i, 5), float(i)), np.full((2 + i, 6), 10.0 + i)
        voxels[name] = X, Y, np.zeros((2 + i, 2))
    stack = Stack.of(entrant(Own()), VIEW, voxels)
    assert stack.rows == {"p": slice(0, 2), "q": slice(2, 5)}
    assert stack.arrays[0][:, 0].tolist() == [0, 0, 1, 1, 1]
    assert stack.arrays[1][:, 0].tolist() == [10, 10, 11, 11, 11]
    assert stack.n_dropped == {}


def test_voxels_and_references_that_cannot_be_used_name_their_patient():
    voxels = {"p": (np.ones((3, 4)), np.ones((3, 6)), np.ones((3, 2)))}
    with pytest.raises(ValueError, match=r"estimator 'x s2s', patient p: X of shape \(3, 4\)"):
        Stack.of(entrant(SignalToSignal("LR", model="adc")), VIEW, voxels)
    # Two contrasts do not determine the three parameters of kurtosis.
    view = View(FULL.take([0]), FULL.take([0, 1]), None, MODELS["kurtosis"])
    with pytest.raises(ValueError, match=r"the reference of patient p \(cohort 'A'\) cannot be fitted"):
        make_bank([Cohort([make_scan("p", 0)], "A")], views=(view,))


def test_voxels_with_a_gap_are_left_out_and_patients_without_any_other_too():
    def holes(signal):
        signal[1, 0, 0, 5], signal[2, 0, 0, 1] = np.nan, np.inf

    def nothing(signal):
        signal[..., 3] = np.nan

    scans = [make_scan("p", 0, spoil=holes), make_scan("q", 1, spoil=nothing), make_scan("r", 2)]
    bank = make_bank([Cohort(scans, "A")], score_mask="body")
    assert bank.trainable["A"] == ["p", "r"]
    stack = bank.material(entrant(SignalToSignal("LR", model="adc")), VIEW, 0)
    assert stack.rows["p"] == slice(0, 21)
    # A gap in a source that is no target counts too.
    view = View(FULL.take([0, 1]), FULL.take([0, 3, 4]), None, ADC)
    stack = make_bank([Cohort([scans[0], scans[2]], "A")], views=(view,)).material(entrant(Own()), view, 0)
    assert stack.rows == {"p": slice(0, 22), "r": slice(22, 45)}
    assert np.isfinite(stack.arrays[0]).all()


def test_drawn_voxels_are_counted_and_repeats_draw_others(scans):
    bank = make_bank([Cohort(scans, "A")], max_voxels=5, n_repeats=2)
    estimator = entrant(SignalToSignal("LR", model="adc"))
    first, second = (bank.material(estimator, VIEW, repeat).arrays[0] for repeat in (0, 1))
    assert len(first) == len(second) == 3 * 5
    assert not np.array_equal(first, second)
    again = make_bank([Cohort(scans, "A")], max_voxels=5, n_repeats=2)
    np.testing.assert_array_equal(again.material(estimator, VIEW, 1).arrays[0], second)
    reseeded = make_bank([Cohort(scans, "A")], max_voxels=5, n_repeats=2, seed=1)
    assert not np.array_equal(reseeded.material(estimator, VIEW, 0).arrays[0], first)


def test_digests_follow_the_data_of_each_patient(bank, scans):
    digest = bank.digest(VIEW, 0, ["p0", "p1"], ["p2"])
    assert [len(texts) for texts in digest] == [4, 1]  # the constants of p2 are learned from p0 and p1, too
    (alone,), _ = bank.digest(VIEW, 0, ["p1"], [])
    assert alone == digest[0][1] != digest[0][0]

    def spoil(signal):
        signal[1, 1, 1, 5] *= 1.5

    changed = make_bank([Cohort([scans[0], make_scan("p1", 1, gain=10.0, spoil=spoil), scans[2]], "A")])
    assert changed.digest(VIEW, 0, ["p0"], []) == bank.digest(VIEW, 0, ["p0"], [])
    assert changed.digest(VIEW, 0, ["p0"], ["p2"]) != bank.digest(VIEW, 0, ["p0"], ["p2"])
    train, test = changed.digest(VIEW, 0, ["p1"], ["p1"])
    before = bank.digest(VIEW, 0, ["p1"], ["p1"])
    assert (train != before[0], test != before[1]) == (True, True)


def test_constants_are_learned_from_the_rest_of_a_cohort_or_from_other_cohorts(scans):
    bank = make_bank([Cohort(scans[:2], "A"), Cohort(scans[2:], "B")])
    for patient, others in (("p0", ["p1"]), ("p1", ["p0"]), ("p2", ["p0", "p1"])):
        adc = np.concatenate([bank._voxels[VIEW, 0][other][2][:, 1] for other in others])
        best = adc[np.argmin([(np.abs(value - adc) / adc).sum() for value in adc])]
        assert bank.constants(VIEW, 0, patient).relative[1] == best


def test_contrasts_that_a_lent_patient_lacks_are_computed_through_the_model():
    longer = Protocol([*FULL.b, 2500])
    view = View(CLINICAL, longer, None, ADC)
    near = Cohort([make_scan("p", 0, protocol=longer), make_scan("q", 1, protocol=longer)], "A")
    far = Cohort([make_scan("r", 2)], "B")
    bank = make_bank([near, far], seen={"A": [view], "B": []}, lent={"A": [], "B": [view]})
    assert (bank.trainable, bank.testable["A"]) == ({"A": ["p", "q"], "B": ["r"]}, ["p", "q"])
    targets = bank.material(entrant(SignalToSignal("LR", model="adc")), view, 0).arrays[1]
    truth = make_scan("r", 2, protocol=longer)
    body = truth.signal[truth.mask]
    np.testing.assert_allclose(targets, body / np.percentile(body[:, 0], 95), rtol=1e-4)


def test_a_second_draw_of_the_noise_shares_nothing_with_the_first():
    rng = np.random.default_rng(3)
    clean = ADC.signal(np.column_stack([rng.uniform(50, 150, 900), rng.uniform(0.5, 2.5, 900)]), FULL)
    noisy = np.hypot(clean + rng.normal(0, 4, clean.shape), rng.normal(0, 4, clean.shape))
    region = np.ones((30, 30, 1), bool)
    images = [values.reshape(30, 30, 1, 6) for values in (noisy, clean)]
    scan = Scan("p", images[0], FULL, region, AFFINE, lesion=region, sigma=4.0, noise_free=images[1])
    bank = make_bank([Cohort([scan], "A")])
    assert bank.repeated == {"A": True}
    (test,) = bank.tests(VIEW, ["p"])
    scale = np.percentile(noisy[:, 0], 95)
    np.testing.assert_allclose(test.repeat.noise_free, clean / scale, rtol=1e-12)
    # At b = 0 the signal is so far above the noise that Rician noise is normal.
    first, second = (noisy - clean)[:, 0] / scale, (test.repeat.signals - clean / scale)[:, 0]
    assert np.std(second) * scale == pytest.approx(4, rel=0.1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    np.testing.assert_array_equal(test.repeat.reference, fit_voxels(test.repeat.signals, FULL, ADC).parameters)
    again = make_bank([Cohort([scan], "A")]).tests(VIEW, ["p"])[0]
    np.testing.assert_array_equal(again.repeat.signals, test.repeat.signals)
    other = make_bank([Cohort([scan], "A")], seed=1).tests(VIEW, ["p"])[0]
    assert not np.array_equal(other.repeat.signals, test.repeat.signals)


def test_without_noise_free_signals_of_single_measurements_and_their_level_of_noise_nothing_is_drawn_again(scans):
    bank = make_bank([Cohort(scans, "A")])
    assert bank.repeated == {"A": False}
    assert bank.tests(VIEW, ["p0"])[0].repeat is None
    values = scans[0].signal
    silent = Scan("p0", values, FULL, scans[0].mask, AFFINE, lesion=scans[0].lesion, noise_free=values)
    assert make_bank([Cohort([silent], "A")]).repeated == {"A": False}
    # The noise of an average is not that of one measurement.
    twice = FULL.take(np.repeat(np.arange(6), 2))
    values = np.repeat(values, 2, axis=-1)
    options = {"lesion": scans[0].lesion, "sigma": 4.0, "noise_free": values, "average": "geometric"}
    averaged = Scan("p0", values, twice, scans[0].mask, AFFINE, **options)
    bank = make_bank([Cohort([averaged], "A")])
    assert bank.repeated == {"A": False}
    assert bank.tests(VIEW, ["p0"])[0].repeat is None


def test_the_image_below_the_maps_is_that_of_the_least_b_in_gray_levels(scans):
    anatomy = make_bank([Cohort(scans, "A")]).anatomies["p0"]
    plain = scans[0].signal[..., 0]
    white = np.percentile(plain[scans[0].mask], 99.5)
    np.testing.assert_array_equal(anatomy, np.clip(255 * plain / white, 0, 255).astype(np.uint8))
    dark = Scan("p0", np.zeros((*GRID, len(FULL))), FULL, scans[0].mask, AFFINE, lesion=scans[0].lesion)
    assert not _anatomy(dark).any()
