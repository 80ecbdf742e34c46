"""From a user's series to the array of a detector, and back."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.ndimage import binary_erosion

from anomaly.scans.directions import directions_on_grid, resample_directions
from anomaly.scans.preparation import diffusion_maps, estimate_tissue, prepare_scan, relabel_tissue
from anomaly.simulate.persons import spread_directions
from dmrifit.engine.protocol import Protocol

RAS = axcodes2ornt("RAS")


def directions_in_file(directions, affine):
    """Convert directions of a grid in RAS order to FSL's convention; both are turned by a matrix."""
    return directions @ directions_on_grid(np.eye(3), affine).T


class Head:
    """A synthetic head: an ellipsoid of tissue whose fibers run along x, with a ventricle and air around."""

    shape = (22, 26, 20)

    def __init__(self, n=20, b=1000.0, n_plain=2, spacing=4.0):
        self.directions, self.b = spread_directions(n), b
        self.affine = np.diag([spacing] * 3 + [1.0])
        self.affine[:3, 3] = (-40, -50, -30)
        x, y, z = np.meshgrid(*(np.arange(m) - (m - 1) / 2 for m in self.shape), indexing="ij")
        self.brain = (x / 8) ** 2 + (y / 10) ** 2 + (z / 7) ** 2 < 1
        self.fluid = (x / 2.5) ** 2 + (y / 4) ** 2 + (z / 2.5) ** 2 < 1
        white = self.brain & ~self.fluid & (np.abs(x) < 5)
        self.tissue = np.where(self.fluid, 3, np.where(white, 1, 2 * self.brain)).astype(np.uint8)
        tensors = {1: (1.6, 0.35, 0.35), 2: (0.8, 0.8, 0.8), 3: (3.0, 3.0, 3.0)}
        self.signal = np.zeros((*self.shape, n), np.float32)
        for number, tensor in tensors.items():
            self.signal[self.tissue == number] = np.exp(-b / 1000 * (self.directions**2 @ np.array(tensor)))
        self.b0 = np.where(self.brain, 700 + 20 * x + 10 * y, 5).astype(np.float32)
        self.plain = np.stack([self.b0 * (1 + 0.02 * i) for i in range(n_plain)], axis=-1)
        weighted = np.where(self.brain[..., None], self.b0[..., None] * (1 + 0.01 * (n_plain - 1)) * self.signal, 4)
        # Volumes without weighting are not always the first.
        series = [self.plain[..., :1], weighted, self.plain[..., 1:]]
        self.series = np.concatenate(series, axis=-1).astype(np.float32)
        self.bvec = np.concatenate([np.zeros((1, 3)), self.directions, np.zeros((n_plain - 1, 3))])
        self.bval = np.concatenate([[0.0], np.full(n, b), np.full(n_plain - 1, 5.0)])

    def stored(self, values, codes="RAS"):
        """Give a volume as an image of another orientation."""
        turn = ornt_transform(RAS, axcodes2ornt(tuple(codes)))
        values = values.astype(np.uint8) if values.dtype == bool else values
        return nib.Nifti1Image(apply_orientation(values, turn), self.affine @ inv_ornt_aff(turn, self.shape))

    def write(self, folder, codes="RAS"):
        """Write series, b-values and directions as FSL does."""
        image = self.stored(self.series, codes)
        nib.save(image, folder / "dwi.nii.gz")
        np.savetxt(folder / "dwi.bval", self.bval[None], fmt="%g")
        np.savetxt(folder / "dwi.bvec", directions_in_file(self.bvec, image.affine).T)
        return folder / "dwi.nii.gz"

    @property
    def protocol(self):
        return Protocol(self.bval, directions=directions_in_file(self.bvec, self.affine))

    def prepare(self, series=None, protocol=None, **options):
        """Prepare the series, or another one on its grid, with the mask of the brain unless told otherwise."""
        image = nib.Nifti1Image(self.series if series is None else series, self.affine)
        return prepare_scan(image, protocol or self.protocol, **({"mask": self.stored(self.brain)} | options))


@pytest.fixture(scope="module")
def head():
    return Head()


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PLS", "IRP"])
def test_one_call_gives_the_known_signals_however_the_file_is_stored(tmp_path, head, codes):
    path = head.write(tmp_path, codes)
    nib.save(head.stored(head.brain, codes), tmp_path / "mask.nii.gz")
    nib.save(head.stored(head.tissue, codes), tmp_path / "tissue.nii.gz")
    scan = prepare_scan(path, mask=tmp_path / "mask.nii.gz", tissue=tmp_path / "tissue.nii.gz", age=40)
    case = scan.case
    np.testing.assert_allclose(case.signal, head.signal, atol=2e-6)
    np.testing.assert_array_equal(case.brain, head.brain)
    np.testing.assert_array_equal(case.tissue, head.tissue)
    np.testing.assert_allclose(case.b0, head.plain.mean(axis=-1) * head.brain, rtol=1e-6)
    np.testing.assert_allclose(case.affine, head.affine)
    np.testing.assert_allclose(scan.protocol.directions, head.directions, atol=1e-12)
    assert (case.signal.dtype, case.patient, case.age, case.b) == (np.float32, "dwi", 40, 1000)
    assert (scan.notes["b0_volumes"], scan.notes["directions"]) == (2, 20)
    np.testing.assert_array_equal(case.scored, head.brain & ~head.fluid)


@pytest.mark.parametrize("codes", ["RAS", "PLS", "IRP"])
def test_maps_come_back_to_the_grid_of_the_file_voxel_by_voxel(tmp_path, head, codes):
    scan = prepare_scan(
        head.write(tmp_path, codes), mask=head.stored(head.brain, codes), shape=(24, 24, 18), center="brain"
    )
    where = np.random.default_rng(0).normal(size=head.shape).astype(np.float32) * head.brain
    values = np.zeros((24, 24, 18), np.float32)
    index = np.argwhere(scan.case.brain)
    native = np.rint(nib.affines.apply_affine(np.linalg.inv(head.affine) @ scan.case.affine, index)).astype(int)
    values[tuple(index.T)] = where[tuple(native.T)]
    image = scan.image(values)
    expected = head.stored(where, codes)
    np.testing.assert_allclose(image.affine, expected.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))
    binary = scan.image(values > 1)
    assert binary.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(binary.dataobj) > 0, np.asarray(expected.dataobj) > 1)


def test_maps_of_other_voxels_come_back_to_the_place_they_belong_to(head):
    masks = {"mask": head.stored(head.brain, "LPI"), "lesion": head.stored(head.fluid, "LPI")}
    scan = prepare_scan(head.stored(head.series, "LPI"), Protocol(head.bval), **masks, spacing=3.0, shape=(36, 40, 32))
    assert scan.case.spacing == pytest.approx((3, 3, 3))
    assert 27 * scan.case.lesion.sum() == pytest.approx(head.fluid.sum() * 64, rel=0.15)
    back = np.asarray(scan.image(scan.case.lesion).dataobj) > 0
    expected = np.asarray(head.stored(head.fluid, "LPI").dataobj) > 0
    assert 2 * (back & expected).sum() / (back.sum() + expected.sum()) > 0.9
    np.testing.assert_allclose(*(np.argwhere(one).mean(axis=0) for one in (back, expected)), atol=0.3)
    inner = np.asarray(head.stored(binary_erosion(head.brain, iterations=2), "LPI").dataobj) > 0
    b0 = np.asarray(head.stored(head.plain.mean(axis=-1), "LPI").dataobj)
    assert np.corrcoef(scan.restore(scan.case.b0)[inner], b0[inner])[0, 1] > 0.99
    labels = scan.restore(np.where(scan.case.brain, 2, 0).astype(np.uint8))
    assert set(np.unique(labels)) == {0, 2}
    with pytest.raises(ValueError, match="give the detector's own map"):
        scan.restore(np.zeros((3, 3, 3)))


def test_cropping_and_padding_keep_every_voxel_in_its_place_in_the_world(head):
    whole = head.prepare().case
    for shape, center in (((22, 26, 20), "grid"), ((18, 30, 16), "grid"), ((17, 21, 14), "brain")):
        part = head.prepare(shape=shape, center=center).case
        assert part.signal.shape == (*shape, 20)
        assert part.brain.sum() == whole.brain.sum()
        places = [nib.affines.apply_affine(one.affine, np.argwhere(one.brain)) for one in (whole, part)]
        np.testing.assert_allclose(*places)
        np.testing.assert_array_equal(whole.signal[whole.brain], part.signal[part.brain])


def test_other_directions_are_brought_to_the_fitted_ones_across_orientations(tmp_path, head):
    fitted = head.prepare()
    other = Head(n=45)
    path, mask = other.write(tmp_path, "PLS"), other.stored(other.brain, "PLS")
    with pytest.raises(ValueError, match="45 directions, and the detector was fitted to 20; directions='resampled'"):
        prepare_scan(path, mask=mask, fitted=fitted.protocol)
    scan = prepare_scan(path, mask=mask, fitted=fitted.protocol, directions="resampled")
    assert scan.protocol == fitted.protocol
    assert scan.notes["directions_measured"] == 45
    # Fibers along x: wrong frames would exchange axes of the signal.
    np.testing.assert_allclose(scan.case.signal, fitted.case.signal, atol=0.03)
    assert np.abs(scan.case.signal - fitted.case.signal)[scan.case.brain].mean() < 0.012


def test_resampling_where_it_is_needed_says_what_is_lost(head):
    fitted = head.prepare()
    options = {"fitted": fitted.protocol, "directions": "needed"}
    # The same directions keep every bit.
    same = head.prepare(**options)
    np.testing.assert_array_equal(same.case.signal, fitted.case.signal)
    assert fitted.notes["lost"] == same.notes["lost"] == ""
    other = Head(n=45)
    scan = other.prepare(**options)
    assert scan.protocol == fitted.protocol
    lost = scan.notes["lost"]
    assert lost.startswith("signals along 20 directions are estimated from 45 other ones: what varies")
    assert "harmonics of order 6 is lost" in lost
    # Independent noise, resampled by hundreds.
    noise = np.random.default_rng(0).normal(size=(4000, 45)).astype(np.float32)
    resampled = resample_directions(noise, other.directions, fitted.protocol.directions)
    assert f"noise is {resampled.std():.2f} times that of the measured" in lost
    with pytest.raises(ValueError, match="has 5 directions, and the detector was fitted to 20"):
        head.prepare(head.series[..., :6], head.protocol.take(np.arange(6)), **options)


def test_powder_averages_of_all_shells_are_channels(head):
    series = np.concatenate([head.series, Head(b=2500.0).series[..., 1:]], axis=-1)
    rng = np.random.default_rng(0)
    b = np.concatenate([head.bval, np.full(20, 2500.0), [5.0]])
    b[1:] *= 1 + rng.uniform(-0.02, 0.02, len(b) - 1)
    scan = head.prepare(series, Protocol(b), directions="powder")
    np.testing.assert_allclose(scan.protocol.b, [1000, 2500], rtol=0.02)
    assert scan.protocol.directions is None
    assert (scan.notes["powder_averages"], scan.notes["directions_measured"]) == (True, 40)
    near, high = (head.prepare(series, Protocol(b), b=level).case.signal.mean(axis=-1) for level in (1000, 2500))
    np.testing.assert_allclose(scan.case.signal, np.stack([near, high], axis=-1), atol=1e-6)
    # Any order and any directions give the same channels.
    order = rng.permutation(len(b))
    again = head.prepare(series[..., order], Protocol(b[order]), fitted=scan.protocol, directions="powder")
    np.testing.assert_allclose(again.case.signal, scan.case.signal, atol=1e-6)
    assert again.protocol.b.tolist() == pytest.approx(scan.protocol.b.tolist(), rel=0.02)
    one = head.prepare(series, Protocol(b), directions="powder", b=2500)
    np.testing.assert_allclose(one.case.signal[..., 0], high, atol=1e-6)
    # Volumes between shells are named.
    assert head.prepare(directions="powder").notes["unused"] == ""
    b = head.protocol.b.copy()
    b[-2:] = 1080
    scan = head.prepare(protocol=Protocol(b), directions="powder")
    assert len(scan.protocol) == 1
    assert scan.notes["unused"].startswith("outside the shells of the powder averages and not used: 2 volumes")
    assert scan.notes["unused"].endswith("b = 1080 s/mm²")


def test_one_shell_of_several_is_taken(head):
    far = Head(b=2500.0)
    series = np.concatenate([head.series, far.series[..., 1:21]], axis=-1)
    b = np.concatenate([head.bval, far.bval[1:21]])
    b[1:21] += np.random.default_rng(0).uniform(-12, 12, 20)
    protocol = Protocol(b, directions=directions_in_file(np.concatenate([head.bvec, far.bvec[1:21]]), head.affine))
    with pytest.raises(ValueError, match=r"several shells: .*1000 \(20\), b ≈ 2500 \(20\).*b=… \(--b\)"):
        head.prepare(series, protocol)
    np.testing.assert_allclose(head.prepare(series, protocol, b=1000).case.signal, head.signal, atol=2e-6)
    fitted = head.prepare().protocol
    assert head.prepare(series, protocol, fitted=fitted).notes["directions"] == 20
    with pytest.raises(ValueError, match="b = 2500 s/mm² is not that of the detector"):
        head.prepare(series, protocol, fitted=fitted, b=2500)
    with pytest.raises(ValueError, match=r"no measurement at b = 1000 s/mm² \(± 5 %\); it has b ≈ 0 \(2\), b ≈ 2500"):
        far.prepare(fitted=fitted)


def test_voxels_without_signal_at_b_0_leave_the_brain_and_signals_above_it_are_limited_and_told(head):
    protocol = Protocol(np.roll(head.bval, 3), directions=np.roll(head.bvec, 3, axis=0))
    with pytest.warns(UserWarning, match="are above that at b = 0 where that is high; check that the b-values"):
        assert head.prepare(protocol=protocol).case.signal.max() == 1
    series = head.series.copy()
    dark = np.argwhere(head.brain)[100:130]
    series[tuple(dark.T)] = 0.3
    series[tuple(dark[0])] = 0
    scan = head.prepare(series)
    assert scan.notes["voxels_too_dark"] == 30
    assert not scan.case.brain[tuple(dark.T)].any()
    assert not scan.case.signal[tuple(dark.T)].any()
    assert np.isfinite(scan.case.signal).all()
    assert scan.case.signal.max() <= 1


def test_the_brain_is_found_when_no_mask_is_given_and_not_a_number_counts_inside_it_only(head):
    head = Head(spacing=6.0)
    noise = np.random.default_rng(0).normal(scale=8, size=(2, *head.series.shape))
    series = np.hypot(head.series + noise[0], noise[1]).astype(np.float32)
    brain = prepare_scan(nib.Nifti1Image(series, head.affine), head.protocol).case.brain
    assert 2 * (brain & head.brain).sum() / (brain.sum() + head.brain.sum()) > 0.9
    assert head.prepare(series, mask=False).case.brain.sum() > 1.5 * head.brain.sum()
    series = head.series.copy()
    series[0, 0, 0, 3] = np.nan
    assert np.isfinite(head.prepare(series, spacing=3.0).case.signal).all()
    series[11, 13, 10, 3] = np.inf
    with pytest.raises(ValueError, match=r"1 of .* voxels of the brain have values that are not finite"):
        head.prepare(series)


ONE_VOXEL = np.zeros(Head.shape, np.uint8)
ONE_VOXEL[11, 13, 10] = 1


def test_directions_beside_the_image_count_and_the_fitted_ones_are_found_in_another_order(tmp_path, head):
    path = head.write(tmp_path)
    expected = prepare_scan(path, mask=False).case.directions
    (tmp_path / "dwi.bval").rename(tmp_path / "other.bval")
    np.testing.assert_array_equal(prepare_scan(path, bval=tmp_path / "other.bval", mask=False).case.directions, expected)
    fitted = head.prepare()
    order = np.random.default_rng(3).permutation(len(head.protocol))
    again = head.prepare(head.series[..., order], head.protocol.take(order), fitted=fitted.protocol)
    np.testing.assert_array_equal(again.case.signal, fitted.case.signal)
    without = Protocol(head.bval)
    with pytest.warns(UserWarning, match="its directions are unknown: those .* are assumed, in their order; to check"):
        scan = head.prepare(protocol=without, fitted=fitted.protocol)
    assert (scan.case.directions, scan.notes["directions_measured"]) == (None, None)
    assert scan.notes["assumed"].endswith("are assumed, in their order")
    head.prepare(protocol=without, fitted=head.prepare(protocol=without).protocol)


def test_a_real_scan_comes_out_as_signals_between_0_and_1_and_one_of_other_shells_is_refused(data_dir):
    folder = data_dir / "dipy_small_dwi"
    scan = prepare_scan(folder / "small_64D.nii", mask=False, shape=(12, 12, 12))
    raw = nib.load(folder / "small_64D.nii")
    assert scan.case.signal.shape == (12, 12, 12, 64)
    assert scan.notes["voxels"] == 1000
    # The study's tissue has a mean of about .4 at b = 1000.
    assert scan.case.signal[scan.case.brain].mean() == pytest.approx(0.4, abs=0.05)
    assert scan.notes["share_above_b0"] < 0.03
    back = scan.image(scan.case.b0)
    np.testing.assert_array_equal(np.asarray(back.dataobj), raw.get_fdata()[..., 0].astype(np.float32))
    np.testing.assert_allclose(back.affine, raw.affine)
    by_hand = raw.get_fdata()[..., 7] / raw.get_fdata()[..., 0]
    found = np.asarray(scan.image(np.ascontiguousarray(scan.case.signal[..., 6])).dataobj)
    np.testing.assert_allclose(found, np.clip(by_hand, 0, 1), atol=1e-6)
    fitted = prepare_scan(folder / "small_64D.nii", mask=False).protocol
    with pytest.raises(ValueError, match=r"b ≈ 310 \(2\),.* b ≈ 950 \(2\).* train CASES --b 950 --out own.dmrifit"):
        prepare_scan(folder / "small_101D.nii.gz", mask=False, b=1000)
    with pytest.raises(ValueError, match=r"no measurement at b = 99\d.* b ≈ 2000 \(25\)"):
        prepare_scan(folder / "small_25.nii.gz", mask=False, fitted=fitted, directions="resampled")


PROTOCOL = Protocol(np.full(30, 1000.0), directions=spread_directions(30))


def test_maps_are_those_of_known_tensors():
    tensors = np.array([[1.6, 0.35, 0.35], [0.8, 0.8, 0.8], [3.0, 3.0, 3.0], [1.2, 1.0, 0.6]])
    signal = np.exp(-(PROTOCOL.directions**2) @ tensors.T).T[:, None, None]
    md, fa = diffusion_maps(signal, PROTOCOL, np.ones((4, 1, 1), bool))
    mean = tensors.mean(axis=1)
    expected = np.sqrt(1.5 * ((tensors - mean[:, None]) ** 2).sum(axis=1) / (tensors**2).sum(axis=1))
    np.testing.assert_allclose(md.ravel(), mean, rtol=1e-3)
    np.testing.assert_allclose(fa.ravel(), expected, atol=2e-3)


def test_tissues_of_synthetic_brains_are_about_the_true_ones_and_nothing_lies_outside_the_brain():
    tensors = np.array([[1.6, 0.35, 0.35], [0.85, 0.8, 0.75], [3.0, 3.0, 3.0], [1.4, 1.4, 1.4], [1.6, 0.35, 0.35]])
    signal = np.exp(-(PROTOCOL.directions**2) @ tensors.T).T[:, None, None]
    brain = np.array([1, 1, 1, 1, 0], bool)[:, None, None]
    # Edema, the fourth, is no fluid: it has to be scored.
    np.testing.assert_array_equal(estimate_tissue(signal, PROTOCOL, brain).ravel(), [1, 2, 3, 2, 0])
    low, high = (estimate_tissue(signal, PROTOCOL, brain, **given) for given in ({"fluid_md": 1.0}, {"white_fa": 0.9}))
    np.testing.assert_array_equal(low.ravel(), [1, 2, 3, 3, 0])
    np.testing.assert_array_equal(high.ravel(), [2, 2, 3, 2, 0])
    from anomaly.simulate.persons import simulate_dmri

    healthy, lesions = simulate_dmri(1, 2, n_directions=20, shape=(30, 36, 24), spacing=5.3, random_state=1)

    def found(case):
        protocol = Protocol(np.full(20, case.b), directions=case.directions)
        return estimate_tissue(case.signal, protocol, case.brain)

    truth, own = np.where(healthy[0].tissue == 4, 2, healthy[0].tissue), found(healthy[0])
    for number, least in ((1, 0.8), (2, 0.8), (3, 0.75)):
        one, other = own == number, truth == number
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > least
    for case in lesions:
        assert (found(case)[case.lesion] == 3).mean() < 0.1


def test_numbers_of_tissues_of_other_programs_become_those_of_this_one(head):
    labels = np.array([0, 1, 2, 3, 9])[:, None, None]
    np.testing.assert_array_equal(relabel_tissue(labels, {1: 3, 2: 2, 3: 1}).ravel(), [0, 3, 2, 1, 0])
    np.testing.assert_array_equal(relabel_tissue(np.array([0, 1.0, 2.0000001, np.nan])), [0, 1, 2, 0])
    numbers = {7: 1, 5: 2, 9: 3, 2: 4}
    others = np.select([head.tissue == own for own in numbers.values()], list(numbers), 0).astype(np.uint8)
    scan = head.prepare(tissue=head.stored(others), tissue_numbers=numbers)
    np.testing.assert_array_equal(scan.case.tissue, head.tissue)
    # A brain mask in place of a tissue map is told, and a mask of white matter is none.
    masks = (head.tissue == 1, head.brain)
    white, whole = (head.prepare(tissue=head.stored(mask)).notes["one_tissue"] for mask in masks)
    assert [*map(scan.notes.get, ("one_tissue", "holes")), white, whole[:41]] == ["", "", "", "the tissue map has white matter alone, no"]
    holes = binary_erosion(head.brain, iterations=4)
    notes = head.prepare(mask=head.stored(head.brain & ~holes)).notes
    assert f"{100 * holes.sum() / head.brain.sum():.2g} % of the brain mask are holes" in notes["holes"]
