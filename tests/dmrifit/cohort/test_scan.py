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


def make_scan(signal, mask, **options):
    return Scan("p1", signal, PROTOCOL, mask, AFFINE, **options)


def test_a_scan_of_arrays_is_what_it_was_made_of_and_gives_copies(signal, mask):
    scan = Scan(7, signal, PROTOCOL, mask, AFFINE, cohort="north", truth={"K": signal[..., 0]})
    assert (scan.patient, scan.cohort, scan.shape) == ("7", "north", SHAPE)
    scan.affine[0, 3] = 99
    scan.truth.clear()
    np.testing.assert_array_equal(scan.affine, AFFINE)
    assert list(scan.truth) == ["K"]
    assert scan.protocol == scan.measured == PROTOCOL
    assert (scan.lesion, scan.sigma, scan.synthetic) == (None, None, False)
    assert repr(scan) == f"<scan of patient '7', 4 × 5 × 3 voxels, {PROTOCOL!r}>"
    simulated = make_scan(signal, mask[..., None], lesion=mask[..., None], sigma=np.ones((*SHAPE, 1)), synthetic=True)
    assert repr(simulated).startswith("<synthetic scan of patient 'p1'")
    apart = Scan("p1", signal, Protocol([0, 500, 502.1], te=80), mask, AFFINE, average="geometric")
    assert len(apart.protocol) == 3
    for name in ("body", "lesion"):
        np.testing.assert_array_equal(simulated.region(name), mask)
    assert simulated.sigma.shape == SHAPE


def test_a_scan_of_files_is_the_scan_of_their_arrays(signal, mask, save):
    lesion = mask & (signal[..., 0] > 75)
    maps = np.random.default_rng(2).random((*SHAPE, 7)).astype(np.float32)
    files = {"lesion": save("lesion", lesion.astype(np.uint8)), "sigma": save("sigma", np.full(SHAPE, 1.5, np.float32))}
    options = files | {"truth": save("truth", maps), "cohort": "north", "synthetic": True}
    scan = Scan("p1", save("dwi", signal), PROTOCOL, str(save("body", mask.astype(np.uint8))), **options)
    names = MODELS["t2-ivim-kurtosis"].names
    assert truth_names() == names == ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
    for current in (scan, scan.loaded()):
        assert (current.patient, current.cohort, current.synthetic, current.shape) == ("p1", "north", True, SHAPE)
        assert list(current.truth) == list(names)
        for values, expected in (
            (current.signal, signal), (current.mask, mask), (current.lesion, lesion), (current.affine, AFFINE),
            (current.truth["K"], maps[..., 5]), (current.sigma, np.full(SHAPE, 1.5)),
        ):  # fmt: skip
            np.testing.assert_array_equal(values, expected)


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


@pytest.mark.parametrize(
    ("average", "mean"), [("geometric", lambda s: np.exp(np.log(s).mean(-1))), ("arithmetic", lambda s: s.mean(-1))]
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


def test_a_name_may_be_as_long_as_files_allow_and_an_empty_lesion_is_none(signal, mask):
    options = {"lesion": np.zeros(SHAPE), "cohort": "c" * 10}
    longest = Scan("p" * 190, signal, PROTOCOL, mask, AFFINE, **options)
    assert longest.lesion is longest.region("lesion") is None


def test_files_on_other_grids_are_named(signal, mask, save):
    dwi, body = save("dwi", signal), mask.astype(np.uint8)
    moved, shifted = AFFINE.copy(), AFFINE.copy()
    moved[2, 3], shifted[0, 3] = AFFINE[2, 3] + 1, 0
    with pytest.raises(ValueError, match=r"body\.nii\.gz and .*dwi\.nii\.gz both have 4 × 5 × 3 .* 1 mm"):
        Scan("p1", dwi, PROTOCOL, save("body", body, moved))
    # A file rounds its affine: a hundredth of a voxel is no other place.
    moved[2, 3] = AFFINE[2, 3] + 0.02
    assert Scan("p1", dwi, PROTOCOL, save("near", body, moved)).mask.sum() == mask.sum()
    # An affine that is given stands for that of the file.
    np.testing.assert_array_equal(Scan("p1", dwi, PROTOCOL, mask, shifted).affine, shifted)
    with pytest.raises(ValueError, match="corners lie up to 30 mm"):
        Scan("p1", dwi, PROTOCOL, save("body", body), shifted)
    with pytest.raises(ValueError, match=r"4 × 5 × 3 × 6 values; true maps are 7 volumes .* S0, f, Dv"):
        make_scan(signal, mask, truth=save("few", np.ones((*SHAPE, 6))))


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
    assert make_scan(values, mask).noise_free is None
