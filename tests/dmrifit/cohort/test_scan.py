"""Scans of one patient: in memory or in files, on one grid, averaged over directions."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit import MODELS, Protocol, Scan
from dmrifit.cohort.scan import truth_names

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -20], [0, 0, 3, -10], [0, 0, 0, 1]])
SHAPE = (4, 5, 3)
PROTOCOL = Protocol([0, 500, 1000], te=80)


@pytest.fixture
def signal():
    decay = np.exp(-PROTOCOL.b / 1000)
    amplitudes = np.random.default_rng(0).uniform(50, 100, SHAPE)
    return (amplitudes[..., None] * decay).astype(np.float32)


@pytest.fixture
def mask():
    body = np.zeros(SHAPE, bool)
    body[1:, 1:] = True
    return body


@pytest.fixture
def save(tmp_path):
    """Write an image, and give its path."""

    def write(name, values, affine=AFFINE):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), path)
        return path

    return write


def test_names_that_no_file_can_have_are_refused_before_any_work():
    signal, mask, protocol = np.ones((2, 2, 2, 2)), np.ones((2, 2, 2), bool), Protocol([0, 1000])
    assert Scan("p" * 190, signal, protocol, mask, np.eye(4), cohort="c" * 10).patient == "p" * 190
    for patient in ("p" * 191, "ü" * 40):
        with pytest.raises(ValueError, match=r"too long for files, .* bytes as they are quoted"):
            Scan(patient, signal, protocol, mask, np.eye(4), cohort="c" * 10)


def test_a_scan_of_arrays_is_what_it_was_made_of(signal, mask):
    scan = Scan(7, signal, PROTOCOL, mask, AFFINE, cohort="north")
    assert (scan.patient, scan.cohort, scan.shape) == ("7", "north", SHAPE)
    np.testing.assert_array_equal(scan.signal, signal)
    np.testing.assert_array_equal(scan.mask, mask)
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert scan.protocol == scan.measured == PROTOCOL
    assert (scan.lesion, scan.sigma, scan.truth, scan.synthetic) == (None, None, None, False)


def test_the_name_of_a_scan_tells_patient_grid_and_whether_it_was_simulated(signal, mask):
    scan = Scan("p1", signal, PROTOCOL, mask, AFFINE)
    assert repr(scan) == f"<scan of patient 'p1', 4 × 5 × 3 voxels, {PROTOCOL!r}>"
    simulated = Scan("p1", signal, PROTOCOL, mask, AFFINE, synthetic=True)
    assert repr(simulated).startswith("<synthetic scan of patient 'p1'")


def test_a_scan_of_files_is_the_scan_of_their_arrays(signal, mask, save):
    lesion = mask & (signal[..., 0] > 75)
    sigma = np.full(SHAPE, 1.5, np.float32)
    scan = Scan(
        "p1",
        save("dwi", signal),
        PROTOCOL,
        str(save("body", mask.astype(np.uint8))),
        lesion=save("lesion", lesion.astype(np.uint8)),
        sigma=save("sigma", sigma),
    )
    assert scan.shape == SHAPE
    np.testing.assert_array_equal(scan.affine, AFFINE)
    for current in (scan, scan.loaded()):
        np.testing.assert_array_equal(current.signal, signal)
        np.testing.assert_array_equal(current.mask, mask)
        np.testing.assert_array_equal(current.lesion, lesion)
        np.testing.assert_array_equal(current.sigma, sigma)


def test_files_are_read_when_they_are_asked_for_and_loaded_scans_need_none(signal, mask, save):
    dwi = save("dwi", signal)
    scan = Scan("p1", dwi, PROTOCOL, save("body", mask.astype(np.uint8)))
    loaded = scan.loaded()
    save("dwi", 2 * signal)
    np.testing.assert_array_equal(scan.signal, 2 * signal)
    dwi.unlink()
    np.testing.assert_array_equal(loaded.signal, signal)
    with pytest.raises(FileNotFoundError):
        _ = scan.signal


def test_loading_keeps_everything(signal, mask):
    truth = {"Dt": signal[..., 0]}
    options = {"cohort": "north", "sigma": 2, "truth": truth, "synthetic": True, "lesion": mask}
    loaded = Scan("p1", signal, PROTOCOL, mask, AFFINE, **options).loaded()
    assert (loaded.patient, loaded.cohort, loaded.sigma) == ("p1", "north", 2.0)
    assert loaded.synthetic
    assert loaded.protocol == PROTOCOL
    np.testing.assert_array_equal(loaded.truth["Dt"], truth["Dt"])
    np.testing.assert_array_equal(loaded.lesion, mask)
    np.testing.assert_array_equal(loaded.affine, AFFINE)


def test_maps_may_have_a_fourth_axis_of_one(signal, mask, save):
    body = save("body", mask[..., None].astype(np.uint8))
    sigma = np.ones((*SHAPE, 1))
    scan = Scan("p1", signal, PROTOCOL, body, AFFINE, sigma=sigma, lesion=mask[..., None])
    np.testing.assert_array_equal(scan.mask, mask)
    np.testing.assert_array_equal(scan.lesion, mask)
    assert scan.sigma.shape == SHAPE


def test_an_empty_lesion_is_none_and_an_empty_body_an_error(signal, mask):
    empty = np.zeros(SHAPE)
    scan = Scan("p1", signal, PROTOCOL, mask, AFFINE, lesion=empty)
    assert scan.lesion is None
    assert scan.region("lesion") is None
    with pytest.raises(ValueError, match="body mask of patient p1: no voxel is inside"):
        _ = Scan("p1", signal, PROTOCOL, empty, AFFINE).mask


def test_masks_are_asked_for_by_name(signal, mask):
    lesion = mask & (np.arange(4) == 2)[:, None, None]
    scan = Scan("p1", signal, PROTOCOL, mask, AFFINE, lesion=lesion)
    np.testing.assert_array_equal(scan.region("body"), mask)
    np.testing.assert_array_equal(scan.region("lesion"), lesion)
    with pytest.raises(ValueError, match="a mask is 'body' or 'lesion', not 'tumor'"):
        scan.region("tumor")


@pytest.mark.parametrize(
    ("average", "mean"),
    [("geometric", lambda s: np.exp(np.log(s).mean(-1))), ("arithmetic", lambda s: s.mean(-1))],
)
def test_measurements_of_about_one_b_value_are_averaged(mask, average, mean):
    b = np.array([0, 999.2, 1000, 0.5, 1000, 500])
    values = np.random.default_rng(1).uniform(10, 90, (*SHAPE, 6))
    measured = Protocol(b, te=80)
    scan = Scan("p1", values, measured, mask, AFFINE, average=average)
    assert len(scan.protocol) == 3
    np.testing.assert_allclose(scan.protocol.b, [0, 500, 1000], atol=1)
    assert scan.measured == measured
    for contrast, volumes in enumerate(([0, 3], [5], [1, 2, 4])):
        order = np.argsort(scan.protocol.b)[contrast]
        np.testing.assert_allclose(scan.signal[..., order], mean(values[..., volumes]), rtol=1e-6)
    # What is loaded is averaged already, and is not again.
    loaded = scan.loaded()
    assert loaded.measured == scan.protocol
    np.testing.assert_array_equal(loaded.signal, scan.signal)


def test_b_values_further_apart_are_different_contrasts(signal, mask):
    protocol = Protocol([0, 500, 502.1], te=80)
    assert len(Scan("p1", signal, protocol, mask, AFFINE, average="geometric").protocol) == 3


def test_true_maps_of_a_file_have_the_names_of_the_model(signal, mask, save):
    names = MODELS["t2-ivim-kurtosis"].names
    assert truth_names() == names == ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
    maps = np.random.default_rng(2).random((*SHAPE, 7)).astype(np.float32)
    scan = Scan("p1", signal, PROTOCOL, mask, AFFINE, truth=save("truth", maps))
    assert list(scan.truth) == list(names)
    np.testing.assert_array_equal(scan.truth["K"], maps[..., 5])
    with pytest.raises(
        ValueError, match=r"4 × 5 × 3 × 6 values; true maps are 7 volumes .* S0, f, Dv"
    ):
        Scan("p1", signal, PROTOCOL, mask, AFFINE, truth=save("few", maps[..., :6]))


def test_the_affine_and_the_true_maps_that_are_given_out_are_copies(signal, mask):
    scan = Scan("p1", signal, PROTOCOL, mask, AFFINE, truth={"K": signal[..., 0]})
    scan.affine[0, 3] = 99
    scan.truth.clear()
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert list(scan.truth) == ["K"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"signal": np.ones(SHAPE)},
            r"signals of patient p1 is 3-D \(4 × 5 × 3\); a 4-D image is needed",
        ),
        ({"signal": np.ones((*SHAPE, 2))}, "4 × 5 × 3 × 2 values .* each of the 3 measurements"),
        ({"mask": np.ones((4, 5, 1))}, r"body mask of patient p1 has 4 × 5 × 1 voxels"),
        ({"mask": np.ones((*SHAPE, 2))}, "body mask of patient p1 has 4 × 5 × 3 × 2"),
        ({"lesion": np.ones((4, 4, 3))}, "lesion mask of patient p1 has 4 × 4 × 3"),
        ({"sigma": np.ones((4, 5))}, "sigma map of patient p1 has 4 × 5 voxels"),
        ({"sigma": -0.5}, r"sigma .* must be finite, 0 or more, not -0\.5"),
        ({"sigma": np.nan}, "must be finite, 0 or more, not nan"),
        ({"truth": {"K": np.ones((4, 5, 4))}}, "true map of K of patient p1 has 4 × 5 × 4"),
        ({"truth": {"K": np.ones((*SHAPE, 1))}}, "true map of K of patient p1"),
        ({"affine": None}, "signals given as an array need the affine"),
        ({"affine": np.eye(3)}, r"matrix \(4, 4\) that places voxels in mm"),
        ({"affine": np.diag([2.0, 2, 0, 1])}, "places voxels in mm"),
        ({"affine": np.diag([2.0, 2, np.inf, 1])}, "patient p1: the affine"),
        ({"affine": np.diag([2.0, 2, 2e6, 1])}, "places voxels in mm"),
    ],
)
def test_arrays_that_make_no_scan_are_named(signal, mask, change, message):
    parts = {"signal": signal, "protocol": PROTOCOL, "mask": mask, "affine": AFFINE} | change
    with pytest.raises(ValueError, match=message):
        Scan("p1", **parts)


def test_files_on_other_grids_are_named(signal, mask, save):
    dwi = save("dwi", signal)
    moved = AFFINE.copy()
    moved[2, 3] += 1
    body = save("body", mask.astype(np.uint8), moved)
    with pytest.raises(
        ValueError, match=r"body\.nii\.gz and .*dwi\.nii\.gz both have 4 × 5 × 3 .* 1 mm"
    ):
        Scan("p1", dwi, PROTOCOL, body)
    # A file rounds its affine: a hundredth of a voxel is no other place.
    moved[2, 3] = AFFINE[2, 3] + 0.02
    assert (
        Scan("p1", dwi, PROTOCOL, save("near", mask.astype(np.uint8), moved)).mask.sum()
        == mask.sum()
    )


def test_an_affine_that_is_given_stands_for_that_of_the_file(signal, mask, save):
    shifted = AFFINE.copy()
    shifted[0, 3] = 0
    dwi = save("dwi", signal)
    np.testing.assert_array_equal(Scan("p1", dwi, PROTOCOL, mask, shifted).affine, shifted)
    with pytest.raises(ValueError, match="corners lie up to 30 mm"):
        Scan("p1", dwi, PROTOCOL, save("body", mask.astype(np.uint8)), shifted)


def test_signals_without_noise_are_averaged_like_those_with_it(mask, save):
    values = np.random.default_rng(3).uniform(10, 90, (*SHAPE, 3)).astype(np.float32)
    protocol = Protocol([0, 800, 800], te=80)
    scan = Scan("p1", values, protocol, mask, AFFINE, noise_free=save("clean", values), average="geometric")
    assert scan.has_noise_free
    np.testing.assert_array_equal(scan.noise_free, scan.signal)
    # The noise of an average is not that of one measurement.
    assert scan.loaded().noise_free is None
    apart = Protocol([0, 500, 800], te=80)
    single = Scan("p1", values, apart, mask, AFFINE, noise_free=values, average="geometric")
    np.testing.assert_array_equal(single.loaded().noise_free, single.signal)
    assert Scan("p1", values, protocol, mask, AFFINE).noise_free is None
    with pytest.raises(ValueError, match=r"noise-free signals of patient p1: .* one noise-free value for each"):
        Scan("p1", values, protocol, mask, AFFINE, noise_free=values[..., :2])
